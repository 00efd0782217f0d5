"""Every gate closes: each planted defect gives exactly the complaint it should; nbval and the network guard work."""

import ast
import inspect
import os
import re
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns
from notebook_gates import code_cells, pictures, problems_of, read, run_exercises, solved, tagged, tags

from course_utils.classroom.exercises import Wrong
from course_utils.classroom.exercises.__main__ import exercises_of, sync
from course_utils.classroom.notebooks import find_notebooks

ROOT = Path(__file__).resolve().parents[1]
LESSON = find_notebooks(["1"])[0]  # test_notebooks.py: as it is, it has no complaints
EXERCISES = exercises_of(LESSON)
FIRST = EXERCISES["1.1"].solution.__name__

# ---- the gates: a shipped notebook with one defect -----------------------------------------------------------------


def first(nb, where):
    return nb.cells[where] if isinstance(where, int) else tagged(nb, where)[0]


def reading(where, old, new):
    """The defect that the first cell with this place or tag reads otherwise."""

    def spoil(nb):
        assert old in first(nb, where).source
        first(nb, where).source = first(nb, where).source.replace(old, new, 1)

    return spoil


def adding(where, more):
    return lambda nb: setattr(first(nb, where), "source", first(nb, where).source + more)


def tagging(where, old, new):
    kept = lambda cell: [tag for tag in [*cell.metadata.tags, new] if tag not in (old, "")]  # noqa: E731
    return lambda nb: first(nb, where).metadata.update(tags=kept(first(nb, where)))


def printing(*args, **more):
    return lambda nb: first(nb, HERE).outputs.append(new_output(*args, **more))


def everywhere(old, new):
    return lambda nb: [cell.update(source=cell.source.replace(old, new)) for cell in nb.cells]


def each(change):
    return lambda nb: [change(cell) for _, cell in code_cells(nb)]


def longest_expression(number):
    """Of the solution, with other names."""
    root = ast.parse(inspect.getsource(EXERCISES[number].solution))
    found = max((n for n in ast.walk(root) if isinstance(n, ast.expr)), key=lambda n: len(ast.unparse(n)))
    for name in (n for n in ast.walk(found) if isinstance(n, ast.Name)):
        name.id += "_"
    return ast.unparse(found)


LAST = max(EXERCISES)
HERE = "check-1.1"  # a short cell that prints one line
SETUP = "the first code cell is not tagged setup and nbval-ignore-output, or has more than 12 lines"
TRAINS = r"cell \d+ trains: it is not tagged nbval-ignore-output, or nothing is asserted in or after it"
WIDGET = r"cell \d+: not tagged widget, or its first position is not stored as a picture"
LIVE = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Sliders: a"}
TITLE, SECTIONS = (
    "one H1 is wanted, in the first cell; there are [02]",
    "the sections are .*; wanted, in this order: .*",
)
USES = rf"cell \d+ uses {FIRST}, a reader's answer: hand it on with yours\(\)"
UNFOLD = r"exercise 1\.1: two hints and a solution to unfold are wanted"
DEVICES = ("model.cuda()", "model.to('cuda')", "'cuda:1'", "torch.device('cpu')")
PLACES = ("'/home/me/data'", "'/data'", r"r'C:\data'", "'~/data'", "Path.home()")
DEFECTS = [
    (reading(0, "# ", "## "), TITLE),
    (adding(-1, "\n# !"), TITLE),
    (adding(0, "\n```\n# no heading\n```"), None),
    (reading(0, "?", "."), "the title is not a question"),
    (reading(-1, "## Next", "### Next"), SECTIONS),
    (reading(0, "## Setup", "## Next"), SECTIONS),
    (adding(0, " word" * 2000), r"\d{4} words, 1200 to 2000 are wanted"),
    (lambda nb: nb.cells.extend([new_markdown_cell("")] * 9), r"\d\d cells, at most 46 are wanted"),
    (reading(-2, "</details>", ""), "4 questions with an answer to unfold, 5 are wanted"),
    (everywhere("guess", "hope"), "no cell tagged predict with guess = None"),
    (lambda nb: first(nb, HERE).update(execution_count=None), r"execution counts are not 1 to \d+: .*"),
    (each(lambda cell: cell.metadata.update(tags=[*tags(cell), "nbval-ignore-output"])), "nbval compares .*"),
    (lambda nb: nb.metadata.kernelspec.update(name="mine"), "the kernel is not python3, or .*"),
    (printing("stream", text="ha\n" * 500_000), r"\d\.\d MB, at most 1.5 is wanted"),
    (printing("stream", text="saved in /home/me/runs\n"), r"cell \d+ shows a path of one machine"),
    (printing("stream", text="ok\n" + "-" * 91), r"cell \d+ prints a line of 91 characters, at most 90 are wanted"),
    (printing("display_data", data={"text/plain": "Figure: " + "-" * 91}), None),
    (printing("display_data", data=LIVE), r"cell \d+ keeps a slider that no kernel answers: .*"),
    (printing("stream", name="stderr", text="slow\n"), r"cell \d+ shows an error, a warning or a progress bar"),
    (printing("error", ename="E", evalue="no"), r"cell \d+ shows an error, a warning or a progress bar"),
    (each(lambda cell: [o.metadata.clear() for o in pictures(cell)]), r"cell \d+: a picture without alt text"),
    (adding(0, '\n<img src="a.png">'), "an image in the text without alt text"),
    (adding(0, "\n![](a.png)"), "an image in the text without alt text"),
    (tagging("setup", "setup", ""), SETUP),
    (reading("setup", "\n", "\n" * 9), SETUP),
    (reading("setup", '"01"', '"02"'), r'the setup does not end in run = start\("01"\)'),
    (adding(HERE, "\n1  # NBVAL_SKIP"), r"cell \d+ has a mark for nbval"),
    (adding(HERE, "\n'https://example.org'"), r"cell \d+ has a URL"),
    (adding(HERE, "\nf(download=True)"), r"cell \d+ has a download"),
    (adding(HERE, "\nimport warnings"), r"cell \d+ has warnings: mend their cause"),
    (adding(HERE, "\nimport ipywidgets"), r"cell \d+ has ipywidgets: sliders come from explore\(\)"),
    *((adding(HERE, f"\n{code}"), r"cell \d+ has a device: take run\.device") for code in DEVICES),
    *((adding(HERE, f"\n{code}"), r"cell \d+ has a path of one machine") for code in PLACES),
    (adding(HERE, "\nf'{1}/data'"), None),
    *((tagging(HERE, "", tag), rf"cell \d+ is tagged {tag}") for tag in ("raises-exception", "nbval-skip")),
    (tagging(HERE, "", "claims"), r"cell \d+: the tag machinery or claims and a folded source belong together"),
    (adding(HERE, "\n" * 12 + "1"), r"cell \d+: \d+ lines of code, at most 12 are wanted"),
    (adding(HERE, "\nassert 1"), r"cell \d+: an assert that the reader sees; .*"),
    (everywhere("explore(", "print("), "no widget"),
    (tagging("widget", "widget", ""), WIDGET),
    (each(lambda cell: [cell.outputs.remove(o) for o in pictures(cell)]), WIDGET),
    (adding(HERE, "\nmodel.fit(3)"), TRAINS),
    (adding(HERE, "\ndef f():\n    fit()\n\nf()"), TRAINS),
    (lambda nb: tagged(nb, "widget")[-1].update(source="explore()\nfit()"), TRAINS),
    (everywhere("range(3)", "range(2)"), r"no run_grid with seed=range\(3\) or more"),
    (tagging(HERE, "", "exercise-1.9"), r"exercises are .*'1\.9'.*, those in course_utils\.classroom\.exercises .*"),
    (tagging("check-1.2", "", HERE), r"exercise 1\.1: one cell each is wanted, tagged .*"),
    (reading("exercise-1.1", "raise Todo", "return 0"), rf"exercise 1\.1: no stub {FIRST}\(\) that ends in raise Todo"),
    (reading(HERE, f", {FIRST}", ", abs"), rf'exercise 1\.1: no check\("1\.1", {FIRST}\)'),
    (reading("solution-1.1", "Hint 2", "Remark"), UNFOLD),
    (reading("solution-1.1", "Solution", "Secret"), UNFOLD),
    (adding(HERE, f"\n{longest_expression(LAST)}"), rf"cell \d+ shows the answer of exercise {LAST} before it"),
    (adding("check-1.2", f"\n{FIRST}(3)"), None),
    (adding("widget", f"\n{FIRST}(3)"), USES),
    (adding("widget", f"\n{FIRST} = {FIRST}(3)"), USES),
    (adding("widget", f"\nours = yours('1.1', {FIRST})"), None),
]


@pytest.mark.parametrize(("spoil", "complaint"), DEFECTS)
def test_a_defect_gives_its_complaint(spoil, complaint):
    nb = read(LESSON)
    spoil(nb)
    got = problems_of(nb, LESSON)
    assert bool(got) == bool(complaint) and all(re.fullmatch(complaint, line) for line in got), got


@pytest.mark.parametrize("line", ["%matplotlib inline", "!ls", "pip install x"])
def test_magics_and_shell_commands_are_no_python(line):
    with pytest.raises(SyntaxError):
        test_a_defect_gives_its_complaint(adding(HERE, f"\n{line}"), None)


def test_a_stale_solution_is_seen():
    nb = read(LESSON)
    reading("solution-1.2", "return", "return 1 +")(nb)
    assert sync(nb, EXERCISES) == ["1.2"]


@pytest.mark.parametrize("wrong", [False, True], ids=["a stub", "a wrong answer"])
def test_an_exercise_that_is_not_right_is_seen(monkeypatch, wrong):
    monkeypatch.setenv("COURSE_REQUIRE_SOLUTIONS", "1")
    nb = solved(read(LESSON), {n: exercise for n, exercise in EXERCISES.items() if n != "1.3"})
    if wrong:
        first(nb, "exercise-1.3").source += f"\n{EXERCISES['1.3'].solution.__name__} = lambda *answer: -1"
    with pytest.raises(Wrong, match=r"Exercise 1\.3: " + ("expected" if wrong else "not attempted")):
        run_exercises(nb, LESSON.parent)


@pytest.mark.parametrize("training", ["trained = fit()", "def train():\n    return fit()\n\ntrained = train()"])
def test_an_exercise_that_needs_a_training_is_refused(training):
    nb = read(LESSON)
    nb.cells.insert(2, new_code_cell(training))
    reading("exercise-1.4", "raise Todo", "trained\n    raise Todo")(nb)
    with pytest.raises(AssertionError, match=r"an exercise needs a cell that calls \{'(fit|train)'\}"):
        run_exercises(nb, LESSON.parent)


# ---- nbval with the project's own options, and the network guard ---------------------------------------------------

CONNECT = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=9)"
RESOLVE = "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=9)"
WORKER = """
import joblib, os
def outside(k):
    import os, socket
    assert os.getpid() != parent
    return socket.socket().connect_ex(("192.0.2.1", 80))
parent = os.getpid()
joblib.Parallel(n_jobs=2)(joblib.delayed(outside)(k) for k in range(2))
"""
LOOPBACK = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1]), timeout=9).close()
"""
WIDGET_CELL = """
from course_utils.classroom.widgets import explore
def picture(figure):
    (line,) = figure.subplots().plot([0, 1], [0, 1])
    def update(height):
        line.set_ydata([0, height])
        return f"The line ends at {height}."
    return update
explore(picture, height=[1, 2, 3])
"""
BAD_WIDGETS = {
    "KeyError": WIDGET_CELL.replace("[0, height]", "[0, {1: 1, 2: 2}[height]]"),
    "never changes the picture": WIDGET_CELL.replace("[0, height]", "[0, 1]"),
    "no sentence at": WIDGET_CELL.replace('f"The line ends at {height}."', "''"),
}
CELLS = [
    ("", "print('a' * 3)", "aaa\n"),
    ("Cell outputs differ", "print('a' * 4)", "aab\n"),
    *(("the course's tests allow no network", source, "") for source in (CONNECT, RESOLVE, WORKER)),
    ("", LOOPBACK, ""),
    *((message, source, "") for message, source in BAD_WIDGETS.items()),
    ("", f"{WIDGET_CELL}\nprint('fine')", "fine\n"),
]


def test_nbval_fails_what_it_should_and_only_that(tmp_path):
    """Changed outputs, the network (from worker processes too) and bad sliders; a good slider is drawn and counted."""
    nb = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    for k, (_, source, text) in enumerate(CELLS, 1):
        shown = [new_output("stream", text=text)] if text else []
        tags = [] if text and "explore" not in source else ["nbval-ignore-output"]
        nb.cells.append(new_code_cell(source, execution_count=k, outputs=shown, metadata={"tags": tags}))
    nbformat.write(nb, tmp_path / "planted.ipynb")
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "conftest"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={tmp_path / 'results.xml'}", str(tmp_path)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}  # the guard comes from our conftest alone
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^planted +90 +\d+\.\d\n3 slider positions of 1 widgets drawn$", done.stdout, re.MULTILINE)
    cases = list(ElementTree.parse(tmp_path / "results.xml").iter("testcase"))
    for (message, _, _), case in zip(CELLS, cases, strict=True):
        said = "".join(case.itertext()).strip()
        assert message in said if message else not said, case.get("name")


def test_pictures_are_taken_out_before_any_other_expression_sees_them():
    """A picture is one word of 300,000 letters: with another expression first, notebooks took three times as long."""
    (first, replacement), *others = get_sanitize_patterns((ROOT / "tests" / "nbval_sanitize.cfg").read_text("utf-8"))
    assert re.sub(first, replacement, f'<img src="data:image/png;base64,{"aB3+/" * 9}=">') == '<img src="PICTURE">'
    assert len(others) > 5


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


def test_notebooks_are_handed_out_longest_first(pytestconfig):
    """xdist would give out files with many tests first, and those are not the long ones."""
    assert not getattr(pytestconfig.option, "loadscopereorder", False)
