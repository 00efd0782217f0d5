"""What every notebook of the course has to be: `problems_of()` reads one without running it and returns complaints.

`solved()` and `run_exercises()` are for its exercises.
"""

import ast
import contextlib
import copy
import inspect
import io
import json
import os
import re
import symtable

import nbformat
import torch

from course_utils.classroom.exercises.__main__ import exercises_of

MOST_WORDS, MOST_CELLS, MOST_LINES, WIDEST = 2000, 46, 12, 90
SECTIONS = """You will be able to; Setup; Warm-up by hand; The naive way, measured; Play; Check yourself; In one breath;
Where it fails; Where our code differs; Next; References""".replace("\n", " ").split("; ")
BANNED_TAGS = {"raises-exception", "nbval-raises-exception", "nbval-skip", "skip-execution"}
MACHINE_PATH = r"(?<![\w.])/(?:home|root|Users|usr|opt|var|tmp|mnt)/|\b[A-Za-z]:\\\w"
BANNED_CODE = {
    r"#\s*(NBVAL|PYTEST_VALIDATE)_": "a mark for nbval",
    r"://": "a URL",
    r"download=True": "a download",
    r"\bwarnings\b": "warnings: mend their cause",
    r"\bipywidgets\b": "ipywidgets: sliders come from explore()",
    r"\.cuda\(|torch\.device\(|['\"](cuda|mps)(:\d+)?['\"]": "a device: take run.device",
    MACHINE_PATH + r"|['\"](/\w|~[/\\])|\.home\(\)|expanduser": "a path of one machine",
}
TRAINING = {"fit", "run_grid", "retrain_classifier", "run_incremental"}
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.DOTALL)


def read(path):
    return nbformat.v4.reads(path.read_text(encoding="utf-8"))


def tags(cell):
    return cell.metadata.get("tags", [])


def tagged(nb, tag):
    return [cell for cell in nb.cells if tag in tags(cell)]


def code_cells(nb):
    """[(place in the notebook, cell)] of the code cells that are not empty."""
    return [(i, cell) for i, cell in enumerate(nb.cells, 1) if cell.cell_type == "code" and cell.source.strip()]


def prose(nb):
    """The Markdown without code blocks."""
    return "\n\n".join(FENCE.sub("", cell.source) for cell in nb.cells if cell.cell_type == "markdown")


def headings(nb, level):
    return re.findall(rf"^#{{{level}}} +(?:\d[\d.]* +)?(.*?) *$", prose(nb), re.MULTILINE)


def tree(cell):
    """The syntax tree. SyntaxError: the cell is not plain Python, but a magic or a shell command."""
    return compile(cell.source, f"cell {cell.id}", "exec", ast.PyCF_ONLY_AST)


def called(node):
    """The name of what a call calls: `fit` for both `fit(...)` and `training.fit(...)`; None for anything else."""
    function = getattr(node, "func", None) if isinstance(node, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", None))


def calls(node):
    return {called(inner) for inner in ast.walk(node)} - {None}


def count_words(nb):
    """Words on the page: what is folded (hints, solutions, answers), tags and link targets do not count; a formula in
    a line is one word, others are none."""
    text = re.sub(r"(?s)</?[a-zA-Z][^>]*>|\$\$.*?\$\$|\]\([^)]*\)", " ", DETAILS.sub(" ", prose(nb)))
    return sum(any(map(str.isalnum, word)) for word in re.sub(r"\$[^$\n]+\$", "x", text).split())


def pictures(cell):
    """The outputs that are pictures."""
    return [o for o in cell.get("outputs", []) if any(kind.startswith("image/") for kind in o.get("data", {}))]


def is_folded(cell):
    """Whether the reader sees what the cell shows and opens its code with a click: plots, tables, guards."""
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


# ---- the gates: (notebook, number, exercises) -> complaints --------------------------------------------------------


def _outline(nb, number, exercises):
    titles, sections, lesson = headings(nb, 1), headings(nb, 2), number != "00"
    if len(titles) != 1 or not nb.cells[0].source.startswith("# "):
        yield f"one H1 is wanted, in the first cell; there are {len(titles)}"
    elif lesson and not titles[0].endswith("?"):
        yield "the title is not a question"
    wanted = SECTIONS if lesson else ["Setup"]
    found = [section for text in sections for section in wanted if text.startswith(section)]
    if list(dict.fromkeys(found)) != wanted:
        yield f"the sections are {', '.join(sections)}; wanted, in this order: {', '.join(wanted)}"
    quiz = re.search(r"^## +Check yourself.*?(?=^## |\Z)", prose(nb), re.MULTILINE | re.DOTALL)
    if quiz and len(DETAILS.findall(quiz[0])) != 5:
        yield f"{len(DETAILS.findall(quiz[0]))} questions with an answer to unfold, 5 are wanted"
    if not any(re.search(r"^guess\w* = None\b", cell.source, re.MULTILINE) for cell in tagged(nb, "predict")):
        yield "no cell tagged predict with guess = None"
    if lesson and not 1200 <= count_words(nb) <= MOST_WORDS:
        yield f"{count_words(nb)} words, 1200 to {MOST_WORDS} are wanted"
    if len(nb.cells) > MOST_CELLS:
        yield f"{len(nb.cells)} cells, at most {MOST_CELLS} are wanted"


def _outputs(nb, number, exercises):
    counts = [cell.execution_count for _, cell in code_cells(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are not 1 to {len(counts)}: run it anew from top to bottom"
    strict = [cell for _, cell in code_cells(nb) if "nbval-ignore-output" not in tags(cell)]
    if sum(any(o.get("text") for o in cell.outputs) for cell in strict) < 3:
        yield "nbval compares the text of fewer than 3 cells"
    if nb.metadata.get("kernelspec", {}).get("name") != "python3" or "widgets" in nb.metadata:
        yield "the kernel is not python3, or the state of the sliders is stored"
    if (size := len(json.dumps(nb, ensure_ascii=False).encode())) > 1.5e6:
        yield f"{size / 1e6:.1f} MB, at most 1.5 is wanted"
    for i, cell in code_cells(nb):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"cell {i} shows an error, a warning or a progress bar"
            texts = [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
            texts = [re.sub(r"base64,[\w+/=]+", "", text) for text in texts]
            if re.search(MACHINE_PATH, " ".join([output.get("text", ""), *texts])):
                yield f"cell {i} shows a path of one machine"
            plain = output.get("text", output.get("data", {}).get("text/plain", "")).splitlines()
            wide = [] if plain[:1] and plain[0].startswith("Figure: ") else plain
            if (widest := max(map(len, wide), default=0)) > WIDEST:
                yield f"cell {i} prints a line of {widest} characters, at most {WIDEST} are wanted"
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                yield f"cell {i} keeps a slider that no kernel answers: python course.py run {number}"
        if not all(str(m.get("alt", "")).strip() for o in pictures(cell) for m in [*o.metadata.values()] or [{}]):
            yield f"cell {i}: a picture without alt text"
    if re.search(r"!\[\s*\]\(|<img(?![^>]*\balt=\"[^\"]+\")", prose(nb)):
        yield "an image in the text without alt text"


def _code(nb, number, exercises):
    (_, setup), folded = code_cells(nb)[0], {"machinery", "claims"}
    if not {"setup", "nbval-ignore-output"} <= set(tags(setup)) or len(setup.source.splitlines()) > 12:
        yield "the first code cell is not tagged setup and nbval-ignore-output, or has more than 12 lines"
    if not ast.unparse(tree(setup).body[-1]).startswith(f"run = start('{number}'"):
        yield f'the setup does not end in run = start("{number}")'
    for i, cell in code_cells(nb):
        yield from (f"cell {i} has {what}" for bad, what in BANNED_CODE.items() if re.search(bad, cell.source))
        yield from (f"cell {i} is tagged {tag}" for tag in BANNED_TAGS & set(tags(cell)))
        if is_folded(cell) != bool(folded & set(tags(cell))):
            yield f"cell {i}: the tag machinery or claims and a folded source belong together"
        if not is_folded(cell):
            if cell is not setup and len(cell.source.splitlines()) > MOST_LINES:
                yield f"cell {i}: {len(cell.source.splitlines())} lines of code, at most {MOST_LINES} are wanted"
            if any(isinstance(node, ast.Assert) for node in ast.walk(tree(cell))):
                yield f"cell {i}: an assert that the reader sees; claims belong in a folded cell"


def _widgets(nb, number, exercises):
    widgets = [(i, cell) for i, cell in code_cells(nb) if "explore" in calls(tree(cell))]
    if not widgets:
        yield "no widget"
    for i, cell in widgets:
        if "widget" not in tags(cell) or not pictures(cell):
            yield f"cell {i}: not tagged widget, or its first position is not stored as a picture"


def _training(nb, number, exercises):
    trainers, trains, asserts, grids, values = set(TRAINING), {}, [], [], {}
    for i, cell in code_cells(nb):
        for node in tree(cell).body:
            if isinstance(node, ast.FunctionDef):  # defining a function that trains is not training yet
                trainers |= {node.name} if calls(node) & trainers else set()
            elif calls(node) & trainers:
                trains[i] = cell
            if isinstance(node, ast.Assign):
                values |= {ast.unparse(target): ast.unparse(node.value) for target in node.targets}
            asserts += [i for inner in ast.walk(node) if isinstance(inner, ast.Assert)]
            grids += [c for c in ast.walk(node) if called(c) == "run_grid"]
    for i, cell in trains.items():
        if "nbval-ignore-output" not in tags(cell) or not any(j >= i for j in asserts):
            yield f"cell {i} trains: it is not tagged nbval-ignore-output, or nothing is asserted in or after it"
    seeds = " ".join(ast.unparse(k.value) for grid in grids for k in grid.keywords if k.arg == "seed")
    seeds += " ".join(value for name, value in values.items() if name in seeds)
    if grids and not any(int(n) >= 3 for n in re.findall(r"range\((\d+)\)", seeds)):
        yield "no run_grid with seed=range(3) or more"


def _exercises(nb, number, exercises):
    found = {m[1] for cell in nb.cells for tag in tags(cell) if (m := re.fullmatch(r"[a-z]+-(\d+\.\d+)", tag))}
    if found != set(exercises) or len(found) < (1 if number == "00" else 3):
        yield f"exercises are {sorted(found)}, those in course_utils.classroom.exercises {sorted(exercises)}"
    for n in sorted(found & set(exercises)):
        name, cells = (
            exercises[n].solution.__name__,
            [tagged(nb, f"{k}-{n}") for k in ("exercise", "check", "solution")],
        )
        if [len(some) for some in cells] != [1, 1, 1]:
            yield f"exercise {n}: one cell each is wanted, tagged exercise-{n}, check-{n}, solution-{n}"
            continue
        (stub,), (check,), (solution,) = cells
        last = tree(stub).body[-1]
        if getattr(last, "name", "") != name or not ast.unparse(last).endswith("raise Todo"):
            yield f"exercise {n}: no stub {name}() that ends in raise Todo"
        if f'check("{n}", {name})' not in check.source:
            yield f'exercise {n}: no check("{n}", {name})'
        summaries = [summary for summary, text in DETAILS.findall(solution.source) if text.strip()]
        if sum(s.startswith("Hint") for s in summaries) < 2 or "Solution" not in summaries:
            yield f"exercise {n}: two hints and a solution to unfold are wanted"


def _shapes(root, least=14):
    """Expressions of at least so many nodes, whatever their names: what a reader could copy."""
    found = set()
    for node in ast.walk(root):
        if isinstance(node, ast.expr) and sum(1 for _ in ast.walk(node)) >= least:
            wiped = copy.deepcopy(node)
            for name in ast.walk(wiped):
                if isinstance(name, ast.Name):
                    name.id = "_"
            found.add(ast.dump(wiped))
    return found


def _spoiled(nb, number, exercises):
    """An exercise stands before any cell shows its answer."""
    for n, exercise in exercises.items():
        answer = _shapes(ast.parse(inspect.getsource(exercise.solution)))
        for i, cell in code_cells(nb):
            if f"exercise-{n}" in tags(cell):
                break
            if answer & _shapes(tree(cell)):
                yield f"cell {i} shows the answer of exercise {n} before it"


def _answers(nb, number, exercises):
    """The experiments have the same numbers whatever the reader wrote, except through yours()."""
    mine = {name for cell in nb.cells for t in tags(cell) if t.startswith("exercise-") for name in names_in(cell)[0]}
    for i, cell in code_cells(nb):
        if any(t.startswith(("exercise-", "check-")) for t in tags(cell)):
            continue
        root, (defined, reads) = tree(cell), names_in(cell)
        handed_on = {id(a) for n in ast.walk(root) if called(n) == "yours" for a in n.args}
        loaded = [n for n in ast.walk(root) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
        used = {n.id for n in loaded if id(n) not in handed_on}
        for name in sorted(used & (reads | defined) & mine):
            yield f"cell {i} uses {name}, a reader's answer: hand it on with yours()"
        mine -= defined


GATES = (_outline, _outputs, _code, _widgets, _training, _exercises, _spoiled, _answers)


def problems_of(nb, path):
    """Complaints about the notebook of `path` as it is stored."""
    return [complaint for gate in GATES for complaint in gate(nb, path.name[:2], exercises_of(path))]


# ---- the exercises with their solutions, in the cells they need ----------------------------------------------------


def solved(nb, exercises):
    """A copy with each stub replaced by the solution; both are functions of the same name."""
    nb = copy.deepcopy(nb)
    for number, exercise in exercises.items():
        (cell,) = tagged(nb, f"exercise-{number}")
        cell.source = inspect.getsource(exercise.solution)
    return nb


def names_in(cell):
    """(names that the cell defines for later cells, names that it takes from earlier ones)."""
    tables = [symtable.symtable(cell.source, "cell", "exec")]
    defined = {s.get_name() for s in tables[0].get_symbols() if s.is_assigned() or s.is_imported()}
    reads = {s.get_name() for s in tables[0].get_symbols() if s.is_referenced()}
    for table in tables:  # grows: what functions read
        tables += table.get_children()
        reads |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return defined, reads - defined


def needed(nb):
    """The exercises, their checks, what hands them on with yours(), and the earlier cells that define what these read;
    in order."""
    chosen, wanted = [], set()
    for _, cell in reversed(code_cells(nb)):
        handed_on = [ast.unparse(node) for node in tree(cell).body if "yours" in calls(node)]
        if handed_on:  # without the rest, which may need what was trained
            cell.source = "\n".join(handed_on)
        defined, reads = names_in(cell)
        mine = any(tag.startswith(("exercise-", "check-")) for tag in tags(cell))
        if mine or handed_on or defined & wanted:
            chosen.insert(0, cell)
            wanted = wanted - defined | reads
    return chosen


def run_exercises(nb, folder):
    """Run what the exercises need, here; return what the cells printed. What a cell raises is raised."""
    said, names, before = io.StringIO(), {"__name__": "notebook"}, os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(said), torch.random.fork_rng(devices=[]):
            trainers = set(TRAINING)
            for cell in needed(copy.deepcopy(nb)):
                for node in tree(cell).body:
                    trains = calls(node) & trainers
                    if isinstance(node, ast.FunctionDef):  # defining a function that trains is not training yet
                        trainers |= {node.name} if trains else set()
                    else:
                        assert not trains, f"an exercise needs a cell that calls {trains}: {cell.source}"
                exec(compile(cell.source, cell.id, "exec"), names)
    finally:
        os.chdir(before)
    return said.getvalue()
