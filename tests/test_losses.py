"""losses.py: class weights against the values of longer derivations, losses against slow ones."""

import math

import pytest
import torch
from pretend_gpu import pretend_gpu
from torch import nn
from torch.nn import functional as F

from course_utils.data import exponential_counts
from course_utils.heads import CosineClassifier
from course_utils.losses import (
    FocalLoss,
    LDAMHingeLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    adaptive_less_forget_weight,
    distillation_loss,
    effective_number_weights,
    inter_class_separation_loss,
    inverse_frequency_weights,
    ldam_margins,
    less_forget_loss,
    score_distillation_loss,
)

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


# ---- class-incremental learning ------------------------------------------------------------------------------------


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_cosines(images, classes, seed=0):
    return F.normalize(some(images, 6, seed=seed)) @ F.normalize(some(classes, 6, seed=seed + 1)).T


def random_rotation(dim, seed=0):
    return torch.linalg.qr(some(dim, dim, seed=seed))[0]


@pytest.mark.parametrize("temperature", [0.7, 2.0, 5.0])
def test_distillation_agrees_with_a_slow_reference(temperature):
    logits, old_logits = 3 * some(11, 7), 3 * some(11, 4, seed=1)
    want = 0.0
    for z, z_old in zip(logits.tolist(), old_logits.tolist(), strict=True):
        now, then = ([math.exp(a / temperature) for a in zs[:4]] for zs in (z, z_old))
        for a, b in zip(now, then, strict=True):
            p, q = a / sum(now), b / sum(then)
            want += q * math.log(q / p) / 11
    assert want > 0.05
    assert distillation_loss(logits, old_logits, temperature).item() == pytest.approx(want, rel=1e-4)


def test_distillation_is_that_of_the_released_code():
    """At T = 2: mean over all entries, times T^2, beta = 0.25 and the number of old classes."""
    logits, old_logits = some(11, 7), some(11, 4, seed=1)
    entries = torch.nn.KLDivLoss(reduction="none")((logits[:, :4] / 2).log_softmax(1), (old_logits / 2).softmax(1))
    assert torch.isclose(distillation_loss(logits, old_logits), entries.mean() * 2**2 * 0.25 * 4)


def test_distillation_sees_neither_new_classes_nor_a_constant():
    logits, old_logits = some(11, 7), some(11, 4, seed=1)
    loss = distillation_loss(logits, old_logits)
    other = torch.cat([logits[:, :4] + 5, some(11, 3, seed=9)], 1)
    assert torch.isclose(distillation_loss(other, old_logits - 2), loss, rtol=1e-4)
    assert distillation_loss(torch.cat([old_logits, some(11, 3)], 1), old_logits).abs() < 1e-6 < 0.01 < loss
    assert not torch.isclose(distillation_loss(logits.roll(1, 1), old_logits), loss, rtol=0.05), "old classes first"


def test_score_distillation_is_the_squared_error_of_the_released_code():
    cosines, old = some_cosines(11, 7), some_cosines(11, 4, seed=5)
    want = torch.nn.MSELoss()(cosines[:, :4], old) * 4
    assert torch.isclose(score_distillation_loss(cosines, old), want) and want > 0.1
    assert score_distillation_loss(cosines, cosines[:, :4]) == 0


def test_less_forget_agrees_with_torchs_cosine_embedding_loss():
    features, old = some(11, 5), some(11, 5, seed=1)
    want = torch.nn.CosineEmbeddingLoss()(features, old, torch.ones(11))
    assert torch.isclose(less_forget_loss(features, old), want)


def test_less_forget_sees_directions_only():
    old, lengths = some(11, 5), torch.linspace(0.01, 100, 11)[:, None]
    assert less_forget_loss(lengths * old, old).abs() < 1e-6
    assert torch.isclose(less_forget_loss(-lengths * old, old), torch.tensor(2.0))
    assert less_forget_loss(some(11, 5, seed=1), old) > 0.5


@pytest.mark.parametrize("dim", [16, 64])
def test_score_distillation_cannot_see_a_joint_rotation_and_less_forget_can(dim):
    """Why LUCIR constrains features: turn features and rows together, and every score stays what it was."""
    features, head, rotation = some(200, dim), CosineClassifier(dim, 9), random_rotation(dim, seed=4)
    with torch.no_grad():
        before = head.cosines(features)
        head.rows[0].copy_(head.rows[0] @ rotation.T)
        after, turned = head.cosines(features @ rotation.T), features @ rotation.T
    assert score_distillation_loss(after, before) < 1e-5
    assert less_forget_loss(turned, features) > 0.5
    assert score_distillation_loss(head.cosines(features), before) > 0.1, "the rows did turn"


@pytest.mark.parametrize(
    ("base", "num_old", "num_new", "want"),
    [
        (5, 50, 10, 11.18),
        (5, 90, 10, 15.0),
        (5, 50, 5, 15.81),
        (5, 95, 5, 21.79),
        (5, 98, 2, 35.0),
        (5, 4, 2, 7.07),
        (5, 6, 2, 8.66),
        (5, 8, 2, 10.0),
        (0, 8, 2, 0.0),
        (10, 7, 7, 10.0),
    ],
)
def test_the_weight_of_less_forget_is_that_of_the_released_code(base, num_old, num_new, want):
    assert adaptive_less_forget_weight(base, num_old, num_new) == pytest.approx(want, abs=0.006)


def slow_separation(cosines, labels, num_old, margin, k):
    pairs = []
    for row, label in zip(cosines.tolist(), labels.tolist(), strict=True):
        if label < num_old:
            hardest = sorted(row[num_old:], reverse=True)[:k]
            pairs += [max(0.0, margin - row[label] + other) for other in hardest]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize(("num_old", "margin", "k"), [(4, 0.5, 2), (4, 0.2, 1), (2, 0.7, 5), (6, 0.0, 1)])
def test_separation_agrees_with_a_slow_reference_and_with_torch(num_old, margin, k):
    cosines, labels = some_cosines(60, 7), torch.arange(60) % 7
    loss = inter_class_separation_loss(cosines, labels, num_old, margin, k)
    assert loss.item() == pytest.approx(slow_separation(cosines, labels, num_old, margin, k), rel=1e-5)
    old = labels < num_old
    own, new = cosines[old].gather(1, labels[old, None]).repeat(1, k), cosines[old, num_old:].topk(k).values
    pairs = own.flatten(), new.flatten(), torch.ones(own.numel())
    assert torch.isclose(loss, F.margin_ranking_loss(*pairs, margin=margin)) and loss > 0.1


def test_separation_of_a_batch_without_old_images_is_0_and_can_be_differentiated():
    features = some(5, 6).requires_grad_()
    cosines = CosineClassifier(6, 7).cosines(features)
    loss = inter_class_separation_loss(cosines, torch.tensor([4, 5, 6, 6, 4]), 4)
    loss.backward()
    assert loss.shape == () and loss == 0 and (features.grad == 0).all()
    assert inter_class_separation_loss(cosines[:0], torch.zeros(0).long(), 4) == 0


def test_separation_is_0_once_the_margin_is_kept_and_grows_from_there():
    cosines = torch.tensor([[0.9, -1.0, 0.4, 0.1], [-1.0, 0.5, 0.0, -0.2]])
    labels = torch.tensor([0, 1])
    assert inter_class_separation_loss(cosines, labels, 2, margin=0.49) == 0
    assert inter_class_separation_loss(cosines, labels, 2, margin=0.6).item() == pytest.approx(0.2 / 4)
    assert inter_class_separation_loss(cosines, labels, 2, margin=0.6, k=1).item() == pytest.approx(0.2 / 2)


def test_separation_pulls_old_images_only():
    features = some(20, 6).requires_grad_()
    head, labels = CosineClassifier(6, 7), torch.arange(20) % 7
    inter_class_separation_loss(head.cosines(features), labels, 4, margin=2.0).backward()
    moved = features.grad.abs().sum(1) > 0
    assert torch.equal(moved, labels < 4) and features.grad.isfinite().all()
    assert head.rows[0].grad.isfinite().all() and head.rows[0].grad[4:].abs().sum() > 0


def test_separation_takes_cosines_whatever_the_scale_and_refuses_logits():
    features, labels, head = some(20, 6), torch.arange(20) % 7, CosineClassifier(6, 7, scale=3.0)
    before = inter_class_separation_loss(head.cosines(features), labels, 4)
    with torch.no_grad():
        head.scale *= 10
    assert torch.equal(inter_class_separation_loss(head.cosines(features), labels, 4), before)
    with pytest.raises(ValueError, match=r"cosines: got numbers from .*; allowed: -1 to 1, .* before the scale"):
        inter_class_separation_loss(head(features), labels, 4)


def test_separation_takes_cosines_in_bfloat16():
    torch.manual_seed(0)
    head, labels = CosineClassifier(64, 7), torch.arange(140) % 7
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cosines = head.cosines(head.rows[0].repeat(20, 1) * torch.rand(140, 1))
        assert cosines.dtype == torch.bfloat16
        loss = inter_class_separation_loss(cosines, labels, 4, margin=1.0)
    exact = inter_class_separation_loss(cosines.float(), labels, 4, margin=1.0)
    assert loss.item() == pytest.approx(exact.item(), rel=0.02) and exact > 0.01


COSINES, LABELS = some_cosines(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distillation_loss(some(3, 4), some(3, 4), 0), "temperature: got 0; allowed: above 0"),
        (lambda: distillation_loss(some(3, 4), some(3, 4), math.nan), "temperature: got nan"),
        (lambda: distillation_loss(some(3, 4), some(2, 4)), r"logits: got shape \(3, 4\) .* old logits of \(2, 4\)"),
        (lambda: distillation_loss(some(3, 4), some(3, 5)), "as many rows, at least as many columns"),
        (lambda: score_distillation_loss(COSINES, COSINES[0]), r"cosines: got .* beside old cosines of \(5,\)"),
        (lambda: less_forget_loss(some(3, 4), some(3, 5)), r"features: got shape \(3, 4\) .* old_features of \(3, 5\)"),
        (lambda: less_forget_loss(some(4), some(4)), r"allowed: both \(B, D\)"),
        (lambda: adaptive_less_forget_weight(-1, 4, 2), "base: got -1; allowed: at least 0"),
        (lambda: adaptive_less_forget_weight(math.nan, 4, 2), "base: got nan"),
        (lambda: adaptive_less_forget_weight(5, 0, 2), "num_old, num_new: got 0, 2; allowed: at least 1"),
        (lambda: adaptive_less_forget_weight(5, 4, 0), "num_old, num_new: got 4, 0"),
        (lambda: inter_class_separation_loss(COSINES, LABELS, 3, k=3), "k: got 3; allowed: 1 to 2, the number of new"),
        (lambda: inter_class_separation_loss(COSINES, LABELS, 3, k=0), "k: got 0; allowed: 1 to 2"),
        (lambda: inter_class_separation_loss(COSINES, LABELS, 5), "num_old: got 5; allowed: 1 to 4"),
        (lambda: inter_class_separation_loss(COSINES, LABELS, 0), "num_old: got 0; allowed: 1 to 4"),
        (lambda: inter_class_separation_loss(COSINES, LABELS + 1, 3), "labels: got 1 to 5; allowed: 0 to 4"),
        (lambda: inter_class_separation_loss(COSINES, LABELS - 1, 3), "labels: got -1 to 3; allowed: 0 to 4"),
        (lambda: inter_class_separation_loss(COSINES, LABELS[:5], 3), r"cosines: got shape \(6, 5\) with labels of"),
        (lambda: inter_class_separation_loss(5 * COSINES, LABELS, 3), "cosines: got numbers from"),
        (lambda: inter_class_separation_loss(math.nan * COSINES, LABELS, 3), "cosines: got numbers from nan"),
    ],
)
def test_wrong_arguments_of_incremental_losses_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- focal loss ------------------------------------------------------------------------------------------------------

COUNTS = [500, 100, 20, 3]
WEIGHT = effective_number_weights(COUNTS, 0.99)


def a_batch(seed=0, size=12, classes=4, dtype=torch.float64):
    """Cosines of random features and rows, and labels."""
    generator = torch.Generator().manual_seed(seed)
    features, rows = torch.randn(size, 5, generator=generator), torch.randn(classes, 5, generator=generator)
    cosines = F.normalize(features, dim=1) @ F.normalize(rows, dim=1).T
    return cosines.to(dtype), torch.randint(classes, (size,), generator=generator)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.7])
def test_focal_loss_agrees_with_the_formula_image_by_image(gamma, weight):
    cosines, labels = a_batch(1)
    logits, total, weights = 7 * cosines, 0.0, 0.0
    for row, y in zip(logits.tolist(), labels.tolist(), strict=True):
        p = math.exp(row[y]) / sum(math.exp(z) for z in row)
        w = 1.0 if weight is None else weight[y].item()
        total, weights = total + w * (1 - p) ** gamma * -math.log(p), weights + w
    assert FocalLoss(gamma, weight)(logits, labels).item() == pytest.approx(total / weights, rel=1e-6)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_focal_loss_at_gamma_0_is_cross_entropy(weight):
    cosines, labels = a_batch(2, dtype=torch.float32)
    plain = nn.CrossEntropyLoss(weight=weight)(5 * cosines, labels)
    assert torch.allclose(FocalLoss(0.0, weight)(5 * cosines, labels), plain)
    assert not torch.isclose(FocalLoss(1.0, weight)(5 * cosines, labels), plain, rtol=0.01)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_the_gradient_of_focal_loss_is_finite_for_images_that_are_surely_right(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [3.0, 1.0]], requires_grad=True)
    FocalLoss(gamma)(logits, torch.tensor([0, 0, 1])).backward()
    assert logits.grad.isfinite().all() and logits.grad[1].abs().max() > 0.1
    assert logits.grad[0].abs().max() < 1e-6


def test_the_gradient_of_focal_loss_by_differences():
    cosines, labels = a_batch(3)
    assert torch.autograd.gradcheck(lambda c: FocalLoss(1.7, WEIGHT)(3 * c, labels), cosines.requires_grad_())


# ---- margins ---------------------------------------------------------------------------------------------------------


def test_margins_of_long_tailed_cifar():
    assert ldam_margins([5000, 50], 0.5).tolist() == pytest.approx([0.1581139, 0.5], abs=1e-6)
    want = [0.158, 0.180, 0.204, 0.232, 0.264, 0.300, 0.341, 0.387, 0.441, 0.500]
    assert ldam_margins(CIFAR10).tolist() == pytest.approx(want, abs=6e-4)


@pytest.mark.parametrize("n", [(900, 10), (40, 3), (7, 7)])
@pytest.mark.parametrize("total", [0.4, 1.0])
def test_a_quarter_power_makes_the_bound_of_two_classes_smallest(n, total):
    """Cao et al. 2019, section 3.1: 1 / (m_1 sqrt(n_1)) + 1 / (m_2 sqrt(n_2)) where m_1 + m_2 stays the same."""
    margin = torch.linspace(1e-3, 1 - 1e-3, 9981, dtype=torch.float64) * total
    bound = 1 / (margin * n[0] ** 0.5) + 1 / ((total - margin) * n[1] ** 0.5)
    best = margin[bound.argmin()].item()
    ours = ldam_margins(n)
    assert best / (total - best) == pytest.approx((ours[0] / ours[1]).item(), rel=2e-3)


def test_exponent_0_gives_every_class_the_same_margin():
    assert ldam_margins(COUNTS, 0.3, exponent=0).tolist() == pytest.approx([0.3] * 4)
    assert ldam_margins(COUNTS, 0.3, exponent=1).tolist() == pytest.approx([0.3 * 3 / n for n in COUNTS])


def slow_logits(cosines, labels, max_margin, scale, exponent=0.25):
    logits = cosines.clone()
    for i, y in enumerate(labels.tolist()):
        logits[i, y] -= max_margin * (min(COUNTS) / COUNTS[y]) ** exponent
    return scale * logits


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize(("max_margin", "scale", "exponent"), [(0.5, 30.0, 0.25), (0.13, 11.0, 0.25), (0.7, 4.0, 0.0)])
def test_ldam_takes_the_margin_off_the_true_class_alone(max_margin, scale, exponent, weight):
    cosines, labels = a_batch(4)
    logits, total, weights = slow_logits(cosines, labels, max_margin, scale, exponent), 0.0, 0.0
    for row, y in zip(logits, labels.tolist(), strict=True):
        w = 1.0 if weight is None else weight[y].item()
        total, weights = total + w * (row.logsumexp(0) - row[y]).item(), weights + w
    loss = LDAMLoss(COUNTS, max_margin, scale, weight, exponent=exponent)
    before = cosines.clone()
    assert loss(cosines, labels).item() == pytest.approx(total / weights, rel=1e-6)
    assert torch.equal(cosines, before)


def test_ldam_without_margins_is_cross_entropy_of_scaled_cosines():
    cosines, labels = a_batch(5, dtype=torch.float32)
    plain = F.cross_entropy(20 * cosines, labels, weight=WEIGHT)
    loss = LDAMLoss(COUNTS, 0.5, 20.0, WEIGHT)
    assert loss(cosines, labels) > plain * 1.01
    loss.margins.zero_()
    assert torch.equal(loss(cosines, labels), plain)
    assert torch.allclose(LDAMLoss(COUNTS, 1e-9, 20.0, WEIGHT)(cosines, labels), plain)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_the_gradient_of_ldam_is_that_of_the_shifted_softmax(weight):
    cosines, labels = a_batch(6)
    cosines.requires_grad_()
    LDAMLoss(COUNTS, 0.4, 9.0, weight)(cosines, labels).backward()
    of_image = torch.ones(len(labels)) if weight is None else weight[labels]
    error = slow_logits(cosines.detach(), labels, 0.4, 9.0).softmax(1) - F.one_hot(labels, 4)
    want = 9.0 * error * (of_image / of_image.sum())[:, None]
    assert torch.allclose(cosines.grad, want, atol=1e-6)


# ---- logit adjustment, balanced softmax ------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_balanced_softmax_multiplies_each_exponential_by_the_count(weight):
    """-log(n_y e^z_y / sum_j n_j e^z_j), Ren et al. 2020, equation 3."""
    logits, labels = 3 * torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3, 0])
    total, weights = 0.0, 0.0
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        parts = [n * math.exp(value) for n, value in zip(COUNTS, z, strict=True)]
        w = 1.0 if weight is None else weight[y].item()
        total, weights = total - w * math.log(parts[y] / sum(parts)), weights + w
    loss = LogitAdjustedLoss(COUNTS, weight=weight)
    assert loss(logits, labels).item() == pytest.approx(total / weights, rel=1e-6)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjustment_moves_the_optimum_to_the_balanced_one(tau):
    """Without features the best logits are (1 - tau) log(n_j / N): at tau = 1 nothing of the tail is left in them."""
    labels, shares = torch.arange(4).repeat_interleave(torch.tensor(COUNTS)), torch.tensor(COUNTS) / sum(COUNTS)
    for logits, slope in (((1 - tau) * shares.log(), 0.0), (shares.log(), min(tau, 0.1))):
        logits.requires_grad_()
        LogitAdjustedLoss(COUNTS, tau)(logits.expand(len(labels), 4), labels).backward()
        assert logits.grad.norm() == pytest.approx(0, abs=1e-6) if slope == 0 else logits.grad.norm() > slope


def test_without_tau_logit_adjustment_is_cross_entropy():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 3])
    assert torch.equal(LogitAdjustedLoss(COUNTS, 0.0)(logits, labels), F.cross_entropy(logits, labels))
    assert LogitAdjustedLoss(COUNTS)(logits, labels) != F.cross_entropy(logits, labels)


@pytest.mark.parametrize("tau", [-0.1, math.inf, math.nan])
def test_logit_adjustment_refuses_a_tau_out_of_range(tau):
    with pytest.raises(ValueError, match=r"tau: got .*; allowed: a finite number of at least 0"):
        LogitAdjustedLoss(COUNTS, tau)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("form", [LDAMLoss, LDAMHingeLoss])
def test_the_gradients_of_both_forms_by_differences(form, weight):
    cosines, labels = a_batch(7)
    loss = form(COUNTS, 0.3, 6.0, weight)
    assert torch.autograd.gradcheck(lambda c: loss(c, labels), 0.9 * cosines.requires_grad_())


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_the_hinge_form_agrees_with_the_formula_image_by_image(weight):
    cosines, labels = a_batch(8)
    margins, total, weights, zeros = ldam_margins(COUNTS, 0.4).tolist(), 0.0, 0.0, 0
    for row, y in zip(cosines.tolist(), labels.tolist(), strict=True):
        w = 1.0 if weight is None else weight[y].item()
        violation = max(0.0, max(c for j, c in enumerate(row) if j != y) - row[y] + margins[y])
        total, weights, zeros = total + w * violation, weights + w, zeros + (violation == 0)
    loss = LDAMHingeLoss(COUNTS, 0.4, 13.0, weight)(cosines, labels)
    assert loss.item() == pytest.approx(13 * total / weights, rel=1e-6)
    assert 0 < zeros < len(labels)


def test_the_softmax_form_becomes_the_hinge_form_as_the_scale_grows():
    cosines, labels = a_batch(9)
    hinge = LDAMHingeLoss(COUNTS, 0.4, 1.0)(cosines, labels).item()
    gaps = [abs(LDAMLoss(COUNTS, 0.4, s)(cosines, labels).item() / s - hinge) for s in (5, 50, 5000)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-3


def test_a_margin_makes_the_network_go_on_where_cross_entropy_is_content():
    cosines, labels = 0.1 + 0.4 * torch.eye(4, dtype=torch.float64)[[0, 3]], torch.tensor([0, 3])
    cosines.requires_grad_()
    gradients = [
        torch.autograd.grad(loss(cosines, labels), cosines)[0]
        for loss in (lambda c, y: F.cross_entropy(30 * c, y), LDAMLoss(COUNTS, 0.5))
    ]
    plain, ldam = ([g[0, 0].abs().item(), g[1, 3].abs().item()] for g in gradients)
    assert plain[0] == pytest.approx(plain[1]) and plain[0] < 1e-3
    assert ldam[1] > 10 and ldam[1] > 100 * ldam[0]  # the rare class alone


def test_losses_go_to_the_dtype_and_the_settings_into_a_state():
    cosines, labels = a_batch(10, dtype=torch.bfloat16)
    for loss in (LDAMLoss(COUNTS, weight=WEIGHT), LDAMHingeLoss(COUNTS, weight=WEIGHT), FocalLoss(1.0, WEIGHT)):
        assert loss(cosines, labels).isfinite()
    assert set(LDAMLoss(COUNTS, weight=WEIGHT).state_dict()) == {"margins", "weight"}


@pytest.mark.parametrize(
    "loss",
    [
        FocalLoss(2.0, WEIGHT),
        LDAMLoss(COUNTS, weight=WEIGHT),
        LDAMHingeLoss(COUNTS, weight=WEIGHT),
        lambda cosines, labels: inter_class_separation_loss(cosines, labels, 2, k=1),
    ],
)
def test_no_loss_waits_for_a_gpu_of_any_make(loss):
    with pretend_gpu() as gpu:
        cosines, labels = torch.eye(4).to(gpu.device), torch.arange(4).to(gpu.device)
        loss = loss.to(gpu.device) if isinstance(loss, nn.Module) else loss
        gpu.waits.clear()
        loss(cosines, labels)
        assert gpu.waits == []


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.1, 12.0, math.nan, math.inf])
@pytest.mark.parametrize("form", [LDAMLoss, LDAMHingeLoss])
def test_logits_that_are_no_cosines_are_refused_with_advice(form, factor):
    cosines, labels = torch.eye(4) * factor, torch.arange(4)
    message = r"cosines: got numbers from .*allowed: -1 to 1.*CosineClassifier\(D, C, scale=1.0, learn_scale=False\)"
    with pytest.raises(ValueError, match=message):
        form(COUNTS)(cosines, labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LDAMLoss([5, 0, 3]), r"class_counts: got \[5, 0, 3\], where class 1 is empty"),
        (lambda: ldam_margins([]), r"class_counts: got \[\]"),
        (lambda: LDAMLoss(COUNTS, 0.0), r"max_margin: got 0.0; allowed: above 0"),
        (lambda: LDAMHingeLoss(COUNTS, -1.0), r"max_margin: got -1.0"),
        (lambda: ldam_margins(COUNTS, math.nan), r"max_margin: got nan"),
        (lambda: LDAMLoss(COUNTS, exponent=-0.25), r"exponent: got -0.25; allowed: at least 0"),
        (lambda: LDAMLoss(COUNTS, scale=0.0), r"scale: got 0.0; allowed: above 0"),
        (lambda: FocalLoss(-0.1), r"gamma: got -0.1; allowed: at least 0"),
        (lambda: FocalLoss(math.nan), r"gamma: got nan"),
        (lambda: FocalLoss(1.0, torch.tensor([1.0, -1.0])), r"weight: got \[1.0, -1.0\]; allowed: one number"),
        (lambda: LDAMLoss(COUNTS, weight=torch.ones(3)), r"weight: got .*for each of 4 classes"),
        (lambda: LDAMLoss(COUNTS, weight=torch.full((4,), math.nan)), r"weight: got \[nan"),
    ],
)
def test_a_margin_loss_with_wrong_settings_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        (torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), r"got shape \(3, 5\).*allowed: \(B, 4\)"),
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.long), r"got shape \(3, 4\) with labels of \(2,\)"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.long), r"got shape \(4,\)"),
        (torch.zeros(2, 4), torch.tensor([0, 4]), r"labels: got 0 to 4; allowed: 0 to 3"),
        (torch.zeros(2, 4), torch.tensor([-1, 2]), r"labels: got -1 to 2; allowed: 0 to 3"),
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), r"empty batch"),
    ],
)
@pytest.mark.parametrize("loss", [LDAMLoss(COUNTS), LDAMHingeLoss(COUNTS), FocalLoss(1.0, WEIGHT)])
def test_a_wrong_batch_is_refused(loss, values, labels, message):
    with pytest.raises(ValueError, match=message):
        loss(values, labels)


# ---- types and order of numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weigh", [inverse_frequency_weights, effective_number_weights, ldam_margins, LDAMLoss])
@pytest.mark.parametrize("counts", [{2: 90, 0: 30, 1: 5}, {"a": 30, "b": 5}, {1: 30, 2: 5}])
def test_counts_in_another_order_than_the_classes_are_refused(weigh, counts):
    with pytest.raises(ValueError, match=r"class_counts: got them for \[.*; allowed: for 0, 1, 2 ... in this order"):
        weigh(counts)
    in_order = weigh({0: 30, 1: 5, 2: 90})
    assert isinstance(in_order, nn.Module) or torch.equal(in_order, weigh([30, 5, 90]))


@pytest.mark.parametrize("loss", [FocalLoss(2.0), LDAMLoss(COUNTS), LDAMHingeLoss(COUNTS)])
def test_labels_that_torch_would_take_for_a_mask_are_refused(loss):
    cosines, labels = torch.zeros(2, 4), torch.tensor([1, 0], dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"labels: got torch.uint8; allowed: int64"):
        loss(cosines, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loss_of_half_precision_numbers_is_that_of_floats(dtype):
    features = (300 * some(64, 8)).to(dtype)  # squares beyond 65504, the largest float16
    old = (300 * some(64, 8, seed=1)).to(dtype)
    assert less_forget_loss(features, old) == less_forget_loss(features.float(), old.float()) != 1
    assert distillation_loss(features, old) == distillation_loss(features.float(), old.float())
    labels = torch.arange(64) % 4
    for loss, scale in ((FocalLoss(2.0), 300), (LDAMLoss(COUNTS), 1), (LDAMHingeLoss(COUNTS), 1)):
        logits = (scale * some(64, 4).tanh()).to(dtype)
        assert loss(logits, labels) == loss(logits.float(), labels)
