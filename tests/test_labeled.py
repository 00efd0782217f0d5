"""What fit(), predict() and the methods ask of data: images in memory, or features of a network that stays."""

import copy

import pytest
import torch
from torch import nn

from course_utils.data import LabeledFeatures, LabeledImages, hold_out, long_tailed
from course_utils.methods import METHODS, train_method, train_methods
from course_utils.metrics import balanced_accuracy
from course_utils.networks import ImageClassifier, OnlyHead, SmallCNN
from course_utils.training import (
    Batches,
    extract_features,
    first_input,
    fit,
    freeze_statistics,
    predict,
    random_shift,
    to_float,
)

NAMES = ("a", "b", "c")


def blobs(per_class=(60, 20, 8), dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(torch.tensor(per_class))
    centres = 2 * torch.eye(3, dim)
    return LabeledFeatures(centres[labels] + torch.randn(len(labels), dim, generator=generator), labels, NAMES)


def pictures(n=12, side=8):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 1, side, side), generator=generator, dtype=torch.uint8)
    return LabeledImages(pixels, torch.arange(n) % 3, NAMES)


def test_features_are_data_like_images():
    data = blobs()
    assert repr(data) == "LabeledFeatures(88 features of 5, 3 classes, on cpu)"
    assert data.counts.tolist() == [60, 20, 8] and len(data) == 88 and data.device.type == "cpu"
    assert data.only(["c", "a"]).counts.tolist() == [8, 60]
    assert torch.equal(data.subset(torch.tensor([3, 1])).features, data.features[[3, 1]])
    assert long_tailed(data, [5, 4, 3], seed=0).counts.tolist() == [5, 4, 3]
    rest, held = hold_out(data, 0.25, seed=0)
    assert held.counts.tolist() == [15, 5, 2] and rest.counts.tolist() == [45, 15, 6]
    assert data.digest() != blobs(seed=1).digest() and data.digest() == data.to("cpu").digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(3, 2, dtype=torch.int64)}, r"features: got torch.int64 of shape \(3, 2\)"),
        ({"features": torch.zeros(3)}, "features: got torch.float32 of shape"),
        ({"features": torch.full((3, 2), torch.nan)}, "features: got NaN or infinity"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels: got shape \(2,\); allowed: \(3,\)"),
        ({"class_names": ("a", "a")}, "class_names: got a, a"),
    ],
)
def test_wrong_features_are_refused(change, message):
    fields = {"features": torch.zeros(3, 2), "labels": torch.tensor([0, 1, 2]), "class_names": NAMES} | change
    with pytest.raises(ValueError, match=message):
        LabeledFeatures(**fields)


def test_features_reach_the_network_as_they_are():
    data = blobs()
    ((inputs, labels),) = Batches(data, 100, augment="usual")
    assert torch.equal(inputs, data.features) and torch.equal(labels, data.labels)
    assert torch.equal(first_input(data), data.features[:1])
    assert torch.equal(extract_features(OnlyHead(5)(3), data), data.features)
    assert torch.equal(first_input(pictures()), to_float(pictures().images[:1]))


def test_usual_is_a_shift_for_images_and_nothing_for_features():
    def trained(data, network, augment):
        torch.manual_seed(0)
        model = network(3)
        fit(model, data, epochs=2, batch_size=5, augment=augment, progress=False)
        return predict(model, data)

    images, features = pictures(), blobs()
    assert torch.equal(trained(images, SmallCNN, "usual"), trained(images, SmallCNN, random_shift))
    assert not torch.equal(trained(images, SmallCNN, "usual"), trained(images, SmallCNN, None))
    assert torch.equal(trained(features, OnlyHead(5), "usual"), trained(features, OnlyHead(5), None))
    with pytest.raises(ValueError, match="augment: got 'shift'; allowed: a function, None or 'usual'"):
        trained(images, SmallCNN, "shift")


def test_a_head_on_features_learns_what_the_whole_network_with_a_frozen_backbone_learns():
    """On features that were computed once, cross-entropy gives the same head as in the network they come from."""
    torch.manual_seed(0)
    images = pictures(30)
    whole = SmallCNN(3)
    whole.backbone.requires_grad_(False)
    alone = OnlyHead(whole.feature_dim)(3)
    alone.head = copy.deepcopy(whole.head)
    features = LabeledFeatures(extract_features(whole, images), images.labels, NAMES)
    for model, data in ((whole, images), (alone, features)):
        fit(model, data, epochs=3, batch_size=8, augment=None, progress=False)
    torch.testing.assert_close(alone.head.weight, whole.head.weight)


def test_every_method_is_a_head_on_features():
    train, test = blobs(), blobs((40, 40, 40), seed=1)
    names = [name for name in METHODS if name != "OLTR memory"]
    done = train_methods(names, train, test, network=OnlyHead(5), epochs=4, batch_size=8, lr=0.05)
    for name, trained in done.items():
        said = trained.logits(test).argmax(1)
        assert balanced_accuracy(said, test.labels, 3) > 0.5, name
    plain, balanced = (done[n].logits(test).argmax(1) for n in ("cross-entropy", "balanced softmax"))
    assert (balanced == 2).sum() > (plain == 2).sum()


def test_oltr_says_that_it_needs_a_map_to_attend_to():
    with pytest.raises(ValueError, match=r"images: got shape \(1, 5\); allowed: \(B, channels, H, W\)"):
        train_method("OLTR memory", blobs(), None, network=OnlyHead(5), epochs=2)


def test_frozen_statistics_stand_still_while_weights_learn():
    torch.manual_seed(0)
    model = freeze_statistics(SmallCNN(3))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    before, weight = norm.running_mean.clone(), norm.weight.detach().clone()
    fit(model, pictures(), epochs=2, batch_size=4, progress=False)
    assert torch.equal(norm.running_mean, before) and not torch.equal(norm.weight, weight)
    assert all(m.training for m in model.modules())  # fit() gives every module back in the mode it came in
    fit(unfrozen := SmallCNN(3), pictures(), epochs=1, batch_size=4, progress=False)
    assert not torch.equal(next(m for m in unfrozen.modules() if isinstance(m, nn.BatchNorm2d)).running_mean, before)


def test_only_head_makes_classifiers_of_its_width():
    model = OnlyHead(7)(4)
    assert isinstance(model, ImageClassifier) and model(torch.zeros(2, 7)).shape == (2, 4)
