"""Labelled data, where they come from, and how to cut a long tail out of them.

A whole training set of letters fits into memory, so it is one uint8 tensor on the device, and no file is opened
during training. Pictures too large for that are `photos.Photos`, and texts are `texts.LabeledTexts`. `load_images()`
reads Letters (ships with the course), Fashion-MNIST, CIFAR-10, CIFAR-100, or a folder of your own images.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from .machinery.checks import of_classes, whole
from .machinery.files import read_cifar, read_fashion_mnist, read_folder, read_letters, roots_for
from .runtime import digest, located, require, tensor_digest

Some = TypeVar("Some", bound="Labeled")


class Labeled:
    """What all data of this course have in common, whatever an input is: an image, a feature vector, a text, a file.

    labels: int64 (N,), 0 to C - 1, on the device where training happens. class_names: C names.

    A child names its tensor of N inputs in `KIND`, or says itself how `subset()`, `stream()` and the like find them.
    `fit()`, `predict()`, `extract_features()`, the samplers and the methods take every child.
    """

    KIND: ClassVar[str]
    in_memory: ClassVar[bool] = True  # False where a stream opens files
    reading_batch: ClassVar[int] = 512  # how many are read at once where no gradients are needed

    if TYPE_CHECKING:  # fields of each child

        @property
        def labels(self) -> Tensor: ...

        @property
        def class_names(self) -> tuple[str, ...]: ...

    def __post_init__(self):
        inputs, labels = self.inputs, self.labels
        require(labels.shape == inputs.shape[:1], "labels", f"shape {tuple(labels.shape)}", f"({len(inputs)},)")
        where = f"{labels.device} beside {self.KIND} on {inputs.device}"
        require(labels.device == inputs.device, "labels", where, "one device")
        self._check_labels()

    def _check_labels(self) -> None:
        require(self.labels.dtype == torch.int64, "labels", self.labels.dtype, "int64")
        once = len(set(self.class_names)) == self.num_classes
        require(once, "class_names", ", ".join(self.class_names), "every name once")
        class_counts(self.labels, self.num_classes)

    @property
    def inputs(self) -> Tensor:
        return getattr(self, self.KIND)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.inputs.shape[1:]))
        what = f"{len(self)} {self.KIND} of {shape}"
        return f"{type(self).__name__}({what}, {self.num_classes} classes, on {self.device})"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.labels[index]

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def augmentation(self) -> Any:
        """What `fit(augment="usual")` does with them: nothing; images in memory get `random_shift`."""
        return None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def counts(self) -> Tensor:
        """int64 (C,): how many inputs each class has."""
        return class_counts(self.labels, self.num_classes)

    def subset(self: Some, indices: Tensor) -> Some:
        """Those at `indices`, in that order; or those where a bool mask (N,) is True."""
        indices = torch.as_tensor(indices, device=self.labels.device)
        if indices.dtype != torch.bool:  # uint8 would be a mask for torch
            indices = whole("indices", indices if indices.numel() else indices.long(), len(self))
        fits = indices.dtype != torch.bool or indices.shape == self.labels.shape
        require(fits, "indices", f"a mask of shape {tuple(indices.shape)}", f"({len(self)},)")
        return self._with(self._chosen(indices), labels=self.labels[indices])

    def only(self: Some, class_names: Sequence[str]) -> Some:
        """Those of some classes, relabelled 0, 1, ... in the order of `class_names`."""
        unknown = [name for name in class_names if name not in self.class_names]
        some = len(class_names) and not unknown
        require(some, "class_names", unknown or "none", f"some of {', '.join(self.class_names)}")
        new_label = torch.full((self.num_classes,), -1, device=self.labels.device)
        chosen = [self.class_names.index(name) for name in class_names]
        new_label[chosen] = torch.arange(len(chosen), device=self.labels.device)
        labels = new_label[self.labels]
        return self._with(self._chosen(labels >= 0), labels=labels[labels >= 0], class_names=tuple(class_names))

    def to(self: Some, device: torch.device | str) -> Some:
        """The same on another device. Do this once, before training."""
        return self._with(self.inputs.to(device), labels=self.labels.to(device))

    def digest(self) -> str:
        """16 hexadecimal digits of SHA-256 over class names, labels and inputs, the same on every device."""
        return digest(self.class_names, tensor_digest(self.labels), tensor_digest(self.inputs))

    def stream(
        self, parts: Iterable[Tensor], augment: Any = None, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """The inputs of each part, places (B,), on the device of the labels; `augment` as `training.fit()` has it."""
        for part in parts:
            inputs = self._chosen(part)
            yield inputs if augment is None else augment(inputs, generator)

    def _chosen(self, places: Tensor) -> Any:
        return self.inputs[places]

    def _with(self: Some, inputs: Any, **fields) -> Some:
        kept: Any = self
        return replace(kept, **{self.KIND: inputs}, **fields)


@dataclass(frozen=True, repr=False)
class LabeledImages(Labeled):
    """Images in memory and their labels.

    images: uint8 (N, channels, H, W), 0 to 255. labels: int64 (N,), 0 to C - 1, on the same device.
    class_names: C names. A dataset also works with `torch.utils.data.DataLoader`.
    """

    KIND: ClassVar[str] = "images"

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self):
        images = self.images
        pixels = images.ndim == 4 and images.dtype == torch.uint8
        seen = f"{images.dtype} of shape {tuple(images.shape)}"
        require(pixels, "images", seen, "uint8 of shape (N, channels, H, W)")
        super().__post_init__()


@dataclass(frozen=True, repr=False)
class LabeledFeatures(Labeled):
    """Features of a network that stays as it is, computed once, and the labels of their images.

    features: floats (N, D), finite. labels: int64 (N,), 0 to C - 1, on the same device. class_names: C names. With
    `networks.OnlyHead(D)` as the network, every method of the course is a head on them.
    """

    KIND: ClassVar[str] = "features"

    features: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self):
        features = self.features
        seen = f"{features.dtype} of shape {tuple(features.shape)}"
        require(features.ndim == 2 and features.is_floating_point(), "features", seen, "floats of shape (N, D)")
        require(features.isfinite().all(), "features", "NaN or infinity", "finite numbers")
        super().__post_init__()


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Images per class, n_j: int64 (num_classes,).

    Raises:
        ValueError: labels outside 0 .. num_classes - 1, or not whole numbers.
    """
    return torch.bincount(whole("labels", labels, num_classes), minlength=num_classes)


# ---- a long tail cut out of a dataset --------------------------------------------------------------------------------


def long_tailed(dataset: Some, counts: Sequence[int], *, seed: int) -> Some:
    """Keep counts[j] random images of class j.

    The subset depends on `seed` alone, and a smaller count keeps a part of what a larger count keeps.

    Raises:
        ValueError: not one whole count per class, a count below 1, or more than the class has.
    """
    counts = whole("counts", of_classes("counts", counts)).tolist()
    classes = dataset.num_classes
    require(len(counts) == classes, "counts", f"{len(counts)} of them", f"one for each of {classes} classes")
    generator = torch.Generator().manual_seed(seed)
    labels = dataset.labels.cpu()
    kept = []
    for j, (count, name) in enumerate(zip(counts, dataset.class_names, strict=True)):
        mine = (labels == j).nonzero()[:, 0]
        require(1 <= count <= len(mine), "counts", f"{count} images for class {name!r}", f"1 to {len(mine)}")
        kept.append(mine[torch.randperm(len(mine), generator=generator)[:count]])
    return dataset.subset(torch.cat(kept))


def long_tailed_and_unused(dataset: Some, counts: Sequence[int], per_class: int, *, seed: int) -> tuple[Some, Some]:
    """(what `long_tailed()` keeps, up to `per_class` random images of each class that it leaves out).

    For validation where the largest class of a published profile takes all images that there are: the training set is
    whole, and a class has as many validation images as are left of it, maybe none.

    Raises:
        ValueError: per_class below 1, no image left of any class, or as `long_tailed()`.
    """
    require(per_class >= 1, "per_class", per_class, "at least 1")
    kept = long_tailed(dataset, counts, seed=seed).counts.cpu()  # which looks at counts
    most = (kept + per_class).minimum(dataset.counts.cpu())
    require((most > kept).any(), "counts", "all images of every class", "fewer, so that some are left")
    both = long_tailed(dataset, most.tolist(), seed=seed)  # class by class, those of the smaller counts first
    number = torch.arange(len(both)) - (most.cumsum(0) - most).repeat_interleave(most)  # within its class
    first = number < kept.repeat_interleave(most)
    return both.subset(first.nonzero()[:, 0]), both.subset((~first).nonzero()[:, 0])


def hold_out(dataset: Some, share: float, *, seed: int) -> tuple[Some, Some]:
    """Split every class: (the rest, about `share` of each class). For data that come without a validation split.

    At least one image of each class stays in the rest; a rare class may have none held out.
    """
    require(0 < share < 1, "share", share, "above 0 and below 1")
    generator = torch.Generator().manual_seed(seed)
    labels = dataset.labels.cpu()
    held = torch.zeros(len(labels), dtype=torch.bool)
    for j in range(dataset.num_classes):
        mine = (labels == j).nonzero()[:, 0]
        number = min(round(share * len(mine)), len(mine) - 1)
        held[mine[torch.randperm(len(mine), generator=generator)[:number]]] = True
    return dataset.subset((~held).nonzero()[:, 0]), dataset.subset(held.nonzero()[:, 0])


def set_aside(dataset: Some, per_class: int, *, seed: int) -> tuple[Some, Some]:
    """Split off `per_class` random images of every class: (the rest, those). For validation before a tail is cut.

    Raises:
        ValueError: per_class below 1, or a class that would have nothing left.
    """
    fewest = int(dataset.counts.min())
    allowed = f"1 to {fewest - 1}, as the smallest class has {fewest}"
    require(1 <= per_class < fewest, "per_class", per_class, allowed)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    order = order[dataset.labels.cpu()[order].argsort(stable=True)]  # class by class, shuffled within
    counts = dataset.counts.cpu()
    number = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # within its class
    return dataset.subset(order[number >= per_class].sort()[0]), dataset.subset(order[number < per_class].sort()[0])


# ---- where images come from ----------------------------------------------------------------------------------------


def load_images(
    name: str | Path,
    split: str,
    *,
    root: str | Path | None = None,
    download: bool = True,
    size: int | None = None,
    skip_broken: bool = False,
) -> LabeledImages:
    """Read a dataset, on the CPU.

    Args:
        name: "letters" (capitals; the default data of the course), "digits" (the digits of the same typefaces),
            "fashion-mnist", "cifar10", "cifar100", or the path of a folder that holds train/CLASS and test/CLASS, or
            CLASS folders alone. A `Path` is always a folder.
        split: "train" or "test"; "validation" too for letters, digits and folders that have it. The splits of
            letters hold different typefaces. "all" for a folder without splits. A folder's splits may also be called
            training, val, valid or testing, in any case; a warning says which other folders beside them are ignored.
            A folder that looks like a split under another name, such as seg_train, is refused and not read as a class.
        root: where to look first. Then come the folder in the environment variable COURSE_DATA, the project's
            data/ and, for Fashion-MNIST, Debian's package dataset-fashion-mnist.
        download: fetch Fashion-MNIST or CIFAR through torchvision if they are nowhere.
        size: side to which a folder's images are scaled. By default they stay as they are if all splits have one size;
            else all are scaled to squares, whose side is the middle one of the shorter sides, 16 to 64. One channel
            if the images of all splits are grey, else three.
        skip_broken: leave out files of a folder that are no readable images, with a warning that names them.

    A class is every picture in its folder and below it, of every kind that Pillow reads here; a warning counts by
    suffix what is left out. Pictures are turned upright (EXIF), transparent parts lie on white, and an animated file
    gives its first frame. 16 bits keep the upper byte, floating-point grey is from 0 (black) to 1 (white), and grey
    values beyond are refused.

    Raises:
        ValueError: unknown name or split, damaged data, a folder with an empty class or a broken image, or one that
            does not fit into the free memory (said before it is read).
        FileNotFoundError: the data are nowhere and cannot be fetched; the message names the ways to get them.
    """
    readers = {
        "letters": read_letters,
        "digits": read_letters,
        "fashion-mnist": read_fashion_mnist,
        "cifar10": read_cifar,
        "cifar100": read_cifar,
    }
    if isinstance(name, str) and name in readers:
        if Path(name).is_dir():
            warnings.warn(f"{name!r} is read from the course; Path({name!r}) is the folder here", stacklevel=2)
        for option, value in (("size", size), ("skip_broken", skip_broken)):
            require(not value, option, f"{value} with {name!r}", "only with a folder of images")
        return LabeledImages(*readers[name](name, split, roots_for(root), download))
    if located(name).is_dir():
        return LabeledImages(*read_folder(located(name), split, size, skip_broken))
    raise ValueError(f"name: got {str(name)!r}; allowed: {', '.join(readers)}, or the path of a folder of images")


# ---- long-tail profiles: how many images each class gets -------------------------------------------------------------


# Share of each letter in English text, in percent, A to Z (R. Lewand, Cryptological Mathematics, 2000, page 36).
_A_TO_Z = "8.167 1.492 2.782 4.253 12.702 2.228 2.015 6.094 6.966 0.153 0.772 4.025 2.406 "
_A_TO_Z += "6.749 7.507 1.929 0.095 5.987 6.327 9.056 2.758 0.978 2.360 0.150 1.974 0.074"
ENGLISH_PERCENT = tuple(map(float, _A_TO_Z.split()))


def english_letter_counts(max_count: int) -> list[int]:
    """Images for A to Z in proportion to English text; E, the most frequent letter, gets `max_count`.

    n_j = max(1, round(max_count * share_j / share_E)). E is about 170 times as common as Z.
    """
    _check_profile(26, max_count, 1)
    top = max(ENGLISH_PERCENT)
    # n_j = max(1, round(max_count * share_j / share_E))
    return [max(1, round(max_count * percent / top)) for percent in ENGLISH_PERCENT]


def exponential_counts(num_classes: int, max_count: int, ratio: float) -> list[int]:
    """n_j = trunc(max_count * ratio^(-j / (C - 1))): class 0 is the head, class C - 1 the tail.

    `ratio` is the imbalance ratio n_max / n_min, at least 1. The construction of Cao et al. 2019 (LDAM) and Cui et
    al. 2019 (class-balanced loss), whose `imb_factor` is 1 / ratio; truncation is theirs.
    """
    _check_profile(num_classes, max_count, ratio)
    # n_j = n_max ratio^(-j / (C - 1))   (Cao et al. 2019); max(1, ...): 49 * (1 / 49) is just below 1 here
    return [max(1, int(max_count * (1 / ratio) ** (j / max(1, num_classes - 1)))) for j in range(num_classes)]


def step_counts(num_classes: int, max_count: int, ratio: float, minority: float = 0.5) -> list[int]:
    """The first classes have `max_count` images, the last `minority` share of them max_count / ratio.

    Buda et al. 2018; Cao et al. 2019 with minority = 0.5.
    Differs from the released LDAM code in one point: with an odd number of classes that code forgets one class, and
    here it stays with the majority.
    """
    _check_profile(num_classes, max_count, ratio)
    require(0 <= minority <= 1, "minority", minority, "0 to 1")
    rare = int(num_classes * minority + 1e-9)  # 100 * 0.29 is 28.999999999999996
    return [int(max_count)] * (num_classes - rare) + [max(1, int(max_count * (1 / ratio)))] * rare


def _check_profile(num_classes: int, max_count: int, ratio: float) -> None:
    require(num_classes >= 1, "num_classes", num_classes, "at least 1")
    require(ratio >= 1, "ratio", ratio, "at least 1 (it is n_max / n_min)")
    seen = f"{max_count} with ratio {ratio}, so the rarest class would be empty"
    require(ratio <= max_count < math.inf, "max_count", seen, f"at least {ratio}")
