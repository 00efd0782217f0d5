"""Run one function over a grid of settings and seeds, in parallel processes, with a progress bar.

One seed is an anecdote. `run_grid()` makes three of them as easy as one, and uses every core: each run gets one
thread, and independent runs go side by side, which is faster than many threads in one run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..machinery.checkpoints import describe
from ..runtime import digest, located, require
from .cells import Cell, combinations, run_cells


def run_grid(
    function: Callable[..., Mapping[str, Any]],
    *,
    fixed: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    folder: str | Path | None = None,
    **grid: Iterable[Any],
) -> list[dict[str, Any]]:
    """Call `function(**fixed, **settings)` for every combination of the grid's settings.

        rows = run_grid(train_and_test, data=["long tail", "balanced"], seed=range(3))

    Args:
        function: returns a dictionary of results. It may be defined in a notebook cell. It has to seed what it does:
            the same settings must give the same result.
        fixed: arguments that are the same everywhere and not part of the results, such as datasets.
        jobs: processes, this one among them; by default one for each core (on a GPU at most 4: they share its memory).
        folder: if given, each cell of the grid becomes one JSON file there, written when that cell is done, and cells
            that are already there are read instead of run. A file counts only if the settings, all of `fixed`, data
            too, and `function` with what it uses from around it are the same (`checkpoints.describe()`); settings and
            results must then be what JSON can hold. Change of a package's code is not seen: use a new folder.
        **grid: for each setting the values to try.

    Returns:
        One dictionary for each cell, settings and results together, in the order of the grid.

    Raises:
        ValueError: an empty grid, a setting that is not a list, or a result that is called like a setting.
        Whatever `function` raises; cells that were done before stay in the folder.
    """
    for name, values in grid.items():
        is_list = isinstance(values, Iterable) and not isinstance(values, str)
        require(is_list, name, repr(values), f"a list of values, such as [{values!r}]")
    fixed, rows = dict(fixed or {}), combinations(grid)
    require(grid and rows, "grid", grid, "at least one setting with at least one value")
    paths: list[Path | None] = [None] * len(rows)
    if folder is not None:
        known = describe("function", function) | describe("fixed", fixed)
        paths = [located(folder) / _file_name(known, row) for row in rows]
    calls = [partial(_one_cell, function, fixed, row) for row in rows]
    cells = [Cell(path, row, call, "result") for path, row, call in zip(paths, rows, calls, strict=True)]
    return [row | cell["result"] for row, cell in zip(rows, run_cells(cells, unit="run", jobs=jobs), strict=True)]


def _one_cell(function: Callable, fixed: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    result = dict(function(**fixed, **settings))
    clash = sorted(result.keys() & settings.keys())
    if clash:
        raise ValueError(f"function: its result has {clash}, which are settings; give them other names")
    return {"result": result}


def _file_name(known: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    try:
        return digest(json.dumps([known, settings], sort_keys=True)) + ".json"
    except TypeError as error:
        raise ValueError(f"grid: got {settings}; allowed with a folder: what JSON can hold ({error})") from None
