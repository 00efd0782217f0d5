"""Class-incremental letters in other orders than the alphabet's: makes `lucir_orders.json`, which notebook 03 shows.

    python data/results/lucir_orders.py

26 letters in a random order: 14 first, then 4 phases of 3, 20 exemplars a class, the settings of notebook 03. Each cell
of the grid is kept as it is done (in `lucir_orders.parts/`, not part of the project), so a stopped run goes on.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch

from course_utils.data import load_images
from course_utils.experiments.grid import run_grid
from course_utils.incremental import run_incremental, train_base
from course_utils.incremental_methods import ARMS
from course_utils.metrics import average_incremental_accuracy

HERE = Path(__file__).resolve().parent
RESULT = HERE / "lucir_orders.json"
NAMES = ("replay", "distillation (iCaRL)", "WA", "BiC", "cosine", "cosine + less-forget", "LUCIR")


def phases_of(order: int) -> list[str]:
    """26 letters in the random order number `order`: 14, then 3, 3, 3, 3."""
    shuffled = torch.randperm(26, generator=torch.Generator().manual_seed(order)).tolist()
    letters = "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i] for i in shuffled)
    return [letters[:14], *(letters[i : i + 3] for i in range(14, 26, 3))]


def cell(order: int, arm: str, seed: int) -> dict[str, float]:
    """Shares from 0 to 1: "average" is the average incremental accuracy with the base phase."""
    train, test, phases = load_images("letters", "train"), load_images("letters", "test"), phases_of(order)
    base = train_base(ARMS[arm].head, train.only(phases[0]), seed=seed)
    rows = run_incremental(ARMS[arm], train, test, phases, base=base, seed=seed).phases
    average = average_incremental_accuracy([row["accuracy"] for row in rows])
    last = {key: rows[-1][key] for key in ("accuracy", "accuracy_nme", "old_to_new", "new_to_old", "drift")}
    return {"average": average, **last}


def choice(lr: float, seed: int) -> dict[str, float]:
    """Average incremental accuracy of the linear baseline on validation typefaces, alphabetical order."""
    train, validation = load_images("letters", "train"), load_images("letters", "validation")
    phases, arm = ["ABCDEFGHIJKLMN", "OPQ", "RST", "UVW", "XYZ"], ARMS["distillation (iCaRL)"]
    base = train_base("linear", train.only(phases[0]), lr=lr, seed=seed)
    rows = run_incremental(arm, train, validation, phases, base=base, lr=lr, seed=seed).phases
    return {"validation": average_incremental_accuracy([row["accuracy"] for row in rows])}


def main() -> None:
    choices = run_grid(choice, folder=HERE / "lucir_orders.parts", lr=[0.02, 0.05, 0.1], seed=range(3))
    rows = run_grid(cell, folder=HERE / "lucir_orders.parts", order=[1, 2], arm=NAMES, seed=range(3))
    made = {
        "by": "python data/results/lucir_orders.py",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    orders = {order: phases_of(order) for order in (1, 2)}
    table = {"made": made, "choices": choices, "orders": orders, "rows": rows}
    RESULT.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
