"""Pictures of notebook 02: the scale of cosine logits; a class vector that is turned and stretched."""

from __future__ import annotations

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ...heads import cosine_loss_floor
from .. import figures
from ..figures import BLUE, GREY, VERMILLION, Counts, Names, Numbers, picture


@picture
def scale_picture(figure: Figure, most_classes: int, scales: Numbers):
    """Left: the best softmax that cosine logits allow. Right: the loss floor along the scale."""
    left, right = figure.subplots(1, 2)
    bars = left.bar(range(most_classes), [0.0] * most_classes, color=[VERMILLION] + [GREY] * (most_classes - 1))
    left.set(ylim=(0, 1), xlabel="class; the right one is 0", ylabel="probability", xlim=(-0.8, most_classes - 0.2))
    (line,) = right.plot([], [], color=BLUE)
    (dot,) = right.plot([], [], "o", color=VERMILLION, markersize=9)
    right.set(xlim=(0, max(scales)), ylim=(0, 3.5), xlabel="scale", ylabel="smallest possible loss (nats)")
    left.set_title("the best prediction possible")
    right.set_title("the loss floor")

    def update(classes: int, scale: float) -> str:
        floor = cosine_loss_floor(classes, scale)
        best = math.exp(-floor)
        for j, bar in enumerate(bars):
            bar.set_height(best if j == 0 else (1 - best) / (classes - 1) if j < classes else 0)
        grid = torch.linspace(0, max(scales), 60).tolist()
        line.set_data(grid, [cosine_loss_floor(classes, s) for s in grid])
        dot.set_data([scale], [floor])
        return (
            f"{classes} classes, scale {scale:g}: the right class gets at most {100 * best:.1f} %, "
            f"so the loss cannot fall below {floor:.3f}."
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
            f"{names[row]} turned by {angle}° and {length:g} times as long: it wins {shares[0]:.0f} % of the "
            f"plane with linear logits, {shares[1]:.0f} % with cosines."
        )

    return update
