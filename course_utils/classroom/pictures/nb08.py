"""Pictures of notebook 08: what a folder holds, groups with borders of their own, and other shares of the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...metrics import per_class_accuracy, shot_accuracy
from ...photos import Photos
from .. import figures
from ..figures import GREY, GROUP_COLORS, GROUP_HATCHES, ORANGE, Counts, Names, picture

MANY, FEW = 30, 10  # a small folder has no class with more than 100 pictures
LABELS = {"many": "many (> 30 pictures)", "medium": "medium (10 to 30)", "few": "few (< 10)", "all": "all"}
PLACES = {  # the shares of the classes are n_j to this power
    "as in training": 1.0,
    "flatter": 0.5,
    "all equal": 0.0,
    "rare ones common": -0.5,
}
TOLD = ("nothing", "its true shares", "the training shares")
PLACE_SIZE = (10.0, 4.4)


def by_group(said: Tensor, labels: Tensor, counts: Counts) -> dict[str, Any]:
    """Accuracies 0 to 1, of the groups with the borders of this notebook and of each class; said, labels: (N,)."""
    per_class = per_class_accuracy(said, labels, len(counts))
    groups = shot_accuracy(per_class, torch.as_tensor(counts), many=MANY, few=FEW)
    return {"groups": groups, "per_class": per_class.tolist()}


def groups_of(counts: Counts) -> list[str]:
    """ "many", "medium" or "few" for each class."""
    return ["many" if n > MANY else "few" if n < FEW else "medium" for n in counts]


def class_bars(axes: Axes, values: Sequence[float], counts: Counts, names: Names):
    """A bar for each class, the largest class first, in the colour and hatch of its group; the bars in that order."""
    order = sorted(range(len(counts)), key=lambda j: -counts[j])
    groups = [groups_of(counts)[j] for j in order]
    style = {"color": [GROUP_COLORS[g] for g in groups], "hatch": [GROUP_HATCHES[g] for g in groups]}
    bars = axes.bar(range(len(order)), [values[j] for j in order], edgecolor="white", linewidth=0, **style)
    axes.set_xticks(
        range(len(order)), [names[j].replace("_", " ") for j in order], rotation=60, ha="right", fontsize=10
    )
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.grid(axis="x", visible=False)
    return bars, order


def folder_picture(axes: Sequence[Axes], photos: Photos, counts: Counts, columns: int = 6) -> None:
    """Left: training pictures of each class. Right: the first ones of the two largest and three smallest classes."""
    left, right = axes
    bars, order = class_bars(left, counts, counts, photos.class_names)
    left.bar_label(bars, fontsize=10, padding=1)
    left.set(yscale="log", ylim=(0.8, 200), ylabel="training pictures")
    chosen = [*order[:2], *order[-3:]]
    look = photos.view.plain()
    places = [(photos.labels == j).nonzero()[:columns, 0].tolist() for j in chosen]
    paper = torch.full((3, photos.view.size, photos.view.size), 255, dtype=torch.uint8)
    read = [[look(photos.view.open(photos.path(i))) for i in some] for some in places]
    sheet = torch.cat([torch.cat([*row, *[paper] * (columns - len(row))], 2) for row in read], 1)
    right.imshow(sheet.permute(1, 2, 0).numpy())
    side = photos.view.size
    names = [photos.class_names[j].replace("_", " ") for j in chosen]
    right.set_yticks([side * (k + 0.5) for k in range(len(chosen))], names)
    right.set_xticks([])
    right.tick_params(length=0)
    right.grid(visible=False)
    right.spines[:].set_visible(False)


def pair_pictures(axes: Sequence[Axes], pairs: Mapping[str, Tensor], background: str = "#dddddd") -> None:
    """Pictures (H, W, 3) of 0 to 255 beside each other, with their titles."""
    for ax, (title, pixels) in zip(axes, pairs.items(), strict=True):
        ax.imshow(pixels)
        ax.set_title(title, fontsize=11)
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(True)
        ax.spines[:].set_color(background)


def shares_of(counts: Counts, power: float) -> Tensor:
    """float32 (C,): q_j ~ n_j^power, sum 1."""
    raised = torch.as_tensor(counts, dtype=torch.float64) ** power
    return (raised / raised.sum()).float()


def accuracy_there(said: Tensor, labels: Tensor, shares: Tensor) -> float:
    """In %, where the classes have these shares: each class's accuracy counts as often as the class comes."""
    return 100 * float((per_class_accuracy(said, labels, len(shares)) * shares).sum())


@picture
def place_picture(
    figure: Figure,
    at_the_place: Callable[[Tensor, Tensor, Tensor], Tensor],
    answers: Mapping[str, Sequence[tuple[Tensor, Tensor]]],
    assumed: Mapping[str, Tensor],
    counts: Counts,
    names: Names,
):
    """Left: shares of the classes at a place. Right: accuracy there of every head, told something about the shares.

    answers: {head: [(logits (N, C), labels (N,)) of each split]}. assumed: what the logits of a head assume.
    """
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    bars, order = class_bars(left, [0.0] * len(counts), counts, names)
    figures.group_legend(left, figures.GROUPS, bars=True, labels=LABELS, loc="upper right", fontsize=10)
    left.set(ylim=(0, 46), ylabel="share of the class there, %")
    points = {head: right.plot([], [], "o", color=GREY, markersize=4, zorder=4)[0] for head in answers}
    means = {head: right.plot([], [], "D", color=ORANGE, markersize=9)[0] for head in answers}
    right.set_yticks(range(len(answers)), list(answers))
    right.set(ylim=(len(answers) - 0.5, -0.5), xlim=(20, 90), xlabel="accuracy there in %; dots: splits")
    right.grid(axis="y", visible=False)

    def update(place: str, told: str) -> str:
        there = shares_of(counts, PLACES[place])
        for bar, j in zip(bars, order, strict=True):
            bar.set_height(100 * float(there[j]))
        found = {}
        for row, (head, splits) in enumerate(answers.items()):
            says = {"nothing": assumed[head], "its true shares": there, "the training shares": shares_of(counts, 1.0)}
            values = [
                accuracy_there(at_the_place(logits, assumed[head], says[told]).argmax(1), labels, there)
                for logits, labels in splits
            ]
            points[head].set_data(values, [row] * len(values))
            means[head].set_data([sum(values) / len(values)], [row])
            found[head] = f"{sum(values) / len(values):.1f} %"
        right.set_title(f"the heads are told {told}", fontsize=11)
        return f"{place.capitalize()}, told {told}: " + ", ".join(f"{h} {text}" for h, text in found.items())

    return update
