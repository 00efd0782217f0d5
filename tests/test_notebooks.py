"""Every notebook of the course: how it is built, and its exercises as a reader leaves it who has solved everything.

The notebooks as shipped are run, every slider position drawn and their outputs compared, by nbval itself.
"""

import copy
import pkgutil

import pytest
from notebook_gates import code_cells, problems_of, read, run_exercises, solved

from course_utils.classroom import exercises
from course_utils.classroom.exercises.__main__ import exercises_of, sync
from course_utils.classroom.notebooks import find_notebooks

NOTEBOOKS = find_notebooks()
MODULES = [module.name for module in pkgutil.iter_modules(exercises.__path__) if module.name[0] != "_"]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_notebooks_are_numbered_from_00():
    assert [path.name[:3] for path in NOTEBOOKS] == [f"{n:02d}_" for n in range(len(NOTEBOOKS))] != []


def test_exercises_belong_to_notebooks():
    assert set(MODULES) <= {f"nb{path.name[:2]}" for path in NOTEBOOKS}


@every_notebook
def test_structure(path, record_property):
    size = path.stat().st_size / 1000
    if size > 1000:
        record_property("note", f"{path.stem}: {size:.0f} kB; 1000 is the wish, 1500 the limit")
    assert problems_of(read(path), path) == []


def test_stored_outputs_are_of_a_machine_with_fashion_mnist():
    printed = [out.get("text", "") for _, cell in code_cells(read(NOTEBOOKS[1])) for out in cell.outputs]
    assert any("Fashion-MNIST, rank correlation" in text for text in printed)


@every_notebook
def test_solutions_to_unfold_are_those_of_the_package(path):
    stale = sync(copy.deepcopy(read(path)), exercises_of(path))
    assert stale == [], "run: python -m course_utils.classroom.exercises"


@every_notebook
def test_solutions_pass_in_the_notebook_with_only_the_cells_they_need(path, monkeypatch):
    monkeypatch.setenv("COURSE_REQUIRE_SOLUTIONS", "1")
    nb, own = read(path), exercises_of(path)
    said = run_exercises(solved(nb, own), path.parent)
    assert all(f"✅ Exercise {number}: right." in said for number in own)
    handed_on = sum(cell.source.count(" = yours(") for _, cell in code_cells(nb))
    assert said.count("from here on your function is used.") == handed_on


def test_an_experiment_uses_the_readers_function():
    assert any(" = yours(" in cell.source for path in NOTEBOOKS for _, cell in code_cells(read(path)))
