"""Pictures of notebook 06: a memory in the plane, known and open glyphs, a threshold, what a glyph reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...decoupling import class_means
from ...metrics import GROUPS, open_set_f_measure, per_class_accuracy, shot_accuracy, shot_groups
from ...openworld import OPEN, DiscriminativeCentroidLoss, MetaEmbeddingClassifier, centroid_distances
from .. import figures
from ..figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Counts, Names, Numbers, picture

CLASS_COLORS = (BLUE, GREEN, ORANGE, PURPLE, VERMILLION, SKY)


def surest(axes: Axes, images: Tensor, kinds: Tensor, confidence: Tensor, said: Names) -> Axes:
    """Of every kind (int64 (N,)) the image with the largest confidence, and what it is called."""
    best = [int(torch.where(kinds == k, confidence, -1.0).argmax()) for k in kinds.unique()]
    figures.image_rows(axes, images[best], columns=len(best))
    axes.set_title("the surest digits; called " + ", ".join(said[i] for i in best))
    return axes


def memory_plane(axes: Axes, features: Tensor, labels: Tensor, centroids: Tensor, names: Names) -> Axes:
    """2-D features as dots in the colour of their class, open ones (-1) as grey crosses, centroids as triangles."""
    points, middles = features.numpy(), centroids.numpy()
    axes.plot(*points[(labels == OPEN).numpy()].T, "x", color=GREY, markersize=4, alpha=0.6, label="open")
    box = {"facecolor": "white", "alpha": 0.7, "pad": 1, "edgecolor": "none"}
    below = {"textcoords": "offset points", "xytext": (0, -19), "ha": "center", "fontsize": 12, "bbox": box}
    for j, (name, color) in enumerate(zip(names, CLASS_COLORS, strict=False)):
        axes.plot(*points[(labels == j).numpy()].T, ".", color=color, markersize=4, alpha=0.4)
        axes.plot(*middles[j], "^", color=color, markersize=13, markeredgecolor="black", zorder=5)
        axes.annotate(name, middles[j], zorder=8, **below)
    axes.set(xlabel="feature 1", ylabel="feature 2", aspect="equal")
    return axes


def pull_and_push(
    axes: Sequence[Axes],
    features: Tensor,
    labels: Tensor,
    unknown: Tensor,
    names: Names,
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
    style = {"color": CLASS_COLORS[: len(starts)], "edgecolor": "black", "linewidth": 0.7, "width": 0.009, "zorder": 7}
    axes.quiver(*starts.T.numpy(), *ends.T.numpy(), angles="xy", scale_units="xy", scale=1, **style)
    return axes


def known_and_open(axes: Axes, known: Tensor, unknown: Tensor, xlabel: str, bins: int = 30) -> Axes:
    """Two histograms on the same bins, each as a share of its images in %."""
    edges = np.linspace(0, max(known.max(), unknown.max()).item(), bins + 1)
    for values, name, color, hatch in ((known, "known letters", BLUE, ""), (unknown, "open digits", ORANGE, "//")):
        style = {"color": color, "hatch": hatch, "edgecolor": "white", "alpha": 0.65, "label": name}
        axes.hist(values.numpy(), edges, weights=np.full(len(values), 100 / len(values)), **style)
    axes.set(xlabel=xlabel, ylabel="share of images in %")
    axes.legend()
    return axes


def gate_maps(axes: Axes, images: Tensor, gates: Tensor, columns: int) -> Axes:
    """Glyphs, (N, 1, H, W) uint8, with the spatial gate (N, h, w) over them: the redder, the more is let through."""
    large = torch.nn.functional.interpolate(gates[:, None], size=images.shape[-2:], mode="nearest")[:, 0]
    figures.image_rows(axes, images, columns)
    heat = axes.imshow(figures.tiles(large.numpy(), columns, np.nan), cmap="OrRd", alpha=0.55)
    heat.set_clim(0, large.max().item())
    axes.figure.colorbar(heat, ax=axes, label="gate (sums to 1 over a glyph)", shrink=0.8)
    return axes


@picture
def threshold_picture(
    figure: Figure, confidence: Tensor, said: Tensor, labels: Tensor, images: Tensor, counts: Counts, across: int = 12
):
    """Left: for a threshold, glyphs just accepted and just rejected, known and open. Right: accuracies and F.

    said: int64 (N,) the most probable class of each of the images. across: how many glyphs stand in a row.
    """
    known = labels != OPEN
    kinds = ("letters", known), ("digits", ~known)
    rows = {f"{k}, {verb}": (which, verb == "accepted") for k, which in kinds for verb in ("accepted", "rejected")}
    scores = (*GROUPS, "digits\nrejected", "F", "older F")
    style = {
        "color": [*(figures.GROUP_COLORS[g] for g in GROUPS), ORANGE, GREY, "lightgrey"],
        "hatch": ["", "//", "xx", *[""] * 3],
    }

    def nearest(which: Tensor, accepted: bool, threshold: float) -> Tensor:
        side = which & ((confidence >= threshold) == accepted)
        distance = torch.where(side, (confidence - threshold).abs(), torch.inf)
        order = distance.argsort(stable=True)[:across]
        blank = torch.zeros(across, *images.shape[1:], dtype=torch.uint8)
        chosen = order[side[order]]
        blank[: len(chosen)] = images[chosen]
        return blank

    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    figures.image_rows(left, images[:1].expand(4 * across, -1, -1, -1), across, list(rows))
    left.set_title("the glyphs nearest to the threshold", fontsize=10)
    bars = right.bar(range(6), [0] * 6, edgecolor="white", **style)
    texts = [right.text(k, 0, "", ha="center", va="bottom", fontsize=9) for k in range(6)]
    right.set_xticks(range(6), scores, fontsize=8)
    right.set(ylim=(0, 108), ylabel="%")

    def update(threshold: float) -> str:
        shown = torch.cat([nearest(which, accepted, threshold) for which, accepted in rows.values()])
        left.images[0].set_data(255 - figures.tiles(shown[:, 0].numpy(), across))
        final = torch.where(confidence < threshold, OPEN, said)
        groups = shot_accuracy(per_class_accuracy(final[known], labels[known], len(counts)), counts)
        rejected = (final[~known] == OPEN).float().mean().item()
        measures = [open_set_f_measure(final, labels, older=older) for older in (False, True)]
        figures.raise_bars(bars, [*(groups[g] for g in GROUPS), rejected, *measures], texts)
        return (
            f"Threshold {threshold:.2f}: {100 * (final[known] == OPEN).float().mean():.0f} % of the letters and "
            f"{100 * rejected:.0f} % of the digits are rejected."
        )

    return update


@picture
def glyph_picture(
    figure: Figure,
    glyphs: Mapping[str, int],
    images: Tensor,
    features: Tensor,
    head: MetaEmbeddingClassifier,
    names: Names,
    counts: Counts,
    most: int = 5,
):
    """One glyph: what it is, the centroids nearest to it, what it reads from the memory, and what is said.

    glyphs: {name to show: row of images and features}.
    """
    with torch.no_grad():
        parts, probabilities = head.embed(features), head(features).softmax(1)
        distances = centroid_distances(features, head.memory)
    share = (parts.selector * parts.memory_feature).norm(dim=1) / features.norm(dim=1)
    groups = figures.group_of(counts)

    pixels, *panels = figure.subplots(1, 4, width_ratios=(1.1, 1.3, 1.3, 1.3))
    image = pixels.imshow(np.zeros(images.shape[-2:]), cmap="gray", vmin=0, vmax=255)
    pixels.set_axis_off()
    titles = ("distance to the nearest centroids", "read from the memory, %", "said, % confidence")
    limits = (distances[list(glyphs.values())].topk(most, largest=False).values.max().item() * 1.25, 125, 125)
    bars = []
    for ax, title, limit in zip(panels, titles, limits, strict=True):
        bars.append((ax.barh(range(most), [0] * most), [ax.text(0, k, "", va="center") for k in range(most)]))
        ax.set(xlim=(0, limit), yticks=range(most), ylim=(most - 0.5, -0.5))
        ax.set_title(title, fontsize=9)

    def update(glyph: str) -> str:
        i = glyphs[glyph]
        image.set_data(255 - images[i, 0].numpy())
        shown = (distances[i], 100 * parts.weights[i], 100 * probabilities[i])
        for ax, (rects, texts), values, nearest in zip(panels, bars, shown, (True, False, False), strict=True):
            top = values.topk(most, largest=not nearest)
            ax.set_yticklabels([names[j] for j in top.indices])
            for rect, text, value, j in zip(rects, texts, top.values.tolist(), top.indices.tolist(), strict=True):
                rect.set(width=value, facecolor=figures.GROUP_COLORS[groups[j]])
                text.set(x=value, text=f" {value:.1f}" if nearest else f" {value:.0f}")
        return (
            f"{glyph}: reachability {parts.reachability[i]:.2f}; takes from the memory {100 * share[i]:.0f} % "
            f"of the length of its own feature; confidence {probabilities[i].max():.2f}."
        )

    return update


def borrowing(axes: Axes, counts: Counts, values: Numbers, names: Names, label: str) -> Axes:
    """A number for each class against its training images, in the colours and markers of the groups."""
    rows = sorted(zip(counts, names, figures.group_of(counts), values, strict=True))
    for place, (count, name, group, value) in enumerate(rows):  # neighbours have their letters on different sides
        axes.plot(count, value, **figures.point_style(group, markersize=5))
        offset, side = ((4, 2), "left") if place % 2 else ((-4, -8), "right")
        axes.annotate(name, (count, value), textcoords="offset points", xytext=offset, ha=side, fontsize=8)
    axes.margins(y=0.12)
    figures.group_legend(axes, fontsize=8)
    axes.set(xscale="log", xlabel="training images", ylabel=label)
    return axes


def ladder(left: Axes, right: Axes, scores: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """For every rung, `open_world_scores()` of each seed: accuracy by group on the left, AUROC on the right."""
    figures.group_points(left, scores)
    figures.group_legend(
        left, figures.WITH_ALL, fontsize=8, columnspacing=0.8, handletextpad=0.2, ncols=4, **figures.ABOVE
    )
    for row, seeds in enumerate(scores.values()):
        values = [100 * seed["AUROC"] for seed in seeds]
        figures.seed_points(right, values, row, alpha=0.5, marker="D", color=PURPLE, linestyle="")
    right.set(xlabel="AUROC, letters against digits, in %", xlim=(60, 92))


def umap_groups(axes: Axes, points: np.ndarray, labels: Tensor, counts: Counts) -> Axes:
    """UMAP points (N, 2) of known and open (-1) images; few in colour."""
    few = shot_groups(counts)[labels.clamp(min=0)] == 2
    known = labels != OPEN
    common, rare = (known & ~few, BLUE, ".", "many, medium"), (known & few, VERMILLION, "^", "few")
    for which, color, marker, name in (common, rare, (~known, GREY, "x", "open digits")):
        axes.plot(*points[which.numpy()].T, marker, color=color, markersize=4, alpha=0.6, label=name)
    axes.set(**figures.UMAP_AXES)
    return axes
