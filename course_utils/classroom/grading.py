"""`python -m course_utils grade 03 FOLDER`: verdicts on the exercises of one notebook, for a folder of submissions.

Every *.ipynb below FOLDER is a submission. Of a submission only its answers run, and what they need: imports,
functions and values that other cells define. Its check cells never run, and nothing that it changes reaches the
verdict: `check` is the one of the package that is installed here.

An answer is the last definition of the exercise's function in the cell tagged exercise-N.M; if that cell is missing or
still has the stub, the last one in any other cell. What the submission does not define comes from the course's own
notebook. An exercise that builds on another one uses the submission's answer to it if that is right, else the course's.

Each exercise runs in a process of its own, which ends at a limit of time and memory. The verdict is made outside of it,
and only numbers, tensors, lists, dictionaries and texts come out. Exercises that hand over models or functions (such as
2.1 and 3.7) are tried inside, and what they computed is compared outside.

verdicts:
  right        the check accepts the answer
  wrong        it does not, or the answer raises an error
  open         the stub is still there
  stopped      too slow, too much memory, or the process ended: run it yourself
  missing      no function of that name
  unreadable   the file is no notebook

A remark says why. It also says when an answer is, word for word, the printed solution or that of another submission:
two answers count as copies if nothing but comments, docstrings, blank space and line breaks differs (names count).
Short answers may agree by chance, and a copy does not change the verdict.

This is no sandbox. It stops accidents and simple tricks: network, other programs, and changes of files are refused from
Python; on Linux the kernel takes the network away as well, where it lets this user do so, and limits the memory. On
macOS and Windows the network is refused from Python alone, and memory is measured 20 times a second. Code that is
written to break out can do so on every system. Grade the work of strangers in a container without network:

  docker run --rm --network none --memory 4g --pids-limit 256 --read-only --tmpfs /tmp \\
      -v COURSE:/course:ro -v FOLDER:/in:ro -w /course IMAGE python -m course_utils grade 03 /in > verdicts.csv
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import importlib
import inspect
import io
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from ..runtime import located, progress_bar, require, say, write_atomically
from . import exercises
from .exercises import Exercise, Todo, Wrong, expect_close
from .grading_worker import Job, fingerprint, pack, serve, trace, unpack

SLEEP = 5  # on the clock, an answer may take so many times as long as on the processor
MOST_BYTES, MOST_SENT, STARTS_WITHIN = 50 * 10**6, 64 * 10**6, 120
TOO_MUCH = "it wanted more memory than it may have"
VERDICTS = ("right", "wrong", "open", "stopped", "missing", "unreadable")


class Stopped(BaseException):
    """The process of an answer has ended. (A verifier that expects an Exception does not take this for it.)"""


# ---- the exercises -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """An exercise, and what has to be known before an answer to it is judged."""

    exercise: Exercise
    name: str  # of its function
    source: str  # of its solution
    print: str  # fingerprint of the solution
    wanted: list[tuple] | None  # with the solution: [(got, want, case, tolerance)], where the verifier runs inside
    seconds: float  # that the verifier needs with the solution


def course_notebook(number: str) -> Path:
    """The notebook of the course with this number. ValueError: there is none."""
    from .notebooks import find_notebooks  # here: processes of answers do without Jupyter

    return find_notebooks([number])[0]


def questions(number: str) -> dict[str, Question]:
    """{"3.1": Question, ...} of notebook `number`.

    Raises:
        ValueError: there is no such notebook, or it has no exercises.
    """
    notebook = course_notebook(number)
    try:
        module = importlib.import_module(f"{exercises.__name__}.nb{notebook.name[:2]}")
    except ModuleNotFoundError:
        raise ValueError(f"notebook: got {number!r}; allowed: a notebook with exercises") from None
    return {n: _question(module, exercise) for n, exercise in module.EXERCISES.items()}


def _question(module: ModuleType, exercise: Exercise) -> Question:
    solution: Any = exercise.solution
    crosses = []

    def watched(*arguments: Any, **options: Any) -> Any:
        got = solution(*arguments, **options)
        try:
            pack([arguments, options, got], strict=True)
        except TypeError:
            crosses.append(False)
        return got

    start = time.process_time()
    compared, _ = trace(module, exercise, watched)
    seconds, source = time.process_time() - start, inspect.getsource(solution)
    if crosses:  # anew: a verifier may look at the function itself
        compared, _ = trace(module, exercise, solution)
    printed = fingerprint(ast.parse(source).body[0])
    return Question(exercise, solution.__name__, source, printed, compared if crosses else None, seconds)


# ---- one answer in its process -------------------------------------------------------------------------------------


class Answer:
    """Stands for the function of a submission: every call goes to its process, and plain data come back."""

    def __init__(self, job: Job, context: Any):
        self.job, self.reason, self.done = job, "", threading.Event()
        self.begun: float | None = None
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(job, other), daemon=True)
        self.process.start()
        other.close()
        self.end = time.monotonic() + STARTS_WITHIN
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def __enter__(self) -> Answer:
        return self

    def begin(self) -> dict[str, Any]:
        """What the process says about the answer before it runs; from then on the time counts."""
        said = self.receive()
        self.begun = time.monotonic()
        self.end = self.begun + SLEEP * self.job.seconds
        return said

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.value_of(self.ask([arguments, options]))

    @staticmethod
    def value_of(reply: dict[str, Any]) -> Any:
        """The value, or what the answer raised is raised here: `Todo`, `Wrong`, an error of that name."""
        if "todo" in reply:
            raise Todo
        if "wrong" in reply:
            raise Wrong(str(reply["wrong"]))
        if "error" in reply:
            name, message = map(str, reply["error"])
            known: dict[str, type[Exception]] = {"ValueError": ValueError, "TypeError": TypeError}
            raise (known.get(name) or type(name[:40], (Exception,), {}))(message)
        if "value" not in reply:
            raise Stopped(TOO_MUCH if "memory" in reply else "it sent no answer")
        return reply["value"]

    def ask(self, message: Any) -> dict[str, Any]:
        with contextlib.suppress(OSError):  # it has ended: receive() says so
            self.pipe.send_bytes(pack(message))
        return self.receive()

    def receive(self) -> dict[str, Any]:
        try:
            reply = unpack(self.pipe.recv_bytes(MOST_SENT))
            require(isinstance(reply, dict), "reply", type(reply).__name__, "a dictionary")
            return reply
        except (EOFError, OSError):
            self.done.wait(0.1)
            raise Stopped(self.reason or "its process ended, or sent too much") from None
        except Exception as error:
            raise Stopped(f"it sent something that is no plain data ({type(error).__name__})") from None

    def _watch(self) -> None:
        """Ends the process at its limits, whatever the other thread waits for.

        What counts is the time of the processor, so that a busy machine changes no verdict; the clock ends sleepers.
        """
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.process.pid)
            memory, computed = process.memory_info().rss + self.job.memory, sum(process.cpu_times()[:2])
            while not self.done.wait(0.05):
                now = sum(process.cpu_times()[:2])
                if self.begun is None:
                    computed = now
                if time.monotonic() > self.end or now - computed > self.job.seconds:
                    self.reason = f"no answer after {self.job.seconds} seconds of computing, or {SLEEP} times as long"
                elif process.memory_info().rss > memory:
                    self.reason = TOO_MUCH
                if self.reason:
                    return self._kill()

    def _kill(self) -> None:
        if hasattr(os, "killpg") and self.process.pid:
            with contextlib.suppress(OSError):  # it has no group of its own yet, or has ended
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.watch.join()
        self._kill()
        self.process.join()
        self.pipe.close()


@dataclass
class Judged:
    verdict: str
    remark: str = ""
    print: str = ""  # fingerprint of the answer
    no_network: bool = True  # the kernel took it away


def judge(question: Question, job: Job, context: Any) -> Judged:
    """The verdict on one answer; the job says which."""
    judged = Judged("stopped")
    try:
        with Answer(job, context) as answer:
            said = answer.begin()
            if "missing" in said:
                return Judged("missing")
            if "answer" not in said:
                return Judged("wrong", f"the cell is no Python: {said.get('error', ['', ''])[1]}")
            judged.print, judged.no_network = str(said["answer"]), bool(said.get("no network"))
            if question.wanted is None:
                question.exercise.verify(answer)
            else:
                _compare(answer, question.wanted)
        judged.verdict = "right"
    except Todo:
        judged.verdict = "open"
    except Stopped as error:
        judged.remark = str(error)
    except Wrong as error:
        judged.verdict, judged.remark = "wrong", str(error)
    except Exception as error:
        judged.verdict, judged.remark = "wrong", f"stopped with {type(error).__name__}: {error}"
    judged.remark = " ".join(judged.remark.split())[:300]
    return judged


def _compare(answer: Answer, wanted: list[tuple]) -> None:
    """The verifier ran beside the answer: what it compared there is compared here with what the solution gives."""
    reply = answer.ask([])
    compared, patched = reply.get("compared", []), reply.get("patched", [])
    if patched:
        raise Wrong(f"it replaces {', '.join(map(str, patched[:3]))}")
    for got, (_, want, case, tolerance) in zip(compared, wanted, strict=False):
        expect_close(got, want, case, tolerance)
    answer.value_of(reply)
    if len(compared) != len(wanted):
        raise Wrong(f"the check made {len(compared)} comparisons instead of {len(wanted)}")


# ---- submissions ---------------------------------------------------------------------------------------------------


def cells_of(path: Path) -> list[tuple[list[str], str]]:
    """(tags, source) of the code cells. ValueError: the file is no notebook."""
    require(path.is_file(), path.name, "something else", "a file")
    require(path.stat().st_size <= MOST_BYTES, path.name, f"{path.stat().st_size} bytes", f"at most {MOST_BYTES}")
    try:
        cells = json.loads(path.read_text(encoding="utf-8-sig"))["cells"]
        code = [cell for cell in cells if cell.get("cell_type") == "code"]
        texts = [cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"]) for cell in code]
        tags = [[str(tag) for tag in cell.get("metadata", {}).get("tags", [])] for cell in code]
    except Exception as error:  # whatever stands in it
        raise ValueError(f"no notebook of format 4: {type(error).__name__}") from None
    return list(zip(tags, texts, strict=True))


@dataclass
class Row:
    """One submission."""

    name: str
    judged: dict[str, Judged] = field(default_factory=dict)


def grade(
    number: str, folder: str | Path, *, seconds: int = 10, memory: float = 2.0, progress: bool = True
) -> list[Row]:
    """Verdicts on all submissions below a folder, in the order of their names.

    Args:
        number: of the notebook, such as "03".
        folder: with *.ipynb, also in folders of it.
        seconds: of computing for one answer, at least; ten times what the solution needs where that is more.
        memory: GB that one answer may have beside what Python and torch need.

    Raises:
        ValueError: no such notebook, no folder, or no submission in it.
    """
    folder = located(folder)
    require(folder.is_dir(), "folder", repr(str(folder)), "a folder of submissions")
    require(seconds >= 1 and memory > 0, "limits", f"{seconds} seconds, {memory} GB", "at least 1 second, above 0 GB")
    paths = sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    require(paths, "folder", repr(str(folder)), "a folder with *.ipynb in it")
    asked = questions(number)
    course = cells_of(course_notebook(number))
    ways = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in ways else "spawn")
    if "forkserver" in ways:
        context.set_forkserver_preload([serve.__module__])
    rows = []
    with tempfile.TemporaryDirectory() as empty, progress_bar(len(paths), "submission", show=progress) as bar:
        for path in paths:
            row = Row(path.relative_to(folder).as_posix())
            rows.append(row)
            try:
                cells = cells_of(path)
            except (ValueError, OSError) as error:
                row.judged = {n: Judged("unreadable", " ".join(str(error).split())) for n in asked}
                bar.update()
                continue
            names = {n: q.name for n, q in asked.items()}
            for n, question in asked.items():
                if not any(question.name in source for _, source in cells):
                    row.judged[n] = Judged("missing")
                    continue
                ours = {k: q.source for k, q in asked.items() if k != n and not _right(row, k)}
                limit = max(seconds, round(10 * question.seconds))
                inside = question.wanted is not None
                job = Job(n, names, cells, course, ours, inside, limit, int(memory * 10**9), empty)
                row.judged[n] = judge(question, job, context)
            bar.update()
    _mark_copies(rows, asked)
    return rows


def _right(row: Row, number: str) -> bool:
    return number in row.judged and row.judged[number].verdict == "right"


def _mark_copies(rows: list[Row], asked: dict[str, Question]) -> None:
    """Write into the remarks which answers are equal but for layout, to whom; stubs do not count."""
    for number, question in asked.items():
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if row.judged[number].print and row.judged[number].verdict != "open":
                groups.setdefault(row.judged[number].print, []).append(row)
        for print_of, group in groups.items():
            for row in group:
                same = (
                    ["the printed solution"] if print_of == question.print else [r.name for r in group if r is not row]
                )
                if same:
                    judged = row.judged[number]
                    copied = f"word for word the same as {', '.join(same[:3])}" + " ..." * (len(same) > 3)
                    judged.remark = "; ".join(filter(None, [judged.remark, copied]))


def table(rows: list[Row]) -> str:
    """CSV: the file, a verdict for each exercise, how many are right, remarks."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", *rows[0].judged, "right", "remarks"])
    for row in rows:
        verdicts = [judged.verdict for judged in row.judged.values()]
        remarks = {judged.remark for judged in row.judged.values()}
        said = [f"{n}: {judged.remark}" for n, judged in row.judged.items() if judged.remark]
        said = list(remarks) if set(verdicts) == {"unreadable"} else said
        # a program for tables takes a cell that begins so for a formula
        name = "'" + row.name if row.name.startswith(("=", "+", "-", "@")) else row.name
        writer.writerow([name, *verdicts, verdicts.count("right"), " | ".join(said)])
    return file.getvalue()


def main(arguments: list[str]) -> int:
    """Exit code 2: no such notebook or folder."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m course_utils grade",
        description=about.partition(": ")[2],
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("notebook", help="its number, such as 03")
    parser.add_argument("folder", help="the submissions, also in folders of it")
    parser.add_argument("--out", help="file for the table (CSV); by default it is printed")
    parser.add_argument("--seconds", type=int, default=10, help="of computing for one answer, at least (default: 10)")
    parser.add_argument("--memory", type=float, default=2.0, help="GB for one answer (default: 2)")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        rows = grade(options.notebook, options.folder, seconds=options.seconds, memory=options.memory)
        if options.out:  # with a mark at the start that tells programs for tables that this is UTF-8
            write_atomically(options.out, lambda file: file.write(table(rows).encode("utf-8-sig", "backslashreplace")))
        else:
            say(table(rows).rstrip("\n"))
    except (ValueError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 2
    every = [judged for row in rows for judged in row.judged.values()]
    found = Counter(judged.verdict for judged in every)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS if found[verdict])
    say(f"{len(rows)} submission{'s' * (len(rows) != 1)} in {time.perf_counter() - start:.0f} s: {counts}", sys.stderr)
    if not all(judged.no_network for judged in every):
        say("the network was refused from Python alone, not by the kernel: see --help", sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
