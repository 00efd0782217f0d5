"""batches.py: batches out of one tensor, and augmentation of a whole batch."""

import pytest
import torch
from torch.utils.data import SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from course_utils.data import LabeledImages
from course_utils.sampling import ClassBalancedSampler, InstanceBalancedSampler
from course_utils.training import Batches, random_flip, random_shift, to_float


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def some_images(n=12, channels=1, height=6, width=5):
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=generator())


@pytest.fixture
def data():
    """10 images, each filled with its own number; labels 0 0 0 0 0 0 0 1 1 2."""
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 4, 4).contiguous()
    return LabeledImages(images, torch.tensor([0] * 7 + [1] * 2 + [2]), ("a", "b", "c"))


def numbers(images):
    return ((images[:, 0, 0, 0] + 1) * 255 / 2).round().long().tolist()


def test_to_float_maps_0_to_minus_1_and_255_to_1():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.allclose(to_float(pixels), torch.tensor([-1.0, -0.6, 1.0]), atol=1e-6)
    assert to_float(pixels).dtype == torch.float32 and pixels.tolist() == [0, 51, 255]


# ---- augmentation --------------------------------------------------------------------------------------------------


def slow_shift(image, dy, dx):
    moved = torch.zeros_like(image)
    height, width = image.shape[1:]
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                moved[:, y, x] = image[:, y + dy, x + dx]
    return moved


@pytest.mark.parametrize(("pixels", "channels"), [(1, 1), (2, 3), (3, 1), (5, 2), (0, 1)])
def test_random_shift_agrees_with_a_slow_reference(pixels, channels):
    images = some_images(40, channels)
    shifted = random_shift(images, generator(4), pixels)
    offsets = torch.randint(2 * pixels + 1, (2, 40), generator=generator(4)) - pixels
    for image, result, dy, dx in zip(images, shifted, *offsets.tolist(), strict=True):
        assert torch.equal(result, slow_shift(image, dy, dx))
    assert shifted.shape == images.shape and shifted.dtype == torch.uint8


def test_random_shift_uses_every_offset_and_each_image_has_its_own():
    image = torch.zeros(1, 1, 7, 7, dtype=torch.uint8)
    image[0, 0, 3, 3] = 255
    shifted = random_shift(image.expand(600, 1, 7, 7), generator(), 2)
    where = shifted[:, 0].flatten(1).argmax(1)
    places, times = where.unique(return_counts=True)
    assert {(p // 7 - 3, p % 7 - 3) for p in places.tolist()} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert times.min() > 5 and times.max() < 50  # 24 expected


def test_random_flip_mirrors_about_half_left_to_right():
    images = some_images(200)
    flipped = random_flip(images, generator())
    kept = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    assert (kept | mirrored).all() and 70 < mirrored.sum() < 130


@pytest.mark.parametrize("augment", [random_shift, random_flip])
def test_augmentation_is_the_same_for_the_same_generator_and_leaves_the_images_alone(augment):
    images = some_images(30)
    before = images.clone()
    assert torch.equal(augment(images, generator(1)), augment(images, generator(1)))
    assert not torch.equal(augment(images, generator(1)), augment(images, generator(2)))
    assert torch.equal(images, before)


# ---- Batches -------------------------------------------------------------------------------------------------------


def test_without_a_sampler_every_image_comes_once_in_order_and_the_last_batch_is_small(data):
    batches = list(Batches(data, 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 2] and len(Batches(data, 4)) == 3
    assert [n for images, _ in batches for n in numbers(images)] == list(range(10))
    assert torch.equal(torch.cat([labels for _, labels in batches]), data.labels)
    images, labels = batches[0]
    assert images.dtype == torch.float32 and images.device == labels.device == data.labels.device


@pytest.mark.parametrize(
    "sampler",
    [
        InstanceBalancedSampler(torch.tensor([0] * 7 + [1] * 2 + [2]), seed=1),
        ClassBalancedSampler(torch.tensor([0] * 7 + [1] * 2 + [2]), num_samples=25),
        SequentialSampler(range(10)),
        SubsetRandomSampler([1, 3, 5, 7, 9], generator=generator()),
        WeightedRandomSampler([1.0] * 10, 15, generator=generator()),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_any_sampler_decides_what_is_shown(data, sampler):
    batches = Batches(data, 4, sampler=sampler)
    got = list(batches)
    shown = [n for images, _ in got for n in numbers(images)]
    assert len(shown) == len(sampler) and len(batches) == len(got) == -(-len(sampler) // 4)
    assert torch.equal(torch.cat([labels for _, labels in got]), data.labels[shown])
    if type(sampler) in (InstanceBalancedSampler, ClassBalancedSampler, SequentialSampler):
        assert shown == list(sampler)
    elif isinstance(sampler, SubsetRandomSampler):
        assert sorted(shown) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("augment", [None, lambda images, generator: images])
@pytest.mark.parametrize("sampler", [None, ClassBalancedSampler(torch.tensor([0] * 7 + [1] * 2 + [2]), num_samples=25)])
def test_indices_are_the_places_of_the_images_that_come_with_them(data, sampler, augment):
    batches = Batches(data, 4, sampler=sampler, augment=augment)
    got = list(batches.with_indices())
    order = list(range(10)) if sampler is None else list(sampler)
    for images, labels, indices in got:
        assert numbers(images) == indices.tolist() and torch.equal(labels, data.labels[indices])
    assert torch.cat([indices for *_, indices in got]).tolist() == order
    for (images, labels), (same_images, same_labels, _) in zip(batches, got, strict=True):
        assert torch.equal(images, same_images) and torch.equal(labels, same_labels)


def test_augmentation_gets_uint8_and_the_given_generator(data):
    seen = []

    def augment(images, generator):
        seen.append((images.dtype, generator))
        return 255 - images

    mine = generator()
    images, _ = next(iter(Batches(data, 4, augment=augment, generator=mine)))
    assert seen == [(torch.uint8, mine)] and numbers(images) == [255, 254, 253, 252]


def test_the_same_generator_seed_gives_the_same_epoch(data):
    first, second, other = (
        torch.cat([images for images, _ in Batches(data, 3, augment=random_shift, generator=generator(seed))])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_a_batch_size_of_0_is_refused(data):
    with pytest.raises(ValueError, match="batch_size: got 0; allowed: at least 1"):
        Batches(data, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_float_images_are_channels_last_in_memory_as_the_networks_are(channels):
    images = some_images(channels=channels)
    found = to_float(images)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, images.float() * (2 / 255) - 1)


def test_to_float_takes_pixels_only_and_does_not_change_them():
    once = to_float(torch.tensor([[0, 255]], dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images: got torch.float32; allowed: uint8, 0 to 255"):
        to_float(once)
    assert once.tolist() == [[-1, 1]]
