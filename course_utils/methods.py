"""Every method of the course for one long-tailed training set, under one budget: `METHODS` and `train_method()`.

The budget rule. Every method of a comparison sends the same number of training images forward and backward through
the backbone: epochs * N, for a training set of N images. A sampler that repeats rare images shows fewer of the others;
a second stage that needs the backbone is paid out of the same number. Heads that learn on features (cRT, LWS) do not
touch the backbone again: the images that were run forward to get features, and the features that a head then learned
from, are counted and reported beside the budget. So are seconds, which depend on the machine.

Everything that is chosen (tau, the number of epochs of a new head) is chosen by balanced accuracy on validation images.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .data import LabeledImages
from .heads import CosineClassifier
from .losses import FocalLoss, effective_number_weights, inverse_frequency_weights
from .recipes import (
    Cached,
    Finished,
    Setting,
    Stage,
    crt,
    deferred,
    ldam,
    logit_adjustment,
    lws,
    nearest_class_mean,
    oltr,
    recipe,
    tau_normalization,
    unit_cosine,
)
from .sampling import ClassBalancedSampler, ProgressivelyBalancedSampler, SquareRootSampler
from .training import evaluating, extract_features, predict

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
    of the training `after` another head: function (`Cached`) -> `Finished`. Methods with one training in common share
    it. `probabilities`: whether softmax of its logits was meant as probabilities; if not, calibration is not measured.
    """

    what: str
    notebook: str
    needs: tuple[str, ...] = ()
    train: Callable[[Setting], Stage] | None = None
    finish: Callable[[Cached], Finished] | None = None
    after: str = "cross-entropy"
    probabilities: bool = True


_TRAINS = ("counts", "training")
METHODS: dict[str, Method] = {
    "cross-entropy": Method("the baseline: every image counts the same", "01", train=recipe()),
    "square-root sampling": Method("classes drawn with p_j ~ sqrt(n_j)", "04", _TRAINS,
        recipe(sampler=lambda s: SquareRootSampler(s.train.labels, seed=s.seed))),
    "class-balanced sampling": Method("every class drawn equally often", "04", _TRAINS,
        recipe(sampler=lambda s: ClassBalancedSampler(s.train.labels, seed=s.seed))),
    "progressive sampling": Method("from every image equally often to every class equally often", "04", _TRAINS,
        recipe(sampler=lambda s: ProgressivelyBalancedSampler(s.train.labels, epochs=s.epochs, seed=s.seed))),
    "re-weighting": Method("loss times 1 / n_j from the start", "05", _TRAINS,
        recipe(loss=lambda s: nn.CrossEntropyLoss(inverse_frequency_weights(s.counts)))),
    "class-balanced loss": Method("loss divided by the effective number of images, beta 0.99", "05", _TRAINS,
        recipe(loss=lambda s: nn.CrossEntropyLoss(effective_number_weights(s.counts, 0.99)))),
    "focal loss": Method("images that are right already count less, gamma 2", "05", ("training",),
        recipe(loss=lambda s: FocalLoss(2.0))),
    "cosine classifier": Method("logits are cosines times a learned scale", "02", ("training",),
        recipe(head=CosineClassifier)),
    "LDAM": Method("a margin for each class, wider for rare ones", "05", _TRAINS,
        recipe(loss=ldam, head=unit_cosine)),
    "CE + DRW": Method("cross-entropy, re-weighted late in training", "05", _TRAINS,
        recipe(loss=lambda s: deferred(s, nn.CrossEntropyLoss))),
    "LDAM + DRW": Method("LDAM, re-weighted late in training", "05", _TRAINS,
        recipe(loss=lambda s: deferred(s, partial(ldam, s)), head=unit_cosine)),
    "OLTR memory": Method("two stages; centroids, attention and distance beside the features", "06",
        (*_TRAINS, "memory"), oltr),
    "tau-normalization": Method("rows divided by their norm to the power tau", "04", ("validation",),
        finish=tau_normalization),
    "NCM": Method("the class whose mean feature is nearest", "04", ("features", "validation"),
        finish=nearest_class_mean, probabilities=False),
    "cRT": Method("a new classifier, learned from class-balanced features", "04", ("counts", "features", "validation"),
        finish=crt),
    "LWS": Method("one learned factor for each class's logit", "04", ("counts", "features", "validation"), finish=lws),
    "logit adjustment": Method("log of the class's share taken off its logit", "05", ("counts",),
        finish=logit_adjustment),
}  # fmt: skip


def trainings_of(names: Iterable[str]) -> dict[str, list[str]]:
    """Which trainings the methods `names` take: {training: its methods}, both in the order of `METHODS`."""
    names = list(names)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(f"method: got {unknown[0] if unknown else 'none'!r}; allowed: {', '.join(METHODS)}")
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
    model: nn.Module
    chosen: dict[str, Any]
    cost: dict[str, float]

    def logits(self, dataset: LabeledImages) -> Tensor:
        """float32 (N, C) of all images of a dataset, which has to be where the training set was."""
        return predict(self.model, dataset)


def all_logits(trained: Mapping[str, Trained], dataset: LabeledImages) -> dict[str, Tensor]:
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


def train_method(name: str, train: LabeledImages, validation: LabeledImages | None = None, **setting) -> Trained:
    """Train one method of `METHODS`; `setting`: network, epochs, seed ..., as in `Setting`.

        trained = train_method("LDAM + DRW", train, validation, epochs=20, seed=0)
        trained.logits(test).argmax(1)

    Raises:
        ValueError: an unknown method, a class without training images, or no validation images where one chooses.
    """
    return train_methods([name], train, validation, **setting)[name]


def train_methods(
    names: Iterable[str], train: LabeledImages, validation: LabeledImages | None = None, **setting
) -> dict[str, Trained]:
    """The same for several methods; those that start from one training share it, so it is done once."""
    setting = Setting(train=train, validation=validation, **setting)
    groups = trainings_of(names)
    lacking = [n for members in groups.values() for n in members if "validation" in METHODS[n].needs]
    if validation is None and lacking:
        raise ValueError(f"validation: got None; allowed: images to choose on, for {', '.join(lacking)}")
    done = {}
    for training, members in groups.items():
        stage = METHODS[training].train(setting)
        cost = {"backbone_images": stage.images, "feature_images": stage.feature_images,
                "head_images": 0, "seconds": stage.seconds}  # fmt: skip
        if training in members:
            done[training] = Trained(training, stage.model, {}, cost)
        later = [name for name in members if name != training]
        if later:
            done |= _finish_all(later, setting, stage, cost)
    return {name: done[name] for members in groups.values() for name in members}


def _finish_all(names: list[str], setting: Setting, stage: Stage, cost: dict[str, float]) -> dict[str, Trained]:
    started = time.perf_counter()
    features = [None if d is None else extract_features(stage.model, d) for d in (setting.train, setting.validation)]
    cached = Cached(stage.model, setting.train, setting.validation, *features, setting.seed)
    shared = time.perf_counter() - started
    done = {}
    for name in names:
        started = time.perf_counter()
        finished = METHODS[name].finish(cached)
        model = copy.deepcopy(stage.model)
        model.head = finished.head
        needs = METHODS[name].needs
        own = {
            "feature_images": ("features" in needs) * len(setting.train)
            + ("validation" in needs) * len(setting.validation or ()),
            "head_images": finished.head_images,
            "seconds": cost["seconds"] + shared + time.perf_counter() - started,
        }
        done[name] = Trained(name, model, finished.chosen, cost | own)
    return done
