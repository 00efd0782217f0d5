"""Pictures of notebook 05: two margins that share a sum; margins on the circle; errors by letter; the moment of the
weights; numbers over epochs; accuracy along the scale. Before them what its trainings need beside the method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from ...data import LabeledImages
from ...heads import CosineClassifier
from ...metrics import mean_and_spread, spread_text
from ...networks import SmallCNN
from ...sampling import InstanceBalancedSampler
from ...training import Batches, extract_features, random_shift
from .. import figures
from ..figures import BLUE, CENTERED, GREY, ORANGE, PURPLE, SKY, VERMILLION, Counts, Names, Numbers, bare, picture

# ---- trainings and tables --------------------------------------------------------------------------------------------


def new_model(
    method: str, seed: int, network: Callable[..., nn.Module] = SmallCNN, *, classes: int, device: torch.device
) -> nn.Module:
    """A network with fresh weights. LDAM has its scale in the loss, other cosine heads have it themselves."""
    torch.manual_seed(seed)
    scale = 1.0 if "LDAM" in method else 30.0
    head = CosineClassifier(64, classes, scale, learn_scale=False, unit_rows=True)
    linear = "LDAM" not in method and "cosine" not in method
    return network(classes, head=None if linear else head).to(device)


def epochs_of(data: LabeledImages, seed: int) -> Callable[[int], Batches]:
    """The function epoch -> batches of 64 shifted images, the same ones as `fit()` makes."""
    sampler = InstanceBalancedSampler(data.labels, seed=seed)
    batches = Batches(data, 64, sampler=sampler, augment=random_shift)

    def of_epoch(epoch: int) -> Batches:
        sampler.set_epoch(epoch)
        batches.generator.manual_seed(seed * 1_000_003 + epoch)
        return batches

    return of_epoch


def linear_probe(model: nn.Module, train: LabeledImages, test: LabeledImages) -> float:
    """Accuracy in % on `test` of a new linear classifier, ridge regression on the frozen features of `train`."""
    x, y = extract_features(model, train), F.one_hot(train.labels, train.num_classes).float()
    x, mean = x - x.mean(0), x.mean(0)
    ridge = 1e-3 * x.square().sum(0).mean() * torch.eye(x.shape[1], device=x.device)
    rows = torch.linalg.solve(x.T @ x + ridge, x.T @ (y - y.mean(0)))
    said = ((extract_features(model, test) - mean) @ rows).argmax(1)
    return 100 * (said == test.labels).float().mean().item()


def percent(values: Iterable[float], digits: int = 1) -> str:
    """ "84.1 ± 0.4": mean and standard deviation over seeds, in %; the values are from 0 to 1."""
    return spread_text(values, digits, 100)


def score_rows(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """For `figures.show_table()`: accuracy by group of each method, whose scores are one dictionary a seed."""
    return [
        {"method": method, "seeds": len(seeds)} | {g: percent(seed[g] for seed in seeds) for g in figures.WITH_ALL}
        for method, seeds in scores.items()
    ]


# ---- two margins that share a sum ------------------------------------------------------------------------------------


def bound(share: float | np.ndarray, ratio: float, rare: int = 10) -> float | np.ndarray:
    """1 / (m_1 sqrt(n_1)) + 1 / (m_2 sqrt(n_2)) for m_1 = share, m_2 = 1 - share, n_2 = rare, n_1 = ratio * rare."""
    return 1 / (share * (ratio * rare) ** 0.5) + 1 / ((1 - share) * rare**0.5)


def best_share(ratio: float) -> float:
    """Share of the frequent class where the bound is smallest: n_1^(-1/4) / (n_1^(-1/4) + n_2^(-1/4))."""
    return 1 / (1 + ratio**0.25)


@picture
def trade_off_picture(figure: Figure, rare: int = 10):
    """Left: the border between a frequent and a rare class, the two margins to scale. Right: the bound."""
    left, right = figure.subplots(1, 2)
    bands = [left.add_patch(Rectangle((0, 0.25), 0, 0.5, color=color, alpha=0.35)) for color in (BLUE, VERMILLION)]
    labels = [left.text(0, 0.5, "", fontsize=10, **CENTERED) for _ in bands]
    border = left.axvline(0.5, color="black", linewidth=2)
    left.plot([0, 0], [0.25, 0.75], "o", color=BLUE, markersize=10)
    left.plot([1, 1], [0.25, 0.75], "^", color=VERMILLION, markersize=10)
    left.set(xlim=(-0.15, 1.15), ylim=(0, 1), xlabel="position of the border between the nearest images", yticks=[])
    left.grid(visible=False)
    left.set_title("circles: frequent class · triangles: rare")
    grid = np.linspace(0.03, 0.97, 200)
    (curve,) = right.plot([], [], color=GREY)
    (best,) = right.plot([], [], "k*", markersize=12, label="quarter power")
    (here,) = right.plot([], [], "o", color=ORANGE, markersize=9, label="here")
    right.set(xlim=(0, 1), ylim=(0, 5), xlabel="margin of the frequent class (sum of both = 1)", ylabel="bound")
    right.legend(loc="upper center")

    def update(ratio: float, share: float) -> str:
        lowest, mine = bound(best_share(ratio), ratio, rare), bound(share, ratio, rare)
        curve.set_data(grid, bound(grid, ratio, rare))
        best.set_data([best_share(ratio)], [lowest])
        here.set_data([share], [mine])
        border.set_xdata([share, share])
        parts = (("frequent", 0, share), ("rare", share, 1 - share))
        for band, text, (name, start, width) in zip(bands, labels, parts, strict=True):
            band.set(x=start, width=width)
            text.set(x=start + width / 2, text=f"{name}\n{width:.2f}")
        return (
            f"Counts {ratio * rare:g} and {rare}: at share {share:.2f} the bound is {100 * (mine / lowest - 1):.0f} % "
            f"above its minimum, at share {best_share(ratio):.2f}."
        )

    return update


# ---- the margin in the loss ------------------------------------------------------------------------------------------

PULLS = {
    "cross-entropy": (GREY, "-"),
    "LDAM, m = 0.16": (SKY, ":"),
    "LDAM, m = 0.5": (PURPLE, "-"),
    "hinge, m = 0.5": (ORANGE, "--"),
}


def draw_pulls(axes: Axes, lead: Tensor, pulls: Mapping[str, Tensor]) -> Axes:
    """How hard each loss pulls on the lead of the true class, along this lead. Losses that `PULLS` names."""
    for name, pull in pulls.items():
        color, style = PULLS[name]
        axes.plot(lead, pull, color=color, linestyle=style, label=name, linewidth=2)
    axes.set(xlabel="lead of the true class (cosine)", ylabel="pull on the lead")
    axes.legend(fontsize=10)
    return axes


def draw_floors(axes: Axes, scale: Tensor, floors: Mapping[float, Tensor]) -> Axes:
    """The smallest possible loss along the scale, {margin: its floor}, for no margin and for one."""
    for (margin, floor), color in zip(floors.items(), (GREY, PURPLE), strict=True):
        axes.plot(scale, floor, color=color, label=f"margin {margin:g}", linewidth=2)
    axes.set(xlabel="scale s", ylabel="smallest possible loss", ylim=(0, 3.5))
    axes.legend()
    return axes


def points_on_circle(counts: Counts) -> tuple[Tensor, Tensor]:
    """Two features of the images of three classes that are neighbours on the unit circle: (N, 2), labels (N,)."""
    labels, generator = torch.arange(3).repeat_interleave(torch.tensor(counts)), torch.Generator().manual_seed(0)
    middle, width = torch.tensor([90.0, 170.0, 235.0]), torch.tensor([12.0, 8.0, 6.0])
    angle = torch.deg2rad(middle[labels] + width[labels] * torch.randn(len(labels), generator=generator))
    return torch.stack([angle.cos(), angle.sin()], 1), labels


def learn_rows(
    points: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], steps: int = 1000
) -> tuple[Tensor, Tensor]:
    """Rows of a cosine head that are learned while the points stay, from the mean points of the classes: (C, 2). And
    by how much the true class then leads over the best other one: (N,). loss(cosines, labels): one for each point."""
    rows = torch.stack([points[labels == j].mean(0) for j in labels.unique()])
    for _ in range(steps):
        rows.requires_grad_()
        value = loss(points @ F.normalize(rows, dim=1).T, labels).mean()
        rows = (rows - 0.03 * torch.autograd.grad(value, rows)[0]).detach()
    cosines = points @ F.normalize(rows, dim=1).T
    own = cosines.gather(1, labels[:, None])[:, 0]
    return rows, own - cosines.scatter(1, labels[:, None], -2.0).amax(1)


def margin_circle(
    axes: Axes, weight: Tensor, features: Tensor, labels: Tensor, margins: Numbers, names: Names, colors: Names
) -> Axes:
    """A cosine head on 2-D features. Only directions count, so all lies on the unit circle: rows as arrows, images as
    dots outside; the thick arc of a class is where it wins by at least its margin, the thin grey rest by less."""
    angles = np.linspace(0, 2 * np.pi, 1441)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    rows, dots = F.normalize(weight, dim=1).numpy(), F.normalize(features, dim=1).numpy()
    cosines = circle @ rows.T
    winner, ranked = cosines.argmax(1), np.sort(cosines, 1)
    lead = ranked[:, -1] - ranked[:, -2]
    axes.plot(*circle.T, color="lightgrey", linewidth=2)
    for j, (name, color) in enumerate(zip(names, colors, strict=True)):
        axes.plot(*circle[(winner == j) & (lead >= margins[j])].T, ".", color=color, markersize=7)
        axes.annotate("", rows[j] * 0.92, (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2})
        ring = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": color}
        axes.text(*(rows[j] * 0.6), name, color="black", bbox=ring, **CENTERED)
        outside = (1.1 + 0.1 * j) * dots[(labels == j).numpy()]
        axes.plot(*outside.T, ".", color=color, markersize=4, alpha=0.4)
    for k in np.flatnonzero(winner != np.roll(winner, 1)):  # borders between classes
        axes.plot(*np.stack([0 * circle[k], circle[k]]).T, color="black", linewidth=0.8, linestyle=":")
    axes.set(aspect="equal", xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), xticks=[], yticks=[])
    return bare(axes)


# ---- what the trainings bring ----------------------------------------------------------------------------------------


def draw_letter_errors(
    axes: Sequence[Axes],
    tested: Mapping[str, Tensor],
    counts: Counts,
    names: Names,
    trained: Mapping[str, Tensor] | None = None,
) -> None:
    """Errors of every letter in %, an axes for each method, the letter with most images first.

    tested, trained: {method: accuracies (C,) from 0 to 1} on test images, the bars, and on its own training images, the
    diamonds.
    """
    order = sorted(range(len(names)), key=lambda j: -counts[j])
    for ax, (method, right) in zip(axes, tested.items(), strict=True):
        figures.class_bars(ax, (100 - 100 * right).tolist(), names, counts, order=order)
        if trained:
            style = {"marker": "D", "color": "black", "linestyle": "", "markersize": 5, "zorder": 3}
            missed = (100 - 100 * trained[method])[order]
            ax.plot(missed, clip_on=False, label="on its own training images", **style)
        ax.set_title(method, loc="left")
        ax.set(ylabel="error in %", ylim=(0, 100))
    if trained:
        axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1))
    figures.group_legend(axes[-1], bars=True, loc="upper left", ncols=3)


CURVES = {
    "re-weighting": {"color": ORANGE, "linestyle": ":"},
    "LDAM + DRW": {"color": PURPLE},
    "cosine balanced softmax": {"color": GREY, "linestyle": "--"},
}


def draw_over_epochs(
    axes: Sequence[Axes], groups: Names, histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], drop: float
) -> None:
    """Validation accuracy over epochs, an axes for each group. A line where the learning rate drops, after `drop`.

    histories: {method that `CURVES` names: for each seed a list of {group: accuracy in %}, one an epoch}.
    """
    for ax, group in zip(axes, groups, strict=True):
        series = {m: [[epoch[group] for epoch in seed] for seed in seeds] for m, seeds in histories.items()}
        figures.curves(ax, series, **CURVES)
        ax.axvline(drop, color="black", linewidth=1)
        ax.text(drop + 0.1, 3, "rate drops,\nDRW starts", fontsize=10)
        ax.set(title=group, xlabel="epoch", ylim=(0, 100))
    axes[0].set_ylabel("validation accuracy in %")


def draw_moments(axes: Axes, scores: Mapping[tuple[bool, float], Sequence[Mapping[str, float]]]) -> Axes:
    """Mean accuracy over seeds by the moment at which the weights come, for a learning rate that drops or stays.

    scores: {(whether the rate drops, share of training before the weights come): one dictionary of groups a seed}.
    """
    for drop, color, marker in ((True, PURPLE, "o"), (False, ORANGE, "s")):
        starts = [start for dropped, start in scores if dropped == drop]
        for group, style in (("all", "-"), ("few", ":")):
            means = [100 * mean_and_spread(seed[group] for seed in scores[drop, start])[0] for start in starts]
            label = f"{group}, rate {'drops' if drop else 'stays high'}"
            axes.plot(starts, means, color=color, linestyle=style, marker=marker, label=label)
    axes.set(ylim=(0, 100), xlabel="weights come at (share of training; 1: never)")
    axes.set_ylabel("validation accuracy in %")
    axes.legend(fontsize=10, loc="lower left")
    return axes


def draw_norms(axes: Axes, seeds: Sequence[tuple[Numbers, float]], letter: str) -> Axes:
    """Norm of the row of a letter over epochs, from 1 before training: a line for each of up to three seeds.

    seeds: (the norm after each epoch, the share of the letter's test images that are read rightly, 0 to 1).
    """
    for seed, ((norms, right), color) in enumerate(zip(seeds, (PURPLE, "black", GREY), strict=False)):
        name = f"seed {seed}: reads {100 * right:.0f} % of {letter}"
        axes.plot(range(len(norms) + 1), [1.0, *norms], color=color, linewidth=2, label=name)
    axes.set(xlabel="epoch", ylim=(0, None))
    axes.legend(fontsize=10)
    return axes


@picture
def scale_picture(figure: Figure, rows: Sequence[Mapping[str, float]]):
    """Left: balanced accuracy along the scale, one line for each learning rate. Right: this run by group."""
    found = {(row["max_margin"], row["scale"], row["lr"]): row for row in rows}
    scales, rates = ([*dict.fromkeys(row[key] for row in rows)] for key in ("scale", "lr"))
    left, right = figure.subplots(1, 2)
    styles = zip(rates, (ORANGE, PURPLE, GREY), "osD", strict=False)
    lines = {
        lr: left.plot(
            range(len(scales)), [0.0] * len(scales), color=color, marker=marker, label=f"learning rate {lr:g}"
        )[0]
        for lr, color, marker in styles
    }
    (here,) = left.plot([0], [0], "o", color="black", markersize=14, fillstyle="none", markeredgewidth=2)
    left.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    left.set(ylim=(0, 105), xlabel="scale s", ylabel="validation accuracy in %, all", xlim=(-0.3, len(scales) - 0.7))
    left.legend(loc="lower right")
    bars = figures.group_bars(right)
    texts = [right.text(k, 0, "", ha="center", va="bottom") for k in range(4)]
    right.set(ylim=(0, 105), title="the circled run by group")

    def update(max_margin: float, scale: float, lr: float) -> str:
        row = found[max_margin, scale, lr]
        for rate, line in lines.items():
            line.set_ydata([100 * found[max_margin, s, rate]["all"] for s in scales])
        here.set_data([scales.index(scale)], [100 * row["all"]])
        figures.raise_bars(bars, [row[name] for name in figures.WITH_ALL], texts)
        return (
            f"Margin {max_margin:g}, scale {scale:g}, rate {lr:g}: balanced accuracy {100 * row['all']:.0f} %; "
            f"{row['alive']} of 64 features not always 0."
        )

    return update
