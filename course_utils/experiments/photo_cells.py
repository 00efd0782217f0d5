"""What cells of photographs have that others have not: features of a backbone that stays, and accuracies elsewhere.

The features of all pictures of a folder are computed once, and kept if there is a folder for them. A cell also says
what every test picture was taken for, and how well each method does where the classes have other shares.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbones import Backbone, backbone, cached_features
from ..classifier import assumed_shares
from ..data import Labeled, LabeledFeatures
from ..machinery.picture_files import splits_of
from ..methods import METHODS
from ..metrics import per_class_accuracy
from ..photos import Photos
from ..runtime import choose_device, require
from .cells import plain

# ---- features of the parts of a study --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def loaded(name: str) -> Backbone:
    return backbone(name)


def on_device(name: str) -> Backbone:
    found = loaded(name)
    found.module.to(choose_device()[0])
    return found


def read_photos(folder: Path, split: str, features: str, skip_broken: bool) -> Photos:
    return Photos.from_folder(folder, split, view=loaded(features).view, skip_broken=skip_broken)


def features_of(
    parts: Sequence[Labeled], features: str, source: str, skip_broken: bool, kept: str | None = None
) -> list[LabeledFeatures]:
    """The features of photographs from `study_data.load_splits()`, on the device; kept: a folder where they stay."""
    photos: list[Any] = list(parts)
    table, places = features_table(
        features, source, skip_broken, kept, tuple(sorted({part.digest() for part in photos}))
    )
    rows = [torch.tensor([places[path] for path in part.paths.tolist()], dtype=torch.int64) for part in photos]
    labels = [part.labels.to(table.device) for part in photos]
    return [LabeledFeatures(table[r], y, p.class_names) for r, y, p in zip(rows, labels, photos, strict=True)]


def splits_in_order(folder: Path) -> list[str]:
    return sorted(splits_of(folder), key=["all", "train", "validation", "test"].index)


@functools.lru_cache(maxsize=1)
def features_table(
    features: str, source: str, skip_broken: bool, kept: str | None, _digests: tuple[str, ...]
) -> tuple[Tensor, dict[bytes, int]]:
    """(features of every picture of a folder, {path: its row})"""
    found, places, folder = [], {}, Path(source)
    for split in splits_in_order(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # study_data.load_splits() has said it
            photos = read_photos(folder, split, features, skip_broken).to(choose_device()[0])
        places |= {path: len(places) + i for i, path in enumerate(photos.paths.tolist())}
        found.append(cached_features(on_device(features), photos, kept).features)
    return torch.cat(found), places


# ---- what a cell says beside its accuracies --------------------------------------------------------------------------


def beside(
    rows: dict[str, Any], parts: Sequence[Any], said: Sequence[Mapping[str, Tensor]], shares: Mapping[str, float] | None
) -> dict[str, Any]:
    """Adds "said" and "deployments" to the row of each method; what the data of the cell say of the test pictures.

    parts: train, validation, test. said: {method: logits} for the latter two.
    """
    train, validation, test = parts
    for name, row in rows.items():
        answers = {
            split: (logits[name].cpu(), part.labels.cpu())
            for split, part, logits in zip(("validation", "test"), (validation, test), said, strict=True)
        }
        row["said"] = answers["test"][0].argmax(1).tolist()
        row["deployments"] = plain(deployments(name, train.counts.tolist(), shares, train.class_names, answers))
    return {"files": [path.decode("utf-8", "replace") for path in test.paths.tolist()], "labels": test.labels.tolist()}


def deployments(
    method: str,
    counts: Sequence[int],
    shares: Mapping[str, float] | None,
    class_names: Sequence[str],
    answers: Mapping[str, tuple[Tensor, Tensor]],
) -> dict[str, dict[str, float]]:
    """{"as trained", "equal", "given": {"validation", "test": accuracy}}, logits moved to the shares of each place.

    answers: {"validation", "test": (logits (N, C), labels (N,))}. With shares q_j the accuracy is sum_j q_j a_j, a_j
    the accuracy on class j; classes without images do not count.
    """
    n = torch.tensor(list(counts), dtype=torch.float64)
    places = {"as trained": n / n.sum(), "equal": torch.full_like(n, 1 / len(n))}
    if shares is not None:
        odd = sorted(shares.keys() ^ set(class_names))
        require(not odd, "shares", f"{', '.join(odd)} missing or unknown", "a share for each class")
        given = torch.tensor([float(shares[name]) for name in class_names], dtype=torch.float64)
        ok = bool((given >= 0).all()) and 0 < given.sum() < math.inf
        require(ok, "shares", given.tolist(), "finite numbers of at least 0, one of them above 0")
        places["given"] = given / given.sum()
    found: dict[str, dict[str, float]] = {}
    for place, q in places.items():
        # z_j + log q_j - log p_j   (Saerens et al. 2002, equation 2.4)
        moves = q.log() - assumed_shares(method, counts).log() if METHODS[method].probabilities else torch.zeros_like(q)
        found[place] = {}
        for split, (logits, labels) in answers.items():
            said = (logits + moves.to(logits)).argmax(1)
            accuracy = per_class_accuracy(said, labels, len(n)).double().cpu()
            there = q * ~accuracy.isnan()
            # sum_j q_j a_j
            found[place][split] = (
                float((there * accuracy.nan_to_num()).sum() / there.sum()) if there.sum() else math.nan
            )
    return found
