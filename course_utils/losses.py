"""Class weights, and the losses of class-incremental learning (LUCIR, Hou et al. 2019).

n_j is the number of training images of class j, C the number of classes. A weight of a loss multiplies the loss of
every image of that class; `torch.nn.CrossEntropyLoss(weight=w)` divides by the sum of the weights in the batch, so
multiplying all weights by one number changes nothing there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _counts(class_counts: Tensor | Sequence[int]) -> Tensor:
    counts = torch.as_tensor(class_counts)
    empty = (~(counts >= 1)).nonzero()[:, 0].tolist() if counts.ndim == 1 else None  # NaN is empty too
    if counts.ndim != 1 or not len(counts) or empty:
        raise ValueError(
            f"class_counts: got {counts.tolist()}{f', where class {empty[0]} is empty' if empty else ''}; "
            "allowed: one number of at least 1 for each class"
        )
    return counts.to(torch.float64)


def inverse_frequency_weights(class_counts: Tensor | Sequence[int]) -> Tensor:
    """w_j = C * (1 / n_j) / sum_k (1 / n_k): float32 (C,), their sum is C.

    Raises:
        ValueError: an empty class.
    """
    weights = 1 / _counts(class_counts)
    return (weights * len(weights) / weights.sum()).float()


def effective_number_weights(class_counts: Tensor | Sequence[int], beta: float = 0.9999) -> Tensor:
    """w_j proportional to (1 - beta) / (1 - beta^n_j), scaled so that their sum is C: float32 (C,).

    Cui et al. 2019, equation 2: E_n = (1 - beta^n) / (1 - beta) is the "effective number" of images of a class.
    beta = 0 gives all ones; beta towards 1 gives `inverse_frequency_weights`.

    Raises:
        ValueError: an empty class, or beta outside [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta: got {beta}; allowed: at least 0 and below 1")
    counts = _counts(class_counts)
    weights = 1 / -torch.expm1(counts * torch.log(torch.tensor(beta, dtype=torch.float64)))
    return (weights * len(weights) / weights.sum()).float()


# ---- class-incremental learning: `old` means the model of the phase before, or the classes it knew -------------------


def distillation_loss(logits: Tensor, old_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """KL(softmax(old_logits / T) || softmax(logits / T)) over the old classes, mean over the batch.

    logits: (B, C), the old classes first. old_logits: (B, C_old) with C_old of at most C.

    Hinton et al. 2015, section 2, without their factor T^2: the iCaRL baseline in the released code of LUCIR multiplies
    by 0.25 T^2 at T = 2, which is 1 as here.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: got {temperature}; allowed: above 0")
    now = _old_columns("logits", logits, old_logits) / temperature
    target = (old_logits / temperature).log_softmax(1)
    return F.kl_div(now.log_softmax(1), target, reduction="batchmean", log_target=True)


def score_distillation_loss(cosines: Tensor, old_cosines: Tensor) -> Tensor:
    """Squared difference of the cosines with the old classes: sum over classes, mean over the batch.

    cosines: (B, C), the old classes first, before the scale. old_cosines: (B, C_old). Hou et al. 2019, equation 5.
    It cannot see a rotation of features and rows together.
    """
    return (_old_columns("cosines", cosines, old_cosines) - old_cosines).square().sum(1).mean()


def less_forget_loss(features: Tensor, old_features: Tensor) -> Tensor:
    """1 - cos(f, f_old), mean over the batch: 0 (same direction) to 2. Hou et al. 2019, equation 6.

    features, old_features: (B, D) of the same images, by the model and by the one of the phase before.
    """
    if features.shape != old_features.shape or features.ndim != 2:
        raise ValueError(
            f"features: got shape {tuple(features.shape)} beside old_features of {tuple(old_features.shape)}; "
            "allowed: both (B, D)"
        )
    return 1 - F.cosine_similarity(features, old_features, dim=1).mean()


def adaptive_less_forget_weight(base: float, num_old: int, num_new: int) -> float:
    """lambda = base * sqrt(num_old / num_new): the more there is to forget, the stronger the constraint.

    Hou et al. 2019, equation 7, prints the root the other way round (new / old); their released code, and all
    re-implementations we know, use old / new, as here.
    """
    if not base >= 0:
        raise ValueError(f"base: got {base}; allowed: at least 0")
    if num_old < 1 or num_new < 1:
        raise ValueError(f"num_old, num_new: got {num_old}, {num_new}; allowed: at least 1")
    return base * math.sqrt(num_old / num_new)


def inter_class_separation_loss(
    cosines: Tensor, labels: Tensor, num_old: int, margin: float = 0.5, k: int = 2
) -> Tensor:
    """max(0, margin - cos(f, w_y) + cos(f, w_k)) for images of old classes and their k nearest new classes.

    cosines: (B, C), the old classes first, *before* the scale. labels: int64 (B,). Mean over pairs of old image and
    new class; 0 if the batch has no old image. Hou et al. 2019, equation 8, which sums over the k classes; the mean is
    that of their released code.

    Raises:
        ValueError: k above the number of new classes, labels outside 0 .. C - 1, or numbers that are no cosines.
    """
    if cosines.ndim != 2 or labels.shape != cosines.shape[:1]:
        raise ValueError(f"cosines: got shape {tuple(cosines.shape)} with {len(labels)} labels; allowed: (B, C), (B,)")
    num_new = cosines.shape[1] - num_old
    if num_old < 1 or num_new < 1:
        raise ValueError(f"num_old: got {num_old}; allowed: 1 to {cosines.shape[1] - 1}")
    if not 1 <= k <= num_new:
        raise ValueError(f"k: got {k}; allowed: 1 to {num_new}, the number of new classes")
    if len(labels) and (labels.min() < 0 or labels.max() >= cosines.shape[1]):
        raise ValueError(f"labels: got {labels.min()} to {labels.max()}; allowed: 0 to {cosines.shape[1] - 1}")
    if len(labels) and cosines.detach().abs().max() > 1.001:
        raise ValueError("cosines: got numbers beyond 1; allowed: -1 to 1, the cosines before the scale")
    old = labels < num_old
    own = cosines[old].gather(1, labels[old, None])
    nearest_new = cosines[old, num_old:].topk(k, dim=1).values
    pairs = (margin - own + nearest_new).clamp(min=0)
    return pairs.sum() / max(1, pairs.numel())


def _old_columns(name: str, values: Tensor, old_values: Tensor) -> Tensor:
    fits = values.ndim == old_values.ndim == 2 and len(values) == len(old_values)
    if not fits or values.shape[1] < old_values.shape[1]:
        raise ValueError(
            f"{name}: got shape {tuple(values.shape)} beside old {name} of {tuple(old_values.shape)}; "
            "allowed: as many rows, at least as many columns"
        )
    return values[:, : old_values.shape[1]]
