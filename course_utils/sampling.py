"""Which images an epoch shows. Each sampler computes the whole epoch as one tensor of indices.

p_j is the chance that the next image is of class j, n_j the number of images of class j, N their sum, C the number
of classes (Kang et al. 2020, equation 1: p_j = n_j^q / sum_i n_i^q; q = 1 instance-balanced, q = 0 class-balanced).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Common part: labels, epoch length, and randomness that depends on (seed, epoch) alone.

    Args:
        labels: int64 (N,), the label of every image.
        num_samples: indices in an epoch; N by default.
        seed: at least 0.

    Works with `torch.utils.data.DataLoader(dataset, sampler=...)` and with `Batches`. Call `set_epoch(epoch)` before
    each epoch, as with torch's DistributedSampler; `fit()` does.
    """

    def __init__(self, labels: Tensor, *, num_samples: int | None = None, seed: int = 0):
        self.labels = torch.as_tensor(labels).cpu()
        if self.labels.ndim != 1 or not len(self.labels):
            raise ValueError(f"labels: got shape {tuple(self.labels.shape)}; allowed: (N,) with N of at least 1")
        if self.labels.is_floating_point():
            raise ValueError(f"labels: got {self.labels.dtype}; allowed: integers")
        if num_samples is not None and num_samples < 1:
            raise ValueError(f"num_samples: got {num_samples}; allowed: at least 1")
        self.num_samples = len(self.labels) if num_samples is None else num_samples
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def generator(self) -> torch.Generator:
        """Fresh for every (seed, epoch), so that an epoch can be drawn again."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)

    def indices(self) -> Tensor:
        """int64 (num_samples,): the images of this epoch, in order."""
        raise NotImplementedError


def shuffled_cycles(size: int, length: int, generator: torch.Generator) -> Tensor:
    """`length` numbers out of 0 .. size - 1, cycle after cycle, each cycle a new permutation."""
    cycles = -(-length // size)
    return torch.rand(cycles, size, generator=generator).argsort(dim=1).flatten()[:length]


class InstanceBalancedSampler(EpochSampler):
    """p_j = n_j / N: every image has the same chance. Without replacement, so one epoch shows every image once."""

    def indices(self) -> Tensor:
        return shuffled_cycles(len(self.labels), self.num_samples, self.generator())


class ClassBalancedSampler(EpochSampler):
    """p_j = 1 / C: every class has the same chance.

    Exact, not only on average: classes come in shuffled cycles, and the images of a class come in shuffled cycles of
    their own, so an image is not repeated before all images of its class were shown.

    Differs from the released code of Kang et al. 2020, which shows four images of a class in a row: here one, so that
    a batch mixes more classes.
    """

    def indices(self) -> Tensor:
        generator = self.generator()
        present = self.labels.unique()
        classes = present[shuffled_cycles(len(present), self.num_samples, generator)]
        indices = torch.empty_like(classes)
        for j in present:
            mine, turns = (self.labels == j).nonzero()[:, 0], (classes == j).nonzero()[:, 0]
            indices[turns] = mine[shuffled_cycles(len(mine), len(turns), generator)] if len(turns) else turns
        return indices
