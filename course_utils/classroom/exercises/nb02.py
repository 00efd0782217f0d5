"""Exercises of notebook 02: cosine logits, the loss floor, the scale for a probability, imprinting."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from ...decoupling import class_means
from ...heads import CosineClassifier, cosine_loss_floor
from . import Exercise, Wrong, expect_close

# ---- 2.1: cosine logits --------------------------------------------------------------------------------------------


def cosine_logits(features, weight, scale):
    directions = features / features.norm(dim=1, keepdim=True)
    rows = weight / weight.norm(dim=1, keepdim=True)
    return scale * directions @ rows.T


def _verify_cosine_logits(answer):
    generator = torch.Generator().manual_seed(2)
    for batch, classes, dim, scale in ((3, 5, 4, 7.0), (6, 2, 6, 1.5), (1, 2, 3, 30.0)):
        head = CosineClassifier(dim, classes, scale=scale)
        features = torch.randn(batch, dim, generator=generator) * torch.rand(batch, 1, generator=generator)
        with torch.no_grad():
            head.rows[0].copy_(torch.randn(classes, dim, generator=generator) * 3)
            want = head(features)
        got = answer(features.clone(), head.weight.detach().clone(), scale)
        expect_close(got, want, f"for {batch} images, {classes} classes, {dim} features, scale {scale}")


# ---- 2.2: the loss floor -------------------------------------------------------------------------------------------


def loss_floor(num_classes, scale):
    own, other = math.exp(scale), math.exp(-scale / (num_classes - 1))
    return -math.log(own / (own + (num_classes - 1) * other))


def _verify_loss_floor(answer):
    for classes, scale in ((2, 0.5), (10, 1.0), (26, 4.0), (100, 9.0)):
        want = cosine_loss_floor(classes, scale)
        expect_close(answer(classes, scale), want, f"for {classes} classes and scale {scale:g}", tolerance=1e-3)


# ---- 2.3: the scale for a probability ------------------------------------------------------------------------------


def scale_for(probability, num_classes):
    odds = probability / (1 - probability)
    return (num_classes - 1) / num_classes * math.log((num_classes - 1) * odds)


def _verify_scale_for(answer):
    for probability, classes in ((0.99, 10), (0.9, 2), (0.5, 100)):
        scale = answer(probability, classes)
        if not isinstance(scale, int | float) or not scale >= 0:
            raise Wrong(f"return one number of at least 0; got {str(scale)[:40]!r}")
        reached = math.exp(-cosine_loss_floor(classes, min(scale, 500)))
        case = f"with {classes} classes, your scale {scale:.3g} allows a probability"
        expect_close(reached, probability, case, tolerance=1e-3)


# ---- 2.4: imprinting -----------------------------------------------------------------------------------------------


def imprinted_rows(features, labels, num_new):
    directions = features / features.norm(dim=1, keepdim=True)
    means = torch.stack([directions[labels == j].mean(dim=0) for j in range(num_new)])
    return means / means.norm(dim=1, keepdim=True)


def _verify_imprinting(answer):
    generator = torch.Generator().manual_seed(4)
    for labels, dim in (([0, 2, 1, 1, 0, 2, 2, 0, 1, 2], 4), ([1, 0, 1, 0], 3), ([0, 0, 0, 1, 2, 3, 3], 6)):
        labels = torch.tensor(labels)
        classes = int(labels.max()) + 1
        features = torch.randn(len(labels), dim, generator=generator) + 2 * torch.eye(classes, dim)[labels]
        features = features * (0.2 + 5 * torch.rand(len(labels), 1, generator=generator))
        head = CosineClassifier(dim, classes)
        head.imprint(features, labels)
        want = F.normalize(head.weight.detach(), dim=1)
        case = f"for {len(labels)} images of {classes} classes, {dim} features"
        expect_close(answer(features.clone(), labels.clone(), classes), want, case)


EXERCISES = {
    "2.1": Exercise(
        goal="logits that depend on angles only: the scale times the cosine of every feature with every row.",
        verify=_verify_cosine_logits,
        solution=cosine_logits,
        mutants=(
            lambda f, w, s: s * f @ F.normalize(w, dim=1).T,  # the rows only
            lambda f, w, s: s * F.normalize(f, dim=0) @ F.normalize(w, dim=0).T,  # normalizes columns
            lambda f, w, s: cosine_logits(s * f, w, 1.0),  # the scale inside
            lambda f, w, s: s * (f / f.norm()) @ (w / w.norm()).T,  # one norm for all
        ),
    ),
    "2.2": Exercise(
        goal="the smallest cross-entropy that C classes can reach with cosine logits of a given scale.",
        verify=_verify_loss_floor,
        solution=loss_floor,
        mutants=(
            lambda c, s: math.log(1 + (c - 1) * math.exp(-2 * s)),  # the others opposite
            lambda c, s: math.log(1 + (c - 1) * math.exp(-s)),  # the others orthogonal
            lambda c, s: math.log(1 + c * math.exp(-s * c / (c - 1))),  # counts itself twice
            lambda c, s: math.exp(-loss_floor(c, s)),  # the probability instead
        ),
    ),
    "2.3": Exercise(
        goal="the scale at which the best possible probability of the right class is p.",
        verify=_verify_scale_for,
        solution=scale_for,
        mutants=(
            lambda p, c: math.log((c - 1) * p / (1 - p)),  # no simplex
            lambda p, c: (c - 1) / c * math.log(p / (1 - p) + 1),  # forgets the others
            lambda p, c: -(c - 1) / c * math.log(1 - p),  # the log of a probability
        ),
    ),
    "2.4": Exercise(
        goal="a unit row for every new class: the mean direction of its features.",
        verify=_verify_imprinting,
        solution=imprinted_rows,
        mutants=(
            lambda f, y, n: F.normalize(class_means(f, y, n), dim=1),  # means of raw features
            lambda f, y, n: class_means(F.normalize(f, dim=1), y, n),  # not of unit length
            lambda f, y, n: F.normalize(torch.stack([f[y == j][0] for j in range(n)]), dim=1),  # the first image only
            lambda f, y, n: imprinted_rows(f, y, n)[list(dict.fromkeys(y.tolist()))],  # in the order of appearance
        ),
    ),
}
