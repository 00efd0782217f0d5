"""One file that names the class of a picture: kept, read again, asked under other shares, refused when changed."""

import csv
import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_backbones import COLOURS, SMALL, needs_weights, seeded, tiny, write_pictures
from torch import nn

from course_utils import backbones
from course_utils.backbones import Backbone, backbone, cached_features, fine_tune, train_heads, whole_model
from course_utils.classifier import FORMAT, PhotoClassifier, assumed_shares
from course_utils.experiments.command import main
from course_utils.losses import effective_number_weights
from course_utils.methods import METHODS
from course_utils.networks import SmallCNN
from course_utils.photos import Photos
from course_utils.runtime import read_tensors, write_tensors
from course_utils.training import predict

pytestmark = pytest.mark.usefixtures("one_thread")
LACKING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
NAMES = tuple(COLOURS)
HEADS = ("cross-entropy", "balanced softmax", "cosine classifier", "LDAM + DRW", "tau-normalization", "NCM", "LWS")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def photos(folder):
    return Photos.from_folder(folder, "train", view=SMALL), Photos.from_folder(folder, "validation", view=SMALL)


@pytest.fixture(scope="module")
def kept(photos):
    """{method: a classifier}, all on one tiny backbone."""
    found = seeded(tiny)
    heads = train_heads(HEADS, *(cached_features(found, data) for data in photos), epochs=3)
    return {n: PhotoClassifier.of(found, whole_model(found, one.model), photos[0], n) for n, one in heads.items()}


# ---- kept and read again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", HEADS)
def test_a_file_gives_the_same_answers_to_the_bit(kept, photos, tmp_path, method):
    kept[method].save(tmp_path / "model.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        other = tiny()  # with other weights: those of the file count
    again = PhotoClassifier.load(tmp_path / "model.safetensors", own=other)
    assert (again.class_names, again.view, again.counts, again.method) == (NAMES, SMALL, (8, 4, 2), method)
    one, two = (model.predict(photos[1]) for model in (kept[method], again))
    assert torch.equal(one.logits, two.logits) and one.paths == two.paths
    assert torch.equal(one.logits, predict(kept[method].model, photos[1]) + kept[method].shift("equal"))


def test_a_fine_tuned_network_is_kept_too(kept, photos, tmp_path):
    done = fine_tune(kept["balanced softmax"].model, *photos, epochs=2, batch_size=4, augment=None)
    PhotoClassifier.of(seeded(tiny), done.model, photos[0], "balanced softmax").save(tmp_path / "model.safetensors")
    again = PhotoClassifier.load(tmp_path / "model.safetensors", own=tiny())
    assert torch.equal(predict(again.model, photos[1]), predict(done.model, photos[1]))


def test_a_known_backbone_is_made_from_its_name_without_its_published_weights(photos, tmp_path, monkeypatch):
    found = seeded(backbone, "torchvision/resnet18", None)
    train, validation = (data.with_view(replace(found.view, size=32)) for data in photos)
    heads = train_heads(["cRT"], *(cached_features(found, data) for data in (train, validation)), epochs=2)
    PhotoClassifier.of(found, whole_model(found, heads["cRT"].model), train, "cRT").save(tmp_path / "model.safetensors")
    monkeypatch.setattr(backbones, "_lite0_file", lambda: pytest.fail("no weights are needed"))
    again = PhotoClassifier.load(tmp_path / "model.safetensors")
    expected = predict(heads["cRT"].model, cached_features(found, validation, batch_size=32))
    assert torch.equal(again.predict(validation).logits, expected + again.shift("equal"))


@needs_weights
def test_lite0_answers_the_same_after_a_save(photos, tmp_path, monkeypatch):
    found = backbone()
    train, validation = (data.with_view(replace(found.view, size=64)) for data in photos)
    heads = train_heads(["balanced softmax"], cached_features(found, train), epochs=2)
    one = PhotoClassifier.of(found, whole_model(found, heads["balanced softmax"].model), train, "balanced softmax")
    one.save(tmp_path / "model.safetensors")
    monkeypatch.setattr(backbones, "_lite0_file", lambda: pytest.fail("no weights are needed"))
    again = PhotoClassifier.load(tmp_path / "model.safetensors")
    assert torch.equal(again.predict(validation).logits, one.predict(validation).logits)


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_files_that_are_not_as_they_were_saved_are_refused_by_name(kept, tmp_path):
    path = tmp_path / "model.safetensors"
    kept["cross-entropy"].save(path)
    whole = path.read_bytes()

    def refused(message, data=None, own=None):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            PhotoClassifier.load(path, own=own or tiny())

    refused("model.safetensors is missing, damaged or no file of this course", whole[:-1])
    refused("model.safetensors is missing, damaged or no file of this course", b"")
    swapped = whole.replace(rb"\"blue\", \"green\"", rb"\"green\", \"blue\"")
    assert len(swapped) == len(whole) and swapped != whole
    refused("digest: got another one in .*model.safetensors", swapped)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    refused("digest: got another one in .*model.safetensors", bytes(flipped))
    save_file(nn.Linear(2, 2).state_dict(), path)
    refused("no file of this course")
    torch.save(nn.Linear(2, 2).state_dict(), path)
    refused("no file of this course")
    path.write_bytes(whole)
    about, tensors = read_tensors(path)
    write_tensors(path, tensors, about | {"format": "longtail-course photo classifier 9"})
    refused(f"format '.* classifier 9'; allowed: '{FORMAT}'")
    write_tensors(path, tensors, about | {"class_names": ["blue", "green"]})
    refused("model.safetensors")
    write_tensors(path, tensors, {k: v for k, v in about.items() if k != "view"})
    refused(f"does not hold what {FORMAT} says .KeyError: 'view'")
    write_tensors(path, tensors, about | {"head": {"kind": "os.system"}})
    refused("head: got 'os.system'")
    refused("own: got 'tiny' with 7 features; allowed: 'tiny' with 6", whole, tiny(7))
    refused("own: got 'mine' with 6 features", whole, Backbone(tiny().module, 6, SMALL, "mine"))
    with pytest.raises(ValueError, match="own: got None; allowed: a Backbone like the one called 'tiny'"):
        PhotoClassifier.load(path)


def test_a_classifier_that_could_not_be_kept_is_refused_when_it_is_made(kept, photos):
    one = kept["cross-entropy"]
    for change, message in (
        ({"class_names": NAMES[:2]}, "class_names: got 2; allowed: 3"),
        ({"counts": (1, 2)}, "counts: got 2; allowed: 3"),
        ({"counts": (1, 2, 0)}, "counts: .*at least 1"),
        ({"method": "magic"}, "method: got 'magic'"),
        ({"model": SmallCNN(3)}, "model: got a backbone of Sequential; allowed: one of whole_model"),
    ):
        with pytest.raises(ValueError, match=message):
            PhotoClassifier(**vars(one) | change)


# ---- shares of the place ---------------------------------------------------------------------------------------------


def test_the_shares_that_a_method_takes_for_granted():
    counts = (80, 15, 5)
    shares = {name: assumed_shares(name, counts).tolist() for name in METHODS}
    assert shares["cross-entropy"] == pytest.approx([0.8, 0.15, 0.05])
    assert shares["balanced softmax"] == shares["cRT"] == pytest.approx([1 / 3] * 3)
    roots = torch.tensor(counts).sqrt()
    assert shares["square-root sampling"] == pytest.approx((roots / roots.sum()).tolist())
    seen = torch.tensor(counts) * effective_number_weights(counts, 0.99)
    assert shares["class-balanced loss"] == pytest.approx((seen / seen.sum()).tolist(), rel=1e-5)
    assert all(sum(one) == pytest.approx(1) for one in shares.values())


def test_bayes_rule_by_hand():
    """Two Gaussians, shares 9 to 1 in training: the answer for other shares is that of the true posterior there."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)
    likelihood = torch.stack([(-((x - m) ** 2) / 2).exp() for m in (-1, 1)], 1)
    logits = (likelihood * torch.tensor([0.9, 0.1])).log()
    shift = torch.tensor([0.3, 0.7]).log() - assumed_shares("cross-entropy", (90, 10)).log()
    posterior = likelihood * torch.tensor([0.3, 0.7])
    torch.testing.assert_close(
        (logits + shift).softmax(1), posterior / posterior.sum(1, keepdim=True), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("method", ["cross-entropy", "balanced softmax"])
def test_the_prior_moves_the_logits_by_the_log_of_the_shares(kept, photos, method):
    one, validation = kept[method], photos[1]
    z = predict(one.model, validation)
    assumed = torch.tensor([8.0, 4, 2]) / 14 if method == "cross-entropy" else torch.full((3,), 1 / 3)
    for prior, q in (
        ("as trained", torch.tensor([8.0, 4, 2]) / 14),
        ("equal", torch.full((3,), 1 / 3)),
        ({"red": 1, "blue": 2, "green": 5}, torch.tensor([2.0, 5, 1]) / 8),
    ):
        torch.testing.assert_close(one.predict(validation, prior=prior).logits, z + q.log() - assumed.log())
    only = one.predict(validation, prior={"red": 1, "blue": 0, "green": 0})
    assert (only.labels == 2).all() and only.probabilities[:, 2].eq(1).all()


@pytest.mark.parametrize(
    "prior, message",
    [
        ("uniform", "prior: got 'uniform'; allowed: 'equal', 'as trained' or"),
        ({"red": 1, "blue": 1}, "prior: got green missing or unknown"),
        ({"red": 1, "blue": 1, "green": 1, "pink": 1}, "prior: got pink missing or unknown"),
        ({"red": -1, "blue": 1, "green": 1}, "prior: .*at least 0"),
        ({"red": 0, "blue": 0, "green": 0}, "prior: .*one of them above 0"),
        ({"red": "half", "blue": 1, "green": 1}, "prior: .*half.*; allowed: numbers"),
        ({"red": float("nan"), "blue": 1, "green": 1}, "prior: .*at least 0"),
        ({"red": None, "blue": 1, "green": 1}, "prior: .*None.*; allowed: numbers"),
        (None, "prior: got None; allowed: 'equal', 'as trained' or"),
        (0.5, "prior: got 0.5; allowed: 'equal', 'as trained' or"),
        ([1, 1, 1], r"prior: got \[1, 1, 1\]; allowed: 'equal', 'as trained' or"),
    ],
)
def test_other_shares_are_refused(kept, prior, message):
    with pytest.raises(ValueError, match=message):
        kept["cross-entropy"].shift(prior)


def test_distances_are_no_probabilities(kept, photos):
    answers = kept["NCM"].predict(photos[1])
    assert answers.csv().splitlines()[1].endswith(",")
    with pytest.raises(ValueError, match="distances"):
        answers.probabilities  # noqa: B018
    with pytest.raises(ValueError, match="prior: got as trained; allowed: 'equal': NCM gives distances"):
        kept["NCM"].predict(photos[1], prior="as trained")


# ---- pictures in, answers out ----------------------------------------------------------------------------------------


@needs_weights
def test_the_lines_of_the_readme_do_what_they_say(folder, tmp_path, monkeypatch, capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "PhotoClassifier" in block)
    monkeypatch.chdir(tmp_path)
    a_picture = next((folder / "validation").rglob("*.png"))
    for said, meant in (("path/to/folder", folder), ("path/to/cache", "cache"), ("path/to/a/picture.jpg", a_picture)):
        assert said in code
        code = code.replace(said, str(meant))
    exec(code, {})  # such as a reader would paste
    assert a_picture.name in capsys.readouterr().out and (tmp_path / "model.safetensors").is_file()


def test_a_head_gets_its_backbone_by_itself(kept, photos):
    found = seeded(tiny)
    head = train_heads(["cross-entropy"], cached_features(found, photos[0]), epochs=3)["cross-entropy"]
    one = PhotoClassifier.of(found, head.model, photos[0], "cross-entropy")
    assert torch.equal(one.predict(photos[1]).logits, kept["cross-entropy"].predict(photos[1]).logits)


def test_broken_pictures_are_named_or_left_out(kept, folder, tmp_path):
    good = sorted((folder / "validation").rglob("*.png"))[:2]
    for k, path in enumerate(good):
        (tmp_path / f"{k}.png").write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_bytes(good[0].read_bytes()[:40])
    one = kept["cross-entropy"]
    with pytest.raises(ValueError, match=r"broken.png is not a readable image: .*--skip-broken"):
        one.predict(tmp_path)
    with pytest.warns(UserWarning, match=r"skipped 1 files that are no readable images: .*broken.png"):
        found = one.predict(tmp_path, skip_broken=True)
    assert torch.equal(found.logits, one.predict(good).logits)
    assert len(one.predict([tmp_path / "0.png", folder / "validation"])) == 13  # files and folders


def test_a_file_a_list_and_a_folder_are_read_with_the_view_of_the_model(kept, photos, folder, tmp_path):
    one, (_, validation) = kept["balanced softmax"], photos
    expected = one.predict(validation)
    whole = one.predict(folder / "validation")
    assert whole.paths == expected.paths and torch.equal(whole.logits, expected.logits) and len(whole) == 12
    some = one.predict([expected.paths[5], expected.paths[2]])
    torch.testing.assert_close(some.logits, expected.logits[[5, 2]])
    assert one.predict(expected.paths[3]).paths == (expected.paths[3],)
    seen = one.predict(validation.with_view(backbone(weights=None).view))
    assert torch.equal(seen.logits, expected.logits)
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="what: got no picture in"):
        one.predict(tmp_path)
    with pytest.raises(ValueError, match="what: got nowhere; allowed: files or folders that exist"):
        one.predict("nowhere")
    with pytest.raises(ValueError, match=r"notes.txt"):
        one.predict(tmp_path / "notes.txt")


def test_the_command_writes_a_table_of_answers(kept, folder, tmp_path, capsys, monkeypatch):
    kept["balanced softmax"].save(tmp_path / "model.safetensors")
    monkeypatch.setattr(PhotoClassifier, "load", classmethod(lambda cls, path: kept["balanced softmax"]))
    (tmp_path / "shares.json").write_text(json.dumps({"red": 0, "blue": 1, "green": 0}))
    command = ["predict", str(tmp_path / "model.safetensors"), str(folder / "validation")]
    assert main([*command, "--out", str(tmp_path / "answers.csv")]) == 0
    assert capsys.readouterr().out == f"12 answers are in {tmp_path / 'answers.csv'}\n"
    rows = list(csv.DictReader((tmp_path / "answers.csv").open(encoding="utf-8", newline="")))
    answers = kept["balanced softmax"].predict(folder / "validation")
    assert [row["file"] for row in rows] == list(answers.paths)
    assert [row["class"] for row in rows] == [NAMES[j] for j in answers.labels]
    assert main([*command, "--prior", str(tmp_path / "share.json")]) == 2
    error = capsys.readouterr().err
    assert "share.json', which is no file; allowed: equal, as-trained, or a JSON file {class: share}" in error
    for row, p in zip(rows, answers.probabilities.sort(1, descending=True).values.tolist(), strict=True):
        assert (row["probability"], row["second probability"]) == (f"{p[0]:.4f}", f"{p[1]:.4f}")
    assert main([*command, "--prior", str(tmp_path / "shares.json")]) == 0
    assert capsys.readouterr().out.count(",blue,1.0000,") == 12
    assert main([*command, "--prior", "as-trained"]) == 0
    capsys.readouterr()
    (tmp_path / "shares.json").write_text("{")
    assert main([*command, "--prior", str(tmp_path / "shares.json")]) == 2
    assert "error: --prior: " in capsys.readouterr().err
    assert main([*command, "--prior", "everything"]) == 2
    assert "prior: got 'everything'" in capsys.readouterr().err


@pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")
@pytest.mark.parametrize("method", ["balanced softmax", "NCM"])
def test_an_onnx_file_answers_as_the_model_does(kept, photos, tmp_path, method):
    import onnxruntime

    kept[method].export_onnx(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = torch.stack([photos[1][i][0] for i in range(5)])
    (logits,) = session.run(None, {"images": images.numpy()})
    expected = kept[method].predict(photos[1]).logits[:5]
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list(NAMES)


def test_without_onnx_one_line_says_what_to_install(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^export_onnx.. needs onnx and onnxscript: pip install onnx onnxscript$"):
        kept["NCM"].export_onnx(tmp_path / "model.onnx")


def test_the_command_names_a_file_that_is_no_model(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    assert main(["predict", str(tmp_path / "model.safetensors"), str(tmp_path)]) == 2
    assert "model.safetensors is missing, damaged or no file of this course" in capsys.readouterr().err
