"""Exercises of notebook 01: plain and balanced accuracy, counts of a profile, accuracy by group, norms and counts."""

from __future__ import annotations

import torch
from scipy.stats import spearmanr

from ...data import exponential_counts
from ...heads import row_norms
from ...metrics import balanced_accuracy, shot_accuracy
from . import Exercise, Wrong, expect_close

# ---- 1.1: plain and balanced accuracy ------------------------------------------------------------------------------


def plain_and_balanced(predictions, labels):
    right = (predictions == labels).float()
    recalls = [right[labels == j].mean() for j in labels.unique()]
    return right.mean().item(), torch.stack(recalls).mean().item()


def _verify_plain_and_balanced(answer):
    labels = torch.tensor([0] * 8 + [1] * 2)
    cases = {
        "if everything is called class 0": (torch.zeros(10, dtype=torch.long), labels),
        "if one of two rare images is missed": (torch.tensor([0] * 9 + [1]), labels),
        "if class 1 does not occur": (torch.tensor([0, 2, 2, 1]), torch.tensor([0, 0, 2, 2])),
    }
    for case, (predictions, labels) in cases.items():
        classes = 1 + int(max(labels.max(), predictions.max()))
        want = [(predictions == labels).float().mean().item(), balanced_accuracy(predictions, labels, classes)]
        got = answer(predictions, labels)
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(f"return two numbers, (plain accuracy, balanced accuracy); got {str(got)[:60]!r}")
        expect_close(got[0], want[0], f"plain accuracy {case}")
        expect_close(got[1], want[1], f"balanced accuracy {case}")


def _divides_by_the_largest_label(predictions, labels):
    plain, balanced = plain_and_balanced(predictions, labels)
    return plain, balanced * len(labels.unique()) / (int(labels.max()) + 1)


# ---- 1.2: how many images each class gets --------------------------------------------------------------------------


def exponential_profile(num_classes, max_count, ratio):
    counts = []
    for j in range(num_classes):
        fraction = j / (num_classes - 1)
        counts.append(int(max_count * (1 / ratio) ** fraction))
    return counts


def _verify_profile(answer):
    for classes, top, ratio in ((10, 5000, 100), (3, 100, 100), (26, 500, 20)):
        got, want = answer(classes, top, ratio), exponential_counts(classes, top, ratio)
        case = f"for {classes} classes, {top} images at most, ratio {ratio}"
        expect_close(got, want, case, tolerance=1e-9)
        if any(count != int(count) for count in got):
            raise Wrong(f"counts have to be whole numbers {case}")


# ---- 1.3: accuracy by group, and the empty group -------------------------------------------------------------------


def accuracy_by_group(per_class, counts):
    groups = {"many": counts > 100, "medium": (counts >= 20) & (counts <= 100), "few": counts < 20}
    return {name: per_class[members].mean().item() for name, members in groups.items()}


def _verify_groups(answer):
    per_class = torch.tensor([0.9, 0.8, 0.4, 0.6, 0.1])
    cases = {
        "with a class on each border": torch.tensor([500, 100, 101, 20, 19]),
        "with one class in a group": torch.tensor([500, 400, 300, 50, 5]),
        "if no class has few images": torch.tensor([500, 400, 300, 50, 40]),
    }
    for case, counts in cases.items():
        got, want = answer(per_class.clone(), counts.clone()), shot_accuracy(per_class, counts)
        if not isinstance(got, dict) or not {"many", "medium", "few"} <= set(got):
            raise Wrong(f"return a dictionary with the keys many, medium and few; got {str(got)[:60]!r}")
        for group in ("many", "medium", "few"):
            expect_close(got[group], want[group], f'"{group}" {case}')


# ---- 1.4: do norms follow counts? ----------------------------------------------------------------------------------


def norm_rank_correlation(weight, counts):
    def rank(values):
        return values.argsort().argsort().float()

    norms = (weight**2).sum(dim=1).sqrt()
    return torch.corrcoef(torch.stack([rank(norms), rank(counts)]))[0, 1].item()


def _verify_norms(answer):
    generator = torch.Generator().manual_seed(1)
    for classes, dim in ((4, 7), (12, 3), (30, 30)):
        weight = torch.randn(classes, dim, generator=generator) * torch.rand(classes, 1, generator=generator)
        counts = torch.randperm(1000, generator=generator)[:classes]
        want = spearmanr(row_norms(weight).numpy(), counts.numpy()).statistic
        case = f"rank correlation for a {classes} x {dim} weight matrix"
        expect_close(answer(weight.clone(), counts.clone()), float(want), case, tolerance=1e-3)


def _correlation(x, y):
    return torch.corrcoef(torch.stack([x.float(), y.float()]))[0, 1].item()


EXERCISES = {
    "1.1": Exercise(
        goal="plain accuracy and balanced accuracy, two numbers from 0 to 1.",
        verify=_verify_plain_and_balanced,
        solution=plain_and_balanced,
        mutants=(
            lambda p, y: plain_and_balanced(p, y)[::-1],  # swapped
            lambda p, y: plain_and_balanced(y, p),  # precision instead of recall
            _divides_by_the_largest_label,
        ),
    ),
    "1.2": Exercise(
        goal="the list of counts n_j of an exponential profile, head first.",
        verify=_verify_profile,
        solution=exponential_profile,
        mutants=(
            lambda c, n, r: [round(n * (1 / r) ** (j / (c - 1))) for j in range(c)],  # rounded
            lambda c, n, r: [int(n * (1 / r) ** (j / c)) for j in range(c)],  # one step short
            lambda c, n, r: [int(n - (n - n / r) * j / (c - 1)) for j in range(c)],  # linear
            lambda c, n, r: exponential_profile(c, n, r)[::-1],  # upside down
        ),
    ),
    "1.3": Exercise(
        goal="the mean accuracy of the many, medium and few classes; NaN for a group without classes.",
        verify=_verify_groups,
        solution=accuracy_by_group,
        mutants=(
            lambda a, n: {k: 0.0 if v != v else v for k, v in accuracy_by_group(a, n).items()},  # 0 for the empty group
            lambda a, n: accuracy_by_group(a, n + (n == 100).int() - (n == 20).int()),  # the borders of OLTR
            lambda a, n: {
                k: v / accuracy_by_group(n.float(), n)[k] for k, v in accuracy_by_group(a * n, n).items()
            },  # by image
        ),
    ),
    "1.4": Exercise(
        goal="the rank correlation between the row norms of W and the class counts.",
        verify=_verify_norms,
        solution=norm_rank_correlation,
        mutants=(
            lambda w, n: norm_rank_correlation(w.T[: len(n)], n[: w.shape[1]]),  # column norms
            lambda w, n: _correlation(w.norm(dim=1), n),  # no ranks
            lambda w, n: _correlation(w.norm(dim=1).argsort(), n.argsort()),  # sorted once
            lambda w, n: norm_rank_correlation(w.sum(dim=1, keepdim=True).clamp(min=0), n),  # the sum of the row
        ),
    ),
}
