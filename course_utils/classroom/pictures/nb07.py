"""Pictures of notebook 07: a comparison with intervals, places on two data sets, reliability, and the guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...metrics import GROUPS, mean_and_spread, paired_differences, paired_interval
from .. import figures
from ..figures import BLUE, GREY, ORANGE, SKY, VERMILLION, WITH_ALL, Names, Numbers, picture

Rows = Mapping[str, Mapping[int, Mapping[str, Any]]]  # method -> seed -> its numbers, as `reports.rows_of()` gives

CARES = {
    "all": "balanced test accuracy in %",
    "many": "test accuracy of many in %",
    "few": "test accuracy of few in %",
    "calibration": "calibration error before any temperature, in %",
}


def by_validation(rows: Rows) -> list[str]:
    """The methods, highest mean balanced accuracy on validation images first."""
    return sorted(rows, key=lambda m: -sum(row["validation"] for row in rows[m].values()) / len(rows[m]))


def compare(axes: Sequence[Axes], rows: Rows, baseline: str) -> None:
    """Left: test accuracy by group, the best on validation images on top. Right: differences from the baseline, as
    `figures.difference_line()`."""
    left, right = axes
    order = by_validation(rows)
    figures.group_points(left, {name: [row["groups"] for row in rows[name].values()] for name in order})
    where = {"loc": "lower center", "bbox_to_anchor": (0.35, 1.0)}
    figures.group_legend(left, WITH_ALL, ncols=4, fontsize=8, columnspacing=0.8, handletextpad=0.1, **where)
    lowest = min(100 * row["groups"][g] for seeds in rows.values() for row in seeds.values() for g in GROUPS)
    left.set_xlim(max(-3, lowest - 5), 101)
    for place, name in enumerate(order):
        if name != baseline:
            figures.difference_line(right, paired_differences(rows[name], rows[baseline]), place)
    right.axvline(0, color="black", linewidth=0.8)
    right.set(ylim=left.get_ylim(), yticks=range(len(order)))
    right.set_xlabel(f"points above {baseline},\n95 % interval; hollow: a tie")
    right.set_yticklabels([])


def ties(first: Numbers, second: Numbers) -> bool:
    """Whether the 95 % interval of the differences, one a seed, holds 0."""
    low, high = paired_interval(a - b for a, b in zip(first, second, strict=True))
    return low <= 0 <= high


def places(rows: Rows, seed: int) -> dict[str, int]:
    """The place of every method in one seed, 1 for the highest balanced accuracy on validation images."""
    order = sorted(rows, key=lambda m: -rows[m][seed]["validation"])
    return {name: place for place, name in enumerate(order, 1)}


def place_lines(axes: Axes, columns: Mapping[str, Mapping[str, int]], marked: Names) -> None:
    """The places of the methods from column to column, the first on top; `marked` ones in colours of their own."""
    names, (first, *_, last) = list(columns), columns.values()
    colors = dict(zip(marked, (VERMILLION, BLUE, ORANGE, SKY), strict=False))
    beside = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    for method in first:
        style = {"linewidth": 2.4, "alpha": 1} if method in marked else {"linewidth": 0.9, "alpha": 0.6}
        line = [column[method] for column in columns.values()]
        axes.plot(range(len(names)), line, marker="o", color=colors.get(method, GREY), **style)
        for x, place, step, side in ((0, first[method], -8, "right"), (len(names) - 1, last[method], 8, "left")):
            color = colors.get(method, "black")
            axes.annotate(method, (x, place), xytext=(step, 0), ha=side, color=color, **beside)
    axes.set(ylim=(len(first) + 0.6, 0.4), yticks=[], xlim=(-0.2, len(names) - 0.8))
    axes.set_xticks(range(len(names)), names)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)


def lean(row: Mapping[str, Any]) -> float:
    """Mean confidence minus accuracy, in points: above 0 means over-confident."""
    bins = zip(*(row["reliability"][key] for key in ("count", "confidence", "accuracy")), strict=True)
    filled = [(n, confidence - accuracy) for n, confidence, accuracy in bins if n]
    return 100 * sum(n * gap for n, gap in filled) / sum(n for n, _ in filled)


def reliability(axes: Axes, seeds: Mapping[int, Mapping[str, Any]], title: str) -> None:
    """Accuracy against confidence in 15 bins, all seeds together; the area of a point grows with its images."""
    bins = [row["reliability"] for row in seeds.values()]

    def table(key: str) -> torch.Tensor:
        return torch.tensor([[v or 0.0 for v in b[key]] for b in bins], dtype=torch.float64)

    count = table("count").sum(0)
    sums = ((table("count") * table(key)).sum(0) for key in ("confidence", "accuracy"))
    confidence, accuracy = (100 * s[count > 0] / count[count > 0] for s in sums)
    share = count[count > 0] / count.sum()
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle=":")
    axes.plot(confidence, accuracy, color=BLUE, linewidth=1)
    axes.scatter(confidence, accuracy, s=(10 + 250 * share).tolist(), color=BLUE, zorder=3, clip_on=False)
    axes.vlines(confidence, confidence, accuracy, color=VERMILLION, linewidth=1.2)
    axes.set(xlim=(-3, 105), ylim=(-3, 105), title=title)
    axes.set_aspect("equal")


@picture
def guide_picture(figure: Figure, advise: Callable[..., list[tuple[str, list[float]]]], results: Mapping[str, Rows]):
    """What `advise(rows, can_train=, has_validation=, has_images=, care=)` answers, [(method, points of each seed)], as
    means with their spread: the first in orange, hollow what ties with it. Below them, in grey, what it leaves out."""
    most = max(len(rows) for rows in results.values())
    longest = max((name for rows in results.values() for name in rows), key=len)
    ends = {}
    for data, rows in results.items():
        for care in CARES:
            means = [mean_and_spread(values)[0] for _, values in advise(rows, care=care)]
            ends[data, care] = (max(0, min(means) - 8) if care != "calibration" else 0, max(means) + 5)

    axes = figure.subplots()
    points = [axes.plot([], [], marker="D", markersize=7)[0] for _ in range(most)]
    lines = [axes.plot([], [], linewidth=2.5)[0] for _ in range(most)]
    axes.set(ylim=(most - 0.4, -0.6), yticks=range(most), xlabel=" ")
    axes.set_yticklabels([longest] * most)  # room for it in the layout

    def update(data: str, train: str, validation: str, old_images: str, care: str) -> str:
        able = zip(("can_train", "has_validation", "has_images"), (train, validation, old_images), strict=True)
        found = advise(results[data], **{name: answer == "yes" for name, answer in able}, care=care)
        possible, (first, best) = dict(found), found[0]
        level = [name for name, values in found[1:] if ties(best, values)]
        shown = found + [one for one in advise(results[data], care=care) if one[0] not in possible]
        more = len(shown) - len(found)
        shown += [("", [math.nan])] * (most - len(shown))
        for place, (point, line, (name, values)) in enumerate(zip(points, lines, shown, strict=True)):
            mean, spread = mean_and_spread(values)
            color = ORANGE if place == 0 else BLUE if name in possible else "#cccccc"
            point.set(data=([mean], [place]), color=color, markerfacecolor="white" if name in level else color)
            line.set(data=([mean - spread, mean + spread], [place, place]), color=color)
        axes.set_yticklabels([name for name, _ in shown])
        for place, label in enumerate(axes.get_yticklabels()):
            label.set_color("black" if place < len(found) else GREY)
        axes.set(xlim=ends[data, care], xlabel=f"{CARES[care]}, {data}, mean ± standard deviation of seeds")
        have = f"may train: {train} · validation images: {validation} · old images: {old_images}"
        axes.set_title(f"order: by validation images · hollow: ties with the first\n{have}", fontsize=9)
        rest = f" Grey: {more} that you cannot use." if more else ""
        return (
            f"{data}, {care}; train {train}, validation {validation}, old images {old_images}: {len(found)} methods; "
            f"first by validation: {first}, {{:.1f}} ± {{:.1f}}; ties with it: {', '.join(level) or 'none'}.{rest}"
        ).format(*mean_and_spread(best))

    return update
