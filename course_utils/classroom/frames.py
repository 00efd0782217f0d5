"""Frames: all positions of an `explore()` as files, and the markup that shows sliders in notebook, site and slides.

A folder of frames holds `index.json` and lossless pictures, equal ones once:

    size     [width, height] in CSS pixels, as a picture is shown
    names    of the settings
    values   for each setting the texts of its positions
    start    for each setting the place of its first position
    frames   [file, sentence] for every combination, the last setting running fastest
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..runtime import digest, require, write_atomically
from .images import to_webp

PAGES = Path(__file__).resolve().parent / "pages"


def write(folder: Path, index: Mapping[str, Any], drawn: Sequence[tuple[bytes, str]]) -> None:
    """Write a folder of frames.

    Args:
        folder: need not be there.
        index: size, names, values, start.
        drawn: PNG bytes and sentence of every combination, the last setting running fastest.
    """
    files: dict[str, str] = {}  # digest of the pixels -> file
    frames = []
    for png, sentence in drawn:
        key = digest(Image.open(io.BytesIO(png)).convert("RGB").tobytes())
        if key not in files:
            files[key] = f"{key}.webp"  # by what it shows: frames of two runs cannot be mixed unseen
            write_atomically(folder / files[key], lambda file, png=png: file.write(to_webp(png)))
        frames.append([files[key], sentence])
    text = json.dumps({**index, "frames": frames}, ensure_ascii=False)
    write_atomically(folder / "index.json", lambda file: file.write(text.encode("utf-8")))


def read(folder: Path) -> list[dict[str, Any]]:
    """The frames of a notebook, in the order of its `explore()` calls: each index, with its folder as "folder".

    Raises:
        ValueError: an index is damaged, or one of its pictures is not there.
    """
    found = []
    for place in sorted((p.parent for p in folder.glob("*/index.json")), key=lambda p: int(p.name)):
        try:
            index = json.loads((place / "index.json").read_text(encoding="utf-8"))
            whole = all((place / file).is_file() for file, _ in index["frames"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{place / 'index.json'} is damaged ({type(error).__name__})") from error
        require(whole, f"{place}", "a missing picture", "a folder as explore() wrote it")
        found.append({**index, "folder": place})
    return found


def figure_html(index: Mapping[str, Any], place: str) -> str:
    """The sliders of one folder of frames, as explore.js brings them to life; `place` is the URL of that folder.

    Without JavaScript the first position stands there with its sentence.
    """
    at = 0
    for values, start in zip(index["values"], index["start"], strict=True):
        at = at * len(values) + start
    file, sentence = index["frames"][at]
    data = {key: index[key] for key in ("values", "start", "frames")}
    source = f"{place.rstrip('/')}/{file}"
    return markup(index, source, sentence, line="Sliders need JavaScript.", data=data, kind="data-frames")


def markup(
    index: Mapping[str, Any], source: str, sentence: str, *, line: str = "", data: Any = None, kind: str = ""
) -> str:
    """One figure: sliders where there is `data` for them, a sentence, the picture at `source`, and one line.

    Args:
        index: size, names, values and start, as above.
        source: URL of the picture.
        sentence: what the picture shows.
        line: what else is true, such as "Run this cell to move the sliders.".
        data: what explore.js reads; its sliders are hidden until then if `kind` is "data-frames".
        kind: an attribute of the figure. Without `data` it has the class explore-still.
    """
    named = ", ".join(name.replace("_", " ") for name in index["names"])
    label = f"Sliders: {named}" if data is not None else f"First position of: {named}"
    width, height = index["size"]
    name = "explore" if data is not None else "explore explore-still"
    parts = [f'<figure class="{name}" {kind} role="group" aria-label="{html.escape(label)}">']
    if data is not None:
        rows = "".join(map(_slider, index["names"], index["values"], index["start"]))
        parts.append(f'<div class="explore-controls"{" hidden" * (kind == "data-frames")}>{rows}</div>')
        text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
        parts.append(f'<script type="application/json">{text}</script>')
    parts += [
        f'<div class="explore-sentence" aria-live="polite">{html.escape(sentence)}</div>',
        f'<img src="{html.escape(source)}" width="{width}" height="{height}" alt="{html.escape(sentence)}">',
        f'<div class="explore-line" aria-live="polite">{html.escape(line)}</div>',
        "</figure>",
    ]
    return "\n".join(parts)


def _slider(name: str, values: Sequence[str], start: int) -> str:
    label, first = html.escape(name.replace("_", " ")), html.escape(values[start])
    return (
        f'<label><span>{label}</span><input type="range" min="0" max="{len(values) - 1}" step="1" value="{start}" '
        f'aria-label="{label}" aria-valuetext="{first}" autocomplete="off">'
        f'<output aria-live="off" aria-hidden="true">{first}</output></label>'
    )
