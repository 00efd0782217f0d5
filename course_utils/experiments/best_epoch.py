"""How many points one habit adds: to report the epoch that was best on the test images.

Released codes of long-tailed recognition keep the epoch that is best on the test. Here it is the last epoch, or one
that validation images choose. The trainings are those of the study letters, measured after every epoch; then the same
with a learning rate that never drops, where accuracy goes up and down until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from ..data import Labeled
from ..methods import METHODS, Setting
from ..metrics import balanced_accuracy, paired_interval
from ..networks import ImageClassifier
from ..training import predict
from .cells import made_by
from .studies import STUDIES, run_options
from .study_data import load_splits

HABIT_METHODS, HABIT_SEEDS = ("cross-entropy", "LDAM + DRW"), range(5)
HABITS = {"last": "last epoch", "validation": "best on validation", "test": "best on test"}
PARTS = {"rows": "the rate drops", "constant": "the rate stays"}
HABIT_NOTE = """\
Test accuracy in %. "minus": the epoch that is best on the test, minus that epoch. It is the highest of all, so this is
never below 0: what counts is its size. Mean [95 % interval], paired by seed."""


@dataclass(frozen=True, kw_only=True)
class Watched(Setting):
    """A `Setting` that looks at the model after every epoch."""

    look: Callable[[ImageClassifier], dict[str, float]]

    def fit_options(self, stage: int = 1) -> dict[str, Any]:
        return super().fit_options(stage) | {"evaluate": self.look}


@lru_cache(maxsize=1)
def _splits(seed: int) -> tuple[Labeled, Labeled, Labeled, str]:
    return load_splits(STUDIES["letters"].settings(), seed)


def habit_cell(method: str, seed: int, **changed: Any) -> dict[str, list[float]]:
    """Train as the study letters does; {"test", "validation": balanced accuracy after every epoch, 0 to 1}.

    changed: options of `methods.Setting` that are to be others.
    """
    train, validation, test, _ = _splits(seed)
    found: dict[str, list[float]] = {"test": [], "validation": []}

    def look(model: ImageClassifier) -> dict[str, float]:
        for name, data in (("test", test), ("validation", validation)):
            found[name].append(balanced_accuracy(predict(model, data).argmax(1), data.labels, data.num_classes))
        return {}

    options = run_options(STUDIES["letters"].settings(), torch.float32) | changed
    METHODS[method].train(Watched(train=train, validation=validation, seed=seed, look=look, **options))
    return found


def constant_cell(method: str, seed: int) -> dict[str, list[float]]:
    """The same with one learning rate from start to end."""
    return habit_cell(method, seed, schedule=lambda epoch, epochs: 1.0)


def habits(cell: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """{one of `HABITS`: (epoch from 1, test accuracy in %)}; the first of equal epochs."""
    test, validation = cell["test"], cell["validation"]
    at = {"last": len(test) - 1, "validation": validation.index(max(validation)), "test": test.index(max(test))}
    return {name: (epoch + 1, 100 * test[epoch]) for name, epoch in at.items()}


def habit_rows(table: Mapping[str, Any], part: str, method: str) -> list[dict[str, str]]:
    """For `figures.show_table()`: every seed of one of `PARTS`, then the means and what the habit adds."""
    by_seed = {row["seed"]: habits(row) for row in table[part] if row["method"] == method}

    def added(name: str) -> list[float]:
        return [by["test"][1] - by[name][1] for by in by_seed.values()]

    others = ("last", "validation")
    rows = []
    for k, (seed, by) in enumerate(by_seed.items()):
        cells = {title: f"{by[name][1]:.2f} ({by[name][0]})" for name, title in HABITS.items()}
        rows.append({"seed": str(seed)} | cells | {f"minus {HABITS[o]}": f"{added(o)[k]:+.2f}" for o in others})
    means = {t: f"{sum(by[name][1] for by in by_seed.values()) / len(rows):.2f}" for name, t in HABITS.items()}
    return [*rows, {"seed": "mean"} | means | {f"minus {HABITS[o]}": _mean(added(o)) for o in others}]


def _mean(values: Sequence[float]) -> str:
    text = f"{sum(values) / len(values):+.2f}"
    if len(values) == 1:
        return text
    low, high = paired_interval(values)
    return f"{text} [{low:+.2f}, {high:+.2f}]"


def habit_summary(table: Mapping[str, Any]) -> list[dict[str, str]]:
    """For `figures.show_table()`: one row for each of `PARTS` and method, the last epoch and what the habit adds."""
    wanted = [(part, method) for part in PARTS for method in dict.fromkeys(row["method"] for row in table[part])]
    rows = []
    for part, method in wanted:
        means = habit_rows(table, part, method)[-1]
        rows.append(
            {"learning rate": PARTS[part], "method": method, "last epoch": means["last epoch"]}
            | {f"test minus {o}": means[f"minus {HABITS[o]}"] for o in ("last", "validation")}
        )
    return rows


def habit_text(table: Mapping[str, Any]) -> str:
    """For each method the accuracies of every seed, with the epoch in brackets, and what the habit adds."""
    lines = [f"{made_by(table)} · torch {table['torch']} · letters, (epoch)"]
    for part, title in PARTS.items():
        for method in dict.fromkeys(row["method"] for row in table[part]):
            rows = habit_rows(table, part, method)
            widths = [max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]]
            lines += ["", f"{method}, {title}"]
            for row in [dict(zip(rows[0], rows[0], strict=True)), *rows]:
                lines.append("  ".join(f"{cell:>{width}s}" for cell, width in zip(row.values(), widths, strict=True)))
    return "\n".join([*lines, "", HABIT_NOTE])
