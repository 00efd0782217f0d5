"""sampling.py: which images an epoch shows, how often, and whether it can be drawn again."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from course_utils.data import LabeledImages
from course_utils.sampling import (
    ClassBalancedSampler,
    EpochSampler,
    InstanceBalancedSampler,
    ProgressivelyBalancedSampler,
    SquareRootSampler,
    class_probabilities,
)

COUNTS = [40, 11, 3, 1]
LABELS = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))[torch.randperm(55, generator=torch.Generator())]


def halfway(labels, **settings):
    """Progressively balanced, with a setting that the others do not need; epoch 5 of 11 is the middle."""
    return ProgressivelyBalancedSampler(labels, epochs=11, **settings)


ALL = pytest.mark.parametrize("kind", [InstanceBalancedSampler, ClassBalancedSampler, SquareRootSampler, halfway])


@ALL
@pytest.mark.parametrize("num_samples", [None, 1, 13, 55, 200])
def test_an_epoch_has_the_length_that_was_asked_for(kind, num_samples):
    sampler = kind(LABELS, num_samples=num_samples)
    indices = list(sampler)
    assert len(indices) == len(sampler) == (num_samples or len(LABELS))
    assert set(indices) <= set(range(len(LABELS))) and all(type(i) is int for i in indices)
    assert sampler.indices().dtype == torch.int64


def test_instance_balanced_shows_every_image_once_in_a_random_order():
    indices = list(InstanceBalancedSampler(LABELS, seed=3))
    assert sorted(indices) == list(range(55)) != indices


def test_a_long_instance_balanced_epoch_goes_through_all_images_again_and_again():
    indices = list(InstanceBalancedSampler(LABELS, num_samples=150))
    assert sorted(indices[:55]) == sorted(indices[55:110]) == list(range(55))
    assert len(set(indices[110:])) == 40 and indices[:55] != indices[55:110]


def test_instance_balanced_order_is_not_biased():
    firsts = []
    for epoch in range(600):
        sampler = InstanceBalancedSampler(LABELS[:3], seed=1)
        sampler.set_epoch(epoch)
        firsts.append(sampler.indices().tolist())
    for order in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]):
        assert 64 < firsts.count(order) < 136  # 100 expected, 4 standard deviations


@pytest.mark.parametrize("num_samples", [4, 40, 400])
def test_class_balanced_shows_every_class_exactly_once_in_each_cycle(num_samples):
    shown = LABELS[ClassBalancedSampler(LABELS, num_samples=num_samples, seed=2).indices()]
    for cycle in shown.split(4):
        assert sorted(cycle.tolist()) == [0, 1, 2, 3]
    assert len({tuple(cycle.tolist()) for cycle in shown.split(4)}) > 1 or num_samples == 4, "cycles are shuffled"


def test_class_balanced_in_an_unfinished_cycle_differs_by_one_at_most():
    shown = LABELS[ClassBalancedSampler(LABELS, num_samples=42).indices()]
    counts = torch.bincount(shown, minlength=4)
    assert counts.sum() == 42 and counts.max() - counts.min() == 1


def test_class_balanced_repeats_no_image_before_its_class_is_used_up():
    indices = ClassBalancedSampler(LABELS, num_samples=400, seed=5).indices()
    for j, count in enumerate(COUNTS):
        mine = indices[LABELS[indices] == j]
        assert len(mine) == 100
        for cycle in mine.split(count)[: 100 // count]:
            assert len(cycle.unique()) == count
        leftover = mine[100 - 100 % count :]
        assert len(leftover.unique()) == len(leftover)


def test_labels_may_have_gaps():
    labels = torch.tensor([7, 7, 7, 2, 7])
    shown = labels[ClassBalancedSampler(labels, num_samples=10).indices()]
    assert torch.bincount(shown, minlength=8).tolist() == [0, 0, 5, 0, 0, 0, 0, 5]


@ALL
def test_an_epoch_depends_on_seed_and_epoch_alone(kind):
    def draw(seed, epoch):
        sampler = kind(LABELS, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(0)
    first = draw(1, 4)
    state = torch.get_rng_state()
    assert draw(1, 4) == first, "drawn again after other draws"
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is not touched"
    assert draw(1, 5) != first and draw(2, 4) != first and draw(1, 0) == list(kind(LABELS, seed=1))


@ALL
def test_two_readings_of_one_epoch_are_the_same(kind):
    sampler = kind(LABELS, seed=3)
    assert list(sampler) == list(sampler) == sampler.indices().tolist()


@ALL
@pytest.mark.parametrize("workers", [0, 1])
def test_a_real_data_loader_shows_what_the_sampler_says(kind, workers):
    images = torch.arange(55, dtype=torch.uint8)[:, None, None, None].expand(55, 1, 2, 2)
    data, sampler = LabeledImages(images, LABELS, tuple("abcd")), kind(LABELS, num_samples=30, seed=9)
    batches = list(DataLoader(data, batch_size=8, sampler=sampler, num_workers=workers))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 6]
    assert torch.cat([pictures[:, 0, 0, 0] for pictures, _ in batches]).tolist() == list(sampler)
    assert torch.equal(torch.cat([labels for _, labels in batches]), LABELS[sampler.indices()])


@ALL
@pytest.mark.parametrize(
    ("labels", "num_samples", "message"),
    [
        (torch.zeros(0).long(), None, r"labels: got shape \(0,\)"),
        (
            torch.zeros(3, 2).long(),
            None,
            r"labels: got torch.int64 of shape \(3, 2\); allowed: integers of shape \(N,\)",
        ),
        (torch.tensor([0.0, 1.0]), None, r"labels: got torch.float32"),
        (torch.tensor([True, False]), None, r"labels: got torch.bool of shape \(2,\); allowed: integers"),
        (LABELS, 0, "num_samples: got 0; allowed: at least 1"),
    ],
)
def test_wrong_arguments_are_refused(kind, labels, num_samples, message):
    with pytest.raises(ValueError, match=message):
        kind(labels, num_samples=num_samples)


# ---- how often each class is shown ---------------------------------------------------------------------------------


def expected(kind, epoch):
    """p_j written out: n_j / N, 1 / C, sqrt(n_j) / sum, and the mixture of the first two."""
    total, roots = sum(COUNTS), [math.sqrt(n) for n in COUNTS]
    return {
        InstanceBalancedSampler: [n / total for n in COUNTS],
        ClassBalancedSampler: [1 / 4] * 4,
        SquareRootSampler: [root / sum(roots) for root in roots],
        halfway: [(1 - epoch / 10) * n / total + epoch / 10 / 4 for n in COUNTS],
    }[kind]


@ALL
@pytest.mark.parametrize("epoch", [0, 3, 10])
def test_class_shares_are_those_of_the_formula(kind, epoch):
    """Within three standard deviations of independent draws; the samplers without replacement vary less."""
    sampler = kind(LABELS, num_samples=40_000, seed=11)
    sampler.set_epoch(epoch)
    p = torch.tensor(expected(kind, epoch), dtype=torch.float64)
    assert torch.allclose(sampler.probabilities(), p, rtol=1e-12) and sampler.probabilities().dtype == torch.float64
    shares = torch.bincount(LABELS[sampler.indices()], minlength=4) / 40_000
    assert ((shares - p).abs() <= 3 * (p * (1 - p) / 40_000).sqrt()).all()


@ALL
def test_images_of_a_class_are_shown_equally_often(kind):
    sampler = kind(LABELS, num_samples=40_000, seed=12)
    sampler.set_epoch(5)
    shown = torch.bincount(sampler.indices(), minlength=55).double()
    p = (sampler.probabilities() / sampler.counts)[LABELS]
    assert ((shown / 40_000 - p).abs() <= 4 * (p * (1 - p) / 40_000).sqrt()).all()


def test_square_root_draws_are_independent():
    """With replacement: 55 draws out of 55 images leave some out, and an image may follow itself."""
    indices = SquareRootSampler(LABELS, seed=1).indices()
    assert len(indices.unique()) < 50
    many = SquareRootSampler(LABELS, num_samples=20_000, seed=1).indices()
    assert (many[1:] == many[:-1]).any()
    follows = LABELS[many[1:]][LABELS[many[:-1]] == 0]
    share = (follows == 0).double().mean().item()
    assert abs(share - expected(SquareRootSampler, 0)[0]) < 4 * math.sqrt(0.25 / len(follows))


def test_square_root_against_a_weight_for_every_image():
    """The released form: n_j ** -1/2 for each image. Compared through torch's own weighted sampler."""
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    theirs = torch.utils.data.WeightedRandomSampler(counts[LABELS] ** -0.5, 30_000, generator=torch.Generator())
    ours = SquareRootSampler(LABELS, num_samples=30_000, seed=4)
    shares = [torch.bincount(LABELS[torch.tensor(list(s))], minlength=4) / 30_000 for s in (theirs, ours)]
    assert torch.allclose(shares[0], shares[1], atol=4 * math.sqrt(2 * 0.25 / 30_000))


def test_progressive_starts_with_every_image_once_and_ends_with_every_class_equally_often():
    sampler = ProgressivelyBalancedSampler(LABELS, epochs=7, seed=6)
    assert sorted(sampler) == list(range(55)), "the first epoch is instance-balanced exactly"
    sampler.set_epoch(6)
    for cycle in LABELS[sampler.indices()].split(4)[:-1]:
        assert sorted(cycle.tolist()) == [0, 1, 2, 3], "the last one is class-balanced exactly"


def test_progressive_moves_step_by_step():
    sampler, shares = ProgressivelyBalancedSampler(LABELS, epochs=5, num_samples=4000), []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        assert sampler.share == epoch / 4
        shares.append((LABELS[sampler.indices()] == 0).double().mean().item())
    assert shares == sorted(shares, reverse=True) and shares[0] - shares[-1] == pytest.approx(40 / 55 - 1 / 4, abs=0.01)


def test_progressive_refuses_what_it_has_no_mixture_for():
    with pytest.raises(ValueError, match="epochs: got 1; allowed: at least 2"):
        ProgressivelyBalancedSampler(LABELS, epochs=1)
    sampler = ProgressivelyBalancedSampler(LABELS, epochs=3)
    for epoch in (-1, 3):
        with pytest.raises(ValueError, match=f"epoch: got {epoch}; allowed: 0 to 2"):
            sampler.set_epoch(epoch)


def slow_class_balanced(labels, num_samples, generator):
    """Cycles over the classes, and an endless reshuffled cycle inside each class, image by image."""
    images = {j: (labels == j).nonzero()[:, 0].tolist() for j in labels.unique().tolist()}
    waiting, classes = {j: [] for j in images}, []
    for _ in range(num_samples):
        classes = classes or [list(images)[k] for k in torch.randperm(len(images), generator=generator)]
        j = classes.pop()
        waiting[j] = waiting[j] or [images[j][k] for k in torch.randperm(len(images[j]), generator=generator)]
        yield waiting[j].pop()


@pytest.mark.parametrize("num_samples", [9, 57, 1000])
def test_class_balanced_against_a_slow_generator(num_samples):
    """Other random numbers, the same law: each image is shown equally often, up to its unfinished cycle."""
    slow = torch.tensor(list(slow_class_balanced(LABELS, num_samples, torch.Generator())))
    fast = ClassBalancedSampler(LABELS, num_samples=num_samples, seed=8).indices()
    for j, count in enumerate(COUNTS):
        ours, theirs = (torch.bincount(x[LABELS[x] == j], minlength=55)[LABELS == j] for x in (fast, slow))
        assert abs(int(ours.sum() - theirs.sum())) <= 1 and ours.max() - ours.min() <= 1 >= theirs.max() - theirs.min()
        assert ours.sum() in (num_samples // 4, num_samples // 4 + 1), count


def test_class_balanced_with_more_classes_than_draws():
    labels = torch.arange(50).repeat_interleave(3)
    shown = labels[ClassBalancedSampler(labels, num_samples=20, seed=1).indices()]
    assert len(shown.unique()) == 20


# ---- equation 1 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0, 0.3, 0.5, 1, 2])
def test_class_probabilities_are_the_equation(q):
    p = class_probabilities(COUNTS, q)
    assert p.tolist() == pytest.approx([n**q / sum(m**q for m in COUNTS) for n in COUNTS], rel=1e-12)
    assert p.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("counts", "q", "message"),
    [
        ([5, 0, 2], 0.5, r"class_counts: got \[5, 0, 2\]; allowed: one number above 0"),
        ([], 1, "class_counts: got "),
        ([[1, 2]], 1, "class_counts: got "),
        ([3, 2], math.nan, "q: got nan; allowed: a finite number"),
    ],
)
def test_class_probabilities_refuse_a_class_without_images(counts, q, message):
    with pytest.raises(ValueError, match=message):
        class_probabilities(counts, q)


def test_the_base_class_draws_nothing():
    with pytest.raises(NotImplementedError):
        EpochSampler(LABELS).indices()
    with pytest.raises(NotImplementedError):
        EpochSampler(LABELS).probabilities()


@pytest.mark.parametrize("q", [200.0, -200.0])
def test_a_power_beyond_all_numbers_is_refused(q):
    with pytest.raises(ValueError, match=rf"q: got {q}; allowed: a number for which n_j\^q is one, n_j up to 5000"):
        class_probabilities([5000, 100], q)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@ALL
def test_short_labels_give_the_same_epoch(kind, dtype):
    short = kind(LABELS.to(dtype))
    assert short.indices().equal(kind(LABELS).indices()) and short.classes.dtype == torch.int64
