"""Which images an epoch shows. Each sampler computes the whole epoch as one tensor of indices.

p_j is the chance that the next image is of class j, n_j the number of images of class j, N their sum, C the number
of classes (Kang et al. 2020, equation 1: p_j = n_j^q / sum_i n_i^q; q = 1 instance-balanced, q = 0 class-balanced).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.utils.data import Sampler

from .machinery.checks import of_classes, whole
from .runtime import require


def class_probabilities(class_counts: Tensor | Sequence[int], q: float) -> Tensor:
    """p_j = n_j^q / sum_i n_i^q (Kang et al. 2020, equation 1): float64 (C,) on the CPU, sums to 1.

    class_counts: (C,), n_j. q: 1 instance-balanced, 1/2 square-root, 0 class-balanced; any finite number.

    Raises:
        ValueError: a class without images, or a q that is not a finite number, or too large for these counts.
    """
    counts = of_classes("class_counts", class_counts)
    filled = len(counts) > 0 and bool(((counts > 0) & counts.isfinite()).all())
    require(filled, "class_counts", counts.tolist, "one number above 0 for each class")
    require(math.isfinite(q), "q", q, "a finite number, such as 0, 0.5 or 1")
    # p_j = n_j^q / sum_i n_i^q   (Kang et al. 2020, equation 1)
    powers = counts.cpu().double() ** q  # Apple GPUs have no float64
    require(0 < powers.sum() < math.inf, "q", q, f"a number for which n_j^q is one, n_j up to {counts.max()}")
    return powers / powers.sum()


class EpochSampler(Sampler[int]):
    """Common part: labels, epoch length, and randomness that depends on (seed, epoch) alone.

    Args:
        labels: integers (N,), the label of every image.
        num_samples: indices in an epoch; N by default.
        seed: at least 0.

    Works with `torch.utils.data.DataLoader(dataset, sampler=...)` and with `Batches`. Call `set_epoch(epoch)` before
    each epoch, as with torch's DistributedSampler; `fit()` does.

    `classes`, the sorted labels that occur, and `counts`, their n_j, are int64 (C,); a label that no image has is not
    among them and is never drawn.
    """

    def __init__(self, labels: Tensor, *, num_samples: int | None = None, seed: int = 0):
        self.labels = whole("labels", labels).cpu()
        require(len(self.labels), "labels", "shape (0,)", "(N,) with N of at least 1")
        require(num_samples is None or num_samples >= 1, "num_samples", num_samples, "at least 1")
        self.num_samples = len(self.labels) if num_samples is None else num_samples
        self.seed, self.epoch = seed, 0
        self.classes, self.counts = self.labels.unique(return_counts=True)

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

    def probabilities(self) -> Tensor:
        """float64 (C,): p_j of `classes` in this epoch."""
        raise NotImplementedError

    @cached_property
    def by_class(self) -> Tensor:
        """int64 (N,): the images sorted by class; those of `classes[j]` start at place `first[j]`."""
        return self.labels.argsort(stable=True)

    @cached_property
    def plan(self) -> dict[int, tuple]:
        """Of `_class_balanced()`: {turns: what is the same in every epoch with so many}."""
        return {}

    @property
    def first(self) -> Tensor:
        return self.counts.cumsum(0) - self.counts


def shuffled_cycles(size: int, length: int, generator: torch.Generator) -> Tensor:
    """`length` numbers out of 0 .. size - 1, cycle after cycle, each cycle a new permutation."""
    cycles = -(-length // size)
    return torch.rand(cycles, size, generator=generator).argsort(dim=1).flatten()[:length]


def shuffled_within(groups: Tensor, generator: torch.Generator) -> Tensor:
    """The places 0 .. M - 1 in a random order in which `groups`, sorted integers (M,), stays sorted."""
    order = torch.randperm(len(groups), generator=generator)
    return pick(order, pick(groups, order).argsort(stable=True))


def pick(values: Tensor, places: Tensor) -> Tensor:
    """values[places], two to three times as fast for long vectors."""
    return values.index_select(0, places)


def _instance_balanced(sampler: EpochSampler, length: int, generator: torch.Generator) -> Tensor:
    return shuffled_cycles(len(sampler.labels), length, generator)


def _rounds(sampler: EpochSampler, turns: int) -> tuple[Tensor, Tensor, Tensor]:
    """The part of `_class_balanced()` without chance: every class goes through its images until it has `turns` of them.

    Returns the round of each element, in order; the element's place in `by_class`; where each class's rounds start.
    """
    rounds = (turns + sampler.counts - 1) // sampler.counts
    owner = torch.arange(len(rounds)).repeat_interleave(rounds)
    sizes = sampler.counts[owner]
    start = sizes.cumsum(0) - sizes
    place = torch.arange(int(sizes.sum())) + (sampler.first[owner] - start).repeat_interleave(sizes)
    one_round = torch.arange(len(sizes), dtype=torch.int32).repeat_interleave(sizes)  # short numbers sort faster
    return one_round, place, start[rounds.cumsum(0) - rounds]


def _class_balanced(sampler: EpochSampler, length: int, generator: torch.Generator) -> Tensor:
    """Classes in shuffled cycles; in cycle r every class shows number r of its own images, in shuffled rounds."""
    classes = len(sampler.classes)
    turns = -(-length // classes)
    if turns not in sampler.plan:
        cycle = torch.arange(turns, dtype=torch.int32).repeat_interleave(classes)
        sampler.plan.clear()  # the last one alone: epochs of a progressive sampler have many lengths
        sampler.plan[turns] = *_rounds(sampler, turns), cycle
    one_round, place, start, cycle = sampler.plan[turns]
    order = shuffled_within(cycle, generator)[:length] % classes
    element = pick(shuffled_within(one_round, generator), pick(start, order) + cycle[:length])
    return pick(sampler.by_class, pick(place, element))


class InstanceBalancedSampler(EpochSampler):
    """p_j = n_j / N: every image has the same chance. Without replacement, so one epoch shows every image once."""

    def indices(self) -> Tensor:
        return _instance_balanced(self, self.num_samples, self.generator())

    def probabilities(self) -> Tensor:
        return class_probabilities(self.counts, 1)


class ClassBalancedSampler(EpochSampler):
    """p_j = 1 / C: every class has the same chance.

    Exact, not only on average: classes come in shuffled cycles, and the images of a class come in shuffled cycles of
    their own, so an image is not repeated before all images of its class were shown.

    Differs from the released code of Kang et al. 2020, which shows four images of a class in a row and goes on with
    unfinished cycles in the next epoch: here one image, so that a batch mixes more classes, and every epoch starts
    anew, so that it depends on (seed, epoch) alone.
    """

    def indices(self) -> Tensor:
        return _class_balanced(self, self.num_samples, self.generator())

    def probabilities(self) -> Tensor:
        return class_probabilities(self.counts, 0)


class SquareRootSampler(EpochSampler):
    """p_j = sqrt(n_j) / sum_i sqrt(n_i): halfway between the instance-balanced and the class-balanced sampler.

    Draws are independent, with replacement: a class by p_j, then one of its images. So numbers of images are right on
    average, and an epoch of N draws leaves out some images.

    Differs from the released code of Kang et al. 2020 in the algorithm alone, a sum tree over all images there.
    """

    def indices(self) -> Tensor:
        generator = self.generator()
        j = torch.multinomial(self.probabilities(), self.num_samples, replacement=True, generator=generator)
        within = torch.rand(self.num_samples, dtype=torch.float64, generator=generator)
        return pick(self.by_class, pick(self.first, j) + (within * pick(self.counts, j)).long())

    def probabilities(self) -> Tensor:
        return class_probabilities(self.counts, 0.5)


class ProgressivelyBalancedSampler(EpochSampler):
    """p_j(t) = (1 - a) n_j / N + a / C with a = t / (epochs - 1): instance-balanced at first, class-balanced at last.

    Kang et al. 2020, equation 2; t is the 0-based epoch. Every draw comes with chance a from a class-balanced stream,
    else from an instance-balanced one. Both streams are those of the samplers above, so the first epoch shows every
    image once and the last one is class-balanced exactly.

    Args:
        epochs: at least 2, of the whole training. Others as in every sampler.

    Raises:
        ValueError: from `set_epoch()`, for an epoch outside 0 .. epochs - 1.

    Differs from the paper, which writes t / epochs and would never be class-balanced; the released code has a as here,
    and draws classes independently.
    """

    def __init__(self, labels: Tensor, *, epochs: int, num_samples: int | None = None, seed: int = 0):
        super().__init__(labels, num_samples=num_samples, seed=seed)
        require(epochs >= 2, "epochs", epochs, "at least 2, one for each end")
        self.epochs = epochs

    def set_epoch(self, epoch: int) -> None:
        allowed = f"0 to {self.epochs - 1}, as the sampler has {self.epochs}"
        require(0 <= epoch < self.epochs, "epoch", epoch, allowed)
        super().set_epoch(epoch)

    @property
    def share(self) -> float:
        """a, the share of the class-balanced stream in this epoch, 0 to 1."""
        return self.epoch / (self.epochs - 1)

    def indices(self) -> Tensor:
        generator = self.generator()
        balanced = torch.rand(self.num_samples, generator=generator) < self.share
        indices, number = torch.empty(self.num_samples, dtype=torch.int64), int(balanced.sum())
        if number:
            indices[balanced] = _class_balanced(self, number, generator)
        if number < self.num_samples:
            indices[~balanced] = _instance_balanced(self, self.num_samples - number, generator)
        return indices

    def probabilities(self) -> Tensor:
        balanced, instance = class_probabilities(self.counts, 0), class_probabilities(self.counts, 1)
        # p_j(t) = (1 - a) n_j / N + a / C   (Kang et al. 2020, equation 2)
        return (1 - self.share) * instance + self.share * balanced


def switch_epoch(epochs: int, at: float = 0.8) -> int:
    """The first epoch of the second phase: at * epochs, rounded. 160 of 200; at = 1 means never."""
    require(0 <= at <= 1, "at", at, "0 to 1, a share of training")
    return round(at * epochs)


class DeferredResampler(EpochSampler):
    """Deferred re-sampling (DRS): every image once in an epoch before the switch, class-balanced from there on.

    Differs from the released code of Cao et al. 2019, which draws with replacement and p_j ~ n_j / (1 - 0.9999^n_j):
    balanced for classes of some hundred images, while one of 5,000 comes 1.3 times as often as one of 5.
    """

    def __init__(self, labels: Tensor, epochs: int, *, at: float = 0.8, num_samples: int | None = None, seed: int = 0):
        super().__init__(labels, num_samples=num_samples, seed=seed)
        self.epochs, self.switch = epochs, switch_epoch(epochs, at)
        self.before = InstanceBalancedSampler(labels, num_samples=num_samples, seed=seed)
        self.after = ClassBalancedSampler(labels, num_samples=num_samples, seed=seed)

    def _now(self) -> EpochSampler:
        return self.after if self.epoch >= self.switch else self.before

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.before.set_epoch(epoch)
        self.after.set_epoch(epoch)

    def indices(self) -> Tensor:
        return self._now().indices()

    def probabilities(self) -> Tensor:
        return self._now().probabilities()
