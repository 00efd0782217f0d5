"""grade, handout and progress: submissions whose truth is known, and what the hostile ones reach (nothing)."""

import ast
import importlib
import inspect
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from notebook_gates import read, solved

from course_utils.classroom import exercises, grading, handout, notebooks, progress
from course_utils.classroom.exercises.__main__ import exercises_of
from course_utils.classroom.grading_worker import Job, fingerprint, pack, parse, select, unpack
from course_utils.classroom.notebooks import find_notebooks

FIRST, SECOND = find_notebooks(["1", "2"])
NUMBERS = list(exercises_of(FIRST))


def sources(path):
    """{number: [source of the solution, of each mutant]} as cells that define the exercise's function."""
    tree = ast.parse(inspect.getsource(importlib.import_module(f"course_utils.classroom.exercises.nb{path.name[:2]}")))
    names = {exercise.solution.__name__ for exercise in exercises_of(path).values()}
    found, helpers = {}, []
    for node in ast.walk(tree):  # a mutant calls the solution: under another name
        for field in ("id", "name"):
            if getattr(node, field, None) in names:
                setattr(node, field, "true_" + getattr(node, field))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            package = {3: "course_utils", 1: "course_utils.classroom.exercises"}[node.level]
            node.module, node.level = ".".join(filter(None, [package, node.module])), 0
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXERCISES":
            table = dict(zip(map(ast.literal_eval, node.value.keys), node.value.values, strict=True))
        elif "__future__" not in ast.unparse(node) and "_verify" not in ast.unparse(node):
            helpers.append(ast.unparse(node))
    for number, call in table.items():
        fields = {keyword.arg: keyword.value for keyword in call.keywords}
        name = exercises_of(path)[number].solution.__name__
        wrong = [f"{name} = {ast.unparse(mutant)}" for mutant in fields["mutants"].elts]
        found[number] = [inspect.getsource(exercises_of(path)[number].solution), *wrong]
    return found, "\n".join(helpers)


MINE, HELPERS = sources(FIRST)
SOLUTION = {n: texts[0] for n, texts in MINE.items()}
RIGHT = dict.fromkeys(NUMBERS, "right")


def cell(source, *tags):
    return new_code_cell(source, metadata={"tags": list(tags)})


def answers(**sources):
    """A notebook of answers alone: e11="source" is the answer to 1.1."""
    return new_notebook(cells=[cell(s, f"exercise-{k[1]}.{k[2:]}") for k, s in sources.items()])


def transplanted(body, last="return weight / weight.norm(dim=1, keepdim=True) * donor.norm(dim=1, keepdim=True)"):
    """An answer to 1.4 that does something before it is right."""
    lines = "\n".join("    " + line for line in body.splitlines())
    return answers(e14=f"def transplanted(weight, donor):\n{lines}\n    {last}\n")


def whole(change=lambda nb: nb):
    nb = solved(read(FIRST), exercises_of(FIRST))
    return change(nb) or nb


def without(number):
    def change(nb):
        nb.cells = [c for c in nb.cells if f"exercise-{number}" not in c.metadata.get("tags", [])]
        for c in nb.cells:  # no other cell names it either
            c.source = c.source.replace(exercises_of(FIRST)[number].solution.__name__, "other")

    return change


def out_of_order(nb):
    nb.cells.reverse()


def with_magic(nb):
    for c in nb.cells:
        if "exercise-1.1" in c.metadata.get("tags", []):
            c.source = "%%time\n" + c.source.replace("(predictions == labels)", "hits(predictions, labels)")
    nb.cells.append(cell("!ls\ndef hits(a, b):\n    return a == b"))


def in_another_cell(nb):
    nb.cells += [cell(SOLUTION["1.3"].replace("norms", "sizes"))]
    for c in nb.cells:
        if "exercise-1.3" in c.metadata.get("tags", []):
            c.source = "def equalized(weight, strength):\n    raise Todo"


def with_a_broken_cell(nb):
    for c in nb.cells:
        if "exercise-1.2" in c.metadata.get("tags", []):
            c.source = "def pull_and_push(weight, features, labels)\n    return 1"


def that_deletes(nb):
    nb.cells.insert(2, cell("import shutil\nshutil.rmtree('VICTIM')\ngone = shutil.rmtree('VICTIM')"))


def that_prints_what_it_likes(nb):
    for c in nb.cells:
        if "check-1.4" in c.metadata.get("tags", []):
            c.source = 'print("✅ Exercise 1.4: right.")'
        if "exercise-1.4" in c.metadata.get("tags", []):
            c.source = "def transplanted(weight, donor):\n    return weight"


PATCH = """import torch, course_utils.classroom.exercises as course
course.expect_close = course.check = lambda *a, **k: None
course.Wrong = course.Exercise = ValueError
torch.isclose = lambda *a, **k: torch.ones(1, dtype=torch.bool)
torch.Tensor.any = lambda self, *a: False
torch.as_tensor = lambda *a, **k: torch.zeros(1)"""
RESPACED = """def transplanted(weight,
                 donor):
    '''Mine.'''
    # all my own work

    return (weight / weight.norm(dim=1, keepdim=True)
            * donor.norm(dim=1, keepdim=True))
"""
RENAMED = """def transplanted(weight, donor):
    unit = weight / weight.norm(dim=1, keepdim=True)
    return unit * donor.norm(dim=1, keepdim=True)
"""
TRY_NET = """import socket
try:
    socket.create_connection(("127.0.0.1", PORT), timeout=1).send(b"x")
except OSError:
    pass"""
SUBMISSIONS = {  # name: (notebook, or bytes of the file; truth, where it differs from "missing")
    "solved": (whole, RIGHT),
    "as it is": (lambda: read(FIRST), dict.fromkeys(NUMBERS, "open")),
    **{
        f"mutants {k}": (
            lambda k=k: new_notebook(
                cells=[cell(HELPERS)] + [cell(MINE[n][k], f"exercise-{n}") for n in NUMBERS if k < len(MINE[n])]
            ),
            {n: "wrong" for n in NUMBERS if k < len(MINE[n])},
        )
        for k in range(1, max(map(len, MINE.values())))
    },
    "without 1.2": (lambda: whole(without("1.2")), RIGHT | {"1.2": "missing"}),
    "cells in reverse": (lambda: whole(out_of_order), RIGHT),
    "magics and a helper below": (lambda: whole(with_magic), RIGHT),
    "answer in a cell of its own": (lambda: whole(in_another_cell), RIGHT),
    "one cell is no Python": (lambda: whole(with_a_broken_cell), RIGHT | {"1.2": "wrong"}),
    "a cell deletes files": (lambda: whole(that_deletes), RIGHT),
    "check replaced by print": (lambda: whole(that_prints_what_it_likes), RIGHT | {"1.4": "wrong"}),
    "answer deletes files": (lambda: transplanted("import shutil\nshutil.rmtree('VICTIM')"), {"1.4": "wrong"}),
    "answer writes a file": (lambda: transplanted("open('VICTIM/a.txt', 'w').write('x')"), {"1.4": "wrong"}),
    "endless loop": (lambda: transplanted("while True: pass"), {"1.4": "stopped"}),
    "sleeps": (lambda: transplanted("import time\ntime.sleep(10**6)"), {"1.4": "stopped"}),
    "network, whatever happens": (lambda: transplanted(TRY_NET), {"1.4": "right"}),
    "network needed": (
        lambda: transplanted(TRY_NET.split("\n", 2)[0] + "\nsocket.create_connection(('127.0.0.1', PORT))"),
        {"1.4": "wrong"},
    ),
    "a page": (
        lambda: transplanted("import urllib.request as u\nu.urlopen('http://127.0.0.1:PORT')"),
        {"1.4": "wrong"},
    ),
    "os._exit": (lambda: transplanted("import os\nos._exit(0)"), {"1.4": "stopped"}),
    "sys.exit": (lambda: transplanted("import sys\nsys.exit(0)"), {"1.4": "wrong"}),
    "kills its parent": (lambda: transplanted("import os\nos.kill(os.getppid(), 9)"), {"1.4": "wrong"}),
    "another program": (
        lambda: transplanted("import subprocess\nsubprocess.run(['touch', 'VICTIM/b'])"),
        {"1.4": "wrong"},
    ),
    "forks": (lambda: transplanted("import os\nos.fork()"), {"1.4": "wrong"}),
    "patches, and is wrong": (lambda: transplanted(PATCH, "return weight"), {"1.4": "wrong"}),
    "patches, and is right": (lambda: transplanted(PATCH), {"1.4": "right"}),
    "wants 100 GB": (lambda: transplanted("import torch\ntorch.zeros(25 * 10**9)"), {"1.4": "stopped"}),
    "wants a long list": (lambda: transplanted("x = [0] * 10**10"), {"1.4": "stopped"}),
    "sends 200 MB": (lambda: transplanted("", "return weight.new_zeros(50 * 10**6)"), {"1.4": "stopped"}),
    "writes into every pipe": (
        lambda: transplanted(
            "import os\nfor k in range(3, 40):\n    try: os.write(k, bytes(9))\n    except OSError: pass"
        ),
        {"1.4": "stopped"},
    ),
    "imports the solution": (
        lambda: answers(e14="from course_utils.classroom.exercises.nb01 import transplanted"),
        {"1.4": "wrong"},
    ),
    "imports the solution late": (
        lambda: transplanted(
            "from course_utils.classroom.exercises import nb01\nreturn nb01.transplanted(weight, donor)"
        ),
        {"1.4": "wrong"},
    ),
    "returns a function": (lambda: transplanted("", "return lambda: 0"), {"1.4": "wrong"}),
    "returns nothing": (lambda: transplanted("", "pass"), {"1.4": "wrong"}),
    "asks": (lambda: transplanted("input()"), {"1.4": "wrong"}),
    "prints much": (lambda: transplanted("print('x' * 10**6)"), {"1.4": "right"}),
    "changes its argument": (
        lambda: transplanted("weight /= weight.norm(dim=1)[:, None]", "return weight * donor.norm(dim=1)[:, None]"),
        {"1.4": "wrong"},
    ),
    "calls itself": (lambda: transplanted("return transplanted(weight, donor)"), {"1.4": "wrong"}),
    "a name assigned": (
        lambda: answers(e14="transplanted = lambda w, d: w / w.norm(dim=1)[:, None] * d.norm(dim=1)[:, None]"),
        {"1.4": "right"},
    ),
    "nested too deep": (lambda: answers(e14="transplanted = " + "-" * 50_000 + "1"), {"1.4": "wrong"}),
    "an answer alone": (lambda: answers(e12=SOLUTION["1.2"]), {"1.2": "right"}),  # torch: from the course's notebook
    "spaces and comments": (lambda: answers(e14=RESPACED), {"1.4": "right"}),
    "own words": (lambda: answers(e14=RENAMED), {"1.4": "right"}),
    "own words again": (
        lambda: answers(e14=RENAMED.replace("\n    return", "\n\n    # so\n    return")),
        {"1.4": "right"},
    ),
    "empty file": (b"", None),
    "no notebook": ("수업".encode() + b"\xff\xfe", None),
    "a list": (b"[1, 2]", None),
    "nested JSON": (b"[" * 10**5, None),
    "odd cells": (b'{"cells": [5, {"cell_type": "code"}]}', None),
    "no cells": (b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', {}),
}


# ---- grade ---------------------------------------------------------------------------------------------------------


def written(folder, submissions, **words):
    for name, (content, _) in submissions.items():
        text = content if isinstance(content, bytes) else nbformat.writes(content()).encode()
        for word, value in words.items():
            text = text.replace(word.encode(), value.encode())
        (folder / f"{name}.ipynb").write_bytes(text)


def truth_of(truth):
    return dict.fromkeys(NUMBERS, "unreadable") if truth is None else dict.fromkeys(NUMBERS, "missing") | truth


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The submissions, judged; a file that some want to delete, and a door at which some knock."""
    folder, victim = tmp_path_factory.mktemp("in"), tmp_path_factory.mktemp("victim")
    (victim / "a.txt").write_text("precious")
    (folder / "a folder.ipynb").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(0.2)
        port = door.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), door.accept()[0]:
            pass  # it can be reached from here
        written(folder, SUBMISSIONS, VICTIM=victim.as_posix(), PORT=str(port))
        start = time.perf_counter()
        rows = grading.grade("1", folder, seconds=1, memory=0.5, progress=False)
        seconds = time.perf_counter() - start
        try:
            door.accept()[0].close()
            visited = True
        except TimeoutError:
            visited = False
    return SimpleNamespace(
        rows={row.name.removesuffix(".ipynb"): row for row in rows}, seconds=seconds, victim=victim, visited=visited
    )


def test_no_verdict_is_wrong(graded, record_property):
    confusion, different = Counter(), []
    for name, (_, truth) in SUBMISSIONS.items():
        for number, want in truth_of(truth).items():
            judged = graded.rows[name].judged[number]
            confusion[want, judged.verdict] += 1
            if judged.verdict != want:
                different.append((name, number, want, judged))
    assert len(SUBMISSIONS) >= 30 and different == []
    assert {want for want, _ in confusion} == set(grading.VERDICTS)
    mutants = [
        judged for name in graded.rows if name.startswith("mutants") for judged in graded.rows[name].judged.values()
    ]
    assert not any("stopped with" in judged.remark for judged in mutants), "wrong for what they return"
    counts = ", ".join(f"{n} {want}" for (want, _), n in sorted(confusion.items()))
    record_property(
        "note", f"grading: {len(SUBMISSIONS)} submissions in {graded.seconds:.0f} s, no wrong verdict: {counts}"
    )


def test_nothing_outside_was_changed_and_nobody_was_called(graded):
    assert {p.name: p.read_text() for p in graded.victim.iterdir()} == {"a.txt": "precious"}
    assert not graded.visited
    if sys.platform.startswith("linux"):
        assert "a folder" in graded.rows and graded.rows["a folder"].judged["1.1"].verdict == "unreadable"


@pytest.mark.parametrize(
    ("name", "remark"),
    [
        ("endless loop", "no answer"),
        ("wants 100 GB", "more memory"),
        ("os._exit", "process ended"),
        ("sys.exit", "SystemExit"),
        ("changes its argument", "your function changes `weight`"),
        ("answer deletes files", "PermissionError"),
        ("imports the solution", "exercises.nb01"),
        ("spaces and comments", "word for word the same as the printed solution"),
        ("own words again", "word for word the same as own words.ipynb"),
    ],
)
def test_a_remark_says_why(graded, name, remark):
    assert remark in graded.rows[name].judged["1.4"].remark


def test_other_words_are_no_copy_and_unreadable_files_say_why(graded):
    assert graded.rows["a name assigned"].judged["1.4"].remark == ""
    assert "no notebook" in graded.rows["empty file"].judged["1.1"].remark


def test_the_table_has_a_row_for_each_file(graded):
    lines = grading.table(list(graded.rows.values())).splitlines()
    assert lines[0] == "file,1.1,1.2,1.3,1.4,right,remarks" and len(lines) == len(graded.rows) + 1
    row = grading.Row("=1+1.ipynb", {"1.1": grading.Judged("right")})
    assert grading.table([row]).splitlines()[1] == "'=1+1.ipynb,right,1,"


LATER, LATER_HELPERS = sources(SECOND)
HEAD = LATER["2.1"][0]
INSIDE = {
    "right": (HEAD, "right"),
    **{f"mutant {k}": (text, "wrong") for k, text in enumerate(LATER["2.1"][1:])},
    "stub": ("class CosineHead(torch.nn.Module):\n    def __init__(self, *a):\n        raise Todo", "open"),
    "patched": (
        HEAD.replace("        directions", "        torch.Tensor.unique = lambda s, **k: s\n        directions"),
        "wrong",
    ),
    "no comparison": (
        "import course_utils.classroom.exercises as e\ne.expect_close = print\nCosineHead = print",
        "wrong",
    ),
    "ends": ("def CosineHead(*a):\n    import os\n    os._exit(0)", "stopped"),
}


def test_models_are_tried_inside_and_compared_outside(tmp_path):
    """A head crosses no border between processes, so its verifier runs beside it; the numbers come out."""
    cells = {k: [cell(LATER_HELPERS), cell(text, "exercise-2.1")] for k, (text, _) in INSIDE.items()}
    written(tmp_path, {k: (lambda c=c: new_notebook(cells=c), None) for k, c in cells.items()})
    rows = grading.grade("02", tmp_path, seconds=3, progress=False)
    got = {row.name.removesuffix(".ipynb"): row.judged["2.1"] for row in rows}
    assert {k: (got[k].verdict, got[k].remark) for k, (_, want) in INSIDE.items() if got[k].verdict != want} == {}
    assert "Tensor.unique" in got["patched"].remark


def test_verdicts_are_made_outside_wherever_plain_data_can_cross():
    asked = grading.questions("1") | grading.questions("2")
    assert [number for number, question in asked.items() if question.wanted is not None] == ["2.1"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        0.1,
        float("inf"),
        "수업\ud800",
        [1, (2.0, "a"), {"b": [None], 3: ()}],
        torch.tensor([[1.5, 2.0]], dtype=torch.bfloat16),
        torch.zeros(0, 3, dtype=torch.bool),
        torch.arange(6).reshape(2, 3).T,
        np.float32(1.5),
        np.arange(4).reshape(2, 2),
    ],
    ids=repr,
)
def test_plain_data_come_back_as_they_were(value):
    back = unpack(pack(value, strict=True))
    assert type(back) is type(value) and repr(back) == repr(value)


@pytest.mark.parametrize(
    "value", [object(), lambda: 0, torch.nn.Linear(2, 2), torch.ones(1, requires_grad=True), {1: print}]
)
def test_other_objects_do_not_cross(value):
    with pytest.raises(TypeError, match="no plain data"):
        pack(value, strict=True)
    assert not callable(unpack(pack(value)))


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x04N.", b'{"tensor": 3}', b'{"tensor": ["float32", [3], "AA=="]}', b'{"a": 1, "b": 2}']
)
def test_bytes_that_pack_did_not_write_are_refused(data):
    with pytest.raises(Exception):  # noqa: B017  # any: nothing of it was run
        unpack(data)


def test_an_answer_gets_right_answers_to_other_exercises_and_ours_for_wrong_ones():
    path = find_notebooks(["5"])[0]
    own = exercises_of(path)
    nb = solved(read(path), own)

    cells = [(c.metadata.get("tags", []), c.source) for c in nb.cells if c.cell_type == "code"]
    names = {number: exercise.solution.__name__ for number, exercise in own.items()}
    ours = {"5.2": "def ldam():\n    return 'ours'"}
    parts, answer = select(Job("5.4", names, cells, [], ours, True, 1, 10**9, ""))
    told = [ast.unparse(part) for part in parts]
    assert ours["5.2"] in told and sum("def ldam(" in part for part in told) == 1
    assert sum("def effective_weights(" in part for part in told) == 1
    assert not any("yours(" in part or "check(" in part or "start(" in part for part in told)
    assert answer is not None and "def train_ldam_drw" in ast.unparse(answer.node)


def test_names_count_in_a_copy_and_layout_does_not():
    one, same, other = (
        fingerprint(parse(text).body[0])
        for text in (
            "def f(a):\n    return a+1",
            "def f( a ):\n    'Text.'\n\n    return a + 1  # x",
            "def f(b):\n    return b+1",
        )
    )
    assert one == same != other


def test_the_command_writes_a_table(tmp_path, capsys):
    written(tmp_path, {"kim/01": SUBMISSIONS["no cells"]} if (tmp_path / "kim").mkdir() is None else {})
    assert grading.main(["01", str(tmp_path), "--out", str(tmp_path / "v.csv")]) == 0
    text = (tmp_path / "v.csv").read_text(encoding="utf-8-sig")
    assert text.splitlines()[1] == "kim/01.ipynb,missing,missing,missing,missing,0,"
    assert "1 submission in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["01", "nowhere"], "folder: got 'nowhere'"), (["77", "."], "notebook: got '77'"), (["01", "."], "folder: got")],
)
def test_a_wrong_command_is_named(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ipynb").touch() if arguments[0] == "77" else None
    assert grading.main(arguments) == 2 and message in capsys.readouterr().err


# ---- handout -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hints", [True, False])
def test_a_handout_has_stubs_and_no_solutions(hints, tmp_path):
    path = handout.handout("3", tmp_path / "out.ipynb", hints=hints)
    before, after = read(find_notebooks(["3"])[0]), read(path)
    told = "\n".join(c.source for c in after.cells if c.cell_type == "markdown")
    for number, exercise in exercises_of(find_notebooks(["3"])[0]).items():
        body = inspect.getsource(exercise.solution).partition("\n")[2]
        assert body not in told and f"### Exercise {number}" in told
    assert ("<summary>Hint" in told) == hints and "<summary>Solution" not in told
    assert [c.source for c in before.cells if c.cell_type == "code"] == [
        c.source for c in after.cells if c.cell_type == "code"
    ]


def test_a_handout_never_replaces_a_notebook_of_the_course(capsys):
    before = FIRST.read_bytes()
    assert handout.main(["01", "--out", str(FIRST)]) == 2 and FIRST.read_bytes() == before
    assert "out: got" in capsys.readouterr().err


# ---- progress ------------------------------------------------------------------------------------------------------


@pytest.fixture
def in_jupyter(tmp_path, monkeypatch):
    for name in progress.NOT_WITH:
        monkeypatch.delenv(name, raising=False)
    shell = SimpleNamespace(ZMQInteractiveShell=SimpleNamespace(initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", shell)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "01_x.ipynb").touch()
    return tmp_path / progress.NAME


def test_what_passes_is_remembered_once_and_deleting_the_file_forgets(in_jupyter, capsys):
    right, wrong = exercises.find("0.1").solution, exercises.find("0.1").mutants[0]
    exercises.check("0.1", wrong)
    assert not in_jupyter.exists()
    for answer in (right, right, wrong):
        exercises.check("0.1", answer)
    assert in_jupyter.read_text(encoding="utf-8").splitlines()[1:] == ["0.1"]
    progress.remember("1.2")
    assert progress.passed() == {"0.1", "1.2"} and progress.rows()[:2] == [
        {"notebook": "00", "done": "1 of 1", "exercises": "✓ 0.1"},
        {"notebook": "01", "done": "1 of 4", "exercises": "○ 1.1  ✓ 1.2  ○ 1.3  ○ 1.4"},
    ]
    in_jupyter.unlink()
    assert progress.passed() == set()


@pytest.mark.parametrize("name", progress.NOT_WITH)
def test_tests_and_runs_of_the_course_remember_nothing(in_jupyter, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    progress.remember("0.1")
    assert not in_jupyter.exists()


def test_nothing_is_remembered_outside_of_jupyter_or_away_from_notebooks(in_jupyter, monkeypatch):
    (in_jupyter.parent / "01_x.ipynb").unlink()
    progress.remember("0.1")
    (in_jupyter.parent / "01_x.ipynb").touch()
    monkeypatch.delitem(sys.modules, "ipykernel.zmqshell")
    progress.remember("0.1")
    assert not in_jupyter.exists()


def test_a_place_that_cannot_be_written_to_does_no_harm(in_jupyter):
    in_jupyter.mkdir()
    progress.remember("0.1")
    assert progress.passed() == set()


ADDS = """
import sys, types
from pathlib import Path
sys.modules["ipykernel.zmqshell"] = types.SimpleNamespace(
    ZMQInteractiveShell=types.SimpleNamespace(initialized=lambda: True))
source = Path(sys.argv[1]).read_text(encoding="utf-8")
here = {"__name__": "progress"}
exec(source, here)
for k in range(100):
    here["remember"](f"{sys.argv[2]}.{k}")
"""


def test_two_notebooks_that_remember_at_once_lose_nothing(in_jupyter):
    started = [subprocess.Popen([sys.executable, "-c", ADDS, progress.__file__, n]) for n in "12"]
    assert [process.wait(60) for process in started] == [0, 0]
    assert progress.passed() == {f"{n}.{k}" for n in "12" for k in range(100)}


def test_lines_that_are_no_exercise_are_ignored(in_jupyter):
    in_jupyter.write_bytes(b"1.1\r\n\xff\xfe 1.2\nevil\n2.1")
    assert progress.passed() == {"1.1", "2.1"}


# ---- run -----------------------------------------------------------------------------------------------------------


def test_run_refuses_a_path_that_is_no_notebook_of_the_course(tmp_path, capsys):
    copy = tmp_path / FIRST.name
    copy.write_bytes(FIRST.read_bytes())
    before = FIRST.read_bytes()
    assert notebooks.main([str(copy)]) == 2 and FIRST.read_bytes() == before
    assert re.search(r"notebook: got .*01_weight.* allowed: a notebook in notebooks/", capsys.readouterr().err)
    assert find_notebooks([str(FIRST)]) == find_notebooks([FIRST.name]) == [FIRST]
