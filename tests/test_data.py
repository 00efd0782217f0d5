"""data.py, profiles.py and sources.py: what is read, what is cut out of it, and what is refused."""

import dataclasses
import gzip
import hashlib
import io
import math
import os
import pickle
import shutil
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from course_utils.data import (
    LabeledImages,
    class_counts,
    english_letter_counts,
    exponential_counts,
    hold_out,
    load_images,
    long_tailed,
    step_counts,
)
from course_utils.machinery import files as sources
from course_utils.runtime import available_devices

pytestmark = pytest.mark.filterwarnings("ignore:.*left out 1 .txt")  # `folder` has one
root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="file permissions do not stop this user"
)


def some(counts, size=4, channels=1):
    """counts[j] random images of class j, in mixed order."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    images = torch.randint(256, (len(labels), channels, size, size), dtype=torch.uint8, generator=generator)
    return LabeledImages(images, labels, tuple("ABCDEFGHIJ"[: len(counts)]))


def as_set(dataset):
    return {(name.numpy().tobytes(), int(label)) for name, label in zip(dataset.images, dataset.labels, strict=True)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_short_labels_are_counted_in_any_number_of_classes(dtype):
    labels = torch.tensor([100, 0, 100], dtype=dtype)
    assert class_counts(labels, 300)[[0, 100, 299]].tolist() == [1, 2, 0]


@pytest.mark.parametrize("counts", [{1: 3, 0: 2}, {"A": 2, "B": 3}, [2.5, 3.0]])
def test_counts_in_another_order_or_not_whole_cut_no_tail(counts):
    data = LabeledImages(pictures(8, 1, 2, 2), torch.arange(8) % 2, ("A", "B"))
    with pytest.raises(ValueError, match=r"counts: got (them for|torch.float32)"):
        long_tailed(data, counts, seed=0)
    assert long_tailed(data, {0: 2, 1: 3}, seed=0).counts.tolist() == [2, 3]


def test_indices_are_places_or_a_mask_and_nothing_else():
    data = LabeledImages(pictures(3, 1, 2, 2), torch.tensor([0, 1, 1]), ("A", "B"))
    places = torch.tensor([0, 1, 1], dtype=torch.uint8)  # torch alone takes uint8 for a mask
    assert data.subset(places).labels.tolist() == [0, 1, 1] == data.subset([0, 1, 1]).labels.tolist()
    assert data.subset(data.labels == 1).labels.tolist() == [1, 1] and len(data.subset([])) == 0
    for wrong, message in (([3], "3 to 3; allowed: 0 to 2"), ([0.0], "torch.float32"), ([True, False], "a mask of")):
        with pytest.raises(ValueError, match=f"indices: got {message}"):
            data.subset(wrong)


# ---- LabeledImages -------------------------------------------------------------------------------------------------


def test_a_dataset_knows_its_sizes():
    dataset = some([5, 0, 2])
    assert (len(dataset), dataset.num_classes, dataset.counts.tolist()) == (7, 3, [5, 0, 2])
    image, label = dataset[3]
    assert torch.equal(image, dataset.images[3]) and label == dataset.labels[3]
    assert repr(dataset) == "LabeledImages(7 images of 1 x 4 x 4, 3 classes, on cpu)", "not thousands of pixels"


def test_it_works_with_a_data_loader():
    dataset = some([5, 2])
    batches = list(DataLoader(dataset, batch_size=3))
    assert torch.equal(torch.cat([images for images, _ in batches]), dataset.images)
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)


def test_subset_keeps_the_order_it_is_asked_for():
    dataset = some([5, 2])
    part = dataset.subset([6, 0, 0])
    assert torch.equal(part.images, dataset.images[[6, 0, 0]]) and torch.equal(part.labels, dataset.labels[[6, 0, 0]])
    assert part.class_names == dataset.class_names


def test_only_keeps_classes_and_numbers_them_in_the_order_given():
    dataset = some([5, 4, 3, 2])
    part = dataset.only(["D", "B"])
    assert (part.class_names, part.counts.tolist()) == (("D", "B"), [2, 4])
    assert as_set(part) == {(i, {3: 0, 1: 1}[j]) for i, j in as_set(dataset) if j in (1, 3)}
    assert as_set(dataset.only("ABCD")) == as_set(dataset)


@pytest.mark.parametrize("device", available_devices())
def test_to_moves_images_and_labels(device):
    dataset = some([2, 1])
    moved = dataset.to(device)
    assert moved.images.device.type == moved.labels.device.type == device.split(":")[0]
    assert as_set(moved.to("cpu")) == as_set(dataset) and moved.class_names == ("A", "B")


def test_a_dataset_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        some([2, 1]).labels = torch.zeros(3)


def pictures(*shape, dtype=torch.uint8):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (pictures(2, 4, 4), torch.tensor([0, 1]), "AB", r"images: got torch.uint8 of shape \(2, 4, 4\)"),
        (pictures(2, 1, 4, 4, dtype=torch.float32), torch.tensor([0, 1]), "AB", "images: got torch.float32"),
        (pictures(2, 1, 4, 4), torch.tensor([0]), "AB", r"labels: got shape \(1,\); allowed: \(2,\)"),
        (pictures(2, 1, 4, 4), torch.tensor([0, 2]), "AB", "labels: got 0 to 2; allowed: 0 to 1"),
        (pictures(2, 1, 4, 4), torch.tensor([-1, 1]), "AB", "labels: got -1 to 1; allowed: 0 to 1"),
        (pictures(2, 1, 4, 4), torch.tensor([0.0, 1.0]), "AB", "labels: got torch.float32"),
        (pictures(2, 1, 4, 4), torch.tensor([0, 1]).int(), "AB", "labels: got torch.int32"),
        (pictures(2, 1, 4, 4).to("meta"), torch.tensor([0, 1]), "AB", "labels: got cpu beside images on meta;"),
        (pictures(2, 1, 4, 4), torch.tensor([0, 1]), "AA", "class_names: .*A"),
    ],
)
def test_images_and_labels_that_do_not_fit_are_refused(images, labels, names, message):
    with pytest.raises(ValueError, match=message):
        LabeledImages(images, labels, tuple(names))


@pytest.mark.parametrize(
    ("names", "message"),
    [(["A", "X"], r"class_names: got \['X'\]"), ([], "class_names: got none"), (["A", "A"], "class_names: ")],
)
def test_only_refuses_what_is_not_there_or_there_twice(names, message):
    with pytest.raises(ValueError, match=message):
        some([2, 1]).only(names)


def test_class_counts():
    assert class_counts(torch.tensor([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]
    assert class_counts(torch.zeros(0).long(), 2).tolist() == [0, 0]
    with pytest.raises(ValueError, match="labels: got 0 to 4; allowed: 0 to 3"):
        class_counts(torch.tensor([0, 4]), 4)


# ---- profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "top", "ratio", "head", "tail", "total"),
    [
        (10, 5000, 100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], [50], 12_406),
        (10, 5000, 50, [5000], [154, 100], 13_996),
        (10, 5000, 10, [5000], [645, 500], 20_431),
        (100, 500, 100, [500, 477, 455], [6, 6, 5, 5, 5, 5], 10_847),
        (100, 500, 50, [500], [10, 10, 10], 12_608),
        (100, 500, 10, [500], [51, 50], 19_573),
    ],
)
def test_exponential_counts_are_those_of_long_tailed_cifar(classes, top, ratio, head, tail, total):
    counts = exponential_counts(classes, top, ratio)
    assert (len(counts), sum(counts)) == (classes, total)
    assert counts[: len(head)] == head and counts[-len(tail) :] == tail
    assert counts == sorted(counts, reverse=True)


def test_ratio_1_is_balanced_and_one_class_is_the_head():
    assert exponential_counts(4, 30, 1) == step_counts(4, 30, 1) == [30] * 4
    assert exponential_counts(1, 30, 10) == [30]


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        ((100, 500, 100), [500] * 50 + [5] * 50),
        ((10, 5000, 100), [5000] * 5 + [50] * 5),
        ((5, 40, 8), [40] * 3 + [5] * 2),
        ((10, 40, 8, 0.8), [40] * 2 + [5] * 8),
        ((100, 40, 8, 0.29), [40] * 71 + [5] * 29),
        ((4, 40, 8, 0.0), [40] * 4),
        ((4, 40, 8, 1.0), [5] * 4),
    ],
)
def test_step_counts(arguments, want):
    assert step_counts(*arguments) == want


@pytest.mark.parametrize("profile", [exponential_counts, step_counts])
def test_no_class_is_ever_empty(profile):
    for top in range(1, 600):
        assert profile(7, top, top)[-1] == 1, "max_count / ratio is 1, whatever floating point says"


def test_english_letters():
    counts = dict(zip(sources.CAPITALS, english_letter_counts(500), strict=True))
    assert max(counts, key=counts.get) == "E" and min(counts, key=counts.get) == "Z"
    assert [counts[c] for c in "ETABVKJXQZ"] == [500, 356, 321, 59, 38, 30, 6, 6, 4, 3]
    assert 165 < counts["E"] / counts["Z"] < 180 and sum(counts.values()) == sum(english_letter_counts(500))
    many = english_letter_counts(100_000)
    assert max(many) / min(many) == pytest.approx(171.6, abs=0.3)
    assert min(english_letter_counts(10)) == 1, "no letter is lost"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exponential_counts(0, 10, 2), "num_classes: got 0; allowed: at least 1"),
        (lambda: exponential_counts(10, 100, 0.5), "ratio: got 0.5; allowed: at least 1"),
        (lambda: exponential_counts(10, 100, float("nan")), "ratio: got nan"),
        (lambda: exponential_counts(10, 50, 100), "max_count: got 50 with ratio 100.*allowed: at least 100"),
        (lambda: step_counts(10, 100, 0.01), "ratio: got 0.01"),
        (lambda: step_counts(10, 100, 10, minority=1.2), "minority: got 1.2; allowed: 0 to 1"),
        (lambda: english_letter_counts(0), "max_count: got 0"),
        (lambda: english_letter_counts(math.inf), "max_count: got inf"),
    ],
)
def test_wrong_profiles_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- a long tail cut out -------------------------------------------------------------------------------------------


def test_long_tailed_keeps_the_counts_that_were_asked_for():
    dataset = some([20, 20, 20])
    part = long_tailed(dataset, [9, 3, 1], seed=0)
    assert part.counts.tolist() == [9, 3, 1]
    assert as_set(part) < as_set(dataset) and len(as_set(part)) == 13, "no image twice"


def test_a_smaller_long_tail_is_part_of_a_larger_one():
    dataset = some([20, 20, 20])
    small, large = (as_set(long_tailed(dataset, counts, seed=4)) for counts in ([9, 3, 1], [20, 7, 1]))
    assert small < large


def test_a_long_tail_depends_on_its_seed_alone():
    dataset = some([20, 20, 20])
    before = dataset.images.clone()
    state = torch.get_rng_state()
    first, again, other = (long_tailed(dataset, [9, 3, 1], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images) and as_set(first) != as_set(other)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(dataset.images, before)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([9, 3], "counts: got 2 of them; allowed: one for each of 3 classes"),
        ([9, 0, 1], "counts: got 0 images for class 'B'; allowed: 1 to 4"),
        ([9, 5, 1], "counts: got 5 images for class 'B'; allowed: 1 to 4"),
    ],
)
def test_counts_that_a_dataset_cannot_give_are_refused(counts, message):
    with pytest.raises(ValueError, match=message):
        long_tailed(some([20, 4, 20]), counts, seed=0)


def test_hold_out_splits_every_class():
    dataset = some([40, 20, 10])
    rest, held = hold_out(dataset, 0.3, seed=0)
    assert (rest.counts.tolist(), held.counts.tolist()) == ([28, 14, 7], [12, 6, 3])
    assert as_set(rest) | as_set(held) == as_set(dataset) and not as_set(rest) & as_set(held)
    assert as_set(hold_out(dataset, 0.3, seed=0)[1]) == as_set(held) != as_set(hold_out(dataset, 0.3, seed=1)[1])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_hold_out_leaves_every_class_something_to_train_on(share):
    rest, _held = hold_out(some([40, 3, 2, 1]), share, seed=0)
    assert rest.counts.min() >= 1


@pytest.mark.parametrize("share", [0, 1, -0.2, float("nan")])
def test_hold_out_refuses_all_and_nothing(share):
    with pytest.raises(ValueError, match=r"share: got .*; allowed: above 0 and below 1"):
        hold_out(some([4, 4]), share, seed=0)


# ---- letters -------------------------------------------------------------------------------------------------------


def test_letters_have_26_classes_of_equal_size_in_three_splits():
    sizes = {}
    for split in ("train", "validation", "test"):
        letters, digits = load_images("letters", split), load_images("digits", split)
        assert letters.images.shape[1:] == digits.images.shape[1:] == (1, 28, 28)
        assert "".join(letters.class_names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        assert "".join(digits.class_names) == "0123456789"
        faces = letters.counts.unique()
        assert len(faces) == 1 and torch.equal(digits.counts.unique(), faces), "the same typefaces show both"
        sizes[split] = int(faces)
    assert sizes["train"] > sizes["test"] > sizes["validation"] > 50


def test_letters_come_in_the_right_classes():
    """I is thin and M is wide in nearly every typeface; ink is bright on 0."""
    letters = load_images("letters", "validation")
    ink = letters.images.float().mean((1, 2, 3))
    by_class = [ink[letters.labels == letters.class_names.index(c)].median() for c in "IMWLJ"]
    assert by_class[0] < min(by_class[1:3]) and by_class[3] < min(by_class[1:3]) and max(by_class) < 128


def test_splits_share_no_typeface():
    per_face = {}
    for split in ("train", "validation", "test"):
        images = load_images("letters", split).images
        per_face[split] = {face.numpy().tobytes() for face in images.reshape(-1, 26, 28, 28)}
    assert not per_face["train"] & per_face["validation"] and not per_face["train"] & per_face["test"]
    assert not per_face["validation"] & per_face["test"]


def test_two_readings_are_independent():
    first = load_images("digits", "validation")
    first.images.zero_()
    assert load_images("digits", "validation").images.any()


@pytest.fixture
def copy_of_letters(tmp_path):
    for name in ("letters.npz", "letters.sha256"):
        shutil.copy(sources.DATA_FOLDER / name, tmp_path / name)
    return tmp_path


def damaged(random, content, cut):
    """Cut off somewhere, or with up to 8 bytes altered, mostly in the head."""
    if cut:
        return content[: random.integers(len(content))]
    content = bytearray(content)
    top = len(content) if random.integers(4) == 0 else min(len(content), 64)
    for place in random.integers(top, size=random.integers(1, 9)):
        content[place] = random.integers(256)
    return bytes(content)


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:10_000])


@pytest.mark.parametrize("damage", [flip_a_byte, truncate])
def test_damaged_letters_are_refused_and_left_as_they_are(copy_of_letters, damage):
    assert len(load_images("letters", "test", root=copy_of_letters)) > 0
    damaged = copy_of_letters / "damaged"
    damaged.mkdir()
    for path in list(copy_of_letters.glob("letters.*")):
        shutil.move(path, damaged)
    damage(damaged / "letters.npz")
    before = (damaged / "letters.npz").read_bytes()
    with pytest.raises(ValueError, match=r"letters\.npz is damaged or altered.*git checkout"):
        load_images("letters", "test", root=damaged)
    assert (damaged / "letters.npz").read_bytes() == before


def test_letters_without_their_checksum_are_refused(copy_of_letters):
    (copy_of_letters / "letters.sha256").unlink()
    with pytest.raises(ValueError, match=r"letters\.sha256"):
        load_images("letters", "test", root=copy_of_letters)


def test_damaged_letters_are_refused_by_name_even_with_a_checksum_that_fits(tmp_path, record_property):
    whole = io.BytesIO()
    np.savez_compressed(whole, glyphs=np.zeros((4, 36, 2, 2), np.uint8), split=np.arange(4) % 3)
    random, refused = np.random.default_rng(5), 0
    path = tmp_path / "letters.npz"
    for turn in range(40):
        path.write_bytes(damaged(random, whole.getvalue(), cut=turn % 2))
        (tmp_path / "letters.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
        sources._checked_letters.cache_clear()
        try:
            load_images("letters", "test", root=tmp_path)
        except ValueError as error:
            assert str(path) in str(error), error
            refused += 1
    sources._checked_letters.cache_clear()
    assert refused >= 20
    record_property("note", f"40 damaged .npz files: {refused} refused by name")


def test_an_empty_checksum_is_refused(tmp_path):
    (tmp_path / "letters.npz").write_bytes(b"")
    (tmp_path / "letters.sha256").write_bytes(b"")
    with pytest.raises(ValueError, match=r"letters\.npz is damaged or altered"):
        load_images("letters", "test", root=tmp_path)


def test_letters_that_are_nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "DATA_FOLDER", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"letters\.npz is not in .*empty; it ships with the course"):
        load_images("letters", "test")


# ---- names, splits, sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "train"), r"name: got 'mnist'; allowed: letters, digits, .*or the path of a folder"),
        (("letters", "dev"), r"split: got 'dev' for 'letters'; allowed: train, validation, test"),
        (("fashion-mnist", "validation"), r"split: got 'validation' for 'fashion-mnist'; allowed: train, test"),
        (("cifar10", "val"), r"split: got 'val' for 'cifar10'; allowed: train, test"),
    ],
)
def test_unknown_names_and_splits_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_images(*arguments)


def test_a_size_is_for_folders_only():
    with pytest.raises(ValueError, match="size: got 14 with 'letters'; allowed: only with a folder"):
        load_images("letters", "test", size=14)


# ---- Fashion-MNIST and CIFAR ---------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, no data of this machine; COURSE_DATA is an empty folder."""

    def no_network(*_args, **_options):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.setattr(sources, "DATA_FOLDER", tmp_path / "project-data")
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "course-data"))
    return tmp_path


def write_fashion(folder, prefix="train", n=6, suffix=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    labels = np.arange(n, dtype=np.uint8) % 10
    head = b"\x00\x00\x08\x03" + np.array([n, 28, 28], ">u4").tobytes()
    pack = gzip.compress if suffix == ".gz" else bytes
    (folder / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(head + pixels.tobytes()))
    head = b"\x00\x00\x08\x01" + np.array([n], ">u4").tobytes()
    (folder / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(head + labels.tobytes()))
    return pixels


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("place", ["course-data", "project-data", "debian", "mine", "course-data/FashionMNIST/raw"])
def test_fashion_mnist_is_found_where_it_may_be(offline, place, suffix):
    train, test = write_fashion(offline / place, "train", 12, suffix), write_fashion(offline / place, "t10k", 6, suffix)
    for split, want in (("train", train), ("test", test)):
        got = load_images("fashion-mnist", split, root=offline / "mine", download=False)
        assert np.array_equal(got.images[:, 0].numpy(), want)
        assert got.labels.tolist() == [i % 10 for i in range(len(want))]
    assert got.class_names[0] == "T-shirt/top" and got.num_classes == 10


def test_the_folder_asked_for_comes_before_course_data(offline):
    mine = write_fashion(offline / "mine", n=4)
    write_fashion(offline / "course-data", n=9)
    assert np.array_equal(load_images("fashion-mnist", "train", root=offline / "mine").images[:, 0].numpy(), mine)


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, lambda path: path.write_bytes(b"not a gzip file")])
def test_damaged_fashion_mnist_names_the_file(offline, damage):
    write_fashion(offline / "course-data", n=200)
    damage(offline / "course-data" / "train-images-idx3-ubyte.gz")
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz"):
        load_images("fashion-mnist", "train")


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_damaged_idx_files_are_refused_by_name(offline, record_property, suffix):
    write_fashion(offline / "course-data", n=20, suffix=suffix)
    random, refused = np.random.default_rng(3), 0
    for turn in range(40):
        path = offline / "course-data" / f"train-{('images-idx3', 'labels-idx1')[turn // 20]}-ubyte{suffix}"
        content = path.read_bytes()
        path.write_bytes(damaged(random, content, cut=turn % 2))
        try:
            got = load_images("fashion-mnist", "train")
            assert len(got) == 20 and (suffix or not turn % 2)
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
        path.write_bytes(content)
    assert refused > 20
    record_property("note", f"40 damaged IDX files ({suffix or 'not packed'}): {refused} refused by name")


@pytest.mark.parametrize("n", [19, 21])
def test_labels_of_other_images_are_refused_by_name(offline, n):
    write_fashion(offline / "course-data", n=20)
    other = offline / "other"
    write_fashion(other, n=n)
    name = "train-labels-idx1-ubyte.gz"
    os.replace(other / name, offline / "course-data" / name)
    with pytest.raises(ValueError, match=f"{name} is damaged \\({n} labels for 20 images"):
        load_images("fashion-mnist", "train")


def test_a_label_that_no_class_has_is_refused_by_name(offline):
    write_fashion(offline / "course-data", n=20)
    path = offline / "course-data" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1] + b"\x0a"))
    with pytest.raises(ValueError, match=f"{path.name} is damaged .*a label above 9"):
        load_images("fashion-mnist", "train")


NAMES = pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])


@NAMES
def test_data_that_are_nowhere_name_three_ways(offline, name):
    ways = r"is not on this machine and {}.*\(1\).*network.*\(2\).*\(3\) set COURSE_DATA"
    with pytest.raises(FileNotFoundError, match=ways.format(r"downloading is switched off \(download=False\)")):
        load_images(name, "train", download=False)
    assert not (offline / "course-data").exists(), "nothing was written"
    with pytest.raises(FileNotFoundError, match="(?s)" + ways.format("the download into .*course-data failed")):
        load_images(name, "train")


@NAMES
def test_a_download_folder_that_cannot_be_made(offline, monkeypatch, name):
    (offline / "a-file").write_text("")
    monkeypatch.setenv("COURSE_DATA", str(offline / "a-file" / "data"))
    with pytest.raises(FileNotFoundError, match=r"(?s)the download into .*a-file.* failed.*data folder that can be"):
        load_images(name, "train")


@root_only
@NAMES
def test_a_download_folder_that_is_read_only(offline, name):
    (offline / "course-data").mkdir(mode=0o500)
    with pytest.raises(FileNotFoundError, match=r"the download into .*course-data failed .*Permission denied"):
        load_images(name, "train")


def write_cifar(folder, monkeypatch, kind, n=5):
    """A tiny CIFAR in the published format; torchvision's checksums of the real files are taken away."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = {}
    for split, attribute in (("train", "train_list"), ("test", "test_list")):
        pixels[split] = rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        labels = list(range(n))
        content = {"data": pixels[split].reshape(n, -1), "labels": labels, "fine_labels": labels}
        (folder / split).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(kind, attribute, [[split, None]])
    names = [f"class {j}" for j in range(10)]
    (folder / "names").write_bytes(pickle.dumps({kind.meta["key"]: names}))
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": "names", "md5": None})
    return pixels


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_is_read_in_colour(offline, monkeypatch, name, kind):
    import torchvision.datasets

    kind = getattr(torchvision.datasets, kind)
    pixels = write_cifar(offline / "course-data" / kind.base_folder, monkeypatch, kind)
    for split in ("train", "test"):
        got = load_images(name, split, download=False)
        assert np.array_equal(got.images.numpy(), pixels[split]) and got.images.is_contiguous()
        assert got.labels.tolist() == list(range(5)) and got.class_names[3] == "class 3"


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_half_unpacked_cifar_is_said_to_be_so(offline, name):
    folder = "cifar-10-batches-py" if name == "cifar10" else "cifar-100-python"
    (offline / "course-data" / folder).mkdir(parents=True)
    with pytest.raises((ValueError, FileNotFoundError), match=folder):
        load_images(name, "train", download=False)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04}.", b"cnowhere\nNothing\n."])
def test_a_cifar_file_that_is_no_pickle_names_the_folder(offline, monkeypatch, content):
    from torchvision.datasets import CIFAR10

    folder = offline / "course-data" / CIFAR10.base_folder
    write_cifar(folder, monkeypatch, CIFAR10)
    (folder / "train").write_bytes(content)
    with pytest.raises(ValueError, match=f"{CIFAR10.base_folder} is incomplete or damaged"):
        load_images("cifar10", "train", download=False)


# ---- a folder of images --------------------------------------------------------------------------------------------


def save(path, color, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "train" / "cat" / "1.png", (10, 20, 30))
    save(tmp_path / "train" / "cat" / "2.png", (40, 50, 60))
    save(tmp_path / "train" / "dog" / "1.JPG", (200, 200, 200))
    save(tmp_path / "test" / "cat" / "1.png", 7, mode="L")
    save(tmp_path / "test" / "dog" / "1.jpeg", 90, mode="L")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_of_colour_images(folder):
    got = load_images(folder, "train")
    assert got.images.shape == (3, 3, 5, 6) and got.class_names == ("cat", "dog") and got.labels.tolist() == [0, 0, 1]
    assert got.images[:, :, 0, 0].tolist() == [[10, 20, 30], [40, 50, 60], [200, 200, 200]]


def test_a_folder_of_grey_images_has_one_channel(folder):
    for path, grey in (("cat/1", 10), ("cat/2", 20), ("dog/1", 200)):
        save(folder / "train" / f"{path}.{'JPG' if 'dog' in path else 'png'}", (grey, grey, grey))  # RGB, but grey
    for split, values in (("train", [10, 20, 200]), ("test", [7, 90])):
        got = load_images(str(folder), split)
        assert got.images.shape == (len(values), 1, 5, 6) and got.images[:, 0, 0, 0].tolist() == values


def test_one_coloured_image_gives_all_splits_three_channels(folder):
    got = load_images(folder, "test")
    assert got.images.shape == (2, 3, 5, 6), "the test images are grey, the training images are not"
    assert got.images[:, :, 0, 0].tolist() == [[7, 7, 7], [90, 90, 90]]


def test_images_of_several_sizes_become_squares_of_one_size_in_all_splits(folder):
    mixed_sizes(folder)
    save(folder / "test" / "dog" / "2.png", (1, 2, 3), size=(300, 200))
    assert {load_images(folder, split).images.shape[2:] for split in ("train", "test")} == {(16, 16)}
    for number in range(6):  # most of the images are large now
        save(folder / "test" / "dog" / f"large{number}.png", (1, 2, 3), size=(300, 200 + number))
    assert {load_images(folder, split).images.shape[2:] for split in ("train", "test")} == {(64, 64)}


def test_a_folder_without_splits_is_read_whole(folder):
    got = load_images(folder / "train", "all")
    assert got.class_names == ("cat", "dog") and len(got) == 3
    with pytest.raises(ValueError, match=r"split: got 'train' for .*; allowed: all"):
        load_images(folder / "train", "train")


@pytest.mark.parametrize("damage", ["broken", "cut_off"])
def test_a_broken_image_is_left_out_only_when_asked_and_named(folder, damage):
    save(folder / "train" / "dog" / "3.png", (1, 2, 3))
    path = globals()[damage](folder)
    with pytest.warns(UserWarning, match=f"skipped 1 files that are no readable images: (cat|dog)/{path.name}$"):
        got = load_images(folder, "train", skip_broken=True)
    assert len(got) == 3 and got.counts.tolist() == ([1, 2] if damage == "broken" else [2, 1])


def test_a_class_of_broken_images_alone_is_refused(folder):
    cut_off(folder)
    with pytest.raises(ValueError, match="class 'dog' of train has no readable image"):
        load_images(folder, "train", skip_broken=True)


def test_skipping_is_for_folders_only():
    with pytest.raises(ValueError, match="skip_broken: got True with 'letters'; allowed: only with a folder"):
        load_images("letters", "train", skip_broken=True)


def test_a_size_scales_every_image_and_needs_no_common_one(folder):
    save(folder / "train" / "dog" / "2.png", (1, 2, 3), size=(9, 30))
    got = load_images(folder, "train", size=4)
    assert got.images.shape == (4, 3, 4, 4) and got.images[3, :, 2, 2].tolist() == [1, 2, 3]


def test_what_programs_hide_in_folders_is_no_class_and_no_image(folder):
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / "cat" / "._1.png").write_bytes(b"a Mac was here")
    assert load_images(folder, "train").counts.tolist() == [2, 1]


def mixed_sizes(folder):
    save(folder / "train" / "dog" / "2.png", (1, 2, 3), size=(9, 30))


def broken(folder):
    path = folder / "train" / "cat" / "2.png"
    path.write_bytes(b"GIF? no")
    return path


def cut_off(folder):
    path = folder / "train" / "dog" / "1.JPG"
    path.write_bytes(path.read_bytes()[:-20])
    return path


def empty(folder):
    (folder / "train" / "bird").mkdir()


def no_classes(folder):
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken, r"2\.png is not a readable image"),
        (cut_off, r"1\.JPG is not a readable image"),
        (empty, r"class 'bird' is empty: no picture that can be read here in .*bird \(no file\)"),
        (no_classes, r"got test, train, but no train that holds class folders"),
    ],
)
def test_a_folder_that_cannot_be_read_says_why(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_images(folder, "train")


def test_test_classes_that_training_does_not_have_are_refused(folder):
    """Otherwise label 1 would be a dog in training and an owl in the test."""
    os.rename(folder / "test" / "dog", folder / "test" / "owl")
    with pytest.raises(ValueError, match="owl"):
        load_images(folder, "test")


def test_a_split_without_a_folder_is_refused(folder):
    with pytest.raises(ValueError, match=r"split: got 'validation' for .*; allowed: test, train"):
        load_images(folder, "validation")


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_1_is_refused(folder, size):
    with pytest.raises(ValueError, match=f"size: got {size}"):
        load_images(folder, "train", size=size)


def test_names_of_the_clothes_are_those_of_torchvision():
    from torchvision.datasets import FashionMNIST

    assert tuple(FashionMNIST.classes) == sources.CLOTHES
