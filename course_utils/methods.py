"""Every method of the course for one long-tailed training set, under one budget: `METHODS` and `train_method()`.

A method either trains the network itself, with a loss, a sampler or a head of its own (from a `Setting` to a `Stage`),
or gives a network that is trained already another head (from `CachedFeatures` to `Finished`). Both kinds are a line in
the table `METHODS`; `train_methods()` trains several at once, and those that start from one training share it.

The budget rule. Every method of a comparison sends the same number of training images forward and backward through
the backbone: epochs * N, for a training set of N images. A sampler that repeats rare images shows fewer of the others;
a second stage that needs the backbone is paid out of the same number. Heads that learn on features (cRT, LWS) do not
touch the backbone again: the images that were run forward to get features, and the features that a head then learned
from, are counted and reported beside the budget. So are seconds, which depend on the machine.

Everything that is chosen (tau, the number of epochs of a new head) is chosen by balanced accuracy on validation images.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .data import Labeled
from .decoupling import (
    LearnableWeightScaling,
    NearestClassMean,
    retrain_classifier,
    tau_normalize,
    tau_sweep,
    train_head,
)
from .heads import CosineClassifier
from .losses import (
    DeferredReweighting,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    effective_number_weights,
    inverse_frequency_weights,
)
from .metrics import balanced_accuracy
from .networks import ImageClassifier, SmallCNN
from .openworld import second_stage
from .runtime import keeping_random_state, require
from .sampling import ClassBalancedSampler, DeferredResampler, ProgressivelyBalancedSampler, SquareRootSampler
from .training import cosine_schedule, evaluating, extract_features, fit, predict

TAUS = tuple(t / 10 for t in range(21))
HEAD_EPOCHS = (5, 10, 20)
LDAM_SCALE = 30.0

Head = Callable[[int, int], nn.Module]
Make = Callable[["Setting"], Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods of a comparison have in common: the data, the network and the budget.

    Args:
        train: every class at least once. validation: for choices; methods that choose nothing do without.
        network: function (number of classes) -> an `ImageClassifier`, such as `SmallCNN`. `seed` draws the weights.
        epochs, batch_size, lr, momentum, weight_decay, augment, schedule, precision, progress: as in `training.fit()`.
        optimizer: as in `fit()`, such as `torch.optim.Adam`; momentum is for SGD, the default, alone.
        defer_at: when deferred re-weighting starts, as a share of training. Give the schedule the same moment.
        seed: of the first weights, the order and the augmentation.
        checkpoint: beginning of the names of the files that a training keeps while it runs, or None.
    """

    train: Labeled
    validation: Labeled | None = None
    network: Callable[[int], ImageClassifier] = SmallCNN
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    optimizer: Callable | None = None
    weight_decay: float = 5e-4
    augment: Any = "usual"
    schedule: Callable[[int, int], float] = cosine_schedule
    defer_at: float = 0.8
    precision: torch.dtype = torch.float32
    seed: int = 0
    checkpoint: str | Path | None = None
    progress: bool = False

    def __post_init__(self):
        names, counts = self.train.class_names, self.train.counts
        empty = names[int(counts.argmin())]
        require(counts.all(), "train", f"no image of class {empty!r}", "at least one of each class")
        same = self.validation is None or self.validation.class_names == names
        require(same, "validation", "other classes than train has", "the same, in the same order")

    @property
    def counts(self) -> list[int]:
        return self.train.counts.tolist()

    def new_model(self, head: Head | None = None) -> ImageClassifier:
        """A network with weights that depend on `seed` alone, on the device of `train`; every head on one backbone."""
        with keeping_random_state() as reseed:  # on the CPU: a seed is the same everywhere
            reseed(self.seed)
            model = self.network(self.train.num_classes)
            if head is not None:
                model.head = head(model.feature_dim, self.train.num_classes)
        return model.to(self.train.labels.device)

    def fit_options(self, stage: int = 1) -> dict[str, Any]:
        """For `training.fit()`; stage: 1, 2 ...: each has a checkpoint of its own."""
        names = "batch_size", "lr", "momentum", "weight_decay", "augment", "schedule", "precision", "seed", "progress"
        checkpoint = None if self.checkpoint is None else f"{self.checkpoint}.{stage}.pt"
        own = {} if self.optimizer is None else {"optimizer": self.optimizer, "momentum": None}
        return {name: getattr(self, name) for name in names} | own | {"checkpoint": checkpoint}


# ---- methods that train the network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A model, the images that went forward and backward through its backbone (or forward alone), and the seconds."""

    model: ImageClassifier
    images: int
    seconds: float
    feature_images: int = 0


def run_fit(setting: Setting, model: ImageClassifier, *, epochs: int | None = None, stage: int = 1, **options) -> Stage:
    """`training.fit()` with everything a setting says; `options`: what the method adds (loss, sampler ...).

    epochs: of this stage, by default all of the budget.
    """
    epochs = setting.epochs if epochs is None else epochs
    history = fit(model, setting.train, epochs=epochs, **setting.fit_options(stage) | options)
    a_pass = len(options.get("sampler") or setting.train)
    return Stage(model, epochs * a_pass, sum(row["seconds"] for row in history))


def recipe(loss: Make | None = None, sampler: Make | None = None, head: Head | None = None) -> Callable[..., Stage]:
    """One stage of `fit()`, a function (`Setting`) -> `Stage`: a method is a loss, a sampler or a head."""

    def train(setting: Setting) -> Stage:
        options: dict[str, Any] = {"loss": loss and loss(setting), "sampler": sampler and sampler(setting)}
        done = run_fit(setting, setting.new_model(head), **options)
        if head is unit_cosine:
            with torch.no_grad():
                done.model.head.scale.fill_(LDAM_SCALE)  # softmax means something only with the scale of the loss
        return done

    return train


def deferred(setting: Setting, make_loss: Callable) -> DeferredReweighting:
    return DeferredReweighting(make_loss, setting.counts, setting.epochs, at=setting.defer_at)


def unit_cosine(in_features: int, num_classes: int) -> CosineClassifier:
    """Plain cosines, which LDAM wants, and rows that start with norm 1, as in its released code."""
    return CosineClassifier(in_features, num_classes, scale=1.0, learn_scale=False, unit_rows=True)


_square_root = recipe(sampler=lambda s: SquareRootSampler(s.train.labels, seed=s.seed))
_class_balanced = recipe(sampler=lambda s: ClassBalancedSampler(s.train.labels, seed=s.seed))
_progressive = recipe(sampler=lambda s: ProgressivelyBalancedSampler(s.train.labels, epochs=s.epochs, seed=s.seed))
_re_weighting = recipe(loss=lambda s: nn.CrossEntropyLoss(inverse_frequency_weights(s.counts)))
_effective = recipe(loss=lambda s: nn.CrossEntropyLoss(effective_number_weights(s.counts, 0.99)))
_focal = recipe(loss=lambda s: FocalLoss(2.0))
_cosine = recipe(head=CosineClassifier)
_ldam = recipe(loss=lambda s: LDAMLoss(s.counts, scale=LDAM_SCALE), head=unit_cosine)
_drw = recipe(loss=lambda s: deferred(s, nn.CrossEntropyLoss))
_balanced_softmax = recipe(loss=lambda s: LogitAdjustedLoss(s.counts))
_ldam_drs = recipe(
    loss=lambda s: LDAMLoss(s.counts, scale=LDAM_SCALE),
    sampler=lambda s: DeferredResampler(s.train.labels, s.epochs, at=s.defer_at, seed=s.seed),
    head=unit_cosine,
)
_ldam_drw = recipe(loss=lambda s: deferred(s, partial(LDAMLoss, s.counts, scale=LDAM_SCALE)), head=unit_cosine)


def oltr(setting: Setting) -> Stage:
    """Both stages of OLTR with all its parts, half of the budget each."""
    require(setting.epochs >= 2, "epochs", setting.epochs, "at least 2, one for each stage of OLTR")
    first = run_fit(setting, setting.new_model(), epochs=setting.epochs // 2)
    started, rest = time.perf_counter(), setting.epochs - setting.epochs // 2
    model = second_stage(first.model, setting.train, epochs=rest, **setting.fit_options(stage=2))
    seconds = first.seconds + time.perf_counter() - started
    return Stage(model, first.images + rest * len(setting.train), seconds, feature_images=len(setting.train))


# ---- methods on the features of a trained network --------------------------------------------------------------------


@dataclass(frozen=True)
class CachedFeatures:
    """A trained network and its features of the training and the validation images of the setting."""

    model: ImageClassifier
    setting: Setting
    features: Tensor
    validation_features: Any = None  # a Tensor where there are validation images

    @torch.no_grad()
    def best(self, heads: Mapping[Any, nn.Module]) -> Any:
        """The key of the head with the highest balanced accuracy on validation images; the first of equal ones."""
        return self.best_said({key: head(self.validation_features).argmax(1) for key, head in heads.items()})

    def best_said(self, said: Mapping[Any, Tensor]) -> Any:
        """The same for predictions (N,) on the validation images."""
        validation: Any = self.setting.validation
        return max(said, key=lambda key: balanced_accuracy(said[key], validation.labels, validation.num_classes))


@dataclass(frozen=True)
class Finished:
    """A new head, what was chosen on validation images, and from how many features heads have learned."""

    head: nn.Module
    chosen: dict[str, Any] = field(default_factory=dict)
    head_images: int = 0


def choose_tau(cached: CachedFeatures) -> Finished:
    weight = cached.model.head.weight.detach()
    said = tau_sweep(cached.validation_features, weight, TAUS)
    tau = cached.best_said(dict(zip(TAUS, said, strict=True)))
    return Finished(linear_head(tau_normalize(weight, tau)), {"tau": tau})


def ncm(cached: CachedFeatures) -> Finished:
    data = cached.features, cached.setting.train.labels, cached.setting.train.num_classes
    heads = {treatment: NearestClassMean(*data, treatment) for treatment in NearestClassMean.TREATMENTS}
    chosen = cached.best(heads)
    return Finished(heads[chosen], {"treatment": chosen})


def crt(cached: CachedFeatures) -> Finished:
    data = cached.features, cached.setting.train.labels, cached.setting.train.num_classes
    heads = {epochs: retrain_classifier(*data, epochs=epochs, seed=cached.setting.seed) for epochs in HEAD_EPOCHS}
    return _with_epochs(cached, heads)


def lws(cached: CachedFeatures) -> Finished:
    old, train, seed = cached.model.head, cached.setting.train, cached.setting.seed
    heads = {epochs: LearnableWeightScaling(old.weight, old.bias) for epochs in HEAD_EPOCHS}
    for epochs, head in heads.items():
        train_head(head, cached.features, train.labels, epochs=epochs, seed=seed)
    return _with_epochs(cached, heads)


def _with_epochs(cached: CachedFeatures, heads: Mapping[int, nn.Module]) -> Finished:
    chosen = cached.best(heads)
    return Finished(heads[chosen], {"epochs": chosen}, sum(heads) * len(cached.setting.train))


def adjust(cached: CachedFeatures, tau: float = 1.0) -> Finished:
    """z_j - tau log(n_j / N): Menon et al. 2021, equation 9.

    tau 0 changes nothing, and 1 is right if softmax of z is right for the training shares; networks that are too sure
    can want more: `partial(adjust, tau=1.5)` in a `Method` of your own.

    Raises:
        ValueError: tau below 0 or not a finite number.
    """
    require(0 <= tau < math.inf, "tau", tau, "a finite number of at least 0")
    old, counts = cached.model.head, cached.setting.train.counts
    # z_j - tau log(n_j / N)   (Menon et al. 2021, equation 9)
    return Finished(linear_head(old.weight, old.bias - tau * (counts / counts.sum()).log()))


def linear_head(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = {"device": weight.device, "dtype": weight.dtype, "bias": bias is not None}
    head = nn.utils.skip_init(nn.Linear, *weight.T.shape, **made)  # draws no random numbers
    head.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
    return head


# ---- the methods -----------------------------------------------------------------------------------------------------

NEEDS = {
    "counts": "knows how many training images each class has, or draws them by class",
    "training": "trains the network itself, so it is of no use for one that is trained already",
    "features": "reads the training images again, with a network that is trained already",
    "validation": "has a setting that is chosen on validation images",
    "memory": "stores a vector for each class beside the weights, and uses it for every answer",
}


@dataclass(frozen=True)
class Method:
    """One method: what it does, what it needs to know (keys of `NEEDS`), the notebook that teaches it, and how it runs.

    It has either `train`, a training of its own: function (`Setting`) -> `Stage`; or `finish`, which gives the network
    of the training `after` another head: function (`CachedFeatures`) -> `Finished`. Methods with one training in common
    share it. `probabilities`: whether its logits come from those of a softmax loss; if not (distances), calibration is
    not measured. Nobody meant softmax of *rescaled* logits (tau-normalization) as probabilities: a temperature is due.
    """

    what: str
    notebook: str
    needs: tuple[str, ...] = ()
    train: Any = None
    finish: Any = None
    after: str = "cross-entropy"
    probabilities: bool = True


_TRAINS, _BOTH = ("training",), ("counts", "training")
_PICKS, _HEADS = ("validation",), ("counts", "features", "validation")
METHODS: dict[str, Method] = {
    "cross-entropy": Method("the baseline: every image counts the same", "01", train=recipe()),
    "square-root sampling": Method("classes drawn with p_j ~ sqrt(n_j)", "04", _BOTH, _square_root),
    "class-balanced sampling": Method("every class drawn equally often", "04", _BOTH, _class_balanced),
    "progressive sampling": Method(
        "from every image equally often to every class equally often", "04", _BOTH, _progressive
    ),
    "re-weighting": Method("loss times 1 / n_j from the start", "05", _BOTH, _re_weighting),
    "class-balanced loss": Method("loss divided by the effective number of images, beta 0.99", "05", _BOTH, _effective),
    "focal loss": Method("images that are right already count less, gamma 2", "05", _TRAINS, _focal),
    "cosine classifier": Method("logits are cosines times a learned scale", "02", _TRAINS, _cosine),
    "LDAM": Method("a margin for each class, wider for rare ones", "05", _BOTH, _ldam),
    "CE + DRW": Method("cross-entropy, re-weighted late in training", "05", _BOTH, _drw),
    "LDAM + DRW": Method("LDAM, re-weighted late in training", "05", _BOTH, _ldam_drw),
    "LDAM + DRS": Method("LDAM, classes drawn equally often late in training", "05", _BOTH, _ldam_drs),
    "balanced softmax": Method(
        "cross-entropy with the log of each class's share added", "05", _BOTH, _balanced_softmax
    ),
    "OLTR memory": Method(
        "two stages; centroids, attention and distance beside the features", "06", (*_BOTH, "memory"), oltr
    ),
    "tau-normalization": Method("rows divided by their norm to the power tau", "04", _PICKS, finish=choose_tau),
    "NCM": Method(
        "the class whose mean feature is nearest", "04", ("features", "validation"), finish=ncm, probabilities=False
    ),
    "cRT": Method("a new classifier, learned from class-balanced features", "04", _HEADS, finish=crt),
    "LWS": Method("one learned factor for each class's logit", "04", _HEADS, finish=lws),
    "logit adjustment": Method("log of the class's share taken off its logit", "05", ("counts",), finish=adjust),
}


def trainings_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Which trainings the methods `names` take: {training: its methods}, both in the order of `METHODS`."""
    names = list(names)
    for name in names or ["none"]:
        require(name in METHODS, "method", repr(name), ", ".join(METHODS))
    found: dict[str, list[str]] = {}
    for name, method in METHODS.items():
        if name in names:
            found.setdefault(name if method.train else method.after, []).append(name)
    return found


@dataclass(frozen=True)
class Trained:
    """A classifier and what it cost.

    chosen: what was chosen on validation images. cost: "backbone_images", forward and backward, the budget;
    "feature_images", forward alone; "head_images", features that heads learned from; "seconds" of all that.
    """

    name: str
    model: ImageClassifier
    chosen: dict[str, Any]
    cost: dict[str, float]

    def logits(self, dataset: Labeled) -> Tensor:
        """float32 (N, C) of all images of a dataset, which has to be where the training set was."""
        return predict(self.model, dataset)


def all_logits(trained: Mapping[str, Trained], dataset: Labeled) -> dict[str, Tensor]:
    """`Trained.logits()` of several methods; those that share a backbone run the images through it once."""
    found, features = {}, {}
    for name, one in trained.items():
        if METHODS[name].finish is None:
            found[name] = one.logits(dataset)
            continue
        after = METHODS[name].after
        if after not in features:
            features[after] = extract_features(one.model, dataset)
        with evaluating(one.model):
            found[name] = torch.cat([one.model.head(part) for part in features[after].split(512)])
    return found


def train_method(name: str, train: Labeled, validation: Labeled | None = None, **setting) -> Trained:
    """Train one method of `METHODS`; `setting`: network, epochs, seed ..., as in `Setting`.

        trained = train_method("LDAM + DRW", train, validation, epochs=20, seed=0)
        trained.logits(test).argmax(1)

    Raises:
        ValueError: an unknown method, a class without training images, or no validation images where one chooses.
    """
    return train_methods([name], train, validation, **setting)[name]


def train_methods(
    names: Iterable[str], train: Labeled, validation: Labeled | None = None, **setting
) -> dict[str, Trained]:
    """The same for several methods; those that start from one training share it, so it is done once."""
    setting = Setting(train=train, validation=validation, **setting)
    groups = trainings_of(names)
    lacking = [n for members in groups.values() for n in members if "validation" in METHODS[n].needs]
    allowed = f"images to choose on, for {', '.join(lacking)}"
    require(validation or not lacking, "validation", None if validation is None else "no image", allowed)
    done = {}
    for training, members in groups.items():
        stage = METHODS[training].train(setting)
        cost = {"backbone_images": stage.images, "feature_images": stage.feature_images, "head_images": 0}
        cost["seconds"] = stage.seconds
        if training in members:
            done[training] = Trained(training, stage.model, {}, cost)
        later = [name for name in members if name != training]
        if later:
            done |= _finish_all(later, setting, stage, cost)
    return {name: done[name] for members in groups.values() for name in members}


def _finish_all(names: list[str], setting: Setting, stage: Stage, cost: dict[str, float]) -> dict[str, Trained]:
    started = time.perf_counter()
    read = {"features": setting.train, "validation": setting.validation}
    features = {need: extract_features(stage.model, data) for need, data in read.items() if data is not None}
    cached = CachedFeatures(stage.model, setting, *features.values())
    shared = time.perf_counter() - started
    done = {}
    for name in names:
        started = time.perf_counter()
        finished = METHODS[name].finish(cached)
        model = copy.deepcopy(stage.model)
        model.head = finished.head
        images = sum(len(features[need]) for need in METHODS[name].needs if need in features)
        own = {"feature_images": images, "head_images": finished.head_images}
        own["seconds"] = cost["seconds"] + shared + time.perf_counter() - started
        done[name] = Trained(name, model, finished.chosen, cost | own)
    return done
