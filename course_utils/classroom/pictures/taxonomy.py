"""All methods on one slide: what each changes, when it acts, and what it must know. Used in notebooks 00 and 07."""

from __future__ import annotations

import math

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ...methods import METHODS
from .. import figures
from ..figures import GREY, ORANGE, PURPLE, SKY

WHEN = ("before an epoch", "during training", "after training")
# what it changes: its colour, and for each moment the methods
CHANGES: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "which images\nare drawn": (
        SKY,
        (("square-root sampling", "class-balanced sampling", "progressive sampling", "LDAM + DRS"), (), ()),
    ),
    "the loss": (
        PURPLE,
        (
            (),
            ("re-weighting", "class-balanced loss", "focal loss", "balanced softmax", "LDAM", "CE + DRW", "LDAM + DRW"),
            (),
        ),
    ),
    "the classifier": (
        GREY,
        ((), ("cosine classifier",), ("tau-normalization", "logit adjustment", "NCM", "cRT", "LWS")),
    ),
    "what is\nremembered": (ORANGE, ((), ("OLTR memory",), ())),
}
MARKS = {"counts": "n_j", "validation": "v", "features": "x"}
KEY = "$n_j$: knows the class counts   $v$: chooses on validation images   $x$: reads the training images again"
ALT = (
    "A table of all methods but cross-entropy. Rows: what they change: the images drawn, the loss, the classifier, a "
    "memory. Columns: before an epoch, during training, after training. Letters mark what each must know."
)


def taxonomy(figure: Figure) -> None:
    """Draw the table into an empty figure of about 11 x 4.6 inches; `ALT` says it in words."""
    axes = figure.subplots()
    lefts, widths, abreast, top = (0.0, 0.9, 2.3), (0.9, 1.4, 0.9), (1, 2, 1), 0.0
    for left, wide, title in zip(lefts, widths, WHEN, strict=True):
        axes.text(left + wide / 2, 0.25, title, ha="center", va="bottom", weight="bold", fontsize=12)
    for what, (color, cells) in CHANGES.items():
        lines = max(math.ceil(len(names) / columns) for names, columns in zip(cells, abreast, strict=True))
        height = max(lines, 2) + 0.4
        axes.text(-0.03, top - height / 2, what, ha="right", va="center", weight="bold", fontsize=12)
        for left, wide, columns, names in zip(lefts, widths, abreast, cells, strict=True):
            box = (left + 0.012, top - height + 0.08), wide - 0.024, height - 0.16
            axes.add_patch(Rectangle(*box, color=color if names else GREY, alpha=0.22 if names else 0.04, linewidth=0))
            for k, name in enumerate(names):
                x = left + 0.05 + wide * (k % columns) / columns
                y = top - height / 2 + (math.ceil(len(names) / columns) - 1) / 2 - k // columns
                axes.text(x, y, _with_marks(name), va="center", fontsize=11)
        top -= height
    axes.text(1.6, top - 0.35, KEY, ha="center", va="top", fontsize=10.5, color="#444444")
    axes.set(xlim=(-0.42, 3.22), ylim=(top - 0.9, 1.0))
    axes.axis("off")


def _with_marks(name: str) -> str:
    marks = " ".join(mark for need, mark in MARKS.items() if need in METHODS[name].needs)
    return f"{name}  $\\mathit{{{marks.replace(' ', ',')}}}$" if marks else name


def draw() -> tuple[Figure, str]:
    """(figure, alt text) for `figures.show()`."""
    figure = figures.plt.figure(figsize=(11, 4.8))
    taxonomy(figure)
    return figure, ALT
