"""Pictures of notebook 01: what rare letters are taken for; rows during training; rows and regions in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...heads import equalize_biases, equalize_norms, row_norms
from ...metrics import per_class_accuracy, shot_accuracy
from .. import figures
from ..figures import BLUE, CENTERED, VERMILLION, Counts, Names, Numbers, picture


def draw_taken_for(axes: Axes, shares: Tensor, rows: Names, columns: Names) -> Axes:
    """A table of shares in % (R, C), the darker the larger; those that round to 0 stay empty."""
    axes.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=100, aspect="auto")
    for i, values in enumerate(shares.tolist()):
        for j, value in enumerate(values):
            if value >= 0.5:
                axes.text(j, i, f"{value:.0f}", color="white" if value > 50 else "black", fontsize=10, **CENTERED)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="what the network says, in %", ylabel="what it is")
    return figures.bare(axes)


def draw_rows_in_training(axes: Sequence[Axes], histories: Mapping[str, Sequence[Sequence[Mapping]]]) -> None:
    """Left: the norms of the rows of E and Z after each epoch. Right: their cosine with the mean feature of their own
    training images.

    histories: for each of two data sets one history for each seed, a dictionary {"norm E", "cosine E", ...} an epoch,
    the first one from before training. The second data set is dashed.
    """
    for ax, what in zip(axes, ("norm", "cosine"), strict=True):
        for (data, seeds), line in zip(histories.items(), ("-", "--"), strict=True):
            for letter, color in (("E", BLUE), ("Z", VERMILLION)):
                values = [[epoch[f"{what} {letter}"] for epoch in history] for history in seeds]
                name = f"{letter}, {data}"
                figures.curves(ax, {name: values}, range(len(values[0])), **{name: {"color": color, "linestyle": line}})
        ax.set(xlabel="epochs done", xticks=range(0, 21, 5))
    axes[0].set(ylim=(0, None), ylabel="norm of the row")
    axes[1].set(ylim=(-1, 1), ylabel="cosine: row, own images")
    axes[1].axhline(0, color="black", linewidth=1)
    axes[0].legend(loc="center right", fontsize=10)


def draw_planes(
    axes: Sequence[Axes], plane: Mapping[str, Mapping], counts: Counts, names: Names, black: Names, zoom: float
) -> None:
    """Arrows and regions of two heads on 2-D features; in the middle the centre of the first, up to `zoom`.

    plane: for each of two data sets a dictionary with "weight" (C, 2), "bias", "features" (N, 2) and "labels". The test
    images of the classes in `black` are dots. The longest arrow of each head reaches 75 % of the way to the border.
    What ends in the middle picture has its name there.
    """
    for (data, found), panels in zip(plane.items(), (axes[:2], axes[2:]), strict=True):
        extent = found["features"].abs().quantile(0.97).item()
        scale = 0.75 * extent / row_norms(found["weight"]).max().item()
        shown = sum(found["labels"] == names.index(name) for name in black).bool()
        for ax, edge in zip(panels, (extent, zoom), strict=False):
            drawn = figures.feature_plane(ax, found["weight"], found["bias"], counts, names, edge, scale)
            for text in drawn["texts"] if ax is axes[0] else ():
                text.set_visible(max(map(abs, text.xy)) > zoom)  # the middle has room for the names in the square
            ax.plot(*found["features"][shown].T, "k.", markersize=1.5, markeredgewidth=0)
            ax.set(title=f"{data}: arrows {scale:.1f} times as long", aspect="equal", ylabel="")
    axes[1].set_title("the centre of the left picture")
    axes[0].set_ylabel("feature 2")
    square: Numbers = [-zoom, zoom, zoom, -zoom, -zoom]
    axes[0].plot(square, [-zoom, -zoom, zoom, zoom, -zoom], color="black", linewidth=1.5, zorder=4)


@picture
def norm_picture(
    figure: Figure,
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    counts: Counts,
    plane: tuple[Tensor, Tensor, Counts, Names, float],
):
    """Left: accuracy by group when the norms (and biases) of a head are equalized by `strength`. Right: the decision
    regions of a second head on 2-D features, `plane` = (weight, bias, counts, names, extent), treated the same way."""
    flat_weight, flat_bias, flat_counts, flat_names, extent = plane

    def accuracies(strength: float) -> dict[str, float]:
        logits = features @ equalize_norms(weight, strength).T + equalize_biases(bias, strength)
        return shot_accuracy(per_class_accuracy(logits.argmax(1), labels, len(bias)), counts)

    def arrow_scale(rows: Tensor) -> float:  # the longest arrow keeps its length
        return 0.75 * extent / row_norms(rows).max().item()

    left, right = figure.subplots(1, 2)
    bars = figures.group_bars(left, dotted=accuracies(0.0))
    left.set(
        ylim=(0, 100),
        ylabel="test accuracy in %",
        xlabel="dotted: as trained",
        title=f"{len(bias)} letters, {features.shape[1]} features",
    )
    right.set_title(f"{len(flat_names)} letters, 2 features")
    artists = figures.feature_plane(
        right, flat_weight, flat_bias, flat_counts, flat_names, extent, arrow_scale(flat_weight)
    )

    def update(strength: float) -> str:
        now = accuracies(strength)
        figures.raise_bars(bars, now.values())
        moved = equalize_norms(flat_weight, strength)
        artists["scale"] = arrow_scale(moved)
        figures.move_feature_plane(artists, moved, equalize_biases(flat_bias, strength))
        return f"Norms and biases equalized by {strength:.2f}: {figures.in_percent(now)}."

    return update
