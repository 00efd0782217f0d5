"""Cells: results that are computed once and kept, each as one small JSON file that is there whole or not at all.

Grids, studies and tables keep theirs here. Two programs that work on the same cells do no harm: both would write the
same numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..metrics import mean_and_spread
from ..runtime import digest, progress_bar, require, write_atomically
from .workers import jobs_or_default, on_cluster, side_by_side


class Cell(NamedTuple):
    """One call, and the file of its result.

    path: of the file; None: keep nothing. settings: those a file must have been made with. call: gives a dictionary
    with `key` in it, under which a whole cell has all of `names`. own: what else the file must say.
    """

    path: Path | None
    settings: Mapping[str, Any]
    call: Callable[[], Mapping[str, Any]]
    key: str
    names: Sequence[str] = ()
    own: Mapping[str, Any] = {}


def combinations(grid: Mapping[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of each setting, the last setting fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*map(list, grid.values()))]


def run_cells(
    cells: Sequence[Cell],
    *,
    unit: str,
    jobs: int | None = None,
    cluster: str | None = None,
    each: Callable[[Path], None] = lambda path: None,
) -> list[dict[str, Any]]:
    """What is in every cell; those without a whole file are computed, and kept as soon as they are done.

    Args:
        jobs, cluster: processes here, or the address of a Dask scheduler. There the cells come back to this process,
            which writes the files.
        each: called here with every file that is there, as soon as it is.

    Raises:
        ValueError: a file was made with other settings, or was altered since.
    """
    found = {i: content for i, cell in enumerate(cells) if (content := read_cell(cell)) is not None}
    calls = {i: (cell,) for i, cell in enumerate(cells) if i not in found}
    if cluster is not None and calls:
        done = on_cluster(cluster, _compute, calls)
    else:
        done = side_by_side(_kept, calls, jobs_or_default(jobs))
    with progress_bar(len(cells), unit, done=len(found)) as bar, contextlib.closing(done):
        for i, content in itertools.chain(list(found.items()), done):
            path = cells[i].path
            if path is not None:
                if cluster is not None and i not in found:
                    write_json(path, content)
                each(path)
            bar.update(i not in found)
            found[i] = content
    return [found[i] for i in range(len(cells))]


def _compute(cell: Cell) -> dict[str, Any]:
    started = time.perf_counter()
    content = {"settings": cell.settings, **cell.call()}
    return {**content, "seconds": round(time.perf_counter() - started, 3)}


def _kept(cell: Cell) -> dict[str, Any]:
    content = read_cell(cell)  # another program may have been faster
    if content is None:
        content = _compute(cell)
        if cell.path is not None:
            write_json(cell.path, content)
            content = read_json(cell.path)  # what a later call will read: lists for tuples, and so on
    return content


def read_cell(cell: Cell) -> dict[str, Any] | None:
    """What the cell's file holds, if it is there with all that belongs in it."""
    if cell.path is None or not cell.path.is_file():
        return None
    content = read_json(cell.path, cell.key, cell.settings, cell.own)
    return content if set(cell.names) <= set(content[cell.key]) else None


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Such as "epochs 12 instead of 13, images.train None instead of ..."; empty if they say the same in JSON."""
    said = []
    for key in {**wanted, **found}:
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            said += [f"{key}.{inner}" for inner in filter(None, [differences(a, b)])]
        elif a != b and json.dumps(a) != json.dumps(b):
            said.append(f"{key} {a!r} instead of {b!r}")
    return ", ".join(said)


# ---- their numbers in words ------------------------------------------------------------------------------------------


def where(rows: Iterable[dict[str, Any]], **settings: Any) -> list[dict[str, Any]]:
    """The rows of `runs.read_table()` with these settings."""
    return [row for row in rows if settings.items() <= {name: row[name] for name in settings}.items()]


def percent_text(values: Iterable[float]) -> str:
    """ "76.1 ± 0.4" of shares from 0 to 1: mean and standard deviation in %; "76.1" of one, "–" of none."""
    mean, spread = mean_and_spread(100 * value for value in values)
    if math.isnan(mean):
        return "–"
    return f"{mean:.1f}" if math.isnan(spread) else f"{mean:.1f} ± {spread:.1f}"


def made_by(table: Mapping[str, Any]) -> str:
    """The command that runs a table again."""
    return f"python -m course_utils experiments run {table['study']}"


# ---- JSON ------------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """For strict JSON: numbers with 6 digits, and null for NaN, which means that there is nothing to measure."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        require(not math.isinf(value), "result", value, "finite numbers")
        return None if math.isnan(value) else round(value, 6)
    return value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps({**content, "checksum": checksum(content)}, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\n\s*", " ", found[0]), text)  # a list is one line
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))


def checksum(content: Mapping[str, Any]) -> str:
    """Of what a file says, however it is laid out."""
    return digest(json.dumps(json.loads(json.dumps({**content, "checksum": None})), sort_keys=True))


def read_json(
    path: Path, key: str = "settings", settings: Mapping[str, Any] | None = None, own: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """A dictionary that has "settings" and `key`.

    Raises:
        ValueError: damaged or altered since it was written, or made with other `settings`, or with others of its `own`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {**content["settings"], **{k: content[k] for k in own}}
        whole, _ = content.pop("checksum") == checksum(content), content[key]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no file of this program; delete it, and it is made again") from error
    if odd := "" if settings is None else differences(found, {**settings, **own}):
        raise ValueError(f"{path} was made with other settings: {odd}; use another folder (--out)")
    if not whole:
        raise ValueError(f"{path} was altered since it was written; delete it, and it is made again")
    return content
