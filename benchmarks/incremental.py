"""Herding and a phase of class-incremental learning: the forms of the course against the textbook forms.

herding: 20 exemplars from 500 x 64 and from 5,000 x 512 features. The course takes one product of all rows with one
    vector for each choice (`incremental.herding`). The textbook loop (iCaRL, algorithm 4) works out the mean that the
    chosen rows would have with a candidate, one candidate after the other; the array form does so for all at once.
phase: three new letters on top of fourteen, LUCIR, without augmentation. The course asks the teacher once for each
    image (`arms.PhaseObjective` with `images`); the common form asks it for every batch of every epoch.

One thread. Elapsed times depend on what else the machine does, so the ways take turns and the best run of each counts.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.data import LabeledImages, load_images, long_tailed
from course_utils.incremental import herding, train_base
from course_utils.incremental_methods import ARMS, PhaseObjective
from course_utils.networks import MLP, ImageClassifier, SmallCNN
from course_utils.training import extract_features, fit

EXEMPLARS, OLD, NEW = 20, 14, 3
NETWORKS = {"MLP": MLP, "SmallCNN": SmallCNN}


def loop_herding(features: Tensor, k: int) -> Tensor:
    """The textbook: for every candidate the mean of the chosen rows and the candidate, and how far off it is."""
    rows = F.normalize(features, dim=1)
    goal, total, chosen = rows.mean(0), torch.zeros(rows.shape[1]), []
    for t in range(1, k + 1):
        best, least = -1, torch.tensor(torch.inf)
        for i, row in enumerate(rows):
            distance = (goal - (total + row) / t).square().sum()
            if distance < least and i not in chosen:
                best, least = i, distance
        chosen.append(best)
        total = total + rows[best]
    return torch.tensor(chosen)


def array_herding(features: Tensor, k: int) -> Tensor:
    """The textbook's mean for all candidates at once, chosen rows deleted: as re-implementations do it."""
    rows = F.normalize(features, dim=1)
    goal, total, left, chosen = rows.mean(0), torch.zeros(rows.shape[1]), torch.arange(len(rows)), []
    for t in range(1, k + 1):
        best = (goal - (total + rows) / t).square().sum(1).argmin()
        chosen.append(left[best])
        total = total + rows[best]
        rows, left = (torch.cat([x[:best], x[best + 1 :]]) for x in (rows, left))
    return torch.stack(chosen)


def best_seconds(ways: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, object]]:
    """The ways take turns of at least 0.1 seconds: seconds of the best run of each, and what each gave."""
    seconds, results = {name: [] for name in ways}, {}
    for _ in range(repeats):
        for name, way in ways.items():
            turn = 0.0
            while turn < 0.1:
                start = time.perf_counter()
                results[name] = way()
                seconds[name].append(time.perf_counter() - start)
                turn += seconds[name][-1]
    return {name: min(times) for name, times in seconds.items()}, results


def measure_herding(images: int, dim: int, repeats: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, dim, generator=generator) + torch.randn(dim, generator=generator)
    forms = {"course": herding, "array": array_herding, "loop": loop_herding}
    seconds, chosen = best_seconds({k: functools.partial(f, features, EXEMPLARS) for k, f in forms.items()}, repeats)
    same = all(torch.equal(chosen["course"], other) for other in chosen.values())
    return {"images": images, "dim": dim, "seconds": seconds, "same_order": same}


def train_phase(base: ImageClassifier, data: LabeledImages, cached: bool, epochs: int) -> ImageClassifier:
    """LUCIR's second phase by hand: rows for new classes, imprinted; old rows frozen; teacher beside the student."""
    model = copy.deepcopy(base)
    new = data.subset((data.labels >= OLD).nonzero()[:, 0])
    model.head.extend(NEW)
    model.head.imprint(extract_features(model, new), new.labels)
    model.head.freeze_old_rows()
    objective = PhaseObjective(ARMS["LUCIR"], base, OLD, NEW, images=data if cached else None)
    fit(model, data, objective=objective, epochs=epochs, batch_size=128, lr=0.05, augment=None, progress=False)
    return model


def measure_phase(network: str, max_count: int, epochs: int, repeats: int) -> dict:
    letters = load_images("letters", "train").only("ABCDEFGHIJKLMNOPQ")
    letters = long_tailed(letters, [max_count] * (OLD + NEW), seed=0)
    old = letters.only(letters.class_names[:OLD])
    base = train_base("cosine", old, network=NETWORKS[network], epochs=epochs, augment=None)
    keep = [(letters.labels >= OLD).nonzero()[:, 0]]
    for j in range(OLD):
        mine = (letters.labels == j).nonzero()[:, 0]
        keep.append(mine[herding(extract_features(base, letters.subset(mine)), min(EXEMPLARS, len(mine)))])
    data = letters.subset(torch.cat(keep))
    ways = {way: functools.partial(train_phase, base, data, way == "course", epochs) for way in ("course", "common")}
    seconds, models = best_seconds(ways, repeats)
    pairs = zip(*(model.parameters() for model in models.values()), strict=True)
    difference = max((a - b).abs().max().item() for a, b in pairs)
    moved = (models["course"].backbone[1].weight - base.backbone[1].weight).abs().max().item()
    return {
        "network": network,
        "images": len(data),
        "seconds": seconds,
        "largest_difference": difference,
        "largest_change_by_training": moved,
    }


def measure(sizes: list[tuple[int, int]], max_count: int = 500, epochs: int = 8, repeats: int = 3) -> dict:
    """All numbers; times in seconds."""
    torch.set_num_threads(1)
    load = [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []
    results = {
        "herding": [measure_herding(*size, repeats) for size in sizes],
        "phase": [measure_phase(network, max_count, epochs, repeats) for network in NETWORKS],
    }
    if load:
        load.append(os.getloadavg()[0])
    return {
        "exemplars": EXEMPLARS,
        "epochs": epochs,
        "repeats": repeats,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load_before_and_after": load,
    } | results


def table(result: dict) -> str:
    load = " and ".join(f"{value:.1f}" for value in result["load_before_and_after"]) or "unknown"
    lines = [
        f"best of {result['repeats']}, one thread; {result['cores']} cores, load before and after: {load}",
        f"{'milliseconds':<28}{'course':>12}{'array form':>12}{'ratio':>8}{'loop':>12}{'ratio':>8}  same order",
    ]
    for row in result["herding"]:
        course, array, loop = (1000 * row["seconds"][way] for way in ("course", "array", "loop"))
        what = f"{result['exemplars']} of {row['images']:,} x {row['dim']}"
        lines.append(
            f"{what:<28}{course:>12.2f}{array:>12.1f}{array / course:>8.1f}{loop:>12.1f}{loop / course:>8.0f}"
            f"  {'yes' if row['same_order'] else 'NO'}"
        )
    lines.append(f"{'seconds':<28}{'course':>12}{'each batch':>12}{'ratio':>8}  largest difference of a weight")
    for row in result["phase"]:
        course, common = (row["seconds"][way] for way in ("course", "common"))
        what = f"{row['network']}, {row['images']:,} x {result['epochs']} epochs"
        differ = f"{row['largest_difference']:.1e} (training changed one by {row['largest_change_by_training']:.1e})"
        lines.append(f"{what:<28}{course:>12.2f}{common:>12.2f}{common / course:>8.2f}  {differ}")
    return "\n".join(lines)


def size(text: str) -> tuple[int, int]:
    images, dim = text.split("x")
    return int(images), int(dim)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks incremental", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sizes", type=size, nargs="+", default=[(500, 64), (5000, 512)], metavar="NxD", help="features for herding"
    )
    parser.add_argument("--epochs", type=int, default=8, help="of a phase")
    parser.add_argument("--max-count", type=int, default=500, help="images of each letter")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    result = measure(options.sizes, options.max_count, options.epochs, options.repeats)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0
