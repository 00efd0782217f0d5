"""How far a run is: what is finished, what is under way and for how long, and the time left."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .background import LOCK, LOG, PLAN, in_words, is_alive, moment, read_who
from .cells import read_cell, read_json
from .runs import cells_of, mark_of

RECENT = 10  # epochs whose seconds tell how long the others will take


def status_text(folder: Path) -> str:
    """What `experiments status` says of one folder.

    Raises:
        ValueError: nothing was run there, or a file is damaged.
    """
    who, plan = read_who(folder / LOCK), folder / "checkpoints" / PLAN
    lines = [_who_text(folder, who)]
    plan = plan if plan.is_file() else folder / "study.json"
    if not plan.is_file():
        if who is None and not (folder / LOG).is_file():
            raise ValueError(f"{folder} holds no experiment; run one with --out {folder}")
        return f"{lines[0]}; no training has begun"
    asked = read_json(plan)
    cells: dict[str, Any] = cells_of(folder, asked, checkpoints=folder / "checkpoints")
    found = {name: read_cell(cell) for name, cell in cells.items()}
    parts = {name: _part(mark_of(cells[name].path)) for name, content in found.items() if content is None}
    active = {
        name: part for name, part in parts.items() if part["who"] is not None and is_alive(part["who"]) is not False
    }
    begun = {name: part for name, part in parts.items() if part["epochs"] and name not in active}
    epochs = asked["settings"].get("epochs") if "methods" in asked else None  # a table keeps no checkpoints
    waiting = [name for name in parts if name not in active and name not in begun]
    cluster = asked.get("cluster") if who is not None and is_alive(who) is not False else None
    done = len(cells) - len(parts)
    now = f"{len(active)} under way" if cluster is None else f"the cluster at {cluster} knows which are under way"
    lines.insert(0, f"{asked['study']}: {done} of {len(cells)} trainings are finished, {now}")
    lines += [f"under way: {name}, {_epochs_text(part, epochs)}" for name, part in active.items()]
    lines += [f"stopped:   {name}, {_epochs_text(part, epochs)}" for name, part in begun.items()]
    lines += [f"missing:   {name}" for name in waiting]
    if parts and cluster is None:
        lines.append(_left_text({n: c for n, c in found.items() if c is not None}, parts, epochs, max(1, len(active))))
    return "\n".join(lines)


def _who_text(folder: Path, who: Mapping[str, Any] | None) -> str:
    alive = False if who is None else is_alive(who)
    if who is not None and alive:
        return f"in {folder} works {in_words(who)}"
    if who is not None and alive is None:
        files = [path for where in ("cells", "checkpoints") for path in (folder / where).glob("*")]
        last = f", whose last file is of {moment(max(p.stat().st_mtime for p in files))}" if files else ""
        return f"in {folder} works {in_words(who)}{last}; whether it still lives cannot be seen from here"
    log = folder / LOG
    said = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    return f"in {folder} nothing runs" + (f" (the last line of its log: {said[-1]})" if said else "")


def _part(mark: Path) -> dict[str, Any]:
    """Of a training without result: who computes it, and the seconds of each epoch in its checkpoints."""
    seconds: list[float] = []
    for path in sorted(mark.parent.glob(f"{mark.stem}.*.pt")):
        try:
            seconds += [row["seconds"] for row in torch.load(path, "cpu", weights_only=True, mmap=True)["history"]]
        except FileNotFoundError:  # it has just been finished
            continue
        except Exception as error:
            raise ValueError(f"{path} is not a checkpoint of fit() ({type(error).__name__})") from error
    return {"who": read_who(mark), "epochs": seconds}


def _epochs_text(part: Mapping[str, Any], epochs: int | None) -> str:
    known, who = part["epochs"], part["who"]
    said = [f"{len(known)} of {epochs} epochs done"] if epochs else []
    said += [f"{statistics.fmean(known[-RECENT:]):.1f} s an epoch"] if known else []
    said += [f"{in_words(who)}"] if who is not None and is_alive(who) is not False else []
    return ", ".join(said)


def _left_text(
    found: Mapping[str, Mapping[str, Any]], parts: Mapping[str, Mapping[str, Any]], epochs: int | None, processes: int
) -> str:
    """From trainings that are finished, or from epochs that are done where none is."""
    whole = {name: _seconds(content) for name, content in found.items()}
    rates = [value for part in parts.values() for value in part["epochs"][-RECENT:]]
    if not whole and not (rates and epochs):
        return "time left: not known before the first epoch is done"
    usual = statistics.fmean(whole.values()) if whole else statistics.fmean(rates) * (epochs or math.nan)
    left = 0.0
    for name, part in parts.items():
        same = [value for other, value in whole.items() if _training(other) == _training(name)]
        one = statistics.fmean(same) if same else usual
        done = part["epochs"]
        left += statistics.fmean(done[-RECENT:]) * (epochs - len(done)) if done and epochs else one
    return f"time left: about {clock(left / processes)}, with {processes} at a time"


def _training(name: str) -> str:
    return name.rpartition(", seed ")[0]


def _seconds(content: Mapping[str, Any]) -> float:
    """Of all epochs, also those before an interruption."""
    return max([row["cost"]["seconds"] for row in content.get("methods", {}).values()], default=content["seconds"])


def clock(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
