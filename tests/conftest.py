"""For all tests: no network, the checked-out package, and a closing table of times."""

import importlib.util
import os
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
GUARD = TESTS / "network_guard"
BUDGETS = {"00": 20, "03": 120, "07": 120}
BUDGET = 90


def pytest_configure(config):
    """Before nbval starts a kernel: processes started from here inherit the guard, and this process has it too."""
    paths = [str(GUARD), str(TESTS.parent)]
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths + others)
    for name in ("COURSE_REQUIRE_SOLUTIONS", "COURSE_SWEEP_WIDGETS"):  # the tests set them where they are wanted
        os.environ.pop(name, None)
    os.environ["COURSE_QUIET"] = "1"  # no progress bars among what nbval compares
    spec = importlib.util.spec_from_file_location("network_guard", GUARD / "sitecustomize.py")
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    guard.install()


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
    """{"01_x": [as shipped, solved]} in seconds, None where the session did not run it."""
    seconds = {}
    for report in reports:
        file = Path(report.nodeid.partition("::")[0])
        if file.suffix == ".ipynb":
            row = seconds.setdefault(file.stem, [None, None])
            row[0] = (row[0] or 0) + report.duration
        if report.when == "call":
            for name, value in report.user_properties:
                if name.startswith("solved "):
                    seconds.setdefault(name.removeprefix("solved "), [None, None])[1] = value
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
        write(f"{'notebook':45}{'budget':>8}{'as shipped':>12}{'solved, every slider position':>31}")
    for name, row in sorted(seconds.items()):
        budget = BUDGETS.get(name[:2], BUDGET)
        shipped, solved = ("-" if value is None else f"{value:.1f}" for value in row)
        late = "  over budget" if (row[0] or 0) > budget and not together else ""
        write(f"{name:45}{budget:8}{shipped:>12}{solved:>31}{late}")
    notes = [value for r in reports if r.when == "call" for name, value in r.user_properties if name == "note"]
    if notes:
        terminalreporter.section("measured")
    for note in notes:
        write(note)
