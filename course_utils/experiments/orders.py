"""Classes that arrive in another order: class-incremental letters in three orders, the table of notebook 03."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from ..data import load_images
from ..incremental import IncrementalResult, run_incremental, train_base
from ..incremental_methods import ARMS, CONTROLS
from ..metrics import average_incremental_accuracy, difference_text, forgetting, mean_and_spread
from ..networks import ImageClassifier
from ..runtime import require
from .cells import made_by, percent_text, where

ORDERS, ORDER_SEEDS = (0, 1, 2), range(5)
ORDER_METHODS = ARMS | CONTROLS
SHUFFLED = (  # those that also run in random orders: the methods, and the controls that decide something
    "LUCIR",
    "BiC",
    "WA",
    "cosine + less-forget",
    "cosine",
    "distillation (iCaRL)",
    "cosine, not imprinted",
    "BiC, no ReLU",
    "features, lambda, free",
    "replay, no ReLU",
    "LUCIR, ReLU",
    "cosine, ReLU",
    "features, weight 1, frozen",
    "scores, weight 1, frozen",
    "LUCIR, printed lambda",
    "BiC, no correction",
    "cosine + BiC",
    "replay",
    "distillation, no ReLU",
    "cosine + frozen rows",
    "cosine + score distillation",
)
RATES_TRIED = {  # {method: learning rates tried with it on validation typefaces}
    "distillation (iCaRL)": [0.02, 0.05, 0.1],
    "WA": [0.02, 0.05, 0.1],
    "BiC": [0.02, 0.05, 0.1, 0.2],
    "distillation, no ReLU": [0.01, 0.02, 0.05, 0.1],
    "BiC, no ReLU": [0.01, 0.02, 0.05, 0.1],
    "cosine, ReLU": [0.02, 0.05, 0.1],
    "cosine": [0.02, 0.05, 0.1, 0.2],
    "LUCIR": [0.005, 0.01, 0.02, 0.05, 0.1],
}
RATE = 0.05  # of every method, as in notebook 03
OWN_RATES = {"distillation, no ReLU": 0.02, "BiC": 0.1, "cosine": 0.1, "LUCIR": 0.01}  # where another one did best
NO_SHARES = ("row_angle", "norm_ratio", "bias_gap")
BY_PHASE = ("accuracy", "old_to_new", "new_to_old", "drift", *NO_SHARES)


def phases_of(order: int) -> list[str]:
    """26 letters in the random order number `order`, 0 the alphabet: 14, then 3, 3, 3, 3."""
    shuffled = torch.randperm(26, generator=torch.Generator().manual_seed(order)).tolist() if order else range(26)
    letters = "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i] for i in shuffled)
    return [letters[:14], *(letters[i : i + 3] for i in range(14, 26, 3))]


@lru_cache(maxsize=32)  # cells of one process start from the same models
def _base(order: int, head: str, last_relu: bool, lr: float, seed: int) -> ImageClassifier:
    train = load_images("letters", "train").only(phases_of(order)[0])
    return train_base(head, train, last_relu=last_relu, lr=lr, seed=seed)


def _run(order: int, arm: str, lr: float, seed: int, split: str) -> IncrementalResult:
    chosen, data = ORDER_METHODS[arm], (load_images("letters", name) for name in ("train", split))
    base = _base(order, chosen.head, chosen.keeps_last_relu, lr, seed)
    return run_incremental(chosen, *data, phases_of(order), base=base, lr=lr, seed=seed)


def order_cell(order: int, arm: str, lr: float, seed: int) -> dict[str, Any]:
    """One method of `ORDER_METHODS` through the phases, test typefaces, the settings of notebook 03, shares 0 to 1.

    "average": average incremental accuracy with the base phase, "average_nme" the same by nearest means; "accuracy"
    after the last phase, of which "old" and "newest" are the means of the 23 old letters and of the 3 newest;
    "forgetting". "phases": what `run_incremental()` measures, one number a phase (all but "accuracy" from phase 1 on).
    """
    result = _run(order, arm, lr, seed, "test")
    rows, last = result.phases, result.by_phase[-1].double()
    sizes = torch.tensor([float(len(phase)) for phase in phases_of(order)[:-1]]).double()
    return {
        "average": average_incremental_accuracy([row["accuracy"] for row in rows]),
        "average_nme": average_incremental_accuracy([row["accuracy_nme"] for row in rows]),
        "accuracy": rows[-1]["accuracy"],
        "old": ((last[:-1] * sizes).sum() / sizes.sum()).item(),
        "newest": last[-1].item(),
        "forgetting": forgetting(result.by_phase),
        "phases": {key: [row[key] for row in rows if key in row] for key in BY_PHASE if key in rows[-1]},
    }


def order_choice(arm: str, lr: float, seed: int) -> dict[str, float]:
    """Average incremental accuracy on validation typefaces, alphabetical order."""
    rows = _run(0, arm, lr, seed, "validation").phases
    return {"validation": average_incremental_accuracy([row["accuracy"] for row in rows])}


def order_values(table: Mapping[str, Any], order: int, arm: str, key: str, lr: float = RATE) -> dict[int, float]:
    """{seed: number}: one of those that `order_cell()` gives, or the mean over the phases of a number of `BY_PHASE`.

    Shares and drift in %, the rest as it is; NaN where there is nothing to measure, as the bias gap of a cosine head.

    Raises:
        ValueError: the table has no such cell.
    """
    rows, unit = where(table["rows"], order=order, arm=arm, lr=lr), 1 if key in NO_SHARES else 100
    require(rows, "order, arm, lr", f"{order}, {arm!r}, {lr}", "those of the table")
    values = {row["seed"]: row[key] if key in row else row["phases"].get(key, math.nan) for row in rows}
    return {seed: unit * (sum(v) / len(v) if isinstance(v, list) else v) for seed, v in values.items()}


def order_differences(table: Mapping[str, Any], order: int, first: str, second: str, key: str) -> list[float]:
    """`order_values()` of the first method minus those of the second, for every seed that both have."""
    a, b = (order_values(table, order, arm, key) for arm in (first, second))
    return [a[seed] - b[seed] for seed in a if seed in b]


def order_text(table: Mapping[str, Any]) -> str:
    """The choice of the learning rates; then for each order every method, and differences with their intervals."""
    lines = [f"in % of test images, seeds 0 to 4; made by {made_by(table)}", "", RATE_HEADER]
    for arm, tried in RATES_TRIED.items():
        found = {lr: where(table["choices"], arm=arm, lr=lr) for lr in tried}
        cells = (f"{lr}: {percent_text(row['validation'] for row in rows)}" for lr, rows in found.items() if rows)
        lines.append(f"{arm:27s} {' | '.join(cells)}")
    for order in ORDERS:
        there = [arm for arm in ORDER_METHODS if where(table["rows"], order=order, arm=arm, lr=RATE)]
        lines += ["", f"order {order}: {' '.join(phases_of(order))}; learning rate {RATE}, or as written"]
        lines.append(f"{'':27s}{''.join(ORDER_COLUMNS.values())}")
        lines += [_order_line(table, order, arm, RATE, arm) for arm in there]
        for arm, lr in OWN_RATES.items():
            if where(table["rows"], order=order, arm=arm, lr=lr):
                lines.append(_order_line(table, order, arm, lr, f"{arm}, {lr}"))
        lines += ["", f"order {order}, differences by seed in points [95 % interval]"]
        for first, second in COMPARED:
            if first in there and second in there:
                parts = (
                    f"{name} {difference_text(order_differences(table, order, first, second, key))}"
                    for key, name in (("average", "average"), ("old_to_new", "old->new"), ("new_to_old", "new->old"))
                )
                lines += [f"{first} minus {second}:", f"    {', '.join(parts)}"]
    return "\n".join(lines)


RATE_HEADER = "average incremental accuracy on validation typefaces, order 0, three seeds, by learning rate"
ORDER_COLUMNS = {  # {key of `order_values()`: header as wide as its column}
    "average": "       average",
    "accuracy": "   last",
    "old": "    old",
    "newest": " newest",
    "forgetting": "  forget",
    "old_to_new": " old->new",
    "new_to_old": " new->old",
    "drift": "  drift",
    "norm_ratio": " norms",
    "bias_gap": " biases",
}
COMPARED = (
    # what the last ReLU, the cosine head and imprinting do
    ("replay, no ReLU", "replay"),
    ("distillation, no ReLU", "distillation (iCaRL)"),
    ("BiC, no ReLU", "BiC"),
    ("cosine", "cosine, ReLU"),
    ("LUCIR", "LUCIR, ReLU"),
    ("cosine, not imprinted", "replay, no ReLU"),
    ("cosine", "cosine, not imprinted"),
    ("LUCIR", "LUCIR, not imprinted"),
    ("cosine + distillation", "distillation, no ReLU"),
    ("cosine + BiC", "BiC, no ReLU"),
    # LUCIR and its rivals
    ("BiC", "BiC, no correction"),
    ("WA", "BiC, no correction"),
    ("BiC", "WA"),
    ("LUCIR", "WA"),
    ("LUCIR", "BiC"),
    ("LUCIR", "BiC, no ReLU"),
    ("LUCIR", "cosine + BiC"),
    # scores and features, rows free and frozen
    ("cosine + score distillation", "cosine"),
    ("cosine + frozen rows", "cosine"),
    ("features, weight 1, free", "cosine + score distillation"),
    ("features, weight 1, frozen", "scores, weight 1, frozen"),
    ("features, lambda, free", "scores, lambda, free"),
    ("cosine + less-forget", "scores, lambda, frozen"),
    ("scores, lambda, free", "cosine + score distillation"),
    ("scores, lambda, frozen", "scores, lambda, free"),
    ("cosine + less-forget", "features, lambda, free"),
    # separation, fine-tuning, the printed lambda
    ("LUCIR", "cosine + less-forget"),
    ("LUCIR + fine-tuning", "LUCIR"),
    ("less-forget, printed lambda", "cosine + less-forget"),
    ("LUCIR, printed lambda", "LUCIR"),
)


def _order_line(table: Mapping[str, Any], order: int, arm: str, lr: float, name: str) -> str:
    cells = []
    for key, header in ORDER_COLUMNS.items():
        mean, spread = mean_and_spread(order_values(table, order, arm, key, lr).values())
        text = "" if math.isnan(mean) else f"{mean:.{2 if key in NO_SHARES else 1}f}"
        text += f" ± {spread:.1f}" if key == "average" and not math.isnan(spread) else ""
        cells.append(f"{text:>{len(header)}s}")
    return f"{name:27s}{''.join(cells)}"
