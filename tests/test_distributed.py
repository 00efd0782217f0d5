"""distributed.py: one, two and three processes train the same network, also if one of them is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_in_processes import COUNTS, DATA, EPOCHS, EQUAL, SAMPLERS, trained

from course_utils.machinery import distributed
from course_utils.runtime import device_of_process

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests" / "training_in_processes.py"
HOW_MANY = pytest.mark.parametrize("world", [2, 3])


def run(*command, timeout=1500):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def largest_difference(one, other):
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def read(path):
    return torch.load(path, weights_only=False)  # written by this test


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """{number of processes: what they found}."""
    out = tmp_path_factory.mktemp("processes") / "cases"
    done = run(SCRIPT, "cases", out, "1", "2", "3")
    assert "Warning" not in done.stderr
    return {world: read(f"{out}.{world}") for world in (1, 2, 3)}


@HOW_MANY
@pytest.mark.parametrize("name", [*EQUAL, "photographs"])
def test_several_processes_train_as_one_does(cases, name, world):
    one, several = cases[1][name], cases[world][name]
    assert largest_difference(one["weights"], several["weights"]) < 1e-11
    for mine, other in zip(several["history"], one["history"], strict=True):
        assert mine == pytest.approx(other, rel=1e-5)  # `said` is a float32 sum


def test_the_first_of_them_is_a_training_without_processes(cases):
    torch.set_num_threads(1)
    network, options = EQUAL["LDAM + DRW"]
    alone = trained(network, **options)
    assert largest_difference(alone["weights"], cases[1]["LDAM + DRW"]["weights"]) == 0
    assert alone["history"] == cases[1]["LDAM + DRW"]["history"]


@HOW_MANY
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_short_numbers_differ_by_their_rounding(cases, name, world, record_property):
    found = largest_difference(cases[1][name]["weights"], cases[world][name]["weights"])
    record_property("note", f"{world} processes and one, {name}: weights differ by at most {found:.1e}")
    assert found < 5e-3
    for mine, other in zip(cases[world][name]["history"], cases[1][name]["history"], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-2)


@HOW_MANY
def test_dropout_is_each_processes_own(cases, world):
    one, several = cases[1]["dropout"], cases[world]["dropout"]
    assert largest_difference(one["weights"], several["weights"]) > 1e-3
    assert several["history"][-1]["loss"] == pytest.approx(one["history"][-1]["loss"], rel=0.5)


@HOW_MANY
@pytest.mark.parametrize("name", SAMPLERS)
def test_together_they_show_every_draw_of_a_sampler_once(cases, name, world):
    sampler, drawn = SAMPLERS[name](), []
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        drawn.append(sampler.indices())
    seen = cases[world]["histograms"][name]
    assert len(seen) == world
    assert torch.equal(seen.sum(0), torch.bincount(torch.cat(drawn), minlength=len(DATA)))
    shares = seen.sum(1) / seen.sum()  # of the processes: every W-th image of each batch
    assert shares.max() - shares.min() < 0.06


@HOW_MANY
def test_what_would_not_be_one_training_is_refused_in_every_process(cases, world):
    refused = cases[world]["refused"]
    assert "processes: got another value of backbone.1.bias in process 1" in refused["weights"]
    assert "seed before the model is made" in refused["weights"]
    assert "seed in process 1" in refused["seed"]
    assert refused["objective"].startswith("objective: got ") and "a mean over images" in refused["objective"]
    assert set(cases[1]["refused"].values()) == {"nothing was refused"}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_a_prediction_come_back_in_order(cases, world):
    assert cases[world]["in shares"] == [True, True]


def test_a_process_that_was_killed_in_the_middle_of_an_epoch_goes_on_to_the_bit(cases, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    run(*torchrun, SCRIPT, "killed", tmp_path / "out")
    assert (tmp_path / "killed").exists()
    one, other = read(tmp_path / "out"), cases[2]["not killed"]
    assert largest_difference(one["weights"], other["weights"]) == 0
    assert one["history"] == other["history"]
    assert [path.name for path in tmp_path.glob("*.checkpoint")] == ["out.0.checkpoint"]  # process 0 alone writes


def test_a_program_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with distributed.several_processes() as device:
        assert device.type in ("cpu", "cuda", "mps") and distributed.process() == (0, 1)
    rows = torch.arange(5)
    assert torch.equal(distributed.share_of(rows), rows)
    assert distributed.from_first(lambda: 3) == 3
    distributed.refuse_differences(lambda: pytest.fail("there is nobody to compare with"))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("course_utils.runtime.choose_device", lambda: (torch.device("cuda"), torch.float32))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of_process(1) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="processes: got one for GPU 2; allowed: at most 2"):
        device_of_process(2)


def test_the_tail_is_one():
    assert DATA.counts.tolist() == COUNTS
