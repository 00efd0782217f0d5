"""Long-tail profiles: how many images each class gets. `course_utils.data` hands these names on.

n_j is the number of images of class j, C the number of classes; the imbalance ratio is n_max / n_min.
"""

from __future__ import annotations

# Share of each letter in English text, in percent, A to Z (R. Lewand, Cryptological Mathematics, 2000, page 36).
ENGLISH_PERCENT = (
    8.167, 1.492, 2.782, 4.253, 12.702, 2.228, 2.015, 6.094, 6.966, 0.153, 0.772, 4.025, 2.406,
    6.749, 7.507, 1.929, 0.095, 5.987, 6.327, 9.056, 2.758, 0.978, 2.360, 0.150, 1.974, 0.074,
)  # fmt: skip


def english_letter_counts(max_count: int) -> list[int]:
    """Images for A to Z in proportion to English text; E, the most frequent letter, gets `max_count`.

    n_j = max(1, round(max_count * share_j / share_E)). E is about 170 times as common as Z.
    """
    _check_profile(26, max_count, 1)
    top = max(ENGLISH_PERCENT)
    return [max(1, round(max_count * percent / top)) for percent in ENGLISH_PERCENT]


def exponential_counts(num_classes: int, max_count: int, ratio: float) -> list[int]:
    """n_j = trunc(max_count * ratio^(-j / (C - 1))): class 0 is the head, class C - 1 the tail.

    `ratio` is the imbalance ratio n_max / n_min, at least 1. The construction of Cao et al. 2019 (LDAM) and Cui et
    al. 2019 (class-balanced loss), whose `imb_factor` is 1 / ratio; truncation is theirs.
    """
    _check_profile(num_classes, max_count, ratio)
    # max(1, ...): 49 * (1 / 49) is just below 1 in floating point
    return [max(1, int(max_count * (1 / ratio) ** (j / max(1, num_classes - 1)))) for j in range(num_classes)]


def step_counts(num_classes: int, max_count: int, ratio: float, minority: float = 0.5) -> list[int]:
    """The first classes have `max_count` images, the last `minority` share of them max_count / ratio.

    Buda et al. 2018; Cao et al. 2019 with minority = 0.5.
    Differs from the released LDAM code in one point: with an odd number of classes that code forgets one class, and
    here it stays with the majority.
    """
    _check_profile(num_classes, max_count, ratio)
    if not 0 <= minority <= 1:
        raise ValueError(f"minority: got {minority}; allowed: 0 to 1")
    rare = int(num_classes * minority + 1e-9)  # 100 * 0.29 is 28.999999999999996
    return [int(max_count)] * (num_classes - rare) + [max(1, int(max_count * (1 / ratio)))] * rare


def _check_profile(num_classes: int, max_count: int, ratio: float) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes}; allowed: at least 1")
    if not ratio >= 1:
        raise ValueError(f"ratio: got {ratio}; allowed: at least 1 (it is n_max / n_min)")
    if not max_count >= ratio:
        raise ValueError(
            f"max_count: got {max_count} with ratio {ratio}, so the rarest class would be empty; "
            f"allowed: at least {ratio}"
        )
