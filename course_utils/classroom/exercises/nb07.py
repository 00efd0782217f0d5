"""Exercises of notebook 07: the bootstrap, an honest choice, the calibration error, the guide."""

from __future__ import annotations

import torch

from ...metrics import calibration_error, mean_and_spread, paired_interval
from . import Exercise, Wrong, expect_close

# ---- 7.1: the bootstrap --------------------------------------------------------------------------------------------


def bootstrap(values, drawn, level):
    means = values[drawn].mean(dim=1)
    return means.quantile((1 - level) / 2), means.quantile((1 + level) / 2)


def _verify_bootstrap(answer):
    cases = (([2.0, 1.5, 3.0], 0.95), ([4.1, -0.3, 0.8, 1.1, 2.0], 0.95), ([4.1, -0.3, 0.8, 1.1, 2.0], 0.8))
    for values, level in cases:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(len(values), (10_000, len(values)), generator=generator)
        tensor = torch.tensor(values, dtype=torch.float64)
        case = f"(low, high) for the values {values} and level {level}"
        expect_close(answer(tensor.clone(), drawn.clone(), level), bootstrap(tensor, drawn, level), case)


def _ends(means, level):
    return means.quantile((1 - level) / 2), means.quantile((1 + level) / 2)


def _normal(values, drawn, level):
    half = 1.96 * values.std() / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


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


_CHOICES = (  # method, budget, validation/test accuracy with each seed
    (100, "A 100 80/79 82/81, B 100 79/88 81/84, C 100 70/71 72/69", "when the test set prefers another method"),
    (100, "A 100 80/78 81/77, B 100 70/71 90/85, C 100 79/80 80/79", "when one lucky seed is the highest of all"),
    (100, "A 200 90/91 92/90, B 100 80/76 84/78, C 100 81/79 82/78", "when one method had twice the budget"),
    (50, "C 50 60/63 64/62, A 50 66/61 64/60, B 100 90/95 91/94", "with a small budget"),
    (
        100,
        "A 100 78/70 80/72, A 200 90/82 92/84, B 100 81/75 83/77",
        "when one method was also run with twice the budget",
    ),
    (
        100,
        "A 100 84/70 86/72, A 200 85/90 87/92, B 100 81/75 83/77",
        "when a run with twice the budget is of the same method",
    ),
)


def _runs(table):
    rows = (line.split() for line in table.split(", "))
    pairs = ((m, int(b), *map(int, pair.split("/"))) for m, b, *seeds in rows for pair in seeds)
    return [{"method": m, "budget": b, "validation": v, "test": t} for m, b, v, t in pairs]


def _verify_honest(answer):
    for budget, table, case in _CHOICES:
        expect_close(answer(_runs(table), budget), honest(_runs(table), budget), f"the number to report {case}")


def _of_its_methods(runs, budget):
    methods = {run["method"] for run in runs if run["budget"] == budget}
    return [run | {"budget": budget} for run in runs if run["method"] in methods]


def _best_run(runs, budget):
    return max((run for run in runs if run["budget"] == budget), key=lambda run: run["validation"])["test"]


def _best_seed(runs, budget):
    runs = _of_its_methods(runs, budget)
    best = max(runs, key=lambda run: run["validation"])["method"]
    return mean_and_spread(run["test"] for run in runs if run["method"] == best)[0]


# ---- 7.3: the calibration error ------------------------------------------------------------------------------------


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


def _gaps(confidence, right, bins):
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return [(right[place == k].float().mean() - confidence[place == k].mean()).abs() for k in place.unique()]


# ---- 7.4: the guide --------------------------------------------------------------------------------------------------


def choose(accuracy, shares, usable):
    value = {m: [sum(a * s for a, s in zip(row, shares, strict=True)) for row in accuracy[m]] for m in usable}
    best = max(value, key=lambda m: sum(value[m]))
    ties = []
    for m in value:
        low, high = paired_interval(a - b for a, b in zip(value[best], value[m], strict=True))
        if m != best and low <= 0 <= high:
            ties.append(m)
    return best, ties


_GUIDE = {  # method -> seeds x classes, validation accuracy
    "A": [[0.98, 0.80, 0.30], [0.97, 0.82, 0.34], [0.98, 0.81, 0.29]],
    "B": [[0.90, 0.84, 0.72], [0.91, 0.85, 0.70], [0.90, 0.83, 0.74]],
    "C": [[0.91, 0.82, 0.73], [0.90, 0.86, 0.68], [0.92, 0.83, 0.74]],
    "D": [[0.93, 0.90, 0.80], [0.93, 0.90, 0.79], [0.94, 0.91, 0.81]],
    "E": [[0.99, 0.60, 0.99], [0.60, 0.99, 0.60], [0.85, 0.85, 0.85]],
}
_EQUAL, _TAIL, _RARE = [1 / 3, 1 / 3, 1 / 3], [0.9, 0.08, 0.02], [0.0, 0.0, 1.0]
_QUESTIONS = (
    (_EQUAL, ["A", "B", "C", "D", "E"], "when all classes count the same"),
    (_EQUAL, ["A", "B", "C"], "when D and E cannot be used"),
    (_TAIL, ["A", "B", "C", "D"], "when the shares have a long tail"),
    (_RARE, ["E", "C", "A", "B"], "when only the rare class counts"),
)


def _verify_choose(answer):
    for shares, usable, case in _QUESTIONS:
        got = answer({m: [list(row) for row in rows] for m, rows in _GUIDE.items()}, list(shares), list(usable))
        best, ties = choose(_GUIDE, shares, usable)
        if not (isinstance(got, tuple) and len(got) == 2):
            raise Wrong(f"expected (best, ties) {case}, got {got!r}")
        if got[0] != best:
            raise Wrong(f"the best {case}: got {got[0]!r}, expected {best!r}")
        if sorted(got[1]) != sorted(ties):
            raise Wrong(f"ties with {best!r} {case}: got {sorted(got[1])}, expected {sorted(ties)}")


def _changed(accuracy=lambda a: a, shares=lambda s: s, usable=lambda a, u: u):
    return lambda a, s, u: choose(accuracy(a), shares(s), usable(a, u))


def _by_overlap(accuracy, shares, usable):
    best, _ = choose(accuracy, shares, usable)
    spans = {}
    for m in usable:
        mean, spread = mean_and_spread(sum(a * s for a, s in zip(row, shares, strict=True)) for row in accuracy[m])
        spans[m] = mean - spread, mean + spread
    return best, [m for m in usable if m != best and spans[m][1] >= spans[best][0]]


EXERCISES = {
    "7.1": Exercise(
        goal="the interval that holds `level` of the means.",
        verify=_verify_bootstrap,
        solution=bootstrap,
        mutants=(
            lambda values, drawn, level: _ends(values[drawn[:1000]].flatten(), level),  # of the values
            lambda values, drawn, level: _ends(values[drawn].mean(dim=1), 2 * level - 1),  # one-sided
            _normal,
            lambda values, drawn, level: _ends(values[drawn].mean(dim=0), level),  # the mean of each column
            lambda values, drawn, level: values[drawn].mean(dim=1).aminmax(),  # the ends of all
        ),
    ),
    "7.2": Exercise(
        goal="test accuracy of the best on validation.",
        verify=_verify_honest,
        solution=honest,
        mutants=(
            lambda runs, budget: honest([run | {"validation": run["test"]} for run in runs], budget),  # best on test
            _best_run,
            lambda runs, budget: honest([run | {"budget": budget} for run in runs], budget),  # any budget
            lambda runs, budget: honest(_of_its_methods(runs, budget), budget),  # all runs of a method
            lambda runs, budget: honest(
                [run | {"test": run["validation"]} for run in runs], budget
            ),  # reports validation
            _best_seed,
        ),
    ),
    "7.3": Exercise(
        goal="equation (2), the calibration error.",
        verify=_verify_ece,
        solution=ece,
        mutants=(
            lambda p, right, bins: sum(_gaps(p, right, bins)) / len(_gaps(p, right, bins)),  # every bin the same
            lambda p, right, bins: (right.float().mean() - p.mean()).abs(),  # one bin
            lambda p, right, bins: right.float().mean() - p.mean(),  # signs cancel
            lambda p, right, bins: max(_gaps(p, right, bins)),  # the largest gap
            lambda p, right, bins: (right.float() - p).abs().mean(),  # image by image
        ),
    ),
    "7.4": Exercise(
        goal="the best method on validation, and its ties.",
        verify=_verify_choose,
        solution=choose,
        mutants=(
            _changed(shares=lambda s: [1 / len(s)] * len(s)),  # forgets the shares
            _changed(usable=lambda a, u: list(a)),  # what cannot be used
            _changed(accuracy=lambda a: {m: rows[:2] for m, rows in a.items()}),  # without the last seed
            _by_overlap,
            lambda a, s, u: (choose(a, s, u)[0], []),  # no ties
            lambda a, s, u: (choose(a, s, u)[0], [*choose(a, s, u)[1], choose(a, s, u)[0]]),  # ties with itself
        ),
    ),
}
