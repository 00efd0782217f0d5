"""Letters, step 4: the contact sheet, the generated parts of README.md and FONTS.md, and the readability check."""

from __future__ import annotations

import re
import textwrap
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from letters_fonts import CHARACTERS, SIDE
from PIL import Image, ImageDraw, ImageFont, features
from PIL import __version__ as pillow_version

HERE = Path(__file__).resolve().parent
SPLIT_NAMES = ("train", "validation", "test")
SHEET_LETTERS, SHEET_COLUMNS, SHEET_STEP = "AEGMQRSZ27", 3, 5


def load() -> dict[str, np.ndarray]:
    """All arrays of letters.npz."""
    with np.load(HERE / "letters.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def draw_sheet() -> None:
    """Draw contact_sheet.png: one face (the regular one, if so named) of every fifth family, ten glyphs each."""
    data = load()
    plain = np.char.endswith(data["face_names"], " / Regular")
    families = [np.flatnonzero(data["family"] == f) for f in range(0, len(data["family_names"]), SHEET_STEP)]
    first = [max(faces.tolist(), key=lambda face: (plain[face], -face)) for faces in families]
    which = [CHARACTERS.index(letter) for letter in SHEET_LETTERS]
    label, gap = 150, 3
    rows, width = -(-len(first) // SHEET_COLUMNS), label + len(which) * (SIDE + gap) + 12
    sheet = Image.new("L", (SHEET_COLUMNS * width, rows * (SIDE + gap) + gap), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for position, face in enumerate(first):
        column, row = divmod(position, rows)
        x, y = column * width + 4, gap + row * (SIDE + gap)
        pen.text((x, y + 8), str(data["family_names"][data["family"][face]])[:25], fill=0, font=font)
        for order, character in enumerate(which):
            glyph = Image.fromarray(255 - data["glyphs"][face, character])
            sheet.paste(glyph, (x + label + order * (SIDE + gap), y))
    sheet.quantize(16).save(HERE / "contact_sheet.png", optimize=True)


def check(seeds: tuple[int, ...] = (0, 1, 2), per_letter: int = 150, epochs: int = 20) -> None:
    """Train a small CNN on 150 training glyphs a letter, read the capitals of unseen typefaces; write check.csv."""
    import torch
    from build_letters import write_table
    from letters_judge import read, train_reader

    torch.set_num_threads(1)
    data, rows = load(), []
    train, validation, test = (np.flatnonzero(data["split"] == part) for part in range(3))
    for seed in seeds:
        picked = [np.random.RandomState(1000 * seed + c).permutation(train)[:per_letter] for c in range(26)]
        pictures = np.concatenate([data["glyphs"][faces, c] for c, faces in enumerate(picked)])
        model = train_reader(pictures, np.repeat(np.arange(26), per_letter), epochs, seed)
        row = {"seed": seed, "training_images": len(pictures)}
        for name, faces in (("validation", validation), ("test", test)):
            guess = read(model, data["glyphs"][faces, :26].reshape(-1, SIDE, SIDE)).reshape(-1, 26)
            row[name] = f"{(guess == np.arange(26)).mean():.4f}"
        rows.append(row)
        print(row, flush=True)
    write_table(HERE / "check.csv", ("seed", "training_images", "validation", "test"), rows)


def markdown_table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """A GitHub table; vertical bars and brackets in cells are made harmless."""
    clean = [[re.sub(r"([|\[\]<>*_])", r"\\\1", str(cell)) for cell in row] for row in rows]
    lines = [" | ".join(header), " | ".join("---" for _ in header), *(" | ".join(row) for row in clean)]
    return "\n".join(f"| {line} |" for line in lines)


def counts_block(data: dict[str, np.ndarray]) -> str:
    """Faces, families, clusters and glyphs by split."""
    rows = []
    for part, name in [*enumerate(SPLIT_NAMES), (None, "all")]:
        mask = np.ones(len(data["split"]), bool) if part is None else data["split"] == part
        families, clusters = (len(np.unique(data[key][mask])) for key in ("family", "cluster"))
        rows.append((name, f"{mask.sum():,}", families, clusters, f"{mask.sum() * 26:,}", f"{mask.sum() * 10:,}"))
    size = (HERE / "letters.npz").stat().st_size
    digest = (HERE / "letters.sha256").read_text().split()[0]
    return (
        markdown_table(("split", "faces", "families", "clusters", "capitals", "digits"), rows)
        + f"\n\n`letters.npz`: {size / 2**20:.1f} MiB, SHA-256 `{digest}`, drawn with {data['made_with']} "
        f"(FreeType in Pillow {pillow_version} is {features.version('freetype2')})."
    )


def cleaning_block(table: list[dict[str, str]]) -> str:
    """What each rule removed, the share of the largest designers, legibility of what stays, and the check."""
    from build_letters import read_table

    decisions = Counter(row["decision"] for row in table)
    kept = [row for row in table if row["decision"] == "kept"]
    scores = sorted(float(row["legibility"]) for row in kept)
    designers = Counter(row["designer"] for row in kept)
    unnamed = designers.pop("not named in the font", 0)
    largest = "; ".join(f"{name} {count} ({count / len(kept):.0%})" for name, count in designers.most_common(5))
    text = [
        f"{len(table):,} families were looked at. What happened to them:\n",
        markdown_table(("decision", "families"), decisions.most_common()),
        f"\nThe designers or foundries with the most families: {largest}. "
        f"{unnamed} families ({unnamed / len(kept):.0%}) do not name one in the font file.",
        f"\nLegibility of the families that stay: mean {np.mean(scores):.1%}; one in ten is read at "
        f"{scores[len(scores) // 10]:.0%} or less, and {np.mean(np.array(scores) >= 0.995):.0%} without a mistake.",
    ]
    if (HERE / "check.csv").exists():
        runs = read_table(HERE / "check.csv")
        test = [float(run["test"]) for run in runs]
        text.append(
            f"\nReadability check (`build_letters.py check`): a small CNN trained for 20 epochs on a balanced set of "
            f"{int(runs[0]['training_images']):,} training glyphs reads the capitals of the test typefaces at "
            f"{np.mean(test):.1%} (seeds: {', '.join(f'{value:.1%}' for value in test)})."
        )
    return "\n".join(text)


def licences_block(kept: list[dict[str, str]]) -> str:
    """Families and faces by licence."""
    families, faces = Counter(), Counter()
    for row in kept:
        families[row["licence"]] += 1
        faces[row["licence"]] += int(row["faces"])
    return markdown_table(
        ("licence", "families", "faces"), [(name, count, faces[name]) for name, count in families.most_common()]
    )


def fonts_page(kept: list[dict[str, str]]) -> str:
    """FONTS.md: every family with its package and licence, by package."""
    by_package = defaultdict(list)
    for row in kept:
        by_package[row["package"], row["version"]].append(row)
    lines = [
        "# The typefaces in letters.npz\n",
        "Written by `python data/build_letters.py datasheet` from `families.csv`. The number after a family counts its "
        "faces.\n",
    ]
    rows = []
    for (package, version), members in sorted(by_package.items()):
        for licence in sorted({row["licence"] for row in members}):
            names = ", ".join(f"{row['family']} ({row['faces']})" for row in members if row["licence"] == licence)
            rows.append((f"{package} {version}", licence, names))
    return "\n".join(lines) + "\n" + markdown_table(("Debian package", "licence", "families"), rows) + "\n"


def write_datasheet() -> None:
    """Fill the generated parts of README.md and write FONTS.md."""
    from build_letters import read_table, write_atomically

    table = read_table(HERE / "families.csv")
    kept = [row for row in table if row["decision"] == "kept"]
    blocks = {"counts": counts_block(load()), "cleaning": cleaning_block(table), "licences": licences_block(kept)}
    page = (HERE / "README.md").read_text(encoding="utf-8")
    for name, content in blocks.items():
        lines = content.split("\n")
        content = "\n".join(line if line[:1] in ("", "|") else textwrap.fill(line, 118) for line in lines)
        pattern = rf"(<!-- {name}: generated -->\n).*?(<!-- end {name} -->)"
        page, found = re.subn(pattern, lambda match, c=content: f"{match[1]}\n{c}\n\n{match[2]}", page, flags=re.S)
        if found != 1:
            raise ValueError(f"README.md has {found} blocks named {name!r}, expected 1")
    write_atomically(HERE / "README.md", page.encode())
    write_atomically(HERE / "FONTS.md", fonts_page(kept).encode())
