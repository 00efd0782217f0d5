"""Every gate closes: a good notebook passes them all, and each planted defect gives exactly the complaint it should."""

import dataclasses
import io
import os
import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from base64 import b64encode
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_gates import SECTIONS, code_cells, is_compared, problems_of, read, run_exercises, solved, tagged
from PIL import Image

from course_utils.classroom import notebooks as build
from course_utils.classroom.exercises import Wrong
from course_utils.classroom.exercises.__main__ import exercises_of, sync

ROOT = Path(__file__).resolve().parents[1]
LESSON = "01_good"
EXERCISES = exercises_of(Path(f"{LESSON}.ipynb"))
FIRST = EXERCISES["1.1"].solution.__name__

SETUP = """
import torch
from matplotlib.figure import Figure
from course_utils.classroom import figures
from course_utils.classroom.exercises import Todo, check
from course_utils.experiments.grid import run_grid
from course_utils.runtime import start
from course_utils.classroom.widgets import explore
run = start("01")
"""
PICTURE = """
def picture(figure):
    (line,) = figure.subplots().plot([0, 1], [0, 1])

    def update(height):
        line.set_ydata([0, height])
        return f"The line ends at {height}."

    return update
"""
STILL = 'still = Figure(figsize=(4, 2))\nprint(picture(still)(height=1))\nfigures.show(still, "A line that rises.")'
GRID = """
def score(seed):
    return {"score": seed + 1}

rows = run_grid(score, seed=range(3), jobs=1)
assert [row["score"] for row in rows] == [1, 2, 3]
"""
UNFOLD = "<details>\n<summary>{}</summary>\n\n{}\n\n</details>\n\n"
SOLUTION = "".join(UNFOLD.format(f"Hint {k}", "Think.") for k in "12") + UNFOLD.format("Solution", "```python\n```")
QUESTION = "**Why?**\n\n- a) Yes.\n- b) No.\n\n" + UNFOLD.format("Answer", "- a) Right.\n- b) Wrong.")


def code(name, source, *tags):
    return new_code_cell(source.strip(), id=name, metadata={"tags": list(tags)} if tags else {})


def text(name, source, *tags):
    return new_markdown_cell(source, id=name, metadata={"tags": list(tags)} if tags else {})


def exercise_cells(number, exercise):
    name = exercise.solution.__name__
    key = number.replace(".", "-")
    yield text(f"solution-{key}", f"### Exercise {number}\n\n{SOLUTION}", f"solution-{number}")
    yield code(f"exercise-{key}", f"def {name}(*answer):\n    raise Todo", f"exercise-{number}")
    yield code(f"check-{key}", f'check("{number}", {name})', f"check-{number}")


def notebook(*cells):
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb = new_notebook(cells=list(cells), metadata={"kernelspec": kernel})
    nb.nbformat_minor = 5
    return nb


def good_lesson():
    cells = [
        text("title", "# 01 · Is this a good notebook?\n\nIt *is*.\n\n## You will be able to\n\n- see\n\n## Setup"),
        code("setup", SETUP, "setup", "nbval-ignore-output"),
        text("warm-up-text", "## Warm-up by hand"),
        code("warm-up", "print(sum([100, 10, 1]))\nassert sum([100, 10, 1]) == 111"),
        text("naive", "## The naive way, measured\n\n![a dot](dot.png)\n\n### Predict before you run"),
        code("predict", "guess_few = None  # your number", "predict"),
        code("grid", GRID, "nbval-ignore-output"),
        *(cell for number, exercise in EXERCISES.items() for cell in exercise_cells(number, exercise)),
        code("free", "print('Nothing to see: ' + 'a' * 3)"),
        text("play", "## Play with the line"),
        code("picture", PICTURE),
        code("still", STILL),
        code("widget", "explore(picture, height=[1, 2, 3])", "widget"),
        text("quiz", "## Check yourself\n\n" + 5 * QUESTION),
        text("end", "\n\n".join(f"## {name}" for name in SECTIONS[6:])),
    ]
    fill = [text(f"fill-{k}", "A word of $x + y$ and three more. " * 20) for k in range(35 - len(cells))]
    cells[-2:-2] = fill
    cells[2].source += "\n\n" + "word " * (1250 - 160 * len(fill))
    nb = notebook(*cells)
    sync(nb, EXERCISES)
    return nb


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The good notebook, with the outputs of a real run."""
    path = tmp_path_factory.mktemp("notebooks") / f"{LESSON}.ipynb"
    nbformat.write(good_lesson(), path)
    build.execute(path)
    return path


def test_the_good_notebook_passes(good):
    assert problems_of(read(good), LESSON) == []


def test_the_good_notebook_passes_solved(good, monkeypatch):
    monkeypatch.setenv("COURSE_REQUIRE_SOLUTIONS", "1")
    said = run_exercises(solved(read(good), EXERCISES), good.parent)
    assert [f"✅ Exercise {n}: right." for n in EXERCISES] == said.splitlines()[1:]


# ---- the structure gates -------------------------------------------------------------------------------------------

DEFECTS = {}


def defect(*complaints):
    """Register a function that spoils a notebook; "{still}" in a complaint stands for the place of that cell."""

    def register(spoil):
        DEFECTS[spoil.__name__] = (spoil, complaints)
        return spoil

    return register


def replacing(cell, old, new, *complaints):
    """Register the defect that `old` reads `new` in a cell."""

    def spoil(c):
        assert old in c[cell].source
        c[cell].source = c[cell].source.replace(old, new, 1)

    DEFECTS[f"{cell}: {new or 'without ' + old}"[:60]] = (spoil, complaints)


def tagging(cell, old, new, *complaints):
    def spoil(c):
        c[cell].metadata.tags = [tag for tag in c[cell].metadata.get("tags", []) if tag != old] + ([new] if new else [])

    DEFECTS[f"{cell}: tag {old} -> {new}"] = (spoil, complaints)


class Cells(dict):
    """The cells of a notebook by their ids, and the notebook."""

    def __init__(self, nb):
        super().__init__({cell.id: cell for cell in nb.cells})
        self.nb = nb


def picture_of(cell):
    return next(output for output in cell.outputs if "image/png" in output.get("data", {}))


replacing("naive", "## The", "# And then?\n## The", "one H1 is wanted, there are 2")
replacing("title", "# 01", "## 01", "one H1 is wanted, there are 0")
replacing("title", "notebook?", "notebook.", "the title is not a question")
replacing("end", "## Where it fails", "### Where it fails", "no section 'Where it fails'")
replacing("title", "## You will", "```\n## You will be able to\n```\n## You may", "no section 'You will be able to'")
replacing("naive", "### Predict", "### Guess", "no heading that starts with 'Predict'")
replacing("setup", '"01"', '"02"', 'the setup does not end in run = start("01")')
replacing(
    "setup",
    'run = start("01")',
    'run = start("01")\n1\n2\n3\n4\n5',
    'the setup does not end in run = start("01")',
    "the setup has 13 lines, at most 12 are wanted",
)
tagging(
    "setup", "setup", None, "the first code cell is not tagged setup and nbval-ignore-output (it prints the device)"
)
tagging(
    "setup",
    "nbval-ignore-output",
    None,
    "the first code cell is not tagged setup and nbval-ignore-output (it prints the device)",
)
replacing("free", "print", "\n" * 20 + "print", "cell {free}: 21 lines of code, at most 20 are wanted")
for marker in ("raises-exception", "nbval-raises-exception", "nbval-skip", "skip-execution"):
    tagging("free", None, marker, f"cell {{free}} is marked {marker}")
replacing("free", "print", "# NBVAL_SKIP\nprint", "cell {free} is marked NBVAL_... in a comment")
for magic in ("%matplotlib inline", "# what is here\n!ls", "%pip install x", "pip install x", "conda install x"):
    replacing("free", "print", f"{magic}\nprint", "cell {free} is not plain Python: no magics, no shell commands")
replacing("free", "print", "# https://example.org\nprint", "cell {free} has a URL")
replacing("free", "print", "import warnings\nprint", "cell {free} imports warnings: mend the cause of a warning")
replacing(
    "free",
    "print",
    "from ipywidgets import Output\nprint",
    "cell {free} imports ipywidgets: sliders come from explore()",
)
replacing("free", "print", "import urllib.request\nprint", "cell {free} imports urllib: nothing is fetched")
for device in ("model.cuda()", "model.to('cuda')", "x = 'cuda:1'", "y = {'device': 'mps'}", "torch.device('cpu')"):
    replacing("free", "print", f"{device}\nprint", "cell {free} picks a device: take run.device")
for place in ("'/home/me/data'", "'/data'", "r'C:\\data'", "'~/data'", "Path.home()"):
    replacing("free", "print", f"x = {place}\nprint", "cell {free} has a path of one machine")
replacing("free", "print", "x = f'{1}/data'\nprint")  # part of a relative path: no complaint
replacing("free", "print", "load_images('letters', 'train', download=True)\nprint", "cell {free} downloads")
replacing("naive", "![a dot]", "![]", "cell {naive}: an image without alt text")
replacing("naive", "![a dot](dot.png)", '<img src="dot.png">', "cell {naive}: an image without alt text")
replacing("predict", "None", "7", "no cell tagged predict with guess = None")
tagging("predict", "predict", None, "no cell tagged predict with guess = None")
tagging("widget", "widget", None, "cell {widget} is not tagged widget")
replacing("widget", "explore(picture, height=[1, 2, 3])", "1", "no widget")
tagging("grid", "nbval-ignore-output", None, "cell {grid} trains and is not tagged nbval-ignore-output")
replacing("grid", "assert", "0,", "cell {grid} trains and nothing is asserted in or after it")
replacing("grid", "range(3)", "range(2)", "no run_grid with seed=range(3) or more")
replacing("grid", "range(3)", "[0]", "no run_grid with seed=range(3) or more")
replacing(
    "free", "print", "model.fit(3)\nassert model\nprint", "cell {free} trains and is not tagged nbval-ignore-output"
)
replacing(
    "free",
    "print",
    "def train():\n    fit(3)\ntrain()\nassert train\nprint",
    "cell {free} trains and is not tagged nbval-ignore-output",
)
replacing("exercise-1-1", "raise Todo", "return 0", f"exercise 1.1: no stub {FIRST}() that ends in raise Todo")
replacing("exercise-1-1", f"def {FIRST}", "def other", f"exercise 1.1: no stub {FIRST}() that ends in raise Todo")
replacing("check-1-1", FIRST, "abs", f'exercise 1.1: no check("1.1", {FIRST})')
tagging(
    "check-1-1",
    "check-1.1",
    None,
    "exercise 1.1: 0 code cells tagged check-1.1, 1 is wanted",
    f"cell {{check-1-1}} uses {FIRST}, a reader's answer: hand it on with yours()",
)
tagging("free", None, "check-1.1", "exercise 1.1: 2 code cells tagged check-1.1, 1 is wanted")
tagging("solution-1-1", "solution-1.1", None, "exercise 1.1: 0 markdown cells tagged solution-1.1, 1 is wanted")
tagging("free", None, "exercise-1.99", "exercise 1.99 is not in course_utils.classroom.exercises")
replacing("solution-1-1", "Hint 2", "Remark", "exercise 1.1: fewer than two hints")
replacing("solution-1-1", "Think.", "", "exercise 1.1: fewer than two hints")
replacing("solution-1-1", "Solution", "Secret", "exercise 1.1: no solution to unfold")
replacing("quiz", QUESTION, "", "4 questions with an answer to unfold, 5 are wanted")
replacing("quiz", "- b) Wrong.", "", "question 1: b not explained")
replacing("quiz", "- b) No.", "", "question 1: fewer than two options")


@defect("the H1 is not in the first cell")
def something_before_the_title(c):
    c.nb.cells.insert(0, text("before", "Hello."))


@defect("section 'Next' stands before 'Where our code differs'")
def swapped_sections(c):
    c["end"].source = (
        c["end"]
        .source.replace("Next", "N")
        .replace("Where our code differs", "Next")
        .replace("## N\n", "## Where our code differs\n")
    )


@defect("53 cells, 30 to 52 are wanted")
def too_many_cells(c):
    c.nb.cells += [text(f"more-{k}", "More.") for k in range(53 - len(c.nb.cells))]


@defect("76 words, 1200 to 2000 are wanted", "no section 'Warm-up by hand'")
def nothing_to_read(c):
    for cell in c.nb.cells:
        if cell.cell_type == "markdown" and cell.id.startswith(("fill", "warm-up")):
            cell.source = ""


@defect("1.2 MB, at most 1 is wanted")
def a_huge_output(c):
    c["grid"].outputs = [new_output("stream", text="ha " * 400_000)]


@defect("execution counts are not 1 to {n}: run it anew from top to bottom")
def a_cell_that_was_not_run(c):
    c["free"].execution_count = None


@defect("execution counts are not 1 to {n}: run it anew from top to bottom")
def a_cell_that_was_run_twice(c):
    c["free"].execution_count += 1


@defect("nbval compares the text of 2 cells, at least 3 are wanted")
def hardly_anything_compared(c):
    for cell in [cell for _, cell in code_cells(c.nb) if is_compared(cell)][2:]:
        cell.metadata.tags = [*cell.metadata.get("tags", []), "nbval-ignore-output"]


replacing(
    "free", "print", f"{FIRST}(3)\nprint", f"cell {{free}} uses {FIRST}, a reader's answer: hand it on with yours()"
)
replacing("free", "print", f"ours = yours('1.1', {FIRST})\nprint")  # as it should be: no complaint
tagging("free", None, "machinery", "cell {free}: the tag machinery or claims and a folded source belong together")


@defect("cell {free} shows an error")
def an_error_in_the_outputs(c):
    c["free"].outputs += [new_output("error", ename="ValueError", evalue="no", traceback=[])]


@defect("cell {free} shows a path of one machine")
def a_path_in_the_outputs(c):
    c["free"].outputs[0].text = "saved in /home/me/runs\n"


@defect("cell {free} wrote to stderr: a warning, or a progress bar")
def a_warning_in_the_outputs(c):
    c["free"].outputs += [new_output("stream", name="stderr", text="UserWarning: slow\n")]


@defect("cell {free} shows a half-filled progress bar")
def a_progress_bar_in_the_outputs(c):
    c["free"].outputs += [new_output("display_data", data={"text/plain": "  0%|          | 0/6 [00:00<?, ?run/s]"})]


@defect("cell {still}: a picture without alt text")
def a_picture_without_alt(c):
    picture_of(c["still"]).metadata = {}


@defect("cell {still}: a picture that is not a PNG with a palette")
def a_picture_with_all_colours(c):
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    picture_of(c["still"]).data["image/png"] = b64encode(png.getvalue()).decode()


@defect("cell {widget}: no static picture in the code cell before the widget")
def a_widget_without_static_picture(c):
    c["still"].outputs = []


@defect("a cell has no id, or two have the same")
def a_cell_without_id(c):
    del c["free"]["id"]


@defect("a cell has no id, or two have the same")
def one_id_twice(c):
    c["free"].id = "grid"


@defect("the kernel is not python3")
def another_kernel(c):
    c.nb.metadata.kernelspec.name = "my-course"


@defect("the state of the sliders is stored")
def stored_widget_state(c):
    c.nb.metadata.widgets = {}


@defect(
    "2 exercises, at least 3 are wanted",
    *(
        f"exercise {n}: 0 {kind} cells tagged {tag}-{n}, 1 is wanted"
        for n in sorted(EXERCISES)[2:]
        for tag, kind in (("exercise", "code"), ("check", "code"), ("solution", "markdown"))
    ),
)
def only_two_exercises(c):
    for cell in c.nb.cells:
        cell.metadata.tags = [t for t in cell.metadata.get("tags", []) if t.split("-")[-1] not in sorted(EXERCISES)[2:]]


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_gives_its_complaint(good, name):
    spoil, complaints = DEFECTS[name]
    nb = read(good)
    places = {cell.id: place for place, cell in enumerate(nb.cells, 1)}
    spoil(Cells(nb))
    wanted = [complaint.format(**places, n=len(code_cells(nb))) for complaint in complaints]
    assert sorted(problems_of(nb, LESSON)) == sorted(wanted)


def test_notebook_00_may_be_short_and_needs_no_question():
    exercises = exercises_of(Path("00.ipynb"))
    cells = [
        text("title", "# 00 · Start here\n\n## Setup"),
        code("setup", 'from course_utils.runtime import start\nrun = start("00")', "setup", "nbval-ignore-output"),
        *(cell for number, exercise in exercises.items() for cell in exercise_cells(number, exercise)),
        *(code(f"print-{k}", f"print({k})") for k in range(3)),
    ]
    nb = notebook(*cells)
    for count, (_, cell) in enumerate(code_cells(nb), 1):
        cell.execution_count = count
        cell.outputs = [new_output("stream", text="0\n")] if cell.id.startswith("print") else []
    assert problems_of(nb, "00_good") == []
    cells[0].source = "# 00"
    assert problems_of(nb, "00_good") == ["no section 'Setup'"]


def test_a_stale_solution_is_seen(good):
    nb = read(good)
    cell = tagged(nb, "solution-1.2")[0]
    cell.source = cell.source.replace("return", "return 1 +", 1)
    assert sync(nb, EXERCISES) == ["1.2"]


# ---- nbval with the project's own options, and the network guard ---------------------------------------------------

CONNECT = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=9)"
RESOLVE = "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=9)"
WORKER = """
import joblib

def outside(k):
    import os, socket
    assert os.getpid() != parent
    return socket.socket().connect_ex(("192.0.2.1", 80))

import os
parent = os.getpid()
joblib.Parallel(n_jobs=2)(joblib.delayed(outside)(k) for k in range(2))
"""
LOOPBACK = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1]), timeout=9).close()
"""


@pytest.fixture(scope="module")
def nbval_failures(good, tmp_path_factory):
    """{("changed", "Cell 3"): failure text, empty if it passed} of one pytest run over planted notebooks."""
    folder = tmp_path_factory.mktemp("planted")
    nb = read(good)
    Cells(nb)["free"].outputs[0].text = "Nothing to see: aab\n"
    nbformat.write(nb, folder / "changed.ipynb")
    network = [CONNECT, RESOLVE, WORKER, LOOPBACK]
    nbformat.write(notebook(*(code(f"n-{k}", source) for k, source in enumerate(network))), folder / "network.ipynb")
    spoilt = [
        ("[0, height]", "[0, {1: 1, 2: 2}[height]]"),
        ("[0, height]", "[0, 1]"),
        ('f"The line ends at {height}."', "''"),
    ]
    widget = "from course_utils.classroom.widgets import explore\nexplore(picture, height=[1, 2, 3])"
    bad = [code(f"w-{k}", PICTURE.replace(*pair) + widget) for k, pair in enumerate(spoilt)]
    nbformat.write(notebook(*bad), folder / "widgets.ipynb")
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "conftest"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={folder / 'results.xml'}", str(folder)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}  # the guard comes from our conftest alone
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^changed +90 +\d+\.\d+$", done.stdout, re.MULTILINE), "no line in the table of times"
    cases = ElementTree.parse(folder / "results.xml").iter("testcase")
    return {(c.get("classname").removesuffix(".ipynb"), c.get("name")): "".join(c.itertext()) for c in cases}


def test_nbval_fails_exactly_the_cell_whose_output_changed(nbval_failures, good):
    ids = [cell.id for _, cell in code_cells(read(good))]
    results = {cell: failure for (name, cell), failure in nbval_failures.items() if name == "changed"}
    assert list(results) == [f"Cell {place}" for place in range(len(ids))]
    wrong = f"Cell {ids.index('free')}"
    assert [cell for cell, failure in results.items() if failure.strip()] == [wrong]
    assert "Cell outputs differ" in results[wrong] and "aab" in results[wrong]


@pytest.mark.parametrize("cell", ["Cell 0", "Cell 1", "Cell 2"], ids=["connection", "look-up", "joblib worker"])
def test_no_network_in_a_notebook(nbval_failures, cell):
    assert "the course's tests allow no network" in nbval_failures["network", cell]


def test_loopback_in_a_notebook(nbval_failures):
    assert nbval_failures["network", "Cell 3"] == ""


def test_no_network_in_the_tests_themselves():
    with pytest.raises(OSError, match=r"the course's tests allow no network: getaddrinfo to example\.org"):
        socket.create_connection(("example.org", 80), timeout=9)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        with pytest.raises(OSError, match=r"the course's tests allow no network: sendto to 192\.0\.2\.1"):
            sock.sendto(b"hello", ("192.0.2.1", 53))
        sock.sendto(b"hello", ("127.0.0.1", 53))


def test_the_guard_runs_the_sitecustomize_that_it_hides(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('the hidden one')")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "network_guard"), str(tmp_path)])}
    command = [sys.executable, "-c", "import socket; print(socket.guarded_by_the_course)"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n") == ["the hidden one", "True", ""]


# ---- solutions, and every slider position ---------------------------------------------------------------------------


def imbalance_ratio(counts):
    return min(counts) / max(counts)


def other_name(counts):
    return max(counts) / min(counts)


SMALL = exercises_of(Path("00.ipynb"))


def small_lesson(*more):
    name = SMALL["0.1"].solution.__name__
    return notebook(
        code("start", "from course_utils.classroom.exercises import Todo, check"),
        code("far", "1 / 0  # nobody needs this cell"),
        code("exercise", f"def {name}(counts):\n    raise Todo", "exercise-0.1"),
        code("check", f'check("0.1", {name})', "check-0.1"),
        *more,
    )


def with_solution(function):
    return {"0.1": dataclasses.replace(SMALL["0.1"], solution=function)}


@pytest.mark.parametrize(
    ("nb", "message"),
    [
        (small_lesson(), r"Exercise 0\.1: not attempted yet"),
        (solved(small_lesson(), with_solution(imbalance_ratio)), r"❌ Exercise 0\.1: .*expected 100"),
    ],
    ids=["unsolved", "wrong"],
)
def test_an_exercise_that_is_not_right_is_seen(tmp_path, monkeypatch, nb, message):
    monkeypatch.setenv("COURSE_REQUIRE_SOLUTIONS", "1")
    with pytest.raises(Wrong, match=message):
        run_exercises(nb, tmp_path)


def test_a_solution_of_another_name_is_refused():
    with pytest.raises(ValueError, match=r"the stub is \['imbalance_ratio'\], the solution other_name"):
        solved(small_lesson(), with_solution(other_name))


@pytest.mark.parametrize("number", [0, 1, 2], ids=["raises at one far position", "dead slider", "no sentence"])
def test_a_bad_widget_fails_while_nbval_runs_it(nbval_failures, number):
    assert ("KeyError", "never changes the picture", "no sentence at")[number] in nbval_failures[
        "widgets", f"Cell {number}"
    ]
