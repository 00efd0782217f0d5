"""runs.py, reports.py, cluster.py: a grid that is killed, on one machine and on a cluster, gives the same report."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from course_utils.experiments import runs
from course_utils.experiments.background import LOCK, PLAN, alone_in, is_alive, read_who
from course_utils.experiments.progress import status_text
from course_utils.experiments.reports import best_on_validation, difference_figure, report_text, rows_of, write_report
from course_utils.experiments.runs import read_study, run_study
from course_utils.experiments.studies import Study
from course_utils.experiments.study_data import images_of, load_splits
from course_utils.metrics import difference_text, paired_differences, paired_interval

ROOT = Path(__file__).resolve().parents[1]
TINY = Study(
    what="a test",
    max_count=100,
    network="MLP",
    epochs=12,
    seeds=(0, 1, 2),
    defer_at=0.5,
    methods=("cross-entropy", "class-balanced sampling", "LDAM + DRW", "tau-normalization", "NCM"),
)
REPORT = ("report.md", "accuracy.png", "differences.png")


def report_of(folder):
    write_report(folder)
    return [(folder / name).read_bytes() for name in REPORT]


def without_seconds(cell):
    text = json.dumps({k: v for k, v in cell.items() if k not in ("seconds", "checksum")})
    methods = json.loads(text)["methods"]
    for row in methods.values():
        row["cost"].pop("seconds")
    return json.loads(text) | {"methods": methods}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run_study("tiny", TINY, folder, jobs=1)
    return folder, report_of(folder)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_a_cell_is_one_small_file_that_says_how_it_was_made(whole):
    folder, _ = whole
    names = sorted(path.name for path in (folder / "cells").iterdir())
    trainings = ("LDAM-DRW", "class-balanced-sampling", "cross-entropy")
    assert names == [f"{name}-{seed}.json" for name in trainings for seed in range(3)]
    assert not (folder / "checkpoints").exists()
    for path in (folder / "cells").iterdir():
        assert path.stat().st_size < 12_000
        cell = json.loads(path.read_text())
        assert cell["settings"] == json.loads(json.dumps(TINY.settings() | {"images": images_of(TINY.settings())}))
        assert cell["seed"] in TINY.seeds
        assert cell["data"]["note"] == "letters" and sum(cell["data"]["counts"]) > 600
        assert cell["versions"]["torch"] == torch.__version__ and cell["device"] and cell["precision"]
        assert cell["seconds"] > 0
        for name, row in cell["methods"].items():
            assert len(row["per_class"]) == 26 and set(row["groups"]) == {"many", "medium", "few", "all"}
            assert row["groups"]["many"] is None, "English letters with 100 E: no class has more than 100"
            assert 0 <= row["validation"] <= 1 and row["cost"]["backbone_images"] == 12 * sum(cell["data"]["counts"])
            assert (name == "NCM") == ("calibration_error" not in row)
            assert name == "NCM" or sum(row["reliability"]["count"]) == cell["data"]["test"]


def test_what_is_there_is_not_run_again_and_more_seeds_and_methods_only_add(whole, monkeypatch, tmp_path):
    small = replace(TINY, methods=("cross-entropy",), seeds=(0, 1), epochs=1)
    run_study("small", small, tmp_path, jobs=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    ran = []
    real = runs.run_cell
    monkeypatch.setattr(runs, "run_cell", lambda *a, **k: ran.append((a[1], a[3])) or real(*a, **k))
    run_study("small", replace(small, seeds=(0, 1, 2)), tmp_path, jobs=1)
    assert ran == [("cross-entropy", 2)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run_study("small", replace(small, methods=("cross-entropy", "NCM"), seeds=(1,)), tmp_path, jobs=1)
    assert ran[1:] == [("cross-entropy", 1)], "a new method of a training that is there: run it again"
    asked, cells, missing = read_study(tmp_path)
    assert asked["methods"] == ["cross-entropy", "NCM"] and asked["seeds"] == [0, 1, 2]
    assert len(cells) == 1 and missing == ["cross-entropy, seed 0", "cross-entropy, seed 2"]
    assert (
        "**Incomplete**: 2 trainings are missing (cross-entropy, seed 0; cross-entropy, seed 2)."
        in report_of(tmp_path)[0].decode()
    )


def test_other_settings_in_the_same_folder_are_refused(whole):
    with pytest.raises(ValueError, match=r"study.json was made with other settings: epochs 12 instead of 13"):
        run_study("tiny", replace(TINY, epochs=13), whole[0], jobs=1)


def test_a_damaged_cell_is_named(tmp_path):
    small = replace(TINY, methods=("cross-entropy",), seeds=(0,), epochs=1)
    run_study("small", small, tmp_path, jobs=1)
    (tmp_path / "cells" / "cross-entropy-0.json").write_text('{"settings": {"da')
    for again in (lambda: run_study("small", small, tmp_path, jobs=1), lambda: write_report(tmp_path)):
        with pytest.raises(ValueError, match=r"cross-entropy-0.json is no file of this program; delete it"):
            again()


# ---- killed ----------------------------------------------------------------------------------------------------------

NURSERY = """
import os, sys
from pathlib import Path
from dataclasses import replace
import torch
torch.set_num_threads(1)
from course_utils.experiments.background import alone_in
from course_utils.experiments.runs import run_study
sys.path.insert(0, sys.argv[2])
from test_runs import TINY
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()  # this process has never computed anything, so it has no threads that a child would miss
    if not child:
        with alone_in(Path(sys.argv[1])):
            run_study("tiny", TINY, sys.argv[1], jobs=1)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its runs with fork")
def test_a_run_killed_at_ten_random_moments_gives_the_same_report(whole, tmp_path):
    """Runs are children of a process that has imported torch already, so that a start takes no time."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(tmp_path), str(ROOT / "tests")],
        text=True,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    moments, killed, under_way = random.Random(), 0, 0
    try:
        assert nursery.stdout.readline() == "ready\n"
        while killed < 10:
            print("run", file=nursery.stdin, flush=True)
            child = int(nursery.stdout.readline())
            time.sleep(moments.uniform(0.05, 0.8) * (1 if under_way else 1 + killed))  # a busy machine needs longer
            with contextlib.suppress(ProcessLookupError):  # a fast machine: it is done already
                os.kill(child, signal.SIGKILL)
            killed += int(nursery.stdout.readline()) == -signal.SIGKILL
            cells = sorted((tmp_path / "cells").glob("*.json"))
            assert all(json.loads(path.read_text())["methods"] for path in cells), "no half file"
            under_way += any((tmp_path / "checkpoints").glob("*.pt"))
            if (tmp_path / LOCK).is_file():  # else it was killed before its first line
                assert is_alive(read_who(tmp_path / LOCK)) is False, "the next run takes the lock over"
            if (tmp_path / "checkpoints" / PLAN).is_file():
                said = status_text(tmp_path)
                assert f"{len(cells)} of 9 trainings are finished, 0 under way" in said and "nothing runs" in said
            for path in cells[3:]:  # leave work for the other kills
                path.unlink()
        print("run", file=nursery.stdin, flush=True)
        nursery.stdout.readline()
        assert int(nursery.stdout.readline()) == 0
    finally:
        nursery.stdin.close()
        nursery.stdout.close()
        nursery.kill()
        nursery.wait()
    assert not (tmp_path / LOCK).exists() and not (tmp_path / "checkpoints").exists()
    assert under_way, "some kill came in the middle of a training, which went on from its checkpoint"
    assert report_of(tmp_path) == whole[1]
    for path in (whole[0] / "cells").iterdir():
        again = json.loads((tmp_path / "cells" / path.name).read_text())
        assert without_seconds(again) == without_seconds(json.loads(path.read_text()))


def test_two_runs_in_one_folder_do_no_harm(whole, tmp_path):
    """Two at the same time, with the same cells in the same order."""
    command = [
        sys.executable,
        "-c",
        "import sys; sys.path.insert(0, sys.argv[2]); from test_runs import *; "
        "run_study('tiny', TINY, sys.argv[1], jobs=1)",
        str(tmp_path),
        str(ROOT / "tests"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert report_of(tmp_path) == whole[1]
    assert not list((tmp_path / "cells").glob(".*"))


# ---- a cluster -------------------------------------------------------------------------------------------------------


def test_a_cluster_of_two_workers_one_of_them_killed_gives_the_same_report(whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None, silence_logs=50
    ) as cluster:
        with distributed.Client(cluster.scheduler_address) as client:
            processes = list(client.run(os.getpid).values())
        killed, said = [], []

        def kill_one():
            deadline = time.monotonic() + 120
            while len(list((tmp_path / "cells").glob("*.json"))) < 3 and time.monotonic() < deadline:
                time.sleep(0.02)
            said.append(status_text(tmp_path).splitlines())
            killed.append(len(list((tmp_path / "cells").glob("*.json"))))
            os.kill(processes[0], signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

        killer = threading.Thread(target=kill_one)
        killer.start()
        with alone_in(tmp_path):
            cells = run_study("tiny", TINY, tmp_path, cluster=cluster.scheduler_address)
        killer.join()
    lines = said[0]
    knows = f" of 9 trainings are finished, the cluster at {cluster.scheduler_address} knows which are under way"
    assert lines[0].endswith(knows) and "works process" in lines[1] and "time left" not in lines[-1]
    assert len(processes) == 2 and 3 <= killed[0] < 9 == len(cells)
    assert report_of(tmp_path) == whole[1]


def test_an_address_where_nobody_answers_is_named(whole, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    real = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: real(address, timeout=0.5))
    assert run_study("tiny", TINY, whole[0], cluster="tcp://127.0.0.1:9"), "nothing is missing: nobody is asked"
    with pytest.raises(ValueError, match=r"cluster: no Dask scheduler answers at 'tcp://127.0.0.1:9'"):
        run_study("tiny", TINY, tmp_path, cluster="tcp://127.0.0.1:9")


def test_without_dask_the_way_to_get_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r'cluster: Dask is not installed; run `pip install ".\[cluster\]"`'):
        run_study("tiny", TINY, tmp_path, cluster="tcp://127.0.0.1:9")


# ---- reports ---------------------------------------------------------------------------------------------------------


def row(accuracy, images=100, validation=None):
    return {
        "groups": {"many": accuracy, "medium": accuracy, "few": None, "all": accuracy},
        "validation": validation,
        "chosen": {},
        "cost": {"backbone_images": images, "feature_images": 0, "head_images": 0, "seconds": 1.0},
    }


def cells_of(**methods):
    return [
        {"seed": seed, "methods": {name.replace("_", " "): r}}
        for name, seeds in methods.items()
        for seed, r in enumerate(seeds)
    ]


def test_a_report_is_the_same_byte_by_byte_and_shows_every_method(whole):
    folder, first = whole
    assert report_of(folder) == first
    text = first[0].decode()
    assert "Seeds: 0, 1, 2." in text and "Incomplete" not in text and "Seconds" not in text
    for name in TINY.methods:
        assert text.count(f"\n| {name} |") == 3  # accuracy, differences, budget
    assert "| NCM | – |" in text, "no class has many images"
    assert f"{12 * sum(read_study(folder)[1][0]['data']['counts']):,}" in text
    assert "seconds" in (folder / "times.md").read_text()


def test_numbers_of_the_report_are_those_of_the_cells(whole):
    folder, (text, *_) = whole
    rows = rows_of(read_study(folder)[1])
    differences = paired_differences(rows["NCM"], rows["cross-entropy"])
    by_hand = [100 * (rows["NCM"][s]["groups"]["all"] - rows["cross-entropy"][s]["groups"]["all"]) for s in range(3)]
    assert differences == by_hand
    low, high = paired_interval(differences)
    assert f"\n| NCM | {sum(differences) / 3:+.1f} [{low:+.1f}, {high:+.1f}]" in text.decode()
    assert f"\n| NCM | {difference_text(differences)} |" in text.decode()


def test_a_report_warns_where_a_class_has_few_images_for_choices(whole):
    asked, cells, missing = read_study(whole[0])
    assert [cell["data"]["fewest"] for cell in cells] == [
        int(load_splits(asked["settings"], cell["seed"])[1].counts.min()) for cell in cells
    ]
    for fewest, warning in ((0, "a class for choices: 0. What"), (9, "a class for choices: 9. What"), (10, None)):
        cells[0]["data"]["fewest"] = fewest
        text = report_text(asked, cells, missing)
        assert (warning in text) if warning else ("partly luck" not in text)


def test_unequal_budgets_are_refused_and_the_rows_named():
    same = [row(0.5), row(0.5)]
    cells = cells_of(LDAM=same, focal_loss=same, cross_entropy=[row(0.5), row(0.5, 150)])
    with pytest.raises(ValueError, match=r"unequal budgets: 100 images .* not in cross entropy seed 1: 150; allowed"):
        rows_of(cells)


def test_pairs_are_taken_over_the_seeds_that_both_have():
    rows = rows_of([*cells_of(a=[row(0.5), row(0.6), row(0.9)]), *cells_of(b=[row(0.4), row(0.7)])])
    assert paired_differences(rows["a"], rows["b"]) == pytest.approx([10, -10])


def test_the_best_is_the_best_on_validation_images():
    rows = rows_of(cells_of(a=[row(0.9, validation=0.4)] * 2, b=[row(0.1, validation=0.5)] * 2))
    assert best_on_validation(rows) == "b"


def test_the_best_is_chosen_over_the_seeds_that_all_have():
    """Seed 2 is easy, and only the first method has it."""
    first = [row(0.5, validation=v) for v in (0.4, 0.4, 0.9)]
    assert best_on_validation(rows_of(cells_of(a=first, b=[row(0.5, validation=0.5)] * 2))) == "b"
    apart = [{"seed": seed, "methods": {name: row(0.5, validation=0.5)}} for seed, name in enumerate("ab")]
    assert best_on_validation(rows_of(apart)) is None


def test_without_validation_images_nothing_is_chosen(whole):
    asked, cells, missing = read_study(whole[0])
    for cell in cells:
        for numbers in cell["methods"].values():
            numbers["validation"] = None
    assert best_on_validation(rows_of(cells)) is None
    text = report_text(asked, cells, missing)
    assert "Best on validation images: none" in text and "\n| method | minus cross-entropy |\n" in text


def test_a_tie_is_called_so_and_one_seed_has_no_interval(whole):
    asked, cells, missing = read_study(whole[0])
    for cell in cells:  # NCM is 1 point above the baseline with seeds 0 and 2, and 1 below it with seed 1
        same = cell["methods"].get("NCM"), cell["methods"].get("cross-entropy")
        if same[0]:
            same[0]["groups"]["all"] = same[1]["groups"]["all"] + (0.01 if cell["seed"] != 1 else -0.01)
    assert "\n| NCM | +0.3 [-2.5, +3.2] tie |" in report_text(asked, cells, missing)
    hollow = [
        line for line in difference_figure(rows_of(cells), "cross-entropy").axes[0].lines if line.get_marker() == "D"
    ]
    assert [line.get_markerfacecolor() == "white" for line in hollow] == [
        difference_text(paired_differences(rows, rows_of(cells)["cross-entropy"])).endswith("tie")
        for name, rows in rows_of(cells).items()
        if name != "cross-entropy"
    ]
    alone = report_text(asked, [cell for cell in cells if cell["seed"] == 0], missing)
    assert "\n| NCM | +1.0 |" in alone and "one seed has none" in alone


def test_a_folder_without_an_experiment_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no experiment \(study.json\)"):
        write_report(tmp_path)


def test_a_start_that_fails_leaves_the_folder_free_for_the_right_command(tmp_path):
    small = replace(TINY, methods=("cross-entropy",), seeds=(0,), epochs=1)
    for wrong, said in ((replace(small, epochs=0), "epochs: got 0"), (replace(small, lr=float("nan")), "lr: got nan")):
        with pytest.raises(ValueError, match=said):
            run_study("small", wrong, tmp_path, jobs=1)
    assert run_study("small", small, tmp_path, jobs=1) and read_study(tmp_path)[0]["settings"]["epochs"] == 1
