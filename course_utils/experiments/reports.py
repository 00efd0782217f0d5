"""Reports of finished experiments: tables with spread, paired differences and their intervals, and two figures.

The same cells give the same report, byte by byte: what depends on the machine's speed is in a file of its own.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..classroom import figures
from ..methods import METHODS
from ..metrics import GROUPS, difference_text, mean_and_spread, paired_differences
from ..runtime import located, write_atomically
from . import published
from .cells import percent_text, read_json
from .runs import read_study, read_table
from .tables import TABLES

BASELINE = "cross-entropy"
FEW_TO_CHOOSE = 10  # validation images of a class; with fewer, one image is more than 10 points of its accuracy
Rows = dict[str, dict[int, dict[str, Any]]]  # method -> seed -> its numbers


def rows_of(cells: Sequence[Mapping[str, Any]]) -> Rows:
    """{method: {seed: numbers}} in the order of `METHODS`; "groups" in them are NaN where nothing was measured.

    Raises:
        ValueError: methods with unequal budgets, all named.
    """
    found: Rows = {name: {} for name in METHODS}
    for cell in cells:
        for name, row in cell["methods"].items():
            groups = {group: math.nan if v is None else v for group, v in row["groups"].items()}
            found.setdefault(name, {})[cell["seed"]] = row | {"groups": groups}
    found = {name: dict(sorted(seeds.items())) for name, seeds in found.items() if seeds}
    check_budgets(found)
    return found


def check_budgets(rows: Rows) -> None:
    """Refuse to compare methods that sent different numbers of images through the backbone."""
    budgets = {
        (name, seed): row["cost"]["backbone_images"] for name, seeds in rows.items() for seed, row in seeds.items()
    }
    (usual, _), *others = Counter(budgets.values()).most_common() or [(0, 0)]
    if others:
        odd = [f"{name} seed {seed}: {images:,}" for (name, seed), images in budgets.items() if images != usual]
        raise ValueError(
            f"unequal budgets: {usual:,} images went through the backbone in most rows, but not in {'; '.join(odd)}; "
            "allowed: one number for all, or two reports"
        )


def best_on_validation(rows: Rows) -> str | None:
    """The method with the highest mean balanced accuracy on validation images, over the seeds that all methods have.

    None if there is no such seed, or no validation image.
    """
    shared = set.intersection(*map(set, rows.values()))
    found = {name: [seeds[seed]["validation"] for seed in shared] for name, seeds in rows.items()}
    if not shared or any(value is None for values in found.values() for value in values):
        return None
    return max(found, key=lambda name: sum(found[name]))


# ---- text ------------------------------------------------------------------------------------------------------------

HOW_TO_READ = """\
A difference is taken between two runs of one seed (the same images, the same first weights of the backbone), so that \
what the seeds have in common falls out. The interval is Student's t over seeds, mean ± t s / √n: if differences are \
about normal, it holds their true mean in 95 % of cases, however few seeds there are; with few it is wide, and one \
seed has none. An interval that holds 0 is a *tie*: these seeds cannot say which of the two is better, nor that they \
are equal. It says how the mean might move with other seeds on *these* data, this test set and this budget; it says \
nothing about other data. Many methods are compared at once, so one that is barely clear of 0 may be luck."""


def report_text(
    asked: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], missing: Sequence[str], pictures: Any = None
) -> str:
    """The report as Markdown; see `write_report()`. pictures: what pictures.json holds, if there is one."""
    rows, best = rows_of(cells), best_on_validation(rows_of(cells))
    baseline = BASELINE if BASELINE in rows else next(iter(rows))
    settings, first = asked["settings"], cells[0]
    counts = first["data"]["counts"]

    def all_of(name: str, inner: str | None = None) -> str:
        return ", ".join(sorted({cell[name] if inner is None else cell[name][inner] for cell in cells}))

    facts = [
        f"Data: {all_of('data', 'note')}. {sum(counts):,} training images of {len(counts)} classes, {max(counts):,} to "
        f"{min(counts):,} a class; {first['data']['validation']:,} for choices; {first['data']['test']:,} for the "
        "numbers below.",
        f"Training: {_network_text(settings)}, {settings['epochs']} epochs, batch {settings['batch_size']}, learning "
        f"rate {settings['lr']:g} ({settings['schedule']}), weight decay {settings['weight_decay']:g}, augmentation "
        f"{settings['augment']}. DRW starts at {settings['defer_at']:g} of training.",
        f"Seeds: {', '.join(map(str, asked['seeds']))}.",
        f"Fingerprint of the images: {fingerprint(settings)}.",
        f"Made on {all_of('device')} in {all_of('precision')} with torch {all_of('versions', 'torch')}.",
    ]
    fewest = min(c["data"].get("fewest", FEW_TO_CHOOSE) for c in cells)
    if whole := _without_unused(settings, first):
        facts += [
            f"Training takes every image of {whole}, so choices are made on the other classes, and what they cost "
            f"{whole} does not show there: tau and the like may come out too large, and methods that give up frequent "
            "classes look too good."
        ]
    elif fewest < FEW_TO_CHOOSE:
        facts += [
            f"Fewest images of a class for choices: {fewest}. What is best on validation images is partly luck here, "
            "and methods that chose something on them (last column of the next table) look better there than they are."
        ]
    shown = next(iter(first["methods"].values()))["per_class"]
    if untested := [n for n, accuracy in zip(first["data"]["classes"], shown, strict=True) if accuracy is None]:
        facts += [f"No test image of {', '.join(untested)}: no accuracy below says anything about them."]
    accuracies = [
        f"| {name} | {_accuracies(seeds)} | {_calibration(seeds)} | {_chosen(seeds)} |" for name, seeds in rows.items()
    ]
    beside = [baseline] if best in (baseline, None) else [baseline, best]

    def minus(name: str, other: str) -> str:
        return "–" if name == other else difference_text(paired_differences(rows[name], rows[other]))

    differences = [f"| {name} | {' | '.join(minus(name, other) for other in beside)} |" for name in rows]
    more = []
    if "features" in settings:
        from .photographs import report_parts

        more = report_parts(asked, cells, rows, best, pictures)
    pick = best or "none, as there are no such images, or no seed that all methods have"
    parts = [
        f"# Experiment: {asked['study']}",
        f"{asked['what']}.",
        "\n".join(f"- {fact}" for fact in facts),
        *_incomplete(missing),
        "## Accuracy",
        "Balanced test accuracy in %, mean ± standard deviation over seeds; groups by training images (many > 100, few "
        "< 20). ECE: expected calibration error in %, for methods whose outputs are meant as probabilities.",
        table_of("method | many | medium | few | all | ECE | chosen on validation", accuracies),
        "## Differences",
        f"Points of balanced accuracy, mean of paired differences [95 % interval]. Best on validation images: {pick}.",
        table_of(" | ".join(["method", *(f"minus {other}" for other in beside)]), differences),
        HOW_TO_READ,
        *more,
        *published.report_parts(settings, cells, rows),
        "## Budget",
        "Images a seed: forward and backward through the backbone (the budget, equal for all); forward alone, for "
        "features; features that new heads learned from.",
        table_of("method | budget | forward alone | features | needs", [_cost(n, s) for n, s in rows.items()]),
        "![Accuracy by group of every method](accuracy.png)",
        "![Paired differences from the baseline](differences.png)",
    ]
    return _in_words_of(settings, "\n\n".join(parts) + "\n")


def _without_unused(settings: Mapping[str, Any], cell: Mapping[str, Any]) -> str:
    """The classes that have no images for choices, because none are left unused."""
    found = next(iter(cell["methods"].values())).get("validation_per_class", [])
    if settings.get("validation_from") != "unused":
        return ""
    return ", ".join(n for n, accuracy in zip(cell["data"]["classes"], found, strict=True) if accuracy is None)


def _in_words_of(settings: Mapping[str, Any], report: str) -> str:
    """A report of texts does not speak of images."""
    of_texts = any(" tokens of " in line for line in settings.get("images", {}).values())
    return report.replace("images", "texts").replace("Images", "Texts") if of_texts else report


def _network_text(settings: Mapping[str, Any]) -> str:
    return f"a head on the features of {settings['features']}" if "features" in settings else settings["network"]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Of all images as they were read, in short: two reports with the same one are about the same images."""
    digests = [f"{split} {line.split()[-1]}" for split, line in settings.get("images", {}).items()]
    return ", ".join(digests) or "not recorded"


def table_of(header: str, rows: Sequence[str]) -> str:
    return "\n".join([f"| {header} |", "|---" * len(header.split(" | ")) + "|", *rows])


def _incomplete(missing: Sequence[str]) -> list[str]:
    return [f"**Incomplete**: {len(missing)} trainings are missing ({'; '.join(missing)})."] if missing else []


def table_report(table: Mapping[str, Any], missing: Sequence[str]) -> str:
    """The report of a table as Markdown."""
    text = f"```text\n{TABLES[table['study']].text(table)}\n```"
    images = f"Fingerprint of the images: {fingerprint(table['settings'])}."
    parts = [f"# Experiment: {table['study']}", f"{table['what']}.", *_incomplete(missing), images, text]
    return _in_words_of(table["settings"], "\n\n".join(parts) + "\n")


def _accuracies(seeds: Mapping[int, Mapping]) -> str:
    return " | ".join(percent_text([row["groups"][group] for row in seeds.values()]) for group in (*GROUPS, "all"))


def _calibration(seeds: Mapping[int, Mapping]) -> str:
    values = [row["calibration_error"] for row in seeds.values() if row.get("calibration_error") is not None]
    return percent_text(values) if values else "–"


def _chosen(seeds: Mapping[int, Mapping]) -> str:
    names = next(iter(seeds.values()))["chosen"]
    return "; ".join(f"{name} {', '.join(str(row['chosen'][name]) for row in seeds.values())}" for name in names)


def _cost(name: str, seeds: Mapping[int, Mapping]) -> str:
    cost = next(iter(seeds.values()))["cost"]
    numbers = " | ".join(f"{cost[k]:,}" for k in ("backbone_images", "feature_images", "head_images"))
    return f"| {name} | {numbers} | {', '.join(METHODS[name].needs) if name in METHODS else ''} |"


def times_text(asked: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """Seconds as Markdown; they differ from run to run."""
    lines, devices = [], ", ".join(sorted({c["device"] for c in cells}))
    for name, seeds in rows_of(cells).items():
        mean, spread = mean_and_spread(row["cost"]["seconds"] for row in seeds.values())
        lines.append(f"| {name} | {mean:.1f}{'' if math.isnan(spread) else f' ± {spread:.1f}'} |")
    parts = [
        f"# Experiment: {asked['study']}, seconds",
        f"Seconds of one seed on {devices}, training included, mean ± standard deviation.",
        table_of("method | seconds", lines),
        f"All {len(cells)} trainings, one after the other: {sum(cell['seconds'] for cell in cells):,.0f} s.",
    ]
    return "\n\n".join(parts) + "\n"


# ---- figures ---------------------------------------------------------------------------------------------------------


def accuracy_figure(rows: Rows, title: str = "") -> Figure:
    """Accuracy by group of every method, every seed a point."""
    figure, axes = figures.axes_grid(width=8, height=1.2 + 0.42 * len(rows))
    measured = [row["groups"] for seeds in rows.values() for row in seeds.values()]
    groups = [g for g in (*GROUPS, "all") if not all(math.isnan(row[g]) for row in measured)]
    figures.group_points(
        axes, {name: [row["groups"] for row in seeds.values()] for name, seeds in rows.items()}, groups=groups
    )
    figures.group_legend(axes, groups, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def difference_figure(rows: Rows, baseline: str, title: str = "") -> Figure:
    """Differences from the baseline as `figures.difference_line()`, for every other method."""
    others = [name for name in rows if name != baseline]
    figure, axes = figures.axes_grid(width=8, height=1.0 + 0.36 * max(1, len(others)))
    for place, name in enumerate(others):
        figures.difference_line(axes, paired_differences(rows[name], rows[baseline]), place)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(others)), others)
    axes.invert_yaxis()
    axes.set_xlabel(f"points of balanced accuracy above {baseline}\nwith 95 % interval; grey and hollow: a tie")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def write_report(folder: str | Path) -> Path:
    """Write report.md, accuracy.png, differences.png and times.md beside the cells of `folder`; the report's path.

    A table has report.md alone.

    Raises:
        ValueError: no cells yet, or cells that cannot be compared.
    """
    folder = located(folder)
    asked, cells, missing = read_study(folder)
    if not cells:
        raise ValueError(f"{folder} has no finished training yet; missing: {len(missing)}")
    if "methods" in asked:
        rows = rows_of(cells)
        notes = sorted({cell["data"]["note"] for cell in cells})
        title = "\n".join(note if note == asked["study"] else f"{asked['study']}: {note}" for note in notes)
        baseline = BASELINE if BASELINE in rows else next(iter(rows))
        save_figure(accuracy_figure(rows, title), folder / "accuracy.png")
        save_figure(difference_figure(rows, baseline, title), folder / "differences.png")
        file = folder / "pictures.json"
        pictures = read_json(file, "twins", asked["settings"]) if file.is_file() else None
        texts = {"report.md": report_text(asked, cells, missing, pictures), "times.md": times_text(asked, cells)}
    else:
        texts = {"report.md": table_report(read_table(folder), missing)}
    for name, text in texts.items():
        write_atomically(folder / name, lambda file, text=text: file.write(text.encode()))
    return folder / "report.md"


def save_figure(figure: Figure, path: Path) -> None:
    raw = io.BytesIO()
    figure.savefig(raw, format="png", metadata={"Software": None})
    figures.plt.close(figure)
    write_atomically(path, lambda file: file.write(raw.getvalue()))
