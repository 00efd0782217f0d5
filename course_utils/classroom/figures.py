"""Pure drawing: data in, Axes out. One palette, one size, markers beside colours, a sentence beside every picture.

Importing this file sets the style of matplotlib for the course.
"""

from __future__ import annotations

import functools
import html
import io
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from torch import Tensor

from ..data import exponential_counts, step_counts
from ..metrics import GROUPS, paired_interval, shot_groups
from ..runtime import require
from .images import reduce_png, webp_address

# Okabe and Ito's palette: told apart with any kind of colour vision. Groups also differ in marker and hatch.
BLUE, GREEN, VERMILLION, ORANGE, SKY, PURPLE, GREY = "#0072B2 #009E73 #D55E00 #E69F00 #56B4E9 #CC79A7 #777777".split()
ACCENT = "#8C3B6E"  # what belongs to no group: pages, slides, lines of text in a picture
GROUP_COLORS = {"many": BLUE, "medium": GREEN, "few": VERMILLION, "all": "#222222"}
GROUP_MARKERS = {"many": "o", "medium": "s", "few": "^", "all": "D"}
GROUP_HATCHES = {"many": "", "medium": "//", "few": "xx", "all": ""}
GROUP_LABELS = {"many": "many (> 100 images)", "medium": "medium (20 to 100)", "few": "few (< 20)", "all": "all"}

WITH_ALL = (*GROUPS, "all")
ABOVE: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1)}  # a legend above its axes
CENTERED = {"ha": "center", "va": "center"}
UMAP_AXES = {"xticks": [], "yticks": [], "xlabel": "UMAP 1", "ylabel": "UMAP 2"}
Numbers = Sequence[float]
Names = Sequence[str]
Counts = Sequence[int]

SHOWN_DPI, STORED_DPI = 100, 160  # a picture is shown smaller than it is stored: sharp on a projector, and zoomed in
plt.rc(("figure", "savefig"), dpi=STORED_DPI)
plt.rc("figure.constrained_layout", use=True, h_pad=0.08)
_KOREAN = "Noto Sans CJK KR", "Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic", "NanumGothic", "UnDotum"
_CHINESE = "Noto Sans CJK SC", "Microsoft YaHei", "SimHei", "Hiragino Sans GB", "Heiti TC", "WenQuanYi Micro Hei"
_installed = [next((name for name in names if name in get_font_names()), None) for names in (_KOREAN, _CHINESE)]
plt.rc("font", size=11, family=["sans-serif", *filter(None, _installed)])  # class names are in any language
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # such a font may have no bold: no reader's matter
plt.rc("axes", grid=True, axisbelow=True)
plt.rc("axes.spines", top=False, right=False)
plt.rc("grid", alpha=0.25)
plt.rc("legend", frameon=False)
plt.rc("hatch", linewidth=0.6)
plt.rc("image", interpolation="nearest")


def show(figure: Figure, alt: str) -> None:
    """Display a figure as a small picture (256 colours) with `alt`, a sentence for those who do not see it: HTML, and
    a PNG for readers that show no HTML."""
    require(alt.strip(), "alt", "an empty text", "a sentence that says what the figure shows")
    raw = io.BytesIO()
    figure.savefig(raw, format="png", metadata={"Software": None})
    plt.close(figure)
    small, inches = reduce_png(raw.getvalue()), figure.get_figwidth()
    page = f'<img src="{webp_address(small)}" width="{round(SHOWN_DPI * inches)}" alt="{html.escape(alt)}">'
    data = {"text/html": page, "image/png": small, "text/plain": f"Figure: {alt}"}
    display(data, metadata=picture_metadata(alt, inches), raw=True)


def picture_metadata(alt: str, inches: float) -> dict:
    """What goes with a PNG of this width: the alt text, and how many pixels wide it is shown."""
    return {"image/png": {"alt": alt, "width": round(SHOWN_DPI * inches)}}


def show_table(rows: Sequence[Mapping[str, str | int]], note: str = "") -> None:
    """Display a table: HTML where that can be shown, else plain text.

    Args:
        rows: one dictionary for each row, all with the same keys in the same order, the names of the columns; numbers
            as they are to be read, such as "84.1 ± 0.4".
        note: one line below the table: what was measured on which data, and how often.

    Raises:
        ValueError: no rows, or rows with different columns.
    """
    require(rows, "rows", "none", "at least one")
    columns = list(rows[0])
    for k, row in enumerate(rows):
        require(list(row) == columns, f"rows[{k}]", list(row), f"the columns {columns}")
    frame = pandas.DataFrame(list(rows)).astype(str)
    page = frame.to_html(index=False, border=0).replace(
        "<tr>\n      <td>", '<tr>\n      <td style="text-align: left;">'
    )
    page += f"\n<p><em>{html.escape(note)}</em></p>" if note else ""
    first = frame[columns[0]]
    frame[columns[0]] = first.str.ljust(first.str.len().max())  # names begin at the left, numbers end at the right
    display({"text/html": page, "text/plain": frame.to_string(index=False) + f"\n{note}".rstrip()}, raw=True)


def axes_grid(rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 3.2, **options):
    """`plt.subplots` in the course's size, in inches: (figure, axes)."""
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def group_of(counts: Counts) -> list[str]:
    """ "many", "medium" or "few" for every class."""
    return [GROUPS[g] for g in shot_groups(counts).tolist()]


def bar_style(groups: Iterable[str]) -> dict:
    """Colours and hatches of bars, one for each of these groups."""
    groups = list(groups)
    colors, hatches = [GROUP_COLORS[g] for g in groups], [GROUP_HATCHES[g] for g in groups]
    return {"color": colors, "hatch": hatches, "edgecolor": "white"}


def point_style(group: str, **more) -> dict:
    """Colour and marker of a point of this group."""
    return {"color": GROUP_COLORS[group], "marker": GROUP_MARKERS[group], "linestyle": "", **more}


def class_bars(
    axes: Axes, values: Numbers, names: Names, counts: Counts, *, order: Counts | None = None, label_few: bool = False
) -> Axes:
    """One bar a class, in the colour and hatch of its group; `order` is the order of the classes, left to right.
    `label_few` writes the values of the few group above its bars, rounded: the bars may be too low to see."""
    order = list(range(len(names)) if order is None else order)
    groups = [group_of(counts)[j] for j in order]
    axes.bar(range(len(order)), [values[j] for j in order], linewidth=0, **bar_style(groups))
    for place, (j, group) in enumerate(zip(order, groups, strict=True)):
        if label_few and group == "few":
            axes.annotate(f"{values[j]:.0f}", (place, values[j]), ha="center", va="bottom", fontsize=10)
    axes.set_xticks(range(len(order)), [names[j] for j in order])
    axes.set_xlim(-0.5, len(order) - 0.5)
    axes.grid(axis="x", visible=False)
    return axes


def group_bars(axes: Axes, dotted: Mapping[str, float] | None = None) -> BarContainer:
    """A bar of height 0 for each group and for all, for `raise_bars()`; `dotted` accuracies as lines across them."""
    bars = axes.bar(WITH_ALL, [0] * 4, **bar_style(WITH_ALL))
    for bar, name in zip(bars, WITH_ALL, strict=True):
        if dotted:
            x = bar.get_x(), bar.get_x() + bar.get_width()
            axes.hlines(100 * dotted[name], *x, color="black", linestyle=":")
    axes.grid(axis="x", visible=False)
    return bars


def raise_bars(bars: Iterable, values: Iterable[float], texts: Sequence = ()) -> None:
    """Give bars, and the texts above them, new heights: `values` from 0 to 1, shown in %."""
    for k, (bar, value) in enumerate(zip(bars, values, strict=True)):
        bar.set_height(100 * value)
        if texts:
            texts[k].set(y=100 * value, text=f"{100 * value:.0f}")


def in_percent(scores: Mapping[str, float]) -> str:
    """ "many 90 %, medium 80 %, ..." for a sentence."""
    return ", ".join(f"{name} {100 * value:.0f} %" for name, value in scores.items())


def group_legend(
    axes: Axes, names: Names = GROUPS, *, bars: bool = False, labels: Mapping[str, str] = GROUP_LABELS, **options
) -> Axes:
    """Legend of the groups: colour and marker, or colour and hatch for bars; `labels` for other borders."""
    if bars:
        style = {"edgecolor": "white"}
        handles = [Patch(facecolor=GROUP_COLORS[n], hatch=GROUP_HATCHES[n], label=labels[n], **style) for n in names]
    else:
        handles = [Line2D([], [], label=labels[n], **point_style(n)) for n in names]
    axes.legend(handles=handles, **options)
    return axes


def seed_points(axes: Axes, values: Numbers, height: float, *, alpha: float = 0.45, **style) -> None:
    """Every value a small point, their mean a large one."""
    axes.plot(values, [height] * len(values), markersize=4, alpha=alpha, **style)
    axes.plot(np.mean(values), height, markersize=9, **style)


def difference_line(axes: Axes, differences: Numbers, height: float) -> None:
    """Differences paired by seed as small points, their mean as a diamond on its 95 % interval, in the accent colour; a
    tie, whose interval holds 0, is grey and hollow. Fewer than two differences have no interval."""
    axes.plot(differences, [height] * len(differences), ".", color=GREY, alpha=0.6)
    if len(differences) > 1 and np.isfinite(differences).all():
        low, high = paired_interval(differences)
        color, inside = (GREY, "white") if low <= 0 <= high else (ACCENT, ACCENT)
        axes.plot([low, high], [height, height], color=color, linewidth=2)
        axes.plot(np.mean(differences), height, "D", color=color, markerfacecolor=inside)


def difference_lines(axes: Axes, rows: Mapping[str, Numbers]) -> Axes:
    """`difference_line()` of each comparison, with its name, from top to bottom in bands; a line stands at 0.

    rows: {name: differences by seed}; one without differences has its name only.
    """
    for height, differences in enumerate(rows.values()):
        if height % 2 == 0:
            axes.axhspan(height - 0.5, height + 0.5, color=GREY, alpha=0.1, linewidth=0)
        difference_line(axes, differences, height)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    return axes


def group_points(axes: Axes, results: Mapping[str, Sequence[Mapping]], *, groups: Names = WITH_ALL) -> Axes:
    """Accuracy by group for several methods, each in a band of its own: every seed a small point, the mean a large one.

    results: for each method the list of `shot_accuracy()` dictionaries, one a seed.
    """
    for row, seeds in enumerate(results.values()):
        if row % 2 == 0:
            band = axes.axhspan(row - 0.5, row + 0.5, xmin=-1, color=GREY, alpha=0.1, linewidth=0, clip_on=False)
            band.set_in_layout(False)  # from the left edge of the figure: the name lies in the band of its points
        for k, group in enumerate(groups):
            height = row + 0.2 * (k - (len(groups) - 1) / 2)
            seed_points(axes, [100 * seed[group] for seed in seeds], height, **point_style(group))
    axes.set_yticks(range(len(results)), results)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(-3, 103), ylim=(len(results) - 0.5, -0.5))
    axes.set_xlabel("test accuracy in %")
    return axes


def group_lines(axes: Axes, x: Numbers, results: Sequence[Mapping[str, float]]) -> Axes:
    """Accuracy by group along a setting: one `shot_accuracy()` dictionary for each value of x."""
    for group in WITH_ALL:
        style = point_style(group, linestyle="-", markersize=5, label=GROUP_LABELS[group])
        axes.plot(x, [100 * result[group] for result in results], **style)
    axes.set_ylim(0, 102)
    axes.legend(loc="lower right")
    return axes


def curves(axes: Axes, series: Mapping[str, Sequence[Numbers]], x: Numbers | None = None, **styles: dict) -> Axes:
    """Numbers over epochs: for each name the mean over seeds as a line, and a band from the lowest to the highest seed.

    Args:
        series: for each name one sequence of numbers for each seed, all of one length.
        x: the places on the horizontal axis, 1, 2, 3, ... by default.
        **styles: for a name, options of its line, such as `{"color": BLUE}`.
    """
    for name, seeds in series.items():
        values = np.asarray(seeds, dtype=float)
        require(values.ndim == 2 and values.size, f"series[{name!r}]", f"shape {values.shape}", "(seeds, epochs)")
        places = range(1, values.shape[1] + 1) if x is None else x
        [line] = axes.plot(places, values.mean(0), **{"label": name, "linewidth": 2} | styles.get(name, {}))
        axes.fill_between(places, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
    return axes


def letter_scatter(axes: Axes, x: Numbers, y: Numbers, names: Names, counts: Counts, labels: Names) -> Axes:
    """Classes as points in the colour and marker of their group; the names in `labels` are written above theirs, or
    below where another class of the same x lies higher."""
    for name, group, px, py in zip(names, group_of(counts), x, y, strict=True):
        axes.plot(px, py, **point_style(group, markersize=5))
        if name in labels:
            below = any(qx == px and qy > py for qx, qy in zip(x, y, strict=True))
            place = {"xytext": (0, -4), "va": "top"} if below else {"xytext": (0, 4), "va": "bottom"}
            axes.annotate(name, (px, py), textcoords="offset points", ha="center", fontsize=10, **place)
    return axes


def bare(axes: Axes) -> Axes:
    """No grid, frame or marks at the ticks."""
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes


def tiles(images: np.ndarray, columns: int, empty: float = 0) -> np.ndarray:
    """(N, H, W, ...) images side by side in `columns` columns, with a border of two `empty` pixels."""
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    table = np.full((rows * (height + 2), columns * (width + 2), *images.shape[3:]), empty, images.dtype)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + 2), (i % columns) * (width + 2)
        table[y : y + height, x : x + width] = image
    return table


def image_rows(axes: Axes, images: Tensor, columns: int, row_names: Names = ()) -> Axes:
    """uint8 (N, channels, H, W) images as a table with `columns` columns; grey ones as dark ink on white."""
    _, channels, height, _ = images.shape
    table = tiles(images.cpu().permute(0, 2, 3, 1).numpy(), columns)
    axes.imshow(255 - table[..., 0] if channels == 1 else table, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([(height + 2) * r + height / 2 for r in range(len(row_names))], row_names)
    return bare(axes)


def confusion_axes(axes: Axes, names: Names, **style) -> AxesImage:
    """An empty matrix with the names of the classes at both sides; `set_data()` of the result fills it."""
    image = axes.imshow(np.zeros((len(names), len(names))), **style)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.tick_params(length=0, pad=2)
    axes.grid(visible=False)
    return image


def region_colors(counts: Counts) -> np.ndarray:
    """(C, 3) a colour for each class: the hue of its group, in shades so that neighbours can be told apart."""
    shades = []
    for j, group in enumerate(group_of(counts)):
        light = 0.35 + 0.5 * ((j * 7) % 10) / 10
        shades.append([light + (1 - light) * c for c in to_rgb(GROUP_COLORS[group])])
    return np.array(shades)


def plane_regions(weight: Tensor, bias: Tensor, extent: float, points: int = 400) -> np.ndarray:
    """(points, points) the class with the largest logit at every place of a square of the feature plane."""
    line = torch.linspace(-extent, extent, points, device=weight.device)
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x.flatten(), y.flatten()], 1)
    return (places @ weight.T + bias).argmax(1).reshape(points, points).cpu().numpy()


def region_image(axes: Axes, owners: np.ndarray, counts: Counts, extent: Numbers, **options) -> AxesImage:
    """A map of the class that wins at every place, `extent` = (left, right, bottom, top)."""
    limits = {"extent": extent, "vmin": -0.5, "vmax": len(counts) - 0.5}
    image = axes.imshow(owners, origin="lower", cmap=ListedColormap(region_colors(counts)), **limits, **options)
    axes.grid(visible=False)
    return image


def halo(width: float) -> list:
    """A white rim around text, so that it can be read on any colour."""
    return [withStroke(linewidth=width, foreground="white")]


def feature_plane(
    axes: Axes, weight: Tensor, bias: Tensor, counts: Counts, names: Names, extent: float, arrow_scale: float
) -> dict:
    """Decision regions of a linear head on 2-D features and its rows as arrows from the origin.

    Returns the artists, for `move_feature_plane()`.
    """
    image = region_image(axes, plane_regions(weight, bias, extent), counts, [-extent, extent] * 2)
    arrow = {"markevery": [1], "markersize": 6, "markeredgecolor": "white", "linestyle": "-", "linewidth": 1.5}
    text = {"textcoords": "offset points", "annotation_clip": True, "fontsize": 9, **CENTERED}
    lines, texts = [], []
    for name, group, (x, y) in zip(names, group_of(counts), (arrow_scale * weight).tolist(), strict=True):
        lines += axes.plot([0, x], [0, y], **point_style(group, **arrow), zorder=5)
        texts.append(axes.annotate(name, (x, y), _beyond(x, y), path_effects=halo(2), zorder=6, **text))
    axes.set(xlabel="feature 1", ylabel="feature 2", xlim=(-extent, extent), ylim=(-extent, extent))
    return {"picture": image, "lines": lines, "texts": texts, "extent": extent, "scale": arrow_scale}


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


# ---- pictures for `widgets.explore()`: set up once, then move what changes ------------------------------------------


def picture(draw: Callable[..., Callable[..., str]]) -> Callable[..., Callable[[Figure], Callable[..., str]]]:
    """Decorator: what is written as draw(figure, ...) is called as draw(...)(figure), the form `explore()` takes."""

    @functools.wraps(draw)
    def with_values(*values, **options):
        return lambda figure: draw(figure, *values, **options)

    return with_values


@picture
def profile_picture(figure: Figure, num_classes: int, max_count: int, compare: Counts = ()):
    """Class counts of a profile as bars in group colours; `compare`, other counts, as a black outline."""
    axes = figure.subplots()
    bars = axes.bar(range(num_classes), [1] * num_classes)
    if len(compare):
        edges = np.arange(len(compare) + 1) - 0.5
        axes.stairs(sorted(compare, reverse=True), edges, color="black", label="English")
        axes.add_artist(axes.legend(loc="upper right"))
    for border in (100, 20):
        axes.axhline(border, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(-0.6, num_classes - 0.4)
    axes.xaxis.get_major_locator().set_params(integer=True)  # ty: ignore[unknown-argument]
    axes.set(yscale="log", ylim=(0.7, 2 * max_count), xlabel="class, from head to tail", ylabel="training images")
    group_legend(axes, bars=True, ncols=3, **ABOVE)

    def update(profile: str, ratio: float) -> str:
        make = {"exponential": exponential_counts, "step": step_counts}[profile]
        counts = make(num_classes, max_count, ratio)
        for bar, count, group in zip(bars, counts, group_of(counts), strict=True):
            bar.set(height=count, facecolor=GROUP_COLORS[group], hatch=GROUP_HATCHES[group], edgecolor="white")
        sizes = ", ".join(f"{group_of(counts).count(g)} {g}" for g in GROUPS)
        return f"{profile}, ratio {ratio}: {sum(counts)} images; classes by group: {sizes}."

    return update
