"""Which pictures a folder or a list of files names, and how one of them becomes upright RGB: one set of rules for all.

`files.read_folder()` reads such pictures into memory, `photos.Photos` one after the other while training runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from ..runtime import require

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}  # what folders are called
SPLITS |= dict.fromkeys(("val", "valid", "validation"), "validation")
NO_HEADER = "lines 'path label' alone; the first line looks like a header: delete it, or begin it with #"
NO_NEWS = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir"}  # made by systems, not by people
NO_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows their names only, or starts a program
HEADER = r"(?i)(image|img|file|photo|picture)?s?[_ ]?(path|name|id)?s?"  # a first column may be called so
TURNS = dict(zip(range(2, 9), (Image.Transpose(t) for t in (0, 3, 1, 5, 4, 6, 2)), strict=True))  # by EXIF orientation


def splits_with(
    folder: Path, split: str, class_names: Sequence[str] | None = None
) -> tuple[dict[str, Path], list[str]]:
    """({split: its folder}, what is doubtful about `split` in words). It has to hold the same classes as train does.

    class_names: those that may be there, instead; not all of them have to be.
    """
    splits = splits_of(folder)
    require(split in splits, "split", f"{split!r} for {str(folder)!r}", ", ".join(sorted(splits)))
    doubts = {name: _check_classes(where) for name, where in splits.items()}
    mine = class_folders(splits[split]).keys()
    if class_names is None:
        odd = sorted(class_folders(splits.get("train", splits[split])).keys() ^ mine)
        seen, allowed = f"in only one of train and {split}", "the same classes"
    else:
        odd, seen, allowed = sorted(mine - set(class_names)), f"in {split}", f"some of {', '.join(class_names)}"
    if odd:
        raise ValueError(f"{folder}: {', '.join(odd)} {seen}; allowed: {allowed}")
    return splits, doubts[split]


def warn_about(folder: Path, splits: dict[str, Path], split: str, notes: list[str]) -> None:
    """Warn of folders beside the splits that are ignored, and of what is worth a note about one of them."""
    ignored = [f.name for f in _visible(folder) if f.is_dir() and f not in splits.values()]
    if ignored and "train" in splits:
        warnings.warn(f"ignored beside {', '.join(splits)}: {', '.join(ignored)}", stacklevel=4)
    if notes:
        warnings.warn(f"{split}: {'; '.join(notes)}", stacklevel=4)


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


def class_folders(where: Path) -> dict[str, Path]:
    """{class: its folder}, sorted. Names are in Unicode's form NFC: systems store an accent as one character or two."""
    found: dict[str, Path] = {}
    for path in _visible(where):
        if path.is_dir():
            name = unicodedata.normalize("NFC", path.name)
            require(name not in found, str(where), f"two folders called {name!r}", "every class once")
            found[name] = path
    return dict(sorted(found.items()))


def pictures_of(where: Path, empty: bool = False) -> tuple[dict[str, list[Path]], list[str]]:
    """({class: its picture files, those in folders below it too}, how many others of each suffix there are, in words).

    empty: whether a class may have no picture.
    """
    found: dict[str, list[Path]] = {}
    suffixes = _readable()[1]
    stray = [path.suffix.lower() for path in _visible(where) if not path.is_dir()]
    left_out = Counter(f"{suffix} in no class folder" for suffix in stray if suffix in suffixes)
    for name, path in class_folders(where).items():
        files = list(_files_below(path))
        found[name] = [f for f in files if f.suffix.lower() in suffixes]
        rest = Counter(f.suffix.lower() or "without suffix" for f in files if f.suffix.lower() not in suffixes)
        if not found[name] and not empty:
            there = ", ".join(f"{n} {suffix}" for suffix, n in rest.items()) or "no file"
            raise ValueError(f"class {name!r} is empty: no picture that can be read here in {path} ({there})")
        left_out += rest
    if not found:
        raise ValueError(f"{where} has no class folders; allowed: one folder of images for each class")
    rest = ", ".join(f"{n} {suffix}" for suffix, n in left_out.most_common())
    return found, [f"left out {rest}"] if rest else []


def pictures_below(folder: Path) -> list[Path]:
    """All pictures that can be read here, in a folder and below it, sorted; there need be no class folders."""
    return [path for path in _files_below(folder) if path.suffix.lower() in _readable()[1]]


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


# ---- which pictures there are: paths, labels, and class names --------------------------------------------------------

Found = tuple[Path, list[str], list[int], tuple[str, ...]]  # a root, paths below it, labels, class names
Line = tuple[int, str, str]  # number, path, label


def in_folder(folder: Path, split: str, class_names: Sequence[str] | None = None) -> Found:
    """The pictures of one split of a folder.

    class_names: of all classes, in the order of the labels, as training has them; then a class may have no picture,
    which a warning says. By default the folders of the split, which are those of train.
    """
    splits, notes = splits_with(folder, split, class_names)
    classes, left_out = pictures_of(splits[split], empty=class_names is not None)
    names = tuple(classes if class_names is None else class_names)
    if lacking := [name for name in names if not classes.get(name)]:
        notes.append(f"no image of {', '.join(lacking)}")
    warn_about(folder, splits, split, notes + left_out)
    found = [(path.relative_to(folder).as_posix(), j) for j, name in enumerate(names) for path in classes.get(name, [])]
    return folder, [path for path, _ in found], [label for _, label in found], names


def in_list(
    file: Path, root: Path | None = None, class_names: Sequence[str] | None = None, skip_missing: bool = False
) -> Found:
    """The pictures that the lines "path label" of a file name; `Photos.from_list()` says what is allowed in it."""
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")  # a path may be any bytes
    except OSError as error:
        raise ValueError(f"{file}: got {error.strerror}; allowed: a file with lines 'path label'") from error
    lines = []
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if line and not line.startswith("#"):
            # up to the last tab if there is one, else up to the last blanks or comma
            parts = re.fullmatch(r"(.*\S)\s*\t\s*(\S.*)" if "\t" in line else r"(.*?[^\s,])[\s,]+([^\s,]+)", line)
            if parts is None or "\0" in line:
                raise ValueError(f"{file}, line {number}: got {line[:80]!r}; allowed: 'path label'")
            lines.append((number, parts[1], parts[2]))
    return listed(file, lines, root, class_names, skip_missing)


def listed(
    file: Path, lines: list[Line], root: Path | None, class_names: Sequence[str] | None, skip_missing: bool = False
) -> Found:
    """What the lines name, each of which is checked."""
    require(lines, str(file), "no line", "lines 'path label'")
    labels, names = _labels(file, lines, class_names)
    paths = [path for _, path, _ in lines]
    if root is None:
        absolute = all(map(os.path.isabs, paths))
        root = Path(os.path.commonpath([os.path.dirname(path) for path in paths])) if absolute else file.parent
    # "./a" and "a" are one file; a ".." stays, as what stands before it may be a link
    paths = [path if ".." in path else os.path.normpath(path) for path in paths]
    paths = [path.removeprefix(f"{root}{os.sep}") for path in paths]
    first: dict[str, int] = {}
    for k, path in enumerate(paths):
        if labels[k] != labels[j := first.setdefault(os.path.normpath(path), k)]:
            seen = f"{path} with label {lines[k][2]}, and with {lines[j][2]} in line {lines[j][0]}"
            require(False, f"{file}, line {lines[k][0]}", seen, "one label for a file")
    notes = [f"{len(paths) - len(first)} lines name a file once more"] if len(first) < len(paths) else []

    if class_names is not None and all(each.isdecimal() for each in (*map(str, names), *(line[2] for line in lines))):
        if list(map(str, names)) != list(map(str, range(len(names)))):
            notes.append("labels are places in class_names, from 0, although those are numbers too")
    there = _exist([os.path.join(root, path) for path in paths])
    if lost := [k for k, here in enumerate(there) if not here]:
        header, quoted = lost[0] == 0 and _like_header(paths[0]), paths[lost[0]].startswith('"')
        what = "no file" if os.path.exists(os.path.join(root, paths[lost[0]])) else "not"
        seen = f"{paths[lost[0]]}, which is {what} in {root}; {len(lost)} of {len(paths)} files are missing"
        ways = "root=FOLDER that has them" + (", or skip_missing=True" if len(lost) < len(paths) else "")
        ways = NO_HEADER if header else "paths without quotation marks" if quoted else ways
        better = _better_root(root, [paths[k] for k in lost[:20]])
        skips = skip_missing and len(lost) < len(paths) and not header
        require(skips, f"{file}, line {lines[lost[0]][0]}", seen + better, ways)
        notes.append(f"skipped {len(lost)} files that are not there, the first of them {paths[lost[0]]}")
        paths = [path for path, here in zip(paths, there, strict=True) if here]
        labels = [label for label, here in zip(labels, there, strict=True) if here]
    used = set(labels)
    if lacking := [name for j, name in enumerate(names) if j not in used]:
        notes.append(f"no image of {', '.join(lacking[:5])}{' ...' if len(lacking) > 5 else ''}")
    if notes:
        warnings.warn(f"{file}: {'; '.join(notes)}", stacklevel=4)
    return root, [path.replace(os.sep, "/") for path in paths], labels, names


def _labels(file: Path, lines: list[Line], class_names: Sequence[str] | None) -> tuple[list[int], tuple[str, ...]]:
    """Whole numbers from 0 or names as int labels, and the class names."""
    numbers = [re.fullmatch(r"-?[0-9]+", label) is not None for _, _, label in lines]
    if not any(numbers):
        names = tuple(class_names or sorted({label for _, _, label in lines}))
        twice = [name for name, n in Counter(names).items() if n > 1]
        require(not twice, "class_names", f"{', '.join(map(repr, twice))} several times", "every name once")
        place = {name: j for j, name in enumerate(names)}
        for number, _, label in lines:
            odd = label not in place or re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?|\".*\"", label)
            ways = "whole numbers from 0, or names of classes, without quotation marks"
            require(not odd, f"{file}, line {number}", f"label {label!r}", ways)
        return [place[label] for _, _, label in lines], names
    if not all(numbers):
        number, path, label = lines[k := numbers.index(False)]
        ways = "numbers everywhere, or names everywhere (what is last in a line is its label)"
        ways = NO_HEADER if k == 0 and _like_header(path) else ways
        require(False, f"{file}, line {number}", f"label {label!r} among numbers", ways)
    labels = [int(label) for _, _, label in lines]
    highest = max(labels) if class_names is None else len(class_names) - 1
    for (number, _, label), value in zip(lines, labels, strict=True):
        ways = f"0 to {highest}" + ("" if class_names is None else ": a whole number is a place in class_names")
        require(0 <= value <= highest, f"{file}, line {number}", f"label {label}", ways)
    if class_names is None:
        found = sorted(set(labels))
        gap = next((j for j, value in enumerate(found) if j != value), None)
        more = "; do they begin with 1?" if gap == 0 else ""
        seen = f"labels up to {highest}, but none is {gap} ({highest + 1 - len(found)} are missing{more})"
        require(gap is None, str(file), seen, "each of 0, 1, 2 ..., or class_names= of all classes")
        class_names = [str(j) for j in found]
    return labels, tuple(class_names)


def _like_header(path: str) -> bool:
    """Whether it is what the first column of a table is called, and no file of pictures."""
    return re.fullmatch(HEADER, path.split(",")[0].strip('"')) is not None


def _exist(paths: Sequence[str]) -> list[bool]:
    """Whether each file is there: one look into every folder, and at a file only if that does not show it."""
    folders: dict[str, set[str]] = {}
    for folder in {os.path.dirname(path) for path in paths}:
        there = os.scandir(folder or ".") if os.path.isdir(folder or ".") else contextlib.nullcontext(())
        with there as entries:
            folders[folder] = {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    return [os.path.basename(path) in folders[os.path.dirname(path)] or os.path.isfile(path) for path in paths]


def _better_root(root: Path, paths: Sequence[str]) -> str:
    """Where the files are if the root is one folder too high or too low, the commonest mistake with published lists."""
    below = [path for path in _visible(root) if path.is_dir()] if root.is_dir() else []
    for place in [root.parent, *below[:1000]]:
        if all((place / path).is_file() for path in paths):
            return f" (they are in {place})"
    return ""


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
        raise ValueError(
            f"{path} is not a readable image: {why} (skip_broken leaves such files out, in a command --skip-broken)"
        ) from error


def head_of(path: Path) -> tuple[tuple[int, int], str]:
    """((width, height) of the upright picture, Pillow's mode), without reading its pixels if possible."""
    with _opened(path) as picture:
        late = picture.format == "PNG" and b"eXIf" in path.read_bytes()  # it may stand behind the pixels
        if late or (picture.format == "TIFF" and _orientation(picture) > 1):
            picture.load()  # Pillow turns a TIFF itself
        width, height = picture.size
        return (width, height) if _orientation(picture) < 5 else (height, width), picture.mode


def read_picture(path: Path, size: int | None = None, shape: tuple[int, int] | None = None) -> np.ndarray:
    """(H, W, 3) uint8 of `upright_picture()`.

    shape: what `head_of()` said; another one is refused unless the picture is scaled to `size`.
    """
    with upright_picture(path) as picture:
        if size is not None:
            picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        elif shape:
            require(picture.size == shape, "size", picture.size, f"{shape}, as its head says")
        return np.asarray(picture)


@contextlib.contextmanager
def upright_picture(path: Path, background: int = 255, least: int | None = None) -> Iterator[Image.Image]:
    """RGB, upright, transparent parts laid on a grey or white background, the first frame of an animated file.

    least: a JPEG may be decoded at a half, a quarter or an eighth of its size, if both sides keep so many pixels.
    """
    with _opened(path) as picture:
        if least is not None and picture.format == "JPEG":
            picture.draft(None, (least, least))
        _scale_transparent_colour(picture)
        picture.load()
        if (orientation := _orientation(picture)) > 1:
            picture = picture.transpose(TURNS[orientation])
        if picture.mode[0] in "IF":
            transparent = picture.info.get("transparency")
            picture = Image.fromarray(_to_8_bits(np.asarray(picture), transparent, background))
        elif picture.has_transparency_data:
            below = Image.new("RGBA", picture.size, (background, background, background, 255))
            picture = Image.alpha_composite(below, picture.convert("RGBA"))
        yield picture.convert("RGB")


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


def _to_8_bits(values: np.ndarray, transparent: int | None, background: int) -> np.ndarray:
    """Grey values of 16 bits, or floating-point ones from 0 to 1, by the same rule in every file: full range to 255.

    16 bits keep their upper byte: that is what Pillow does with 16-bit colours.
    """
    fractions = values.dtype.kind == "f"
    most = 1 if fractions else 65535
    inside = bool(0 <= values.min() and values.max() <= most)  # not so if one is NaN
    require(inside, "grey values", lambda: f"{values.min()} to {values.max()}", f"0 to {most}")
    eight = (np.round(values * 255) if fractions else values >> 8).astype(np.uint8)
    if transparent is not None:
        eight[values == transparent] = background
    return eight
