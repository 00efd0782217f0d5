"""The picture of README.md: what notebook 01 finds, in six steps with the same 26 letters; moving, and as one sheet.

What moves plays once and stands still on the last step, which says what the course is about.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...runtime import located, write_atomically
from .. import figures
from ..figures import ACCENT, GROUP_COLORS, Counts, Names

NAME = "readme_figure"  # .gif: a step after the other; .png: all of them, for those who want nothing to move
SECONDS = 4.0
WIDTH, HEIGHT, DPI = 8.3, 4.5, 160  # inches; README pictures are shown at most 830 pixels wide, on some screens doubled


def captions(right: Mapping[str, Tensor], counts: Counts, names: Names) -> list[str]:
    """What each of the six steps shows, in two lines, with its numbers; `right` as in `draw()`."""
    n, groups = torch.tensor(counts), figures.group_of(counts)
    few, many = (torch.tensor([group == name for group in groups]) for name in ("few", "many"))
    order = sorted(range(len(names)), key=lambda j: -counts[j])
    *first, last = [names[j] for j in order if few[j]]
    rare, common = f"{', '.join(first)} and {last}", names[order[0]]

    def percent(network: str, members: Tensor) -> str:
        return f"{100 * right[network][members].mean():.0f} %"

    text = (right["long tail"] * n / n.sum()).sum()
    lost = 100 * (right["long tail"][many] - right["equal norms"][many]).mean()
    return [
        f"English decides how many images of each letter there are:\n{common} has {max(counts)}, {names[order[-1]]} "
        f"only {min(counts)}. That is a long tail.",
        f"A network trained on them reads {100 * text:.0f} % of the letters of a text.\n"
        f"But of {rare} it reads {percent('long tail', few)}.",
        "In the last layer of the network each letter has a row of weights.\nLetters with few images get short rows.",
        f"Make all rows equally long, and change nothing else:\nof {rare} it now reads {percent('equal norms', few)}. "
        f"Frequent letters lose {lost:.0f} points.",
        f"Is the length a cause? A network trained on equally many images\nof each letter reads "
        f"{percent('balanced', few)} of {rare} ...",
        f"... until its rows get the lengths from the long tail: {percent('long-tail norms', few)}.\n"
        f"So the length is a cause. The course shows how to repair it.",
    ]


def draw(
    pictures: Mapping[str, Tensor], counts: Counts, names: Names, norms: Sequence[Tensor], right: Mapping[str, Tensor]
) -> list[Figure]:
    """The six steps.

    Args:
        pictures: all training images of two rare letters, uint8 (n, 1, H, W).
        norms: (C,) norms of the rows: of the network trained on the long tail, and of that trained on balanced data.
        right: (C,) accuracy from 0 to 1 of every letter for "long tail", "equal norms", "balanced", "long-tail norms".
    """
    order = sorted(range(len(names)), key=lambda j: -counts[j])
    percents = {network: 100 * values for network, values in right.items()}
    was = {"equal norms": percents["long tail"], "long-tail norms": percents["balanced"]}
    long, even = norms
    drawn = []
    with plt.rc_context({"font.size": 13, "xtick.labelsize": 14, "legend.fontsize": 13}):
        for step, caption in enumerate(captions(right, counts, names)):
            figure, axes = figures.axes_grid(width=WIDTH, height=HEIGHT)
            figure.suptitle(caption, x=0.012, ha="left", fontsize=16.5, linespacing=1.35)
            figure.supxlabel(f"{step + 1} of 6", x=0.99, ha="right", fontsize=12, color=ACCENT)
            if step == 0:
                letter_bars(axes, torch.tensor(counts), counts, names, order, write=True)
                axes.set(ylabel="training images", ylim=(0, 1.08 * max(counts)))
                figures.group_legend(axes, bars=True, loc="upper right", bbox_to_anchor=(1, 1.04))
                for k, (name, images) in enumerate(pictures.items()):
                    inset = axes.inset_axes((0.56, 0.52 - 0.22 * k, 0.43, 0.18))
                    figures.image_rows(inset, images, columns=len(images), row_names=[f"all {name}"])
                    inset.set_anchor("W")
            elif step == 2:
                letter_bars(axes, long, counts, names, order)
                style = {"color": "black", "marker": "o", "linestyle": "", "markersize": 6}
                axes.plot(even[order], label="the same network, trained on equal counts", **style)
                axes.set(ylabel="length of the row", ylim=(0, 1.25 * torch.cat([long, even]).max().item()))
                axes.legend(loc="upper right")
            else:
                network = [*right][step - 1 - (step > 2)]
                letter_bars(axes, percents[network], counts, names, order, write=True)
                axes.set(ylabel="read rightly, in %", ylim=(0, 114), yticks=range(0, 101, 25))
                if network in was:
                    axes.plot(was[network][order], "k_", markersize=15, label="before the change")
                    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.06))
            drawn.append(figure)
    return drawn


def letter_bars(
    axes: Axes, values: Tensor, counts: Counts, names: Names, order: Sequence[int], write: bool = False
) -> None:
    """A bar a letter in the course's order; with `write` the values of the few letters above theirs."""
    figures.class_bars(axes, values.tolist(), names, counts, order=order)
    axes.tick_params(axis="x", length=0)
    groups = figures.group_of(counts)
    for place, j in enumerate(order):
        if write and groups[j] == "few":
            style = {"color": GROUP_COLORS["few"], "ha": "center", "va": "bottom", "weight": "bold"}
            axes.text(place, values[j] + 3, f"{values[j]:.0f}", **style)


def pixels(figure: Figure) -> Image.Image:
    """A figure as it will be seen; it is closed."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
    return Image.open(file).convert("RGB")


def write(steps: Sequence[Figure], alt: str, folder: Path) -> None:
    """`readme_figure.gif` and `readme_figure.png` in `folder`, both with `alt` inside."""
    shown = [pixels(step) for step in steps]
    width, height = shown[0].size
    tall = Image.fromarray(np.concatenate([np.asarray(image) for image in shown]))
    palette = tall.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)  # one for all steps
    parts = [palette.crop((0, k * height, width, (k + 1) * height)) for k in range(len(shown))]
    sheet = Image.new("P", (2 * width, -(-len(parts) // 2) * height))
    sheet.putpalette(palette.getpalette() or [])
    for k, part in enumerate(parts):
        sheet.paste(part, (k % 2 * width, k // 2 * height))
    gif, png, inside = io.BytesIO(), io.BytesIO(), PngInfo()
    moves = {"save_all": True, "append_images": parts[1:], "duration": round(1000 * SECONDS)}  # no "loop": plays once
    parts[0].save(gif, "GIF", comment=alt.encode(), **moves)
    inside.add_itxt("Description", alt)
    sheet.save(png, "PNG", pnginfo=inside, optimize=True)
    for ending, data in (("gif", gif.getvalue()), ("png", png.getvalue())):
        write_atomically(folder / f"{NAME}.{ending}", lambda file, data=data: file.write(data))


def keep(
    pictures: Mapping[str, Tensor], counts: Counts, names: Names, norms: Sequence[Tensor], right: Mapping[str, Tensor]
) -> None:
    """Write the picture of README.md if the environment variable COURSE_README names a folder; `course.py run 01` sets
    it. The arguments are those of `draw()`."""
    if folder := os.environ.get("COURSE_README"):
        alt = " ".join(captions(right, counts, names)).replace("\n", " ").replace("... ...", "...")
        write(draw(pictures, counts, names, norms, right), alt, located(folder))
