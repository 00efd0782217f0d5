"""Does fine-tuning pay on a folder of pictures? The head on frozen features, and the whole network from there on.

For each seed the parts are those of `experiments run FOLDER`; the head is balanced softmax on features of
EfficientNet-Lite0, and `backbones.fine_tune()` goes on from it with the same loss. Smaller pictures than in the study
make it affordable on a CPU, for both. The model that counts is the best one on validation images.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from course_utils.backbones import backbone, cached_features, fine_tune, train_heads, whole_model
from course_utils.experiments.cells import plain, write_json
from course_utils.experiments.photographs import with_features
from course_utils.experiments.studies import STUDIES
from course_utils.experiments.study_data import load_splits
from course_utils.metrics import difference_text, mean_and_spread, per_class_accuracy
from course_utils.photos import Photos
from course_utils.training import predict

METHOD = "balanced softmax"


def tuned(source: str, settings: dict[str, Any], seed: int, size: int, epochs: int, lr: float) -> dict[str, Any]:
    """Balanced test accuracy of the frozen backbone's head and of the fine-tuned network, and what it cost."""
    pretrained, started = backbone(), time.perf_counter()
    view = replace(pretrained.view, size=size)
    *parts, _ = load_splits(settings, seed, source=source)
    photos: list[Photos] = [part.with_view(view) for part in parts]  # ty: ignore[unresolved-attribute]
    train, validation, test = photos
    features = [cached_features(pretrained, part) for part in photos]
    head = train_heads([METHOD], features[0], features[1], seed=seed)[METHOD]
    frozen, middle = head.logits(features[2]), time.perf_counter()
    found = fine_tune(whole_model(pretrained, head.model), train, validation, epochs=epochs, lr=lr, seed=seed)
    whole = predict(found.model, test)

    def balanced(logits: torch.Tensor) -> float:
        return per_class_accuracy(logits.argmax(1), test.labels, test.num_classes).nanmean().item()

    row = {"seed": seed, "frozen": balanced(frozen), "tuned": balanced(whole), "pays": found.pays}
    row |= {"verdict": found.verdict, "seconds": [middle - started, time.perf_counter() - middle]}
    return plain(row)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks folder-fine-tuning", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--study", type=json.loads, default={}, help='JSON, such as {"profile": "exponential"}')
    parser.add_argument("--out", type=Path, required=True, help="a JSON file, which grows with every seed")
    options = parser.parse_args(arguments)
    study = replace(with_features(STUDIES["folder"], "efficientnet-lite0"), **options.study)
    about = {name: getattr(options, name) for name in ("size", "epochs", "lr", "study")}
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        rows.append(tuned(options.folder, study.settings(), seed, options.size, options.epochs, options.lr))
        print(rows[-1], flush=True)
        write_json(options.out, {"settings": about, "rows": rows})
    for name in ("frozen", "tuned"):
        print(name, "{:.1f} ± {:.1f}".format(*mean_and_spread([100 * row[name] for row in rows])))
    print("tuned minus frozen", difference_text([100 * (row["tuned"] - row["frozen"]) for row in rows]))
    return 0
