"""Loaders that live on the device: batches are cut out of one tensor, and augmentation works on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Sampler

from .data import LabeledImages

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


def to_float(images: Tensor) -> Tensor:
    """uint8 0 .. 255 to float32 -1 .. 1, channels-last in memory, as the networks of the course are."""
    order = torch.channels_last if images.ndim == 4 else torch.preserve_format
    return images.to(torch.float32, memory_format=order).mul_(2 / 255).sub_(1)


def random_shift(images: Tensor, generator: torch.Generator, pixels: int = 2) -> Tensor:
    """Shift every image by up to `pixels` in each direction, on its own; what comes in at the border is 0.

    images: (B, channels, H, W) on any device. The generator is a CPU generator, so that a seed gives the same shifts
    on every device.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, channels, 2p+1, 2p+1, H, W)
    dy, dx = torch.randint(2 * pixels + 1, (2, batch), generator=generator).to(images.device, non_blocking=True)
    return windows[torch.arange(batch, device=images.device), :, dy, dx]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images left to right. Not for letters."""
    flip = torch.rand(len(images), generator=generator).to(images.device, non_blocking=True) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


class Batches:
    """Iterate over (float images, labels), already on the dataset's device.

    Args:
        dataset: on the device where training happens.
        batch_size: B; the last batch of an epoch may be smaller.
        sampler: which images an epoch shows, in which order; by default all, in their order.
        augment: function (uint8 images, generator) -> uint8 images.
        generator: CPU generator for `augment`.
    """

    def __init__(
        self,
        dataset: LabeledImages,
        batch_size: int,
        *,
        sampler: Sampler | None = None,
        augment: Augmentation | None = None,
        generator: torch.Generator | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed: at least 1")
        self.dataset, self.batch_size, self.sampler, self.augment = dataset, batch_size, sampler, augment
        self.generator = generator or torch.Generator()

    def __len__(self) -> int:
        size = len(self.dataset) if self.sampler is None else len(self.sampler)
        return -(-size // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images, labels) for images, labels, _ in self.with_indices())

    def with_indices(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(float images, labels, their places in the dataset), for what is stored beside the images."""
        data = self.dataset
        if self.sampler is None:
            order = torch.arange(len(data))
        else:  # the samplers of this course give the whole epoch at once; any other one is asked index by index
            whole = getattr(self.sampler, "indices", None)
            order = whole() if callable(whole) else torch.tensor(list(self.sampler))
        for part in order.to(data.labels.device).split(self.batch_size):
            images = data.images[part]
            if self.augment is not None:
                images = self.augment(images, self.generator)
            yield to_float(images), data.labels[part], part
