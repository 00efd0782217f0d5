"""Studies, their data and `python -m course_utils experiments`: named data, any folder of images, errors."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from course_utils import __main__
from course_utils.data import LabeledImages, long_tailed, long_tailed_and_unused, set_aside
from course_utils.experiments import studies, study_data
from course_utils.experiments.command import main, methods, seeds
from course_utils.experiments.reports import report_text
from course_utils.experiments.studies import AUGMENTATIONS, STUDIES, run_cell
from course_utils.experiments.study_data import load_splits
from course_utils.experiments.tables import TABLES
from course_utils.methods import METHODS
from course_utils.networks import NETWORKS
from course_utils.texts import TEXT_NETWORKS

FOLDER_COUNTS = (3, 5, 9, 20, 45, 101, 200, 400)


# ---- named experiments -----------------------------------------------------------------------------------------------


def test_every_experiment_names_what_there_is():
    assert {"letters", "fashion", "cifar10-lt", "cifar100-lt", "cifar10-lt-short", "folder"} <= STUDIES.keys()
    for study in STUDIES.values():
        assert (
            set(study.methods) <= METHODS.keys()
            and study.network in NETWORKS | TEXT_NETWORKS
            and study.augment in AUGMENTATIONS
        )
        assert json.loads(json.dumps(study.settings())) == study.settings()
    letters = STUDIES["letters"]
    assert set(letters.methods) == set(METHODS) and len(letters.seeds) >= 5


@pytest.mark.parametrize("name", ["cifar10-lt", "cifar100-lt"])
def test_the_published_protocol(name):
    """Cao et al. 2019 and their released code."""
    study = STUDIES[name]
    options = studies.run_options(study.settings(), torch.float32)
    rates = [study.lr * options["schedule"](epoch, study.epochs) for epoch in range(200)]
    assert rates[:6] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    assert [rates[e] for e in (159, 160, 179, 180, 199)] == pytest.approx([0.1, 1e-3, 1e-3, 1e-5, 1e-5])
    assert (study.network, study.epochs, study.batch_size, study.weight_decay) == ("ResNet32", 200, 128, 2e-4)
    assert study.defer_at * study.epochs == 160
    images = torch.arange(1, 3 * 32 * 32 * 40 + 1).reshape(40, 3, 32, 32).remainder(255).to(torch.uint8)
    moved = options["augment"](images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.dtype == torch.uint8 and not torch.equal(moved, images)


def fake(per_class, num_classes, size=4):
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    images = torch.arange(len(labels) * 3 * size * size).remainder(251).reshape(-1, 3, size, size).to(torch.uint8)
    return LabeledImages(images, labels, tuple(f"c{j:02d}" for j in range(num_classes)))


@pytest.mark.parametrize(
    ("name", "total", "counts"),
    [
        ("cifar10-lt", 12_406, {0: 5000, 1: 2997, 2: 1796, 3: 1077, 4: 645, 5: 387, 6: 232, 7: 139, 8: 83, 9: 50}),
        ("cifar100-lt", 10_847, {0: 500, 1: 477, 2: 455, 94: 6, 95: 6, 96: 5, 99: 5}),
    ],
)
def test_training_images_of_cifar_are_the_published_ones_and_the_unused_ones_choose(name, total, counts, monkeypatch):
    study = STUDIES[name]
    classes = len(counts) if name == "cifar10-lt" else 100
    whole = 50_000 // classes
    monkeypatch.setattr(
        study_data, "_read", lambda source, split, *_: (fake(whole if split == "train" else 20, classes), ())
    )
    train, validation, test, note = load_splits(study.settings(), 0)
    assert {j: n for j, n in enumerate(train.counts.tolist()) if j in counts} == counts
    assert len(train) == total and len(test) == 20 * classes and note == study.data
    left = [min(study.validation, whole - n) for n in train.counts.tolist()]
    assert validation.counts.tolist() == left and left[0] == 0 and set(left[1:]) == {study.validation}


def test_the_short_study_sets_its_images_aside_as_it_did(monkeypatch):
    monkeypatch.setattr(study_data, "_read", lambda source, split, *_: (fake(5000, 10), ()))
    settings = STUDIES["cifar10-lt-short"].settings()
    assert "validation_from" not in settings and STUDIES["cifar10-lt"].settings()["validation_from"] == "unused"
    train, validation, *_ = load_splits(settings, 0)
    assert train.counts[0] == 4900 and validation.counts.tolist() == [100] * 10


def test_unused_images_are_no_training_images_and_the_tail_is_that_of_long_tailed():
    data = fake(30, 3, size=5)
    train, unused = long_tailed_and_unused(data, [30, 28, 2], 7, seed=1)
    numbers = [{tuple(image.flatten().tolist()) for image in part.images} for part in (train, unused)]
    assert train.counts.tolist() == [30, 28, 2] and unused.counts.tolist() == [0, 2, 7]
    assert len(numbers[0]) == 60 and len(numbers[1]) == 9 and not numbers[0] & numbers[1]
    same = long_tailed(data, [30, 28, 2], seed=1)
    assert torch.equal(train.images, same.images) and torch.equal(train.labels, same.labels)
    more = long_tailed_and_unused(data, [30, 28, 2], 8, seed=1)[1]
    assert numbers[1] < {tuple(image.flatten().tolist()) for image in more.images}
    with pytest.raises(ValueError, match="per_class: got 0; allowed: at least 1"):
        long_tailed_and_unused(data, [30, 28, 2], 0, seed=1)
    with pytest.raises(ValueError, match="counts: got all images of every class; allowed: fewer"):
        long_tailed_and_unused(data, [30] * 3, 5, seed=1)
    with pytest.raises(ValueError, match="counts: got 31 images for class 'c00'; allowed: 1 to 30"):
        long_tailed_and_unused(data, [31, 3, 3], 5, seed=1)


def test_a_class_without_images_to_choose_on_leaves_no_gap_in_cell_and_report(monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def noisy(per_class):
        data = fake(per_class, 3, size=8)
        noise = torch.randint(0, 90, data.images.shape, generator=generator)
        return replace(data, images=(noise + 60 * data.labels[:, None, None, None]).to(torch.uint8))

    parts = {"train": noisy(40), "test": noisy(20)}
    monkeypatch.setattr(study_data, "_read", lambda source, split, *_: (parts[split], ()))
    methods = ("cross-entropy", "tau-normalization", "NCM", "cRT", "LWS", "logit adjustment")
    study = replace(STUDIES["cifar10-lt"], epochs=2, max_count=40, ratio=4, validation=5, network="MLP", seeds=(0,))
    settings = study.settings() | {"precision": "float32"}
    cell = run_cell(settings, "cross-entropy", list(methods), 0)
    assert cell["data"]["counts"] == [40, 20, 10] and cell["data"]["validation"] == 10
    for name, row in cell["methods"].items():
        first, *others = row["validation_per_class"]
        assert first is None and row["validation"] == pytest.approx(sum(others) / 2, abs=2e-6)
        assert None not in row["per_class"] and (name == "NCM" or 0 < row["temperature"] < 100)
    asked = {"study": "cifar10-lt", "what": study.what, "settings": settings, "seeds": [0], "methods": list(methods)}
    text = report_text(asked, [cell], [])
    assert "Training takes every image of c00, so choices are made on the other classes" in text
    assert "nan" not in text.lower() and "partly luck" not in text


def test_images_set_aside_are_in_no_other_part():
    data = fake(30, 3)
    rest, aside = set_aside(data, 7, seed=1)
    numbers = [{tuple(image.flatten().tolist()) for image in part.images} for part in (rest, aside)]
    assert aside.counts.tolist() == [7, 7, 7] and rest.counts.tolist() == [23, 23, 23]
    assert len(numbers[0] | numbers[1]) == len({tuple(i.flatten().tolist()) for i in data.images})
    assert torch.equal(set_aside(data, 7, seed=1)[1].images, aside.images)
    assert not torch.equal(set_aside(data, 7, seed=2)[1].images, aside.images)
    for wrong in (0, 30):
        with pytest.raises(ValueError, match=f"per_class: got {wrong}; allowed: 1 to 29"):
            set_aside(data, wrong, seed=0)


def test_letters_choose_on_validation_typefaces():
    train, validation, test, note = load_splits(STUDIES["letters"].settings(), 3)
    assert sum(train.counts) == len(train) and train.counts.max() == 500
    assert len(validation) < len(test) and note == "letters"


def test_a_profile_that_the_data_cannot_fill_says_so():
    settings = STUDIES["letters"].settings() | {"profile": "exponential", "max_count": 10**6}
    train, *_, note = load_splits(settings, 0)
    assert len(set(train.counts.tolist())) == 1, "all that there are, so no tail is left"
    assert note == "letters; 26 classes have fewer images than asked for: ratio 1 instead of 100"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--defer-at", "2", "defer_at: got 2.0; allowed: 0 to 1, a share of training"),
        ("--warmup", "-1", "warmup: got -1.0; allowed: 0 to 1, a share of training"),
        ("--profile", "exponential", "validation: got 100; allowed: only with more images of each class; --profile "),
        ("--profile", "english", "profile: got english for 2 classes; allowed: 26, the letters from A to Z"),
    ],
)
def test_errors_name_the_option_of_the_command(option, value, message, tmp_path, capsys):
    for label, count in enumerate((140, 1 if value == "exponential" else 140)):
        for number in range(count):
            path = tmp_path / "images" / f"class {label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 9), number).save(path)
    words = [tmp_path / "images", "--out", tmp_path / "out", "--epochs", 1, "--seeds", 1, "--jobs", 1, option, value]
    assert main(["experiments", "run", *map(str, words), "--methods", "cross-entropy"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("text", ["99999999999999999999", "1001", "3,2147483648"])
def test_seeds_beyond_all_reason_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        main(["experiments", "run", "letters", "--seeds", text])
    assert f"got {text!r}; allowed: at most 1000 seeds, each below 2147483648" in capsys.readouterr().err


# ---- a folder of images ----------------------------------------------------------------------------------------------


def picture(path, label, number, grey):
    """A filled square whose place says the class, in one of several sizes, grey or coloured."""
    random = np.random.default_rng(1000 * label + number)
    side = int(random.integers(20, 90))
    pixels = random.integers(0, 90, (side, side + int(random.integers(0, 30)), 3)).astype(np.uint8)
    y, x = divmod(label, 3)
    pixels[y * side // 3 : (y + 1) * side // 3, x * side // 3 : (x + 1) * side // 3] += 120
    image = Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.convert("L") if grey else image).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """8 classes with 3 to 400 images, mixed sizes, grey and coloured, without splits."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    for label, count in enumerate(FOLDER_COUNTS):
        for number in range(count):
            picture(
                root / f"class {label}" / f"{number:03d}.{'png' if number % 3 else 'jpg'}",
                label,
                number,
                grey=number % 2 == 0,
            )
    return root


def test_any_folder_works_without_a_setting(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        main(
            [
                "experiments",
                "run",
                str(folder),
                "--epochs",
                "2",
                "--seeds",
                "1",
                "--jobs",
                "1",
                "--methods",
                "cross-entropy, LDAM + DRW, cRT, tau-normalization",
            ]
        )
        == 0
    )
    assert "2 trainings are in runs" in capsys.readouterr().out
    assert main(["experiments", "report", "shapes"]) == 0
    text = capsys.readouterr().out
    assert "image folder shapes (" in text and str(tmp_path) not in text and str(folder) not in text
    assert "| LDAM + DRW |" in text and (tmp_path / "runs" / "shapes" / "accuracy.png").is_file()
    for path in (tmp_path / "runs").rglob("*.json"):
        assert str(folder) not in path.read_text(), "no path of this machine"
    cell = json.loads((tmp_path / "runs" / "shapes" / "cells" / "cross-entropy-0.json").read_text())
    counts = [count - round(0.25 * count) for count in FOLDER_COUNTS]
    counts = [count - min(round(0.2 * count), count - 1) for count in counts]
    assert cell["data"]["counts"] == counts and counts[0] == 2
    assert all(value is not None for value in cell["methods"]["cross-entropy"]["per_class"])


def test_a_class_too_small_for_a_part_keeps_its_images_and_does_not_count_there(folder):
    train, validation, test, _ = load_splits(STUDIES["folder"].settings(), 0, source=str(folder))
    assert test.counts.tolist() == [round(0.25 * count) for count in FOLDER_COUNTS]
    assert validation.counts[0] == 0 and train.counts[0] == 2
    assert len(train) + len(validation) + len(test) == sum(FOLDER_COUNTS)
    assert train.images.shape[1:] == validation.images.shape[1:] == test.images.shape[1:]
    other = load_splits(STUDIES["folder"].settings(), 1, source=str(folder))[2]
    assert not torch.equal(other.images, test.images), "every seed cuts anew"


def test_a_broken_file_is_named_and_left_out_only_when_asked(tmp_path, capsys):
    for label in range(2):
        for number in range(8):
            picture(tmp_path / "data" / f"class {label}" / f"{number}.png", label, number, grey=False)
    (tmp_path / "data" / "class 1" / "broken.png").write_bytes(b"no image")
    command = [
        "experiments",
        "run",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--methods",
        "cross-entropy",
        "--jobs",
        "1",
    ]
    assert main(command) == 2
    assert "broken.png is not a readable image" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main([*command, "--skip-broken"]) == 0
    cell = json.loads((tmp_path / "out" / "cells" / "cross-entropy-0.json").read_text())
    assert "skipped 1 files that are no readable images" in cell["data"]["note"] and sum(cell["data"]["counts"]) == 10
    assert str(tmp_path) not in json.dumps(cell)


def test_a_jpeg_copy_of_cifar_says_so_wherever_it_is_reported(tmp_path):
    for split in ("train", "test"):
        for label in range(10):
            for number in range(12):
                picture(tmp_path / "copy" / split / f"class {label}" / f"{number}.jpg", label, number, grey=False)
    study = replace(STUDIES["cifar10-lt"], epochs=1, max_count=8, ratio=4, validation=2, size=8, network="MLP")
    cell = run_cell(study.settings(), "cross-entropy", ["cross-entropy"], 0, source=str(tmp_path / "copy"))
    assert cell["data"]["note"] == (
        "JPEG re-encoding of cifar10, from an image folder (240 jpg); not the published pixels"
    )
    assert cell["data"]["counts"][0] == 8 and cell["data"]["counts"][-1] == 2


# ---- the command line ------------------------------------------------------------------------------------------------


def test_list_names_experiments_and_methods(capsys):
    assert main(["experiments", "list"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in [*STUDIES, *TABLES, *METHODS])


@pytest.mark.parametrize("command", [[], ["experiments"], ["experiments", "run"]])
def test_help_is_there(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: python -m course_utils" in text and (not command or "--cluster" in text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "lettres"], "name: got 'lettres', which is no folder; allowed: letters, fashion"),
        (["run", __file__], "or a folder of images; texts in a CSV file: course_utils.texts.load_texts(), as "),
        (["run", "letters", "--methods", "LDAM-DRW"], "method: got 'LDAM-DRW'; allowed: cross-entropy"),
        (["run", "letters", "--jobs", "0"], "jobs: got 0; allowed: at least 1"),
        (["run", "letters", "--epochs", "0", "--jobs", "1"], "epochs: got 0; allowed: at least 1"),
        (["run", "folder"], "the study of a folder needs one: experiments run FOLDER"),
        (["run", ".", "--data", "."], "--data: allowed only with a named experiment"),
        (["run", "letters", "--skip-broken"], "--skip-broken: allowed only with a folder of images"),
        (["run", "letters", "--lr", "nan"], "lr: got nan; allowed: a finite number"),
        (
            ["run", "ldam-table", "--seeds", "2"],
            "seeds: got (0, 1); allowed: nothing: this experiment is always the same",
        ),
        (["run", "lucir-orders", "--data", "."], "data: got '.'; allowed: nothing: this experiment is always the same"),
        (["run", "letters", "--data", "no-such-folder"], "data: got 'no-such-folder'; allowed: a folder of images"),
        (["run", ".", "--ratio", "10"], "ratio: got 10.0; allowed: nothing: the images are taken as they are"),
        (["run", ".", "--max-count", "9"], "max_count: got 9; allowed: nothing: the images are taken as they are"),
        (["run", "letters", "--ratio", "10"], "ratio: got 10.0; allowed: nothing: English text decides the tail"),
        (["run", "letters", "--size", "9"], "size: got 9; allowed: nothing: only a folder's images are scaled"),
        (["report", "letters"], "holds no experiment"),
        (["report"], "runs/ holds no experiment"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiments", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith("error: ") and output.err.count("\n") == 1
    assert message in output.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "letters", "--seeds", "many"],
        ["run", "letters", "--seeds", "0"],
        ["run", "letters", "--seeds", "00"],
        ["run"],
        ["start"],
    ],
)
def test_a_wrong_command_ends_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["experiments", *arguments])
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [["experiments", "list"], ["predict", "a", "b"], ["grade", "03", "."]])
def test_without_the_packages_one_line_says_which_environment_is_needed(command):
    program = "import sys; sys.modules['torch'] = None; from course_utils.__main__ import main; sys.exit(main(%r))"
    done = subprocess.run([sys.executable, "-c", program % command], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"course_utils: {sys.executable} has no torch. Switch on the environment")


def test_a_missing_file_of_the_course_is_no_matter_of_the_environment(monkeypatch):
    monkeypatch.setitem(sys.modules, "course_utils.experiments.command", None)
    with pytest.raises(ModuleNotFoundError, match=r"course_utils\.experiments\.command"):
        __main__.main(["experiments", "list"])


def test_lists_on_the_command_line():
    assert seeds("3") == (0, 1, 2) and seeds("3,7") == (3, 7) and seeds("0,") == (0,)
    assert methods("LDAM + DRW, cRT") == ("LDAM + DRW", "cRT")


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("course_utils.experiments.runs.run_study", interrupted)
    assert main(["experiments", "run", "letters"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
