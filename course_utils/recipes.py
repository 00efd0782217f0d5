"""What methods are made of: a setting that all share, one stage of training, a new head on cached features.

`methods.METHODS` puts these together. A training gives a `Stage`; what comes after it, on features, a `Finished`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .batches import Augmentation, random_shift
from .data import LabeledImages
from .decoupling import (
    LearnableWeightScaling,
    NearestClassMean,
    retrain_classifier,
    tau_normalize,
    tau_sweep,
    train_head,
)
from .heads import CosineClassifier
from .losses import LDAMLoss
from .metrics import balanced_accuracy
from .networks import ImageClassifier, SmallCNN
from .openworld import second_stage
from .schedules import DeferredReweighting
from .training import cosine_schedule, fit

TAUS = tuple(t / 10 for t in range(21))
HEAD_EPOCHS = (5, 10, 20)
LDAM_SCALE = 30.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods of a comparison have in common: the data, the network and the budget.

    Args:
        train: every class at least once. validation: for choices; methods that choose nothing do without.
        network: function (number of classes) -> an `ImageClassifier`, such as `SmallCNN`. `seed` draws the weights.
        epochs, batch_size, lr, momentum, weight_decay, augment, schedule, precision, progress: as in `training.fit()`.
        defer_at: when deferred re-weighting starts, as a share of training. Give the schedule the same moment.
        seed: of the first weights, the order and the augmentation.
        checkpoint: beginning of the names of the files that a training keeps while it runs, or None.
    """

    train: LabeledImages
    validation: LabeledImages | None = None
    network: Callable[[int], ImageClassifier] = SmallCNN
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: Augmentation | None = random_shift
    schedule: Callable[[int, int], float] = cosine_schedule
    defer_at: float = 0.8
    precision: torch.dtype = torch.float32
    seed: int = 0
    checkpoint: str | Path | None = None
    progress: bool = False

    def __post_init__(self):
        if not self.train.counts.all():
            empty = self.train.class_names[int(self.train.counts.argmin())]
            raise ValueError(f"train: class {empty!r} has no image; allowed: at least one of each class")
        if self.validation is not None and self.validation.class_names != self.train.class_names:
            raise ValueError("validation: has other classes than train; allowed: the same, in the same order")

    @property
    def counts(self) -> list[int]:
        return self.train.counts.tolist()

    def new_model(self, head: Callable[[int, int], nn.Module] | None = None) -> ImageClassifier:
        """A network with weights that depend on `seed` alone, on the device of `train`; every head on one backbone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            model = self.network(self.train.num_classes)
            if head is not None:
                model.head = head(model.feature_dim, self.train.num_classes)
        return model.to(self.train.labels.device)


@dataclass(frozen=True)
class Stage:
    """A model, the images that went forward and backward through its backbone, and the seconds that took.

    feature_images: those that went forward alone.
    """

    model: nn.Module
    images: int
    seconds: float
    feature_images: int = 0


def run_fit(setting: Setting, model: nn.Module, *, epochs: int | None = None, stage: int = 1, **options) -> Stage:
    """`training.fit()` with everything a setting says; `options`: what the method adds (loss, sampler ...).

    epochs: of this stage, by default all of the budget. stage: 1, 2 ...; each stage has a checkpoint of its own.
    """
    epochs = setting.epochs if epochs is None else epochs
    history = fit(model, setting.train, epochs=epochs, **(_fit_options(setting, stage) | options))
    a_pass = len(options.get("sampler") or setting.train)
    return Stage(model, epochs * a_pass, sum(row["seconds"] for row in history))


def _fit_options(setting: Setting, stage: int) -> dict[str, Any]:
    names = "batch_size", "lr", "momentum", "weight_decay", "augment", "schedule", "precision", "seed", "progress"
    checkpoint = None if setting.checkpoint is None else f"{setting.checkpoint}.{stage}.pt"
    return {name: getattr(setting, name) for name in names} | {"checkpoint": checkpoint}


def recipe(
    *,
    loss: Callable[[Setting], Callable] | None = None,
    sampler: Callable[[Setting], Any] | None = None,
    head: Callable[[int, int], nn.Module] | None = None,
) -> Callable[[Setting], Stage]:
    """One stage of `fit()`: a method is a loss, a sampler or a head."""

    def train(setting: Setting) -> Stage:
        options = {"loss": loss(setting) if loss else None, "sampler": sampler(setting) if sampler else None}
        done = run_fit(setting, setting.new_model(head), **options)
        if head is unit_cosine:
            with torch.no_grad():
                done.model.head.scale.fill_(LDAM_SCALE)  # softmax means something only with the scale of the loss
        return done

    return train


def oltr(setting: Setting) -> Stage:
    """Both stages of OLTR with all its parts, half of the budget each."""
    if setting.epochs < 2:
        raise ValueError(f"epochs: got {setting.epochs}; allowed: at least 2, one for each stage of OLTR")
    first = run_fit(setting, setting.new_model(), epochs=setting.epochs // 2)
    started, rest = time.perf_counter(), setting.epochs - setting.epochs // 2
    model = second_stage(first.model, setting.train, epochs=rest, **_fit_options(setting, 2))
    seconds = first.seconds + time.perf_counter() - started
    return Stage(model, first.images + rest * len(setting.train), seconds, feature_images=len(setting.train))


def unit_cosine(in_features: int, num_classes: int) -> CosineClassifier:
    """Plain cosines, which LDAM wants."""
    return CosineClassifier(in_features, num_classes, scale=1.0, learn_scale=False)


def ldam(setting: Setting, weight: Tensor | None = None) -> LDAMLoss:
    return LDAMLoss(setting.counts, scale=LDAM_SCALE, weight=weight)


def deferred(setting: Setting, make_loss: Callable) -> DeferredReweighting:
    return DeferredReweighting(make_loss, setting.counts, setting.epochs, at=setting.defer_at)


# ---- methods on the features of a trained network --------------------------------------------------------------------


@dataclass(frozen=True)
class Cached:
    """A trained network and its features of the training and the validation images."""

    model: ImageClassifier
    train: LabeledImages
    validation: LabeledImages | None
    features: Tensor
    validation_features: Tensor | None
    seed: int

    def best(self, heads: Mapping[Any, nn.Module]) -> Any:
        """The key of the head with the highest balanced accuracy on validation images; the first of equal ones."""
        with torch.no_grad():
            said = {key: head(self.validation_features).argmax(1) for key, head in heads.items()}
        return self.best_said(said)

    def best_said(self, said: Mapping[Any, Tensor]) -> Any:
        """The same for predictions (N,) on the validation images."""
        labels, classes = self.validation.labels, self.validation.num_classes
        return max(said, key=lambda key: balanced_accuracy(said[key], labels, classes))


@dataclass(frozen=True)
class Finished:
    """A new head, what was chosen on validation images, and from how many features heads have learned."""

    head: nn.Module
    chosen: dict[str, Any] = field(default_factory=dict)
    head_images: int = 0


def tau_normalization(cached: Cached) -> Finished:
    weight = cached.model.head.weight.detach()
    said = tau_sweep(cached.validation_features, weight, TAUS)
    tau = cached.best_said(dict(zip(TAUS, said, strict=True)))
    return Finished(linear(tau_normalize(weight, tau)), {"tau": tau})


def nearest_class_mean(cached: Cached) -> Finished:
    classes = cached.train.num_classes
    make = partial(NearestClassMean, cached.features, cached.train.labels, classes)
    heads = {treatment: make(treatment) for treatment in NearestClassMean.TREATMENTS}
    chosen = cached.best(heads)
    return Finished(heads[chosen], {"treatment": chosen})


def crt(cached: Cached) -> Finished:
    data = cached.features, cached.train.labels
    heads = {n: retrain_classifier(*data, cached.train.num_classes, epochs=n, seed=cached.seed) for n in HEAD_EPOCHS}
    return _with_epochs(cached, heads)


def lws(cached: Cached) -> Finished:
    old, heads = cached.model.head, {}
    for epochs in HEAD_EPOCHS:
        heads[epochs] = LearnableWeightScaling(old.weight, old.bias)
        train_head(heads[epochs], cached.features, cached.train.labels, epochs=epochs, seed=cached.seed)
    return _with_epochs(cached, heads)


def _with_epochs(cached: Cached, heads: Mapping[int, nn.Module]) -> Finished:
    chosen = cached.best(heads)
    return Finished(heads[chosen], {"epochs": chosen}, sum(heads) * len(cached.train))


def logit_adjustment(cached: Cached) -> Finished:
    """z_j - log(n_j / N): Menon et al. 2021, equation 9 with tau = 1."""
    old, counts = cached.model.head, cached.train.counts
    return Finished(linear(old.weight.detach(), old.bias.detach() - (counts / counts.sum()).log()))


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    return head
