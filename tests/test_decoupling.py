"""decoupling.py: tau-normalization, nearest class means, and classifiers trained anew on features that stay."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.data import LabeledImages
from course_utils.decoupling import (
    LearnableWeightScaling,
    NearestClassMean,
    class_means,
    retrain_classifier,
    retrain_end_to_end,
    tau_normalize,
    tau_sweep,
    train_head,
)
from course_utils.heads import equalize_norms, row_norms
from course_utils.networks import MLP, SmallCNN
from course_utils.sampling import ClassBalancedSampler, InstanceBalancedSampler
from course_utils.training import extract_features, fit, predict

GENERATOR = torch.Generator().manual_seed(0)
COUNTS = torch.tensor([120, 40, 9, 4])
LABELS = torch.arange(4).repeat_interleave(COUNTS)[torch.randperm(173, generator=GENERATOR)]
CENTERS = torch.tensor([[3.0, 0, 0, 0, 1], [0, 3, 0, 0, 1], [0, 0, 3, 0, 1], [2, 2, 0, 0, 1]])
FEATURES = CENTERS[LABELS] + torch.randn(173, 5, generator=GENERATOR)
WEIGHT = torch.randn(4, 5, generator=GENERATOR) * torch.tensor([4.0, 2, 1, 0.5])[:, None]
BIAS = torch.randn(4, generator=GENERATOR)


def accuracy_by_class(logits, labels=LABELS):
    right = (logits.argmax(1) == labels).float()
    return torch.stack([right[labels == j].mean() for j in range(4)])


# ---- tau-normalization ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0, 0.3, 0.7, 1.0, 1.9])
def test_tau_normalize_is_the_equation_row_by_row(tau):
    by_hand = torch.stack([row / sum(float(x) ** 2 for x in row) ** (tau / 2) for row in WEIGHT])
    assert torch.allclose(tau_normalize(WEIGHT, tau), by_hand, rtol=1e-5)


def test_tau_0_changes_nothing_and_tau_1_makes_unit_rows():
    before = WEIGHT.clone()
    assert torch.equal(tau_normalize(WEIGHT, 0.0), WEIGHT)
    assert torch.allclose(row_norms(tau_normalize(WEIGHT, 1.0)), torch.ones(4))
    assert torch.allclose(F.cosine_similarity(tau_normalize(WEIGHT, 1.7), WEIGHT), torch.ones(4))
    assert torch.equal(WEIGHT, before)


def test_no_decision_changes_if_all_rows_are_scaled_alike():
    taus = [0.0, 0.4, 1.0, 1.6]
    assert torch.equal(tau_sweep(FEATURES, 7.3 * WEIGHT, taus), tau_sweep(FEATURES, WEIGHT, taus))


def test_equalize_norms_of_notebook_01_is_the_same_up_to_one_factor():
    ratio = equalize_norms(WEIGHT, 0.6) / tau_normalize(WEIGHT, 0.6)
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sweep_says_what_each_classifier_says_alone(with_bias, dtype):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(701, 33, generator=generator, dtype=dtype)
    weight = torch.randn(1999, 33, generator=generator, dtype=dtype)  # more classes than rows fit into one part
    weight *= torch.rand(1999, 1, generator=generator, dtype=dtype) + 0.1
    bias = torch.randn(1999, generator=generator, dtype=dtype) if with_bias else None
    taus = [0, 0.25, 0.8, 1, 2]
    said = tau_sweep(features, weight, taus, bias)
    assert said.shape == (5, 701) and said.dtype == torch.int64
    for tau, row in zip(taus, said, strict=True):
        logits = F.linear(features, tau_normalize(weight, tau), bias)
        picked = logits.gather(1, row[:, None])[:, 0]
        assert torch.allclose(picked, logits.amax(1), rtol=1e-4, atol=1e-4)
        assert (row == logits.argmax(1)).float().mean() > 0.99, "only ties within rounding may differ"


def test_a_sweep_moves_decisions_from_long_rows_to_short_ones():
    share = [(row == 0).float().mean().item() for row in tau_sweep(FEATURES, WEIGHT, [0, 1, 2])]
    assert share[0] > share[1] > share[2]


def test_tau_0_without_the_bias_is_not_the_trained_classifier():
    joint = F.linear(FEATURES, WEIGHT, 3 * BIAS).argmax(1)
    assert torch.equal(tau_sweep(FEATURES, WEIGHT, [0.0], 3 * BIAS)[0], joint)
    assert not torch.equal(tau_sweep(FEATURES, WEIGHT, [0.0])[0], joint)


def _with_row(value):
    weight = WEIGHT.clone()
    weight[2] = value
    return weight


@pytest.mark.parametrize(
    ("weight", "tau", "message"),
    [
        (WEIGHT, -0.1, r"tau: got -0.1; allowed: a finite number of at least 0"),
        (WEIGHT, math.nan, "tau: got nan"),
        (WEIGHT, math.inf, "tau: got inf"),
        (_with_row(0.0), 0.5, "weight: got norm 0 of row 2; allowed: norms above 0"),
        (_with_row(math.nan), 0.5, "weight: got norm nan of row 2"),
        (WEIGHT[0], 0.5, r"weight: got shape \(5,\)"),
    ],
)
def test_wrong_tau_or_weight_is_refused(weight, tau, message):
    with pytest.raises(ValueError, match=message):
        tau_normalize(weight, tau)
    with pytest.raises(ValueError, match=message):
        tau_sweep(FEATURES, weight, [0.0, tau])


def test_a_sweep_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="taus: got none"):
        tau_sweep(FEATURES, WEIGHT, [])
    with pytest.raises(ValueError, match=r"features: got shape \(173, 4\); allowed: \(N, 5\)"):
        tau_sweep(FEATURES[:, :4], WEIGHT, [0.5])
    with pytest.raises(ValueError, match=r"bias: got shape \(3,\); allowed: \(4,\) or None"):
        tau_sweep(FEATURES, WEIGHT, [0.5], BIAS[:3])


# ---- nearest class mean --------------------------------------------------------------------------------------------


def slow_scores(features, labels, images, treatment):
    """One image and one class at a time."""
    center = features.mean(0) if treatment == "cl2n" else torch.zeros(features.shape[1])

    def treat(f):
        return f if treatment == "un" else (f - center) / (f - center).norm()

    means = [torch.stack([treat(f) for f in features[labels == j]]).mean(0) for j in range(4)]
    return torch.stack([torch.stack([-((treat(f) - mean) ** 2).sum() for mean in means]) for f in images])


@pytest.mark.parametrize(("n", "classes", "width"), [(40, 3, 7), (11, 5, 2), (90, 4, 33)])
def test_class_means_are_the_means_class_by_class(n, classes, width):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, width, generator=generator)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (n - classes,), generator=generator)])
    by_hand = torch.stack(
        [torch.stack([f for f, y in zip(features, labels, strict=True) if y == j]).mean(0) for j in range(classes)]
    )
    means = class_means(features, labels, classes)
    assert torch.allclose(means, by_hand, atol=1e-6) and means.dtype == torch.float32
    assert class_means(features.double(), labels, classes).dtype == torch.float64


@pytest.mark.parametrize("treatment", NearestClassMean.TREATMENTS)
def test_nearest_class_mean_against_a_slow_reference(treatment):
    images = torch.randn(50, 5, generator=torch.Generator().manual_seed(3)) * 3
    scores = NearestClassMean(FEATURES, LABELS, 4, treatment)(images)
    assert torch.allclose(scores, slow_scores(FEATURES, LABELS, images, treatment), rtol=1e-4, atol=1e-4)


def test_nearest_class_mean_agrees_with_scikit_learn():
    neighbors = pytest.importorskip("sklearn.neighbors")
    theirs = neighbors.NearestCentroid().fit(FEATURES.numpy(), LABELS.numpy()).predict(FEATURES.numpy())
    assert (NearestClassMean(FEATURES, LABELS, 4, "un")(FEATURES).argmax(1).numpy() == theirs).all()


def test_what_each_treatment_does_not_notice():
    shift, scale = torch.tensor([5.0, -3, 1, 0, 2]), 0.3 + torch.rand(173, 1, generator=torch.Generator())

    def said(treatment, features, images):
        return NearestClassMean(features, LABELS, 4, treatment)(images).argmax(1)

    plain = {treatment: said(treatment, FEATURES, FEATURES) for treatment in NearestClassMean.TREATMENTS}
    assert torch.equal(said("cl2n", FEATURES + shift, FEATURES + shift), plain["cl2n"]), "a shift of all features"
    assert torch.equal(said("l2n", FEATURES * scale, FEATURES * scale), plain["l2n"]), "the norm of each feature"
    assert not torch.equal(said("l2n", FEATURES + shift, FEATURES + shift), plain["l2n"])
    assert not torch.equal(said("un", FEATURES * scale, FEATURES * scale), plain["un"])
    assert not torch.equal(plain["l2n"], plain["cl2n"]) and not torch.equal(plain["un"], plain["l2n"])


def test_cl2n_is_the_default_and_its_center_weighs_frequent_classes_more():
    means = NearestClassMean(FEATURES, LABELS, 4)
    assert means.treatment == "cl2n" and torch.allclose(means.center, FEATURES.mean(0))
    assert (row_norms(means.means) < 1).all(), "means of unit vectors stay shorter than 1"


def test_a_feature_of_norm_zero_gives_numbers():
    features = torch.cat([FEATURES, torch.zeros(1, 5)])
    means = NearestClassMean(features, torch.cat([LABELS, torch.tensor([1])]), 4, "l2n")
    assert means(torch.zeros(2, 5)).isfinite().all()


def test_nearest_class_mean_works_as_a_head():
    images = torch.randint(256, (40, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    data = LabeledImages(images, torch.arange(40) % 4, tuple("abcd"))
    model = MLP(4)
    means = NearestClassMean(extract_features(model, data), data.labels, 4)
    model.head = means
    assert torch.equal(predict(model, data), means(extract_features(model, data)))


@pytest.mark.parametrize("make", [class_means, NearestClassMean, retrain_classifier])
@pytest.mark.parametrize(
    ("features", "labels", "classes", "message"),
    [
        (FEATURES, LABELS, 5, "labels: got no image of class 4; allowed: at least one of each class"),
        (FEATURES[LABELS != 2], LABELS[LABELS != 2], 4, "labels: got no image of class 2"),
        (FEATURES, LABELS.float(), 4, r"labels: got torch.float32 of shape \(173,\); allowed: int64"),
        (FEATURES, LABELS > 1, 4, "labels: got torch.bool"),
        (FEATURES, LABELS[:9], 4, r"labels: got torch.int64 of shape \(9,\); allowed: int64 of shape \(173,\)"),
        (FEATURES, LABELS, 3, "labels: got 0 to 3; allowed: 0 to 2"),
        (FEATURES, LABELS - 1, 4, "labels: got -1 to 2"),
        (FEATURES[:0], LABELS[:0], 4, "labels: got none"),
        (FEATURES[:, 0], LABELS, 4, r"features: got torch.float32 of shape \(173,\)"),
        (FEATURES.long(), LABELS, 4, "features: got torch.int64"),
        (FEATURES / (LABELS != 3)[:, None], LABELS, 4, "features: got NaN or infinity"),
    ],
)
def test_wrong_features_or_labels_are_refused(make, features, labels, classes, message):
    with pytest.raises(ValueError, match=message):
        make(features, labels, classes)


def test_more_wrong_arguments_of_nearest_class_mean():
    with pytest.raises(ValueError, match="treatment: got 'cosine'; allowed: un, l2n, cl2n"):
        NearestClassMean(FEATURES, LABELS, 4, "cosine")
    with pytest.raises(ValueError, match=r"features: got shape \(2, 4\); allowed: \(B, 5\)"):
        NearestClassMean(FEATURES, LABELS, 4)(torch.zeros(2, 4))


# ---- learnable weight scaling --------------------------------------------------------------------------------------


def test_scaling_starts_as_the_trained_classifier_and_moves_only_its_scales():
    head = LearnableWeightScaling(WEIGHT, BIAS)
    assert torch.equal(head(FEATURES), F.linear(FEATURES, WEIGHT, BIAS))
    train_head(head, FEATURES, LABELS, epochs=3)
    assert torch.equal(head.weight, WEIGHT) and torch.equal(head.bias, BIAS)
    assert [name for name, _ in head.named_parameters()] == ["scale"] and head.scale.shape == (4,)
    assert (head.scale - 1).abs().min() > 1e-3
    assert torch.allclose(head(FEATURES), head.scale * F.linear(FEATURES, WEIGHT, BIAS))
    assert torch.allclose(LearnableWeightScaling(WEIGHT)(FEATURES), FEATURES @ WEIGHT.T)


def test_scales_of_minus_tau_powers_of_the_norms_are_tau_normalization():
    head = LearnableWeightScaling(WEIGHT)
    head.scale.data = row_norms(WEIGHT) ** -0.8
    assert torch.equal(head(FEATURES).argmax(1), tau_sweep(FEATURES, WEIGHT, [0.8])[0])


def test_wrong_arguments_of_scaling():
    with pytest.raises(ValueError, match=r"weight: got shape \(5,\)"):
        LearnableWeightScaling(WEIGHT[0])
    with pytest.raises(ValueError, match=r"bias: got shape \(3,\); allowed: \(4,\) or None"):
        LearnableWeightScaling(WEIGHT, BIAS[:3])


# ---- training heads ------------------------------------------------------------------------------------------------


def test_retraining_helps_the_rare_classes():
    """The trained classifier follows the counts; the one trained anew has seen all classes equally often."""
    joint = nn.Linear(5, 4)
    train_head(joint, FEATURES, LABELS, epochs=30, sampler=InstanceBalancedSampler(LABELS))
    crt = retrain_classifier(FEATURES, LABELS, 4, epochs=30)
    before, after = accuracy_by_class(joint(FEATURES)), accuracy_by_class(crt(FEATURES))
    assert after[3] > before[3] + 0.2 and after.mean() > before.mean()


def test_a_head_is_trained_as_torch_would():
    """Cross-entropy, momentum, weight decay and the cosine schedule, against torch.optim at other settings."""
    ours, theirs = nn.Linear(5, 4), nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    train_head(ours, FEATURES, LABELS, epochs=3, batch_size=50, lr=0.3, momentum=0.5, weight_decay=0.01, seed=7)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.3, momentum=0.5, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    sampler = ClassBalancedSampler(LABELS, seed=7)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for part in sampler.indices().split(50):
            optimizer.zero_grad()
            F.cross_entropy(theirs(FEATURES[part]), LABELS[part]).backward()
            optimizer.step()
        scheduler.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-5) and torch.allclose(ours.bias, theirs.bias, atol=1e-5)


def test_retraining_depends_on_its_seed_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = retrain_classifier(FEATURES, LABELS, 4, epochs=1, seed=2)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is not touched"
    torch.rand(3)
    again, other = (retrain_classifier(FEATURES, LABELS, 4, epochs=1, seed=seed) for seed in (2, 3))
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)


def test_losses_are_the_mean_over_each_epoch():
    still = nn.Linear(5, 4)
    losses = train_head(still, FEATURES, LABELS, epochs=2, lr=1e-12, sampler=InstanceBalancedSampler(LABELS))
    assert losses == pytest.approx([F.cross_entropy(still(FEATURES), LABELS).item()] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs, batch_size: got 0, 64; allowed: at least 1"),
        ({"batch_size": 0}, "epochs, batch_size: got 10, 0"),
        ({"lr": math.nan}, "lr, momentum, weight_decay: got nan"),
        ({"weight_decay": -1}, "lr, momentum, weight_decay: got 0.1, 0.9, -1"),
        ({"sampler": InstanceBalancedSampler(LABELS[:9])}, "sampler: got one for 9 images; allowed: one for the 173"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        train_head(nn.Linear(5, 4), FEATURES, LABELS, **settings)


def test_a_loss_that_explodes_is_reported():
    with pytest.raises(FloatingPointError, match="lr=1e\\+30 may be too large"):
        train_head(nn.Linear(5, 4), FEATURES, LABELS, lr=1e30)


# ---- end to end ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(4).repeat_interleave(torch.tensor([60, 30, 8, 4]))
    shades = 40 * labels[:, None, None, None] + torch.randint(40, (102, 1, 12, 12), generator=generator)
    data = LabeledImages(shades.to(torch.uint8), labels, tuple("abcd"))
    torch.manual_seed(0)
    model = SmallCNN(4, width=4)
    fit(model, data, epochs=2)
    return model, data


def test_end_to_end_trains_a_new_head_and_leaves_the_rest(trained):
    model, data = trained
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    new = retrain_end_to_end(model, data, epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(p.requires_grad for p in model.parameters())
    for name, value in new.backbone.state_dict().items():  # weights, and the statistics of batch normalization too
        assert torch.equal(value, before[f"backbone.{name}"]), name
    assert not torch.allclose(new.head.weight, model.head.weight)
    assert {name for name, p in new.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


def test_without_augmentation_end_to_end_equals_cached_features(trained):
    model, data = trained
    new = retrain_end_to_end(model, data, epochs=2, augment=None, seed=3)
    cached = retrain_classifier(extract_features(model, data), data.labels, 4, epochs=2, seed=3)
    assert torch.allclose(new.head.weight, cached.weight, atol=1e-4)
    augmented = retrain_end_to_end(model, data, epochs=2, seed=3)
    assert not torch.allclose(augmented.head.weight, cached.weight, atol=1e-4)


def test_end_to_end_refuses_a_class_without_images(trained):
    model, data = trained
    with pytest.raises(ValueError, match="train: got no image of class 2; allowed: at least one of each class"):
        retrain_end_to_end(model, data.subset((data.labels != 2).nonzero()[:, 0]))


# ---- types of numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_class_means_of_half_precision_features_neither_overflow_nor_stop(dtype):
    features, labels = torch.full((4000, 2), 100.0, dtype=dtype), torch.arange(4000) % 2
    assert class_means(features, labels, 2).tolist() == [[100, 100]] * 2
    features[labels == 1] = 1
    assert NearestClassMean(features, labels, 2, "un")(features).argmax(1).equal(labels)


def test_class_means_of_a_million_images_are_right():
    means = class_means(torch.full((1_000_000, 1), 0.1), torch.zeros(1_000_000).long(), 1)
    assert means.item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tau_sweep_of_half_precision_numbers_says_what_floats_say(dtype):
    features, weight = (100 * FEATURES).to(dtype), (100 * WEIGHT).to(dtype)
    assert tau_sweep(features, weight, [0.0, 0.7]).equal(tau_sweep(features.float(), weight.float(), [0.0, 0.7]))
    assert tau_normalize(weight, 0.7).equal(tau_normalize(weight.float(), 0.7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FEATURES * math.nan, WEIGHT, [0.5]), "features: got NaN or infinity"),
        ((FEATURES, WEIGHT * math.nan, [0.5]), "weight: got norm nan"),
        ((FEATURES, WEIGHT, [0.5], BIAS * math.nan), "bias: got NaN or infinity"),
        (
            (FEATURES, WEIGHT, [0.5, 500.0]),
            "tau: got 500.0, of which a power of a norm is 0 or infinite; allowed: less",
        ),
    ],
)
def test_no_class_is_made_of_nan(arguments, message):
    with pytest.raises(ValueError, match=message):
        tau_sweep(*arguments)
