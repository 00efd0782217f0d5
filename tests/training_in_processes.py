"""What test_distributed.py trains in one, two and three processes: training_in_processes.py CASES OUT 1 2 3, and under
torchrun, without the last numbers.
"""

import importlib
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import distributed, nn
from torch.multiprocessing import start_processes
from torch.nn import functional as F

from course_utils.data import LabeledImages
from course_utils.heads import CosineClassifier
from course_utils.losses import DeferredReweighting, FocalLoss, LDAMLoss, LogitAdjustedLoss
from course_utils.machinery.distributed import in_shares, process, several_processes
from course_utils.networks import MLP, ImageClassifier, SmallCNN
from course_utils.photos import Photos, View
from course_utils.sampling import (
    ClassBalancedSampler,
    DeferredResampler,
    ProgressivelyBalancedSampler,
    SquareRootSampler,
)
from course_utils.training import fit, predict, random_shift

COUNTS = [60, 25, 10, 4, 2]  # 101 images: the last batch of 20 has 1 image, of 33 it has 2
EPOCHS, BATCH = 3, 20


def images_with_a_tail():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(5).repeat_interleave(torch.tensor(COUNTS))
    images = torch.randint(120, (len(labels), 1, 8, 8), dtype=torch.uint8, generator=generator)
    for j in range(5):
        images[labels == j, :, j : j + 3] += 120
    return LabeledImages(images, labels, tuple("abcde"))


DATA = images_with_a_tail()


def mlp(head=None):
    return MLP(5, in_features=64, hidden=16, feature_dim=8, head=head)


def cosine():
    return mlp(CosineClassifier(8, 5, scale=1.0, learn_scale=False, unit_rows=True))


def with_dropout():
    return ImageClassifier(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 8), nn.ReLU()), 8, 5)


def cnn():
    return SmallCNN(5, width=4)


def half_frozen():
    model = cnn()
    model.backbone[:3].requires_grad_(False)
    return model


def moving_average():
    model = cnn()
    model.backbone[1].momentum = None
    return model


def with_an_idle_layer():
    model = mlp()
    model.idle = nn.Linear(3, 3)
    return model


def weighted(**options):
    return nn.CrossEntropyLoss(1 / torch.tensor(COUNTS, dtype=torch.float64), **options)


def drw(make):
    return DeferredReweighting(make, COUNTS, EPOCHS, at=0.3)


def weighted_later(weight=None):
    return nn.CrossEntropyLoss(None if weight is None else weight.double())


def mean_objective(model, images, labels, _places):
    return F.cross_entropy(model(images), labels, label_smoothing=0.1)


SAMPLERS = {
    "square-root": partial(SquareRootSampler, DATA.labels, seed=1),
    "class-balanced": partial(ClassBalancedSampler, DATA.labels, seed=1),
    "progressive": partial(ProgressivelyBalancedSampler, DATA.labels, epochs=EPOCHS, seed=1),
    "deferred": partial(DeferredResampler, DATA.labels, EPOCHS, at=0.3, seed=1),
}
EQUAL = {  # {name: (network, options of fit)}: as in one process
    "plain": (mlp, {}),
    "weighted": (mlp, {"loss": weighted()}),
    "weighted sum": (mlp, {"loss": weighted(reduction="sum"), "lr": 0.01}),
    "focal": (mlp, {"loss": FocalLoss(2.0)}),
    "adjusted": (mlp, {"loss": LogitAdjustedLoss(COUNTS)}),
    "LDAM": (cosine, {"loss": LDAMLoss(COUNTS, scale=10.0)}),
    "DRW": (mlp, {"loss": drw(weighted_later)}),
    "LDAM + DRW": (cosine, {"loss": drw(partial(LDAMLoss, COUNTS, scale=10.0))}),
    "objective": (mlp, {"objective": mean_objective}),
    "batch statistics": (cnn, {"loss": drw(weighted_later), "batch_size": 33}),
    "batch statistics, objective": (cnn, {"objective": mean_objective, "batch_size": 33}),
    "moving average": (moving_average, {"batch_size": 33}),
    "half frozen": (half_frozen, {"batch_size": 33}),
    "an idle layer": (with_an_idle_layer, {}),
    "no augmentation": (mlp, {"augment": None}),
    "AdamW": (mlp, {"optimizer": torch.optim.AdamW, "lr": 0.01}),
    **{name: (mlp, {"sampler": make()}) for name, make in SAMPLERS.items()},
}


def trained(network, *, dtype=torch.float64, model_seed=0, data=DATA, **options):
    torch.manual_seed(model_seed)
    model = network().to(dtype)
    usual = {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.05, "augment": random_shift, "progress": False}
    history = fit(model, data, evaluate=lambda m: {"said": predict(m, data).sum().item()}, **usual | options)
    return {"weights": model.state_dict(), "history": [{k: v for k, v in r.items() if k != "seconds"} for r in history]}


def refused(**options):
    try:
        trained(**options)
    except ValueError as error:
        return str(error)
    return "nothing was refused"


class Noted:
    """A sampler's histogram: which images this process saw in each epoch."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, images, labels, places):
        if model.training:  # the check of an objective is in evaluation mode
            self.seen.append(places)
        return F.cross_entropy(model(images), labels)


def histogram(sampler):
    noted = Noted()
    trained(mlp, objective=noted, sampler=sampler, batch_size=17, epochs=EPOCHS)  # 101 = 5 x 17 + 16
    mine = torch.bincount(torch.cat(noted.seen), minlength=len(DATA))
    everyone = [mine]
    if process()[1] > 1:
        everyone = [None] * process()[1]
        distributed.all_gather_object(everyone, mine)
    return torch.stack(everyone)


def second_half_alone(model, images, labels, _places):
    return F.cross_entropy(model(images), labels, weight=1 / torch.tensor(COUNTS, dtype=torch.float64))


def write_pictures(folder):
    """Forty small files in two classes."""
    random = np.random.default_rng(0)
    for i in range(40):
        path = folder / "ab"[i % 3 == 0] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)


def all_cases(folder):
    rank = process()[0]
    found = {name: trained(network, **options) for name, (network, options) in EQUAL.items()}
    found["float32"] = trained(cnn, dtype=torch.float32, batch_size=33)
    found["bfloat16"] = trained(mlp, dtype=torch.float32, precision=torch.bfloat16)
    found["dropout"] = trained(with_dropout)
    found["not killed"] = stoppable(None, None)
    photos = Photos.from_folder(folder / "pictures", "all", view=View(size=16))
    found["photographs"] = trained(lambda: SmallCNN(2, in_channels=3, width=4), data=photos, augment="usual")
    found["histograms"] = {name: histogram(make()) for name, make in SAMPLERS.items()}
    model = mlp()
    found["in shares"] = [
        torch.equal(in_shares(partial(predict, model), d), predict(model, d))
        for d in (DATA, DATA.subset(torch.arange(1)))
    ]
    found["refused"] = {
        "weights": refused(network=mlp, model_seed=rank),
        "seed": refused(network=mlp, seed=rank),
        "objective": refused(network=mlp, objective=second_half_alone),
    }
    return found


class Killer(nn.CrossEntropyLoss):
    """Kills its process in the middle of an epoch, once."""

    def __init__(self, marker):
        super().__init__()
        self.marker, self.epoch, self.batch = marker, 0, 0

    def set_epoch(self, epoch):
        self.epoch, self.batch = epoch, 0

    def forward(self, logits, labels):
        self.batch += 1
        last = process()[0] == process()[1] - 1
        if (self.epoch, self.batch) == (1, 3) and last and self.marker and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(logits, labels)


def stoppable(marker, checkpoint):
    return trained(cnn, dtype=torch.float32, batch_size=33, loss=Killer(marker), checkpoint=checkpoint)


def work(what, out):
    torch.set_num_threads(1)
    with several_processes():
        checkpoint = f"{out}.{process()[0]}.checkpoint"
        found = all_cases(Path(out).parent) if what == "cases" else stoppable(Path(out).with_name("killed"), checkpoint)
        if process()[0] == 0:
            torch.save(found, out)


def one_of_several(number, world, port, what, out):
    """As torchrun starts it, but for imports, which take seconds."""
    own = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    work(what, out)


if __name__ == "__main__":
    what, out, *worlds = sys.argv[1:]
    write_pictures(Path(out).parent / "pictures")
    importlib.import_module("torch._dynamo")  # DistributedDataParallel wants it, and that takes seconds too
    for world in map(int, worlds):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start_processes(one_of_several, (world, port, what, f"{out}.{world}"), nprocs=world, start_method="fork")
    if not worlds:
        work(what, out)
