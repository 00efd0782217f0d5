"""Where and how the course runs: device, precision, threads, seed and profile, chosen once by `start()`.

No other file of the course picks a device. Everything else takes tensors and works where they are. Here too: files that
are whole or not there, and digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from packaging.requirements import Requirement
from tqdm import tqdm

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


def device_of_process(number: int) -> torch.device:
    """For process `number` of several on this machine, from 0: GPU `number`, or the CPU; an Apple GPU cannot be shared.

    Raises:
        ValueError: there are fewer GPUs here than processes.
    """
    if choose_device()[0].type != "cuda":
        return torch.device("cpu")
    here = torch.cuda.device_count()
    require(number < here, "processes", f"one for GPU {number}", f"at most {here} on this machine, one for each GPU")
    return torch.device("cuda", number)


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
    if "numba" not in sys.modules:  # UMAP's: when it starts its threads, it sets torch's number to as many
        os.environ["NUMBA_NUM_THREADS"] = threads
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


class TextDisplay:
    """A file for tqdm in a notebook: one text output that shows the last line written; an empty one leaves nothing."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.shown: Any = None  # once there is something to show

    def write(self, text: str) -> None:
        from IPython.display import display

        bundle = {"text/plain": text.strip()}
        if self.shown is not None:
            self.shown.update(bundle, raw=True)
        elif text.strip():
            self.shown = display(bundle, raw=True, display_id=True)

    def flush(self) -> None:
        pass


def progress_bar(total: int, unit: str, *, done: int = 0, delay: float = 0.0, show: bool = True) -> tqdm:
    """A bar that goes away when it is full. COURSE_QUIET=1 hides all bars: the tests and `course.py run` set it."""
    quiet = not show or bool(os.environ.get("COURSE_QUIET"))
    options: dict[str, Any] = {}
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):  # a notebook: no widget, which would be dead where the notebook is opened again
        options = {"file": TextDisplay(), "ncols": 80, "mininterval": 0.5}
    return tqdm(total=total, initial=done, unit=unit, leave=False, delay=delay, disable=quiet, **options)


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


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
    """One safetensors file, whole or not there: tensors, plain values for JSON that say what they are, and a digest."""
    from safetensors.torch import save

    copies = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    text = json.dumps(about)
    data = save(copies, {"about": text, "digest": _digest_of_all(text, copies)})
    write_atomically(path, lambda file: file.write(data))


def read_tensors(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """(about, tensors) of a file that `write_tensors()` wrote; reading it runs no code of the file.

    Raises:
        ValueError: there is no such file, it is another program's, or a part of it is not as it was written.
    """
    from safetensors import safe_open

    path = located(path)
    try:
        with safe_open(path, "pt") as file:
            found = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        about = json.loads(found["about"])
    except Exception as error:
        raise ValueError(f"{path} is missing, damaged or no file of this course ({type(error).__name__})") from error
    same = found.get("digest") == _digest_of_all(found["about"], tensors)
    require(same, "digest", f"another one in {path}", "a file that is as it was written")
    return about, tensors


def _digest_of_all(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    return digest(text, sorted((name, tensor_digest(value)) for name, value in tensors.items()))
