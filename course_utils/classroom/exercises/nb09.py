"""Exercises of notebook 09: the mean over words, words read backwards, a training with DRW, errors by class."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ...texts import PADDING, UNKNOWN, BagOfWords, backward_places, pooled
from . import Exercise, Wrong, expect_close

# ---- 9.1: the mean over words --------------------------------------------------------------------------------------


def mean_of_words(vectors, tokens):
    there = (tokens != 0).float()
    return (vectors * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def _some_tokens(lengths, width, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 9, (len(lengths), width), generator=generator)
    return tokens.masked_fill(torch.arange(width) >= torch.tensor(lengths)[:, None], PADDING)


def _verify_mean(answer):
    for lengths, width in (((3, 1, 5), 6), ((4, 4), 4), ((1, 2), 9)):
        tokens = _some_tokens(lengths, width, seed=width)
        vectors = torch.randn(len(lengths), width, 3, generator=torch.Generator().manual_seed(1))
        got = answer(vectors.clone(), tokens.clone())
        want = pooled(vectors, tokens != PADDING, "mean")
        expect_close(got, want, f"means of texts of {lengths} words in rows of {width}")


# ---- 9.2: words read backwards -------------------------------------------------------------------------------------


def words_backwards(x, length):
    place = torch.arange(x.shape[1], device=x.device)
    turned = length[:, None] - 1 - place
    turned = torch.where(turned >= 0, turned, place)
    return x[torch.arange(len(x), device=x.device)[:, None], turned]


def _verify_backwards(answer):
    for lengths, width in (((3, 1, 5), 6), ((4, 4), 4), ((1, 2), 9)):
        tokens = _some_tokens(lengths, width, seed=10 + width)
        x = torch.randn(len(lengths), width, 2, generator=torch.Generator().manual_seed(3))
        want = x.gather(1, backward_places(tokens)[..., None].expand_as(x))
        given = x.clone()
        got = answer(given, torch.tensor(lengths))
        expect_close(got, want, f"vectors of texts of {lengths} words in rows of {width}")
        if not given.equal(x):
            raise Wrong("the answer is right, but x itself was changed: return a new tensor")


def _turned_in_place(x, length):
    x.copy_(words_backwards(x, length))
    return x


# ---- 9.3: a training with word dropout and late weights ------------------------------------------------------------


def train_late(model, batches, optimizer, epochs, counts, at):
    weights = len(counts) * (1 / counts) / (1 / counts).sum()
    for epoch in range(epochs):
        late = epoch >= round(at * epochs)
        for tokens, labels, hide in batches(epoch):
            seen = tokens.masked_fill(hide & (tokens != 0), 1)
            loss = nn.functional.cross_entropy(model(seen), labels, weights if late else None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def _toy_batches(epoch):
    generator = torch.Generator().manual_seed(epoch)
    tokens = _some_tokens((4, 2, 6, 1, 3, 5, 6, 2), 6, seed=20 + epoch)
    labels = torch.tensor([0, 0, 1, 0, 2, 1, 0, 0])
    hide = torch.rand(tokens.shape, generator=generator) < 0.4
    return list(zip(tokens.split(4), labels.split(4), hide.split(4), strict=True))


def _toy_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = BagOfWords(3, vocabulary=9, embedding=4, dropout=0.0)
        nn.init.normal_(model.backbone.embedding.weight)  # the row of the padding too, so that hiding it shows
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def _verify_training(answer):
    cases = (
        (5, [50.0, 8.0, 2.0], 0.6),
        (4, [9.0, 90.0, 30.0], 0.25),
        (3, [50.0, 8.0, 2.0], 0.6),  # round(1.8) is 2
        (2, [5.0, 4.0, 3.0], 0.0),
    )
    for epochs, counts, at in cases:
        model, optimizer = _toy_model()
        weights = len(counts) / torch.tensor(counts) / (1 / torch.tensor(counts)).sum()
        for epoch in range(epochs):
            for tokens, labels, hide in _toy_batches(epoch):
                seen = torch.where(hide & (tokens != PADDING), UNKNOWN, tokens)
                each = F.cross_entropy(model(seen), labels, reduction="none")
                own = weights[labels] if epoch >= round(at * epochs) else torch.ones(len(labels))
                optimizer.zero_grad()
                ((own * each).sum() / own.sum()).backward()
                optimizer.step()
        mine, steps = _toy_model()
        modes = []
        mine.register_forward_pre_hook(lambda module, _, modes=modes: modes.append(module.training))
        got = answer(mine, _toy_batches, steps, epochs, torch.tensor(counts), at)
        if not isinstance(got, nn.Module):
            raise Wrong(f"expected the model, got {'None: is there a `return`?' if got is None else type(got)}")
        if not all(modes):
            raise Wrong("the model was in eval() while it learned: its own dropout does nothing there")
        for name, want in model.named_parameters():
            case = f"{name} after {epochs} epochs, counts {[int(n) for n in counts]}, at={at}"
            expect_close(got.get_parameter(name).detach(), want.detach(), case, tolerance=1e-3)


def _training(*, late=lambda epoch, epochs, at: epoch >= round(at * epochs), hidden=1, **wrong):
    """A training as `train_late`, with one thing wrong."""

    def train(model, batches, optimizer, epochs, counts, at):
        if "eval" in wrong:
            model.eval()
        weights = (counts if "turned" in wrong else 1 / counts) / (1 / counts).sum()
        for epoch in range(epochs):
            for tokens, labels, hide in batches(epoch):
                if "all places" not in wrong:
                    hide = hide & (tokens != PADDING)
                seen = tokens if "no dropout" in wrong else tokens.masked_fill(hide, hidden)
                own = weights[labels] if late(epoch, epochs, at) else torch.ones(len(labels))
                each = F.cross_entropy(model(seen), labels, reduction="none")
                if "keep" not in wrong:
                    optimizer.zero_grad()
                ((own * each).mean() if "mean" in wrong else (own * each).sum() / own.sum()).backward()
                optimizer.step()
        return None if "forget" in wrong else model

    return train


# ---- 9.4: errors by class ------------------------------------------------------------------------------------------


def errors_by_class(said, labels, num_classes):
    wrong = (said != labels).float()
    each = torch.stack([wrong[labels == j].mean() for j in range(num_classes)])
    return 100 * each, 100 * each.mean()


def _verify_errors(answer):
    generator = torch.Generator().manual_seed(7)
    cases = (
        ([0.9, 0.1], 200, False),
        ([0.5, 0.5], 40, False),
        ([0.7, 0.2, 0.1], 150, False),
        ([0.5, 0.3, 0.2], 90, True),
    )
    for shares, number, never_last in cases:
        labels = torch.multinomial(torch.tensor(shares), number, replacement=True, generator=generator)
        said = torch.where(torch.rand(number, generator=generator) < 0.6, labels, 0)
        said = said.clamp(max=len(shares) - 2) if never_last else said
        want = torch.stack([(said[labels == j] != j).double().mean() for j in range(len(shares))])
        got = answer(said.clone(), labels.clone(), len(shares))
        case = f"for {number} texts of {len(shares)} classes{', the last never answered' if never_last else ''}"
        if not isinstance(got, tuple) or len(got) != 2:
            raise Wrong(f"expected two things, (errors, their mean), got {str(got)[:60]}")
        if not isinstance(got[0], torch.Tensor):
            raise Wrong(f"expected the errors as a tensor, got {type(got[0]).__name__}")
        expect_close(got[0], 100 * want, f"errors in % {case}")
        expect_close(got[1], 100 * want.mean().item(), f"mean error in % {case}")


def _shares_of_answers(said, labels, num_classes):
    each = torch.stack([(labels[said == j] != j).float().mean().nan_to_num() for j in range(num_classes)])
    return 100 * each, 100 * each.mean()


EXERCISES = {
    "9.1": Exercise(
        goal="the mean vector of each text's words.",
        verify=_verify_mean,
        solution=mean_of_words,
        mutants=(
            lambda x, t: x.mean(1),  # over all places
            lambda x, t: (x * (t != 0)[..., None]).mean(1),  # divided by the width
            lambda x, t: (x * (t != 0)[..., None]).sum(1),  # not divided
            lambda x, t: x.sum(1) / (t != 0).sum(1, keepdim=True),  # padding added in
            lambda x, t: pooled(x, t != 0, "max"),
            lambda x, t: (x * (t > 1)[..., None]).sum(1) / (t > 1).sum(1, keepdim=True).clamp(min=1),  # "?" left out
        ),
    ),
    "9.2": Exercise(
        goal="each text's words turned around.",
        verify=_verify_backwards,
        solution=words_backwards,
        mutants=(
            lambda x, n: x.flip(1),  # padding comes first
            lambda x, n: x,
            lambda x, n: x.flip(0),  # the texts, not the words
            lambda x, n: words_backwards(x, n.clamp(max=int(n.min()))),  # the shortest decides
            lambda x, n: words_backwards(x, torch.full_like(n, int(n.max()))),  # the longest decides
            _turned_in_place,
            lambda x, n: torch.cat([x[:, :1], words_backwards(x[:, 1:], n - 1)], 1),  # the first word stays
            lambda x, n: x.gather(1, (n[:, None] - 1 - torch.arange(x.shape[1])).clamp(min=0)[..., None].expand_as(x)),
        ),
    ),
    "9.3": Exercise(
        goal="word dropout, and 1 / n_j from the switch on.",
        verify=_verify_training,
        solution=train_late,
        mutants=(
            _training(late=lambda epoch, epochs, at: True),  # from the start
            _training(late=lambda epoch, epochs, at: False),  # never
            _training(late=lambda epoch, epochs, at: epoch > round(at * epochs)),  # one epoch late
            _training(late=lambda epoch, epochs, at: epoch >= int(at * epochs)),  # cut off, not rounded
            _training(late=lambda epoch, epochs, at: epoch >= at),  # a share taken for an epoch
            _training(hidden=0),  # hidden words become padding
            _training(**{"all places": True}),  # padding becomes an unknown word
            _training(**{"no dropout": True}),
            _training(turned=True),  # weights n_j
            _training(mean=True),  # divided by the number of texts
            _training(keep=True),  # old gradients stay
            _training(forget=True),  # nothing returned
            _training(eval=True),  # without the dropout of the network
        ),
    ),
    "9.4": Exercise(
        goal="errors by class in %, and their mean.",
        verify=_verify_errors,
        solution=errors_by_class,
        mutants=(
            lambda s, y, c: (errors_by_class(s, y, c)[0], 100 * (s != y).float().mean()),  # mean over texts
            lambda s, y, c: tuple(100 - e for e in errors_by_class(s, y, c)),  # accuracies
            lambda s, y, c: tuple(e / 100 for e in errors_by_class(s, y, c)),  # shares
            _shares_of_answers,  # of those that were called so, not of those that are
            lambda s, y, c: errors_by_class(s, y, c)[0],  # one thing
            lambda s, y, c: (errors_by_class(s, y, c)[0].tolist(), errors_by_class(s, y, c)[1]),  # a list
            lambda s, y, c: errors_by_class(s, y, int(s.max()) + 1),  # as many classes as answers show
            lambda s, y, c: errors_by_class(s, y, 2),  # two classes whatever there are
        ),
    ),
}
