"""sampling.py: which images an epoch shows, how often, and whether it can be drawn again."""

import pytest
import torch
from torch.utils.data import DataLoader

from course_utils.data import LabeledImages
from course_utils.sampling import ClassBalancedSampler, InstanceBalancedSampler

COUNTS = [40, 11, 3, 1]
LABELS = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))[torch.randperm(55, generator=torch.Generator())]
BOTH = pytest.mark.parametrize("kind", [InstanceBalancedSampler, ClassBalancedSampler])


@BOTH
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


@BOTH
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


@BOTH
@pytest.mark.parametrize("workers", [0, 1])
def test_a_real_data_loader_shows_what_the_sampler_says(kind, workers):
    images = torch.arange(55, dtype=torch.uint8)[:, None, None, None].expand(55, 1, 2, 2)
    data, sampler = LabeledImages(images, LABELS, tuple("abcd")), kind(LABELS, num_samples=30, seed=9)
    batches = list(DataLoader(data, batch_size=8, sampler=sampler, num_workers=workers))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 6]
    assert torch.cat([pictures[:, 0, 0, 0] for pictures, _ in batches]).tolist() == list(sampler)
    assert torch.equal(torch.cat([labels for _, labels in batches]), LABELS[sampler.indices()])


@BOTH
@pytest.mark.parametrize(
    ("labels", "num_samples", "message"),
    [
        (torch.zeros(0).long(), None, r"labels: got shape \(0,\)"),
        (torch.zeros(3, 2).long(), None, r"labels: got shape \(3, 2\); allowed: \(N,\)"),
        (torch.tensor([0.0, 1.0]), None, r"labels: got torch.float32"),
        (LABELS, 0, "num_samples: got 0; allowed: at least 1"),
    ],
)
def test_wrong_arguments_are_refused(kind, labels, num_samples, message):
    with pytest.raises(ValueError, match=message):
        kind(labels, num_samples=num_samples)
