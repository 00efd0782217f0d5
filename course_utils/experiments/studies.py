"""Named experiments: data with a long tail, a network, a budget, methods and seeds. One cell is one training.

A cell is one training of one seed; it gives the numbers of every method that starts from it (tau-normalization, NCM,
cRT, LWS and logit adjustment share the training of cross-entropy). `runs.run_study()` runs the cells and keeps them.
"""

from __future__ import annotations

import contextlib
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backbones import backbone, train_heads
from ..data import Labeled
from ..methods import METHODS, Trained, all_logits, train_methods
from ..metrics import best_temperature, calibration_error, per_class_accuracy, reliability_bins, shot_accuracy
from ..networks import NETWORKS, ImageClassifier
from ..photo_sets import PUBLISHED
from ..photos import Photos, View
from ..runtime import choose_device, require
from ..texts import TEXT_NETWORKS, LabeledTexts, word_dropout
from ..training import cosine_schedule, random_flip, random_shift, step_schedule
from .cells import plain
from .photo_cells import beside, features_of
from .study_data import check_data, load_splits, view_of


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """The augmentation of CIFAR: up to 4 pixels in each direction, and half of the images mirrored."""
    return random_flip(random_shift(images, generator, pixels=4), generator)


AUGMENTATIONS = {"none": None, "shift 2": random_shift, "shift 4, flip": shift_and_flip, "word dropout": word_dropout}
PHOTO_AUGMENTATIONS: dict[str, Callable[[View], Any]] = {
    "none": lambda view: None,
    "part, flip": lambda view: view.augmented((0.08, 1.0)),
    "part, flip, color": lambda view: view.augmented((0.08, 1.0), color=0.4),
}
OPTIMIZERS = {"SGD": None, "Adam": torch.optim.Adam}


def of_torchvision(model: str, num_classes: int, weights: str | None = None, learns: str = "") -> ImageClassifier:
    """A network of torchvision with a new linear classifier; of its backbone, parts called `learns`... learn."""
    found = backbone(f"torchvision/{model}", weights)
    for name, weight in found.module.named_parameters():
        weight.requires_grad_(name.startswith(learns))
    return ImageClassifier(found.module, found.feature_dim, num_classes)


PHOTO_NETWORKS: dict[str, Callable[[int], ImageClassifier]] = {
    "ResNet-18": partial(of_torchvision, "resnet18"),
    "ResNet-50": partial(of_torchvision, "resnet50"),
    "ResNeXt-50": partial(of_torchvision, "resnext50_32x4d"),
    "ResNet-152, last stage": partial(of_torchvision, "resnet152", weights="IMAGENET1K_V1", learns="layer4"),
}
CHOICES = {
    "profile": ("english", "exponential", "step", "in proportion", "as it is"),
    "validation_from": ("set aside", "unused"),
    "network": (*NETWORKS, *TEXT_NETWORKS, *PHOTO_NETWORKS),
    "optimizer": tuple(OPTIMIZERS),
    "schedule": ("cosine", "step"),
    "augment": tuple(AUGMENTATIONS | PHOTO_AUGMENTATIONS),
    "precision": ("auto", "float32", "bfloat16"),
}
USUAL: dict[str, Any] = {"optimizer": "SGD", "features": "none", "shares": None, "validation_from": "set aside"}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named experiment.

    what: one line for `experiments list`. methods: names of `METHODS`. seeds: each one a subset, weights and order of
    its own.

    data: a name that `load_images()` or `load_texts()` knows. profile: "english", "exponential", "step", "in
    proportion" to what the data have, or "as it is". max_count, ratio: of the profile. size: side to which a folder's
    images are scaled, or None.

    validation: images of each class for choices, from data that have no validation split. validation_from: "set aside"
    takes them before the tail is cut, and the counts of classes that then have too few are lowered (CIFAR-10's largest
    from 5,000 to 4,900). "unused" takes them from what the tail leaves, so the training set is the published one; the
    largest class of CIFAR has none left. Then every choice (tau, epochs, temperature, the best method) is made on the
    other classes, and what a choice costs the largest class does not show. With "as it is": a share of each class.

    network: one of `NETWORKS`, or of `TEXT_NETWORKS` for texts. optimizer: "SGD" or "Adam". epochs, batch_size, lr,
    weight_decay: of `fit()`. augment: "none", "shift 2", "shift 4, flip", or "word dropout" for texts. precision:
    "float32", "bfloat16" (autocast), or "auto": bfloat16 on a GPU that has it.

    schedule: "cosine", or "step", which warms up for a share `warmup` and multiplies the learning rate by `factor` at
    `defer_at` and again half-way from there to the end. defer_at: when DRW starts. The defaults are one choice for all
    methods: of six schedules tried on letters, the best on validation typefaces for most methods (seeds 0 and 1).

    features: "none", or the name of a pretrained backbone as `backbones.backbone()` takes it: then pictures of a folder
    are seen as it wants them, and methods are heads on its features (`photographs.with_features()` has the recipe).
    shares: {class: share} of the place where a model of photographs will work, for its own column in the report.

    Images are scaled to -1 .. 1 everywhere. The released LDAM code takes the mean and divides by the standard deviation
    of each channel instead, which for CIFAR is about twice as wide; batch normalization after the first convolution
    makes up for it.
    """

    what: str
    data: str = "letters"
    profile: str = "english"
    max_count: int = 500
    ratio: float = 100
    size: int | None = None
    validation: int = 100
    validation_from: str = "set aside"
    network: str = "SmallCNN"
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    optimizer: str = "SGD"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "step"
    factor: float = 0.1
    warmup: float = 0.25
    defer_at: float = 0.8
    augment: str = "shift 2"
    precision: str = "auto"
    features: str = "none"
    shares: Mapping[str, float] | None = None

    def settings(self) -> dict[str, Any]:
        """What has to be the same in all cells of a comparison: all but methods, seeds and `what`.

        What is as in `USUAL`, from before there was a choice, is not named, so that earlier results stay valid.
        """
        found = {k: v for k, v in asdict(self).items() if k not in ("what", "methods", "seeds")}
        return {k: v for k, v in found.items() if k not in USUAL or v != USUAL[k]}


_CIFAR = Study(
    what="CIFAR-10-LT as published: ratio 100, ResNet-32, 200 epochs",
    data="cifar10",
    profile="exponential",
    max_count=5000,
    validation_from="unused",
    network="ResNet32",
    epochs=200,
    batch_size=128,
    weight_decay=2e-4,
    factor=0.01,
    warmup=0.025,
    augment="shift 4, flip",
    seeds=(0, 1, 2),
)
_FOR_VECTORS = tuple(name for name in METHODS if name != "OLTR memory")  # which reads maps of features
# lr: the best on validation texts for cross-entropy, NCM and logit adjustment, seed 0: of 0.005, 0.01, 0.02 for the
# BiLSTM, of 0.01, 0.02 for the bag of words; 0.04 was tried later and is worse for both, cross-entropy, seed 0
_WEBSTER = Study(
    what="definitions of 1913 by field, a fifth of their own tail, BiLSTM, all methods for vectors",
    data="webster",
    profile="in proportion",
    max_count=1076,
    network="BiLSTM",
    methods=_FOR_VECTORS,
    seeds=(0, 1, 2),
    optimizer="Adam",
    epochs=10,
    lr=0.02,
    weight_decay=0.0,
    schedule="cosine",
    defer_at=0.7,
    augment="word dropout",
)
_SEVEN = ("cross-entropy", "class-balanced sampling", "LDAM", "CE + DRW", "LDAM + DRW", "tau-normalization", "cRT")
STUDIES: dict[str, Study] = {
    "letters": Study(what="letters with the tail of English text, all methods"),
    "fashion": Study(
        what="Fashion-MNIST, exponential tail, ratio 100, all methods",
        data="fashion-mnist",
        profile="exponential",
        max_count=1000,
        epochs=30,
    ),
    "cifar10-lt": _CIFAR,
    "cifar100-lt": replace(
        _CIFAR,
        what="CIFAR-100-LT as published: ratio 100, ResNet-32, 200 epochs",
        data="cifar100",
        max_count=500,
        validation=20,
    ),
    "cifar10-lt-short": replace(
        _CIFAR,
        what="CIFAR-10-LT with a schedule shortened for CPUs, seven methods",
        validation_from="set aside",
        epochs=12,
        factor=0.1,
        warmup=0.1,
        methods=_SEVEN,
    ),
    "webster": _WEBSTER,
    "webster-bag": replace(
        _WEBSTER,
        what="definitions of 1913 by field, a fifth of their own tail, bag of words, all methods for vectors",
        network="bag of words",
        methods=_FOR_VECTORS,
        seeds=(0, 1, 2, 3, 4),
    ),
    "folder": Study(what="a folder of images as it is: run FOLDER", data="folder", profile="as it is", seeds=(0, 1, 2)),
}


# ---- one cell --------------------------------------------------------------------------------------------------------

_ONE_AT_A_TIME = threading.Lock()  # a Dask worker may have threads, and torch has one random generator


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """One thread on a CPU, so that a result does not depend on how many cells run side by side; on a GPU convolutions
    that repeat to the bit.
    """
    threads = torch.get_num_threads()
    with _ONE_AT_A_TIME, torch.backends.cudnn.flags(enabled=True, deterministic=True):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def run_cell(
    settings: dict[str, Any],
    training: str,
    methods: list[str],
    seed: int,
    *,
    source: str | None = None,
    skip_broken: bool = False,
    checkpoint: str | None = None,
    kept: str | None = None,
) -> dict[str, Any]:
    """Train once and measure `methods`, which all start from `training`: what the JSON file of the cell holds.

    kept: a folder for the features of photographs.
    """
    device, best = choose_device()
    options = run_options(settings, best)
    with repeatable():
        check_data(settings, source, skip_broken)
        *parts, note = load_splits(settings, seed, source=source, skip_broken=skip_broken)
        names = parts[0].class_names
        require(len(names) > 1, "data", f"one class alone, {names[0]!r}", "images of two classes at least")
        require(len(parts[2]), "data", "no image for the test", "classes of at least 3 images, or a folder test")
        if "features" in settings:
            train, validation, test = features_of(parts, settings["features"], str(source), skip_broken, kept)
            trained = train_heads(methods, train, validation, seed=seed, checkpoint=checkpoint, **options)
        else:
            train, validation, test = (part.to(device) for part in parts)
            options["network"] = _network(settings["network"], train)
            trained = train_methods(methods, train, validation, seed=seed, checkpoint=checkpoint, **options)
        said = [all_logits(trained, split) for split in (validation, test)]
        rows = {
            name: score(one, train.counts.tolist(), (validation, said[0][name]), (test, said[1][name]))
            for name, one in trained.items()
        }
        more = {}
        if "features" in settings:
            more = beside(rows, parts, said, settings.get("shares"))
    data: dict[str, Any] = {"note": note, "classes": list(train.class_names), "counts": train.counts.tolist()}
    data |= {"validation": len(validation), "fewest": int(validation.counts.min()), "test": len(test)} | more
    cell = {"settings": settings, "training": training, "seed": seed, "data": data, "methods": rows}
    return cell | made_with(device) | {"precision": str(options["precision"]).removeprefix("torch.")}


def _network(name: str, train: Labeled) -> Any:
    """What makes it, as `methods.Setting` takes it: function of the number of classes."""
    if isinstance(train, Photos) and name in PHOTO_NETWORKS:
        return PHOTO_NETWORKS[name]
    known: dict[str, Any] = TEXT_NETWORKS if isinstance(train, LabeledTexts) else NETWORKS
    require(name in known, "network", repr(name), ", ".join(known))
    if isinstance(train, Photos):  # the small networks of the course read photographs too
        return known[name](torch.Size((3, train.view.size, train.view.size)))
    return known[name](len(train.vocabulary) if isinstance(train, LabeledTexts) else train.inputs.shape[1:])


def made_with(device: torch.device) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"versions": versions, "device": device_name(device)}


def device_name(device: torch.device) -> str:
    """ "NVIDIA ..." for a GPU, else the kind of processor, such as "cpu, x86_64"."""
    if device.type == "cpu":
        return f"cpu, {platform.machine()}"
    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else device.type


def run_options(settings: dict[str, Any], best: torch.dtype) -> dict[str, Any]:
    """What `train_methods()` takes, from settings in words."""
    for name in ("defer_at", "warmup"):
        require(0 <= settings[name] <= 1, name, settings[name], "0 to 1, a share of training")
    step = partial(step_schedule, at=settings["defer_at"], factor=settings["factor"], warmup=settings["warmup"])
    words = {
        "network": NETWORKS | TEXT_NETWORKS | ({"head": None} if "features" in settings else {}),
        "optimizer": OPTIMIZERS,
        "augment": AUGMENTATIONS,
        "schedule": {"cosine": cosine_schedule, "step": step},
        "precision": {"auto": best, "float32": torch.float32, "bfloat16": torch.bfloat16},
    }
    if settings["data"] in PUBLISHED:
        look = view_of(settings)
        words["network"] = NETWORKS | PHOTO_NETWORKS
        words["augment"] = {name: augmented(look) for name, augmented in PHOTO_AUGMENTATIONS.items()}
    settings = USUAL | settings
    for name, allowed in words.items():
        require(settings[name] in allowed, name, repr(settings[name]), ", ".join(allowed))
    same = {name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay", "defer_at")}
    return same | {name: words[name][settings[name]] for name in ("augment", "schedule", "precision", "optimizer")}


def score(
    trained: Trained, counts: list[int], validation: tuple[Labeled, Tensor], test: tuple[Labeled, Tensor]
) -> dict[str, Any]:
    """All numbers of one classifier, ready for JSON: accuracies from 0 to 1, None where there is nothing to measure.

    counts: of the training images. validation, test: images and the logits (N, C) that the classifier gives them.
    """
    (chosen_on, chosen_by), (images, logits) = validation, test
    classes = images.num_classes
    per_class = per_class_accuracy(logits.argmax(1), images.labels, classes)
    row = {"groups": shot_accuracy(per_class, counts), "per_class": per_class.tolist()}
    if METHODS[trained.name].probabilities:
        probabilities = logits.softmax(1)
        row["calibration_error"] = calibration_error(probabilities, images.labels)
        if len(chosen_on):
            row["temperature"] = best_temperature(chosen_by, chosen_on.labels)
            scaled = (logits / row["temperature"]).softmax(1)
            row["calibration_error_scaled"] = calibration_error(scaled, images.labels)
        row["reliability"] = reliability_bins(probabilities, images.labels)
    on_validation = per_class_accuracy(chosen_by.argmax(1), chosen_on.labels, classes)
    row |= {"validation": on_validation.nanmean().item(), "validation_per_class": on_validation.tolist()}
    return plain(row | {"chosen": trained.chosen, "cost": trained.cost})
