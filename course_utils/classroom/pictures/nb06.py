"""Pictures of notebook 06: a memory in the plane, known and open glyphs, a threshold, what a glyph reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...decoupling import class_means
from ...metrics import open_set_f_measure, per_class_accuracy, shot_accuracy, shot_groups
from ...openworld import OPEN, DiscriminativeCentroidLoss, MetaEmbeddingClassifier, centroid_distances
from ..figures import (
    BLUE,
    GREEN,
    GREY,
    GROUP_COLORS,
    GROUP_MARKERS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    group_legend,
    group_of,
    group_points,
    image_rows,
)

CLASS_COLORS = (BLUE, GREEN, ORANGE, PURPLE, VERMILLION, SKY)


def surest(axes: Axes, images: Tensor, kinds: Tensor, confidence: Tensor, said: Sequence[str]) -> Axes:
    """Of every kind (int64 (N,)) the image with the largest confidence, and what it is called."""
    best = [int(torch.where(kinds == k, confidence, -1.0).argmax()) for k in kinds.unique()]
    image_rows(axes, images[best], columns=len(best))
    axes.set_title("the surest digits; called " + ", ".join(said[i] for i in best))
    return axes


def memory_plane(axes: Axes, features: Tensor, labels: Tensor, centroids: Tensor, names: Sequence[str]) -> Axes:
    """2-D features as dots in the colour of their class, open ones (-1) as grey crosses, centroids as triangles."""
    points = features.numpy()
    far = (labels == OPEN).numpy()
    axes.plot(*points[far].T, "x", color=GREY, markersize=4, alpha=0.6, label="open")
    for j, (name, color) in enumerate(zip(names, CLASS_COLORS, strict=False)):
        mine = (labels == j).numpy()
        axes.plot(*points[mine].T, ".", color=color, markersize=4, alpha=0.4)
        axes.plot(*centroids[j].numpy(), "^", color=color, markersize=13, markeredgecolor="black", zorder=5)
        axes.annotate(
            name,
            centroids[j].numpy(),
            textcoords="offset points",
            xytext=(0, -19),
            ha="center",
            fontsize=12,
            zorder=8,
            bbox={"facecolor": "white", "alpha": 0.7, "pad": 1, "edgecolor": "none"},
        )
    axes.set(xlabel="feature 1", ylabel="feature 2", aspect="equal")
    return axes


def pull_and_push(
    axes: Sequence[Axes],
    features: Tensor,
    labels: Tensor,
    unknown: Tensor,
    names: Sequence[str],
    loss: DiscriminativeCentroidLoss,
) -> None:
    """The plane twice, with arrows for both halves of the loss: where it would move, of every class, the image that is
    farthest from its centroid."""
    centroids = class_means(features, labels, len(names))
    away = (features - centroids[labels]).norm(dim=1)
    farthest = [int(torch.where(labels == j, away, -1.0).argmax()) for j in range(len(names))]
    starts = features[farthest].requires_grad_()
    shown, truth = torch.cat([features, unknown]), torch.cat([labels, torch.full((len(unknown),), OPEN)])
    halves = loss.halves(starts, torch.arange(len(names)), centroids)
    for ax, half, title in zip(axes, halves, ("attract: to its own triangle", "repel: away from others"), strict=True):
        memory_plane(ax, shown, truth, centroids, names)
        arrows(ax, starts.detach(), -torch.autograd.grad(half, starts, retain_graph=True)[0])
        ax.set_title(title)


def arrows(axes: Axes, starts: Tensor, steps: Tensor) -> Axes:
    """Arrows from (C, 2) starts along (C, 2) steps, one a class, the longest a sixth of the picture's width."""
    length = steps.norm(dim=1).max().clamp(min=1e-12)
    low, high = axes.get_xlim()
    ends = steps * ((high - low) / 6 / length)
    axes.quiver(
        *starts.T.numpy(),
        *ends.T.numpy(),
        angles="xy",
        scale_units="xy",
        scale=1,
        width=0.009,
        zorder=7,
        color=CLASS_COLORS[: len(starts)],
        edgecolor="black",
        linewidth=0.7,
    )
    return axes


def known_and_open(axes: Axes, known: Tensor, unknown: Tensor, xlabel: str, bins: int = 30) -> Axes:
    """Two histograms on the same bins, each as a share of its images in %."""
    edges = np.linspace(0, max(known.max(), unknown.max()).item(), bins + 1)
    for values, name, color, hatch in ((known, "known letters", BLUE, ""), (unknown, "open digits", ORANGE, "//")):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(
            values.numpy(), edges, weights=weights, color=color, hatch=hatch, edgecolor="white", alpha=0.65, label=name
        )
    axes.set(xlabel=xlabel, ylabel="share of images in %")
    axes.legend()
    return axes


def gate_maps(axes: Axes, images: Tensor, gates: Tensor, columns: int) -> Axes:
    """Glyphs, (N, 1, H, W) uint8, with the spatial gate (N, h, w) over them: the redder, the more is let through."""
    size = images.shape[-1]
    large = torch.nn.functional.interpolate(gates[:, None], size=images.shape[-2:], mode="nearest")[:, 0]
    image_rows(axes, images, columns)
    heat = np.full((-(-len(images) // columns) * (size + 2), columns * (size + 2)), np.nan)
    for i, gate in enumerate(large.numpy()):
        y, x = (i // columns) * (size + 2), (i % columns) * (size + 2)
        heat[y : y + size, x : x + size] = gate
    picture = axes.imshow(heat, cmap="OrRd", alpha=0.55, vmin=0, vmax=np.nanmax(heat))
    axes.figure.colorbar(picture, ax=axes, label="gate (sums to 1 over a glyph)", shrink=0.8)
    return axes


def threshold_picture(
    confidence: Tensor, predictions: Tensor, labels: Tensor, images: Tensor, counts: Sequence[int], across: int = 12
):
    """Left: for a threshold, glyphs just accepted and just rejected, known and open. Right: accuracies and F."""
    known = labels != OPEN
    rows = {
        "letters, accepted": (known, True),
        "letters, rejected": (known, False),
        "digits, accepted": (~known, True),
        "digits, rejected": (~known, False),
    }
    scores = ("many", "medium", "few", "digits\nrejected", "F", "older F")
    colors = [GROUP_COLORS[g] for g in ("many", "medium", "few")] + [ORANGE, GREY, "lightgrey"]

    def nearest(which: Tensor, accepted: bool, threshold: float) -> Tensor:
        side = which & ((confidence >= threshold) == accepted)
        distance = torch.where(side, (confidence - threshold).abs(), torch.inf)
        order = distance.argsort(stable=True)[:across]
        blank = torch.zeros(across, *images.shape[1:], dtype=torch.uint8)
        chosen = order[side[order]]
        blank[: len(chosen)] = images[chosen]
        return blank

    def picture(figure: Figure):
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        image_rows(left, images[:1].expand(4 * across, -1, -1, -1), across, list(rows))
        left.set_title("the glyphs nearest to the threshold", fontsize=10)
        bars = right.bar(range(6), [0] * 6, color=colors, hatch=["", "//", "xx", "", "", ""], edgecolor="white")
        texts = [right.text(k, 0, "", ha="center", va="bottom", fontsize=9) for k in range(6)]
        right.set_xticks(range(6), scores, fontsize=8)
        right.set(ylim=(0, 108), ylabel="%")

        def update(threshold: float) -> str:
            shown = torch.cat([nearest(which, accepted, threshold) for which, accepted in rows.values()])
            _redraw(left, shown, across)
            said = torch.where(confidence < threshold, OPEN, predictions)
            groups = shot_accuracy(per_class_accuracy(said[known], labels[known], len(counts)), counts)
            rejected = (said[~known] == OPEN).float().mean().item()
            measures = [open_set_f_measure(said, labels, older=older) for older in (False, True)]
            values = [groups["many"], groups["medium"], groups["few"], rejected, *measures]
            for bar, text, value in zip(bars, texts, values, strict=True):
                bar.set_height(100 * value)
                text.set(y=100 * value, text=f"{100 * value:.0f}")
            return (
                f"Threshold {threshold:.2f}: {100 * (said[known] == OPEN).float().mean():.0f} % of the letters and "
                f"{100 * rejected:.0f} % of the digits are rejected."
            )

        return update

    return picture


def _redraw(axes: Axes, images: Tensor, columns: int) -> None:
    """Other images in a picture made by `image_rows()`."""
    count, _, height, width = images.shape
    table = np.zeros((-(-count // columns) * (height + 2), columns * (width + 2)), np.uint8)
    for i, image in enumerate(images[:, 0].numpy()):
        y, x = (i // columns) * (height + 2), (i % columns) * (width + 2)
        table[y : y + height, x : x + width] = image
    axes.images[0].set_data(255 - table)


def glyph_picture(
    glyphs: Mapping[str, int],
    images: Tensor,
    features: Tensor,
    head: MetaEmbeddingClassifier,
    names: Sequence[str],
    counts: Sequence[int],
    most: int = 5,
):
    """One glyph: what it is, the centroids nearest to it, what it reads from the memory, and what is said.

    glyphs: {name to show: row of images and features}.
    """
    with torch.no_grad():
        parts, probabilities = head.embed(features), head(features).softmax(1)
        distances = centroid_distances(features, head.memory)
    share = (parts.selector * parts.memory_feature).norm(dim=1) / features.norm(dim=1)
    groups = group_of(counts)

    def picture(figure: Figure):
        pixels, *panels = figure.subplots(1, 4, width_ratios=(1.1, 1.3, 1.3, 1.3))
        image = pixels.imshow(np.zeros(images.shape[-2:]), cmap="gray", vmin=0, vmax=255)
        pixels.set_axis_off()
        titles = ("distance to the nearest centroids", "read from the memory, %", "said, % confidence")
        limits = (distances[list(glyphs.values())].topk(most, largest=False).values.max().item() * 1.25, 125, 125)
        bars = []
        for ax, title, limit in zip(panels, titles, limits, strict=True):
            bars.append((ax.barh(range(most), [0] * most), [ax.text(0, k, "", va="center") for k in range(most)]))
            ax.set(title=title, xlim=(0, limit), yticks=range(most), ylim=(most - 0.5, -0.5))
            ax.title.set_fontsize(9)

        def update(glyph: str) -> str:
            i = glyphs[glyph]
            image.set_data(255 - images[i, 0].numpy())
            shown = (distances[i], 100 * parts.weights[i], 100 * probabilities[i])
            for ax, (rects, texts), values, nearest in zip(panels, bars, shown, (True, False, False), strict=True):
                top = values.topk(most, largest=not nearest)
                ax.set_yticklabels([names[j] for j in top.indices])
                for rect, text, value, j in zip(rects, texts, top.values.tolist(), top.indices.tolist(), strict=True):
                    rect.set(width=value, facecolor=GROUP_COLORS[groups[j]])
                    text.set(x=value, text=f" {value:.1f}" if nearest else f" {value:.0f}")
            return (
                f"{glyph}: reachability {parts.reachability[i]:.2f}; takes from the memory {100 * share[i]:.0f} % "
                f"of the length of its own feature; confidence {probabilities[i].max():.2f}."
            )

        return update

    return picture


def borrowing(axes: Axes, counts: Sequence[int], values: Sequence[float], names: Sequence[str], label: str) -> Axes:
    """A number for each class against its training images, in the colours and markers of the groups."""
    rows = sorted(zip(counts, names, group_of(counts), values, strict=True))
    for place, (count, name, group, value) in enumerate(rows):  # neighbours have their letters on different sides
        axes.plot(count, value, color=GROUP_COLORS[group], marker=GROUP_MARKERS[group], markersize=5, linestyle="")
        offset, side = ((4, 2), "left") if place % 2 else ((-4, -8), "right")
        axes.annotate(name, (count, value), textcoords="offset points", xytext=offset, ha=side, fontsize=8)
    axes.margins(y=0.12)
    group_legend(axes, fontsize=8)
    axes.set(xscale="log", xlabel="training images", ylabel=label)
    return axes


def ladder(left: Axes, right: Axes, scores: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """For every rung, `open_world_scores()` of each seed: accuracy by group on the left, AUROC on the right."""
    names = ("many", "medium", "few", "all")
    group_points(left, scores, groups=names)
    group_legend(
        left,
        names,
        loc="lower center",
        ncols=4,
        bbox_to_anchor=(0.5, 1.0),
        fontsize=8,
        columnspacing=0.8,
        handletextpad=0.2,
    )
    style = {"marker": "D", "color": PURPLE, "linestyle": ""}
    for row, seeds in enumerate(scores.values()):
        values = [100 * seed["AUROC"] for seed in seeds]
        right.plot(values, [row] * len(values), markersize=4, alpha=0.5, **style)
        right.plot(np.mean(values), row, markersize=9, **style)
    right.set(xlabel="AUROC, letters against digits, in %", xlim=(60, 92))


def umap_groups(axes: Axes, points: np.ndarray, labels: Tensor, counts: Sequence[int]) -> Axes:
    """UMAP points (N, 2) of known and open (-1) images; few in colour."""
    few = shot_groups(counts)[labels.clamp(min=0)] == 2
    known = labels != OPEN
    for which, color, marker, name in (
        (known & ~few, BLUE, ".", "many, medium"),
        (known & few, VERMILLION, "^", "few"),
        (~known, GREY, "x", "open digits"),
    ):
        axes.plot(*points[which.numpy()].T, marker, color=color, markersize=4, alpha=0.6, label=name)
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    return axes
