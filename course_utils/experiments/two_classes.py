"""Two classes of texts, one of them rare: the first experiment of Cao et al. 2019 (LDAM), section 4.1.

There: reviews of films, positive and negative, the negative ones of training cut to a tenth, a balanced test, a BiLSTM
of two layers, Adam. Hyperparameters and code were not published. Here: the same with two fields of Webster, which ships
with the course, and with the reviews where they are on the disk. `tables.TABLES` names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch

from ..data import long_tailed, set_aside
from ..methods import train_method
from ..metrics import difference_text, per_class_accuracy
from ..texts import TEXT_NETWORKS, LabeledTexts, known_words, load_texts, word_dropout
from .cells import made_by, percent_text

# error in % on positive reviews, on negative ones, and their mean: Cao et al. 2019, table 1
PUBLISHED = {
    "cross-entropy": (2.86, 70.78, 36.82),
    "class-balanced sampling": (7.12, 45.88, 26.50),
    "re-weighting": (5.20, 42.12, 23.66),
    "LDAM + DRW": (4.91, 30.77, 17.84),
}
IN_THE_PAPER = {"cross-entropy": "ERM", "class-balanced sampling": "RS", "re-weighting": "RW", "LDAM + DRW": "LDAM-DRW"}
PAIRS = {  # {frequent, rare class: (training texts of the frequent one, validation and test texts of each)}
    "medicine, anatomy": (900, 100, 300),
    "zoology, botany": (1000, 100, 500),
    "positive, negative": (11500, 1000, 12500),
}
RARER = 10
TWO_METHODS = (*PUBLISHED, "balanced data")
TRAINING = {"network": "BiLSTM, two layers", "epochs": 10, "batch_size": 64, "lr": 0.002, "defer_at": 0.7}
TWO_RATES = {"medicine, anatomy": 0.002, "zoology, botany": 0.01}  # chosen on validation texts, with the first seed
RATES = (0.001, 0.002, 0.005, 0.01, 0.02)


@lru_cache(maxsize=2)
def _texts(pair: str, split: str) -> LabeledTexts:
    data = load_texts("imdb" if pair == "positive, negative" else "webster", split)
    return data.only(pair.split(", "))


def two_cell(pair: str, method: str, seed: int, *, lr: float = TRAINING["lr"]) -> dict[str, float]:
    """Train a BiLSTM on one pair of `PAIRS` with a method of `TWO_METHODS`; errors by class from 0 to 1.

    "frequent", "rare" and "mean": errors on the balanced test. "validation": accuracy, the mean of both classes.
    "balanced data" is cross-entropy with as many texts in all, half of them of each class: the bound. seed: of the
    split (but the test of film reviews is given), of the texts that stay, the first weights and the order.
    """
    most, validations, tests = PAIRS[pair]
    rest, validation = set_aside(_texts(pair, "train"), validations, seed=seed)
    if pair == "positive, negative":
        test = _texts(pair, "test")
    else:
        rest, test = set_aside(rest, tests, seed=seed)
    half = (most + most // RARER) // 2
    train = long_tailed(rest, [half, half] if method == "balanced data" else [most, most // RARER], seed=seed)
    train, validation, test = known_words(train, validation, test)
    options: dict[str, Any] = {name: TRAINING[name] for name in ("epochs", "batch_size", "defer_at")}
    trained = train_method(
        "cross-entropy" if method == "balanced data" else method,
        train,
        network=TEXT_NETWORKS[str(TRAINING["network"])](len(train.vocabulary)),
        optimizer=torch.optim.Adam,
        lr=lr,
        weight_decay=0.0,
        augment=word_dropout,
        seed=seed,
        **options,
    )
    right = {
        name: per_class_accuracy(trained.logits(data).argmax(1), data.labels, 2)
        for name, data in (("validation", validation), ("test", test))
    }
    frequent, rare = (1 - right["test"]).tolist()
    return {"frequent": frequent, "rare": rare, "mean": (frequent + rare) / 2} | {
        "validation": right["validation"].mean().item()
    }


def two_choice(pair: str, method: str, lr: float, seed: int) -> dict[str, float]:
    """The accuracy on validation texts alone, with another learning rate."""
    return {"validation": two_cell(pair, method, seed, lr=lr)["validation"]}


def two_rows(table: Mapping[str, Any], pair: str) -> dict[str, list[dict[str, float]]]:
    """{method: its cells of this pair, by seed}."""
    found: dict[str, list[dict[str, float]]] = {}
    for row in sorted(table["rows"], key=lambda row: (TWO_METHODS.index(row["method"]), row["seed"])):
        if row["pair"] == pair:
            found.setdefault(row["method"], []).append(row)
    return found


def two_text(table: Mapping[str, Any]) -> str:
    """For each pair: errors by class as the paper's table has them, the difference to cross-entropy, then the paper."""
    lines = [f"{made_by(table)} · torch {table['torch']} · error in %, a balanced test", ""]
    tried: dict[tuple[str, float], list[float]] = {}
    for row in table.get("choices", ()):
        tried.setdefault((row["pair"], row["lr"]), []).append(row["validation"])
    for (pair, lr), found in tried.items():
        lines.append(f"{pair}, learning rate {lr}: validation accuracy {100 * sum(found) / len(found):.1f} %")
    for pair in {row["pair"]: None for row in table["rows"]}:
        first, second = pair.split(", ")
        rows = two_rows(table, pair)
        lines += ["", f"{'':26s}{first:>13s}{second:>13s}{'mean':>13s}   minus cross-entropy [95 % interval]"]
        for method, cells in rows.items():
            numbers = "".join(f"{percent(cells, key):>13s}" for key in ("frequent", "rare", "mean"))
            lines.append(f"{method:26s}{numbers}   {gain(rows, method) if method != 'cross-entropy' else ''}".rstrip())
    lines += ["", f"{'published (IMDB)':26s}{'positive':>13s}{'negative':>13s}{'mean':>13s}"]
    for method, numbers in PUBLISHED.items():
        lines.append(f"{method:26s}" + "".join(f"{number:13.2f}" for number in numbers) + f"   {IN_THE_PAPER[method]}")
    return "\n".join(
        [*lines, "", "Published: Cao et al. 2019, table 1, one run, no spread; no hyperparameters are given."]
    )


def percent(cells: list[dict[str, float]], key: str) -> str:
    return percent_text(cell[key] for cell in cells)


def gain(
    rows: Mapping[str, list[dict[str, float]]], method: str, other: str = "cross-entropy", key: str = "mean"
) -> str:
    """The error of one method minus that of another, in points, paired by seed."""
    theirs = {cell["seed"]: cell[key] for cell in rows.get(other, ())}
    return difference_text(
        [100 * (cell[key] - theirs[cell["seed"]]) for cell in rows[method] if cell["seed"] in theirs]
    )
