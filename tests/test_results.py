"""Committed results: complete, and made by the code that stands beside them."""

import re

import pytest
import torch

from course_utils.experiments.reports import HOW_TO_READ, report_text
from course_utils.experiments.runs import RESULTS, read_study
from course_utils.experiments.studies import STUDIES, run_cell
from course_utils.experiments.tables import TABLES
from course_utils.metrics import mean_and_spread, paired_interval

# ---- `python -m course_utils experiments run NAME --out data/results/NAME`, then `report --out` ----------------------

STUDIED = sorted({path.parent.name for path in RESULTS.glob("*/study.json")} - TABLES.keys())
GROWING = {"cifar10-lt"}  # a training takes hours: what is there has all its cells, and more comes


def test_letters_and_a_second_data_set_are_there():
    assert {"letters", "fashion"} <= set(STUDIED)


@pytest.mark.parametrize("name", STUDIED)
def test_an_experiment_is_complete_and_its_report_is_that_of_its_cells(name):
    asked, cells, missing = read_study(RESULTS / name)
    whole = set(STUDIES[name].methods), len(STUDIES[name].seeds)
    there = {m for cell in cells for m in cell["methods"]}, len(asked["seeds"])
    assert not missing and asked["study"] == name
    assert there == whole or (name in GROWING and there[0] <= whole[0] and 1 <= there[1] <= whole[1])
    assert (RESULTS / name / "report.md").read_text(encoding="utf-8") == report_text(asked, cells, missing)


def test_a_training_of_the_letters_experiment_that_is_run_again_gives_the_stored_numbers():
    """On another CPU rounding differs, and with it training; hence as far as the seeds are apart, and no further."""
    asked, cells, _ = read_study(RESULTS / "letters")
    stored = {cell["seed"]: cell["methods"] for cell in cells if cell["training"] == "cross-entropy"}
    methods = list(stored[0])
    again = run_cell(asked["settings"], "cross-entropy", methods, 0)["methods"]
    assert len(methods) == 6
    for name in methods:
        spread = max(mean_and_spread(rows[name]["groups"]["all"] for rows in stored.values())[1], 0.005)
        assert again[name]["groups"]["all"] == pytest.approx(stored[0][name]["groups"]["all"], abs=4 * spread)
        assert again[name]["cost"]["backbone_images"] == stored[0][name]["cost"]["backbone_images"]


def test_what_a_report_says_about_its_intervals_is_so():
    """The share of normal samples whose interval holds the true mean, few as they may be, as the report prints it."""
    (share,) = re.findall(r"holds their true mean in (\d+) %", HOW_TO_READ.replace("\n", " "))
    generator = torch.Generator().manual_seed(1)
    for n in (2, 3, 5, 10):
        ends = [paired_interval(sample) for sample in torch.randn(1500, n, generator=generator).tolist()]
        assert 100 * sum(low <= 0 <= high for low, high in ends) / len(ends) == pytest.approx(int(share), abs=2)


def test_heads_on_pretrained_features_are_complete_and_their_report_is_that_of_the_cells():
    folder = RESULTS / "photographs" / "stamps"
    asked, cells, missing = read_study(folder)
    assert not missing and asked["settings"]["features"] == "efficientnet-lite0" and len(asked["seeds"]) == 5
    assert (folder / "report.md").read_text(encoding="utf-8") == report_text(asked, cells, missing)
