"""experiments.py: a grid of runs in parallel processes that can be stopped and taken up again."""

import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from course_utils.experiments.grid import run_grid
from course_utils.metrics import mean_and_spread

ROOT = Path(__file__).resolve().parents[1]
JOBS = pytest.mark.parametrize("jobs", [1, 2])


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("COURSE_QUIET", "1")
    monkeypatch.delenv("COURSE_JOBS", raising=False)


def logged(log):
    return log.read_text().split() if log.exists() else []


def grid(function, log=None, **options):
    fixed = {} if log is None else {"log": log}
    return run_grid(function, fixed=fixed, **options)


def multiply(a, b, log=None):
    if log is not None:
        with open(log, "a") as file:
            file.write(f"{a}{b} ")
    return {"product": a * b}


@JOBS
def test_rows_come_in_the_order_of_the_grid(jobs):
    def slow_first(name, seed):
        import time

        time.sleep(0.3 if (name, seed) == ("x", 0) else 0)
        return {"text": f"{name}{seed}"}

    rows = grid(slow_first, jobs=jobs, name=["x", "y"], seed=range(3))
    assert rows == [{"name": n, "seed": s, "text": f"{n}{s}"} for n in "xy" for s in range(3)]


def test_parallel_and_serial_agree_on_random_numbers():
    def draw(seed):
        import torch

        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(50, 50, generator=generator)
        return {"value": torch.linalg.matrix_norm(weights, 2).item()}

    serial, parallel = ([row["value"] for row in grid(draw, jobs=jobs, seed=range(4))] for jobs in (1, 2))
    assert serial == pytest.approx(parallel) and len(set(serial)) == 4


def test_a_closure_and_fixed_arguments_reach_the_workers():
    offset = 10

    def cell(seed, data, step):
        return {"value": offset + step * data[seed].item()}

    data = torch.tensor([1.0, 2.0])
    rows = run_grid(cell, fixed={"data": data, "step": 2}, jobs=2, seed=[0, 1])
    assert rows == [{"seed": 0, "value": 12}, {"seed": 1, "value": 14}]


def test_two_processes_of_one_thread_each_share_the_work_and_this_is_one_of_them():
    def cell(seed):
        import os
        import time

        import torch

        time.sleep(0.5)
        return {"threads": torch.get_num_threads(), "process": os.getpid()}

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        grid(cell, jobs=2, seed=range(2))  # afterwards the other process is there
        rows = grid(cell, jobs=2, seed=range(4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert {row["threads"] for row in rows} == {1}
    processes = [row["process"] for row in rows]
    assert len(set(processes)) == 2 and processes.count(os.getpid()) == 2


@JOBS
def test_random_numbers_drawn_later_do_not_depend_on_a_grid(jobs):
    torch.manual_seed(3)
    grid(lambda seed: {"value": torch.manual_seed(seed).initial_seed()}, jobs=jobs, seed=range(3))
    after = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(4))


def test_after_an_error_here_nothing_new_is_started(tmp_path):
    def cell(seed, log, here):
        import os
        import time

        with open(log, "a") as file:
            file.write(f"{seed} ")
        time.sleep(0.3)
        if os.getpid() == here:
            raise LookupError("fails in the first process")
        return {"value": seed}

    log = tmp_path / "log"
    with pytest.raises(LookupError):
        run_grid(cell, fixed={"log": log, "here": os.getpid()}, jobs=2, seed=range(20))
    time.sleep(2)
    assert len(logged(log)) < 10


def test_a_killed_process_is_an_error_and_the_next_grid_works():
    def cell(seed, here, fatal):
        import os
        import signal
        import time

        time.sleep(0.3)
        if fatal and os.getpid() != here:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"value": seed}

    fixed = {"here": os.getpid()}
    with pytest.raises(Exception, match=r"[Tt]erminated"):
        run_grid(cell, fixed=fixed | {"fatal": True}, jobs=2, seed=range(100))
    assert len(run_grid(cell, fixed=fixed | {"fatal": False}, jobs=2, seed=range(4))) == 4


def test_a_serial_run_leaves_the_threads_of_this_process_alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert grid(lambda seed: {"threads": torch.get_num_threads()}, jobs=1, seed=[0])[0]["threads"] == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# ---- a folder ------------------------------------------------------------------------------------------------------


def test_a_second_call_runs_only_what_is_missing(tmp_path):
    folder, log = tmp_path / "runs", tmp_path / "log"
    options = {"jobs": 1, "folder": folder, "a": [2, 3], "b": [5, 7]}
    first = grid(multiply, log, **options)
    assert logged(log) == ["25", "27", "35", "37"] and [row["product"] for row in first] == [10, 14, 15, 21]
    assert grid(multiply, log, **options) == first and len(logged(log)) == 4
    for path in folder.iterdir():
        if json.loads(path.read_text())["settings"] == {"a": 3, "b": 5}:
            path.unlink()
    assert grid(multiply, log, **options) == first and logged(log)[4:] == ["35"]
    grid(multiply, log, **options | {"b": [5, 7, 9]})
    assert logged(log)[5:] == ["29", "39"], "a larger grid runs only the new cells"
    assert len(list(folder.iterdir())) == 6


def test_another_function_is_run_anew(tmp_path):
    def version(number):
        if number == 1:

            def cell(seed):
                return {"value": seed}
        else:

            def cell(seed):
                return {"value": -seed}

        return cell

    options = {"jobs": 1, "folder": tmp_path, "seed": [1, 2]}
    assert [row["value"] for row in grid(version(1), **options)] == [1, 2]
    assert [row["value"] for row in grid(version(2), **options)] == [-1, -2]
    assert [row["value"] for row in grid(version(1), **options)] == [1, 2]


def test_other_plain_fixed_values_are_run_anew(tmp_path):
    def cell(seed, epochs):
        return {"value": seed * epochs}

    for epochs in (3, 30):
        rows = run_grid(cell, fixed={"epochs": epochs}, jobs=1, folder=tmp_path, seed=[1, 2])
        assert [row["value"] for row in rows] == [epochs, 2 * epochs]


def test_results_are_the_same_fresh_and_read_again(tmp_path):
    def cell(seed):
        return {"pair": (1, 2), "by_class": {0: 0.5}, "nothing": float("nan"), "many": np.float64(0.25)}

    fresh, read = (grid(cell, jobs=1, folder=tmp_path, seed=[0]) for _ in range(2))
    assert math.isnan(fresh[0].pop("nothing")) and math.isnan(read[0].pop("nothing"))
    assert fresh == read


def test_settings_that_json_cannot_hold_are_refused_before_anything_runs(tmp_path):
    log = tmp_path / "log"
    with pytest.raises((ValueError, TypeError), match="JSON"):
        grid(multiply, log, jobs=1, folder=tmp_path / "runs", a=[2], b=[torch.ones(1)])
    assert logged(log) == []


def test_a_broken_file_of_a_cell_is_named(tmp_path):
    grid(multiply, jobs=1, folder=tmp_path, a=[2], b=[5])
    [path] = tmp_path.iterdir()
    path.write_text('{"settings": {"a"')
    with pytest.raises(ValueError, match=path.name):
        grid(multiply, jobs=1, folder=tmp_path, a=[2], b=[5])


@JOBS
def test_an_error_comes_through_and_finished_cells_stay(tmp_path, jobs):
    def cell(seed, allowed):
        import os
        import time

        if seed == 2 and not os.path.exists(allowed):
            time.sleep(1)  # so that the cells before it are done
            raise LookupError(f"seed {seed} fails")
        return {"value": seed}

    options = {"fixed": {"allowed": tmp_path / "allowed"}, "jobs": jobs, "folder": tmp_path / "runs", "seed": [0, 1, 2]}
    with pytest.raises(LookupError, match="seed 2 fails"):
        run_grid(cell, **options)
    deadline = time.monotonic() + 60  # the other process finishes its cell, and keeps it
    while len(list((tmp_path / "runs").glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(list((tmp_path / "runs").glob("*.json"))) == 2
    (tmp_path / "allowed").touch()
    assert [row["value"] for row in run_grid(cell, **options)] == [0, 1, 2]


KILLED = """
import sys, time
from course_utils.experiments.grid import run_grid

def cell(a, b):
    time.sleep(0.5)
    return {"product": a * b, "filler": "x" * 100_000}

rows = run_grid(cell, jobs=int(sys.argv[2]), folder=sys.argv[1], a=range(3), b=range(4))
print([row["product"] for row in rows])
"""


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a process group")
def test_a_grid_that_was_killed_goes_on(tmp_path, monkeypatch, capsys):
    """A function of `__main__`, as in a notebook; run and workers are killed when some cells are done."""
    (tmp_path / "script.py").write_text(KILLED)
    runs, environment = tmp_path / "runs", os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "script.py"), str(runs)]
    process = subprocess.Popen([*command, "2"], env=environment, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while len(list(runs.glob("*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read().decode()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    done = {path: path.stat().st_mtime_ns for path in runs.glob("*.json")}
    assert 3 <= len(done) < 12
    assert all(set(json.loads(path.read_text())) == {"settings", "result", "seconds", "checksum"} for path in done), (
        "no half file"
    )

    monkeypatch.setattr(sys, "argv", ["script.py", str(runs), "1"])
    runpy.run_path(str(tmp_path / "script.py"), run_name="__main__")
    assert capsys.readouterr().out == f"{[a * b for a in range(3) for b in range(4)]}\n"
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is not run again"
    assert len(list(runs.glob("*.json"))) == 12


# ---- wrong arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [{}, {"a": [], "b": [1]}])
def test_an_empty_grid_is_refused(empty):
    with pytest.raises(ValueError, match=r"grid: got .*allowed: at least one setting with at least one value"):
        grid(multiply, **empty)


@pytest.mark.parametrize("value", [5, "long tail", True])
def test_a_single_value_is_refused_in_a_grid(value):
    """A text would silently become one cell for each of its letters."""
    with pytest.raises(ValueError, match=f"b: got {value!r}; allowed: a list of values"):
        grid(multiply, a=[1, 2], b=value)


@JOBS
def test_a_result_named_like_a_setting_is_refused(jobs):
    with pytest.raises(ValueError, match=r"function: its result has \['seed'\], which are settings"):
        grid(lambda seed: {"seed": seed + 1}, jobs=jobs, seed=[1])


@pytest.mark.parametrize("jobs", [0, -1])
def test_a_number_of_jobs_below_1_is_refused(jobs):
    with pytest.raises(ValueError, match=f"jobs: got {jobs}; allowed: at least 1"):
        grid(multiply, jobs=jobs, a=[1], b=[1])


@pytest.mark.parametrize("jobs", ["many", "0"])
def test_course_jobs_has_to_be_a_number(monkeypatch, jobs):
    monkeypatch.setenv("COURSE_JOBS", jobs)
    with pytest.raises(ValueError, match=f"COURSE_JOBS: got '{jobs}'"):
        grid(multiply, a=[1], b=[1])


# ---- mean and spread -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.5], [0.1, 0.1], [70.3, 71.9, 70.8, 69.5, 72.2]])
def test_mean_and_spread_agree_with_numpy(values):
    assert mean_and_spread(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-12)
    assert mean_and_spread(v for v in values) == mean_and_spread(values)


def test_one_seed_has_no_spread_and_none_no_mean():
    mean, spread = mean_and_spread([3.0])
    assert mean == 3 and math.isnan(spread)
    with pytest.raises(ValueError, match="values: got none"):
        mean_and_spread([])
