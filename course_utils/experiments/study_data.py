"""Which data a study has, and how they are cut: training with its long tail, validation, test, and what names them.

They are data that ship or lie on the disk under a name, a folder of pictures, or one of the four published sets of
photographs, whose lists and pictures lie in the folder that COURSE_DATA names as their authors published them.
`load_splits()` gives the parts of a study; `files_of()` and `images_of()` say in one line which data these are.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib

from ..data import (
    Labeled,
    english_letter_counts,
    exponential_counts,
    hold_out,
    load_images,
    long_tailed,
    long_tailed_and_unused,
    set_aside,
    step_counts,
)
from ..machinery.files import roots_for
from ..machinery.picture_files import pictures_of, splits_of
from ..photo_sets import PUBLISHED, load_photos
from ..photos import Photos, View
from ..runtime import choose_device, digest, located, require
from ..texts import LabeledTexts, known_words, load_texts
from .cells import differences
from .photo_cells import loaded, read_photos

FOLDER_TEST, FOLDER_VALIDATION = 0.25, 0.2  # of a folder without these splits
TEXTS = ("webster", "imdb")  # data of `load_texts()`
WITH_VALIDATION = ("letters", "digits", "webster")
EXACT = {"bmp", "pgm", "png", "pnm", "ppm", "tif", "tiff"}  # kinds of files that keep every pixel
FOR_CHOICES = {"tiny-imagenet": 1 / 5, "inaturalist-2018": 1 / 3}  # of each class's validation images; the rest: test
IMAGENET = View(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # as the released code, and ImageNet weights
VIEWS = {
    "tiny-imagenet": replace(IMAGENET, size=64, share=1.0),
    "inaturalist-2018": replace(IMAGENET, mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192)),
}

# ---- the parts of a study --------------------------------------------------------------------------------------------


def load_splits(
    settings: Mapping[str, Any], seed: int, *, source: str | None = None, skip_broken: bool = False
) -> tuple[Labeled, Labeled, Labeled, str]:
    """(train with its long tail, validation, test, a note that says where the images come from), on the CPU.

    source: a folder of images instead of settings["data"]. It holds train/CLASS and test/CLASS, maybe validation/CLASS,
    under the names that `load_images()` knows; or CLASS folders alone, and then a quarter of each class is the test.
    Where there is no validation split, a fifth of each training class is held out if the profile is "as it is". Both
    are rounded, and one image at least stays in training: a class of 2 images or fewer has none for choices. Such a
    class does not count in them.

    Raises:
        FileNotFoundError: published photographs are not here; the message says what belongs where.
        ValueError: their numbers are not those that were published, or their splits have different classes; a folder
            that cannot be read, or settings that these data cannot have.
    """
    name, folder = settings["data"], None if source is None else located(source)
    if name in PUBLISHED:
        require(folder is None, "data", repr(source), f"no folder: COURSE_DATA names the one with {name}")
        parts, notes = _read_published(settings), []
    else:
        parts, notes = _read_parts(settings, folder, source, skip_broken)
    train: Any = parts.get("train")
    validation: Any = parts.get("validation")
    test: Any = parts.get("test")
    note = _note(name, folder)
    if "all" in parts:
        train, test = hold_out(parts["all"], FOLDER_TEST, seed=seed)
    elif test is None:
        test, validation = hold_out(validation, FOR_CHOICES[name], seed=seed)
        of_all, chosen = (int(part.counts.max()) for part in (parts["validation"], validation))
        note += f", of whose {of_all} validation images a class {chosen} for choices, {of_all - chosen} the test"
    if validation is None and settings["profile"] == "as it is":
        train, validation = hold_out(train, FOLDER_VALIDATION, seed=seed + 1)
    elif validation is None and settings.get("validation_from") != "unused":  # those are cut with the tail
        most, fewest = int(train.counts.min()) - 1, train.class_names[int(train.counts.argmin())]
        allowed = (
            f"1 to {most}, as {fewest!r} has {most + 1} images" if most > 0 else "only with more images of each class"
        )
        ways = "; --profile 'as it is' and a folder called validation set none aside" if folder else ""
        require(1 <= settings["validation"] <= most, "validation", settings["validation"], allowed + ways)
        train, validation = set_aside(train, settings["validation"], seed=seed)
    if wanted := profile_counts(settings, train):
        counts = [min(pair) for pair in zip(wanted, train.counts.tolist(), strict=True)]
        asked, have = (max(some) / min(some) for some in (wanted, counts))
        if abs(have / asked - 1) > 0.05:  # 2 % for CIFAR, whose largest class has lost those set aside
            fewer = sum(map(operator.lt, counts, wanted))
            notes.append(f"{fewer} classes have fewer images than asked for: ratio {have:.4g} instead of {asked:.4g}")
        if validation is None:
            train, validation = long_tailed_and_unused(train, counts, settings["validation"], seed=seed)
        else:
            train = long_tailed(train, counts, seed=seed)
        if isinstance(train, LabeledTexts):  # words of texts that were cut away are not known
            train, validation, test = known_words(train, validation, test)
    return train, validation, test, "; ".join([note, *dict.fromkeys(notes)])


def _read_parts(
    settings: Mapping[str, Any], folder: Path | None, source: str | None, skip_broken: bool
) -> tuple[dict[str, Any], list[str]]:
    """{split: what a folder or data with a name have of it, or "all" of it}, and what the reader warned of."""
    name, features, notes = settings["data"], settings.get("features", "none"), []
    if folder is not None:
        require(folder.is_dir(), "data", f"{source!r}, which is not here", "a folder of images")
        _forget_before(_stamp(folder))
    if folder is None and name == "folder":
        raise ValueError("data: the study of a folder needs one: experiments run FOLDER")
    require(folder or features == "none", "features", repr(features), "only with a folder of pictures")
    splits = {} if folder is None else splits_of(folder)
    wanted = ["all"] if "all" in splits else ["train", "test"]
    if "validation" in splits or (folder is None and name in WITH_VALIDATION):
        wanted.append("validation")
    parts = {}
    for split in wanted:
        parts[split], said = _read(name if folder is None else folder, split, settings["size"], skip_broken, features)
        notes.extend(said)
    return parts, notes


@functools.lru_cache(maxsize=4)  # cells of one process read the same files
def _read(
    name: str | Path, split: str, size: int | None, skip_broken: bool, features: str
) -> tuple[Labeled, tuple[str, ...]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not isinstance(name, Path):
            data: Labeled = load_texts(name, split) if name in TEXTS else load_images(name, split)
        elif features == "none":
            data = load_images(name, split, size=size, skip_broken=skip_broken)
        else:
            data = read_photos(name, split, features, skip_broken)
    said = [str(w.message) for w in caught]
    return data, tuple(text for text in said if text.startswith((f"{split}: ", "ignored beside ", "skipped ")))


def profile_counts(settings: Mapping[str, Any], train: Labeled) -> list[int] | None:
    """What the profile asks for, whether there are so many images or not; None: all there are."""
    profile = settings["profile"]
    if profile == "as it is":
        return None
    most = settings["max_count"]
    make = {
        "english": lambda: english_letter_counts(most),
        "exponential": lambda: exponential_counts(train.num_classes, most, settings["ratio"]),
        "step": lambda: step_counts(train.num_classes, most, settings["ratio"]),
        # n_j = max(1, round(n_max N_j / N_max)), N_j what class j has
        "in proportion": lambda: [max(1, round(most * n / int(train.counts.max()))) for n in train.counts.tolist()],
    }
    require(profile in make, "profile", repr(profile), ", ".join([*make, "as it is"]))
    ok = profile != "english" or train.num_classes == 26
    require(ok, "profile", f"english for {train.num_classes} classes", "26, the letters from A to Z")
    return make[profile]()


def has_validation(folder: Path) -> bool:
    return folder.is_dir() and "validation" in splits_of(folder)  # it may be on the workers of a cluster alone


@functools.lru_cache(maxsize=4)
def _note(data: str, folder: Path | None) -> str:
    if folder is None:
        return data
    kinds = Counter(path.suffix.lower().lstrip(".") for path in _files(folder))
    files = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    if data == "folder":
        return f"image folder {folder.resolve().name} ({files})"
    encoded = "JPEG re-encoding" if kinds["jpg"] + kinds["jpeg"] else "copy" if kinds.keys() <= EXACT else "re-encoding"
    return f"{encoded} of {data}, from an image folder ({files}); not the published pixels"


# ---- photographs as they were published ------------------------------------------------------------------------------


def _read_published(settings: Mapping[str, Any]) -> dict[str, Any]:
    name = settings["data"]
    if way := missing(name):
        raise FileNotFoundError(f"{name} is not here: {way}")
    # on a GPU reading takes longer than computing
    workers = 0 if choose_device()[0].type == "cpu" else min(8, joblib.cpu_count() // 2)
    how: dict[str, Any] = {"view": view_of(settings), "workers": workers, "published": PUBLISHED}
    parts = {split: load_photos(name, split, **how) for split in PUBLISHED[name].counts}
    for split, part in parts.items():
        same = part.class_names == parts["train"].class_names
        require(same, f"{name}, {split}", "other classes than train", "the same, with the same labels")
    return parts


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


def view_of(settings: Mapping[str, Any]) -> View:
    view = VIEWS.get(settings["data"], IMAGENET)
    return view if settings["size"] is None else replace(view, size=settings["size"])


# ---- which data these are --------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """Every picture that `read_folder()` would open, in one order everywhere."""
    splits = splits_of(folder).values() if folder.is_dir() else ()
    found = [path for where in splits for files in pictures_of(where)[0].values() for path in files]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _stamp(folder: Path) -> str:
    """Changes whenever something below the folder does; quick, but not the same for a copy."""
    found: list[tuple] = []
    for where, _, names in os.walk(folder, followlinks=True):
        for path in (os.path.join(where, name) for name in names):
            with contextlib.suppress(OSError):  # a link to nothing
                state = os.stat(path)
                found.append((path, state.st_size, state.st_mtime_ns))
    return digest(sorted(found))


@functools.lru_cache(maxsize=1)
def _forget_before(stamp: str) -> None:
    """A process that lives long must not go on with what it read from a folder before it changed."""
    _read.cache_clear()
    _note.cache_clear()


def files_of(source: str) -> str:
    """The files of a folder as one line: number, bytes, and a digest of their names and contents."""
    folder = located(source)
    require(folder.is_dir(), "data", repr(source), "a folder of images")
    return _files_of(folder, _stamp(folder))


@functools.lru_cache(maxsize=4)
def _files_of(folder: Path, _stamp: str) -> str:
    files = []
    for path in _files(folder):
        raw = b""
        with contextlib.suppress(OSError):  # its reader names it, or leaves it out
            raw = path.read_bytes()
        files.append((path.relative_to(folder).as_posix(), len(raw), digest(raw)))
    return f"{len(files)} files, {sum(size for _, size, _ in files)} bytes, {digest(files)}"


def images_of(settings: dict[str, Any], source: str | None = None, skip_broken: bool = False) -> dict[str, str]:
    """{split: its images as one line: number, shape, classes, and a digest of names, labels and pixels}, all as read,
    before a tail is cut.
    """
    stamp, features = None if source is None else _stamp(located(source)), settings.get("features", "none")
    return dict(_images_of(settings["data"], settings["size"], source, skip_broken, stamp, features))


@functools.lru_cache(maxsize=4)
def _images_of(
    data: str, size: int | None, source: str | None, skip: bool, _stamp: str | None, features: str
) -> dict[str, str]:
    whole = {"data": data, "size": size, "profile": "as it is", "features": features}
    *parts, _ = load_splits(whole, 0, source=source, skip_broken=skip)
    found = {name: _in_one_line(part) for name, part in zip(("train", "validation", "test"), parts, strict=True)}
    return found if features == "none" else found | {"backbone": f"{features} {loaded(features).fingerprint}"}


def _in_one_line(part: Labeled) -> str:
    shape = " x ".join(map(str, part.inputs.shape[1:]))
    what = "photographs" if isinstance(part, Photos) else f"{part.KIND} of {shape}"
    return f"{len(part)} {what}, {part.num_classes} classes, {part.digest()}"


def check_data(settings: dict[str, Any], source: str | None = None, skip_broken: bool = False) -> None:
    """Refuse to train on other data than those of the study: this may be another process, at another time, elsewhere.

    Raises:
        ValueError: what is different of "files" and "images" in `settings`, where they are there.
    """
    now: dict[str, Any] = {}
    if "files" in settings and source is not None:
        now["files"] = files_of(source)
    if "images" in settings:
        now["images"] = images_of(settings, source, skip_broken)
    if odd := differences({name: settings[name] for name in now}, now):
        raise ValueError(f"data: the study was made with other images: {odd}; use another folder (--out)")
