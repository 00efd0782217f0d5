"""Where images come from: Letters, Fashion-MNIST, CIFAR, or a folder. `course_utils.data.load_images()` calls these.

Every reader returns (images uint8 (N, channels, H, W), labels int64 (N,), class names), on the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import itertools
import os
import re
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import ExifTags, Image, PngImagePlugin
from torch import Tensor

from .runtime import located, require

DATA_FOLDER = Path(__file__).resolve().parents[1] / "data"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # what folders are called
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "validation")
NO_NEWS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}  # made by systems, not by people
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows their names only, or starts a program
GREY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes that cannot hold colours
CONTAINER = Path("/sys/fs/cgroup")
CONTAINERS = {  # version of cgroups: the files with the limit, what is used, and what of that is cache
    2: ("memory.max", "memory.current", "memory.stat"),
    1: ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
}
TURNS = dict(zip(range(2, 9), (Image.Transpose(t) for t in (0, 3, 1, 5, 4, 6, 2)), strict=True))  # by EXIF orientation
Raw = tuple[Tensor, Tensor, tuple[str, ...]]


def roots_for(root: str | Path | None) -> list[Path]:
    named = [root, os.environ.get("COURSE_DATA")]
    return [located(r) for r in named if r] + [DATA_FOLDER]


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
    splits = splits_of(folder)
    require(split in splits, "split", f"{split!r} for {str(folder)!r}", ", ".join(sorted(splits)))
    doubts = {name: _check_classes(where) for name, where in splits.items()}
    found = {name: pictures_of(where) for name, where in splits.items()}
    classes, left_out = found[split]
    if odd := sorted(found.get("train", found[split])[0].keys() ^ classes.keys()):
        raise ValueError(f"{folder}: {', '.join(odd)} in only one of train and {split}; allowed: the same classes")
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
    heads = {path: head for path in paths if (head := attempt(_head, path))}
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
        if (pixels := attempt(_read_picture, path, size, shape)) is not None:
            images[len(labels)] = pixels.transpose(2, 0, 1)[:channels]
            labels.append(label)
            coloured = coloured or (channels == 3 and _is_coloured(pixels))
            deepest += [pixels.max()] if mode.startswith("I") else []
    if absent := set(range(len(classes))) - set(labels):
        raise ValueError(f"class {list(classes)[min(absent)]!r} of {split} has no readable image")
    others = [path for path in heads.keys() - dict(mine).keys() if heads[path][1] not in GREY]
    if channels == 3 and not coloured and not any(_file_is_coloured(path, size) for path in others):
        images = images[:, :1].copy()

    rest = ", ".join(f"{n} {suffix}" for suffix, n in left_out.most_common())
    notes = doubts[split] + ([f"left out {rest}"] if rest else [])
    if deepest and max(deepest) < 16:
        notes.append("the 16-bit pictures use less than a sixteenth of their range, so they are nearly black")
    if broken:
        notes.append(f"skipped {len(broken)} files that are no readable images: {', '.join(broken)}")
    ignored = [f.name for f in _visible(folder) if f.is_dir() and f not in splits.values()]
    if ignored and "train" in splits:
        warnings.warn(f"ignored beside {', '.join(splits)}: {', '.join(ignored)}", stacklevel=3)
    if notes:
        warnings.warn(f"{split}: {'; '.join(notes)}", stacklevel=3)
    return (torch.from_numpy(images[: len(labels)]), torch.tensor(labels), tuple(classes))


def splits_of(folder: Path) -> dict[str, Path]:
    """{"train": its folder, ...} by their usual names in any case, or {"all": folder} where classes stand alone.

    Without class folders in `train`, that is a class among others. Folders such as seg_train or test_images, and splits
    without train, are refused: read as classes they would give results that look right.
    """
    found: dict[str, Path] = {}
    folders = [path for path in _visible(folder) if path.is_dir()]
    for path in folders:
        if split := SPLITS.get(path.name.casefold()):
            both = f"{found.setdefault(split, path).name} and {path.name}"
            require(found[split] is path, str(folder), both, f"one folder for {split}")
    if "train" in found and any(f.is_dir() for f in _visible(found["train"])):
        return found
    if odd := _like_splits(folders):
        wrong = len(odd) == len(folders) or any(map(_only_folders, folders if found else odd))
        inner = _innermost(max(odd, key=lambda f: "train" in f.name.lower()))
        ways = f"train/CLASS and test/CLASS (rename them), or class folders alone, as in {inner}"
        require(not wrong, str(folder), f"{_names(folders)}, but no train that holds class folders", ways)
    return {"all": folder}


def _like_splits(folders: list[Path]) -> list[Path]:
    """Those with a word in their names that stands for a split: seg_train, testA, "Validation set", train2017."""
    like = rf"(?<![a-z])({'|'.join(SPLITS)})(set|val|data)?(?![a-z])"
    return [f for f in folders if re.search(like, re.sub("([a-z])([A-Z])", r"\1 \2", f.name).lower())]


def _only_folders(path: Path) -> list[Path]:
    """The folders in a folder that has no picture beside them; if it has one, none."""
    inside = _visible(path)
    pictures = any(f.suffix.lower() in _readable()[1] and not f.is_dir() for f in inside)
    return [] if pictures else [f for f in inside if f.is_dir()]


def _innermost(path: Path) -> Path:
    """Further down while a folder holds one folder and no picture, as archives unpack into a/a/CLASS."""
    for _ in range(4):
        path = only[0] if len(only := _only_folders(path)) == 1 else path
    return path


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:5]) + (" ..." if len(paths) > 5 else "")


def _check_classes(where: Path) -> list[str]:
    """Refuse folders that cannot be classes; what is doubtful about others, in words."""
    below = {path: _only_folders(path) for path in _visible(where) if path.is_dir()}
    (first, inner), *others = below.items() or [(where, [])]
    got = f"one folder, {first.name}, and folders in it: {_names(inner)}"
    require(others or not inner, str(where), got, f"one folder for each class; are they in {_innermost(first)}?")
    for path, folders in below.items():
        splits = [f for f in folders if f.name.casefold() in SPLITS]
        got = f"splits below a class: {_names(splits)} in {path.name}"
        require(len(splits) < 2, str(where), got, "classes below a split: train/CLASS and test/CLASS")
    same = all([f.name for f in folders] == [f.name for f in inner] for folders in below.values())
    if others and len(inner) > 1 and same:
        return [f"{_names(list(below))} are read as classes, although each holds the same folders: {_names(inner)}"]
    odd = _like_splits(list(below))
    return [f"read as classes and not as splits: {_names(odd)}"] if odd else []


def pictures_of(where: Path) -> tuple[dict[str, list[Path]], Counter[str]]:
    """({class: its picture files, those in folders below it too}, how many files of each suffix are left out).

    Names of classes are in Unicode's normal form NFC, because systems store an accent as one character or as two.
    """
    found: dict[str, list[Path]] = {}
    left_out: Counter[str] = Counter()
    suffixes = _readable()[1]
    for path in _visible(where):
        if not path.is_dir():
            left_out.update([f"{path.suffix.lower()} in no class folder"] if path.suffix.lower() in suffixes else [])
            continue
        name = unicodedata.normalize("NFC", path.name)
        require(name not in found, str(where), f"two folders called {name!r}", "every class once")
        files = list(_files_below(path))
        found[name] = [f for f in files if f.suffix.lower() in suffixes]
        rest = Counter(f.suffix.lower() or "without suffix" for f in files if f.suffix.lower() not in suffixes)
        if not found[name]:
            there = ", ".join(f"{n} {suffix}" for suffix, n in rest.items()) or "no file"
            raise ValueError(f"class {name!r} is empty: no picture that can be read here in {path} ({there})")
        left_out += rest
    if not found:
        raise ValueError(f"{where} has no class folders; allowed: one folder of images for each class")
    return dict(sorted(found.items())), left_out


def _files_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files in a folder and below it, sorted; a link back to a folder that it lies in is not followed."""
    above = (*above, folder.resolve())
    for path in _visible(folder):
        if not path.is_dir():
            yield path
        elif path.resolve() not in above:
            yield from _files_below(path, above)


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without what Jupyter and systems put there."""
    return sorted(f for f in folder.iterdir() if not f.name.startswith(".") and f.name.casefold() not in NO_NEWS)


@functools.cache
def _readable() -> tuple[list[str], set[str]]:
    """(formats, suffixes) of the pictures that Pillow can read here."""
    Image.preinit()  # the usual formats, which are tried first
    suffixes = Image.registered_extensions()  # loads the others
    formats = [name for name in Image.ID if name in Image.OPEN and name not in NO_PICTURES]
    return formats, {suffix for suffix, name in suffixes.items() if name in (*formats, "MPO")}  # MPO: opened as JPEG


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


# ---- one picture -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture file; whatever goes wrong with it becomes a ValueError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_readable()[0]) as picture:
                yield picture
    except Exception as error:  # OSError, SyntaxError, struct.error, MemoryError, ...: a format may raise anything
        why = str(error) or type(error).__name__
        raise ValueError(f"{path} is not a readable image: {why} (skip_broken leaves such files out)") from error


def _head(path: Path) -> tuple[tuple[int, int], str]:
    """((width, height) of the upright picture, Pillow's mode), without reading its pixels if possible."""
    with _opened(path) as picture:
        late = picture.format == "PNG" and b"eXIf" in path.read_bytes()  # it may stand behind the pixels
        if late or (picture.format == "TIFF" and _orientation(picture) > 1):
            picture.load()  # Pillow turns a TIFF itself
        width, height = picture.size
        return (width, height) if _orientation(picture) < 5 else (height, width), picture.mode


def _read_picture(path: Path, size: int | None = None, shape: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W, 3) uint8: upright, transparent parts laid on white, the first frame of an animated file.

    shape: what `_head()` said; another one is refused unless the picture is scaled to `size`.
    """
    with _opened(path) as picture:
        _scale_transparent_colour(picture)
        picture.load()
        if (orientation := _orientation(picture)) > 1:
            picture = picture.transpose(TURNS[orientation])
        if picture.mode[0] in "IF":
            picture = Image.fromarray(_to_8_bits(np.asarray(picture), picture.info.get("transparency")))
        elif picture.has_transparency_data:
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture.convert("RGBA"))
        picture = picture.convert("RGB")
        if size is not None:
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        elif shape:
            require(picture.size == shape, "size", picture.size, f"{shape}, as its head says")
        return np.asarray(picture)


def _orientation(picture: Image.Image) -> int:
    """1 to 8 of EXIF; 1, as it is stored, where there is none or the EXIF data are damaged."""
    try:  # not picture.getexif(): for a PNG that would read the pixels
        value = Image.Image.getexif(picture).get(ExifTags.Base.Orientation)
        return value if value in TURNS else 1
    except Exception:
        return 1


def _scale_transparent_colour(picture: Image.Image) -> None:
    """A PNG names its transparent colour in its own depth; Pillow compares that with pixels of 8 bits."""
    colour = picture.info.get("transparency")
    if isinstance(picture, PngImagePlugin.PngImageFile) and picture.tile and colour is not None:
        depth = picture.tile[0][3]
        step = {"1": 255, "L;2": 85, "L;4": 17}.get(depth, 1)
        if step > 1 and colour <= 255 // step:  # else this Pillow has done it
            picture.info["transparency"] = colour * step
        elif depth == "RGB;16B" and max(colour) > 255:
            picture.info["transparency"] = tuple(value >> 8 for value in colour)


def _to_8_bits(values: np.ndarray, transparent: int | None) -> np.ndarray:
    """Grey values of 16 bits, or floating-point ones from 0 to 1, by the same rule in every file: full range to 255.

    16 bits keep their upper byte: that is what Pillow does with 16-bit colours.
    """
    fractions = values.dtype.kind == "f"
    most = 1 if fractions else 65535
    inside = bool(0 <= values.min() and values.max() <= most)  # not so if one is NaN
    require(inside, "grey values", lambda: f"{values.min()} to {values.max()}", f"0 to {most}")
    eight = (np.round(values * 255) if fractions else values >> 8).astype(np.uint8)
    if transparent is not None:
        eight[values == transparent] = 255
    return eight


def _is_coloured(pixels: np.ndarray) -> bool:
    return not (pixels[..., :1] == pixels).all()


def _file_is_coloured(path: Path, size: int | None) -> bool:
    """Whether a file holds colours as it is read here; a broken one has none."""
    try:
        return _is_coloured(_read_picture(path, size))
    except ValueError:
        return False
