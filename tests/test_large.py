"""large.py: the four studies of photographs that stay on disk, on small stand-ins of the same layout."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from course_utils.data import exponential_counts
from course_utils.experiments import study_data
from course_utils.experiments.command import main
from course_utils.experiments.large import LARGE
from course_utils.experiments.published import protocols_of
from course_utils.experiments.runs import run_study
from course_utils.experiments.studies import PHOTO_NETWORKS, of_torchvision, run_options
from course_utils.experiments.study_data import IMAGENET, load_splits, missing
from course_utils.methods import METHODS
from course_utils.photo_sets import PUBLISHED
from course_utils.training import fit

NAMES = {study.data: name for name, study in LARGE.items()}
LISTS = {"imagenet-lt": "ImageNet_LT", "places-lt": "Places_LT", "inaturalist-2018": "iNaturalist18"}
TRAIN = {"tiny-imagenet": (6, 6, 6), "imagenet-lt": (6, 4, 2), "places-lt": (7, 3, 2), "inaturalist-2018": (5, 4, 2)}
HELD = {"tiny-imagenet": (5,), "imagenet-lt": (2, 3), "places-lt": (2, 3), "inaturalist-2018": (3,)}
QUICK = "--size 16 --network SmallCNN --epochs 1 --batch-size 4 --jobs 1 --seeds 1".split()


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (18, 24, 3), dtype=np.uint8)).save(path, "JPEG")


def lay_out(data, root):
    """Pictures and lists of three classes as they are published, and {split: what to expect}."""
    folder = root / PUBLISHED[data].folder
    splits = dict(zip(PUBLISHED[data].counts, [TRAIN[data], *((n,) * 3 for n in HELD[data])], strict=True))
    for split, numbers in splits.items():
        short, lines = {"validation": "val"}.get(split, split), []
        for label, (name, number) in enumerate(zip(("n1", "n2", "n3"), numbers, strict=True)):
            for i in range(number):
                stem = f"{short}_{label}_{i}"
                where = {
                    "tiny-imagenet": f"train/{name}/images" if split == "train" else "val/images",
                    "inaturalist-2018": f"train_val2018/Birds/{name}",
                }.get(data, f"{'train' if split == 'train' else 'val'}/{name}")
                picture(folder / where / f"{stem}.JPEG", hash((label, i)) % 1000)
                tiny = f"{stem}.JPEG\t{name}\t0\t0\t9\t9"
                lines.append(tiny if data == "tiny-imagenet" else f"{where}/{stem}.JPEG {label}")
        file = f"{LISTS[data]}_{short}.txt" if data in LISTS else "val/val_annotations.txt"
        if data in LISTS or split == "validation":
            (folder / file).write_text("\n".join(lines) + "\n")
    if data == "tiny-imagenet":
        (folder / "wnids.txt").write_text("n1\nn2\nn3\n")
    return {split: (sum(n), 3, max(n), min(n)) for split, n in splits.items()}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    return root, {data: replace(PUBLISHED[data], counts=lay_out(data, root)) for data in PUBLISHED}


@pytest.fixture
def here(stand_ins, monkeypatch):
    monkeypatch.setenv("COURSE_DATA", str(stand_ins[0]))
    monkeypatch.setattr(study_data, "PUBLISHED", stand_ins[1])
    return stand_ins[0]


# ---- protocols -------------------------------------------------------------------------------------------------------


def test_protocols_are_as_published():
    """Kang et al. 2020, released configurations: network, batch, rate, weight decay, epochs."""
    found = {n: (s.network, s.batch_size, s.lr, s.weight_decay, s.epochs, s.schedule) for n, s in LARGE.items()}
    assert found["imagenet-lt"] == ("ResNeXt-50", 512, 0.2, 5e-4, 90, "cosine")
    assert found["inaturalist-2018"] == ("ResNet-50", 512, 0.2, 1e-4, 90, "cosine")
    assert found["places-lt"] == ("ResNet-152, last stage", 256, 0.1, 5e-4, 30, "cosine")
    assert found["tiny-imagenet-lt"] == ("ResNet-18", 128, 0.1, 2e-4, 200, "step")
    for study in LARGE.values():
        assert set(study.methods) == set(METHODS) - {"OLTR memory"} and study.network in PHOTO_NETWORKS
        assert json.loads(json.dumps(study.settings())) == study.settings()
        color = "ColorJitter" in str(run_options(study.settings(), torch.float32)["augment"])
        assert color == (study.data in ("imagenet-lt", "places-lt")), "not for iNaturalist"
        counts = (
            exponential_counts(200, study.max_count, study.ratio)
            if "tiny" in study.data
            else [PUBLISHED[study.data].counts["train"][0]]
        )
        assert sum(counts) % study.batch_size != 1, "no batch of one image"
    follow = [protocols_of(study.settings()) for study in LARGE.values()]
    one_each = [["imagenet-lt, ResNeXt-50"], ["places-lt, ResNet-152"], ["inaturalist-2018, ResNet-50"]]
    assert follow == [[], *one_each], "a report shows the numbers of this network alone"
    look = models.ResNet152_Weights.IMAGENET1K_V1.transforms()
    assert (IMAGENET.mean, IMAGENET.std) == (tuple(look.mean), tuple(look.std))
    assert IMAGENET.size / IMAGENET.share == 256 and look.resize_size == [256]


@pytest.mark.parametrize(("name", "width"), [("ResNet-18", 512), ("ResNet-50", 2048), ("ResNeXt-50", 2048)])
def test_networks_begin_with_weights_of_the_seed(name, width):
    images = torch.rand(2, 3, 64, 64)
    first, again, other = (torch.manual_seed(s) and PHOTO_NETWORKS[name](5) for s in (0, 0, 1))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same) and not torch.equal(next(first.parameters()), next(other.parameters()))
    assert first.feature_dim == width and first(images).shape == (2, 5)


def test_of_a_pretrained_network_the_last_stage_and_the_classifier_learn(here):
    model = of_torchvision("resnet18", 3, learns="layer4")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train, *_ = load_splits(LARGE["places-lt"].settings() | {"size": 32}, 0)
    fit(model, train, epochs=1, batch_size=4, progress=False)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[1] for name in changed if name.startswith("backbone")} == {"layer4"}
    assert any("running_mean" in name for name in changed) and "head.weight" in changed
    last = PHOTO_NETWORKS["ResNet-152, last stage"]
    assert last.args == ("resnet152",) and last.keywords == {"weights": "IMAGENET1K_V1", "learns": "layer4"}


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", PUBLISHED)
def test_numbers_that_are_not_as_published_are_refused(stand_ins, data, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(stand_ins[0]))
    words = ["experiments", "run", NAMES[data], *QUICK, "--methods", "cross-entropy", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    said, want = capsys.readouterr().err, PUBLISHED[data].counts["train"]
    assert (
        said.startswith(f"error: {data}, train: got {sum(TRAIN[data])} images, 3 classes, ") and said.count("\n") == 1
    )
    assert f"as published, {want[0]:,} images, {want[1]:,} classes, {want[2]:,} down to {want[3]:,} images" in said
    assert not (tmp_path / "out").exists()


def test_what_was_published():
    """From the list files and the papers."""
    assert PUBLISHED["imagenet-lt"].counts["train"] == (115_846, 1000, 1280, 5)
    assert PUBLISHED["places-lt"].counts["train"] == (62_500, 365, 4980, 5)
    assert PUBLISHED["inaturalist-2018"].counts["train"] == (437_513, 8142, 1000, 2)
    assert PUBLISHED["tiny-imagenet"].counts["train"] == (100_000, 200, 500, 500)


@pytest.mark.parametrize("data", PUBLISHED)
def test_what_is_missing_is_said_in_one_line(data, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    assert main(["experiments", "run", NAMES[data], "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {data} is not here: {missing(data)}\n"
    about = PUBLISHED[data]
    assert f", into the folder {about.folder} of COURSE_DATA\n" in said and about.pictures in said
    file = {"tiny-imagenet": "wnids.txt", "inaturalist-2018": "iNaturalist18_val.txt or train2018.json, val2018.json"}
    assert file.get(data, f"{LISTS.get(data)}_train.txt, {LISTS.get(data)}_val.txt, {LISTS.get(data)}_test.txt") in said
    assert main(["experiments", "list"]) == 0
    assert f"  {NAMES[data]} is not here: {missing(data)}\n" in capsys.readouterr().out


@pytest.mark.parametrize("data", PUBLISHED)
def test_splits(here, data):
    small = {"max_count": 6, "ratio": 6} if data == "tiny-imagenet" else {}
    settings = LARGE[NAMES[data]].settings() | {"size": 16} | small
    train, validation, test, note = load_splits(settings, 0)
    assert train.class_names == validation.class_names == test.class_names == ("n1", "n2", "n3")
    assert train.counts.tolist() == ([6, 2, 1] if small else list(TRAIN[data]))
    held = {"tiny-imagenet": (1, 4), "inaturalist-2018": (1, 2)}.get(data, HELD[data])
    assert (validation.counts.tolist(), test.counts.tolist()) == ([held[0]] * 3, [held[1]] * 3)
    assert not set(validation.paths.tolist()) & set(test.paths.tolist()) and train.view.size == 16
    other = load_splits(settings, 1)
    drawn = data in ("tiny-imagenet", "inaturalist-2018")
    assert (sorted(other[1].paths.tolist()) != sorted(validation.paths.tolist())) == drawn
    held = HELD[data][0]
    assert (f"{data}, of whose {held} validation images a class 1 for choices, {held - 1} the test" == note) == drawn


def test_a_tail_that_asks_for_more_than_there_is_says_so(here):
    """As with all other data: 12, 4 and 2 photographs are asked for, each class has 6."""
    settings = LARGE["tiny-imagenet-lt"].settings() | {"size": 16, "max_count": 12, "ratio": 6}
    train, _, _, note = load_splits(settings, 0)
    assert train.counts.tolist() == [6, 4, 2]
    assert note.endswith("; 1 classes have fewer images than asked for: ratio 3 instead of 6")


def test_splits_with_other_classes_are_refused(tmp_path, monkeypatch):
    about = replace(PUBLISHED["places-lt"], counts=lay_out("places-lt", tmp_path))
    file = tmp_path / "Places_LT" / "Places_LT_test.txt"
    file.write_text(file.read_text().replace(" 0\n", " 9\n").replace(" 1\n", " 0\n").replace(" 9\n", " 1\n"))
    monkeypatch.setenv("COURSE_DATA", str(tmp_path))
    monkeypatch.setattr(study_data, "PUBLISHED", {"places-lt": about})
    with pytest.raises(ValueError, match=r"^places-lt, test: got other classes than train; allowed: the same"):
        load_splits(LARGE["places-lt"].settings(), 0)


# ---- from the command to the report ----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", PUBLISHED)
def test_a_stand_in_runs_through_all_methods_to_its_report(here, data, tmp_path, capsys):
    name, out = NAMES[data], str(tmp_path / "out")
    methods = "cross-entropy, cRT, tau-normalization, NCM, LWS, logit adjustment, LDAM + DRW, class-balanced sampling"
    if data != "places-lt":  # all of them once is enough
        methods = "cross-entropy, cRT, LDAM + DRW"
    more = ["--max-count", "6", "--ratio", "3"] if data == "tiny-imagenet" else []
    assert main(["experiments", "run", name, *QUICK, *more, "--methods", methods, "--out", out]) == 0
    cell = json.loads((tmp_path / "out" / "cells" / "cross-entropy-0.json").read_text())
    assert cell["data"]["classes"] == ["n1", "n2", "n3"] and cell["data"]["note"].startswith(data)
    assert cell["settings"]["images"]["train"].startswith(f"{sum(TRAIN[data])} photographs, 3 classes, ")
    assert all(v is not None for row in cell["methods"].values() for v in row["per_class"])
    assert str(here) not in json.dumps(cell)
    assert main(["experiments", "report", "--out", out]) == 0
    said = capsys.readouterr().out
    assert f"# Experiment: {name}" in said and "nan" not in said and "| LDAM + DRW |" in said


def test_a_network_of_torchvision_trains_and_goes_on(here, tmp_path):
    study = replace(LARGE["tiny-imagenet-lt"], size=32, max_count=6, ratio=2, epochs=1, batch_size=5, seeds=(0,))
    study = replace(study, methods=("cross-entropy", "NCM"))
    (cell,) = run_study("tiny", study, tmp_path / "a", jobs=1)
    assert run_study("tiny", study, tmp_path / "a", jobs=1) == [cell]
    again = run_study("tiny", study, tmp_path / "b", jobs=1)[0]["methods"]
    assert [row["per_class"] for row in again.values()] == [row["per_class"] for row in cell["methods"].values()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "cross-entropy, OLTR memory"], "methods: got 'OLTR memory'; allowed: all others; its attention"),
        (["--data", "."], "data: got '.'; allowed: nothing: COURSE_DATA names the folder with these photographs"),
        (["--validation", "9"], "validation: got 9; allowed: nothing: the data have validation images"),
        (["--ratio", "9"], "ratio: got 9.0; allowed: nothing: the images are taken as they are"),
        (["--skip-broken"], "--skip-broken: allowed only with a folder of images"),
        (["--augment", "shift 4, flip"], "augment: got 'shift 4, flip'; allowed: none, part, flip, part, flip, color"),
    ],
)
def test_what_these_studies_cannot_do_is_refused_by_name(words, message, here, capsys, tmp_path):
    assert main(["experiments", "run", "imagenet-lt", *QUICK, "--out", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
