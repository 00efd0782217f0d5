"""Where and how the course runs: device, precision, threads, seed and profile, chosen once by `start()`.

No other file of the course picks a device. Everything else takes tensors and works where they are. Here too: files that
are whole or not there, and the checkpoints of a training.
"""

from __future__ import annotations

import contextlib
import dis
import hashlib
import io
import logging
import os
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from packaging.requirements import Requirement
from torch import nn
from tqdm.auto import tqdm

PROFILES = ("default", "full")
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What `start()` decided. `precision` is the dtype for autocast: float32 means none."""

    notebook: str | None
    device: torch.device
    seed: int
    profile: str
    threads: int
    precision: torch.dtype

    def pick(self, default: T, full: T) -> T:
        """The value for this profile: `default` for a laptop, `full` for a GPU and more patience."""
        return full if self.profile == "full" else default

    def __str__(self) -> str:
        name = f"notebook {self.notebook} · " if self.notebook else ""
        precision = str(self.precision).removeprefix("torch.")
        return (
            f"{name}device {self.device} · precision {precision} · profile {self.profile} · "
            f"seed {self.seed} · threads {self.threads}"
        )


def available_devices() -> list[str]:
    """Names that `start(device=...)` accepts here, the preferred one first."""
    names = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    names = ["cuda", *names] if names else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def choose_device(device: str | None = None) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype for autocast there: COURSE_DEVICE, else `device`, else the best one there is.

    Raises:
        ValueError: a device that is not here.
    """
    names = available_devices()
    device = os.environ.get("COURSE_DEVICE") or device or names[0]
    if device not in names:
        raise ValueError(f"device: {device!r} is not on this machine; here: {', '.join(names)}")
    half = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)  # a T4 emulates it
    return torch.device(device), torch.bfloat16 if half else torch.float32


def start(notebook: str | None = None, *, seed: int = 0, device: str | None = None, profile: str | None = None) -> Run:
    """Choose the device, seed Python, NumPy and torch, set the threads, and print one line that says so.

    Args:
        notebook: its number, such as "01"; only for the printed line.
        seed: at least 0.
        device: "cuda", "cuda:1", "mps" or "cpu"; by default the best one there is.
        profile: "default" (a laptop, the budgets of the course) or "full" (longer training, more data).

    The environment variables COURSE_DEVICE and COURSE_PROFILE win over the arguments, so that one can run all
    notebooks elsewhere without editing them. COURSE_THREADS sets the CPU threads: 1 by default, because the
    course runs seeds in parallel processes, and threads of several processes slow each other down.

    Raises:
        ValueError: a device that is not here, an unknown profile, a negative seed or thread count.
    """
    profile = os.environ.get("COURSE_PROFILE") or profile or "default"
    require(profile in PROFILES, "profile", repr(profile), ", ".join(PROFILES))
    require(isinstance(seed, int) and seed >= 0, "seed", repr(seed), "an integer of at least 0")
    chosen, precision = choose_device(device)
    threads = os.environ.get("COURSE_THREADS", "1")
    ok = threads.isdecimal() and int(threads) >= 1
    require(ok, "COURSE_THREADS", repr(threads), "an integer of at least 1")

    torch.set_num_threads(int(threads))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    run = Run(notebook, chosen, seed, profile, int(threads), precision)
    say(run)
    return run


def check_environment() -> list[tuple[str, str, str]]:
    """What a notebook needs: rows (thing, what was found, advice). An empty advice means that all is well."""
    rows = []
    try:
        requirements = metadata.requires("longtail-course") or []
    except metadata.PackageNotFoundError:
        return [("the course", "missing", "needs to be installed: run `python course.py lab`")]
    for text in requirements:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(need.name)
            fits = need.specifier.contains(found, prereleases=True)
        except metadata.PackageNotFoundError:
            found, fits = "missing", False
        rows.append((need.name, found, "" if fits else f"needs {need.specifier}: run `python course.py lab` again"))
    device, cores = available_devices()[0], os.cpu_count() or 1
    slow = "" if device != "cpu" or cores > 1 else "one core: expect twice the times that the notebooks state"
    return [*rows, ("device", f"{device}, {cores} cores", slow)]


def require(ok: object, name: str, got: object, allowed: object) -> None:
    """Raise "name: got ...; allowed: ..." unless `ok`. `got` may be a function: it is called only for the message."""
    if not ok:
        raise ValueError(f"{name}: got {got() if callable(got) else got}; allowed: {allowed}")


def say(text: object, file: Any = None) -> None:
    """print(), for any output: characters that its encoding lacks (latin-1, cp949) become codes such as \\u2212."""
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(str(text).encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def on_cpu(tensor: torch.Tensor) -> bool:
    """Whether reading its numbers is free. On any GPU the program would have to wait, so checks are left out there."""
    return tensor.device.type == "cpu"


@contextlib.contextmanager
def keeping_random_state(device: torch.device | str = "cpu") -> Iterator[Callable[[int], None]]:
    """Give a function that seeds torch on the CPU and on `device`; afterwards both go on as if nothing had been drawn.

        with keeping_random_state(device) as seed:
            seed(3)

    torch.manual_seed() would reseed every GPU, for good.
    """
    device = torch.device(device)
    gpu: Any = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type)
    where = [device] if device.type == "cuda" else []  # Apple's generator is one for all
    before = torch.get_rng_state(), gpu and gpu.get_rng_state(*where)

    def seed(value: int) -> None:
        torch.default_generator.manual_seed(value)
        if gpu is not None:
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                gpu.manual_seed(value)

    try:
        yield seed
    finally:
        torch.set_rng_state(before[0])
        if gpu is not None:
            gpu.set_rng_state(before[1], *where)


def progress_bar(total: int, unit: str, *, done: int = 0, delay: float = 0.0, show: bool = True) -> tqdm:
    """A bar that goes away when it is full. COURSE_QUIET=1 hides all bars: the tests and `course.py run` set it."""
    quiet = not show or bool(os.environ.get("COURSE_QUIET"))
    return tqdm(total=total, initial=done, unit=unit, leave=False, delay=delay, disable=quiet)


def located(path: str | Path) -> Path:
    """The path, whose "~" is the home folder: for every path that comes from a reader."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~name, and there is no such user
        raise ValueError(f"path: got {str(path)!r}; allowed: a path that exists ({error})") from error


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write(file)` on a temporary file beside `path`, then rename it: a reader sees all of it or nothing.

    Raises:
        OSError: the folder cannot be written to; the message names it. An older file at `path` stays as it was.
    """
    path = located(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}. Is the folder read-only or full?") from error
    finally:
        with contextlib.suppress(OSError):  # there is no such file, or the folder is none
            temporary.unlink()


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def save_checkpoint(
    path: str | Path | None, model: nn.Module, optimizer, loss: Any, settings: dict, history: list, start: dict
) -> None:
    """Write what `load_checkpoint()` goes on from, which gave `start`; `path` None: nothing."""
    if path is not None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history, "start": start}
        state["loss"] = loss.state_dict() if isinstance(loss, nn.Module) else {}
        buffer = io.BytesIO()  # torch.save() into a file tells a full disk from other errors by no message
        torch.save(state | {"settings": settings, "digest": digest(describe("", state))}, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(
    path: str | Path | None, model: nn.Module, optimizer, loss: Any, settings: dict[str, Any]
) -> tuple[list, dict[str, str]]:
    """Bring model, optimizer and loss to where they were saved; without a file they stay.

    Returns:
        The history, and {name: digest} of the weights that the training started from.

    Raises:
        ValueError: the file is no checkpoint or a damaged one, or one of another network, of other settings, or of
            another start: the model has neither the weights that the training began with nor those that were saved.
    """
    if path is None:
        return [], {}
    path, mine = located(path), model.state_dict()
    start = {k: tensor_digest(v) for k, v in mine.items() if isinstance(v, torch.Tensor)}
    if not path.exists():
        return [], start
    with _naming(path):  # on the CPU: load_state_dict() knows what belongs elsewhere
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights, history = state["model"], state["history"]
        shapes = [{k: getattr(v, "shape", None) for k, v in one.items()} for one in (weights, mine)]
        pairs = {k: (state["settings"].get(k), settings.get(k)) for k in state["settings"] | settings}
        odd = [f"{k}={old} instead of {new}" for k, (old, new) in pairs.items() if old != new]
    if names := _differing(*shapes):
        raise ValueError(f"checkpoint: {path} belongs to another network; it differs in {', '.join(names[:3])}")
    if odd:
        raise ValueError(f"checkpoint: {path} was written with other settings: {', '.join(odd[:3])}")
    with _naming(path):
        found = {name: state[name] for name in ("model", "optimizer", "history", "start", "loss")}
        require(digest(describe("", found)) == state["digest"], "digest", "another one", state["digest"])
        saved = {k: tensor_digest(v) for k, v in weights.items() if isinstance(v, torch.Tensor)}
        names = _differing(state["start"], start)
    if names and start != saved:
        which = f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        way = "make the model as for that training (the same seed and first weights), or name another file"
        raise ValueError(f"checkpoint: {path} began with other weights than this model has, in {which}; {way}")
    with _naming(path):
        optimizer.load_state_dict(state["optimizer"])
        model.load_state_dict(weights)
        if isinstance(loss, nn.Module):
            loss.load_state_dict(state["loss"])
    return history, state["start"]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which they have different values, or one has none."""
    return [name for name in sorted({**one, **other}) if one.get(name, "") != other.get(name, "")]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes an error that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of fit() ({type(error).__name__})") from error


def digest(*parts: object) -> str:
    """16 hexadecimal digits of SHA-256 over bytes, and the text of anything else."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes | memoryview) else repr(part).encode("utf-8", "backslashreplace"))
    return found.hexdigest()[:16]


def tensor_digest(tensor: torch.Tensor) -> str:
    """The same for type, shape and numbers of a tensor, on any device."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return digest(str(tensor.dtype), tuple(tensor.shape), raw)


# ---- what a part of a training is ------------------------------------------------------------------------------------


def describe(name: str, part: Any, known: frozenset[int] = frozenset()) -> dict[str, Any]:
    """{"loss": "FocalLoss", "loss.gamma": 2.0, ...}: all that makes `part` what it is, to tell it from others.

    Plain values as they are, tensors by digest; of a function its code, defaults, and what it uses from around it; of
    an object its class and attributes; the parts of all these in turn. Equal in every process, on every device. Code
    of packages counts by name alone, a module of one file by its text: what was set in it since is not seen. Loggers
    and cached properties are left out, and so is what has its id() in `known`.
    """
    if isinstance(part, np.generic):
        part = part.item()
    if part is None or type(part) in (bool, int, str) or (type(part) is float and part == part):
        return {name: part}
    if isinstance(part, int | float | str):  # a NaN, which equals nothing; an IntEnum, which a checkpoint cannot hold
        return {name: repr(part)}
    if id(part) in known or isinstance(part, torch.device | logging.Logger):
        return {}
    if isinstance(part, types.ModuleType):
        return {name: _source(part)}
    if isinstance(part, np.random.Generator):
        return {name: digest(part.bit_generator.state)}
    if isinstance(part, torch.Tensor):
        return {name: f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)} {tensor_digest(part)}"}
    if isinstance(part, np.ndarray):
        return {name: f"{part.dtype} {part.shape} {digest(part.tolist() if part.dtype.hasobject else part.tobytes())}"}
    if isinstance(part, os.PathLike):
        return {name: str(part)}
    if isinstance(part, torch.Generator):
        return {name: part.initial_seed()}
    if isinstance(part, list | tuple) and all(v is None or isinstance(v, bool | int | float | str) for v in part):
        return {name: str(list(part)) if len(part) <= 8 else f"{len(part)} values {digest(list(part))}"}
    title, inside = _inside(part)
    known = known | {id(part)}
    return {name: title} | {
        k: v for key, one in inside.items() for k, v in describe(f"{name}.{key}", one, known).items()
    }


def _inside(part: Any) -> tuple[str, dict[str, Any]]:
    """The name of a thing, and the things it is made of."""
    if isinstance(part, partial):
        title, inside = _inside(part.func)
        return title, inside | {str(i): v for i, v in enumerate(part.args)} | part.keywords
    if isinstance(part, types.MethodType):
        return part.__name__, {**_inside(part.__func__)[1], "self": part.__self__}
    if isinstance(part, types.FunctionType):
        return part.__name__, _around(part) | vars(part)
    if isinstance(part, type):
        own = [] if _in_package(part) else [vars(one) for one in reversed(part.__mro__) if not _in_package(one)]
        inside = {k: getattr(v, "__func__", getattr(v, "fget", v)) for found in own for k, v in found.items()}
        return part.__name__, {k: v for k, v in inside.items() if k[:2] != "__" or isinstance(v, types.FunctionType)}
    if isinstance(part, Mapping):
        return type(part).__name__, {str(k): v for k, v in part.items()}
    if isinstance(part, list | tuple):
        return type(part).__name__, {str(i): v for i, v in enumerate(part)}
    if isinstance(part, set | frozenset):
        return type(part).__name__, {"values": sorted(str(describe("", v)) for v in part)}
    attributes = _attributes(part)
    if attributes is None:  # a dtype, a range ... are what they are called; what has an address is its class
        text = repr(part)
        return type(part).__name__ if " at 0x" in text else text, {}
    return type(part).__name__, _inside(type(part))[1] | attributes


def _around(function: types.FunctionType) -> dict[str, Any]:
    """Defaults and closure of a function and, unless it is a package's, its code and the globals it uses."""
    code = function.__code__
    names, defaults = code.co_varnames[: code.co_argcount], function.__defaults__ or ()
    found = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (function.__kwdefaults__ or {})
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not filled yet
            found[key] = cell.cell_contents
    if not _in_package(function):
        around = function.__globals__
        used = {key: around[key] for key in sorted(_globals_of(code)) if key in around}
        found |= used
        found["code"] = digest(_code(code))
    return found


def _source(module: types.ModuleType) -> str:
    """Of a file of one's own by its contents, of a package by its name."""
    own = not _in_package(module) and getattr(module, "__file__", None)
    return digest(Path(own).read_bytes()) if own else module.__name__


def _attributes(part: Any) -> dict[str, Any] | None:
    if isinstance(part, nn.Module):
        own = {k: v for k, v in vars(part).items() if k not in _OF_EVERY_MODULE}
        return own | part._parameters | part._buffers | part._modules
    slots = [vars(one).get("__slots__", ()) for one in type(part).__mro__]
    names = [k for some in slots for k in ([some] if isinstance(some, str) else some) if hasattr(part, k)]
    if not names and not hasattr(part, "__dict__"):
        return None
    found = {k: getattr(part, k) for k in names if k[:2] != "__"} | getattr(part, "__dict__", {})
    return {k: v for k, v in found.items() if not isinstance(getattr(type(part), k, None), cached_property)}


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _in_package(part: Any) -> bool:
    """Whether it comes from Python or a package, whose versions one knows, rather than from a notebook or a script."""
    name = (part.__name__ if isinstance(part, types.ModuleType) else part.__module__) or ""
    package = getattr(sys.modules.get(name), "__package__", None)
    return name != "__main__" and (bool(package) or name.split(".")[0] in sys.stdlib_module_names)


def _code(code: types.CodeType) -> str:
    """What a function does, as text without addresses, lines and files."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, constants))


def _constant(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _globals_of(code: types.CodeType) -> set[str]:
    inner = [_globals_of(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}.union(*inner)
