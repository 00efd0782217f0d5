"""Exercises of notebook 05: the margins, the LDAM loss, weights that come late, the focal loss."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...losses import FocalLoss, LDAMLoss, drw_weights, effective_number_weights, ldam_margins
from . import Exercise, expect_close

# ---- 5.1: one margin for each class --------------------------------------------------------------------------------


def margins(counts, max_margin):
    powers = counts**-0.25
    return max_margin * powers / powers.max()


def _verify_margins(answer):
    for counts, max_margin in (([5000, 50], 0.5), ([1, 81, 16], 0.3), ([7, 7], 0.2)):
        got = answer(torch.tensor(counts, dtype=torch.float32), max_margin)
        expect_close(got, ldam_margins(counts, max_margin), f"for counts {counts} and max_margin {max_margin}")


# ---- 5.2: the LDAM loss --------------------------------------------------------------------------------------------


def ldam(cosines, labels, margins, scale):
    shifted = cosines.clone()
    rows = torch.arange(len(labels))
    shifted[rows, labels] -= margins[labels]
    return nn.functional.cross_entropy(scale * shifted, labels)


def _verify_ldam(answer):
    generator = torch.Generator().manual_seed(5)
    for counts, max_margin, scale in (([400, 30, 2], 0.5, 30.0), ([9, 90, 900, 5], 0.3, 8.0), ([50, 4], 0.8, 3.0)):
        cosines = 1.6 * torch.rand(12, len(counts), generator=generator) - 0.8
        labels = torch.randint(len(counts), (12,), generator=generator)
        want = LDAMLoss(counts, max_margin, scale)(cosines, labels)
        got = answer(cosines.clone(), labels, ldam_margins(counts, max_margin), scale)
        expect_close(got, want, f"loss for counts {counts}, max_margin {max_margin}, scale {scale}")


# ---- 5.3: weights that come late -----------------------------------------------------------------------------------


def deferred_weights(epoch, epochs, counts, at):
    if epoch < round(at * epochs):
        return torch.ones(len(counts))
    return effective_number_weights(counts)


def _verify_deferred(answer):
    counts = [500, 60, 4]
    for epochs, at in ((200, 0.8), (12, 0.6), (20, 0.25)):
        switch = round(at * epochs)
        for epoch in (0, switch - 1, switch, epochs - 1):
            case = f"weights in epoch {epoch} of {epochs} (counted from 0), at={at}"
            expect_close(answer(epoch, epochs, counts, at), drw_weights(epoch, epochs, counts, at=at), case)


def _off_at_the_end(epoch, epochs, counts, at):
    return torch.ones(len(counts)) if epoch >= round(at * epochs) else effective_number_weights(counts)


# ---- 5.4: the focal loss -------------------------------------------------------------------------------------------


def focal_loss(logits, labels, gamma):
    negative_log = nn.functional.cross_entropy(logits, labels, reduction="none")
    p = torch.exp(-negative_log)
    return ((1 - p) ** gamma * negative_log).mean()


def _verify_focal(answer):
    generator = torch.Generator().manual_seed(6)
    for gamma in (0.0, 1.0, 2.5):
        logits = 4 * torch.randn(10, 5, generator=generator)
        labels = torch.randint(5, (10,), generator=generator)
        case = f"at gamma {gamma:g}" + (" (cross-entropy)" if gamma == 0 else "")
        expect_close(answer(logits.clone(), labels, gamma), FocalLoss(gamma)(logits, labels), case)


def _losses(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


EXERCISES = {
    "5.1": Exercise(
        goal="the margin of every class, proportional to n_j^(-1/4), the largest equal to max_margin.",
        verify=_verify_margins,
        solution=margins,
        mutants=(
            lambda n, most: most * (n.min() / n) ** 0.5,  # the square root
            lambda n, most: most * n**-0.25,  # not scaled
            lambda n, most: most * (n / n.max()) ** 0.25,  # the largest for the head
            lambda n, most: most * n**-0.25 / (n**-0.25).sum(),  # sums to max_margin
        ),
    ),
    "5.2": Exercise(
        goal="cross-entropy of scale * cosines, with the margin taken off the true class alone.",
        verify=_verify_ldam,
        solution=ldam,
        mutants=(
            lambda z, y, m, s: F.cross_entropy(s * (z - m), y),  # off every class
            lambda z, y, m, s: ldam(z, y, -m, s),  # added
            lambda z, y, m, s: ldam(s * z, y, m, 1.0),  # the margin after the scale
            lambda z, y, m, s: ldam(z, y, m, 1.0),  # no scale
            lambda z, y, m, s: ldam(z - m[y, None], y, -m, s),  # off the wrong classes
        ),
    ),
    "5.3": Exercise(
        goal="class weights that are all 1 before the switch and effective-number weights from there on.",
        verify=_verify_deferred,
        solution=deferred_weights,
        mutants=(
            lambda epoch, epochs, n, at: deferred_weights(epoch - 1, epochs, n, at),  # one epoch late
            lambda epoch, epochs, n, at: effective_number_weights(n),  # always on
            _off_at_the_end,
            lambda epoch, epochs, n, at: deferred_weights(epoch, 200, n, 0.8),  # epoch 160 whatever the length
            lambda epoch, epochs, n, at: deferred_weights(epoch, epochs, n, at) / len(n),  # sums to 1
        ),
    ),
    "5.4": Exercise(
        goal="the mean of (1 - p)^gamma * (-log p), where p is the probability of the true class.",
        verify=_verify_focal,
        solution=focal_loss,
        mutants=(
            lambda z, y, g: (torch.exp(-_losses(z, y)) ** g * _losses(z, y)).mean(),  # p instead of the miss
            lambda z, y, g: (1 - torch.exp(-_losses(z, y).mean())) ** g * _losses(z, y).mean(),  # of the mean
            lambda z, y, g: ((1 - z.softmax(1).amax(1)) ** g * _losses(z, y)).mean(),  # the largest probability
            lambda z, y, g: (g * (1 - torch.exp(-_losses(z, y))) * _losses(z, y)).mean(),  # times gamma
        ),
    ),
}
