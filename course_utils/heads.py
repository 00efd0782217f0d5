"""Classifiers on top of the features, and what one can do to the rows of a trained one.

A linear head gives class j the logit z_j = w_j . f + b_j. Row w_j of the weight matrix W (C, D) is the class vector;
its length ||w_j|| is the weight norm. The functions here are interventions: they return a new W or b, at least float32,
and leave the model alone, so one can ask what would happen *if* the norms were different.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .machinery.checks import floats, of_classes, whole
from .runtime import require


class CosineClassifier(nn.Module):
    """z_j = scale * cos(angle between w_j and f): neither the norm of a row nor that of a feature can matter.

    Hou et al. 2019 (LUCIR), equation 4, where the scale is called eta; no bias. `scale` is one number for all classes,
    learnt unless `learn_scale` is False. Rows are made phase by phase: `extend()` adds rows for new classes, and
    `freeze_old_rows()` keeps all rows but the newest as they are.

    Args:
        in_features: D. num_classes: C.
        scale: where the scale starts; above 0.
        unit_rows: rows start with norm 1, as in the released code of LDAM (Cao et al. 2019); else with about 0.58, as
            in that of LUCIR. The norm changes no logit, but the shorter a row, the faster it turns in training.

    Differs from the released code of LUCIR in: the scale starts at 10 instead of 1. With 1 the loss cannot come
    near 0 (`cosine_loss_floor`) until the scale has grown.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        scale: float = 10.0,
        learn_scale: bool = True,
        *,
        unit_rows: bool = False,
    ):
        super().__init__()
        for name, value in (("in_features", in_features), ("num_classes", num_classes)):
            require(value >= 1, name, value, "at least 1")
        require(0 < scale < math.inf, "scale", scale, "above 0")
        self.in_features, self.unit_rows = in_features, unit_rows
        self.rows = nn.ParameterList([_new_rows(num_classes, in_features, unit_rows)])
        self.scale = nn.Parameter(torch.tensor(float(scale)), requires_grad=learn_scale)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_classes={self.num_classes}, scale={self.scale.item():g}"

    @property
    def num_classes(self) -> int:
        return sum(len(rows) for rows in self.rows)

    @property
    def weight(self) -> Tensor:
        """(C, D): the rows of all phases, in the order in which the classes came."""
        return torch.cat(list(self.rows)) if len(self.rows) > 1 else self.rows[0]

    def cosines(self, features: Tensor) -> Tensor:
        """(B, D) to (B, C), each from -1 to 1."""
        fits = features.ndim == 2 and features.shape[1] == self.in_features
        require(fits, "features", f"shape {tuple(features.shape)}", f"(B, {self.in_features})")
        # cos(w_j, f) = (w_j / ||w_j||) . (f / ||f||)
        features, *parts = floats(features=features, **{f"rows_{p}": rows for p, rows in enumerate(self.rows)})
        directions = F.normalize(features, dim=1)  # phase by phase: one product of another size rounds differently
        return torch.cat([directions @ F.normalize(rows, dim=1).T for rows in parts], dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to logits (B, C), each from -scale to scale."""
        # z_j = scale * cos(w_j, f)   (Hou et al. 2019, equation 4)
        return self.scale * self.cosines(features)

    def extend(self, num_new: int) -> None:
        """Add random rows for `num_new` classes. Logits of the classes that were there stay the same, bit for bit."""
        require(num_new >= 1, "num_new", num_new, "at least 1")
        self.rows.append(_new_rows(num_new, self.in_features, self.unit_rows).to(self.rows[0]))

    def freeze_old_rows(self) -> None:
        """From now on training changes the newest rows only."""
        for rows in list(self.rows)[:-1]:
            rows.requires_grad_(False)

    @torch.no_grad()
    def imprint(self, features: Tensor, labels: Tensor) -> None:
        """Point the rows of the classes in `labels` at the mean direction of their features (Qi et al. 2018).

        Each such row becomes a unit vector, the mean of its class's normalized features normalized again, times the
        mean norm of the other rows (of all rows, if there are no others). The norm changes no logit, only how fast the
        row turns in training.

        features: (N, D). labels: integers (N,), 0 to C - 1.

        LUCIR's paper does not mention this step; its released code does it for the new classes of every phase.
        """
        fits = features.shape == (len(labels), self.in_features) and len(labels) > 0
        seen = f"shape {tuple(features.shape)} with {len(labels)} labels"
        require(fits, "features", seen, f"(N, {self.in_features}), one label each")
        (features,), labels = floats(features=features), whole("labels", labels, self.num_classes)
        require(features.isfinite().all(), "features", "NaN or infinite numbers", "finite ones")
        weight, present = self.weight.clone(), labels.unique()
        others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        others[present] = False
        norm = row_norms(weight[others] if others.any() else weight).mean()
        directions = F.normalize(features, dim=1)
        for j in present:
            weight[j] = norm * F.normalize(directions[labels == j].mean(0), dim=0)
        for rows, new in zip(self.rows, weight.split([len(rows) for rows in self.rows]), strict=True):
            rows.copy_(new)


def cosine_loss_floor(num_classes: int, scale: float) -> float:
    """The smallest cross-entropy that cosine logits can reach: log(1 + (C - 1) exp(-scale C / (C - 1))).

    Reached when the cosine with the own class is 1 and those with all others are -1 / (C - 1), the least that C
    directions can have with one another; needs at least C - 1 features.
    """
    require(num_classes >= 2, "num_classes", num_classes, "at least 2")
    require(scale >= 0, "scale", scale, "at least 0")
    return math.log1p((num_classes - 1) * math.exp(-scale * num_classes / (num_classes - 1)))


def _new_rows(num_classes: int, in_features: int, unit: bool) -> nn.Parameter:
    bound = 1 / math.sqrt(in_features)
    rows = torch.empty(num_classes, in_features).uniform_(-bound, bound)
    return nn.Parameter(F.normalize(rows, dim=1) if unit else rows)


def extended_linear(head: nn.Linear, num_new: int) -> nn.Linear:
    """A linear head with `num_new` more classes: old rows and biases copied, new ones as torch starts them."""
    require(num_new >= 1, "num_new", num_new, "at least 1")
    old = head.out_features
    new = nn.Linear(head.in_features, old + num_new, bias=head.bias is not None).to(head.weight)
    with torch.no_grad():
        new.weight[:old] = head.weight
        if head.bias is not None:
            new.bias[:old] = head.bias
    return new


def weight_align(weight: Tensor, num_old: int) -> Tensor:
    """Give new rows the mean norm of the old ones: (C, D) to (C, D), the first `num_old` rows stay.

    WA, Zhao et al. 2020, equation 6: new rows times gamma = mean ||w_old|| / mean ||w_new||. Biases stay as they are.
    Means nothing for a cosine classifier.

    Raises:
        ValueError: num_old outside 1 .. C - 1, or a row of zeros.
    """
    (weight,) = floats(weight=weight)
    norms = positive_norms(weight)
    require(1 <= num_old < len(weight), "num_old", num_old, f"1 to {len(weight) - 1}")
    # gamma = mean ||w_old|| / mean ||w_new||   (Zhao et al. 2020, equation 6)
    gamma = norms[:num_old].mean() / norms[num_old:].mean()
    return torch.cat([weight[:num_old], gamma * weight[num_old:]])


def row_norms(weight: Tensor) -> Tensor:
    """||w_j|| of every row: (C, D) to (C,)."""
    require(weight.ndim == 2, "weight", f"shape {tuple(weight.shape)}", "(classes, features)")
    return floats(weight=weight)[0].norm(dim=1)


def equalize_norms(weight: Tensor, strength: float = 1.0) -> Tensor:
    """Bring the row norms together; directions stay.

    ||w_j|| becomes ||w_j||^(1 - strength) * g^strength, where g is the geometric mean of the norms. strength 0 changes
    nothing, 1 makes all norms equal. Up to one common factor this is the tau-normalization of Kang et al. 2020
    (section 4) with tau = strength.

    Raises:
        ValueError: strength outside 0 .. 1, or a row of zeros.
    """
    require(0 <= strength <= 1, "strength", strength, "0 to 1")
    norms = positive_norms(weight)
    mean = norms.log().mean().exp()
    # w_j (g / ||w_j||)^tau   (Kang et al. 2020, section 4)
    return weight * ((mean / norms) ** strength)[:, None]


def with_norms(weight: Tensor, norms: Tensor) -> Tensor:
    """The same directions with other row norms: (C, D) and (C,) to (C, D)."""
    norms = of_classes("norms", norms, least=0)
    require(norms.shape == weight.shape[:1], "norms", f"shape {tuple(norms.shape)}", f"({len(weight)},)")
    return weight * (norms / positive_norms(weight))[:, None]


def equalize_biases(bias: Tensor, strength: float = 1.0) -> Tensor:
    """Bring the biases together: (1 - strength) * b_j + strength * mean(b)."""
    require(0 <= strength <= 1, "strength", strength, "0 to 1")
    (bias,) = floats(bias=bias)
    require(bias.ndim == 1, "bias", f"shape {tuple(bias.shape)}", "(C,)")
    return torch.lerp(bias, bias.mean().expand_as(bias), strength)


def positive_norms(weight: Tensor) -> Tensor:
    """`row_norms()`, all above 0 and finite."""
    norms = row_norms(weight)
    wrong = (~((norms > 0) & norms.isfinite())).nonzero()[:1, 0]
    require(not len(wrong), "weight", lambda: f"norm {norms[wrong].item():g} of row {wrong.item()}", "norms above 0")
    return norms
