"""Exercises of notebook 06: the centroid loss, the meta-embedding, the whole of stage 2, the open-set F-measure."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn import functional as F

from ... import openworld
from ...data import LabeledImages
from ...metrics import open_set_f_measure
from ...networks import SmallCNN
from ...sampling import ClassBalancedSampler, InstanceBalancedSampler
from ...training import fit, predict
from . import Exercise, Wrong, expect_close


def _expect_table(got, want, case, tolerance=1e-4):
    """Compare two tensors of one shape, of any number of dimensions."""
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        shape = tuple(got.shape) if isinstance(got, torch.Tensor) else f"a {type(got).__name__}"
        raise Wrong(f"{case}: return a tensor of shape {tuple(want.shape)}; got {shape}")
    expect_close(got.detach().flatten(), want.detach().flatten(), case, tolerance)


# ---- 6.1: attract and repel ----------------------------------------------------------------------------------------


def centroid_loss(features, labels, memory, margin, repel_weight):
    squares = (features[:, None] - memory).square().sum(dim=2)  # (B, K)
    own = F.one_hot(labels, len(memory)).bool()
    attract = squares[own].mean() / 2
    repel = (margin - squares).clamp(min=0)[~own].sum() / squares.numel()
    return attract + repel_weight * repel


def _verify_centroid_loss(answer):
    for seed, (images, classes, dim, margin, weight) in enumerate(
        ((20, 5, 3, 9.0, 0.3), (7, 3, 2, 4.0, 2.0), (9, 6, 4, 12.0, 0.0))
    ):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (images,), generator=generator)
        features, memory = (2 * torch.randn(n, dim, generator=generator) for n in (images, classes))
        case = f"{images} images, {classes} centroids, margin {margin:g}, weight {weight:g}"
        loss = openworld.DiscriminativeCentroidLoss(margin, weight, pairwise=True)
        want_memory = memory.clone().requires_grad_()
        want = loss(features, labels, want_memory)
        got_memory = memory.clone().requires_grad_()
        got = answer(features.clone(), labels.clone(), got_memory, margin, weight)
        expect_close(got.detach() if isinstance(got, torch.Tensor) else got, want.item(), f"the loss of {case}")
        if not isinstance(got, torch.Tensor) or not got.requires_grad:
            raise Wrong(f"{case}: the value is right, but no gradient reaches the centroids: do not detach them")
        _expect_table(
            *(torch.autograd.grad(x, m)[0] for x, m in ((got, got_memory), (want, want_memory))),
            f"gradient of the centroids, {case}",
        )


def _with_squares(turn, divide=len, mean_first=False):
    """The loss with other distances, another divisor of the repelling half, or one hinge for the batch."""

    def loss(features, labels, memory, margin, repel_weight):
        squares = turn((features[:, None] - memory).square().sum(dim=2))
        own = F.one_hot(labels, len(memory)).bool()
        others = squares[~own]
        repel = (margin - others.mean()).clamp(min=0) if mean_first else (margin - others).clamp(min=0).sum()
        return squares[own].mean() / 2 + repel_weight * (repel if mean_first else repel / divide(squares))

    return loss


def _own_in_repel(features, labels, memory, margin):
    own = (features - memory[labels]).square().sum(dim=1)
    return (margin - own).clamp(min=0).sum() / (len(features) * len(memory))


# ---- 6.2: reading from the memory ----------------------------------------------------------------------------------


def meta_embedding(features, memory, wanted, chosen, reach):
    nearest = torch.cdist(features, memory).amin(dim=1, keepdim=True)
    reachability = reach / nearest.clamp(min=reach / 1000)
    read = wanted.softmax(dim=1) @ memory
    return reachability * (features + chosen.tanh() * read)


def _verify_meta(answer):
    for seed, (images, classes, dim, reach) in enumerate(((6, 3, 2, 1.0), (4, 7, 5, 0.3), (3, 3, 3, 10.0))):
        generator = torch.Generator().manual_seed(seed)
        features, chosen = torch.randn(2, images, dim, generator=generator)
        memory, wanted = (
            2 * torch.randn(classes, dim, generator=generator),
            2 * torch.randn(images, classes, generator=generator),
        )
        want = meta_embedding(features, memory, wanted, chosen, reach)
        got = answer(*(t.clone() for t in (features, memory, wanted, chosen)), reach)
        _expect_table(
            got, want, f"{images} images, {classes} centroids, {dim} features, reach {reach:g}", tolerance=1e-3
        )
        features[0] = memory[0]  # an image right on a centroid
        want = 1000 * (features + chosen.tanh() * (wanted.softmax(1) @ memory))[:1]
        got = answer(*(t.clone() for t in (features[:1], memory, wanted[:1], chosen[:1])), reach)
        if not isinstance(got, torch.Tensor) or not got.isfinite().all():
            raise Wrong("an image that lies on a centroid: the answer must stay finite")
        _expect_table(got, want, "an image that lies on a centroid (d_min = reach / 1000)", tolerance=1e-3)


def _other_embedding(weigh=lambda w: w.softmax(dim=1), select=torch.tanh, nearest=lambda d: d.amin(1, True)):
    def embedding(features, memory, wanted, chosen, reach):
        reachability = reach / nearest(torch.cdist(features, memory)).clamp(min=reach / 1000)
        return reachability * (features + select(chosen) * (weigh(wanted) @ memory))

    return embedding


# ---- 6.3: stage 2 --------------------------------------------------------------------------------------------------


def stage_two(first, train, epochs, seed, options):
    model = openworld.with_parts(first, train, seed=seed)
    margin = torch.pdist(model.head.memory.detach()).square().mean()

    def objective(model, images, labels, indices):
        features = model.features(images)
        cross_entropy = F.cross_entropy(model.head(features), labels)
        return cross_entropy + 0.1 * centroid_loss(features, labels, model.head.memory, margin, 0.01)

    sampler = ClassBalancedSampler(train.labels, seed=seed)
    still = {"head.memory": {"weight_decay": 0}}
    fit(model, train, epochs=epochs, objective=objective, sampler=sampler, groups=still, seed=seed, **options)
    return model


@functools.cache
def _small_world():
    """[(a network after stage 1, its images)]: bright stripes, a long tail. Made once in a process."""
    found = []
    for seed, counts in enumerate(((60, 24, 8, 3), (40, 5, 9), (9, 30, 4, 12))):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        images = torch.randint(140, (len(labels), 1, 12, 12), dtype=torch.uint8, generator=generator)
        for j in range(len(counts)):
            images[labels == j, :, 3 * j : 3 * j + 2] += 90
        train = LabeledImages(images, labels, tuple("abcd"[: len(counts)]))
        with openworld.keeping_random_state() as reseed:
            reseed(seed)
            model = SmallCNN(len(counts), width=4)
        fit(model, train, epochs=8, batch_size=16, lr=0.05, seed=seed, progress=False)
        found.append((model, train))
    return found


def _verify_stage_two(answer):
    for seed, (first, train) in enumerate(_small_world()):
        options: dict[str, Any] = {"batch_size": 16, "lr": 0.05, "weight_decay": 0.01, "progress": False}
        want = openworld.second_stage(first, train, epochs=3, seed=seed, **options)
        before = predict(first, train)
        got = answer(first, train, 3, seed, dict(options))
        case = f"{len(train)} images of {train.num_classes} classes, 3 epochs"
        if getattr(getattr(got, "head", None), "memory", None) is None:
            raise Wrong(f"{case}: return the trained network that with_parts() gave; got {type(got).__name__}")
        if got is first or not torch.equal(predict(first, train), before):
            raise Wrong(f"{case}: the network of stage 1 was changed; with_parts() gives a copy")
        _expect_table(got.head.memory, want.head.memory, f"the memory after stage 2, {case}", tolerance=1e-3)
        _expect_table(predict(got, train), predict(want, train), f"logits after stage 2, {case}", tolerance=1e-3)


def _other_stage_two(
    weight=0.1, repel=0.01, margin=lambda d: d.square().mean(), pull=None, sampler=ClassBalancedSampler
):
    """Stage 2 with another weight, margin or sampler, or with `pull`: (model, features) to what is pulled, where."""
    pull = pull or (lambda model, features: (features, model.head.memory))

    def stage_two(first, train, epochs, seed, options):
        model = openworld.with_parts(first, train, seed=seed)
        size = margin(torch.pdist(model.head.memory.detach()))

        def objective(model, images, labels, indices):
            features = model.features(images)
            pulled, memory = pull(model, features)
            loss = F.cross_entropy(model.head(features), labels)
            return loss + weight * centroid_loss(pulled, labels, memory, size, repel)

        own = sampler(train.labels, seed=seed)
        fit(
            model,
            train,
            epochs=epochs,
            seed=seed,
            sampler=own,
            objective=objective,
            groups={"head.memory": {"weight_decay": 0}},
            **options,
        )
        return model

    return stage_two


def _decayed(first, train, epochs, seed, options):
    """With weight decay of the memory, as the released code has it."""
    model = openworld.with_parts(first, train, seed=seed)
    margin = torch.pdist(model.head.memory.detach()).square().mean().item()
    loss = openworld.DiscriminativeCentroidLoss(margin, 0.01, pairwise=True)
    objective, sampler = openworld.CentroidObjective(loss, 0.1), ClassBalancedSampler(train.labels, seed=seed)
    fit(model, train, epochs=epochs, seed=seed, objective=objective, sampler=sampler, **options)
    return model


def _only_cross_entropy(first, train, epochs, seed, options):
    return openworld.second_stage(first, train, openworld.PARTS[:4], epochs=epochs, seed=seed, **options)


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
        goal="equation (1), mean over the images.",
        verify=_verify_centroid_loss,
        solution=centroid_loss,
        mutants=(
            _with_squares(torch.sqrt, torch.numel),  # distances, not squared
            _with_squares(lambda s: s, lambda s: s.numel() - len(s)),  # 1 / (K - 1)
            _with_squares(lambda s: s, len),  # sum over the classes
            _with_squares(lambda s: s, mean_first=True),  # one hinge for the batch
            lambda f, y, m, margin, w: 2 * centroid_loss(f, y, m, margin, w / 2),  # attraction without the half
            lambda f, y, m, margin, w: centroid_loss(f, y, m, margin, -w),  # pulls to the others
            lambda f, y, m, margin, w: centroid_loss(f, y, m, margin, w) + w * _own_in_repel(f, y, m, margin),
            lambda f, y, m, margin, w: centroid_loss(f, y, m.detach(), margin, w),  # the centroids never move
        ),
    ),
    "6.2": Exercise(
        goal="v of equation (4), finite even on a centroid.",
        verify=_verify_meta,
        solution=meta_embedding,
        mutants=(
            _other_embedding(weigh=lambda w: w),  # weights not normalized
            _other_embedding(weigh=lambda w: w.softmax(dim=0)),  # softmax over images
            _other_embedding(select=torch.sigmoid),
            _other_embedding(select=torch.ones_like),  # no selector
            _other_embedding(nearest=lambda d: d.amax(1, True)),  # the farthest
            _other_embedding(nearest=lambda d: d.amin(1, True).square()),
            _other_embedding(nearest=lambda d: d.mean(1, True)),
            lambda f, m, w, c, r: r / torch.cdist(f, m).amin(1, True) * (f + c.tanh() * (w.softmax(1) @ m)),  # not safe
            lambda f, m, w, c, r: f + c.tanh() * (w.softmax(1) @ m),  # without reachability
        ),
    ),
    "6.3": Exercise(
        goal="a network trained as equation (6) says.",
        verify=_verify_stage_two,
        solution=stage_two,
        mutants=(
            _only_cross_entropy,
            _decayed,
            _other_stage_two(weight=1.0),
            _other_stage_two(repel=1.0),
            _other_stage_two(sampler=InstanceBalancedSampler),
            _other_stage_two(pull=lambda model, f: (f, model.head.memory.detach())),  # the memory stands still
            _other_stage_two(
                pull=lambda model, f: (model.head.embed(f).embedding, model.head.memory)
            ),  # pulls v, not f
            lambda first, train, epochs, seed, options: openworld.with_parts(first, train, seed=seed),  # not trained
            lambda first, train, epochs, seed, options: stage_two(first, train, epochs - 1, seed, options),
        ),
    ),
    "6.4": Exercise(
        goal="F as the released code counts it; -1 is open.",
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
