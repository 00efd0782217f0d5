"""The notebooks as boxes, and which of them needs which. Used in notebook 00."""

from __future__ import annotations

from matplotlib.figure import Figure

from .. import figures
from ..figures import CENTERED, GREY

COURSE = {  # number: (place in the map, question, methods, the notebooks that it needs)
    "01": ((0.0, 1.2), "the problem", "weight-norm bias", ""),
    "02": ((1.0, 2.2), "the classifier", "cosine normalization", "01"),
    "05": ((1.0, 1.2), "the loss", "LDAM and DRW", "01"),
    "04": ((1.0, 0.2), "features or classifier?", "samplers, tau-normalization", "01"),
    "03": ((2.0, 2.7), "new classes arrive", "LUCIR", "02"),
    "06": ((2.0, 1.95), "the open world", "OLTR memory", "02"),
    "07": ((2.0, 1.0), "the choice", "all methods, your data", "04 05"),
    "08": ((3.0, 1.0), "your photographs", "pretrained networks", "07"),
    "09": ((2.0, -0.2), "texts", "BiLSTM, bag of words", "04 05"),
}
MAP_HELPS = {"05": "02"}  # number: a notebook that helps, but is not needed
ALT = (
    "Map: 01 leads to 02, 04 and 05; 02 leads to 03 and 06, and helps 05; 04 and 05 lead to 07 and 09; 07 leads to 08."
)


def draw() -> tuple[Figure, str]:
    """(figure, alt text) for `figures.show()`: an arrow leads from each notebook to those that need it, a dotted one to
    those that it helps.
    """
    figure, axes = figures.axes_grid(width=11, height=4.2)
    drawn = {}
    for number, ((x, y), question, methods, _) in COURSE.items():
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": GREY, "linewidth": 2}
        drawn[number] = axes.text(x, y, f"{number} · {question}\n{methods}", bbox=box, zorder=3, **CENTERED)
    arrows = [(first, number, "-") for number, (*_, needs) in COURSE.items() for first in needs.split()]
    for first, second, line in [*arrows, *((first, number, ":") for number, first in MAP_HELPS.items())]:
        ends = {"patchA": drawn[first].get_bbox_patch(), "patchB": drawn[second].get_bbox_patch()}
        look = {"arrowstyle": "->", "color": GREY, "shrinkA": 3, "shrinkB": 3, "linewidth": 1.5, "linestyle": line}
        axes.annotate("", COURSE[second][0], COURSE[first][0], arrowprops=look | ends)
    axes.set(xlim=(-0.4, 3.4), ylim=(-0.6, 3.1))
    axes.axis("off")
    return figure, ALT
