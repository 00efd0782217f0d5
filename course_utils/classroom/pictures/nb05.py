"""Pictures of notebook 05: two margins that share a sum; margins on the circle; accuracy along the scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from .. import figures
from ..figures import BLUE, CENTERED, GREY, ORANGE, PURPLE, VERMILLION, Names, Numbers, bare, picture


def bound(share: float | np.ndarray, ratio: float, rare: int = 10) -> float | np.ndarray:
    """1 / (m_1 sqrt(n_1)) + 1 / (m_2 sqrt(n_2)) for m_1 = share, m_2 = 1 - share, n_2 = rare, n_1 = ratio * rare."""
    return 1 / (share * (ratio * rare) ** 0.5) + 1 / ((1 - share) * rare**0.5)


def best_share(ratio: float) -> float:
    """Share of the frequent class where the bound is smallest: n_1^(-1/4) / (n_1^(-1/4) + n_2^(-1/4))."""
    return 1 / (1 + ratio**0.25)


@picture
def trade_off_picture(figure: Figure, rare: int = 10):
    """Left: the border between a frequent and a rare class, the two margins to scale. Right: the bound."""
    left, right = figure.subplots(1, 2)
    bands = [left.add_patch(Rectangle((0, 0.25), 0, 0.5, color=color, alpha=0.35)) for color in (BLUE, VERMILLION)]
    labels = [left.text(0, 0.5, "", fontsize=10, **CENTERED) for _ in bands]
    border = left.axvline(0.5, color="black", linewidth=2)
    left.plot([0, 0], [0.25, 0.75], "o", color=BLUE, markersize=10)
    left.plot([1, 1], [0.25, 0.75], "^", color=VERMILLION, markersize=10)
    left.set(xlim=(-0.15, 1.15), ylim=(0, 1), xlabel="position of the border between the nearest images", yticks=[])
    left.grid(visible=False)
    left.set_title("circles: frequent class · triangles: rare")
    grid = np.linspace(0.03, 0.97, 200)
    (curve,) = right.plot([], [], color=GREY)
    (best,) = right.plot([], [], "k*", markersize=12, label="quarter power")
    (here,) = right.plot([], [], "o", color=ORANGE, markersize=9, label="here")
    right.set(xlim=(0, 1), ylim=(0, 5), xlabel="margin of the frequent class (sum of both = 1)", ylabel="bound")
    right.legend(loc="upper center")

    def update(ratio: float, share: float) -> str:
        lowest, mine = bound(best_share(ratio), ratio, rare), bound(share, ratio, rare)
        curve.set_data(grid, bound(grid, ratio, rare))
        best.set_data([best_share(ratio)], [lowest])
        here.set_data([share], [mine])
        border.set_xdata([share, share])
        parts = (("frequent", 0, share), ("rare", share, 1 - share))
        for band, text, (name, start, width) in zip(bands, labels, parts, strict=True):
            band.set(x=start, width=width)
            text.set(x=start + width / 2, text=f"{name}\n{width:.2f}")
        return (
            f"Counts {ratio * rare:g} and {rare}: at share {share:.2f} the bound is {100 * (mine / lowest - 1):.0f} % "
            f"above its minimum, at share {best_share(ratio):.2f}."
        )

    return update


def margin_circle(
    axes: Axes, weight: Tensor, features: Tensor, labels: Tensor, margins: Numbers, names: Names, colors: Names
) -> Axes:
    """A cosine head on 2-D features. Only directions count, so all lies on the unit circle: rows as arrows, images as
    dots outside; the thick arc of a class is where it wins by at least its margin, the thin grey rest by less."""
    angles = np.linspace(0, 2 * np.pi, 1441)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    rows, dots = F.normalize(weight, dim=1).numpy(), F.normalize(features, dim=1).numpy()
    cosines = circle @ rows.T
    winner, ranked = cosines.argmax(1), np.sort(cosines, 1)
    lead = ranked[:, -1] - ranked[:, -2]
    axes.plot(*circle.T, color="lightgrey", linewidth=2)
    for j, (name, color) in enumerate(zip(names, colors, strict=True)):
        axes.plot(*circle[(winner == j) & (lead >= margins[j])].T, ".", color=color, markersize=7)
        axes.annotate("", rows[j] * 0.92, (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2})
        ring = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": color}
        axes.text(*(rows[j] * 0.6), name, color="black", bbox=ring, **CENTERED)
        outside = (1.1 + 0.1 * j) * dots[(labels == j).numpy()]
        axes.plot(*outside.T, ".", color=color, markersize=4, alpha=0.4)
    for k in np.flatnonzero(winner != np.roll(winner, 1)):  # borders between classes
        axes.plot(*np.stack([0 * circle[k], circle[k]]).T, color="black", linewidth=0.8, linestyle=":")
    axes.set(aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), xticks=[], yticks=[])
    return bare(axes)


@picture
def scale_picture(figure: Figure, rows: Sequence[Mapping[str, float]]):
    """Left: balanced accuracy along the scale, one line for each learning rate. Right: this run by group."""
    found = {(row["max_margin"], row["scale"], row["lr"]): row for row in rows}
    scales, rates = ([*dict.fromkeys(row[key] for row in rows)] for key in ("scale", "lr"))
    left, right = figure.subplots(1, 2)
    styles = zip(rates, (ORANGE, PURPLE, GREY), "osD", strict=False)
    lines = {
        lr: left.plot(
            range(len(scales)), [0.0] * len(scales), color=color, marker=marker, label=f"learning rate {lr:g}"
        )[0]
        for lr, color, marker in styles
    }
    (here,) = left.plot([0], [0], "o", color="black", markersize=14, fillstyle="none", markeredgewidth=2)
    left.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    left.set(ylim=(0, 105), xlabel="scale s", ylabel="validation accuracy in %, all", xlim=(-0.3, len(scales) - 0.7))
    left.legend(loc="lower right")
    bars = figures.group_bars(right)
    texts = [right.text(k, 0, "", ha="center", va="bottom") for k in range(4)]
    right.set(ylim=(0, 105), title="the circled run by group")

    def update(max_margin: float, scale: float, lr: float) -> str:
        row = found[max_margin, scale, lr]
        for rate, line in lines.items():
            line.set_ydata([100 * found[max_margin, s, rate]["all"] for s in scales])
        here.set_data([scales.index(scale)], [100 * row["all"]])
        figures.raise_bars(bars, [row[name] for name in figures.WITH_ALL], texts)
        return (
            f"Margin {max_margin:g}, scale {scale:g}, rate {lr:g}: balanced accuracy {100 * row['all']:.0f} %; "
            f"{row['alive']} of 64 features not always 0."
        )

    return update
