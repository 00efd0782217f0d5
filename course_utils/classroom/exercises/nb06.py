"""Exercises of notebook 06: class centroids, reachability, the meta-embedding, the open-set F-measure."""

from __future__ import annotations

import torch

from ...decoupling import class_means
from ...metrics import open_set_f_measure
from ...openworld import centroid_distances
from . import Exercise, Wrong, expect_close

# ---- 6.1: one centroid for every class -----------------------------------------------------------------------------


def centroids(features, labels, num_classes):
    return torch.stack([features[labels == j].mean(dim=0) for j in range(num_classes)])


def _expect_table(got, want, case, tolerance=1e-4):
    """Compare two tensors of one shape, of any number of dimensions."""
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        shape = tuple(got.shape) if isinstance(got, torch.Tensor) else f"a {type(got).__name__}"
        raise Wrong(f"{case}: return a tensor of shape {tuple(want.shape)}; got {shape}")
    expect_close(got.flatten(), want.flatten(), case, tolerance)


def _verify_centroids(answer):
    for seed, (classes, dim) in enumerate(((3, 2), (6, 4), (4, 7))):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(classes).repeat_interleave(torch.tensor([30, 4, 1, 8, 2, 5][:classes]))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        features = torch.randn(len(labels), dim, generator=generator) + labels[:, None]
        want = class_means(features, labels, classes)
        case = f"{classes} classes, {dim} features"
        _expect_table(answer(features.clone(), labels.clone(), classes), want, case)


# ---- 6.2: how near is the nearest centroid? ------------------------------------------------------------------------


def reachability(features, memory, reach):
    nearest = torch.cdist(features, memory).min(dim=1).values
    return reach / nearest.clamp(min=reach / 1000)


def _verify_reachability(answer):
    for seed, (images, classes, dim, reach) in enumerate(((20, 3, 2, 1.0), (9, 6, 5, 0.3), (5, 8, 3, 10.0))):
        generator = torch.Generator().manual_seed(seed)
        features = 4 * torch.randn(images, dim, generator=generator)
        memory = 4 * torch.randn(classes, dim, generator=generator)
        want = reach / centroid_distances(features, memory).amin(1)
        got = answer(features.clone(), memory.clone(), reach)
        expect_close(got, want, f"{images} images, {classes} centroids, reach {reach:g}", tolerance=1e-3)
        got = answer(memory[:1].clone(), memory.clone(), reach)
        if not isinstance(got, torch.Tensor) or not got.isfinite().all():
            raise Wrong("an image that lies on a centroid: the answer must stay a finite number")
        if not abs(got.item() - 1000) < 1:
            raise Wrong(f"an image that lies on a centroid: got {got.item():.4g}, expected 1000 (d_min = reach / 1000)")


# ---- 6.3: the meta-embedding ---------------------------------------------------------------------------------------


def meta_embedding(features, memory, wanted, chosen, reachable):
    read = wanted.softmax(dim=1) @ memory
    return reachable[:, None] * (features + chosen.tanh() * read)


def _verify_meta(answer):
    for seed, (images, classes, dim) in enumerate(((6, 3, 2), (4, 7, 5), (3, 3, 3))):
        generator = torch.Generator().manual_seed(seed)
        features, chosen = torch.randn(2, images, dim, generator=generator)
        memory = 2 * torch.randn(classes, dim, generator=generator)
        wanted = 2 * torch.randn(images, classes, generator=generator)
        reachable = 0.2 + torch.rand(images, generator=generator)
        want = meta_embedding(features, memory, wanted, chosen, reachable)
        got = answer(*(t.clone() for t in (features, memory, wanted, chosen, reachable)))
        _expect_table(got, want, f"{images} images, {classes} centroids, {dim} features")


# ---- 6.4: the F-measure of the released code -----------------------------------------------------------------------


def open_f(predictions, labels):
    known = labels != -1
    right = (known & (predictions == labels)).sum()
    accepted = (~known & (predictions != -1)).sum()
    precision, recall = right / known.sum(), right / (right + accepted)
    return 2 * precision * recall / (precision + recall)


def _verify_open_f(answer):
    cases = [
        ([0, 1, 2, -1, -1], [0, 1, 2, -1, -1], "everything right"),
        ([0, 1, -1, -1, -1], [0, 1, 2, -1, -1], "one known image rejected"),
        ([0, 1, 1, 2, -1], [0, 1, 2, -1, -1], "one known image wrong, one open image accepted"),
        ([0, -1, -1, 0, 0], [0, 1, 2, -1, -1], "two known images rejected, both open ones accepted"),
    ]
    for predictions, labels, case in cases:
        said, truth = torch.tensor(predictions), torch.tensor(labels)
        expect_close(answer(said.clone(), truth.clone()), open_set_f_measure(said, truth), f"F with {case}")


def _right(predictions, labels):
    return ((labels != -1) & (predictions == labels)).sum()


def _accepted(predictions, labels):
    return ((labels == -1) & (predictions != -1)).sum()


def _f(right, known, accepted):
    precision, recall = right / known, right / (right + accepted)
    return 2 * precision * recall / (precision + recall)


def _mean_of_both(predictions, labels):
    right = _right(predictions, labels)
    return (right / (labels != -1).sum() + right / (right + _accepted(predictions, labels))) / 2


def _open_or_not(predictions, labels):
    is_open, said_open = labels == -1, predictions == -1
    hits = (is_open & said_open).sum()
    return 2 * hits / (is_open.sum() + said_open.sum())


EXERCISES = {
    "6.1": Exercise(
        goal="the mean feature of every class, one row each.",
        verify=_verify_centroids,
        solution=centroids,
        mutants=(
            lambda f, y, n: torch.stack([f[y == j].sum(dim=0) for j in range(n)]),  # sums
            lambda f, y, n: centroids(f.mean(dim=1, keepdim=True).expand_as(f), y, n),  # mean over features
            lambda f, y, n: torch.stack([f[y == j].sum(dim=0) for j in range(n)]) / len(f),  # by all images
            lambda f, y, n: torch.stack([f[y == j][0] for j in range(n)]),  # the first images
            lambda f, y, n: torch.nn.functional.normalize(centroids(f, y, n), dim=1),  # unit length
        ),
    ),
    "6.2": Exercise(
        goal="reach / d_min for every image, with d_min at least reach / 1000.",
        verify=_verify_reachability,
        solution=reachability,
        mutants=(
            lambda f, m, r: r / torch.cdist(f, m).min(dim=1).values,  # not safe
            lambda f, m, r: r / torch.cdist(f, m).square().min(dim=1).values.clamp(min=r / 1000),  # squared
            lambda f, m, r: r / torch.cdist(f, m).max(dim=1).values.clamp(min=r / 1000),  # the farthest
            lambda f, m, r: r / torch.cdist(f, m).mean(dim=1).clamp(min=r / 1000),  # the mean distance
            lambda f, m, r: 1 / reachability(f, m, r),  # upside down
            lambda f, m, r: reachability(m, f, r),  # the nearest image
        ),
    ),
    "6.3": Exercise(
        goal="g (f + tanh(selector) * (softmax(hallucinator) @ M)) for every image.",
        verify=_verify_meta,
        solution=meta_embedding,
        mutants=(
            lambda f, m, w, c, r: r[:, None] * (f + c.tanh() * (w @ m)),  # weights not normalized
            lambda f, m, w, c, r: r[:, None] * (f + c.tanh() * (w.softmax(dim=0) @ m)),  # softmax over images
            lambda f, m, w, c, r: r[:, None] * (f + c.sigmoid() * (w.softmax(dim=1) @ m)),
            lambda f, m, w, c, r: r[:, None] * (c.tanh() * f + w.softmax(dim=1) @ m),  # selects the feature
            lambda f, m, w, c, r: r[:, None] * f + c.tanh() * (w.softmax(dim=1) @ m),  # memory always reachable
            lambda f, m, w, c, r: meta_embedding(f, m, w, c, 1 / r),  # divides
        ),
    ),
    "6.4": Exercise(
        goal="the F-measure as the released code counts it; -1 is open.",
        verify=_verify_open_f,
        solution=open_f,
        mutants=(
            lambda p, y: _f(_right(p, y), ((y != -1) & (p != -1)).sum(), _accepted(p, y)),  # the older one
            lambda p, y: (p == y).double().mean(),  # accuracy
            lambda p, y: _f((p == y).sum(), len(y), _accepted(p, y)),  # rejected ones count as right
            _mean_of_both,
            _open_or_not,
        ),
    ),
}
