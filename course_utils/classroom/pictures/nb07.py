"""Pictures of notebook 07: a comparison with intervals, places on two data sets, reliability, and the guide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...metrics import GROUPS, difference_text, mean_and_spread, paired_differences
from ...runtime import require
from .. import figures
from ..figures import GREY, ORANGE, PURPLE, SKY, WITH_ALL, Names, Numbers, picture

Rows = Mapping[str, Mapping[int, Mapping[str, Any]]]  # method -> seed -> its numbers, as `reports.rows_of()` gives

CARES = {"all": "all classes the same", "as in training": "classes as frequent as in training", "few": "few alone"}
GUIDE_SIZE = (9.0, 5.6)


def shares_of(counts: Sequence[int], care: str) -> list[float]:
    """How much each class counts, by one of `CARES`; the sum is 1."""
    groups = figures.group_of(counts)
    parts = {"all": [1] * len(counts), "as in training": counts, "few": [int(group == "few") for group in groups]}
    require(care in parts, "care", repr(care), ", ".join(parts))
    return [part / sum(parts[care]) for part in parts[care]]


def weighted(rows: Rows, method: str, shares: Numbers, key: str) -> list[float]:
    """Accuracy in %, one for each seed, if the classes are shared like this; key: "per_class" of the test, or
    "validation_per_class". Classes without images do not count: NaN if no others have a share."""
    found = []
    for row in rows[method].values():
        there = [(a, s) for a, s in zip(row[key], shares, strict=True) if s and a is not None]
        found.append(100 * sum(a * s for a, s in there) / sum(s for _, s in there) if there else math.nan)
    return found


def by_validation(rows: Rows) -> list[str]:
    """The methods, highest mean balanced accuracy on validation images first."""
    return sorted(rows, key=lambda m: -sum(row["validation"] for row in rows[m].values()) / len(rows[m]))


def compare(axes: Sequence[Axes], rows: Rows, baseline: str, labels: Mapping[str, str] = figures.GROUP_LABELS) -> None:
    """Left: test accuracy by group, the best on validation images on top. Right: differences from the baseline, as
    `figures.difference_line()`. labels: of the groups, where they have other borders."""
    left, right = axes
    order = by_validation(rows)
    figures.group_points(left, {name: [row["groups"] for row in rows[name].values()] for name in order})
    where = {"loc": "lower center", "bbox_to_anchor": (0.35, 1.0)}
    figures.group_legend(
        left, WITH_ALL, labels=labels, ncols=4, fontsize=10, columnspacing=0.8, handletextpad=0.1, **where
    )
    lowest = min(100 * row["groups"][g] for seeds in rows.values() for row in seeds.values() for g in GROUPS)
    left.set_xlim(max(-3, lowest - 5), 101)
    for place, name in enumerate(order):
        if place % 2 == 0:
            right.axhspan(place - 0.5, place + 0.5, color=GREY, alpha=0.1, linewidth=0)
        if name != baseline:
            figures.difference_line(right, paired_differences(rows[name], rows[baseline]), place)
    right.axvline(0, color="black", linewidth=0.8)
    right.set(ylim=left.get_ylim(), yticks=range(len(order)))
    right.grid(axis="y", visible=False)
    right.set_xlabel(f"points above {baseline},\n95 % interval; hollow: a tie")
    right.set_yticklabels([])


def places(rows: Rows, seed: int) -> dict[str, int]:
    """The place of every method in one seed, 1 for the highest balanced accuracy on validation images."""
    order = sorted(rows, key=lambda m: -rows[m][seed]["validation"])
    return {name: place for place, name in enumerate(order, 1)}


def place_lines(axes: Axes, columns: Mapping[str, Mapping[str, int]], marked: Names) -> None:
    """The places of the methods from column to column, the first on top; `marked` ones in colours of their own."""
    names, (first, *_, last) = list(columns), columns.values()
    colors = dict(zip(marked, (ORANGE, PURPLE, SKY, "#222222"), strict=False))
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
    axes.plot(confidence, accuracy, color="black", linewidth=1)
    axes.scatter(confidence, accuracy, s=(10 + 250 * share).tolist(), color="black", zorder=3, clip_on=False)
    axes.vlines(confidence, confidence, accuracy, color=ORANGE, linewidth=1.6)
    axes.set(xlim=(-3, 105), ylim=(-3, 105), title=title)
    axes.set_aspect("equal")


@picture
def guide_picture(figure: Figure, advise: Callable[..., tuple[str, list[str], list[str]]], results, counts):
    """What `advise(data, care, training=, validation=, features=)` answers, (best, ties with it, usable methods): test
    accuracies with their spread, the best in orange, hollow what ties with it, in grey what one cannot use.

    results: {data: rows}. counts: {data: training images of each class}.
    """
    most = max(len(rows) for rows in results.values())
    longest = max((name for rows in results.values() for name in rows), key=len)
    axes = figure.subplots()
    for k in range(0, most, 2):
        axes.axhspan(k - 0.5, k + 0.5, color=GREY, alpha=0.1, linewidth=0)
    points = [axes.plot([], [], marker="D", markersize=8)[0] for _ in range(most)]
    lines = [axes.plot([], [], linewidth=2.5)[0] for _ in range(most)]
    axes.grid(axis="y", visible=False)
    axes.set(ylim=(most - 0.5, -0.5), xlim=(0, 100), yticks=range(most), xlabel=" ", title=" \n ")
    axes.set_yticklabels([longest] * most)  # room for it in the layout

    def update(data: str, train: str, validation: str, old_images: str, care: str) -> str:
        have = {"training": train == "yes", "validation": validation == "yes", "features": old_images == "yes"}
        rows, shares = results[data], shares_of(counts[data], care)
        best, ties, usable = advise(data, care, **have)
        order = sorted(rows, key=lambda m: (m not in usable, -sum(weighted(rows, m, shares, "validation_per_class"))))
        test = {m: weighted(rows, m, shares, "per_class") for m in order}
        for place, (point, line) in enumerate(zip(points, lines, strict=True)):
            name = order[place] if place < len(order) else None
            mean, spread = mean_and_spread(test[name]) if name else (math.nan, 0.0)
            color = ORANGE if name == best else "black" if name in usable else "#bbbbbb"
            point.set(data=([mean], [place]), color=color, markerfacecolor="white" if name in ties else color)
            line.set(data=([mean - spread, mean + spread], [place, place]), color=color)
        axes.set_yticklabels([*order, *[""] * (most - len(order))])
        for label in axes.get_yticklabels():
            label.set_color("black" if label.get_text() in usable else GREY)
        axes.set_xlim(max(0, min(map(min, test.values())) - 5), 101)
        axes.set_xlabel(f"test accuracy in %, {CARES[care]}, mean ± standard deviation of seeds")
        axes.set_title(
            "order: by validation images · orange: first\nhollow: ties with it · grey: you cannot use it", fontsize=11
        )
        mean, spread = mean_and_spread(test[best])
        return f"{best} is first of {len(usable)} usable methods: {mean:.1f} ± {spread:.1f} %; {len(ties)} tie with it."

    return update


# ---- tables ----------------------------------------------------------------------------------------------------------


def accuracy_rows(rows: Rows, reference: str) -> list[dict[str, str]]:
    """For `figures.show_table()`: test accuracies by group, best on validation first, and points below `reference`."""
    shown = []
    for name in by_validation(rows):
        cells = {"method": name}
        for group in WITH_ALL:
            mean, spread = mean_and_spread(100 * row["groups"][group] for row in rows[name].values())
            if not math.isnan(mean):  # a data set without such classes
                cells[group] = f"{mean:.1f} ± {spread:.1f}"
        behind = paired_differences(rows[reference], rows[name])
        shown.append(cells | {"first minus it": "" if name == reference else difference_text(behind)})
    return shown


def calibration_rows(results: Mapping[str, Rows], methods: Names) -> list[dict[str, str]]:
    """For each method and data set: calibration error, lean, the temperature chosen on validation images, the error
    with it; means over seeds."""
    shown = []
    for name in methods:
        cells = {"method": name}
        for data, rows in results.items():
            seeds = rows[name].values()
            error, after = (
                mean_and_spread(100 * row[key] for row in seeds)[0]
                for key in ("calibration_error", "calibration_error_scaled")
            )
            temperature, leaning = (
                mean_and_spread(values)[0] for values in ([row["temperature"] for row in seeds], map(lean, seeds))
            )
            cells |= {
                data: f"{error:.1f} ({leaning:+.1f})",
                f"{data.split('-')[0]}, with T": f"{temperature:.2f}: {after:.1f}",
            }
        shown.append(cells)
    return shown
