"""Does it pay to let the backbone learn too? Clip art at a small size: the best head on features, then fine-tuning.

For every split, drawn anew from all pictures: features of a frozen EfficientNet-Lite0 and a head with balanced softmax
on them; then the whole network goes on from there (`backbones.fine_tune()`), on the same training pictures. What is
kept is chosen on validation pictures; both are measured on the test pictures of the split. Seconds are of one thread.

    python -m benchmarks fine-tuning --json data/results/fine-tuning.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from course_utils.backbones import backbone, cached_features, fine_tune, train_heads, whole_model
from course_utils.data import set_aside
from course_utils.machinery.files import DATA_FOLDER
from course_utils.metrics import balanced_accuracy, difference_text
from course_utils.photos import Photos, View
from course_utils.runtime import write_atomically
from course_utils.training import predict

METHOD = "balanced softmax"


def one_split(seed: int, size: int, epochs: int) -> dict[str, Any]:
    """Test accuracy in % and seconds of both, what fine-tuning says of itself, and its validation accuracies."""
    photos = Photos.from_list(DATA_FOLDER / "clipart" / "pictures.txt", view=View(size=size, fit="pad"))
    rest, test = set_aside(photos, 10, seed=seed)
    train, validation = set_aside(rest, 5, seed=seed)
    net, started = backbone(), time.perf_counter()
    features = cached_features(net, train)
    head = train_heads([METHOD], features, seed=seed)[METHOD].model
    frozen, seconds = whole_model(net, head), time.perf_counter() - started
    started = time.perf_counter()
    tuned = fine_tune(frozen, train, validation, epochs=epochs, seed=seed)
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
    parser.add_argument("--size", type=int, default=96, help="pixels a side")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for seed in range(options.splits):
        rows.append(one_split(seed, options.size, options.epochs))
        print(json.dumps(rows[-1]), flush=True)
    gains = [row["test"]["fine-tuned"] - row["test"]["frozen"] for row in rows]
    print("fine-tuned minus frozen, points on test pictures:", difference_text(gains))
    if options.json:
        about = {"torch": torch.__version__, "machine": platform.machine(), "method": METHOD, "splits": rows}
        write_atomically(options.json, lambda file: file.write((json.dumps(about, indent=1) + "\n").encode()))
    return 0
