"""Calls side by side: in processes of this machine, or on a Dask cluster that is there already."""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from typing import Any

import joblib
import psutil
import torch
from joblib.externals.loky import get_reusable_executor

from ..runtime import require

RETRIES = 3


def jobs_or_default(jobs: int | None) -> int:
    """`jobs` if given; else COURSE_JOBS; else one for each core, at most 4 beside a GPU."""
    if jobs is not None:
        require(jobs >= 1, "jobs", jobs, "at least 1")
        return jobs
    wish = os.environ.get("COURSE_JOBS") or str(joblib.cpu_count())
    require(wish.isdecimal() and int(wish) >= 1, "COURSE_JOBS", repr(wish), "an integer of at least 1")
    return min(int(wish), 4) if torch.cuda.is_available() else int(wish)


def side_by_side(function: Callable[..., Any], calls: Mapping[Any, tuple], jobs: int) -> Generator:
    """(key, function(*calls[key])) for every key, as they come, in `jobs` processes.

    Starting a process takes seconds, so this one works too: jobs - 1 others. After an error, where nobody waits for the
    results any longer, and when this process dies, the others end at once: nobody would take what they bring.
    """
    waiting, done = deque((key, function, arguments) for key, arguments in calls.items()), queue.SimpleQueue()
    jobs = min(jobs, len(calls))
    executor: Any = None
    if jobs > 1:
        with _naming_the_way_out():
            executor = get_reusable_executor(max_workers=jobs - 1, timeout=300)

    def hand_out(_previous=None):
        with contextlib.suppress(IndexError):
            future = executor.submit(_in_another_process, *waiting.popleft())
            future.add_done_callback(done.put)
            future.add_done_callback(hand_out)

    try:
        with _naming_the_way_out():
            for _ in range(jobs - 1):
                hand_out()
        for _ in calls:
            if done.empty() and waiting:
                with contextlib.suppress(IndexError):  # another process was faster
                    yield _in_this_process(*waiting.popleft(), alone=executor is None)
                    continue
            with _naming_the_way_out((BrokenExecutor,)):  # an OSError here is the function's own
                result = _next(done).result()
            yield result
    except BaseException:
        if executor is not None:
            waiting.clear()
            executor.shutdown(wait=True, kill_workers=True)
        raise
    finally:
        waiting.clear()


@contextlib.contextmanager
def _naming_the_way_out(errors: tuple[type[Exception], ...] = (OSError, BrokenExecutor)) -> Iterator[None]:
    """No shared memory or no memory is left, or the system allows no more processes."""
    try:
        yield
    except errors as error:
        problem = " ".join(str(error).split())
        raise OSError(
            f"a process could not start or was killed: {problem}; --jobs 1 (COURSE_JOBS=1) needs none"
        ) from error


def _next(done: queue.SimpleQueue):
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=0.5)  # in steps, so that Windows lets a reader interrupt


def _in_another_process(key: Any, function: Callable, arguments: tuple) -> tuple[Any, Any]:
    _end_with_parent()
    torch.set_num_threads(1)
    os.environ["COURSE_QUIET"] = "1"  # one bar for the grid, none for each run
    return key, function(*arguments)


@functools.cache
def _end_with_parent() -> None:
    """A process whose parent was killed would go on for hours, beside the next run."""
    parent = psutil.Process().parent()

    def watch():
        with contextlib.suppress(psutil.NoSuchProcess):
            while parent is not None and parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_this_process(key: Any, function: Callable, arguments: tuple, *, alone: bool) -> tuple[Any, Any]:
    """As in another process: one thread if others work too, and torch's random numbers stay as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if alone else 1)
    try:
        with torch.random.fork_rng(devices=[]):
            return key, function(*arguments)
    finally:
        torch.set_num_threads(threads)


def on_cluster(address: str, function: Callable[..., Any], calls: Mapping[Any, tuple]) -> Generator:
    """The same from the workers of the Dask scheduler at `address`: Slurm, Kubernetes, other machines, a LocalCluster.

    Dask starts a call again elsewhere when its worker dies, and up to three times when it raises. Workers need this
    package in the same version, and the data; results come back through the scheduler, so no disk is shared.

    address: such as "tcp://127.0.0.1:8786".

    Raises:
        ValueError: Dask is not installed, or no scheduler answers at the address.
        OSError: workers died of a call three times.
        Whatever the function raises in its last try; calls that have not started are given up then.
    """
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError:
        raise ValueError('cluster: Dask is not installed; run `pip install ".[cluster]"`') from None
    try:
        client = Client(address, timeout=20)
    except (OSError, ValueError) as error:
        raise ValueError(f"cluster: no Dask scheduler answers at {address!r} ({error})") from error
    with client:
        keys = {client.submit(function, *arguments, retries=RETRIES, pure=False): k for k, arguments in calls.items()}
        try:
            for future in as_completed(list(keys)):
                yield keys.pop(future), future.result()
        except KilledWorker as error:
            raise OSError(f"cluster: {error}") from error
        finally:
            client.cancel(list(keys))
