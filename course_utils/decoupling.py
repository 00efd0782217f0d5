"""Is it the features or the classifier? Keep the features, replace the classifier (Kang et al. 2020).

A trained network is features f (D numbers an image) and a linear head, z_j = w_j . f + b_j. Features of a whole
dataset, `training.extract_features()`, are a small matrix (N, D); on it every classifier here takes a second or less.
Which one is best is chosen on validation data, never on the test set.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Labeled, class_counts
from .heads import positive_norms
from .machinery.checks import floats, sums
from .networks import ImageClassifier, device_of
from .runtime import keeping_random_state, on_cpu, require
from .sampling import ClassBalancedSampler, EpochSampler
from .training import SGD, cosine_schedule, fit

# ---- tau-normalization: nothing is trained ---------------------------------------------------------------------------


def tau_normalize(weight: Tensor, tau: float) -> Tensor:
    """w_j / ||w_j||^tau for every row: (C, D) to (C, D) (Kang et al. 2020, section 4).

    tau 0 changes nothing, tau 1 makes every norm 1, a larger tau turns the order of the norms round. The paper and its
    released code use the result *without* the bias, so even tau 0 is not the classifier that was trained.

    Raises:
        ValueError: tau below 0, not a finite number or too large for these norms, or a row whose norm is zero or not a
            number.
    """
    # w_j / ||w_j||^tau
    return weight / _norm_powers(positive_norms(weight), [tau])[0][:, None]


def tau_sweep(features: Tensor, weight: Tensor, taus: Sequence[float], bias: Tensor | None = None) -> Tensor:
    """What tau-normalized classifiers say, for many tau at the price of one: int64 (T, N) from N features.

    Row t equals `(features @ tau_normalize(weight, taus[t]).T).argmax(1)`, plus the bias if one is given. Dividing row
    w_j by ||w_j||^tau divides logit j of every image by the same number, so the product of features and weights is
    computed once, some rows at a time, and only its columns are rescaled.

    Args:
        features: (N, D). weight: (C, D). taus: T numbers of at least 0.
        bias: (C,), added after the rescaling; None as in the paper.

    Raises:
        ValueError: as `tau_normalize()`, no tau at all, shapes that do not fit, or NaN, of which argmax makes a class.

    Differs from the released code in the order of the work alone: it computes all logits again for every tau.
    """
    norms = positive_norms(weight)
    _check_shape(features.shape[1:] == weight.shape[1:], "features", features, f"(N, {weight.shape[1]})")
    _check_shape(bias is None or bias.shape == norms.shape, "bias", bias, f"({len(weight)},) or None")
    scales = _norm_powers(norms, taus, -1)
    features, weight, *biases = floats(features=features, weight=weight, **({} if bias is None else {"bias": bias}))
    for name, numbers in zip(("features", "bias"), (features, *biases), strict=False):
        require(numbers.isfinite().all(), name, "NaN or infinity", "finite numbers")
    said = torch.empty(len(scales), len(features), dtype=torch.int64, device=features.device)
    rows = max(1, (1 << (18 if on_cpu(features) else 26)) // len(weight))  # on a CPU: what fits into its cache
    for start in range(0, len(features), rows):
        logits = features[start : start + rows] @ weight.T
        scaled = torch.empty_like(logits)
        for t, scale in enumerate(scales):
            # z_j = (w_j . f) ||w_j||^-tau
            torch.mul(logits, scale, out=scaled)
            said[t, start : start + rows] = (scaled.add_(*biases) if biases else scaled).argmax(1)
    return said


def _norm_powers(norms: Tensor, taus: Sequence[float], sign: int = 1) -> list[Tensor]:
    """||w_j||^(sign tau) for every tau: (C,) each."""
    taus = [float(tau) for tau in taus]
    require(taus, "taus", "none", "at least one number")
    for tau in taus:
        require(0 <= tau < math.inf, "tau", tau, "a finite number of at least 0")
    powers = [norms ** (sign * tau) for tau in taus]
    good = torch.stack(powers)
    good = (good > 0) & good.isfinite()
    require(good.all(), "tau", f"{max(taus)}, of which a power of a norm is 0 or infinite", "less")
    return powers


def _check_shape(fits: bool, name: str, tensor: Any, allowed: str) -> None:
    require(fits, name, lambda: f"shape {tuple(tensor.shape)}", allowed)


# ---- nearest class mean: nothing is trained either -------------------------------------------------------------------


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """mu_j, the mean feature of every class: floats (N, D) and int64 (N,) to (C, D), at least float32.

    Raises:
        ValueError: a class without images, labels that are not int64 or out of range, shapes that do not fit, or
            features that are not finite.
    """
    features, counts = _checked_features(features, labels, num_classes)
    # mu_j = 1/n_j sum of f_i over the images i of class j
    return sums(features, labels, num_classes) / counts[:, None]


def _checked_features(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The features in at least float32 and the counts of the classes, or a ValueError."""
    seen = [f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in (features, labels)]
    require(features.ndim == 2 and features.is_floating_point(), "features", seen[0], "floats (N, D)")
    require(features.isfinite().all(), "features", "NaN or infinity", "finite numbers")
    one_each = labels.dtype == torch.int64 and labels.shape == features.shape[:1]
    require(one_each, "labels", seen[1], f"int64 of shape ({len(features)},)")
    require(len(labels), "labels", "none", "at least one of each class")
    counts = class_counts(labels, num_classes)
    require(counts.all(), "labels", lambda: f"no image of class {counts.argmin()}", "at least one of each class")
    return floats(features=features)[0], counts


class NearestClassMean(nn.Module):
    """z_j = -||g(f) - mu_j||^2, mu_j the mean of g over the training images of class j (Kang et al. 2020, section 4).

    Args:
        features: (N, D) training features. labels: int64 (N,), 0 to C - 1, every class at least once.
        num_classes: C.
        treatment: g. "un": f as it is. "l2n": f / ||f||. "cl2n": (f - m) / ||f - m||, where m is the mean of all
            training features, so frequent classes weigh more in it.

    As in the released code, means of unit vectors are not brought to length 1 again, and "cl2n" is its default. A
    feature of norm 0 stays 0 (there it becomes NaN). The module works as a head: `model.head = NearestClassMean(...)`.
    Its option `cos` is left out: g . mu_j / D is no cosine, as the length of mu_j counts.

    Raises:
        ValueError: an unknown treatment, or as `class_means()`.
    """

    TREATMENTS = ("un", "l2n", "cl2n")
    center: Tensor
    means: Tensor

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, treatment: str = "cl2n"):
        super().__init__()
        require(treatment in self.TREATMENTS, "treatment", repr(treatment), ", ".join(self.TREATMENTS))
        features, _ = _checked_features(features, labels, num_classes)
        self.treatment = treatment
        self.register_buffer("center", features.mean(0))
        self.register_buffer("means", class_means(self.treat(features), labels, num_classes))

    def treat(self, features: Tensor) -> Tensor:
        """g: (B, D) to (B, D)."""
        _check_shape(features.shape[1:] == self.center.shape, "features", features, f"(B, {len(self.center)})")
        features, _ = floats(features=features, center=self.center)
        if self.treatment == "cl2n":
            features = features - self.center
        return features if self.treatment == "un" else F.normalize(features, dim=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, C), at most 0: minus the squared distance to every class mean."""
        g, means = floats(features=self.treat(features), means=self.means)
        # z_j = -||g - mu_j||^2 = 2 g . mu_j - (||g||^2 + ||mu_j||^2)
        lengths = g.square().sum(1, keepdim=True) + means.square().sum(1)
        return (2 * g @ means.T - lengths).clamp(max=0)


# ---- classifiers trained anew on features that stay ------------------------------------------------------------------


class LearnableWeightScaling(nn.Module):
    """z_j = s_j (w_j . f + b_j): only the scales s are learned, w and b stay (LWS, Kang et al. 2020, section 4).

    Args:
        weight: (C, D) and bias: (C,) of the trained classifier; None: no bias.

    s starts at 1, where z are the logits of the trained classifier, and may take any sign. The paper has no bias; its
    released code scales the bias too, as here.

    Differs from the released code in the numbers of `train_head()`: there, learning rate 0.2, batches of 512, 5 epochs.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        _check_shape(weight.ndim == 2, "weight", weight, "(classes, features)")
        _check_shape(bias is None or bias.shape == weight.shape[:1], "bias", bias, f"({len(weight)},) or None")
        weight, bias = floats(weight=weight, bias=weight.new_zeros(len(weight)) if bias is None else bias)
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.scale = nn.Parameter(weight.new_ones(len(weight)))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to logits (B, C)."""
        width = self.weight.shape[1]
        _check_shape(features.ndim == 2 and features.shape[1] == width, "features", features, f"(B, {width})")
        features, weight, bias = floats(features=features, weight=self.weight, bias=self.bias)
        # z_j = s_j (w_j . f + b_j)
        return self.scale * F.linear(features, weight, bias)


def train_head(
    head: nn.Module,
    features: Tensor,
    labels: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    sampler: EpochSampler | None = None,
    seed: int = 0,
) -> list[float]:
    """Train `head` in place on features that were computed once; return the mean loss of every epoch.

    Cross-entropy, SGD and the cosine schedule of `training.fit()`; `sampler` is class-balanced by default.

    Args:
        head: module from (B, D) features to (B, C) logits, on the device of the features, which it gets in its type.
        features: (N, D). labels: int64 (N,), every class from 0 to the largest one at least once.
        epochs, batch_size, lr, momentum, weight_decay, seed: as in `training.fit()`.

    Raises:
        ValueError: an argument out of range, or a class without images.
        FloatingPointError: the loss became NaN or infinite.
    """
    _checked_features(features, labels, int(labels.max()) + 1 if labels.dtype == torch.int64 and len(labels) else 1)
    features = features.to(next((w.dtype for w in head.parameters()), torch.float32))
    require(epochs >= 1 and batch_size >= 1, "epochs, batch_size", f"{epochs}, {batch_size}", "at least 1")
    fine = lr > 0 and momentum >= 0 and weight_decay >= 0
    require(fine, "lr, momentum, weight_decay", f"{lr}, {momentum}, {weight_decay}", "above 0, and at least 0")
    sampler = ClassBalancedSampler(labels, seed=seed) if sampler is None else sampler
    made_for, images = len(sampler.labels), len(labels)
    require(made_for == images, "sampler", f"one for {made_for} images", f"one for the {images} of features")
    optimizer, losses = SGD(head, momentum, weight_decay), []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        optimizer.lr = lr * cosine_schedule(epoch, epochs)
        total = torch.zeros((), device=features.device)
        for part in sampler.indices().to(features.device).split(batch_size):
            loss = F.cross_entropy(head(features[part]), labels[part])
            head.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(part)
        losses.append(total.item() / len(sampler))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss is {losses[-1]} in epoch {epoch}: lr={lr} may be too large")
    return losses


def retrain_classifier(features: Tensor, labels: Tensor, num_classes: int, *, seed: int = 0, **settings) -> nn.Linear:
    """cRT, classifier re-training on cached features: a new linear head, trained with class-balanced sampling.

    Kang et al. 2020, section 4. Args: as `NearestClassMean` and, as keywords, `train_head()`. Returns the head, on
    the device of the features. Torch's global generator is left as it was.

    Differs from the released code, which runs the backbone again for every batch: features here are those of images
    without augmentation and with the stored statistics of batch normalization, so they are the same in every epoch and
    cost one pass. `retrain_end_to_end()` keeps the augmentation. There, on ImageNet-LT, learning rate 0.2, batches of
    512 and 10 epochs; here 0.1, 64 and, by default, 10 as well.
    """
    _checked_features(features, labels, num_classes)
    head = _new_head(features.shape[1], num_classes, seed, features.device)
    train_head(head, features, labels, seed=seed, **settings)
    return head


def retrain_end_to_end(
    model: ImageClassifier,
    train: Labeled,
    *,
    epochs: int = 10,
    augment: Any = "usual",
    sampler: EpochSampler | None = None,
    seed: int = 0,
    **settings,
) -> ImageClassifier:
    """cRT through the whole network: a copy of `model` with a new linear head, trained; its backbone stands still.

    Args:
        model: trained, on the device of `train`. It is left alone.
        sampler: class-balanced by default. Others, and `settings`: as in `training.fit()`.

    Differs from the released code, where the frozen backbone stays in training mode: there, batch normalization uses
    the statistics of each class-balanced batch, and its stored ones drift away from what the features were trained
    with. Here they stand still.
    """
    counts = train.counts
    require(counts.all(), "train", lambda: f"no image of class {counts.argmin()}", "at least one of each class")
    model = copy.deepcopy(model)
    model.head = _new_head(model.feature_dim, train.num_classes, seed, device_of(model))
    model.backbone.requires_grad_(False)
    sampler = ClassBalancedSampler(train.labels, seed=seed) if sampler is None else sampler
    fit(model, train, epochs=epochs, augment=augment, sampler=sampler, seed=seed, **settings)
    return model


def _new_head(in_features: int, num_classes: int, seed: int, device: torch.device) -> nn.Linear:
    with keeping_random_state() as reseed:  # on the CPU: a seed is the same everywhere
        reseed(seed)
        return nn.Linear(in_features, num_classes).to(device)
