"""Class weights. Losses with margins, focal loss and the losses of class-incremental learning come with their lessons.

n_j is the number of training images of class j, C the number of classes. A weight of a loss multiplies the loss of
every image of that class; `torch.nn.CrossEntropyLoss(weight=w)` divides by the sum of the weights in the batch, so
multiplying all weights by one number changes nothing there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
