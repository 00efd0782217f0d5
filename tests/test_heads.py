"""heads.py: the cosine classifier, heads that grow, and interventions on the rows of a linear classifier."""

import math

import pytest
import torch
from torch import nn

from course_utils.heads import (
    CosineClassifier,
    equalize_biases,
    equalize_norms,
    extended_linear,
    row_norms,
    weight_align,
    with_norms,
)


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
        (lambda: equalize_norms(torch.tensor([[1.0, 1.0], [0.0, 0.0]])), "weight: got norm 0 of row 1"),
        (lambda: equalize_norms(torch.tensor([[1.0, 1.0], [math.nan, 0.0]])), "weight: got norm nan of row 1"),
        (lambda: with_norms(torch.ones(2, 2), torch.ones(3)), r"norms: got shape \(3,\); allowed: \(2,\)"),
        (lambda: with_norms(torch.ones(2, 2), torch.tensor([1.0, -1.0])), "norms: got .*-1"),
        (lambda: with_norms(torch.ones(2, 2), torch.tensor([1.0, math.nan])), "norms: got .*nan"),
        (lambda: equalize_biases(torch.ones(2), 2), "strength: got 2; allowed: 0 to 1"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- cosine classifier -----------------------------------------------------------------------------------------------


def cosine_head(num_classes=5, dim=7, **options):
    torch.manual_seed(3)
    return CosineClassifier(dim, num_classes, **options)


def slow_cosine(a, b):
    length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / length


def test_cosine_logits_agree_with_a_slow_reference(features):
    head = cosine_head(scale=3.3)
    head.extend(2)
    want = torch.tensor([[slow_cosine(row, f) for row in head.weight.tolist()] for f in features.tolist()])
    assert torch.allclose(head.cosines(features), want, atol=1e-6)
    assert torch.allclose(head(features), 3.3 * want, atol=1e-5)
    assert head(features).shape == (50, 7)


def test_cosine_logits_stay_within_the_scale_and_reach_it_in_the_direction_of_a_row():
    head = cosine_head(scale=4.0)
    logits = head(100 * torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)))
    assert logits.abs().max() <= 4 + 1e-5 and logits.abs().max() > 3
    assert torch.allclose(head(17 * head.weight).diagonal(), torch.tensor(4.0))
    assert torch.allclose(head(-17 * head.weight).diagonal(), torch.tensor(-4.0))


@pytest.mark.parametrize("factor", [1e-4, 0.3, 1e5])
def test_no_norm_changes_a_cosine_logit_but_a_sign_does(features, factor):
    head = cosine_head()
    before = head(features)
    assert torch.allclose(head(factor * features), before, atol=1e-4)
    assert torch.allclose(head(-factor * features), -before, atol=1e-4) and before.abs().max() > 1
    with torch.no_grad():
        head.rows[0][2] *= factor
    assert torch.allclose(head(features), before, atol=1e-4)


@pytest.mark.parametrize("learn_scale", [True, False])
def test_the_scale_is_learnt_only_if_it_may_be(features, learn_scale):
    head = cosine_head(scale=2.0, learn_scale=learn_scale)
    head(features).square().sum().backward()
    assert (head.scale.grad is not None) is learn_scale and head.rows[0].grad.abs().sum() > 0
    assert head.scale.item() == 2 and CosineClassifier(2, 2).scale.item() == 10


def test_unit_rows_start_and_are_added_with_norm_1_in_the_directions_of_the_usual_start():
    heads = []
    for unit_rows in (False, True):
        torch.manual_seed(0)
        head = CosineClassifier(64, 26, unit_rows=unit_rows)
        head.extend(5)
        heads.append(head.weight.detach())
    usual, unit = heads
    assert torch.allclose(row_norms(unit), torch.ones(31)) and row_norms(usual).mean() == pytest.approx(0.58, abs=0.02)
    assert torch.allclose(direction(usual), unit, atol=1e-6)


@pytest.mark.parametrize("dim", [7, 64, 513])
@pytest.mark.parametrize(("first", "new"), [(1, 1), (4, 3), (14, 3), (20, 17)])
def test_a_longer_cosine_head_gives_the_old_logits_bit_for_bit(dim, first, new):
    head = cosine_head(first, dim)
    for images in (1, 5, 128):
        x = torch.randn(images, dim, generator=torch.Generator().manual_seed(images))
        longer = cosine_head(first, dim)
        for step in (new, 1):
            before = longer(x)
            longer.extend(step)
            assert torch.equal(longer(x)[:, : before.shape[1]], before)
        assert torch.equal(longer(x)[:, :first], head(x))
    assert longer.num_classes == first + new + 1 == longer(x).shape[1] == len(longer.weight)
    assert torch.equal(longer.weight[:first], head.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_new_rows_are_random_and_of_the_dtype_of_the_old_ones(dtype):
    head = cosine_head().to(dtype)
    head.extend(3)
    new = head.rows[1]
    assert head.weight.dtype == new.dtype == dtype and isinstance(new, nn.Parameter)
    assert new.std() > 0.1 and new.abs().max() <= 7**-0.5 + 1e-2 and new.unique(dim=0).shape == (3, 7)
    linear = extended_linear(nn.Linear(7, 4).to(dtype), 2)
    assert linear.weight.dtype == linear.bias.dtype == dtype


def test_only_the_newest_rows_learn_once_the_old_ones_are_frozen(features):
    head = cosine_head()
    for _phase in range(2):
        head.extend(2)
        head.freeze_old_rows()
    assert [rows.requires_grad for rows in head.rows] == [False, False, True]
    head(features).square().sum().backward()
    assert [rows.grad is not None for rows in head.rows] == [False, False, True] and head.scale.grad is not None


def test_imprinted_rows_point_at_the_mean_direction_with_the_mean_norm_of_the_others(features):
    head = cosine_head()
    head.extend(2)
    with torch.no_grad():
        head.rows[0] *= torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0])[:, None]
    before, labels = head.weight.clone(), torch.arange(50) % 2 + 5
    features = features * torch.linspace(0.01, 10, 50)[:, None]  # lengths must not weigh
    head.imprint(features, labels)
    assert torch.equal(head.weight[:5], before[:5])
    mean_norm = sum(math.sqrt(sum(x * x for x in row)) for row in before[:5].tolist()) / 5
    for j in (5, 6):
        unit = [direction(f[None])[0] for f in features[labels == j]]
        mean = sum(unit) / len(unit)
        assert row_norms(head.weight)[j].item() == pytest.approx(mean_norm, rel=1e-5)
        assert slow_cosine(head.weight[j].tolist(), mean.tolist()) == pytest.approx(1, abs=1e-6)
        assert slow_cosine(before[j].tolist(), mean.tolist()) < 0.99
        assert slow_cosine(features[labels == j].mean(0).tolist(), mean.tolist()) < 0.999, "a plain mean is another row"
    assert all(rows.requires_grad for rows in head.rows)


def test_imprinting_all_classes_takes_the_mean_norm_of_all_rows(features):
    head = cosine_head()
    norm = row_norms(head.weight).mean()
    head.imprint(features, torch.arange(50) % 5)
    assert torch.allclose(row_norms(head.weight), norm.expand(5))


def test_extended_linear_copies_the_old_rows_and_leaves_the_old_head_alone(features):
    torch.manual_seed(0)
    old = nn.Linear(7, 4)
    before = [p.clone() for p in old.parameters()]
    new = extended_linear(old, 3)
    assert torch.equal(new.weight[:4], old.weight) and torch.equal(new.bias[:4], old.bias)
    assert torch.allclose(new(features)[:, :4], old(features), atol=1e-6) and new(features).shape == (50, 7)
    assert new.weight[4:].std() > 0.1 and new.weight[4:].abs().max() <= 7**-0.5
    with torch.no_grad():
        new.weight.zero_(), new.bias.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, old.parameters(), strict=True))
    assert extended_linear(nn.Linear(7, 4, bias=False), 1).bias is None


@pytest.mark.parametrize("num_old", [1, 3, 4])
def test_weight_align_agrees_with_a_slow_reference_and_is_idle_the_second_time(weight, num_old):
    norms = [math.sqrt(sum(x * x for x in row)) for row in weight.tolist()]
    gamma = (sum(norms[:num_old]) / num_old) / (sum(norms[num_old:]) / (5 - num_old))
    before, aligned = weight.clone(), weight_align(weight, num_old)
    assert gamma > 1.5 and torch.equal(weight, before)
    assert torch.equal(aligned[:num_old], weight[:num_old])
    assert torch.allclose(aligned[num_old:], gamma * weight[num_old:], rtol=1e-5)
    old, new = row_norms(aligned).split([num_old, 5 - num_old])
    assert torch.isclose(old.mean(), new.mean())
    assert torch.allclose(weight_align(aligned, num_old), aligned, rtol=1e-6)


HEAD = cosine_head()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CosineClassifier(0, 3), "in_features: got 0; allowed: at least 1"),
        (lambda: CosineClassifier(3, 0), "num_classes: got 0; allowed: at least 1"),
        (lambda: CosineClassifier(3, 3, scale=0.0), "scale: got 0.0; allowed: above 0"),
        (lambda: CosineClassifier(3, 3, scale=math.nan), "scale: got nan"),
        (lambda: CosineClassifier(3, 3, scale=math.inf), "scale: got inf"),
        (lambda: HEAD(torch.ones(4, 8)), r"features: got shape \(4, 8\); allowed: \(B, 7\)"),
        (lambda: HEAD.cosines(torch.ones(7)), r"features: got shape \(7,\)"),
        (lambda: HEAD.extend(0), "num_new: got 0; allowed: at least 1"),
        (lambda: HEAD.imprint(torch.ones(4, 6), torch.zeros(4).long()), r"features: got shape \(4, 6\) with 4 labels"),
        (lambda: HEAD.imprint(torch.ones(4, 7), torch.zeros(3).long()), r"features: got shape \(4, 7\) with 3 labels"),
        (lambda: HEAD.imprint(torch.ones(0, 7), torch.zeros(0).long()), r"features: got shape \(0, 7\) with 0 labels"),
        (lambda: HEAD.imprint(torch.ones(1, 7), torch.tensor([5])), "labels: got 5 to 5; allowed: 0 to 4"),
        (lambda: HEAD.imprint(torch.ones(2, 7), torch.tensor([-1, 2])), "labels: got -1 to 2; allowed: 0 to 4"),
        (lambda: HEAD.imprint(torch.full((1, 7), math.nan), torch.tensor([1])), "features: got NaN or infinite"),
        (lambda: extended_linear(nn.Linear(2, 2), 0), "num_new: got 0; allowed: at least 1"),
        (lambda: weight_align(torch.ones(3, 2), 0), "num_old: got 0; allowed: 1 to 2"),
        (lambda: weight_align(torch.ones(3, 2), 3), "num_old: got 3; allowed: 1 to 2"),
        (lambda: weight_align(torch.tensor([[1.0], [0.0]]), 1), "weight: got norm 0 of row 1"),
    ],
)
def test_wrong_arguments_of_growing_heads_are_refused(call, message):
    before = HEAD.weight.clone()
    with pytest.raises(ValueError, match=message):
        call()
    assert torch.equal(HEAD.weight, before) and len(HEAD.rows) == 1
