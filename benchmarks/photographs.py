"""Photographs from disk: peak memory with few and with many files, and features beside a bare loop.

Files are photographs of noise, 500 x 375 pixels, a hundred different ones under as many names as are wanted.

memory: a fresh process trains a small network for one epoch on all files, with the usual augmentation, then predicts.
    Its peak and that of its largest worker are told, what torch alone needs in both. `in memory`: the same with all
    images read first, which has to show in these numbers.
speed: one backbone, the same threads. `ready`: images are in memory as floats, so it is the backbone alone. `bare`: a
    loop that opens, scales and normalizes with Pillow and torchvision, and runs the backbone, as most tutorials have
    it. `course` is `extract_features()`: reading in this process, and in one worker beside it. All ways take turns and
    the best time of each counts, since other programs may run.
digest: how fast the contents of all files are told from those of others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from course_utils.data import Labeled, LabeledImages
from course_utils.networks import ImageClassifier, SmallCNN
from course_utils.photos import Photos, View
from course_utils.training import evaluating, extract_features, fit, predict

from .losses import STATUS, _peak_kilobytes

DIFFERENT, BATCH, CLASSES = 100, 64, 10
MEAN = STD = 0.5


def write_files(folder: Path, number: int) -> Path:
    """The list of `number` files: a hundred pictures, and links to them."""
    random = np.random.default_rng(0)
    for i in range(min(number, DIFFERENT)):
        pixels = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.jpg", quality=90)
    for i in range(DIFFERENT, number):
        os.link(folder / f"{i % DIFFERENT:06d}.jpg", folder / f"{i:06d}.jpg")
    return write_list(folder, number)


def write_list(folder: Path, number: int) -> Path:
    path = folder / f"{number}.txt"
    path.write_text("".join(f"{i:06d}.jpg {i % CLASSES}\n" for i in range(number)), encoding="utf-8")
    return path


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_megabytes(file: Path, size: int, workers: int, in_memory: bool) -> tuple[float, float] | None:
    """For a fresh process: its peak and that of its largest worker. None outside Linux, where nothing says so."""
    if not STATUS.is_file():
        return None
    import resource

    torch.set_num_threads(1)
    data: Labeled = Photos.from_list(file, view=View(size=size), workers=workers)
    if in_memory:
        images = torch.cat([((x + 1) * 127.5).byte() for x in data.stream(torch.arange(len(data)).split(BATCH))])
        data = LabeledImages(images, data.labels, data.class_names)
    model = SmallCNN(CLASSES, in_channels=3)
    fit(model, data, epochs=1, batch_size=BATCH, lr=0.01, progress=False)
    predict(model, data, batch_size=BATCH)
    return _peak_kilobytes() / 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def memory(folder: Path, numbers: list[int], size: int, workers: int) -> list[dict]:
    rows = []
    for number, in_memory in [*((number, False) for number in numbers), (max(numbers), True)]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peaks = fresh.submit(peak_megabytes, write_list(folder, number), size, workers, in_memory).result()
        rows.append({"files": number, "in_memory": in_memory, "megabytes": peaks})
    return rows


# ---- speed -----------------------------------------------------------------------------------------------------------


def backbone() -> ImageClassifier:
    """A network as large as those that run on a laptop; its weights are random, which costs as much as others."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    network = mobilenet_v2(weights=None)
    return ImageClassifier(nn.Sequential(network.features, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 1280, CLASSES).eval()


def ready(model: ImageClassifier, images: Tensor) -> Tensor:
    with evaluating(model):
        return torch.cat([model.features(part) for part in images.split(BATCH)])


def bare(model: ImageClassifier, paths: list[str], view: View) -> Tensor:
    from torchvision.transforms import v2

    steps = [v2.Resize(round(view.size / view.share), v2.InterpolationMode.BICUBIC), v2.CenterCrop(view.size)]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([MEAN] * 3, [STD] * 3)]
    transform, found = v2.Compose(steps), []
    with evaluating(model):
        for start in range(0, len(paths), BATCH):
            images = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]]
            found.append(model.features(torch.stack(images).to(memory_format=torch.channels_last)))
    return torch.cat(found)


def speed(data: Photos, repeats: int) -> dict[str, dict[str, float]]:
    model, worker = backbone(), replace(data, workers=1)
    images = torch.cat(list(data.stream(torch.arange(len(data)).split(BATCH))))
    paths = [data.path(i) for i in range(len(data))]
    ways: dict[str, Callable[[], Tensor]] = {
        "ready": lambda: ready(model, images),
        "bare": lambda: bare(model, paths, data.view),
        "course": lambda: extract_features(model, data, batch_size=BATCH),
        "course, one worker": lambda: extract_features(model, worker, batch_size=BATCH),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found = {name: way() for name, way in ways.items()}  # the first call of each is slower, and shows that they agree
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    scale = found["ready"].abs().mean()
    return {
        name: {
            "images_a_second": len(data) / min(seconds[name]),
            "differs_by": float((found[name] - found["ready"]).abs().mean() / scale),
        }
        for name in ways
    }


def digest_seconds(data: Photos) -> tuple[float, float, float]:
    """Seconds of the first and of a second digest, and megabytes that were read."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        data.digest()
        seconds.append(time.perf_counter() - start)
    return *seconds, sum(os.path.getsize(data.path(i)) for i in range(len(data))) / 1e6


# ---- all of it -------------------------------------------------------------------------------------------------------


def measure(numbers: list[int], rate_images: int, size: int, memory_size: int, workers: int, repeats: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        file = write_files(Path(folder), max(*numbers, rate_images))
        data = Photos.from_list(write_list(Path(folder), rate_images), view=View(size=size))
        torch.set_num_threads(1)
        return {
            "images": rate_images,
            "size": size,
            "memory_size": memory_size,
            "workers": workers,
            "threads": 1,
            "speed": speed(data, repeats),
            "memory": memory(Path(folder), numbers, memory_size, workers),
            "digest": dict(zip(("first", "second", "megabytes"), digest_seconds(Photos.from_list(file)), strict=True)),
        }


def table(result: dict) -> str:
    rates = {name: row["images_a_second"] for name, row in result["speed"].items()}
    lines = [
        f"features of {result['images']:,} photographs at {result['size']} pixels, MobileNetV2, one thread",
        f"{'':<20}{'images / s':>12}{'/ ready':>10}{'/ bare':>10}{'differs by':>12}",
    ]
    for name, row in result["speed"].items():
        ratios = f"{rates[name] / rates['ready']:>10.2f}{rates[name] / rates['bare']:>10.2f}"
        lines.append(f"{name:<20}{rates[name]:>12.1f}{ratios}{row['differs_by']:>12.1e}")
    what = f"an epoch and a prediction at {result['memory_size']} pixels, {result['workers']} workers"
    lines += ["", f"peak memory of {what}", f"{'files':>8}{'this process':>16}{'ratio':>8}{'worker':>12}{'ratio':>8}"]
    first = result["memory"][0]["megabytes"]
    for row in result["memory"]:
        line = f"{row['files']:>8,}"
        for peak, before, width in zip(row["megabytes"] or (), first or (), (13, 9), strict=True):
            line += f"{peak:>{width}.0f} MB" + (f"{peak / before:>8.3f}" if before else f"{'':>8}")
        lines.append(line + (" in memory" if row["in_memory"] else ""))
    size, once, again = (result["digest"][key] for key in ("megabytes", "first", "second"))
    lines += ["", f"digest of {size:.0f} MB: {once:.2f} s, once more {again:.2f} s"]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    os.environ["COURSE_QUIET"] = "1"
    parser = argparse.ArgumentParser(prog="python -m benchmarks photographs", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, nargs="+", default=[2000, 20_000], help="whose peak memory is compared")
    parser.add_argument("--memory-size", type=int, default=40, help="pixels a side; few, so that files would show")
    parser.add_argument("--workers", type=int, default=1, help="processes that read, where memory is measured")
    parser.add_argument("--images", type=int, default=128, help="whose features are computed")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    result = measure(options.files, options.images, options.size, options.memory_size, options.workers, options.repeats)
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0
