"""Build "clip art": about 700 drawings in 18 classes with a natural tail, as a folder of PNG files of up to 224 pixels.

    python data/build_clipart.py fetch FOLDER      # download and unpack Debian's openclipart-png; nothing is installed
    python data/build_clipart.py build FOLDER      # the pictures named in clipart.csv -> clipart/, clipart.sha256
    python data/build_clipart.py features          # clipart_features/, of a frozen EfficientNet-Lite0
    python data/build_clipart.py sheet             # clipart_sheet.png
    python data/build_clipart.py datasheet         # the generated parts of README.md

`clipart.csv` is the choice that people made: class, source and SHA-256 of every picture. All else follows from it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

from build_letters import read_table, write_atomically
from PIL import Image, ImageChops, ImageDraw, ImageFont
from PIL import __version__ as pillow_version
from PIL import features as pillow_features

HERE = Path(__file__).resolve().parent
PACKAGE, FOLDER = "openclipart-png", "usr/share/openclipart/png"
SPLITS = ("train", "validation", "test")
TEST, VALIDATION = 10, 5  # pictures of every class; the others are for training
SIDE, COLOURS, MOST_PIXELS = 224, 128, 4_000_000
BLANK = 12  # grey steps below white that still count as empty paper


class SourceChanged(RuntimeError):
    """A picture of the package is missing, too large, or not the one that was chosen."""


def fetch(folder: Path) -> None:
    """Download the package into `folder` and unpack it there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.glob(f"{PACKAGE}_*.deb"))):
        subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, check=True)
        found = sorted(folder.glob(f"{PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", found[-1], folder], check=True)


def plan() -> list[dict[str, str]]:
    """The rows of clipart.csv with `split` and `file`: in each class, the order of SHA-256 of the sources deals them.

    The first 10 are for the test, the next 5 for validation, all others for training.
    """
    rows = sorted(read_table(HERE / "clipart.csv"), key=lambda row: (row["class"], _sha256(row["source"].encode())))
    place: Counter[str] = Counter()
    for row in rows:
        k, name = place[row["class"]], row["class"]
        row["split"] = "test" if k < TEST else "validation" if k < TEST + VALIDATION else "train"
        row["file"] = f"{row['split']}/{name}/{name}_{k:03d}.png"
        place[name] += 1
    return rows


def build(folder: Path, target: Path = HERE) -> None:
    """Draw every picture of clipart.csv again and write `target`/clipart and clipart.sha256."""
    lines = []
    for row in plan():
        content = draw(folder / FOLDER / row["source"], row["sha256"])
        path = target / "clipart" / row["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
        lines.append(f"{_sha256(content)}  {row['file']}\n")
    wanted = {line.split()[1] for line in lines}
    for path in (target / "clipart").glob("*/*/*.png"):  # of an earlier choice
        if path.relative_to(target / "clipart").as_posix() not in wanted:
            path.unlink()
    listed = "".join(f"{row['file']} {row['class']}\n" for row in plan())
    write_atomically(target / "clipart" / "pictures.txt", listed.encode())
    lines.append(f"{_sha256(listed.encode())}  pictures.txt\n")
    write_atomically(target / "clipart.sha256", "".join(lines).encode())
    print(f"{len(lines) - 1} pictures; clipart.sha256 has the SHA-256 {_sha256(''.join(lines).encode())}")


def draw(path: Path, digest: str) -> bytes:
    """One picture on white, cropped to what is drawn, its longer side at most 224 pixels, as PNG of 128 colours."""
    if not path.is_file() or (found := _sha256(path.read_bytes())) != digest:
        seen = "is missing" if not path.is_file() else f"has the SHA-256 {found}, and clipart.csv says {digest}"
        raise SourceChanged(f"{path} {seen}: run 'fetch', or this is another version of {PACKAGE}")
    with Image.open(path) as image:  # reads the header only: one picture of the package has 623 million pixels
        if image.width * image.height > MOST_PIXELS:
            raise SourceChanged(f"{path} has {image.width} x {image.height} pixels; allowed: {MOST_PIXELS:,} in all")
        layer = image.convert("RGBA")
    paper = Image.new("RGBA", layer.size, "white")
    paper.alpha_composite(layer)
    picture = paper.convert("RGB")
    ink = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).convert("L")
    box = ink.point(lambda grey: 255 * (grey > BLANK)).getbbox()
    if box is None:
        raise SourceChanged(f"{path} is blank")
    picture = picture.crop(box)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # never enlarges
    file = BytesIO()
    few = picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return file.getvalue()


def features() -> None:
    """clipart_features/: 1,280 features of every picture, in half precision. Needs the extra [photographs]."""
    import torch

    from course_utils.backbones import backbone, cached_features
    from course_utils.photos import Photos, View

    photos = Photos.from_list(HERE / "clipart" / "pictures.txt", view=View(fit="pad"))
    found = cached_features(backbone(), photos, HERE / "clipart_features", dtype=torch.float16)
    unit = torch.nn.functional.normalize(found.features, dim=1)
    split = torch.tensor([SPLITS.index(row["split"]) for row in plan()])
    alike = (unit @ unit.T).where(split[:, None] != split, -1)
    i, j = divmod(int(alike.argmax()), len(unit))
    print(f"most alike in two splits: {photos.path(i)} and {photos.path(j)}, cosine {alike[i, j]:.3f}")


def sheet(columns: int = 14, side: int = 44) -> None:
    """clipart_sheet.png: the first pictures of every class, from the largest class to the smallest."""
    plans = plan()
    size = Counter(row["class"] for row in plans)
    label, names = 108, [name for name, _ in size.most_common()]
    image = Image.new("RGB", (label + columns * (side + 4), len(names) * (side + 4)), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11)
    for line, name in enumerate(names):
        pen.text((4, line * (side + 4) + side // 3), f"{name} {size[name]}", fill="black", font=font)
        rows = [row for row in plans if row["class"] == name][::-1][:columns]
        for column, row in enumerate(rows):
            picture = Image.open(HERE / "clipart" / row["file"]).convert("RGB")
            picture.thumbnail((side, side), Image.Resampling.LANCZOS)
            image.paste(picture, (label + column * (side + 4), line * (side + 4) + 2))
    image.quantize(128).save(HERE / "clipart_sheet.png", optimize=True)


def datasheet() -> None:
    """Write the counts into README.md between its marks."""
    folders = HERE / "clipart", HERE / "clipart_features"
    rows, total = plan(), sum(f.stat().st_size for where in folders for f in where.rglob("*.*"))
    count = Counter((row["class"], row["split"]) for row in rows)
    lines = ["| class | " + " | ".join(SPLITS) + " |", "| --- | --- | --- | --- |"]
    for name, _ in Counter(row["class"] for row in rows).most_common():
        lines.append(f"| {name} | " + " | ".join(str(count[name, split]) for split in SPLITS) + " |")
    lines.append("| all | " + " | ".join(str(sum(row["split"] == split for row in rows)) for split in SPLITS) + " |")
    digest = _sha256((HERE / "clipart.sha256").read_bytes())
    lines.append(
        f"\n{len(rows)} pictures, with their features {total / 2**20:.1f} MiB. `clipart.sha256` has the SHA-256"
    )
    lines.append(f"`{digest}`, made with Pillow {pillow_version} (zlib {pillow_features.version('zlib')}).")
    text = (HERE / "README.md").read_text(encoding="utf-8")
    mark = r"(<!-- clip art: generated -->\n\n).*?(\n\n<!-- end clip art -->)"
    new = re.sub(mark, lambda m: m[1] + "\n".join(lines) + m[2], text, flags=re.DOTALL)
    write_atomically(HERE / "README.md", new.encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for run in (fetch, build):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.add_argument("folder", type=Path, metavar="FOLDER")
        command.set_defaults(run=lambda options, run=run: run(options.folder))
    for run in (features, sheet, datasheet):
        commands.add_parser(run.__name__, help=run.__doc__).set_defaults(run=lambda options, run=run: run())
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except SourceChanged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
