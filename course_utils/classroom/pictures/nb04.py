"""Pictures of notebook 04: what an epoch of each sampler shows; read-outs compared; a tau that moves decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ...decoupling import tau_normalize
from ...metrics import confusion_matrix, paired_interval, per_class_accuracy, shot_accuracy
from .. import figures
from ..figures import ABOVE, CENTERED, GREY, ORANGE, PURPLE, Counts, Names, halo, picture

Fields = Sequence[Sequence[Sequence[float]]]  # rows, columns, seeds


def sorted_rows(axes: Axes, images: Sequence[Tensor], labels: Sequence[Tensor], row_names: Names) -> Axes:
    """Rows of images, each sorted by class; what repeats a class that stands to its left is boxed.

    images: for each row (M, 1, H, W). labels: for each row (M,).
    """
    orders = [own.argsort(stable=True) for own in labels]
    rows = torch.cat([part[order] for part, order in zip(images, orders, strict=True)])
    figures.image_rows(axes, rows, columns=len(labels[0]), row_names=row_names)
    height, width = (side + 2 for side in rows.shape[-2:])
    for y, (own, order) in enumerate(zip(labels, orders, strict=True)):
        now = own[order]
        for x in (1 + (now[1:] == now[:-1]).nonzero().flatten()).tolist():
            box = {"fill": False, "color": PURPLE, "linewidth": 1.5}
            axes.add_patch(Rectangle((x * width - 0.5, y * height - 0.5), width - 1, height - 1, **box))
    return axes


@picture
def sampler_picture(figure: Figure, draw: Callable[[str, int], Tensor], labels: Tensor, counts: Counts, names: Names):
    """How often an epoch shows each class, as bars, beside its number of images, a black outline.

    draw: function (name of a sampler, epoch) -> the images of that epoch, places in `labels`.
    """
    order = sorted(range(len(names)), key=lambda j: -counts[j])
    axes = figures.class_bars(figure.subplots(), [1] * len(names), names, counts, order=order)
    bars: list = list(axes.patches)
    edges, own = np.arange(len(names) + 1) - 0.5, [counts[j] for j in order]
    axes.stairs(
        own, edges, baseline=None, color="black", linewidth=1.5, label="instance-balanced: its images, once each"
    )
    axes.set(ylim=(0, 1.08 * max(counts)), ylabel="times in the epoch")
    axes.add_artist(axes.legend(loc="upper right", bbox_to_anchor=(1, 0.88)))
    figures.group_legend(axes, bars=True, ncols=3, **ABOVE)
    name = axes.text(0.99, 0.97, "", transform=axes.transAxes, ha="right", va="top", weight="bold")

    def update(sampler: str, epoch: int) -> str:
        name.set_text(f"{sampler}, epoch {epoch}")
        drawn = torch.bincount(labels[draw(sampler, epoch)], minlength=len(names))
        for bar, j in zip(bars, order, strict=True):
            bar.set_height(int(drawn[j]))
        first, last = order[0], order[-1]
        return (
            f"{sampler}, epoch {epoch}: {names[first]} comes {int(drawn[first])} times, {names[last]} "
            f"{int(drawn[last])} times, each image of {names[last]} {drawn[last] / counts[last]:.1f} times."
        )

    return update


def accuracy_table(axes: Axes, values: Fields, validation: Fields, rows: Names, columns: Names) -> Axes:
    """Test accuracies in % of all seeds, in every field of a table, as a heat map of their means with a scale of its
    own: the darkest field is the largest, white is 25 points below it, or less. Framed is the field with the best mean
    of `validation`; "=" marks those that tie with it, seed by seed."""
    means, spreads = np.mean(values, -1), np.std(values, -1, ddof=1)
    axes.imshow(means, cmap="Greys", vmin=means.max() - 25, vmax=means.max() + 5, aspect="auto")
    best = np.unravel_index(np.mean(validation, -1).argmax(), means.shape)
    axes.add_patch(Rectangle((best[1] - 0.47, best[0] - 0.45), 0.94, 0.9, fill=False, color=ORANGE, linewidth=2.5))
    for i, j in np.ndindex(means.shape):
        low, high = paired_interval(np.subtract(values[best[0]][best[1]], values[i][j]))
        tie = " =" if low <= 0 <= high and (i, j) != best else ""
        color = "white" if means[i, j] > means.max() - 8 else "black"
        axes.text(j, i, f"{means[i, j]:.1f} ± {spreads[i, j]:.1f}{tie}", fontsize=9, color=color, **CENTERED)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    return figures.bare(axes)


def differences_in_bands(axes: Axes, bands: Mapping[str, Mapping[str, Sequence[float]]]) -> Axes:
    """Differences paired by seed, a line for each with its 95 % interval (see `figures.difference_line()`), in bands.

    bands: {name of the band: {name of the line: differences, one a seed}}.
    """
    height, ticks, texts = 0.0, [], []
    for k, (band, lines) in enumerate(bands.items()):
        top = height
        axes.text(0.01, height + 0.55, band, transform=axes.get_yaxis_transform(), weight="bold", va="center")
        for line, differences in lines.items():
            height += 1
            figures.difference_line(axes, differences, height + 0.5)
            ticks.append(height + 0.5)
            texts.append(line)
        height += 1.1
        if k % 2 == 0:
            axes.axhspan(top, height, color=GREY, alpha=0.1, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(ticks, texts)
    axes.set_ylim(height, 0)
    axes.grid(axis="y", visible=False)
    return axes


@picture
def tau_picture(
    figure: Figure,
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    counts: Counts,
    names: Names,
    means: Tensor,
    corners: str,
    points: int = 80,
):
    """Accuracy by group, decision regions on the plane through three class means, and the confusion, for one tau.

    means: (C, D), mean training feature of each class. corners: the names of three classes; the plane goes through
    their means, and their test images are drawn where they fall on it. Other classes with a region get a small name.
    """
    a, b, c = (means[names.index(name)] for name in corners)
    across = (b - a) / (b - a).norm()
    up = (c - a) - ((c - a) @ across) * across
    flat = torch.stack([across, up / up.norm()], 1)

    def on_plane(points: Tensor) -> np.ndarray:
        return ((points - a) @ flat).numpy()

    dots = [on_plane(features[labels == names.index(name)]) for name in corners]
    low, high = np.min([d.min(0) for d in dots], axis=0), np.max([d.max(0) for d in dots], axis=0)
    x, y = (torch.linspace(float(lo), float(hi), points) for lo, hi in zip(low, high, strict=True))
    places = a + torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2) @ flat.T
    order = sorted(range(len(names)), key=lambda j: -counts[j])
    extent = [low[0], high[0], low[1], high[1]]

    left, middle, right = figure.subplots(1, 3, width_ratios=[2, 3, 3])
    bars = figures.group_bars(left)
    left.set(ylim=(0, 100), ylabel="test accuracy in %", title="by group")
    left.tick_params(axis="x", rotation=40)
    regions = figures.region_image(middle, np.zeros((points, points)), counts, extent, aspect="auto")
    letter = {"path_effects": halo(2.5), **CENTERED}
    for name, mark, cloud, marker in zip(corners, on_plane(torch.stack([a, b, c])), dots, "ovs", strict=True):
        middle.plot(*cloud.T, marker, color="black", markersize=2.5, alpha=0.35)
        middle.text(*mark, name, fontsize=13, weight="bold", **letter)
    rest = [j for j, name in enumerate(names) if name not in corners]
    others = {j: middle.text(0, 0, names[j], fontsize=9, visible=False, **letter) for j in rest}
    middle.set(title=f"plane through the means of {', '.join(corners)}", xlim=extent[:2], ylim=extent[2:])
    middle.set_xlabel(f"distance from the mean of {corners[0]} (units of the features)")
    table = figures.confusion_axes(right, [names[j] for j in order], cmap="Greys", vmin=0, vmax=1)
    right.set(title="confusion (grey: root of the share)", xlabel="what it says", ylabel="what it is")

    def update(tau: float) -> str:
        moved = tau_normalize(weight, tau)
        said = (features @ moved.T).argmax(1)
        scores = shot_accuracy(per_class_accuracy(said, labels, len(names)), counts)
        figures.raise_bars(bars, scores.values())
        owners = (places @ moved.T).argmax(1)
        regions.set_data(owners.reshape(points, points).numpy())
        for j, text in others.items():
            own = on_plane(places[owners == j])
            text.set_visible(len(own) > 0.005 * len(places))  # a smaller region has no room for a letter
            if text.get_visible():
                center = np.median(own, axis=0)
                text.set_position(own[((own - center) ** 2).sum(1).argmin()])  # a place inside the region
        confusion = confusion_matrix(said, labels, len(names))[order][:, order].double()
        table.set_data((confusion / confusion.sum(1, keepdim=True)).sqrt())
        return f"tau {tau:.1f}: {figures.in_percent(scores)}."

    return update
