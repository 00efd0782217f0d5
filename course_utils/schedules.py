"""What changes while training goes on: the learning rate, the class weights, the sampler.

Everything here depends on (epoch, epochs) alone; epochs are counted from 0. The released LDAM code (Cao et al. 2019)
drops the learning rate and starts to re-balance at one and the same moment, epoch 160 of 200. `at` is that moment as a
share of training; give the same `at` to the schedule and to the deferral and they move together, or move one alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .losses import effective_number_weights
from .sampling import ClassBalancedSampler, EpochSampler, InstanceBalancedSampler


def cosine_schedule(epoch: int, epochs: int) -> float:
    """Factor of the learning rate in `epoch` (0-based) of `epochs`: 1 at the start, close to 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def constant_schedule(epoch: int, epochs: int) -> float:
    """Factor 1 in every epoch."""
    return 1.0


def switch_epoch(epochs: int, at: float = 0.8) -> int:
    """The first epoch of the second phase: at * epochs, rounded. 160 of 200; at = 1 means never."""
    if not 0 <= at <= 1:
        raise ValueError(f"at: got {at}; allowed: 0 to 1, a share of training")
    return round(at * epochs)


def step_schedule(epoch: int, epochs: int, *, at: float = 0.8, factor: float = 0.01, warmup: float = 0.025) -> float:
    """Linear warm-up, then 1, then `factor` from `at` on, then factor^2 half-way between `at` and the end.

    With the defaults and 200 epochs, the schedule of the released LDAM code: 0.2, 0.4 ... 1 in the first five epochs,
    0.01 from epoch 160 and 0.0001 from epoch 180. at = 1 never drops.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"factor: got {factor}; allowed: above 0, at most 1")
    rising = switch_epoch(epochs, warmup)
    if epoch < rising:
        return (epoch + 1) / rising
    drops = switch_epoch(epochs, at), switch_epoch(epochs, (1 + at) / 2)
    return factor ** sum(epoch >= drop for drop in drops)


def drw_weights(
    epoch: int, epochs: int, class_counts: Tensor | Sequence[int], *, at: float = 0.8, beta: float = 0.9999
) -> Tensor:
    """Deferred re-weighting (DRW): (C,) ones before the switch, `effective_number_weights` from there on.

    Cao et al. 2019, algorithm 1, has 1 / n_j in the second phase. Their released code has effective numbers with
    beta = 0.9999, as here, which for counts of at most some thousands is nearly the same.
    """
    return effective_number_weights(class_counts, beta if epoch >= switch_epoch(epochs, at) else 0.0)


class DeferredReweighting:
    """A loss whose class weights are `drw_weights`, epoch by epoch: DRW for any loss that takes `weight=`.

        fit(..., loss=DeferredReweighting(nn.CrossEntropyLoss, counts, epochs=20))
        fit(..., loss=DeferredReweighting(partial(LDAMLoss, counts), counts, epochs=20))

    Args:
        make_loss: function (weight=(C,) tensor) -> a loss, an `nn.Module`. Called once an epoch.
        class_counts: n_j. epochs: of the whole training, the same as in `fit()`.
        at: when the weights come on, as a share of training. beta: of the effective numbers.

    `fit()` calls `set_epoch()`.
    """

    def __init__(
        self,
        make_loss: Callable[..., nn.Module],
        class_counts: Tensor | Sequence[int],
        epochs: int,
        *,
        at: float = 0.8,
        beta: float = 0.9999,
    ):
        self.make_loss, self.class_counts, self.epochs, self.at, self.beta = make_loss, class_counts, epochs, at, beta
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        weight = drw_weights(epoch, self.epochs, self.class_counts, at=self.at, beta=self.beta)
        self.loss = self.make_loss(weight=weight)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.loss = self.loss.to(logits.device)
        return self.loss(logits, labels)


class DeferredResampler(EpochSampler):
    """Deferred re-sampling (DRS): every image once in an epoch before the switch, class-balanced from there on."""

    def __init__(
        self, labels: Tensor, epochs: int, *, at: float = 0.8, num_samples: int | None = None, seed: int = 0
    ):
        super().__init__(labels, num_samples=num_samples, seed=seed)
        self.switch = switch_epoch(epochs, at)
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
