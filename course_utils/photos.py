"""Photographs that stay on disk: read, cut to one size and changed at random while training or prediction runs.

`Photos` has the names of `LabeledImages`, so profiles, splits, samplers, methods and metrics take it as it is, and its
memory does not grow with the number of images. `View` says how a file becomes the numbers that a network reads.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .data import Labeled
from .machinery.checkpoints import name_of
from .machinery.picture_files import Found, in_folder, in_list, upright_picture
from .runtime import digest, keeping_random_state, located, progress_bar, require, tensor_digest

Key = tuple[list[int] | None, list[int]]  # seeds for augmentation, places of the images
Transform = Callable[[Image.Image], Tensor]  # an RGB picture to uint8 (3, H, W)
FITS = ("crop", "pad", "squash")


# ---- how a file becomes a tensor -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """From a file to floats (3, size, size), in plain numbers that a saved model can hold.

    size: S, the side of what a network reads. fit: "crop" scales the short side to S / share and takes the square in
    the middle; "pad" scales the long side to S and fills the rest; "squash" scales both sides to S. mean, std: of red,
    green and blue, as parts of 1: x = (pixel / 255 - mean) / std. background: grey from 0 to 255 below transparent
    parts, and beside a padded picture.
    """

    size: int = 224
    fit: str = "crop"
    share: float = 0.875
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    background: int = 255

    def __post_init__(self):
        require(isinstance(self.size, int) and self.size >= 1, "size", repr(self.size), "an integer of at least 1")
        require(self.fit in FITS, "fit", repr(self.fit), ", ".join(FITS))
        some = isinstance(self.share, int | float) and 0 < self.share <= 1
        require(some, "share", repr(self.share), "above 0, at most 1")
        for name, above in (("mean", -np.inf), ("std", 0)):
            values = getattr(self, name)
            numbers = isinstance(values, tuple) and all(isinstance(v, int | float) for v in values)
            fits = numbers and len(values) == 3 and all(above < v < np.inf for v in values)
            require(fits, name, repr(values), f"a tuple of three numbers above {above}")
        grey = isinstance(self.background, int) and 0 <= self.background <= 255
        require(grey, "background", repr(self.background), "an integer from 0 to 255")

    def open(self, path: str | os.PathLike) -> Image.Image:
        """RGB, upright, transparent parts on the background. A JPEG much larger than the view is decoded smaller.

        Raises:
            ValueError: the file is no readable picture; the message names it.
        """
        with upright_picture(Path(path), self.background, least=2 * round(self.size / self.share)) as picture:
            return picture

    def plain(self) -> Transform:
        """What validation, test and feature extraction see: picture to uint8 (3, S, S)."""
        from torchvision.transforms import v2  # here: it imports torch's compiler, seconds in every process

        bicubic, both = v2.InterpolationMode.BICUBIC, (self.size, self.size)
        steps: dict[str, list[Any]] = {
            "crop": [_Cut(), v2.Resize(round(self.size / self.share), bicubic), v2.CenterCrop(self.size)],
            "pad": [_Pad(self.size, self.background)],
            "squash": [v2.Resize(both, bicubic)],
        }
        return v2.Compose([*steps[self.fit], v2.PILToTensor()])

    def augmented(self, scale: tuple[float, float] = (0.35, 1.0), flip: float = 0.5, color: float = 0.0) -> Transform:
        """What training sees: a random part, mirrored with probability `flip`; picture to uint8 (3, S, S).

        scale: from which to which part of the area. color: how much brightness, contrast and saturation change, 0 to 1.
        """
        from torchvision.transforms import v2

        require(0 < scale[0] <= scale[1] <= 1, "scale", scale, "two numbers above 0, at most 1, the smaller one first")
        for name, value in (("flip", flip), ("color", color)):
            require(0 <= value <= 1, name, value, "0 to 1")
        pad = [_Pad(2 * self.size, self.background)] if self.fit == "pad" else []
        crop = v2.RandomResizedCrop(self.size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC)
        jitter = [v2.ColorJitter(color, color, color)] if color else []
        return v2.Compose([*pad, crop, v2.RandomHorizontalFlip(flip), *jitter, v2.PILToTensor()])

    def to_float(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) on any device to the floats that a network reads, channels-last in memory."""
        require(images.dtype == torch.uint8, "images", images.dtype, "uint8, 0 to 255")
        mean, std = (255 * torch.tensor((self.mean, self.std))[..., None, None]).to(images.device, non_blocking=True)
        # x = (pixel / 255 - mean) / std = (pixel - 255 mean) / (255 std)
        return images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(std)

    def numbers(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON; `View.of()` takes them back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> View:
        names = {field.name for field in fields(cls)}
        require(numbers.keys() == names, "view", ", ".join(sorted(numbers)), ", ".join(sorted(names)))
        kept: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in numbers.items()}
        return cls(**kept)


USUAL = View()


@dataclass(frozen=True)
class _Pad:
    """The whole picture in the middle of a square."""

    side: int
    grey: int

    def __call__(self, image: Image.Image) -> Image.Image:
        factor = self.side / max(image.size)
        width, height = (max(1, round(length * factor)) for length in image.size)
        square = Image.new("RGB", (self.side, self.side), (self.grey,) * 3)
        small = image.resize((width, height), Image.Resampling.BICUBIC)
        square.paste(small, ((self.side - width) // 2, (self.side - height) // 2))
        return square


@dataclass(frozen=True)
class _Cut:
    """The middle of a picture whose sides differ by more than `longest`: scaled as it is, it could fill the memory."""

    longest: int = 4

    def __call__(self, image: Image.Image) -> Image.Image:
        most = self.longest * min(image.size)
        left, top = (max(0, (length - most) // 2) for length in image.size)
        return image.crop((left, top, image.width - left, image.height - top)) if left or top else image


# ---- the data --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Photos(Labeled):
    """Image files and their labels; a file is opened when its image is needed.

    paths: bytes (N,), a NumPy array, below `root`; a list of texts would be copied into every worker, page by page.
    labels: int64 (N,), 0 to C - 1, on the device where training happens: `stream()` brings the images there.
    class_names: C names. view: how a file becomes numbers. workers: processes that read files beside this one; 0: this
    one reads. They end with each epoch. Where Python does not fork (Windows, macOS, Linux from Python 3.14 on), a start
    takes seconds, and an `augment` of your own has to stand in a file, not in a notebook.
    """

    KIND: ClassVar[str] = "paths"
    in_memory: ClassVar[bool] = False
    reading_batch: ClassVar[int] = 64
    paths: np.ndarray
    labels: Tensor
    class_names: tuple[str, ...]
    view: View = USUAL
    workers: int = 0
    root: str = ""

    def __post_init__(self):
        paths, what = self.paths, "bytes in an array of shape (N,)"
        require(isinstance(paths, np.ndarray), "paths", type(paths).__name__, what)
        require(paths.dtype.kind == "S" and paths.ndim == 1, "paths", f"{paths.dtype} of shape {paths.shape}", what)
        one_each = len(self.labels) == len(self.paths)
        require(one_each, "labels", f"{len(self.labels)} for {len(self.paths)} paths", "one for each path")
        count = isinstance(self.workers, int) and self.workers >= 0
        require(count, "workers", repr(self.workers), "an integer of at least 0")
        self._check_labels()

    def __repr__(self) -> str:
        what = f"{len(self)} files, {self.view.size} x {self.view.size} by {self.view.fit}"
        return f"Photos({what}, {self.num_classes} classes, on {self.device})"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.view.plain()(self.view.open(self.path(index))), self.labels[index]

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        split: str = "train",
        *,
        view: View = USUAL,
        workers: int = 0,
        class_names: Sequence[str] | None = None,
        skip_broken: bool = False,
    ) -> Photos:
        """One split of a folder with train/CLASS, validation/CLASS and test/CLASS; split "all" of one with CLASS alone.

        What is a split, a class and a picture is as `data.load_images()` has it.

        Args:
            class_names: of all classes, in the order of the labels, such as `train.class_names` for a test folder; then
                a class may have no picture, and a warning says which. By default every class of train has to be there.
            skip_broken: read every file once now, and leave out those that are no readable pictures, with a warning
                that names them. By default a broken file is an error when its image is needed.

        Raises:
            ValueError: another split, classes that differ from those of train, an empty class.
        """
        require(located(folder).is_dir(), "folder", repr(str(folder)), "a folder of folders of images")
        return cls.from_found(in_folder(located(folder), split, class_names), view, workers, skip_broken)

    @classmethod
    def from_list(
        cls,
        file: str | Path,
        *,
        root: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        skip_missing: bool = False,
        skip_broken: bool = False,
        view: View = USUAL,
        workers: int = 0,
    ) -> Photos:
        """The files that the lines "path label" of a list name, as ImageNet-LT, Places-LT and iNaturalist have them.

        Blanks, a tab or a comma stand between the two; a path may have blanks, a label only after a tab. Empty lines
        and those that begin with "#" do not count. Labels are whole numbers from 0 or names, of which each is a class.

        Args:
            root: folder of the paths; by default that of the list, or what absolute paths have in common.
            class_names: of all classes, such as `train.class_names` for the list of a test set; then a class may have
                no image, and a warning says which. Labels that are whole numbers are places in it, 0 to C - 1.
            skip_missing: leave out files that are not there, with a warning, instead of an error.
            skip_broken: as in `from_folder()`.

        Raises:
            ValueError: a line that is not "path label", a label that is not allowed or leaves a gap, a file with two
                labels, a file that is not there; the message has the number of the line.
        """
        found = in_list(located(file), None if root is None else located(root), class_names, skip_missing)
        return cls.from_found(found, view, workers, skip_broken)

    @classmethod
    def from_found(cls, found: Found, view: View = USUAL, workers: int = 0, skip_broken: bool = False) -> Photos:
        """What a reader of `picture_files` found."""
        root, paths, labels, names = found
        packed = np.array([os.fsencode(path) for path in paths], dtype=np.bytes_)
        photos = cls(packed, torch.tensor(labels), names, view, workers, os.path.abspath(root))
        return photos._without_broken() if skip_broken else photos

    def path(self, index: int) -> str:
        """Of one file, with the root."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def with_view(self, view: View) -> Photos:
        return replace(self, view=view)

    def to(self, device: torch.device | str) -> Photos:
        return replace(self, labels=self.labels.to(device))

    def digest(self) -> str:
        """16 hexadecimal digits of SHA-256 over view, class names, labels, and of each file its path below the root
        and its contents: the same for a copy elsewhere, another one if a byte of a file changes.

        It reads every file once; later calls in this process only those whose size or time has changed since.
        """
        found = hashlib.sha256()
        with ThreadPoolExecutor(max(1, self.workers)) as pool, progress_bar(len(self), "file", delay=2) as bar:
            for start in range(0, len(self), 1024):  # a pool would line up all of them at once
                places = range(start, min(start + 1024, len(self)))
                for place, content in zip(places, pool.map(_content_of, map(self.path, places)), strict=True):
                    path = bytes(self.paths[place])
                    found.update(len(path).to_bytes(4, "big") + path + content)
                    bar.update()
        return digest(self.view.numbers(), self.class_names, tensor_digest(self.labels), found.hexdigest())

    def _without_broken(self) -> Photos:
        """The same without files that are no readable pictures; a warning names them."""
        good = []
        with progress_bar(len(self), "file", delay=2) as bar:
            for fine in self._read(self._is_readable, range(len(self))):
                good.append(fine)
                bar.update()
        rest = self.subset(torch.tensor(good))
        for name, before, after in zip(self.class_names, self.counts, rest.counts, strict=True):
            where = "the pictures" if self.class_names == ("unknown",) else f"class {name!r}"
            require(after or not before, where, f"{before} files, none of them readable", "one at least")
        names = ", ".join(os.fsdecode(path) for path, fine in zip(self.paths.tolist(), good, strict=True) if not fine)
        if names:
            warnings.warn(f"skipped {len(self) - len(rest)} files that are no readable images: {names}", stacklevel=4)
        return rest

    def _is_readable(self, index: int) -> bool:
        try:
            return self.view.open(self.path(index)) is not None
        except ValueError:
            return False

    def _chosen(self, places: Tensor) -> np.ndarray:
        return self.paths[places.cpu().numpy()]

    # ---- images, one part after the other ----

    @property
    def augmentation(self) -> Transform:
        """What `fit(augment="usual")` does with photographs: a random part, mirrored half of the time."""
        return self.view.augmented()

    def stream(
        self,
        parts: Iterable[Tensor],
        augment: Transform | None = None,
        generator: torch.Generator | None = None,
        order: Iterable[Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """Floats (B, 3, S, S) of each part, as `view` has them, on the device of the labels.

        What `augment` draws for an image depends on (the state of `generator`, its place in the epoch) alone, not on
        the workers. Between processes images are uint8, a quarter of the bytes.

        Args:
            parts: int64 (B,), places in these data.
            augment: function of an RGB picture that gives uint8 (3, H, W), such as `view.augmented()`; it draws from
                torch's, NumPy's or Python's own generator. None: `view.plain()`.
            order: int64 (B,) for each part, the places of its images in the epoch; by default they are counted. For
                several processes that share one epoch.

        Raises:
            ValueError: a file that is no readable picture, named in one line, from a worker too.
        """
        transform = self.view.plain() if augment is None else _checked(augment, self.view)
        base = None if augment is None else int(torch.randint(2**62, (), generator=generator))
        keys = _with_seeds(parts, order, base)
        for images in self._read(functools.partial(_read_part, self, transform), keys):
            if isinstance(images, ValueError):
                raise images from None
            yield self.view.to_float(torch.from_numpy(images).to(self.device))

    def _read(self, function: Callable[[Any], Any], keys: Iterable[Any]) -> Iterator[Any]:
        """function(key) of each key in turn, by the workers; these end when it ends, or when it is left."""
        loader: DataLoader = DataLoader(
            _Keys(),
            batch_size=None,
            sampler=keys,
            num_workers=self.workers,
            generator=torch.Generator(),  # else each epoch would draw a number from torch's own one
            collate_fn=function,
        )
        try:
            results = iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError, AssertionError) as error:
            seen = f"{self.workers}, which cannot be started ({error})"  # inside of a worker, or without fork
            raise ValueError(f"workers: got {seen}; allowed: 0, or an augment that stands in a file") from error
        try:
            yield from results
        except RuntimeError as error:
            ended = f"one that ended ({str(error).splitlines()[0]})"
            require("DataLoader worker" not in str(error), "workers", ended, "0, or more memory for each")
            raise
        finally:
            del results  # ends the workers now, not at some later time


class _Keys(Dataset):
    """Each key as it is; the loader's `collate_fn` makes an image of it, or something else, in a worker."""

    def __getitem__(self, index: Any) -> Any:
        return index


def _read_part(photos: Photos, transform: Transform, key: Key) -> np.ndarray | ValueError:
    """(seeds or None, places) to uint8 (B, 3, S, S), or to an error that names a file."""
    seeds, places = key
    try:
        images = []
        for k, place in enumerate(places):
            picture = photos.view.open(photos.path(place))
            with _seeded(seeds[k]) if seeds else contextlib.nullcontext():
                images.append(transform(picture))
        shapes = {tuple(image.shape) for image in images}
        require(len(shapes) == 1, "augment", f"images of {sorted(shapes)}", "one size for all")
        return torch.stack(images).numpy()  # through a pipe; a tensor would take shared memory, and leave holes in ours
    except ValueError as error:
        return ValueError(str(error))


def _with_seeds(parts: Iterable[Tensor], order: Iterable[Tensor] | None, base: int | None) -> Iterator[Key]:
    shown, places = 0, None if order is None else iter(order)
    for part in parts:
        at = range(shown, shown + len(part)) if places is None else next(places).tolist()
        yield None if base is None else [base + n for n in at], part.tolist()
        shown += len(part)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch, NumPy and Python draw as the seed says; afterwards they go on as if nothing had been drawn."""
    before = random.getstate(), np.random.get_state()
    with keeping_random_state() as seed_torch:
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def _checked(augment: Any, view: View) -> Transform:
    """The same, if it can do what it has to: tried on a grey picture."""
    try:
        with _seeded(0):
            made = augment(Image.new("RGB", (2 * view.size, 2 * view.size), "grey"))
        seen = f"{name_of(augment)}, which gives {getattr(made, 'dtype', type(made).__name__)}"
        fits = isinstance(made, Tensor) and made.dtype == torch.uint8 and made.ndim == 3
    except Exception as error:
        seen, fits = f"{name_of(augment)}, which fails on a picture ({error})", False
    require(fits, "augment", seen, "a function of an RGB picture that gives uint8 (3, H, W), such as view.augmented()")
    return augment


def _content_of(path: str) -> bytes:
    """SHA-256 of a file. Kept for this process, as long as the file has this size and time."""
    try:
        stat = os.stat(path)
        return _digest_of(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


@functools.cache
def _digest_of(path: str, _size: int, _time: int) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
