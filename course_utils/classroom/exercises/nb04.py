"""Exercises of notebook 04: an epoch class-balanced or by chances, nearest class means, tau, learnt scales."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional as F

from ...decoupling import LearnableWeightScaling, NearestClassMean, class_means, tau_normalize, train_head
from ...sampling import EpochSampler, class_probabilities
from ...training import cosine_schedule
from . import Exercise, Wrong, expect_close

# ---- 4.1: a class-balanced epoch ------------------------------------------------------------------------------------


def class_balanced_epoch(labels, length, generator):
    classes, epoch = int(labels.max()) + 1, []
    waiting = [[] for _ in range(classes)]  # of every class, the images that its cycle has not shown yet
    while len(epoch) < length:
        for j in torch.randperm(classes, generator=generator).tolist():
            if not waiting[j]:
                own = (labels == j).nonzero().flatten()
                waiting[j] = own[torch.randperm(len(own), generator=generator)].tolist()
            epoch.append(waiting[j].pop())
    return torch.tensor(epoch[:length])


def _some_labels(counts, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def _drawn(answer, *arguments, seed=0):
    """Images of an epoch, or `Wrong`: no indices, others at a second call, or the same from another generator."""
    labels, length = arguments[0], arguments[-1]

    def once(seed):
        clones = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        return answer(*clones, torch.Generator().manual_seed(seed))

    epoch = once(seed)
    if not isinstance(epoch, torch.Tensor) or epoch.dtype != torch.int64 or epoch.shape != (length,):
        seen = f"{epoch.dtype} of shape {tuple(epoch.shape)}" if isinstance(epoch, torch.Tensor) else str(epoch)[:40]
        raise Wrong(f"return an int64 tensor of shape ({length},), the places of the images; got {seen}")
    if epoch.min() < 0 or epoch.max() >= len(labels):
        raise Wrong(f"there are images 0 to {len(labels) - 1}; got {int(epoch.min())} to {int(epoch.max())}")
    if not torch.equal(epoch, once(seed)):
        raise Wrong("two generators with the same seed gave two epochs; all randomness has to come from `generator`")
    if torch.equal(epoch, once(seed + 1)):
        raise Wrong("two generators with different seeds gave the same epoch; nothing was drawn from `generator`")
    return epoch


def _verify_class_balanced(answer):
    for seed, (counts, length) in enumerate((([40, 6, 3, 1], 80), ([5, 9, 2], 47), ([7, 1, 30, 4, 3, 12], 400))):
        labels, classes = _some_labels(counts, seed), len(counts)
        epoch = _drawn(answer, labels, length, seed=seed)
        said, case = labels[epoch], f"({classes} classes of {counts} images, {length} draws)"
        times = torch.bincount(said, minlength=classes)
        if times.max() - times.min() > 1:
            raise Wrong(f"the classes come {times.tolist()} times; equal numbers are wanted, up to 1 {case}")
        cycles = said.split(classes)
        if any(len(cycle.unique()) < len(cycle) for cycle in cycles):
            raise Wrong(f"a class comes twice in one cycle of {classes} draws {case}")
        if all(torch.equal(first, second) for first, second in pairwise(cycles[: length // classes])):
            raise Wrong(f"every cycle has the classes in the same order; shuffle each {case}")
        for j, count in enumerate(counts):
            rounds = epoch[said == j].split(count)
            if any(len(part.unique()) < len(part) for part in rounds):
                raise Wrong(f"an image of class {j} returns before all {count} of its class were shown {case}")
            full = [part for part in rounds if len(part) == count]
            if len(full) > 4 and count > 1 and all(torch.equal(a, b) for a, b in pairwise(full)):
                raise Wrong(f"the {count} images of class {j} always come in the same order; shuffle each round {case}")


def _balanced_by(labels, length, generator, *, classes_in=None, images_in=None):
    """A class-balanced epoch with another order of classes, or of the images of a class."""
    number = int(labels.max()) + 1
    cycles = -(-length // number)
    order = torch.rand(cycles, number, generator=generator).argsort(1)
    order = (order if classes_in is None else classes_in(order, generator)).flatten()[:length]
    epoch = torch.empty(length, dtype=torch.int64)
    for j in range(number):
        own, places = (labels == j).nonzero().flatten(), (order == j).nonzero().flatten()
        rounds = torch.rand(-(-len(places) // len(own)), len(own), generator=generator).argsort(1)
        rounds = rounds if images_in is None else images_in(rounds, generator)
        epoch[places] = own[rounds.flatten()[: len(places)]]
    return epoch


# ---- 4.2: an epoch by the chances of its classes -------------------------------------------------------------------


def epoch_by_chances(labels, chances, length, generator):
    counts = torch.bincount(labels)
    of_one_image = (chances / counts)[labels]
    return torch.multinomial(of_one_image, length, replacement=True, generator=generator)


def _verify_by_chances(answer):
    length = 60_000
    for seed, (counts, q) in enumerate((([100, 10, 1], 0.5), ([30, 6, 2, 2], 0.0), ([9, 50, 3], 1.0))):
        labels, p = _some_labels(counts, seed), class_probabilities(counts, q)
        epoch = _drawn(answer, labels, p, length, seed=seed)
        share = torch.bincount(labels[epoch], minlength=len(counts)) / length
        wrong = ((share - p).abs() > 5 * (p * (1 - p) / length).sqrt()).nonzero().flatten().tolist()
        if wrong:
            j = wrong[0]
            raise Wrong(f"class {j} of {counts} images has chance {p[j]:.3f}, but {share[j]:.3f} of the draws are its")
        each = (p / torch.tensor(counts))[labels]
        times = torch.bincount(epoch, minlength=len(labels)) / length
        if ((times - each).abs() > 6 * (each / length).sqrt()).any():
            raise Wrong(f"the images of one class do not come equally often (classes of {counts} images)")
        again = (
            torch.bincount(labels[_drawn(answer, labels, p, length, seed=seed + 10)], minlength=len(counts)) / length
        )
        if torch.equal(share, again):
            raise Wrong("two epochs have exactly the same number of each class; draw every image independently")


def _in_equal_parts(labels, chances, length, generator):
    numbers = (chances * length).round().long()
    numbers[0] += length - numbers.sum()
    parts = []
    for j, number in enumerate(numbers.tolist()):
        own = (labels == j).nonzero().flatten()
        parts.append(own[torch.randint(len(own), (number,), generator=generator)])
    return torch.cat(parts)[torch.randperm(length, generator=generator)]


def _first_image(labels, chances, length, generator):
    drawn = torch.multinomial(chances, length, replacement=True, generator=generator)
    return torch.stack([(labels == j).nonzero()[0, 0] for j in range(len(chances))])[drawn]


# ---- 4.3: nearest class mean ---------------------------------------------------------------------------------------


def nearest_mean(features, labels, images):
    center = features.mean(0)
    units = F.normalize(features - center, dim=1)
    means = torch.stack([units[labels == j].mean(0) for j in range(int(labels.max()) + 1)])
    return torch.cdist(F.normalize(images - center, dim=1), means).argmin(1)


def _verify_nearest_mean(answer):
    for seed, (classes, dim) in enumerate(((3, 2), (8, 5), (5, 3))):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(classes).repeat_interleave(torch.tensor([40, 6, 3, 9, 2, 5, 12, 4][:classes]))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        places = 2 * torch.randn(classes, dim, generator=generator) + 5
        spread = 0.3 + 2 * torch.rand(classes, 1, generator=generator)
        features = places[labels] + spread[labels] * torch.randn(len(labels), dim, generator=generator)
        images = 5 + 3 * torch.randn(400, dim, generator=generator)
        want = NearestClassMean(features, labels, classes)(images).argmax(1)
        got = answer(features.clone(), labels.clone(), images.clone())
        if not isinstance(got, torch.Tensor) or got.shape != want.shape:
            raise Wrong(f"return one class for each image, shape {tuple(want.shape)}; got {str(got)[:60]!r}")
        wrong = (got != want).sum().item()
        if wrong:
            raise Wrong(f"{wrong} of {len(want)} images get another class ({classes} classes, {dim} features)")


def _nearest(features, labels, images):
    return torch.cdist(images, class_means(features, labels, int(labels.max()) + 1)).argmin(1)


def _means_normalized_again(features, labels, images):
    center = features.mean(0)
    means = class_means(F.normalize(features - center, dim=1), labels, int(labels.max()) + 1)
    return (F.normalize(images - center, dim=1) @ F.normalize(means, dim=1).T).argmax(1)


# ---- 4.4: tau-normalization from one logit matrix ------------------------------------------------------------------


def rescaled_logits(logits, weight, tau):
    norms = (weight**2).sum(dim=1).sqrt()
    return logits / norms**tau


def _verify_rescaled(answer):
    generator = torch.Generator().manual_seed(4)
    for images, classes, dim in ((50, 6, 4), (7, 7, 7)):
        features = torch.randn(images, dim, generator=generator)
        weight = torch.randn(classes, dim, generator=generator)
        weight *= 0.2 + 3 * torch.rand(classes, 1, generator=generator)
        logits = features @ weight.T
        for tau in (0.0, 0.5, 1.0, 1.7):
            got = answer(logits.clone(), weight.clone(), tau)
            if not isinstance(got, torch.Tensor) or got.shape != logits.shape:
                raise Wrong(f"return logits of shape {tuple(logits.shape)}; got {str(got)[:60]!r}")
            want = features @ tau_normalize(weight, tau).T
            expect_close(got, want, f"{images} images, {classes} classes, tau = {tau:g}", tolerance=1e-3)


# ---- 4.5: learnable weight scaling with its whole loop --------------------------------------------------------------


def learn_scales(features, labels, weight, bias, epochs, rates):
    scale = torch.ones(len(weight), requires_grad=True)
    for order, rate in zip(epochs, rates, strict=True):
        for batch in order.split(64):
            logits = scale * (features[batch] @ weight.T + bias)
            loss = F.cross_entropy(logits, labels[batch])
            (gradient,) = torch.autograd.grad(loss, scale)
            with torch.no_grad():
                scale -= rate * gradient
    return scale.detach()


class _Drawn(EpochSampler):
    """Epochs that were drawn before."""

    def __init__(self, labels, epochs):
        super().__init__(labels, num_samples=len(epochs[0]))
        self.orders = epochs

    def indices(self):
        return self.orders[self.epoch]


def _verify_scales(answer):
    generator = torch.Generator().manual_seed(45)
    for counts, dim, length, lr in (([60, 12, 3], 4, 150, 1.0), ([9, 90, 30, 5], 6, 128, 0.4), ([50, 50], 3, 70, 2.0)):
        labels = _some_labels(counts, dim)
        centers = torch.randn(len(counts), dim, generator=generator)
        features = centers[labels] + torch.randn(len(labels), dim, generator=generator)
        weight = torch.randn(len(counts), dim, generator=generator)
        bias = torch.randn(len(counts), generator=generator)
        epochs = [torch.randint(len(labels), (length,), generator=generator) for _ in range(3)]
        package = LearnableWeightScaling(weight, bias)
        drawn = _Drawn(labels, epochs)
        train_head(package, features, labels, epochs=3, lr=lr, momentum=0.0, weight_decay=0.0, sampler=drawn)
        rates = [lr * cosine_schedule(t, 3) for t in range(3)]
        parts = (features.clone(), labels.clone(), weight.clone(), bias.clone())
        got = answer(*parts, [order.clone() for order in epochs], list(rates))
        case = f"scales after 3 epochs of {length} draws, {len(counts)} classes"
        expect_close(got.detach() if isinstance(got, torch.Tensor) else got, package.scale.detach(), case)


def _scales_by(features, labels, weight, bias, epochs, rates, *, logits=None, size=64, sign=1, reduction="mean"):
    """The same loop with something else in it."""
    scale = torch.ones(len(weight), requires_grad=True)
    for order, rate in zip(epochs, rates, strict=True):
        for batch in order.split(size):
            z = (logits or (lambda s, f: s * (f @ weight.T + bias)))(scale, features[batch])
            (gradient,) = torch.autograd.grad(F.cross_entropy(z, labels[batch], reduction=reduction), scale)
            scale = (scale - sign * rate * gradient).detach().requires_grad_()
    return scale.detach()


EXERCISES = {
    "4.1": Exercise(
        goal="classes, and images of each, in shuffled cycles.",
        verify=_verify_class_balanced,
        solution=class_balanced_epoch,
        mutants=(
            lambda y, length, g: torch.multinomial(1 / torch.bincount(y)[y], length, True, generator=g),  # on average
            lambda y, length, g: _balanced_by(y, length, g, classes_in=lambda o, g: o[:1].expand_as(o)),  # one order
            lambda y, length, g: _balanced_by(y, length, g, images_in=lambda r, g: r[:1].expand_as(r)),  # one order
            lambda y, length, g: _balanced_by(
                y, length, g, images_in=lambda r, g: torch.randint(r.shape[1], r.shape, generator=g)
            ),  # images with replacement
            lambda y, length, g: class_balanced_epoch(y, length, None),  # another generator
            lambda y, length, g: torch.randint(len(y), (length,), generator=g),  # every image alike
        ),
    ),
    "4.2": Exercise(
        goal="class j with chance p_j, its images all alike.",
        verify=_verify_by_chances,
        solution=epoch_by_chances,
        mutants=(
            lambda y, p, length, g: torch.multinomial(p[y], length, True, generator=g),  # p_j for each image
            lambda y, p, length, g: torch.multinomial(
                (p / torch.bincount(y) ** 2)[y], length, True, generator=g
            ),  # divided twice
            lambda y, p, length, g: epoch_by_chances(y, p.softmax(0), length, g),
            lambda y, p, length, g: epoch_by_chances(y, p, length, None),  # another generator
            _in_equal_parts,
            _first_image,
        ),
    ),
    "4.3": Exercise(
        goal="nearest class means, centred and normalized.",
        verify=_verify_nearest_mean,
        solution=nearest_mean,
        mutants=(
            lambda f, y, x: _nearest(F.normalize(f, dim=1), y, F.normalize(x, dim=1)),  # not centred
            _nearest,  # not normalized
            lambda f, y, x: _nearest(F.normalize(f - f.mean(0), dim=1), y, x),  # test images untreated
            lambda f, y, x: nearest_mean(f - f.mean(0), y, x - x.mean(0)),  # a centre of their own
            _means_normalized_again,
            lambda f, y, x: NearestClassMean(f, y, int(y.max()) + 1)(x).argmin(1),  # the farthest
        ),
    ),
    "4.4": Exercise(
        goal="tau-normalized logits from the trained ones.",
        verify=_verify_rescaled,
        solution=rescaled_logits,
        mutants=(
            lambda z, w, tau: z * w.norm(dim=1) ** tau,  # times the norm
            lambda z, w, tau: z / (w**2).sum(dim=1) ** tau,  # squared norms
            lambda z, w, tau: z / z.norm(dim=1, keepdim=True) ** tau,  # by image
            lambda z, w, tau: z.sign() * (z.abs() / w.norm(dim=1)) ** tau if tau else z,  # power of the logits
        ),
    ),
    "4.5": Exercise(
        goal="one learnt scale for each row; the rest stays.",
        verify=_verify_scales,
        solution=learn_scales,
        mutants=(
            lambda f, y, w, b, e, r: _scales_by(f, y, w, b, e, r, logits=lambda s, x: s * (x @ w.T)),  # no bias
            lambda f, y, w, b, e, r: _scales_by(f, y, w, b, e, r, logits=lambda s, x: s * (x @ w.T) + b),  # not scaled
            lambda f, y, w, b, e, r: _scales_by(f, y, w, b, e, r, size=10**6),  # one step an epoch
            lambda f, y, w, b, e, r: _scales_by(f, y, w, b, e, r, sign=-1),  # uphill
            lambda f, y, w, b, e, r: _scales_by(f, y, w, b, e, r, reduction="sum"),
            lambda f, y, w, b, e, r: learn_scales(f, y, w, b, e, [r[0]] * len(r)),  # one rate
            lambda f, y, w, b, e, r: learn_scales(f, y, w, b, e[:1], r[:1]),  # one epoch
            lambda f, y, w, b, e, r: learn_scales(f, y, w, 0 * b, e, r),
        ),
    ),
}
