"""Execute notebooks from top to bottom and keep their outputs: the one way committed outputs are made.

`python -m course_utils.classroom.notebooks` executes all of them, with `01 03` those: a number, a name
or a path.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from ..runtime import digest, require, say, write_atomically
from .frames import read
from .images import reduce_png
from .widgets import without_kernel

ROOT = Path(__file__).resolve().parents[2]
FRAMES = ROOT / "frames"  # made by every run, not committed
MADE_FROM = "made-from.txt"  # in a folder of frames


class ThisPython(KernelSpecManager):
    """Knows one kernel, the interpreter that runs this file, whatever kernels the user has registered."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict(["--log-level=ERROR"]))


def find_notebooks(names: Sequence[str] = (), folder: Path = ROOT / "notebooks") -> list[Path]:
    """The notebooks of `folder` that `names` mean ("1", "01", "01_weight_norm_bias", a path), or all; in order.

    Raises:
        ValueError: a name that means none, or a path of another file, whatever that is called.
    """
    here = sorted(folder.glob("*.ipynb"))
    chosen = set()
    for name in names:
        stem, path = Path(name).stem, Path(name)
        if path.name != name and path.resolve().parent != folder.resolve():  # a path, and not one of ours
            raise ValueError(f"notebook: got {name!r}; allowed: a notebook in {folder.name}/, or its number")
        prefix = f"{int(stem):02d}_" if stem.isdecimal() else None
        matches = [p for p in here if p.stem == stem or (prefix and p.stem.startswith(prefix))]
        if not matches:
            raise ValueError(f"notebook: got {name!r}; there are {', '.join(p.stem for p in here) or 'none'}")
        chosen.update(matches)
    return sorted(chosen) if names else here


def lessons(names: Sequence[str] = ()) -> list[Path]:
    """The notebooks of the course: `find_notebooks()` without copies and notebooks of a reader's own.

    Raises:
        ValueError: as `find_notebooks()`, or `names` mean none of the course.
    """
    found = [path for path in find_notebooks(names) if re.fullmatch(r"\d\d_\w+", path.stem)]
    require(found, "notebook", ", ".join(names), "a notebook of the course, or its number")
    return found


def made_from() -> str:
    """What outputs and frames depend on beside the notebook: the package, the data, the pace of the notebooks."""
    files = [*sorted((ROOT / "course_utils").rglob("*.py")), *sorted((ROOT / "data").glob("*.sha256"))]
    return digest(os.environ.get("COURSE_PROFILE", ""), *(file.read_bytes() for file in files))


def execute(
    path: Path, *, timeout: float = 900, root: Path = ROOT, frames: Path | None = None, out: Path | None = None
) -> None:
    """Run one notebook in its own folder and write it back in one step; on any error the file stays as it was.

    Args:
        path: the notebook.
        timeout: seconds for one cell.
        root: a folder whose absolute path no output may show.
        frames: a folder for `notebook.ipynb`, which is the executed notebook, and the frames of its sliders, so that
            both are of one run. It takes the place of an earlier run's folder when it is whole.
        out: the file to write; by default `path`.

    Raises:
        CellExecutionError: a cell raised, whatever its tags say.
        CellTimeoutError, DeadKernelError: a cell took too long, or the kernel died.
        ValueError: an output shows `root`.
    """
    if frames:
        frames.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{frames.name}-", dir=frames.parent) as folder:
            new = Path(folder) / "new"
            _execute(path, timeout, root, new, new / out.name if out and out.parent == frames else out)
            shutil.rmtree(frames, ignore_errors=True)
            new.replace(frames)
    else:
        _execute(path, timeout, root, None, out)


def _execute(path: Path, timeout: float, root: Path, frames: Path | None, out: Path | None) -> None:
    notebook = nbformat.read(path, as_version=4)
    code_cells = code_of(notebook)
    for cell in code_cells:
        cell.outputs, cell.execution_count = [], None
    variables = os.environ | {"COURSE_QUIET": "1"}  # no half-filled progress bars in the outputs
    for name, folder in {"COURSE_FRAMES": frames, "COURSE_README": None if out else path.parent}.items():
        variables.pop(name, None)
        if folder:
            variables[name] = str(folder.resolve())
    NotebookClient(
        notebook,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython()),
        timeout=timeout,
        record_timing=False,
        coalesce_streams=True,  # or a busy machine stores one printed line as two
        force_raise_errors=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute(cleanup_kc=True, env=variables)

    notebook.metadata.pop("widgets", None)  # the state of the sliders, pictures included: large, and not needed
    notebook.metadata.get("language_info", {}).pop("version", None)
    secret = json.dumps(str(root), ensure_ascii=False)[1:-1]
    for number, cell in enumerate(code_cells, start=1):
        if secret in json.dumps(cell.outputs, ensure_ascii=False):
            raise ValueError(f"{path.name}, code cell {number}: an output shows the folder {root}; print it relative")
        cell.outputs = [nbformat.from_dict(part) for output in cell.outputs for part in without_kernel(output)]
        for output in cell.outputs:
            png = output.get("data", {}).get("image/png")
            if png:
                small = reduce_png(base64.b64decode(png))
                output.data["image/png"] = base64.b64encode(small).decode("ascii")
    text = nbformat.writes(notebook) + "\n"
    for place in {out or path, frames / "notebook.ipynb" if frames else out or path}:
        write_atomically(place, lambda file: file.write(text.encode("utf-8")))
    if frames:
        write_atomically(frames / MADE_FROM, lambda file: file.write(made_from().encode("utf-8")))


def code_of(notebook: NotebookNode) -> list[NotebookNode]:
    """The code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def with_frames(path: Path, *, folder: Path = FRAMES) -> tuple[NotebookNode, list[dict]]:
    """A notebook as it is, with outputs and frames of one run: (notebook, frames as `frames.read()` gives them).

    Args:
        path: the notebook; this file stays as it is.
        folder: has a folder for each notebook. What is there is taken if its code cells are those of `path`, and it was
            made with the package and data as they are now (`made_from()`); otherwise it is run.
    """
    notebook, place = nbformat.read(path, as_version=4), folder / path.stem
    code, kept, stamp = code_of(notebook), place / "notebook.ipynb", place / MADE_FROM

    def found() -> list[NotebookNode]:
        fresh = kept.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == made_from()
        there = code_of(nbformat.read(kept, as_version=4)) if fresh else []
        return there if [cell.source for cell in there] == [cell.source for cell in code] else []

    if not found():
        execute(path, frames=place, out=kept)
    for cell, executed in zip(code, found(), strict=False):
        cell.outputs, cell.execution_count = executed.outputs, executed.execution_count
    return notebook, read(place)


def main(names: Sequence[str]) -> int:
    """Execute the named notebooks and print the seconds of each. Exit code 1: a cell failed; 2: no such name."""
    try:
        for path in find_notebooks(names):
            start = time.perf_counter()
            execute(path, frames=FRAMES / path.stem)
            say(f"{path.name:50} {time.perf_counter() - start:6.1f} s")
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        say(f"{path.name}: not saved.\n{error}", sys.stderr)
        return 1
    except ValueError as error:
        say(error, sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
