"""Pure drawing: data in, Axes out. One palette, one size, markers beside colours, a sentence beside every picture.

Importing this file sets the style of matplotlib for the course.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from ..data import exponential_counts, step_counts
from ..heads import equalize_biases, equalize_norms, row_norms
from ..metrics import GROUPS, per_class_accuracy, shot_accuracy, shot_groups

# Okabe and Ito's palette: told apart with any kind of colour vision. Groups also differ in marker and hatch.
BLUE, GREEN, VERMILLION, ORANGE, SKY, PURPLE, GREY = (
    "#0072B2",
    "#009E73",
    "#D55E00",
    "#E69F00",
    "#56B4E9",
    "#CC79A7",
    "#777777",
)
GROUP_COLORS = {"many": BLUE, "medium": GREEN, "few": VERMILLION, "all": "#222222"}
GROUP_MARKERS = {"many": "o", "medium": "s", "few": "^", "all": "D"}
GROUP_HATCHES = {"many": "", "medium": "//", "few": "xx", "all": ""}
GROUP_LABELS = {"many": "many (> 100 images)", "medium": "medium (20 to 100)", "few": "few (< 20)", "all": "all"}

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "image.interpolation": "nearest",
}
plt.rcParams.update(STYLE)


def show(figure: Figure, alt: str) -> None:
    """Display a figure as a small PNG (256 colours, 100 dpi) with `alt`, a sentence for those who do not see it."""
    if not alt.strip():
        raise ValueError("alt: got an empty text; allowed: a sentence that says what the figure shows")
    raw = io.BytesIO()
    figure.savefig(raw, format="png", metadata={"Software": None})
    plt.close(figure)
    small = io.BytesIO()
    palette = Image.open(raw).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(small, format="png", optimize=True)
    data = {"image/png": small.getvalue(), "text/plain": f"Figure: {alt}"}
    display(data, metadata={"image/png": {"alt": alt}}, raw=True)


def axes_grid(rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 3.2, **options):
    """`plt.subplots` in the course's size, in inches: (figure, axes)."""
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def group_of(counts: Sequence[int]) -> list[str]:
    """ "many", "medium" or "few" for every class."""
    return [GROUPS[g] for g in shot_groups(counts).tolist()]


def class_bars(
    axes: Axes,
    values: Sequence[float],
    names: Sequence[str],
    counts: Sequence[int],
    *,
    order: Sequence[int] | None = None,
    label_few: bool = False,
) -> Axes:
    """One bar a class, in the colour and hatch of its group; `order` is the order of the classes, left to right.
    `label_few` writes the values of the few group above its bars, which may be too low to see."""
    order = list(range(len(names))) if order is None else list(order)
    groups = group_of(counts)
    for place, j in enumerate(order):
        color = GROUP_COLORS[groups[j]]
        axes.bar(place, values[j], color=color, hatch=GROUP_HATCHES[groups[j]], edgecolor="white", linewidth=0)
        if label_few and groups[j] == "few":
            axes.annotate(f"{values[j]:g}", (place, values[j]), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(order)), [names[j] for j in order])
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.grid(axis="x", visible=False)
    return axes


def group_legend(axes: Axes, names: Sequence[str] = GROUPS, *, bars: bool = False, **options) -> Axes:
    """Legend of the groups: colour and marker, or colour and hatch for bars."""
    if bars:
        handles = [
            Patch(facecolor=GROUP_COLORS[n], hatch=GROUP_HATCHES[n], edgecolor="white", label=GROUP_LABELS[n])
            for n in names
        ]
    else:
        handles = [
            Line2D([], [], color=GROUP_COLORS[n], marker=GROUP_MARKERS[n], linestyle="", label=GROUP_LABELS[n])
            for n in names
        ]
    axes.legend(handles=handles, **options)
    return axes


def group_points(
    axes: Axes, results: Mapping[str, Sequence[Mapping[str, float]]], *, groups: Sequence[str] = (*GROUPS, "all")
) -> Axes:
    """Accuracy by group for several methods: every seed a small point, the mean a large one.

    results: for each method the list of `shot_accuracy()` dictionaries, one a seed.
    """
    for row, (_method, seeds) in enumerate(results.items()):
        for k, group in enumerate(groups):
            values = [100 * seed[group] for seed in seeds]
            height = row + 0.2 * (k - (len(groups) - 1) / 2)
            style = {"color": GROUP_COLORS[group], "marker": GROUP_MARKERS[group], "linestyle": ""}
            axes.plot(values, [height] * len(values), markersize=4, alpha=0.45, **style)
            axes.plot(np.mean(values), height, markersize=9, **style)
    axes.set_yticks(range(len(results)), results)
    axes.invert_yaxis()
    axes.set_xlim(-3, 103)
    axes.set_xlabel("test accuracy in %")
    return axes


def group_lines(axes: Axes, x: Sequence[float], results: Sequence[Mapping[str, float]]) -> Axes:
    """Accuracy by group along a setting: one `shot_accuracy()` dictionary for each value of x."""
    for group in (*GROUPS, "all"):
        axes.plot(
            x,
            [100 * result[group] for result in results],
            color=GROUP_COLORS[group],
            marker=GROUP_MARKERS[group],
            markersize=5,
            label=GROUP_LABELS[group],
        )
    axes.set_ylim(0, 102)
    axes.legend(loc="lower right")
    return axes


def letter_scatter(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    names: Sequence[str],
    counts: Sequence[int],
    labels: str | Sequence[str],
) -> Axes:
    """Classes as points in the colour and marker of their group; the names in `labels` are written beside theirs."""
    for name, group, px, py in zip(names, group_of(counts), x, y, strict=True):
        axes.plot(px, py, color=GROUP_COLORS[group], marker=GROUP_MARKERS[group], markersize=5, linestyle="")
        if name in labels:
            axes.annotate(name, (px, py), textcoords="offset points", xytext=(4, 2), fontsize=9)
    return axes


def image_rows(axes: Axes, images: Tensor, columns: int, row_names: Sequence[str] = ()) -> Axes:
    """uint8 (N, channels, H, W) images as a table with `columns` columns; grey ones as dark ink on white."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    table = np.full((rows * (height + 2), columns * (width + 2), channels), 0, np.uint8)
    for i, image in enumerate(images.cpu().permute(0, 2, 3, 1).numpy()):
        y, x = (i // columns) * (height + 2), (i % columns) * (width + 2)
        table[y : y + height, x : x + width] = image
    axes.imshow(255 - table[..., 0] if channels == 1 else table, cmap="gray", vmin=0, vmax=255)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([(height + 2) * r + height / 2 for r in range(len(row_names))], row_names)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def region_colors(counts: Sequence[int]) -> np.ndarray:
    """(C, 3) a colour for each class: the hue of its group, in shades so that neighbours can be told apart."""
    shades = []
    for j, group in enumerate(group_of(counts)):
        light = 0.35 + 0.5 * ((j * 7) % 10) / 10
        shades.append([light + (1 - light) * c for c in to_rgb(GROUP_COLORS[group])])
    return np.array(shades)


def plane_regions(weight: Tensor, bias: Tensor, extent: float, points: int = 120) -> np.ndarray:
    """(points, points) the class with the largest logit at every place of a square of the feature plane."""
    line = torch.linspace(-extent, extent, points, device=weight.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x.flatten(), y.flatten()], 1)
    return (places @ weight.T + bias).argmax(1).reshape(points, points).cpu().numpy()


def feature_plane(
    axes: Axes,
    weight: Tensor,
    bias: Tensor,
    counts: Sequence[int],
    names: Sequence[str],
    extent: float,
    arrow_scale: float,
) -> dict:
    """Decision regions of a linear head on 2-D features and its rows as arrows from the origin.

    Returns the artists, for `move_feature_plane()`.
    """
    picture = axes.imshow(
        plane_regions(weight, bias, extent),
        origin="lower",
        extent=[-extent, extent] * 2,
        cmap=ListedColormap(region_colors(counts)),
        vmin=-0.5,
        vmax=len(names) - 0.5,
    )
    lines, texts = [], []
    for name, group, (x, y) in zip(names, group_of(counts), (arrow_scale * weight).tolist(), strict=True):
        lines += axes.plot(
            [0, x],
            [0, y],
            color=GROUP_COLORS[group],
            marker=GROUP_MARKERS[group],
            markevery=[1],
            markersize=6,
            markeredgecolor="white",
            linewidth=1.5,
            zorder=5,
        )
        texts.append(
            axes.annotate(
                name,
                (x, y),
                _beyond(x, y),
                textcoords="offset points",
                fontsize=9,
                ha="center",
                va="center",
                annotation_clip=True,
                zorder=6,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
        )
    axes.grid(visible=False)
    axes.set(xlabel="feature 1", ylabel="feature 2", xlim=(-extent, extent), ylim=(-extent, extent))
    return {"picture": picture, "lines": lines, "texts": texts, "extent": extent, "scale": arrow_scale}


def move_feature_plane(artists: dict, weight: Tensor, bias: Tensor) -> None:
    """Show another weight and bias in a picture made by `feature_plane()`."""
    artists["picture"].set_data(plane_regions(weight, bias, artists["extent"]))
    tips = (artists["scale"] * weight).tolist()
    for line, text, (x, y) in zip(artists["lines"], artists["texts"], tips, strict=True):
        line.set_data([0, x], [0, y])
        text.xy = (x, y)
        text.set_position(_beyond(x, y))


def _beyond(x: float, y: float, points: float = 9.0) -> tuple[float, float]:
    """Where a label stands, counted from the tip (x, y) of its arrow: farther out, so that it hides no short arrow."""
    length = math.hypot(x, y) or 1.0
    return points * x / length, points * y / length


def course_map(axes: Axes) -> Axes:
    """The notebooks as boxes: an arrow leads from each to those that need it."""
    boxes = {
        "01": (0.0, 1.0, "the problem", "weight-norm bias", VERMILLION),
        "02": (1.0, 2.0, "the classifier", "cosine normalization", BLUE),
        "04": (1.0, 1.0, "features or classifier?", "samplers, tau-normalization", BLUE),
        "05": (1.0, 0.0, "the loss", "LDAM and DRW", GREEN),
        "03": (2.0, 2.3, "new classes arrive", "LUCIR", PURPLE),
        "06": (2.0, 1.5, "the open world", "OLTR memory", ORANGE),
        "07": (2.0, 0.5, "the choice", "all methods, your data", GREY),
    }
    drawn = {}
    for number, (x, y, question, methods, color) in boxes.items():
        box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": color, "linewidth": 2}
        text = f"{number} · {question}\n{methods}"
        drawn[number] = axes.text(x, y, text, ha="center", va="center", fontsize=9, bbox=box, zorder=3)
    for first, second in (pair.split() for pair in ("01 02", "01 04", "01 05", "02 03", "02 06", "04 07", "05 07")):
        ends = {"patchA": drawn[first].get_bbox_patch(), "patchB": drawn[second].get_bbox_patch()}
        arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 3, "shrinkB": 3, **ends}
        axes.annotate("", boxes[second][:2], boxes[first][:2], arrowprops=arrow)
    axes.set(xlim=(-0.4, 2.4), ylim=(-0.4, 2.7))
    axes.axis("off")
    return axes


# ---- pictures for `course_utils.widgets.explore()`: set up once, then move what changes ------------------------------


def profile_picture(num_classes: int, max_count: int, compare: Sequence[int] = ()):
    """Class counts of a profile as bars in group colours; `compare`, other counts, as a black outline."""

    def picture(figure: Figure):
        axes = figure.subplots()
        bars = axes.bar(range(num_classes), [1] * num_classes)
        if len(compare):
            edges = np.arange(len(compare) + 1) - 0.5
            axes.stairs(sorted(compare, reverse=True), edges, color="black", label="English")
            axes.add_artist(axes.legend(loc="upper right"))
        for border in (100, 20):
            axes.axhline(border, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlim(-0.6, num_classes - 0.4)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(yscale="log", ylim=(0.7, 2 * max_count), xlabel="class, from head to tail", ylabel="training images")
        group_legend(axes, bars=True, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))

        def update(profile: str, ratio: float) -> str:
            make = {"exponential": exponential_counts, "step": step_counts}[profile]
            counts = make(num_classes, max_count, ratio)
            for bar, count, group in zip(bars, counts, group_of(counts), strict=True):
                bar.set(height=count, facecolor=GROUP_COLORS[group], hatch=GROUP_HATCHES[group], edgecolor="white")
            sizes = ", ".join(f"{group_of(counts).count(g)} {g}" for g in GROUPS)
            return f"{profile}, ratio {ratio}: {sum(counts)} images; classes by group: {sizes}."

        return update

    return picture


def norm_picture(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    counts: Sequence[int],
    plane: tuple[Tensor, Tensor, Sequence[int], Sequence[str], float],
):
    """Left: accuracy by group when the norms (and biases) of a head are equalized by `strength`. Right: the decision
    regions of a second head on 2-D features, `plane` = (weight, bias, counts, names, extent), treated the same way."""
    flat_weight, flat_bias, flat_counts, flat_names, extent = plane
    scale = 0.75 * extent / row_norms(flat_weight).max().item()

    def accuracies(strength: float) -> dict[str, float]:
        logits = features @ equalize_norms(weight, strength).T + equalize_biases(bias, strength)
        return shot_accuracy(per_class_accuracy(logits.argmax(1), labels, len(bias)), counts)

    def picture(figure: Figure):
        left, right = figure.subplots(1, 2)
        names = (*GROUPS, "all")
        bars = left.bar(
            names,
            [0] * 4,
            color=[GROUP_COLORS[n] for n in names],
            hatch=[GROUP_HATCHES[n] for n in names],
            edgecolor="white",
        )
        left.set(ylim=(0, 100), ylabel="test accuracy in %", title=f"{len(bias)} classes, {features.shape[1]} features")
        for bar, start in zip(bars, accuracies(0.0).values(), strict=True):
            left.hlines(100 * start, bar.get_x(), bar.get_x() + bar.get_width(), color="black", linestyle=":")
        right.set_title(f"{len(flat_names)} classes, 2 features")
        artists = feature_plane(right, flat_weight, flat_bias, flat_counts, flat_names, extent, scale)

        def update(strength: float) -> str:
            now = accuracies(strength)
            for bar, value in zip(bars, now.values(), strict=True):
                bar.set_height(100 * value)
            moved = equalize_norms(flat_weight, strength)
            artists["scale"] = 0.75 * extent / row_norms(moved).max().item()  # the longest arrow keeps its length
            move_feature_plane(artists, moved, equalize_biases(flat_bias, strength))
            values = ", ".join(f"{name} {100 * value:.0f} %" for name, value in now.items())
            return f"Norms and biases equalized by {strength:.2f}: {values}. Dotted lines: the trained classifier."

        return update

    return picture
