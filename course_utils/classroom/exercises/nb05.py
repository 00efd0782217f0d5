"""Exercises of notebook 05: the margins, the LDAM loss, weights that come late, the focal loss."""

from __future__ import annotations

import torch
from torch import nn

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


def _square_root(counts, max_margin):
    return max_margin * (counts.min() / counts) ** 0.5


def _not_scaled(counts, max_margin):
    return max_margin * counts**-0.25


def _largest_for_the_head(counts, max_margin):
    return max_margin * (counts / counts.max()) ** 0.25


def _sums_to_max_margin(counts, max_margin):
    return max_margin * counts**-0.25 / (counts**-0.25).sum()


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


def _off_every_class(cosines, labels, margins, scale):
    return nn.functional.cross_entropy(scale * (cosines - margins), labels)


def _added(cosines, labels, margins, scale):
    return ldam(cosines, labels, -margins, scale)


def _margin_after_the_scale(cosines, labels, margins, scale):
    return ldam(scale * cosines, labels, margins, 1.0)


def _no_scale(cosines, labels, margins, scale):
    return ldam(cosines, labels, margins, 1.0)


def _off_the_wrong_classes(cosines, labels, margins, scale):
    own = nn.functional.one_hot(labels, cosines.shape[1]).bool()
    return nn.functional.cross_entropy(scale * torch.where(own, cosines, cosines - margins[labels, None]), labels)


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


def _one_epoch_late(epoch, epochs, counts, at):
    return deferred_weights(epoch - 1, epochs, counts, at)


def _always_on(epoch, epochs, counts, at):
    return effective_number_weights(counts)


def _off_at_the_end(epoch, epochs, counts, at):
    return torch.ones(len(counts)) if epoch >= round(at * epochs) else effective_number_weights(counts)


def _epoch_160_whatever_the_length(epoch, epochs, counts, at):
    return deferred_weights(epoch, 200, counts, 0.8)


def _sums_to_one(epoch, epochs, counts, at):
    return deferred_weights(epoch, epochs, counts, at) / len(counts)


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


def _p_instead_of_the_miss(logits, labels, gamma):
    negative_log = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (torch.exp(-negative_log) ** gamma * negative_log).mean()


def _of_the_mean(logits, labels, gamma):
    mean = nn.functional.cross_entropy(logits, labels)
    return (1 - torch.exp(-mean)) ** gamma * mean


def _largest_probability(logits, labels, gamma):
    negative_log = nn.functional.cross_entropy(logits, labels, reduction="none")
    return ((1 - logits.softmax(1).max(1).values) ** gamma * negative_log).mean()


def _times_gamma(logits, labels, gamma):
    negative_log = nn.functional.cross_entropy(logits, labels, reduction="none")
    return (gamma * (1 - torch.exp(-negative_log)) * negative_log).mean()


EXERCISES = {
    "5.1": Exercise(
        goal="the margin of every class, proportional to n_j^(-1/4), the largest equal to max_margin.",
        verify=_verify_margins,
        solution=margins,
        mutants=(_square_root, _not_scaled, _largest_for_the_head, _sums_to_max_margin),
    ),
    "5.2": Exercise(
        goal="cross-entropy of scale * cosines, with the margin taken off the true class alone.",
        verify=_verify_ldam,
        solution=ldam,
        mutants=(_off_every_class, _added, _margin_after_the_scale, _no_scale, _off_the_wrong_classes),
    ),
    "5.3": Exercise(
        goal="class weights that are all 1 before the switch and effective-number weights from there on.",
        verify=_verify_deferred,
        solution=deferred_weights,
        mutants=(_one_epoch_late, _always_on, _off_at_the_end, _epoch_160_whatever_the_length, _sums_to_one),
    ),
    "5.4": Exercise(
        goal="the mean of (1 - p)^gamma * (-log p), where p is the probability of the true class.",
        verify=_verify_focal,
        solution=focal_loss,
        mutants=(_p_instead_of_the_miss, _of_the_mean, _largest_probability, _times_gamma),
    ),
}
