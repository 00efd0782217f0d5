"""Samplers and the tau sweep: the form of the course against the textbook form, in one process.

An epoch of a sampler at the size of iNaturalist (230,000 images of 8,142 classes here): one computation on tensors,
against a Python generator that hands out one image at a time (class-balanced) and against a sum tree with one leaf an
image (square-root). 21 values of tau at 50,000 images and 1,000 classes: one matrix product whose columns are rescaled,
against new weights and a new product for each value.

Both forms do the same work: the same number of images of each class, or the same predictions, is part of the result.
CPU seconds of one thread, the best of several repetitions, because other programs may run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from course_utils.decoupling import tau_normalize, tau_sweep
from course_utils.sampling import ClassBalancedSampler, SquareRootSampler, class_probabilities


def best_seconds(function: Callable[[], Any], repetitions: int) -> tuple[float, Any]:
    """CPU seconds of the fastest call, and what it returned."""
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        result = function()
        times.append(time.process_time() - start)
    return min(times), result


def long_tail(images: int, classes: int) -> Tensor:
    """Labels, shuffled: class sizes fall as a power of the rank; every class has at least two images."""
    share = torch.arange(1, classes + 1, dtype=torch.float64) ** -0.8
    counts = (share / share.sum() * (images - 2 * classes)).long() + 2
    counts[0] += images - counts.sum()
    labels = torch.arange(classes).repeat_interleave(counts)
    return labels[torch.randperm(images, generator=torch.Generator().manual_seed(0))]


# ---- the textbook forms --------------------------------------------------------------------------------------------


class EndlessShuffle:
    """An iterator over `items` that never ends: a new random order whenever all were shown."""

    def __init__(self, items: list[int]):
        self.items, self.place = items, len(items)

    def __iter__(self) -> EndlessShuffle:
        return self

    def __next__(self) -> int:
        if self.place == len(self.items):
            random.shuffle(self.items)
            self.place = 0
        self.place += 1
        return self.items[self.place - 1]


def members_of(labels: list[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    return members


def class_balanced_generator(members: dict[int, list[int]]) -> Iterator[int]:
    """One class after the other, in shuffled cycles; inside a class one image after the other, in shuffled cycles."""
    images = {label: EndlessShuffle(own) for label, own in members.items()}
    for label in EndlessShuffle(list(members)):
        yield next(images[label])


class SumTree:
    """A binary tree whose leaves are weights and whose nodes are sums: one draw walks from the root to a leaf."""

    def __init__(self, weights: list[float]):
        self.leaves = 1 << (len(weights) - 1).bit_length()
        self.nodes = [0.0] * self.leaves + weights + [0.0] * (self.leaves - len(weights))
        for node in range(self.leaves - 1, 0, -1):
            self.nodes[node] = self.nodes[2 * node] + self.nodes[2 * node + 1]

    def draw(self) -> int:
        node, point = 1, random.random() * self.nodes[1]
        while node < self.leaves:
            node *= 2
            if point >= self.nodes[node] and self.nodes[node + 1] > 0:
                point -= self.nodes[node]
                node += 1
        return node - self.leaves


# ---- side by side --------------------------------------------------------------------------------------------------


def compare_class_balanced(labels: Tensor, repetitions: int) -> dict:
    sampler = ClassBalancedSampler(labels)
    sampler.indices()  # sorts the images once for a whole training; the generator's table is made once, too
    ours, indices = best_seconds(sampler.indices, repetitions)
    random.seed(0)
    generator = class_balanced_generator(members_of(labels.tolist()))
    theirs, others = best_seconds(lambda: [next(generator) for _ in range(len(labels))], 1)
    counts = [torch.bincount(labels[x], minlength=len(sampler.classes)) for x in (indices, torch.tensor(others))]
    equal = torch.equal(*(c.sort().values for c in counts))
    return {
        "ours": ours,
        "textbook": theirs,
        "equal": equal,
        "says": "images of a class, smallest and largest: "
        + " and ".join(f"{int(c.min())} to {int(c.max())}" for c in counts),
    }


def compare_square_root(labels: Tensor, repetitions: int) -> dict:
    sampler = SquareRootSampler(labels)
    sampler.indices()  # sorts the images once; the tree is built once, too
    ours, indices = best_seconds(sampler.indices, repetitions)
    random.seed(0)
    tree = SumTree((sampler.counts.double() ** -0.5)[labels].tolist())
    theirs, others = best_seconds(lambda: [tree.draw() for _ in range(len(labels))], 1)
    p = class_probabilities(sampler.counts, 0.5)
    expected, deviations = p * len(labels), []
    for x in (indices, torch.tensor(others)):
        counts = torch.bincount(labels[x], minlength=len(p))
        deviations.append(((counts - expected) ** 2 / (expected * (1 - p))).mean().sqrt().item())
    equal = all(abs(d - 1) < 5 / len(p) ** 0.5 for d in deviations)
    return {
        "ours": ours,
        "textbook": theirs,
        "equal": equal,
        "says": "distance from the formula in standard deviations"
        f" (1 is chance): {deviations[0]:.2f} and {deviations[1]:.2f}",
    }


def compare_sweep(images: int, classes: int, dim: int, values: int, repetitions: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(images, dim, generator=generator).relu_()
    weight = torch.randn(classes, dim, generator=generator) * (0.2 + torch.rand(classes, 1, generator=generator))
    taus = torch.linspace(0, 2, values).tolist()
    ours, said = best_seconds(lambda: tau_sweep(features, weight, taus), repetitions)

    def again_and_again() -> Tensor:
        return torch.stack([(features @ tau_normalize(weight, tau).T).argmax(1) for tau in taus])

    theirs, others = best_seconds(again_and_again, 1)
    share = (said == others).double().mean().item()
    says = f"same predictions: {100 * share:.4f} %"
    return {"ours": ours, "textbook": theirs, "equal": share > 0.9999, "says": says}


def measure(
    images: int = 230_000,
    classes: int = 8142,
    sweep_images: int = 50_000,
    sweep_classes: int = 1000,
    dim: int = 2048,
    values: int = 21,
    repetitions: int = 5,
) -> dict:
    """CPU seconds of both forms, and whether they agree, for each of the three."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        labels = long_tail(images, classes)
        rows = {
            "class-balanced epoch": compare_class_balanced(labels, repetitions),
            "square-root epoch": compare_square_root(labels, repetitions),
            f"{values} values of tau": compare_sweep(sweep_images, sweep_classes, dim, values, min(2, repetitions)),
        }
    finally:
        torch.set_num_threads(threads)
    for row in rows.values():
        row["ratio"] = row["textbook"] / row["ours"]
    return {
        "images": images,
        "classes": classes,
        "sweep_images": sweep_images,
        "sweep_classes": sweep_classes,
        "features": dim,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "rows": rows,
    }


def table(result: dict) -> str:
    lines = [
        f"samplers: {result['images']:,} images of {result['classes']:,} classes; tau: {result['sweep_images']:,} "
        f"images, {result['sweep_classes']:,} classes, {result['features']} features; CPU seconds of one thread",
        f"{'':<24}{'course':>10}{'textbook':>10}{'ratio':>8}   agree",
    ]
    for name, row in result["rows"].items():
        agree = "yes" if row["equal"] else "NO"
        times = f"{row['ours']:>10.3f}{row['textbook']:>10.3f}{row['ratio']:>8.1f}"
        lines.append(f"{name:<24}{times}   {agree}; {row['says']}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks decoupling", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=230_000)
    parser.add_argument("--classes", type=int, default=8142)
    parser.add_argument("--sweep-images", type=int, default=50_000)
    parser.add_argument("--sweep-classes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=2048, help="length of a feature vector; 2048 is a ResNet-50")
    parser.add_argument("--values", type=int, default=21, help="values of tau, from 0 to 2")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    result = measure(
        options.images,
        options.classes,
        options.sweep_images,
        options.sweep_classes,
        options.features,
        options.values,
        options.repetitions,
    )
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["equal"] for row in result["rows"].values()) else 1
