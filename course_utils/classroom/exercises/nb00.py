"""The one exercise of notebook 00: how exercises work."""

from __future__ import annotations

from . import Exercise, expect_close


def imbalance_ratio(counts):
    return max(counts) / min(counts)


def _verify(answer):
    for counts in ([100, 10, 1], [40, 40], [3, 60, 12]):
        expect_close(answer(list(counts)), max(counts) / min(counts), f"for counts {counts}")


EXERCISES = {
    "0.1": Exercise(
        goal="the imbalance ratio: the largest count divided by the smallest.",
        verify=_verify,
        solution=imbalance_ratio,
        mutants=(
            lambda counts: min(counts) / max(counts),
            lambda counts: counts[0] / counts[-1],
            lambda counts: max(counts) - min(counts),
        ),
    )
}
