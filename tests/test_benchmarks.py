"""The benchmarks run and report all ways. Times are never compared here: other programs may run."""

import json

import pytest
import torch
from PIL import Image

from benchmarks.__main__ import BENCHMARKS, main


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    monkeypatch.setenv("COURSE_QUIET", "1")
    monkeypatch.setenv("COURSE_JOBS", "1")  # starting processes would take longer than all that is measured
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def measured(command, tmp_path, capsys):
    file = tmp_path / "result.json"
    assert main([*command.split(), "--json", str(file)]) == 0
    return json.loads(file.read_text()), capsys.readouterr().out


def test_the_training_benchmark_runs_and_says_what_it_measured(tmp_path, capsys):
    result, printed = measured("training --epochs 1 --max-count 6 --seeds 2 --test-per-class 5", tmp_path, capsys)
    assert (result["epochs"], result["seeds"]) == (1, 2) and result["common"]["workers"] in (0, 2)
    assert 26 <= result["images"] < 100
    for way in ("course", "common"):
        assert result[way]["all_seeds_seconds"] > 0 and result[way]["images_per_second"] > 0
        assert len(result[way]["accuracies"]) == 2 and all(0 <= a <= 1 for a in result[way]["accuracies"])
    assert "2 seeds, seconds" in printed and "images a second" in printed and "balanced accuracy" in printed


def test_the_incremental_benchmark_runs_and_its_ways_agree(tmp_path, capsys):
    result, printed = measured("incremental --sizes 25x4 60x8 --epochs 1 --max-count 8 --repeats 1", tmp_path, capsys)
    assert (result["epochs"], result["repeats"], result["exemplars"]) == (1, 1, 20)
    assert [(row["images"], row["dim"]) for row in result["herding"]] == [(25, 4), (60, 8)]
    for row in result["herding"]:
        assert row["same_order"] and all(row["seconds"][way] > 0 for way in ("course", "array", "loop"))
    assert [row["network"] for row in result["phase"]] == ["MLP", "SmallCNN"]
    for row in result["phase"]:
        assert row["images"] == 17 * 8 and all(row["seconds"][way] > 0 for way in ("course", "common"))
        assert row["largest_difference"] < 1e-5 < 1e-4 < row["largest_change_by_training"]
    assert "20 of 60 x 8" in printed and "same order" in printed and "MLP, 136 x 1 epochs" in printed


def test_the_losses_benchmark_runs_and_its_ways_agree(tmp_path, capsys):
    result, printed = measured("losses --batch 16 --classes 30 --repeats 2", tmp_path, capsys)
    assert result["course_and_one_hot_agree"] and "agree in value and gradient" in printed
    assert set(result["ways"]) == {"course", "one-hot", "cross-entropy"}
    assert all(way["cpu_seconds"] > 0 for way in result["ways"].values())


def test_the_openworld_benchmark_runs_and_its_ways_agree(tmp_path, capsys):
    result, printed = measured(
        "openworld --batch 30 --classes 40 --features 7 --repeats 2 --growth 20 50 --growth-features 9",
        tmp_path,
        capsys,
    )
    assert result["agree"] and "distances and reads agree" in printed
    assert set(result["ways"]) == {"course", "cdist", "expanded", "products", "read"}
    assert all(way["cpu_seconds"] > 0 for way in result["ways"].values())
    assert [(row["classes"], row["features"]) for row in result["growth"]] == [(20, 7), (50, 7), (20, 9), (50, 9)]
    assert result["growth"][3]["expanded_megabytes"] == pytest.approx(30 * 50 * 9 * 4 / 2**20)


def test_the_decoupling_benchmark_runs_and_its_ways_agree(tmp_path, capsys):
    result, printed = measured(
        "decoupling --images 2600 --classes 40 --sweep-images 300 --sweep-classes 12 "
        "--features 8 --values 5 --repetitions 1",
        tmp_path,
        capsys,
    )
    assert (result["images"], result["classes"], result["features"]) == (2600, 40, 8)
    assert list(result["rows"]) == ["class-balanced epoch", "square-root epoch", "5 values of tau"]
    for name, row in result["rows"].items():
        assert row["equal"] is True and row["ours"] > 0 and row["textbook"] > 0 and name in printed
    assert "65 to 65 and 65 to 65" in printed and "same predictions: 100.0000 %" in printed


@pytest.mark.parametrize("arguments", [[], ["sampling"]])
def test_an_unknown_benchmark_is_refused(arguments, capsys):
    assert main(arguments) == 2
    assert f"usage: python -m benchmarks {{{','.join(BENCHMARKS)}}} [--help]" in capsys.readouterr().err
    assert {"training", "incremental"} <= set(BENCHMARKS)


def test_the_experiments_benchmark_runs_and_says_what_it_measured(tmp_path, capsys):
    result, printed = measured("experiments --images 16 --batch-size 8 --turns 1 --peak-size 64", tmp_path, capsys)
    assert result["common"][0] > 0 and all(rates[0] > 0 for rates in result["course"].values())
    assert all(value > 1e8 for value in result["peak"].values()) and str(result["workers"]) in result["trial_rates"]
    assert "common recipe, float32" in printed and "of peak" in printed


def test_the_photographs_benchmark_runs_and_its_ways_agree(tmp_path, capsys):
    command = "photographs --files 6 9 --memory-size 8 --workers 0 --images 5 --size 32 --repeats 1"
    result, printed = measured(command, tmp_path, capsys)
    assert list(result["speed"]) == ["ready", "bare", "course", "course, one worker"]
    for name, row in result["speed"].items():
        assert row["images_a_second"] > 0 and name in printed
        assert row["differs_by"] < (0.1 if name == "bare" else 1e-5), "the bare loop decodes in full"
    assert [(row["files"], row["in_memory"]) for row in result["memory"]] == [(6, False), (9, False), (9, True)]
    assert "in memory" in printed
    assert result["digest"]["first"] > 0 and "digest of" in printed


def test_the_fine_tuning_benchmark_says_what_its_splits_say(tmp_path, capsys, monkeypatch):
    def one_split(parts, seed, size, epochs, lr):
        test = {"frozen": 50.0, "fine-tuned": 50.0 + seed}
        return {"seed": seed, "size": size, "epochs": epochs, "test": test}

    monkeypatch.setattr("benchmarks.fine_tuning.one_split", one_split)
    result, printed = measured("fine-tuning --size 32 --epochs 2 --splits 3", tmp_path, capsys)
    assert [row["seed"] for row in result["splits"]] == [0, 1, 2] and result["splits"][0]["size"] == 32
    assert "frozen 50.0 ± 0.0" in printed and "fine-tuned 51.0 ± 1.0" in printed
    assert "fine-tuned minus frozen, points on test pictures: +1.0 [-1.5, +3.5] tie" in printed


def test_the_fine_tuning_benchmark_takes_clip_art_or_a_folder(tmp_path, capsys, monkeypatch):
    for label in range(2):
        for number in range(12):
            path = tmp_path / "pictures" / f"class {label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (20 * number, 90, 200 * label)).save(path)
    seen = []

    def one_split(parts, seed, size, epochs, lr):
        seen.append(parts(seed, size))
        return {"test": {"frozen": 50.0, "fine-tuned": 50.0}}

    monkeypatch.setattr("benchmarks.fine_tuning.one_split", one_split)
    measured("fine-tuning --size 32 --splits 1", tmp_path, capsys)
    study = '{"profile":"exponential","max_count":6,"ratio":3,"validation":2}'
    found, _ = measured(f"fine-tuning {tmp_path / 'pictures'} --size 24 --splits 1 --study {study}", tmp_path, capsys)
    assert found["study"]["max_count"] == 6 and found["lr"] == 0.01
    for parts, look in zip(seen, [(18, 32, "pad"), (2, 24, "crop")], strict=True):
        assert [(part.num_classes, part.view.size, part.view.fit) for part in parts] == [look] * 3
        paths = [set(part.paths.tolist()) for part in parts]
        assert sum(map(len, paths)) == len(set.union(*paths)), "no picture is in two parts"
    assert [len(part) for part in seen[1]] == [6 + 2, 4, 6]
    with pytest.raises(SystemExit):
        main(["fine-tuning", "--study", study])
    assert "--study: allowed only with a folder" in capsys.readouterr().err
