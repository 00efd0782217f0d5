"""published.py, best_epoch.py: numbers of papers, where they came from, ours beside them, and one habit measured."""

import json
import math
from dataclasses import fields, replace

import pytest

from course_utils.classroom import figures
from course_utils.classroom.pictures.nb07 import weighted
from course_utils.data import exponential_counts, step_counts
from course_utils.experiments import best_epoch, published
from course_utils.experiments.best_epoch import HABIT_METHODS, HABIT_SEEDS, PARTS, habit_cell, habit_summary, habits
from course_utils.experiments.command import without_effect
from course_utils.experiments.large import LARGE
from course_utils.experiments.published import (
    FILE,
    about,
    compared,
    left_out,
    not_the_same,
    protocols_of,
    published_rows,
    published_table,
    read_published,
    values,
    verdict,
)
from course_utils.experiments.reports import report_text, rows_of
from course_utils.experiments.runs import RESULTS, read_study, read_table
from course_utils.experiments.studies import STUDIES, Study
from course_utils.methods import METHODS
from course_utils.photo_sets import PUBLISHED as COUNTS

NUMBERS = read_published()
CONTENT = json.loads(FILE.read_text(encoding="utf-8"))


# ---- the file --------------------------------------------------------------------------------------------------------


def test_everything_that_the_file_names_is_used_and_every_number_is_a_share():
    assert {one.source for one in NUMBERS} == CONTENT["sources"].keys()
    assert {one.kind for one in NUMBERS} <= CONTENT["kinds"].keys()
    assert {one.protocol for one in NUMBERS} == CONTENT["protocols"].keys()
    assert all(0 < one.value < 100 and one.where for one in NUMBERS)
    same = [(one.protocol, one.method, one.group, one.source, one.kind) for one in NUMBERS]
    assert len(set(same)) == len(same)


@pytest.mark.parametrize(
    ("protocol", "source", "method", "accuracy"),
    [
        ("cifar10-lt", "Cao 2019", "cross-entropy", 70.36),
        ("cifar10-lt", "Cao 2019", "LDAM + DRW", 77.03),
        ("cifar100-lt", "Cao 2019", "LDAM + DRW", 42.04),
        ("cifar10-lt", "Zhang 2021", "balanced softmax", 77.54),
        ("cifar100-lt", "Zhang 2021", "cRT", 40.26),
        ("cifar100-lt", "Menon 2021", "logit adjustment", 44.07),
        ("imagenet-lt, ResNeXt-50", "Kang 2020", "LWS", 49.9),
    ],
)
def test_errors_become_accuracies(protocol, source, method, accuracy):
    assert values(protocol, source)[method] == accuracy


def test_groups_are_columns_and_a_gap_is_no_number():
    assert values("imagenet-lt, ResNeXt-50", "Kang 2020", "few")["tau-normalization"] == 30.7
    assert "OLTR memory" not in values("inaturalist-2018, ResNet-50", "Kang 2020")
    assert values("50 + 10 x 5", "Douillard 2020", "average")["LUCIR"] == 61.22


@pytest.mark.parametrize(
    "name", [name for name in CONTENT["protocols"] if {"images", "settings"} <= about(name).keys()]
)
def test_published_numbers_of_images_are_those_of_the_profiles(name):
    own, images = about(name)["settings"], about(name)["images"]
    if own["data"].startswith("cifar"):
        classes = int(own["data"][5:])
        make = {"exponential": exponential_counts, "step": step_counts}[own["profile"]]
        assert sum(make(classes, 50_000 // classes, own["ratio"])) == images
    else:
        counts = COUNTS[own["data"]].counts
        assert counts["train"][0] == images
        assert about(name).get("test") in (None, counts.get("test", counts["validation"])[0])


def test_an_unknown_recipe_is_refused(tmp_path):
    path = tmp_path / "published.json"
    protocols = CONTENT["protocols"] | {"cifar10-lt": CONTENT["protocols"]["cifar10-lt"] | {"recipe": "mine"}}
    path.write_text(json.dumps(CONTENT | {"protocols": protocols}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"published.json: cifar10-lt, recipe: got mine; allowed: CIFAR"):
        read_published(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "hearsay"}, "kind: got hearsay; allowed: table, README"),
        ({"source": "nobody"}, "source: got nobody"),
        ({"metric": "loss"}, "metric: got loss; allowed: accuracy, error"),
        ({"columns": [["letters", "all"]] * 8}, "protocol: got letters"),
        ({"columns": [["cifar10-lt", "all"]]}, "cross-entropy: got 8; allowed: 1 values"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change, message, tmp_path):
    path = tmp_path / "published.json"
    first, *rest = CONTENT["values"]
    path.write_text(json.dumps(CONTENT | {"values": [first | change, *rest]}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"published.json: {message}"):
        read_published(path)


# ---- beside ours -----------------------------------------------------------------------------------------------------


def test_a_study_follows_a_protocol_if_nothing_that_counts_is_changed():
    follow = {name: protocols_of(study.settings()) for name, study in STUDIES.items()}
    assert {name for name, found in follow.items() if found} == {"cifar10-lt", "cifar100-lt"}
    assert follow["cifar10-lt"] == ["cifar10-lt"] and follow["cifar100-lt"] == ["cifar100-lt"]
    large = {name: protocols_of(study.settings()) for name, study in LARGE.items()}
    assert [large[name] for name in ("imagenet-lt", "places-lt", "inaturalist-2018", "tiny-imagenet-lt")] == [
        ["imagenet-lt, ResNeXt-50"],
        ["places-lt, ResNet-152"],
        ["inaturalist-2018, ResNet-50"],
        [],
    ]
    study = STUDIES["cifar10-lt"]
    assert protocols_of(replace(study, ratio=10).settings()) == ["cifar10-lt, ratio 10"]
    assert protocols_of(replace(study, profile="step").settings()) == ["cifar10-lt, step"]
    assert protocols_of(replace(study, epochs=12).settings()) == []


CHANGED = {
    "data": "letters",
    "profile": "step",
    "max_count": 77,
    "ratio": 3,
    "size": 48,
    "network": "SmallCNN",
    "optimizer": "Adam",
    "epochs": 7,
    "batch_size": 8,
    "lr": 0.123,
    "weight_decay": 0.0,
    "schedule": {"step": "cosine", "cosine": "step"},
    "factor": 0.5,
    "warmup": 0.5,
    "defer_at": 0.5,
    "augment": "none",
    "features": "torchvision/resnet18",
}
BESIDE = {"what", "methods", "seeds", "validation", "validation_from", "precision", "shares"}  # a report tells them


@pytest.mark.parametrize("field", [field.name for field in fields(Study) if field.name not in BESIDE])
@pytest.mark.parametrize("name", ["cifar10-lt", "cifar100-lt", "imagenet-lt", "places-lt", "inaturalist-2018"])
def test_every_change_of_a_recipe_leaves_the_protocol_or_is_refused(name, field):
    study, value = (STUDIES | LARGE)[name], CHANGED[field]
    value = value[study.schedule] if isinstance(value, dict) else value
    assert protocols_of(study.settings()) and getattr(study, field) != value
    followed = protocols_of(replace(study, **{field: value}).settings())
    if field == "profile" and name.startswith("cifar"):
        assert followed == [f"{name}, step"]
    elif study.schedule == "cosine" and field == "defer_at":
        assert followed, "when DRW starts is a choice of this course there"
    else:
        assert followed == [] or field in without_effect(study)
        assert followed == [] or field in {"max_count", "ratio", "factor", "warmup"}, "of data as they are, of cosine"


def test_of_two_numbers_of_one_source_the_first_counts():
    assert values("imagenet-lt, open", "Liu 2019", "F")["OLTR memory"] == 44.6
    assert values("places-lt, open", "Liu 2019", "F")["OLTR memory"] == 50.0


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        ([72.0], "small"),
        ([67.0], "small"),
        ([66.9], "unexplained"),
        ([60.0, 70.0], "unexplained"),
        ([60.0, 66.0, 72.0], "explained by seeds"),
        ([65.0, 66.0, 67.0], "unexplained"),
    ],
)
def test_a_large_difference_is_explained_by_what_was_measured_or_not_at_all(ours, said):
    assert verdict(70.0, ours) == said


def cells_of(accuracies, names=("a", "b")):
    """Cells of a study that follows cifar10-lt: {method: its accuracy for each seed}."""
    settings = STUDIES["cifar10-lt"].settings()
    data = {"note": "JPEG re-encoding of cifar10, from an image folder (60000 jpg); not the published pixels"}
    data |= {"classes": list(names), "counts": [12_356, 50], "validation": 100, "fewest": 0, "test": 200}
    cells = []
    for method, found in accuracies.items():
        for seed, accuracy in enumerate(found):
            row = {"groups": {"many": accuracy, "medium": accuracy, "few": None, "all": accuracy}}
            row |= {"per_class": [accuracy] * 2, "validation_per_class": [None, accuracy], "validation": accuracy}
            cost = {"backbone_images": 100, "feature_images": 0, "head_images": 0, "seconds": 1.0}
            row |= {"chosen": {}, "cost": cost}
            cell = {"settings": settings, "training": method, "seed": seed, "data": data, "methods": {method: row}}
            cells.append(cell | {"device": "cpu", "precision": "float32", "versions": {"torch": "2"}, "seconds": 1.0})
    seeds = list(range(max(map(len, accuracies.values()))))
    asked = {"study": "cifar10-lt", "what": "x", "settings": settings, "seeds": seeds, "methods": list(accuracies)}
    return asked, cells


def test_a_report_has_the_published_column_and_says_what_is_not_the_same():
    asked, cells = cells_of({"LDAM + DRW": [0.760, 0.770, 0.780], "cross-entropy": [0.5], "LDAM + DRS": [0.7]})
    text = report_text(asked, cells, [])
    assert "| LDAM + DRW | 77.0 | Cao 2019 | second-hand | yes | not said | 77.0 [74.5, 79.5] | -0.0 small |" in text
    assert "| LDAM + DRW | 77.7 | Zhang 2021 | README | yes | 1 | 77.0 [74.5, 79.5] | -0.7 small |" in text
    assert "| cross-entropy | 71.4 | Menon 2021 | README | no | not said | 50.0, one seed | -21.4 unexplained |" in text
    assert "- Pixels: JPEG re-encoding of cifar10" in text and "- Training images: 12,406, published 12,406; " in text
    assert "the best on the test: Cao 2019, Zhang 2021; not chosen on the test: Menon 2021" in text
    assert "- Seeds: 3 here; Cao 2019: not said" in text and "Training takes every image of a, so" in text
    assert "nan" not in text and "not run" not in text
    for sentence in left_out("cifar10-lt", rows_of(cells)):
        assert sentence in text and "DiVE" in sentence and "LDAM + DRW," not in sentence


def test_images_set_aside_are_told_and_other_studies_have_no_such_part():
    asked, cells = cells_of({"cross-entropy": [0.7]})
    for cell in cells:
        cell["data"] = cell["data"] | {"counts": [12_256, 50], "note": "cifar10"}
    text = report_text(asked, cells, [])
    assert "12,306, published 12,406, as some are set aside for choices" in text
    assert "- Pixels: the published ones." in text
    assert "Beside published numbers" not in report_text(*read_study(RESULTS / "fashion"))


def test_a_report_of_inaturalist_says_what_its_test_is_and_that_the_published_one_chose_the_epoch():
    """Their validation images are their test; ours is two of the three images of a class."""
    chosen = {(o.source, o.protocol): o.best_on_test for o in NUMBERS if o.group == "all" and o.kind == "recalled"}
    assert chosen["Kang 2020", "inaturalist-2018, ResNet-50"] is True
    assert chosen["Kang 2020", "places-lt, ResNet-152"] is False
    settings = LARGE["inaturalist-2018"].settings()
    data = {"counts": [437_513], "test": 2 * 8142, "note": "inaturalist-2018"}
    cells = [{"data": data, "seed": 0, "precision": "bfloat16"}]
    lines = not_the_same("inaturalist-2018, ResNet-50", settings, cells, ["cRT"])
    assert "Test images: 16,284 here, published 24,426; the others are for choices here." in lines
    assert any("the best on the test: Kang 2020" in line for line in lines)
    assert any(line.startswith("Kang 2020: the validation images are the test: ") for line in lines)
    same = [{**cells[0], "data": data | {"test": 24_426}}]
    assert not any("Test images" in line for line in not_the_same("inaturalist-2018, ResNet-50", settings, same, []))


@pytest.mark.parametrize(
    ("source", "protocol", "said"),
    [
        ("Zhao 2020", "5 x 20", "the average leaves out the first task"),
        ("Menon 2021", "cifar10-lt", "1,241 on CIFAR-10 and 1,419 on CIFAR-100, not 200"),
        ("Masana 2022", "50 + 10 x 5", "ten runs with one order of the classes, from 38.8 to 50.0"),
        ("Kang 2020", "places-lt, ResNet-152", "stage 1 has no released configuration"),
    ],
)
def test_what_one_must_know_of_a_number_stands_beside_it(source, protocol, said):
    notes = {one.note for one in NUMBERS if (one.source, one.protocol) == (source, protocol)}
    assert len(notes) == 1 and said in notes.pop()


def shown(monkeypatch, *arguments, **options):
    said = []
    monkeypatch.setattr(figures, "display", lambda bundle, raw: said.append(bundle["text/plain"]))
    published_table(*arguments, **options)
    return said[0]


def test_tables_of_notebooks_are_narrow_and_count_what_they_leave_out(monkeypatch):
    four = ["many", "medium", "few", "all"]
    texts = [
        shown(monkeypatch, "50 + 5 x 10", "50 + 10 x 5", "50 + 50 x 1", groups=["average"]),
        shown(monkeypatch, "imagenet-lt, ResNeXt-50", groups=four),
        shown(monkeypatch, "imagenet-lt, ResNet-10", groups=four, their_names=True),
        shown(monkeypatch, "places-lt, open", groups=[*four[:3], "F"]),
        shown(monkeypatch, "cifar10-lt", "cifar100-lt", methods=list(METHODS)),
    ]
    rows = rows_of(cells_of({name: [0.70, 0.71, 0.75] for name in METHODS})[1])
    texts.append(shown(monkeypatch, "cifar10-lt", rows=rows, note="Ours."))
    assert max(len(line) for text in texts for line in text.splitlines()) <= 90
    assert "plain, 90 epochs" in texts[2] and "Published, without a training here: 7 methods" in texts[-1]
    assert not any("nan" in text for text in texts)


def test_a_table_says_what_one_must_know_of_its_sources_and_of_no_other(monkeypatch):
    two = "cifar10-lt", "cifar100-lt"
    text = shown(monkeypatch, *two, methods=["LDAM", "balanced softmax"], note="Published.", notes=True)
    said = " ".join(text.split())
    assert "Published. Zhang 2021: Nesterov" in said and max(map(len, text.splitlines())) <= 90
    assert "Menon 2021: example results" in said and "1,241 on CIFAR-10 and 1,419 on CIFAR-100, not 200" in said
    assert "beta" not in said, "that is about the class-balanced loss"
    assert "Menon" not in shown(monkeypatch, *two, methods=["LDAM"], notes=True)
    assert "Menon 2021: " not in shown(monkeypatch, *two, methods=["balanced softmax"])


def test_rows_come_in_the_order_that_was_asked_for_and_unknown_names_are_refused():
    rows = published_rows("cifar10-lt", "cifar100-lt", methods=["LDAM + DRW", "LDAM"])
    assert [row["method"] for row in rows] == ["LDAM + DRW"] * 2 + ["LDAM"] * 2
    assert list(rows[0]) == ["method", "cifar10-lt", "cifar100-lt", "source", "kind"]
    with pytest.raises(ValueError, match="protocol: got 'cifar'; allowed: cifar10-lt"):
        published_rows("cifar")
    with pytest.raises(ValueError, match="allowed: those with published numbers"):
        published_rows("cifar10-lt", methods=["LDAM + DRS"])
    with pytest.raises(ValueError, match=r"source, group: got 'Kang 2020', 'all'; allowed: those with numbers for cif"):
        values("cifar10-lt", "Kang 2020")
    rows = rows_of(cells_of({"LDAM + DRS": [0.7]})[1])
    assert compared("cifar10-lt", rows) == []
    with pytest.raises(ValueError, match=r"rows: got \['LDAM \+ DRS'\]; allowed: methods with published numbers"):
        published_table("cifar10-lt", rows=rows)
    with pytest.raises(ValueError, match=r"protocols: got .* allowed: one"):
        published_table("cifar10-lt", "cifar100-lt", rows=rows)


def test_a_class_without_validation_images_does_not_count_in_a_weighted_accuracy():
    rows = {"m": {0: {"per_class": [0.2, 0.4, 0.9], "validation_per_class": [None, 0.4, 0.9]}}}
    assert weighted(rows, "m", [0.5, 0.3, 0.2], "per_class") == pytest.approx([40.0])
    assert weighted(rows, "m", [0.5, 0.3, 0.2], "validation_per_class") == pytest.approx([60.0])
    assert all(math.isnan(value) for value in weighted(rows, "m", [1, 0, 0], "validation_per_class"))


# ---- the best epoch on the test --------------------------------------------------------------------------------------

TABLE = read_table(RESULTS / "best-epoch")


def test_the_last_epochs_are_those_of_the_study():
    """The same trainings, looked at after every epoch: looking changes nothing."""
    for method in HABIT_METHODS:
        stored = rows_of(read_study(RESULTS / "letters")[1])[method]
        for row in TABLE["rows"]:
            if row["method"] == method:
                assert row["test"][-1] == pytest.approx(stored[row["seed"]]["groups"]["all"], abs=0.02)
                assert row["validation"][-1] == pytest.approx(stored[row["seed"]]["validation"], abs=0.02)


def test_every_cell_has_all_epochs_and_the_best_is_never_below_another():
    for part in PARTS:
        assert [(r["method"], r["seed"]) for r in TABLE[part]] == [(m, s) for m in HABIT_METHODS for s in HABIT_SEEDS]
        for row in TABLE[part]:
            assert len(row["test"]) == len(row["validation"]) == STUDIES["letters"].epochs
            found = {name: accuracy for name, (_, accuracy) in habits(row).items()}
            assert found["test"] == pytest.approx(100 * max(row["test"])) and found["test"] >= max(found.values())


def test_habits_by_hand():
    cell = {"test": [0.1, 0.5, 0.4, 0.3], "validation": [0.1, 0.2, 0.6, 0.6]}
    assert habits(cell) == {"last": (4, 30.0), "validation": (3, 40.0), "test": (2, 50.0)}
    rows = [cell | {"method": "x", "seed": s} for s in (0, 1)]
    (row,) = habit_summary({"rows": rows, "constant": []})
    assert row == {
        "learning rate": "the rate drops",
        "method": "x",
        "last epoch": "30.00",
        "test minus last": "+20.00 [+20.00, +20.00]",
        "test minus validation": "+10.00 [+10.00, +10.00]",
    }


def test_a_training_that_is_watched_repeats(monkeypatch):
    first = habit_cell("LDAM + DRW", 0, epochs=2)
    assert habit_cell("LDAM + DRW", 0, epochs=2) == first and len(first["test"]) == 2
    monkeypatch.setattr(best_epoch, "habit_cell", lambda method, seed, schedule: schedule)
    schedule = best_epoch.constant_cell("LDAM", 0)
    assert {schedule(epoch, 20) for epoch in range(20)} == {1.0}


def test_the_note_of_a_number_reaches_its_row():
    (one,) = (
        o for o in NUMBERS if (o.protocol, o.source, o.method) == ("cifar10-lt", "Zhang 2021", "tau-normalization")
    )
    assert one.called == "tau-norm" and one.best_on_test and one.seeds == 1
    assert one.own.startswith("tau 1") and one.note.startswith("Nesterov")
    assert published.FILE.name == "published.json"
