"""For all tests, notebooks too: no network, the checked-out package, and a closing table of times."""

import importlib.util
import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
GUARD = ROOT / "tests" / "network_guard"
BUDGETS = {"00": 20, "03": 120, "07": 120}
BUDGET = 90


def pytest_configure(config):
    """Before nbval starts a kernel: processes started from here inherit the guard, and this process has it too."""
    paths = [str(GUARD), str(ROOT)]
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths + others)
    os.environ.pop("COURSE_REQUIRE_SOLUTIONS", None)  # the tests set it where it is wanted
    if not hasattr(config, "workerinput"):  # every slider position is drawn while nbval runs a notebook
        handle, os.environ["COURSE_SWEEP_WIDGETS"] = tempfile.mkstemp(prefix="sweeps-")
        os.close(handle)
    config.option.loadscopereorder = False  # xdist: files come in our order, not those with most tests first
    os.environ["COURSE_QUIET"] = "1"  # no progress bars among what nbval compares
    spec = importlib.util.spec_from_file_location("network_guard", GUARD / "sitecustomize.py")
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    guard.install()


LONGEST_FIRST = ("03", "05", "09", "06", "02", "04", "07", "01")  # so that two processes end together


def pytest_collection_modifyitems(items):
    """Notebooks come first, long ones before; `--dist=loadfile` keeps each in one process.

    (`--dist=loadgroup` of xdist 3.8 keeps nothing together beside pytest 9.2: it writes a group into an attribute that
    pytest no longer reads.)
    """

    def place(item):
        number = item.path.stem[:2] if item.path.suffix == ".ipynb" else None
        return LONGEST_FIRST.index(number) if number in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)  # stable


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item):
    """Side by side with others a notebook trains in its own process: starting more would only cost time."""
    with pytest.MonkeyPatch.context() as patch:
        if item.path.suffix == ".ipynb" and int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
            patch.setenv("COURSE_JOBS", "1")  # for the kernel, which nbval starts in the setup of the first cell
        return (yield)


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        Path(os.environ["COURSE_SWEEP_WIDGETS"]).unlink(missing_ok=True)


@pytest.fixture
def one_thread():
    """Sums in the same order everywhere."""
    import torch  # here: not every test needs it

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reports_of(terminalreporter):
    return [r for group in terminalreporter.stats.values() for r in group if isinstance(r, pytest.TestReport)]


def notebook_seconds(reports):
    """{"01_x": seconds} of the notebooks that this session ran."""
    seconds = {}
    for report in reports:
        file = Path(report.nodeid.partition("::")[0])
        if file.suffix == ".ipynb":
            seconds[file.stem] = seconds.get(file.stem, 0) + report.duration
    return seconds


def pytest_terminal_summary(terminalreporter):
    """Tests hand over numbers with `record_property`; nothing here can fail a test."""
    write = terminalreporter.write_line
    reports = reports_of(terminalreporter)
    seconds = notebook_seconds(reports)
    if seconds:
        together = terminalreporter.config.getoption("numprocesses", None)  # then times say little
        beside = f", {together} processes side by side: longer than alone" if together else ""
        terminalreporter.section(f"seconds a notebook{beside}")
        write(f"{'notebook':45}{'budget':>8}{'as shipped, every slider position':>36}")
    for name, value in sorted(seconds.items()):
        budget = BUDGETS.get(name[:2], BUDGET)
        late = "  over budget" if value > budget and not together else ""
        write(f"{name:45}{budget:8}{value:36.1f}{late}")
    sweeps = Path(os.environ["COURSE_SWEEP_WIDGETS"])
    if sweeps.is_file() and (drawn := [int(line) for line in sweeps.read_text(encoding="utf-8").split()]):
        write(f"{sum(drawn)} slider positions of {len(drawn)} widgets drawn")
    notes = [value for r in reports if r.when == "call" for name, value in r.user_properties if name == "note"]
    if notes:
        terminalreporter.section("measured")
    for note in notes:
        write(note)
