"""Training ResNet-32 on 32 x 32 images: the way of the course's experiments against the recipe of most tutorials.

Both train the same network on the same images with the same augmentation (shifts of 4 pixels and mirroring), batch size
and SGD. The pictures are noise: what they show does not change the speed.

course: the training set is one uint8 tensor on the device, augmentation works on a batch, everything is channels-last;
    on a CPU one process of one thread for each core, each with a seed of its own; on a GPU one process and bfloat16.
    On a CPU bfloat16 (autocast) is measured beside float32.
common recipe: torchvision transforms on PIL images through a DataLoader with as many loader processes as are fastest
    here, float32, torch's default memory order and number of threads, one seed after the other.

Both take turns, and the best turn of each counts. The first steps of a process are left out. `peak` is what the
processor can do at most in the same products of matrices: the arithmetic of the network divided by it says how much
there is to win by a better program.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from course_utils.data import LabeledImages
from course_utils.experiments.grid import run_grid
from course_utils.experiments.studies import shift_and_flip
from course_utils.experiments.workers import jobs_or_default
from course_utils.networks import ResNet32
from course_utils.runtime import choose_device
from course_utils.training import fit

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 2e-4}
MULTIPLICATIONS = 69e6  # of ResNet-32, for one 32 x 32 image forward


def noise(images: int) -> LabeledImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return LabeledImages(pixels, torch.arange(images) % 10, tuple("abcdefghij"))


def course_run(seed: int, images: int, batch_size: int, precision: str) -> dict[str, float]:
    """Images a second of one process, first epoch left out."""
    device, _ = choose_device()
    torch.manual_seed(seed)
    model, train = ResNet32(10).to(device), noise(images).to(device)
    history = fit(
        model,
        train,
        epochs=3,
        batch_size=batch_size,
        augment=shift_and_flip,
        seed=seed,
        progress=False,
        precision=getattr(torch, precision),
        **SGD,
    )
    return {"rate": images / min(row["seconds"] for row in history[1:])}


class Pictures(Dataset):
    """One PIL image at a time through the transforms, as torchvision's own datasets do."""

    def __init__(self, data: LabeledImages):
        from torchvision import transforms

        self.pixels, self.labels = data.images.permute(0, 2, 3, 1).contiguous().numpy(), data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.5,) * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def common_run(images: int, batch_size: int, workers: int) -> float:
    """Images a second of an epoch after the first."""
    device, _ = choose_device()
    model = ResNet32(10).to(device, memory_format=torch.contiguous_format)
    loader = DataLoader(
        Pictures(noise(images)),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type != "cpu",
    )
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), **SGD)
    for _epoch in range(2):
        start, total = time.perf_counter(), 0.0
        for pixels, labels in loader:
            pixels, labels = pixels.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(pixels), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        seconds = time.perf_counter() - start
    return images / seconds


def peak(precision: str, size: int) -> float:
    """Multiplications a second of a product of square matrices, on one thread of a CPU or the whole GPU."""
    device, _ = choose_device()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    size = size if device.type == "cpu" else 8 * size
    a = torch.randn(size, size, device=device).to(getattr(torch, precision))
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return size**3 / best


def measure(images: int = 1024, batch_size: int = 128, turns: int = 3, peak_size: int = 1024) -> dict:
    """All numbers: images a second of the whole machine."""
    device, best = choose_device()
    jobs = jobs_or_default(None) if device.type == "cpu" else 1
    precisions = ["float32", "bfloat16"] if device.type == "cpu" else [str(best).removeprefix("torch.")]
    trials = {workers: common_run(images, batch_size, workers) for workers in sorted({0, 2, min(8, os.cpu_count())})}
    workers = max(trials, key=trials.get)
    common, course = [], {precision: [] for precision in precisions}
    for _turn in range(turns):
        common.append(common_run(images, batch_size, workers))
        for precision, rates in course.items():
            rows = run_grid(
                course_run,
                jobs=jobs,
                seed=range(jobs),
                fixed={"images": images, "batch_size": batch_size, "precision": precision},
            )
            rates.append(sum(row["rate"] for row in rows))
    return {
        "device": str(device),
        "images": images,
        "batch_size": batch_size,
        "turns": turns,
        "processes": jobs,
        "torch": torch.__version__,
        "workers": workers,
        "trial_rates": {str(k): v for k, v in trials.items()},
        "common": common,
        "course": course,
        "peak": {precision: peak(precision, peak_size) * jobs for precision in precisions},
    }


def table(result: dict) -> str:
    common = max(result["common"])
    lines = [
        f"ResNet-32, 32 x 32, batch {result['batch_size']}, {result['device']}, torch {result['torch']}; images a "
        "second of the whole machine, the best of "
        f"{result['turns']}",
        f"{'':<34}{'images / s':>12}{'ratio':>8}{'of peak':>10}",
        f"{'common recipe, float32':<34}{common:>12,.0f}{1:>8.1f}",
    ]
    for precision, rates in result["course"].items():
        name, share = f"course, {precision}", max(rates) * 3 * MULTIPLICATIONS / result["peak"][precision]
        lines.append(f"{name:<34}{max(rates):>12,.0f}{max(rates) / common:>8.1f}{share:>10.0%}")
    lines.append(
        f"common recipe: {result['workers']} loader processes (the fastest of "
        f"{', '.join(result['trial_rates'])}); course: {result['processes']} processes"
    )
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks experiments", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--peak-size", type=int, default=1024, help="rows of the matrices that measure the peak")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    result = measure(options.images, options.batch_size, options.turns, options.peak_size)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0
