"""Labelled images as one uint8 tensor, where they come from, and how to cut a long tail out of them.

A whole training set of this course fits into memory, so it is one tensor on the device and no file is opened
during training. `load_images()` reads Letters (ships with the course), Fashion-MNIST, CIFAR-10, CIFAR-100, or a
folder of your own images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .profiles import english_letter_counts as english_letter_counts
from .profiles import exponential_counts as exponential_counts
from .profiles import step_counts as step_counts
from .sources import read_cifar, read_fashion_mnist, read_folder, read_letters, roots_for


@dataclass(frozen=True)
class LabeledImages:
    """Images and their labels.

    images: uint8 (N, channels, H, W), 0 to 255. labels: int64 (N,), 0 to C - 1, on the same device.
    class_names: C names. A dataset also works with `torch.utils.data.DataLoader`.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self):
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"images: got {self.images.dtype} of shape {tuple(self.images.shape)}; "
                "allowed: uint8 of shape (N, channels, H, W)"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels: got shape {tuple(self.labels.shape)}; allowed: ({len(self.images)},)")
        if self.labels.device != self.images.device:
            raise ValueError(f"labels: on {self.labels.device}, images on {self.images.device}; allowed: one device")
        if self.labels.dtype != torch.int64:
            raise ValueError(f"labels: got {self.labels.dtype}; allowed: int64")
        if len(set(self.class_names)) < self.num_classes:
            raise ValueError(f"class_names: got {', '.join(self.class_names)}; allowed: every name once")
        class_counts(self.labels, self.num_classes)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.images.shape[1:]))
        return f"LabeledImages({len(self)} images of {shape}, {self.num_classes} classes, on {self.labels.device})"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def counts(self) -> Tensor:
        """int64 (C,): how many images each class has."""
        return class_counts(self.labels, self.num_classes)

    def subset(self, indices: Tensor) -> LabeledImages:
        """The images at `indices`, in that order."""
        indices = torch.as_tensor(indices, device=self.labels.device)
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def only(self, class_names: Sequence[str]) -> LabeledImages:
        """The images of some classes, relabelled 0, 1, ... in the order of `class_names`."""
        unknown = [name for name in class_names if name not in self.class_names]
        if unknown or not len(class_names):
            raise ValueError(f"class_names: got {unknown or 'none'}; allowed: some of {', '.join(self.class_names)}")
        new_label = torch.full((self.num_classes,), -1, device=self.labels.device)
        new_label[[self.class_names.index(name) for name in class_names]] = torch.arange(
            len(class_names), device=self.labels.device
        )
        labels = new_label[self.labels]
        return LabeledImages(self.images[labels >= 0], labels[labels >= 0], tuple(class_names))

    def to(self, device: torch.device | str) -> LabeledImages:
        """The same on another device. Do this once, before training."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Images per class, n_j: int64 (num_classes,).

    Raises:
        ValueError: labels outside 0 .. num_classes - 1, or not whole numbers.
    """
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.ndim != 1:
        raise ValueError(f"labels: got {labels.dtype} of shape {tuple(labels.shape)}; allowed: integers of shape (N,)")
    if len(labels) and not (0 <= labels.min() and labels.max() < num_classes):
        raise ValueError(f"labels: got {labels.min()} to {labels.max()}; allowed: 0 to {num_classes - 1}")
    return torch.bincount(labels, minlength=num_classes)


# ---- a long tail cut out of a dataset --------------------------------------------------------------------------------


def long_tailed(dataset: LabeledImages, counts: Sequence[int], *, seed: int) -> LabeledImages:
    """Keep counts[j] random images of class j.

    The subset depends on `seed` alone, and a smaller count keeps a part of what a larger count keeps.

    Raises:
        ValueError: not one count per class, a count below 1, or more than the class has.
    """
    counts = [int(c) for c in counts]
    if len(counts) != dataset.num_classes:
        raise ValueError(f"counts: got {len(counts)} of them; allowed: one for each of {dataset.num_classes} classes")
    generator = torch.Generator().manual_seed(seed)
    labels = dataset.labels.cpu()
    kept = []
    for j, (count, name) in enumerate(zip(counts, dataset.class_names, strict=True)):
        mine = (labels == j).nonzero()[:, 0]
        if not 1 <= count <= len(mine):
            raise ValueError(f"counts: {count} images asked for class {name!r}; allowed: 1 to {len(mine)}")
        kept.append(mine[torch.randperm(len(mine), generator=generator)[:count]])
    return dataset.subset(torch.cat(kept))


def hold_out(dataset: LabeledImages, share: float, *, seed: int) -> tuple[LabeledImages, LabeledImages]:
    """Split every class: (the rest, about `share` of each class). For data that come without a validation split.

    At least one image of each class stays in the rest; a rare class may have none held out.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: got {share}; allowed: above 0 and below 1")
    generator = torch.Generator().manual_seed(seed)
    labels = dataset.labels.cpu()
    held = torch.zeros(len(labels), dtype=torch.bool)
    for j in range(dataset.num_classes):
        mine = (labels == j).nonzero()[:, 0]
        number = min(round(share * len(mine)), len(mine) - 1)
        held[mine[torch.randperm(len(mine), generator=generator)[:number]]] = True
    return dataset.subset((~held).nonzero()[:, 0]), dataset.subset(held.nonzero()[:, 0])


def set_aside(dataset: LabeledImages, per_class: int, *, seed: int) -> tuple[LabeledImages, LabeledImages]:
    """Split off `per_class` random images of every class: (the rest, those). For validation before a tail is cut.

    Raises:
        ValueError: per_class below 1, or a class that would have nothing left.
    """
    fewest = int(dataset.counts.min())
    if not 1 <= per_class < fewest:
        raise ValueError(f"per_class: got {per_class}; allowed: 1 to {fewest - 1}, as the smallest class has {fewest}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    order = order[dataset.labels.cpu()[order].argsort(stable=True)]  # class by class, shuffled within
    counts = dataset.counts.cpu()
    number = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # within its class
    return dataset.subset(order[number >= per_class].sort()[0]), dataset.subset(order[number < per_class].sort()[0])


# ---- where images come from ----------------------------------------------------------------------------------------


def load_images(
    name: str | Path, split: str, *, root: str | Path | None = None, download: bool = True, size: int | None = None,
    skip_broken: bool = False,
) -> LabeledImages:  # fmt: skip
    """Read a dataset, on the CPU.

    Args:
        name: "letters" (capitals; the default data of the course), "digits" (the digits of the same typefaces),
            "fashion-mnist", "cifar10", "cifar100", or the path of a folder that holds train/CLASS/*.png|jpg and
            test/CLASS/*.png|jpg, or CLASS/*.png|jpg without splits.
        split: "train" or "test"; "validation" too for letters, digits and folders that have it. The splits of
            letters hold different typefaces. "all" for a folder without splits.
        root: where to look first. Then come the folder in the environment variable COURSE_DATA, the project's
            data/ and, for Fashion-MNIST, Debian's package dataset-fashion-mnist.
        download: fetch Fashion-MNIST or CIFAR through torchvision if they are nowhere.
        size: side to which a folder's images are scaled. By default they stay as they are if all splits have one size;
            else all are scaled to squares, whose side is the middle one of the shorter sides, 16 to 64. One channel
            if the images of all splits are grey, else three.
        skip_broken: leave out files of a folder that are no readable images, with a warning that names them.

    Raises:
        ValueError: unknown name or split, an altered letters.npz, or a folder with an empty class or a broken image.
        FileNotFoundError: the data are nowhere and cannot be fetched; the message names the ways to get them.
    """
    readers = {"letters": read_letters, "digits": read_letters, "fashion-mnist": read_fashion_mnist,
               "cifar10": read_cifar, "cifar100": read_cifar}  # fmt: skip
    if str(name) in readers:
        for option, value in (("size", size), ("skip_broken", skip_broken)):
            if value:
                raise ValueError(f"{option}: got {value} with {name!r}; allowed only with a folder of images")
        return LabeledImages(*readers[str(name)](str(name), split, roots_for(root), download))
    if Path(name).is_dir():
        return LabeledImages(*read_folder(Path(name), split, size, skip_broken))
    raise ValueError(f"name: got {str(name)!r}; allowed: {', '.join(readers)}, or the path of a folder of images")
