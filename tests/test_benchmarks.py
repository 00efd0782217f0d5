"""The benchmark runs and reports both ways. Times are never compared here: other programs may run."""

import json

import pytest
import torch

from benchmarks.__main__ import main


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    monkeypatch.setenv("COURSE_QUIET", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_training_benchmark_runs_and_says_what_it_measured(tmp_path, capsys):
    file = tmp_path / "result.json"
    assert main(["training", "--epochs", "1", "--max-count", "6", "--seeds", "2", "--test-per-class", "5",
                 "--json", str(file)]) == 0  # fmt: skip
    result, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert (result["epochs"], result["seeds"]) == (1, 2) and result["common"]["workers"] in (0, 2)
    assert 26 <= result["images"] < 100
    for way in ("course", "common"):
        assert result[way]["all_seeds_seconds"] > 0 and result[way]["images_per_second"] > 0
        assert len(result[way]["accuracies"]) == 2 and all(0 <= a <= 1 for a in result[way]["accuracies"])
    assert "2 seeds, seconds" in printed and "images a second" in printed and "balanced accuracy" in printed


@pytest.mark.parametrize("arguments", [[], ["sampling"]])
def test_an_unknown_benchmark_is_refused(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: python -m benchmarks {training}" in capsys.readouterr().err
