"""course.py: what it decides, what it says and what it starts; nothing is installed here."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv as standard_venv
from collections import namedtuple
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GROUPS = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
Usage = namedtuple("Usage", "total used free")


def load(folder):
    spec = importlib.util.spec_from_file_location("course_under_test", folder / "course.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def course(tmp_path, monkeypatch):
    """course.py, loaded from a copy of the project in a folder with a blank and Korean letters in its name."""
    monkeypatch.delenv("COURSE_VENV", raising=False)
    folder = tmp_path / "내 과정 folder"
    folder.mkdir()
    for name in ("course.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return load(folder)


def make_venv(folder, course=None):
    """A real, empty environment; ready to use if the `course` is given that it shall be ready for."""
    standard_venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    if course:
        course.stamp_file(folder).write_text(course.stamp(folder), encoding="utf-8")
    return folder


def call(folder, *arguments, **variables):
    """Run `python course.py ...` as a reader would, from a folder that is not the project's."""
    environment = {k: v for k, v in os.environ.items() if k not in ("COURSE_VENV", "OMP_NUM_THREADS")}
    environment |= {"PYTHONUTF8": "1", **variables}
    command = [sys.executable, str(folder / "course.py"), *arguments]
    return subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=60
    )


class Programs:
    """Stands in for subprocess.run: notes what would be started, and answers with the exit codes wanted."""

    def __init__(self, course, monkeypatch, codes=None):
        self.commands, self.codes = [], codes or {}
        monkeypatch.setattr(course.subprocess, "run", self)

    def __call__(self, command, **options):
        self.commands.append(command)
        if "-m" in command and "venv" in command:
            make_venv(Path(command[-1]))
        code = next((code for word, code in self.codes.items() if word in command), 0)
        return subprocess.CompletedProcess(command, code, stdout="", stderr="")

    def installing(self):
        return [command for command in self.commands if "install" in command]


@pytest.fixture
def roomy(course, monkeypatch):
    monkeypatch.setattr(course.shutil, "disk_usage", lambda folder: Usage(500e9, 0, 500e9))
    monkeypatch.setattr(course.platform, "machine", lambda: "arm64")


# --- the file itself ---


def test_an_old_python_can_read_the_file_and_it_needs_only_the_standard_library():
    tree = ast.parse((ROOT / "course.py").read_text(encoding="utf-8"), feature_version=(3, 6))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [a.name for n in imports if isinstance(n, ast.Import) for a in n.names]
    names += [node.module for node in imports if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


# --- the state of an environment ---


def test_state_of_nothing_of_something_else_and_of_a_damaged_environment(course, tmp_path):
    folder = tmp_path / "v"
    assert course.state(folder) == "missing"
    folder.mkdir()
    assert course.state(folder) == "missing"
    (folder / "photo.jpg").touch()
    assert course.state(folder) == "broken"
    shutil.rmtree(folder)
    make_venv(folder)
    assert course.state(folder) == "unfinished"
    course.venv_python(folder).unlink()
    assert course.state(folder) == "broken"


def touch_text(path):
    path.write_text(path.read_text(encoding="utf-8") + "# more\n", encoding="utf-8")


@pytest.mark.parametrize("changed", ["nothing", "pyproject.toml", "constraints.txt", "python", "folder"])
def test_the_stamp_is_good_until_something_that_matters_changes(course, tmp_path, changed):
    folder = make_venv(tmp_path / "v", course)
    assert course.state(folder) == "ready"
    if changed.endswith((".toml", ".txt")):
        touch_text(course.ROOT / changed)
    elif changed == "python":
        config = (folder / "pyvenv.cfg").read_text(encoding="utf-8")
        lines = [line for line in config.splitlines() if not line.startswith("version")]
        (folder / "pyvenv.cfg").write_text("\n".join([*lines, "version = 3.99.0"]), encoding="utf-8")
    elif changed == "folder":
        course = load(course.ROOT.rename(tmp_path / "moved"))
    assert course.state(folder) == ("ready" if changed == "nothing" else "unfinished")


def test_uv_writes_the_python_version_under_another_name(course, tmp_path):
    folder = make_venv(tmp_path / "v", course)
    config = folder / "pyvenv.cfg"
    config.write_text(config.read_text(encoding="utf-8").replace("version =", "version_info ="), encoding="utf-8")
    assert course.state(folder) == "ready"


def test_a_ready_environment_starts_no_program(course, monkeypatch, capsys):
    folder = make_venv(course.ROOT / ".venv", course)
    programs = Programs(course, monkeypatch)
    assert course.prepare() == folder
    assert programs.commands == [] and capsys.readouterr().out == ""


# --- installing ---


@pytest.mark.parametrize("uv", [[], ["uv"]])
def test_first_installation_is_announced_in_one_line_and_stamped(course, roomy, monkeypatch, capsys, uv):
    monkeypatch.setattr(course, "find_uv", lambda: uv)
    programs = Programs(course, monkeypatch)
    folder = course.prepare()
    said = capsys.readouterr().out.splitlines()
    assert folder == course.ROOT / ".venv" and course.state(folder) == "ready"
    assert len(said) == 1 and str(folder) in said[0] and f"{course.INSTALLED_GB} GB" in said[0]
    (command,) = programs.installing()
    assert command[-4:] == ["-e", ".[test,site]", "-c", "constraints.txt"]
    assert command[: len(uv) or 1] == (uv or [str(course.venv_python(folder))])
    assert str(course.venv_python(folder)) in command


def test_where_uv_fails_pip_is_tried(course, roomy, monkeypatch):
    monkeypatch.setattr(course, "find_uv", lambda: ["uv"])
    programs = Programs(course, monkeypatch, codes={"uv": 1})
    folder = course.prepare()
    assert [command[0] for command in programs.installing()] == ["uv", str(course.venv_python(folder))]
    assert course.state(folder) == "ready"


def test_a_failed_installation_leaves_no_stamp_and_the_next_call_continues_it(course, roomy, monkeypatch, capsys):
    monkeypatch.setattr(course, "find_uv", lambda: [])
    Programs(course, monkeypatch, codes={"install": 1})
    assert course.main(["lab"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert course.state(course.venv_folder()) == "unfinished"
    again = Programs(course, monkeypatch)
    course.prepare()
    assert course.state(course.venv_folder()) == "ready"
    assert not any("venv" in command for command in again.commands) and len(again.installing()) == 1


def test_an_unusable_uv_is_not_used(course, monkeypatch):
    monkeypatch.setattr(course.shutil, "which", lambda name: "/somewhere/uv")
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None)
    Programs(course, monkeypatch, codes={"--version": 127})
    assert course.find_uv() == []


# --- an environment that somebody else made ---


@pytest.fixture
def elsewhere(course, monkeypatch, tmp_path):
    """The running Python has the course, from this copy of the project, and what it needs; change what it returns."""
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.setattr(course.sys, "path", [str(course.ROOT), str(site)])
    monkeypatch.setattr(course.sys, "prefix", str(tmp_path / "conda env"))
    needed = {**course.required("dependencies"), **course.required("test"), **course.required("site")}

    def install(**versions):
        for name, version in {"longtail_course": "0.1.0", **needed, **versions}.items():
            folder = site / f"{name.replace('-', '_')}-1.dist-info"
            shutil.rmtree(folder, ignore_errors=True)
            if version:
                folder.mkdir()
                (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n", encoding="utf-8")
        source = json.dumps({"url": course.ROOT.as_uri(), "dir_info": {"editable": True}})
        (site / "longtail_course-1.dist-info" / "direct_url.json").write_text(source, encoding="utf-8")
        return site

    return install


def test_lower_bounds_read_by_hand_are_those_of_the_file(course):
    for group in ("dependencies", "test", "site"):
        assert course.required(group) == dict(text.split(">=") for text in GROUPS[group])


def test_an_environment_that_has_everything_is_used_as_it_is(course, elsewhere, monkeypatch, tmp_path):
    elsewhere(torch="2.10.0+cpu", pytest="9.0rc1")
    programs = Programs(course, monkeypatch)
    assert course.prepare("test") == tmp_path / "conda env" and programs.commands == []
    assert course.venv_python(course.prepare()) == Path(sys.executable)
    monkeypatch.setenv("COURSE_VENV", str(tmp_path / "own"))
    assert not course.installed_here(), "COURSE_VENV comes first"
    monkeypatch.delenv("COURSE_VENV")
    monkeypatch.setattr(course.sys, "prefix", str(course.ROOT / ".venv"))
    assert not course.installed_here(), "our own environment is kept up to date by us"


def test_lab_changes_no_settings_of_an_environment_that_is_not_ours(course, elsewhere, monkeypatch, tmp_path):
    elsewhere()
    started = []
    monkeypatch.setattr(course, "hand_over", lambda command, variables: started.append(command))
    assert course.lab(["--no-browser"]) is None
    assert started[0][:3] == [sys.executable, "-m", "jupyterlab"] and not (tmp_path / "conda env").exists()


@pytest.mark.parametrize(
    "lacks, said",
    [({"torch": "2.3.1"}, "torch>=2.4"), ({"nbval": None}, "nbval>=0.11"), ({"furo": None}, "furo>=2024.8.6")],
)
def test_an_environment_that_lacks_something_is_told_in_one_line(course, elsewhere, capsys, lacks, said):
    elsewhere(**lacks)
    told = problem(course, capsys, "test")
    assert f"but not {said}:" in told and 'pip install -e ".[test,site]"' in told and "COURSE_VENV" in told
    if "torch" not in lacks:
        assert course.installed_here(), "the course itself can be read without what its tests need"


def test_a_python_with_torch_but_without_the_course_or_with_another_copy_is_left_alone(course, elsewhere, tmp_path):
    site = elsewhere()
    (site / "longtail_course-1.dist-info" / "direct_url.json").write_text(
        json.dumps({"url": tmp_path.as_uri()}), encoding="utf-8"
    )
    assert not course.installed_here()
    (site / "longtail_course-1.dist-info" / "direct_url.json").unlink()
    assert not course.installed_here()
    shutil.rmtree(site / "longtail_course-1.dist-info")
    (course.ROOT / "longtail_course.egg-info").mkdir()
    assert not course.installed_here(), "the project's own .egg-info says nothing about this Python"


# --- problems: one line, exit code 2 ---


def problem(course, capsys, *arguments):
    assert course.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("course.py: ")
    return captured.err


def test_unknown_command_in_a_real_call(course):
    done = call(course.ROOT, "lap")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "course.py: unknown command 'lap': there are lab, test, run, site, slides, check\n"


def test_a_narrow_output_encoding_is_no_problem(course):
    (course.ROOT / ".venv").mkdir()
    (course.ROOT / ".venv" / "mine.txt").touch()
    done = call(course.ROOT, "lab", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "?? folder" in done.stderr and done.stderr.count("\n") == 1


def test_help_names_every_command(course):
    done = call(course.ROOT)
    assert done.returncode == 0 and all(f"course.py {name} " in done.stdout for name in course.COMMANDS)


def test_old_python(course, monkeypatch, capsys):
    monkeypatch.setattr(course, "OLDEST_PYTHON", (99, 0))
    assert "or newer is needed, this is 3." in problem(course, capsys, "lab")


def test_no_space(course, monkeypatch, capsys):
    monkeypatch.setattr(course.shutil, "disk_usage", lambda folder: Usage(9e9, 8e9, 1e9))
    said = problem(course, capsys, "test")
    assert "1.0 GB are free" in said and "COURSE_VENV" in said and not course.venv_folder().exists()


def test_broken_environment_is_named_and_left_alone(course, capsys):
    folder = course.ROOT / ".venv"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    said = problem(course, capsys, "lab")
    assert str(folder) in said and "delete that folder" in said
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_environment_whose_python_does_not_start(course, capsys):
    folder = make_venv(course.ROOT / ".venv")
    course.venv_python(folder).unlink()
    course.venv_python(folder).write_text("not a program", encoding="utf-8")
    assert "not a working Python environment" in problem(course, capsys, "lab")


def test_python_without_ensurepip(course, roomy, monkeypatch, capsys):
    monkeypatch.setattr(course, "find_uv", lambda: [])
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else object())
    assert course.main(["lab"]) == 2
    assert "python3-venv" in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(course, monkeypatch, capsys):
    def interrupted(extra):
        raise KeyboardInterrupt

    monkeypatch.setitem(course.COMMANDS, "lab", interrupted)
    assert course.main(["lab"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


# --- what is started ---


def test_paths_inside_an_environment(course, monkeypatch, tmp_path):
    monkeypatch.setattr(course, "WINDOWS", False)
    assert course.venv_python(tmp_path) == tmp_path / "bin" / "python"
    assert "PYTHONUTF8" not in {k: v for k, v in course.environment(tmp_path).items() if k not in os.environ}
    monkeypatch.setattr(course, "WINDOWS", True)
    assert course.venv_python(tmp_path) == tmp_path / "Scripts" / "python.exe"
    assert course.environment(tmp_path)["PYTHONUTF8"] == "1"
    assert course.environment(tmp_path)["PATH"].split(os.pathsep)[0] == str(tmp_path / "Scripts")


def test_on_windows_the_program_is_a_child_and_its_exit_code_ours(course, monkeypatch):
    monkeypatch.setattr(course, "WINDOWS", True)
    monkeypatch.chdir(course.ROOT)
    assert course.hand_over([sys.executable, "-c", "raise SystemExit(5)"], dict(os.environ)) == 5


def test_course_venv_names_the_folder(course, monkeypatch, tmp_path):
    assert course.venv_folder() == course.ROOT / ".venv"
    monkeypatch.setenv("COURSE_VENV", "other")
    monkeypatch.chdir(tmp_path)
    assert course.venv_folder() == tmp_path / "other"


# A stand-in for pytest, JupyterLab or our builder: `python -m NAME` finds it in the project folder first.
REPORT = """
import os, sys
print(os.getcwd(), sys.prefix, os.environ.get("OMP_NUM_THREADS"), *sys.argv[1:], sep="\\n")
raise SystemExit(7)
"""


CLASSROOM = [(command, f"course_utils/classroom/{command}.py") for command in ("site", "slides")]


@pytest.mark.parametrize(
    "command, module", [("test", "pytest.py"), ("run", "course_utils/classroom/notebooks.py"), *CLASSROOM]
)
def test_commands_use_the_environment_and_pass_the_exit_code(course, tmp_path, command, module):
    folder = make_venv(tmp_path / "환경 v", course)
    for package in ("course_utils", "course_utils/classroom"):
        (course.ROOT / package).mkdir()
        (course.ROOT / package / "__init__.py").touch()
    (course.ROOT / module).write_text(REPORT, encoding="utf-8")
    done = call(course.ROOT, command, "-k", "a b", COURSE_VENV=str(folder))
    assert done.returncode == 7, done.stderr
    where, prefix, threads, *arguments = done.stdout.splitlines()
    assert (where, prefix, threads) == (str(course.ROOT), str(folder), "1")
    assert arguments[-2:] == ["-k", "a b"] and ("--dist=loadfile" in arguments) == (command == "test")


def test_lab_opens_the_first_notebook_in_the_project_folder_without_news(course):
    folder = make_venv(course.ROOT / ".venv", course)
    (course.ROOT / "jupyterlab.py").write_text(REPORT, encoding="utf-8")
    done = call(course.ROOT, "lab", "--no-browser")
    assert done.returncode == 7, done.stderr
    where, prefix, _, *options = done.stdout.splitlines()
    assert (where, prefix) == (str(course.ROOT), str(folder))
    assert options[0] == f"--ServerApp.root_dir={course.ROOT}" and options[1].endswith("00_start_here.ipynb")
    assert ("--allow-root" in options) == (hasattr(os, "getuid") and os.getuid() == 0)
    assert options[-1] == "--no-browser"
    settings = folder / "share/jupyter/lab/settings/overrides.json"
    assert '"fetchNews": "false"' in settings.read_text(encoding="utf-8")
    settings.write_text("{}", encoding="utf-8")
    call(course.ROOT, "lab")
    assert settings.read_text(encoding="utf-8") == "{}", "a reader's own settings are kept"


def test_check_works_before_anything_is_installed(course):
    done = call(course.ROOT, "check")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert list(lines) == ["Python", "machine", "disk", "packages", "browser", "fonts", "data"]
    assert "not installed yet" in lines["packages"] and "letters of the course are missing" in lines["data"]
    assert not (course.ROOT / ".venv").exists()


def test_check_says_what_is_wrong_with_torch_and_finds_data(course, tmp_path):
    make_venv(course.ROOT / ".venv", course)
    (tmp_path / "sets" / "cifar-10-batches-py").mkdir(parents=True)
    (course.ROOT / "data").mkdir()
    (course.ROOT / "data" / "letters.npz").touch()
    done = call(course.ROOT, "check", COURSE_DATA=str(tmp_path / "sets"))
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert "No module named 'torch'" in lines["packages"]
    assert str(tmp_path / "sets" / "cifar-10-batches-py") in lines["data"] and "missing" not in lines["data"]
