"""files.py: every picture a folder may hold, how folders are laid out, and files that are damaged."""

import os
import struct
import time
import tracemalloc
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from test_data import damaged, save, write_fashion

from course_utils.data import load_images
from course_utils.experiments.studies import STUDIES
from course_utils.experiments.study_data import load_splits
from course_utils.machinery import files

UPRIGHT = np.zeros((30, 40, 3), np.uint8)  # every corner has its own colour
UPRIGHT[:15, :20], UPRIGHT[:15, 20:], UPRIGHT[15:, :20] = (240, 0, 0), (0, 240, 0), (0, 0, 240)
INVERSE = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # {EXIF orientation: the transposition that a camera did}
CORNERS = ((4, 4), (4, 35), (25, 4), (25, 35))
GREYS = np.array([[0, 1000], [25_700, 65_535]], np.uint16)


def read(folder, **options):
    """(H, W, channels) of the only picture of a folder without splits."""
    got = load_images(folder, "all", **options).images
    assert len(got) == 1
    return got[0].permute(1, 2, 0).numpy()


def written(folder, content, name="1.png", **options):
    """A folder with one class that has one picture: an array, an image, or the bytes of a file."""
    path = folder / "a" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        (content if isinstance(content, Image.Image) else Image.fromarray(content)).save(path, **options)
    return folder


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colours, rows, before=b"", after=b""):
    """A PNG by hand, for what Pillow does not write; `before`, `after`: chunks around the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + head + before + pixels + after + chunk(b"IEND", b"")


# ---- upright ---------------------------------------------------------------------------------------------------------


def as_stored(orientation):
    image, exif = Image.fromarray(UPRIGHT), Image.Exif()
    exif[274] = orientation
    return image.transpose(Image.Transpose(INVERSE[orientation])) if orientation > 1 else image, exif


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_photographs_are_turned_upright_and_count_as_equal_in_size(tmp_path, suffix):
    for orientation in range(1, 9):
        image, exif = as_stored(orientation)
        written(tmp_path, image, f"{orientation}.{suffix}", exif=exif)
    got = load_images(tmp_path, "all").images
    assert got.shape == (8, 3, 30, 40), "sideways files have the size of the upright ones"
    for y, x in CORNERS:
        off = (got[:, :, y, x].int() - torch.from_numpy(UPRIGHT[y, x]).int()).abs()
        assert off.max() < 12, (y, x)


def test_an_orientation_behind_the_pixels_counts_too(tmp_path):
    """PNG allows that; the size is known only after the whole file is read."""
    image, exif = as_stored(6)
    rows = [row.tobytes() for row in np.asarray(image)]
    written(tmp_path, png(30, 40, 8, 2, rows, after=chunk(b"eXIf", exif.tobytes()[6:])))
    assert read(tmp_path, size=20)[3, 16].tolist() == [0, 240, 0]
    written(tmp_path, UPRIGHT, "2.png")
    got = load_images(tmp_path, "all").images
    assert got.shape == (2, 3, 30, 40) and torch.equal(got[0], got[1])


def test_damaged_exif_data_leave_a_photograph_as_it_is_stored(tmp_path):
    written(tmp_path, UPRIGHT, "1.jpg", exif=b"Exif\0\0no header at all", quality=100)
    assert np.abs(read(tmp_path).astype(int)[4, 4] - UPRIGHT[4, 4]).max() < 12


def test_a_jpeg_in_rgb_is_what_pillow_reads(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    want = Image.open(written(tmp_path, pixels, "1.jpg") / "a" / "1.jpg").convert("RGB")
    assert np.array_equal(read(tmp_path), np.asarray(want))
    assert np.array_equal(read(tmp_path, size=9), np.asarray(want.resize((9, 9), Image.Resampling.BILINEAR)))


# ---- transparent parts -----------------------------------------------------------------------------------------------

ALPHA = np.array([[(0, 0, 0, 255), (0, 0, 0, 0)], [(9, 20, 30, 255), (10, 20, 30, 128)]], np.uint8)
HALF = [round(value * 128 / 255 + 255 * 127 / 255) for value in (10, 20, 30)]


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "tga"])
def test_transparent_parts_are_white(tmp_path, suffix):
    written(tmp_path, ALPHA, f"1.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert read(tmp_path).reshape(-1, 3).tolist() == [[0, 0, 0], [255, 255, 255], [9, 20, 30], HALF]


def test_a_black_glyph_on_nothing_stays_a_glyph(tmp_path):
    glyph = np.zeros((8, 8, 4), np.uint8)
    glyph[2:6, 3:5, 3] = 255
    for mode in ("RGBA", "LA", "PA"):
        written(tmp_path / mode, Image.fromarray(glyph).convert(mode), "1.tif" if mode == "PA" else "1.png")
        got = read(tmp_path / mode)
        assert got.shape == (8, 8, 1) and np.array_equal(got[..., 0], 255 - glyph[..., 3]), mode


@pytest.mark.parametrize(("suffix", "transparent"), [("png", 0), ("png", b"\x00\xff\xff"), ("gif", 0)])
def test_transparent_colours_of_a_palette_are_white(tmp_path, suffix, transparent):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 50, 60, 70, 255, 0, 0])
    written(tmp_path, image, f"1.{suffix}", transparency=transparent)
    assert read(tmp_path).tolist() == [[[255, 255, 255], [50, 60, 70], [255, 0, 0]]]


@pytest.mark.parametrize(
    ("depth", "colours", "row", "transparent", "want"),
    [
        (8, 0, bytes([0, 85, 170, 255]), (85,), [0, 255, 170, 255]),
        (4, 0, bytes([0x05, 0xAF]), (5,), [0, 255, 170, 255]),
        (2, 0, bytes([0b00011011]), (1,), [0, 255, 170, 255]),
        (1, 0, bytes([0b01010000]), (0,), [255, 255, 255, 255]),
        (1, 0, bytes([0b01010000]), (1,), [0, 255, 0, 255]),
        (16, 0, struct.pack(">4H", 0, 1000, 25_700, 65_535), (1000,), [0, 255, 100, 255]),
        (8, 2, bytes([0, 0, 0, 8, 8, 8, 9, 9, 9, 7, 7, 7]), (8, 8, 8), [0, 255, 9, 7]),
        (16, 2, struct.pack(">12H", *[0] * 3, *[2100] * 3, *[2600] * 3, *[1800] * 3), (2100,) * 3, [0, 255, 10, 7]),
    ],
)
def test_the_transparent_colour_of_a_png_is_white_in_every_depth(tmp_path, depth, colours, row, transparent, want):
    trns = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    written(tmp_path, png(4, 1, depth, colours, [row], before=trns))
    assert read(tmp_path)[0, :, 0].tolist() == want


# ---- depth and colours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["16.png", "16.tif", "16.pgm", "32.tif", "float.tif", "jp2"])
def test_deep_grey_pictures_keep_their_greys_by_one_rule(tmp_path, kind):
    values = {"32": GREYS.astype(np.int32), "float": (GREYS / 65_535).astype(np.float32)}
    written(tmp_path, values.get(kind.split(".")[0], GREYS), "1." + kind.split(".")[-1])
    first, dark, middle, last = read(tmp_path).ravel().tolist()
    assert (first, middle, last) == (0, 100, 255) and dark in (3, 4)


def test_8_and_16_bits_and_16_bit_colours_agree_in_one_folder(tmp_path):
    values = np.arange(0, 65_536, 37, dtype=np.uint16)[:1764].reshape(42, 42)
    written(tmp_path, values, "1.png")
    written(tmp_path, (values >> 8).astype(np.uint8), "2.png")
    written(tmp_path, png(42, 42, 16, 2, [np.repeat(row, 3).astype(">u2").tobytes() for row in values]), "3.png")
    got = load_images(tmp_path, "all").images
    assert got.shape == (3, 1, 42, 42) and torch.equal(got[0], got[1]) and torch.equal(got[0], got[2])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GREYS.astype(np.int32) * 10, "got 0 to 655350; allowed: 0 to 65535"),
        (GREYS.astype(np.int32) - 1, "got -1 to 65534; allowed: 0 to 65535"),
        (GREYS.astype(np.float32), r"got 0.0 to 65535.0; allowed: 0 to 1"),
        (np.full((2, 2), np.nan, np.float32), "got nan to nan; allowed: 0 to 1"),
    ],
)
def test_greys_without_a_scale_are_refused(tmp_path, values, message):
    written(tmp_path, values, "deep.tif")
    with pytest.raises(ValueError, match=f"deep.tif is not a readable image: grey values: {message}"):
        load_images(tmp_path, "all")
    written(tmp_path, GREYS, "good.png")
    with pytest.warns(UserWarning, match="^all: skipped 1 files that are no readable images: a/deep.tif$"):
        assert len(load_images(tmp_path, "all", skip_broken=True)) == 1


def test_12_bits_in_files_of_16_are_said_to_be_dark(tmp_path):
    written(tmp_path, GREYS >> 4)
    with pytest.warns(UserWarning, match="^all: the 16-bit pictures use less than a sixteenth of their range"):
        read(tmp_path)
    written(tmp_path, GREYS, "2.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_images(tmp_path, "all")


@pytest.mark.parametrize(
    ("mode", "name"),
    [("CMYK", "1.jpg"), ("CMYK", "1.tif"), ("YCbCr", "1.tif"), ("LAB", "1.tif"), ("P", "1.png"), ("P", "1.bmp")],
)
def test_colours_stay_what_they_are_in_every_mode(tmp_path, mode, name):
    image = Image.new("RGB", (6, 4), (200, 100, 50))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, *profiles, outputMode="LAB")
    elif mode == "P":
        image = image.quantize(2)
    written(tmp_path, image if image.mode == mode else image.convert(mode), name)
    assert np.abs(read(tmp_path).reshape(-1, 3).astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "pbm"])
def test_black_and_white_is_0_and_255(tmp_path, suffix):
    written(tmp_path, Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1"), f"1.{suffix}")
    assert read(tmp_path)[..., 0].tolist() == [[0, 255, 0]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif", "mpo"])
def test_an_animated_file_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (200 - 90 * i, 100, 50)) for i in range(3)]
    written(tmp_path, frames[0], f"1.{suffix}", save_all=True, append_images=frames[1:])
    assert np.abs(read(tmp_path)[4, 4].astype(int) - (200, 100, 50)).max() <= 3


# ---- files that are damaged, or too large ----------------------------------------------------------------------------

LARGE_TEXT = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(3_000_000)))
BAD = {
    "bomb.png": png(14_000, 14_000, 8, 0, [bytes(10)]),  # Pillow's error
    "small bomb.png": png(10_000, 10_000, 8, 0, [bytes(10)]),  # Pillow's warning
    "text.png": png(1, 1, 8, 0, [b"\0\0"], before=LARGE_TEXT),
    "head.png": png(1, 1, 8, 0, [b"\0\0"])[:20],
    "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "page.jpg": b"<!DOCTYPE html><html></html>",
    "empty.bmp": b"",
    "letter.ppm": b"P6 x y 255\n",
}


@pytest.mark.parametrize("name", BAD)
def test_whatever_is_wrong_with_a_file_names_it_and_can_be_skipped(tmp_path, name):
    save(written(tmp_path, BAD[name], name) / "a" / "good.png", (1, 2, 3))
    with pytest.raises(ValueError, match=f"{name} is not a readable image: .*skip_broken"):
        load_images(tmp_path, "all")
    with pytest.warns(UserWarning, match=f"^all: skipped 1 files that are no readable images: a/{name}$"):
        got = load_images(tmp_path, "all", skip_broken=True)
    assert got.images.shape == (1, 3, 5, 6)


def test_a_broken_file_of_another_split_is_named_when_that_is_read(tmp_path):
    for split in ("train", "test"):
        save(written(tmp_path / split, b"", "bad.png") / "a" / "good.png", (1, 2, 3))
    (tmp_path / "train" / "a" / "bad.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_images(tmp_path, "train", skip_broken=True)) == 1
    with pytest.warns(UserWarning, match="^test: skipped 1 files"):
        load_images(tmp_path, "test", skip_broken=True)


KINDS = ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "pgm", "tga", "pcx", "sgi", "jp2", "ico", "dds", "im", "mpo")


@pytest.mark.filterwarnings("ignore")  # Pillow's own, of what it finds odd in a file
def test_damaged_pictures_are_refused_by_name_or_skipped(tmp_path, record_property):
    """A file that is cut off gives its very pixels or none; one with altered bytes may give others."""
    random = np.random.default_rng(14)
    image = Image.fromarray(random.integers(0, 256, (21, 26, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    save(tmp_path / "a" / "good.png", (1, 2, 3))
    tried = refused = 0
    longest = 0.0
    for suffix in KINDS:
        path = tmp_path / "a" / f"bad.{suffix}"
        options = {"exif": exif} if suffix in ("jpg", "tif", "webp", "png") else {}
        (image.convert("L") if suffix == "pgm" else image).save(path, **options)
        content, whole = path.read_bytes(), load_images(tmp_path, "all", size=8)
        for turn in range(10):
            path.write_bytes(damaged(random, content, cut=turn % 2))
            began = time.perf_counter()
            try:
                got = load_images(tmp_path, "all", size=8)
                assert not turn % 2 or torch.equal(got.images, whole.images), f"{suffix} {turn}: other pixels"
            except ValueError as error:
                assert path.name in str(error)
                with pytest.warns(UserWarning, match=f"a/{path.name}"):
                    got = load_images(tmp_path, "all", size=8, skip_broken=True)
                assert torch.equal(got.images, whole.images[1:])
                refused += 1
            tried += 1
            longest = max(longest, time.perf_counter() - began)
        path.unlink()
    assert tried >= 120 and refused > tried / 2 and longest < 5
    record_property("note", f"{tried} damaged pictures: {refused} refused by name, {tried - refused} read, 0 crashes")


# ---- how folders are laid out ----------------------------------------------------------------------------------------


def test_every_kind_of_picture_below_a_class_is_read_and_the_rest_is_counted(tmp_path):
    suffixes = ["png", "JPG", "jpeg", "webp", "tif", "TIFF", "bmp", "gif", "ppm"]
    for number, suffix in enumerate(suffixes):
        save(tmp_path / "cat" / ("deep/er" if number % 2 else "") / f"{number}.{suffix}", (1, 2, 3))
    save(tmp_path / "dog" / "only" / "below" / "1.png", (1, 2, 3))
    for name in ("1.txt", "sub/2.TXT", "film.mp4", "photo.heic", "README"):
        (tmp_path / "cat" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "cat" / name).write_text("")
    save(tmp_path / "stray.png", (1, 2, 3))
    with pytest.warns(UserWarning) as caught:
        got = load_images(tmp_path, "all")
    assert got.class_names == ("cat", "dog") and got.counts.tolist() == [len(suffixes), 1]
    (said,) = (str(w.message) for w in caught)
    assert said.startswith("all: left out 2 .txt, ")
    assert set(said.removeprefix("all: left out ").split(", ")) == {
        "2 .txt",
        "1 .mp4",
        "1 .heic",
        "1 without suffix",
        "1 .png in no class folder",
    }


def test_what_systems_put_into_folders_is_no_news(tmp_path):
    save(tmp_path / "train" / "cat" / "1.png", (1, 2, 3))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/1.png", "__MACOSX/1.png", "@eaDir/1.png"):
        for where in (tmp_path, tmp_path / "train", tmp_path / "train" / "cat"):
            (where / name).parent.mkdir(exist_ok=True)
            (where / name).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_images(tmp_path, "train").counts.tolist() == [1]


def test_files_come_in_the_same_order_everywhere(tmp_path):
    for grey, name in enumerate(["b/1.png", "10.png", "9.png", "b.png", "a/z.png"]):
        save(tmp_path / "x" / name, grey, mode="L")
    got = load_images(tmp_path, "all").images[:, 0, 0, 0].tolist()
    assert got == [1, 2, 4, 0, 3], "10, 9, a/z, b/1, b.png"


def test_a_link_back_into_its_own_folder_counts_no_picture_twice(tmp_path):
    save(tmp_path / "data" / "cat" / "1.png", (1, 2, 3))
    save(tmp_path / "elsewhere" / "2.png", (1, 2, 3))
    try:
        (tmp_path / "data" / "cat" / "again").symlink_to(tmp_path / "data" / "cat", target_is_directory=True)
        (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data" / "cat", target_is_directory=True)
    except OSError:
        pytest.skip("this user may not make links")
    assert load_images(tmp_path / "data", "all").counts.tolist() == [2]


def test_a_name_is_one_class_however_its_accents_are_stored(tmp_path):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for name in ("car", "cat", "zoo"):
        for split in ("train", "test"):
            save(tmp_path / split / name / "1.png", (1, 2, 3))
    save(tmp_path / "train" / composed / "1.png", (7, 7, 8))
    save(tmp_path / "test" / apart / "1.png", (7, 7, 8))
    train, test = (load_images(tmp_path, split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("caf\u00e9", "car", "cat", "zoo")
    assert train.images[0, 0, 0, 0] == test.images[0, 0, 0, 0] == 7
    save(tmp_path / "train" / apart / "1.png", (1, 2, 3))
    if len(os.listdir(tmp_path / "train")) == 5:  # macOS holds both for one folder
        with pytest.raises(ValueError, match="train: got two folders called 'caf\u00e9'; allowed: every class once"):
            load_images(tmp_path, "train")


@pytest.mark.parametrize(
    ("names", "canonical"),
    [
        (("Train", "TEST"), ("train", "test")),
        (("training", "testing", "val"), ("train", "test", "validation")),
        (("train", "test", "Valid"), ("train", "test", "validation")),
        (("TRAIN", "validation"), ("train", "validation")),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, names, canonical):
    for number, name in enumerate(names):
        save(tmp_path / name / "cat" / "1.png", number, mode="L")
    for number, split in enumerate(canonical):
        assert load_images(tmp_path, split).images.unique().tolist() == [number]
    with pytest.raises(ValueError, match=f"split: got 'all' for .*; allowed: {', '.join(sorted(canonical))}"):
        load_images(tmp_path, "all")


def test_other_folders_beside_the_splits_are_ignored_with_a_word(tmp_path):
    for name in ("train/cat", "test/cat", "annotations", "extra/owl"):
        save(tmp_path / name / "1.png", (1, 2, 3))
    with pytest.warns(UserWarning, match="^ignored beside test, train: annotations, extra$"):
        assert load_images(tmp_path, "train").class_names == ("cat",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "training"), "got train and training; allowed: one folder for train"),
        (("train", "val", "validation"), "got val and validation; allowed: one folder for validation"),
        (("test", "val"), "got test, val, but no train that holds class folders; allowed: train/CLASS and test/CLASS"),
    ],
)
def test_splits_that_cannot_be_told_are_refused(tmp_path, names, message):
    for name in names:
        save(tmp_path / name / "cat" / "1.png", (1, 2, 3))
    with pytest.raises(ValueError, match=f"{tmp_path.name}: {message}"):
        load_images(tmp_path, names[0])


INTEL = [f"seg_{split}/seg_{split}/{name}" for split in ("train", "test") for name in ("glacier", "sea")]


def pictures(folder, names):
    for number, name in enumerate(names):
        save(folder / name / "1.png", number, mode="L")


@pytest.mark.parametrize(
    ("names", "seen", "instead"),
    [
        ([*INTEL, "seg_pred/seg_pred"], "seg_pred, seg_test, seg_train", "seg_train/seg_train"),
        (INTEL[2:], "seg_test", "seg_test/seg_test"),
        (["development/cat", "development/dog", "val/cat", "val/dog"], "development, val", "val"),
        (["mytrain/cat", "test"], "mytrain, test", "test"),
        (["train_images", "test_images"], "test_images, train_images", "train_images"),
        (["trainA", "trainB", "testA", "testB"], "testA, testB, trainA, trainB", "trainA"),
        (["Training Set/cat", "Validation Set/cat"], "Training Set, Validation Set", "Training Set/cat"),
        (["train2017", "val2017"], "train2017, val2017", "train2017"),
        (["trainset/a/cat", "testset/a/cat", "docs"], "docs, testset, trainset", "trainset/a/cat"),
        (["train", "test"], "test, train", "train"),
        (["train"], "train", "train"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_folders_that_look_like_splits_are_no_classes(tmp_path, names, seen, instead):
    pictures(tmp_path, names)
    with pytest.raises(ValueError) as caught:
        load_images(tmp_path, "all")
    ways = f"allowed: train/CLASS and test/CLASS (rename them), or class folders alone, as in {tmp_path / instead}"
    assert str(caught.value) == f"{tmp_path}: got {seen}, but no train that holds class folders; {ways}"


def test_what_the_message_names_is_read(tmp_path):
    pictures(tmp_path, INTEL)
    assert load_images(tmp_path / "seg_train" / "seg_train", "all").class_names == ("glacier", "sea")
    for split in ("train", "test"):
        (tmp_path / f"seg_{split}" / f"seg_{split}").rename(tmp_path / split)
        (tmp_path / f"seg_{split}").rmdir()
    assert load_images(tmp_path, "test").class_names == ("glacier", "sea")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["images/cat", "images/dog"], "got one folder, images, and folders in it: cat, dog; allowed: one folder for"),
        (["a/b/cat", "a/b/dog"], "got one folder, a, and folders in it: b; allowed: .*; are they in .*a.b"),
        (
            ["data/train/cat", "data/test/cat"],
            "got one folder, data, and folders in it: test, train; .*are they in .*data",
        ),
        (
            ["bottle/train/good", "bottle/test/good", "nut"],
            "got splits below a class: test, train in bottle; allowed: cl",
        ),
    ],
)
def test_folders_that_cannot_be_classes_are_refused(tmp_path, names, message):
    pictures(tmp_path, names)
    with pytest.raises(ValueError, match=f"{tmp_path.name}: {message}"):
        load_images(tmp_path, "all")


def test_an_archive_unpacked_into_its_splits_is_refused_there(tmp_path):
    pictures(tmp_path, ["train/train/cat", "train/train/dog", "test/test/cat", "test/test/dog"])
    with pytest.raises(ValueError, match=r"test: got one folder, test, .*: cat, dog; .*are they in .*test.test\?"):
        load_images(tmp_path, "train")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["valid", "invalid"], "read as classes and not as splits: valid"),
        (["train", "car", "bus"], "read as classes and not as splits: train"),
        (["control", "test"], "read as classes and not as splits: test"),
        (["train station", "airport/hall", "airport/tower"], "read as classes and not as splits: train station"),
        (
            [f"site{i}/{name}" for i in (1, 2) for name in ("cat", "dog")],
            "site1, site2 are read as classes, although each holds the same folders: cat, dog",
        ),
    ],
)
def test_folders_that_may_be_classes_are_read_with_a_word(tmp_path, names, said):
    pictures(tmp_path, names)
    with pytest.warns(UserWarning) as caught:
        got = load_images(tmp_path, "all")
    assert [str(w.message) for w in caught] == [f"all: {said}"]
    assert got.class_names == tuple(sorted({name.split("/")[0] for name in names}))


@pytest.mark.parametrize(
    "names", [["training/cat", "test/cat"], ["strained", "constraint"], ["cat/1", "dog/1"], ["cat/1", "cat/2", "dog/1"]]
)
def test_usual_folders_are_read_without_a_word(tmp_path, names):
    pictures(tmp_path, names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_images(tmp_path, "train" if "training/cat" in names else "all")


def test_a_class_without_pictures_says_what_is_there(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.heic").write_bytes(b"")
    with pytest.raises(ValueError, match=r"class 'cat' is empty: no picture that can be read here in .*\(1 \.heic\)"):
        load_images(tmp_path, "all")


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_a_folder_that_does_not_fit_is_refused_before_it_is_read(tmp_path, monkeypatch):
    for number in range(4):
        save(tmp_path / "a" / f"{number}.png", (1, 2, 3), size=(2000, 1500))
    monkeypatch.setattr(files, "free_memory", lambda: 4 * 2000 * 1500 * 3 - 1)
    monkeypatch.setattr(files, "read_picture", lambda *_: pytest.fail("a picture was read"))
    message = "got 4 pictures of 2000 x 1500 with 3 channels, 0.036 GB in memory; allowed: the 0.036 GB .*size="
    with pytest.raises(ValueError, match=message):
        load_images(tmp_path, "all")
    monkeypatch.undo()
    assert load_images(tmp_path, "all", size=20).images.shape == (4, 3, 20, 20)


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    all_of_it = files.free_memory()
    assert 0 < all_of_it < 1e14
    for version, names in files.CONTAINERS.items():
        group = tmp_path / str(version)
        for name, text in zip(names, ("1000", "700", "anon 5\nfile 9\ninactive_file 200\n"), strict=True):
            (group / name).parent.mkdir(parents=True, exist_ok=True)
            (group / name).write_text(text)
        monkeypatch.setattr(files, "CONTAINER", group)
        assert files.free_memory() == 1000 - (700 - 200), "a cache is given back"
        (group / names[0]).write_text("max")
        assert files.free_memory() > 1000


@pytest.mark.parametrize("grey", [False, True])
def test_reading_takes_hardly_more_memory_than_the_pictures_need(tmp_path, grey):
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    pixels = pixels[..., :1].repeat(3, 2) if grey else pixels
    for number in range(20):
        written(tmp_path, pixels, f"{number}.png")
    need = 20 * pixels.nbytes
    load_images(tmp_path, "all", size=4)  # what is imported at the first time
    tracemalloc.start()
    load_images(tmp_path, "all")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert need <= peak < (1.6 if grey else 1.3) * need


# ---- ~, names and paths, studies -------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder_wherever_a_path_is_taken(tmp_path, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setattr(files, "DATA_FOLDER", tmp_path / "none")
    monkeypatch.setattr(files, "DEBIAN_FASHION_MNIST", tmp_path / "none")
    write_fashion(home / "sets", n=6)
    monkeypatch.setenv("COURSE_DATA", "~/sets")
    assert len(load_images("fashion-mnist", "train", download=False)) == 6
    monkeypatch.delenv("COURSE_DATA")
    assert len(load_images("fashion-mnist", "train", root="~/sets", download=False)) == 6
    for number in range(4):
        save(home / "animals" / "cat" / f"{number}.png", (1, 2, 3))
    assert len(load_images("~/animals", "all")) == 4
    assert len(load_splits(STUDIES["folder"].settings(), 0, source="~/animals")[1]) == 1
    assert os.listdir(here) == []


def test_a_path_is_a_folder_even_with_the_name_of_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        save(tmp_path / "letters" / "cat" / f"{number}.png", (1, 2, 3))
    relative = (tmp_path / "letters").relative_to(tmp_path)
    assert load_images(relative, "all").class_names == ("cat",)
    assert load_images("letters", "validation").num_classes == 26
    assert load_splits(STUDIES["folder"].settings(), 0, source="./letters")[0].class_names == ("cat",)


def test_a_study_chooses_on_the_validation_split_under_any_of_its_names(tmp_path):
    for split, number in (("Train", 3), ("TEST", 2), ("val", 1)):
        for name in ("cat", "dog"):
            for index in range(number):
                save(tmp_path / split / name / f"{index}.{'tif' if index else 'png'}", (number, 2, 3))
    (tmp_path / "Train" / "cat" / "notes.txt").write_text("")
    train, validation, test, note = load_splits(STUDIES["folder"].settings(), 0, source=str(tmp_path))
    assert [len(part) for part in (train, validation, test)] == [6, 2, 4]
    assert [int(part.images[0, 0, 0, 0]) for part in (train, validation, test)] == [3, 1, 2]
    assert note == f"image folder {tmp_path.name} (6 png, 6 tif); train: left out 1 .txt"


@pytest.mark.parametrize(("suffix", "what"), [("jpg", "JPEG re-encoding"), ("bmp", "copy"), ("webp", "re-encoding")])
def test_a_note_says_whether_a_copy_keeps_the_pixels(tmp_path, suffix, what):
    for split in ("train", "test"):
        for index in range(4):
            save(tmp_path / split / "cat" / f"{index}.{suffix}", (1, 2, 3))
    settings = STUDIES["cifar10-lt"].settings() | {"profile": "as it is"}
    note = load_splits(settings, 0, source=str(tmp_path))[3]
    assert note == f"{what} of cifar10, from an image folder (8 {suffix}); not the published pixels"


def test_splits_have_one_number_of_channels_even_where_one_pixel_is_tinted(tmp_path):
    """Scaling can take a tint away: what counts is the picture as it is read."""
    for split, count in (("train", 6), ("test", 3)):
        for i in range(count):
            pixels = np.full((300 + i % 2, 300, 3), 100 + i, np.uint8)
            if (split, i) == ("train", 0):
                pixels[0, 0, 0] += 1
            path = tmp_path / split / "a" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    shapes = {load_images(tmp_path, split).images.shape[1:] for split in ("train", "test")}
    assert shapes == {(1, 64, 64)}


def test_a_name_of_the_course_that_is_also_a_folder_here_is_told(tmp_path, monkeypatch):
    written(tmp_path / "letters", UPRIGHT)
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"'letters' is read from the course; Path\('letters'\) is the folder here"):
        assert len(load_images("letters", "test")) > 1000
