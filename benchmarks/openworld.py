"""Distance to the nearest centroid and the memory read of OLTR: 128 images, 1,000 classes, 512 features, forward.

course: `nearest_distance()`: one matrix product finds the nearest centroid, and that one distance is taken exactly.
cdist: the smallest of `centroid_distances()`, which is `torch.cdist`.
expanded: the way of the released code, written anew: all differences of image and centroid as one tensor, batch x
    classes x features, their norms, and a full sort of which the first column is used.
products: no result, only the two matrix products that the course cannot do without, as a lower bound.

The memory read is the same in all of them, weights @ memory, and it is timed with them: "read" is its time alone. What
comes before the weights (hallucinator, softmax) and after the read (selector, classifier) is left out.

All get the same features, memory and weights, on one CPU thread, and take turns. The median of the CPU seconds counts:
other programs hardly change it. Peak memory, of course and expanded, is what a fresh process needs beyond its input.

Growth: the form of the course alone, at more classes and features, up to the 8,142 classes of iNaturalist 2018 with the
2,048 features of a ResNet-50; the expanded tensor at those sizes is computed, not made.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from course_utils.openworld import centroid_distances, nearest_distance

from .losses import STATUS, _peak_kilobytes


class Problem(NamedTuple):
    """Features (batch, D), memory (K, D), and weights (batch, K) whose rows sum to 1."""

    features: Tensor
    memory: Tensor
    weights: Tensor


def problem(batch: int, classes: int, features: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x, memory = (torch.randn(n, features, generator=generator) for n in (batch, classes))
    return Problem(x, memory, torch.randn(batch, classes, generator=generator).softmax(1))


def course(p: Problem) -> tuple[Tensor, Tensor]:
    return nearest_distance(p.features, p.memory), p.weights @ p.memory


def cdist(p: Problem) -> tuple[Tensor, Tensor]:
    return centroid_distances(p.features, p.memory).amin(1), p.weights @ p.memory


def expanded(p: Problem) -> tuple[Tensor, Tensor]:
    batch, classes = p.weights.shape
    difference = p.features.unsqueeze(1).expand(-1, classes, -1) - p.memory.unsqueeze(0).expand(batch, -1, -1)
    return torch.norm(difference, 2, 2).sort(1).values[:, 0], p.weights @ p.memory


def products(p: Problem) -> tuple[Tensor, Tensor]:
    return p.features @ p.memory.T, p.weights @ p.memory


def read(p: Problem) -> Tensor:
    return p.weights @ p.memory


WAYS: dict[str, Callable[[Problem], object]] = {f.__name__: f for f in (course, cdist, expanded, products, read)}


def cpu_seconds(ways: dict[str, Callable[[Problem], object]], p: Problem, repeats: int) -> dict[str, float]:
    """The median for each way; they take turns."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, function in ways.items():
            start = time.process_time()
            function(p)
            if turn:  # the first turn warms up
                seconds[way].append(time.process_time() - start)
    return {way: statistics.median(values) for way, values in seconds.items()}


def peak_megabytes(way: str, *size: int) -> float | None:
    """For a fresh process: how far its peak memory rises in one call. None outside Linux, where nothing says so."""
    if not STATUS.exists():
        return None
    torch.set_num_threads(1)
    p = problem(*size)
    WAYS[way](problem(32, 40, 5))  # what torch loads at its first call is not counted
    ballast = torch.ones(64 * 2**20)  # 256 MB that lift the present need above any peak of importing
    before = _peak_kilobytes()
    WAYS[way](p)
    after = _peak_kilobytes()
    del ballast
    return (after - before) / 1024


@torch.no_grad()
def measure(
    batch: int = 128,
    classes: int = 1000,
    features: int = 512,
    repeats: int = 25,
    growth: tuple[int, ...] = (1000, 2000, 4000, 8142),
    growth_features: int = 2048,
) -> dict:
    torch.set_num_threads(1)
    p = problem(batch, classes, features)
    seconds = cpu_seconds(WAYS, p, repeats)
    ways = {way: {"cpu_seconds": seconds[way]} for way in WAYS}
    for way in ("course", "expanded"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            peak = fresh.submit(peak_megabytes, way, batch, classes, features)
            ways[way]["peak_megabytes"] = peak.result()
    want = expanded(p)
    agree = all(torch.allclose(a, b, atol=1e-4) for f in (course, cdist) for a, b in zip(f(p), want, strict=True))
    rows = []
    for dim in dict.fromkeys((features, growth_features)):
        for number in growth:
            own = cpu_seconds({"course": course}, problem(batch, number, dim), max(1, repeats // 3))["course"]
            rows.append(
                {
                    "classes": number,
                    "features": dim,
                    "cpu_seconds": own,
                    "expanded_megabytes": batch * number * dim * 4 / 2**20,
                }
            )
    return {
        "batch": batch,
        "classes": classes,
        "features": features,
        "repeats": repeats,
        "torch": torch.__version__,
        "ways": ways,
        "growth": rows,
        "agree": agree,
    }


def table(result: dict) -> str:
    ways, course = result["ways"], result["ways"]["course"]
    lines = [
        f"{result['batch']} images, {result['classes']:,} classes, {result['features']:,} features, forward, one "
        "thread",
        f"{'':<10}{'CPU ms':>10}{'/ course':>10}{'peak MB':>10}",
    ]
    for way, row in ways.items():
        peak = row.get("peak_megabytes")
        peak = "" if peak is None else f"{peak:.1f}" if peak >= 1 else "below 1"  # the system counts no finer
        lines.append(
            f"{way:<10}{1000 * row['cpu_seconds']:>10.2f}{row['cpu_seconds'] / course['cpu_seconds']:>10.2f}{peak:>10}"
        )
    shared = ways["read"]["cpu_seconds"]
    alone = [ways[way]["cpu_seconds"] - shared for way in ("expanded", "course")]
    lines.append(
        f"without the read that all share: expanded {1000 * alone[0]:.2f} ms, course "
        f"{1000 * alone[1]:.2f} ms, ratio {alone[0] / alone[1]:.1f}"
    )
    lines.append(f"distances and reads {'agree' if result['agree'] else 'DIFFER'}")
    lines += [
        "",
        "the form of the course, and how large the expanded tensor would be",
        f"{'classes':>8}{'features':>10}{'CPU ms':>10}{'us / class':>12}{'expanded MB':>13}",
    ]
    for row in result["growth"]:
        each = 1e6 * row["cpu_seconds"] / row["classes"]
        lines.append(
            f"{row['classes']:>8,}{row['features']:>10,}{1000 * row['cpu_seconds']:>10.2f}{each:>12.2f}"
            f"{row['expanded_megabytes']:>13,.0f}"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks openworld", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--growth", type=int, nargs="+", default=[1000, 2000, 4000, 8142], metavar="CLASSES")
    parser.add_argument("--growth-features", type=int, default=2048)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    result = measure(
        options.batch,
        options.classes,
        options.features,
        options.repeats,
        tuple(options.growth),
        options.growth_features,
    )
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if result["agree"] else 1
