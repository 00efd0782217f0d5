"""Exercises of notebook 07: paired differences, an honest choice, a bootstrap interval, the calibration error."""

from __future__ import annotations

import math

import torch

from ...metrics import bootstrap_interval, calibration_error, mean_and_spread
from . import Exercise, expect_close

# ---- 7.1: paired differences ---------------------------------------------------------------------------------------


def paired(first, second):
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    mean, spread = mean_and_spread(differences)
    return mean, spread / len(differences) ** 0.5


_PAIRS = (
    ({0: 91.0, 1: 87.0, 2: 90.0}, {0: 89.5, 1: 85.0, 2: 89.0}, "for three seeds"),
    ({4: 70.0, 1: 80.0, 2: 75.0, 3: 90.0}, {1: 78.0, 2: 74.0, 3: 85.0, 4: 71.0}, "for four seeds in another order"),
    ({0: 50.0, 1: 60.0, 2: 40.0, 5: 99.0}, {0: 45.0, 2: 36.0, 1: 57.0}, "when seed 5 was run for the first alone"),
)


def _verify_paired(answer):
    for first, second, case in _PAIRS:
        got = answer(dict(first), dict(second))
        expect_close(got, paired(first, second), f"(mean, standard error) {case}")


def _by_place(first, second):
    differences = [a - b for a, b in zip(first.values(), second.values(), strict=False)]
    mean, spread = mean_and_spread(differences)
    return mean, spread / math.sqrt(len(differences))


def _spread_alone(first, second):
    return mean_and_spread(first[seed] - second[seed] for seed in first if seed in second)


def _not_paired(first, second):
    (a, s), (b, t) = mean_and_spread(first.values()), mean_and_spread(second.values())
    return a - b, math.sqrt(s**2 / len(first) + t**2 / len(second))


def _divided_by_n(first, second):
    differences = [first[seed] - second[seed] for seed in first if seed in second]
    mean = sum(differences) / len(differences)
    return mean, math.sqrt(sum((d - mean) ** 2 for d in differences)) / len(differences)


def _second_minus_first(first, second):
    mean, error = paired(first, second)
    return -mean, error


# ---- 7.2: an honest choice -----------------------------------------------------------------------------------------


def honest(runs, budget):
    fair = [run for run in runs if run["budget"] == budget]
    mean = {
        m: {
            part: mean_and_spread(run[part] for run in fair if run["method"] == m)[0] for part in ("validation", "test")
        }
        for m in {run["method"] for run in fair}
    }
    best = max(mean, key=lambda m: mean[m]["validation"])
    return mean[best]["test"]


def _runs(table):
    return [{"method": m, "budget": b, "validation": v, "test": t} for m, b, rows in table for v, t in rows]


_CHOICES = (
    (
        _runs([("A", 100, [(80, 79), (82, 81)]), ("B", 100, [(79, 88), (81, 84)]), ("C", 100, [(70, 71), (72, 69)])]),
        100,
        "when the test set prefers another method",
    ),
    (
        _runs([("A", 100, [(80, 78), (81, 77)]), ("B", 100, [(70, 71), (90, 85)]), ("C", 100, [(79, 80), (80, 79)])]),
        100,
        "when one lucky seed is the highest of all",
    ),
    (
        _runs([("A", 200, [(90, 91), (92, 90)]), ("B", 100, [(80, 76), (84, 78)]), ("C", 100, [(81, 79), (82, 78)])]),
        100,
        "when one method had twice the budget",
    ),
    (
        _runs([("C", 50, [(60, 63), (64, 62)]), ("A", 50, [(66, 61), (64, 60)]), ("B", 100, [(90, 95), (91, 94)])]),
        50,
        "with a small budget",
    ),
    (
        _runs([("A", 100, [(78, 70), (80, 72)]), ("A", 200, [(90, 82), (92, 84)]), ("B", 100, [(81, 75), (83, 77)])]),
        100,
        "when one method was also run with twice the budget",
    ),
    (
        _runs([("A", 100, [(84, 70), (86, 72)]), ("A", 200, [(85, 90), (87, 92)]), ("B", 100, [(81, 75), (83, 77)])]),
        100,
        "when a run with twice the budget is of the same method",
    ),
)


def _verify_honest(answer):
    for runs, budget, case in _CHOICES:
        expect_close(answer([dict(run) for run in runs], budget), honest(runs, budget), f"the number to report {case}")


def _best_on_test(runs, budget):
    return honest([run | {"validation": run["test"]} for run in runs], budget)


def _best_run(runs, budget):
    fair = [run for run in runs if run["budget"] == budget]
    return max(fair, key=lambda run: run["validation"])["test"]


def _any_budget(runs, budget):
    return honest([run | {"budget": budget} for run in runs], budget)


def _all_runs_of_a_method(runs, budget):
    methods = {run["method"] for run in runs if run["budget"] == budget}
    return honest([run | {"budget": budget} for run in runs if run["method"] in methods], budget)


def _reports_validation(runs, budget):
    return honest([run | {"test": run["validation"]} for run in runs], budget)


def _best_seed(runs, budget):
    methods = {run["method"] for run in runs if run["budget"] == budget}
    best = max(methods, key=lambda m: max(run["validation"] for run in runs if run["method"] == m))
    return mean_and_spread(run["test"] for run in runs if run["method"] == best)[0]


# ---- 7.3: the bootstrap --------------------------------------------------------------------------------------------


def bootstrap(values, drawn, level):
    means = values[drawn].mean(dim=1)
    return means.quantile((1 - level) / 2), means.quantile((1 + level) / 2)


def _verify_bootstrap(answer):
    cases = (([2.0, 1.5, 3.0], 0.95), ([4.1, -0.3, 0.8, 1.1, 2.0], 0.95), ([4.1, -0.3, 0.8, 1.1, 2.0], 0.8))
    for values, level in cases:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(values), (10_000, len(values)), generator=generator)
        got = answer(torch.tensor(values, dtype=torch.float64), drawn, level)
        want = bootstrap_interval(values, level=level)
        expect_close(got, want, f"(low, high) for the values {values} and level {level}", tolerance=1e-3)


def _of_the_values(values, drawn, level):
    everything = values[drawn[:1000]].flatten()
    return everything.quantile((1 - level) / 2), everything.quantile((1 + level) / 2)


def _one_sided(values, drawn, level):
    means = values[drawn].mean(dim=1)
    return means.quantile(1 - level), means.quantile(level)


def _normal(values, drawn, level):
    half = 1.96 * values.std() / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


def _mean_of_each_column(values, drawn, level):
    means = values[drawn].mean(dim=0)
    return means.quantile((1 - level) / 2), means.quantile((1 + level) / 2)


def _ends_of_all(values, drawn, level):
    means = values[drawn].mean(dim=1)
    return means.min(), means.max()


# ---- 7.4: the calibration error ------------------------------------------------------------------------------------


def ece(confidence, right, bins):
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    total = 0.0
    for k in place.unique():
        inside = place == k
        gap = right[inside].float().mean() - confidence[inside].mean()
        total += inside.float().mean() * gap.abs()
    return total


def _verify_ece(answer):
    for seed, (images, bins, shift) in enumerate(((300, 15, 0.1), (200, 10, -0.15), (500, 5, 0.0), (40, 15, 0.2))):
        generator = torch.Generator().manual_seed(seed)
        confidence = 0.5 + 0.5 * torch.rand(images, generator=generator) ** 0.5
        right = torch.rand(images, generator=generator) < confidence - shift
        table = torch.stack([confidence, 1 - confidence], dim=1)
        want = calibration_error(table, (~right).long(), bins=bins)
        got = answer(confidence.clone(), right.clone(), bins)
        expect_close(got, want, f"the calibration error of {images} images in {bins} bins", tolerance=1e-3)


def _every_bin_the_same(confidence, right, bins):
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = [(right[place == k].float().mean() - confidence[place == k].mean()).abs() for k in place.unique()]
    return sum(gaps) / len(gaps)


def _one_bin(confidence, right, bins):
    return (right.float().mean() - confidence.mean()).abs()


def _signs_cancel(confidence, right, bins):
    return right.float().mean() - confidence.mean()


def _largest_gap(confidence, right, bins):
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return max((right[place == k].float().mean() - confidence[place == k].mean()).abs() for k in place.unique())


def _image_by_image(confidence, right, bins):
    return (right.float() - confidence).abs().mean()


EXERCISES = {
    "7.1": Exercise(
        goal="mean and standard error of the paired differences, first minus second.",
        verify=_verify_paired,
        solution=paired,
        mutants=(_by_place, _spread_alone, _not_paired, _divided_by_n, _second_minus_first),
    ),
    "7.2": Exercise(
        goal="the mean test accuracy of the method that is best on validation images, at the given budget.",
        verify=_verify_honest,
        solution=honest,
        mutants=(_best_on_test, _best_run, _any_budget, _all_runs_of_a_method, _reports_validation, _best_seed),
    ),
    "7.3": Exercise(
        goal="the two ends between which `level` of the bootstrap means lie.",
        verify=_verify_bootstrap,
        solution=bootstrap,
        mutants=(_of_the_values, _one_sided, _normal, _mean_of_each_column, _ends_of_all),
    ),
    "7.4": Exercise(
        goal="the mean over images of the gap between accuracy and confidence in their bin.",
        verify=_verify_ece,
        solution=ece,
        mutants=(_every_bin_the_same, _one_bin, _signs_cancel, _largest_gap, _image_by_image),
    ),
}
