"""Tables that lessons show: grids of trainings that are no comparison of `METHODS`, and the text that each becomes.

`python -m course_utils experiments run ldam-table` and `lucir-orders` run them, `runs.read_table()` reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn

from .. import losses
from ..data import english_letter_counts, load_images, long_tailed, step_counts
from ..heads import CosineClassifier
from ..incremental import IncrementalResult, run_incremental, train_base
from ..incremental_methods import ARMS, CONTROLS
from ..methods import LDAM_SCALE
from ..metrics import (
    average_incremental_accuracy,
    difference_text,
    forgetting,
    mean_and_spread,
    per_class_accuracy,
    shot_accuracy,
)
from ..networks import ImageClassifier, SmallCNN
from ..runtime import require
from ..sampling import ClassBalancedSampler, DeferredResampler
from ..training import fit, predict, step_schedule
from .best_epoch import HABIT_METHODS, HABIT_SEEDS, constant_cell, habit_cell, habit_text
from .cells import combinations, plain
from .studies import STUDIES, Study, check_data, made_with, repeatable
from .two_classes import RATES, TRAINING, TWO_METHODS, TWO_RATES, two_cell, two_choice, two_text


@dataclass(frozen=True, kw_only=True)
class Table:
    """A named experiment, as `Study`: its parts are grids of settings, and every cell is one call.

    what: one line. parts: {name: (function of a cell, its grids)}. text: prints what `runs.read_table()` gives. fixed:
    settings that all cells have in common. data: of which it is.
    """

    what: str
    parts: Mapping[str, tuple[Callable[..., Mapping[str, Any]], Sequence[Mapping[str, Iterable[Any]]]]]
    text: Callable[[Mapping[str, Any]], str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    data: str = "letters"

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
        check_data(Study(what="", data=TABLES[name].data).settings() | ({} if images is None else {"images": images}))
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
ROWS = (  # what notebook 05 does not train itself, its baseline, and two methods that it trains with fewer seeds
    "cross-entropy, LDAM, LDAM-hinge, cross-entropy + DRW, cosine, cosine + DRW, uniform margin + DRW, LDAM + DRS, "
    "LDAM + DRW, balanced softmax, cosine balanced softmax, balanced data"
).split(", ")
FIVE_SEEDS = ["cosine + DRW", "LDAM + DRW", "balanced softmax", "cosine balanced softmax"]  # rivals, in two heads


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
    rows, unit = _where(table["rows"], order=order, arm=arm, lr=lr), 1 if key in NO_SHARES else 100
    require(rows, "order, arm, lr", f"{order}, {arm!r}, {lr}", "those of the table")
    values = {row["seed"]: row[key] if key in row else row["phases"].get(key, math.nan) for row in rows}
    return {seed: unit * (sum(v) / len(v) if isinstance(v, list) else v) for seed, v in values.items()}


def order_differences(table: Mapping[str, Any], order: int, first: str, second: str, key: str) -> list[float]:
    """`order_values()` of the first method minus those of the second, for every seed that both have."""
    a, b = (order_values(table, order, arm, key) for arm in (first, second))
    return [a[seed] - b[seed] for seed in a if seed in b]


def order_text(table: Mapping[str, Any]) -> str:
    """The choice of the learning rates; then for each order every method, and differences with their intervals."""
    lines = [f"in % of test images, seeds 0 to 4; made by {_made_by(table)}", "", RATE_HEADER]
    for arm, tried in RATES_TRIED.items():
        found = {lr: _where(table["choices"], arm=arm, lr=lr) for lr in tried}
        cells = (f"{lr}: {_percent(rows, 'validation')}" for lr, rows in found.items() if rows)
        lines.append(f"{arm:27s} {' | '.join(cells)}")
    for order in ORDERS:
        there = [arm for arm in ORDER_METHODS if _where(table["rows"], order=order, arm=arm, lr=RATE)]
        lines += ["", f"order {order}: {' '.join(phases_of(order))}; learning rate {RATE}, or as written"]
        lines.append(f"{'':27s}{''.join(ORDER_COLUMNS.values())}")
        lines += [_order_line(table, order, arm, RATE, arm) for arm in there]
        for arm, lr in OWN_RATES.items():
            if _where(table["rows"], order=order, arm=arm, lr=lr):
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
                    {"method": FIVE_SEEDS, "profile": ["long tail"], "seed": [3, 4]},
                ],
            ),
        },
        text=ldam_text,
        fixed={"epochs": EPOCHS, **SCHEDULE, "chosen": CHOSEN, "counts": PROFILES},
    ),
    "lucir-orders": Table(
        what="class-incremental letters in three orders, methods and controls, and the choice of the learning rates",
        parts={
            "choices": (
                order_choice,
                [{"arm": [arm], "lr": tried, "seed": range(3)} for arm, tried in RATES_TRIED.items()],
            ),
            "rows": (
                order_cell,
                [
                    {"order": [0], "arm": ORDER_METHODS, "lr": [RATE], "seed": ORDER_SEEDS},
                    *(
                        {"order": ORDERS, "arm": [arm], "lr": [lr], "seed": ORDER_SEEDS}
                        for arm, lr in OWN_RATES.items()
                    ),
                    *(
                        {"order": [order], "arm": [arm], "lr": [RATE], "seed": ORDER_SEEDS}
                        for arm in SHUFFLED
                        for order in ORDERS[1:]
                    ),
                ],
            ),
        },
        text=order_text,
        fixed={"orders": {str(order): phases_of(order) for order in ORDERS}},
    ),
    "best-epoch": Table(
        what="what it adds to report the epoch that was best on the test images: letters, two methods",
        parts={
            "rows": (habit_cell, [{"method": HABIT_METHODS, "seed": HABIT_SEEDS}]),
            "constant": (constant_cell, [{"method": HABIT_METHODS, "seed": HABIT_SEEDS}]),
        },
        text=habit_text,
        fixed=STUDIES["letters"].settings(),
    ),
    "webster-two": Table(
        what="two fields of Webster, one cut to a tenth: errors by class, beside table 1 of Cao et al. 2019",
        parts={
            "choices": (
                two_choice,
                [{"pair": TWO_RATES, "method": ["cross-entropy", "LDAM + DRW"], "lr": RATES, "seed": [0]}],
            ),
            "rows": (
                two_cell,
                [
                    {
                        "pair": [pair],
                        "method": TWO_METHODS,
                        "lr": [lr],
                        "seed": range(5 if pair.startswith("med") else 3),
                    }
                    for pair, lr in TWO_RATES.items()
                ],
            ),
        },
        text=two_text,
        fixed=TRAINING,
        data="webster",
    ),
    "imdb": Table(
        what="film reviews (aclImdb/ on the disk), negative ones cut to a tenth, beside table 1 of Cao et al. 2019",
        parts={"rows": (two_cell, [{"pair": ["positive, negative"], "method": TWO_METHODS, "seed": range(3)}])},
        text=two_text,
        fixed=TRAINING,
        data="imdb",
    ),
}
