"""Exercises of notebook 02: a cosine head, the loss floor, the scale for a probability, the gradient of a row."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from ...heads import CosineClassifier, cosine_loss_floor
from . import Exercise, Wrong, expect_close

# ---- 2.1: a cosine head --------------------------------------------------------------------------------------------


class CosineHead(torch.nn.Module):
    def __init__(self, in_features, num_classes, scale, learnt):
        super().__init__()
        bound = in_features**-0.5
        self.weight = torch.nn.Parameter(torch.empty(num_classes, in_features).uniform_(-bound, bound))
        self.scale = torch.nn.Parameter(torch.tensor(float(scale)), requires_grad=learnt)

    def forward(self, features):
        directions = F.normalize(features, dim=1)
        rows = F.normalize(self.weight, dim=1)
        return self.scale * (directions @ rows.T)


def _verify_cosine_head(answer):
    generator = torch.Generator().manual_seed(2)
    for dim, classes, scale, learnt in ((4, 5, 7.0, True), (6, 2, 1.5, False), (3, 4, 30.0, True)):
        case = f"with {dim} features, {classes} classes, scale {scale:g}, learnt={learnt}"
        head = answer(dim, classes, scale, learnt)
        if not isinstance(head, torch.nn.Module):
            raise Wrong(f"expected a torch.nn.Module {case}, got {type(head).__name__}")
        weight = _checked_parameters(head, (classes, dim), scale, learnt, case)
        package = CosineClassifier(dim, classes, scale=scale, learn_scale=learnt)
        rows = torch.randn(classes, dim, generator=generator) * 3
        features = torch.randn(8, dim, generator=generator) * (0.1 + torch.rand(8, 1, generator=generator))
        labels = torch.randint(classes, (8,), generator=generator)
        with torch.no_grad():
            weight.copy_(rows)
            package.rows[0].copy_(rows)
        logits = head(features.clone())
        expect_close(logits, package(features), f"logits {case}")
        F.cross_entropy(logits, labels).backward()
        F.cross_entropy(package(features), labels).backward()
        if weight.grad is None:
            raise Wrong(f"no gradient reaches the rows {case}")
        expect_close(weight.grad, package.rows[0].grad, f"the gradient of the rows {case}")


def _checked_parameters(head, shape, scale, learnt, case):
    """The rows, or `Wrong`."""
    weight, own = getattr(head, "weight", None), getattr(head, "scale", None)
    if not isinstance(weight, torch.nn.Parameter) or tuple(weight.shape) != shape or not weight.requires_grad:
        seen = tuple(weight.shape) if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise Wrong(f"self.weight has to be a trainable Parameter of shape {shape} {case}, got {seen}")
    if not isinstance(own, torch.nn.Parameter) or own.numel() != 1:
        raise Wrong(f"self.scale has to be a Parameter of one number {case}, got {type(own).__name__}")
    expect_close(own.item(), scale, f"self.scale {case}")
    if own.requires_grad != learnt:
        raise Wrong(f"the scale is {'' if own.requires_grad else 'not '}trained {case}")
    numbers = sum(p.numel() for p in head.parameters())
    if numbers != math.prod(shape) + 1:
        raise Wrong(f"rows and scale have {math.prod(shape) + 1} numbers {case}, your head has {numbers}")
    if len(weight.detach().unique(dim=0)) < len(weight):
        raise Wrong(f"some rows start equal {case}: no gradient could tell them apart; draw them at random")
    return weight


class _RowsOnly(CosineHead):
    def forward(self, features):
        return self.scale * (features @ F.normalize(self.weight, dim=1).T)


class _UnitRowsAtTheStart(CosineHead):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.weight.data = F.normalize(self.weight.data, dim=1)

    def forward(self, features):
        return self.scale * (F.normalize(features, dim=1) @ self.weight.T)


class _Columns(CosineHead):
    def forward(self, features):
        return self.scale * (F.normalize(features, dim=0) @ F.normalize(self.weight, dim=0).T)


class _NormsAsConstants(CosineHead):
    def forward(self, features):
        return self.scale * (F.normalize(features, dim=1) @ (self.weight / self.weight.detach().norm(dim=1)[:, None]).T)


class _AlwaysLearnt(CosineHead):
    def __init__(self, in_features, num_classes, scale, learnt):
        super().__init__(in_features, num_classes, scale, True)


class _WithBias(CosineHead):
    def __init__(self, in_features, num_classes, scale, learnt):
        super().__init__(in_features, num_classes, scale, learnt)
        self.bias = torch.nn.Parameter(torch.zeros(num_classes))

    def forward(self, features):
        return super().forward(features) + self.bias


class _Zeros(CosineHead):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        torch.nn.init.zeros_(self.weight)


# ---- 2.2: the loss floor -------------------------------------------------------------------------------------------


def loss_floor(num_classes, scale):
    gap = scale * num_classes / (num_classes - 1)  # own logit minus any other one
    return math.log1p((num_classes - 1) * math.exp(-gap))


def _verify_loss_floor(answer):
    for classes, scale in ((2, 0.5), (10, 1.0), (26, 4.0), (100, 9.0), (10, 2000.0)):
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


# ---- 2.4: the gradient of a row ------------------------------------------------------------------------------------


def row_gradient(features, labels, weight, scale):
    norms = weight.norm(dim=1, keepdim=True)
    directions, rows = F.normalize(features, dim=1), weight / norms
    errors = (scale * directions @ rows.T).softmax(dim=1) - F.one_hot(labels, len(weight))
    slope = scale * errors.T @ directions / len(features)  # by the direction of each row
    along = (slope * rows).sum(dim=1, keepdim=True) * rows  # stretching a row changes no logit
    return (slope - along) / norms


def _verify_row_gradient(answer):
    generator = torch.Generator().manual_seed(4)
    for batch, classes, dim, scale in ((6, 4, 5, 3.0), (1, 3, 2, 1.0), (9, 26, 8, 15.0)):
        head = CosineClassifier(dim, classes, scale=scale)
        features = torch.randn(batch, dim, generator=generator) * (0.5 + torch.rand(batch, 1, generator=generator))
        labels = torch.randint(classes, (batch,), generator=generator)
        with torch.no_grad():
            head.rows[0].copy_(torch.randn(classes, dim, generator=generator) * 3)
        F.cross_entropy(head(features), labels).backward()
        got = answer(features.clone(), labels.clone(), head.weight.detach().clone(), scale)
        case = f"for {batch} images, {classes} classes, {dim} features, scale {scale:g}"
        if isinstance(got, torch.Tensor) and got.shape == head.weight.shape:
            along = (got * head.weight.detach()).sum(dim=1).abs().max()
            if along > 1e-3:
                why = "stretching a row changes no logit: expected 0"
                raise Wrong(f"a slope times its row is {along:.3g} {case}; {why}")
        expect_close(got, head.rows[0].grad, case)


EXERCISES = {
    "2.1": Exercise(
        goal="logits scale * cosine, with trained rows.",
        verify=_verify_cosine_head,
        solution=CosineHead,
        mutants=(_RowsOnly, _UnitRowsAtTheStart, _Columns, _NormsAsConstants, _AlwaysLearnt, _WithBias, _Zeros),
    ),
    "2.2": Exercise(
        goal="the smallest loss that this scale allows.",
        verify=_verify_loss_floor,
        solution=loss_floor,
        mutants=(
            lambda c, s: math.log1p((c - 1) * math.exp(-2 * s)),  # the others opposite
            lambda c, s: math.log1p((c - 1) * math.exp(-s)),  # the others orthogonal
            lambda c, s: math.log1p(c * math.exp(-s * c / (c - 1))),  # counts itself twice
            lambda c, s: math.exp(-loss_floor(c, s)),  # the probability instead
        ),
    ),
    "2.3": Exercise(
        goal="the scale whose best probability is p.",
        verify=_verify_scale_for,
        solution=scale_for,
        mutants=(
            lambda p, c: math.log((c - 1) * p / (1 - p)),  # no simplex
            lambda p, c: (c - 1) / c * math.log(p / (1 - p) + 1),  # forgets the others
            lambda p, c: -(c - 1) / c * math.log(1 - p),  # the log of a probability
        ),
    ),
    "2.4": Exercise(
        goal="the slope of the loss by each row, (C, D).",
        verify=_verify_row_gradient,
        solution=row_gradient,
        mutants=(
            lambda f, y, w, s: row_gradient(f, y, w, s) * w.norm(dim=1, keepdim=True),  # forgets to divide by the norm
            lambda f, y, w, s: row_gradient(f, y, w, s) * len(f),  # the sum over images
            lambda f, y, w, s: -row_gradient(f, y, w, s),  # the way down
            lambda f, y, w, s: row_gradient(f, y, w, s) / s,  # forgets the scale
            lambda f, y, w, s: _pull(f, y, w, s) / w.norm(dim=1, keepdim=True),  # keeps the part along the row
            lambda f, y, w, s: row_gradient(f, y, w, s) * f.norm(dim=1).mean(),  # features at their length
        ),
    ),
}


def _pull(features, labels, weight, scale):
    """The gradient by the directions of the rows, as if they were free numbers."""
    directions = F.normalize(features, dim=1)
    errors = (scale * directions @ F.normalize(weight, dim=1).T).softmax(dim=1) - F.one_hot(labels, len(weight))
    return scale * errors.T @ directions / len(features)
