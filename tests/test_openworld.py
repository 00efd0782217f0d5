"""openworld.py: meta-embedding, attention and centroid loss of OLTR against slow references, and its second stage."""

import copy
import math

import pytest
import torch
from pretend_gpu import pretend_gpu
from torch import nn
from torch.nn import functional as F

from course_utils import openworld
from course_utils.data import LabeledImages
from course_utils.decoupling import class_means
from course_utils.metrics import accepting_threshold, open_set_auroc, open_set_f_measure, open_set_fpr, shot_accuracy
from course_utils.networks import MLP, SmallCNN
from course_utils.openworld import (
    PARTS,
    CentroidObjective,
    DiscriminativeCentroidLoss,
    MetaEmbeddingClassifier,
    ModulatedAttention,
    centroid_distances,
    nearest_distance,
    reject,
    second_stage,
    squash,
    with_attention,
    with_parts,
)
from course_utils.sampling import ClassBalancedSampler
from course_utils.training import evaluating, fit, predict, to_float

pytestmark = pytest.mark.usefixtures("one_thread")


def some(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_labels(n, classes, seed=0):
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


def a_head(classes=5, width=7, *, seed=0, dtype=torch.float32, **options):
    """A head whose every part does something, in no special state."""
    torch.manual_seed(seed)
    head = MetaEmbeddingClassifier(2 * some(classes, width, seed=seed + 1), nn.Linear(width, classes), **options)
    if head.selector is not None:
        nn.init.normal_(head.selector.weight)
    return head.to(dtype)


# ---- centroids and distances ---------------------------------------------------------------------------------------


def slow_distances(features, centroids):
    return torch.stack(
        [
            torch.stack([sum((a - b) ** 2 for a, b in zip(f, c, strict=True)).sqrt() for c in centroids])
            for f in features
        ]
    )


@pytest.mark.parametrize(("batch", "classes", "width"), [(9, 4, 5), (1, 3, 2), (30, 31, 3)])
def test_distances_against_loops(batch, classes, width):
    features, centroids = some(batch, width), some(classes, width, seed=1)
    want = slow_distances(features, centroids)
    assert torch.allclose(centroid_distances(features, centroids), want, atol=1e-5)
    assert torch.allclose(nearest_distance(features, centroids), want.amin(1), atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 60])
def test_the_nearest_distance_is_0_right_on_a_centroid_in_a_batch_of_any_size(batch):
    features = 3 * some(batch, 64).relu()
    centroids = torch.cat([features.flip(0), some(40, 64, seed=1)])
    assert torch.equal(nearest_distance(features, centroids), torch.zeros(batch))
    assert nearest_distance(features, centroids + 0.01).allclose(torch.tensor(0.08), rtol=1e-3)


def test_the_nearest_distance_has_the_gradient_of_the_smallest_distance():
    features, centroids = some(6, 5, dtype=torch.float64), some(4, 5, seed=1, dtype=torch.float64)
    inputs = features.requires_grad_(), centroids.requires_grad_()
    assert torch.autograd.gradcheck(nearest_distance, inputs)
    mine = torch.autograd.grad(nearest_distance(*inputs).square().sum(), inputs)
    want = torch.autograd.grad((features[:, None] - centroids).norm(dim=2).amin(1).square().sum(), inputs)
    assert all(torch.allclose(a, b) for a, b in zip(mine, want, strict=True))


def test_autocast_does_not_round_distances():
    features, centroids = 10 + some(40, 16), 10 + some(30, 16, seed=1)
    want = nearest_distance(features, centroids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_distance(features, centroids), want)
        assert torch.allclose(centroid_distances(features, centroids).amin(1), want, atol=1e-2)
        assert torch.allclose(nearest_distance(features.bfloat16(), centroids), want, atol=0.2)


@pytest.mark.parametrize("features", [some(4, 3), some(4), some(2, 5, 5)])
def test_a_centroid_width_unequal_to_the_feature_width_is_refused(features):
    head, loss = a_head(3, 5), DiscriminativeCentroidLoss()
    labels = torch.zeros(len(features), dtype=torch.int64)
    for function in (centroid_distances, nearest_distance, lambda f, c: loss(f, labels, c), lambda f, c: head(f)):
        with pytest.raises(ValueError, match=r"centroids: got shape \(3, 5\) beside features of .*the same D"):
            function(features, some(3, 5))


# ---- squashing and the meta-embedding ------------------------------------------------------------------------------


def test_squashing_keeps_the_direction_and_a_length_below_1():
    vectors = torch.cat([some(20, 6), 1e-12 * some(2, 6), 1e4 * some(2, 6), torch.tensor([[3.0, 4, 0, 0, 0, 0]])])
    short = squash(vectors)
    assert (short.norm(dim=1) < 1).all() and short[-1].tolist() == pytest.approx([0.5, 4 / 6, 0, 0, 0, 0])
    assert torch.allclose(F.cosine_similarity(short, vectors, eps=1e-30), torch.ones(len(vectors)), atol=1e-5)
    by_hand = torch.stack([(v.norm() / (1 + v.norm())) * (v / v.norm()) for v in vectors])
    assert torch.allclose(short, by_hand, atol=1e-6)
    zero = torch.zeros(2, 6, requires_grad=True)
    squash(zero).sum().backward()
    assert torch.equal(squash(zero), torch.zeros(2, 6)) and torch.equal(zero.grad, torch.ones(2, 6))


def slow_logits(head, features):
    """One image at a time, from the equations, without the safeguards."""
    rows, memory = [], head.memory.detach()
    for f in features:
        nearest = min((f - c).norm() for c in memory)
        reachability = head.reach / nearest if head.use_reachability else 1.0
        read = torch.zeros_like(f)
        if head.use_memory:
            scores = [w @ f + b for w, b in zip(head.hallucinator.weight, head.hallucinator.bias, strict=True)]
            total = sum(s.exp() for s in scores)
            for score, c in zip(scores, memory, strict=True):
                read = read + score.exp() / total * c
        selector = torch.ones_like(f)
        if head.use_memory and head.use_selector:
            selector = (head.selector.weight @ f + head.selector.bias).tanh()
        v = reachability * (f + selector * read)
        u = v.norm() / (1 + v.norm()) * (v / v.norm())
        rows.append(torch.stack([head.scale * (u @ w) / w.norm() for w in head.weight]))
    return torch.stack(rows)


SWITCHES = [
    {},
    {"use_memory": False},
    {"use_selector": False},
    {"use_reachability": False},
    {"use_memory": False, "use_reachability": False},
]


@pytest.mark.parametrize(("batch", "classes", "width"), [(9, 5, 7), (40, 3, 11), (1, 2, 2), (30, 29, 4)])
@pytest.mark.parametrize("switches", SWITCHES)
def test_the_head_against_a_slow_reference(batch, classes, width, switches):
    head = a_head(classes, width, reach=1.7, scale=9.0, dtype=torch.float64, **switches)
    features = some(batch, width, seed=5, dtype=torch.float64).requires_grad_()
    mine, want = head(features), slow_logits(head, features)
    assert mine.shape == (batch, classes) and torch.allclose(mine, want, atol=1e-10)
    probe = some(batch, classes, seed=6, dtype=torch.float64)
    weights = [features, *(p for name, p in head.named_parameters() if name != "memory")]
    for a, b in zip(*(torch.autograd.grad((z * probe).sum(), weights) for z in (mine, want)), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_the_parts_of_the_embedding_have_their_shapes_and_ranges():
    head = a_head(5, 7, reach=1.7)
    parts = head.embed(some(9, 7, seed=5))
    assert [tuple(p.shape) for p in parts] == [(9,), (9,), (9, 5), (9, 7), (9, 7), (9, 7)]
    assert torch.allclose(parts.weights.sum(1), torch.ones(9)) and (parts.weights > 0).all()
    assert (parts.selector.abs() <= 1).all() and torch.allclose(parts.reachability, 1.7 / parts.nearest)
    assert torch.allclose(parts.memory_feature, parts.weights @ head.memory)


def test_parts_left_out_hold_no_weights_and_do_nothing():
    features = some(9, 7, seed=5)
    alone = a_head(use_memory=False, use_reachability=False)
    assert {name for name, _ in alone.named_parameters()} == {"memory", "weight"}
    assert torch.equal(alone.embed(features).embedding, features)
    no_selector = a_head(use_selector=False)
    assert no_selector.selector is None and no_selector.hallucinator is not None
    parts = no_selector.embed(features)
    assert torch.allclose(parts.embedding, parts.reachability[:, None] * (features + parts.memory_feature))
    assert torch.equal(a_head(use_reachability=False).embed(features).reachability, torch.ones(9))


def test_the_hallucinator_starts_as_the_linear_classifier_of_stage_1_and_shares_nothing_with_it():
    linear, centroids = nn.Linear(7, 5), some(5, 7)
    head = MetaEmbeddingClassifier(centroids, linear)
    features = some(9, 7, seed=2)
    assert torch.equal(head.embed(features).weights, linear(features).softmax(1))
    assert torch.equal(head.memory, centroids)
    with torch.no_grad():
        linear.weight.zero_(), centroids.zero_()
    assert head.hallucinator.weight.abs().sum() > 1 and head.memory.abs().sum() > 1, "copies"
    without_bias = MetaEmbeddingClassifier(some(5, 7), nn.Linear(7, 5, bias=False))
    assert without_bias(features).isfinite().all()


def test_scaling_features_and_memory_alike_leaves_the_direction():
    """With the outputs of hallucinator and selector held, v only grows shorter or longer."""
    head = a_head(reach=1.7)
    for layer in (head.hallucinator, head.selector):  # constant outputs, weights and selector of no special value
        nn.init.zeros_(layer.weight), nn.init.normal_(layer.bias)
    features = some(9, 7, seed=5)
    v = head.embed(features).embedding
    for a in (0.01, 3.0, 200.0):
        scaled = copy.deepcopy(head)
        scaled.memory.data *= a
        longer = scaled.embed(a * features).embedding
        assert torch.allclose(F.cosine_similarity(longer, v), torch.ones(9), atol=1e-5)
        assert torch.allclose(longer, v, rtol=1e-3), "reachability takes the factor back"
        assert torch.equal(scaled(a * features).argmax(1), head(features).argmax(1))


def test_reachability_changes_confidence_and_not_the_direction():
    near, far = (a_head(reach=reach) for reach in (10.0, 0.1))
    features = some(30, 7, seed=5)
    a, b = near(features), far(features)
    assert torch.equal(a.argmax(1), b.argmax(1))
    assert (a.softmax(1).amax(1) > b.softmax(1).amax(1)).all()
    away = near(features + 1e4 * F.normalize(some(30, 7, seed=6)))
    assert (away.abs().amax(1) <= near.scale).all()


@pytest.mark.parametrize("batch", [1, 40])
def test_an_image_right_on_a_centroid_gives_finite_logits_and_gradients(batch):
    head = a_head(40, 7, reach=0.5)
    features = head.memory.detach()[:batch].clone().requires_grad_()
    parts = head.embed(features)
    assert torch.equal(parts.nearest, torch.zeros(batch)) and torch.allclose(parts.reachability, torch.tensor(1000.0))
    F.cross_entropy(head(features), torch.arange(batch)).backward()
    assert head(features).isfinite().all() and features.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for name, p in head.named_parameters() if name != "memory")


@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e-3, 1.0, 1e4, 1e15])
@pytest.mark.parametrize("switches", SWITCHES)
def test_logits_are_bounded_by_the_scale(factor, switches):
    head = a_head(4, 6, scale=5.0, **switches)
    features = torch.cat([factor * some(20, 6, seed=3), factor * head.weight.detach()]).requires_grad_()
    logits = head(features)
    assert logits.isfinite().all() and logits.abs().max() <= 5.0 * (1 + 1e-6)
    if factor <= 1:
        assert logits.abs().max() < 5.0
    logits.logsumexp(1).sum().backward()
    assert features.grad.isfinite().all()
    assert head.double()(features.detach().double().clamp(-1e4, 1e4)).abs().max() < 5.0


def test_one_image_says_the_same_alone_as_in_a_batch():
    head = a_head(30, 64, reach=2.0)
    features = 5 * some(60, 64, seed=5).relu()
    features[7] = head.memory[3].detach() + 1e-4
    alone = torch.cat([head(f[None]) for f in features])
    assert torch.allclose(head(features), alone, atol=1e-4)


def test_cross_entropy_never_moves_the_memory_and_the_centroid_loss_does():
    head, features, labels = a_head(), some(9, 7, seed=5), some_labels(9, 5)
    F.cross_entropy(head(features), labels).backward()
    assert head.memory.requires_grad and head.memory.grad is None
    moved = {name for name, p in head.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"weight", "hallucinator.weight", "hallucinator.bias", "selector.weight", "selector.bias"}
    DiscriminativeCentroidLoss()(features, labels, head.memory).backward()
    assert head.memory.grad.abs().sum() > 0


def test_the_head_works_in_other_precisions_and_on_another_device():
    features = some(9, 7, seed=5)
    want = a_head()(features)
    assert torch.allclose(a_head(dtype=torch.float64)(features.double()).float(), want, atol=1e-4)
    double = MetaEmbeddingClassifier(some(5, 7).double(), nn.Linear(7, 5))
    assert double(features.double()).dtype == torch.float64 == double.selector.weight.dtype
    with torch.autocast("cpu", torch.bfloat16):
        rounded = a_head()(features)
    assert rounded.isfinite().all() and torch.allclose(rounded.float(), want, atol=0.3)
    elsewhere, x = a_head().to("meta"), torch.empty(9, 7, device="meta")
    assert {p.device.type for p in elsewhere.embed(x)} == {elsewhere(x).device.type} == {"meta"}
    loss, labels = DiscriminativeCentroidLoss(pairwise=True), torch.zeros(9, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(features, labels, a_head().memory).isfinite()


def _with(value):
    centroids = some(5, 7)
    centroids[2, 3] = value
    return centroids


@pytest.mark.parametrize(
    ("centroids", "options", "message"),
    [
        (_with(math.nan), {}, r"centroids: got shape \(5, 7\); allowed: finite numbers \(K, D\)"),
        (_with(math.inf), {}, "centroids: got"),
        (some(7), {}, r"centroids: got shape \(7,\)"),
        (some(5, 7), {"reach": 0.0}, "reach: got 0.0; allowed: above 0"),
        (some(5, 7), {"reach": math.nan}, "reach: got nan"),
        (some(5, 7), {"reach": math.inf}, "reach: got inf"),
        (some(5, 7), {"scale": -1.0}, "scale: got -1.0; allowed: above 0"),
        (some(5, 7), {"classifier": nn.Linear(7, 4)}, r"classifier: got weights of shape \(4, 7\); allowed: \(5, 7\)"),
    ],
)
def test_wrong_arguments_of_the_head(centroids, options, message):
    with pytest.raises(ValueError, match=message):
        MetaEmbeddingClassifier(centroids, **options)


# ---- modulated attention -------------------------------------------------------------------------------------------


class SlowAttention(nn.Module):
    """Convolutions and loops over positions, with the weights of a `ModulatedAttention`."""

    def __init__(self, layer):
        super().__init__()
        channels, self.height, self.width = layer.shape
        parts = zip(layer.theta_phi_g.weight.split(layer.inner), layer.theta_phi_g.bias.split(layer.inner), strict=True)
        self.theta, self.phi, self.g = (self.convolution(w, b) for w, b in parts)
        self.out, self.spatial = self.convolution(layer.out.weight), layer.spatial
        # the released code flattens channel by channel; this layer reads position by position
        weight = layer.spatial.weight.view(-1, self.height, self.width, channels)
        self.spatial_weight = weight.permute(0, 3, 1, 2).flatten(1)

    @staticmethod
    def convolution(weight, bias=None):
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None).to(weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight[:, :, None, None])
            if bias is not None:
                layer.bias.copy_(bias)
        return layer

    def forward(self, x):
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))  # (B, inner, P)
        rows = []
        for b in range(len(x)):
            columns = []
            for i in range(theta.shape[2]):
                scores = torch.stack([theta[b, :, i] @ phi[b, :, j] for j in range(phi.shape[2])])
                columns.append(sum(a * g[b, :, j] for j, a in enumerate(scores.exp() / scores.exp().sum())))
            rows.append(torch.stack(columns, 1))
        mask = self.out(torch.stack(rows).view(len(x), -1, self.height, self.width))
        gate = F.linear(x.flatten(1), self.spatial_weight, self.spatial.bias).softmax(1)
        return x + gate.view(-1, 1, self.height, self.width) * mask


@pytest.mark.parametrize(
    ("batch", "channels", "height", "width"), [(3, 8, 3, 5), (2, 7, 4, 4), (1, 1, 2, 3), (4, 5, 1, 1)]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_attention_against_convolutions_and_loops(batch, channels, height, width, channels_last):
    torch.manual_seed(0)
    layer = ModulatedAttention(channels, height, width).double()
    nn.init.normal_(layer.out.weight)
    x = some(batch, channels, height, width, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    mine, want = (f(x.requires_grad_()) for f in (layer, SlowAttention(layer)))
    assert mine.shape == x.shape and torch.allclose(mine, want, atol=1e-10)
    assert not torch.allclose(mine, x, atol=1e-3)
    probe = some(*x.shape, seed=3, dtype=torch.float64)
    mine, want = (torch.autograd.grad((y * probe).sum(), x)[0] for y in (mine, want))
    assert torch.allclose(mine, want, atol=1e-9)


def test_attention_starts_as_the_identity_and_learns():
    layer, x = ModulatedAttention(6, 3, 4), some(5, 6, 3, 4)
    assert torch.equal(layer(x), x)
    gate = layer.gate(x)
    assert gate.shape == (5, 3, 4) and torch.allclose(gate.sum((1, 2)), torch.ones(5))
    layer(x).square().sum().backward()
    assert layer.out.weight.grad.abs().sum() > 0, "the only part that gets a gradient at the start"
    with torch.no_grad():
        layer.out.weight -= 0.1 * layer.out.weight.grad
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_wrong_sizes_of_attention():
    with pytest.raises(ValueError, match="channels, height, width: got 4, 0, 3; allowed: at least 1"):
        ModulatedAttention(4, 0, 3)
    for shape in ((2, 4, 3, 5), (2, 5, 5, 3), (4, 5, 3)):
        with pytest.raises(ValueError, match=r"x: got shape .*; allowed: \(B, 4, 5, 3\)"):
            ModulatedAttention(4, 5, 3)(some(*shape))


@pytest.mark.parametrize(("height", "width"), [(28, 28), (20, 33)])
def test_a_network_with_attention_gives_the_same_features_and_leaves_the_first_alone(height, width):
    model = SmallCNN(4, width=3)
    images = some(6, 1, height, width)
    other = with_attention(model, images)
    with evaluating(model), evaluating(other):
        assert torch.equal(other.features(images), model.features(images))
        assert torch.equal(other(images), model(images))
    assert isinstance(other.backbone[-2], ModulatedAttention) and len(other.backbone) == len(model.backbone) + 1
    assert other.backbone[-2].shape == (12, -(-height // 8), -(-width // 8))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
    assert model.training and other.training


def test_a_network_without_a_map_gets_no_attention():
    with pytest.raises(ValueError, match=r"model: got \(64,\) from its last layer but one; allowed: a map"):
        with_attention(MLP(4), some(2, 1, 28, 28))


# ---- the centroid loss ---------------------------------------------------------------------------------------------


def slow_halves(features, labels, centroids, margin, pairwise):
    attract, squares, hinges = 0.0, 0.0, 0.0
    for f, y in zip(features, labels.tolist(), strict=True):
        for k, c in enumerate(centroids):
            square = sum((a - b) ** 2 for a, b in zip(f, c, strict=True))
            if k == y:
                attract = attract + square
            else:
                squares = squares + square
                hinges = hinges + (margin - square).clamp(min=0)
    pairs = len(features) * len(centroids)
    repel = hinges / pairs if pairwise else (margin - squares / pairs).clamp(min=0)
    return attract / (2 * len(features)), repel


@pytest.mark.parametrize(("batch", "classes", "width"), [(7, 4, 3), (1, 2, 5), (6, 9, 2)])
@pytest.mark.parametrize("margin", [4.0, 1e-3, 60.0])
@pytest.mark.parametrize("pairwise", [False, True])
def test_the_centroid_loss_against_loops_over_pairs(batch, classes, width, margin, pairwise):
    features = some(batch, width, dtype=torch.float64).requires_grad_()
    centroids = some(classes, width, seed=1, dtype=torch.float64).requires_grad_()
    labels = some_labels(batch, classes)
    loss = DiscriminativeCentroidLoss(margin, 0.3, pairwise)
    mine, want = loss.halves(features, labels, centroids), slow_halves(features, labels, centroids, margin, pairwise)
    assert [h.item() for h in mine] == pytest.approx([h.item() for h in want], abs=1e-9)
    total, slow = loss(features, labels, centroids), want[0] + 0.3 * want[1]
    assert total.item() == pytest.approx(slow.item(), abs=1e-9)
    for a, b in zip(*(torch.autograd.grad(x, (features, centroids)) for x in (total, slow)), strict=True):
        assert torch.allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("pairwise", [False, True])
def test_the_gradient_of_the_centroid_loss_is_its_own(pairwise):
    features, centroids = some(6, 3, dtype=torch.float64), some(4, 3, seed=1, dtype=torch.float64)
    loss, labels = DiscriminativeCentroidLoss(9.0, 0.5, pairwise), some_labels(6, 4)
    assert loss.halves(features, labels, centroids)[1] > 0, "the repelling half is active"
    inputs = features.requires_grad_(), centroids.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, c: loss(f, labels, c), inputs)


def test_the_weight_of_the_loss_reaches_the_centroids():
    """In the released code the gradient of their attraction is the same for every weight."""
    centroids, features, labels = some(4, 3, seed=1).requires_grad_(), some(6, 3), some_labels(6, 4)
    loss = DiscriminativeCentroidLoss(9.0)
    full, small = (torch.autograd.grad(w * loss(features, labels, centroids), centroids)[0] for w in (1.0, 0.01))
    assert torch.allclose(0.01 * full, small) and full.abs().max() > 0.1


def test_one_hinge_for_all_pairs_rests_when_classes_are_far_on_average_and_the_pairwise_one_still_pushes():
    """Two centroids on one spot, a third far away: the mean hides that the two are not told apart."""
    centroids = torch.tensor([[0.0, 0], [0.1, 0], [30, 0]]).requires_grad_()
    features, labels = torch.tensor([[0.0, 0], [0.1, 0]]), torch.tensor([0, 1])
    single, pairwise = (
        DiscriminativeCentroidLoss(10.0, 1.0, p).halves(features, labels, centroids)[1] for p in (False, True)
    )
    assert single == 0 and pairwise > 2
    gradient = torch.autograd.grad(pairwise, centroids)[0]
    assert gradient[0, 0] > 0 > gradient[1, 0] and gradient[2].abs().max() == 0, "descent moves the two apart"


@pytest.mark.parametrize("pairwise", [False, True])
def test_a_feature_on_a_centroid_gives_finite_gradients(pairwise):
    centroids = some(30, 3).requires_grad_()
    features = centroids.detach().clone().requires_grad_()
    loss = DiscriminativeCentroidLoss(10.0, 1.0, pairwise)(features, torch.arange(30).roll(1), centroids)
    loss.backward()
    assert loss.isfinite() and features.grad.isfinite().all() and centroids.grad.isfinite().all()


def test_the_centroid_loss_holds_no_tensor_of_batch_times_classes_times_features():
    """What autograd keeps is at most batch x classes, and in the first form not even that."""
    features, centroids, labels = some(50, 40), some(60, 40, seed=1), some_labels(50, 60)
    for pairwise, limit in ((False, 60 * 40), (True, 50 * 60)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            loss = DiscriminativeCentroidLoss(50.0, 1.0, pairwise)
            loss(features.requires_grad_(), labels, centroids.requires_grad_())
        assert kept and max(kept) <= limit


@pytest.mark.parametrize("pairwise", [False, True])
def test_the_centroid_loss_never_waits_for_a_gpu_of_any_make(pairwise):
    with pretend_gpu() as gpu:
        arguments = [x.to(gpu.device) for x in (some(6, 5), some_labels(6, 4), some(4, 5, seed=1))]
        gpu.waits.clear()
        DiscriminativeCentroidLoss(pairwise=pairwise)(*arguments)
        assert gpu.waits == []


@pytest.mark.parametrize("options", [{"margin": 0.0}, {"margin": math.nan}, {"repel_weight": -0.1}])
def test_wrong_arguments_of_the_centroid_loss(options):
    with pytest.raises(ValueError, match=r"margin, repel_weight: got .*; allowed: above 0, and at least 0"):
        DiscriminativeCentroidLoss(**options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"labels: got shape \(2,\); allowed: \(3,\)"),
        ([0, 1, 4], "labels: got 0 to 4; allowed: 0 to 3"),
        ([0, 1, -1], "labels: got -1 to 1; allowed: 0 to 3"),
    ],
)
def test_wrong_labels_of_the_centroid_loss(labels, message):
    for pairwise in (False, True):
        with pytest.raises(ValueError, match=message):
            DiscriminativeCentroidLoss(pairwise=pairwise)(some(3, 5), torch.tensor(labels), some(4, 5))


# ---- the second stage ----------------------------------------------------------------------------------------------


def stripes(counts, seed=0):
    """One class for each count: a bright stripe, noise all over."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = torch.randint(140, (len(labels), 1, 12, 12), dtype=torch.uint8, generator=generator)
    for j in range(len(counts)):
        images[labels == j, :, 3 * j : 3 * j + 2] += 90
    return LabeledImages(images, labels, tuple("abcd"[: len(counts)]))


TRAIN = stripes([60, 24, 8, 3])


@pytest.fixture(scope="module")
def stage_1():
    torch.manual_seed(0)
    model = SmallCNN(4, width=4)
    fit(model, TRAIN, epochs=4, batch_size=16, progress=False)
    return model


def staged(model, parts=PARTS, **options):
    return second_stage(model, TRAIN, parts, **{"epochs": 2, "batch_size": 16, "progress": False, "lr": 0.05} | options)


def test_every_part_changes_the_training(stage_1):
    """With all the others, and alone where it can stand alone; one seed, so nothing else differs."""

    def logits(parts):
        return predict(staged(stage_1, parts), TRAIN)

    whole, bare = logits(PARTS), logits(())
    for part in PARTS:
        without = [p for p in PARTS if p != part and not (part == "memory" and p == "selector")]
        assert not torch.allclose(logits(without), whole, atol=1e-3), f"{part} changes nothing beside the others"
        if part != "selector":
            assert not torch.allclose(logits((part,)), bare, atol=1e-3), f"{part} changes nothing alone"
    assert torch.equal(logits(tuple(reversed(PARTS))), whole), "their order is nothing"


def test_the_parts_that_are_asked_for_are_there_and_no_others(stage_1):
    model = staged(stage_1, ("memory",), epochs=1)
    assert (model.head.use_memory, model.head.use_selector, model.head.use_reachability) == (True, False, False)
    assert not any(isinstance(m, ModulatedAttention) for m in model.modules())
    whole = staged(stage_1, epochs=1)
    assert (whole.head.use_memory, whole.head.use_selector, whole.head.use_reachability) == (True, True, True)
    assert isinstance(whole.backbone[-2], ModulatedAttention)
    bare = staged(stage_1, (), epochs=1).head
    assert (bare.use_memory, bare.use_selector, bare.use_reachability) == (False, False, False)


def test_the_fair_baseline_is_balanced_training_of_the_same_network(stage_1):
    model, by_hand = staged(stage_1, None, seed=3), copy.deepcopy(stage_1)
    fit(
        by_hand,
        TRAIN,
        epochs=2,
        batch_size=16,
        lr=0.05,
        seed=3,
        sampler=ClassBalancedSampler(TRAIN.labels, seed=3),
        progress=False,
    )
    assert type(model.head) is nn.Linear
    for a, b, first in zip(*(m.state_dict().values() for m in (model, by_hand, stage_1)), strict=True):
        assert torch.equal(a, b) and not torch.equal(a.float(), first.float())


def test_the_second_stage_leaves_the_first_and_the_global_generator_alone(stage_1):
    before, images = copy.deepcopy(stage_1.state_dict()), TRAIN.images.clone()
    modes = [m.training for m in stage_1.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = staged(stage_1, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(10)
    second, other = staged(stage_1, epochs=1), staged(stage_1, epochs=1, seed=1)
    assert all(torch.equal(v, before[k]) for k, v in stage_1.state_dict().items())
    assert [m.training for m in stage_1.modules()] == modes and torch.equal(TRAIN.images, images)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


class Recorded:
    """Stands in for `fit()`: keeps what it was called with and trains nothing."""

    def __call__(self, model, train, **options):
        self.model, self.options = model, options


@pytest.fixture
def recorded(monkeypatch):
    recorder = Recorded()
    monkeypatch.setattr(openworld, "fit", recorder)
    return recorder


def test_where_the_second_stage_starts(stage_1, recorded):
    model = staged(stage_1)
    with evaluating(stage_1):
        features = stage_1.features(to_float(TRAIN.images))
    centroids = class_means(features, TRAIN.labels, 4)
    assert torch.allclose(model.head.memory, centroids, atol=1e-5)
    assert torch.equal(model.head.hallucinator.weight, stage_1.head.weight)
    nearest = (features[:, None] - centroids).norm(dim=2).amin(1)
    assert model.head.reach == pytest.approx((nearest.mean() / features.norm(dim=1).mean()).item(), rel=1e-3)
    with evaluating(model):
        assert torch.allclose(model.features(to_float(TRAIN.images)), features, atol=1e-5), "attention is the identity"
    criterion = recorded.options["objective"].criterion
    between = [(a - b).square().sum().item() for i, a in enumerate(centroids) for b in centroids[i + 1 :]]
    assert criterion.pairwise and criterion.margin == pytest.approx(sum(between) / len(between), rel=1e-4)
    assert isinstance(recorded.options["sampler"], ClassBalancedSampler)
    assert recorded.options["groups"] == {"head.memory": {"weight_decay": 0}}


def test_a_network_with_parts_is_where_the_second_stage_starts(stage_1, recorded):
    before, state = copy.deepcopy(stage_1.state_dict()), torch.get_rng_state()
    mine, theirs = with_parts(stage_1, TRAIN, scale=9.0, seed=4), staged(stage_1, scale=9.0, seed=4)
    assert (mine.head.scale, mine.head.reach) == (9.0, theirs.head.reach)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(v, before[k]) for k, v in stage_1.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(with_parts(stage_1, TRAIN, seed=5).head.weight, mine.head.weight)
    assert with_parts(stage_1, TRAIN, ("memory",)).head.selector is None
    with pytest.raises(ValueError, match="parts: got 'selector' without 'memory'; allowed: both"):
        with_parts(stage_1, TRAIN, ("selector",))


def test_the_memory_stands_still_without_the_centroid_loss(stage_1, recorded, monkeypatch):
    start = staged(stage_1).head.memory.clone()
    monkeypatch.setattr(openworld, "fit", fit)
    still = staged(stage_1, ("memory", "selector", "reachability"), weight_decay=0.1)
    assert torch.equal(still.head.memory, start)
    assert not torch.allclose(staged(stage_1, ("memory", "centroid loss")).head.memory, start, atol=1e-4)


def test_the_memory_has_no_weight_decay(stage_1):
    """A centroid loss of weight 0 gives gradients of 0: only decay could move the memory."""
    model = staged(stage_1, centroid_weight=0.0, weight_decay=0.1)
    start = staged(stage_1, ("memory",), epochs=1).head.memory
    assert torch.equal(model.head.memory, start)
    decayed = copy.deepcopy(model)
    fit(
        decayed,
        TRAIN,
        epochs=1,
        batch_size=16,
        weight_decay=0.1,
        progress=False,
        objective=CentroidObjective(DiscriminativeCentroidLoss(), 0.0),
    )
    assert decayed.head.memory.norm() < 0.99 * start.norm()


def test_the_objective_is_cross_entropy_and_the_weighted_centroid_loss_of_the_direct_features(stage_1, recorded):
    model = staged(stage_1, centroid_weight=0.7)
    images, labels = to_float(TRAIN.images[::5]), TRAIN.labels[::5]
    with evaluating(model):
        value = recorded.options["objective"](model, images, labels, torch.arange(len(labels)))
        features, criterion = model.features(images), recorded.options["objective"].criterion
        want = F.cross_entropy(model(images), labels) + 0.7 * criterion(features, labels, model.head.memory)
    assert value.item() == pytest.approx(want.item(), rel=1e-5)
    own = DiscriminativeCentroidLoss(3.0)
    staged(stage_1, criterion=own, centroid_weight=0.2)
    assert recorded.options["objective"].criterion is own and recorded.options["objective"].weight == 0.2


@pytest.mark.parametrize("parts", [PARTS, None])
def test_the_second_stage_learns_rare_classes(stage_1, parts):
    test = stripes([15] * 4, seed=9)

    def accuracies(model):
        right = (predict(model, test).argmax(1) == test.labels).float()
        return torch.stack([right[test.labels == j].mean() for j in range(4)])

    after = accuracies(staged(stage_1, parts, epochs=8))
    assert after.mean() > accuracies(stage_1).mean() and after[3] > 0.5


def test_a_batch_of_one_and_bfloat16(stage_1):
    model = staged(stage_1, epochs=1, batch_size=94, precision=torch.bfloat16)  # 95 images: the last batch has one
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    whole = predict(model, TRAIN)
    alone = predict(model, TRAIN, batch_size=1)
    assert whole.isfinite().all() and torch.allclose(whole, alone, atol=1e-3)


def test_networks_of_other_sizes():
    """D need not be K, and without attention there need be no map."""
    torch.manual_seed(0)
    model = MLP(4, in_features=144, hidden=6, feature_dim=2)
    other = staged(model, [p for p in PARTS if p != "attention"], epochs=1)
    assert other.head.memory.shape == (4, 2) and predict(other, TRAIN).abs().max() <= 16
    odd = SmallCNN(4, width=1)  # 4 features from a map of 2 x 2
    assert predict(staged(odd, epochs=1), TRAIN).abs().max() <= 16
    with pytest.raises(ValueError, match=r"model: got .* from its last layer but one"):
        staged(model, epochs=1)


@pytest.mark.parametrize(
    ("parts", "options", "message"),
    [
        (("memory", "attntion"), {}, "parts: got 'attntion'; allowed: memory, selector, reachability, attention, cent"),
        (("selector", "reachability"), {}, "parts: got 'selector' without 'memory'; allowed: both"),
        (PARTS, {"centroid_weight": -1.0}, "centroid_weight: got -1.0; allowed: at least 0"),
        (PARTS, {"scale": 0.0}, "scale: got 0.0; allowed: above 0"),
        (PARTS, {"lr": 0.0}, "lr: got 0.0"),
    ],
)
def test_wrong_arguments_of_the_second_stage(stage_1, parts, options, message):
    with pytest.raises(ValueError, match=message):
        staged(stage_1, parts, **options)


def test_a_class_without_training_images_is_refused(stage_1):
    train = TRAIN.subset((TRAIN.labels != 2).nonzero()[:, 0])
    with pytest.raises(ValueError, match="labels: got no image of class 2; allowed: at least one of each class"):
        second_stage(stage_1, train, PARTS, epochs=1, progress=False)


# ---- rejecting -----------------------------------------------------------------------------------------------------


def test_rejection_is_strict_and_a_threshold_of_0_rejects_nothing():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.75, 0], [0.4, 0.3, 0.3], [0, 0, 1.0]])
    assert reject(probabilities, 0.5).tolist() == [0, 1, -1, 2], "0.5 is not below 0.5"
    assert reject(probabilities, 0.0).tolist() == [0, 1, 0, 2]
    assert reject(probabilities, 1.0).tolist() == [-1, -1, -1, 2]
    assert reject(torch.zeros(2, 3), 0).tolist() == [0, 0]
    assert reject(probabilities, 0.5).dtype == torch.int64 and reject(torch.zeros(0, 3), 0.5).shape == (0,)
    assert reject(probabilities, 1).tolist() == [-1, -1, -1, 2], "a whole number"


@pytest.mark.parametrize("threshold", [-0.01, 1.01, 95, math.nan])
def test_a_threshold_outside_0_to_1_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold: got .*; allowed: 0 to 1"):
        reject(torch.full((2, 2), 0.5), threshold)


@pytest.mark.parametrize("probabilities", [torch.ones(3), torch.ones(3, 0), torch.ones(2, 2, 2)])
def test_wrong_probabilities_cannot_be_rejected(probabilities):
    with pytest.raises(ValueError, match=r"probabilities: got shape .*; allowed: shape \(N, C\)"):
        reject(probabilities, 0.5)


@pytest.mark.parametrize("n", [1, 2, 19, 20, 21, 200])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.8, 0.95, 1.0])
def test_the_accepting_threshold_is_the_largest_that_accepts_the_share(n, share):
    confidence = torch.rand(n, generator=torch.Generator().manual_seed(n)).mul(10).ceil() / 10  # with ties
    threshold = accepting_threshold(confidence, share)
    assert (confidence >= threshold).double().mean() >= share - 1e-12
    assert (confidence > threshold).double().mean() < share, "a larger one would accept too few"
    probabilities = torch.stack([confidence, torch.zeros(n)], 1)
    assert (reject(probabilities, threshold) != -1).double().mean() >= share - 1e-12, "the rule of reject()"


def test_the_accepting_threshold_by_hand():
    assert accepting_threshold(torch.tensor([0.25, 1.0, 0.75, 0.5]), 0.75) == 0.5
    assert accepting_threshold(torch.tensor([0.25, 1.0, 0.75, 0.5]), 1.0) == 0.25
    assert accepting_threshold(torch.full((7,), 0.5), 0.3) == 0.5
    assert accepting_threshold(torch.tensor([0.125])) == 0.125
    assert accepting_threshold(torch.tensor([0.25, 0.75, 0.5]), 1e-9) == 0.75, "at least one image, never place -1"
    scores, is_open = torch.tensor([0.25, 0.75, 0.5]), torch.tensor([True, False, False])
    assert open_set_fpr(scores, is_open, accepted=1e-9) == 0.0


@pytest.mark.parametrize(
    ("confidence", "share", "message"),
    [
        (torch.rand(0), 0.95, r"confidence: got shape \(0,\); allowed: \(N,\) with N of at least 1"),
        (torch.rand(3, 2), 0.95, r"confidence: got shape \(3, 2\)"),
        (torch.rand(3), 0.0, "share: got 0.0; allowed: above 0, at most 1"),
        (torch.rand(3), 1.1, "share: got 1.1"),
        (torch.rand(3), math.nan, "share: got nan"),
    ],
)
def test_wrong_arguments_of_the_accepting_threshold(confidence, share, message):
    with pytest.raises(ValueError, match=message):
        accepting_threshold(confidence, share)


def test_every_metric_is_defined_if_everything_is_rejected_or_everything_is_open_or_known():
    probabilities = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.5, 0.5], [0.2, 0.8]])
    confidence = probabilities.amax(1)
    mixed, all_open, all_known = (torch.tensor(y) for y in ([0, 1, -1, -1], [-1] * 4, [0, 1, 0, 1]))
    for older in (False, True):
        assert open_set_f_measure(reject(probabilities, 1.0), mixed, older=older) == 0, "all rejected"
        assert open_set_f_measure(reject(probabilities, 1.0), all_open, older=older) == 0
        assert open_set_f_measure(reject(probabilities, 0.0), all_open, older=older) == 0
        assert open_set_f_measure(reject(probabilities, 0.0), all_known, older=older) == 1
        assert math.isnan(open_set_f_measure(*torch.zeros(2, 0).long(), older=older))
    for labels in (all_open, all_known):
        for metric in (open_set_auroc, open_set_fpr):
            assert math.isnan(metric(confidence, labels == -1))
    assert 0 <= open_set_fpr(torch.full((4,), 0.5), mixed == -1) <= 1
    assert open_set_auroc(torch.full((4,), 0.5), mixed == -1) == 0.5
    assert math.isnan(shot_accuracy(torch.full((2,), math.nan), [5, 500])["all"])


# ---- types of numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_distances_in_half_precision_are_those_of_floats(dtype):
    generator = torch.Generator().manual_seed(0)
    features, centroids = (300 * torch.randn(n, 8, generator=generator).to(dtype) for n in (40, 5))
    labels = torch.arange(40) % 5
    for function in (nearest_distance, centroid_distances):
        assert function(features, centroids).equal(function(features.float(), centroids.float()))
    loss = DiscriminativeCentroidLoss(pairwise=True)
    halves = loss.halves(features, labels, centroids)
    assert halves == loss.halves(features.float(), labels, centroids.float()) and halves[0].isfinite()


def test_a_probability_just_below_the_threshold_is_rejected_in_half_precision_too():
    probabilities = torch.tensor([[0.3, 0.3, 0.4]], dtype=torch.float16)  # 0.39990
    assert reject(probabilities, 0.4).tolist() == [-1] == reject(probabilities.float(), 0.4).tolist()
    with pytest.raises(ValueError, match=r"probabilities: got 1 to 3; allowed: 0 to 1 \(softmax of the logits\)"):
        reject(torch.tensor([[1.0, 3.0]]), 0.4)
