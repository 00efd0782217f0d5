"""Exercises of notebook 04: class probabilities, the progressive mixture, nearest class means, one logit matrix."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ...decoupling import NearestClassMean, class_means, tau_normalize
from ...sampling import ProgressivelyBalancedSampler, class_probabilities
from . import Exercise, Wrong, expect_close

# ---- 4.1: the chance of each class ---------------------------------------------------------------------------------


def chances(counts, q):
    powers = counts.double() ** q
    return powers / powers.sum()


def _verify_chances(answer):
    for counts in (torch.tensor([100, 10, 1]), torch.tensor([500, 357, 59, 6, 3])):
        for q in (1.0, 0.5, 0.0, 0.25):
            want = class_probabilities(counts, q)
            expect_close(answer(counts.clone(), q), want, f"chances for counts {counts.tolist()}, q = {q:g}")


# ---- 4.2: from instance-balanced to class-balanced -----------------------------------------------------------------


def mixture(counts, epoch, epochs):
    share = epoch / (epochs - 1)
    return (1 - share) * counts / counts.sum() + share / len(counts)


def _verify_mixture(answer):
    counts = torch.tensor([100, 10, 1])
    sampler = ProgressivelyBalancedSampler(torch.arange(3).repeat_interleave(counts), epochs=6)
    for epoch, case in ((0, "in the first epoch"), (5, "in epoch 5 of 0 to 5, the last"), (2, "in epoch 2 of 0 to 5")):
        sampler.set_epoch(epoch)
        got = answer(counts.clone(), epoch, 6)
        expect_close(got, sampler.probabilities(), f"chances {case}")


# ---- 4.3: nearest class mean ---------------------------------------------------------------------------------------


def nearest_mean(features, labels, images):
    center = features.mean(0)
    units = F.normalize(features - center, dim=1)
    means = torch.stack([units[labels == j].mean(0) for j in range(int(labels.max()) + 1)])
    return torch.cdist(F.normalize(images - center, dim=1), means).argmin(1)


def _verify_nearest_mean(answer):
    for seed, (classes, dim) in enumerate(((3, 2), (8, 5), (5, 3))):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(classes).repeat_interleave(torch.tensor([40, 6, 3, 9, 2, 5, 12, 4][:classes]))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        places = 2 * torch.randn(classes, dim, generator=generator) + 5
        spread = 0.3 + 2 * torch.rand(classes, 1, generator=generator)
        features = places[labels] + spread[labels] * torch.randn(len(labels), dim, generator=generator)
        images = 5 + 3 * torch.randn(400, dim, generator=generator)
        want = NearestClassMean(features, labels, classes)(images).argmax(1)
        got = answer(features.clone(), labels.clone(), images.clone())
        if not isinstance(got, torch.Tensor) or got.shape != want.shape:
            raise Wrong(f"return one class for each image, shape {tuple(want.shape)}; got {str(got)[:60]!r}")
        wrong = (got != want).sum().item()
        if wrong:
            raise Wrong(f"{wrong} of {len(want)} images get another class ({classes} classes, {dim} features)")


def _nearest(features, labels, images):
    return torch.cdist(images, class_means(features, labels, int(labels.max()) + 1)).argmin(1)


def _means_normalized_again(features, labels, images):
    center = features.mean(0)
    means = class_means(F.normalize(features - center, dim=1), labels, int(labels.max()) + 1)
    return (F.normalize(images - center, dim=1) @ F.normalize(means, dim=1).T).argmax(1)


# ---- 4.4: tau-normalization from one logit matrix ------------------------------------------------------------------


def rescaled_logits(logits, weight, tau):
    norms = (weight**2).sum(dim=1).sqrt()
    return logits / norms**tau


def _verify_rescaled(answer):
    generator = torch.Generator().manual_seed(4)
    for images, classes, dim in ((50, 6, 4), (7, 7, 7)):
        features = torch.randn(images, dim, generator=generator)
        weight = torch.randn(classes, dim, generator=generator)
        weight *= 0.2 + 3 * torch.rand(classes, 1, generator=generator)
        logits = features @ weight.T
        for tau in (0.0, 0.5, 1.0, 1.7):
            got = answer(logits.clone(), weight.clone(), tau)
            if not isinstance(got, torch.Tensor) or got.shape != logits.shape:
                raise Wrong(f"return logits of shape {tuple(logits.shape)}; got {str(got)[:60]!r}")
            want = features @ tau_normalize(weight, tau).T
            expect_close(got, want, f"{images} images, {classes} classes, tau = {tau:g}", tolerance=1e-3)


EXERCISES = {
    "4.1": Exercise(
        goal="p_j = n_j^q / sum_i n_i^q, the chance that the next image is of class j.",
        verify=_verify_chances,
        solution=chances,
        mutants=(
            lambda n, q: (n / n.sum()).double() ** q,  # not divided
            lambda n, q: (n / n.max()).double() ** q / len(n),  # by the largest
            lambda n, q: (q * n.double().log1p()).softmax(0),
            lambda n, q: chances(n, q - 1),  # the root of the inverse
        ),
    ),
    "4.2": Exercise(
        goal="the chances of the progressively balanced sampler: n_j / N in the first epoch, 1 / C in the last.",
        verify=_verify_mixture,
        solution=mixture,
        mutants=(
            lambda n, epoch, epochs: mixture(n, epoch, epochs + 1),  # never arrives
            lambda n, epoch, epochs: mixture(n, epoch + 1, epochs + 1),  # starts late
            lambda n, epoch, epochs: mixture(n, epochs - 1 - epoch, epochs),  # backwards
            lambda n, epoch, epochs: chances(n, 1 - epoch / (epochs - 1)),  # mixes powers
        ),
    ),
    "4.3": Exercise(
        goal="the nearest class mean of every image, after centring and normalizing.",
        verify=_verify_nearest_mean,
        solution=nearest_mean,
        mutants=(
            lambda f, y, x: _nearest(F.normalize(f, dim=1), y, F.normalize(x, dim=1)),  # not centred
            _nearest,  # not normalized
            lambda f, y, x: _nearest(F.normalize(f - f.mean(0), dim=1), y, x),  # test images untreated
            lambda f, y, x: nearest_mean(f - f.mean(0), y, x - x.mean(0)),  # a centre of their own
            _means_normalized_again,
            lambda f, y, x: NearestClassMean(f, y, int(y.max()) + 1)(x).argmin(1),  # the farthest
        ),
    ),
    "4.4": Exercise(
        goal="the logits of the tau-normalized classifier, made from the logits of the trained one.",
        verify=_verify_rescaled,
        solution=rescaled_logits,
        mutants=(
            lambda z, w, tau: z * w.norm(dim=1) ** tau,  # times the norm
            lambda z, w, tau: z / (w**2).sum(dim=1) ** tau,  # squared norms
            lambda z, w, tau: z / z.norm(dim=1, keepdim=True) ** tau,  # by image
            lambda z, w, tau: z.sign() * (z.abs() / w.norm(dim=1)) ** tau if tau else z,  # power of the logits
        ),
    ),
}
