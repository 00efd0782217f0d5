"""Class weights, losses for long tails (focal, logit adjustment, LDAM, DRW), and those of LUCIR (Hou et al. 2019).

n_j is the number of training images of class j, C the number of classes. A weight of a loss multiplies the loss of
every image of that class; `torch.nn.CrossEntropyLoss(weight=w)` divides by the sum of the weights in the batch, so
multiplying all weights by one number changes nothing there. Logits, cosines and features may have half precision: the
losses compute in float32, since a mean of bfloat16 numbers has two digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .machinery.checks import floats, of_classes
from .runtime import on_cpu, require
from .sampling import switch_epoch


def inverse_frequency_weights(class_counts: Tensor | Sequence[int]) -> Tensor:
    """w_j = C * (1 / n_j) / sum_k (1 / n_k): float32 (C,), their sum is C. On the device of the counts.

    Raises:
        ValueError: an empty class.
    """
    counts = of_classes("class_counts", class_counts, least=1)
    # w_j = C (1 / n_j) / sum_k (1 / n_k)
    return _sum_to_length(1 / counts.cpu().double()).to(counts.device)  # Apple GPUs have no float64


def effective_number_weights(class_counts: Tensor | Sequence[int], beta: float = 0.9999) -> Tensor:
    """w_j proportional to (1 - beta) / (1 - beta^n_j), scaled so that their sum is C: float32 (C,).

    Cui et al. 2019, equation 2: E_n = (1 - beta^n) / (1 - beta) is the "effective number" of images of a class.
    beta = 0 gives all ones; beta towards 1 gives `inverse_frequency_weights`.

    Raises:
        ValueError: an empty class, or beta outside [0, 1).
    """
    require(0 <= beta < 1, "beta", beta, "at least 0 and below 1")
    counts = of_classes("class_counts", class_counts, least=1)
    # w_j ~ 1 / (1 - beta^n_j); the factor 1 - beta is common to all   (Cui et al. 2019, equation 2)
    weights = 1 / -torch.expm1(counts.cpu().double() * torch.log(torch.tensor(beta, dtype=torch.float64)))
    return _sum_to_length(weights).to(counts.device)


def _sum_to_length(weights: Tensor) -> Tensor:
    return (weights * len(weights) / weights.sum()).float()


# ---- focal loss, logit adjustment, and label-distribution-aware margins (LDAM, Cao et al. 2019) ---------------------


class FocalLoss(nn.Module):
    """w_y (1 - p_y)^gamma * (-log p_y), summed over the batch and divided by the sum of w_y; p = softmax of the logits.

    Images that are already right with confidence count less. Lin et al. 2017, equation 5, for C classes. gamma = 0 is
    `torch.nn.CrossEntropyLoss(weight=weight)`.

    Args:
        gamma: at least 0. weight: (C,) weights of at least 0, such as `effective_number_weights`; all ones by default.

    Called with logits (B, C) and int64 labels (B,), it gives a scalar.

    Differs from the released code of Cao et al. in: there p_y^w stands for p_y when there are weights, and the sum is
    divided by B. Cui et al. and Lin et al. use one sigmoid for each class instead of the softmax.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 1.0, weight: Tensor | None = None):
        super().__init__()
        require(0 <= gamma < math.inf, "gamma", gamma, "at least 0")
        self.gamma = gamma
        self.register_buffer("weight", _checked_weight(weight))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        _check_batch("logits", logits, labels, None if self.weight is None else len(self.weight))
        (logits,) = floats(logits=logits)
        negative_log = F.cross_entropy(logits, labels, reduction="none")
        miss = -torch.expm1(-negative_log)  # 1 - p_y
        miss = miss.clamp(min=torch.finfo(miss.dtype).eps)  # at 0 the gradient of miss^gamma would be infinite
        # (1 - p_y)^gamma * (-log p_y)   (Lin et al. 2017, equation 5)
        return _weighted_mean(miss**self.gamma * negative_log, labels, self.weight)


class LogitAdjustedLoss(nn.Module):
    """Cross-entropy of z_j + tau log(n_j / N): the network learns what the shares of the training images do not say.

    With tau = 1 this is balanced softmax (Ren et al. 2020, equation 3); with any tau the logit-adjusted loss (Menon et
    al. 2021, equation 10). It only trains: at test time the argmax of the plain logits z is the answer, for classes
    that are equally frequent there.

    Args:
        class_counts: n_j, each at least 1. tau: at least 0; 0 is cross-entropy.
        weight: (C,) weights of at least 0; the sum over the batch is divided by the sum of its weights.

    Called with logits (B, C) and int64 labels (B,), it gives a scalar.

    Raises:
        ValueError: an argument out of range.

    Differs from the released code of Ren et al. in: shares instead of counts, which softmax cannot tell apart.
    """

    log_shares: Tensor
    weight: Tensor | None

    def __init__(self, class_counts: Tensor | Sequence[int], tau: float = 1.0, weight: Tensor | None = None):
        super().__init__()
        require(0 <= tau < math.inf, "tau", tau, "a finite number of at least 0")
        self.tau = tau
        counts = of_classes("class_counts", class_counts, least=1)
        shares = counts.cpu().double() / counts.sum().item()
        self.register_buffer("log_shares", shares.log().float().to(counts.device))
        self.register_buffer("weight", _checked_weight(weight, len(counts)))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        _check_batch("logits", logits, labels, len(self.log_shares))
        (logits,) = floats(logits=logits)
        # cross-entropy of z_j + tau log(n_j / N)   (Menon et al. 2021, equation 10)
        adjusted = logits + self.tau * self.log_shares.to(logits)
        return F.cross_entropy(adjusted, labels, weight=None if self.weight is None else self.weight.to(logits))


def ldam_margins(class_counts: Tensor | Sequence[int], max_margin: float = 0.5, *, exponent: float = 0.25) -> Tensor:
    """m_j = max_margin * (n_min / n_j)^exponent: float32 (C,), the rarest class gets `max_margin`.

    Cao et al. 2019, section 3.2 (3.1 derives it for two classes), with exponent = 1/4; their constant C is
    max_margin * n_min^(1/4). exponent = 0 is the uniform margin of their experiments ("M-DRW").

    Args:
        max_margin: in units of a cosine; above 0. 0.5 in the released code; its author advises 0.3 for iNaturalist.
        exponent: at least 0.

    Raises:
        ValueError: an empty class, or an argument out of range.
    """
    require(0 < max_margin < math.inf, "max_margin", max_margin, "above 0 (without margins, take cross-entropy)")
    require(0 <= exponent < math.inf, "exponent", exponent, "at least 0")
    given = of_classes("class_counts", class_counts, least=1)
    counts = given.cpu().double()
    # m_j = C / n_j^(1/4) with C such that the largest is max_margin   (Cao et al. 2019, section 3.2)
    margins = max_margin * (counts.min() / counts) ** exponent
    return margins.float().to(given.device)


FROM_A_COSINE_HEAD = (
    "-1 to 1. LDAM needs a cosine head: "
    "heads.CosineClassifier(D, C, scale=1.0, learn_scale=False), or its .cosines(features)"
)


class LDAMLoss(nn.Module):
    """Cross-entropy of scale * (cosines with m_y taken off the true class): every class gets a margin of its own.

    Cao et al. 2019, section 3.2, with the scale of their released code.

    Args:
        class_counts: n_j, each at least 1.
        max_margin: the margin of the rarest class, `ldam_margins`. exponent: of the margins.
        scale: what turns cosines into logits; above 0. Without it softmax of numbers from -1 to 1 is nearly flat.
        weight: (C,) weights of at least 0; the sum over the batch is divided by the sum of its weights.

    Called with cosines (B, C) and int64 labels (B,), it gives a scalar. Cosines are what `heads.CosineClassifier` gives
    with scale=1.0 and learn_scale=False, and its `.cosines(features)` always; at test time their argmax is the answer.

    Raises:
        ValueError: an argument out of range, or something else than cosines: the loss of logits that grow without
            limit ends in NaN.

    Differs from the released code in: no B x C mask, any device, and the check.
    """

    margins: Tensor
    weight: Tensor | None

    def __init__(
        self,
        class_counts: Tensor | Sequence[int],
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Tensor | None = None,
        *,
        exponent: float = 0.25,
    ):
        super().__init__()
        require(0 < scale < math.inf, "scale", scale, "above 0")
        self.scale = scale
        self.register_buffer("margins", ldam_margins(class_counts, max_margin, exponent=exponent))
        self.register_buffer("weight", _checked_weight(weight, len(self.margins)))

    def forward(self, cosines: Tensor, labels: Tensor) -> Tensor:
        _check_batch("cosines", cosines, labels, len(self.margins))
        cosines = _checked_cosines(cosines, FROM_A_COSINE_HEAD)
        # cross-entropy of scale * (cos_y - m_y) for the true class and scale * cos_j for the others
        own = self.margins.to(cosines)[labels, None] * -self.scale
        logits = (self.scale * cosines).scatter_add_(1, labels[:, None], own)
        return F.cross_entropy(logits, labels, weight=None if self.weight is None else self.weight.to(logits))


class LDAMHingeLoss(LDAMLoss):
    """scale * max(0, m_y - cos_y + max over the other classes of cos_j): the hinge form, 0 once the margin is kept.

    Cao et al. 2019, section 3.2 ("LDAM-HG"). Arguments as `LDAMLoss`; the scale only makes steps longer here, so that
    both forms can share a learning rate. The authors did not release this form.
    """

    def forward(self, cosines: Tensor, labels: Tensor) -> Tensor:
        _check_batch("cosines", cosines, labels, len(self.margins))
        cosines = _checked_cosines(cosines, FROM_A_COSINE_HEAD)
        own = cosines.gather(1, labels[:, None])[:, 0]
        others = cosines.scatter(1, labels[:, None], -math.inf).amax(1)
        # scale * max(0, m_y - cos_y + max_{j != y} cos_j)
        violation = (self.margins.to(cosines)[labels] - own + others).clamp(min=0)
        return self.scale * _weighted_mean(violation, labels, self.weight)


def _checked_weight(weight: Tensor | None, num_classes: int | None = None) -> Tensor | None:
    if weight is None:
        return None
    weight = of_classes("weight", weight, least=0).float()
    fits = len(weight) == (num_classes or len(weight))
    require(fits, "weight", weight.tolist, f"one number of at least 0 for each of {num_classes or 'the'} classes")
    return weight


def _check_batch(name: str, values: Tensor, labels: Tensor, num_classes: int | None = None, least: int = 1) -> None:
    fits = values.ndim == 2 and labels.shape == values.shape[:1] and values.shape[1] == (num_classes or values.shape[1])
    seen = f"shape {tuple(values.shape)} with labels of {tuple(labels.shape)}"
    require(fits, name, seen, f"(B, {num_classes or 'C'}) with (B,)")
    require(len(labels) >= least, name, "an empty batch", "at least one image")
    require(labels.dtype == torch.int64, "labels", labels.dtype, "int64")  # torch takes uint8 for a mask
    _check_range("labels", labels, 0, values.shape[1] - 1, f"0 to {values.shape[1] - 1}", "{} to {}")


def _checked_cosines(cosines: Tensor, allowed: str) -> Tensor:
    (cosines,) = floats(cosines=cosines)
    _check_range("cosines", cosines, -1.02, 1.02, allowed, "numbers from {:.3g} to {:.3g}")  # bfloat16 rounds 1 up
    return cosines


def _check_range(name: str, values: Tensor, lowest: float, highest: float, allowed: str, seen: str) -> None:
    if on_cpu(values) and values.numel():  # elsewhere reading numbers back would stop a GPU at every batch
        low, high = values.detach().aminmax()
        require(lowest <= low and high <= highest, name, seen.format(low, high), allowed)


def _weighted_mean(values: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.mean()
    of_image = weight.to(values)[labels]
    return (of_image * values).sum() / of_image.sum()


# ---- class-incremental learning: `old` means the model of the phase before, or the classes it knew -------------------


def distillation_loss(logits: Tensor, old_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """KL(softmax(old_logits / T) || softmax(logits / T)) over the old classes, mean over the batch.

    logits: (B, C), the old classes first. old_logits: (B, C_old) with C_old of at most C.

    Hinton et al. 2015, section 2, without their factor T^2: the iCaRL baseline in the released code of LUCIR multiplies
    by 0.25 T^2 at T = 2, which is 1 as here.
    """
    require(0 < temperature < math.inf, "temperature", temperature, "above 0")
    logits, old_logits = floats(logits=logits, old_logits=old_logits)
    now = _old_columns("logits", logits, old_logits) / temperature
    target = (old_logits / temperature).log_softmax(1)
    # KL(softmax(old / T) || softmax(now / T))
    return F.kl_div(now.log_softmax(1), target, reduction="batchmean", log_target=True)


def score_distillation_loss(cosines: Tensor, old_cosines: Tensor) -> Tensor:
    """Squared difference of the cosines with the old classes: sum over classes, mean over the batch.

    cosines: (B, C), the old classes first, before the scale. old_cosines: (B, C_old). Hou et al. 2019, equation 5.
    It cannot see a rotation of features and rows together.
    """
    cosines, old_cosines = floats(cosines=cosines, old_cosines=old_cosines)
    # sum_j (cos_j - cos_j^old)^2   (Hou et al. 2019, equation 5)
    return (_old_columns("cosines", cosines, old_cosines) - old_cosines).square().sum(1).mean()


def less_forget_loss(features: Tensor, old_features: Tensor) -> Tensor:
    """1 - cos(f, f_old), mean over the batch: 0 (same direction) to 2. Hou et al. 2019, equation 6.

    features, old_features: (B, D) of the same images, by the model and by the one of the phase before.
    """
    seen = f"shape {tuple(features.shape)} beside old_features of {tuple(old_features.shape)}"
    require(features.shape == old_features.shape and features.ndim == 2, "features", seen, "both (B, D)")
    features, old_features = floats(features=features, old_features=old_features)
    # 1 - cos(f, f_old)   (Hou et al. 2019, equation 6)
    return 1 - F.cosine_similarity(features, old_features, dim=1).mean()


def adaptive_less_forget_weight(base: float, num_old: int, num_new: int) -> float:
    """lambda = base * sqrt(num_old / num_new): the more there is to forget, the stronger the constraint.

    Hou et al. 2019, equation 7, prints the root the other way round (new / old); their released code has old / new, as
    here. Re-implementations differ too: some use old / new, two that we know use (old + new) / new.
    """
    require(base >= 0, "base", base, "at least 0")
    require(min(num_old, num_new) >= 1, "num_old, num_new", f"{num_old}, {num_new}", "at least 1")
    # lambda = base * sqrt(old / new)   (Hou et al. 2019, equation 7, as released)
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
    _check_batch("cosines", cosines, labels, least=0)
    num_new = cosines.shape[1] - num_old
    require(num_old >= 1 and num_new >= 1, "num_old", num_old, f"1 to {cosines.shape[1] - 1}")
    require(1 <= k <= num_new, "k", k, f"1 to {num_new}, the number of new classes")
    cosines = _checked_cosines(cosines, "-1 to 1, the cosines before the scale")
    old = labels < num_old
    own = cosines.gather(1, labels[:, None])
    nearest_new = cosines[:, num_old:].topk(k, dim=1).values
    # max(0, margin - cos(f, w_y) + cos(f, w_k))   (Hou et al. 2019, equation 8)
    pairs = (margin - own + nearest_new).clamp(min=0) * old[:, None]  # new images count 0: choosing rows would wait
    return pairs.sum() / (k * old.sum()).clamp(min=1)


def _old_columns(name: str, values: Tensor, old_values: Tensor) -> Tensor:
    fits = values.ndim == old_values.ndim == 2 and len(values) == len(old_values)
    seen = f"shape {tuple(values.shape)} beside old {name} of {tuple(old_values.shape)}"
    require(fits and values.shape[1] >= old_values.shape[1], name, seen, "as many rows, at least as many columns")
    return values[:, : old_values.shape[1]]


# ---- re-weighting that starts late -----------------------------------------------------------------------------------


def drw_weights(
    epoch: int, epochs: int, class_counts: Tensor | Sequence[int], *, at: float = 0.8, beta: float = 0.9999
) -> Tensor:
    """Deferred re-weighting (DRW): (C,) ones before the switch, `effective_number_weights` from there on.

    Cao et al. 2019, algorithm 1, has 1 / n_j in the second phase. Their released code has effective numbers with
    beta = 0.9999, as here, which for counts of at most some thousands is nearly the same.
    """
    return effective_number_weights(class_counts, beta if epoch >= switch_epoch(epochs, at) else 0.0)


class DeferredReweighting:
    """A loss whose class weights are `drw_weights`, epoch by epoch: DRW for any loss that takes `weight=`.

        fit(..., loss=DeferredReweighting(nn.CrossEntropyLoss, counts, epochs=20))
        fit(..., loss=DeferredReweighting(partial(LDAMLoss, counts), counts, epochs=20))

    Args:
        make_loss: function (weight=(C,) tensor) -> a loss, an `nn.Module`. Called once an epoch.
        class_counts: n_j. epochs: of the whole training, the same as in `fit()`.
        at: when the weights come on, as a share of training. beta: of the effective numbers.

    `fit()` calls `set_epoch()`.
    """

    def __init__(
        self,
        make_loss: Callable[..., nn.Module],
        class_counts: Tensor | Sequence[int],
        epochs: int,
        *,
        at: float = 0.8,
        beta: float = 0.9999,
    ):
        self.make_loss, self.class_counts, self.epochs, self.at, self.beta = make_loss, class_counts, epochs, at, beta
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        weight = drw_weights(epoch, self.epochs, self.class_counts, at=self.at, beta=self.beta)
        self.loss = self.make_loss(weight=weight)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.loss = self.loss.to(logits.device)
        return self.loss(logits, labels)
