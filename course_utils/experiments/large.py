"""Studies of the four published data sets of photographs, which stay on disk: `LARGE`, by name like all others.

The folder that COURSE_DATA names holds the lists and the pictures as their authors published them
(`photo_sets.load_photos()`); number of images and classes, largest and smallest class are compared with those that
were published. Pictures stream from disk into every training; on a GPU, other processes read them.

Who wants to compare with published numbers reads here what is the same and what is not:

- imagenet-lt, inaturalist-2018: network, batch, learning rate, weight decay, epochs and cosine schedule of stage 1 of
  Kang et al. 2020, as their released configurations have them. Their rate belongs to their batch: scale both together.
- places-lt: that work gives no configuration of stage 1. It starts from ImageNet weights and trains the last block and
  the classifier, for 30 or 90 epochs. Here: torchvision's weights, all of the last of the four stages, 30 epochs.
- tiny-imagenet-lt: Cao et al. 2019 released no settings for it. Here: theirs for CIFAR, and a ResNet-18 at 64 pixels.
- DRW starts at 0.8 of training everywhere, which is a choice of this course. LDAM's largest margin is 0.5 everywhere;
  its authors advise 0.3 for iNaturalist.
- cRT, LWS, NCM and tau-normalization read features that are computed once, without augmentation. The released code
  shows new random parts of the images to cRT and LWS, and goes on changing the statistics of batch normalization.
- Released code reports the best epoch on validation images, which for iNaturalist and Tiny-ImageNet are the test
  images. Here the last epoch counts, and of these images a part is for choices (`FOR_CHOICES`), the rest is the test.
- Pictures are scaled bicubically, and a random part is 8 to 100 % of a picture.

Not supported, and refused by name: OLTR memory, whose attention needs a map of features that torchvision's networks do
not hand out. There is no ResNet-10, the network of OLTR's tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import joblib
import torch

from ..backbones import backbone
from ..data import Labeled, hold_out, long_tailed
from ..machinery.files import roots_for
from ..methods import METHODS
from ..networks import NETWORKS, ImageClassifier
from ..photo_sets import PUBLISHED, load_photos
from ..photos import Photos, View
from ..runtime import choose_device, require
from .studies import STUDIES, Study, profile_counts

EXPECTED = PUBLISHED  # what the data are compared with
FOR_CHOICES = {"tiny-imagenet": 1 / 5, "inaturalist-2018": 1 / 3}  # of each class's validation images; the rest: test
IMAGENET = View(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # as the released code, and ImageNet weights
VIEWS = {
    "tiny-imagenet": replace(IMAGENET, size=64, share=1.0),
    "inaturalist-2018": replace(IMAGENET, mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192)),
}


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
PHOTO_AUGMENTATIONS: dict[str, Callable[[View], Any]] = {
    "none": lambda view: None,
    "part, flip": lambda view: view.augmented((0.08, 1.0)),
    "part, flip, color": lambda view: view.augmented((0.08, 1.0), color=0.4),
}

_METHODS = tuple(name for name in METHODS if name != "OLTR memory")
_KANG = Study(
    what="ImageNet-LT, ResNeXt-50 from scratch, 90 epochs, as Kang et al. 2020",
    data="imagenet-lt",
    profile="as it is",
    size=224,
    network="ResNeXt-50",
    methods=_METHODS,
    seeds=(0, 1, 2),
    epochs=90,
    batch_size=512,
    lr=0.2,
    weight_decay=5e-4,
    schedule="cosine",
    augment="part, flip, color",
)
LARGE: dict[str, Study] = {
    "tiny-imagenet-lt": replace(
        STUDIES["cifar10-lt"],
        what="Tiny-ImageNet cut to ratio 100, ResNet-18 from scratch, 200 epochs; no published protocol",
        data="tiny-imagenet",
        max_count=500,
        validation_from="set aside",
        size=64,
        network="ResNet-18",
        methods=_METHODS,
        augment="part, flip",
    ),
    "imagenet-lt": _KANG,
    "places-lt": replace(
        _KANG,
        what="Places-LT, last stage of a ResNet-152 with ImageNet weights, 30 epochs, close to Kang et al. 2020",
        data="places-lt",
        network="ResNet-152, last stage",
        epochs=30,
        batch_size=256,
        lr=0.1,
    ),
    "inaturalist-2018": replace(
        _KANG,
        what="iNaturalist 2018, ResNet-50 from scratch, 90 epochs, as Kang et al. 2020",
        data="inaturalist-2018",
        network="ResNet-50",
        weight_decay=1e-4,
        augment="part, flip",
    ),
}


# ---- data ------------------------------------------------------------------------------------------------------------


def missing(name: str) -> str | None:
    """What belongs where, if the training list of a data set is nowhere; else None."""
    about = PUBLISHED[name]
    files = [file.format("train") for file in about.files]
    roots = [place for root in roots_for(None) for place in (root, root / about.folder)]
    if any((place / file).is_file() for place in roots for file in files):
        return None
    splits = {"train": "train", "validation": "val", "test": "test"}
    named = [dict.fromkeys(file.format(splits[split]) for split in about.counts) for file in about.files]
    lists = " or ".join(map(", ".join, named))
    return f"put {lists} as published, and {about.pictures}, into the folder {about.folder} of COURSE_DATA"


def large_splits(settings: Mapping[str, Any], seed: int) -> tuple[Labeled, Labeled, Labeled, str]:
    """As `studies.load_splits()`, of the data set settings["data"].

    Raises:
        FileNotFoundError: it is not here; the message says what belongs where.
        ValueError: its numbers are not those that were published, or its splits have different classes.
    """
    name = settings["data"]
    if way := missing(name):
        raise FileNotFoundError(f"{name} is not here: {way}")
    # on a GPU reading takes longer than computing
    workers = 0 if choose_device()[0].type == "cpu" else min(8, joblib.cpu_count() // 2)
    how: dict[str, Any] = {"view": view_of(settings), "workers": workers, "published": EXPECTED}
    parts = {split: load_photos(name, split, **how) for split in EXPECTED[name].counts}
    train, validation, note = parts["train"], parts["validation"], name
    for split, part in parts.items():
        same = part.class_names == train.class_names
        require(same, f"{name}, {split}", "other classes than train", "the same, with the same labels")
    if "test" in parts:
        test = parts["test"]
    else:
        test, validation = hold_out(validation, FOR_CHOICES[name], seed=seed)
        all_of, chosen = (int(part.counts.max()) for part in (parts["validation"], validation))
        note = f"{name}, of whose {all_of} validation images a class {chosen} for choices, {all_of - chosen} the test"
    if counts := profile_counts(settings, train):
        train = long_tailed(train, counts, seed=seed)
    return train, validation, test, note


def view_of(settings: Mapping[str, Any]) -> View:
    view = VIEWS.get(settings["data"], IMAGENET)
    return view if settings["size"] is None else replace(view, size=settings["size"])


# ---- training --------------------------------------------------------------------------------------------------------


def check_large(study: Study) -> None:
    """Refuse what these studies cannot do, before anything is read."""
    for name in study.methods:
        allowed = "all others; its attention needs a map of features, which torchvision's networks do not hand out"
        require(name != "OLTR memory", "methods", repr(name), allowed)


def words_for(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What settings in words mean for photographs, as `studies.run_options()` takes it."""
    augmentations = {name: make(view_of(settings)) for name, make in PHOTO_AUGMENTATIONS.items()}
    return {"network": NETWORKS | PHOTO_NETWORKS, "augment": augmentations}


def network_for(name: str, photos: Photos) -> Callable[[int], Any]:
    """Function of the number of classes; the small networks of the course read photographs too."""
    if name in PHOTO_NETWORKS:
        return PHOTO_NETWORKS[name]
    return NETWORKS[name](torch.Size((3, photos.view.size, photos.view.size)))
