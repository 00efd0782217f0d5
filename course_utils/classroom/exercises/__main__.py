"""`python -m course_utils.classroom.exercises`: write solutions into the notebooks; --check: only say what is stale."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from pathlib import Path

import nbformat

from ...runtime import say, write_atomically
from . import Exercise

NOTEBOOKS = Path(__file__).resolve().parents[3] / "notebooks"
BLOCK = re.compile(r"(<details>\n<summary>Solution</summary>\n\n```python\n).*?(```\n\n</details>)", re.DOTALL)


def exercises_of(notebook: Path) -> dict[str, Exercise]:
    """{"1.1": Exercise, ...} of a notebook, empty if it has none."""
    try:
        return importlib.import_module(f".nb{notebook.name[:2]}", __package__).EXERCISES
    except ModuleNotFoundError:
        return {}


def sync(nb: nbformat.NotebookNode, exercises: dict[str, Exercise]) -> list[str]:
    """Write the solutions into the cells tagged `solution-N.M`, in place; return the numbers of those that changed.

    Raises:
        ValueError: an exercise has no such cell, or the cell has no solution block.
    """
    changed = []
    for number, exercise in exercises.items():
        cells = [c for c in nb.cells if f"solution-{number}" in c.metadata.get("tags", [])]
        if len(cells) != 1 or not BLOCK.search(cells[0].source):
            raise ValueError(f"exercise {number}: allowed: one cell tagged solution-{number} with a solution block")
        source = BLOCK.sub(lambda m, e=exercise: m[1] + inspect.getsource(e.solution) + m[2], cells[0].source)
        if source != cells[0].source:
            cells[0].source = source
            changed.append(number)
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a solution is stale")
    check = parser.parse_args().check
    stale = 0
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        nb = nbformat.read(path, as_version=4)
        changed = sync(nb, exercises_of(path))
        stale += len(changed)
        if changed and not check:
            write_atomically(path, lambda file, nb=nb: file.write((nbformat.writes(nb) + "\n").encode()))
        if changed:
            say(f"{path.name}: solution of {', '.join(changed)} {'is stale' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
