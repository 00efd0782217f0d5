"""Pictures of notebook 03: rows and biases, paired differences, a phase and all phases, two kinds of errors, aligning;
the sliders. Before them small helpers of its folded cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from ...data import LabeledImages
from ...losses import less_forget_loss
from ...metrics import confusion_matrix, error_blocks, spread_text
from ...training import extract_features
from .. import figures
from ..figures import ACCENT, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Names, Numbers, picture

# ---- helpers ---------------------------------------------------------------------------------------------------------


def joined(*parts: LabeledImages) -> LabeledImages:
    """The images of all parts, one part after the other."""
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return replace(parts[0], images=images, labels=labels)


def shown(values: Iterable[float], digits: int = 1, unit: float = 1) -> str:
    """ "84.1 ± 0.4": mean and standard deviation over seeds of the values times `unit`."""
    return spread_text(values, digits, unit)


def released_choice(rows: Tensor, k: int) -> list[int]:
    """Herding as LUCIR's released code does it: a row chosen again fills no place, and is taken off once more.

    As there it ends after 1,000 draws, maybe with fewer rows than `k`.
    """
    left, chosen = rows.mean(0), []
    for _ in range(1000):
        if len(chosen) == k:
            break
        best = int((rows @ left).argmax())
        chosen += [best] * (best not in chosen)
        left = left + rows.mean(0) - rows[best]
    return chosen


def drift_and_accuracies(model: Any, images: LabeledImages, before: Tensor, num_old: int) -> list[float]:
    """In %: how far the features of old images are from those `before`, and the accuracies on old and new images."""
    features, old = extract_features(model, images), images.labels < num_old
    with torch.no_grad():
        right = (model.head(features).argmax(1) == images.labels).double()
    drift = less_forget_loss(features[old], before[old])
    return [100 * value.item() for value in (drift, right[old].mean(), right[~old].mean())]


def mean_of_some(rows: Tensor, chosen: Sequence[int] | Tensor) -> tuple[float, float, float]:
    """The mean of the chosen rows against the mean of all: distance, angle in degrees, length in %."""
    mean, goal = rows[chosen].mean(0), rows.mean(0)
    angle = torch.rad2deg(F.cosine_similarity(mean, goal, dim=0).clamp(max=1).acos())
    return (mean - goal).norm().item(), angle.item(), 100 * (mean.norm() / goal.norm()).item()


# ---- the sliders -----------------------------------------------------------------------------------------------------

LETTER_COLORS = dict(zip("KXVYOQ", (BLUE, SKY, VERMILLION, ORANGE, GREEN, PURPLE), strict=True))


@picture
def phase_picture(
    figure: Figure,
    predictions: Mapping[str, Sequence[Tensor]],
    labels: Tensor,
    maps: Mapping[str, Sequence[tuple]],
    phases: Names,
):
    """The feature maps of two methods after a phase, side by side; six letters in colour, the others grey.

    predictions: for each method, one tensor a phase. labels: (N,) of all test images in the order of arrival.
    maps: for each method, one (points (M, 2), labels (M,)) a phase.
    """
    names = "".join(phases)
    sizes = np.cumsum([len(phase) for phase in phases]).tolist()
    drawn = {}
    for axes, method in zip(figure.subplots(1, len(maps)), maps, strict=True):
        axes.set(title=method, **figures.UMAP_AXES)
        (others,) = axes.plot([], [], ".", color=GREY, markersize=4, alpha=0.35)
        style = {"markersize": 9, "alpha": 0.9, "linestyle": "", "markeredgewidth": 0}
        marks = {c: axes.plot([], [], marker=f"${c}$", color=LETTER_COLORS[c], **style)[0] for c in LETTER_COLORS}
        drawn[method] = axes, others, marks

    def update(phase: int) -> str:
        seen, old, parts = sizes[phase], sizes[phase - 1] if phase else sizes[0], []
        for method, (axes, others, marks) in drawn.items():
            points, letters = maps[method][phase]
            low, high = points.min(0) - 1, points.max(0) + 1
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            shown = np.isin(letters, [names.index(c) for c in marks])
            others.set_data(*points[~shown].T)
            for c, mark in marks.items():
                mark.set_data(*points[letters == names.index(c)].T)
            known = labels[labels < seen]
            if phase:
                errors = error_blocks(predictions[method][phase], known, old)
                rows = confusion_matrix(predictions[method][phase], known, seen).double()
                rows = 100 * rows / rows.sum(1, keepdim=True)
                largest = int(rows[:old, old:].argmax())
                i, j = divmod(largest, seen - old)
                parts.append(
                    f"{method}: {100 * errors['old_to_new']:.1f} % old → new, {100 * errors['new_to_old']:.1f} % "
                    f"new → old; {names[i]} called {names[old + j]}: {rows[i, old + j]:.0f} %."
                )
        if not phase:
            return f"Phase 0: the {seen} letters of the base phase."
        return "\n".join([f"Phase {phase}, {phases[phase]} are new; errors, and the most frequent one.", *parts])

    return update


@picture
def margin_picture(figure: Figure, own: Tensor, nearest: Tensor):
    """Each old image as points (cosine with its own class, cosine with its k nearest new classes), and the margin.

    own: (N,). nearest: (N, K), the largest first.
    """
    axes = figure.subplots()
    (fine,) = axes.plot([], [], ".", color=GREY, markersize=3, alpha=0.7, label="margin kept: no loss")
    (wrong,) = axes.plot([], [], "x", color=ACCENT, markersize=3, alpha=0.5, label="margin violated: pushed")
    (border,) = axes.plot([], [], color="black", linewidth=1.2, label="border: own - new = margin")
    axes.plot([-1, 1], [-1, 1], ":", color="black", linewidth=1, label="called new above this line")
    axes.set(xlim=(-0.25, 1.02), xlabel="cosine with the own (old) class")
    axes.set(ylim=(-0.75, 1.02), ylabel="cosine with a near new class")
    axes.legend(ncols=2, **figures.ABOVE)

    def update(margin: float, k: int) -> str:
        x, y = own[:, None].expand(-1, k).flatten(), nearest[:, :k].flatten()
        loss = (margin - x + y).clamp(min=0)
        for dots, which in ((fine, loss == 0), (wrong, loss > 0)):
            dots.set_data(x[which].numpy(), y[which].numpy())
        ends = torch.tensor([-1.0, 1.02])
        border.set_data(ends.numpy(), (ends - margin).numpy())
        return (
            f"Margin {margin:g}, {k} of {nearest.shape[1]} new classes: {100 * (loss > 0).double().mean():.0f} % of "
            f"the pairs are pushed, mean loss {loss.mean():.3f}."
        )

    return update


# ---- still pictures --------------------------------------------------------------------------------------------------


def draw_of_letters(axes: Axes, values: Tensor, names: Names, num_new: int) -> Axes:
    """A number of each letter, (seeds, letters): bars of the means, a dot for each seed; the newest letters orange.
    Dashed lines: the mean of the old and that of the new letters."""
    old = len(names) - num_new
    for start, end, style in ((0, old, {"color": GREY}), (old, len(names), {"color": ORANGE, "hatch": "//"})):
        axes.bar(range(start, end), values[:, start:end].mean(0).tolist(), edgecolor="white", **style)
        axes.hlines(values[:, start:end].mean(), start - 0.5, end - 0.5, color="black", linestyle="--")
    for row in values:
        axes.plot(range(len(names)), row, ".", color="black", markersize=3)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="x", visible=False)
    return axes


def draw_rows_and_biases(axes: Sequence[Axes], seeds: Sequence[Mapping[str, Tensor]], names: Names, num_new: int):
    """Norms of the rows above, biases below: `draw_of_letters()` of "norms" and "biases", each (letters,) of a seed."""
    for ax, key, text in zip(axes, ("norms", "biases"), ("norm of the row", "bias"), strict=True):
        draw_of_letters(ax, torch.stack([seed[key] for seed in seeds]), names, num_new).set_ylabel(text)


def draw_differences(axes: Sequence[Axes], rows: Mapping[str, Sequence[Numbers]], titles: Names) -> None:
    """For each comparison, a line, and each measure, an axes: differences by seed, their mean and 95 % interval.

    rows: {text of a comparison: for each measure the differences, one a seed}. A hollow grey mark is a tie. titles: one
    for each measure, with its unit.
    """
    for k, (part, title) in enumerate(zip(axes, titles, strict=True)):
        part.axvline(0, color="black", linewidth=0.8)
        for height, differences in enumerate(rows.values()):
            part.axhspan(height - 0.5, height + 0.5, color=GREY, alpha=0.08 * (height % 2), linewidth=0)
            figures.difference_line(part, differences[k], height)
        part.set(title=title, ylim=(len(rows) - 0.5, -0.5))
        part.set_yticks(range(len(rows)), list(rows))
        part.tick_params(axis="y", length=0, labelleft=not k)
        part.grid(axis="y", visible=False)


LOSS_STYLES = (GREY, "s"), (ORANGE, "v"), (SKY, "o"), (BLUE, "^"), (VERMILLION, "D")


def draw_while_learning(axes: Sequence[Axes], histories: Mapping[str, Sequence[Sequence[Numbers]]]) -> None:
    """A phase, epoch after epoch: drift of the old features, accuracy of old and of new letters.

    histories: {name of one of up to five losses: for each seed a list of (drift, old, new) in %, one an epoch, the
    first one before training}.
    """
    looks = zip(histories, LOSS_STYLES, strict=False)
    styles = {name: {"color": color, "marker": marker, "markersize": 5} for name, (color, marker) in looks}
    titles = ("drift of old letters, %", "old letters right, %", "O P Q right, %")
    for k, (ax, title) in enumerate(zip(axes, titles, strict=True)):
        series = {name: [[epoch[k] for epoch in seed] for seed in seeds] for name, seeds in histories.items()}
        figures.curves(ax, series, range(len(next(iter(series.values()))[0])), **styles)
        ax.set(title=title, xlabel="epoch (0: imprinted, not trained)")
        ax.set_ylim((0, None) if not k else (60, 100))
    axes[2].legend(loc="lower right")


TRADE_STYLES = {
    "replay": (GREY, "s"),
    "distillation (iCaRL)": (ORANGE, "v"),
    "WA": (PURPLE, "P"),
    "BiC": (GREEN, "X"),
    "cosine": (SKY, "o"),
    "cosine + less-forget": (BLUE, "^"),
    "LUCIR": (VERMILLION, "D"),
}


def draw_over_phases(axes: Axes, accuracies: Mapping[str, Sequence[Numbers]], known: Sequence[int]) -> Axes:
    """Accuracy on all letters that are known after each phase; known: how many these are.

    accuracies: {method that `TRADE_STYLES` names: for each seed one number in % a phase}.
    """
    styles = {method: {"color": color, "marker": marker} for method, (color, marker) in TRADE_STYLES.items()}
    figures.curves(axes, accuracies, known, **styles)
    axes.set(xlabel="letters known", ylabel="accuracy on them, %", xticks=known, ylim=(50, 100))
    return axes


def draw_errors(axes: Axes, errors: Mapping[str, tuple[Numbers, Numbers]]) -> Axes:
    """Each method at (old images called new, new images called old) in %: a large mark at the mean, a small one a seed.
    Methods that `TRADE_STYLES` names."""
    for method, (lost, missed) in errors.items():
        color, marker = TRADE_STYLES[method]
        axes.plot(lost, missed, marker, color=color, markersize=4, alpha=0.5)
        axes.plot(np.mean(lost), np.mean(missed), marker, color=color, markersize=11, label=method)
    axes.set(xlabel="old images called new, %", ylabel="new images called old, %")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return axes


def draw_aligning(axes: Axes, logits: Tensor, gamma: float) -> Axes:
    """What old images get for new letters, w . f without the bias: before aligning (filled) and after (line)."""
    low, high = min(0.0, logits.min().item()), logits.quantile(0.999).item() * max(1, gamma)
    options = {"bins": 60, "range": (low, high), "density": True}
    axes.hist(logits.flatten().numpy(), color=GREY, alpha=0.6, label="as trained", **options)
    axes.hist((gamma * logits).flatten().numpy(), histtype="step", color=ACCENT, linewidth=2, **options)
    axes.plot([], [], color=ACCENT, linewidth=2, label=f"new rows times {gamma:.2f}")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(yticks=[], xlabel="$w_{new} \\cdot f$ of old test images")
    axes.legend(loc="upper right")
    return axes
