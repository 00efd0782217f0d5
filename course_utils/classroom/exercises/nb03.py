"""Exercises of notebook 03: imprinting, herding, what to hold of the teacher, the margin, LUCIR's loss and phase."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from ... import training
from ...data import LabeledImages
from ...decoupling import class_means
from ...heads import CosineClassifier
from ...incremental import herding
from ...incremental_methods import ARMS, PhaseObjective
from ...losses import distillation_loss, inter_class_separation_loss, less_forget_loss, score_distillation_loss
from ...networks import MLP, ImageClassifier
from . import Exercise, Wrong, expect_close

# ---- 3.1: imprinting -----------------------------------------------------------------------------------------------


def imprinted_rows(features, labels, num_new):
    directions = features / features.norm(dim=1, keepdim=True)
    means = torch.stack([directions[labels == j].mean(dim=0) for j in range(num_new)])
    return means / means.norm(dim=1, keepdim=True)


def _verify_imprinting(answer):
    generator = torch.Generator().manual_seed(4)
    for labels, dim in (([0, 2, 1, 1, 0, 2, 2, 0, 1, 2], 4), ([1, 0, 1, 0], 3), ([0, 0, 0, 1, 2, 3, 3], 6)):
        labels = torch.tensor(labels)
        classes = int(labels.max()) + 1
        features = torch.randn(len(labels), dim, generator=generator) + 2 * torch.eye(classes, dim)[labels]
        features = features * (0.2 + 5 * torch.rand(len(labels), 1, generator=generator))
        head = CosineClassifier(dim, classes)
        head.imprint(features, labels)
        want = F.normalize(head.weight.detach(), dim=1)
        case = f"for {len(labels)} images of {classes} classes, {dim} features"
        expect_close(answer(features.clone(), labels.clone(), classes), want, case)


# ---- 3.2: herding --------------------------------------------------------------------------------------------------


def choose_exemplars(features, k):
    rows = features / features.norm(dim=1, keepdim=True)
    mean, total, chosen = rows.mean(dim=0), torch.zeros_like(rows[0]), []
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


# ---- 3.3: distillation ---------------------------------------------------------------------------------------------


def distill(logits, old_logits, temperature):
    num_old = old_logits.shape[1]
    now = F.log_softmax(logits[:, :num_old] / temperature, dim=1)
    before = F.log_softmax(old_logits / temperature, dim=1)
    return (before.exp() * (before - now)).sum(dim=1).mean()


def _verify_distillation(answer):
    generator = torch.Generator().manual_seed(33)
    for images, old, new, temperature in ((6, 4, 3, 2.0), (3, 2, 5, 1.0), (9, 7, 1, 4.0)):
        logits = 3 * torch.randn(images, old + new, generator=generator)
        before = 3 * torch.randn(images, old, generator=generator)
        want = distillation_loss(logits, before, temperature)
        got = answer(logits.clone(), before.clone(), temperature)
        expect_close(got, want, f"for {images} images, {old} old and {new} new classes, T = {temperature:g}")


def _another_distillation(logits, old_logits, temperature, every_class=False, turned=False, mean=False):
    num_old = old_logits.shape[1]
    if every_class:  # softmax over old and new classes
        now = (logits / temperature).log_softmax(1)[:, :num_old]
    else:
        now = (logits[:, :num_old] / temperature).log_softmax(1)
    before = (old_logits / temperature).log_softmax(1)
    first, second = (now, before) if turned else (before, now)
    terms = first.exp() * (first - second)
    return terms.mean() if mean else terms.sum(1).mean()


# ---- 3.4: scores and features --------------------------------------------------------------------------------------


def hold_on(features, old_features, rows, old_rows):
    f, old_f = F.normalize(features, dim=1), F.normalize(old_features, dim=1)
    w, old_w = F.normalize(rows, dim=1), F.normalize(old_rows, dim=1)
    moved = f @ w[: len(old_rows)].T - old_f @ old_w.T
    return (moved**2).sum(dim=1).mean(), (1 - (f * old_f).sum(dim=1)).mean()


def _verify_hold_on(answer):
    generator = torch.Generator().manual_seed(34)
    for batch, old, new, dim in ((5, 3, 2, 4), (2, 6, 1, 9), (7, 2, 3, 3)):
        features, old_features = (torch.randn(batch, dim, generator=generator) for _ in range(2))
        rows, old_rows = (torch.randn(n, dim, generator=generator) for n in (old + new, old))
        got = answer(features.clone(), old_features.clone(), rows.clone(), old_rows.clone())
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(f"return two numbers, (equation 5, equation 6); got {str(got)[:40]!r}")
        now, before = F.normalize(features) @ F.normalize(rows).T, F.normalize(old_features) @ F.normalize(old_rows).T
        case = f"for {batch} images, {old} old and {new} new classes"
        expect_close(got[0], score_distillation_loss(now, before), f"equation 5 {case}")
        expect_close(got[1], less_forget_loss(features, old_features), f"equation 6 {case}")


def _another_hold(features, old_features, rows, old_rows, normalize=True, mean=False, distance=False):
    f, old_f, w, old_w = (F.normalize(x, dim=1) if normalize else x for x in (features, old_features, rows, old_rows))
    moved = (f @ w[: len(old_rows)].T - old_f @ old_w.T).square()
    scores = moved.mean() if mean else moved.sum(1).mean()
    return scores, (f - old_f).square().sum(1).mean() if distance else (1 - (f * old_f).sum(1)).mean()


# ---- 3.5: the margin loss ------------------------------------------------------------------------------------------


def margin_loss(cosines, labels, num_old, margin, k):
    old = labels < num_old
    if not old.any():
        return torch.zeros_like(cosines[0, 0])
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


# ---- 3.6: LUCIR's loss ---------------------------------------------------------------------------------------------


def lucir_loss(model, teacher, images, labels, num_old):
    features = model.features(images)
    cosines = model.head.cosines(features)
    with torch.no_grad():
        old_features = teacher.features(images)
    forgotten = hold_on(features, old_features, model.head.weight, teacher.head.weight)[1]
    weight = 5 * math.sqrt(num_old / (cosines.shape[1] - num_old))
    loss = F.cross_entropy(model.head.scale * cosines, labels)
    return loss + weight * forgotten + margin_loss(cosines, labels, num_old, 0.5, 2)


def _tiny(num_old: int, num_new: int, seed: int) -> tuple[ImageClassifier, ImageClassifier]:
    """A student with a cosine head for old and new classes, and its teacher for the old ones alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = MLP(num_old, in_features=36, hidden=9, feature_dim=6)
        student.backbone[4] = nn.Identity()  # no last ReLU
        student.head = CosineClassifier(6, num_old, scale=5.0)
        teacher = copy.deepcopy(student).eval()
        student.head.extend(num_new)
    student.num_classes += num_new
    with torch.no_grad():
        for weight in student.backbone.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return student, teacher


def _verify_lucir_loss(answer):
    for seed, (batch, old, new) in enumerate(((12, 5, 3), (8, 2, 4), (7, 9, 2))):
        student, teacher = _tiny(old, new, seed)
        images = torch.rand(batch, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        labels = torch.arange(batch) % (old + new)
        want = PhaseObjective(ARMS["LUCIR"], teacher, old, new)(student, images, labels, labels)
        case = f"for {batch} images, {old} old and {new} new classes"
        got = answer(student, teacher, images, labels, old)
        expect_close(got.detach() if isinstance(got, torch.Tensor) else got, want.detach(), case)
        if not (isinstance(got, torch.Tensor) and got.requires_grad):
            raise Wrong(f"{case}: the loss has no gradient; do not turn it into a plain number")
        got.backward()
        if any(p.grad is not None for p in teacher.parameters()):
            raise Wrong(f"{case}: the teacher gets a gradient; compute its features under torch.no_grad()")
        want = torch.autograd.grad(want, student.backbone[1].weight)[0]
        expect_close(student.backbone[1].weight.grad, want, f"gradient of the first layer {case}")


def _another_lucir(scale=True, root="old/new", margin=True, detach=False, new_too=False):
    def loss(model, teacher, images, labels, num_old):
        features = model.features(images)
        cosines, num_new = model.head.cosines(features), model.num_classes - num_old
        with torch.no_grad():
            before = teacher.features(images)
        ratio = {"old/new": num_old / num_new, "new/old": num_new / num_old, "none": 1.0}[root]
        total = F.cross_entropy(model.head.scale * cosines if scale else cosines, labels)
        total = total + 5 * math.sqrt(ratio) * less_forget_loss(features.detach() if detach else features, before)
        if new_too:
            return total + _another_loss(cosines, labels, num_old, 0.5, 2, all_images=True)
        return total + margin_loss(cosines, labels, num_old, 0.5, 2) if margin else total

    return loss


# ---- 3.7: a phase --------------------------------------------------------------------------------------------------


def learn_phase(model, new, num_new, batches, loss):
    teacher, num_old = copy.deepcopy(model).eval(), model.num_classes
    rows = imprinted_rows(training.extract_features(model, new), new.labels - num_old, num_new)
    rows = rows * model.head.weight.norm(dim=1).mean().item()
    model.head.rows.requires_grad_(False)
    model.head.rows.append(torch.nn.Parameter(rows))
    model.num_classes += num_new
    optimizer = training.SGD(model, momentum=0.9, weight_decay=5e-4)
    for rate, images, labels in batches:
        model.zero_grad()
        loss(model, teacher, images, labels, num_old).backward()
        optimizer.lr = rate
        optimizer.step()


class _Batches:
    """(learning rate, images, labels), and what was seen of the model at each batch."""

    def __init__(self, model, batches):
        self.model, self.batches, self.rows = model, batches, []

    def __iter__(self):
        for batch in self.batches:
            self.rows.append([rows.detach().clone() for rows in self.model.head.rows])
            yield batch


def _verify_phase(answer):
    for seed, (old, new) in enumerate(((5, 3), (2, 4), (4, 2))):
        _, model = _tiny(old, new, 70 + seed)
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (6 * new, 1, 6, 6), generator=generator, dtype=torch.uint8)
        names = tuple(map(str, range(old + new)))
        images = LabeledImages(pixels, old + torch.arange(6 * new) % new, names)
        batches = [
            (0.1 / (t + 1), torch.rand(9, 1, 6, 6, generator=generator) * 2 - 1, (torch.arange(9) + t) % (old + new))
            for t in range(3)
        ]
        case, before = f"with {old} old and {new} new classes", copy.deepcopy(model)
        mine, ours = copy.deepcopy(model), copy.deepcopy(model)
        learn_phase(ours, images, new, batches, lucir_loss)
        teachers = []

        def loss(model, teacher, images, labels, num_old, teachers=teachers):
            teachers.append((teacher, num_old))
            return lucir_loss(model, teacher, images, labels, num_old)

        seen = _Batches(mine, batches)
        got = answer(mine, images, new, seen, loss)
        if got is not None:
            raise Wrong(f"train `model` in place and return nothing; got {str(got)[:40]!r}")
        if not isinstance(mine.head, CosineClassifier) or mine.head.weight.shape != (old + new, 6):
            none = " (None: was the model changed in place?)" if mine.head.weight.shape == (old, 6) else ""
            raise Wrong(f"{case}: head.weight has shape {tuple(mine.head.weight.shape)}, not {(old + new, 6)}{none}")
        if len(seen.rows) != 3 or len(teachers) != 3:
            raise Wrong(f"{case}: {len(teachers)} losses for 3 batches, one each is wanted")
        if any(num_old != old for _, num_old in teachers):
            raise Wrong(f"{case}: the loss got num_old = {teachers[0][1]}, not the {old} classes known before")
        start = torch.cat(seen.rows[0])
        expect_close(start[:old], before.head.weight.detach(), f"old rows before the first update, {case}")
        want = imprinted_rows(training.extract_features(before, images), images.labels - old, new)
        expect_close(F.normalize(start[old:], dim=1), want, f"directions of the new rows at the start, {case}")
        norm = before.head.weight.norm(dim=1).mean().item()
        expect_close(start[old:].norm(dim=1), [norm] * new, f"norms of the new rows at the start, {case}")
        expect_close(mine.head.weight.detach()[:old], before.head.weight.detach(), f"old rows at the end, {case}")
        teacher = teachers[-1][0]
        if teacher is mine or teacher.head.weight.shape != (old, 6):
            raise Wrong(f"{case}: the teacher is not a copy of the model made before the head grew")
        expect_close(teacher.backbone[1].weight.detach(), before.backbone[1].weight.detach(), f"the teacher, {case}")
        for name, got, want in (
            ("first layer at the end", mine.backbone[1].weight, ours.backbone[1].weight),
            ("rows at the end", mine.head.weight, ours.head.weight),
        ):
            expect_close(got.detach(), want.detach(), f"{name}, {case}", tolerance=3e-6)
        expect_close(mine.num_classes, old + new, f"model.num_classes, {case}")


def _another_phase(imprint=True, norm=True, freeze=True, shared=False, momentum=0.9, decay=5e-4, zero=True, rates=True):
    def phase(model, new, num_new, batches, loss):
        num_old = model.num_classes
        teacher = model if shared else copy.deepcopy(model).eval()
        rows = imprinted_rows(training.extract_features(model, new), new.labels - num_old, num_new)
        rows = rows if imprint else rows.roll(1, 0)
        rows = rows * model.head.weight.norm(dim=1).mean().item() if norm else rows
        if freeze:
            model.head.rows.requires_grad_(False)
        model.head.rows.append(nn.Parameter(rows))
        model.num_classes += num_new
        optimizer = training.SGD(model, momentum, decay)
        for rate, images, labels in batches:
            if zero:
                model.zero_grad()
            loss(model, teacher, images, labels, num_old).backward()
            optimizer.lr = rate if rates else 0.05
            optimizer.step()

    return phase


EXERCISES = {
    "3.1": Exercise(
        goal="a unit row for each new class, its direction.",
        verify=_verify_imprinting,
        solution=imprinted_rows,
        mutants=(
            lambda f, y, n: F.normalize(class_means(f, y, n), dim=1),  # means of raw features
            lambda f, y, n: class_means(F.normalize(f, dim=1), y, n),  # not of unit length
            lambda f, y, n: F.normalize(torch.stack([f[y == j][0] for j in range(n)]), dim=1),  # the first image only
            lambda f, y, n: imprinted_rows(f, y, n)[list(dict.fromkeys(y.tolist()))],  # in the order of appearance
        ),
    ),
    "3.2": Exercise(
        goal="k images whose mean is close to that of all.",
        verify=_verify_herding,
        solution=choose_exemplars,
        mutants=(
            _closest_to_the_mean,
            lambda f, k: _greedy(f, k),  # not normalized
            lambda f, k: _greedy(F.normalize(f, dim=1), k, repeats=True),
            lambda f, k: sorted(choose_exemplars(f, k)),
        ),
    ),
    "3.3": Exercise(
        goal="how far answers for old classes have moved.",
        verify=_verify_distillation,
        solution=distill,
        mutants=(
            lambda z, old, t: _another_distillation(z, old, 1.0),  # no temperature
            lambda z, old, t: _another_distillation(z, old, t, every_class=True),
            lambda z, old, t: _another_distillation(z, old, t, turned=True),
            lambda z, old, t: _another_distillation(z, old, t, mean=True),
            lambda z, old, t: -(old / t).softmax(1).mul((z[:, : old.shape[1]] / t).log_softmax(1)).sum(1).mean(),
        ),
    ),
    "3.4": Exercise(
        goal="equations 5 and 6, two numbers.",
        verify=_verify_hold_on,
        solution=hold_on,
        mutants=(
            lambda *a: _another_hold(*a, normalize=False),
            lambda *a: _another_hold(*a, mean=True),
            lambda *a: _another_hold(*a, distance=True),
            lambda *a: hold_on(*a)[::-1],
            lambda f, old_f, w, old_w: hold_on(f, old_f, old_w, old_w),  # forgets that rows may turn
        ),
    ),
    "3.5": Exercise(
        goal="the mean violation of the margin by old images.",
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
    "3.6": Exercise(
        goal="equation 9 for a batch, with a gradient.",
        verify=_verify_lucir_loss,
        solution=lucir_loss,
        mutants=(
            _another_lucir(scale=False),
            _another_lucir(root="new/old"),  # as printed
            _another_lucir(root="none"),
            _another_lucir(margin=False),
            _another_lucir(detach=True),
            _another_lucir(new_too=True),
        ),
    ),
    "3.7": Exercise(
        goal="a model that has learnt the new classes.",
        verify=_verify_phase,
        solution=learn_phase,
        mutants=(
            _another_phase(imprint=False),
            _another_phase(norm=False),
            _another_phase(freeze=False),
            _another_phase(shared=True),
            _another_phase(momentum=0.0),
            _another_phase(decay=0.0),
            _another_phase(zero=False),
            _another_phase(rates=False),
        ),
    ),
}
