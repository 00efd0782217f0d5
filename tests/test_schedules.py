"""schedules.py: what changes with the epoch, and when; alone and inside fit()."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.data import LabeledImages, exponential_counts
from course_utils.heads import CosineClassifier
from course_utils.losses import DeferredReweighting, FocalLoss, LDAMLoss, drw_weights, effective_number_weights
from course_utils.networks import MLP
from course_utils.sampling import ClassBalancedSampler, DeferredResampler, InstanceBalancedSampler, switch_epoch
from course_utils.training import constant_schedule, cosine_schedule, fit, step_schedule

CIFAR10 = exponential_counts(10, 5000, 100)
LABELS = torch.tensor([0] * 60 + [1] * 12 + [2] * 3)


# ---- the learning rate -----------------------------------------------------------------------------------------------


def test_the_released_schedule_of_200_epochs():
    factors = [step_schedule(epoch, 200) for epoch in range(200)]
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert set(factors[5:160]) == {1.0}
    assert factors[160:180] == pytest.approx([0.01] * 20) and factors[180:] == pytest.approx([0.0001] * 20)


@pytest.mark.parametrize("epochs", [1, 2, 5, 7, 20, 33, 200])
@pytest.mark.parametrize("at", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_the_rate_drops_at_the_switch_and_half_way_to_the_end(epochs, at):
    factors = [step_schedule(epoch, epochs, at=at, factor=0.1, warmup=0.0) for epoch in range(epochs)]
    first, second = switch_epoch(epochs, at), switch_epoch(epochs, (1 + at) / 2)
    assert factors == pytest.approx([0.1 ** ((e >= first) + (e >= second)) for e in range(epochs)])
    assert at < 1 or factors == [1.0] * epochs


@pytest.mark.parametrize("schedule", [cosine_schedule, constant_schedule, step_schedule])
def test_schedules_are_pure_functions(schedule):
    there = [schedule(epoch, 9) for epoch in range(9)]
    back = [schedule(epoch, 9) for epoch in reversed(range(9))]
    assert there == back[::-1] and all(0 < factor <= 1 for factor in there)


@pytest.mark.parametrize("at", [-0.1, 1.1, 16, math.nan])
def test_a_switch_is_a_share_of_training(at):
    for call in (switch_epoch, partial(step_schedule, 3), partial(drw_weights, 3, class_counts=[5, 2])):
        with pytest.raises(ValueError, match=r"at: got .*allowed: 0 to 1"):
            call(epochs=20, at=at)


@pytest.mark.parametrize("factor", [0, -1, 1.5, math.nan])
def test_a_factor_out_of_range_is_refused(factor):
    with pytest.raises(ValueError, match=r"factor: got .*allowed: above 0, at most 1"):
        step_schedule(3, 20, factor=factor)


# ---- deferred re-weighting -------------------------------------------------------------------------------------------


def test_weights_are_ones_at_epoch_159_of_200_and_not_at_160():
    assert torch.equal(drw_weights(159, 200, CIFAR10), torch.ones(10))
    assert torch.equal(drw_weights(160, 200, CIFAR10), effective_number_weights(CIFAR10, 0.9999))
    assert step_schedule(159, 200) == 1 and step_schedule(160, 200) == 0.01  # the same moment


@pytest.mark.parametrize("at", [0.25, 0.5, 0.8])
def test_deferral_and_drop_move_together_or_alone(at):
    epochs, start = 40, switch_epoch(40, at)
    uneven = [drw_weights(e, epochs, CIFAR10, at=at).std() > 0 for e in range(epochs)]
    dropped = [step_schedule(e, epochs, at=at) < 1 for e in range(1, epochs)]
    assert uneven[1:] == dropped and uneven.index(True) == start
    never = [step_schedule(e, epochs, at=1.0) < 1 for e in range(1, epochs)]
    assert not any(never)


def test_from_the_start_and_never():
    assert drw_weights(0, 20, [50, 5], at=0.0).std() > 0
    assert torch.equal(drw_weights(19, 20, [50, 5], at=1.0), torch.ones(2))


@pytest.mark.parametrize("make", [nn.CrossEntropyLoss, FocalLoss, partial(LDAMLoss, [60, 12, 3])])
def test_the_deferred_loss_is_the_plain_one_before_and_the_weighted_one_after(make):
    generator = torch.Generator().manual_seed(0)
    values, labels = 2 * torch.rand(30, 3, generator=generator) - 1, torch.arange(30) % 3
    loss = DeferredReweighting(make, [60, 12, 3], 10, at=0.7, beta=0.99)
    weighted = make(weight=effective_number_weights([60, 12, 3], 0.99))
    for epoch in (0, 6, 7, 9, 3):  # a checkpoint may bring us anywhere
        loss.set_epoch(epoch)
        assert torch.equal(loss(values, labels), (weighted if epoch >= 7 else make())(values, labels))
    assert not torch.isclose(weighted(values, labels), make()(values, labels), rtol=0.01)


# ---- deferred re-sampling --------------------------------------------------------------------------------------------


def test_the_deferred_sampler_is_one_sampler_before_and_the_other_after():
    sampler = DeferredResampler(LABELS, 10, at=0.6, num_samples=75, seed=4)
    instance, balanced = InstanceBalancedSampler(LABELS, seed=4), ClassBalancedSampler(LABELS, seed=4)
    for epoch in (0, 5, 6, 9, 2):
        for each in (sampler, instance, balanced):
            each.set_epoch(epoch)
        want = balanced if epoch >= 6 else instance
        assert torch.equal(sampler.indices(), want.indices()) and list(sampler) == list(want)


def test_re_sampling_changes_what_the_loader_shows():
    """The released code builds its sampler and never hands it to the loader; its "Resample" changes nothing."""
    data = LabeledImages(torch.zeros(75, 1, 4, 4, dtype=torch.uint8), LABELS, ("a", "b", "c"))
    seen = {}

    def objective(model, images, labels, indices):
        seen.setdefault(objective.epoch, []).append(labels)
        return F.cross_entropy(model(images), labels)

    objective.set_epoch = lambda epoch: setattr(objective, "epoch", epoch)
    sampler = DeferredResampler(LABELS, 4, at=0.5)
    fit(MLP(3, in_features=16), data, epochs=4, objective=objective, sampler=sampler, augment=None, progress=False)
    histograms = [torch.cat(seen[epoch]).bincount().tolist() for epoch in range(4)]
    assert histograms == [[60, 12, 3], [60, 12, 3], [25, 25, 25], [25, 25, 25]]


# ---- in fit(), which knows neither -----------------------------------------------------------------------------------


def test_ldam_with_drw_trains_and_a_stopped_run_goes_on_with_the_right_weights(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(90, (75, 1, 6, 6), dtype=torch.uint8, generator=generator)
    for j in range(3):
        images[LABELS == j, :, 2 * j : 2 * j + 2] += 140
    data = LabeledImages(images, LABELS, ("a", "b", "c"))

    def run(epochs_until_killed=None, checkpoint=None):
        torch.manual_seed(0)
        model = MLP(3, in_features=36, head=CosineClassifier(64, 3, scale=1.0, learn_scale=False, unit_rows=True))
        loss = DeferredReweighting(partial(LDAMLoss, data.counts), data.counts, 8, at=0.5)

        def evaluate(model):
            if killed and next(killed) == epochs_until_killed:
                raise KeyboardInterrupt
            return {}

        killed = iter(range(1, 99)) if epochs_until_killed else None
        return model, fit(
            model,
            data,
            epochs=8,
            loss=loss,
            schedule=partial(step_schedule, at=0.5),
            augment=None,
            evaluate=evaluate,
            checkpoint=checkpoint,
            progress=False,
        )

    model, history = run()
    assert history[3]["loss"] < 0.8 * history[0]["loss"]  # the weights of the second phase make another loss of it
    assert [row["lr"] for row in history] == pytest.approx([0.1] * 4 + [1e-3] * 2 + [1e-5] * 2)
    with pytest.raises(KeyboardInterrupt):
        run(6, tmp_path / "stopped.pt")
    resumed, again = run(None, tmp_path / "stopped.pt")
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in history])
    for a, b in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
