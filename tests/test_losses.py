"""losses.py: class weights against the values of longer derivations."""

import math

import pytest
import torch
from torch.nn import functional as F

from course_utils.data import exponential_counts
from course_utils.losses import effective_number_weights, inverse_frequency_weights

CIFAR10, CIFAR100 = exponential_counts(10, 5000, 100), exponential_counts(100, 500, 100)


@pytest.mark.parametrize(
    ("weights", "head", "middle", "tail"),
    [
        (effective_number_weights(CIFAR10, 0.9999), 0.0506, (4, 0.319), 3.993),
        (inverse_frequency_weights(CIFAR10), 0.0402, (4, 0.312), 4.024),
        (effective_number_weights(CIFAR100, 0.9999), 0.0449, (49, 0.430), 4.378),
        (inverse_frequency_weights(CIFAR100), 0.0438, (49, 0.430), 4.382),
    ],
)
def test_weights_of_long_tailed_cifar(weights, head, middle, tail):
    assert weights[0].item() == pytest.approx(head, abs=6e-5)
    assert weights[middle[0]].item() == pytest.approx(middle[1], abs=6e-4)
    assert weights[-1].item() == pytest.approx(tail, abs=6e-4)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.999])
def test_effective_number_weights_agree_with_the_sum_that_they_stand_for(beta):
    counts = [1, 3, 40, 7]
    effective = [sum(beta**i for i in range(n)) for n in counts]  # E_n = 1 + beta + ... + beta^(n - 1)
    want = torch.tensor([1 / e for e in effective])
    want *= len(counts) / want.sum()
    assert torch.allclose(effective_number_weights(counts, beta), want, rtol=1e-5)


@pytest.mark.parametrize("counts", [[500, 100, 3], torch.tensor([7, 7, 7]), [1], CIFAR100])
@pytest.mark.parametrize("weigh", [inverse_frequency_weights, effective_number_weights])
def test_weights_sum_to_the_number_of_classes(weigh, counts):
    weights = weigh(counts)
    assert weights.dtype == torch.float32 and weights.shape == (len(counts),)
    assert weights.sum().item() == pytest.approx(len(counts), rel=1e-5)


def test_the_two_ends_of_beta():
    counts = [500, 100, 3]
    assert torch.equal(effective_number_weights(counts, 0.0), torch.ones(3))
    assert torch.allclose(effective_number_weights(counts, 1 - 1e-9), inverse_frequency_weights(counts), rtol=1e-5)


def test_inverse_frequency_gives_every_class_the_same_sum():
    counts = torch.tensor([500, 100, 3])
    mass = inverse_frequency_weights(counts) * counts
    assert torch.allclose(mass, mass[0].expand(3))


def test_one_factor_for_all_weights_changes_nothing_in_weighted_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(20, 3, generator=generator), torch.randint(3, (20,), generator=generator)
    weights = effective_number_weights([500, 100, 3], 0.999)
    losses = [F.cross_entropy(logits, labels, weight=w) for w in (weights, 7 * weights, torch.ones(3))]
    assert torch.isclose(losses[0], losses[1]) and not torch.isclose(losses[0], losses[2], rtol=0.01)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([5, 0, 3], r"class_counts: got \[5, 0, 3\], where class 1 is empty"),
        ([5, math.nan], r"class_counts: got \[5.0, nan\]"),
        ([[5, 3]], r"class_counts: got \[\[5, 3\]\]; allowed: one number"),
        ([], r"class_counts: got \[\]"),
    ],
)
@pytest.mark.parametrize("weigh", [inverse_frequency_weights, effective_number_weights])
def test_wrong_counts_are_refused(weigh, counts, message):
    with pytest.raises(ValueError, match=message):
        weigh(counts)


@pytest.mark.parametrize("beta", [1.0, -0.1, math.nan])
def test_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta: got .*allowed: at least 0 and below 1"):
        effective_number_weights([5, 3], beta)
