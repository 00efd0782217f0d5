"""Four published data sets of photographs as they lie on disk, with the numbers that were published of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .machinery.files import roots_for
from .machinery.picture_files import Found, class_folders, in_list, listed, pictures_of
from .photos import USUAL, Photos, View
from .runtime import located, require


@dataclass(frozen=True)
class Published:
    """A data set as its authors describe it: what lies where, and what it counts."""

    folder: str
    files: tuple[str, ...]  # its list, or what is as good, with "train", "val" or "test" for {}
    pictures: str
    counts: Mapping[str, tuple[int, int, int, int]]  # of each split: images, classes, most and fewest of a class


PUBLISHED = {
    "tiny-imagenet": Published(
        "tiny-imagenet-200",
        ("wnids.txt",),
        "train/CLASS/images, val/images and val/val_annotations.txt",
        {"train": (100_000, 200, 500, 500), "validation": (10_000, 200, 50, 50)},
    ),
    "imagenet-lt": Published(
        "ImageNet_LT",
        ("ImageNet_LT_{}.txt",),
        "train/CLASS and val/CLASS of ImageNet",
        {"train": (115_846, 1000, 1280, 5), "validation": (20_000, 1000, 20, 20), "test": (50_000, 1000, 50, 50)},
    ),
    "places-lt": Published(
        "Places_LT",
        ("Places_LT_{}.txt",),
        "train/CLASS and val/CLASS of Places365",
        {"train": (62_500, 365, 4980, 5), "validation": (7_300, 365, 20, 20), "test": (36_500, 365, 100, 100)},
    ),
    "inaturalist-2018": Published(
        "iNaturalist18",
        ("iNaturalist18_{}.txt", "{}2018.json"),
        "train_val2018/GROUP/CLASS",
        {"train": (437_513, 8142, 1000, 2), "validation": (24_426, 8142, 3, 3)},
    ),
}


def load_photos(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    view: View = USUAL,
    workers: int = 0,
    published: Mapping[str, Published] = PUBLISHED,
) -> Photos:
    """One split of a published data set that is on your disk, its numbers compared with those that were published.

    Args:
        name: "tiny-imagenet" (not long-tailed: cut a tail with `long_tailed()`), "imagenet-lt", "places-lt" or
            "inaturalist-2018", whose validation images are the test images of the papers.
        split: "train", "validation" or "test"; the labels of the test images of Tiny-ImageNet and iNaturalist were
            not published.
        root: folder of the pictures; the list lies in it, or in the folder that COURSE_DATA names. By default
            pictures and list lie together there, or in a folder of it such as ImageNet_LT.
        published: what to expect of each data set.

    Classes are called as their folders are.

    Raises:
        ValueError: another name or split, a list or numbers that are not as published, a file that is not there.
        FileNotFoundError: the list is nowhere; the message says what belongs where.
    """
    require(name in published, "name", repr(name), ", ".join(published))
    about = published[name]
    require(split in about.counts, "split", f"{split!r} for {name!r}", ", ".join(about.counts))
    files = [file.format({"validation": "val"}.get(split, split)) for file in about.files]
    roots = [place for one in roots_for(root) for place in (one, one / about.folder)]
    file = next((place / file for place in roots for file in files if (place / file).is_file()), None)
    lacking = f"{' or '.join(files)} is in none of {', '.join(map(str, roots))}" if file is None else ""
    if file is not None and name == "tiny-imagenet" and not (file.parent / "train").is_dir():
        lacking = f"no folder train beside {file}"
    if file is None or lacking:
        raise FileNotFoundError(
            f"{name}: {lacking}. Put {' or '.join(files)}, as its authors published it, beside {about.pictures}, and "
            "name that folder by root= or COURSE_DATA"
        )
    pictures = file.parent if root is None else located(root)
    if name == "tiny-imagenet":
        found = _in_tiny_imagenet(file.parent, split)
    elif file.suffix == ".json":
        found = _named_by_folders(_in_json(file, pictures))
    else:
        found = _named_by_folders(in_list(file, pictures))
    photos = Photos.from_found(found, view, workers)
    counts = photos.counts
    got = (len(photos), photos.num_classes, int(counts.max()), int(counts.min()))
    text = "{:,} images, {:,} classes, {:,} down to {:,} images of a class".format
    require(got == about.counts[split], f"{name}, {split}", text(*got), f"as published, {text(*about.counts[split])}")
    return photos


def _named_by_folders(found: Found) -> Found:
    """The same with classes called as the folders of their pictures, if each has one of its own."""
    root, paths, labels, names = found
    folders: dict[int, set[str]] = {label: set() for label in range(len(names))}
    for path, label in zip(paths, labels, strict=True):
        folders[label].add(path.split("/")[-2] if "/" in path else "")
    titles = [title for some in folders.values() for title in some]
    return (root, paths, labels, tuple(titles)) if len(set(titles)) == len(titles) == len(names) else found


def _in_tiny_imagenet(root: Path, split: str) -> Found:
    """train/CLASS/images as they lie; validation by val/val_annotations.txt: lines of file, class, and a box."""
    classes = class_folders(root / "train")
    if split == "train":
        pictures = pictures_of(root / "train")[0].values()
        files = [(path.relative_to(root).as_posix(), label) for label, mine in enumerate(pictures) for path in mine]
        return root, [path for path, _ in files], [label for _, label in files], tuple(classes)
    file, lines = root / "val" / "val_annotations.txt", []
    require(file.is_file(), str(file), "no such file", "the labels of the validation images")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: got no UTF-8 at byte {error.start}; allowed: the file as published") from error
    for number, line in enumerate(text.splitlines(), 1):
        path, *rest = line.split("\t")
        require(rest, f"{file}, line {number}", repr(line[:80]), "file, class and box, with tabs between them")
        lines.append((number, f"val/images/{path}", rest[0]))
    return listed(file, lines, root, list(classes))


def _in_json(file: Path, root: Path) -> Found:
    """What iNaturalist published: images with id and file_name, annotations with image_id and category_id."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        found = [(names[one["image_id"]], str(one["category_id"])) for one in content["annotations"]]
    except (ValueError, KeyError, TypeError) as error:
        allowed = "images with id and file_name, annotations with image_id and category_id"
        raise ValueError(f"{file}: got something else ({type(error).__name__}: {error}); allowed: {allowed}") from error
    odd = [name for name, _ in found if not isinstance(name, str)]
    require(not odd, str(file), lambda: f"file_name {odd[0]!r}", "a path in quotation marks")
    return listed(file, [(k, *pair) for k, pair in enumerate(found, 1)], root, None)
