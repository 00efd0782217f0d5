"""Pictures and scripts that stand as files beside the pages of the site and beside the slides."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from importlib.metadata import distributions
from pathlib import Path

from PIL import Image

from ..runtime import require, write_atomically

PAGES = Path(__file__).parent / "pages"  # our own style sheets and scripts
PACKAGES = {  # name on the disk: the package that brings it, and where in that package it is
    "mathjax": ("sphinx-mathjax-offline", "sphinx-mathjax-offline/static/mathjax"),
    "reveal.js": ("sphinx-revealjs", "sphinx_revealjs/_static/revealjs"),
}
INLINE = re.compile(r'<img\b([^>]*?)\ssrc="data:image/(\w+);base64,([^"]*)"([^>]*)>')


def brought(name: str, *parts: str) -> Path:
    """A file or folder of somebody else's program: brought("mathjax", "tex-svg-full.js").

    Raises:
        ValueError: the package that brings it is not installed, or has no such file.
    """
    package, folder = PACKAGES[name]
    found = [Path(str(there.locate_file(folder)), *parts) for there in distributions(name=package)]
    require(found and found[0].exists(), name, f"no {'/'.join(parts)} of {package}", "run `pip install -e .[site]`")
    return found[0]


def as_html(output: dict, folder: Path, place: str) -> str | None:
    """The HTML of a notebook's output with its pictures as files, loaded when they come into view; None without HTML.

    Args:
        output: one output of a code cell.
        folder: where the pictures are written, under names that their contents give.
        place: URL of that folder, as the page sees it.
    """
    data = output.get("data", {})
    page = "".join(data.get("text/html", ""))
    if not page and "image/png" in data:
        about = output.get("metadata", {}).get("image/png", {})
        width = f' width="{about["width"]}"' if "width" in about else ""
        png = "".join(data["image/png"]).replace("\n", "")
        page = f'<img alt="{html.escape(about.get("alt", ""))}"{width} src="data:image/png;base64,{png}">'
    return INLINE.sub(lambda found: _to_file(found, folder, place), page) or None


def _to_file(found: re.Match, folder: Path, place: str) -> str:
    before, kind, coded, after = found.groups()
    picture = base64.b64decode(coded)
    name = f"{hashlib.sha256(picture).hexdigest()[:16]}.{kind}"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, lambda file: file.write(picture))
    attributes = before + after
    width, height = Image.open(io.BytesIO(picture)).size
    if (shown := re.search(r'\bwidth="(\d+)"', attributes)) and "height=" not in attributes:
        attributes += f' height="{round(int(shown[1]) * height / width)}"'  # the page keeps the place free
    return f'<img{attributes.rstrip(" /")} src="{place}/{name}" loading="lazy" decoding="async">'
