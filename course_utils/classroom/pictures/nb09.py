"""Pictures of notebook 09: the tail of the fields, row norms against counts, rank correlations over epochs, gains of
every method, and the shares for one definition."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .. import figures
from ..figures import GREY, ORANGE, PURPLE, Counts, Names, Numbers, group_of, picture, point_style

SHOWN = 8


def group_legend(axes: Axes, **options) -> None:
    """`figures.group_legend()` that counts texts."""
    figures.group_legend(axes, **options)
    legend: Any = axes.get_legend()
    for text in legend.get_texts():
        text.set_text(text.get_text().replace("images", "texts"))


def field_bars(axes: Axes, counts: Counts, names: Names) -> None:
    """Training texts of each field on a logarithmic axis, in group colours."""
    figures.class_bars(axes, list(counts), names, counts)
    axes.set(yscale="log", ylim=(0.7, 2 * max(counts)), ylabel="training texts")
    axes.tick_params(axis="x", labelrotation=90, labelsize=9)
    group_legend(axes, bars=True, loc="upper right")


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's: the correlation of ranks, -1 to 1; equal values share the mean of their ranks."""

    def ranks(values: Tensor) -> Tensor:
        _, place, number = values.double().unique(return_inverse=True, return_counts=True)
        return (number.cumsum(0) - (number - 1) / 2)[place]

    return torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1].item()


def rows_and_counts(axes: Axes, values: Numbers, counts: Counts, title: str, label: str) -> None:
    """A number of each class, such as the norm of its row, against its training texts."""
    for value, count, group in zip(values, counts, group_of(counts), strict=True):
        axes.plot(count, value, **point_style(group, markersize=6))
    axes.set(xscale="log", xlabel="training texts", ylabel=label, title=title)


def draw_correlations(axes: Axes, histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Axes:
    """Rank correlation with the counts over epochs, of norms (solid) and biases (dotted).

    histories: {one of two networks: for each seed a list of {"norms", "biases"}, one an epoch}.
    """
    for (network, seeds), color in zip(histories.items(), (ORANGE, PURPLE), strict=True):
        for key, line in (("norms", "-"), ("biases", ":")):
            name, values = f"{key}, {network}", [[epoch[key] for epoch in seed] for seed in seeds]
            figures.curves(axes, {name: values}, **{name: {"color": color, "linestyle": line}})
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylim=(-1, 1), xlabel="epoch", ylabel="rank correlation with $n_j$")
    place = {"loc": "lower center", "bbox_to_anchor": (0.45, 1.0)}
    axes.legend(fontsize=10, columnspacing=1, handlelength=1.4, ncols=2, **place)
    return axes


def draw_gains(axes: Sequence[Axes], gains: Mapping[str, Mapping[str, Numbers]]) -> None:
    """Points above cross-entropy, an axes for each network: {network: {method: differences by seed}}."""
    for ax, (network, rows) in zip(axes, gains.items(), strict=True):
        figures.difference_lines(ax, rows)
        ax.set(title=network, xlabel="points above cross-entropy, 95 % interval (hollow: a tie)")
        ax.grid(axis="y", visible=False)


@picture
def shares_picture(
    figure: Figure,
    logits: Callable[[str, str], Tensor],
    counts: Counts,
    names: Sequence[str],
    definitions: Mapping[str, str],
):
    """The fields with the largest shares for one definition, as the network was trained or with the prior taken off.

    logits: function (network, definition) -> (C,). definitions: {name: text}.
    """
    axes = figure.subplots()
    groups, prior = group_of(counts), (torch.tensor(list(counts)) / sum(counts)).log()
    bars = axes.barh(range(SHOWN), [0] * SHOWN)
    texts = [axes.text(0, y, "", va="center", fontsize=10) for y in range(SHOWN)]
    axes.set(xlim=(0, 112), ylim=(SHOWN - 0.5, -0.5), xlabel="share in %", yticks=range(SHOWN))
    axes.set_yticklabels([max(names, key=len)] * SHOWN)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_color(GREY)
    title = axes.set_title("\n\n", fontsize=11, loc="left")
    group_legend(axes, bars=True, loc="lower right")

    def update(definition: str, network: str, prior_of_training: str) -> str:
        z = logits(network, definitions[definition])
        shares = (z if prior_of_training == "kept" else z - prior.to(z)).softmax(0)
        best = shares.argsort(descending=True)[:SHOWN].tolist()
        for bar, text, j in zip(bars, texts, best, strict=True):
            style = figures.GROUP_COLORS[groups[j]], figures.GROUP_HATCHES[groups[j]]
            bar.set(width=100 * shares[j].item(), facecolor=style[0], hatch=style[1], edgecolor="white")
            text.set(x=100 * shares[j].item() + 1, text=f"{100 * shares[j]:.0f}")
        axes.set_yticklabels([names[j] for j in best])
        lines = textwrap.wrap(definitions[definition], 88)[:2]
        title.set_text("\n".join([*lines, *[""] * (2 - len(lines))]))
        first, second = best[:2]
        how = "as trained" if prior_of_training == "kept" else "prior taken off"
        two = ", ".join(f"{names[j]} {100 * shares[j]:.0f} %" for j in (first, second))
        return f"{network}, {how}: {two}."

    return update
