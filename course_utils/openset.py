"""Known classes and unknown ones at once: scores, and thresholds below which an answer is "open".

Labels and predictions of unknown ("open") images are -1. `metrics.py` has the F-measure, AUROC and FPR these use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .metrics import open_set_auroc, open_set_fpr, per_class_accuracy, shot_accuracy

OPEN = -1


def open_world_scores(
    probabilities: Tensor, labels: Tensor, class_counts: Tensor | Sequence[int]
) -> dict[str, float]:
    """Closed accuracy by group, and known against open by confidence, without a threshold; all 0 to 1.

    probabilities: (N, C). labels: int64 (N,), -1 for open images. class_counts: (C,) training images.

    Returns:
        "many", "medium", "few", "all": of the known images alone, as `metrics.shot_accuracy()`. "AUROC", "FPR95": of
        the largest probability, as `metrics.open_set_auroc()` and `open_set_fpr()`; NaN without both kinds.
    """
    confidence, predictions = probabilities.max(1)
    known = labels != OPEN
    accuracy = per_class_accuracy(predictions[known], labels[known], probabilities.shape[1])
    return shot_accuracy(accuracy, class_counts) | {
        "AUROC": open_set_auroc(confidence, ~known),
        "FPR95": open_set_fpr(confidence, ~known),
    }


def reject(probabilities: Tensor, threshold: float) -> Tensor:
    """The most probable class, or -1 ("open") where its probability is below the threshold: (N, C) to int64 (N,).

    threshold: 0 to 1. The comparison is strict, as in the released code, so 0 rejects nothing. The paper's is 0.1.
    """
    if probabilities.ndim != 2 or not probabilities.shape[1]:
        raise ValueError(f"probabilities: got shape {tuple(probabilities.shape)}; allowed: (N, C)")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: got {threshold}; allowed: 0 to 1")
    confidence, predictions = probabilities.max(1)
    if confidence.isnan().any():
        raise ValueError("probabilities: got NaN; allowed: 0 to 1")
    return torch.where(confidence < threshold, OPEN, predictions)


def accepting_threshold(confidence: Tensor, share: float = 0.95) -> float:
    """The threshold that accepts at least `share` of these images: the choice on known validation images.

    confidence: (N,), 0 to 1. It needs no open image, and nobody has those before they come.
    """
    if confidence.ndim != 1 or not len(confidence):
        raise ValueError(f"confidence: got shape {tuple(confidence.shape)}; allowed: (N,) with N of at least 1")
    if not 0 < share <= 1:
        raise ValueError(f"share: got {share}; allowed: above 0, at most 1")
    return confidence.sort(descending=True).values[math.ceil(round(share * len(confidence), 6)) - 1].item()
