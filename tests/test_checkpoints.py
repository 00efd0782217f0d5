"""Checkpoints of fit() go on with the same training alone: what they compare, what they do not mind, damaged files."""

import enum
import importlib
import io
import itertools
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
import types
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import DATA, accuracy, made, mlp, train, with_batch_norm
from torch import nn
from torch.nn import functional as F
from torch.utils.data import RandomSampler

from course_utils.data import LabeledImages
from course_utils.heads import CosineClassifier
from course_utils.losses import DeferredReweighting, FocalLoss, LDAMLoss
from course_utils.machinery.checkpoints import describe
from course_utils.networks import MLP, ImageClassifier
from course_utils.runtime import digest
from course_utils.sampling import (
    ClassBalancedSampler,
    DeferredResampler,
    InstanceBalancedSampler,
    ProgressivelyBalancedSampler,
)
from course_utils.training import fit, random_shift, step_schedule

ROOT = Path(__file__).resolve().parents[1]
COUNTS = DATA.counts.tolist()
LABELS = DATA.labels
weights = torch.tensor([1.0, 2.0, 3.0])

pytestmark = pytest.mark.usefixtures("one_thread")


def own_loss(power):
    class Own:
        def __init__(self):
            self._power = power

        def __call__(self, logits, labels):
            return F.cross_entropy(logits, labels) ** self._power

    return Own()


class Same(nn.Module):
    def forward(self, logits, labels):
        return F.cross_entropy(logits, labels)


def another_same():
    class Same(nn.Module):
        def forward(self, logits, labels):
            return 2 * F.cross_entropy(logits, labels)

    return Same()


def of_class(value, around):
    """A loss of a notebook with a number in its class, and one in another cell."""
    space = {"F": F, "factor": around, "__name__": "__main__"}
    lines = ["class Loss:", f" power = {value}", " def __call__(self, z, y):"]
    exec("\n".join([*lines, "  return factor * F.cross_entropy(z, y) ** self.power"]), space)
    return space["Loss"]()


def with_global(value):
    """A function of a notebook, which uses what another cell defined."""
    space = {"F": F, "gamma": value, "__name__": "__main__"}
    exec("def loss(logits, labels):\n    return gamma * F.cross_entropy(logits, labels)", space)
    return space["loss"]


def objective(weight):
    return lambda model, images, labels, _: F.cross_entropy(model(images), labels, weight=weight)


def with_dropout_of(share):
    layers = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(share))  # noqa: E731
    return lambda: ImageClassifier(layers(), 16, 3)


def cosine_mlp():
    return MLP(3, in_features=64, hidden=8, head=CosineClassifier(64, 3, scale=1.0, learn_scale=False))


def deferred(make=nn.CrossEntropyLoss, **options):
    return DeferredReweighting(make, COUNTS, 4, **options)


def teacher(seed):
    old = made(mlp, seed)
    return lambda model, images, labels, _: F.mse_loss(model(images), old(images).detach())


BRIGHT = replace(DATA, images=DATA.images.clone().clamp(max=200))
MOVED = replace(DATA, images=DATA.images.flip(0), labels=DATA.labels.flip(0))  # equal counts
FROZEN = ("head.weight", "head.bias")

COSINE = {"network": cosine_mlp}

# (what differs, one training, the other)
PAIRS = [
    ("loss.gamma=0.0 instead of 1.0", {"loss": FocalLoss(0.0)}, {"loss": FocalLoss(1.0)}),
    ("loss.weight=", {"loss": nn.CrossEntropyLoss(weight=weights)}, {"loss": nn.CrossEntropyLoss(weight=weights + 1)}),
    (
        "loss.label_smoothing=0.1 instead of 0.2",
        *({"loss": nn.CrossEntropyLoss(label_smoothing=s)} for s in (0.1, 0.2)),
    ),
    ("loss.margins=", *(COSINE | {"loss": LDAMLoss(COUNTS, m)} for m in (0.5, 0.4))),
    ("loss.scale=30.0 instead of 10.0", *(COSINE | {"loss": LDAMLoss(COUNTS, scale=s)} for s in (30.0, 10.0))),
    ("loss.at=0.5 instead of 0.75", {"loss": deferred(at=0.5)}, {"loss": deferred(at=0.75)}),
    ("loss.beta=0.9 instead of 0.99", {"loss": deferred(beta=0.9)}, {"loss": deferred(beta=0.99)}),
    (
        "loss.make_loss.scale=30.0 instead of 5.0",
        *(COSINE | {"loss": deferred(partial(LDAMLoss, COUNTS, scale=s))} for s in (30.0, 5.0)),
    ),
    ("loss._power=1 instead of 2", {"loss": own_loss(1)}, {"loss": own_loss(2)}),
    ("loss.forward.code=", {"loss": Same()}, {"loss": another_same()}),
    ("loss.power=1 instead of 2", {"loss": of_class(1, 1)}, {"loss": of_class(2, 1)}),
    ("loss.__call__.factor=1 instead of 2", {"loss": of_class(1, 1)}, {"loss": of_class(1, 2)}),
    ("loss.gamma=1.0 instead of 2.0", {"loss": with_global(1.0)}, {"loss": with_global(2.0)}),
    ("loss.weight=None instead of float32", {"objective": objective(None)}, {"objective": objective(weights)}),
    ("loss.old.", {"objective": teacher(1)}, {"objective": teacher(2)}),
    (
        "loss.0=2.0 instead of 3.0",
        *({"loss": partial(lambda power, z, y: F.cross_entropy(z, y) ** power, p)} for p in (2.0, 3.0)),
    ),
    (
        "loss.code=",
        *({"loss": f} for f in (lambda z, y: F.cross_entropy(z, y), lambda z, y: 2 * F.cross_entropy(z, y))),
    ),
    ("sampler.seed=0 instead of 1", *({"sampler": InstanceBalancedSampler(LABELS, seed=s)} for s in (0, 1))),
    (
        "sampler.num_samples=40 instead of 50",
        *({"sampler": ClassBalancedSampler(LABELS, num_samples=n)} for n in (40, 50)),
    ),
    ("sampler.switch=2 instead of 3", *({"sampler": DeferredResampler(LABELS, 4, at=at)} for at in (0.5, 0.75))),
    ("schedule.at=0.5 instead of 0.75", *({"schedule": partial(step_schedule, at=at)} for at in (0.5, 0.75))),
    ("schedule.code=", {"schedule": lambda e, n: 1 / (e + 1)}, {"schedule": lambda e, n: 1 / (e + 2)}),
    ("augment.pixels=1 instead of 2", {"augment": partial(random_shift, pixels=1)}, {"augment": random_shift}),
    ("betas=", *({"optimizer": partial(torch.optim.AdamW, betas=(b, 0.9)), "lr": 0.01} for b in (0.5, 0.6))),
    ("images=", {"data": DATA}, {"data": BRIGHT}),
    ("images=", {"data": DATA}, {"data": MOVED}),
    ("images=", {"data": DATA}, {"data": replace(DATA, class_names=("high", "middle", "low"))}),
    ("network.backbone.3.p=0.1 instead of 0.5", {"network": with_dropout_of(0.1)}, {"network": with_dropout_of(0.5)}),
    (r"frozen=\['head.weight'\] instead of", {"frozen": FROZEN[0]}, {"frozen": FROZEN[1]}),
]


def run(path, data=DATA, network=mlp, frozen=None, **options):
    model = made(network)
    if frozen:
        model.get_parameter(frozen).requires_grad_(False)
    options = {"epochs": 4, "batch_size": 32, "augment": None, "progress": False} | options
    return fit(model, data, checkpoint=path, **options)


@pytest.mark.parametrize(("said", "mine", "other"), PAIRS, ids=[f"{said} {i}" for i, (said, *_) in enumerate(PAIRS)])
def test_the_checkpoint_of_other_numbers_is_refused_by_name_and_that_of_the_same_taken(said, mine, other, tmp_path):
    path = tmp_path / "run.pt"
    history = run(path, **mine)
    assert run(path, **mine) == history, "the same objects, after training"
    with pytest.raises(ValueError, match=rf"run\.pt was written with other settings: .*{said}"):
        run(path, **other)
    assert run(path, **mine) == history


ELSEWHERE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_checkpoints import *
print([row["loss"] for row in train(checkpoint=sys.argv[2], **many_parts())[1]])
"""


def many_parts():
    odd = {"a", "b", "c", "d"}  # whose order differs between processes
    return {
        "loss": deferred(partial(LDAMLoss, COUNTS), at=0.5),
        "sampler": DeferredResampler(LABELS, 4, at=0.5, seed=3),
        "augment": lambda images, generator: random_shift(images, generator, pixels=len(odd & {"a", "x", "y"})),
        "schedule": partial(step_schedule, at=0.5),
        "optimizer": partial(torch.optim.AdamW, eps=1e-6),
        "lr": 0.01,
        "network": cosine_mlp,
    }


def test_the_same_training_in_another_process_is_taken(tmp_path):
    """No address and no order of a set counts; and the loss of this process has been used."""
    _, history = train(checkpoint=tmp_path / "run.pt", **many_parts())
    command = [sys.executable, "-c", ELSEWHERE, str(ROOT / "tests"), str(tmp_path / "run.pt")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str([row["loss"] for row in history]), done.stderr


def test_another_model_object_of_the_same_start_does_not_count(tmp_path):
    """An objective that holds the model itself: its weights are what the checkpoint brings."""
    for _ in range(2):
        model = made(with_batch_norm)
        own = lambda _, images, labels, __, model=model: F.cross_entropy(model(images), labels)  # noqa: E731
        done = fit(model, DATA, epochs=1, objective=own, checkpoint=tmp_path / "run.pt", progress=False)
    assert len(done) == 1


def test_a_digest_of_sixty_thousand_images_takes_no_time(record_property):
    data = LabeledImages(torch.zeros(60_000, 1, 28, 28, dtype=torch.uint8), torch.zeros(60_000).long(), ("a",))
    started = time.perf_counter()
    found = data.digest()
    seconds = time.perf_counter() - started
    record_property("note", f"digest of 60,000 images of 28 x 28: {1000 * seconds:.0f} ms")
    assert len(found) == 16 and seconds < 5
    other = replace(data, images=data.images.clone())
    other.images[59_999, 0, 27, 27] = 1
    assert other.digest() != found == replace(data, images=data.images.clone()).digest()
    assert replace(data, class_names=("b",)).digest() != found


class Number(enum.IntEnum):
    one = 1
    two = 2


class Slots:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Slots(1), Slots(2)),
        ([weights, 1], [weights, 2]),
        ({"a": weights}, {"a": weights + 1}),
        ({1, 2}, {1, 3}),
        (list(range(100)), list(range(99))),
        (torch.ones(2), torch.ones(2, dtype=torch.float64)),
        (torch.ones(2, 1), torch.ones(2)),
        (torch.ones(2).numpy(), torch.zeros(2).numpy()),
        (torch.bfloat16, torch.float32),
        (Path("a"), Path("b")),
        (range(3), range(4)),
        (float("nan"), 0.0),
        (True, 2),
        (Number(1), Number(2)),
        (Number.one, Number.two),
        (LabeledImages.digest, LabeledImages.subset),
        (made(mlp).forward, made(mlp, 1).forward),
        (RandomSampler([1], generator=torch.Generator().manual_seed(1)), RandomSampler([1])),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_differs_is_described_differently(one, other):
    assert describe("x", one) == describe("x", one) != describe("x", other)


def test_what_is_equal_is_described_equally():
    assert describe("x", FocalLoss(1.0)) == describe("x", FocalLoss(1.0))
    assert describe("x", threading.Lock()) == describe("x", threading.Lock()), "no address"
    first, second = InstanceBalancedSampler(LABELS), InstanceBalancedSampler(LABELS.clone())
    first.indices(), first.by_class
    assert describe("x", first) == describe("x", second), "what is computed once does not count"
    round_about = {}
    round_about["self"] = round_about
    assert describe("x", round_about) == {"x": "dict"}
    assert len(digest("a", b"b")) == 16 and digest("a") != digest(b"a")


# ---- parts made for another number of epochs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("loss", DeferredReweighting(nn.CrossEntropyLoss, COUNTS, 200)),
        ("sampler", DeferredResampler(LABELS, 200)),
        ("sampler", ProgressivelyBalancedSampler(LABELS, epochs=200)),
    ],
)
def test_a_part_made_for_other_epochs_is_refused(name, part):
    """Its moment would never come, and nothing would say so."""
    with pytest.raises(ValueError, match=rf"{name}: got one made for 200 epochs; allowed: one for the 6 of this"):
        train(epochs=6, **{name: part})


# ---- a last batch of one image ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "batch_size"), [(65, 64), (3, 1), (5, 2)])
def test_a_batch_of_one_image_is_refused_before_training_where_it_cannot_be_used(number, batch_size):
    data = DATA.subset(torch.arange(number))
    model = made(with_batch_norm)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ValueError, match=rf"batch_size: got {batch_size} for {number} images, so one image is a batch"):
        fit(model, data, epochs=1, batch_size=batch_size, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_of_one_image_is_fine_elsewhere():
    data, large = DATA.subset(torch.arange(17)), replace(DATA, images=F.pad(DATA.images, (4, 4, 4, 4)))
    fit(made(mlp), data, epochs=1, batch_size=16, progress=False)
    fit(made(with_batch_norm), large.subset(torch.arange(17)), epochs=1, batch_size=16, progress=False)
    frozen = made(with_batch_norm)
    frozen.backbone.requires_grad_(False)
    fit(frozen, data, epochs=1, batch_size=16, progress=False)


# ---- damaged files ---------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    path, real = tmp_path / "run.pt", open

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    def full(file, mode="r", *rest, **options):
        return Full(file, mode) if mode == "wb" else real(file, mode, *rest, **options)

    train(epochs=1, checkpoint=path)
    before = path.read_bytes()
    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OSError, match=r"cannot write .*other\.pt: No space left on device"):
        train(checkpoint=tmp_path / "other.pt")
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["run.pt"]


def test_altered_checkpoints_are_refused_by_name(tmp_path, record_property):
    """Cut off, bytes changed, zeroed or inserted; torch itself does not notice a changed weight."""
    path, random_, refused, cases = tmp_path / "run.pt", random.Random(0), 0, 120
    options = {"epochs": 2, "evaluate": accuracy, "optimizer": torch.optim.AdamW, "lr": 0.01}
    model, history = train(checkpoint=path, **options)
    whole = path.read_bytes()
    for case in range(cases):
        place, raw = random_.randrange(len(whole)), bytearray(whole)
        if case % 4 == 0:
            del raw[place:]
        elif case % 4 == 1:
            raw[place] ^= 1 << random_.randrange(8)
        elif case % 4 == 2:
            raw[place : place + 64] = bytes(min(64, len(whole) - place))
        else:
            raw[place:place] = bytes([random_.randrange(256)])
        path.write_bytes(raw)
        other = made(mlp)
        try:
            again = fit(other, DATA, batch_size=16, progress=False, checkpoint=path, **options)
        except ValueError as error:
            assert str(path) in str(error), error
            assert all(map(torch.equal, other.state_dict().values(), made(mlp).state_dict().values())), "untouched"
            refused += 1
        else:  # a byte that means nothing, such as padding
            assert again == history
            assert all(map(torch.equal, other.state_dict().values(), model.state_dict().values()))
    record_property("note", f"{cases} altered checkpoints: {refused} refused by name, the others unharmed")
    assert refused > 0.6 * cases


def test_a_changed_weight_is_noticed(tmp_path):
    path = tmp_path / "run.pt"
    train(checkpoint=path)
    state = torch.load(path, weights_only=True)
    state["model"]["head.weight"][0, 0] += 1
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"run\.pt is not a checkpoint"):
        train(checkpoint=path)


class Smoothed(torch.nn.Module):
    """A loss that remembers: cross-entropy divided by its running mean."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, logits, labels):
        value = F.cross_entropy(logits, labels)
        self.mean.lerp_(value.detach(), 0.1)
        return value / self.mean


def test_a_loss_that_remembers_goes_on_where_it_was(tmp_path):
    def losses(stop=None):
        model, path = made(mlp, 0), None if stop is None else tmp_path / "run.pt"

        def evaluate(_):
            if stop is not None and next(seen) == stop:
                raise KeyboardInterrupt
            return {}

        seen = itertools.count()
        return fit(model, DATA, epochs=4, loss=Smoothed(), checkpoint=path, evaluate=evaluate, progress=False)

    with pytest.raises(KeyboardInterrupt):
        losses(stop=2)
    again = losses(stop=-1)
    assert [row["loss"] for row in again] == [row["loss"] for row in losses()]


def test_a_generator_is_compared_and_a_logger_is_not():
    assert describe("g", np.random.default_rng(0)) != describe("g", np.random.default_rng(1))
    assert describe("log", logging.getLogger("mine")) == {}


# ---- code of one's own -----------------------------------------------------------------------------------------------

FILES = {
    "own.py": "FACTOR = 1\ndef loss(z, y): return FACTOR * F.cross_entropy(z, y)",
    "package/__init__.py": "",
    "package/losses.py": "FACTOR = 1\ndef loss(z, y): return FACTOR * F.cross_entropy(z, y)",
    "spread/losses.py": "FACTOR = 1\ndef loss(z, y): return FACTOR * F.cross_entropy(z, y)",  # without __init__.py
}


def own_code(folder, monkeypatch, **changes):
    """Modules beside a notebook, imported anew."""
    monkeypatch.syspath_prepend(folder)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        changed = text
        for old, new in changes.items():
            changed = changed.replace(old, new)
        (folder / name).write_text("from torch.nn import functional as F\n" + changed)
    for name in [name for name in sys.modules if name.split(".")[0] in ("own", "package", "spread")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return [importlib.import_module(name) for name in ("own", "package.losses", "spread.losses")]


def uses_of(module):
    """Ways in which a loss of a notebook comes to a number in a module."""
    around = sys.modules[module.__name__.split(".")[0]]
    inner = module.__name__.split(".")[1:]
    space = {"own": around, "module": module, "F": F, "__name__": "__main__"}
    exec(f"def loss(z, y): return {'.'.join(['own', *inner])}.FACTOR * F.cross_entropy(z, y)", space)
    return [module.loss, space["loss"], lambda z, y: module.loss(z, y), lambda z, y: module.FACTOR * F.mse_loss(z, y)]


@pytest.mark.parametrize("which", range(3), ids=["module", "package", "folder"])
@pytest.mark.parametrize("way", range(4), ids=["its function", "a global", "its function inside", "around"])
def test_a_module_of_ones_own_counts_by_its_text_and_by_what_was_set_in_it(which, way, tmp_path, monkeypatch):
    module = own_code(tmp_path, monkeypatch)[which]
    before = describe("loss", uses_of(module)[way])
    assert describe("loss", uses_of(module)[way]) == before
    module.FACTOR = 2
    odd = {k for k, v in describe("loss", uses_of(module)[way]).items() if before.get(k) != v}
    assert odd and all(key.endswith("FACTOR") for key in odd)
    module = own_code(tmp_path, monkeypatch)[which]
    assert describe("loss", uses_of(module)[way]) == before, "imported anew"
    module = own_code(tmp_path, monkeypatch, **{"FACTOR *": "3 * FACTOR *"})[which]
    if way != 1 or which == 0:  # else that function is not used, and the text of the package itself is as it was
        assert describe("loss", uses_of(module)[way]) != before


def test_numbers_that_were_set_in_a_package_count_where_they_are_used(monkeypatch):
    from course_utils import methods

    loss = lambda z, y: methods.LDAM_SCALE * F.cross_entropy(z, y)  # noqa: E731
    before = describe("loss", loss)
    assert before["loss.methods"] == "course_utils.methods" and before["loss.methods.LDAM_SCALE"] == methods.LDAM_SCALE
    monkeypatch.setattr(methods, "LDAM_SCALE", methods.LDAM_SCALE + 1)
    assert describe("loss", loss) != before


def a_network(twice):
    class Net(ImageClassifier):
        def features(self, images):
            return super().features(images) * twice

    class Twice(ImageClassifier):
        def features(self, images):
            return super().features(images) * 2

    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
    Twice.__name__ = Twice.__qualname__ = "Net"
    return (Net if twice == 1 else Twice)(layers, 8, 3)


def with_a_method(factor):
    model = mlp()
    plain = model.features
    model.features = types.MethodType(lambda self, images: factor * plain(images), model)
    return model


@pytest.mark.parametrize(
    ("network", "said"),
    [(a_network, r"network\.\.type\.features"), (with_a_method, r"network\.\.features\.factor=1 instead of 2")],
)
def test_another_forward_of_ones_own_network_is_another_training(network, said, tmp_path):
    path = tmp_path / "run.pt"
    history = run(path, network=lambda: network(1))
    assert run(path, network=lambda: network(1)) == history
    with pytest.raises(ValueError, match=rf"run\.pt was written with other settings: {said}"):
        run(path, network=lambda: network(2))
