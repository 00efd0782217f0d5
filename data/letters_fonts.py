"""Letters, step 1: look at font files. Names, weights, licences, and one glyph drawn at 28 x 28.

Everything that opens a font file is here. `render_face` is the one function that decides what a glyph looks like.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import logging
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
CAPITALS = slice(0, 26)
DIGITS = slice(26, 36)
SIDE, BOX, POINT_SIZE, LEVEL_STEP = 28, 24, 128, 17  # picture side, ink box, drawing size, 255 / 15 grey steps

logging.getLogger("fontTools").setLevel(logging.ERROR)
TEX_PACKAGE = "texlive-fonts-extra"
WEIGHT_WORDS = (
    "thin|hairline|extralight|ultralight|light|lite|regular|roman|book|medium|semibold|demibold|demi|bold|extrabold"
    "|ultrabold|black|heavy|ultra|italic|oblique|slanted|inclined"
)
KNOWN_DESIGNERS = {  # one spelling for foundries that write their own name in several ways
    "brian kent": "Brian Kent (aenigma)",
    "harendal": "Hirwen Harendal",
    "arkandis": "Hirwen Harendal",
    "dustin norlander": "Dustin Norlander",
    "matthiopoulos": "George Matthiopoulos (Greek Font Society)",
    "bpg": "Besarion Gugushvili (BPG)",
    "danh hong": "Danh Hong",
    "impallari": "Pablo Impallari",
    "steve matteson": "Steve Matteson (Ascender)",
    "ascender": "Steve Matteson (Ascender)",
    "monotype": "Monotype",
    "urw": "URW++",
    "gust": "GUST (Jackowski, Nowacki)",
    "tex gyre": "GUST (Jackowski, Nowacki)",
    "jackowski": "GUST (Jackowski, Nowacki)",
}
FONT_SUFFIXES = {".sfd", ".ttf", ".otf", ".ufo", ".glyphs"}
FONT_FOLDERS = {"sources", "source", "fonts", "ttf", "otf"}
ITALIC_STYLE = re.compile(r"ital|obli|slant|inclin", re.I)
LICENCES = [  # (pattern, name written to families.csv); the first one that matches names the licence
    (r"madduck-special-license", "free use granted by the designer (aenigma)"),
    (r"paratype-free", "ParaType Free Font License"),
    (r"original these fonts are free software", "permissive notice"),
    (r"\bofl\b|sil-1\.1|open[ _-]?font[ _-]?licen[cs]e", "OFL-1.1"),
    (r"\bgust\b|\bgfs?l\b", "GUST Font License"),
    (r"ubuntu[ -]font", "Ubuntu Font License 1.0"),
    (r"\bipa[ -](?:1|font)", "IPA Font License 1.0"),
    (r"bitstream|vera[ -]copyright", "Bitstream Vera"),
    (r"arphic", "Arphic Public License"),
    (r"\bm\+ ?fonts|mplus", "M+ Fonts licence"),
    (r"\bcc0|cc-zero", "CC0-1.0"),
    (r"\bcc[ -]by[ -]sa", "CC-BY-SA"),
    (r"\bcc[ -]by", "CC-BY"),
    (r"public[ -]domain|\bpd\b|unlicense", "public domain"),
    (r"\bapache", "Apache-2.0"),
    (r"\bmit\b|\bexpat|\bx11\b", "MIT"),
    (r"\b0?bsd", "BSD"),
    (r"\blppl|latex project public|^ ?latex", "LPPL"),
    (r"\blgpl|lesser general public", "LGPL"),
    (r"agpl.*exception", "AGPL with font exception"),
    (r"gpl.*exception|gpl-?[23]\+?fe\b|general public.*exception", "GPL with font exception"),
    (r"\bgpl|gnu general public", "GPL"),
    (r"\bartistic\b", "Artistic"),
    (r"\bwtfpl", "WTFPL"),
    (r"license to copy, modify, and distribute|\bfsfap|gnu-all-permissive|^ ?permissive", "permissive notice"),
]


@dataclass(frozen=True)
class Face:
    """One font file and what its tables say about it; `path` is relative to the package's root."""

    family: str
    style: str
    weight: int
    width: int
    italic: bool
    designer: str
    licence: str
    package: str
    path: str
    complete: bool  # all 26 capitals and 10 digits are mapped

    @property
    def name(self) -> str:
        return f"{self.family} / {self.style}"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def render_glyph(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray:
    """One character as a (28, 28) uint8 picture: cropped to its ink, fitted into 24 x 24, centred, 16 grey levels."""
    picture = np.zeros((SIDE, SIDE), np.uint8)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    if right <= left or bottom <= top or max(right - left, bottom - top) > 40 * POINT_SIZE:
        return picture
    canvas = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(canvas).text((4 - left, 4 - top), character, fill=255, font=font)
    ink = canvas.getbbox()
    if ink is None:
        return picture
    canvas = canvas.crop(ink)
    scale = BOX / max(canvas.size)
    width, height = (max(1, round(side * scale)) for side in canvas.size)
    small = np.asarray(canvas.resize((width, height), Image.Resampling.HAMMING), np.uint16)
    small = (small + LEVEL_STEP // 2) // LEVEL_STEP * LEVEL_STEP
    row, column = (SIDE - height) // 2, (SIDE - width) // 2
    picture[row : row + height, column : column + width] = small
    return picture


def render_face(path: str | Path, characters: str = CHARACTERS) -> np.ndarray:
    """All `characters` of one font file as a (len(characters), 28, 28) uint8 array, ink 255 on 0."""
    font = ImageFont.truetype(str(path), POINT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    return np.stack([render_glyph(font, character) for character in characters])


def licence_name(text: str) -> str:
    """The licence that `text` (a short name or a whole copyright file) names, or '' when none is recognised."""
    text = re.sub(r"\s+", " ", text.lower())
    return next((name for pattern, name in LICENCES if re.search(pattern, text)), "")


def names_file(pattern: str, path: str) -> bool:
    """Does a DEP-5 pattern mean this font? Sources and installed fonts differ in folder and suffix, so: the stem fits,
    or all font sources are meant (*.sfd, sources/*), or a word of the folder is in the font's name."""
    stem, pattern = Path(path).stem, Path(pattern)
    if pattern.stem != "*":
        return fnmatch.fnmatch(stem, pattern.stem)
    words = re.findall(r"[a-z]{5,}", pattern.parent.name.casefold())
    if pattern.suffix:
        return pattern.suffix in FONT_SUFFIXES
    return pattern.parent.name in FONT_FOLDERS or any(word in stem.casefold() for word in words)


def debian_licence(copyright_text: str, path: str) -> str:
    """Licence of an installed file by its package's copyright file.

    In a DEP-5 file the last `Files` paragraph that names the file wins, then `Files: *`, then what all agree on.
    """
    if not re.search(r"^Format", copyright_text, re.M):
        return licence_name(re.split(r"debian packaging (?:is|:)", copyright_text, flags=re.I)[0])
    general = special = ""
    mentioned = set()
    for paragraph in re.split(r"\n\s*\n", copyright_text):
        files = re.search(r"^Files:((?:.*\n?)(?:[ \t]+.*\n?)*)", paragraph, re.M)
        licence = re.search(r"^License:(.*(?:\n[ \t]+\S.*)?)", paragraph, re.M)
        if not files or not licence or files[1].split()[0].startswith("debian/"):
            continue
        name = licence_name(licence[1])
        mentioned.add(name)
        for pattern in files[1].split():
            if pattern in ("*", "./*"):
                general = name or general
            elif names_file(pattern, path):
                special = name or special
    return special or general or (mentioned.pop() if len(mentioned) == 1 else "")


def tex_licences(listing: Path) -> dict[str, str]:
    """Folder -> licence code, from the list that texlive-fonts-extra ships (Licenses.gz)."""
    table, code = {}, ""
    for line in gzip.open(listing, "rt", encoding="utf-8", errors="replace"):
        if line.startswith("texmf-dist/"):
            table[line.strip().rstrip("/*")] = code
        elif ": " in line:
            code = line.split(": ", 1)[1].strip()
    return table


class Licences:
    """Finds the licence of a font file inside a folder of unpacked packages."""

    def __init__(self, tree: Path):
        self.tree, self.texts = tree, {}
        listing = tree / TEX_PACKAGE / "usr/share/doc" / TEX_PACKAGE / "Licenses.gz"
        self.tex = tex_licences(listing) if listing.exists() else {}

    def of(self, package: str, path: str, own_text: str) -> str:
        """Licence by the font's own words (TeX collection) or by the package's copyright file (fonts-*), else ''."""
        if package == TEX_PACKAGE:
            folder = "texmf-dist/" + str(Path(path).parent).split("texmf-dist/", 1)[-1]
            code = self.tex.get(folder, "")
            return licence_name(own_text) or ("" if "other-free" in code else licence_name(code))
        if package not in self.texts:
            file = self.tree / package / "usr/share/doc" / package / "copyright"
            self.texts[package] = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        return debian_licence(self.texts[package], path) or licence_name(own_text)


def tidy_designer(text: str, copyright_notice: str) -> str:
    """A short designer or foundry name: the font's own, else the holder in its copyright notice, else ''."""
    if not text.strip():
        holder = re.search(r"(?:copyright|\(c\)|©)[\s(c)©,:0-9\-–]*(?:by )?([^\d.,;:(<]{3,60})", copyright_notice, re.I)
        text = holder[1] if holder else ""
    text = re.sub(r"\s+", " ", re.split(r"[\n\r;\\]|https?:|www\.", text)[0]).strip(" .,-")
    text = re.sub(r"^(?:designed by|by|for)\b ?", "", text, flags=re.I)[:60]
    known = next((name for word, name in KNOWN_DESIGNERS.items() if word in text.casefold()), "")
    return known or (text if len(text) > 2 else "")


def read_face(root: Path, package: str, path: str, licences: Licences) -> Face | None:
    """Read one font file's tables; None when it cannot be read or has no usable name."""
    from fontTools.ttLib import TTFont, TTLibError  # here, so that drawing needs Pillow only

    try:
        with TTFont(root / path, lazy=True) as font:
            names = [str(font["name"].getDebugName(i) or "").strip() for i in range(18)]
            cmap = font.getBestCmap() or {}
            weight, width = (font["OS/2"].usWeightClass, font["OS/2"].usWidthClass) if "OS/2" in font else (400, 5)
            slant = font["post"].italicAngle if "post" in font else 0
    except (TTLibError, KeyError, AttributeError, AssertionError, OSError, ValueError, struct.error):
        return None
    family, style = names[16] or names[1], names[17] or names[2] or "Regular"
    short = re.sub(rf"(?:[ \-_]+(?:{WEIGHT_WORDS}))+$", "", family, flags=re.I).strip()
    if short and short != family:
        family, style = short, f"{family[len(short) :].strip(' -_')} {style}"
    family = re.sub(r"^([a-z]+)\d+$", r"\1", family)  # design sizes of TeX fonts: drmit10, drmit12
    if not family:
        return None
    designer = tidy_designer(names[9] or names[8], names[0])
    text = f"{names[13]} {names[14]} {names[0]}"
    weight = 700 if re.search(r"\bbold", style, re.I) and weight < 500 else weight
    complete = all(ord(character) in cmap for character in CHARACTERS)
    family, style = (re.sub(r"\s+", " ", name).strip() for name in (family, style))
    return Face(
        family,
        style,
        weight,
        width,
        bool(slant) or bool(ITALIC_STYLE.search(style)),
        designer,
        licences.of(package, path, text),
        package,
        path,
        complete,
    )


def scan(tree: Path, packages: list[str]) -> list[Face]:
    """Every .ttf and .otf under `tree`/PACKAGE/, links left out, in an order that depends on names only."""
    licences, faces = Licences(tree), []
    for root in (tree / package for package in sorted(packages)):
        for file in sorted(root.rglob("*")):
            if file.suffix.lower() in (".ttf", ".otf") and not file.is_symlink():
                face = read_face(root, root.name, str(file.relative_to(root)), licences)
                if face:
                    faces.append(face)
    return faces
