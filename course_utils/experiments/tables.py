"""Tables that take too long for a notebook: `python -m course_utils.experiments.tables ldam`.

Every cell of a table is kept as soon as it is done (in data/results/*.parts, which git ignores), so a run that was
stopped goes on where it was. A notebook shows the file; a test runs one cell anew and compares.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..data import english_letter_counts, load_images, long_tailed, step_counts
from ..heads import CosineClassifier
from ..losses import (
    DeferredReweighting,
    FocalLoss,
    LDAMHingeLoss,
    LDAMLoss,
    effective_number_weights,
    inverse_frequency_weights,
    ldam_margins,
)
from ..metrics import mean_and_spread, per_class_accuracy, shot_accuracy
from ..networks import SmallCNN
from ..runtime import write_atomically
from ..sampling import ClassBalancedSampler, DeferredResampler
from ..training import fit, predict, step_schedule
from .grid import run_grid

RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
PROFILES = {"long tail": english_letter_counts(500), "step": step_counts(26, 300, 100)}  # about as many images each
LDAM_METHODS = (
    "ERM",
    "re-weighting",
    "re-sampling",
    "class-balanced",
    "focal",
    "class-balanced focal",
    "LDAM",
    "LDAM-hinge",
    "CE + DRW",
    "CE + DRS",
    "uniform margin + DRW",
    "LDAM + DRS",
    "LDAM + DRW",
    "balanced data",
)
AT = 0.6  # the moment of deferral and of the first drop of the learning rate, as a share of training
CHOICES = {
    "lr of cross-entropy": [0.05, 0.1],
    "lr of LDAM": [0.05, 0.1],
    "beta": [0.9, 0.99, 0.999],
    "gamma": [0.5, 1.0, 2.0],
}
CHOSEN = {"lr of cross-entropy": 0.1, "lr of LDAM": 0.05, "beta": 0.99, "gamma": 2.0}


def ldam_cell(
    method: str, profile: str, seed: int, *, epochs: int = 12, chosen: Mapping[str, float] = CHOSEN
) -> dict[str, float]:
    """Train a SmallCNN on letters with one method of `LDAM_METHODS`; accuracies by group, 0 to 1, on test typefaces.

    profile: "long tail" (English letter frequency) or "step" (13 letters with 300 images, 13 with 3). seed: of the
    chosen images, the first weights and the order. "balanced data" is cross-entropy on a balanced set of the same size,
    the bound. "validation" is the balanced accuracy on validation typefaces.
    """
    if method not in LDAM_METHODS:
        raise ValueError(f"method: got {method!r}; allowed: {', '.join(LDAM_METHODS)}")
    if profile not in PROFILES:
        raise ValueError(f"profile: got {profile!r}; allowed: {', '.join(PROFILES)}")
    counts, classes = PROFILES[profile], 26
    wanted = [sum(counts) // classes] * classes if method == "balanced data" else counts
    train = long_tailed(load_images("letters", "train"), wanted, seed=seed)
    cosine = "LDAM" in method or "uniform" in method
    torch.manual_seed(seed)
    model = SmallCNN(classes, head=CosineClassifier(64, classes, scale=1.0, learn_scale=False) if cosine else None)
    fit(
        model,
        train,
        epochs=epochs,
        seed=seed,
        lr=chosen["lr of LDAM" if cosine else "lr of cross-entropy"],
        loss=_loss(method, counts, epochs, chosen),
        sampler=_sampler(method, train.labels, epochs, seed),
        schedule=partial(step_schedule, at=AT, factor=0.1, warmup=0.25),
        progress=False,
    )
    test, validation = load_images("letters", "test"), load_images("letters", "validation")
    scores = [per_class_accuracy(predict(model, d).argmax(1), d.labels, classes) for d in (test, validation)]
    return shot_accuracy(scores[0], counts) | {"validation": scores[1].mean().item()}


def _loss(method: str, counts: Sequence[int], epochs: int, chosen: Mapping[str, float]) -> Callable:
    balanced = effective_number_weights(counts, chosen["beta"])
    mean_margin = ldam_margins(counts).mean().item()
    forms = {
        "ERM": nn.CrossEntropyLoss,
        "re-weighting": partial(nn.CrossEntropyLoss, weight=inverse_frequency_weights(counts)),
        "class-balanced": partial(nn.CrossEntropyLoss, weight=balanced),
        "focal": partial(FocalLoss, chosen["gamma"]),
        "class-balanced focal": partial(FocalLoss, chosen["gamma"], weight=balanced),
        "LDAM": partial(LDAMLoss, counts),
        "LDAM-hinge": partial(LDAMHingeLoss, counts),
        "uniform margin": partial(LDAMLoss, counts, mean_margin, exponent=0),
    }
    form = forms.get(method.split(" + ")[0], nn.CrossEntropyLoss)
    return DeferredReweighting(form, counts, epochs, at=AT) if method.endswith("DRW") else form()


def _sampler(method: str, labels: torch.Tensor, epochs: int, seed: int):
    if method == "re-sampling":
        return ClassBalancedSampler(labels, seed=seed)
    return DeferredResampler(labels, epochs, at=AT, seed=seed) if method.endswith("DRS") else None


def ldam_choice(name: str, value: float) -> dict[str, float]:
    """Balanced accuracy on validation typefaces, long tail, seed 0, with one of `CHOSEN` replaced."""
    method = {
        "lr of cross-entropy": "CE + DRW",
        "lr of LDAM": "LDAM + DRW",
        "beta": "class-balanced",
        "gamma": "focal",
    }[name]
    cell = ldam_cell(method, "long tail", 0, chosen={**CHOSEN, name: value})
    return {"validation": cell["validation"]}


def ldam_table(folder: str | Path = RESULTS / "ldam_table.parts") -> dict:
    """Choices on validation typefaces, then all methods x both profiles x seeds 0 to 2; what the file holds."""
    choices = []
    for name, values in CHOICES.items():
        choices += run_grid(ldam_choice, folder=folder, name=[name], value=values)
    rows = run_grid(ldam_cell, folder=folder, method=LDAM_METHODS, profile=list(PROFILES), seed=range(3))
    return {
        "made_by": "python -m course_utils.tables ldam",
        "what": "SmallCNN on letters, 12 epochs, batch 64; accuracies from 0 to 1 on test typefaces, by group of the "
        "training counts, null for a group without classes; validation: balanced accuracy on validation typefaces",
        "profiles": PROFILES,
        "seeds": [0, 1, 2],
        "chosen_on_validation": CHOSEN,
        "choices": choices,
        "schedule": {"at": AT, "factor": 0.1, "warmup": 0.25},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": [{k: _plain(v) for k, v in row.items()} for row in rows],
    }


def _plain(value):
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


def read_ldam_table(path: str | Path = RESULTS / "ldam_table.json") -> dict:
    """The committed table, as `ldam_table()` gave it; null has become NaN."""
    table = json.loads(Path(path).read_text(encoding="utf-8"))
    table["rows"] = [{k: math.nan if v is None else v for k, v in row.items()} for row in table["rows"]]
    return table


def ldam_text(table: Mapping) -> str:
    """Lines to print: for each profile every method, mean accuracy by group in %, and the balanced one with spread."""
    lines = [f"{table['made_by']} · torch {table['torch']} · accuracy in %, mean of seeds {table['seeds']}"]
    for profile in table["profiles"]:
        lines.append(f"{profile:21s}     many   medium      few   balanced")
        for method in LDAM_METHODS:
            found = [row for row in table["rows"] if (row["method"], row["profile"]) == (method, profile)]
            groups = [mean_and_spread(row[g] for row in found)[0] for g in ("many", "medium", "few")]
            cells = "".join(" " * 9 if math.isnan(value) else f"{100 * value:9.1f}" for value in groups)
            mean, spread = mean_and_spread(row["all"] for row in found)
            lines.append(f"{method:21s}{cells}   {100 * mean:.1f} ± {100 * spread:.1f}")
    return "\n".join(lines)


TABLES = {"ldam": (ldam_table, "ldam_table.json")}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m course_utils.tables", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(TABLES))
    make, file_name = TABLES[parser.parse_args(arguments).name]
    text = json.dumps(make(), indent=1, allow_nan=False) + "\n"
    write_atomically(RESULTS / file_name, lambda file: file.write(text.encode()))
    print(RESULTS / file_name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
