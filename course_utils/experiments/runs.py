"""Run the cells of a study and keep each as a small JSON file; a run that was stopped goes on where it was.

    FOLDER/study.json              what was asked for: settings, methods, seeds
    FOLDER/cells/LDAM-0.json       one training of one seed, written when it is done, all at once
    FOLDER/checkpoints/            trainings under way, if any

Two runs in one folder do no harm: files appear whole, and both would write the same numbers.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..methods import METHODS, trainings_of
from ..runtime import progress_bar, write_atomically
from .cluster import on_cluster
from .grid import jobs_or_default, side_by_side
from .studies import Study, run_cell


def run_study(
    name: str,
    study: Study,
    folder: str | Path,
    *,
    jobs: int | None = None,
    cluster: str | None = None,
    source: str | None = None,
    skip_broken: bool = False,
) -> list[dict[str, Any]]:
    """Run what is missing of `study` in `folder`; return all its cells.

    Args:
        name: of the study, for its report.
        jobs: processes on this machine, as in `run_grid()`. cluster: address of a Dask scheduler, used instead. There
            the cells come back to this process, which writes the files; a cell whose worker died starts anew.
        source, skip_broken: as in `studies.load_splits()`.

    Raises:
        ValueError: the folder holds cells made with other settings.
    """
    folder, settings = Path(folder), study.settings()
    if source is not None:
        if not Path(source).is_dir() and cluster is None:  # else it is on the workers
            raise ValueError(f"data: got {str(source)!r}; allowed: a folder of images")
        source = str(Path(source).resolve())  # processes elsewhere may be in another folder
        settings["source"] = Path(source).name
    groups = trainings_of(study.methods)
    asked = _asked(folder, name, study, settings)
    cells, calls = {}, {}
    for training, methods in groups.items():
        for seed in study.seeds:
            path = folder / "cells" / f"{_file_name(training)}-{seed}.json"
            cell = _finished(path, settings, methods)
            if cell is None:
                calls[path] = (settings, training, methods, seed, source, skip_broken)
            else:
                cells[path] = cell
    if cells:
        _write_asked(folder, asked)
    with progress_bar(len(cells) + len(calls), "training", done=len(cells)) as bar:
        if cluster is not None:
            done = on_cluster(cluster, _timed_cell, calls) if calls else (none for none in ())
        else:
            kept = {path: (path, folder / "checkpoints" / path.stem, *call) for path, call in calls.items()}
            done = side_by_side(_kept_cell, kept, jobs_or_default(jobs))
        with contextlib.closing(done):
            for path, cell in done:
                if cluster is not None:
                    _write(path, cell)
                _write_asked(folder, asked)  # not before: settings that cannot be trained with leave no trace
                cells[path] = cell
                bar.update()
    with contextlib.suppress(OSError):  # not there, or another run uses it
        (folder / "checkpoints").rmdir()
    return list(cells.values())


def _timed_cell(settings, training, methods, seed, source, skip_broken, checkpoint=None) -> dict[str, Any]:
    started = time.perf_counter()
    cell = run_cell(settings, training, methods, seed, source=source, skip_broken=skip_broken, checkpoint=checkpoint)
    return cell | {"seconds": round(time.perf_counter() - started, 3)}


def _kept_cell(path: Path, checkpoint: Path, settings: dict, training: str, methods: list[str], *rest) -> dict:
    cell = _finished(path, settings, methods)  # another run may have been faster
    if cell is None:
        cell = _timed_cell(settings, training, methods, *rest, checkpoint=checkpoint)
        _write(path, cell)
        for old in checkpoint.parent.glob(f"{checkpoint.name}.*.pt"):
            old.unlink(missing_ok=True)
    return cell


def _file_name(training: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", training)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)  # a list is one line
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))


def _finished(path: Path, settings: Mapping[str, Any], methods: list[str]) -> dict[str, Any] | None:
    """The cell, if it is there with all its methods."""
    if not path.is_file():
        return None
    cell = read_json(path)
    check_settings(cell["settings"], settings, path)
    return cell if set(methods) <= cell["methods"].keys() else None


def check_settings(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    odd = [
        f"{k} {found.get(k)!r} instead of {wanted.get(k)!r}"
        for k in {**wanted, **found}
        if found.get(k) != wanted.get(k)
    ]
    if odd:
        raise ValueError(f"{path} was made with other settings: {', '.join(odd)}; use another folder (--out)")


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"settings": content["settings"], **content}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of this program; delete it, and it is made again") from error


def _asked(folder: Path, name: str, study: Study, settings: dict[str, Any]) -> dict[str, Any]:
    """What the folder is for: what earlier runs asked for stays asked for."""
    path = folder / "study.json"
    methods, seeds = set(study.methods), set(study.seeds)
    if path.is_file():
        old = read_json(path)
        check_settings(old["settings"], settings, path)
        name, methods, seeds = old["study"], methods | set(old["methods"]), seeds | set(old["seeds"])
    known = [m for m in METHODS if m in methods]
    return {"study": name, "what": study.what, "settings": settings, "methods": known, "seeds": sorted(seeds)}


def _write_asked(folder: Path, content: dict[str, Any]) -> None:
    path = folder / "study.json"
    if not path.is_file() or read_json(path) != content:
        _write(path, content)


def read_study(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """(what was asked for, the cells that are there, the cells that are missing such as "LDAM, seed 3")."""
    folder = Path(folder)
    if not (folder / "study.json").is_file():
        raise ValueError(f"{folder} holds no experiment (study.json); run one with --out {folder}")
    asked, cells, missing = read_json(folder / "study.json"), [], []
    for training, methods in trainings_of(asked["methods"]).items():
        for seed in asked["seeds"]:
            cell = _finished(folder / "cells" / f"{_file_name(training)}-{seed}.json", asked["settings"], methods)
            if cell is None:
                missing.append(f"{training}, seed {seed}")
            else:
                cells.append(cell)
    return asked, cells, missing
