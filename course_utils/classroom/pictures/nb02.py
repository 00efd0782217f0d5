"""Pictures of notebook 02: the scale of cosine logits, and how it is learnt; a row that is turned and stretched;
sectors on a circle. Before them angles between rows, and rows of tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from torch import Tensor
from torch.nn import functional as F

from ...heads import cosine_loss_floor
from ...metrics import spread_text
from ...runtime import require
from .. import figures
from ..figures import GREY, ORANGE, PURPLE, WITH_ALL, Counts, Names, Numbers, picture


def mean_angle(rows: Tensor) -> float:
    """The mean angle between two of these rows (C, D), in degrees."""
    cosines = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).T
    pairs = torch.triu_indices(len(rows), len(rows), 1)
    return torch.rad2deg(cosines[pairs[0], pairs[1]].clamp(-1, 1).acos()).mean().item()


def angles_to_own(weight: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """(C,) the angle between each row and the mean direction of the features of its class, in degrees."""
    own = [F.normalize(features[labels == j], dim=1).mean(0) for j in range(len(weight))]
    return torch.rad2deg(F.cosine_similarity(weight, torch.stack(own), dim=1).acos())


def spread(values: Iterable[float], digits: int = 1) -> str:
    """ "84.1 ± 0.4": mean and standard deviation over seeds."""
    return spread_text(values, digits)


def in_row(name: str, seeds: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """A row of a table: accuracy by group of one method in %, over its seeds."""
    return {"test accuracy in %": name} | {g: spread(100 * seed[g] for seed in seeds) for g in WITH_ALL}


def draw_learnt_scales(axes: Axes, scales: Mapping[float, Sequence[Numbers]]) -> Axes:
    """The learnt scale over epochs, {where it starts: for each seed its value after each epoch}, from two starts."""
    named = {f"starts at {start:g}": [[start, *seed] for seed in seeds] for start, seeds in scales.items()}
    looks = zip(named, ({"color": PURPLE}, {"color": ORANGE, "linestyle": "--"}), strict=True)
    epochs = max(len(seed) for seeds in named.values() for seed in seeds) - 1
    figures.curves(axes, named, range(epochs + 1), **dict(looks))
    axes.set(xlim=(0, epochs), xlabel="epochs trained", ylabel="scale")
    axes.legend(loc="lower right")
    return axes


@picture
def scale_picture(figure: Figure, scales: Numbers):
    """Along the scale. Left: the best probability that cosine logits allow. Right: the loss floor."""
    left, right = figure.subplots(1, 2)
    grid = torch.linspace(0, max(scales), 200).tolist()
    lines = [axes.plot([], [], color="black", linewidth=2)[0] for axes in (left, right)]
    dots = [axes.plot([], [], "o", color=ORANGE, markersize=10)[0] for axes in (left, right)]
    left.axhline(99, color=GREY, linestyle=":")
    left.annotate("99 %", (max(scales), 97), ha="right", va="top", color=GREY)
    left.set(ylim=(0, 104), ylabel="right class, at most, in %", title="how sure the softmax can be")
    right.set(ylim=(0, 3.4), ylabel="smallest loss (nats)", title="the loss floor")
    for axes in (left, right):
        axes.set(xlim=(0, max(scales)), xlabel="scale")

    def update(classes: int, scale: float) -> str:
        floors = [cosine_loss_floor(classes, s) for s in grid]
        floor = cosine_loss_floor(classes, scale)
        for line, values in zip(lines, ([100 * math.exp(-f) for f in floors], floors), strict=True):
            line.set_data(grid, values)
        for dot, value in zip(dots, (100 * math.exp(-floor), floor), strict=True):
            dot.set_data([scale], [value])
        return (
            f"{classes} classes, scale {scale:g}: right class at most {100 * math.exp(-floor):.1f} %, "
            f"loss at least {floor:.3f}."
        )

    return update


def turned_and_stretched(weight: Tensor, row: int, angle: float, length: float) -> Tensor:
    """A copy of weight (C, 2) whose `row` is turned by `angle` degrees and `length` times as long."""
    turn = math.radians(angle)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    moved = weight.clone()
    moved[row] = length * rotation @ weight[row]
    return moved


@picture
def vector_picture(figure: Figure, weight: Tensor, counts: Counts, names: Names, row: int):
    """Regions of four class vectors in the plane, linear and cosine, while one of them is turned and stretched."""
    extent, scale, zeros = 1.5, 1.0, torch.zeros(len(weight))
    heads = {
        "linear: $w_j \\cdot f$": lambda rows: rows,
        "cosine: $\\cos(w_j, f)$": lambda rows: F.normalize(rows, dim=1),
    }
    artists = []
    for axes, (title, treat) in zip(figure.subplots(1, 2), heads.items(), strict=True):
        artists.append(figures.feature_plane(axes, treat(weight), zeros, counts, names, extent, scale))
        axes.set_title(title)

    def update(angle: int, length: float) -> str:
        moved = turned_and_stretched(weight, row, angle, length)
        shares = []
        for part, treat in zip(artists, heads.values(), strict=True):
            figures.move_feature_plane(part, treat(moved), zeros)
            shares.append(100 * (figures.plane_regions(treat(moved), zeros, extent) == row).mean())
        return (
            f"{names[row]} turned by {angle}°, {length:g} times as long: it wins {shares[0]:.0f} % of the plane "
            f"(linear), {shares[1]:.0f} % (cosine)."
        )

    return update


def sectors(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Where the part of the circle begins that each row (C, 2) of a cosine head wins, and how wide it is: two (C,),
    in degrees, C at least 2. A border lies half-way between two neighbouring rows; the widths add up to 360."""
    require(weight.ndim == 2 and weight.shape[1] == 2, "weight", f"shape {tuple(weight.shape)}", "(classes, 2)")
    require(len(weight) >= 2, "weight", "one row", "at least two")
    angles = torch.rad2deg(torch.atan2(weight[:, 1], weight[:, 0])) % 360
    order = angles.argsort()
    after = (angles[order].roll(-1) - angles[order]) % 360  # to the next row, counter-clockwise
    begins, widths = torch.empty_like(angles), torch.empty_like(angles)
    begins[order] = angles[order] - after.roll(1) / 2
    widths[order] = (after + after.roll(1)) / 2
    return begins % 360, widths


def draw_sectors(
    axes: Axes, weight: Tensor, features: Tensor, labels: Tensor, counts: Counts, names: Names, shown: int = 60
) -> Axes:
    """The circle of a cosine head on two features: its rows (C, 2) as arrows in the sectors that they win, and around
    it a ring for each class with the directions of up to `shown` of its images, features (N, 2)."""
    colors = figures.region_colors(counts)
    style = {"markevery": [1], "markersize": 7, "markeredgecolor": "white", "linestyle": "-", "linewidth": 2}
    rows, directions = F.normalize(weight, dim=1), F.normalize(features, dim=1)
    text = {"path_effects": figures.halo(3), "zorder": 6, **figures.CENTERED}
    for j, (begin, width) in enumerate(zip(*(t.tolist() for t in sectors(weight)), strict=True)):
        group, ring = figures.group_of(counts)[j], 1.12 + 0.1 * j
        axes.add_patch(Wedge((0, 0), 1, begin, begin + width, facecolor=colors[j], edgecolor="white"))
        x, y = (0.94 * rows[j]).tolist()
        axes.plot([0, x], [0, y], **figures.point_style(group, **style), zorder=5)
        middle, place = math.radians(begin + width / 2), 0.7 if width > 15 else 0.86  # a sliver is wider farther out
        at = place * math.cos(middle), place * math.sin(middle)
        axes.text(*at, names[j], fontsize=12, fontweight="bold", **text)
        axes.add_patch(Wedge((0, 0), ring + 0.003, 0, 360, width=0.006, facecolor=GREY, alpha=0.3))
        images = ring * directions[labels == j][:shown]
        axes.plot(*images.T, ".", markersize=5, color=figures.GROUP_COLORS[group], alpha=0.5)
        axes.text(ring * math.cos(math.radians(250)), ring * math.sin(math.radians(250)), names[j], fontsize=9, **text)
    edge = 1.12 + 0.1 * len(counts)
    axes.set(xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal", xticks=[], yticks=[])
    return figures.bare(axes)
