"""Where images come from: Letters, Fashion-MNIST, CIFAR, or a folder. `course_utils.data.load_images()` calls these.

Every reader returns (images uint8 (N, channels, H, W), labels int64 (N,), class names), on the CPU.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
Raw = tuple[Tensor, Tensor, tuple[str, ...]]


def roots_for(root: str | Path | None) -> list[Path]:
    named = [root, os.environ.get("COURSE_DATA")]
    return [Path(r) for r in named if r] + [DATA_FOLDER]


def _check_split(split: str, allowed: Sequence[str], name: str | Path) -> None:
    if split not in allowed:
        raise ValueError(f"split: got {split!r} for {str(name)!r}; allowed: {', '.join(allowed)}")


def read_letters(name: str, split: str, roots: list[Path], download: bool) -> Raw:
    splits = ("train", "validation", "test")
    _check_split(split, splits, name)
    folder = next((r for r in roots if (r / "letters.npz").is_file()), None)
    if folder is None:
        raise FileNotFoundError(f"letters.npz is not in {', '.join(map(str, roots))}; it ships with the course")
    glyphs, of_split = _checked_letters(folder)
    glyphs = torch.from_numpy(glyphs[of_split == splits.index(split)])
    first, names = (0, CAPITALS) if name == "letters" else (len(CAPITALS), DIGITS)
    glyphs = glyphs[:, first : first + len(names)]
    labels = torch.arange(len(names)).repeat(len(glyphs))
    return (glyphs.reshape(-1, 1, *glyphs.shape[2:]), labels, names)


@functools.lru_cache(maxsize=1)
def _checked_letters(folder: Path) -> tuple[np.ndarray, np.ndarray]:
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


def read_fashion_mnist(name: str, split: str, roots: list[Path], download: bool) -> Raw:
    _check_split(split, ("train", "test"), name)
    prefix = "train" if split == "train" else "t10k"
    folders = [f for r in roots for f in (r / "FashionMNIST" / "raw", r)] + [DEBIAN_FASHION_MNIST]
    for _attempt in range(2):
        for folder, suffix in itertools.product(folders, (".gz", "")):
            files = [folder / f"{prefix}-{kind}-ubyte{suffix}" for kind in ("images-idx3", "labels-idx1")]
            if all(f.is_file() for f in files):
                pixels = torch.from_numpy(_read_idx(files[0], offset=16)).reshape(-1, 1, 28, 28)
                labels = torch.from_numpy(_read_idx(files[1], offset=8)).long()
                return (pixels, labels, CLOTHES)
        from torchvision.datasets import FashionMNIST  # here: it takes seconds to import, in every process of a grid

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


def read_cifar(name: str, split: str, roots: list[Path], download: bool) -> Raw:
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
    return (images, torch.tensor(data.targets), tuple(data.classes))


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


def read_folder(folder: Path, split: str, size: int | None) -> Raw:
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
    return (images, torch.tensor(labels), tuple(c.name for c in classes))


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
