"""Pictures of notebook 02: the scale of cosine logits; a class vector that is turned and stretched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ...heads import cosine_loss_floor
from ..figures import BLUE, GREY, VERMILLION, feature_plane, move_feature_plane, plane_regions


def scale_picture(most_classes: int, scales: Sequence[float]):
    """Left: the best softmax that cosine logits allow. Right: the loss floor along the scale."""

    def picture(figure: Figure):
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

    return picture


def turned_and_stretched(weight: Tensor, row: int, angle: float, length: float) -> Tensor:
    """A copy of weight (C, 2) whose `row` is turned by `angle` degrees and `length` times as long."""
    turn = math.radians(angle)
    rotation = torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    moved = weight.clone()
    moved[row] = length * rotation @ weight[row]
    return moved


def vector_picture(weight: Tensor, counts: Sequence[int], names: Sequence[str], row: int):
    """Regions of four class vectors in the plane, linear and cosine, while one of them is turned and stretched."""
    extent, scale = 1.5, 1.0

    def picture(figure: Figure):
        panels = figure.subplots(1, 2)
        zeros = torch.zeros(len(weight))
        artists = []
        for axes, title, rows in zip(
            panels,
            ("linear: $w_j \\cdot f$", "cosine: $\\cos(w_j, f)$"),
            (weight, F.normalize(weight, dim=1)),
            strict=True,
        ):
            artists.append(feature_plane(axes, rows, zeros, counts, names, extent, scale))
            axes.set_title(title)

        def update(angle: int, length: float) -> str:
            moved = turned_and_stretched(weight, row, angle, length)
            shares = []
            for part, rows in zip(artists, (moved, F.normalize(moved, dim=1)), strict=True):
                move_feature_plane(part, rows, zeros)
                shares.append(100 * (plane_regions(rows, zeros, extent) == row).mean())
            return (
                f"{names[row]} turned by {angle}° and {length:g} times as long: it wins {shares[0]:.0f} % of the "
                f"plane with linear logits, {shares[1]:.0f} % with cosines."
            )

        return update

    return picture
