"""Exercises of notebook 01: accuracy by group, what pulls and pushes a row, equal norms, borrowed norms."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ...heads import equalize_norms, row_norms, with_norms
from ...metrics import per_class_accuracy, shot_accuracy
from . import Exercise, Wrong, expect_close

# ---- 1.1: accuracy by group, and the empty group -------------------------------------------------------------------


def accuracy_by_group(predictions, labels, counts):
    right = (predictions == labels).float()
    recall = torch.stack([right[labels == j].mean() for j in range(len(counts))])
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    means = {name: recall[members].mean().item() for name, members in groups.items()}
    return means | {"all": recall.mean().item()}


def _verify_groups(answer):
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 3 + [3] * 4 + [4])
    predictions = torch.tensor([0] * 6 + [1, 0] + [2, 0, 1] + [3, 3, 3, 0] + [0])
    cases = {
        "with a class on each border": torch.tensor([500, 100, 101, 20, 19]),
        "with one class in a group": torch.tensor([500, 400, 300, 50, 5]),
        "if no class has few images": torch.tensor([500, 400, 300, 50, 40]),
    }
    for case, counts in cases.items():
        got = answer(predictions.clone(), labels.clone(), counts.clone())
        want = shot_accuracy(per_class_accuracy(predictions, labels, len(counts)), counts)
        if not isinstance(got, dict) or not set(want) <= set(got):
            raise Wrong(f"return a dictionary with the keys many, medium, few and all; got {str(got)[:60]!r}")
        for group, value in want.items():
            expect_close(got[group], value, f'"{group}" {case}')


def _mean_over_images(predictions, labels, counts):
    right = (predictions == labels).float()
    group_of = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    return {k: right[of[labels]].mean().item() for k, of in group_of.items()} | {"all": right.mean().item()}


# ---- 1.2: the gradient of a row, as pull and push ------------------------------------------------------------------


def pull_and_push(weight, features, labels):
    probability = (features @ weight.T).softmax(dim=1)
    own = torch.nn.functional.one_hot(labels, len(weight)).float()
    pull = (own * (1 - probability)).T @ features / len(features)
    push = ((1 - own) * probability).T @ features / len(features)
    return pull, push


def _verify_forces(answer):
    generator = torch.Generator().manual_seed(0)
    for images, classes, dim in ((5, 3, 2), (40, 4, 6), (8, 3, 5)):
        weight = torch.randn(classes, dim, generator=generator, requires_grad=True)
        features = torch.randn(images, dim, generator=generator)
        labels = torch.randint(classes, (images,), generator=generator)
        (gradient,) = torch.autograd.grad(F.cross_entropy(features @ weight.T, labels), weight)
        got = answer(weight.detach().clone(), features.clone(), labels.clone())
        case = f"for {images} images and {classes} classes with {dim} features"
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(f"return two tensors, pull and push; got {str(got)[:60]!r}")
        for name, part, want in zip(
            ("pull", "push"), got, pull_and_push(weight.detach(), features, labels), strict=True
        ):
            if not isinstance(part, torch.Tensor) or part.shape != want.shape:
                seen = tuple(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__
                raise Wrong(f"{name} has to be a tensor of shape {tuple(want.shape)} {case}; got {seen}")
        expect_close(got[1] - got[0], gradient, f"push - pull against the gradient of autograd {case}")
        expect_close(got[0], pull_and_push(weight.detach(), features, labels)[0], f"pull {case}")


def _softmax_over_images(weight, features, labels):
    probability = (features @ weight.T).softmax(dim=0)
    own = F.one_hot(labels, len(weight)).float()
    return (own * (1 - probability)).T @ features / len(features), ((1 - own) * probability).T @ features / len(
        features
    )


def _same_force_from_everyone(weight, features, labels):  # the gradient is right, its two parts are not
    own = F.one_hot(labels, len(weight)).float()
    probability = (features @ weight.T).softmax(dim=1)
    return own.T @ features / len(features), probability.T @ features / len(features)


# ---- 1.3: bring the norms together ---------------------------------------------------------------------------------


def equalized(weight, strength):
    norms = weight.norm(dim=1, keepdim=True)
    mean = norms.log().mean().exp()
    return weight / norms * norms ** (1 - strength) * mean**strength


def _rows(generator, classes, dim):
    return torch.randn(classes, dim, generator=generator) * (0.2 + 3 * torch.rand(classes, 1, generator=generator))


def _verify_equalized(answer):
    generator = torch.Generator().manual_seed(1)
    for strength, classes, dim in ((1.0, 4, 7), (0.5, 3, 3), (0.0, 6, 2), (0.3, 5, 4)):
        weight = _rows(generator, classes, dim)
        got, want = answer(weight.clone(), strength), equalize_norms(weight, strength)
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            case = f"the norms of {classes} rows with strength {strength}"
            expect_close(row_norms(got.detach()), row_norms(want), case)
        expect_close(got, want, f"the rows of a {classes} x {dim} matrix with strength {strength}")


# ---- 1.4: the norms of another classifier --------------------------------------------------------------------------


def transplanted(weight, donor):
    return weight / weight.norm(dim=1, keepdim=True) * donor.norm(dim=1, keepdim=True)


def _verify_transplanted(answer):
    generator = torch.Generator().manual_seed(2)
    for classes, dim, donor_dim in ((4, 7, 7), (3, 3, 3), (5, 2, 6)):
        weight, donor = _rows(generator, classes, dim), _rows(generator, classes, donor_dim)
        got, want = answer(weight.clone(), donor.clone()), with_norms(weight, row_norms(donor))
        case = f"for rows with {dim} features and a donor with {donor_dim}"
        if isinstance(got, torch.Tensor) and got.shape == want.shape:
            expect_close(row_norms(got.detach()), row_norms(donor), f"the norms {case}")
        expect_close(got, want, f"the rows {case}")


EXERCISES = {
    "1.1": Exercise(
        goal="accuracy of many, medium, few and all classes.",
        verify=_verify_groups,
        solution=accuracy_by_group,
        mutants=(
            _mean_over_images,
            lambda p, y, n: {k: 0.0 if v != v else v for k, v in accuracy_by_group(p, y, n).items()},  # 0, not NaN
            lambda p, y, n: accuracy_by_group(p, y, n + (n == 100).int() - (n == 20).int()),  # the borders of OLTR
            lambda p, y, n: accuracy_by_group(y, p, n),  # precision instead of recall
        ),
    ),
    "1.2": Exercise(
        goal="pull and push on every row, two (C, D) tensors.",
        verify=_verify_forces,
        solution=pull_and_push,
        mutants=(
            lambda w, f, y: pull_and_push(w, f, y)[::-1],  # swapped
            lambda w, f, y: tuple(len(f) * part for part in pull_and_push(w, f, y)),  # sums, not means
            _softmax_over_images,
            _same_force_from_everyone,
        ),
    ),
    "1.3": Exercise(
        goal="the rows with their norms brought together.",
        verify=_verify_equalized,
        solution=equalized,
        mutants=(
            lambda w, s: equalized(w, 1 - s),  # the other way round
            lambda w, s: w / w.norm(dim=1, keepdim=True) ** s,  # without g
            lambda w, s: w / w.norm(dim=1, keepdim=True) ** s * w.norm(dim=1).mean() ** s,  # the arithmetic mean
            lambda w, s: equalized(w.T, s).T,  # columns
        ),
    ),
    "1.4": Exercise(
        goal="directions of `weight`, norms of `donor`.",
        verify=_verify_transplanted,
        solution=transplanted,
        mutants=(
            lambda w, d: w * d.norm(dim=1, keepdim=True),  # its own norm is still in it
            lambda w, d: d / d.norm(dim=1, keepdim=True) * w.norm(dim=1, keepdim=True),  # directions of the donor
            lambda w, d: w / w.norm() * d.norm(),  # one norm for the whole matrix
            lambda w, d: w / w.norm(dim=1, keepdim=True) * d.norm(dim=1).flip(0)[:, None],  # norms of other rows
        ),
    ),
}
