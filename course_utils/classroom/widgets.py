"""`explore()`: sliders above one picture, which a notebook keeps in its first position.

A picture is a function that sets up a figure once and returns `update(**values) -> sentence`, which moves what changes
and says in one sentence what is to be seen:

    def picture(figure):
        axes = figure.subplots()
        bars = axes.bar(range(10), [0] * 10)
        def update(ratio):
            ...
            return f"At ratio {ratio} the rarest class has 5 images."
        return update

    explore(picture, ratio=[1, 10, 100])

Moving artists instead of drawing anew, and sending finished PNG bytes, takes about 100 ms from key to picture. A cell
has two outputs: a still, which is the first position as a picture with its sentence, and the live sliders, which take
its place while a kernel answers. Where none does, in a notebook as it is stored or reopened, the still remains.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import traitlets
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..runtime import located
from . import frames
from .figures import SHOWN_DPI, picture_metadata
from .images import reduce_png, webp_address

Picture = Callable[[Figure], Callable[..., str]]
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
HINT = "Run this cell to move the sliders."
# JupyterLab: the still goes while live sliders stand behind it, and a view without a model says nothing.
STYLE = f"""<style>
.jp-OutputArea-child:has(.explore-still):has(+ .jp-OutputArea-child [data-ready]),
.jp-OutputArea-child:has(.explore-still) + .jp-OutputArea-child:has([data-mime-type="{WIDGET_VIEW}"]):not(:has(img))
{{ display: none }}
</style>
"""
calls = itertools.count()  # of explore() in this kernel, for the folders of frames


class Canvas:
    """A figure that stays alive, the picture on it, and its PNG bytes."""

    def __init__(self, picture: Picture, size: tuple[float, float] = (8, 3.6)):
        self.figure = Figure(figsize=size, layout="constrained")
        self.canvas = FigureCanvasAgg(self.figure)
        self.update = picture(self.figure)
        self.settled = False

    def draw(self, **values: Any) -> tuple[bytes, str]:
        """PNG bytes and the sentence for these values."""
        sentence = self.update(**values)
        if not self.settled:  # lay out once; after that nothing jumps while the slider moves
            self.canvas.draw()
            self.figure.set_layout_engine("none")
            self.settled = True
        png = io.BytesIO()
        self.canvas.print_png(png, metadata={"Software": None}, pil_kwargs={"compress_level": 1})
        return png.getvalue(), sentence


class Sliders(anywidget.AnyWidget):
    """The live figure. `places` is what the reader wants; `shown` answers with a picture, its sentence and places."""

    _esm = (frames.PAGES / "explore.js").read_text(encoding="utf-8") + "\nexport default {render: explorer.render}\n"
    _css = (frames.PAGES / "explore.css").read_text(encoding="utf-8")
    html = traitlets.Unicode().tag(sync=True)
    places = traitlets.List(traitlets.Int()).tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)

    def __init__(self, canvas: Canvas, positions: dict[str, list[Any]], **state: Any):
        super().__init__(**state)
        self.canvas, self.positions = canvas, positions
        self.observe(self.answer, names="places")

    def answer(self, _change: Any = None) -> None:
        """Draw what is wanted. After an error the picture stays, and its text goes into the line."""
        asked = list(self.places)
        values = {name: some[k] for (name, some), k in zip(self.positions.items(), asked, strict=True)}
        try:
            png, sentence = self.canvas.draw(**values)
        except Exception as error:
            self.shown = {**self.shown, "asked": asked, "error": f"{type(error).__name__}: {error}"}
        else:
            self.shown = {"places": asked, "asked": asked, "sentence": sentence, "png": png, "error": ""}


def explore(
    picture: Picture,
    *,
    size: tuple[float, float] = (8, 3.6),
    start: dict[str, Any] | None = None,
    **positions: Sequence[Any],
) -> None:
    """Show one slider for each setting, a sentence, and the picture, all live.

    Args:
        picture: see the top of this file.
        size: of the figure, in inches (shown with 100 pixels each).
        start: first position of a setting; by default its first value.
        **positions: for each setting the values that its slider can take.

    With a file's name in the environment variable COURSE_SWEEP_WIDGETS every combination is drawn once before, and an
    error in any of them, or a setting that never changes the picture, raises; the file gets a line with their number.
    The tests do so. With a folder in COURSE_FRAMES the same sweep writes its pictures there, into 0/ for the first
    `explore()` of this kernel, 1/ for the second (frames.py).
    """
    if not positions or not all(len(values) >= 2 for values in positions.values()):
        raise ValueError("positions: allowed: at least one setting, each with at least two values")
    for name, first in (start or {}).items():
        if first not in positions.get(name, ()):
            raise ValueError(f"start: got {name}={first!r}; allowed: {', '.join(positions)}, at one of its positions")
    settings = {name: list(values) for name, values in positions.items()}
    places = [values.index((start or {}).get(name, values[0])) for name, values in settings.items()]
    index = {
        "size": [round(SHOWN_DPI * inches) for inches in size],
        "names": [*settings],
        "values": [[str(value) for value in values] for values in settings.values()],
        "start": places,
    }
    log, folder, number = os.environ.get("COURSE_SWEEP_WIDGETS"), os.environ.get("COURSE_FRAMES"), next(calls)
    if log or folder:
        drawn = sweep(picture, size=size, **settings)
        if log:
            with open(located(log), "a", encoding="utf-8") as file:
                file.write(f"{len(drawn)}\n")
        if folder:
            frames.write(located(folder) / str(number), index, drawn)
    canvas = Canvas(picture, size)
    png, sentence = canvas.draw(**{name: values[k] for (name, values), k in zip(settings.items(), places, strict=True)})
    small = reduce_png(png)
    still = frames.markup(index, webp_address(small), sentence, line=HINT, kind="explore-still")
    shown = {"places": places, "asked": places, "sentence": sentence, "png": png, "error": ""}
    html = frames.markup(index, webp_address(small), sentence, data={"values": index["values"]})
    live = Sliders(canvas, settings, html=html, places=places, shown=shown)
    data = {"text/html": STYLE + still, "image/png": small, "text/plain": f"{sentence}\n{HINT}"}
    display(data, metadata=picture_metadata(sentence, size[0]), raw=True)
    display({WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": live.model_id}}, raw=True)


def without_kernel(output: dict) -> list[dict]:
    """An output of a notebook as it is stored, in a list: live sliders go, and so does the style of their still."""
    if "data" not in output:
        return [output]
    data = {kind: value for kind, value in output["data"].items() if kind != WIDGET_VIEW}
    if "text/html" in data:
        data["text/html"] = data["text/html"].removeprefix(STYLE)
    return [output | {"data": data}] if data else []


def sweep(picture: Picture, *, size: tuple[float, float] = (8, 3.6), **positions: Sequence[Any]) -> list:
    """Draw every combination of positions; return (PNG, sentence) of each, the last setting running fastest.

    Raises:
        AssertionError: a setting never changes the picture, or a sentence is empty.
        Whatever the picture raises.
    """
    canvas, drawn = Canvas(picture, size), {}
    for values in itertools.product(*positions.values()):
        drawn[values] = png, sentence = canvas.draw(**dict(zip(positions, values, strict=True)))
        assert sentence, f"no sentence at {values}"
    for k, name in enumerate(positions):
        seen: dict[tuple, set[bytes]] = {}
        for values, (png, _) in drawn.items():
            seen.setdefault(values[:k] + values[k + 1 :], set()).add(png)
        assert any(len(pngs) > 1 for pngs in seen.values()), f"moving {name} never changes the picture"
    return list(drawn.values())
