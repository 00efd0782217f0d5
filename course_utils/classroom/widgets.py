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

Moving artists instead of drawing anew, and sending finished PNG bytes, takes about 100 ms from key to picture. Where
there is no kernel to answer, in a notebook as it is stored, the first position stands as a picture with its sentence.
"""

from __future__ import annotations

import html
import io
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..runtime import located
from .figures import SHOWN_DPI, picture_metadata, reduce_png

Picture = Callable[[Figure], Callable[..., str]]
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


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
    The tests do so.
    """
    if not positions or not all(len(values) >= 2 for values in positions.values()):
        raise ValueError("positions: allowed: at least one setting, each with at least two values")
    for name, first in (start or {}).items():
        if first not in positions.get(name, ()):
            raise ValueError(f"start: got {name}={first!r}; allowed: {', '.join(positions)}, at one of its positions")
    if log := os.environ.get("COURSE_SWEEP_WIDGETS"):
        drawn = sweep(picture, size=size, **positions)
        with open(located(log), "a", encoding="utf-8") as file:
            file.write(f"{drawn}\n")
    canvas = Canvas(picture, size)
    controls: dict = {name: _control(name, list(values), (start or {}).get(name)) for name, values in positions.items()}
    layout = ipywidgets.Layout(width=f"{round(SHOWN_DPI * size[0])}px", max_width="100%")
    image = ipywidgets.Image(format="png", layout=layout)
    sentence = ipywidgets.HTML()

    def redraw(_change=None):
        image.value, text = canvas.draw(**{name: control.value for name, control in controls.items()})
        sentence.value = html.escape(text)

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    box = ipywidgets.VBox([*controls.values(), sentence, image])
    first, hint = html.unescape(sentence.value), f"Sliders: {', '.join(positions)}. Run this cell to move them."
    live = {WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": box.model_id}}
    still = {"text/html": f"<p>{sentence.value}<br><em>{hint}</em></p>", "text/plain": f"{first}\n{hint}"}
    picture_of_it = {"image/png": reduce_png(image.value)}
    display(live | still | picture_of_it, metadata=picture_metadata(first, size[0]), raw=True)


def without_kernel(output: dict) -> list[dict]:
    """An output of a notebook as it is stored: of sliders remain the sentence and, below, the picture.

    output: one output of a code cell. Any other than that of `explore()` comes back as it is.
    """
    if WIDGET_VIEW not in output.get("data", {}):
        return [output]
    data = {kind: value for kind, value in output["data"].items() if kind != WIDGET_VIEW}
    pictures = {kind: data.pop(kind) for kind in [*data] if kind.startswith("image/")}
    return [output | {"data": data, "metadata": {}}, output | {"data": pictures}]


def _control(name: str, values: list[Any], first: Any) -> ipywidgets.Widget:
    first = values[0] if first is None else first
    label = name.replace("_", " ")
    style, layout = {"description_width": "10em"}, ipywidgets.Layout(width="32em")
    return ipywidgets.SelectionSlider(options=values, value=first, description=label, style=style, layout=layout)


def sweep(picture: Picture, *, size: tuple[float, float] = (8, 3.6), **positions: Sequence[Any]) -> int:
    """Draw every combination of positions; return how many there are.

    Raises:
        AssertionError: a setting never changes the picture, or a sentence is empty.
        Whatever the picture raises.
    """
    canvas, drawn = Canvas(picture, size), {}
    for values in itertools.product(*positions.values()):
        png, sentence = canvas.draw(**dict(zip(positions, values, strict=True)))
        assert sentence, f"no sentence at {values}"
        drawn[values] = png
    for k, name in enumerate(positions):
        seen: dict[tuple, set[bytes]] = {}
        for values, png in drawn.items():
            seen.setdefault(values[:k] + values[k + 1 :], set()).add(png)
        assert any(len(pngs) > 1 for pngs in seen.values()), f"moving {name} never changes the picture"
    return len(drawn)
