"""Training with several seeds: the way of the course against the recipe of most tutorials.

Both train the same network on the same images with the same augmentation, optimizer, batch size and schedule.

course: the training set is one uint8 tensor, augmentation works on a batch, convolutions are channels-last, seeds run
    in parallel processes of one thread each (`run_grid` and `fit`). The first grid of a session starts these processes
    (seconds, to import torch); later ones find them there. Both are measured.
common recipe: torch's default memory order, torchvision transforms on PIL images through a DataLoader, with as many
    loader processes as are fastest here (0 or 2) and torch's own number of threads, one seed after the other.

Elapsed times depend on what else the machine does, so single runs of both ways take turns and the best one of each
counts. CPU seconds (of a run and its loader processes) say how much work each way is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from course_utils.data import LabeledImages, english_letter_counts, load_images, long_tailed
from course_utils.experiments.grid import run_grid
from course_utils.metrics import balanced_accuracy, mean_and_spread
from course_utils.networks import SmallCNN
from course_utils.training import cosine_schedule, fit, predict

BATCH = 64
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def clock() -> tuple[float, float]:
    """Elapsed seconds, and CPU seconds of this process and of those it has waited for."""
    return time.perf_counter(), sum(os.times()[:4])


def row(model: nn.Module, test: LabeledImages, start: tuple[float, float]) -> dict[str, float]:
    seconds, cpu_seconds = (now - then for now, then in zip(clock(), start, strict=True))
    predictions = predict(model, test).argmax(1)
    accuracy = balanced_accuracy(predictions, test.labels, test.num_classes)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "accuracy": accuracy}


def course_run(seed: int, train: LabeledImages, test: LabeledImages, epochs: int) -> dict[str, float]:
    start = clock()
    torch.manual_seed(seed)
    model = SmallCNN(train.num_classes)
    fit(model, train, epochs=epochs, batch_size=BATCH, seed=seed, progress=False, **SGD)
    return row(model, test, start)


class Pictures(Dataset):
    """One PIL image at a time through the transforms, as torchvision's own datasets do."""

    def __init__(self, data: LabeledImages):
        from torchvision import transforms  # here: the course's processes need not import it

        self.pixels, self.labels = data.images[:, 0].numpy(), data.labels.tolist()
        crop = transforms.RandomCrop(data.images.shape[-1], padding=2)
        self.transform = transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def common_run(seed: int, train: LabeledImages, test: LabeledImages, epochs: int, workers: int) -> dict[str, float]:
    start = clock()
    torch.manual_seed(seed)
    model = SmallCNN(train.num_classes).to(memory_format=torch.contiguous_format)  # torch's own; ours is channels-last
    loader = DataLoader(Pictures(train), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), **SGD)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: cosine_schedule(epoch, epochs))
    for _epoch in range(epochs):
        model.train()
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
    del loader  # ends its processes, so that their CPU time counts
    return row(model, test, start)


def measure(epochs: int = 20, max_count: int = 500, seeds: int = 4, test_per_class: int = 100) -> dict:
    """All numbers: seconds, images a second, accuracies from 0 to 1."""
    train = long_tailed(load_images("letters", "train"), english_letter_counts(max_count), seed=0)
    test = load_images("letters", "test")
    test = long_tailed(test, [test_per_class] * test.num_classes, seed=0)
    threads, load = torch.get_num_threads(), [os.getloadavg()[0]] if hasattr(os, "getloadavg") else []

    trials = {}
    for workers in (0, 2):
        common_run(0, train, test, 1, workers)  # the first steps of a process are slower
        trials[workers] = common_run(0, train, test, max(1, epochs // 10), workers)["seconds"]
    workers = min(trials, key=trials.get)

    common, alone = [], []
    for seed in range(seeds):
        torch.set_num_threads(threads)
        common.append(common_run(seed, train, test, epochs, workers))
        torch.set_num_threads(1)
        alone.append(course_run(seed, train, test, epochs))
    grid_seconds = []
    for _ in ("first grid, which starts the processes", "a later one"):
        start = time.perf_counter()
        together = run_grid(course_run, fixed={"train": train, "test": test, "epochs": epochs}, seed=range(seeds))
        grid_seconds.append(time.perf_counter() - start)
    if load:
        load.append(os.getloadavg()[0])

    def summary(single: list[dict], all_seconds: list[float], threads: int) -> dict:
        return {
            "all_seeds_seconds": all_seconds[0],
            "all_seeds_seconds_later": all_seconds[-1],
            "images_per_second": epochs * len(train) / min(r["seconds"] for r in single),
            "cpu_seconds": statistics.median(r["cpu_seconds"] for r in single),
            "accuracies": [r["accuracy"] for r in single],
            "threads": threads,
        }

    return {
        "images": len(train),
        "epochs": epochs,
        "batch_size": BATCH,
        "seeds": seeds,
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load_before_and_after": load,
        "course": summary(alone, grid_seconds, 1)
        | {
            "same_alone_and_in_the_grid": all(
                a["accuracy"] == b["accuracy"] for a, b in zip(alone, together, strict=True)
            )
        },
        "common": summary(common, [sum(r["seconds"] for r in common)], threads)
        | {"workers": workers, "trial_seconds": {str(k): v for k, v in trials.items()}},
    }


def table(result: dict) -> str:
    ways = course, common = result["course"], result["common"]
    load = " and ".join(f"{value:.1f}" for value in result["load_before_and_after"]) or "unknown"
    seeds = [way["all_seeds_seconds"] for way in ways]
    later = [way["all_seeds_seconds_later"] for way in ways]
    rates = [way["images_per_second"] for way in ways]
    cpu = [way["cpu_seconds"] for way in ways]
    means = ["{:.1f} ± {:.1f}".format(*mean_and_spread(100 * a for a in way["accuracies"])) for way in ways]
    first, second = f"{result['seeds']} seeds, seconds", "the same, a later grid"
    lines = [
        f"{result['images']:,} images, {result['epochs']} epochs, batch {result['batch_size']}; {result['cores']} "
        f"cores, load before and after: {load}",
        f"{'':<28}{'course':>14}{'common recipe':>16}{'ratio':>8}",
        f"{first:<28}{seeds[0]:>14.1f}{seeds[1]:>16.1f}{seeds[1] / seeds[0]:>8.1f}",
        f"{second:<28}{later[0]:>14.1f}{later[1]:>16.1f}{later[1] / later[0]:>8.1f}",
        f"{'best run, images a second':<28}{rates[0]:>14,.0f}{rates[1]:>16,.0f}{rates[0] / rates[1]:>8.1f}",
        f"{'CPU seconds of a run':<28}{cpu[0]:>14.1f}{cpu[1]:>16.1f}{cpu[1] / cpu[0]:>8.1f}",
        f"{'balanced accuracy in %':<28}{means[0]:>14}{means[1]:>16}",
        f"common recipe: {common['workers']} loader processes (the faster of 0 and 2), {common['threads']} threads; "
        f"course: {course['threads']} thread a process",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks training", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--max-count", type=int, default=500, help="images of the letter E; the others follow English")
    parser.add_argument("--test-per-class", type=int, default=100, help="test images of each letter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    result = measure(options.epochs, options.max_count, options.seeds, options.test_per_class)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0
