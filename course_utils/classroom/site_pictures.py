"""Pictures of a notebook's outputs as files beside the pages of the site."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path

from PIL import Image

from ..runtime import digest, write_atomically

INLINE = re.compile(r'<img\b([^>]*?)\ssrc="data:image/(\w+);base64,([^"]*)"([^>]*)>')


def as_html(output: dict, folder: Path, place: str) -> str | None:
    """The HTML of a notebook's output with its pictures as files, loaded when they come into view; None without HTML.

    Args:
        output: one output of a code cell.
        folder: where the pictures are written, under the names that slides give them too.
        place: URL of that folder, as the page sees it.
    """
    data = output.get("data", {})
    page = "".join(data.get("text/html", ""))
    if not page and "image/png" in data:
        about = output.get("metadata", {}).get("image/png", {})
        width = f' width="{about["width"]}"' if "width" in about else ""
        png = "".join(data["image/png"]).replace("\n", "")
        page = f'<img alt="{html.escape(about.get("alt", ""))}"{width} src="data:image/png;base64,{png}">'
    page = page.replace("<table", '<div class="course-wide"><table').replace("</table>", "</table></div>")
    return INLINE.sub(lambda found: _to_file(found, folder, place), page) or None


def _to_file(found: re.Match, folder: Path, place: str) -> str:
    before, kind, coded, after = found.groups()
    picture = base64.b64decode(coded)
    name = f"{digest(picture)}.{kind}"
    if not (folder / name).exists():
        write_atomically(folder / name, lambda file: file.write(picture))
    attributes = (before + after).rstrip(" /")
    width, height = Image.open(io.BytesIO(picture)).size
    if (shown := re.search(r'\bwidth="(\d+)"', attributes)) and "height=" not in attributes:
        attributes += f' height="{round(int(shown[1]) * height / width)}"'  # the page keeps the place free
    return f'<img{attributes} src="{place}/{name}" loading="lazy" decoding="async">'
