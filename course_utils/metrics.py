"""How good is a classifier when classes differ in size? Accuracy by class, by group, over time, and in an open world.

Predictions and labels are integers (N,) on one device. Probabilities and confidence may have half precision, what is
computed from them has at least that of float32. An average over nothing is NaN, never 0; NaN that comes in is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .machinery.checks import floats, of_classes, sums, whole
from .runtime import require

GROUPS = ("many", "medium", "few")


def per_class_accuracy(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Share of right answers in each class, the recall: float32 (num_classes,), NaN for a class without images.

    Raises:
        ValueError: different shapes, no integers, or a label outside 0 .. num_classes - 1. A prediction may be any
            integer, as -1 for a rejected image, which is wrong.
    """
    predictions, labels = _pair(predictions, labels)
    labels = whole("labels", labels, num_classes)
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
    per_class, groups = of_classes("per_class", per_class).float(), shot_groups(class_counts, many=many, few=few)
    require(per_class.shape == groups.shape, "per_class", f"shape {tuple(per_class.shape)}", tuple(groups.shape))
    means = {name: per_class[groups.to(per_class.device) == g].nanmean().item() for g, name in enumerate(GROUPS)}
    return means | {"all": per_class.nanmean().item()}


def shot_groups(class_counts: Tensor | Sequence[int], *, many: int = 100, few: int = 20) -> Tensor:
    """int64 (C,): 0 for a class with more than `many` training images, 2 with fewer than `few`, 1 in between."""
    counts = of_classes("class_counts", class_counts, least=0)
    require(few <= many + 1, "few", f"{few} with many={many}", f"at most {many + 1}")
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
    # sum_b n_b / N * |accuracy_b - confidence_b|   (Guo et al. 2017, equation 3)
    return (sums(right - confidence, bin_of, bins).abs().sum() / len(labels)).item()


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T, from 0.01 to 100, with the smallest cross-entropy of softmax(logits / T) (Guo et al. 2017, section 4.2).

    logits: (N, C) of images that were not trained on; labels: (N,) of theirs. The answers stay, confidences change.
    """
    from scipy.optimize import minimize_scalar  # here: a second to import, in every process of run_grid()

    (scores,) = floats(logits=logits)
    require(scores.ndim == 2 and len(scores), "logits", f"shape {tuple(scores.shape)}", "(N, C), N at least 1")
    require(scores.isfinite().all(), "logits", "NaN or infinity", "finite numbers")
    labels = whole("labels", labels, scores.shape[1])
    require(len(labels) == len(scores), "labels", len(labels), f"one for each of {len(scores)} rows of logits")
    scores, labels = scores.cpu().double(), labels.cpu()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(scores / math.exp(log_temperature), labels).item()

    ends = math.log(0.01), math.log(100)
    return math.exp(minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6}).x)


def reliability_bins(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> dict[str, list[float]]:
    """What a reliability diagram draws, for the bins of `calibration_error()`.

    Returns {"count", "confidence", "accuracy"}, a list of `bins` numbers each: images in the bin, their mean largest
    probability, and the share of them that is right; NaN in a bin without images.
    """
    confidence, right, bin_of = _bins_of(probabilities, labels, bins)
    count = torch.bincount(bin_of, minlength=bins)
    means = [(sums(v, bin_of, bins) / count).tolist() for v in (confidence, right)]
    return {"count": count.tolist(), "confidence": means[0], "accuracy": means[1]}


def _bins_of(probabilities: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """(largest probability, 1.0 where it is right, its bin), each (N,)."""
    require(bins >= 1, "bins", bins, "at least 1")
    confidence, predictions = confidence_of(probabilities)
    rounding = max(1e-3, torch.finfo(probabilities.dtype).eps)  # that of each number in bfloat16
    one = (probabilities.to(confidence.dtype).sum(1) - 1).abs() <= rounding
    seen = f"shape {tuple(probabilities.shape)} with other sums"
    require(one.all(), "probabilities", seen, "shape (N, C) with rows that sum to 1 (softmax of the logits)")
    labels = whole("labels", labels, probabilities.shape[1])
    seen = f"{len(labels)} beside {len(confidence)} images"
    require(len(labels) == len(confidence), "labels", seen, "one prediction for each label")
    right = (predictions == labels).to(confidence.dtype)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return confidence, right, bin_of


def confidence_of(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each image and its class, each (N,), of probabilities (N, C), 0 to 1."""
    shape = tuple(probabilities.shape)
    require(len(shape) == 2 and shape[1], "probabilities", f"shape {shape}", "shape (N, C) with C of at least 1")
    (probabilities,) = floats(probabilities=probabilities)
    if len(probabilities):
        low, high = probabilities.aminmax()
        inside = low >= 0 and high <= 1.001  # NaN is not
        require(
            inside, "probabilities", lambda: f"{low.item():.3g} to {high.item():.3g}", "0 to 1 (softmax of the logits)"
        )
    confidence, predictions = probabilities.max(1)
    return confidence, predictions


def average_incremental_accuracy(accuracies: Sequence[float]) -> float:
    """Mean of the accuracies measured after each phase, each over all classes seen so far (Rebuffi et al. 2017).

    Whether the base phase is among them is the caller's choice: say which.
    """
    require(len(accuracies) > 0, "accuracies", "none", "one for each phase")
    return sum(map(float, accuracies)) / len(accuracies)


def forgetting(per_phase: Tensor) -> float:
    """Mean drop of the old tasks from their best accuracy to the last one (Chaudhry et al. 2018, equation 3).

    per_phase: (P, P), row p holds the accuracies on the classes of phases 0 .. p after phase p; NaN for later ones.
    """
    (per_phase,) = floats(per_phase=torch.as_tensor(per_phase) * 1.0)
    square = per_phase.ndim == 2 and per_phase.shape[0] == per_phase.shape[1] >= 2
    require(square, "per_phase", f"shape {tuple(per_phase.shape)}", "(P, P) with P of at least 2")
    measured = per_phase.tril().isfinite().all()
    require(measured, "per_phase", per_phase.tolist, "an accuracy of every task from its phase on")
    best = per_phase[:-1, :-1].nan_to_num(-math.inf).amax(0)
    # mean over the old tasks j of max_p a_pj - a_Pj   (Chaudhry et al. 2018, equation 3)
    return (best - per_phase[-1, :-1]).mean().item()


def error_blocks(predictions: Tensor, labels: Tensor, num_old: int) -> dict[str, float]:
    """Where the errors go when classes are added: four blocks of the confusion matrix, and the share called new.

    Classes 0 .. num_old - 1 are old. "old_to_old" and "old_to_new": old images taken for a wrong old class or for a new
    one, as a share of the old images, 0 to 1. "new_to_old", "new_to_new": the same of new images. "share_new": images
    called new, divided by images that are new; 1 is right. NaN if there are no such images.

    Raises:
        ValueError: different shapes, no integers, or one below 0: a rejected image (-1) is called neither old nor new.
    """
    predictions, labels = _pair(predictions, labels, least=0)
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
    predictions, labels = _pair(predictions, labels)
    predictions, labels = whole("predictions", predictions, num_classes), whole("labels", labels, num_classes)
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
    for name, values in (("predictions", predictions), ("labels", labels)):
        require(values.dtype != torch.uint8, name, values.dtype, "a type that can hold -1, such as int64")
    predictions, labels = _pair(predictions, labels, least=-1)
    known = labels != -1
    true_positive = (known & (predictions == labels)).sum().item()
    wrong = known & (predictions != labels)
    false_positive = (wrong & (predictions != -1) if older else wrong).sum().item()
    false_negative = (~known & (predictions != -1)).sum().item()
    if not true_positive:
        return 0.0 if len(labels) else math.nan
    # F = 2 P R / (P + R) with P = TP / (TP + FP), R = TP / (TP + FN)   (Liu et al. 2019, released code)
    precision = true_positive / (true_positive + false_positive)
    recall = true_positive / (true_positive + false_negative)
    return 2 * precision * recall / (precision + recall)


def open_set_auroc(confidence: Tensor, is_open: Tensor) -> float:
    """Chance that a known image gets more confidence than an open one, 0 to 1; 0.5 is guessing; NaN without both kinds.

    confidence: floats (N,), larger means "known". is_open: bool (N,), as of `labels == -1`.
    """
    confidence = _confidence(confidence, is_open)
    require(confidence.isfinite().all(), "confidence", "infinity", "finite numbers")
    if is_open.all() or not is_open.any():
        return math.nan
    from sklearn.metrics import roc_auc_score  # here: it takes seconds to import, in every process of run_grid()

    return float(roc_auc_score((~is_open).cpu().numpy(), confidence.detach().cpu().numpy()))


def accepting_threshold(confidence: Tensor, share: float = 0.95) -> float:
    """The threshold that accepts at least `share` of these images: the choice on known validation images.

    confidence: floats (N,), larger means "known". It needs no open image, and nobody has those before they come.
    """
    confidence = _confidence(confidence)
    require(len(confidence), "confidence", "shape (0,)", "(N,) with N of at least 1")
    require(0 < share <= 1, "share", share, "above 0, at most 1")
    accepted = max(1, math.ceil(round(share * len(confidence), 6)))  # 0.55 * 100 is 55.000000000000007
    return confidence.sort(descending=True).values[accepted - 1].item()


def open_set_fpr(confidence: Tensor, is_open: Tensor, *, accepted: float = 0.95) -> float:
    """Share of open images still accepted by the threshold that accepts `accepted` of the known ones (FPR at 95 %).

    0 to 1, smaller is better; NaN without both kinds. confidence, is_open: as for `open_set_auroc()`.
    """
    confidence = _confidence(confidence, is_open)
    require(0 < accepted <= 1, "accepted", accepted, "above 0, at most 1")
    if is_open.all() or not is_open.any():
        return math.nan
    threshold = accepting_threshold(confidence[~is_open], accepted)
    return (confidence[is_open] >= threshold).float().mean().item()


def _pair(predictions: Tensor, labels: Tensor, least: float = -math.inf) -> tuple[Tensor, Tensor]:
    """Both as int64 (N,), each at least `least`."""
    seen = f"shape {tuple(predictions.shape)} beside labels of shape {tuple(labels.shape)}"
    same = predictions.shape == labels.shape and labels.ndim == 1
    require(same, "predictions", seen, "one prediction for each label, both of shape (N,)")
    labels, predictions = whole("labels", labels), whole("predictions", predictions)
    for name, values in (("predictions", predictions), ("labels", labels)):
        below = values[values < least]
        require(not len(below), name, below.tolist, f"classes, at least {least}")
    return predictions, labels


def _confidence(confidence: Tensor, is_open: Tensor | None = None) -> Tensor:
    """In at least float32; a ValueError for NaN, and for a mask that is none: ~1 is -2."""
    (confidence,) = floats(confidence=confidence)
    require(confidence.ndim == 1, "confidence", f"shape {tuple(confidence.shape)}", "(N,)")
    require(not confidence.isnan().any(), "confidence", "NaN", "numbers")
    if is_open is not None:
        mask, seen = is_open.dtype == torch.bool, f"{is_open.dtype} of shape {tuple(is_open.shape)}"
        fits = mask and is_open.shape == confidence.shape
        require(fits, "is_open", seen, f"bool of shape ({len(confidence)},), as of labels == -1")
    return confidence


# ---- over seeds ------------------------------------------------------------------------------------------------------


def mean_and_spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (divided by n - 1; NaN for one seed)."""
    values = [float(value) for value in values]
    require(values, "values", "none", "at least one")
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def paired_differences(first: Mapping[int, Mapping], second: Mapping[int, Mapping], group: str = "all") -> list[float]:
    """first - second for every seed that both have, in points (0 to 100)."""
    return [100 * (first[s]["groups"][group] - second[s]["groups"][group]) for s in first if s in second]


def paired_interval(differences: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval in which the mean difference lies, from differences paired by seed: (low, high).

    Student's t: mean -/+ t s / sqrt(n) with n - 1 degrees of freedom. It holds the true mean in `confidence` of cases,
    however few seeds there are, if differences are about normal. An interval that holds 0 is a tie.

    differences: n of at least 2, one a seed, in any unit. confidence: above 0, below 1.

    Raises:
        ValueError: fewer than two differences, one that is not finite, or a confidence out of range.
    """
    from scipy.special import stdtrit  # the quantile of Student's t; here: not every process of a grid needs it

    values = [float(value) for value in differences]
    require(len(values) >= 2, "differences", f"{len(values)} of them", "at least 2, one a seed")
    require(all(map(math.isfinite, values)), "differences", values, "finite numbers")
    require(0 < confidence < 1, "confidence", confidence, "above 0 and below 1")
    mean, spread = mean_and_spread(values)
    # mean -/+ t_{n - 1} s / sqrt(n)
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * spread / math.sqrt(len(values))
    return mean - half, mean + half


def spread_text(values: Iterable[float], digits: int = 1, unit: float = 1) -> str:
    """ "84.1 ± 0.4": mean and standard deviation over seeds of the values times `unit`."""
    mean, spread = mean_and_spread(unit * value for value in values)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def difference_text(differences: Iterable[float]) -> str:
    """ "+0.4 [-0.8, +1.6] tie": the mean of paired differences, its 95 % interval, and whether that holds 0.

    One difference has no interval. A dash if there is none, or if one was not measured (NaN).
    """
    values = [float(value) for value in differences]
    if not values or any(map(math.isnan, values)):
        return "–"
    mean = f"{sum(values) / len(values):+.1f}"
    if len(values) == 1:
        return mean
    low, high = paired_interval(values)
    return f"{mean} [{low:+.1f}, {high:+.1f}]{' tie' if low <= 0 <= high else ''}"
