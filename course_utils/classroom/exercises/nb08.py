"""Exercises of notebook 08: features of files, a head with balanced softmax, the class shares of another place."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from ...photos import View
from . import Exercise, Wrong, expect_close

# ---- 8.1: features of files ----------------------------------------------------------------------------------------


def features_of(network, view, paths, batch_size):
    network.eval()
    look, found = view.plain(), []
    with torch.no_grad():
        for start in range(0, len(paths), batch_size):
            pictures = [look(view.open(path)) for path in paths[start : start + batch_size]]
            found.append(network(view.to_float(torch.stack(pictures))))
    return torch.cat(found)


class _Watched(nn.Module):
    """A small network that knows whether it trains, and remembers how many pictures came at once."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        self.seen: list[int] = []
        self.with_gradients = self.in_training = False

    def forward(self, x):
        self.seen.append(len(x))
        self.with_gradients |= torch.is_grad_enabled()
        self.in_training |= self.training
        return self.layers(x)


def _pictures(folder: Path) -> list[Path]:
    """Seven files of several shapes: one upright by its mark alone, one with transparent parts."""
    generator = torch.Generator().manual_seed(0)
    paths = []
    for k, size in enumerate(((20, 12), (9, 16), (30, 30), (16, 24), (13, 40), (25, 10), (16, 16))):
        blocks = torch.randint(0, 256, (4, 3, 4), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(blocks.numpy(), "RGBA" if k == 2 else "RGBX").resize(size)
        exif = Image.Exif()
        if k == 1:
            exif[0x0112] = 6  # lies on its side
        paths.append(folder / f"{k}.png")
        (picture if k == 2 else picture.convert("RGB")).save(paths[-1], exif=exif)
    return paths


def _verify_features(answer):
    view = View(size=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in _pictures(Path(folder))]
        for batch_size in (3, 7, 20):
            network, ours = _Watched(), _Watched()
            with torch.no_grad():
                for name, value in network.named_parameters():
                    value.copy_(torch.linspace(-0.3, 0.4, value.numel()).view_as(value) + (name == "layers.1.weight"))
            ours.load_state_dict(network.state_dict())
            network.train()
            got = answer(network, view, list(paths), batch_size)
            case = f"for {len(paths)} files in batches of {batch_size}"
            if network.in_training:
                raise Wrong(f"{case}: the network is in training mode; network.eval() is missing")
            expect_close(got, features_of(ours, view, paths, batch_size), f"the features {case}", tolerance=1e-4)
            if network.with_gradients:
                raise Wrong(f"{case}: the features keep the whole network in memory; torch.no_grad() is missing")
            if max(network.seen) > batch_size:
                raise Wrong(f"{case}: the network got {max(network.seen)} pictures at once")


def _loop(*, train=False, grad=False, plain=False, whole=False, drop=False, scale=False):
    """The solution with one thing wrong."""

    def answer(network, view, paths, batch_size):
        network.train(train)
        step, look = len(paths) if whole else batch_size, view.plain()
        starts = range(0, len(paths) - (step - 1 if drop else 0), step)
        with torch.set_grad_enabled(grad):
            found = []
            for s in starts:
                files = paths[s : s + step]
                images = torch.stack([look(Image.open(f).convert("RGB") if plain else view.open(f)) for f in files])
                found.append(network(images.float() / 255 if scale else view.to_float(images)))
        return torch.cat(found)

    return answer


# ---- 8.2: a head with balanced softmax -----------------------------------------------------------------------------


def balanced_head(features, labels, steps, lr):
    head = torch.nn.Linear(features.shape[1], int(labels.max()) + 1)
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    sgd = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    log_counts = torch.bincount(labels).log()
    for _ in range(steps):
        loss = F.cross_entropy(head(features) + log_counts, labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    return head


def _verify_head(answer):
    generator = torch.Generator().manual_seed(0)
    for counts, width, steps, lr in (((8, 3, 1), 4, 5, 0.1), ((2, 20, 6, 1), 6, 12, 0.05), ((5, 1), 3, 150, 0.2)):
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        features = torch.randn(len(labels), width, generator=generator)
        case = f"after {steps} steps with {' / '.join(map(str, counts))} images"
        got = answer(features.clone(), labels.clone(), steps, lr)
        if not isinstance(got, nn.Module):
            hint = "None: is there a `return`?" if got is None else type(got).__name__
            raise Wrong(f"expected the trained nn.Linear {case}, got {hint}")
        ours = balanced_head(features, labels, steps, lr)
        with torch.no_grad():
            want, said = ours(features), got(features)
        expect_close(said, want, f"the logits of the head {case}", tolerance=1e-3)


def _head(term=torch.log, weights=None, momentum=0.9, zeros=True, keep=False, clear=True, decay=5e-4):
    """The solution with one thing wrong."""

    def answer(features, labels, steps, lr):
        torch.manual_seed(0)
        counts = torch.bincount(labels).float()
        head = nn.Linear(features.shape[1], len(counts))
        if zeros:
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
        sgd = torch.optim.SGD(head.parameters(), lr=lr, momentum=momentum, weight_decay=decay)
        for _ in range(steps):
            loss = F.cross_entropy(head(features) + term(counts), labels, weight=weights and weights(counts))
            if clear:
                sgd.zero_grad()
            loss.backward()
            sgd.step()
        if keep:
            with torch.no_grad():
                head.bias.add_(counts.log())
        return head

    return answer


# ---- 8.3: the shares of the place ----------------------------------------------------------------------------------


def at_the_place(logits, assumed, shares):
    return (logits - assumed.log() + shares.log()).softmax(1)


def _verify_place(answer):
    generator = torch.Generator().manual_seed(0)
    for assumed, shares in (
        ((0.9, 0.07, 0.03), (1 / 3, 1 / 3, 1 / 3)),
        ((1 / 3, 1 / 3, 1 / 3), (0.1, 0.3, 0.6)),
        ((0.5, 0.4, 0.1), (0.2, 0.8, 0.0)),
    ):
        logits = 2 * torch.randn(6, 3, generator=generator)
        p, q = torch.tensor(assumed), torch.tensor(shares)
        case = f"probabilities for shares {', '.join(f'{s:.2f}' for s in shares)}"
        got = answer(logits.clone(), p.clone(), q.clone())
        expect_close(got, at_the_place(logits, p, q), f"the {case}")
        if got[:, q == 0].any():
            raise Wrong(f"the {case}: a class with share 0 has a probability above 0")


EXERCISES = {
    "8.1": Exercise(
        goal="the features of all files, in batches.",
        verify=_verify_features,
        solution=features_of,
        mutants=(
            _loop(train=True),  # batch statistics and dropout
            _loop(grad=True),  # keeps every layer's numbers
            lambda *given: _loop(grad=True)(*given).detach(),  # lets go of them too late
            _loop(plain=True),  # forgets how a picture lies, and what is transparent
            _loop(whole=True),  # all pictures at once
            _loop(drop=True),  # without the last, smaller batch
            _loop(scale=True),  # not the mean and std that the network knows
        ),
    ),
    "8.2": Exercise(
        goal="a linear head trained with balanced softmax.",
        verify=_verify_head,
        solution=balanced_head,
        mutants=(
            _head(term=torch.zeros_like),  # cross-entropy
            _head(term=lambda n: -n.log()),  # the wrong sign
            _head(term=lambda n: n / n.sum()),  # shares without the logarithm
            _head(term=torch.zeros_like, weights=lambda n: n.sum() / n),  # class weights instead
            _head(keep=True),  # keeps log n_j for the answers
            _head(clear=False),  # adds up the gradients of all steps
            _head(momentum=0.0),
            _head(decay=0.0),
            _head(zeros=False),  # first weights by chance
        ),
    ),
    "8.3": Exercise(
        goal="probabilities for the shares of the place.",
        verify=_verify_place,
        solution=at_the_place,
        mutants=(
            lambda z, p, q: (z + q.log()).softmax(1),  # forgets what the logits assume
            lambda z, p, q: (z + p.log() - q.log()).softmax(1),  # the wrong way round
            lambda z, p, q: (z + q - p).softmax(1),  # without logarithms
            lambda z, p, q: z.softmax(1) * q / p,  # rows that do not sum to 1
            lambda z, p, q: z - p.log() + q.log(),  # logits
            lambda z, p, q: z.softmax(1),  # changes nothing
            lambda z, p, q: (z - p.log() + (q + 1e-8).log()).softmax(1),  # share 0 is not 0
        ),
    ),
}
