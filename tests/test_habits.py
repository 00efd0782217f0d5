"""What a stranger expects of a project: one form, checked types, links that lead somewhere, commands that exist."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from packaging.requirements import Requirement
from test_course_py import load

ROOT = Path(__file__).resolve().parents[1]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "data").rglob("*.md"), *GITHUB.rglob("*.md")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CODE = [ROOT / "course.py", *(ROOT / "course_utils").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]


def read(path):
    return path.read_text(encoding="utf-8")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


# --- one form, and types ---


def tool(*command, judged_with):
    """Run it; skipped with other versions than those of constraints.txt, because each release finds other faults."""
    for name in judged_with:
        (pinned,) = [p for p in PINS if p.name == name and (p.marker is None or p.marker.evaluate())]
        try:
            here = version(name)
        except PackageNotFoundError:
            here = "missing"
        if not pinned.specifier.contains(here):
            pytest.skip(f"{name} is {here} here; judged with {pinned}")
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", errors="replace"
    )
    assert done.returncode == 0, f"python -m {' '.join(command)}\n{done.stdout[-5000:]}{done.stderr[-2000:]}"


def test_every_file_has_the_form_that_ruff_gives():
    tool("ruff", "format", "--check", "--no-cache", ".", judged_with=["ruff"])


def test_ruff_finds_no_fault():
    tool("ruff", "check", "--no-cache", ".", judged_with=["ruff"])


def test_nothing_is_kept_from_the_form():
    files = [f for folder in ("course_utils", "tests", "data", "benchmarks") for f in (ROOT / folder).rglob("*.py")]
    for file in [*files, ROOT / "course.py", *NOTEBOOKS]:
        assert not re.search(r"#\s*" + "fmt:", read(file)), name_of(file)
    assert "line-length = 120" in read(ROOT / "pyproject.toml")


def test_the_types_of_the_package_fit():
    tool("ty", "check", "--no-progress", "--python", sys.prefix, "course_utils", judged_with=["ty", "torch", "numpy"])


# --- commands that are named exist ---


def commands_in(text):
    """[(line, words after `python`)] of every command that a text names."""
    return [(m[0], m[1].split()) for m in re.finditer(r"python ((?:course\.py|-m) [^`#&\n]+)", text)]


def check_command(line, words):
    if words[0] == "course.py":
        assert words[1] in load(ROOT).COMMANDS, line
        return
    module = words[1].rstrip(".,;:)")
    found = importlib.util.find_spec(module)  # tools of the set-up (pip, uv) need not be here
    assert found is not None or module in ("uv", "pip", "venv"), line
    if found is None:
        return
    if found.submodule_search_locations:
        assert importlib.util.find_spec(f"{module}.__main__"), f"{line}: {module} cannot be run"
    elif module.startswith("course_utils"):
        assert '__name__ == "__main__"' in read(Path(found.origin)), f"{line}: {module} cannot be run"


@pytest.mark.parametrize("path", [*TEXTS, *WORKFLOWS, ROOT / ".pre-commit-config.yaml"], ids=name_of)
def test_commands_in_texts_exist(path):
    for line, words in commands_in(read(path)):
        check_command(line, words)


@pytest.mark.parametrize(
    "text", ["python course.py lap", "python -m course_utils.build 03", "python -m course_utils.data"]
)
def test_commands_that_do_not_exist_are_found(text):
    ((line, words),) = commands_in(f"run `{text}` now")
    with pytest.raises((AssertionError, ModuleNotFoundError)):
        check_command(line, words)


def steps(workflow):
    return [step for job in yaml.safe_load(read(workflow))["jobs"].values() for step in job["steps"]]


def test_workflows_run_the_tests_on_three_systems_and_on_the_lowest_versions():
    tests = yaml.safe_load(read(GITHUB / "workflows" / "tests.yml"))
    assert {name.split("-")[0] for name in tests["jobs"]["newest"]["strategy"]["matrix"]["os"]} == {
        "ubuntu",
        "macos",
        "windows",
    }
    lowest = json.dumps(tests["jobs"]["lowest"])
    oldest = ".".join(map(str, load(ROOT).OLDEST_PYTHON))
    assert "lowest-direct" in lowest and json.dumps(oldest) in lowest
    assert "-c constraints.txt" not in read(GITHUB / "workflows" / "weekly.yml")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name_of)
def test_workflows_start_what_exists_and_may_only_read(workflow):
    content = yaml.safe_load(read(workflow))
    assert content["permissions"] == {"contents": "read"}
    assert all("timeout-minutes" in job for job in content["jobs"].values())
    for step in steps(workflow):
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
        else:
            program = step["run"].split()[0]
            assert program in ("python", "uv") or program.startswith("~/"), step["run"]


def test_forms_for_issues_ask_something():
    forms = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for form in forms:
        content = yaml.safe_load(read(form))
        assert content["name"] and content["description"] and all(f["attributes"]["label"] for f in content["body"])


# --- links ---


def anchor(heading):
    """As GitHub makes it: lower case, no punctuation, hyphens for blanks."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|[`*]", lambda m: m[1] or "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def markdown_of(path):
    if path.suffix != ".ipynb":
        return read(path)
    return "\n\n".join("".join(c["source"]) for c in json.loads(read(path))["cells"] if c["cell_type"] == "markdown")


def without_code(text):
    """Fenced blocks are left out; a heading or a link in one is neither."""
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(path):
    text, found = without_code(markdown_of(path)), set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*$", text, re.MULTILINE):
        name, number = anchor(heading), 1
        while name in found:
            name, number = f"{anchor(heading)}-{number}", number + 1
        found.add(name)
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def links_of(text):
    text = re.sub(r"`[^`\n]*`", "", without_code(text))
    return re.findall(r'\]\(([^)\s]+)(?: "[^"]*")?\)', text) + re.findall(r'(?:href|src)="([^"]+)"', text)


def problem_of(link, source):
    """What is wrong with a link that stands in the file `source`, or None. Nothing is fetched."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        good = parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc)
        return None if good and not re.search(r"[<>{}|\\^]|[.,;]$", link) else "no address of the form https://host/..."
    target = (source.parent / unquote(parts.path)).resolve() if parts.path else source
    if not target.is_relative_to(ROOT) or not target.exists():
        return "no such file"
    if parts.fragment and unquote(parts.fragment) not in anchors_of(target):
        return "no such heading"
    return None


@pytest.mark.parametrize("path", [*TEXTS, *NOTEBOOKS], ids=name_of)
def test_links_lead_somewhere(path):
    wrong = [(link, why) for link in links_of(markdown_of(path)) if (why := problem_of(link, path))]
    assert not wrong


@pytest.mark.parametrize(
    "link, wrong",
    [
        ("LICENSE", False),
        ("notebooks/00_start_here.ipynb", False),
        ("CONTRIBUTING.md#what-a-change-must-show", False),
        ("#two-commands", False),
        ("https://pytorch.org", False),
        ("notebooks/99_missing.ipynb", True),
        ("CONTRIBUTING.md#no-such-heading", True),
        ("#no-such-heading", True),
        ("../elsewhere.md", True),
        ("http://pytorch.org", True),
        ("https://pytorch", True),
        ("https://pytorch.org.", True),
    ],
)
def test_the_check_of_links_tells_good_from_wrong(link, wrong):
    assert links_of(f"see [it]({link})") == [link]
    assert (problem_of(link, ROOT / "README.md") is not None) == wrong


# --- tables in CONTRIBUTING and CHANGELOG ---


def test_the_table_of_environment_variables_and_the_code_agree():
    used = {name for file in CODE for name in re.findall(r"COURSE_[A-Z_]+", read(file))}
    table = re.findall(r"^\| `(COURSE_[A-Z_]+)` \|", read(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    assert table == sorted(used)


def names_defined_in(module):
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no {module}"
    found = set()
    for node in ast.parse(read(Path(spec.origin))).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            found.update(n.id for n in names if isinstance(n, ast.Name))
    return found


def test_the_new_addresses_in_the_changelog_are_right():
    newest = read(ROOT / "CHANGELOG.md").split("\n## ")[1]  # older tables tell of older packages
    rows = re.findall(r"^\| `[\w.]+` \| (.+) \|$", newest, re.MULTILINE)
    for row in rows:
        for part in row.split("; "):
            module, *names = re.findall(r"`([\w.]+)`", part)
            lacking = set(names) - names_defined_in(f"course_utils.{module}")
            assert not lacking, f"{module} does not define {', '.join(sorted(lacking))}"


def test_the_changelog_has_the_released_version():
    heads = re.findall(r"^## (.+)$", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert heads[1].startswith(importlib.import_module("course_utils").__version__)
