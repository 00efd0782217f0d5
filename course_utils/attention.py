"""Modulated attention, a layer of OLTR (Liu et al. 2019): the positions of a map look at one another."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from .networks import ImageClassifier
from .training import evaluating


class ModulatedAttention(nn.Module):
    """Self-attention over the positions of a map, let through by a spatial gate: x + gate * attended(x).

    Liu et al. 2019, section 3.3. With x of shape (B, channels, height, width) and P = height * width positions:
    attended = out(A g(x)), A = softmax over the P keys of theta(x)^T phi(x), not divided by a square root; gate =
    softmax over the P positions of a linear layer on the whole map, the same for every channel. theta, phi and g are
    1 x 1 convolutions, so one linear layer applied at every position.

    The layer starts as the identity: `out` starts at 0. The map size is fixed when the layer is made.

    Differs from the released code, which is written for 7 x 7 maps, and whose identity start is lost because the
    network around it draws all convolutions anew.
    """

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        if min(channels, height, width) < 1:
            raise ValueError(f"channels, height, width: got {channels}, {height}, {width}; allowed: at least 1")
        self.shape = (channels, height, width)
        self.inner = max(1, channels // 2)
        self.theta_phi_g = nn.Linear(channels, 3 * self.inner)
        self.out = nn.Linear(self.inner, channels, bias=False)
        nn.init.zeros_(self.out.weight)
        self.spatial = nn.Linear(height * width * channels, height * width)  # reads position after position

    def _positions(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) to (B, P, channels): no copy if x is channels-last."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x: got shape {tuple(x.shape)}; allowed: (B, {', '.join(map(str, self.shape))})")
        return x.permute(0, 2, 3, 1).flatten(1, 2)

    def gate(self, x: Tensor) -> Tensor:
        """(B, height, width), sums to 1 over the positions: where the attended map is let through."""
        return self.spatial(self._positions(x).flatten(1)).softmax(1).view(-1, *self.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = self.theta_phi_g(self._positions(x)).split(self.inner, dim=2)  # each (B, P, inner)
        affinity = (theta @ phi.transpose(1, 2)).softmax(2)  # (B, P, P), rows sum to 1
        attended = self.out(affinity @ g).unflatten(1, self.shape[1:]).permute(0, 3, 1, 2)
        return x + self.gate(x)[:, None] * attended


def with_attention(model: ImageClassifier, images: Tensor) -> ImageClassifier:
    """A copy of `model` with a `ModulatedAttention` before the mean over the map; it still gives the same features.

    images: (B, channels, H, W) floats; their size says how large the map is. The layer is `copy.backbone[-2]`.

    Raises:
        ValueError: a network that has no map before its last layer.
    """
    model = copy.deepcopy(model)
    layers = list(model.backbone)
    with evaluating(model):
        map_shape = nn.Sequential(*layers[:-1])(images[:1]).shape[1:]
    if len(map_shape) != 3:
        raise ValueError(f"model: its last layer but one gives {tuple(map_shape)}; allowed: a map, then its mean")
    model.backbone = nn.Sequential(*layers[:-1], ModulatedAttention(*map_shape).to(images.device), layers[-1])
    return model
