"""The one exercise of notebook 00: how exercises work."""

from __future__ import annotations

from . import Exercise, expect_close


def frequent_half(counts):
    ordered = sorted(counts, reverse=True)
    half = ordered[: len(counts) // 2]
    return 100 * sum(half) / sum(counts)


def _verify(answer):
    cases = {
        "for counts that fall": [100, 10, 1, 1],
        "for counts in any order": [3, 60, 12, 25],
        "for five classes, of which two are the frequent half": [8, 2, 90, 3, 47],
    }
    for case, counts in cases.items():
        expect_close(answer(list(counts)), frequent_half(counts), case)


EXERCISES = {
    "0.1": Exercise(
        goal="the share of the more frequent half, in %.",
        verify=_verify,
        solution=frequent_half,
        mutants=(
            lambda counts: 100 * sum(counts[: len(counts) // 2]) / sum(counts),  # not sorted
            lambda counts: 100 - frequent_half(counts),  # the other half
            lambda counts: frequent_half(counts) / 100,  # not in %
            lambda counts: frequent_half(sorted(counts) + [0] * (len(counts) % 2)),  # the middle class as well
        ),
    )
}
