"""Three folders of pictures that others made, as one finds them: the data of `data/results/photographs`.

stamps: pictures that children put into drawings, most of them photographs without background, from Debian's package
    tuxpaint-stamps-default; a class for each kind of thing, animals, food and plants by their sort. No cartoons, no
    letters, no signs, none twice; classes of 8 pictures or more.
icons: the drawings of 128 pixels of Debian's package oxygen-icon-theme, by what they are for.
cifar: photographs of 32 pixels, the first ones of each class of a folder with train/CLASS and test/CLASS.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default*.deb unpacked
    python -m benchmarks photograph-folders stamps unpacked stamps
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

SPLIT_FURTHER = ("animals", "food", "plants")
NO_THINGS = ("cartoon", "symbols", "signs", "flags")
LEAST = 8
OF_EACH = {"train": 120, "test": 40}


def stamps(unpacked: Path) -> Iterator[tuple[Path, Path]]:
    """(a picture, where it belongs)"""
    root = unpacked / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*.png")):
        parts = path.relative_to(root).parts
        thing = not any(word in part for part in parts[:-1] for word in NO_THINGS)
        if thing and not path.stem.endswith("_mirror"):
            name = parts[1] if parts[0] in SPLIT_FURTHER and len(parts) > 2 else parts[0]
            yield path, Path(name) / "-".join(parts[1:])


def icons(unpacked: Path) -> Iterator[tuple[Path, Path]]:
    root = unpacked / "usr/share/icons/oxygen/base/128x128"
    for path in sorted(root.rglob("*.png")):
        if not path.is_symlink():
            yield path, Path(path.parent.name) / path.name


def cifar(folder: Path) -> Iterator[tuple[Path, Path]]:
    for split, number in OF_EACH.items():
        for place in sorted((folder / split).iterdir()):
            for path in sorted(place.iterdir())[:number]:
                yield path, Path(split) / place.name / path.name


def build(which: str, source: Path, out: Path) -> str:
    """Links to the pictures, or copies where there are no links; classes with too few are left out."""
    found = list({"stamps": stamps, "icons": icons, "cifar": cifar}[which](source))
    sizes: dict[Path, int] = {}
    for _, place in found:
        sizes[place.parent] = sizes.get(place.parent, 0) + 1
    kept = [(path, out / place) for path, place in found if sizes[place.parent] >= LEAST]
    for path, place in kept:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copyfile(path, place)
    return f"{len(kept)} pictures in {len({place.parent for _, place in kept})} folders below {out}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks photograph-folders",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("which", choices=("stamps", "icons", "cifar"))
    parser.add_argument("source", type=Path, help="where a package is unpacked, or a folder with CIFAR-10")
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    options = parser.parse_args(arguments)
    if options.out.exists():
        parser.error(f"{options.out} is there already")
    print(build(options.which, options.source, options.out))
    return 0
