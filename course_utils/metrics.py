"""How good is a classifier when classes differ in size? Accuracy by class, by group, over time, and in an open world.

Predictions and labels are int64 (N,) tensors on one device. An average over nothing is NaN, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

GROUPS = ("many", "medium", "few")


def per_class_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Share of right answers in each class, the recall: float32 (num_classes,), NaN for a class without images.

    Raises:
        ValueError: different shapes, or a label outside 0 .. num_classes - 1.
    """
    _check_pair(predictions, labels)
    if labels.is_floating_point():
        raise ValueError(f"labels: got {labels.dtype}; allowed: integers")
    if len(labels) and not (0 <= labels.min() and labels.max() < num_classes):
        raise ValueError(f"labels: got {labels.min()} to {labels.max()}; allowed: 0 to {num_classes - 1}")
    total = torch.bincount(labels, minlength=num_classes)
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    return right / total  # 0 / 0 is NaN


def shot_accuracy(
    per_class: Tensor, class_counts: Tensor | Sequence[int], *, many: int = 100, few: int = 20
) -> dict[str, float]:
    """Mean accuracy of the classes with many (> 100), medium (20 to 100) and few (< 20) *training* images.

    Args:
        per_class: (C,) accuracy of each class, 0 to 1.
        class_counts: (C,) training images of each class.
        many, few: the borders.

    Returns:
        {"many", "medium", "few", "all"}, 0 to 1. "all" is the mean over all classes, the balanced accuracy. A group
        without classes is NaN. A class without test images (NaN in per_class) is left out.

    The borders are those of Kang et al. 2020. Differs from the released OLTR code (Liu et al. 2019), where a class
    with exactly 100 images counts as many and one with exactly 20 as few.
    """
    per_class, groups = torch.as_tensor(per_class, dtype=torch.float32), shot_groups(class_counts, many=many, few=few)
    if per_class.shape != groups.shape:
        raise ValueError(f"per_class: got shape {tuple(per_class.shape)}; allowed: {tuple(groups.shape)}")
    means = {name: per_class[groups.to(per_class.device) == g].nanmean().item() for g, name in enumerate(GROUPS)}
    return means | {"all": per_class.nanmean().item()}


def shot_groups(class_counts: Tensor | Sequence[int], *, many: int = 100, few: int = 20) -> Tensor:
    """int64 (C,): 0 for a class with more than `many` training images, 2 with fewer than `few`, 1 in between."""
    counts = torch.as_tensor(class_counts)
    if counts.ndim != 1 or not (counts >= 0).all():
        raise ValueError(f"class_counts: got {counts.tolist()}; allowed: one number of at least 0 for each class")
    if few > many + 1:
        raise ValueError(f"few: got {few} with many={many}; allowed: at most {many + 1}")
    return torch.where(counts > many, 0, torch.where(counts < few, 2, 1))


def balanced_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Mean of the accuracies of the classes that occur in `labels`, 0 to 1: every class weighs the same."""
    return per_class_accuracy(predictions, labels, num_classes).nanmean().item()


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error, 0 to 1: how far confidence is from accuracy (Guo et al. 2017, equation 3).

    probabilities: (N, C), rows sum to 1. Images go into `bins` equal intervals of their largest probability; the error
    is the mean of |accuracy - confidence| over the bins, weighted by their numbers of images.
    """
    confidence, right, bin_of = _bins_of(probabilities, labels, bins)
    gaps = torch.zeros(bins, dtype=confidence.dtype, device=labels.device).index_add(0, bin_of, right - confidence)
    return (gaps.abs().sum() / len(labels)).item()


def reliability_bins(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> dict[str, list[float]]:
    """What a reliability diagram draws, for the bins of `calibration_error()`.

    Returns {"count", "confidence", "accuracy"}, a list of `bins` numbers each: images in the bin, their mean largest
    probability, and the share of them that is right; NaN in a bin without images.
    """
    confidence, right, bin_of = _bins_of(probabilities, labels, bins)
    count = torch.bincount(bin_of, minlength=bins)
    sums = [v.new_zeros(bins).index_add(0, bin_of, v) for v in (confidence, right)]
    means = [(v / count).tolist() for v in sums]
    return {"count": count.tolist(), "confidence": means[0], "accuracy": means[1]}


def _bins_of(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """(largest probability, 1.0 where it is right, its bin), each (N,)."""
    if bins < 1:
        raise ValueError(f"bins: got {bins}; allowed: at least 1")
    if probabilities.ndim != 2 or not torch.allclose(probabilities.sum(1), probabilities.new_ones(()), atol=1e-3):
        raise ValueError("probabilities: allowed: shape (N, C) with rows that sum to 1 (softmax of the logits)")
    confidence, predictions = probabilities.max(1)
    _check_pair(predictions, labels)
    right = (predictions == labels).to(confidence.dtype)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return confidence, right, bin_of


def average_incremental_accuracy(accuracies: Sequence[float]) -> float:
    """Mean of the accuracies measured after each phase, each over all classes seen so far (Rebuffi et al. 2017).

    Whether the base phase is among them is the caller's choice: say which.
    """
    if not len(accuracies):
        raise ValueError("accuracies: got none; allowed: one for each phase")
    return sum(accuracies) / len(accuracies)


def forgetting(per_phase: Tensor) -> float:
    """Mean drop of the old tasks from their best accuracy to the last one (Chaudhry et al. 2018, equation 3).

    per_phase: (P, P), row p holds the accuracies on the classes of phases 0 .. p after phase p; NaN for later ones.
    """
    per_phase = torch.as_tensor(per_phase)
    if per_phase.ndim != 2 or per_phase.shape[0] != per_phase.shape[1] or len(per_phase) < 2:
        raise ValueError(f"per_phase: got shape {tuple(per_phase.shape)}; allowed: (P, P) with P of at least 2")
    best = per_phase[:-1, :-1].nan_to_num(-math.inf).amax(0)
    if not (best - per_phase[-1, :-1]).isfinite().all():
        raise ValueError("per_phase: an old task has no accuracy before the last phase, or none after it")
    return (best - per_phase[-1, :-1]).mean().item()


def error_blocks(predictions: Tensor, labels: Tensor, num_old: int) -> dict[str, float]:
    """Where the errors go when classes are added: four blocks of the confusion matrix, and the share called new.

    Classes 0 .. num_old - 1 are old. "old_to_old" and "old_to_new": old images taken for a wrong old class or for a new
    one, as a share of the old images, 0 to 1. "new_to_old", "new_to_new": the same of new images. "share_new": images
    called new, divided by images that are new; 1 is right. NaN if there are no such images.
    """
    _check_pair(predictions, labels)
    wrong, old, said_old = predictions != labels, labels < num_old, predictions < num_old

    def share(which: Tensor, among: Tensor) -> float:
        return (which & among).sum().item() / among.sum().item() if among.any() else math.nan

    return {
        "old_to_old": share(wrong & said_old, old),
        "old_to_new": share(~said_old, old),
        "new_to_old": share(said_old, ~old),
        "new_to_new": share(wrong & ~said_old, ~old),
        "share_new": (~said_old).sum().item() / (~old).sum().item() if (~old).any() else math.nan,
    }


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """int64 (C, C): entry [i, j] counts images of class i that were called j."""
    _check_pair(predictions, labels)
    for name, values in (("predictions", predictions), ("labels", labels)):
        if len(values) and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(f"{name}: got {values.min()} to {values.max()}; allowed: 0 to {num_classes - 1}")
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, num_classes)


def open_set_f_measure(predictions: Tensor, labels: Tensor, *, older: bool = False) -> float:
    """F-measure of the released OLTR code (Liu et al. 2019), 0 to 1; -1 means "open", unknown class.

    TP: known and right. FP: known and wrong, rejected ones too. FN: open but accepted as known. P = TP / (TP + FP),
    R = TP / (TP + FN), F = 2 P R / (P + R). This is not the F1 score: precision is the accuracy on known images, and
    "false negatives" are accepted open images. 0 without a right answer, as when everything is rejected or all images
    are open; NaN without images.

    older: as the code was until January 2020, and as the numbers of the paper were computed: a known image that is
    rejected is not counted at all, so precision grows with every rejection.
    """
    _check_pair(predictions, labels)
    known = labels != -1
    true_positive = (known & (predictions == labels)).sum().item()
    wrong = known & (predictions != labels)
    false_positive = (wrong & (predictions != -1) if older else wrong).sum().item()
    false_negative = (~known & (predictions != -1)).sum().item()
    if not true_positive:
        return 0.0 if len(labels) else math.nan
    precision = true_positive / (true_positive + false_positive)
    recall = true_positive / (true_positive + false_negative)
    return 2 * precision * recall / (precision + recall)


def open_set_auroc(confidence: Tensor, is_open: Tensor) -> float:
    """Chance that a known image gets more confidence than an open one, 0 to 1; 0.5 is guessing; NaN without both kinds.

    confidence: (N,), larger means "known". is_open: bool (N,).
    """
    _check_pair(confidence, is_open)
    if is_open.all() or not is_open.any():
        return math.nan
    from sklearn.metrics import roc_auc_score  # here: it takes seconds to import, in every process of run_grid()

    return float(roc_auc_score((~is_open).cpu().numpy(), confidence.detach().float().cpu().numpy()))


def open_set_fpr(confidence: Tensor, is_open: Tensor, *, accepted: float = 0.95) -> float:
    """Share of open images still accepted by the threshold that accepts `accepted` of the known ones (FPR at 95 %).

    0 to 1, smaller is better; NaN without both kinds. confidence: (N,). is_open: bool (N,).
    """
    _check_pair(confidence, is_open)
    if not 0 < accepted <= 1:
        raise ValueError(f"accepted: got {accepted}; allowed: above 0, at most 1")
    if is_open.all() or not is_open.any():
        return math.nan
    known = confidence[~is_open].sort(descending=True).values
    threshold = known[math.ceil(round(accepted * len(known), 6)) - 1]  # 0.55 * 100 is 55.000000000000007
    return (confidence[is_open] >= threshold).float().mean().item()


def _check_pair(predictions: Tensor, labels: Tensor) -> None:
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise ValueError(
            f"predictions: got shape {tuple(predictions.shape)} beside labels of shape {tuple(labels.shape)}; "
            "allowed: one prediction for each label, both of shape (N,)"
        )


# ---- over seeds ------------------------------------------------------------------------------------------------------


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (divided by n - 1; NaN for one seed)."""
    values = list(values)
    if not values:
        raise ValueError("values: got none; allowed: at least one")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired_differences(first: Mapping[int, Mapping], second: Mapping[int, Mapping], group: str = "all") -> list[float]:
    """first - second for every seed that both have, in points (0 to 100)."""
    return [100 * (first[s]["groups"][group] - second[s]["groups"][group]) for s in first if s in second]


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, draws: int = 10_000) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`; NaN for fewer than two. Always the same random draws.

    Raises:
        ValueError: level outside 0 to 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}; allowed: above 0 and below 1")
    if len(values) < 2:
        return math.nan, math.nan
    values = torch.tensor(list(values), dtype=torch.float64)
    chosen = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(values[chosen].mean(1), ends).tolist()
    return low, high
