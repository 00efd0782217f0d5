"""Long runs that use idle time: one run in a folder, lowest priority, a start that returns at once, a clean end.

FOLDER/running.json     who works in this folder: computer, process, since when; gone when that run has ended
FOLDER/log.txt          what runs in the background have said
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from ..runtime import require

LOCK, LOG = "running.json", "log.txt"
PLAN = "study.json"  # in FOLDER/checkpoints: what the run that works here was asked for, in its order
PATIENCE = 120  # seconds for a process to start or to end, where others have all the cores
SAME = 2 if psutil.LINUX else 10  # seconds: a process born at another time only has the same number


# ---- who works here --------------------------------------------------------------------------------------------------


def _born(process: psutil.Process) -> float:
    """Seconds. Linux counts from the start of the computer: psutil adds its time, which moves when the clock is set."""
    return process.create_time() - (psutil.boot_time() if psutil.LINUX else 0.0)


def myself() -> dict[str, Any]:
    """What tells this process from all others, also on a disk that several computers share."""
    me = psutil.Process()
    return {"host": socket.gethostname(), "pid": me.pid, "born": _born(me), "since": time.time()}


def is_alive(who: Mapping[str, Any]) -> bool | None:
    """Whether that process still is there; None for one of another computer, which cannot be seen from here."""
    if who["host"] != socket.gethostname():
        return None
    try:
        process = psutil.Process(who["pid"])
        return abs(_born(process) - who["born"]) < SAME and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.NoSuchProcess:
        return False


def read_who(path: Path) -> dict[str, Any] | None:
    """What `myself()` said in a file; None if there is no such file.

    Raises:
        ValueError: a file that says something else.
    """
    for _ in range(20):  # it may be written just now
        with contextlib.suppress(FileNotFoundError, ValueError):
            who = json.loads(path.read_text(encoding="utf-8"))
            kinds = {"host": str, "pid": int, "born": float, "since": float}
            if isinstance(who, dict) and all(isinstance(who.get(name), kind) for name, kind in kinds.items()):
                return who
        if not path.exists():
            return None
        time.sleep(0.05)
    raise ValueError(f"{path} does not say who works here; if nothing runs in this folder, delete it")


def in_words(who: Mapping[str, Any]) -> str:
    return f"process {who['pid']} on {who['host']} since {moment(who['since'])}"


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Only one run works in a folder at a time, and SIGTERM ends it as Ctrl-C does: its checkpoints stay.

    The lock of a process that is dead is taken over.

    Raises:
        ValueError: another run works here, or a lock says something else.
        OSError: the folder cannot be written to.
    """
    new, path, mine = [p for p in (folder, *folder.parents) if not p.exists()], folder / LOCK, myself()
    _take(path, mine)
    try:
        with _ending_politely():
            yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if read_who(path) == mine:
                path.unlink()
            for made in new:
                made.rmdir()  # if nothing is in it


def _take(path: Path, mine: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _made(path, mine):
            who = read_who(path)
            if who is not None and is_alive(who) is not False:
                here = is_alive(who) is None
                way = f"another computer; if that one has ended it, delete {path}" if here else "it may be stopped"
                raise ValueError(
                    f"out: got {path.parent}, where {in_words(who)} works; allowed: another folder ({way})"
                )
            path.unlink(missing_ok=True)
            time.sleep(0.2)  # whoever saw the same dead process at the same moment has removed its lock by now
        require(read_who(path) == mine, "out", path.parent, "another folder: a run has just begun here")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}. Is the folder read-only or full?") from error


def _made(path: Path, mine: dict[str, Any]) -> bool:
    """Make the file, which must not be there; whether that went well."""
    try:
        place = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    try:
        with open(place, "w", encoding="utf-8") as file:
            json.dump(mine, file)
    except OSError:
        path.unlink()
        raise
    return True


@contextlib.contextmanager
def _ending_politely() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number, _frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- start and stop --------------------------------------------------------------------------------------------------


def lowest_priority() -> None:
    """For this process and those that it starts: run when nobody else wants to."""
    if hasattr(os, "nice"):
        os.nice(19)
        with contextlib.suppress(OSError):  # Linux weighs sessions first, and this process has one of its own
            Path("/proc/self/autogroup").write_text("19")
    else:
        psutil.Process().nice(vars(psutil)["IDLE_PRIORITY_CLASS"])


def start(folder: Path, arguments: Sequence[str], program: Sequence[str] = ("-m", "course_utils")) -> str:
    """`python -m course_utils ARGUMENTS --detached`, which stays when this process and its terminal end.

    Raises:
        ValueError: another run works in the folder, or this one ended at once; the message is its own.
    """
    with alone_in(folder):  # says now what that process would say in its log
        pass
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *program, *arguments, "--detached"]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COURSE_QUIET": "1"}
    windows = ("CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW", "IDLE_PRIORITY_CLASS")  # workers need a console there
    flags = sum(getattr(subprocess, name, 0) for name in windows)
    with open(folder / LOG, "ab") as log:
        begin = log.tell()
        log.write(f"{moment(time.time())}  {' '.join(arguments)}\n".encode())
        log.flush()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | threads,
            start_new_session=True,
            creationflags=flags,
        )
    deadline, lasting, pid = time.monotonic() + PATIENCE, 0, child.pid
    while child.poll() is None and lasting < 10 and time.monotonic() < deadline:
        time.sleep(0.2)
        who = read_who(folder / LOCK)
        if who is not None and who["pid"] in _with_children(child.pid):
            pid, lasting = who["pid"], lasting + 1  # an error of the first two seconds is told here
    said = (folder / LOG).read_bytes()[begin:].decode("utf-8", "replace").splitlines()[1:]
    if child.poll() is not None:
        text = "\n".join(said) or f"the run ended with code {child.returncode}"
        if child.returncode:
            raise ValueError(text.removeprefix("error: "))
        return text
    child.returncode = 0  # it is left to itself
    command = "python -m course_utils experiments"
    return (
        f"process {pid} runs in the background with the lowest priority; its log is {folder / LOG}\n"
        f"how far it is: {command} status --out {folder}\nto end it:     {command} stop --out {folder}"
    )


def _with_children(pid: int) -> set[int]:
    """In a virtual environment on Windows, python.exe starts the process that runs the program."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return {pid, *(child.pid for child in psutil.Process(pid).children())}
    return {pid}


def stop(folder: Path) -> str:
    """End the run that works in the folder; its checkpoints stay.

    Raises:
        ValueError: it is one of another computer.
        OSError: it may not be ended from here, or does not end.
    """
    who = read_who(folder / LOCK)
    alive = False if who is None else is_alive(who)
    if who is None or alive is False:
        return f"nothing runs in {folder}"
    require(alive, "out", f"{folder}, where {in_words(who)} works", f"on {who['host']}: the same command there")
    try:
        psutil.Process(who["pid"]).terminate()
    except psutil.NoSuchProcess:
        return f"{in_words(who)} has just ended"
    except psutil.Error as error:
        raise OSError(f"{in_words(who)} cannot be ended from here: {error}") from error
    deadline = time.monotonic() + PATIENCE
    while is_alive(who):
        if time.monotonic() > deadline:
            raise OSError(f"{in_words(who)} has not ended within {PATIENCE} s")
        time.sleep(0.1)
    return f"{in_words(who)} is stopped; the same `experiments run` goes on from here"
