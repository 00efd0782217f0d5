"""background.py and progress.py: a lock for a folder, runs in the background, how far they are, and their end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from test_runs import without_seconds

from course_utils import training
from course_utils.experiments import background, runs
from course_utils.experiments.background import LOCK, LOG, PLAN, alone_in, is_alive, myself, read_who, stop
from course_utils.experiments.command import main
from course_utils.experiments.progress import clock, status_text
from course_utils.experiments.runs import cells_of, run_study
from course_utils.experiments.studies import Study

ROOT = Path(__file__).resolve().parents[1]
TINY = Study(
    what="a test", max_count=60, network="MLP", epochs=8, seeds=(0, 1), methods=("LDAM", "cross-entropy", "NCM")
)
WORDS = "experiments run letters --max-count 60 --network MLP --seeds 1 --jobs 1 --methods".split()
PROGRAM = (  # at lowest priority it would wait until the other tests have ended; at full speed it would end before them
    "-c",
    "import sys, time; from course_utils import training; from course_utils.experiments import background, command; "
    "background.lowest_priority, save = lambda: None, training.save_checkpoint; "
    "training.save_checkpoint = lambda *whole: (save(*whole), time.sleep(1)); "
    "sys.exit(command.main(sys.argv[1:]))",
)
ENDED = {"host": socket.gethostname(), "pid": 2**22 - 3, "born": 1.5, "since": 1e9}


def until(ask, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


# ---- the lock --------------------------------------------------------------------------------------------------------


def test_a_folder_has_one_run_and_keeps_nothing_of_its_lock(tmp_path):
    folder = tmp_path / "runs" / "letters"
    with alone_in(folder):
        assert is_alive(read_who(folder / LOCK)) is True
        with pytest.raises(
            ValueError, match=rf"^out: got .*letters, where process {os.getpid()} on .* since 20.* works"
        ):
            with alone_in(folder):
                pass
        assert is_alive(read_who(folder / LOCK)) is True, "who was refused leaves the lock of the other one alone"
    assert not folder.exists() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_run_is_refused_in_one_line_and_harms_nothing(tmp_path, capsys):
    with alone_in(tmp_path):
        before = (tmp_path / LOCK).read_bytes()
        for more in ([], ["--background"]):
            assert main([*WORDS, "LDAM", "--epochs", "1", "--out", str(tmp_path), *more]) == 2
            said = capsys.readouterr()
            assert said.err.startswith(f"error: out: got {tmp_path}, where process") and said.err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == [LOCK] and (tmp_path / LOCK).read_bytes() == before


def test_setting_the_clock_makes_no_process_dead(tmp_path, monkeypatch):
    """On Linux, where psutil's times of processes move with it."""
    if not psutil.LINUX:
        pytest.skip("elsewhere the system keeps the time at which a process started")
    started = psutil.Process.create_time
    with alone_in(tmp_path):
        monkeypatch.setattr(psutil, "boot_time", lambda boot=psutil.boot_time: boot() + 3600)
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: started(process) + 3600)
        assert is_alive(read_who(tmp_path / LOCK)) is True
        with pytest.raises(ValueError, match="works; allowed: another folder"):
            with alone_in(tmp_path):
                pass
        assert is_alive(myself() | {"born": myself()["born"] + 3}) is False, "another process with this number"


@pytest.mark.parametrize("odd", [{}, {"pid": os.getpid()}])  # no such process; another one that has its number now
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, odd):
    (tmp_path / LOCK).write_text(json.dumps(ENDED | odd))
    assert is_alive(read_who(tmp_path / LOCK)) is False and stop(tmp_path) == f"nothing runs in {tmp_path}"
    with alone_in(tmp_path):
        assert read_who(tmp_path / LOCK)["born"] == pytest.approx(myself()["born"], abs=1)
    assert not (tmp_path / LOCK).exists()


def test_a_lock_of_another_computer_is_kept(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps(ENDED | {"host": "elsewhere"}))
    with pytest.raises(ValueError, match=r"on elsewhere since .* works; .* if that one has ended it, delete .*running"):
        with alone_in(tmp_path):
            pass
    with pytest.raises(ValueError, match=r"out: got .* on elsewhere .*; allowed: on elsewhere: the same command there"):
        stop(tmp_path)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.json").write_text("{}")
    assert re.search(
        r"on elsewhere since .*, whose last file is of 20.*cannot be seen from here", status_text(tmp_path)
    )


@pytest.mark.parametrize("text", ["", "{", '{"host": 3}', json.dumps({**ENDED, "pid": "9"})])
def test_a_lock_that_cannot_be_read_is_one_line(tmp_path, text, capsys, monkeypatch):
    monkeypatch.setattr(background.time, "sleep", lambda seconds: None)
    (tmp_path / LOCK).write_text(text)
    for words in (["run", "letters", "--epochs", "1"], ["status"], ["stop"]):
        assert main(["experiments", *words, "--out", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert (
            said == f"error: {tmp_path / LOCK} does not say who works here; if nothing runs in this folder, delete it\n"
        )
    assert (tmp_path / LOCK).read_text() == text


def test_a_full_disk_is_one_line_and_leaves_no_lock(tmp_path, capsys):
    resource = pytest.importorskip("resource", reason="limits the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "out"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        with pytest.raises(OSError, match=r"^cannot write .*running.json: .*Is the folder read-only or full\?$"):
            with alone_in(folder):
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (folder / LOCK).exists()
    (tmp_path / "file").touch()
    assert main([*WORDS, "LDAM", "--epochs", "1", "--out", str(tmp_path / "file")]) == 2
    assert re.fullmatch(r"error: cannot write .*: .*\n", capsys.readouterr().err)


# ---- the order, and what workers do when nobody waits for them -------------------------------------------------------


def test_trainings_run_in_the_order_of_methods_one_seed_after_the_other(tmp_path):
    methods, settings = ["tau-normalization", "LDAM + DRW", "cross-entropy", "LDAM"], TINY.settings()
    asked = {"study": "tiny", "settings": settings, "methods": methods, "seeds": [3, 1]}
    order = ["cross-entropy", "LDAM + DRW", "LDAM"]
    assert list(cells_of(tmp_path, asked)) == [f"{name}, seed {seed}" for seed in (3, 1) for name in order]


WORKERS = """
import signal, sys, time
from course_utils.experiments.workers import side_by_side
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests may ignore it
def call(file):
    import os, pathlib
    pathlib.Path(file).write_text(str(os.getpid()))
    time.sleep(600)
list(side_by_side(call, {k: (f"{sys.argv[1]}/{k}",) for k in "ab"}, 2))
"""


def test_what_killed_runs_left_is_taken_away_and_what_living_ones_need_stays(tmp_path):
    left = {"checkpoints/LDAM-0.json": ENDED, "checkpoints/cross-entropy-0.json": myself()}
    left |= {".mine.tmp": "not of a run", "checkpoints/mine.json": "no mark"}
    for where in ("", "cells/", "checkpoints/"):
        left |= {f"{where}.half.json.{pid}.tmp": "half" for pid in (ENDED["pid"], os.getpid())}
    for name, what in left.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(what))
    run_study("tiny", replace(TINY, epochs=1, seeds=(0,), methods=("LDAM",)), tmp_path, jobs=1)
    stays = {tmp_path / name for name in left if str(ENDED["pid"]) not in name} - {tmp_path / "checkpoints/LDAM-0.json"}
    found = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert found - stays == {tmp_path / "study.json", tmp_path / "cells/LDAM-0.json"} and stays <= found


@pytest.mark.parametrize("how", ["KILL", "INT"])
def test_workers_end_with_the_process_that_waits_for_them(tmp_path, how):
    if not hasattr(signal, f"SIG{how}") or os.name == "nt":
        pytest.skip("needs this signal")
    process = subprocess.Popen([sys.executable, "-c", WORKERS, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    files = [tmp_path / name for name in "ab"]
    until(lambda: all(file.is_file() and file.read_text() for file in files))
    (worker,) = [int(file.read_text()) for file in files if int(file.read_text()) != process.pid]
    os.kill(process.pid, getattr(signal, f"SIG{how}"))
    process.wait(timeout=60)
    until(lambda: not psutil.pid_exists(worker), 60)


# ---- how far it is ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was interrupted in epoch 5 of its third training."""
    real, begun = training._refuse_infinite, []

    def interrupted(loss, epoch, lr):
        begun.append(epoch)
        if len(begun) == 2 * 8 + 5:
            raise KeyboardInterrupt
        real(loss, epoch, lr)

    monkeypatch.setattr(training, "_refuse_infinite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study("tiny", TINY, tmp_path, jobs=1)
    monkeypatch.undo()
    return tmp_path


def test_status_counts_and_names_what_is_finished_stopped_and_missing(stopped):
    lines = status_text(stopped).splitlines()
    assert lines[0] == "tiny: 2 of 4 trainings are finished, 0 under way"
    assert lines[1] == f"in {stopped} nothing runs"
    assert re.fullmatch(r"stopped:   LDAM, seed 1, 4 of 8 epochs done, [0-9.]+ s an epoch", lines[2])
    assert lines[3] == "missing:   cross-entropy, seed 1" and lines[4].startswith("time left: about ")
    (checkpoint,) = (stopped / "checkpoints").glob("*.pt")
    seconds = [row["seconds"] for row in torch.load(checkpoint, weights_only=True)["history"]]
    other = json.loads((stopped / "cells" / "cross-entropy-0.json").read_text())["methods"]["NCM"]["cost"]["seconds"]
    assert lines[4] == f"time left: about {clock(4 * sum(seconds) / len(seconds) + other)}, with 1 at a time"
    assert clock(0.2) == "1 s" and clock(89) == "89 s" and clock(3000) == "50 min" and clock(7200) == "2.0 h"


def test_status_tells_who_computes_what_is_under_way(stopped):
    (stopped / "checkpoints" / "LDAM-1.json").write_text(json.dumps(myself()))
    (stopped / "checkpoints" / "cross-entropy-1.json").write_text(json.dumps(ENDED))  # killed in its first epoch
    with alone_in(stopped):
        lines = status_text(stopped).splitlines()
    assert lines[0] == "tiny: 2 of 4 trainings are finished, 1 under way"
    assert lines[1].startswith(f"in {stopped} works process {os.getpid()} on {socket.gethostname()} since 20")
    assert re.match(rf"under way: LDAM, seed 1, 4 of 8 epochs done, .* s an epoch, process {os.getpid()} on", lines[2])
    assert lines[3] == "missing:   cross-entropy, seed 1"


def test_before_the_first_epoch_no_time_is_made_up(tmp_path, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(runs, "run_cell", lambda *a, **k: said.append(status_text(tmp_path)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_study("tiny", replace(TINY, seeds=(0,)), tmp_path, jobs=1)
    assert "tiny: 0 of 2 trainings are finished, 1 under way\n" in said[0]
    assert "\nunder way: LDAM, seed 0, 0 of 8 epochs done, process " in said[0]
    assert said[0].endswith("time left: not known before the first epoch is done")
    assert not list(tmp_path.iterdir()), "a start that fails leaves no trace"
    assert main(["experiments", "status", "--out", str(tmp_path)]) == 2
    assert "holds no experiment; run one with --out" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named(stopped):
    (checkpoint,) = (stopped / "checkpoints").glob("*.pt")
    checkpoint.write_bytes(b"PK")
    with pytest.raises(ValueError, match=rf"^{re.escape(str(checkpoint))} is not a checkpoint of fit"):
        status_text(stopped)


# ---- in the background -----------------------------------------------------------------------------------------------


def test_the_lowest_priority_is_that():
    code = "from course_utils.experiments.background import *; lowest_priority(); print(psutil.Process().nice())"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, start_new_session=True
    )
    assert found.stdout.strip() == ("19" if os.name == "posix" else str(psutil.IDLE_PRIORITY_CLASS)), found.stderr


def test_the_command_starts_itself_once_more_and_that_one_lowers_its_priority(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(background, "start", lambda *arguments: calls.append(arguments) or "it runs")
    monkeypatch.setattr(background, "lowest_priority", lambda: calls.append("low"))
    words = [*WORDS, "LDAM", "--epochs", "1", "--out", str(tmp_path), "--background"]
    assert main(words) == 0 and capsys.readouterr().out == "it runs\n" and calls == [(tmp_path, words)]
    assert (
        main([*words, "--detached"]) == 0 and "1 trainings are in" in capsys.readouterr().out and calls[1:] == ["low"]
    )


def test_a_run_in_the_background_is_watched_stopped_and_taken_up_with_an_equal_result(tmp_path, capsys):
    here, whole = tmp_path / "here", tmp_path / "whole"
    words = [*WORDS, "LDAM, cross-entropy", "--epochs", "60"]
    said = background.start(here, [*words, "--out", str(here)], PROGRAM)
    who = read_who(here / LOCK)
    process = psutil.Process(who["pid"])
    assert f"process {who['pid']} runs in the background" in said and is_alive(who)
    assert f"status --out {here}" in said and f"stop --out {here}" in said
    if os.name == "posix":
        assert os.getsid(process.pid) == process.pid, "it outlives this terminal"
    with contextlib.suppress(psutil.AccessDenied):
        assert process.environ()["OMP_NUM_THREADS"] == "1"
    begun = until(lambda: re.search(r"under way: (LDAM|cross-entropy), seed 0, ([1-9]\d*) of 60", status_text(here)))
    assert main(["experiments", "stop", "--out", str(here)]) == 0
    assert is_alive(who) is False
    assert "is stopped; the same `experiments run` goes on from here" in capsys.readouterr().out
    if os.name == "posix":  # Windows knows no polite end
        assert not (here / LOCK).exists() and (here / LOG).read_text().endswith("goes on from here\n")
    assert main(["experiments", "status", "--out", str(here)]) == 0
    now = re.search(rf"stopped:   {begun[1]}, seed 0, (\d+) of 60 epochs done", capsys.readouterr().out)
    assert now and int(begun[2]) <= int(now[1]) < 60 and (here / "checkpoints" / PLAN).is_file()
    for folder in (here, whole):
        assert main([*words, "--out", str(folder)]) == 0
    assert not (here / "checkpoints").exists()
    for path in (whole / "cells").iterdir():
        again = json.loads((here / "cells" / path.name).read_text())
        assert without_seconds(again) == without_seconds(json.loads(path.read_text()))


def test_the_process_that_works_is_named_where_a_launcher_starts_it(tmp_path):
    """As python.exe of a virtual environment on Windows does."""
    launcher = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, *sys.argv[1:]]))"
    words = [*WORDS, "LDAM", "--epochs", "60", "--out", str(tmp_path)]
    said = background.start(tmp_path, words, ("-c", launcher, *PROGRAM))
    who = read_who(tmp_path / LOCK)
    assert said.startswith(f"process {who['pid']} runs in the background") and "is stopped" in stop(tmp_path)


def test_what_goes_wrong_at_once_is_told_at_once_and_the_log_keeps_it(tmp_path):
    words = [*WORDS, "LDAM", "--lr", "nan", "--epochs", "1", "--out", str(tmp_path)]
    with pytest.raises(ValueError, match=r"^lr: got nan; allowed: a finite number$"):
        background.start(tmp_path, words, PROGRAM)
    lines = (tmp_path / LOG).read_text().splitlines()
    assert "experiments run letters" in lines[0] and lines[1] == "error: lr: got nan; allowed: a finite number"
    nothing = f"in {tmp_path} nothing runs (the last line of its log: {lines[1]})"
    assert status_text(tmp_path) == f"{nothing}; no training has begun"
