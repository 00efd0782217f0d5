"""photos.py, photo_sets.py and the lists of picture_files.py: what is read, how it streams, and what is refused."""

import json
import multiprocessing
import os
import random
import shutil
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pretend_gpu import pretend_gpu
from test_files import BAD, as_stored

from course_utils import photos as photos_file
from course_utils.data import hold_out, load_images, long_tailed
from course_utils.methods import train_methods
from course_utils.networks import SmallCNN
from course_utils.photo_sets import PUBLISHED, Published, load_photos
from course_utils.photos import Photos, View
from course_utils.sampling import ClassBalancedSampler
from course_utils.training import Batches, extract_features, first_input, fit, predict, random_flip

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = View(size=16)


def noise(path, seed=0, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """train: 6, 3 and 1 pictures of a, b and c; validation: 2 of each. No test may change it."""
    folder = tmp_path_factory.mktemp("photographs")
    numbers = {"train": (6, 3, 1), "validation": (2, 2, 2)}
    pairs = [(split, c, n) for split in numbers for c, n in zip("abc", numbers[split], strict=True)]
    files = [f"{split}/{c}/{i}.jpg" for split, c, n in pairs for i in range(n)]
    for seed, file in enumerate(files):
        noise(folder / file, seed)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy that may be changed."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def truncate(path):
    path.write_bytes(path.read_bytes()[:300])
    return path


def children():
    """Processes of a DataLoader; joblib keeps some of other tests for a while."""
    return [one for one in multiprocessing.active_children() if type(one).__name__ != "LokyProcess"]


# ---- View ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size: got 0; allowed: an integer of at least 1"),
        ({"size": 2.5}, "size: got 2.5"),
        ({"fit": "stretch"}, "fit: got 'stretch'; allowed: crop, pad, squash"),
        ({"share": 0}, "share: got 0; allowed: above 0, at most 1"),
        ({"share": 1.1}, "share: got 1.1"),
        ({"share": "1"}, "share: got '1'"),
        ({"mean": (0.5, 0.5)}, r"mean: got \(0.5, 0.5\); allowed: a tuple of three numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean: got"),
        ({"mean": (0.5, 0.5, "0")}, "mean: got"),
        ({"std": 3}, "std: got 3"),
        ({"std": (0.5, 0.0, 0.5)}, "std: got .*allowed: a tuple of three numbers above 0"),
        ({"background": 256}, "background: got 256; allowed: an integer from 0 to 255"),
    ],
)
def test_a_view_has_numbers_that_make_sense(options, message):
    with pytest.raises(ValueError, match=message):
        View(**options)


def test_a_view_survives_json_and_no_other_numbers_are_one():
    view = View(128, "pad", 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0)
    assert View.of(json.loads(json.dumps(view.numbers()))) == view
    with pytest.raises(ValueError, match=r"view: got .*colour.*; allowed: background, fit, mean, share, size, std"):
        View.of(view.numbers() | {"colour": 1})
    with pytest.raises(ValueError, match="view: got"):
        View.of({"size": 3})


def test_crop_is_the_usual_recipe_of_torchvision(tmp_path):
    from torchvision.transforms import v2

    path = noise(tmp_path / "1.png", size=(75, 50))
    usual = v2.Compose([v2.Resize(32, v2.InterpolationMode.BICUBIC), v2.CenterCrop(28), v2.PILToTensor()])
    view = View(size=28)
    assert torch.equal(view.plain()(view.open(path)), usual(Image.open(path)))


def test_pad_shows_the_whole_picture_in_the_middle_and_squash_fills_the_square():
    red = Image.new("RGB", (40, 20), (255, 0, 0))
    padded = View(size=20, fit="pad", background=7).plain()(red)
    assert (padded[:, :5] == 7).all() and (padded[:, 15:] == 7).all()
    assert (padded[0, 5:15] == 255).all() and (padded[1:, 5:15] == 0).all()
    assert (View(size=20, fit="squash").plain()(red)[0] == 255).all()


@pytest.mark.parametrize("fit_", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(20_000, 3), (2, 9_000), (1, 1)])
def test_pictures_of_any_shape_become_squares(fit_, size):
    view, picture = View(size=12, fit=fit_), Image.new("RGB", size, (9, 99, 199))
    for transform in (view.plain(), view.augmented(color=0.4)):
        got = transform(picture)
        assert got.shape == (3, 12, 12) and got.dtype == torch.uint8


def test_the_middle_of_a_very_long_picture_is_cropped():
    thirds = np.zeros((3, 3000, 3), np.uint8)
    thirds[:, 1400:1600] = 255
    assert (View(size=4).plain()(Image.fromarray(thirds)) == 255).all()


def test_floats_are_normalized_channel_by_channel():
    view = View(size=2, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    pixels = torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    want = (pixels.double() / 255 - torch.tensor(view.mean)[:, None, None]) / torch.tensor(view.std)[:, None, None]
    got = view.to_float(pixels)
    assert got.dtype == torch.float32 and torch.allclose(got.double(), want, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match=r"images: got torch.float32"):
        view.to_float(got)


def test_the_background_is_below_transparent_parts(tmp_path):
    for mode, name in (("RGBA", "1.png"), ("LA", "2.png")):
        Image.new(mode, (8, 8)).save(tmp_path / name)
        for grey in (255, 31):
            view = View(size=8, background=grey)
            assert (view.plain()(view.open(tmp_path / name)) == grey).all(), mode
    grey16 = Image.fromarray(np.full((8, 8), 500, np.uint16))
    grey16.save(tmp_path / "3.png", transparency=500)
    view = View(size=8, background=31)
    assert (view.plain()(view.open(tmp_path / "3.png")) == 31).all(), "the transparent grey of 16 bits"


def test_a_large_jpeg_is_decoded_smaller_upright_and_looks_the_same(tmp_path):
    image, exif = as_stored(6)
    image.resize((1200, 1600), Image.Resampling.BICUBIC).save(tmp_path / "1.jpg", exif=exif, quality=95)
    view = View(size=32)
    opened = view.open(tmp_path / "1.jpg")
    assert opened.size == (200, 150), "an eighth, turned"
    full = Image.open(tmp_path / "1.jpg").transpose(Image.Transpose.ROTATE_270)
    far = (view.plain()(opened).int() - view.plain()(full).int()).abs().float()
    assert far.mean() < 2, "of 255"
    noise(tmp_path / "2.jpg", size=(80, 80))
    assert view.open(tmp_path / "2.jpg").size == (80, 80), "a small one stays"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.5, 0.2)}, r"scale: got \(0.5, 0.2\)"),
        ({"scale": (0, 1)}, "scale: got"),
        ({"flip": 1.5}, "flip: got 1.5; allowed: 0 to 1"),
        ({"color": -0.1}, "color: got -0.1; allowed: 0 to 1"),
    ],
)
def test_an_augmentation_has_numbers_that_make_sense(options, message):
    with pytest.raises(ValueError, match=message):
        View().augmented(**options)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_read_as_load_images_reads_it(folder):
    noise(folder / "train" / "b" / "deeper" / "down" / "9.png")
    for split in ("train", "validation"):
        mine, other = Photos.from_folder(folder, split), load_images(folder, split, size=8)
        assert torch.equal(mine.labels, other.labels) and mine.class_names == other.class_names
    mine = Photos.from_folder(folder)
    assert mine.counts.tolist() == [6, 4, 1] and mine.path(9).endswith("9.png")
    assert repr(mine) == "Photos(11 files, 224 x 224 by crop, 3 classes, on cpu)"
    view = View(size=30, fit="squash")
    image, label = mine.with_view(view)[9]
    assert label == 1 and torch.equal(image, view.plain()(Image.open(mine.path(9))))


def test_classes_without_folders_around_them_are_split_all(whole):
    assert len(Photos.from_folder(whole / "train", "all")) == 10


@pytest.mark.parametrize(
    ("split", "change", "message"),
    [
        ("test", None, "split: got 'test' for .*; allowed: train, validation"),
        ("validation", "validation/d/1.jpg", "d in only one of train and validation; allowed: the same classes"),
        ("validation", "-validation/c", "c in only one of train and validation; allowed: the same classes"),
        ("validation", "-validation/c/0.jpg -validation/c/1.jpg", "class 'c' is empty: no picture .* \\(no file\\)"),
    ],
)
def test_what_a_folder_lacks_is_said_in_one_line(folder, split, change, message):
    for path in (change or "").split():
        if path[0] != "-":
            noise(folder / path)
        elif (folder / path[1:]).is_dir():
            shutil.rmtree(folder / path[1:])
        else:
            (folder / path[1:]).unlink()
    with pytest.raises(ValueError, match=message) as caught:
        Photos.from_folder(folder, split)
    assert "\n" not in str(caught.value)


def test_a_class_without_validation_images_is_told_where_the_classes_are_given(folder):
    names = Photos.from_folder(folder).class_names
    shutil.rmtree(folder / "validation" / "b")
    (folder / "validation" / "c" / "0.jpg").unlink()
    (folder / "validation" / "c" / "1.jpg").rename(folder / "validation" / "c" / "1.txt")
    with pytest.warns(UserWarning, match=r"validation: no image of b, c; left out 1 .txt") as told:
        held = Photos.from_folder(folder, "validation", class_names=names)
    assert held.counts.tolist() == [2, 0, 0] and told[0].filename == __file__
    noise(folder / "validation" / "z" / "1.jpg")
    with pytest.raises(ValueError, match="z in validation; allowed: some of a, b, c"):
        Photos.from_folder(folder, "validation", class_names=names)


def test_a_folder_that_is_none_is_named():
    with pytest.raises(ValueError, match="folder: got 'nowhere'; allowed: a folder of folders of images"):
        Photos.from_folder("nowhere")


def test_a_class_of_one_image_stays_in_training_and_has_no_validation_image(whole):
    rest, held = hold_out(Photos.from_folder(whole), 0.4, seed=0)
    assert rest.counts.tolist() == [4, 2, 1] and held.counts.tolist() == [2, 1, 0]


# ---- broken files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_in_one_line_when_its_image_is_needed(folder, workers):
    truncate(folder / "train" / "b" / "1.jpg")
    data = Photos.from_folder(folder, view=SMALL, workers=workers)
    with pytest.raises(ValueError, match=r"^\S+train/b/1.jpg is not a readable image: [^\n]+$"):
        list(Batches(data, 4))
    assert not children()


@pytest.mark.parametrize("name", BAD)
def test_whatever_is_wrong_with_a_file_it_is_named_or_left_out(folder, name):
    (folder / "train" / "b" / name).write_bytes(BAD[name])
    data = Photos.from_folder(folder, view=SMALL)
    with pytest.raises(ValueError, match=rf"^\S+train/b/{name} is not a readable image: [^\n]+$"):
        list(Batches(data, 4))
    with pytest.warns(UserWarning, match=f"skipped 1 files that are no readable images: train/b/{name}"):
        assert len(Photos.from_folder(folder, skip_broken=True)) == 10


def test_broken_files_can_be_left_out_and_are_named(folder):
    truncate(folder / "train" / "b" / "1.jpg")
    (folder / "train" / "a" / "2.png").write_text("<html>")
    (folder / "train" / "a" / "3.gif").write_bytes(b"")
    for workers in (0, 2):
        with pytest.warns(UserWarning, match="skipped 3 files .*: train/a/2.png, train/a/3.gif, train/b/1.jpg") as told:
            data = Photos.from_folder(folder, view=SMALL, workers=workers, skip_broken=True)
        assert data.counts.tolist() == [6, 2, 1] and told[0].filename == __file__
    assert len(list(Batches(data, 4))) == 3
    truncate(folder / "train" / "c" / "0.jpg")
    with pytest.raises(ValueError, match="class 'c': got 1 files, none of them readable"):
        Photos.from_folder(folder, skip_broken=True)


def test_a_worker_that_ends_is_told_in_one_line(whole):
    def end(_picture):
        if torch.utils.data.get_worker_info():
            os._exit(1)
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    data = Photos.from_folder(whole, view=SMALL, workers=1)
    with pytest.raises(ValueError, match=r"^workers: got one that ended \(DataLoader worker [^\n]*allowed: 0, or more"):
        list(data.stream([torch.arange(4)], end))


# ---- lists -----------------------------------------------------------------------------------------------------------

LINES = [f"train/{c}/{i}.jpg {j}" for j, (c, n) in enumerate(zip("abc", (6, 3, 1), strict=True)) for i in range(n)]


def listed(folder, lines, name="list.txt", **options):
    (folder / name).write_text(lines if isinstance(lines, str) else "\n".join(lines), encoding="utf-8")
    return Photos.from_list(folder / name, **options)


def test_a_list_names_what_the_folder_holds(whole, tmp_path):
    want = Photos.from_folder(whole)
    for data in (
        listed(tmp_path, LINES, root=whole),
        listed(tmp_path, [f"{whole}/{line}" for line in LINES]),
        listed(tmp_path, "\ufeff# a comment\r\n\r\n" + "\r\n".join(LINES) + "\r\n\r\n", root=str(whole)),
        listed(tmp_path, [line.replace(" ", "\t") for line in LINES], root=whole),
        listed(tmp_path, [line.replace(" ", ", ") for line in LINES], root=whole),
        listed(tmp_path, [f"{line[:-1]}{'Eez'[int(line[-1])]}" for line in LINES], root=whole),
    ):
        assert torch.equal(data.labels, want.labels) and data.class_names in (("0", "1", "2"), ("E", "e", "z"))
        assert [data.path(i) for i in range(10)] == [want.path(i) for i in range(10)]


def test_a_list_lies_beside_its_pictures_unless_a_root_is_named(folder):
    assert len(listed(folder, LINES)) == 10


def test_paths_have_blanks_and_labels_too_after_a_tab(tmp_path):
    for name in ("my cat 1.jpg", "my, dog.jpg"):
        noise(tmp_path / name)
    data = listed(tmp_path, ["my cat 1.jpg 0", "my, dog.jpg 1"])
    assert data.paths.tolist() == [b"my cat 1.jpg", b"my, dog.jpg"]
    assert listed(tmp_path, ["my cat 1.jpg\tblack cat", "my, dog.jpg\tdog"]).class_names == ("black cat", "dog")


def test_a_path_may_be_any_bytes(tmp_path):
    noise(tmp_path / "1.jpg").rename(tmp_path / os.fsdecode(b"caf\xe9.jpg"))
    (tmp_path / "list.txt").write_bytes(b"caf\xe9.jpg 0\n")
    assert Photos.from_list(tmp_path / "list.txt", view=SMALL)[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        (["train/c/8.jpg 2", "train/c/9.jpg 2"], {}, r"line 11: got train/c/8.jpg, .*; 2 of 12 files are missing"),
        (["train/a/0.jpg"], {}, "line 11: got 'train/a/0.jpg'; allowed: 'path label'"),
        (["train/a/0.jpg 0.0"], {}, "line 11: got label '0.0' among numbers"),
        (["train/a/0.jpg cat"], {}, "line 11: got label 'cat' among numbers; allowed: numbers everywhere"),
        (["train/a/0.jpg -1"], {}, "line 11: got label -1; allowed: 0 to 2"),
        (["train/a/0.jpg 4"], {}, "got labels up to 4, but none is 3 \\(1 are missing\\); allowed: each of 0, 1, 2"),
        (["train/a/0.jpg 99999999999999999999"], {}, "none is 3 \\(99999999999999999996 are missing"),
        (["train/a/0.jpg 2"], {}, "line 11: got train/a/0.jpg with label 2, and with 0 in line 1; allowed: one label"),
        ([], {"class_names": ["a", "b"]}, "line 10: got label 2; allowed: 0 to 1"),
        (["\0.jpg 0"], {}, "line 11: got .*; allowed: 'path label'"),
        (["./train/a/0.jpg 2"], {}, "line 11: got train/a/0.jpg with label 2, and with 0 in line 1"),
        (["train//a/../a/0.jpg 2"], {}, "line 11: got .*0.jpg with label 2, and with 0 in line 1"),
        (["train/a 0"], {}, "line 11: got train/a, which is no file in .*; 1 of 11 files are missing"),
        (['"train/a/0.jpg",0'], {}, "line 11: got .*missing; allowed: paths without quotation marks"),
        ([], {"class_names": ["3", "7"]}, "line 10: got label 2; allowed: 0 to 1: a whole number is a place in"),
    ],
)
def test_a_line_that_is_wrong_is_named_with_its_number(whole, tmp_path, more, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        listed(tmp_path, LINES + more, root=whole, **options)
    assert "\n" not in str(caught.value) and "list.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ([], {}, "got no line; allowed: lines 'path label'"),
        ([line[:-1] + str(int(line[-1]) + 1) for line in LINES], {}, "none is 0 .*; do they begin with 1?"),
        ([line[:-2] + " 1.5" for line in LINES], {}, "line 1: got label '1.5'; allowed: whole numbers from 0"),
        ([line[:-1] + "x" for line in LINES], {"class_names": ["a"]}, "line 1: got label 'x'; allowed: .*or names"),
        ([line[:-1] + "x" for line in LINES], {"class_names": ["x", "y", "x"]}, "class_names: got 'x' several times"),
        ([f'{line[:-2]},"{line[-1]}"' for line in LINES], {}, "line 1: got label '\"0\"'; .* without quotation marks"),
        (["path,label", *LINES], {}, "line 1: got label 'label' among numbers; .* the first line looks like a header"),
        (["image_path n", *[v[:-1] + "x" for v in LINES]], {}, "line 1: got image_path, .*line looks like a header"),
        (
            ["file name", *[v[:-1] + "x" for v in LINES]],
            {"skip_missing": True},
            "1 of 11 files are missing; .* looks like a header",
        ),
        ([f"train/{line}" for line in LINES], {}, "line 1: .* is not in .*; 10 of 10 files are missing"),
        ([f"no/{line}" for line in LINES], {"skip_missing": True}, "10 of 10 files are missing; allowed: root="),
    ],
)
def test_a_list_that_is_wrong_is_refused(whole, tmp_path, lines, options, message):
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, lines, root=whole, **options)


@pytest.mark.parametrize(("root", "lines"), [(".", LINES), ("copy/train", LINES), (".", [v[6:] for v in LINES])])
def test_a_root_that_is_one_folder_off_is_told(folder, root, lines):
    with pytest.raises(ValueError, match="files are missing") as caught:
        listed(folder.parent, lines, root=folder.parent / root)
    assert (f"(they are in {folder})" in str(caught.value)) == (lines is LINES)


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "no.txt"):
        with pytest.raises(ValueError, match=f"{path}: got .*; allowed: a file with lines 'path label'"):
            Photos.from_list(path)
    (tmp_path / "1.jpg").write_bytes(os.urandom(5000) + b"\0")
    with pytest.raises(ValueError, match=r"1.jpg, line .*allowed: 'path label'"):
        Photos.from_list(tmp_path / "1.jpg")


def test_missing_files_can_be_left_out_and_are_told(whole, tmp_path):
    with pytest.warns(UserWarning, match="skipped 1 files that are not there, the first of them train/c/8.jpg") as told:
        data = listed(tmp_path, [*LINES, "train/c/8.jpg 2"], root=whole, skip_missing=True)
    assert len(data) == 10 and told[0].filename == __file__
    with pytest.warns(UserWarning, match="no image of 2"):
        listed(tmp_path, [*LINES[:9], "train/c/8.jpg 2"], root=whole, skip_missing=True)


def test_a_list_of_tests_takes_the_classes_of_training_and_lacks_some(whole, tmp_path):
    with pytest.warns(UserWarning, match="no image of x, z"):
        data = listed(tmp_path, LINES[6:9], root=whole, class_names=["x", "y", "z"])
    assert data.counts.tolist() == [0, 3, 0]


def test_a_file_named_twice_is_told(whole, tmp_path):
    with pytest.warns(UserWarning, match="1 lines name a file once more"):
        assert len(listed(tmp_path, [*LINES, LINES[0]], root=whole)) == 11


def test_a_path_is_read_in_any_spelling(whole, tmp_path):
    spelled = [LINES[0], f"./{LINES[1]}", LINES[2].replace("/", "//"), f"{whole}//{LINES[3]}", *LINES[4:]]
    assert listed(tmp_path, spelled, root=whole).digest() == listed(tmp_path, LINES, root=whole).digest()


def test_a_link_to_a_file_is_one_and_what_is_no_file_is_missing(folder):
    (folder / "link.jpg").symlink_to(folder / "train/a/0.jpg")
    (folder / "broken.jpg").symlink_to(folder / "gone.jpg")
    os.mkfifo(folder / "pipe.jpg")
    with pytest.warns(UserWarning, match="skipped 2 files that are not there, the first of them broken.jpg"):
        data = listed(folder, [*LINES, "link.jpg 0", "broken.jpg 0", "pipe.jpg 1"], skip_missing=True)
    assert data.counts.tolist() == [7, 3, 1]


def test_names_that_are_numbers_are_told_from_places(whole, tmp_path):
    with pytest.warns(UserWarning, match="labels are places in class_names, from 0, although those are numbers too"):
        data = listed(tmp_path, LINES, root=whole, class_names=["7", "0", "1"])
    assert data.class_names == ("7", "0", "1") and data.counts.tolist() == [6, 3, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed(tmp_path, LINES, root=whole, class_names=["0", "1", "2"])


# ---- the stream ------------------------------------------------------------------------------------------------------


def streamed(data, parts, augment=None, seed=0, **options):
    return torch.cat(list(data.stream(parts, augment, torch.Generator().manual_seed(seed), **options)))


def test_a_stream_gives_what_the_view_makes_of_each_file(whole):
    data, part = Photos.from_folder(whole, view=SMALL), torch.tensor([7, 2, 2])
    want = SMALL.to_float(torch.stack([SMALL.plain()(SMALL.open(data.path(i))) for i in part.tolist()]))
    assert torch.equal(streamed(data, [part]), want)
    assert [len(images) for images, _ in Batches(data, 4)] == [4, 4, 2]


def test_augmentation_is_the_same_to_the_bit_with_any_number_of_workers(whole):
    data, order = Photos.from_folder(whole, view=SMALL), torch.tensor([3, 3, 9, 0, 5, 8, 8])
    augment = SMALL.augmented(color=0.4)
    runs = [streamed(replace(data, workers=w), order.split(b), augment) for w, b in ((0, 3), (2, 3), (1, 7))]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[0][0], runs[0][1]), "the same image at two places of the epoch"
    assert not torch.equal(runs[0], streamed(data, order.split(3), augment, seed=1))
    generator = torch.Generator().manual_seed(0)
    epochs = [torch.cat(list(data.stream(order.split(3), augment, generator))) for _ in range(2)]
    assert torch.equal(epochs[0], runs[0]) and not torch.equal(epochs[1], runs[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_that_share_an_epoch_draw_what_one_process_draws(whole, workers):
    data, order, places = Photos.from_folder(whole, view=SMALL), torch.tensor([3, 3, 9, 0, 5, 8, 8]), torch.arange(7)
    one = streamed(data, order.split(3), SMALL.augmented())
    for rank in range(2):
        parts, mine = ([whole_batch[rank::2] for whole_batch in v.split(4)] for v in (order, places))
        got = streamed(replace(data, workers=workers), parts, SMALL.augmented(), order=mine)
        assert torch.equal(got, one[torch.cat(mine)])


def some_of_all(picture):
    """An augmentation of one's own that draws from all three generators."""
    numbers = [random.randrange(256), np.random.randint(256), int(torch.randint(256, ()))]
    return torch.tensor(numbers, dtype=torch.uint8)[:, None, None].expand(3, 2, 2)


def test_an_augmentation_of_ones_own_repeats_whatever_it_draws_from(whole):
    data, parts = Photos.from_folder(whole, view=SMALL), torch.arange(10).split(4)
    runs = [streamed(replace(data, workers=w), parts, some_of_all) for w in (0, 2)]
    assert torch.equal(*runs) and all(len(set(runs[0][:, k, 0, 0].tolist())) > 5 for k in range(3))


@pytest.mark.parametrize("workers", [0, 1])
def test_streaming_leaves_all_generators_as_they_were(whole, workers):
    data = Photos.from_folder(whole, view=SMALL, workers=workers)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    streamed(data, [torch.arange(3)], some_of_all)
    streamed(data, [torch.arange(3)])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())


def test_workers_end_with_the_epoch_and_when_it_is_left(whole):
    data = Photos.from_folder(whole, view=SMALL, workers=2)
    list(Batches(data, 4))
    assert not children()
    for _images, _labels in Batches(data, 2):
        assert len(children()) == 2
        break
    assert not children()
    with pytest.raises(ZeroDivisionError):
        for _images, _labels in Batches(data, 2):
            1 / 0  # noqa: B018
    assert not children()


def test_between_processes_images_are_bytes(whole):
    data = Photos.from_folder(whole, view=SMALL)
    assert photos_file._read_part(data, SMALL.plain(), (None, [0, 1])).dtype == np.uint8


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (lambda picture: 3, "augment: got <lambda>, which gives int; allowed: a function of an RGB picture"),
        (random_flip, "augment: got random_flip, which fails on a picture"),
        (lambda p: torch.zeros(3, 2, 2), "which gives torch.float32"),
    ],
)
def test_an_augmentation_that_gives_no_pictures_is_refused_before_a_file_is_read(whole, augment, message, workers):
    with pytest.raises(ValueError, match=message):
        list(Photos.from_folder(whole, workers=workers).stream([torch.arange(2)], augment))


def test_an_augmentation_that_gives_several_sizes_is_refused(whole):
    def some_size(picture):
        return torch.zeros(3, 2, int(torch.randint(2, 99, ())), dtype=torch.uint8)

    with pytest.raises(ValueError, match=r"augment: got images of \[.*; allowed: one size for all"):
        streamed(Photos.from_folder(whole), [torch.arange(4)], some_size)


@pytest.mark.filterwarnings("ignore:Got pickle error")  # torch says it too
def test_where_python_does_not_fork_workers_read_the_same(whole):
    """Only what can be sent to another process gets there."""
    data, before = Photos.from_folder(whole, view=SMALL, workers=1), multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        with pytest.raises(ValueError, match=r"workers: got 1, which cannot be started .*allowed: 0, or an augment"):
            list(data.stream([torch.arange(2)], lambda p: torch.zeros(3, 2, 2, dtype=torch.uint8)))
        spawned = streamed(data, [torch.arange(3)], some_of_all)
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert torch.equal(spawned, streamed(data, [torch.arange(3)], some_of_all))


def test_images_come_to_the_device_of_the_labels(whole):
    data = Photos.from_folder(whole, view=SMALL)
    with pretend_gpu() as gpu:
        there = data.to(gpu.device)
        assert there.device == gpu.device and there.subset(torch.tensor([1, 0])).path(0) == data.path(1)
        assert [images.device for images, _ in Batches(there, 4)] == [gpu.device] * 3
        assert torch.equal(first_input(there).cpu(), first_input(data))


# ---- data like any other ---------------------------------------------------------------------------------------------


def test_photographs_are_data_like_images_in_memory(whole):
    data = Photos.from_folder(whole, view=SMALL, workers=0)
    assert data.only(["c", "a"]).counts.tolist() == [1, 6] and data.only(["c", "a"]).path(6) == data.path(9)
    assert data.subset(data.labels == 1).paths.tolist() == data.paths[6:9].tolist()
    assert long_tailed(data, [3, 2, 1], seed=0).counts.tolist() == [3, 2, 1]
    drawn = [
        i for _, _, part in Batches(data, 4, sampler=ClassBalancedSampler(data.labels)).with_indices() for i in part
    ]
    assert len(drawn) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": ["a"]}, "paths: got list; allowed: bytes in an array of shape"),
        ({"paths": np.array(["a"])}, "paths: got <U1 of shape"),
        ({"paths": np.array([b"a"])}, "labels: got 10 for 1 paths; allowed: one for each path"),
        ({"workers": -1}, "workers: got -1; allowed: an integer of at least 0"),
        ({"workers": None}, "workers: got None"),
        ({"class_names": ("a", "a", "b")}, "class_names: got a, a, b; allowed: every name once"),
    ],
)
def test_what_is_wrong_with_photographs_is_named(whole, change, message):
    with pytest.raises(ValueError, match=message):
        replace(Photos.from_folder(whole), **change)


def test_training_prediction_and_features_take_photographs(whole, tmp_path):
    data = Photos.from_folder(whole, view=SMALL)
    runs = []
    for workers in (0, 2):
        torch.manual_seed(0)
        model = SmallCNN(3, in_channels=3)
        rows = fit(model, replace(data, workers=workers), epochs=2, batch_size=4, lr=0.05, progress=False)
        runs.append(([row["loss"] for row in rows], predict(model, replace(data, workers=workers))))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    assert extract_features(model, data, batch_size=3).shape == (10, model.feature_dim)
    path = tmp_path / "training.pt"
    fit(model, data, epochs=1, batch_size=4, checkpoint=path, progress=False)
    for other in (replace(data, view=View(size=17)), data.subset(torch.arange(9))):
        with pytest.raises(ValueError, match="was written with other settings"):
            fit(model, other, epochs=1, batch_size=4, checkpoint=path, progress=False)
    with pytest.raises(ValueError, match="was written with other settings: augment"):
        fit(model, data, epochs=1, batch_size=4, checkpoint=path, progress=False, augment=SMALL.augmented((0.9, 1.0)))


def test_methods_take_photographs(whole):
    train, held = (Photos.from_folder(whole, split, view=SMALL) for split in ("train", "validation"))
    options = {"network": partial(SmallCNN, in_channels=3), "epochs": 2, "batch_size": 4}
    found = train_methods(["cross-entropy", "cRT"], train, held, **options)
    assert {name: tuple(one.logits(held).shape) for name, one in found.items()} == {
        "cross-entropy": (6, 3),
        "cRT": (6, 3),
    }


# ---- what tells data apart -------------------------------------------------------------------------------------------


def test_a_copy_elsewhere_has_the_same_digest_and_other_data_another_one(whole, folder):
    data = Photos.from_folder(whole)
    same = Photos.from_folder(folder)
    assert data.digest() == same.digest() == replace(same, workers=3).digest()
    others = {
        "view": data.with_view(SMALL),
        "a class name": replace(data, class_names=("a", "b", "d")),
        "a label": replace(data, labels=data.labels.flip(0)),
        "order": data.subset(torch.arange(10).flip(0)),
        "fewer": data.subset(torch.arange(9)),
        "split": Photos.from_folder(whole, "validation"),
    }
    path = Path(same.path(4))
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    found = {what: other.digest() for what, other in others.items()} | {"one bit": same.digest()}
    path.rename(path.with_name("other.jpg"))
    found["a name"] = Photos.from_folder(folder).digest()
    assert len({data.digest(), *found.values()}) == 1 + len(found), found


def test_contents_are_read_once_in_a_process(folder, monkeypatch):
    data = Photos.from_folder(folder)
    first = data.digest()
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    assert data.digest() == first and data.subset(torch.arange(3)).digest() != first


def test_a_file_that_is_gone_has_no_digest(folder):
    data = Photos.from_folder(folder)
    Path(data.path(3)).unlink()
    with pytest.raises(ValueError, match=r"3.jpg cannot be read"):
        data.digest()


# ---- published data sets ---------------------------------------------------------------------------------------------

CLASSES = ("n01", "n02")
TINY = Published("tiny", ("wnids.txt",), "train/", {"train": (4, 2, 2, 2), "validation": (2, 2, 1, 1)})
LISTS = {"imagenet-lt": "ImageNet_LT", "places-lt": "Places_LT", "inaturalist-2018": "iNaturalist18"}


def stand_in(folder, name, numbers=(3, 1)):
    """Pictures and list of the same layout, and what to expect of them."""
    top = "train_val2018/Aves" if name == "inaturalist-2018" else "train"
    classes = ("0", "1") if name == "inaturalist-2018" else CLASSES
    lines = [f"{top}/{c}/{i}.jpg {j}" for j, (c, n) in enumerate(zip(classes, numbers, strict=True)) for i in range(n)]
    for line in lines:
        noise(folder / line.split()[0])
    (folder / f"{LISTS[name]}_train.txt").write_text("\n".join(lines) + "\n")
    expected = {"train": (sum(numbers), 2, max(numbers), min(numbers))}
    return {name: replace(PUBLISHED[name], counts=expected)}


@pytest.mark.parametrize("name", LISTS)
def test_published_lists_are_read_and_counted(tmp_path, monkeypatch, name):
    about = stand_in(tmp_path, name)
    data = load_photos(name, "train", root=tmp_path, view=SMALL, published=about)
    assert data.counts.tolist() == [3, 1] and data.view == SMALL and data[3][0].shape == (3, 16, 16)
    assert data.class_names == (("0", "1") if name == "inaturalist-2018" else CLASSES)
    with pytest.raises(ValueError, match=f"{name}, train: got 4 images, 2 classes, 3 down to 1 .*allowed: as pub"):
        load_photos(name, "train", root=tmp_path)
    lists = tmp_path / "lists" / LISTS[name]
    lists.mkdir(parents=True)
    shutil.move(tmp_path / f"{LISTS[name]}_train.txt", lists)
    monkeypatch.setenv("COURSE_DATA", str(tmp_path / "lists"))
    assert load_photos(name, "train", root=tmp_path, published=about).digest() == data.with_view(View()).digest()


def test_tiny_imagenet_is_read_as_it_is_unpacked(tmp_path):
    folder = tmp_path / "tiny"
    for c in CLASSES:
        for i in range(2):
            noise(folder / "train" / c / "images" / f"{c}_{i}.JPEG")
        (folder / "train" / c / f"{c}_boxes.txt").write_text("")
    for i in range(2):
        noise(folder / "val" / "images" / f"val_{i}.JPEG")
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    (folder / "wnids.txt").write_text("n02\nn01\n")
    about = {"tiny-imagenet": TINY}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = load_photos("tiny-imagenet", "train", root=tmp_path, published=about)
        held = load_photos("tiny-imagenet", "validation", root=folder, published=about)
    assert train.class_names == held.class_names == CLASSES and train.counts.tolist() == [2, 2]
    assert held.labels.tolist() == [1, 0] and held.path(0).endswith("val_0.JPEG")
    with pytest.raises(ValueError, match="split: got 'test' for 'tiny-imagenet'; allowed: train, validation"):
        load_photos("tiny-imagenet", "test", root=tmp_path)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\nval_1.JPEG n01\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt, line 2: got 'val_1.JPEG n01'; allowed: file, "):
        load_photos("tiny-imagenet", "validation", root=tmp_path, published=about)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn03\n")
    with pytest.raises(ValueError, match="line 1: got label 'n03'"):
        load_photos("tiny-imagenet", "validation", root=tmp_path, published=about)
    (folder / "val" / "val_annotations.txt").write_bytes(b"val_0.JPEG\tn\xff\n")
    with pytest.raises(ValueError, match=r"val_annotations.txt: got no UTF-8 at byte 12; allowed: the file as pub"):
        load_photos("tiny-imagenet", "validation", root=tmp_path, published=about)
    shutil.rmtree(folder / "train")
    with pytest.raises(
        FileNotFoundError, match=r"no folder train beside .*wnids\.txt\. Put wnids\.txt, .* beside train/"
    ):
        load_photos("tiny-imagenet", "train", root=tmp_path, published=about)


def test_inaturalist_is_read_from_its_json_too(tmp_path):
    about = stand_in(tmp_path, "inaturalist-2018")
    want = load_photos("inaturalist-2018", "train", root=tmp_path, published=about)
    lines = [line.split() for line in (tmp_path / "iNaturalist18_train.txt").read_text().splitlines()]
    (tmp_path / "iNaturalist18_train.txt").unlink()
    images = [{"id": 70 + k, "file_name": path} for k, (path, _) in enumerate(lines)]
    labels = [{"image_id": 70 + k, "category_id": int(label)} for k, (_, label) in enumerate(lines)]
    file = tmp_path / "train2018.json"
    file.write_text(json.dumps({"images": images[::-1], "annotations": labels}))
    assert load_photos("inaturalist-2018", "train", root=tmp_path, published=about).digest() == want.digest()
    for odd in ("[", "[]", json.dumps({"images": images[1:], "annotations": labels})):
        file.write_text(odd)
        with pytest.raises(ValueError, match=r"train2018.json: got something else .*allowed: images with id and"):
            load_photos("inaturalist-2018", "train", root=tmp_path, published=about)
    images[0]["file_name"] = 5
    file.write_text(json.dumps({"images": images, "annotations": labels}))
    with pytest.raises(ValueError, match=r"train2018.json: got file_name 5; allowed: a path in quotation marks"):
        load_photos("inaturalist-2018", "train", root=tmp_path, published=about)


@pytest.mark.parametrize(("name", "file"), [("imagenet-lt", "ImageNet_LT_val.txt"), ("tiny-imagenet", "wnids.txt")])
def test_what_belongs_where_is_said_in_one_line(tmp_path, monkeypatch, name, file):
    monkeypatch.delenv("COURSE_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match=f"{name}: {file} is in none of {tmp_path}, .*Put {file}, .* beside "):
        load_photos(name, "validation", root=tmp_path)
    with pytest.raises(ValueError, match="name: got 'imagenet'; allowed: tiny-imagenet, imagenet-lt, places-lt"):
        load_photos("imagenet", "train")


def test_published_numbers_agree_with_each_other():
    for name, about in PUBLISHED.items():
        for split, (images, classes, most, fewest) in about.counts.items():
            assert classes * fewest <= images <= classes * most, (name, split)
            assert split == "train" or images == classes * most == classes * fewest
