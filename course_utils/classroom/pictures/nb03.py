"""Pictures of notebook 03: confusion matrices and features phase by phase; the margin on real cosines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...metrics import confusion_matrix, error_blocks
from .. import figures
from ..figures import ABOVE, BLUE, CENTERED, GREEN, GREY, PURPLE, SKY, VERMILLION, Names, picture


def draw_confusion(axes: Axes, predictions: Tensor, labels: Tensor, names: Names, old: int) -> dict:
    """Confusion matrix in % of each row, the border between old and new classes as lines; the darkest colour is 60 %
    or more. Returns the artists."""
    image = figures.confusion_axes(axes, names, cmap="Blues", vmin=0, vmax=60)
    lines = [axes.axhline(0, color=VERMILLION, linewidth=1), axes.axvline(0, color=VERMILLION, linewidth=1)]
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.6, aspect=25, pad=0.02, ticks=[0, 20, 40, 60])
    bar.ax.set_yticklabels(["0 %", "20 %", "40 %", "60 %\nor more"], fontsize=8)
    bar.set_label("of the images of the row", fontsize=9)
    axes.set(xlabel="called", ylabel="is")
    artists = {"image": image, "lines": lines, "classes": len(names)}
    move_confusion(artists, predictions, labels, old)
    return artists


def move_confusion(artists: dict, predictions: Tensor, labels: Tensor, old: int) -> None:
    """Show other predictions in a picture made by `draw_confusion()`."""
    counts = confusion_matrix(predictions, labels, artists["classes"]).double()
    artists["image"].set_data((100 * counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy())
    artists["lines"][0].set_ydata([old - 0.5] * 2)
    artists["lines"][1].set_xdata([old - 0.5] * 2)


@picture
def phase_picture(
    figure: Figure,
    predictions: Mapping[str, Sequence[Tensor]],
    labels: Tensor,
    maps: Mapping[str, Sequence[tuple]],
    phases: Names,
):
    """Left: confusion matrix after a phase. Right: the feature map of the same moment, old letters grey, new ones red.

    predictions: for each method, one tensor a phase. labels: (N,) of all test images in the order of arrival.
    maps: for each method, one (points (M, 2), labels (M,)) a phase.
    """
    names = "".join(phases)
    sizes = np.cumsum([len(phase) for phase in phases]).tolist()
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
    artists = draw_confusion(left, next(iter(predictions.values()))[0], labels[labels < sizes[0]], names, sizes[0])
    (old_dots,) = right.plot([], [], ".", color=GREY, markersize=3, alpha=0.6, label="old letters")
    (new_dots,) = right.plot([], [], ".", color=VERMILLION, markersize=4, label="letters of this phase")
    texts = [right.text(0, 0, name, fontsize=9, clip_on=True, **CENTERED) for name in names]
    every = np.concatenate([points for parts in maps.values() for points, _ in parts])
    low, high = every.min(0) - 1, every.max(0) + 1
    right.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), **figures.UMAP_AXES)
    right.legend(ncols=2, **ABOVE)

    def update(method: str, phase: int) -> str:
        seen, old = sizes[phase], sizes[phase - 1] if phase else sizes[0]
        known = labels[labels < seen]
        move_confusion(artists, predictions[method][phase], known, old)
        points, letters = maps[method][phase]
        fresh = letters >= (old if phase else 0)
        old_dots.set_data(*points[~fresh].T)
        new_dots.set_data(*points[fresh].T)
        for j, text in enumerate(texts):
            text.set_visible(bool((letters == j).any()))
            if text.get_visible():
                text.set_position(np.median(points[letters == j], axis=0))
        if not phase:
            return f"{method}, phase 0: the first {seen} letters."
        blocks = error_blocks(predictions[method][phase], known, old)
        return (
            f"{method}, phase {phase}, {phases[phase]} are new: {100 * blocks['old_to_new']:.1f} % of the old "
            f"images are called new, {100 * blocks['new_to_old']:.1f} % of the new ones old."
        )

    return update


@picture
def margin_picture(figure: Figure, own: Tensor, nearest: Tensor):
    """Each old image as points (cosine with its own class, cosine with its k nearest new classes), and the margin.

    own: (N,). nearest: (N, K), the largest first.
    """
    axes = figure.subplots()
    (fine,) = axes.plot([], [], ".", color=BLUE, markersize=3, alpha=0.4, label="margin kept: no loss")
    (wrong,) = axes.plot([], [], "x", color=VERMILLION, markersize=3, alpha=0.5, label="margin violated: pushed")
    (border,) = axes.plot([], [], color="black", linewidth=1.2, label="border: own - new = margin")
    axes.plot([-1, 1], [-1, 1], ":", color="black", linewidth=1, label="called new above this line")
    axes.set(xlim=(-0.25, 1.02), xlabel="cosine with the own (old) class")
    axes.set(ylim=(-0.75, 1.02), ylabel="cosine with a near new class")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    def update(margin: float, k: int) -> str:
        x, y = own[:, None].expand(-1, k).flatten(), nearest[:, :k].flatten()
        loss = (margin - x + y).clamp(min=0)
        for dots, which in ((fine, loss == 0), (wrong, loss > 0)):
            dots.set_data(x[which].numpy(), y[which].numpy())
        ends = torch.tensor([-1.0, 1.02])
        border.set_data(ends.numpy(), (ends - margin).numpy())
        return (
            f"Margin {margin:g}, {k} of {nearest.shape[1]} new classes: {100 * (loss > 0).double().mean():.0f} % of "
            f"the pairs are pushed, mean loss {loss.mean():.3f}."
        )

    return update


# ---- still pictures --------------------------------------------------------------------------------------------------


def draw_magnitudes(axes: Axes, norms: Tensor, bias: Tensor, names: Names, num_new: int) -> Axes:
    """Row norms as bars and biases as diamonds, in the order of arrival; the last `num_new` classes red."""
    old = len(names) - num_new
    axes.bar(range(old), norms[:old], color=GREY, label="norms of old rows")
    axes.bar(range(old, len(names)), norms[old:], color=VERMILLION, hatch="//", edgecolor="white", label="of new rows")
    axes.plot(range(len(names)), bias, "kd", markersize=4, label="biases")
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="class, in the order of arrival", ylabel="norm of the row, bias")
    axes.legend(ncols=3, **ABOVE)
    return axes


def draw_trade(axes: Axes, points: Mapping[str, Sequence[Sequence[float]]]) -> Axes:
    """One mark for each setting at its mean (old accuracy, new accuracy) in %, small dots for the seeds."""
    means = [(float(np.mean(old)), float(np.mean(new))) for old, new in points.values()]
    axes.plot(*zip(*means, strict=True), "o-", color=PURPLE, markersize=8)
    for name, (old, new), mean in zip(points, points.values(), means, strict=True):
        axes.plot(old, new, ".", color=GREY)
        axes.annotate(name, mean, textcoords="offset points", xytext=(7, 5))
    axes.margins(x=0.12, y=0.1)
    axes.set(xlabel="stability: old classes right, %", ylabel="plasticity: newest classes right, %")
    return axes


def draw_margins(axes: Axes, margins: Tensor, margin: float) -> Axes:
    """Histogram of the margins of old images (of all seeds together); lines at 0, where they are lost, and at the
    margin of the loss."""
    axes.hist(margins.numpy(), bins=60, range=(-1, 1.6), color=BLUE)
    axes.axvline(0, color=VERMILLION, label="left of it: a new\nletter beats its own")
    axes.axvline(margin, color=VERMILLION, linestyle="--", label="margin of\nthe loss")
    axes.legend(loc="upper left", fontsize=8)
    axes.set(xlabel="own cosine - nearest new cosine", ylabel="old test images, all seeds")
    return axes


def draw_curves(axes: Axes, curves: Mapping[str, Tensor], known: Sequence[int]) -> Axes:
    """Accuracy (S seeds, P phases), 0 to 1, of several methods along the number of classes known: means and seeds."""
    styles = zip((GREY, VERMILLION, SKY, BLUE, GREEN), "os^vD", strict=True)
    for (method, values), (color, marker) in zip(curves.items(), styles, strict=False):
        axes.plot(known, 100 * values.mean(0), marker + "-", color=color, label=method)
        for seed in values:
            axes.plot(known, 100 * seed, marker, color=color, markersize=3, alpha=0.4)
    axes.set(xlabel="classes known", ylabel="accuracy in %, classes known", xticks=known)
    axes.legend(fontsize=9)
    return axes


def draw_error_pairs(axes: Axes, errors: Mapping[str, Sequence[float]]) -> Axes:
    """For each method two bars, in %: old images called new, new images called old."""
    rows = np.arange(len(errors))
    for i, (text, color) in enumerate((("old called new", VERMILLION), ("new called old", BLUE))):
        style = {"color": color, "hatch": "//" * i, "edgecolor": "white", "label": text}
        axes.barh(rows - 0.2 + 0.4 * i, [pair[i] for pair in errors.values()], 0.38, **style)
    axes.set_yticks(rows, errors)
    axes.invert_yaxis()
    axes.set_xlabel("errors after the last phase, % of old or of new images")
    axes.legend(loc="lower right")
    return axes
