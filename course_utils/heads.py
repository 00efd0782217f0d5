"""Classifiers on top of the features, and what one can do to the rows of a trained one.

A linear head gives class j the logit z_j = w_j . f + b_j. Row w_j of the weight matrix W (C, D) is the class vector;
its length ||w_j|| is the weight norm. The functions here are interventions: they return a new W or b and leave the
model alone, so one can ask what would happen *if* the norms were different.
"""

from __future__ import annotations

import torch
from torch import Tensor


def row_norms(weight: Tensor) -> Tensor:
    """||w_j|| of every row: (C, D) to (C,)."""
    if weight.ndim != 2:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; allowed: (classes, features)")
    return weight.norm(dim=1)


def equalize_norms(weight: Tensor, strength: float = 1.0) -> Tensor:
    """Bring the row norms together; directions stay.

    ||w_j|| becomes ||w_j||^(1 - strength) * g^strength, where g is the geometric mean of the norms. strength 0 changes
    nothing, 1 makes all norms equal. Up to one common factor this is the tau-normalization of Kang et al. 2020
    (equation 4) with tau = strength.

    Raises:
        ValueError: strength outside 0 .. 1, or a row of zeros.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: got {strength}; allowed: 0 to 1")
    norms = _positive_norms(weight)
    mean = norms.log().mean().exp()
    return weight * ((mean / norms) ** strength)[:, None]


def with_norms(weight: Tensor, norms: Tensor) -> Tensor:
    """The same directions with other row norms: (C, D) and (C,) to (C, D)."""
    if norms.shape != weight.shape[:1]:
        raise ValueError(f"norms: got shape {tuple(norms.shape)}; allowed: ({len(weight)},)")
    if not (norms >= 0).all():
        raise ValueError(f"norms: got {norms.tolist()}; allowed: numbers of at least 0")
    return weight * (norms / _positive_norms(weight))[:, None]


def equalize_biases(bias: Tensor, strength: float = 1.0) -> Tensor:
    """Bring the biases together: (1 - strength) * b_j + strength * mean(b)."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: got {strength}; allowed: 0 to 1")
    return torch.lerp(bias, bias.mean().expand_as(bias), strength)


def _positive_norms(weight: Tensor) -> Tensor:
    norms = row_norms(weight)
    if not (norms > 0).all():
        raise ValueError(f"weight: row {int(norms.argmin())} has norm {norms.min():g}; allowed: norms above 0")
    return norms
