"""Backbones that turn an image into a feature vector. The classifier on top is always `model.head`.

Every network is `features -> head`: `model.features(x)` gives the (B, D) feature vectors, `model(x)` the (B, C)
logits. Methods of the course change the head, the loss or the sampler, and leave the backbone alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .runtime import require


class ImageClassifier(nn.Module):
    """A backbone and a head. `feature_dim` is D, the length of a feature vector; `num_classes` is C."""

    backbone: Any  # each a module; methods that take a network apart know which
    head: Any

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int, head: nn.Module | None = None):
        super().__init__()
        require(num_classes >= 1, "num_classes", num_classes, "at least 1")
        self.backbone = backbone
        self.feature_dim, self.num_classes = feature_dim, num_classes
        self.head = nn.Linear(feature_dim, num_classes) if head is None else head
        self.to(memory_format=torch.channels_last)  # convolutions are faster that way

    def features(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) float images to (B, D) features, both in the type of the weights."""
        require(images.is_floating_point(), "images", images.dtype, "floats, as of training.to_float()")
        return self.backbone(images.to(next(self.parameters(), images).dtype))

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) float images to (B, C) logits."""
        return self.head(self.features(images))


class MLP(ImageClassifier):
    """Two hidden layers with ReLU: pixels -> 128 -> 64 features. The fastest network of the course."""

    def __init__(
        self, num_classes: int, *, in_features: int = 784, hidden: int = 128, feature_dim: int = 64, head=None
    ):
        backbone = nn.Sequential(
            nn.Flatten(), nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, feature_dim), nn.ReLU()
        )
        super().__init__(backbone, feature_dim, num_classes, head)


def _conv(in_channels: int, out_channels: int, stride: int = 1, kernel: int = 3) -> list[nn.Module]:
    """Convolution, batch normalization, ReLU."""
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class _MeanOverMap(nn.Module):
    """(B, D, H, W) to (B, D). Its gradient keeps the memory order of the convolutions; adaptive pooling's does not."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, x.shape[-2:]).flatten(1)


class SmallCNN(ImageClassifier):
    """Three convolutions (5x5, 3x3, 3x3; 16, 32, 64 channels), each halving the map, then its mean: 64 features.

    Small on purpose: 26 letters in 20 epochs take seconds on one CPU thread.
    `feature_dim` other than None adds one linear layer without an activation, so that features can be drawn in
    the plane (`feature_dim=2`).
    """

    def __init__(
        self, num_classes: int, *, in_channels: int = 1, width: int = 16, feature_dim: int | None = None, head=None
    ):
        layers = [
            *_conv(in_channels, width, stride=2, kernel=5),
            *_conv(width, 2 * width, stride=2),
            *_conv(2 * width, 4 * width, stride=2),
            _MeanOverMap(),
        ]
        if feature_dim is not None:
            layers.append(nn.Linear(4 * width, feature_dim))
        super().__init__(nn.Sequential(*layers), feature_dim or 4 * width, num_classes, head)


class _Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights ("option A"): every second pixel, zeros as new channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - in_channels
        self.first = nn.Sequential(*_conv(in_channels, out_channels, stride))
        self.second = nn.Sequential(*_conv(out_channels, out_channels)[:2])

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or self.new_channels:
            half = self.new_channels // 2
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(self.second(self.first(x)) + shortcut)


class ResNet32(ImageClassifier):
    """The CIFAR ResNet-32 of He et al. 2016 (section 4.2): 3 stages of 5 blocks, 16, 32 and 64 channels, D = 64.

    Kaiming-normal weights as in the released LDAM code (Cao et al. 2019). About 0.46 million parameters.
    """

    def __init__(self, num_classes: int, *, in_channels: int = 3, head=None):
        layers: list[nn.Module] = _conv(in_channels, 16)
        channels = 16
        for width in (16, 32, 64):
            for block in range(5):
                layers.append(_Residual(channels, width, stride=2 if block == 0 and width > 16 else 1))
                channels = width
        layers.append(_MeanOverMap())
        super().__init__(nn.Sequential(*layers), 64, num_classes, head)
        for module in self.modules() if head is None else self.backbone.modules():  # a given head stays as it is
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)


# ---- EfficientNet-Lite0, in the names of its published file ----------------------------------------------------------


class _SameConv(nn.Conv2d):
    """Convolution whose map is ceil(length / stride) long; of an odd number of zeros, one more is right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        missing = [max((-(-length // stride) - 1) * stride + kernel - length, 0) for length in input.shape[-2:]]
        before = [zeros // 2 for zeros in missing]
        if any(zeros % 2 for zeros in missing):
            (top, left), (high, wide) = before, missing
            input, before = F.pad(input, (left, wide - left, top, high - top)), [0, 0]
        return F.conv2d(input, self.weight, None, self.stride, before, 1, self.groups)


def _normalization(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Inverted(nn.Module):
    """1x1 to more channels, one k x k filter for each of them, 1x1 to fewer (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, factor: int):
        super().__init__()
        wide = factor * inputs
        if factor > 1:
            self._expand_conv, self._bn0 = _SameConv(inputs, wide, 1), _normalization(wide)
        self._depthwise_conv, self._bn1 = _SameConv(wide, wide, kernel, stride, wide), _normalization(wide)
        self._project_conv, self._bn2 = _SameConv(wide, outputs, 1), _normalization(outputs)
        self.widens, self.adds = factor > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) to features (B, 1280): EfficientNet-B0 (Tan & Le 2019, table 1) for phones.

    It has no squeeze-and-excitation, and ReLU6 as its activation (the released EfficientNet-Lite, 2020). A backbone
    without a head, whose names are those of the published file of weights: see `backbones.backbone()`.
    """

    STAGES = (  # blocks, outputs, kernel, stride of the first block, factor
        (1, 16, 3, 1, 1),
        (2, 24, 3, 2, 6),
        (2, 40, 5, 2, 6),
        (3, 80, 3, 2, 6),
        (3, 112, 5, 1, 6),
        (4, 192, 5, 2, 6),
        (1, 320, 3, 1, 6),
    )

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = _SameConv(3, 32, 3, 2), _normalization(32)
        self._blocks, channels = nn.ModuleList(), 32
        for blocks, outputs, kernel, stride, factor in self.STAGES:
            for block in range(blocks):
                self._blocks.append(_Inverted(channels, outputs, kernel, 1 if block else stride, factor))
                channels = outputs
        self._conv_head, self._bn1 = _SameConv(channels, 1280, 1), _normalization(1280)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


@dataclass(frozen=True)
class OnlyHead:
    """For `LabeledFeatures`: the features are there already, and only a head learns. A network for `methods.Setting`.

    feature_dim: D. `OnlyHead(D)(C)` is an `ImageClassifier` whose backbone hands its (B, D) input on.
    """

    feature_dim: int

    def __call__(self, num_classes: int) -> ImageClassifier:
        return ImageClassifier(nn.Identity(), self.feature_dim, num_classes)


NETWORKS: dict[str, Callable] = {  # {name: function of one image's shape -> a class, as `methods.Setting` takes it}
    "MLP": lambda shape: partial(MLP, in_features=shape.numel()),
    "SmallCNN": lambda shape: partial(SmallCNN, in_channels=shape[0]),
    "ResNet32": lambda shape: partial(ResNet32, in_channels=shape[0]),
}


def parameter_count(model: nn.Module) -> int:
    """How many trainable numbers `model` holds."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter: where its input has to be."""
    return next(model.parameters()).device
