"""One picture of LUCIR (Hou et al. 2019): teacher and student, the rows of the head, three problems and their cures."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from ..figures import CENTERED, GREY

LUCIR_ALT = (
    "Left: one image goes through a frozen teacher and through the student; their features are held together, and the "
    "head has frozen old rows and new ones. Right: three problems on the unit circle, each with its cure: rows of "
    "unequal length become equal, a feature that turned away is held at the teacher's, and a new row too near an old "
    "feature is pushed off by a margin."
)
SIZE = 12.0, 5.0  # inches, and the units of the picture
OLD, NEW, FEATURE, TEACHER = "#555555", "#A86400", "#1B6FA8", "#A34E80"  # dark enough for text on white
CURES = (
    ("cosine head (eq. 4)", "unequal norms → equal norms", r"$z_j = \eta\,\cos(w_j, f)$"),
    ("less-forget (eq. 6)", "feature turns away → is held", r"$1 - \cos(f^{*}, f)$"),
    ("separation (eq. 8)", "new row too near → margin $m$", r"$\max(0,\, m - \cos(w_o, f) + \cos(w_n, f))$"),
)


def lucir_schematic(figure: Figure) -> Axes:
    """Draw it; the figure becomes 12 x 5 inches, so that text keeps its size on a slide."""
    figure.set_size_inches(*SIZE)
    figure.set_layout_engine("none")  # there is one axes, as large as the figure
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, SIZE[0]), ylim=(0, SIZE[1]), aspect="equal")
    axes.axis("off")
    _networks(axes)
    for x, word in ((6.65, "problem"), (8.25, "cure")):
        axes.text(x, 4.82, word, fontsize=12, style="italic", **CENTERED)
    rows = zip(CURES, (3.9, 2.4, 0.85), (_norms, _turn, _margin), strict=True)
    for number, ((title, words, equation), y, draw) in enumerate(rows, start=1):
        for x, cured in ((6.65, False), (8.25, True)):
            axes.add_patch(Circle((x, y), RADIUS, fill=False, color=GREY, linewidth=1))
            draw(axes, x, y, cured)
        _arrow(axes, (7.32, y - 0.15), (7.58, y - 0.15), "black")
        _badge(axes, 9.3, y + 0.38, number)
        axes.text(9.53, y + 0.38, title, fontsize=13, weight="bold", va="center")
        axes.text(9.2, y, words, fontsize=11, va="center")
        axes.text(9.2, y - 0.38, equation, fontsize=11, va="center")
    return axes


RADIUS = 0.55


def _networks(axes: Axes) -> None:
    _box(axes, 0.2, 2.1, 0.9, 0.9, "black", "white")
    axes.text(0.65, 2.55, "Q", fontsize=28, family="serif", **CENTERED)
    axes.text(0.65, 1.9, "an image", fontsize=11, **CENTERED)
    for y, name, words, color in ((3.35, "teacher", "frozen", TEACHER), (0.75, "student", "is trained", FEATURE)):
        _box(axes, 1.6, y, 1.5, 1.0, color, "#F2F2F2" if name == "teacher" else "white")
        axes.text(2.35, y + 0.65, name, fontsize=13, weight="bold", color=color, **CENTERED)
        axes.text(2.35, y + 0.3, words, fontsize=11, **CENTERED)
        _arrow(axes, (1.15, 2.55), (1.55, y + 0.5), "black")
        _arrow(axes, (3.15, y + 0.5), (3.5, y + 0.5), "black")
    axes.text(3.75, 3.85, "$f^{*}$", fontsize=18, color=TEACHER, **CENTERED)
    axes.text(3.75, 1.25, "$f$", fontsize=18, color=FEATURE, **CENTERED)
    axes.annotate("", (3.75, 1.5), (3.75, 3.6), arrowprops={"arrowstyle": "<->", "color": "black", "linewidth": 1.5})
    axes.text(3.6, 2.55, "held\ntogether", fontsize=11, ha="right", va="center")
    _badge(axes, 3.95, 2.55, 2)
    _arrow(axes, (3.95, 1.25), (4.3, 1.25), "black")
    for y, height, text, color, fill in (
        (1.0, 1.4, "old rows $w_o$\nfrozen", OLD, "#F2F2F2"),
        (0.2, 0.65, "new rows $w_n$", NEW, "white"),
    ):
        _box(axes, 4.35, y, 1.45, height, color, fill)
        axes.text(5.07, y + height / 2, text, fontsize=11, color=color, **CENTERED)
    axes.text(5.07, 2.65, "cosine head", fontsize=13, weight="bold", **CENTERED)
    _badge(axes, 5.07, 2.95, 1)
    _badge(axes, 5.55, 0.925, 3)


def _norms(axes: Axes, x: float, y: float, cured: bool) -> None:
    for degrees, length, color, name in ((30, 1.35, NEW, "$w_n$"), (120, 0.6, OLD, "$w_o$"), (200, 0.75, OLD, "")):
        _ray(axes, x, y, degrees, 1 if cured else length, color, name)


def _turn(axes: Axes, x: float, y: float, cured: bool) -> None:
    _ray(axes, x, y, 130, 1, TEACHER, "$f^{*}$")
    _ray(axes, x, y, 115 if cured else 45, 1, FEATURE, "$f$")


def _margin(axes: Axes, x: float, y: float, cured: bool) -> None:
    _ray(axes, x, y, 135, 1, OLD, "$w_o$")
    _ray(axes, x, y, 105, 1, FEATURE, "$f$")
    _ray(axes, x, y, 20 if cured else 80, 1, NEW, "$w_n$")


def _ray(axes: Axes, x: float, y: float, degrees: float, length: float, color: str, name: str) -> None:
    dx, dy = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    _arrow(axes, (x, y), (x + RADIUS * length * dx, y + RADIUS * length * dy), color, 2)
    if name:
        far = RADIUS * max(length, 1) + 0.17
        axes.text(x + far * dx, y + far * dy, name, fontsize=12, color=color, **CENTERED)


def _badge(axes: Axes, x: float, y: float, number: int) -> None:
    """The number of a cure, here and there in the picture."""
    axes.add_patch(Circle((x, y), 0.14, facecolor="black", edgecolor="white", zorder=3))
    axes.text(x, y, str(number), fontsize=11, weight="bold", color="white", zorder=4, ha="center", va="center_baseline")


def _arrow(axes: Axes, start: tuple, end: tuple, color: str, width: float = 1.5) -> None:
    style: dict[str, Any] = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12}
    axes.annotate("", end, start, arrowprops={"color": color, "linewidth": width, **style})


def _box(axes: Axes, x: float, y: float, width: float, height: float, edge: str, fill: str) -> None:
    style = {"boxstyle": "round,pad=0,rounding_size=0.08", "linewidth": 2}
    axes.add_patch(FancyBboxPatch((x, y), width, height, edgecolor=edge, facecolor=fill, **style))
