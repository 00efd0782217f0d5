"""Exercises: solutions are accepted, mutants are not, and a reader never sees our stack."""

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_markdown_cell, new_notebook

from course_utils.classroom import exercises
from course_utils.classroom.exercises import Exercise, Todo, Wrong, __main__, check, expect_close, find, yours

MODULES = sorted(path.stem for path in Path(exercises.__file__).parent.glob("nb[0-9][0-9].py"))
ALL = {n: find(n) for name in MODULES for n in import_module(f"course_utils.classroom.exercises.{name}").EXERCISES}
MUTANTS = [
    pytest.param(exercise, mutant, id=f"{number}-{k}-{mutant.__name__.strip('_')}")
    for number, exercise in ALL.items()
    for k, mutant in enumerate(exercise.mutants)
]


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    monkeypatch.delenv("COURSE_REQUIRE_SOLUTIONS", raising=False)


def said(capsys):
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count("\n") == 1, f"one line: {captured.out!r}"
    return captured.out


# ---- every exercise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ALL)
def test_the_solution_is_accepted(number, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_REQUIRE_SOLUTIONS", "1")
    check(number, ALL[number].solution)
    assert said(capsys) == f"✅ Exercise {number}: right.\n"


def test_the_bootstrap_interval_of_known_values():
    def interval(values, level=0.95):
        drawn = torch.randint(len(values), (10_000, len(values)), generator=torch.Generator().manual_seed(0))
        return ALL["7.1"].solution(torch.tensor(values, dtype=torch.float64), drawn, level)

    assert interval([0.0, 1.0]) == (0, 1)  # means 0, 1/2, 1 with chances 1/4, 1/2, 1/4
    values = torch.randn(200, generator=torch.Generator().manual_seed(1)).tolist()
    low, high = interval(values)
    mean, error = sum(values) / 200, torch.tensor(values).std().item() / 200**0.5
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.02)
    narrow = interval(values, level=0.5)
    assert low < narrow[0] < mean < narrow[1] < high
    assert interval([3.0, 3.0]) == (3, 3)


@pytest.mark.parametrize(("exercise", "mutant"), MUTANTS)
def test_a_plausible_wrong_answer_is_rejected_for_what_it_returns(exercise, mutant):
    with pytest.raises(Wrong) as caught:
        exercise.verify(mutant)
    message = str(caught.value)
    assert message and "\n" not in message and "nan, expected nan" not in message


@pytest.mark.parametrize("number", ALL)
def test_an_exercise_has_three_different_mutants_a_goal_and_a_short_solution(number):
    exercise = ALL[number]
    assert len(set(exercise.mutants)) >= 3 and exercise.solution not in exercise.mutants
    assert exercise.goal.strip().endswith(".") and number.startswith(f"{int(number.split('.')[0])}.")
    assert len(inspect.getsource(exercise.solution).splitlines()) <= 20


@pytest.mark.parametrize("number", ALL)
def test_a_solution_accepts_and_keeps_its_arguments(number):
    """What the verifier hands over is not changed, so that one bad answer cannot spoil the next case."""
    seen = []

    def spy(*arguments):
        before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        result = ALL[number].solution(*arguments)
        for a, b in zip(arguments, before, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        seen.append(arguments)
        return result

    ALL[number].verify(spy)
    assert len(seen) >= 3, "at least three cases"


# ---- answers of all kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ALL)
def test_a_stub_is_not_attempted_yet(number, capsys):
    def stub(*_arguments):
        raise Todo

    check(number, stub)
    assert said(capsys) == f"⏳ Exercise {number}: not attempted yet. Goal: {ALL[number].goal}\n"


@pytest.mark.parametrize("number", ALL)
def test_a_forgotten_return_is_said_to_be_one(number, capsys):
    check(number, lambda *_arguments: None)
    line = said(capsys)
    assert line.startswith(f"❌ Exercise {number}: ") and "None" in line and "stopped with" not in line


ODD = [
    0,
    "text",
    [],
    {},
    (1, 2),
    [None],
    {"many": 1},
    {"many": None, "medium": None, "few": None},
    float("nan"),
    torch.ones(0),
    torch.ones(2, 2),
    object(),
    [[1], [2, 3]],
    lambda: 0,
]


@pytest.mark.parametrize("answer", ODD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("number", ["0.1", "1.1", "3.4"])  # a number, a dictionary, tensors
def test_an_odd_answer_gets_one_line_and_no_stack(number, answer, capsys):
    check(number, lambda *_arguments: answer)
    line = said(capsys)
    assert line.startswith(f"❌ Exercise {number}: ") and "Traceback" not in line and "stopped with" not in line


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division by zero"),
        KeyError("few"),
        RuntimeError("first line\nsecond line"),
        RecursionError(),
        AssertionError("mine"),
        StopIteration(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_crash_in_the_readers_function_is_one_line(error, capsys):
    def crashes(*_arguments):
        raise error

    check("0.1", crashes)
    line = said(capsys)
    assert line.startswith(f"❌ Exercise 0.1: your function stopped with {type(error).__name__}")


def sorts_in_place(counts):
    counts.sort(reverse=True)
    return ALL["0.1"].solution(counts)


def divides_in_place(weight, strength):
    weight /= weight.norm(dim=1, keepdim=True) ** strength
    return weight


def takes_margins_off_in_place(cosines, labels, margins, scale, hinge=False):
    result = ALL["5.2"].solution(cosines, labels, margins, scale, hinge)
    cosines[range(len(labels)), labels] -= margins[labels]
    return result


def sorts_the_rows(accuracy, shares, usable):
    found = ALL["7.4"].solution(accuracy, shares, usable)
    accuracy["A"][0].sort()
    return found


@pytest.mark.parametrize(
    ("number", "answer", "name"),
    [
        ("0.1", sorts_in_place, "counts"),
        ("1.3", divides_in_place, "weight"),
        ("5.2", takes_margins_off_in_place, "cosines"),
        ("7.4", sorts_the_rows, "accuracy"),
        ("1.1", lambda *given: (given[0].zero_(), ALL["1.1"].solution(*given))[1], "given"),
    ],
)
def test_an_answer_that_changes_what_cells_below_use_again_is_told_so(number, answer, name, capsys):
    check(number, answer)
    assert f"❌ Exercise {number}: your function changes `{name}`" in said(capsys)
    assert yours(number, answer) is ALL[number].solution


@pytest.mark.parametrize("answer", [lambda: 0, lambda a, b, c, d, e: 0, 3, None])
def test_what_cannot_be_called_with_these_arguments_is_one_line(answer, capsys):
    check("0.1", answer)
    assert said(capsys).startswith("❌ Exercise 0.1: ")


def stub(*_arguments):
    raise Todo


@pytest.mark.parametrize("answer", [stub, ALL["0.1"].mutants[0], lambda counts: 1 / 0, None])
def test_for_teachers_anything_but_a_right_answer_raises(answer, capsys, monkeypatch):
    monkeypatch.setenv("COURSE_REQUIRE_SOLUTIONS", "1")
    with pytest.raises(Wrong, match=r"Exercise 0\.1: "):
        check("0.1", answer)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("number", ["0.99", "77.1", "one", "", ".", "1", 1.1])
def test_an_exercise_that_does_not_exist_is_named(number):
    with pytest.raises(ValueError, match=f"number: .*{number}"):
        check(number, lambda: 0)


@pytest.mark.parametrize("package", [None, max])
def test_experiments_take_the_readers_function_if_it_is_right(package, capsys, monkeypatch):
    right, wrong, ours = ALL["0.1"].solution, ALL["0.1"].mutants[0], package or ALL["0.1"].solution
    mine = lambda counts: right(counts)  # noqa: E731
    assert yours("0.1", mine, package) is mine and said(capsys).endswith("your function is used.\n")
    assert yours("0.1", wrong, package) is ours and said(capsys).endswith("used (the check rejects yours).\n")
    assert yours("0.1", stub, package) is ours and said(capsys).endswith("used (yours is not attempted yet).\n")


# ---- expect_close --------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (1.00001, 1),
        ([1, 2], (1, 2)),
        (torch.tensor([1.0, NAN]), [1, NAN]),
        (NAN, NAN),
        (torch.tensor(3), 3.0),
        (torch.tensor([2.0], requires_grad=True), [2]),
    ],
)
def test_what_is_close_is_accepted(got, want):
    expect_close(got, want, "here")


@pytest.mark.parametrize(
    ("got", "want", "options", "message"),
    [
        ([1, 5, 9], [1, 2, 3], {}, "here: got 5, expected 2$"),
        ([0, 5, 10], [0, 1, 2], {}, "here: got 5, expected 1; all your numbers are 5 times what is expected"),
        ([1, -2], [-1, 2], {}, "all your numbers are -1 times"),
        ([0, 0], [1, 2], {}, "here: got 0, expected 1$"),
        (0.0, NAN, {}, "here: got 0, expected nan"),
        ([1, 2], [1, 2, 3], {}, r"expected shape \(3,\) here, got \(2,\)"),
        ("text", 1, {}, "expected numbers here, got str"),
        (None, 1, {}, "here.*None"),
        ([2997.0001], [2997], {"tolerance": 1e-9}, "here: got 2997.*, expected 2997"),
    ],
)
def test_what_differs_is_said_with_both_numbers(got, want, options, message):
    with pytest.raises(Wrong, match=message):
        expect_close(got, want, "here", **options)


@pytest.mark.parametrize(
    ("number", "mutant", "message"),
    [("2.4", 4, "a slope times its row is .* expected 0"), ("2.4", 1, "all your numbers are 6 times")],
)
def test_a_usual_slip_is_named(number, mutant, message, capsys):
    check(number, ALL[number].mutants[mutant])
    assert re.search(message, said(capsys))


# ---- solutions in the notebooks ------------------------------------------------------------------------------------

BLOCK = "<details>\n<summary>Solution</summary>\n\n```python\n{}```\n\n</details>"


def notebook(*numbers, source="stale\n"):
    cells = [new_markdown_cell("# Title")]
    for number in numbers:
        text = f"Before.\n\n{BLOCK.format(source)}\n\nAfter."
        cells.append(new_markdown_cell(text, metadata={"tags": ["x", f"solution-{number}"]}))
    return new_notebook(cells=cells)


def test_sync_writes_solutions_once_and_keeps_the_rest():
    some = {number: ALL[number] for number in ("1.1", "1.2")}
    nb = notebook("1.1", "1.2")
    assert __main__.sync(nb, some) == ["1.1", "1.2"]
    for cell, exercise in zip(nb.cells[1:], some.values(), strict=True):
        assert cell.source == f"Before.\n\n{BLOCK.format(inspect.getsource(exercise.solution))}\n\nAfter."
    assert nb.cells[0].source == "# Title"
    before = nbformat.writes(nb)
    assert __main__.sync(nb, some) == [] and nbformat.writes(nb) == before


def test_sync_writes_only_what_is_stale():
    nb = notebook("1.1", "1.2")
    __main__.sync(nb, {"1.1": ALL["1.1"]})
    assert __main__.sync(nb, {number: ALL[number] for number in ("1.1", "1.2")}) == ["1.2"]


def with_two_cells():
    return notebook("1.1", "1.1")


def without_a_block():
    nb = notebook("1.1")
    nb.cells[1].source = "```python\n```"
    return nb


@pytest.mark.parametrize("make", [notebook, with_two_cells, without_a_block])
def test_sync_refuses_a_notebook_without_the_place(make):
    with pytest.raises(ValueError, match=r"exercise 1\.1: allowed: one cell tagged solution-1\.1"):
        __main__.sync(make(), {"1.1": ALL["1.1"]})


def test_the_command_checks_writes_and_then_is_content(tmp_path, monkeypatch, capsys):
    path = tmp_path / "00_tiny.ipynb"
    nbformat.write(notebook("0.1"), path)
    nbformat.write(notebook(), tmp_path / "77_without_exercises.ipynb")
    before = path.read_bytes()
    monkeypatch.setattr(__main__, "NOTEBOOKS", tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["exercises", *arguments])
        return __main__.main(), capsys.readouterr().out

    assert run("--check") == (1, "00_tiny.ipynb: solution of 0.1 is stale\n") and path.read_bytes() == before
    assert run() == (0, "00_tiny.ipynb: solution of 0.1 written\n")
    written = path.read_bytes()
    assert b"sorted(counts, reverse=True)" in written and written.endswith(b"}\n")
    assert run() == (0, "") and run("--check") == (0, "") and path.read_bytes() == written


def test_exercises_are_data():
    assert all(isinstance(exercise, Exercise) for exercise in ALL.values()) and len(ALL) >= 5
