"""The LDAM loss at the size of iNaturalist 2018, 512 images and 8,142 classes: one forward and backward.

course: `LDAMLoss`, which takes the margin off one number of each row.
one-hot: the way of the released code, written anew: a one-hot matrix, a matrix product for the margins, a difference of
    all numbers and `torch.where`.
cross-entropy: of scale * cosines without any margin, to see what the margin costs.

All get the same cosines, labels and class weights, on one CPU thread, and take turns. The median of the CPU seconds
counts: other programs hardly change it. Peak memory is what a fresh process needs beyond its cosines.
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

import torch
from torch import Tensor
from torch.nn import functional as F

from course_utils.data import exponential_counts
from course_utils.losses import LDAMLoss

SCALE = 30.0
STATUS = Path("/proc/self/status")
Loss = Callable[[Tensor, Tensor], Tensor]


def problem(batch: int, classes: int) -> tuple[Tensor, Tensor, dict[str, Loss]]:
    """Cosines (batch, classes) that want a gradient, labels, and the three losses."""
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(batch, classes, generator=generator).mul_(2).sub_(1).requires_grad_()
    labels = torch.randint(classes, (batch,), generator=generator)
    weight = torch.rand(classes, generator=generator) + 0.1
    course = LDAMLoss(exponential_counts(classes, 1000, 500), 0.5, SCALE, weight)
    margins = course.margins

    def one_hot(cosines: Tensor, labels: Tensor) -> Tensor:
        hot = torch.zeros_like(cosines, dtype=torch.uint8).scatter_(1, labels[:, None], 1)
        of_image = (margins[None] @ hot.float().T).view(-1, 1)
        shifted = torch.where(hot.bool(), cosines - of_image, cosines)
        return F.cross_entropy(SCALE * shifted, labels, weight=weight)

    def cross_entropy(cosines: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(SCALE * cosines, labels, weight=weight)

    return cosines, labels, {"course": course, "one-hot": one_hot, "cross-entropy": cross_entropy}


def step(loss: Loss, cosines: Tensor, labels: Tensor) -> tuple[float, float, Tensor]:
    """CPU seconds of a forward and backward, the loss, and the gradient."""
    cosines.grad = None
    start = time.process_time()
    value = loss(cosines, labels)
    value.backward()
    return time.process_time() - start, value.item(), cosines.grad


def peak_megabytes(way: str, batch: int, classes: int) -> float | None:
    """For a fresh process: how far its peak memory rises in one step. None outside Linux, where nothing says so."""
    if not STATUS.exists():
        return None
    torch.set_num_threads(1)
    cosines, labels, losses = problem(batch, classes)
    small = problem(4, 3)
    step(small[2][way], *small[:2])  # what torch loads at its first step is not counted
    ballast = torch.ones(64 * 2**20)  # 256 MB that lift the present need above any peak of importing
    before = _peak_kilobytes()
    step(losses[way], cosines, labels)
    after = _peak_kilobytes()
    del ballast
    return (after - before) / 1024


def _peak_kilobytes() -> int:
    return int(next(line.split()[1] for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")))


def measure(batch: int = 512, classes: int = 8142, repeats: int = 25) -> dict:
    torch.set_num_threads(1)
    cosines, labels, losses = problem(batch, classes)
    for loss in losses.values():
        step(loss, cosines, labels)
    seconds = {way: [] for way in losses}
    for _ in range(repeats):
        for way, loss in losses.items():
            seconds[way].append(step(loss, cosines, labels)[0])
    ways = {}
    for way in losses:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            peak = fresh.submit(peak_megabytes, way, batch, classes).result()
        ways[way] = {"cpu_seconds": statistics.median(seconds[way]), "peak_megabytes": peak}
    (_, a, grad_a), (_, b, grad_b) = (step(losses[way], cosines, labels) for way in ("course", "one-hot"))
    same = abs(a - b) < 1e-4 and torch.allclose(grad_a, grad_b, atol=1e-6)
    return {
        "batch": batch,
        "classes": classes,
        "repeats": repeats,
        "torch": torch.__version__,
        "ways": ways,
        "course_and_one_hot_agree": bool(same),
    }


def table(result: dict) -> str:
    course = result["ways"]["course"]["cpu_seconds"]
    lines = [
        f"{result['batch']} images, {result['classes']:,} classes, forward and backward, one thread",
        f"{'':<16}{'CPU ms':>10}{'/ course':>10}{'peak MB':>10}",
    ]
    for way, row in result["ways"].items():
        peak = "unknown" if row["peak_megabytes"] is None else f"{row['peak_megabytes']:.0f}"
        lines.append(f"{way:<16}{1000 * row['cpu_seconds']:>10.1f}{row['cpu_seconds'] / course:>10.2f}{peak:>10}")
    agree = "agree" if result["course_and_one_hot_agree"] else "DIFFER"
    return "\n".join([*lines, f"course and one-hot {agree} in value and gradient"])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks losses", description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    result = measure(options.batch, options.classes, options.repeats)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0
