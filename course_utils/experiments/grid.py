"""Run one function over a grid of settings and seeds, in parallel processes, with a progress bar.

One seed is an anecdote. `run_grid()` makes three of them as easy as one, and uses every core: each run gets one
thread, and independent runs go side by side, which is faster than many threads in one run.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import json
import os
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import joblib
import torch
from joblib.externals.loky import get_reusable_executor

from ..runtime import progress_bar, write_atomically


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
            that are already there are read instead of run. A file counts only if the settings, the numbers and texts
            in `fixed`, and the source of `function` are the same; settings and results must then be what JSON can
            hold. Change of data or of other code is not seen: use a new folder.
        **grid: for each setting the values to try.

    Returns:
        One dictionary for each cell, settings and results together, in the order of the grid.

    Raises:
        ValueError: an empty grid, a setting that is not a list, or a result that is called like a setting.
        Whatever `function` raises; cells that were done before stay in the folder.
    """
    odd = [name for name, values in grid.items() if isinstance(values, str) or not isinstance(values, Iterable)]
    if odd:
        raise ValueError(f"{odd[0]}: got {grid[odd[0]]!r}; allowed: a list of values, such as [{grid[odd[0]]!r}]")
    jobs = jobs_or_default(jobs)
    cells = [dict(zip(grid, values, strict=True)) for values in itertools.product(*map(list, grid.values()))]
    if not cells or not grid:
        raise ValueError(f"grid: got {grid}; allowed: at least one setting with at least one value")
    results: dict[int, dict[str, Any]] = {}
    fixed = dict(fixed or {})
    paths = [None if folder is None else Path(folder) / f"{_fingerprint(function, fixed, c)}.json" for c in cells]
    for i, path in enumerate(paths):
        if path is not None and path.is_file():
            results[i] = _read_result(path)

    calls = {i: (function, cells[i], fixed, paths[i]) for i in range(len(cells)) if i not in results}
    with progress_bar(len(cells), "run", done=len(results)) as bar:
        with contextlib.closing(side_by_side(_one_cell, calls, jobs)) as finished:
            for i, result in finished:
                results[i] = result
                bar.update()
    return [cells[i] | results[i] for i in range(len(cells))]


def jobs_or_default(jobs: int | None) -> int:
    """`jobs` if given; else COURSE_JOBS; else one for each core, at most 4 beside a GPU."""
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs: got {jobs}; allowed: at least 1")
    if jobs is not None:
        return jobs
    wish = os.environ.get("COURSE_JOBS") or str(joblib.cpu_count())
    if not wish.isdecimal() or int(wish) < 1:
        raise ValueError(f"COURSE_JOBS: got {wish!r}; allowed: an integer of at least 1")
    return min(int(wish), 4) if torch.cuda.is_available() else int(wish)


def side_by_side(function: Callable[..., Any], calls: Mapping[Any, tuple], jobs: int) -> Generator:
    """(key, function(*calls[key])) for every key, as they come, in `jobs` processes.

    Starting a process takes seconds, so this one works too: jobs - 1 others. After an error nothing new is started.
    """
    waiting, done = deque((key, function, arguments) for key, arguments in calls.items()), queue.SimpleQueue()
    jobs = min(jobs, len(calls))
    executor: Any = get_reusable_executor(max_workers=jobs - 1, timeout=300) if jobs > 1 else None

    def hand_out(_previous=None):
        with contextlib.suppress(IndexError):
            future = executor.submit(_in_another_process, *waiting.popleft())
            future.add_done_callback(done.put)
            future.add_done_callback(hand_out)

    try:
        for _ in range(jobs - 1):
            hand_out()
        for _ in calls:
            if done.empty() and waiting:
                with contextlib.suppress(IndexError):  # another process was faster
                    yield _in_this_process(*waiting.popleft(), alone=executor is None)
                    continue
            yield _next(done).result()
    finally:
        waiting.clear()


def _next(done: queue.SimpleQueue):
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=0.5)  # in steps, so that Windows lets a reader interrupt


def _in_another_process(key: Any, function: Callable, arguments: tuple) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    os.environ["COURSE_QUIET"] = "1"  # one bar for the grid, none for each run
    return key, function(*arguments)


def _in_this_process(key: Any, function: Callable, arguments: tuple, *, alone: bool) -> tuple[Any, Any]:
    """As in another process: one thread if others work too, and torch's random numbers stay as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if alone else 1)
    try:
        with torch.random.fork_rng(devices=[]):
            return key, function(*arguments)
    finally:
        torch.set_num_threads(threads)


def _one_cell(function: Callable, settings: dict, fixed: dict, path: Path | None) -> dict:
    """Run it, and keep its result at once: an error in another cell does not lose it."""
    result = dict(function(**fixed, **settings))
    clash = sorted(result.keys() & settings.keys())
    if clash:
        raise ValueError(f"function: its result has {clash}, which are settings; give them other names")
    if path is not None:
        text = json.dumps({"settings": settings, "result": result}, indent=1)
        write_atomically(path, lambda file: file.write(text.encode()))
        result = _read_result(path)  # what a later call will read: lists for tuples, and so on
    return result


def _fingerprint(function: Callable, fixed: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in fixed.items() if v is None or isinstance(v, str | int | float)}
    try:
        text = json.dumps([inspect.getsource(function), plain, settings], sort_keys=True)
    except TypeError as error:
        raise ValueError(f"grid: got {settings}; allowed with a folder: what JSON can hold ({error})") from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_result(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["result"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of run_grid(); delete it, and its cell is run again") from error
