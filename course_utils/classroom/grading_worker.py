"""The process in which one answer of one submission runs: what it needs is found, the doors close, calls are served.

Only plain data leave this process (`pack`): numbers, texts, tensors, arrays; lists, tuples and dictionaries of them.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import hashlib
import importlib
import json
import os
import re
import symtable
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from ..runtime import require
from . import exercises
from .exercises import Exercise, Todo, Wrong

DTYPES = {str(t).removeprefix("torch."): t for t in vars(torch).values() if isinstance(t, torch.dtype)}
NETWORK_OFF, OTHER_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER of Linux
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = """socket. subprocess. os.system os.exec os.fork os.posix_spawn os.spawn os.startfile os.kill signal.
os.remove os.rename os.rmdir os.mkdir os.chmod os.chown os.link os.symlink os.truncate os.utime shutil. ctypes. pty.
winreg. sys.addaudithook""".split()
PRIVATE = str(Path(exercises.__file__).parent)  # the solutions


class Job(NamedTuple):
    """What a process is asked to do. cells, course: (tags, source) of the submission and of the course's notebook."""

    number: str
    names: dict[str, str]  # {number of an exercise of this notebook: name of its function}
    cells: list[tuple[list[str], str]]
    course: list[tuple[list[str], str]]
    ours: dict[str, str]  # {number: solution} where the submission's own answer to another exercise is not right
    inside: bool  # the verifier has to run beside the answer: it hands over models, or functions
    seconds: int
    memory: int  # bytes
    folder: str  # an empty one


# ---- plain data ----------------------------------------------------------------------------------------------------


def plain(value: Any, strict: bool = False, depth: int = 0) -> Any:
    """What JSON can hold of a value; any other object becomes the name of its type, or with `strict` a TypeError."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not (strict and value.requires_grad):
        flat = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
        data = flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
        return {"tensor": [str(value.dtype)[6:], list(value.shape), base64.b64encode(data).decode()]}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        data = np.ascontiguousarray(value).tobytes()
        return {"array": [value.dtype.str, list(value.shape), base64.b64encode(data).decode()]}
    if isinstance(value, torch.Generator):
        return {"generator": plain(value.get_state())}
    if isinstance(value, list | tuple) and depth < 20:
        return {"list" if isinstance(value, list) else "tuple": [plain(v, strict, depth + 1) for v in value]}
    if isinstance(value, dict) and depth < 20:
        return {"dict": [[plain(v, strict, depth + 1) for v in pair] for pair in value.items()]}
    if strict:
        raise TypeError(f"no plain data: {type(value).__name__}")
    return {"other": type(value).__name__}


def real(data: Any) -> Any:
    """The value that `plain` wrote down. Any exception: it did not write this."""
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(map(real, content))
    if kind == "dict":
        return {real(key): real(value) for key, value in content}
    if kind == "generator":
        return torch.Generator().set_state(real(content))
    if kind == "other":
        return type(str(content)[:40], (), {})()
    dtype, shape, text = content
    raw = bytearray(base64.b64decode(text))
    require(kind in ("tensor", "array"), "kind", repr(kind), "tensor, array, list, tuple, dict, generator, other")
    if kind == "array":
        return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)[()]
    return (torch.frombuffer(raw, dtype=DTYPES[dtype]) if raw else torch.empty(0, dtype=DTYPES[dtype])).reshape(shape)


def pack(value: Any, strict: bool = False) -> bytes:
    """The bytes of a value. TypeError: with `strict`, an object that is no plain data."""
    return json.dumps(plain(value, strict)).encode("utf-8", "surrogatepass")


def unpack(data: bytes) -> Any:
    """The value of these bytes. Nothing in them is ever run; any exception: `pack` did not write them."""
    return real(json.loads(data.decode("utf-8", "surrogatepass")))


# ---- the answer and what it needs ----------------------------------------------------------------------------------


class Statement(NamedTuple):
    node: ast.stmt
    tags: list[str]
    binds: set[str]
    reads: set[str]


def _statement(node: ast.stmt, tags: list[str]) -> Statement:
    tables = [symtable.symtable(ast.unparse(node), "cell", "exec")]
    binds = {s.get_name() for s in tables[0].get_symbols() if s.is_assigned() or s.is_imported()}
    reads = {s.get_name() for s in tables[0].get_symbols() if s.is_referenced()}
    for table in tables:  # grows: what functions in it read
        tables += table.get_children()
        reads |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return Statement(node, tags, binds, reads)


def parse(source: str) -> ast.Module:
    """The tree of a cell; lines for IPython (%, !, ?) count as empty."""
    try:
        return ast.parse(source)
    except SyntaxError as error:
        try:
            return ast.parse(re.sub(r"^([ \t]*)[%!?].*$", r"\1pass", source, flags=re.MULTILINE))
        except SyntaxError:
            raise error from None


def statements(cells: list[tuple[list[str], str]], own: str | None = None) -> Iterator[Statement]:
    """All top-level statements but those of check cells. SyntaxError: in a cell tagged `own`."""
    for tags, source in cells:
        if any(tag.startswith("check-") for tag in tags):
            continue
        try:
            yield from [_statement(node, tags) for node in parse(source).body]
        except (SyntaxError, ValueError, RecursionError):
            if own in tags:
                raise


def _is_stub(node: ast.stmt) -> bool:
    raised = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise)]
    return any("Todo" in (getattr(e, "id", ""), getattr(getattr(e, "func", None), "id", "")) for e in raised)


def definition(pool: list[Statement], number: str, name: str) -> Statement | None:
    """The last definition of `name` in a cell tagged for it; if it is missing or the stub, the last one elsewhere."""
    some = [s for s in pool if name in s.binds and not s.reads & {"check", "yours"}]
    order = {id(s): (not _is_stub(s.node), f"exercise-{number}" in s.tags, k) for k, s in enumerate(some)}
    return max(some, key=lambda s: order[id(s)], default=None)


def select(job: Job) -> tuple[list[ast.stmt], Statement | None]:
    """(what the answer needs, in order, the answer or None). SyntaxError: the cell of the answer is no Python.

    The names of the other exercises mean the submission's answers where those are right, else the course's.
    """
    course = [s for s in statements(job.course) if not any(tag.startswith("exercise-") for tag in s.tags)]
    own = list(statements(job.cells, f"exercise-{job.number}"))
    answer = definition(own, job.number, job.names[job.number])
    if answer is None:
        return [], None
    pool = [s for s in course + own if not s.binds & {*job.names.values()}]
    for number, name in job.names.items():
        ours = [_statement(node, []) for node in ast.parse(job.ours.get(number, "")).body]
        theirs = definition(own, number, name)
        pool += ours or [s for s in (theirs,) if s and number != job.number]
    stars = {id(s) for s in pool if isinstance(s.node, ast.ImportFrom) and s.node.names[0].name == "*"}
    kept, wanted, before = stars, set(answer.reads), -1
    while len(kept) > before:
        before = len(kept)
        for s in pool:
            if id(s) not in kept and s.binds & wanted:
                kept.add(id(s))
                wanted |= s.reads
    return [s.node for s in pool if id(s) in kept], answer


def fingerprint(node: ast.stmt) -> str:
    """Equal for two answers that differ in nothing but comments, docstrings, blank space and layout."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(inner) is not None:
            inner.body = inner.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(node).encode("utf-8", "surrogatepass")).hexdigest()


# ---- closing the doors ---------------------------------------------------------------------------------------------


def contain(job: Job, pipe: Connection) -> bool:
    """Limits of this process, for good; True if the kernel took its network away. Of open files the pipe stays."""
    torch.set_num_threads(1)
    os.chdir(job.folder)
    sys.dont_write_bytecode = True
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), *(open(k, "w", closefd=False) for k in (1, 2))
    if os.name == "nt":
        return False
    os.closerange(3, pipe.fileno())  # other pipes lead to the process that starts all answers
    os.closerange(pipe.fileno() + 1, 1024)
    import ctypes
    import resource

    os.setsid()  # what it starts ends with it
    limits = {resource.RLIMIT_CPU: job.seconds + 60, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    if (statm := Path("/proc/self/statm")).exists():
        used = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limits[resource.RLIMIT_AS] = used + job.memory
    for limit, value in limits.items():
        with contextlib.suppress(OSError, ValueError):  # a lower limit is there already
            resource.setrlimit(limit, (value, value))
    unshare = getattr(ctypes.CDLL(None), "unshare", lambda flags: -1)  # Linux has it
    return unshare(NETWORK_OFF) == 0 or unshare(OTHER_USER | NETWORK_OFF) == 0


def hide_solutions() -> None:
    modules: dict[str, Any] = sys.modules
    for name in [*modules, *(f"{exercises.__name__}.nb{k:02d}" for k in range(100))]:
        if name.startswith(f"{exercises.__name__}.nb"):
            modules[name] = None  # an import of it fails
            vars(exercises).pop(name.rpartition(".")[2], None)


def close_the_doors() -> None:
    """Refuse, for good, what no answer needs: network, other programs, changes of files, the solutions."""

    def refuse(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            private = isinstance(path, str | bytes) and os.path.realpath(os.fsdecode(path)).startswith(PRIVATE)
            if private or flags & WRITES:
                raise PermissionError(f"an answer may not {'read the solutions' if private else 'write files'}")
        elif event.startswith(tuple(FORBIDDEN)):
            raise PermissionError(f"an answer may not use {event}")

    sys.addaudithook(refuse)


def _watched(module: ModuleType) -> list[tuple[Any, dict[str, Any]]]:
    """[(owner, its names and values now)] of what a verifier may use."""
    owners: list[Any] = [sys.modules["builtins"], torch, torch.nn.functional, module]
    owners += [m for name, m in sys.modules.items() if m and name.startswith("course_utils.")]
    owners += [torch.Tensor, torch.nn.Module, *(c for m in owners for c in vars(m).values() if _ours(c))]
    return [(owner, dict(vars(owner))) for owner in owners]


def _ours(value: object) -> bool:
    return isinstance(value, type) and value.__module__.startswith("course_utils.")


def patched(before: list[tuple[Any, dict[str, Any]]]) -> list[str]:
    """Names of functions and classes that are others than before; of classes, new names too."""
    found = []
    for owner, then in before:
        now = vars(owner)
        names = [k for k, value in then.items() if callable(value) and now.get(k) is not value]
        names += [k for k in now if k not in then and isinstance(owner, type)]
        found += [f"{owner.__name__}.{k}" for k in names]
    return found


# ---- serving -------------------------------------------------------------------------------------------------------


def outcome(call: Callable[[], Any]) -> dict[str, Any]:
    """{"value": ...}, {"todo": ""}, {"wrong": line} or {"error": [type, message]} of a call."""
    try:
        return {"value": call()}
    except Todo:
        return {"todo": ""}
    except Wrong as error:
        return {"wrong": str(error)[:500]}
    except BaseException as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return {"memory": ""}
        return {"error": [type(error).__name__, " ".join(str(error).split())[:300]]}


def trace(module: ModuleType, exercise: Exercise, answer: Callable) -> tuple[list[tuple], dict[str, Any]]:
    """What a verifier compares: [(got, want, case, tolerance)], and how it ended."""
    compared: list[tuple] = []
    original = vars(module)["expect_close"]

    def compare(got: Any, want: Any, case: str, tolerance: float = 1e-4) -> None:
        compared.append((real(plain(got)), want, case, tolerance))  # as it is now: a model may go on training

    vars(module)["expect_close"] = compare
    try:
        return compared, outcome(lambda: exercise.verify(answer))
    finally:
        vars(module)["expect_close"] = original


def serve(job: Job, pipe: Connection) -> None:
    """Find the answer and say what it is; then call it for each request, or run its verifier beside it."""
    torch.set_grad_enabled(True)
    no_network = contain(job, pipe)
    module = (
        importlib.import_module(f"{exercises.__name__}.nb{int(job.number.split('.')[0]):02d}") if job.inside else None
    )
    hide_solutions()
    found = outcome(lambda: select(job))
    if "value" not in found or found["value"][1] is None:
        pipe.send_bytes(pack(found if "value" not in found else {"missing": ""}))
        return
    parts, statement = found["value"]
    print_of = fingerprint(ast.parse(ast.unparse(statement.node)).body[0])
    here: dict[str, Any] = {"__name__": "__main__", "Todo": Todo}

    def run(node: ast.stmt) -> None:
        exec(compile(ast.Module([node], []), "answer", "exec"), here)

    for node in parts:  # before the doors close: an import may load libraries
        if isinstance(node, ast.Import | ast.ImportFrom):
            outcome(lambda node=node: run(node))
    pipe.send_bytes(pack({"answer": print_of, "no network": no_network}))
    before = _watched(module) if module else []
    close_the_doors()
    for node in parts:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            outcome(lambda node=node: run(node))  # what stands outside the answer may need what a notebook computes
    made = outcome(lambda: run(statement.node))
    if "value" not in made:
        pipe.recv_bytes()
        pipe.send_bytes(pack(made))
        return
    answer = exercises.keeping(here[job.names[job.number]])
    if module:
        compared, end = trace(module, module.EXERCISES[job.number], answer)
        pipe.recv_bytes()
        pipe.send_bytes(pack(end | {"compared": [got for got, *_ in compared], "patched": patched(before)}))
        return
    while True:
        arguments, options = unpack(pipe.recv_bytes())
        reply = outcome(lambda a=arguments, o=options: answer(*a, **o))
        sent = outcome(lambda r=reply: pack(r))
        cannot = {"memory": ""} if "memory" in sent else {"error": ["TypeError", "what it returns cannot be sent"]}
        pipe.send_bytes(sent.get("value") or pack(cannot))
