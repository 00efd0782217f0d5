"""Results are those of the data, settings and options that were asked for, or refused by name; files altered since."""

import io
import json
import random
import shutil
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from course_utils.classroom.exercises import check
from course_utils.data import LabeledImages
from course_utils.experiments import cells, runs, studies, study_data, workers
from course_utils.experiments.command import RUNS, main, without_effect
from course_utils.experiments.grid import run_grid
from course_utils.experiments.reports import write_report
from course_utils.experiments.runs import read_study, read_table, run_study
from course_utils.experiments.studies import STUDIES, Study, run_cell
from course_utils.experiments.study_data import files_of, images_of, load_splits
from course_utils.experiments.tables import TABLES
from course_utils.runtime import located, say

SMALL = ["--epochs", "1", "--seeds", "1", "--jobs", "1", "--network", "MLP"]
TINY = Study(what="a test", network="MLP", epochs=1, max_count=10, seeds=(0,), methods=("cross-entropy",))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_QUIET", "1")


def folder(path, counts=(8, 8), seed=0, splits=("",)):
    """Pictures that take equally many bytes whatever they show."""
    random_ = np.random.default_rng(seed)
    for split in splits:
        for label, count in enumerate(counts):
            for number in range(count):
                file = Path(path, split, f"class {label}", f"{number}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                pixels = random_.integers(0, 100, (9, 9, 3)) + 70 * label
                Image.fromarray(pixels.astype(np.uint8)).save(file, compress_level=0)
    return Path(path)


def experiments(*words, methods="cross-entropy"):
    return main(["experiments", *map(str, words), *([*SMALL, "--methods", methods] if words[0] == "run" else [])])


def accuracy_of(out):
    return read_study(out)[1][0]["methods"]["cross-entropy"]["per_class"]


# ---- the data are the ones that were asked for -----------------------------------------------------------------------


def test_two_folders_of_one_name_are_two_data_sets(capsys):
    """Equal names, counts and sizes of all files: only what is in them differs."""
    first, second = folder("site1/images"), folder("site2/images", seed=1)
    assert [p.stat().st_size for p in first.rglob("*.png")] == [p.stat().st_size for p in second.rglob("*.png")]
    assert experiments("run", first) == 0
    before = {p: p.read_bytes() for p in Path("runs").rglob("*.json")}
    assert experiments("run", second) == 2
    error = capsys.readouterr().err
    assert "runs/images/study.json was made with other settings: files '16 files, " in error.replace("\\", "/")
    assert "use another folder (--out)" in error and error.count("\n") == 1
    assert {p: p.read_bytes() for p in Path("runs").rglob("*.json")} == before
    assert experiments("run", second, "--out", "runs/second") == 0
    one, other = (read_study(RUNS / name)[0]["settings"] for name in ("images", "second"))
    assert one["source"] == other["source"] == "images" and one["files"] != other["files"]
    assert one["images"]["test"] != other["images"]["test"]
    assert experiments("run", first) == 0, "the first one is as it was"


def test_a_folder_that_grew_or_changed_is_refused_and_an_equal_copy_is_not(monkeypatch, capsys):
    path = folder("images")
    assert experiments("run", path) == 0
    ran = []
    monkeypatch.setattr(runs, "run_cell", lambda *a, **k: ran.append(a))
    assert experiments("run", path) == 0 and not ran
    shutil.copytree(path, "elsewhere/images")
    assert experiments("run", "elsewhere/images") == 0 and not ran, "the same names and contents"
    (path / ".ipynb_checkpoints").mkdir()
    shutil.copy(path / "class 0" / "0.png", path / ".ipynb_checkpoints")
    assert experiments("run", path) == 0, "hidden files are no data"
    shutil.copy(path / "class 0" / "0.png", path / "class 0" / "8.png")
    capsys.readouterr()
    assert experiments("run", path) == 2
    assert "files '16 files, " in (error := capsys.readouterr().err) and "instead of '17 files, " in error
    (path / "class 0" / "8.png").rename(path / "class 1" / "8.png")
    assert experiments("run", path) == 2
    (path / "class 1" / "8.png").unlink()
    assert experiments("run", path) == 0 and not ran


def test_what_a_process_has_read_is_read_again_after_a_change():
    path, settings = folder("images", counts=(8, 4)), STUDIES["folder"].settings()
    before = load_splits(settings, 0, source=str(path))[0]
    old = files_of(str(path)), images_of(settings, str(path))
    shutil.copy(path / "class 0" / "0.png", path / "class 1" / "4.png")
    after = load_splits(settings, 0, source=str(path))[0]
    assert before.counts.tolist() == [5, 2] and after.counts.tolist() == [5, 3]
    assert (files_of(str(path)), images_of(settings, str(path))) != old
    (path / "class 1" / "4.png").unlink()
    assert (files_of(str(path)), images_of(settings, str(path))) == old


@pytest.mark.parametrize("what", ["files", "images"])
def test_a_process_elsewhere_that_has_other_data_does_not_train(what):
    """A worker of a cluster, or a second process of a run under way."""
    mine, theirs = folder("mine/images"), folder("theirs/images", seed=1)
    settings = STUDIES["folder"].settings() | {"network": "MLP", "epochs": 1}
    now = {"files": files_of(str(mine)), "images": images_of(settings, str(mine))}
    good = run_cell(settings | now, "cross-entropy", ["cross-entropy"], 0, source=str(mine))
    assert good["settings"]["files"].startswith("16 files, ")
    with pytest.raises(ValueError, match=rf"data: the study was made with other images: {what}.*use another folder"):
        run_cell(settings | {what: now[what]}, "cross-entropy", ["cross-entropy"], 0, source=str(theirs))


def test_a_cluster_is_asked_what_its_data_are(monkeypatch):
    """The folder is there alone; a worker whose folder is another one is refused."""
    path, asked = folder("there/images"), []

    def on_cluster(address, function, calls):
        for key, arguments in calls.items():
            asked.append(getattr(function, "__name__", ""))
            yield key, function(*arguments)

    for module in (runs, cells):
        monkeypatch.setattr(module, "on_cluster", on_cluster)
    study = replace(STUDIES["folder"], network="MLP", epochs=1, seeds=(0,), methods=("cross-entropy",))
    run_study("x", study, "out", cluster="tcp://x", source=str(path))
    assert asked == ["files_of", "images_of", "_compute"]
    run_study("x", study, "out", cluster="tcp://x", source=str(path))
    assert asked[3:] == ["files_of"], "nothing is missing"
    folder("there/images", seed=1)
    with pytest.raises(ValueError, match="made with other settings: files"):
        run_study("x", study, "out", cluster="tcp://x", source=str(path))


def test_other_letters_than_those_of_a_table_are_refused(monkeypatch):
    small = replace(TABLES["ldam-table"], parts={"rows": (lambda seed: {"all": 0.5}, [{"seed": [0, 1]}])})
    monkeypatch.setitem(TABLES, "ldam-table", small)
    run_study("ldam-table", small, "out", jobs=1)
    (Path("out") / "cells" / "rows-1.json").unlink()
    real = study_data.load_images
    dimmed = lambda *a, **k: replace(d := real(*a, **k), images=d.images // 2)  # noqa: E731
    study_data._read.cache_clear(), study_data._images_of.cache_clear()
    monkeypatch.setattr(study_data, "load_images", dimmed)
    try:
        with pytest.raises(ValueError, match=r"data: the study was made with other images: images.train '23790 images"):
            run_study("ldam-table", small, "out", jobs=1)
    finally:
        study_data._read.cache_clear(), study_data._images_of.cache_clear()


def test_a_report_shows_the_fingerprint():
    path = folder("images")
    experiments("run", path)
    text = write_report("runs/images").read_text(encoding="utf-8")
    images = read_study("runs/images")[0]["settings"]["images"]
    assert f"Fingerprint of the images: train {images['train'].split()[-1]}, validation " in text
    assert images["test"].startswith("4 images of 3 x 9 x 9, 2 classes, ")


def test_an_experiment_and_a_folder_of_one_name_are_not_mixed_up(capsys):
    for name in ("letters", "lucir-orders", "folder"):
        folder(name)
        assert experiments("run", name) == 2
        assert (
            f"'{name}' is both an experiment and a folder here; write ./{name} for the folder"
            in capsys.readouterr().err
        )
    assert experiments("run", "./letters") == 0
    assert read_study("runs/letters")[0]["settings"]["data"] == "folder"
    with pytest.raises(SystemExit):
        main(["experiments", "run", "--help"])
    assert "write ./NAME for the folder" in " ".join(capsys.readouterr().out.split())


def test_a_grid_sees_other_data_other_closures_and_other_globals():
    ran = []

    def count(data, seed, offset=0):
        return {"value": int(data.labels.sum()) + seed + offset}

    def values(data, function=count):
        return [row["value"] for row in run_grid(function, fixed={"data": data}, jobs=1, folder="grid", seed=[0, 1])]

    def shifted(offset):
        return lambda data, seed: ran.append(seed) or {"value": count(data, seed, offset)["value"]}

    first = LabeledImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 1]), ("a", "b"))
    other = replace(first, labels=torch.tensor([0, 0, 1]))
    assert values(first) == [2, 3] and values(other) == [1, 2] and values(first) == [2, 3]
    assert len(list(Path("grid").iterdir())) == 4
    assert values(first, shifted(5)) == [7, 8] and values(first, shifted(9)) == [11, 12]


# ---- options ---------------------------------------------------------------------------------------------------------

OTHER = {  # another value of every option of a study
    "profile": "step",
    "max_count": 6,
    "ratio": 3.0,
    "size": 5,
    "validation": 2,
    "validation_from": "unused",
    "network": "ResNet32",
    "methods": ("LDAM",),
    "seeds": (7,),
    "epochs": 7,
    "batch_size": 9,
    "lr": 0.3,
    "weight_decay": 0.3,
    "schedule": "cosine",
    "factor": 0.3,
    "warmup": 0.6,
    "defer_at": 0.3,
    "augment": "none",
    "precision": "bfloat16",
    "optimizer": "Adam",
}
BASE = {"epochs": 10, "max_count": 8, "ratio": 2.0, "validation": 1, "methods": ("cross-entropy", "CE + DRW")}
KINDS = {  # (changes, splits of the folder or None for the named data)
    "letters": ({}, None),
    "exponential": ({"data": "fashion-mnist", "profile": "exponential"}, None),
    "step": ({"data": "fashion-mnist", "profile": "step"}, None),
    "named as it is": ({"data": "fashion-mnist", "profile": "as it is"}, None),
    "cosine": ({"schedule": "cosine"}, None),
    "cosine without DRW": ({"schedule": "cosine", "methods": ("cross-entropy", "LDAM")}, None),
    "never dropping": ({"defer_at": 1.0}, None),
    "classes alone": ({"data": "folder", "profile": "as it is"}, [""]),
    "train and test": ({"data": "folder", "profile": "as it is"}, ["train", "test"]),
    "with validation": ({"data": "folder", "profile": "as it is"}, ["train", "validation", "test"]),
    "a tail cut from a folder": ({"data": "folder", "profile": "exponential"}, ["train", "test"]),
    "a tail, validation": ({"data": "folder", "profile": "exponential"}, ["train", "validation", "test"]),
    "--data": ({"profile": "exponential"}, ["train", "test"]),
    "--data with validation": ({"profile": "step"}, ["train", "validation", "test"]),
}


def consequences(study, source):
    """All that follows from the options, but for training itself."""
    options = studies.run_options(study.settings(), torch.float32)
    schedule, switch = options.pop("schedule"), round(options.pop("defer_at") * study.epochs)
    rates = [schedule(epoch, study.epochs) for epoch in range(study.epochs)]
    deferred = any(name.endswith("DRW") for name in study.methods) and switch
    splits = [part.digest() for part in load_splits(study.settings(), 0, source=source)[:3]]
    return splits, rates, deferred, sorted(map(str, options.items())), study.network, study.methods, study.seeds


def test_every_option_is_covered():
    of_photographs = {"features", "shares"}  # tests/test_photograph_studies.py
    assert {field.name for field in fields(Study)} - {"what", "data"} - of_photographs == OTHER.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_an_effect_or_is_refused(kind, monkeypatch):
    changes, splits = KINDS[kind]
    source = None if splits is None else folder("pictures", counts=(20, 20, 20), splits=splits)
    labels = torch.arange(3).repeat(20)
    named = LabeledImages(
        torch.arange(60 * 64).remainder(251).reshape(60, 1, 8, 8).to(torch.uint8), labels, tuple("abc")
    )
    if changes.get("data") == "fashion-mnist":
        monkeypatch.setattr(study_data, "_read", lambda *_: (named, ()))
    study = Study(what="", **BASE | changes)
    idle = without_effect(study, source)
    before = consequences(study, source and str(source))
    for name, value in OTHER.items():
        if name == "schedule" and study.schedule == "cosine":
            value = "step"
        if name == "profile":
            value = "exponential" if study.profile == "step" else "as it is" if study.data == "letters" else "step"
        after = consequences(replace(study, **{name: value}), source and str(source))
        assert (after == before) == (name in idle), f"{name}: {'no ' if after == before else ''}effect in {kind}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["letters", "--jobs", "2", "--cluster", "tcp://x"], "--jobs: allowed only without --cluster"),
        (["letters", "--skip-broken"], "--skip-broken: allowed only with a folder of images"),
        (["letters", "--schedule", "cosine", "--warmup", "0.1"], "warmup: got 0.1; allowed: nothing"),
        (
            ["letters", "--schedule", "cosine", "--methods", "LDAM", "--defer-at", "0.5"],
            "defer_at: got 0.5; allowed: no",
        ),
        (["letters", "--defer-at", "1", "--factor", "0.5"], "factor: got 0.5; allowed: nothing: with defer_at 1"),
        (["pictures", "--validation", "3"], "validation: got 3; allowed: nothing: the data have validation images"),
        (["letters", "--lr", "inf"], "lr: got inf; allowed: a finite number"),
        (["letters", "--weight-decay", "nan"], "weight_decay: got nan; allowed: a finite number"),
        (
            ["letters", "--lr", "1e30", "--epochs", "1", "--methods", "cRT", "--seeds", "1", "--jobs", "1"],
            "the loss is ",
        ),
        (["~no-such-person/x"], "path: got '~no-such-person/x'; allowed: a path that exists"),
    ],
)
def test_what_cannot_have_an_effect_is_one_line(words, said, capsys):
    folder("pictures", splits=("train", "validation", "test"))
    assert main(["experiments", "run", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("error: ") and error.count("\n") == 1


# ---- the home folder -------------------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path, capsys):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home)), monkeypatch.setenv("USERPROFILE", str(home))
    folder(home / "pictures")
    assert experiments("run", "~/pictures", "--out", "~/out") == 0
    assert experiments("report", "--out", "~/out") == 0
    assert experiments("run", "cifar10-lt", "--data", "~/nothing") == 2 and "'~/nothing'" in capsys.readouterr().err
    run_study("tiny", TINY, "~/tiny", jobs=1)
    assert read_study("~/tiny")[1] and write_report("~/tiny") == home / "tiny" / "report.md"
    assert load_splits(STUDIES["folder"].settings(), 0, source="~/pictures")[0].num_classes == 2
    shutil.copytree(runs.RESULTS / "lucir-orders", home / "orders")
    assert read_table("~/orders")["rows"]
    run_grid(lambda seed: {"x": seed * 2}, jobs=1, folder="~/grid", seed=[1])
    assert sorted(p.name for p in home.iterdir()) == ["grid", "orders", "out", "pictures", "tiny"]
    assert [p.name for p in tmp_path.iterdir()] == ["home"] and located("~") == home


# ---- starts that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"lr": -1.0},
        {"batch_size": 0},
        {"network": "ResNet"},
        {"profile": "long"},
        {"validation": 10**6, "profile": "exponential", "data": "digits"},
        {"methods": ("LDAM-DRW",)},
        {"defer_at": 2.0},
        {"precision": "half"},
    ],
)
def test_a_start_that_fails_leaves_nothing_behind(wrong, tmp_path):
    with pytest.raises(ValueError):
        run_study("tiny", replace(TINY, **wrong), "out", jobs=1)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.pt"))


def test_a_training_that_was_stopped_before_its_first_cell_does_not_stop_other_settings(monkeypatch):
    real, calls = studies.all_logits, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(studies, "all_logits", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study("tiny", TINY, "out", jobs=1)
    assert sorted(path.suffix for path in Path("out", "checkpoints").iterdir()) == [".json", ".pt"]
    run_study("tiny", replace(TINY, epochs=2), "out", jobs=1)
    assert read_study("out")[0]["settings"]["epochs"] == 2 and not Path("out", "checkpoints").exists()


# ---- data that are too few -------------------------------------------------------------------------------------------


def test_a_folder_without_any_image_for_the_test_is_refused_before_training(capsys):
    folder("few", counts=(2, 2))
    assert experiments("run", "few") == 2
    assert "data: got no image for the test; allowed: classes of at least 3 images" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_without_images_for_choices_methods_that_choose_are_refused(capsys):
    folder("few", counts=(3, 3))
    assert experiments("run", "few", methods="cross-entropy, NCM") == 2
    assert "validation: got no image; allowed: images to choose on, for NCM" in capsys.readouterr().err
    assert experiments("run", "few") == 0 and experiments("report", "few") == 0


@pytest.mark.parametrize("counts", [(7, 7, 6), (7, 1), (3, 4)])
def test_small_folders_are_trained_on_and_reported(counts, capsys):
    folder("small", counts=counts)
    assert experiments("run", "small", methods="cross-entropy, LDAM + DRW") == 0
    assert experiments("report", "small") == 0
    cell = read_study("runs/small")[1][0]
    held = [round(0.25 * n) if n > 1 else 0 for n in counts]
    assert cell["data"]["test"] == sum(held)
    assert [v is None for v in accuracy_of("runs/small")] == [n == 0 for n in held], "what cannot be measured is no 0"


def test_a_report_of_cells_without_test_images_shows_dashes():
    """Of an earlier version, which trained on such folders."""
    folder("small", counts=(7, 7))
    experiments("run", "small")
    [path] = Path("runs/small/cells").iterdir()
    cell = json.loads(path.read_text())
    cell["data"]["test"], row = 0, cell["methods"]["cross-entropy"]
    row |= {"groups": dict.fromkeys(row["groups"]), "per_class": [None, None], "calibration_error": None}
    cell.pop("checksum")
    cells.write_json(path, cell)
    assert "| cross-entropy | – | – | – | – | – |" in write_report("runs/small").read_text(encoding="utf-8")


# ---- processes and outputs -------------------------------------------------------------------------------------------


def test_processes_that_cannot_start_are_named_with_the_way_out(monkeypatch):
    def full(**_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers, "get_reusable_executor", full)
    with pytest.raises(OSError, match=r"could not start or was killed: .*No space left on device; --jobs 1 "):
        run_grid(lambda seed: {"x": seed + 1}, jobs=2, seed=[1, 2])
    assert run_grid(lambda seed: {"x": seed + 1}, jobs=1, seed=[1, 2])[1]["x"] == 3


def test_workers_of_a_cluster_that_die_are_one_line(monkeypatch, capsys):
    distributed = pytest.importorskip("distributed")

    class Dead:
        def __init__(self, *_arguments, **_options):
            self.cancel = lambda keys: None

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

        def submit(self, *_arguments, **_options):
            return self

        def result(self):
            raise distributed.KilledWorker("letters", type("Worker", (), {"address": "tcp://x"})(), 3)

    monkeypatch.setattr(distributed, "Client", Dead)
    monkeypatch.setattr(distributed, "as_completed", list)
    assert main(["experiments", "run", "letters", "--cluster", "tcp://x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cluster: ") and "letters" in error and error.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp949", "cp1252", "utf-8"])
def test_any_output_can_show_everything(encoding, monkeypatch):
    run_study("tiny", replace(TINY, what="τ → ∞, 한국어 ✅"), "out", jobs=1)
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding=encoding))
    assert experiments("report", "--out", "out") == 0 and experiments("list") == 0
    assert experiments("run", "한국어 ✅") == 2
    check("1.1", lambda *_: None), say("− ·")
    sys.stdout.flush(), sys.stderr.flush()
    text = raw.getvalue().decode(encoding)
    assert text.count("error: ") == 1 and ("✅" if encoding == "utf-8" else "\\u2705") in text
    assert "τ → ∞" in Path("out/report.md").read_text(encoding="utf-8")


# ---- altered files ---------------------------------------------------------------------------------------------------

REPLACED = [b"null", b"[]", b"{}", b"-1", b'"x"', b"1e999", b"NaN", b"[" * 5000, b"\xff\xfe", b"0"]


def altered(raw, random_, case):
    place, other = random_.randrange(len(raw)), bytearray(raw)
    if case % 5 == 0:
        del other[place:]
    elif case % 5 == 1:
        other[place] ^= 1 << random_.randrange(8)
    elif case % 5 == 2:
        other[place : place + random_.randrange(1, 60)] = random_.choice(REPLACED)
    elif case % 5 == 3:  # a number
        digits = [i for i, byte in enumerate(raw) if chr(byte).isdigit()]
        place = random_.choice(digits)
        other[place] = ord(str((int(chr(raw[place])) + 1) % 10))
    else:  # whole JSON, but not ours
        content = json.loads(raw)
        key = random_.choice(list(content))
        content[key] = random_.choice([None, [], {}, 5, "x", [[[]]], {"a": None}])
        return json.dumps(content).encode()
    return bytes(other)


def test_altered_files_of_results_are_refused_by_name(record_property):
    run_study("tiny", replace(TINY, seeds=(0, 1)), "study", jobs=1)
    for name in ("study.json", "cells/choices-WA-0-02-0.json", "cells/rows-1-WA-0-05-2.json"):
        target = Path("table", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(runs.RESULTS / "lucir-orders" / name, target)
    random_, refused, same = random.Random(1), 0, 0
    files = [p for root in ("study", "table") for p in sorted(Path(root).rglob("*.json"))]
    wholes = {root: [read_study(root), read_table(root) if root == "table" else None] for root in ("study", "table")}
    for path in files:
        raw, root = path.read_bytes(), path.parts[0]
        for case in range(40):
            path.write_bytes(altered(raw, random_, case))
            try:
                again = [read_study(root), read_table(root) if root == "table" else None]
                write_report(root) if case % 10 == 0 else None
            except ValueError as error:
                assert path.name in str(error), error
                refused += 1
            else:
                assert repr(again) == repr(wholes[root]), "only blanks are different"
                same += 1
        path.write_bytes(raw)
    record_property("note", f"{40 * len(files)} altered files of results: {refused} refused by name, {same} unharmed")
    assert len(files) == 6 and refused > 200


def test_cells_that_changed_places_are_refused():
    run_study("tiny", replace(TINY, seeds=(0, 1)), "out", jobs=1)
    one, other = Path("out/cells/cross-entropy-0.json"), Path("out/cells/cross-entropy-1.json")
    shutil.copy(one, other)
    with pytest.raises(ValueError, match=r"cross-entropy-1.json was made with other settings: seed 0 instead of 1"):
        read_study("out")


def test_results_do_not_go_among_the_images(monkeypatch, capsys):
    images = folder("images")
    assert experiments("run", images, "--out", "images/results") == 2
    monkeypatch.chdir(images)
    assert experiments("run", ".") == 2
    assert capsys.readouterr().err.count("allowed: a folder outside the images") == 2
    assert sorted(p.name for p in Path().iterdir()) == ["class 0", "class 1"], "nothing is left behind"


def test_a_report_names_the_classes_that_have_no_test_image():
    images = folder("images", counts=(12, 6, 1))
    assert experiments("run", images) == 0
    text = write_report(RUNS / "images").read_text(encoding="utf-8")
    assert "No test image of class 2: no accuracy below says anything about them." in text
