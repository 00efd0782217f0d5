"""Pictures of notebook 06: a memory in the plane, known and open glyphs, a threshold, what a glyph reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Tensor

from ...decoupling import class_means
from ...metrics import GROUPS, open_set_f_measure, per_class_accuracy, shot_accuracy
from ...openworld import OPEN, DiscriminativeCentroidLoss, MetaEmbeddingClassifier, centroid_distances
from .. import figures
from ..figures import ACCENT, GREY, GROUP_COLORS, GROUP_HATCHES, ORANGE, PURPLE, SKY, Counts, Names, Numbers, picture

CLASS_COLORS = (SKY, ORANGE, ACCENT, "#222222", PURPLE)  # of single classes, not of groups


def surest(axes: Axes, images: Tensor, kinds: Tensor, confidence: Tensor, answers: Names) -> Axes:
    """Of every kind (int64 (N,)) the image with the largest confidence, in two rows, with what it is called above."""
    best = [int(torch.where(kinds == k, confidence, -1.0).argmax()) for k in kinds.unique()]
    columns = -(-len(best) // 2)
    height, width = (size + 2 for size in images.shape[-2:])
    spread = torch.zeros(len(best), images.shape[1], images.shape[2] + 14, images.shape[3], dtype=torch.uint8)
    spread[:, :, 14:] = images[best]  # room for what is written above
    figures.image_rows(axes, spread, columns=columns)
    for k, i in enumerate(best):
        x, y = (k % columns + 0.5) * width, (k // columns) * (height + 14) + 13
        axes.text(x, y, f"“{answers[i]}”", ha="center", va="bottom", fontsize=11)
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
    farthest from its centroid. Beside repelling, a circle around each centroid: inside it, the others are pushed."""
    centroids = class_means(features, labels, len(names))
    away = (features - centroids[labels]).norm(dim=1)
    farthest = [int(torch.where(labels == j, away, -1.0).argmax()) for j in range(len(names))]
    starts = features[farthest].requires_grad_()
    shown, truth = torch.cat([features, unknown]), torch.cat([labels, torch.full((len(unknown),), OPEN)])
    halves = loss.halves(starts, torch.arange(len(names)), centroids)
    for ax, half, title in zip(axes, halves, ("attract: to its own triangle", "repel: away from others"), strict=True):
        memory_plane(ax, shown, truth, centroids, names)
        for middle, color in zip(centroids.tolist(), CLASS_COLORS, strict=False) if half is halves[1] else ():
            ax.add_patch(Circle(middle, loss.margin**0.5, fill=False, color=color, linestyle="--", linewidth=1.3))
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
    for values, name, color, hatch in ((known, "known letters", SKY, ""), (unknown, "open digits", ORANGE, "//")):
        style = {"color": color, "hatch": hatch, "edgecolor": "white", "alpha": 0.65, "label": name}
        axes.hist(values.numpy(), edges, weights=np.full(len(values), 100 / len(values)), **style)
    axes.set(xlabel=xlabel, ylabel="share of images in %")
    axes.legend()
    return axes


def gate_maps(axes: Axes, images: Tensor, gates: Tensor, columns: int) -> Axes:
    """Glyphs, (N, 1, H, W) uint8, under the spatial gate (N, h, w): the redder a cell, the more passes there; the
    largest of each glyph is written in %."""
    height, width = images.shape[-2:]
    figures.image_rows(axes, images // 2, columns)
    large = torch.nn.functional.interpolate(gates[:, None], size=(height, width), mode="nearest")[:, 0]
    heat = np.zeros((*figures.tiles(large.numpy(), columns).shape, 4))
    heat[..., 0], heat[..., 3] = 0.84, figures.tiles((large / gates.max()).numpy(), columns) * 0.85
    axes.imshow(heat)
    down, right = height / gates.shape[1], width / gates.shape[2]
    for k, gate in enumerate(gates):
        x, y = (k % columns) * (width + 2) - 0.5, (k // columns) * (height + 2) - 0.5
        style = {"color": GREY, "linewidth": 0.5, "alpha": 0.6}
        axes.hlines([y + down * row for row in range(gates.shape[1] + 1)], x, x + width, **style)
        axes.vlines([x + right * column for column in range(gates.shape[2] + 1)], y, y + height, **style)
        row, column = divmod(int(gate.argmax()), gates.shape[2])
        place = x + right * (column + 0.5), y + down * (row + 0.5)
        axes.text(*place, f"{100 * gate.max():.0f}", fontsize=10, path_effects=figures.halo(2), **figures.CENTERED)
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
        "color": [*(GROUP_COLORS[g] for g in GROUPS), ORANGE, GREY, "lightgrey"],
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
    texts = [right.text(k, 0, "", ha="center", va="bottom", fontsize=10) for k in range(6)]
    right.set_xticks(range(6), scores, fontsize=9)
    right.set(ylim=(0, 108), ylabel="%")

    def update(threshold_in_percent: float) -> str:
        threshold = threshold_in_percent / 100
        shown = torch.cat([nearest(which, accepted, threshold) for which, accepted in rows.values()])
        left.images[0].set_data(255 - figures.tiles(shown[:, 0].numpy(), across))
        final = torch.where(confidence < threshold, OPEN, said)
        groups = shot_accuracy(per_class_accuracy(final[known], labels[known], len(counts)), counts)
        rejected = (final[~known] == OPEN).float().mean().item()
        measures = [open_set_f_measure(final, labels, older=older) for older in (False, True)]
        figures.raise_bars(bars, [*(groups[g] for g in GROUPS), rejected, *measures], texts)
        return (
            f"Threshold {100 * threshold:.0f} %: {100 * (final[known] == OPEN).float().mean():.0f} % of the letters "
            f"and {100 * rejected:.0f} % of the digits are rejected."
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
    titles = ("distance to centroids", "read from memory, %", "confidence, %")
    limits = (distances[list(glyphs.values())].topk(most, largest=False).values.max().item() * 1.25, 130, 130)
    bars = []
    for ax, title, limit in zip(panels, titles, limits, strict=True):
        bars.append(
            (ax.barh(range(most), [0] * most, edgecolor="white"), [ax.text(0, k, "", va="center") for k in range(most)])
        )
        ax.set(xlim=(0, limit), yticks=range(most), ylim=(most - 0.5, -0.5))
        if "%" in title:  # room for the number beside a full bar, no percent above 100 on the axis
            ax.set_xticks([0, 50, 100])
        ax.set_title(title, fontsize=11)

    def update(glyph: str) -> str:
        i = glyphs[glyph]
        image.set_data(255 - images[i, 0].numpy())
        shown = (distances[i], 100 * parts.weights[i], 100 * probabilities[i])
        for ax, (rects, texts), values, nearest in zip(panels, bars, shown, (True, False, False), strict=True):
            top = values.topk(most, largest=not nearest)
            ax.set_yticklabels([names[j] for j in top.indices])
            for rect, text, value, j in zip(rects, texts, top.values.tolist(), top.indices.tolist(), strict=True):
                rect.set(width=value, facecolor=GROUP_COLORS[groups[j]], hatch=GROUP_HATCHES[groups[j]])
                text.set(x=value, text=f" {value:.1f}" if nearest else f" {value:.0f}")
        return (
            f"{glyph}: reachability {parts.reachability[i]:.2f}; takes {100 * share[i]:.0f} % of its own length from "
            f"the memory; confidence {100 * probabilities[i].max():.0f} %."
        )

    return update


def ladder(left: Axes, right: Axes, scores: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """For every rung, `open_world_scores()` of each seed: accuracy by group on the left, AUROC on the right."""
    figures.group_points(left, scores)
    style = {"fontsize": 9, "columnspacing": 0.8, "handletextpad": 0.2, "ncols": 4}
    figures.group_legend(left, figures.WITH_ALL, **style, **figures.ABOVE)
    bands(right, list(scores), left=False)
    for row, seeds in enumerate(scores.values()):
        values = [100 * seed["AUROC"] for seed in seeds]
        figures.seed_points(right, values, row, alpha=0.5, marker="D", color=PURPLE, linestyle="")
    right.set(xlabel="AUROC in % (50: guessing)", xlim=(50, 100))


def bands(axes: Axes, names: Names, left: bool = True) -> None:
    """A band for each name, from top to bottom, every other one shaded."""
    for row in range(0, len(names), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=GREY, alpha=0.1, linewidth=0)
    if left:
        axes.set_yticks(range(len(names)), names)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(names) - 0.5, -0.5)


def open_scores(left: Axes, right: Axes, aurocs: Mapping[str, Mapping[str, Numbers]], paper: str, fair: str) -> None:
    """Left: AUROC in % of each score (bands) on each network (colours), one number a seed. Right: how far the last
    network with the score `paper` is ahead of the network `fair` with the score of the band, paired by seed.

    aurocs: {network: {score: one AUROC for each seed}}.
    """
    names = list(aurocs[fair])
    bands(left, names)
    bands(right, names, left=False)
    looks = zip(aurocs.items(), (GREY, SKY, PURPLE), ("o", "s", "D"), strict=True)
    for k, ((network, found), color, marker) in enumerate(looks):
        for row, name in enumerate(names):
            style = {"color": color, "marker": marker, "linestyle": "", "alpha": 0.5}
            label = {"label": network} if row == 0 else {}
            figures.seed_points(left, found[name], row + 0.25 * (k - 1), **style)
            left.plot(np.mean(found[name]), row + 0.25 * (k - 1), marker, color=color, markersize=9, **label)
    left.set(xlabel="AUROC in % (50: guessing)", xlim=(50, 100))
    left.legend(loc="lower left", fontsize=10)
    best = list(aurocs.values())[-1][paper]
    for row, name in enumerate(names):
        figures.difference_line(right, [a - b for a, b in zip(best, aurocs[fair][name], strict=True)], row)
    right.axvline(0, color="black", linewidth=1)
    right.set(xlabel=f"OLTR with {paper} minus\n{fair} with this score, points")


def umap_letters(axes: Axes, points: np.ndarray, labels: Tensor, counts: Counts, names: Names) -> Axes:
    """UMAP points (N, 2): known images as their letter in the colour of its group, open ones (-1) as grey crosses; a
    legend below says so."""
    axes.plot(*points[(labels == OPEN).numpy()].T, "x", color=GREY, markersize=4, alpha=0.5)
    for j, (name, group) in enumerate(zip(names, figures.group_of(counts), strict=True)):
        style = {"color": GROUP_COLORS[group], "markersize": 6, "alpha": 0.75, "markeredgewidth": 0.3}
        axes.plot(*points[(labels == j).numpy()].T, linestyle="", marker=f"${name}$", **style)
    shown = [Line2D([], [], label=g, color=GROUP_COLORS[g], marker="$A$", linestyle="", markersize=8) for g in GROUPS]
    shown.append(Line2D([], [], label="open", color=GREY, marker="x", linestyle=""))
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.04), "ncols": 4, "handletextpad": 0.1}
    axes.legend(handles=shown, **below)
    axes.set(**figures.UMAP_AXES)
    return axes
