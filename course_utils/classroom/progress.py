"""Which exercises have passed their check: remembered in `progress.txt` beside the notebooks, on this machine alone.

`check()` adds a line; deleting the file forgets. Nothing is remembered outside of Jupyter, nor when the notebooks are
tested or run by the course itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import re
import sys
from pathlib import Path

NAME = "progress.txt"
FIRST_LINE = "Exercises whose check has passed, one a line. Delete this file to forget them.\n"
NOT_WITH = ("CI", "COURSE_QUIET", "COURSE_REQUIRE_SOLUTIONS", "COURSE_SWEEP_WIDGETS")  # tests, and `course.py run`


def place() -> Path | None:
    """The file, which need not be there; None where nothing is to be remembered."""
    shell = sys.modules.get("ipykernel.zmqshell")
    in_jupyter = shell is not None and shell.ZMQInteractiveShell.initialized()
    if not in_jupyter or any(os.environ.get(name) for name in NOT_WITH) or not any(Path().glob("*.ipynb")):
        return None
    return Path(NAME).absolute()


def passed() -> set[str]:
    """{"1.1", ...}; lines that are no exercise are ignored, and a file that cannot be read is none."""
    path = place()
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path else ""
    except OSError:
        return set()
    return set(re.findall(r"^(\d+\.\d+)\r?$", text, re.MULTILINE))


def remember(number: str) -> None:
    """Add an exercise. Notebooks that do so at the same time lose nothing: each only ever adds a line."""
    path = place()
    if path is None or number in passed():
        return
    with contextlib.suppress(OSError):  # a folder that is read-only: the check has done its work
        head = "" if path.exists() else FIRST_LINE
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{head}{number}\n")


def rows() -> list[dict[str, str]]:
    """For `figures.show_table()`: each notebook with its exercises, ✓ before those that are done."""
    from . import exercises  # it imports this file

    done, table = passed(), []
    for name in sorted(m.name for m in pkgutil.iter_modules(exercises.__path__) if m.name.startswith("nb")):
        numbers = list(importlib.import_module(f"{exercises.__name__}.{name}").EXERCISES)
        marks = "  ".join(f"{'✓' if n in done else '○'} {n}" for n in numbers)
        table.append(
            {"notebook": name[2:], "done": f"{len(done & set(numbers))} of {len(numbers)}", "exercises": marks}
        )
    return table
