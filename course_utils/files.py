"""Where images come from: Letters, Fashion-MNIST, CIFAR, or a folder. `course_utils.data.load_images()` calls these.

Every reader returns (images uint8 (N, channels, H, W), labels int64 (N,), class names), on the CPU.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .runtime import require

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


def read_letters(name: str, split: str, roots: list[Path], download: bool) -> Raw:
    splits = ("train", "validation", "test")
    require(split in splits, "split", f"{split!r} for {name!r}", ", ".join(splits))
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
    require(split in ("train", "test"), "split", f"{split!r} for {name!r}", "train, test")
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

    require(split in ("train", "test"), "split", f"{split!r} for {name!r}", "train, test")
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


def read_folder(folder: Path, split: str, size: int | None, skip_broken: bool = False) -> Raw:
    """One split; the size and the number of channels are decided over all splits, so that they fit together."""
    require(size is None or size >= 1, "size", size, "at least 1")
    splits = [f.name for f in _visible(folder) if f.is_dir()] if (folder / "train").is_dir() else ["all"]
    require(split in splits, "split", f"{split!r} for {str(folder)!r}", ", ".join(splits))
    by_split = {name: _files_of(folder, name) for name in splits}
    reference = "train" if "train" in splits else splits[0]
    if odd := sorted(by_split[reference].keys() ^ by_split[split].keys()):
        raise ValueError(f"{folder}: {', '.join(odd)} in only one of train and {split}; allowed: the same classes")
    broken: list[str] = []

    def attempt(read: Callable, path: Path, *options):
        """read(path), or None for a broken picture that is to be skipped."""
        try:
            return read(path, *options)
        except (OSError, SyntaxError) as error:
            if not skip_broken:
                problem = f"{path} is not a readable image: {error} (skip_broken leaves such files out)"
                raise ValueError(problem) from error
            broken.append("/".join(path.parts[-2:]))

    paths = [path for classes in by_split.values() for files in classes.values() for path in files]
    shapes = {path: shape for path in paths if (shape := attempt(_size_of, path))}
    if size is None and len(set(shapes.values())) > 1:
        sides = sorted(min(shape) for shape in shapes.values())
        size = min(max(sides[len(sides) // 2], 16), 64)

    pictures, labels = [], []
    for label, files in enumerate(by_split[split].values()):
        read = [attempt(_read_picture, path, size) for path in files if path in shapes]
        read = [pixels for pixels in read if pixels is not None]
        if not read:
            raise ValueError(f"class {files[0].parent.name!r} of {split} has no readable image")
        pictures += read
        labels += [label] * len(read)
    mine = {path for files in by_split[split].values() for path in files}
    if not any(map(_is_coloured, pictures)) and not any(_file_is_coloured(p) for p in shapes if p not in mine):
        pictures = [p[..., :1] for p in pictures]
    if broken:
        warnings.warn(f"skipped {len(broken)} files that are no readable images: {', '.join(broken)}", stacklevel=3)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return (images, torch.tensor(labels), tuple(by_split[split]))


def _files_of(folder: Path, split: str) -> dict[str, list[Path]]:
    """The image files of each class, sorted."""
    where = folder if split == "all" else folder / split
    classes = [f for f in _visible(where) if f.is_dir()]
    if not classes:
        raise ValueError(f"{where} has no class folders; allowed: one folder of images for each class")
    found = {path.name: [f for f in _visible(path) if f.suffix.lower() in IMAGE_SUFFIXES] for path in classes}
    for name, files in found.items():
        if not files:
            raise ValueError(f"class {name!r} is empty: no {', '.join(IMAGE_SUFFIXES)} file in {where / name}")
    return found


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without the hidden files of Jupyter and macOS."""
    return sorted(f for f in folder.iterdir() if not f.name.startswith("."))


def _size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def _read_picture(path: Path, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8."""
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
    return np.asarray(picture if size is None else picture.resize((size, size), Image.Resampling.BILINEAR))


def _is_coloured(pixels: np.ndarray) -> bool:
    return not (pixels[..., :1] == pixels).all()


def _file_is_coloured(path: Path) -> bool:
    """Whether a file holds colours; a file that says it is grey need not be read for that, a broken one has none."""
    try:
        with Image.open(path) as picture:
            return picture.mode not in ("1", "L", "LA", "I", "F", "I;16") and _is_coloured(_read_picture(path, None))
    except (OSError, SyntaxError):
        return False
