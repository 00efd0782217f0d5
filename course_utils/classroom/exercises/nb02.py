"""Exercises of notebook 02: cosine logits, the loss floor, the scale for a probability, imprinting."""

from __future__ import annotations

import math

import torch

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


def _rows_only(features, weight, scale):
    return scale * features @ (weight / weight.norm(dim=1, keepdim=True)).T


def _normalizes_columns(features, weight, scale):
    return scale * (features / features.norm(dim=0)) @ (weight / weight.norm(dim=0)).T


def _scale_inside(features, weight, scale):
    scaled = scale * features
    return scaled / scaled.norm(dim=1, keepdim=True) @ (weight / weight.norm(dim=1, keepdim=True)).T


def _one_norm_for_all(features, weight, scale):
    return scale * (features / features.norm()) @ (weight / weight.norm()).T


# ---- 2.2: the loss floor -------------------------------------------------------------------------------------------


def loss_floor(num_classes, scale):
    own, other = math.exp(scale), math.exp(-scale / (num_classes - 1))
    return -math.log(own / (own + (num_classes - 1) * other))


def _verify_loss_floor(answer):
    for classes, scale in ((2, 0.5), (10, 1.0), (26, 4.0), (100, 9.0)):
        want = cosine_loss_floor(classes, scale)
        expect_close(answer(classes, scale), want, f"for {classes} classes and scale {scale:g}", tolerance=1e-3)


def _others_opposite(num_classes, scale):
    own, other = math.exp(scale), math.exp(-scale)
    return -math.log(own / (own + (num_classes - 1) * other))


def _others_orthogonal(num_classes, scale):
    return -math.log(math.exp(scale) / (math.exp(scale) + num_classes - 1))


def _counts_itself_twice(num_classes, scale):
    own, other = math.exp(scale), math.exp(-scale / (num_classes - 1))
    return -math.log(own / (own + num_classes * other))


def _probability_instead(num_classes, scale):
    return math.exp(-loss_floor(num_classes, scale))


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


def _no_simplex(probability, num_classes):
    return math.log((num_classes - 1) * probability / (1 - probability))


def _forgets_the_others(probability, num_classes):
    return (num_classes - 1) / num_classes * math.log(probability / (1 - probability) + 1)


def _log_of_probability(probability, num_classes):
    return -(num_classes - 1) / num_classes * math.log(1 - probability)


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
        want = torch.nn.functional.normalize(head.weight.detach(), dim=1)
        case = f"for {len(labels)} images of {classes} classes, {dim} features"
        expect_close(answer(features.clone(), labels.clone(), classes), want, case)


def _means_of_raw_features(features, labels, num_new):
    means = torch.stack([features[labels == j].mean(dim=0) for j in range(num_new)])
    return means / means.norm(dim=1, keepdim=True)


def _not_unit(features, labels, num_new):
    directions = features / features.norm(dim=1, keepdim=True)
    return torch.stack([directions[labels == j].mean(dim=0) for j in range(num_new)])


def _first_image_only(features, labels, num_new):
    rows = torch.stack([features[labels == j][0] for j in range(num_new)])
    return rows / rows.norm(dim=1, keepdim=True)


def _order_of_appearance(features, labels, num_new):
    rows = imprinted_rows(features, labels, num_new)
    return rows[list(dict.fromkeys(labels.tolist()))]


EXERCISES = {
    "2.1": Exercise(
        goal="logits that depend on angles only: the scale times the cosine of every feature with every row.",
        verify=_verify_cosine_logits,
        solution=cosine_logits,
        mutants=(_rows_only, _normalizes_columns, _scale_inside, _one_norm_for_all),
    ),
    "2.2": Exercise(
        goal="the smallest cross-entropy that C classes can reach with cosine logits of a given scale.",
        verify=_verify_loss_floor,
        solution=loss_floor,
        mutants=(_others_opposite, _others_orthogonal, _counts_itself_twice, _probability_instead),
    ),
    "2.3": Exercise(
        goal="the scale at which the best possible probability of the right class is p.",
        verify=_verify_scale_for,
        solution=scale_for,
        mutants=(_no_simplex, _forgets_the_others, _log_of_probability),
    ),
    "2.4": Exercise(
        goal="a unit row for every new class: the mean direction of its features.",
        verify=_verify_imprinting,
        solution=imprinted_rows,
        mutants=(_means_of_raw_features, _not_unit, _first_image_only, _order_of_appearance),
    ),
}
