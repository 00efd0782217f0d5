"""networks.py: shapes, sizes, and heads from outside."""

import math

import pytest
import torch
from torch import nn

from course_utils.data import LabeledImages
from course_utils.networks import MLP, ResNet32, SmallCNN, device_of, parameter_count
from course_utils.training import extract_features, predict

NETWORKS = [
    (lambda: MLP(26), (1, 28, 28), 64, 26),
    (lambda: MLP(5, in_features=3 * 8 * 8, hidden=20, feature_dim=7), (3, 8, 8), 7, 5),
    (lambda: SmallCNN(26), (1, 28, 28), 64, 26),
    (lambda: SmallCNN(10, in_channels=3), (3, 32, 32), 64, 10),
    (lambda: SmallCNN(3, width=4, feature_dim=2), (1, 28, 28), 2, 3),
    (lambda: SmallCNN(3, width=5), (1, 9, 13), 20, 3),
    (lambda: ResNet32(10), (3, 32, 32), 64, 10),
    (lambda: ResNet32(26, in_channels=1), (1, 28, 28), 64, 26),
]


@pytest.mark.parametrize(("build", "image", "dim", "classes"), NETWORKS)
def test_features_and_logits_have_their_shapes_and_the_head_joins_them(build, image, dim, classes):
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(3, *image)
    with torch.no_grad():
        features, logits = model.features(images), model(images)
        assert torch.allclose(model.head(features), logits)
    assert features.shape == (3, dim) and model.feature_dim == dim
    assert logits.shape == (3, classes) and model.num_classes == classes
    assert logits.std(0).min() > 0, "different images give different logits"


@pytest.mark.parametrize(("build", "image", "dim", "classes"), NETWORKS)
def test_every_parameter_gets_a_gradient(build, image, dim, classes):
    torch.manual_seed(0)
    model = build()
    model(torch.randn(6, *image)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_sizes():
    assert 0.45e6 < parameter_count(ResNet32(10)) < 0.47e6
    assert len([m for m in ResNet32(10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]) == 32
    assert parameter_count(MLP(26)) == 784 * 128 + 128 + 128 * 64 + 64 + 64 * 26 + 26
    convolutions = 16 * 25 + 32 * 16 * 9 + 64 * 32 * 9
    assert parameter_count(SmallCNN(26)) == convolutions + 2 * (16 + 32 + 64) + 64 * 26 + 26


def test_frozen_parameters_are_not_counted():
    model = MLP(3)
    model.backbone.requires_grad_(False)
    assert parameter_count(model) == 64 * 3 + 3


def test_resnet_shortcuts_subsample_and_pad_with_zeros():
    """With a silent branch a block is its shortcut: every second pixel, zeros before and after the old channels."""
    block = ResNet32(10).backbone[8]
    assert (block.stride, block.new_channels) == (2, 16)
    nn.init.zeros_(block.second[1].weight)
    x = torch.rand(2, 16, 8, 8)
    y = block.eval()(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and y[:, :8].abs().sum() == 0 == y[:, 24:].abs().sum()


@pytest.mark.parametrize("kind", [MLP, SmallCNN, ResNet32])
def test_a_head_from_outside_is_used_as_it_is(kind):
    head = nn.Linear(64, 4, bias=False)
    nn.init.constant_(head.weight, 0.5)
    model = kind(4, head=head)
    assert model.head is head and (head.weight == 0.5).all()


@pytest.mark.parametrize("kind", [MLP, SmallCNN, ResNet32])
def test_weights_depend_on_torchs_seed(kind):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in kind(3).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


def test_a_network_without_classes_is_refused():
    with pytest.raises(ValueError, match="num_classes: got 0; allowed: at least 1"):
        MLP(0)


def test_device_of_a_model():
    assert device_of(MLP(2)) == torch.device("cpu")
    assert device_of(MLP(2).to("meta")) == torch.device("meta")


def test_images_are_floats_and_come_into_the_type_of_the_weights():
    model, images = MLP(3, in_features=16), torch.rand(2, 1, 4, 4).half()
    assert model(images).equal(model(images.float())) and model(images.double()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"images: got torch.uint8; allowed: floats, as of training.to_float\(\)"):
        model(images.byte())


def test_no_answer_of_a_network_is_nan():
    data = LabeledImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    model = MLP(2, in_features=16)
    with torch.no_grad():
        model.head.bias[1] = math.nan
    assert extract_features(model, data).isfinite().all()
    with pytest.raises(ValueError, match="model: got NaN in its answers"):
        predict(model, data)
