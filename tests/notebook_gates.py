"""What every notebook of the course has to be, as functions that return complaints: an empty list means fine.

`problems_of()` reads a notebook without running it; `solved()` and `run_exercises()` are for its exercises.
"""

import ast
import base64
import contextlib
import copy
import inspect
import io
import json
import os
import re
import symtable
from itertools import pairwise
from pathlib import Path

import nbformat
import torch
from PIL import Image

from course_utils.classroom.exercises.__main__ import exercises_of

SECTIONS = (
    "You will be able to",
    "Setup",
    "Warm-up by hand",
    "The naive way, measured",
    "Play",
    "Check yourself",
    "In one breath",
    "Where it fails",
    "Where our code differs",
    "Next",
    "References",
)
BANNED_TAGS = {"raises-exception", "nbval-raises-exception", "nbval-skip", "skip-execution"}
BANNED_IMPORTS = {
    "ipywidgets": "sliders come from explore()",
    "warnings": "mend the cause of a warning",
    "pip": "nothing is installed",
    "conda": "nothing is installed",
    "subprocess": "nothing else is started",
    "urllib": "nothing is fetched",
    "requests": "nothing is fetched",
    "socket": "nothing is fetched",
}
TRAINING = {"fit", "run_grid", "retrain_classifier", "run_incremental"}
MACHINE_PATH = re.compile(r"(?:(?<![\w.])/(?:home|root|Users|usr|opt|var|tmp|mnt)/|\b[A-Za-z]:\\\w)")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
OPTION = re.compile(r"^\s*[-*]?\s*\**\(?([A-Ea-e])[).]", re.MULTILINE)


def read(path):
    """A notebook exactly as it is in the file: nbformat.read() would mend missing and double cell ids."""
    return nbformat.v4.reads(path.read_text(encoding="utf-8"))


def tags(cell):
    return cell.metadata.get("tags", [])


def tagged(nb, tag):
    return [cell for cell in nb.cells if tag in tags(cell)]


def code_cells(nb):
    """[(place in the notebook, cell)] of the code cells that are not empty."""
    return [(i, cell) for i, cell in enumerate(nb.cells, 1) if cell.cell_type == "code" and cell.source.strip()]


def prose(nb):
    """The Markdown of all cells, without code blocks."""
    return [(i, FENCE.sub("", cell.source)) for i, cell in enumerate(nb.cells, 1) if cell.cell_type == "markdown"]


def headings(nb):
    """[(place of the cell, level, text)] in order; a number before the text is dropped."""
    found = [(i, re.findall(r"^(#+) +(?:\d[\d.]* +)?(.*?) *$", text, re.MULTILINE)) for i, text in prose(nb)]
    return [(i, len(marks), text) for i, lines in found for marks, text in lines]


def tree(cell):
    """The syntax tree; an empty one if the cell is not plain Python, which `_code` complains about."""
    try:
        return compile(cell.source, "cell", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        return ast.Module(body=[], type_ignores=[])


def called(node):
    """The name of what a call calls: `fit` for both `fit(...)` and `training.fit(...)`; None for anything else."""
    function = getattr(node, "func", None) if isinstance(node, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", None))


def calls(node):
    return [inner for inner in ast.walk(node) if called(inner)]


def count_words(nb):
    """Words of prose on the page, without code blocks, what is folded (hints, solutions, answers), tags and link
    targets; a formula in a line is one word, others are none."""
    page = DETAILS.sub(" ", "\n".join(text for _, text in prose(nb)))
    text = re.sub(r"(?s)</?[a-zA-Z][^>]*>|\$\$.*?\$\$|\]\([^)]*\)", " ", page)
    return sum(any(map(str.isalnum, word)) for word in re.sub(r"\$[^$\n]+\$", "x", text).split())


def has_picture(cell):
    return any(kind.startswith("image/") for output in cell.get("outputs", []) for kind in output.get("data", {}))


def is_folded(cell):
    """Whether the reader sees what the cell shows and opens its code with a click: plots, tables, guards."""
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def is_compared(cell):
    """Whether nbval compares text that this cell printed; the names of pictures and sliders do not count."""
    texts = [o for o in cell.outputs if not has_picture({"outputs": [o]}) and "widget-view" not in str(o.get("data"))]
    return "nbval-ignore-output" not in tags(cell) and any(o.get("text") or o.get("data") for o in texts)


# ---- the gates: (notebook, number, exercises) -> complaints --------------------------------------------------------


def _outline(nb, number, exercises):
    titles = [(i, text) for i, level, text in headings(nb) if level == 1]
    if len(titles) != 1:
        yield f"one H1 is wanted, there are {len(titles)}"
    elif titles[0][0] != 1:
        yield "the H1 is not in the first cell"
    elif number != "00" and not titles[0][1].endswith("?"):
        yield "the title is not a question"
    sections = [text for _, level, text in headings(nb) if level == 2]
    places = {}
    for wanted in SECTIONS if number != "00" else ("Setup",):
        places[wanted] = next((i for i, text in enumerate(sections) if text.startswith(wanted)), None)
        if places[wanted] is None:
            yield f"no section '{wanted}'"
    found = [wanted for wanted, place in places.items() if place is not None]
    for first, second in pairwise(found):
        if places[first] > places[second]:
            yield f"section '{second}' stands before '{first}'"
    if number != "00" and not any(level > 1 and text.startswith("Predict") for _, level, text in headings(nb)):
        yield "no heading that starts with 'Predict'"


def _setup(nb, number, exercises):
    first = code_cells(nb)[0][1] if code_cells(nb) else nbformat.v4.new_code_cell()
    if not {"setup", "nbval-ignore-output"} <= set(tags(first)):
        yield "the first code cell is not tagged setup and nbval-ignore-output (it prints the device)"
    if len(first.source.splitlines()) > 12:
        yield f"the setup has {len(first.source.splitlines())} lines, at most 12 are wanted"
    if not tree(first).body or not re.match(rf"run = start\('{number}'", ast.unparse(tree(first).body[-1])):
        yield f'the setup does not end in run = start("{number}")'


def _size(nb, number, exercises):
    low, high = (1, 40) if number == "00" else (30, 52)
    if not low <= len(nb.cells) <= high:
        yield f"{len(nb.cells)} cells, {low} to {high} are wanted"
    visible = [(i, cell) for i, cell in code_cells(nb) if not is_folded(cell)]
    lines = {i: len(cell.source.splitlines()) for i, cell in visible}
    yield from (f"cell {i}: {n} lines of code, at most 20 are wanted" for i, n in lines.items() if n > 20)
    if number != "00" and not 1200 <= count_words(nb) <= 2000:
        yield f"{count_words(nb)} words, 1200 to 2000 are wanted"
    megabytes = len(json.dumps(nb, ensure_ascii=False).encode()) / 1e6
    if megabytes > 1:
        yield f"{megabytes:.1f} MB, at most 1 is wanted"


def _outputs(nb, number, exercises):
    counts = [cell.execution_count for _, cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are not 1 to {len(counts)}: run it anew from top to bottom"
    compared = sum(is_compared(cell) for _, cell in code_cells(nb))
    if compared < 3:
        yield f"nbval compares the text of {compared} cells, at least 3 are wanted"
    for i, cell in code_cells(nb):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"cell {i} shows an error"
            if output.get("name") == "stderr":
                yield f"cell {i} wrote to stderr: a warning, or a progress bar"
            texts = [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
            if MACHINE_PATH.search(" ".join([output.get("text", ""), *texts])):
                yield f"cell {i} shows a path of one machine"
            if re.search(r"\d%\|", " ".join(texts)):
                yield f"cell {i} shows a half-filled progress bar"
            for kind in (k for k in output.get("data", {}) if k.startswith("image/")):
                if not str(output.metadata.get(kind, {}).get("alt", "")).strip():
                    yield f"cell {i}: a picture without alt text"
                if kind != "image/png" or Image.open(io.BytesIO(base64.b64decode(output.data[kind]))).mode != "P":
                    yield f"cell {i}: a picture that is not a PNG with a palette"
    for i, text in prose(nb):
        if re.search(r"!\[\s*\]\(", text) or re.search(r"<img(?![^>]*\balt=\"[^\"]+\")", text):
            yield f"cell {i}: an image without alt text"


def _metadata(nb, number, exercises):
    ids = [cell.get("id") for cell in nb.cells]
    if None in ids or len(set(ids)) < len(ids):
        yield "a cell has no id, or two have the same"
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"
    if "widgets" in nb.metadata:
        yield "the state of the sliders is stored"
    for i, cell in enumerate(nb.cells, 1):
        banned = BANNED_TAGS & set(tags(cell))
        if banned or (cell.cell_type == "code" and re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)_", cell.source)):
            yield f"cell {i} is marked {', '.join(banned) or 'NBVAL_... in a comment'}"


def _code(nb, number, exercises):
    for i, cell in code_cells(nb):
        nodes = list(ast.walk(tree(cell)))
        if len(nodes) == 1 and re.search(r"^\s*[^#\s]", cell.source, re.MULTILINE):
            yield f"cell {i} is not plain Python: no magics, no shell commands"
        if "://" in cell.source:
            yield f"cell {i} has a URL"
        inside_f = {id(part) for n in nodes if isinstance(n, ast.JoinedStr) for part in n.values}
        for node in nodes:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            for name in (str(name).split(".")[0] for name in names):
                if name in BANNED_IMPORTS:
                    yield f"cell {i} imports {name}: {BANNED_IMPORTS[name]}"
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if re.fullmatch(r"(cuda|mps)(:\d+)?", text) or called(node) in ("cuda", "device"):
                yield f"cell {i} picks a device: take run.device"
            absolute = id(node) not in inside_f and re.match(r"/\w+$|~[/\\]", text)
            if absolute or MACHINE_PATH.search(text) or called(node) in ("home", "expanduser"):
                yield f"cell {i} has a path of one machine"
            if isinstance(node, ast.keyword) and ast.unparse(node) == "download=True":
                yield f"cell {i} downloads"


def _teaching(nb, number, exercises):
    guesses = [ast.unparse(tree(cell)) for cell in tagged(nb, "predict")]
    if number != "00" and not any(re.search(r"^guess\w* = None$", text, re.MULTILINE) for text in guesses):
        yield "no cell tagged predict with guess = None"
    widgets = [(i, cell) for i, cell in code_cells(nb) if any(called(c) == "explore" for c in calls(tree(cell)))]
    if number != "00" and not widgets:
        yield "no widget"
    for i, cell in widgets:
        before = [c for j, c in code_cells(nb) if j < i]
        if "widget" not in tags(cell):
            yield f"cell {i} is not tagged widget"
        if not before or not has_picture(before[-1]):
            yield f"cell {i}: no static picture in the code cell before the widget"


def _training(nb, number, exercises):
    trainers, trains, asserts, grids, values = set(TRAINING), [], [], [], {}
    for i, cell in code_cells(nb):
        for node in tree(cell).body:
            names = {called(c) for c in calls(node)}
            if isinstance(node, ast.FunctionDef):  # defining a function that trains is not training yet
                trainers |= {node.name} if names & trainers else set()
            elif names & trainers:
                trains.append((i, cell))
            if isinstance(node, ast.Assign):
                values |= {ast.unparse(target): node.value for target in node.targets}
            asserts += [i for inner in ast.walk(node) if isinstance(inner, ast.Assert)]
            grids += [c for c in calls(node) if called(c) == "run_grid"]
    for i, cell in dict(trains).items():
        if "nbval-ignore-output" not in tags(cell):
            yield f"cell {i} trains and is not tagged nbval-ignore-output"
        if not any(j >= i for j in asserts):
            yield f"cell {i} trains and nothing is asserted in or after it"
    seeds = [values.get(ast.unparse(k.value), k.value) for grid in grids for k in grid.keywords if k.arg == "seed"]
    ranges = [int(n) for seed in seeds for n in re.findall(r"\brange\((\d+)\)", ast.unparse(seed))]
    lists = [len(node.elts) for seed in seeds for node in ast.walk(seed) if isinstance(node, ast.List | ast.Tuple)]
    if grids and max(ranges + lists, default=0) < 3:
        yield "no run_grid with seed=range(3) or more"


def _exercises(nb, number, exercises):
    found = {m[1] for cell in nb.cells for tag in tags(cell) if (m := re.fullmatch(r"[a-z]+-(\d+\.\d+)", tag))}
    if len(found) < (1 if number == "00" else 3):
        yield f"{len(found)} exercises, at least {1 if number == '00' else 3} are wanted"
    for n in sorted(found | set(exercises)):
        if n not in exercises:
            yield f"exercise {n} is not in course_utils.classroom.exercises"
            continue
        name = exercises[n].solution.__name__
        for kind, cell_type in (("exercise", "code"), ("check", "code"), ("solution", "markdown")):
            cells = [cell for cell in tagged(nb, f"{kind}-{n}") if cell.cell_type == cell_type]
            if len(cells) != 1:
                yield f"exercise {n}: {len(cells)} {cell_type} cells tagged {kind}-{n}, 1 is wanted"
            elif kind == "exercise":
                stubs = [s for s in tree(cells[0]).body if isinstance(s, ast.FunctionDef) and s.name == name]
                if not stubs or not re.match(r"raise Todo\b", ast.unparse(stubs[-1].body[-1])):
                    yield f"exercise {n}: no stub {name}() that ends in raise Todo"
            elif kind == "check" and not re.search(rf"^check\('{n}', {name}\)", ast.unparse(tree(cells[0])), re.M):
                yield f'exercise {n}: no check("{n}", {name})'
            elif kind == "solution":
                summaries = [summary for summary, text in DETAILS.findall(cells[0].source) if text.strip()]
                if sum(s.startswith("Hint") for s in summaries) < 2:
                    yield f"exercise {n}: fewer than two hints"
                if "Solution" not in summaries:
                    yield f"exercise {n}: no solution to unfold"


def _answers(nb, number, exercises):
    """The experiments have the same numbers whatever the reader wrote, except through yours()."""
    mine = {name for cell in nb.cells for t in tags(cell) if t.startswith("exercise-") for name in names_in(cell)[0]}
    for i, cell in code_cells(nb):
        if any(t.startswith(("exercise-", "check-")) for t in tags(cell)):
            continue
        root, (defined, reads) = tree(cell), names_in(cell)
        handed_on = {id(a) for n in ast.walk(root) if called(n) == "yours" for a in n.args}
        used = {n.id for n in ast.walk(root) if isinstance(n, ast.Name) and id(n) not in handed_on}
        for name in sorted(used & reads & mine):
            yield f"cell {i} uses {name}, a reader's answer: hand it on with yours()"
        mine -= defined
    folded = {i for i, cell in code_cells(nb) if is_folded(cell)}
    for i in sorted(folded ^ {i for i, c in code_cells(nb) if {"machinery", "claims"} & set(tags(c))}):
        yield f"cell {i}: the tag machinery or claims and a folded source belong together"


def _questions(nb, number, exercises):
    text = "\n".join(source for _, source in prose(nb))
    quiz = re.search(r"^## +(?:\d[\d.]* +)?Check yourself.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if number == "00" or not quiz:
        return
    blocks = list(DETAILS.finditer(quiz[0]))
    if len(blocks) != 5:
        yield f"{len(blocks)} questions with an answer to unfold, 5 are wanted"
    for k, block in enumerate(blocks):
        options = OPTION.findall(quiz[0][blocks[k - 1].end() if k else 0 : block.start()])
        silent = [o for o in options if not re.search(rf"(?<!\w){o}\**[).:,]", block[2])]
        if len(options) < 2 or silent:
            yield f"question {k + 1}: " + (f"{', '.join(silent)} not explained" if silent else "fewer than two options")


GATES = (_outline, _setup, _size, _outputs, _metadata, _code, _teaching, _training, _exercises, _answers, _questions)


def problems_of(nb, name):
    """Complaints about the notebook `name` ("01_weight_norm_bias") as it is stored."""
    exercises = exercises_of(Path(f"{name}.ipynb"))
    return [complaint for gate in GATES for complaint in gate(nb, name[:2], exercises)]


# ---- the exercises with their solutions, in the cells they need ----------------------------------------------------


def solved(nb, exercises):
    """A copy with each stub replaced by the solution; both are functions of the same name."""
    nb = copy.deepcopy(nb)
    for number, exercise in exercises.items():
        (cell,) = tagged(nb, f"exercise-{number}")
        names = [s.name for s in tree(cell).body if isinstance(s, ast.FunctionDef)]
        if names[-1:] != [exercise.solution.__name__]:
            raise ValueError(f"exercise {number}: the stub is {names}, the solution {exercise.solution.__name__}")
        cell.source = inspect.getsource(exercise.solution)
    return nb


def names_in(cell):
    """(names that the cell defines for later cells, names that it takes from earlier ones)."""
    if not tree(cell).body:
        return set(), set()
    tables = [symtable.symtable(cell.source, "cell", "exec")]
    defined = {s.get_name() for s in tables[0].get_symbols() if s.is_assigned() or s.is_imported()}
    reads = {s.get_name() for s in tables[0].get_symbols() if s.is_referenced()}
    for table in tables:  # grows: what functions read
        tables += table.get_children()
        reads |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return defined, reads - defined


def needed(nb, prefixes=("exercise-", "check-")):
    """The code cells whose tags begin so, and the earlier ones that define what they read, in order."""
    chosen, wanted = [], set()
    for _, cell in reversed(code_cells(nb)):
        defined, reads = names_in(cell)
        if any(tag.startswith(prefixes) for tag in tags(cell)) or defined & wanted:
            chosen.insert(0, cell)
            wanted = wanted - defined | reads
    return chosen


def run_exercises(nb, folder):
    """Run what the exercises need, here, solutions demanded; what the cells printed. What a cell raises is raised."""
    said, names, before = io.StringIO(), {"__name__": "notebook"}, os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said), torch.random.fork_rng(devices=[]):
            for cell in needed(nb):
                trains = {called(c) for c in calls(tree(cell))} & TRAINING
                assert not trains, f"an exercise needs a cell that calls {trains}: {cell.source}"
                exec(compile(cell.source, cell.id, "exec"), names)
    finally:
        os.chdir(before)
    return said.getvalue()
