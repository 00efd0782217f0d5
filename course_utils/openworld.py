"""OLTR: many, few and unknown classes at once (Liu et al. 2019). A memory beside the features, and a way to say "none".

f is the direct feature of an image (D numbers), M the visual memory: one centroid for each of K known classes. Rare
classes borrow from the memory, and an image that is far from every centroid gets little confidence. Labels of unknown
("open") images are -1.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .data import Labeled
from .decoupling import class_means
from .machinery.checks import floats, of_classes, whole
from .metrics import confidence_of, open_set_auroc, open_set_fpr, per_class_accuracy, shot_accuracy
from .networks import ImageClassifier
from .runtime import keeping_random_state, on_cpu, require
from .sampling import ClassBalancedSampler, EpochSampler
from .training import evaluating, extract_features, first_input, fit


def centroid_distances(features: Tensor, centroids: Tensor) -> Tensor:
    """Euclidean distances (B, K) of features (B, D) from centroids (K, D), in memory of that size, not B x K x D."""
    return torch.cdist(*_checked_widths(features, centroids))


def nearest_distance(features: Tensor, centroids: Tensor) -> Tensor:
    """Euclidean distance (B,) of each feature (B, D) from the nearest centroid of (K, D).

    One matrix product finds which centroid is nearest, and the distance to that one alone is then taken exactly: the
    smallest of `centroid_distances()` is not 0 for an image right on a centroid, since large squares are subtracted
    there. The gradient runs to that centroid alone, and there is none at a distance of 0.
    """
    features, centroids = _checked_widths(features, centroids)
    with torch.no_grad():
        # ||f - c||^2 is smallest where ||c||^2 - 2 f.c is; in place, so never under autocast
        squares = torch.linalg.vector_norm(centroids, dim=1).square().expand(len(features), -1).contiguous()
        squares.addmm_(features, centroids.T, alpha=-2)
        nearest = squares.argmin(1)
    return torch.linalg.vector_norm(features - centroids[nearest], dim=1)


def _checked_widths(features: Tensor, centroids: Tensor) -> list[Tensor]:
    """Both in one type, at least float32: squares of 256 and more are infinite in float16."""
    fit = features.ndim == centroids.ndim == 2 and features.shape[1] == centroids.shape[1]
    seen = f"shape {tuple(centroids.shape)} beside features of {tuple(features.shape)}"
    require(fit and len(centroids), "centroids", seen, "(K, D) beside (B, D), with the same D")
    return floats(features=features, centroids=centroids)


def squash(vectors: Tensor) -> Tensor:
    """v / (1 + ||v||): the same direction, a length below 1: (B, D) to (B, D). Safe at v = 0.

    The form of the released code. The paper prints ||v||^2 / (1 + ||v||^2); its author calls that a slip.
    """
    (vectors,) = floats(vectors=vectors)
    require(vectors.ndim == 2, "vectors", f"shape {tuple(vectors.shape)}", "(B, D)")
    return vectors / (1 + vectors.norm(dim=1, keepdim=True))


class MetaEmbedding(NamedTuple):
    """The parts of the dynamic meta-embedding of B images, beside K centroids and D features."""

    nearest: Tensor  # (B,) distance to the nearest centroid, d_min
    reachability: Tensor  # (B,) reach / d_min
    weights: Tensor  # (B, K) how much of each centroid is read; rows sum to 1
    memory_feature: Tensor  # (B, D) what was read: weights @ M
    selector: Tensor  # (B, D) how much of it each feature takes, -1 to 1
    embedding: Tensor  # (B, D) reachability * (f + selector * memory_feature)


class MetaEmbeddingClassifier(nn.Module):
    """Dynamic meta-embedding and its cosine classifier: a head from features (B, D) to logits (B, K).

    Liu et al. 2019, "Dynamic Meta-Embedding": v = (reach / d_min) (f + e * o M), with o = softmax of the hallucinator,
    e = tanh of the concept selector, and d_min the distance from f to the nearest centroid. Logits are
    scale * squash(v) . w_j / ||w_j||: each is between -scale and scale.

    Args:
        centroids: (K, D), where the memory starts. Copied. Cross-entropy never changes the memory: it is read without
            a gradient, and only a loss that is given `head.memory` moves it.
        classifier: linear classifier of stage 1, (K, D); the hallucinator starts as a copy of it.
        reach: the distance at which reachability is 1; above 0. Distances have no natural unit: take the mean of
            d_min over the training images, divided by the mean length of f (`second_stage()` does).
        scale: bound of the logits, above 0.
        use_memory, use_selector, use_reachability: False leaves that part out (o M is 0; e is 1; reach / d_min is 1).

    Raises:
        ValueError: an argument out of range, or features whose width is not that of the centroids.

    Differs from the released code in: `reach` is measured instead of 10; d_min is at least reach / 1000, so that an
    image right on a centroid gives numbers, not NaN; no gradient runs through a distance of 0.
    """

    def __init__(
        self,
        centroids: Tensor,
        classifier: nn.Linear | None = None,
        *,
        reach: float = 10.0,
        scale: float = 16.0,
        use_memory: bool = True,
        use_selector: bool = True,
        use_reachability: bool = True,
    ):
        super().__init__()
        shape = tuple(centroids.shape)
        finite = len(shape) == 2 and len(centroids) and centroids.isfinite().all()
        require(finite, "centroids", f"shape {shape}", "finite numbers (K, D)")
        (centroids,) = floats(centroids=centroids)
        for name, value in (("reach", reach), ("scale", scale)):
            require(0 < value < math.inf, name, value, "above 0")
        given = shape if classifier is None else tuple(classifier.weight.shape)
        require(given == shape, "classifier", f"weights of shape {given}", shape)
        num_classes, in_features = shape
        self.reach, self.scale = float(reach), float(scale)
        self.use_memory, self.use_selector, self.use_reachability = use_memory, use_selector, use_reachability
        self.memory = nn.Parameter(centroids.detach().clone())
        start = torch.empty(num_classes, in_features).uniform_(-1, 1)  # on the CPU: a seed is the same everywhere
        self.weight = nn.Parameter(start / math.sqrt(in_features))
        self.hallucinator: Any = nn.Linear(in_features, num_classes) if use_memory else None
        self.selector = nn.Linear(in_features, in_features) if use_memory and use_selector else None
        if use_memory and classifier is not None:
            self.hallucinator.load_state_dict(classifier.state_dict(), strict=False)
        self.to(centroids)

    def embed(self, features: Tensor) -> MetaEmbedding:
        """(B, D) to the parts of the meta-embedding; a part that is left out is what leaves the rest as it is."""
        memory = self.memory.detach()
        features = floats(features=features)[0].to(memory.dtype)
        nearest = nearest_distance(features, memory)  # d_min
        # gamma = reach / d_min
        reachability = torch.ones_like(nearest)
        if self.use_reachability:
            reachability = self.reach / nearest.clamp(min=self.reach / 1000)
        # o = softmax(hallucinator(f)), and o M is read from the memory
        weights = features.new_zeros(len(features), len(memory))
        if self.use_memory:
            weights = self.hallucinator(features).softmax(1)
        read = weights @ memory
        # e = tanh(selector(f))
        selector = torch.ones_like(features) if self.selector is None else self.selector(features).tanh()
        # v = gamma (f + e * o M)
        embedding = reachability[:, None] * (features + selector * read)
        return MetaEmbedding(nearest, reachability, weights, read, selector, embedding)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to logits (B, K)."""
        squashed, weight = floats(embedding=squash(self.embed(features).embedding), weight=self.weight)
        # z_j = scale * squash(v) . w_j / ||w_j||
        return self.scale * squashed @ F.normalize(weight, dim=1).T


class DiscriminativeCentroidLoss(nn.Module):
    """Pull a feature to the centroid of its class, push it from the others: attract + repel_weight * repel.

    attract = sum_i ||f_i - c_{y_i}||^2 / (2 B); repel = max(0, margin - mean squared distance to the other centroids).
    With `pairwise` the hinge works on every pair of image and other centroid alone, and the mean is taken afterwards.
    The large-margin loss that Liu et al. 2019 print has a third form: one hinge over the sums of both halves.

    Args:
        margin: a squared distance, above 0. repel_weight: at least 0.

    Differs from the released code in: the centroids get the true gradient of both halves, times the weight of the
    loss. There, attraction moves centroid k by a gradient written by hand, which ignores that weight and is divided by
    1 + n_k, for n_k images of class k in the batch. As there, the mean of the repelling half divides by B K although
    the B own pairs are left out.
    """

    def __init__(self, margin: float = 10.0, repel_weight: float = 0.01, pairwise: bool = False):
        super().__init__()
        fine = margin > 0 and repel_weight >= 0
        require(fine, "margin, repel_weight", f"{margin}, {repel_weight}", "above 0, and at least 0")
        self.margin, self.repel_weight, self.pairwise = margin, repel_weight, pairwise

    def halves(self, features: Tensor, labels: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D), int64 (B,), (K, D) to the scalars attract and repel; not weighted."""
        features, centroids = _checked_widths(features, centroids)
        size, classes = len(features), len(centroids)
        require(labels.shape == (size,), "labels", f"shape {tuple(labels.shape)}", f"({size},)")
        require(labels.dtype == torch.int64, "labels", labels.dtype, "int64")
        if size and on_cpu(labels):  # on a GPU index_select() checks them, without a wait
            low, high = labels.aminmax()
            require(0 <= low <= high < classes, "labels", f"{low} to {high}", f"0 to {classes - 1}")
        # attract = sum_i ||f_i - c_{y_i}||^2 / (2 B)
        own = (features - centroids.index_select(0, labels)).square().sum()
        attract = own / (2 * size)
        if self.pairwise:
            # repel = sum over i and j != y_i of max(0, margin - ||f_i - c_j||^2) / (B K)
            close = (self.margin - centroid_distances(features, centroids).square()).clamp(min=0)
            return attract, close.scatter(1, labels[:, None], 0.0).sum() / (size * classes)
        # repel = max(0, margin - sum over i and j != y_i of ||f_i - c_j||^2 / (B K)), without a matrix of that size:
        # sum over all i and j = K sum ||f_i||^2 + B sum ||c_j||^2 - 2 (sum f_i) . (sum c_j)
        every = classes * features.square().sum() + size * centroids.square().sum()
        every = every - 2 * features.sum(0) @ centroids.sum(0)
        return attract, (self.margin - (every - own) / (size * classes)).clamp(min=0)

    def forward(self, features: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
        attract, repel = self.halves(features, labels, centroids)
        return attract + self.repel_weight * repel


PARTS = ("memory", "selector", "reachability", "attention", "centroid loss")


class CentroidObjective:
    """Cross-entropy plus `weight` times the centroid loss of the direct features, for `fit(objective=...)`.

    The centroids it moves are the memory of `model.head`.
    """

    def __init__(self, criterion: DiscriminativeCentroidLoss, weight: float):
        require(weight >= 0, "centroid_weight", weight, "at least 0")
        self.criterion, self.weight = criterion, weight

    def __call__(self, model: ImageClassifier, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        features = model.features(images)
        loss = F.cross_entropy(model.head(features), labels)
        return loss + self.weight * self.criterion(features, labels, model.head.memory)


def second_stage(
    model: ImageClassifier,
    train: Labeled,
    parts: Sequence[str] | None = PARTS,
    *,
    epochs: int = 10,
    scale: float = 16.0,
    centroid_weight: float = 0.1,
    criterion: DiscriminativeCentroidLoss | None = None,
    sampler: EpochSampler | None = None,
    seed: int = 0,
    **settings,
) -> ImageClassifier:
    """Train a copy of a stage-1 network on, with class-balanced sampling and with parts of OLTR; return the copy.

    Args:
        model: trained by cross-entropy on the long tail, with a linear head, on the device of `train`. It is left
            alone.
        parts: some of `PARTS`. None keeps the linear head: the fair baseline, as long and as balanced, without OLTR.
            An empty sequence is the squashed cosine classifier alone, without a memory.
        epochs, settings: as in `training.fit()`.
        scale: of the cosine classifier.
        centroid_weight, criterion: of the part "centroid loss"; by default the pairwise form, whose margin is the mean
            squared distance between centroids.
        sampler: class-balanced by default.
        seed: of the order and of the new weights.

    The memory starts at the class centroids of stage 1. `reach` is the mean distance to the nearest centroid over the
    mean length of f: then ||v|| is about 1 for a usual image, where `squash` still tells near from far.

    Raises:
        ValueError: an unknown part, a selector without memory, or a class without images.

    Differs from the released code in: one learning rate for all parts (there, on ImageNet-LT, a tenth of it for the
    backbone and the centroids); no weight decay of the memory, which would pull centroids to 0; `centroid_weight` is
    0.1, there 0.01; a hinge for each pair with a measured margin, there one for the batch with margin 10; no new layer.
    There, on ImageNet-LT, features pass a linear layer and ReLU (`fc_add`) that stage 1 did not have, so the first
    centroids are means of features behind random weights.
    """
    objective, groups = None, {}
    with keeping_random_state() as reseed:  # on the CPU: a seed is the same everywhere
        reseed(seed)
        model = copy.deepcopy(model) if parts is None else with_parts(model, train, parts, scale=scale, seed=seed)
        if "centroid loss" in (parts or ()):
            between = torch.pdist(model.head.memory.detach()).square().mean().item()
            criterion = criterion or DiscriminativeCentroidLoss(between, pairwise=True)
            objective, groups = CentroidObjective(criterion, centroid_weight), {"head.memory": {"weight_decay": 0}}
    sampler = ClassBalancedSampler(train.labels, seed=seed) if sampler is None else sampler
    fit(model, train, epochs=epochs, sampler=sampler, objective=objective, groups=groups, seed=seed, **settings)
    return model


def with_parts(
    model: ImageClassifier, train: Labeled, parts: Sequence[str] = PARTS, *, scale: float = 16.0, seed: int = 0
) -> ImageClassifier:
    """A copy of a stage-1 network with parts of OLTR, as stage 2 starts: not trained yet.

    Args, Raises: as for `second_stage()`, where `parts` is not None. "centroid loss" is no layer and adds nothing here.
    """
    for part in sorted(parts):
        require(part in PARTS, "parts", repr(part), ", ".join(PARTS))
    readable = "memory" in parts or "selector" not in parts
    require(readable, "parts", "'selector' without 'memory'", "both, since it chooses what is read")
    with keeping_random_state() as reseed:
        reseed(seed)
        model = copy.deepcopy(model)
        features = extract_features(model, train)
        # M_k = mean feature of class k;  reach = mean d_min / mean ||f||
        centroids = class_means(features, train.labels, train.num_classes)
        nearest = nearest_distance(features, centroids)
        model.head = MetaEmbeddingClassifier(
            centroids,
            model.head,
            scale=scale,
            reach=(nearest.mean() / features.norm(dim=1).mean()).item(),
            **{f"use_{part}": part in parts for part in PARTS[:3]},
        )
        return with_attention(model, first_input(train)) if "attention" in parts else model


class ModulatedAttention(nn.Module):
    """Self-attention over the positions of a map, let through by a spatial gate: x + gate * attended(x).

    Liu et al. 2019, "Modulated Attention". With x of shape (B, channels, height, width) and P = height * width
    positions: attended = out(A g(x)), A = softmax over the P keys of theta(x)^T phi(x), not divided by a square root;
    gate = softmax over the P positions of a linear layer on the whole map, the same for every channel. theta, phi and g
    are 1 x 1 convolutions, so one linear layer applied at every position.

    The layer starts as the identity: `out` starts at 0. The map size is fixed when the layer is made.

    Differs from the released code, which is written for 7 x 7 maps, and whose identity start is lost because the
    network around it draws all convolutions anew.
    """

    def __init__(self, channels: int, height: int, width: int):
        super().__init__()
        self.shape = (channels, height, width)
        require(min(self.shape) >= 1, "channels, height, width", f"{channels}, {height}, {width}", "at least 1")
        self.inner = max(1, channels // 2)
        self.theta_phi_g = nn.Linear(channels, 3 * self.inner)
        self.out = nn.Linear(self.inner, channels, bias=False)
        nn.init.zeros_(self.out.weight)
        self.spatial = nn.Linear(height * width * channels, height * width)  # reads position after position

    def _positions(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) to (B, P, channels): no copy if x is channels-last."""
        allowed = f"(B, {', '.join(map(str, self.shape))})"
        require(x.shape[1:] == self.shape, "x", f"shape {tuple(x.shape)}", allowed)
        x = floats(x=x)[0].to(self.out.weight.dtype)
        return x.permute(0, 2, 3, 1).flatten(1, 2)

    def gate(self, x: Tensor) -> Tensor:
        """(B, height, width), sums to 1 over the positions: where the attended map is let through."""
        return self.spatial(self._positions(x).flatten(1)).softmax(1).view(-1, *self.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        # A = softmax(theta(x)^T phi(x));  x + gate * out(A g(x))
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
    require(images.ndim == 4, "images", f"shape {tuple(images.shape)}", "(B, channels, H, W)")
    images = floats(images=images)[0].to(next(model.parameters()).dtype)
    model = copy.deepcopy(model)
    layers = list(model.backbone)
    with evaluating(model):
        map_shape = nn.Sequential(*layers[:-1])(images[:1]).shape[1:]
    seen = f"{tuple(map_shape)} from its last layer but one"
    require(len(map_shape) == 3, "model", seen, "a map, then its mean")
    model.backbone = nn.Sequential(*layers[:-1], ModulatedAttention(*map_shape).to(images.device), layers[-1])
    return model


# ---- known and unknown at once: scores and thresholds ----------------------------------------------------------------


OPEN = -1


def open_world_scores(probabilities: Tensor, labels: Tensor, class_counts: Tensor | Sequence[int]) -> dict[str, float]:
    """Closed accuracy by group, and known against open by confidence, without a threshold; all 0 to 1.

    probabilities: (N, C). labels: integers (N,), -1 for open images. class_counts: (C,) training images.

    Returns:
        "many", "medium", "few", "all": of the known images alone, as `metrics.shot_accuracy()`. "AUROC", "FPR95": of
        the largest probability, as `metrics.open_set_auroc()` and `open_set_fpr()`; NaN without both kinds.
    """
    confidence, predictions = confidence_of(probabilities)
    labels = whole("labels", labels)
    require(len(labels) == len(confidence), "labels", f"{len(labels)} of them", f"{len(confidence)}, one an image")
    counts, classes = of_classes("class_counts", class_counts), probabilities.shape[1]
    require(len(counts) == classes, "class_counts", f"{len(counts)} of them", f"{classes}, one for each class")
    known = labels != OPEN
    accuracy = per_class_accuracy(predictions[known], labels[known], probabilities.shape[1])
    return shot_accuracy(accuracy, counts) | {
        "AUROC": open_set_auroc(confidence, ~known),
        "FPR95": open_set_fpr(confidence, ~known),
    }


def reject(probabilities: Tensor, threshold: float) -> Tensor:
    """The most probable class, or -1 ("open") where its probability is below the threshold: (N, C) to int64 (N,).

    threshold: 0 to 1. The comparison is strict, as in the released code, so 0 rejects nothing. The paper's is 0.1.
    """
    require(0 <= threshold <= 1, "threshold", threshold, "0 to 1")
    confidence, predictions = confidence_of(probabilities)
    # -1 where max_j p_j < threshold
    return torch.where(confidence < threshold, OPEN, predictions)
