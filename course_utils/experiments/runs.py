"""Run a study or a table and keep each training as a small JSON file; a run that was stopped goes on where it was.

FOLDER/study.json              what was asked for: settings and data, and the methods and seeds of a study
FOLDER/cells/LDAM-0.json       one training of one seed, written when it is done, all at once
FOLDER/checkpoints/            trainings under way, if any: who computes each, and study.json in the order of this run
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from ..methods import METHODS, trainings_of
from ..photo_sets import PUBLISHED
from ..runtime import digest, located, require, write_atomically
from .background import PLAN, is_alive, myself, read_who
from .cells import Cell, read_cell, read_json, run_cells, write_json
from .large import check_large
from .studies import Study, run_cell
from .study_data import files_of, images_of
from .tables import TABLES, Table, table_cell
from .workers import on_cluster

RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"  # those that are part of the course


def run_study(
    name: str,
    study: Study | Table,
    folder: str | Path,
    *,
    jobs: int | None = None,
    cluster: str | None = None,
    source: str | None = None,
    skip_broken: bool = False,
) -> list[dict[str, Any]]:
    """Run what is missing of `study` in `folder`; return all its cells.

    Every training runs with the first seed, in the order of `study.methods`, then with the second one, and so on.

    Args:
        name: of the study, for its report; that of a table is its name in `TABLES`.
        jobs: processes on this machine, as in `run_grid()`. cluster: address of a Dask scheduler, used instead. There
            the cells come back to this process, which writes the files; a cell whose worker died starts anew.
        source, skip_broken: as in `study_data.load_splits()`.

    Raises:
        ValueError: the folder holds cells made with other settings or from other data.
    """
    folder, settings = located(folder), study.settings()
    for key, value in settings.items():
        require(not isinstance(value, float) or math.isfinite(value), key, value, "a finite number")
    if isinstance(study, Study) and study.data in PUBLISHED:
        check_large(study)
        require(source is None, "data", repr(source), f"no folder: COURSE_DATA names the one with {study.data}")
    if source is not None:
        here = located(source).is_dir() or cluster is not None  # else it is on the workers
        require(here, "data", repr(str(source)), "a folder of images")
        source = str(located(source).resolve())  # processes elsewhere may be in another folder
        outside = not folder.resolve().is_relative_to(source)
        require(outside, "out", str(folder), "a folder outside the images, which results would be taken for (--out)")
        settings |= {"source": Path(source).name, "files": _ask(cluster, files_of, source)}
    path, checkpoints = folder / "study.json", folder / "checkpoints"
    old = read_json(path) if path.is_file() else {}
    settings["images"] = old.get("settings", {}).get("images") or _ask(
        cluster,
        images_of,
        settings if isinstance(study, Study) else Study(what="", data=study.data).settings(),
        source,
        skip_broken,
    )
    asked: dict[str, Any] = {"study": name, "what": study.what, "settings": settings}
    if isinstance(study, Study):
        asked |= {"methods": list(study.methods), "seeds": list(study.seeds)}
    how: dict[str, Any] = {"source": source, "skip_broken": skip_broken}
    if "features" in settings and cluster is None:
        how["kept"] = str(folder.resolve() / "features")
    cells = cells_of(folder, asked, checkpoints=None if cluster else checkpoints, **how)
    plan = asked if cluster is None else asked | {"cluster": cluster}
    if old:  # what earlier runs asked for stays asked for
        read_json(path, settings=settings)
        asked |= {"study": old["study"]} | {k: [*asked[k], *old[k]] for k in ("methods", "seeds") if k in asked}
    if isinstance(study, Study):
        asked |= {"methods": [m for m in METHODS if m in asked["methods"]], "seeds": sorted(set(asked["seeds"]))}

    def is_there(file: Path) -> None:
        if not path.is_file() or read_json(path) != asked:  # not before: settings that cannot be trained with
            write_json(path, asked)  # leave no trace
        for rest in checkpoints.glob(f"{file.stem}.*.pt"):
            rest.unlink(missing_ok=True)

    try:
        write_json(checkpoints / PLAN, plan)
        return run_cells(list(cells.values()), unit="training", jobs=jobs, cluster=cluster, each=is_there)
    finally:
        with contextlib.suppress(OSError):  # not there, or another run uses it
            _take_away_what_killed_runs_left(folder)
            if not any(checkpoints.glob("*.pt")):
                (checkpoints / PLAN).unlink()
            checkpoints.rmdir()


def _take_away_what_killed_runs_left(folder: Path) -> None:
    """Files half written, and marks of who computes a cell. What a living process needs stays, and what is not ours."""
    for half in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
        process = half.name.split(".")[-2]  # write_atomically() names it
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            half.unlink(missing_ok=True)
    for mark in (folder / "checkpoints").glob("*.json"):
        with contextlib.suppress(ValueError):  # it says something else
            if mark.name != PLAN and (who := read_who(mark)) is not None and is_alive(who) is False:
                mark.unlink(missing_ok=True)


def _ask(cluster: str | None, function: Callable, *arguments: Any) -> Any:
    """The answer of a process that has the data: this one, or a worker of the cluster."""
    if cluster is None:
        return function(*arguments)
    with contextlib.closing(on_cluster(cluster, function, {0: arguments})) as answers:
        return next(answers)[1]


def cells_of(folder: Path, asked: dict[str, Any], *, checkpoints: Path | None = None, **how: Any) -> dict[str, Cell]:
    """{"LDAM, seed 3": its cell} for all that was asked for, in the order of `run_study()`; `how`: see `run_cell()`."""
    cells, settings = {}, asked["settings"]
    if "methods" not in asked:
        require(asked["study"] in TABLES, "study", repr(asked["study"]), ", ".join(TABLES))
        for part, own in TABLES[asked["study"]].rows():
            name = ", ".join(map(str, (part, *own.values())))
            call = partial(table_cell, asked["study"], part, own, settings.get("images"))
            path = _path(folder, name)
            cells[name] = Cell(path, {**settings, **own}, _marked(path, call, checkpoints), "result")
        return cells
    place = {name: k for k, name in reversed(list(enumerate(asked["methods"])))}
    ordered = sorted(trainings_of(asked["methods"]).items(), key=lambda item: min(place[name] for name in item[1]))
    for seed, (training, methods) in itertools.product(asked["seeds"], ordered):
        path = _path(folder, f"{training}-{seed}")
        checkpoint = checkpoints and checkpoints / f"{path.stem}.{digest(json.dumps(settings))}"
        call = partial(run_cell, settings, training, methods, seed, checkpoint=checkpoint, **how)
        own = {"training": training, "seed": seed}
        name, call = f"{training}, seed {seed}", _marked(path, call, checkpoints)
        cells[name] = Cell(path, settings, call, "methods", methods, own)
    return cells


def _marked(cell: Path, call: partial, checkpoints: Path | None) -> partial:
    return call if checkpoints is None else partial(_under_way, mark_of(cell), call)


def mark_of(cell: Path) -> Path:
    """The file that says who computes a cell, while somebody does."""
    return cell.parents[1] / "checkpoints" / cell.name


def _under_way(mark: Path, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    write_atomically(mark, lambda file: file.write(json.dumps(myself()).encode()))
    try:
        return call()
    finally:
        mark.unlink(missing_ok=True)


def _path(folder: Path, name: str) -> Path:
    return folder / "cells" / (re.sub(r"[^A-Za-z0-9]+", "-", name) + ".json")


def read_study(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """(what was asked for, the cells that are there, the cells that are missing such as "LDAM, seed 3")."""
    folder = located(folder)
    if not (folder / "study.json").is_file():
        raise ValueError(f"{folder} holds no experiment (study.json); run one with --out {folder}")
    asked = read_json(folder / "study.json")
    found = {name: read_cell(cell) for name, cell in cells_of(folder, asked).items()}
    return asked, [c for c in found.values() if c is not None], [name for name, c in found.items() if c is None]


def read_table(folder: str | Path) -> dict[str, Any]:
    """A table as its text takes it: what was asked for, "torch" (versions), and the rows of each part; null is NaN."""
    asked, cells, _ = read_study(folder)
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in TABLES[asked["study"]].parts}
    for cell in cells:
        numbers = {k: math.nan if v is None else v for k, v in cell["result"].items()}
        rows[cell["part"]].append(cell["settings"] | numbers)
    return {**asked, **rows, "torch": ", ".join(sorted({cell["versions"]["torch"] for cell in cells}))}
