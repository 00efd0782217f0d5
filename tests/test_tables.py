"""Tables of lessons: those committed say how they were made, and a part of each comes out the same today."""

import inspect
import json
import math
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

from course_utils.experiments import tables
from course_utils.experiments.command import main
from course_utils.experiments.ldam_rivals import (
    CHOICES,
    CHOSEN,
    EPOCHS,
    FIVE_SEEDS,
    LDAM_METHODS,
    PROFILES,
    ROWS,
    SCHEDULE,
    ldam_cell,
    ldam_text,
)
from course_utils.experiments.orders import (
    COMPARED,
    ORDER_METHODS,
    OWN_RATES,
    RATE,
    RATES_TRIED,
    SHUFFLED,
    order_cell,
    order_differences,
    order_text,
    order_values,
    phases_of,
)
from course_utils.experiments.reports import table_report
from course_utils.experiments.runs import RESULTS, read_study, read_table, run_study
from course_utils.experiments.studies import STUDIES
from course_utils.experiments.study_data import images_of
from course_utils.experiments.tables import TABLES
from course_utils.incremental import run_incremental
from course_utils.incremental_methods import ARMS, CONTROLS
from course_utils.metrics import mean_and_spread

TABLE = read_table(RESULTS / "ldam-table")
ORDERS = read_table(RESULTS / "lucir-orders")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_cell_is_there_once_with_the_settings_of_today():
    cells = [{key: row[key] for key in ("method", "profile", "seed")} for row in TABLE["rows"]]
    assert cells == [own for part, own in TABLES["ldam-table"].rows() if part == "rows"]
    seeds = Counter(cell["method"] for cell in cells)
    assert set(seeds) == set(ROWS) <= set(LDAM_METHODS)
    assert all(seeds[method] == (5 if method in FIVE_SEEDS else 3) for method in seeds)
    images = images_of(STUDIES["letters"].settings())
    assert TABLE["settings"] == {"epochs": EPOCHS, **SCHEDULE, "chosen": CHOSEN, "counts": PROFILES, "images": images}
    assert TABLE["torch"] and inspect.signature(ldam_cell).parameters["epochs"].default == EPOCHS


def test_settings_were_chosen_on_validation_typefaces():
    for name, (methods, values) in CHOICES.items():
        rows = [row for row in TABLE["choices"] if row["name"] == name]
        assert sorted((row["method"], row["value"]) for row in rows) == sorted(product(methods, values))
        tried = {v: mean_and_spread(row["validation"] for row in rows if row["value"] == v)[0] for v in values}
        best = max(tried, key=lambda value: tried[value])
        if 0.1 in tried and tried[best] - tried[0.1] < 0.005:
            best = 0.1  # the released rate stays, unless another one is half a point better
        assert CHOSEN[name] == best


def test_accuracies_are_shares_and_the_step_profile_has_no_medium_class():
    for row in TABLE["rows"]:
        assert all(0 <= row[k] <= 1 for k in ("many", "medium", "few", "all", "validation"))
    step = ldam_cell("LDAM", "step", 0, epochs=1)
    assert math.isnan(step.pop("medium")) and all(0 <= value <= 1 for value in step.values())


@pytest.mark.parametrize(("method", "profile", "seed"), [("LDAM + DRW", "long tail", 1)])
def test_a_cell_comes_out_the_same_today(method, profile, seed):
    """Other machines and versions of torch round otherwise; the spread over seeds is about 1 point."""
    (stored,) = (r for r in TABLE["rows"] if (r["method"], r["profile"], r["seed"]) == (method, profile, seed))
    now = ldam_cell(method, profile, seed)
    assert now["all"] == pytest.approx(stored["all"], abs=0.03)
    assert now["many"] == pytest.approx(stored["many"], abs=0.03)
    assert now["few"] == pytest.approx(stored["few"], abs=0.12)  # four letters with 3 to 6 images


@pytest.mark.parametrize("method", LDAM_METHODS)
def test_every_method_runs_and_repeats(method):
    first = ldam_cell(method, "long tail", 0, epochs=1)
    assert set(first) == {"many", "medium", "few", "all", "validation"}
    if method in ("LDAM-hinge", "LDAM + DRS", "cross-entropy + DRW"):
        assert ldam_cell(method, "long tail", 0, epochs=1) == first


@pytest.mark.parametrize(
    ("method", "profile", "message"),
    [("LDAM-DRW", "step", "method: got 'LDAM-DRW'; allowed: cross-entropy"), ("LDAM", "steps", "profile: got 'steps'")],
)
def test_unknown_names_are_refused(method, profile, message):
    with pytest.raises(ValueError, match=message):
        ldam_cell(method, profile, 0)


def test_the_text_has_every_method():
    text = ldam_text(TABLE)
    assert "run ldam-table" in text and "nan" not in text
    assert all(sum(line.startswith(f"{method:23s} ") for line in text.splitlines()) == 1 for method in ROWS)


# ---- classes that arrive in another order ----------------------------------------------------------------------------


def test_every_method_order_and_seed_is_there_once():
    cells = Counter((row["order"], row["arm"], row["lr"], row["seed"]) for row in ORDERS["rows"])
    trained = [(0, arm, RATE) for arm in ARMS | CONTROLS] + [(order, arm, RATE) for order in (1, 2) for arm in SHUFFLED]
    trained += [(order, *own) for order in (0, 1, 2) for own in OWN_RATES.items()]
    assert cells == Counter((*which, seed) for which in trained for seed in range(5))
    text = order_text(ORDERS)
    assert "nan" not in text and max(map(len, text.splitlines())) <= 120
    assert all(text.count(f"\n{arm:27s} ") >= (3 if arm in SHUFFLED else 1) for arm in ORDER_METHODS)
    assert {name for pair in COMPARED for name in pair} <= ORDER_METHODS.keys()


def test_rates_were_chosen_on_validation_typefaces():
    """Every method runs at one rate, and those that did better at another one also run there."""
    best = {}
    for name, tried in RATES_TRIED.items():
        found = {lr: [r["validation"] for r in ORDERS["choices"] if (r["arm"], r["lr"]) == (name, lr)] for lr in tried}
        assert all(len(values) == 3 for values in found.values())
        best[name] = max(found, key=lambda lr: sum(found[lr]))
        assert min(tried) < best[name] < max(tried), "not at an edge"
    assert {name: lr for name, lr in best.items() if lr != RATE} == OWN_RATES
    assert inspect.signature(run_incremental).parameters["lr"].default == RATE


def test_the_orders_are_those_of_today_and_hold_every_letter_once():
    assert phases_of(0) == ["ABCDEFGHIJKLMN", "OPQ", "RST", "UVW", "XYZ"]
    assert list(ORDERS["settings"]["orders"]) == ["0", "1", "2"]
    for order, phases in ORDERS["settings"]["orders"].items():
        assert phases == phases_of(int(order))
        assert sorted("".join(phases)) == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_values_and_differences_of_a_table_are_those_of_its_cells():
    rows = [row for row in ORDERS["rows"] if (row["order"], row["arm"], row["lr"]) == (1, "BiC", RATE)]
    assert order_values(ORDERS, 1, "BiC", "average") == {row["seed"]: 100 * row["average"] for row in rows}
    gaps = order_values(ORDERS, 1, "BiC", "bias_gap")
    assert gaps == {row["seed"]: sum(row["phases"]["bias_gap"]) / 4 for row in rows}
    drift, lucir = (order_values(ORDERS, 1, arm, "drift") for arm in ("BiC", "LUCIR"))
    assert drift == pytest.approx({row["seed"]: 25 * sum(row["phases"]["drift"]) for row in rows})
    assert order_differences(ORDERS, 1, "LUCIR", "BiC", "drift") == [lucir[seed] - drift[seed] for seed in range(5)]
    assert all(math.isnan(value) for value in order_values(ORDERS, 1, "LUCIR", "bias_gap").values())
    assert order_values(ORDERS, 1, "LUCIR", "average", OWN_RATES["LUCIR"]) != order_values(
        ORDERS, 1, "LUCIR", "average"
    )
    with pytest.raises(ValueError, match=r"order, arm, lr: got 3, 'LUCIR', 0.05; allowed: those of the table"):
        order_values(ORDERS, 3, "LUCIR", "average")


def test_what_a_cell_says_fits_together():
    for row in ORDERS["rows"]:
        phases = row["phases"]
        assert row["average"] == pytest.approx(sum(phases["accuracy"]) / 5, abs=2e-6)
        assert row["accuracy"] == phases["accuracy"][-1]
        assert row["accuracy"] == pytest.approx((23 * row["old"] + 3 * row["newest"]) / 26, abs=1e-5)
        assert [len(phases[key]) for key in ("old_to_new", "new_to_old", "drift", "norm_ratio")] == [4] * 4
        arm = ORDER_METHODS[row["arm"]]
        assert ("bias_gap" in phases) == (arm.head == "linear")
        assert (max(phases["row_angle"]) == 0) == (arm.freeze_old_rows and arm.correct != "fine-tune")


def test_a_cell_that_is_run_again_gives_the_stored_numbers():
    """On another CPU rounding differs, and with it training; hence as far as the seeds are apart, and no further."""
    rows = [row for row in ORDERS["rows"] if (row["order"], row["arm"], row["lr"]) == (1, "LUCIR", RATE)]
    [row] = [row for row in rows if row["seed"] == 0]
    again = order_cell(1, "LUCIR", row["lr"], 0)
    assert again.keys() == row.keys() - {"order", "arm", "lr", "seed", "orders", "images"}
    spread = max(mean_and_spread(r["average"] for r in rows)[1], 0.003)
    assert again["average"] == pytest.approx(row["average"], abs=4 * spread)
    others = [r["phases"]["drift"][-1] for r in ORDERS["rows"] if (r["order"], r["arm"]) == (1, "cosine")]
    drift = again["phases"]["drift"][-1]
    assert 0 < drift < min(others) / 3, "what the constraint is for; its size follows rounding, seed by seed"


# ---- `python -m course_utils experiments run NAME` -------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in TABLES if name != "imdb"])  # whose reviews do not ship
def test_a_table_is_complete_and_its_report_is_that_of_its_cells(name):
    asked, cells, missing = read_study(RESULTS / name)
    assert (asked["study"], asked["what"], missing) == (name, TABLES[name].what, [])
    assert len(cells) == len(list(TABLES[name].rows())) == len(list((RESULTS / name / "cells").iterdir()))
    text = (RESULTS / name / "report.md").read_text(encoding="utf-8")
    assert text == table_report(read_table(RESULTS / name), missing)


@pytest.fixture
def small(monkeypatch):
    """The table of LDAM with cells that cost nothing; the list of what ran."""
    ran = []

    def cell(method, profile, seed):
        ran.append((method, profile, seed))
        accuracy = 0.1 * seed + 0.5
        return {"many": accuracy, "medium": math.nan, "few": 1 / 3, "all": accuracy, "validation": 1.0}

    grid = {"method": ["cross-entropy", "LDAM"], "profile": ["step"], "seed": [0, 1]}
    table = replace(TABLES["ldam-table"], parts={"choices": (cell, []), "rows": (cell, [grid])})
    monkeypatch.setitem(tables.TABLES, "ldam-table", table)
    return ran


def test_a_table_goes_on_where_it_was_and_its_cells_are_strict_json(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiments", "run", "ldam-table", "--jobs", "1"]) == 0
    assert "4 trainings are in runs" in capsys.readouterr().out and len(small) == 4
    path = tmp_path / "runs" / "ldam-table" / "cells" / "rows-LDAM-step-1.json"
    cell = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert cell["result"] == {"many": 0.6, "medium": None, "few": 0.333333, "all": 0.6, "validation": 1.0}
    assert cell["settings"]["method"] == "LDAM" and cell["settings"]["epochs"] == EPOCHS
    assert cell["versions"]["torch"] and cell["device"].startswith("cpu") and cell["seconds"] >= 0
    path.unlink()
    assert main(["experiments", "report", "ldam-table"]) == 0
    assert "**Incomplete**: 1 trainings are missing (rows, LDAM, step, 1)." in capsys.readouterr().out
    assert main(["experiments", "run", "ldam-table", "--jobs", "1"]) == 0 and small[4:] == [("LDAM", "step", 1)]
    assert main(["experiments", "report"]) == 0
    assert f"{'LDAM':23s}{55.0:9.1f}" in capsys.readouterr().out, "a mean of both seeds"
    [row] = [row for row in read_table(path.parents[1])["rows"] if (row["method"], row["seed"]) == ("cross-entropy", 0)]
    assert row["all"] == 0.5 and math.isnan(row["medium"])


def test_cells_of_other_settings_and_damaged_ones_are_refused_by_name(small, tmp_path):
    run_study("ldam-table", TABLES["ldam-table"], tmp_path, jobs=1)
    path = tmp_path / "cells" / "rows-cross-entropy-step-0.json"
    text = path.read_text()
    for wrong, said in (
        (
            text.replace(f'"epochs": {EPOCHS}', '"epochs": 1'),
            f"cross-entropy-step-0.json was made .* epochs 1 instead of {EPOCHS}",
        ),
        (text.replace('"result"', '"results"'), "cross-entropy-step-0.json is no file of this program"),
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=said):
            run_study("ldam-table", TABLES["ldam-table"], tmp_path, jobs=1)
    other = replace(TABLES["ldam-table"], fixed={**TABLES["ldam-table"].fixed, "epochs": 3})
    with pytest.raises(ValueError, match=r"study.json was made with other settings: epochs 12 instead of 3"):
        run_study("ldam-table", other, tmp_path, jobs=1)
