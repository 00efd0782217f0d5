"""heads.py: interventions on the rows of a linear classifier."""

import math

import pytest
import torch

from course_utils.heads import equalize_biases, equalize_norms, row_norms, with_norms


@pytest.fixture
def weight():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 7, generator=generator) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1])[:, None]


@pytest.fixture
def features():
    return torch.randn(50, 7, generator=torch.Generator().manual_seed(1))


def direction(weight):
    return weight / weight.norm(dim=1, keepdim=True)


def test_row_norms_agree_with_a_slow_reference(weight):
    want = [math.sqrt(sum(x * x for x in row)) for row in weight.tolist()]
    assert torch.allclose(row_norms(weight), torch.tensor(want))


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 1.0])
def test_equalize_norms_interpolates_the_logarithms_and_keeps_directions(weight, strength):
    changed = equalize_norms(weight, strength)
    logs = row_norms(weight).log()
    assert torch.allclose(row_norms(changed).log(), (1 - strength) * logs + strength * logs.mean(), atol=1e-5)
    assert torch.allclose(direction(changed), direction(weight), atol=1e-6)


def test_strength_0_changes_nothing_and_1_makes_all_norms_equal(weight):
    assert torch.equal(equalize_norms(weight, 0), weight)
    norms = row_norms(equalize_norms(weight))
    assert torch.allclose(norms, norms[0].expand(5)) and not torch.allclose(row_norms(weight), norms, rtol=0.5)


@pytest.mark.parametrize("tau", [0.3, 0.7, 1.0])
def test_it_is_tau_normalisation_up_to_one_factor(weight, features, tau):
    tau_normalized = weight / row_norms(weight)[:, None] ** tau
    changed = equalize_norms(weight, tau)
    factor = changed / tau_normalized
    assert torch.allclose(factor, factor[0, 0].expand_as(factor), rtol=1e-4)
    assert torch.equal((features @ changed.T).argmax(1), (features @ tau_normalized.T).argmax(1))
    assert not torch.equal((features @ changed.T).argmax(1), (features @ weight.T).argmax(1)), "it does something"


@pytest.mark.parametrize("factor", [0.01, 30.0])
def test_a_common_factor_changes_no_decision(weight, features, factor):
    plain, scaled = equalize_norms(weight, 0.5), equalize_norms(factor * weight, 0.5)
    assert torch.allclose(scaled, factor * plain, rtol=1e-4)
    assert torch.equal((features @ plain.T).argmax(1), (features @ scaled.T).argmax(1))


def test_with_norms_gives_these_norms_and_the_old_directions(weight):
    norms = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    changed = with_norms(weight, norms)
    assert torch.allclose(row_norms(changed), norms)
    assert torch.allclose(direction(changed), direction(weight), atol=1e-6)
    assert torch.allclose(with_norms(weight, row_norms(weight)), weight)


def test_equalize_biases_goes_to_the_mean():
    bias = torch.tensor([1.0, 0.0, -4.0])
    assert torch.equal(equalize_biases(bias, 0), bias)
    assert torch.allclose(equalize_biases(bias, 0.5), torch.tensor([0.0, -0.5, -2.5]))
    assert torch.allclose(equalize_biases(bias), torch.full((3,), -1.0))


def test_the_trained_weight_is_left_alone(weight):
    before, bias = weight.clone(), torch.tensor([1.0, 2.0])
    equalize_norms(weight, 0.5), with_norms(weight, torch.ones(5)), equalize_biases(bias)
    assert torch.equal(weight, before) and torch.equal(bias, torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: row_norms(torch.ones(3)), r"weight: got shape \(3,\); allowed: \(classes, features\)"),
        (lambda: equalize_norms(torch.ones(2, 2), 1.5), "strength: got 1.5; allowed: 0 to 1"),
        (lambda: equalize_norms(torch.ones(2, 2), -0.1), "strength: got -0.1"),
        (lambda: equalize_norms(torch.tensor([[1.0, 1.0], [0.0, 0.0]])), "weight: row 1 has norm 0"),
        (lambda: equalize_norms(torch.tensor([[1.0, 1.0], [math.nan, 0.0]])), "weight: row 1 has norm nan"),
        (lambda: with_norms(torch.ones(2, 2), torch.ones(3)), r"norms: got shape \(3,\); allowed: \(2,\)"),
        (lambda: with_norms(torch.ones(2, 2), torch.tensor([1.0, -1.0])), "norms: got .*-1"),
        (lambda: with_norms(torch.ones(2, 2), torch.tensor([1.0, math.nan])), "norms: got .*nan"),
        (lambda: equalize_biases(torch.ones(2), 2), "strength: got 2; allowed: 0 to 1"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
