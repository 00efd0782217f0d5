"""Does it pay to let the backbone learn too? Clip art, or a folder of pictures: a head on features, then fine-tuning.

For every split: features of a frozen EfficientNet-Lite0 and a head with balanced softmax on them; then the whole
network goes on from there (`backbones.fine_tune()`), on the same training pictures. What is kept is chosen on
validation pictures; both are measured on the test pictures of the split. Splits of clip art are drawn anew from all
pictures; those of a folder are the ones of `experiments run FOLDER`. Pictures are small, so that a CPU can do it.
Seconds are of one thread.

    python -m benchmarks fine-tuning --json data/results/fine-tuning.json
    python -m benchmarks fine-tuning FOLDER --size 128 --json result.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from course_utils.backbones import backbone, cached_features, fine_tune, train_heads, whole_model
from course_utils.data import set_aside
from course_utils.experiments.cells import percent_text
from course_utils.experiments.photographs import with_features
from course_utils.experiments.studies import STUDIES, Study
from course_utils.experiments.study_data import load_splits
from course_utils.machinery.files import DATA_FOLDER
from course_utils.metrics import balanced_accuracy, difference_text
from course_utils.photos import Photos, View
from course_utils.runtime import write_atomically
from course_utils.training import predict

METHOD = "balanced softmax"
FOLDER = with_features(STUDIES["folder"], "efficientnet-lite0")


def clip_art(seed: int, size: int) -> Sequence[Photos]:
    photos = Photos.from_list(DATA_FOLDER / "clipart" / "pictures.txt", view=View(size=size, fit="pad"))
    rest, test = set_aside(photos, 10, seed=seed)
    return *set_aside(rest, 5, seed=seed), test


def of_folder(source: str, study: Study, seed: int, size: int) -> Sequence[Photos]:
    parts: Any = load_splits(study.settings(), seed, source=source)[:3]
    return [part.with_view(replace(part.view, size=size)) for part in parts]


def one_split(
    parts: Callable[[int, int], Sequence[Photos]], seed: int, size: int, epochs: int, lr: float
) -> dict[str, Any]:
    """Test accuracy in % and seconds of both, what fine-tuning says of itself, and its validation accuracies."""
    train, validation, test = parts(seed, size)
    net, started = backbone(), time.perf_counter()
    features = cached_features(net, train)
    head = train_heads([METHOD], features, seed=seed)[METHOD].model
    frozen, seconds = whole_model(net, head), time.perf_counter() - started
    started = time.perf_counter()
    tuned = fine_tune(frozen, train, validation, epochs=epochs, lr=lr, seed=seed)
    row: dict[str, Any] = {"seed": seed, "size": size, "epochs": epochs, "verdict": tuned.verdict, "pays": tuned.pays}
    row["seconds"] = {"frozen": seconds, "fine-tuned": time.perf_counter() - started}
    row["validation"] = [100 * epoch["balanced accuracy"] for epoch in tuned.history]
    row["test"] = {
        name: 100 * balanced_accuracy(predict(model, test).argmax(1), test.labels, test.num_classes)
        for name, model in {"frozen": frozen, "fine-tuned": tuned.model}.items()
    }
    return row


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fine-tuning", description=__doc__)
    parser.add_argument("folder", nargs="?", help="of pictures, as experiments run takes it; by default clip art")
    parser.add_argument("--study", type=json.loads, default={}, help='of a folder, such as {"profile": "exponential"}')
    parser.add_argument("--size", type=int, default=96, help="pixels a side")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the results, which grows with every split")
    options = parser.parse_args(arguments)
    if options.study and not options.folder:
        parser.error("--study: allowed only with a folder")
    parts = partial(of_folder, options.folder, replace(FOLDER, **options.study)) if options.folder else clip_art
    torch.set_num_threads(1)
    about = {"torch": torch.__version__, "machine": platform.machine(), "method": METHOD, "lr": options.lr}
    about |= {"study": options.study} if options.folder else {}
    rows: list[dict[str, Any]] = []
    for seed in range(options.splits):
        rows.append(one_split(parts, seed, options.size, options.epochs, options.lr))
        print(json.dumps(rows[-1]), flush=True)
        if options.json:
            text = json.dumps(about | {"splits": rows}, indent=1) + "\n"
            write_atomically(options.json, lambda file, text=text: file.write(text.encode()))
    for name in ("frozen", "fine-tuned"):
        print(name, percent_text(row["test"][name] / 100 for row in rows))
    gains = [row["test"]["fine-tuned"] - row["test"]["frozen"] for row in rows]
    print("fine-tuned minus frozen, points on test pictures:", difference_text(gains))
    return 0
