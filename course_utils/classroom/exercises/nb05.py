"""Exercises of notebook 05: bound and slope, the LDAM loss, effective numbers, the DRW loop, balanced softmax."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...heads import CosineClassifier
from ...losses import (
    LDAMHingeLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    drw_weights,
    effective_number_weights,
    inverse_frequency_weights,
    ldam_margins,
)
from ...training import SGD
from . import Exercise, Wrong, expect_close

# ---- 5.1: the bound and its slope ----------------------------------------------------------------------------------


def bound_and_slope(m_1, n_1, n_2, total):
    m_2 = total - m_1
    bound = 1 / (m_1 * n_1**0.5) + 1 / (m_2 * n_2**0.5)
    slope = -1 / (m_1**2 * n_1**0.5) + 1 / (m_2**2 * n_2**0.5)
    return bound, slope


def _verify_bound(answer):
    for m_1, n_1, n_2, total in ((0.5, 100, 100, 1.0), (0.2, 1000, 10, 1.0), (0.5, 7, 400, 0.8)):
        m = torch.tensor(m_1, dtype=torch.float64, requires_grad=True)
        bound = 1 / (m * n_1**0.5) + 1 / ((total - m) * n_2**0.5)
        (slope,) = torch.autograd.grad(bound, m)
        got = answer(m_1, n_1, n_2, total)
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong(f"expected two numbers, (bound, slope), got {got!r}")
        case = f"for m_1 = {m_1}, counts {n_1} and {n_2}, sum of the margins {total}"
        expect_close(got[0], bound.item(), f"bound {case}")
        expect_close(got[1], slope.item(), f"slope {case}")


# ---- 5.2: the LDAM loss, soft and hinge ----------------------------------------------------------------------------


def ldam(cosines, labels, margins, scale, hinge=False):
    own = nn.functional.one_hot(labels, cosines.shape[1]).bool()
    if hinge:
        best_other = cosines.masked_fill(own, -2).amax(1)
        lead = (cosines * own).sum(1) - best_other
        return scale * (margins[labels] - lead).clamp(min=0)
    shifted = torch.where(own, cosines - margins, cosines)
    return nn.functional.cross_entropy(scale * shifted, labels, reduction="none")


def _verify_ldam(answer):
    generator = torch.Generator().manual_seed(5)
    for counts, max_margin, scale in (([400, 30, 2], 0.5, 30.0), ([9, 90, 900, 5], 0.3, 8.0), ([50, 4], 0.8, 3.0)):
        cosines = 1.6 * torch.rand(12, len(counts), generator=generator) - 0.8
        labels = torch.randint(len(counts), (12,), generator=generator)
        for hinge, form in ((False, LDAMLoss), (True, LDAMHingeLoss)):
            loss = form(counts, max_margin, scale)
            want = [loss(cosines[i : i + 1], labels[i : i + 1]).item() for i in range(12)]
            got = answer(cosines.clone(), labels, ldam_margins(counts, max_margin), scale, hinge)
            case = f"for counts {counts}, max_margin {max_margin}, scale {scale}, hinge={hinge}"
            expect_close(got, want, f"losses of 12 images {case}")


# ---- 5.3: effective numbers ----------------------------------------------------------------------------------------


def effective_weights(counts, beta):
    effective = (1 - beta**counts) / (1 - beta)
    weights = 1 / effective
    return len(counts) * weights / weights.sum()


def _verify_effective(answer):
    for counts, beta in (([500, 60, 4], 0.9999), ([100, 10, 1], 0.9), ([5000, 50], 0.999), ([30, 20, 10], 0.0)):
        got = answer(torch.tensor(counts, dtype=torch.float32), beta)
        case = f"weights for counts {counts} and beta {beta}"
        expect_close(got, effective_number_weights(counts, beta), case, tolerance=2e-3)


# ---- 5.4: the loop -------------------------------------------------------------------------------------------------


def train_ldam_drw(model, batches, optimizer, rates, counts, at, look):
    margins = 0.5 * (counts.min() / counts) ** 0.25
    history = []
    for epoch, rate in enumerate(rates):
        late = epoch >= round(at * len(rates))
        weights = effective_weights(counts, 0.9999) if late else torch.ones_like(counts)
        optimizer.lr = rate
        for images, labels in batches(epoch):
            losses = ldam(model(images), labels, margins, scale=30.0)
            loss = (weights[labels] * losses).sum() / weights[labels].sum()
            model.zero_grad()
            loss.backward()
            optimizer.step()
        history.append(look(model))
    return history


def _toy_batches(epoch):
    generator = torch.Generator().manual_seed(epoch)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 0, 2])
    images = torch.randn(12, 6, generator=generator) + 2 * F.one_hot(labels, 6)
    return list(zip(images.split(4), labels.split(4), strict=True))


def _toy_head():
    head = CosineClassifier(6, 3, scale=1.0, learn_scale=False, unit_rows=True)
    generator = torch.Generator().manual_seed(1)
    head.rows[0].data = F.normalize(torch.randn(3, 6, generator=generator), dim=1)
    return head


def _weights_after_each_epoch(rates, counts, at):
    head, found = _toy_head(), []
    optimizer = SGD(head, 0.9, 1e-3)
    for epoch, rate in enumerate(rates):
        optimizer.lr = rate
        loss = LDAMLoss(counts, weight=drw_weights(epoch, len(rates), counts, at=at))
        for images, labels in _toy_batches(epoch):
            head.zero_grad()
            loss(head(images), labels).backward()
            optimizer.step()
        found.append(head.weight.detach().flatten().tolist())
    return found


def _verify_loop(answer):
    counts = [500, 60, 8]
    for rates, at in (([0.02, 0.05, 0.05, 0.01, 0.002], 0.6), ([0.03, 0.03, 0.01, 0.01], 0.25), ([0.02, 0.05], 0.0)):
        head, looks = _toy_head(), []

        def look(model, looks=looks):
            looks.append(model.weight.detach().flatten().tolist())
            return {"epoch": len(looks)}

        head.train()
        history = answer(
            head, _toy_batches, SGD(head, 0.9, 1e-3), rates, torch.tensor(counts, dtype=torch.float32), at, look
        )
        case = f"with {len(rates)} epochs and at={at}"
        if not isinstance(history, list):
            raise Wrong(f"expected a list of what look(model) said, got {'None' if history is None else type(history)}")
        if len(looks) != len(rates):
            raise Wrong(f"look(model) was called {len(looks)} times {case}, expected {len(rates)}")
        for epoch, (got, want) in enumerate(zip(looks, _weights_after_each_epoch(rates, counts, at), strict=True)):
            expect_close(got, want, f"weights of the model after epoch {epoch} {case}", tolerance=2e-3)
        if history != [{"epoch": k + 1} for k in range(len(rates))]:
            raise Wrong(f"expected the list of what look(model) said, got {str(history)[:60]}")


def _loop(*, switch=lambda epoch, at, epochs: epoch >= round(at * epochs), power=0.25, scale=30.0, **wrong):
    """A loop as `train_ldam_drw`, with one thing wrong."""

    def train(model, batches, optimizer, rates, counts, at, look):
        margins, history = 0.5 * (counts.min() / counts) ** power, []
        for epoch, rate in enumerate(rates):
            late = switch(epoch, at, len(rates))
            weights = effective_weights(counts, 0.9999) if late else torch.ones_like(counts)
            optimizer.lr = wrong.get("rate", rate)
            for images, labels in batches(epoch):
                losses = ldam(model(images), labels, margins, scale, wrong.get("hinge", False))
                total = len(labels) if "mean" in wrong else weights[labels].sum()
                if "keep" not in wrong:
                    model.zero_grad()
                ((weights[labels] * losses).sum() / total).backward()
                optimizer.step()
            history.append(look(model))
        return None if "forget" in wrong else history

    return train


# ---- 5.5: balanced softmax -----------------------------------------------------------------------------------------


def logit_adjusted(logits, labels, counts, tau=1.0):
    shares = counts / counts.sum()
    return nn.functional.cross_entropy(logits + tau * shares.log(), labels)


def _verify_adjusted(answer):
    generator = torch.Generator().manual_seed(6)
    for counts, tau in (([500, 60, 4], 1.0), ([9, 90, 900, 5], 0.5), ([30, 2], 2.0), ([7, 70], 0.0)):
        logits = 4 * torch.randn(10, len(counts), generator=generator)
        labels = torch.randint(len(counts), (10,), generator=generator)
        got = answer(logits.clone(), labels, torch.tensor(counts, dtype=torch.float32), tau)
        expect_close(got, LogitAdjustedLoss(counts, tau)(logits, labels), f"loss for counts {counts} and tau {tau}")


def _own_alone(logits, labels, counts, tau=1.0):
    own = F.one_hot(labels, logits.shape[1])
    return F.cross_entropy(logits + own * tau * (counts / counts.sum()).log(), labels)


EXERCISES = {
    "5.1": Exercise(
        goal="the bound (1), and its derivative by m_1.",
        verify=_verify_bound,
        solution=bound_and_slope,
        mutants=(
            lambda m, a, b, t: (bound_and_slope(m, a, b, t)[0], -bound_and_slope(m, a, b, t)[1]),  # the sign
            lambda m, a, b, t: bound_and_slope(m, a, b, 1.0),  # a sum of 1 whatever the sum is
            lambda m, a, b, t: bound_and_slope(m, a**2, b**2, t),  # no square root
            lambda m, a, b, t: (bound_and_slope(m, a, b, t)[0], -1 / (m**2 * a**0.5)),  # m_2 as if it stood still
            lambda m, a, b, t: (
                bound_and_slope(m, a, b, t)[0],
                -1 / (m**2 * a**0.5) - 1 / ((t - m) ** 2 * b**0.5),  # the inner derivative, -1, forgotten
            ),
            lambda m, a, b, t: bound_and_slope(m, a, b, t)[0],  # one number
        ),
    ),
    "5.2": Exercise(
        goal="one loss for each image: (4), or scale * (3).",
        verify=_verify_ldam,
        solution=ldam,
        mutants=(
            lambda z, y, m, s, h: ldam(z, y, m, s),  # no hinge
            lambda z, y, m, s, h: ldam(z, y, -m, s, h),  # added
            lambda z, y, m, s, h: ldam(z, y, m, 1.0, h),  # no scale
            lambda z, y, m, s, h: ldam(z, y, m, s, h).mean(),  # one number
            lambda z, y, m, s, h: ldam(z, y, m, s, h) if h else F.cross_entropy(s * (z - m), y, reduction="none"),
            lambda z, y, m, s, h: ldam(z, y, m, s, h) if h else ldam(s * z, y, m, 1.0),  # the margin after the scale
            lambda z, y, m, s, h: (
                s * (m[y] - z.gather(1, y[:, None])[:, 0] + z.amax(1)).clamp(min=0) if h else ldam(z, y, m, s)
            ),  # the best of all classes, the true one too
        ),
    ),
    "5.3": Exercise(
        goal="weights proportional to 1 / E_j, sum C.",
        verify=_verify_effective,
        solution=effective_weights,
        mutants=(
            lambda n, beta: inverse_frequency_weights(n),  # beta plays no role
            lambda n, beta: len(n) * (1 - beta**n) / (1 - beta**n).sum(),  # E_j itself
            lambda n, beta: (1 - beta) / (1 - beta**n),  # not scaled
            lambda n, beta: effective_weights(n, beta) / len(n),  # sums to 1
            lambda n, beta: effective_weights(n, 0.9999),  # one beta for all
        ),
    ),
    "5.4": Exercise(
        goal="LDAM, with weights from the switch on.",
        verify=_verify_loop,
        solution=train_ldam_drw,
        mutants=(
            _loop(switch=lambda epoch, at, epochs: True),  # from the start
            _loop(switch=lambda epoch, at, epochs: False),  # never
            _loop(switch=lambda epoch, at, epochs: epoch > round(at * epochs)),  # one epoch late
            _loop(switch=lambda epoch, at, epochs: epoch >= 160),  # as released, whatever the length
            _loop(power=0.5),  # the square root
            _loop(scale=1.0),
            _loop(hinge=True),
            _loop(rate=0.05),  # the rates ignored
            _loop(mean=True),  # divided by the number of images
            _loop(keep=True),  # old gradients stay
            _loop(forget=True),  # nothing returned
        ),
    ),
    "5.5": Exercise(
        goal="cross-entropy of share^tau * e^logit.",
        verify=_verify_adjusted,
        solution=logit_adjusted,
        mutants=(
            lambda z, y, n, tau: logit_adjusted(z, y, n, -tau),  # subtracted
            lambda z, y, n, tau: logit_adjusted(z, y, n),  # tau plays no role
            lambda z, y, n, tau: F.cross_entropy(z + tau * n / n.sum(), y),  # no logarithm
            lambda z, y, n, tau: F.cross_entropy(tau * (z + (n / n.sum()).log()), y),  # tau on the logits too
            _own_alone,  # the true class alone
        ),
    ),
}
