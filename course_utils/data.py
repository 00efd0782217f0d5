"""Labelled images as one uint8 tensor, where they come from, and how to cut a long tail out of them.

A whole training set of this course fits into memory, so it is one tensor on the device and no file is opened
during training. `load_images()` reads Letters (ships with the course), Fashion-MNIST, CIFAR-10, CIFAR-100, or a
folder of your own images.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .profiles import english_letter_counts as english_letter_counts
from .profiles import exponential_counts as exponential_counts
from .profiles import step_counts as step_counts

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


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


# ---- where images come from ----------------------------------------------------------------------------------------


def load_images(
    name: str | Path, split: str, *, root: str | Path | None = None, download: bool = True, size: int | None = None
) -> LabeledImages:
    """Read a dataset, on the CPU.

    Args:
        name: "letters" (capitals; the default data of the course), "digits" (the digits of the same typefaces),
            "fashion-mnist", "cifar10", "cifar100", or the path of a folder that holds train/CLASS/*.png|jpg and
            test/CLASS/*.png|jpg.
        split: "train" or "test"; "validation" too for letters, digits and folders that have it. The splits of
            letters hold different typefaces.
        root: where to look first. Then come the folder in the environment variable COURSE_DATA, the project's
            data/ and, for Fashion-MNIST, Debian's package dataset-fashion-mnist.
        download: fetch Fashion-MNIST or CIFAR through torchvision if they are nowhere.
        size: side to which a folder's images are scaled; by default they must all have one size.

    Raises:
        ValueError: unknown name or split, an altered letters.npz, or a folder with an empty class, a broken image or
            images of several sizes.
        FileNotFoundError: the data are nowhere and cannot be fetched; the message names the ways to get them.
    """
    readers = {"letters": _letters, "digits": _letters, "fashion-mnist": _fashion_mnist, "cifar10": _cifar,
               "cifar100": _cifar}  # fmt: skip
    if str(name) in readers:
        if size is not None:
            raise ValueError(f"size: got {size} with {name!r}; allowed only with a folder of images")
        return readers[str(name)](str(name), split, _roots(root), download)
    if Path(name).is_dir():
        return _image_folder(Path(name), split, size)
    raise ValueError(f"name: got {str(name)!r}; allowed: {', '.join(readers)}, or the path of a folder of images")


def _roots(root: str | Path | None) -> list[Path]:
    named = [root, os.environ.get("COURSE_DATA")]
    return [Path(r) for r in named if r] + [DATA_FOLDER]


def _check_split(split: str, allowed: Sequence[str], name: str | Path) -> None:
    if split not in allowed:
        raise ValueError(f"split: got {split!r} for {str(name)!r}; allowed: {', '.join(allowed)}")


def _letters(name: str, split: str, roots: list[Path], download: bool) -> LabeledImages:
    splits = ("train", "validation", "test")
    _check_split(split, splits, name)
    folder = next((r for r in roots if (r / "letters.npz").is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"letters.npz is not in {', '.join(map(str, roots))}; it ships with the course")
    glyphs, of_split = _read_letters(folder)
    glyphs = torch.from_numpy(glyphs[of_split == splits.index(split)])
    first, names = (0, CAPITALS) if name == "letters" else (len(CAPITALS), DIGITS)
    glyphs = glyphs[:, first : first + len(names)]
    labels = torch.arange(len(names)).repeat(len(glyphs))
    return LabeledImages(glyphs.reshape(-1, 1, *glyphs.shape[2:]), labels, names)


@functools.lru_cache(maxsize=1)
def _read_letters(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(faces, 36, 28, 28) glyphs and the (faces,) split, after comparing the file with its checksum."""
    path = folder / "letters.npz"
    if not (folder / "letters.sha256").is_file():
        raise ValueError(f"{path} has no letters.sha256 beside it; get both again with `git checkout -- data`")
    expected = (folder / "letters.sha256").read_text().split()[0]
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is damaged or altered: its SHA-256 is {found[:12]}..., letters.sha256 says {expected[:12]}...; "
            "get it again with `git checkout -- data`"
        )
    with np.load(path) as file:
        return file["glyphs"], file["split"]


def _fashion_mnist(name: str, split: str, roots: list[Path], download: bool) -> LabeledImages:
    from torchvision.datasets import FashionMNIST

    _check_split(split, ("train", "test"), name)
    prefix = "train" if split == "train" else "t10k"
    folders = [f for r in roots for f in (r / "FashionMNIST" / "raw", r)] + [DEBIAN_FASHION_MNIST]
    for _attempt in range(2):
        for folder, suffix in itertools.product(folders, (".gz", "")):
            files = [folder / f"{prefix}-{kind}-ubyte{suffix}" for kind in ("images-idx3", "labels-idx1")]
            if all(f.is_file() for f in files):
                pixels = torch.from_numpy(_read_idx(files[0], offset=16)).reshape(-1, 1, 28, 28)
                labels = torch.from_numpy(_read_idx(files[1], offset=8)).long()
                return LabeledImages(pixels, labels, tuple(FashionMNIST.classes))
        _download(FashionMNIST, name, roots, download, "install Debian's package dataset-fashion-mnist")
    raise AssertionError("torchvision said that it downloaded Fashion-MNIST, but its files are not there")


def _read_idx(path: Path, offset: int) -> np.ndarray:
    """The bytes after the header of an IDX file, packed or not."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            head, values = file.read(offset), np.frombuffer(file.read(), np.uint8).copy()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is fetched again") from error
    if len(values) != np.prod(np.frombuffer(head[4:], ">u4"), dtype=np.int64):
        raise ValueError(f"{path} is damaged (it is cut off); delete it, and it is fetched again")
    return values


def _cifar(name: str, split: str, roots: list[Path], download: bool) -> LabeledImages:
    from torchvision.datasets import CIFAR10, CIFAR100

    _check_split(split, ("train", "test"), name)
    kind = CIFAR10 if name == "cifar10" else CIFAR100
    for root in roots:
        if (root / kind.base_folder).is_dir():
            break
    else:
        root = _download(kind, name, roots, download, f"unpack its archive so that {kind.base_folder}/ is there")
    try:
        data = kind(root, train=split == "train")
    except (RuntimeError, OSError, EOFError) as error:
        path = root / kind.base_folder
        raise ValueError(f"{path} is incomplete or damaged; delete it, and it is fetched again") from error
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return LabeledImages(images, torch.tensor(data.targets), tuple(data.classes))


def _download(kind: type, name: str, roots: list[Path], download: bool, by_hand: str) -> Path:
    """Fetch through torchvision into the first root, or say which ways there are to get the data."""
    problem = "downloading is switched off (download=False)"
    if download:
        try:
            roots[0].mkdir(parents=True, exist_ok=True)
            kind(roots[0], train=True, download=True)
            return roots[0]
        except (OSError, RuntimeError) as error:
            problem = f"the download into {roots[0]} failed ({error})"
    raise FileNotFoundError(
        f"{name} is not on this machine and {problem}. Three ways to get it: (1) run once with a network and a data "
        f"folder that can be written to; (2) {by_hand}; (3) set COURSE_DATA to a folder that has it. "
        f"Searched: {', '.join(map(str, roots))}"
    )


def _image_folder(folder: Path, split: str, size: int | None) -> LabeledImages:
    if size is not None and size < 1:
        raise ValueError(f"size: got {size}; allowed: at least 1")
    _check_split(split, [f.name for f in _visible(folder) if f.is_dir()], folder)
    classes = [f for f in _visible(folder / split) if f.is_dir()]
    if not classes:
        raise ValueError(f"{folder / split} has no class folders; allowed: one folder of images for each class")
    if (folder / "train").is_dir():
        known = {f.name for f in _visible(folder / "train") if f.is_dir()}
        odd = sorted(known ^ {f.name for f in classes})
        if odd:
            raise ValueError(f"{folder}: {', '.join(odd)} in only one of train and {split}; allowed: the same classes")
    pictures, labels = [], []
    for label, path in enumerate(classes):
        files = [f for f in _visible(path) if f.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise ValueError(f"class {path.name!r} is empty: no {', '.join(IMAGE_SUFFIXES)} file in {path}")
        pictures += [_read_picture(f, size) for f in files]
        labels += [label] * len(files)
        if pictures[-len(files)].shape != pictures[0].shape or len({p.shape for p in pictures[-len(files) :]}) > 1:
            sizes = sorted({f"{p.shape[1]}x{p.shape[0]}" for p in pictures})
            raise ValueError(f"{path} brings images of another size ({', '.join(sizes)}); allowed: one size, or size=")
    if all((p[..., :1] == p).all() for p in pictures):  # grey pictures: one channel is enough
        pictures = [p[..., :1] for p in pictures]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return LabeledImages(images, torch.tensor(labels), tuple(c.name for c in classes))


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without the hidden files of Jupyter and macOS."""
    return sorted(f for f in folder.iterdir() if not f.name.startswith("."))


def _read_picture(path: Path, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8."""
    try:
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error
    return np.asarray(picture if size is None else picture.resize((size, size), Image.Resampling.BILINEAR))
