"""Tables that lessons show: grids of trainings that are no comparison of `METHODS`, and the text that each becomes.

`python -m course_utils experiments run ldam-table` and `lucir-orders` run them, `runs.read_table()` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import losses
from ..data import english_letter_counts, load_images, long_tailed, step_counts
from ..heads import CosineClassifier
from ..incremental import run_incremental, train_base
from ..incremental_methods import ARMS
from ..methods import LDAM_SCALE
from ..metrics import average_incremental_accuracy, mean_and_spread, per_class_accuracy, shot_accuracy
from ..networks import SmallCNN
from ..runtime import require
from ..sampling import ClassBalancedSampler, DeferredResampler
from ..training import fit, predict, step_schedule
from .cells import combinations, plain
from .studies import Study, check_data, made_with, repeatable


@dataclass(frozen=True, kw_only=True)
class Table:
    """A named experiment, as `Study`: its parts are grids of settings, and every cell is one call.

    what: one line. parts: {name: (function of a cell, its grids)}. text: prints what `runs.read_table()` gives. fixed:
    settings that all cells have in common.
    """

    what: str
    parts: Mapping[str, tuple[Callable[..., dict[str, float]], Sequence[Mapping[str, Iterable[Any]]]]]
    text: Callable[[Mapping[str, Any]], str]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        return dict(self.fixed)

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(part, settings of its own) of every cell."""
        for part, (_, grids) in self.parts.items():
            yield from ((part, own) for grid in grids for own in combinations(grid))


def table_cell(name: str, part: str, own: dict[str, Any], images: dict[str, str] | None = None) -> dict[str, Any]:
    """Run one cell of a table: what its JSON file holds beside the settings. These trainings are for a CPU.

    images: of `studies.images_of()`, those of the table's other cells.
    """
    with repeatable():
        check_data(Study(what="").settings() | ({} if images is None else {"images": images}))
        result = TABLES[name].parts[part][0](**own)
    return {"part": part, "result": plain(result), **made_with(torch.device("cpu"))}


# ---- LDAM and its rivals, notebook 05 --------------------------------------------------------------------------------

PROFILES = {"long tail": english_letter_counts(500), "step": step_counts(26, 300, 100)}  # about as many images each
LDAM_METHODS = (
    "cross-entropy, re-weighting, class-balanced sampling, class-balanced loss, focal, class-balanced focal, LDAM, "
    "LDAM-hinge, cross-entropy + DRW, cross-entropy + DRS, cosine, cosine + DRW, uniform margin + DRW, LDAM + DRS, "
    "LDAM + DRW, balanced softmax, cosine balanced softmax, balanced data"
).split(", ")
SCHEDULE = {"at": 0.6, "factor": 0.1, "warmup": 0.25}  # at: the moment of deferral and of the first drop of the rate
EPOCHS = 12
# {setting: (methods it was chosen with, values tried)}: chosen was the best mean accuracy on validation typefaces, but
# the released rate, 0.1, stays where no other one is half a point better
CHOICES = {
    "lr of linear heads": (["re-weighting", "cross-entropy + DRW", "balanced softmax"], [0.1, 0.2, 0.4, 0.8]),
    "lr of cosine heads": (["LDAM", "LDAM + DRW", "cosine balanced softmax"], [0.05, 0.1, 0.2, 0.4]),
    "beta": (["class-balanced loss"], [0.9, 0.99, 0.999]),
    "gamma": (["focal"], [0.5, 1.0, 2.0]),
}
CHOSEN = {"lr of linear heads": 0.4, "lr of cosine heads": 0.1, "beta": 0.99, "gamma": 0.5}
ROWS = (  # what notebook 05 does not train itself, its baseline, and one method that it does train, as a check
    "cross-entropy, LDAM, LDAM-hinge, cross-entropy + DRW, cosine, cosine + DRW, uniform margin + DRW, LDAM + DRS, "
    "LDAM + DRW, balanced data"
).split(", ")


def ldam_cell(
    method: str, profile: str, seed: int, *, epochs: int = EPOCHS, chosen: Mapping[str, float] = CHOSEN
) -> dict[str, float]:
    """Train a SmallCNN on letters with one method of `LDAM_METHODS`; accuracies by group, 0 to 1, on test typefaces.

    profile: "long tail" (English letter frequency) or "step" (13 letters with 300 images, 13 with 3). seed: of the
    chosen images, the first weights and the order. "balanced data" is cross-entropy on a balanced set of the same size,
    the bound. "validation" is the balanced accuracy on validation typefaces.
    """
    require(method in LDAM_METHODS, "method", repr(method), ", ".join(LDAM_METHODS))
    require(profile in PROFILES, "profile", repr(profile), ", ".join(PROFILES))
    counts, classes = PROFILES[profile], 26
    wanted = [sum(counts) // classes] * classes if method == "balanced data" else counts
    train = long_tailed(load_images("letters", "train"), wanted, seed=seed)
    scale = 1.0 if "LDAM" in method or "uniform" in method else LDAM_SCALE  # in the loss, or in the head
    cosine = scale == 1 or "cosine" in method
    torch.manual_seed(seed)
    head = CosineClassifier(64, classes, scale, learn_scale=False, unit_rows=True) if cosine else None
    model = SmallCNN(classes, head=head)
    fit(
        model,
        train,
        epochs=epochs,
        seed=seed,
        lr=chosen["lr of cosine heads" if cosine else "lr of linear heads"],
        loss=_loss(method, counts, epochs, chosen),
        sampler=_sampler(method, train.labels, epochs, seed),
        schedule=partial(step_schedule, **SCHEDULE),
        progress=False,
    )
    test, validation = load_images("letters", "test"), load_images("letters", "validation")
    scores = [per_class_accuracy(predict(model, d).argmax(1), d.labels, classes) for d in (test, validation)]
    return shot_accuracy(scores[0], counts) | {"validation": scores[1].mean().item()}


def _loss(method: str, counts: Sequence[int], epochs: int, chosen: Mapping[str, float]) -> Callable:
    balanced = losses.effective_number_weights(counts, chosen["beta"])
    mean_margin = losses.ldam_margins(counts).mean().item()
    forms = {
        "cross-entropy": nn.CrossEntropyLoss,
        "re-weighting": partial(nn.CrossEntropyLoss, weight=losses.inverse_frequency_weights(counts)),
        "class-balanced loss": partial(nn.CrossEntropyLoss, weight=balanced),
        "focal": partial(losses.FocalLoss, chosen["gamma"]),
        "class-balanced focal": partial(losses.FocalLoss, chosen["gamma"], weight=balanced),
        "LDAM": partial(losses.LDAMLoss, counts),
        "LDAM-hinge": partial(losses.LDAMHingeLoss, counts),
        "uniform margin": partial(losses.LDAMLoss, counts, mean_margin, exponent=0),
        "balanced softmax": partial(losses.LogitAdjustedLoss, counts),
        "cosine balanced softmax": partial(losses.LogitAdjustedLoss, counts),
    }
    form = forms.get(method.split(" + ")[0], nn.CrossEntropyLoss)
    return losses.DeferredReweighting(form, counts, epochs, at=SCHEDULE["at"]) if method.endswith("DRW") else form()


def _sampler(method: str, labels: torch.Tensor, epochs: int, seed: int):
    if method == "class-balanced sampling":
        return ClassBalancedSampler(labels, seed=seed)
    return DeferredResampler(labels, epochs, at=SCHEDULE["at"], seed=seed) if method.endswith("DRS") else None


def ldam_choice(name: str, method: str, value: float) -> dict[str, float]:
    """Balanced accuracy on validation typefaces, long tail, seed 0, with one of `CHOSEN` replaced."""
    cell = ldam_cell(method, "long tail", 0, chosen={**CHOSEN, name: value})
    return {"validation": cell["validation"]}


def ldam_text(table: Mapping[str, Any]) -> str:
    """For each profile every method: mean accuracy by group in %, and the balanced one with its spread over seeds."""
    lines = [f"{_made_by(table)} · torch {table['torch']} · accuracy in %, means over seeds"]
    for profile in {row["profile"]: None for row in table["rows"]}:
        lines.append(f"{profile:23s}     many   medium      few   balanced")
        for method in LDAM_METHODS:
            if found := _where(table["rows"], profile=profile, method=method):
                groups = [mean_and_spread(row[g] for row in found)[0] for g in ("many", "medium", "few")]
                cells = "".join(" " * 9 if math.isnan(value) else f"{100 * value:9.1f}" for value in groups)
                lines.append(f"{method:23s}{cells}   {_percent(found, 'all')}")
    return "\n".join(lines)


# ---- classes that arrive in another order, notebook 03 ---------------------------------------------------------------

ORDERS = (1, 2)
ORDER_METHODS = ("replay", "distillation (iCaRL)", "WA", "BiC", "cosine", "cosine + less-forget", "LUCIR")


def phases_of(order: int) -> list[str]:
    """26 letters in the random order number `order`, 0 the alphabet: 14, then 3, 3, 3, 3."""
    shuffled = torch.randperm(26, generator=torch.Generator().manual_seed(order)).tolist() if order else range(26)
    letters = "".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[i] for i in shuffled)
    return [letters[:14], *(letters[i : i + 3] for i in range(14, 26, 3))]


def order_cell(order: int, arm: str, seed: int) -> dict[str, float]:
    """The settings of notebook 03, 20 exemplars a class. Shares from 0 to 1: "average" is the average incremental
    accuracy with the base phase.
    """
    train, test, phases = load_images("letters", "train"), load_images("letters", "test"), phases_of(order)
    base = train_base(ARMS[arm].head, train.only(phases[0]), seed=seed)
    rows = run_incremental(ARMS[arm], train, test, phases, base=base, seed=seed).phases
    average = average_incremental_accuracy([row["accuracy"] for row in rows])
    last = {key: rows[-1][key] for key in ("accuracy", "accuracy_nme", "old_to_new", "new_to_old", "drift")}
    return {"average": average, **last}


def order_choice(lr: float, seed: int) -> dict[str, float]:
    """Average incremental accuracy of the linear baseline on validation typefaces, alphabetical order."""
    train, validation, phases = load_images("letters", "train"), load_images("letters", "validation"), phases_of(0)
    base, arm = train_base("linear", train.only(phases[0]), lr=lr, seed=seed), ARMS["distillation (iCaRL)"]
    rows = run_incremental(arm, train, validation, phases, base=base, lr=lr, seed=seed).phases
    return {"validation": average_incremental_accuracy([row["accuracy"] for row in rows])}


def order_text(table: Mapping[str, Any]) -> str:
    """The choice of the learning rate, then for each order every method."""
    lines = [f"average incremental accuracy in %, seeds 0 to 2; made by {_made_by(table)}"]
    for lr in dict.fromkeys(row["lr"] for row in table["choices"]):
        found = _where(table["choices"], lr=lr)
        lines.append(f"rate {lr}, distillation, validation: {_percent(found, 'validation')}")
    for order in ORDERS:
        lines.append(f"order {order}: {' '.join(phases_of(order))}")
        for arm in ORDER_METHODS:
            if found := _where(table["rows"], order=order, arm=arm):
                lines.append(f"    {arm:22s} {_percent(found, 'average')}")
    return "\n".join(lines)


# ---- all tables ------------------------------------------------------------------------------------------------------


def _where(rows: Iterable[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    return [row for row in rows if settings.items() <= {name: row[name] for name in settings}.items()]


def _percent(rows: Sequence[Mapping[str, float]], name: str) -> str:
    mean, spread = mean_and_spread(row[name] for row in rows)
    return f"{100 * mean:.1f} ± {100 * spread:.1f}"


def _made_by(table: Mapping[str, Any]) -> str:
    return f"python -m course_utils experiments run {table['study']}"


TABLES = {
    "ldam-table": Table(
        what="LDAM and its rivals on letters with the tail of English text",
        parts={
            "choices": (ldam_choice, [{"name": [n], "method": m, "value": tried} for n, (m, tried) in CHOICES.items()]),
            "rows": (
                ldam_cell,
                [
                    {"method": ROWS, "profile": ["long tail"], "seed": range(3)},
                    {"method": ["cosine + DRW"], "profile": ["long tail"], "seed": [3, 4]},
                ],
            ),
        },
        text=ldam_text,
        fixed={"epochs": EPOCHS, **SCHEDULE, "chosen": CHOSEN, "counts": PROFILES},
    ),
    "lucir-orders": Table(
        what="class-incremental letters in two random orders, and the choice of the learning rate",
        parts={
            "choices": (order_choice, [{"lr": [0.02, 0.05, 0.1], "seed": range(3)}]),
            "rows": (order_cell, [{"order": ORDERS, "arm": ORDER_METHODS, "seed": range(3)}]),
        },
        text=order_text,
        fixed={"orders": {str(order): phases_of(order) for order in ORDERS}},
    ),
}
