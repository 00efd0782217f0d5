"""Named experiments: data with a long tail, a network, a budget, methods and seeds. One cell is one training.

A cell is one training of one seed; it gives the numbers of every method that starts from it (tau-normalization, NCM,
cRT, LWS and logit adjustment share the training of cross-entropy). `runs.run_study()` runs the cells and keeps them.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import platform
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import (
    Labeled,
    english_letter_counts,
    exponential_counts,
    hold_out,
    load_images,
    long_tailed,
    long_tailed_and_unused,
    set_aside,
    step_counts,
)
from ..machinery.picture_files import pictures_of, splits_of
from ..methods import METHODS, Trained, all_logits, train_methods
from ..metrics import best_temperature, calibration_error, per_class_accuracy, reliability_bins, shot_accuracy
from ..networks import NETWORKS
from ..runtime import choose_device, digest, located, require
from ..texts import TEXT_NETWORKS, LabeledTexts, known_words, load_texts, word_dropout
from ..training import cosine_schedule, random_flip, random_shift, step_schedule
from .cells import differences, plain

FOLDER_TEST, FOLDER_VALIDATION = 0.25, 0.2  # of a folder without these splits
TEXTS = ("webster", "imdb")  # data of `load_texts()`
WITH_VALIDATION = ("letters", "digits", "webster")
EXACT = {"bmp", "pgm", "png", "pnm", "ppm", "tif", "tiff"}  # kinds of files that keep every pixel


def shift_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """The augmentation of CIFAR: up to 4 pixels in each direction, and half of the images mirrored."""
    return random_flip(random_shift(images, generator, pixels=4), generator)


AUGMENTATIONS = {"none": None, "shift 2": random_shift, "shift 4, flip": shift_and_flip, "word dropout": word_dropout}
OPTIMIZERS = {"SGD": None, "Adam": torch.optim.Adam}


CHOICES = {
    "profile": ("english", "exponential", "step", "in proportion", "as it is"),
    "validation_from": ("set aside", "unused"),
    "network": (*NETWORKS, *TEXT_NETWORKS),
    "optimizer": tuple(OPTIMIZERS),
    "schedule": ("cosine", "step"),
    "augment": tuple(AUGMENTATIONS),
    "precision": ("auto", "float32", "bfloat16"),
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A named experiment.

    what: one line for `experiments list`. methods: names of `METHODS`. seeds: each one a subset, weights and order of
    its own.

    data: a name that `load_images()` or `load_texts()` knows. profile: "english", "exponential", "step", "in
    proportion" to what the data have, or "as it is". max_count, ratio: of the profile. size: side to which a folder's
    images are scaled, or None.

    validation: images of each class for choices, from data that have no validation split. validation_from: "set aside"
    takes them before the tail is cut, and the counts of classes that then have too few are lowered (CIFAR-10's largest
    from 5,000 to 4,900). "unused" takes them from what the tail leaves, so the training set is the published one; the
    largest class of CIFAR has none left. Then every choice (tau, epochs, temperature, the best method) is made on the
    other classes, and what a choice costs the largest class does not show. With "as it is": a share of each class.

    network: one of `NETWORKS`, or of `TEXT_NETWORKS` for texts. optimizer: "SGD" or "Adam". epochs, batch_size, lr,
    weight_decay: of `fit()`. augment: "none", "shift 2", "shift 4, flip", or "word dropout" for texts. precision:
    "float32", "bfloat16" (autocast), or "auto": bfloat16 on a GPU that has it.

    schedule: "cosine", or "step", which warms up for a share `warmup` and multiplies the learning rate by `factor` at
    `defer_at` and again half-way from there to the end. defer_at: when DRW starts. The defaults are one choice for all
    methods: of six schedules tried on letters, the best on validation typefaces for most methods (seeds 0 and 1).

    features: "none", or the name of a pretrained backbone as `backbones.backbone()` takes it: then pictures of a folder
    are seen as it wants them, and methods are heads on its features (`photographs.with_features()` has the recipe).
    shares: {class: share} of the place where a model of photographs will work, for its own column in the report.

    Images are scaled to -1 .. 1 everywhere. The released LDAM code takes the mean and divides by the standard deviation
    of each channel instead, which for CIFAR is about twice as wide; batch normalization after the first convolution
    makes up for it.
    """

    what: str
    data: str = "letters"
    profile: str = "english"
    max_count: int = 500
    ratio: float = 100
    size: int | None = None
    validation: int = 100
    validation_from: str = "set aside"
    network: str = "SmallCNN"
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    optimizer: str = "SGD"
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "step"
    factor: float = 0.1
    warmup: float = 0.25
    defer_at: float = 0.8
    augment: str = "shift 2"
    precision: str = "auto"
    features: str = "none"
    shares: Mapping[str, float] | None = None

    def settings(self) -> dict[str, Any]:
        """What has to be the same in all cells of a comparison: all but methods, seeds and `what`.

        What is as it was before there was a choice is not named, so that earlier results stay valid.
        """
        usual = {"optimizer": "SGD", "features": "none", "shares": None, "validation_from": "set aside"}
        found = {k: v for k, v in asdict(self).items() if k not in ("what", "methods", "seeds")}
        return {k: v for k, v in found.items() if k not in usual or v != usual[k]}


_CIFAR = Study(
    what="CIFAR-10-LT as published: ratio 100, ResNet-32, 200 epochs",
    data="cifar10",
    profile="exponential",
    max_count=5000,
    validation_from="unused",
    network="ResNet32",
    epochs=200,
    batch_size=128,
    weight_decay=2e-4,
    factor=0.01,
    warmup=0.025,
    augment="shift 4, flip",
    seeds=(0, 1, 2),
)
_FOR_VECTORS = tuple(name for name in METHODS if name != "OLTR memory")  # which reads maps of features
# lr: the best on validation texts for cross-entropy, NCM and logit adjustment, seed 0: of 0.005, 0.01, 0.02 for the
# BiLSTM, of 0.01, 0.02 for the bag of words, so 0.02 is the largest that was tried
_WEBSTER = Study(
    what="definitions of 1913 by field, a fifth of their own tail, BiLSTM, all methods for vectors",
    data="webster",
    profile="in proportion",
    max_count=1076,
    network="BiLSTM",
    methods=_FOR_VECTORS,
    seeds=(0, 1, 2),
    optimizer="Adam",
    epochs=10,
    lr=0.02,
    weight_decay=0.0,
    schedule="cosine",
    defer_at=0.7,
    augment="word dropout",
)
_SEVEN = ("cross-entropy", "class-balanced sampling", "LDAM", "CE + DRW", "LDAM + DRW", "tau-normalization", "cRT")
STUDIES: dict[str, Study] = {
    "letters": Study(what="letters with the tail of English text, all methods"),
    "fashion": Study(
        what="Fashion-MNIST, exponential tail, ratio 100, all methods",
        data="fashion-mnist",
        profile="exponential",
        max_count=1000,
        epochs=30,
    ),
    "cifar10-lt": _CIFAR,
    "cifar100-lt": replace(
        _CIFAR,
        what="CIFAR-100-LT as published: ratio 100, ResNet-32, 200 epochs",
        data="cifar100",
        max_count=500,
        validation=20,
    ),
    "cifar10-lt-short": replace(
        _CIFAR,
        what="CIFAR-10-LT with a schedule shortened for CPUs, seven methods",
        validation_from="set aside",
        epochs=12,
        factor=0.1,
        warmup=0.1,
        methods=_SEVEN,
    ),
    "webster": _WEBSTER,
    "webster-bag": replace(
        _WEBSTER,
        what="definitions of 1913 by field, a fifth of their own tail, bag of words, all methods for vectors",
        network="bag of words",
        methods=_FOR_VECTORS,
        seeds=(0, 1, 2, 3, 4),
    ),
    "folder": Study(what="a folder of images as it is: run FOLDER", data="folder", profile="as it is", seeds=(0, 1, 2)),
}


# ---- data ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)  # cells of one process read the same files
def _read(
    name: str | Path, split: str, size: int | None, skip_broken: bool, features: str = "none"
) -> tuple[Labeled, tuple[str, ...]]:
    """One split of a folder (a path) or of data with a name, and what its reader warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options: dict[str, Any] = {"size": size, "skip_broken": skip_broken} if isinstance(name, Path) else {}
        if features != "none":
            from .photographs import read_photos  # which imports this file

            data: Labeled = read_photos(Path(name), split, features, skip_broken)
        else:
            data = load_texts(name, split) if name in TEXTS else load_images(name, split, **options)
    said = [str(w.message) for w in caught]
    return data, tuple(text for text in said if text.startswith((f"{split}: ", "ignored beside ")))


def load_splits(
    settings: dict[str, Any], seed: int, *, source: str | None = None, skip_broken: bool = False
) -> tuple[Labeled, Labeled, Labeled, str]:
    """(train with its long tail, validation, test, a note that says where the images come from), on the CPU.

    source: a folder of images instead of settings["data"]. It holds train/CLASS and test/CLASS, maybe validation/CLASS,
    under the names that `load_images()` knows; or CLASS folders alone, and then a quarter of each class is the test.
    Where there is no validation split, a fifth of each training class is held out if the profile is "as it is". Both
    are rounded, and one image at least stays in training: a class of 2 images or fewer has none for choices. Such a
    class does not count in them.
    """
    folder = None if source is None else located(source)
    if folder is not None:
        require(folder.is_dir(), "data", f"{source!r}, which is not here", "a folder of images")
        _forget_before(_stamp(folder))
    named = settings["data"] if folder is None else folder
    validation: Any = None
    if settings["data"] == "folder" and folder is None:
        raise ValueError("data: the study of a folder needs one: experiments run FOLDER")
    own, notes = [settings["features"]] if "features" in settings else [], []
    require(not own or folder, "features", own, "only with a folder of pictures")

    def read(split: str) -> Labeled:
        data, skipped = _read(named, split, settings["size"], skip_broken, *own)
        notes.extend(skipped)
        return data

    splits = {} if folder is None else splits_of(folder)
    if "all" in splits:
        train, test = hold_out(read("all"), FOLDER_TEST, seed=seed)
    else:
        train, test = read("train"), read("test")
    if named in WITH_VALIDATION or "validation" in splits:
        validation = read("validation")
    elif settings["profile"] == "as it is":
        train, validation = hold_out(train, FOLDER_VALIDATION, seed=seed + 1)
    elif settings.get("validation_from") != "unused":  # those are cut with the tail
        most, fewest = int(train.counts.min()) - 1, train.class_names[int(train.counts.argmin())]
        allowed = (
            f"1 to {most}, as {fewest!r} has {most + 1} images" if most > 0 else "only with more images of each class"
        )
        ways = "; --profile 'as it is' and a folder called validation set none aside" if folder else ""
        require(1 <= settings["validation"] <= most, "validation", settings["validation"], allowed + ways)
        train, validation = set_aside(train, settings["validation"], seed=seed)
    if wanted := _counts(settings, train):
        counts = [min(pair) for pair in zip(wanted, train.counts.tolist(), strict=True)]
        asked, have = (max(some) / min(some) for some in (wanted, counts))
        if abs(have / asked - 1) > 0.05:  # 2 % for CIFAR, whose largest class has lost those set aside
            fewer = sum(map(operator.lt, counts, wanted))
            notes.append(f"{fewer} classes have fewer images than asked for: ratio {have:.4g} instead of {asked:.4g}")
        if validation is None:
            train, validation = long_tailed_and_unused(train, counts, settings["validation"], seed=seed)
        else:
            train = long_tailed(train, counts, seed=seed)
        if isinstance(train, LabeledTexts):  # words of texts that were cut away are not known
            train, validation, test = known_words(train, validation, test)
    return train, validation, test, "; ".join([_note(settings["data"], folder), *dict.fromkeys(notes)])


def has_validation(folder: Path) -> bool:
    return folder.is_dir() and "validation" in splits_of(folder)  # it may be on the workers of a cluster alone


def _counts(settings: dict[str, Any], train: Labeled) -> list[int] | None:
    """What the profile asks for, whether there are so many images or not; None: all there are."""
    profile, most = settings["profile"], settings["max_count"]
    make = {
        "english": lambda: english_letter_counts(most),
        "exponential": lambda: exponential_counts(train.num_classes, most, settings["ratio"]),
        "step": lambda: step_counts(train.num_classes, most, settings["ratio"]),
        # n_j = max(1, round(n_max N_j / N_max)), N_j what class j has
        "in proportion": lambda: [max(1, round(most * n / int(train.counts.max()))) for n in train.counts.tolist()],
        "as it is": lambda: None,
    }
    require(profile in make, "profile", repr(profile), ", ".join(make))
    ok = profile != "english" or train.num_classes == 26
    require(ok, "profile", f"english for {train.num_classes} classes", "26, the letters from A to Z")
    return make[profile]()


@functools.lru_cache(maxsize=4)
def _note(data: str, folder: Path | None) -> str:
    if folder is None:
        return data
    kinds = Counter(path.suffix.lower().lstrip(".") for path in _files(folder))
    files = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    if data == "folder":
        return f"image folder {folder.resolve().name} ({files})"
    encoded = "JPEG re-encoding" if kinds["jpg"] + kinds["jpeg"] else "copy" if kinds.keys() <= EXACT else "re-encoding"
    return f"{encoded} of {data}, from an image folder ({files}); not the published pixels"


# ---- which data these are --------------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """Every picture that `read_folder()` would open, in one order everywhere."""
    splits = splits_of(folder).values() if folder.is_dir() else ()
    found = [path for where in splits for files in pictures_of(where)[0].values() for path in files]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _stamp(folder: Path) -> str:
    """Changes whenever something below the folder does; quick, but not the same for a copy."""
    found: list[tuple] = []
    for where, _, names in os.walk(folder, followlinks=True):
        for path in (os.path.join(where, name) for name in names):
            with contextlib.suppress(OSError):  # a link to nothing
                state = os.stat(path)
                found.append((path, state.st_size, state.st_mtime_ns))
    return digest(sorted(found))


@functools.lru_cache(maxsize=1)
def _forget_before(stamp: str) -> None:
    """A process that lives long must not go on with what it read from a folder before it changed."""
    _read.cache_clear()
    _note.cache_clear()


def files_of(source: str) -> str:
    """The files of a folder as one line: number, bytes, and a digest of their names and contents."""
    folder = located(source)
    require(folder.is_dir(), "data", repr(source), "a folder of images")
    return _files_of(folder, _stamp(folder))


@functools.lru_cache(maxsize=4)
def _files_of(folder: Path, _stamp: str) -> str:
    files = []
    for path in _files(folder):
        raw = b""
        with contextlib.suppress(OSError):  # its reader names it, or leaves it out
            raw = path.read_bytes()
        files.append((path.relative_to(folder).as_posix(), len(raw), digest(raw)))
    return f"{len(files)} files, {sum(size for _, size, _ in files)} bytes, {digest(files)}"


def images_of(settings: dict[str, Any], source: str | None = None, skip_broken: bool = False) -> dict[str, str]:
    """{split: its images as one line: number, shape, classes, and a digest of names, labels and pixels}, all as read,
    before a tail is cut.
    """
    stamp, features = None if source is None else _stamp(located(source)), settings.get("features", "none")
    return dict(_images_of(settings["data"], settings["size"], source, skip_broken, stamp, features))


@functools.lru_cache(maxsize=4)
def _images_of(
    data: str, size: int | None, source: str | None, skip: bool, _stamp: str | None, features: str
) -> dict[str, str]:
    whole = Study(what="", data=data, size=size, profile="as it is", features=features).settings()
    *splits, _ = load_splits(whole, 0, source=source, skip_broken=skip)
    if features != "none":
        from .photographs import loaded

        parts: Any = zip(("train", "validation", "test"), splits, strict=True)
        found = {name: f"{len(part)} photographs, {part.num_classes} classes, {part.digest()}" for name, part in parts}
        return found | {"backbone": f"{features} {loaded(features).fingerprint}"}
    return {
        name: f"{len(part)} {part.KIND} of {' x '.join(map(str, part.inputs.shape[1:]))}, {part.num_classes} classes, "
        f"{part.digest()}"
        for name, part in zip(("train", "validation", "test"), splits, strict=True)
    }


def check_data(settings: dict[str, Any], source: str | None = None, skip_broken: bool = False) -> None:
    """Refuse to train on other data than those of the study: this may be another process, at another time, elsewhere.

    Raises:
        ValueError: what is different of "files" and "images" in `settings`, where they are there.
    """
    now: dict[str, Any] = {}
    if "files" in settings and source is not None:
        now["files"] = files_of(source)
    if "images" in settings:
        now["images"] = images_of(settings, source, skip_broken)
    if odd := differences({name: settings[name] for name in now}, now):
        raise ValueError(f"data: the study was made with other images: {odd}; use another folder (--out)")


# ---- one cell --------------------------------------------------------------------------------------------------------

_ONE_AT_A_TIME = threading.Lock()  # a Dask worker may have threads, and torch has one random generator


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """One thread on a CPU, so that a result does not depend on how many cells run side by side; on a GPU convolutions
    that repeat to the bit.
    """
    threads = torch.get_num_threads()
    with _ONE_AT_A_TIME, torch.backends.cudnn.flags(enabled=True, deterministic=True):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def run_cell(
    settings: dict[str, Any],
    training: str,
    methods: list[str],
    seed: int,
    *,
    source: str | None = None,
    skip_broken: bool = False,
    checkpoint: str | None = None,
    kept: str | None = None,
) -> dict[str, Any]:
    """Train once and measure `methods`, which all start from `training`: what the JSON file of the cell holds.

    kept: a folder for the features of photographs.
    """
    device, best = choose_device()
    options = run_options(settings, best)
    with repeatable():
        check_data(settings, source, skip_broken)
        *parts, note = load_splits(settings, seed, source=source, skip_broken=skip_broken)
        require(len(parts[2]), "data", "no image for the test", "classes of at least 3 images, or a folder test")
        if "features" in settings:
            from . import photographs  # which imports this file

            where = settings["features"], str(source), skip_broken, kept
            train, validation, test = photographs.features_of(parts, *where)
            trained = photographs.train_heads(methods, train, validation, seed=seed, checkpoint=checkpoint, **options)
        else:
            train, validation, test = (part.to(device) for part in parts)
            options["network"] = _network(settings["network"], train)
            trained = train_methods(methods, train, validation, seed=seed, checkpoint=checkpoint, **options)
        said = [all_logits(trained, split) for split in (validation, test)]
        rows = {
            name: score(one, train.counts.tolist(), (validation, said[0][name]), (test, said[1][name]))
            for name, one in trained.items()
        }
        more = {}
        if "features" in settings:
            more = photographs.beside(rows, parts, said, settings.get("shares"))
    data: dict[str, Any] = {"note": note, "classes": list(train.class_names), "counts": train.counts.tolist()}
    data |= {"validation": len(validation), "fewest": int(validation.counts.min()), "test": len(test)} | more
    cell = {"settings": settings, "training": training, "seed": seed, "data": data, "methods": rows}
    return cell | made_with(device) | {"precision": str(options["precision"]).removeprefix("torch.")}


def _network(name: str, train: Labeled) -> Any:
    """What makes it, as `methods.Setting` takes it: function of the number of classes."""
    known: dict[str, Any] = TEXT_NETWORKS if isinstance(train, LabeledTexts) else NETWORKS
    require(name in known, "network", repr(name), ", ".join(known))
    return known[name](len(train.vocabulary) if isinstance(train, LabeledTexts) else train.inputs.shape[1:])


def made_with(device: torch.device) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"versions": versions, "device": device_name(device)}


def device_name(device: torch.device) -> str:
    """ "NVIDIA ..." for a GPU, else the kind of processor, such as "cpu, x86_64"."""
    if device.type == "cpu":
        return f"cpu, {platform.machine()}"
    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else device.type


def run_options(settings: dict[str, Any], best: torch.dtype) -> dict[str, Any]:
    """What `train_methods()` takes, from settings in words."""
    for name in ("defer_at", "warmup"):
        require(0 <= settings[name] <= 1, name, settings[name], "0 to 1, a share of training")
    step = partial(step_schedule, at=settings["defer_at"], factor=settings["factor"], warmup=settings["warmup"])
    words = {
        "network": NETWORKS | TEXT_NETWORKS | ({"head": None} if "features" in settings else {}),
        "optimizer": OPTIMIZERS,
        "augment": AUGMENTATIONS,
        "schedule": {"cosine": cosine_schedule, "step": step},
        "precision": {"auto": best, "float32": torch.float32, "bfloat16": torch.bfloat16},
    }
    settings = {"optimizer": "SGD"} | settings
    for name, allowed in words.items():
        require(settings[name] in allowed, name, repr(settings[name]), ", ".join(allowed))
    same = {name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay", "defer_at")}
    return same | {name: words[name][settings[name]] for name in ("augment", "schedule", "precision", "optimizer")}


def score(
    trained: Trained, counts: list[int], validation: tuple[Labeled, Tensor], test: tuple[Labeled, Tensor]
) -> dict[str, Any]:
    """All numbers of one classifier, ready for JSON: accuracies from 0 to 1, None where there is nothing to measure.

    counts: of the training images. validation, test: images and the logits (N, C) that the classifier gives them.
    """
    (chosen_on, chosen_by), (images, logits) = validation, test
    classes = images.num_classes
    per_class = per_class_accuracy(logits.argmax(1), images.labels, classes)
    row = {"groups": shot_accuracy(per_class, counts), "per_class": per_class.tolist()}
    if METHODS[trained.name].probabilities:
        probabilities = logits.softmax(1)
        row["calibration_error"] = calibration_error(probabilities, images.labels)
        if len(chosen_on):
            row["temperature"] = best_temperature(chosen_by, chosen_on.labels)
            scaled = (logits / row["temperature"]).softmax(1)
            row["calibration_error_scaled"] = calibration_error(scaled, images.labels)
        row["reliability"] = reliability_bins(probabilities, images.labels)
    on_validation = per_class_accuracy(chosen_by.argmax(1), chosen_on.labels, classes)
    row |= {"validation": on_validation.nanmean().item(), "validation_per_class": on_validation.tolist()}
    return plain(row | {"chosen": trained.chosen, "cost": trained.cost})
