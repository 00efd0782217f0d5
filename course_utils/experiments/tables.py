"""Tables that lessons show: grids of trainings that are no comparison of `METHODS`, and the text that each becomes.

`python -m course_utils experiments run ldam-table` and `lucir-orders` run them, `runs.read_table()` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from . import ldam_rivals, orders
from .best_epoch import HABIT_METHODS, HABIT_SEEDS, constant_cell, habit_cell, habit_text
from .cells import combinations, plain
from .studies import STUDIES, Study, made_with, repeatable
from .study_data import check_data
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

    images: of `study_data.images_of()`, those of the table's other cells.
    """
    with repeatable():
        check_data(Study(what="", data=TABLES[name].data).settings() | ({} if images is None else {"images": images}))
        result = TABLES[name].parts[part][0](**own)
    return {"part": part, "result": plain(result), **made_with(torch.device("cpu"))}


TABLES = {
    "ldam-table": Table(
        what="LDAM and its rivals on letters with the tail of English text",
        parts={
            "choices": (
                ldam_rivals.ldam_choice,
                [{"name": [n], "method": m, "value": tried} for n, (m, tried) in ldam_rivals.CHOICES.items()],
            ),
            "rows": (
                ldam_rivals.ldam_cell,
                [
                    {"method": ldam_rivals.ROWS, "profile": ["long tail"], "seed": range(3)},
                    {"method": ldam_rivals.FIVE_SEEDS, "profile": ["long tail"], "seed": [3, 4]},
                ],
            ),
        },
        text=ldam_rivals.ldam_text,
        fixed={
            "epochs": ldam_rivals.EPOCHS,
            **ldam_rivals.SCHEDULE,
            "chosen": ldam_rivals.CHOSEN,
            "counts": ldam_rivals.PROFILES,
        },
    ),
    "lucir-orders": Table(
        what="class-incremental letters in three orders, methods and controls, and the choice of the learning rates",
        parts={
            "choices": (
                orders.order_choice,
                [{"arm": [arm], "lr": tried, "seed": range(3)} for arm, tried in orders.RATES_TRIED.items()],
            ),
            "rows": (
                orders.order_cell,
                [
                    {"order": [0], "arm": orders.ORDER_METHODS, "lr": [orders.RATE], "seed": orders.ORDER_SEEDS},
                    *(
                        {"order": orders.ORDERS, "arm": [arm], "lr": [lr], "seed": orders.ORDER_SEEDS}
                        for arm, lr in orders.OWN_RATES.items()
                    ),
                    *(
                        {"order": [order], "arm": [arm], "lr": [orders.RATE], "seed": orders.ORDER_SEEDS}
                        for arm in orders.SHUFFLED
                        for order in orders.ORDERS[1:]
                    ),
                ],
            ),
        },
        text=orders.order_text,
        fixed={"orders": {str(order): orders.phases_of(order) for order in orders.ORDERS}},
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
