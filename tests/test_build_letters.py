"""The Letters data set: format, selection rules, splits, and that the script draws the stored glyphs again."""

import csv
import hashlib
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA))

build_letters = pytest.importorskip("build_letters", reason="needs Pillow, fontTools and tqdm")
letters_fonts = pytest.importorskip("letters_fonts")


@pytest.fixture(scope="module")
def letters():
    with np.load(DATA / "letters.npz", allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


@pytest.fixture(scope="module")
def families():
    return build_letters.read_table(DATA / "families.csv")


@pytest.fixture(scope="module")
def faces():
    return build_letters.read_table(DATA / "faces.csv")


def installed_file(face):
    """Where a Debian system has this face's font, when its package is installed and is the very same file."""
    file = Path("/") / face["path"]
    return file if file.is_file() and letters_fonts.sha256(file) == face["sha256"] else None


def test_format_of_the_arrays(letters):
    count = len(letters["face_names"])
    assert letters["glyphs"].shape == (count, 36, 28, 28)
    assert letters["glyphs"].dtype == np.uint8
    assert (letters["family"].dtype, letters["cluster"].dtype, letters["split"].dtype) == (np.int16, np.int16, np.uint8)
    assert all(letters[name].shape == (count,) for name in ("family", "cluster", "split"))
    assert letters["face_names"].dtype.kind == letters["family_names"].dtype.kind == "U"
    assert "".join(letters["characters"]) == letters_fonts.CHARACTERS
    assert set(np.unique(letters["split"])) == {0, 1, 2}
    assert set(np.unique(letters["family"])) == set(range(len(letters["family_names"])))
    assert letters["cluster"].min() >= 0


def test_size_and_checksum():
    content = (DATA / "letters.npz").read_bytes()
    assert len(content) <= 14 * 2**20
    assert (DATA / "letters.sha256").read_text().split() == [hashlib.sha256(content).hexdigest(), "letters.npz"]
    assert (DATA / "contact_sheet.png").stat().st_size <= 700_000


def test_counts(letters):
    clusters = [len(np.unique(letters["cluster"][letters["split"] == part])) for part in range(3)]
    assert sum(clusters) >= 400
    assert len(letters["face_names"]) >= 1400
    assert (letters["split"] == 0).sum() >= 600
    np.testing.assert_allclose(np.array(clusters) / sum(clusters), (0.60, 0.15, 0.25), atol=0.02)
    assert np.bincount(letters["family"]).max() <= 4
    assert np.bincount(letters["cluster"]).max() <= 24


def test_a_cluster_and_a_family_live_in_one_split(letters):
    for key in ("cluster", "family"):
        assert len({*zip(letters[key], letters["split"], strict=True)}) == len(np.unique(letters[key]))
    assert len({*zip(letters["family"], letters["cluster"], strict=True)}) == len(letters["family_names"])


def test_no_designer_has_more_than_a_third(families):
    kept = [row for row in families if row["decision"] == "kept"]
    named = Counter(row["designer"] for row in kept if row["designer"] != "not named in the font")
    assert max(named.values()) <= len(kept) / 3
    assert max(Counter(row["package"] for row in kept if row["package"] == "fonts-aenigma").values()) <= len(kept) / 3


def test_every_kept_family_has_a_package_a_version_and_a_licence(families):
    for row in families:
        if row["decision"] == "kept":
            assert row["package"] in build_letters.packages()
            assert row["version"] and row["licence"] and row["licence"] != "not identified", row


def test_tables_agree_with_the_arrays(letters, families, faces):
    kept = {row["family"]: row for row in families if row["decision"] == "kept"}
    assert sorted(kept) == sorted(letters["family_names"].tolist())
    assert [row["face"] for row in faces] == letters["face_names"].tolist()
    counted = Counter(letters["family_names"][letters["family"]].tolist())
    for name, row in kept.items():
        index = letters["family"] == letters["family_names"].tolist().index(name)
        assert int(row["faces"]) == counted[name]
        assert {int(row["cluster"])} == set(letters["cluster"][index].tolist())
        assert {build_letters.SPLIT_NAMES.index(row["split"])} == set(letters["split"][index].tolist())
        assert float(row["legibility"]) > 0.50


def test_no_blank_or_shared_glyphs(letters):
    glyphs = letters["glyphs"].reshape(len(letters["glyphs"]), 36, -1)
    assert ((glyphs > 0).sum(2) >= 8).all()
    assert glyphs.max(2).min() >= 32
    assert set(np.unique(glyphs)) <= set(range(0, 256, 17))
    for face in glyphs:
        assert len({glyph.tobytes() for glyph in face}) == 36


def test_look_alikes_do_not_cross_splits(letters):
    key = [letters_fonts.CHARACTERS.index(letter) for letter in "AEGQR"]
    owner = {}
    for picture, cluster in zip(letters["glyphs"][:, key], letters["cluster"], strict=True):
        assert owner.setdefault(picture.tobytes(), cluster) == cluster


def test_installed_fonts_give_the_stored_glyphs(letters, faces):
    from PIL import features

    found = [(index, file) for index, face in enumerate(faces) if (file := installed_file(face))]
    if not found:
        pytest.skip("none of the fonts in faces.csv is installed; any package named there will do, fonts-lato for one")
    same_freetype = str(letters["made_with"]) == f"FreeType {features.version('freetype2')}"
    for index, file in found[:12]:
        drawn, stored = letters_fonts.render_face(file), letters["glyphs"][index]
        if same_freetype:
            np.testing.assert_array_equal(drawn, stored, err_msg=faces[index]["face"])
        else:  # another rasteriser may round an edge differently
            assert np.abs(drawn.astype(int) - stored).mean() < 3, faces[index]["face"]


def test_a_changed_font_is_refused(tmp_path, faces):
    font = tmp_path / "font.ttf"
    font.write_bytes(b"not the font")
    with pytest.raises(build_letters.FontChanged, match=r"is not the font that faces\.csv names.*expected"):
        build_letters.render_checked(font, faces[0]["sha256"])
    with pytest.raises(build_letters.FontChanged, match="is missing: run 'fetch'"):
        build_letters.render_checked(tmp_path / "absent.ttf", faces[0]["sha256"])


def test_build_twice_gives_the_same_bytes_and_refuses_another_font(tmp_path, monkeypatch, faces, families):
    found = [(face, file) for face in faces if (file := installed_file(face))][:2]
    if not found:
        pytest.skip("none of the fonts in faces.csv is installed; any package named there will do, fonts-lato for one")
    tree = tmp_path / "fonts" / "tree"
    for face, file in found:
        copy = tree / face["package"] / face["path"]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    names = {face["family"] for face, _ in found}
    rows = [row for row in families if row["family"] in names]
    build_letters.write_table(tmp_path / "families.csv", build_letters.FAMILY_COLUMNS, rows)
    build_letters.write_table(tmp_path / "faces.csv", build_letters.FACE_COLUMNS, [face for face, _ in found])
    monkeypatch.setattr(build_letters, "HERE", tmp_path)
    contents = [build_letters.build(tmp_path / "fonts", tmp_path).read_bytes() for _ in range(2)]
    assert contents[0] == contents[1]
    with copy.open("ab") as file:
        file.write(b"\0")
    assert build_letters.main(["build", str(tmp_path / "fonts")]) == 1


def test_save_arrays_does_not_depend_on_the_clock(monkeypatch):
    arrays = {"a": np.arange(5), "b": np.array(["x", "yz"])}
    first = build_letters.save_arrays(arrays)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert build_letters.save_arrays(arrays) == first


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("SIL Open Font License, Version 1.1", "OFL-1.1"),
        ("ofl lppl1.3", "OFL-1.1"),
        ("gfsl", "GUST Font License"),
        ("GPL-2+ with Font exception", "GPL with font exception"),
        ("GPL-3+", "GPL"),
        ("lppl1.3c", "LPPL"),
        ("All rights reserved, several parts, August 2008", ""),
    ],
)
def test_licence_names(text, licence):
    assert letters_fonts.licence_name(text) == licence


def test_debian_licence_reads_the_paragraph_of_the_file():
    text = (
        "Format: 1.0\n\nFiles: *\nLicense: GPL-2+\n some text\n\nFiles: fonts/Kind*.ttf\nLicense: OFL-1.1\n\n"
        "Files: debian/*\nLicense: MIT\n"
    )
    assert letters_fonts.debian_licence(text, "usr/share/fonts/Kindly.ttf") == "OFL-1.1"
    assert letters_fonts.debian_licence(text, "usr/share/fonts/Other.ttf") == "GPL"


def test_faces_table_has_no_absolute_paths():
    with (DATA / "faces.csv").open(encoding="utf-8", newline="") as file:
        assert all(not row["path"].startswith("/") and ".." not in row["path"] for row in csv.DictReader(file))


@pytest.fixture(scope="module")
def rules():
    return pytest.importorskip("letters_judge", reason="needs torch and SciPy")


def face(family="Some Sans", style="Regular", weight=400, italic=False, package="fonts-some", path="usr/some/a.ttf"):
    return letters_fonts.Face(family, style, weight, 5, italic, "", "OFL-1.1", package, path, True)


def test_faults_of_a_face(rules):
    glyphs = np.zeros((36, 28, 28), np.uint8)
    for index, glyph in enumerate(glyphs):
        glyph[2:12, 2:12] = 255
        glyph[20, : 1 + index % 28] = glyph[22 + index // 28, 0] = 255
    assert rules.face_fault(glyphs) == ""
    for source, target, fault in ((0, 1, "share one drawing"), (26, 27, "share one drawing"), (14, 26, "as a capital")):
        changed = glyphs.copy()
        changed[target] = changed[source]
        assert fault in rules.face_fault(changed)
    glyphs[7] = 0
    assert rules.face_fault(glyphs) == "blank glyph"


def test_at_most_four_faces_regular_first(rules):
    family = [
        face(style=f"{w}{i}", weight=w, italic=i, path=f"{w}{i}.ttf") for w in range(100, 1000, 100) for i in (0, 1)
    ]
    chosen = rules.choose_faces(family)
    assert [(one.weight, one.italic) for one in chosen] == [(400, 0), (700, 0), (400, 1), (300, 0)]
    assert rules.choose_faces(family[:1]) == family[:1]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (face("Noto Sans"), face("Noto Serif"), True),
        (face("QTHelvet"), face("QTHelvetCnd"), True),
        (face("QTHelvet"), face("QTOptimum"), False),
        (face("GFS Didot"), face("GFS Artemisia"), False),
        (face("DSEG14 Classic"), face("DSEG7 Modern"), True),
        (face("C-64"), face("C059"), False),
    ],
)
def test_relatives_by_name(rules, one, other, same):
    assert (rules.cluster_key(one) == rules.cluster_key(other)) is same


def test_look_alikes_share_a_cluster(rules):
    glyphs = np.random.RandomState(0).randint(0, 256, (3, 36, 28, 28)).astype(np.uint8)
    glyphs[2] = np.clip(glyphs[0].astype(int) + 5, 0, 255)
    faces = [face("Alpha"), face("Beta"), face("Gamma")]
    assert rules.cluster_families(faces, np.arange(3), glyphs).tolist() == [0, 1, 0]


def test_split_shares(rules):
    splits = rules.split_clusters([f"cluster {i}" for i in range(500)], [(i % 3 == 0,) for i in range(500)])
    shares = [splits.count(name) / 500 for name in build_letters.SPLIT_NAMES]
    np.testing.assert_allclose(shares, (0.60, 0.15, 0.25), atol=0.01)
    assert splits == rules.split_clusters([f"cluster {i}" for i in range(500)], [(i % 3 == 0,) for i in range(500)])
