"""Where images come from: Letters, Fashion-MNIST, CIFAR, or a folder. `course_utils.data.load_images()` calls these.

Every reader returns (images uint8 (N, channels, H, W), labels int64 (N,), class names), on the CPU.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import hashlib
import io
import itertools
import os
import re
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from ..runtime import located, require
from .picture_files import head_of, pictures_of, read_picture, splits_with, warn_about

DATA_FOLDER = Path(__file__).resolve().parents[2] / "data"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes that cannot hold colours
CONTAINER = Path("/sys/fs/cgroup")
CONTAINERS = {  # version of cgroups: the files with the limit, what is used, and what of that is cache
    2: ("memory.max", "memory.current", "memory.stat"),
    1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
}
Raw = tuple[Tensor, Tensor, tuple[str, ...]]


def roots_for(root: str | Path | None) -> list[Path]:
    named = [root, os.environ.get("COURSE_DATA")]
    return [located(r) for r in named if r] + [DATA_FOLDER]


def csv_rows(content: str, path: Path, tabs: bool) -> list[tuple[int, list[str]]]:
    """The number of its first line and the values of each row that is not empty, the header too.

    A text may go on over several lines inside of quotation marks, but not between tabs: there the mark is in most files
    a part of the text, and the rows up to the next mark would be lost.
    """
    header, between = content.partition("\n")[0], "tabs" if tabs else "commas"
    for mark, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        other = name != between and mark in header and ("\t" if tabs else ",") not in header
        require(not other, path.name, f"{name} in its first line", f"{between} (.csv: commas, .tsv: tabs)")
    start, rows = 1, []
    before = csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)  # a text may be long
    try:
        reader = csv.reader(io.StringIO(content, newline=""), delimiter="\t" if tabs else ",", strict=True)
        for row in reader:
            if tabs and reader.line_num > start:
                raise csv.Error("a quotation mark is not closed in its line")
            rows += [(start, row)] if row else []
            start = reader.line_num + 1
    except csv.Error as error:
        way = f"rows of {'tab' if tabs else 'comma'}-separated values"
        way += '; one that begins with " ends with ", and has "" for " inside'
        raise ValueError(f"{path}, line {start}: got {error}; allowed: {way}") from error
    finally:
        csv.field_size_limit(before)
    return rows


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
    expected = (folder / "letters.sha256").read_text(errors="replace").partition(" ")[0].strip()
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is damaged or altered: its SHA-256 is {found[:12]}..., letters.sha256 says {expected[:12]}...; "
            "get it again with `git checkout -- data`"
        )
    try:
        with np.load(path) as file:
            return file["glyphs"], file["split"]
    except Exception as error:  # zipfile, zlib and NumPy have errors of their own
        raise ValueError(f"{path} is damaged ({error}); get it again with `git checkout -- data`") from error


def read_fashion_mnist(name: str, split: str, roots: list[Path], download: bool) -> Raw:
    require(split in ("train", "test"), "split", f"{split!r} for {name!r}", "train, test")
    prefix = "train" if split == "train" else "t10k"
    folders = [f for r in roots for f in (r / "FashionMNIST" / "raw", r)] + [DEBIAN_FASHION_MNIST]
    for _attempt in range(2):
        for folder, suffix in itertools.product(folders, (".gz", "")):
            files = [folder / f"{prefix}-{kind}-ubyte{suffix}" for kind in ("images-idx3", "labels-idx1")]
            if all(f.is_file() for f in files):
                pixels, labels = _read_idx(files[0], 28, 28)[:, None], _read_idx(files[1]).long()
                if len(pixels) != len(labels) or (labels >= len(CLOTHES)).any():
                    problem = f"{len(labels)} labels for {len(pixels)} images, or a label above {len(CLOTHES) - 1}"
                    raise ValueError(f"{files[1]} is damaged ({problem}); delete it, and it is fetched again")
                return (pixels, labels, CLOTHES)
        from torchvision.datasets import FashionMNIST  # here: it takes seconds to import, in every process of a grid

        _download(FashionMNIST, name, roots, download, "install Debian's package dataset-fashion-mnist")
    raise AssertionError("torchvision said that it downloaded Fashion-MNIST, but its files are not there")


def _read_idx(path: Path, *shape: int) -> Tensor:
    """uint8 (n, *shape): what an IDX file holds, packed or not."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
        start = 8 + 4 * len(shape)
        n, *sides = np.frombuffer(content[4:start], ">u4").tolist()
        if content[:4] != bytes([0, 0, 8, 1 + len(shape)]) or sides != list(shape):
            raise ValueError(f"it does not hold bytes of shape {('n', *shape)}")
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(n, *shape).copy())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and it is fetched again") from error


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
    except Exception as error:  # of its own checks, or whatever unpickling comes to
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


# ---- a folder of pictures --------------------------------------------------------------------------------------------


def read_folder(folder: Path, split: str, size: int | None, skip_broken: bool = False) -> Raw:
    """One split; the size and the number of channels are decided over all splits, so that they fit together."""
    require(size is None or size >= 1, "size", size, "at least 1")
    splits, notes = splits_with(folder, split)
    found = {name: pictures_of(where) for name, where in splits.items()}
    classes, left_out = found[split]
    notes += left_out
    broken: list[str] = []

    def attempt(read: Callable, path: Path, *options):
        """read(path), or None for a broken picture that is to be skipped."""
        try:
            return read(path, *options)
        except ValueError:
            if not skip_broken:
                raise
            if path.is_relative_to(splits[split]):  # others are named when their split is read
                broken.append(path.relative_to(splits[split]).as_posix())

    paths = itertools.chain.from_iterable(files for those, _ in found.values() for files in those.values())
    heads = {path: head for path in paths if (head := attempt(head_of, path))}
    shapes = [shape for shape, _mode in heads.values()]
    if size is None and len(set(shapes)) > 1:
        sides = sorted(map(min, shapes))
        size = min(max(sides[len(sides) // 2], 16), 64)
    width, height = (size, size) if size else next(iter(shapes), (0, 0))

    mine = [(path, label) for label, files in enumerate(classes.values()) for path in files if path in heads]
    channels = 1 if all(mode in GREY for _shape, mode in heads.values()) else 3
    images = _room_for(folder, len(mine), channels, height, width)
    labels, coloured, deepest = [], False, []
    for path, label in mine:
        shape, mode = heads[path]
        if (pixels := attempt(read_picture, path, size, shape)) is not None:
            images[len(labels)] = pixels.transpose(2, 0, 1)[:channels]
            labels.append(label)
            coloured = coloured or (channels == 3 and _is_coloured(pixels))
            deepest += [pixels.max()] if mode.startswith("I") else []
    if absent := set(range(len(classes))) - set(labels):
        raise ValueError(f"class {list(classes)[min(absent)]!r} of {split} has no readable image")
    others = [path for path in heads.keys() - dict(mine).keys() if heads[path][1] not in GREY]
    if channels == 3 and not coloured and not any(_file_is_coloured(path, size) for path in others):
        images = images[:, :1].copy()

    if deepest and max(deepest) < 16:
        notes.append("the 16-bit pictures use less than a sixteenth of their range, so they are nearly black")
    if broken:
        notes.append(f"skipped {len(broken)} files that are no readable images: {', '.join(broken)}")
    warn_about(folder, splits, split, notes)
    return (torch.from_numpy(images[: len(labels)]), torch.tensor(labels), tuple(classes))


def free_memory() -> int:
    """Bytes that this process can still take: of the machine, or of its container if that has less."""
    free = psutil.virtual_memory().available
    for names in CONTAINERS.values():
        with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
            limit, used, rest = ((CONTAINER / name).read_text() for name in names)
            cache = re.findall(r"^(?:total_)?inactive_file (\d+)", rest, re.MULTILINE)  # given back when it is needed
            free = min(free, int(limit) - int(used) + int(cache[-1]))
    return free


def _room_for(folder: Path, n: int, channels: int, height: int, width: int) -> np.ndarray:
    """uint8 (n, channels, height, width), refused before any picture is read if it is too large."""
    need, free = n * channels * height * width, free_memory()
    with contextlib.suppress(MemoryError):
        if need <= free:
            return np.empty((n, channels, height, width), np.uint8)
    what = f"{n} pictures of {width} x {height} with {channels} channels, {need / 1e9:.3g} GB in memory"
    raise ValueError(f"{folder}: got {what}; allowed: the {free / 1e9:.3g} GB that are free; size= makes them smaller")


def _is_coloured(pixels: np.ndarray) -> bool:
    return not (pixels[..., :1] == pixels).all()


def _file_is_coloured(path: Path, size: int | None) -> bool:
    """Whether a file holds colours as it is read here; a broken one has none."""
    try:
        return _is_coloured(read_picture(path, size))
    except ValueError:
        return False
