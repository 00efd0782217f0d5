"""`python -m course_utils handout 03`: a notebook for students, without the solutions of its exercises.

The stubs, the checks, the hints and all outputs stay; --no-hints takes the hints away too. The notebooks of the course
are not changed. Solutions also stand in course_utils/classroom/exercises/, for everyone who has the package.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nbformat

from ..runtime import located, require, say, write_atomically
from .exercises.__main__ import BLOCK, exercises_of
from .notebooks import find_notebooks

HINT = re.compile(r"<details>\s*<summary>Hint.*?</details>\s*", re.DOTALL)


def strip(nb: nbformat.NotebookNode, numbers: list[str], *, hints: bool = True) -> None:
    """Take the solutions of these exercises out of a notebook, in place; with hints=False the hints too.

    Raises:
        ValueError: an exercise has not exactly one cell tagged `solution-N.M` with one solution in it.
    """
    for number in numbers:
        cells = [c for c in nb.cells if f"solution-{number}" in c.metadata.get("tags", [])]
        found = sum(len(BLOCK.findall(c.source)) for c in cells)
        require(
            found == len(cells) == 1, f"exercise {number}", f"{found} solutions in {len(cells)} cells", "one in one"
        )
        source = BLOCK.sub("", cells[0].source)
        cells[0].source = (source if hints else HINT.sub("", source)).strip()


def handout(number: str, out: str | Path | None = None, *, hints: bool = True) -> Path:
    """Write the handout of one notebook; return its path, handout/NAME.ipynb by default.

    Raises:
        ValueError: there is no such notebook, or `out` is a notebook of the course.
    """
    path = find_notebooks([number])[0]
    nb = nbformat.read(path, as_version=4)
    strip(nb, list(exercises_of(path)), hints=hints)
    out = located(out or Path("handout") / path.name)
    require(out.resolve().parent != path.parent.resolve(), "out", repr(str(out)), "a file outside of notebooks/")
    write_atomically(out, lambda file: file.write((nbformat.writes(nb) + "\n").encode()))
    return out


def main(arguments: list[str]) -> int:
    """Exit code 2: no such notebook, or a place that cannot be written to."""
    about, _, more = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m course_utils handout", description=about.partition(": ")[2], epilog=more
    )
    parser.add_argument("notebook", help="its number, such as 03")
    parser.add_argument("--out", metavar="FILE", help="by default handout/NAME.ipynb")
    parser.add_argument("--no-hints", action="store_true", help="without the hints too")
    options = parser.parse_args(arguments)
    try:
        say(handout(options.notebook, options.out, hints=not options.no_hints))
    except (ValueError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
