"""Exercises of notebook 03: herding, the rotation argument, the adaptive weight, the margin loss."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from ...incremental import herding
from ...losses import adaptive_less_forget_weight, inter_class_separation_loss
from . import Exercise, Wrong, expect_close

# ---- 3.1: herding --------------------------------------------------------------------------------------------------


def choose_exemplars(features, k):
    rows = features / features.norm(dim=1, keepdim=True)
    mean, total, chosen = rows.mean(dim=0), torch.zeros(rows.shape[1]), []
    for t in range(1, k + 1):
        distances = (mean - (total + rows) / t).norm(dim=1)
        distances[chosen] = math.inf
        chosen.append(distances.argmin().item())
        total = total + rows[chosen[-1]]
    return chosen


def _verify_herding(answer):
    generator = torch.Generator().manual_seed(31)
    for images, dim, k in ((12, 3, 4), (6, 5, 6), (40, 8, 10)):
        features = torch.randn(images, dim, generator=generator) + torch.randn(dim, generator=generator)
        features = features * (0.2 + 4 * torch.rand(images, 1, generator=generator))
        case = f"indices in order of choice, {k} of {images} images"
        expect_close(answer(features.clone(), k), herding(features, k), case, tolerance=1e-9)


def _closest_to_the_mean(features, k):
    rows = F.normalize(features, dim=1)
    return (rows - rows.mean(dim=0)).norm(dim=1).argsort()[:k].tolist()


def _greedy(rows, k, repeats=False):
    mean, total, chosen = rows.mean(dim=0), torch.zeros(rows.shape[1]), []
    for t in range(1, k + 1):
        distances = (mean - (total + rows) / t).norm(dim=1)
        distances[[] if repeats else chosen] = math.inf
        chosen.append(distances.argmin().item())
        total = total + rows[chosen[-1]]
    return chosen


# ---- 3.2: the rotation argument ------------------------------------------------------------------------------------


def rotate_both(features, rows, rotation):
    return features @ rotation.T, rows @ rotation.T


def _verify_rotation(answer):
    generator = torch.Generator().manual_seed(32)
    for batch, classes, dim in ((5, 3, 4), (2, 6, 9), (1, 1, 2)):
        rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
        features, rows = (torch.randn(n, dim, generator=generator) for n in (batch, classes))
        got = answer(features.clone(), rows.clone(), rotation.clone())
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(f"return two tensors, (features, rows); got {str(got)[:40]!r}")
        case = f"for {batch} features of length {dim}"
        expect_close(got[0], torch.stack([rotation @ f for f in features]), f"rotated features {case}")
        expect_close(got[1], torch.stack([rotation @ w for w in rows]), f"rotated rows {case}")


# ---- 3.3: the adaptive weight --------------------------------------------------------------------------------------


def adaptive_weight(base, num_old, num_new):
    return base * math.sqrt(num_old / num_new)


def _verify_weight(answer):
    for base, old, new in ((5.0, 14, 3), (10.0, 50, 10), (2.0, 4, 8)):
        want = adaptive_less_forget_weight(base, old, new)
        expect_close(answer(base, old, new), want, f"for base {base:g}, {old} old and {new} new classes")


# ---- 3.4: the margin loss ------------------------------------------------------------------------------------------


def margin_loss(cosines, labels, num_old, margin, k):
    old = labels < num_old
    if not old.any():
        return torch.zeros(())
    own = cosines[old].gather(1, labels[old, None])
    nearest_new = cosines[old, num_old:].topk(k, dim=1).values
    return (margin - own + nearest_new).clamp(min=0).mean()


def _verify_margin_loss(answer):
    generator = torch.Generator().manual_seed(34)
    for images, old, new, margin, k in ((9, 4, 3, 0.5, 2), (16, 2, 5, 0.2, 1), (6, 3, 2, 0.9, 2)):
        cosines = torch.rand(images, old + new, generator=generator) * 2 - 1
        labels = torch.arange(images) % (old + new)
        want = inter_class_separation_loss(cosines, labels, old, margin, k)
        got = answer(cosines.clone(), labels.clone(), old, margin, k)
        expect_close(got, want, f"for {old} old and {new} new classes, margin {margin}, k {k}")
    got = answer(cosines[:2], torch.tensor([old, old + 1]), old, 0.5, 1)
    expect_close(got, 0.0, "for a batch without an old image")


def _another_loss(cosines, labels, num_old, margin, k, all_images=False, hinge=True, all_classes=False, hardest=True):
    which = labels >= 0 if all_images else labels < num_old
    if not which.any():
        return torch.zeros(())
    own = cosines[which].gather(1, labels[which, None])
    rivals = cosines[which].scatter(1, labels[which, None], -2.0) if all_classes else cosines[which, num_old:]
    gaps = margin - own + rivals.topk(k, dim=1, largest=hardest).values
    return (gaps.clamp(min=0) if hinge else gaps).mean()


EXERCISES = {
    "3.1": Exercise(
        goal="the indices of k images whose mean, after normalizing, stays closest to that of all, in order of choice.",
        verify=_verify_herding,
        solution=choose_exemplars,
        mutants=(
            _closest_to_the_mean,
            lambda f, k: _greedy(f, k),  # not normalized
            lambda f, k: _greedy(F.normalize(f, dim=1), k, repeats=True),
            lambda f, k: sorted(choose_exemplars(f, k)),
        ),
    ),
    "3.2": Exercise(
        goal="features and rows, both turned by the same rotation matrix.",
        verify=_verify_rotation,
        solution=rotate_both,
        mutants=(
            lambda f, w, r: (f @ r.T, w),  # the features only
            lambda f, w, r: (f @ r.T, w @ r),  # opposite ways
            lambda f, w, r: (f @ r, w @ r),  # turned back
        ),
    ),
    "3.3": Exercise(
        goal="the weight of the less-forget constraint, which grows with the share of old classes.",
        verify=_verify_weight,
        solution=adaptive_weight,
        mutants=(
            lambda base, old, new: base * math.sqrt(new / old),  # as printed
            lambda base, old, new: base * old / new,  # without the root
            lambda base, old, new: base * math.sqrt((old + new) / new),  # all classes
        ),
    ),
    "3.4": Exercise(
        goal="the mean margin violation of old images against their k nearest new classes.",
        verify=_verify_margin_loss,
        solution=margin_loss,
        mutants=(
            lambda *a: _another_loss(*a, all_images=True),
            lambda *a: _another_loss(*a, hinge=False),
            lambda *a: _another_loss(*a, all_classes=True),
            lambda *a: _another_loss(*a, hardest=False),
            lambda z, y, old, m, k: margin_loss(z, y, old, m, z.shape[1] - old),  # every new class
            lambda z, y, old, m, k: margin_loss(10 * z, y, old, m, k),  # scaled logits
        ),
    ),
}
