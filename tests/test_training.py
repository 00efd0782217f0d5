"""training.py: one loop that can be repeated, stopped, killed and taken up again."""

import itertools
import math
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.data import LabeledImages
from course_utils.networks import MLP, ImageClassifier, SmallCNN
from course_utils.sampling import ClassBalancedSampler, InstanceBalancedSampler
from course_utils.training import SGD, constant_schedule, cosine_schedule, extract_features, fit, predict, to_float

ROOT = Path(__file__).resolve().parents[1]


pytestmark = pytest.mark.usefixtures("one_thread")


def some_data(n=90, size=8):
    """Three classes, each with a bright stripe of its own."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    images = torch.randint(120, (n, 1, size, size), dtype=torch.uint8, generator=generator)
    for j in range(3):
        images[labels == j, :, 2 * j : 2 * j + 2] += 120
    return LabeledImages(images, labels, ("top", "middle", "low"))


DATA = some_data()


def mlp():
    return MLP(3, in_features=64, hidden=8, feature_dim=4)


def with_dropout():
    return ImageClassifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5)), 16, 3)


def with_batch_norm():
    return SmallCNN(3, width=4)


NETWORKS = pytest.mark.parametrize("network", [mlp, with_dropout, with_batch_norm])


def made(network, seed=0):
    torch.manual_seed(seed)
    return network()


def train(network=mlp, model_seed=0, **options):
    model = made(network, model_seed)
    return model, fit(model, DATA, **{"epochs": 4, "batch_size": 16, "progress": False} | options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


# ---- the loop ------------------------------------------------------------------------------------------------------


@NETWORKS
def test_the_loss_falls_and_the_network_learns(network):
    model, history = train(network, epochs=8, augment=None)
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert (predict(model, DATA).argmax(1) == DATA.labels).float().mean() > 0.8
    assert [row["epoch"] for row in history] == list(range(8)) and all(row["seconds"] > 0 for row in history)


def test_it_is_the_plain_loop_of_the_textbook():
    """At other than the default settings: SGD on shuffled batches, one learning rate an epoch."""
    settings = {"lr": 0.05, "momentum": 0.7, "weight_decay": 3e-3}
    model, history = train(epochs=3, batch_size=25, seed=7, augment=None, schedule=lambda e, n: 1 / (e + n), **settings)

    slow, losses = made(mlp), []
    optimizer = torch.optim.SGD(slow.parameters(), **settings)
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (epoch + 3)
        sampler, total = InstanceBalancedSampler(DATA.labels, seed=7), 0.0
        sampler.set_epoch(epoch)
        for start in range(0, 90, 25):
            chosen = list(sampler)[start : start + 25]
            loss = F.cross_entropy(slow(DATA.images[chosen] / 127.5 - 1), DATA.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        losses.append(total / 90)
    for mine, theirs in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert [row["loss"] for row in history] == pytest.approx(losses, abs=1e-5)
    assert [row["lr"] for row in history] == pytest.approx([0.05 / 3, 0.05 / 4, 0.05 / 5])


@NETWORKS
def test_a_seed_gives_the_same_weights_whatever_happened_before(network):
    first, history = train(network, seed=1)
    torch.rand(100)
    second, again = train(network, seed=1)
    other, _ = train(network, seed=2)
    assert same(first, second) and without_seconds(history) == without_seconds(again)
    assert not same(first, other)


def test_nothing_but_the_model_changes(capfd):
    images, labels = DATA.images.clone(), DATA.labels.clone()
    model = made(with_dropout)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    fit(model, DATA, epochs=2, progress=False, evaluate=lambda m: {"x": float(torch.rand(()))})
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]
    assert torch.equal(DATA.images, images) and torch.equal(DATA.labels, labels)
    assert next(model.parameters()).device == DATA.images.device
    assert capfd.readouterr() == ("", "")


def test_generators_of_gpus_that_do_not_train_are_not_seeded(monkeypatch):
    model, seeded = made(with_dropout), []
    monkeypatch.setattr(torch.mps, "manual_seed", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    fit(model, DATA, epochs=1, progress=False)
    assert not seeded


@pytest.mark.parametrize("before", [True, False])
def test_cudnn_repeats_itself_during_training_alone(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", before)
    seen = []
    look = lambda _model: seen.append(torch.backends.cudnn.deterministic) or {}  # noqa: E731
    fit(made(mlp), DATA, epochs=1, progress=False, evaluate=look)
    with pytest.raises(FloatingPointError):
        fit(made(mlp), DATA, epochs=1, progress=False, loss=lambda logits, labels: logits.sum() * math.nan)
    assert seen == [True] and torch.backends.cudnn.deterministic is before


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_stays_in_its_mode(mode):
    model = made(with_dropout).train(mode)
    fit(model, DATA, epochs=1, progress=False)
    assert all(module.training is mode for module in model.modules())


def test_it_trains_in_training_mode_even_if_the_model_comes_in_evaluation_mode():
    model = made(with_dropout).eval()
    fit(model, DATA, epochs=4, batch_size=16, progress=False)
    assert same(model, train(with_dropout)[0])


class SpySampler(InstanceBalancedSampler):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.epochs = []

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        self.epochs.append(epoch)


class SpyLoss(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__()
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_schedule_sampler_and_loss_hear_of_every_epoch_and_evaluate_joins_the_history():
    asked, evaluated = [], []
    sampler, loss = SpySampler(DATA.labels, num_samples=20), SpyLoss()

    def schedule(epoch, epochs):
        asked.append((epoch, epochs))
        return 0.5**epoch

    def evaluate(model):
        evaluated.append(model)
        return {"answer": 42.0 + len(evaluated)}

    model, history = train(epochs=3, lr=0.2, sampler=sampler, loss=loss, schedule=schedule, evaluate=evaluate)
    assert sampler.epochs == loss.epochs == [0, 1, 2]
    assert set(asked) == {(0, 3), (1, 3), (2, 3)}
    assert evaluated == [model] * 3
    assert [row["lr"] for row in history] == pytest.approx([0.2, 0.1, 0.05])
    assert [row["answer"] for row in history] == [43, 44, 45]


def test_loss_sampler_and_augmentation_make_a_difference():
    plain, _ = train()
    for options in (
        {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))},
        {"sampler": ClassBalancedSampler(DATA.labels)},
        {"augment": None},
        {"precision": torch.bfloat16},
    ):
        assert not same(plain, train(**options)[0]), f"{options} changed nothing"


def test_bfloat16_trains_float32_weights():
    model, history = train(with_batch_norm, epochs=6, precision=torch.bfloat16, augment=None)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_frozen_layers_stay():
    model = made(mlp)
    model.backbone.requires_grad_(False)
    before = [p.clone() for p in model.backbone.parameters()]
    fit(model, DATA, epochs=1, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, model.backbone.parameters(), strict=True))


@pytest.mark.parametrize("network", [with_batch_norm, with_dropout])
def test_a_frozen_part_stands_still_in_evaluation_mode(network):
    """Statistics of batch normalization do not move, and dropout does nothing."""
    model, modes = made(network), []
    model.backbone.requires_grad_(False)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    evaluate = lambda model: modes.append([m.training for m in model.backbone.modules()]) or {}  # noqa: E731
    fit(model, DATA, epochs=2, batch_size=16, augment=None, progress=False, evaluate=evaluate)
    assert all(torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items())
    assert not any(map(any, modes)) and all(module.training for module in model.modules())

    by_hand = made(network)  # the head alone, on features of a network in evaluation mode
    features = extract_features(by_hand, DATA)
    head = lambda model, images, labels, indices: F.cross_entropy(model.head(features[indices]), labels)  # noqa: E731
    fit(by_hand, DATA, epochs=2, batch_size=16, augment=None, progress=False, objective=head)
    assert torch.allclose(model.head.weight, by_hand.head.weight, atol=1e-5)
    assert not torch.allclose(model.head.weight, made(network).head.weight, atol=1e-2), "the head learns"


def test_only_the_frozen_part_stands_still():
    model = made(with_batch_norm)
    model.backbone[0].requires_grad_(False), model.backbone[1].requires_grad_(False)
    before = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    fit(model, DATA, epochs=1, progress=False)
    same = {k: torch.equal(v, before[k]) for k, v in model.backbone.state_dict().items()}
    assert all(same[k] for k in same if k[:2] in ("0.", "1.")) and not any(same[k] for k in same if k[0] not in "01")


# ---- an objective instead of a loss --------------------------------------------------------------------------------


def cross_entropy_objective(model, images, labels, indices):
    return F.cross_entropy(model(images), labels)


@NETWORKS
def test_cross_entropy_as_an_objective_is_the_same_training(network):
    (plain, history), (other, again) = train(network), train(network, objective=cross_entropy_objective)
    assert same(plain, other) and without_seconds(history) == without_seconds(again)


class SpyObjective:
    def __init__(self):
        self.epochs, self.calls = [], []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __call__(self, model, images, labels, indices):
        self.calls.append((model, images, labels, indices))
        return F.cross_entropy(model(images), labels) + 3


def test_an_objective_gets_model_images_labels_and_their_places_and_hears_of_every_epoch():
    spy = SpyObjective()
    sampler = ClassBalancedSampler(DATA.labels, num_samples=40, seed=5)
    model, history = train(epochs=2, objective=spy, sampler=sampler, augment=None)
    assert spy.epochs == [0, 1] and len(spy.calls) == 2 * 3
    for seen, images, labels, indices in spy.calls:
        assert seen is model and torch.equal(labels, DATA.labels[indices])
        assert torch.equal(images, to_float(DATA.images[indices]))
    assert torch.cat([indices for *_, indices in spy.calls[3:]]).tolist() == list(sampler)
    plain, losses = train(epochs=2, sampler=sampler, augment=None)
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] + 3 for row in losses])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


def test_an_objective_beside_a_loss_is_refused_and_a_checkpoint_of_another_one_too(tmp_path):
    with pytest.raises(ValueError, match="objective: got one beside a loss; allowed: one of them"):
        train(objective=cross_entropy_objective, loss=nn.CrossEntropyLoss())
    train(objective=cross_entropy_objective, checkpoint=tmp_path / "run.pt")
    for options in ({}, {"objective": SpyObjective()}):
        with pytest.raises(ValueError, match="written with other settings: loss=cross_entropy_objective instead of"):
            train(checkpoint=tmp_path / "run.pt", **options)


def test_schedules_at_their_borders():
    assert cosine_schedule(0, 10) == 1 and cosine_schedule(5, 10) == pytest.approx(0.5)
    assert cosine_schedule(9, 10) == pytest.approx(0.5 * (1 + math.cos(0.9 * math.pi)))
    values = [cosine_schedule(epoch, 7) for epoch in range(7)]
    assert values == sorted(values, reverse=True) and values[-1] > 0, "no epoch is trained at a rate of 0"
    assert {constant_schedule(epoch, 7) for epoch in range(7)} == {1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: got 0; allowed: at least 1"),
        ({"lr": 0}, "lr: got 0; allowed: above 0"),
        ({"lr": math.nan}, "lr: got nan"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"momentum": -0.1}, "momentum, weight_decay: got -0.1, 0.0005"),
        ({"sampler": InstanceBalancedSampler(torch.zeros(91).long())}, "sampler: .*91.*90"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


def test_model_and_data_have_to_be_on_one_device():
    with pytest.raises(ValueError, match=r"train: got images on cpu, model on meta; allowed: .*train.to\('meta'\)"):
        fit(mlp().to("meta"), DATA)


@pytest.mark.parametrize(
    "options", [{"lr": 1e30}, {"loss": lambda z, y: F.cross_entropy(z, y) * math.nan}], ids=["large lr", "nan loss"]
)
def test_a_loss_that_is_no_number_stops_and_is_not_saved(options, tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch \d: lr=.* may be too large"):
        train(epochs=3, checkpoint=tmp_path / "run.pt", **options)
    if (tmp_path / "run.pt").exists():
        saved = torch.load(tmp_path / "run.pt", weights_only=True)
        assert all(math.isfinite(row["loss"]) for row in saved["history"])


# ---- checkpoints ---------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def accuracy(model):
    """NumPy's floats, as scikit-learn returns them."""
    return {"accuracy": np.mean((predict(model, DATA).argmax(1) == DATA.labels).numpy())}


def stops_after(epochs):
    calls = []

    def evaluate(model):
        calls.append(1)
        if len(calls) > epochs:
            raise Stop
        return accuracy(model)

    return evaluate


def gone_on(network, done, path, **options):
    """What a stopped training comes to, from a model of the same start; what is done is not trained again."""
    trained = []
    model, history = train(
        network, evaluate=lambda model: trained.append(1) or accuracy(model), checkpoint=path, **options
    )
    assert len(trained) == len(history) - done
    return model, history


@NETWORKS
@pytest.mark.parametrize("k", [1, 3])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(network, k, tmp_path):
    whole, history = train(network, epochs=5, evaluate=accuracy)
    with pytest.raises(Stop):
        train(network, epochs=5, evaluate=stops_after(k), checkpoint=tmp_path / "run.pt")
    resumed, again = gone_on(network, k, tmp_path / "run.pt", epochs=5)
    assert same(whole, resumed)
    assert without_seconds(again) == without_seconds(history)
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_a_finished_run_is_read_and_not_trained(tmp_path):
    done, history = train(checkpoint=tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    evaluate = lambda model: 1 / 0  # noqa: E731
    model, again = train(checkpoint=tmp_path / "run.pt", evaluate=evaluate)
    assert same(model, done) and again == history and (tmp_path / "run.pt").read_bytes() == before


@NETWORKS
def test_another_start_does_not_end_as_the_first_one(network, tmp_path):
    """Other first weights with a file of before: its result would look like theirs."""
    path = tmp_path / "run.pt"
    with pytest.raises(Stop):
        train(network, evaluate=stops_after(2), checkpoint=path)
    before = path.read_bytes()
    said = r"checkpoint: .*run\.pt began with other weights than this model has, in backbone\..*; make the model as"
    with pytest.raises(ValueError, match=said):
        train(network, model_seed=1, checkpoint=path)
    other = made(network)
    with torch.no_grad():
        other.head.weight[0, 0] += 1e-6
    unchanged = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"began with other weights than this model has, in head\.weight; make"):
        fit(other, DATA, epochs=4, batch_size=16, progress=False, checkpoint=path)
    assert all(torch.equal(v, unchanged[k]) for k, v in other.state_dict().items()), "left alone"
    assert path.read_bytes() == before


@NETWORKS
def test_a_model_that_has_the_saved_weights_goes_on_too(network, tmp_path):
    """One that was loaded, in the same program or in another; and the file still knows the first start."""
    path = tmp_path / "run.pt"
    whole, history = train(network, evaluate=accuracy)
    with pytest.raises(Stop):
        train(network, evaluate=stops_after(2), checkpoint=path)
    state = torch.load(path, weights_only=True)
    loaded = made(network, 5)
    loaded.load_state_dict(state["model"])
    options = {"epochs": 4, "batch_size": 16, "progress": False, "checkpoint": path, "evaluate": accuracy}
    again = fit(loaded, DATA, **options)
    assert same(whole, loaded) and without_seconds(again) == without_seconds(history)
    assert fit(loaded, DATA, **options) == again, "the trained model itself"
    assert torch.load(path, weights_only=True)["start"] == state["start"] != {}
    assert same(gone_on(network, 4, path)[0], whole), "a model of the first start"


def test_a_checkpoint_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path)), monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    _, history = train(epochs=2, checkpoint="~/runs/run.pt")
    assert (
        train(epochs=2, checkpoint=tmp_path / "runs" / "run.pt")[1]
        == history
        == train(checkpoint="~/runs/run.pt", epochs=2)[1]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


KILLED_WHILE_WRITING = """
import os, sys
sys.path.insert(0, sys.argv[1])
from test_training import train, accuracy, with_dropout
epochs = []
def evaluate(model):
    epochs.append(1)
    if len(epochs) == 3:
        print("compiler imported:", "torch._dynamo" in sys.modules, flush=True)
        os.fsync = lambda file: os.kill(os.getpid(), 9)
    return accuracy(model)
import torch
torch.set_num_threads(1)
train(with_dropout, epochs=5, evaluate=evaluate, checkpoint=sys.argv[2])
"""


def test_a_run_that_was_killed_while_writing_goes_on_from_the_file_before(tmp_path):
    command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(Path(__file__).parent), str(tmp_path / "run.pt")]
    killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120)
    assert killed.returncode not in (0, 1), killed.stderr.decode()
    assert b"compiler imported: False" in killed.stdout, "it would cost every process of a grid five seconds"
    assert len(torch.load(tmp_path / "run.pt", weights_only=True)["history"]) == 2
    whole, history = train(with_dropout, epochs=5, evaluate=accuracy)
    resumed, again = gone_on(with_dropout, 2, tmp_path / "run.pt", epochs=5)
    assert same(whole, resumed) and without_seconds(again) == without_seconds(history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 5}, "written with other settings: epochs=4 instead of 5"),
        ({"lr": 0.01, "seed": 3}, "written with other settings: lr=0.1 instead of 0.01, seed=0 instead of 3"),
        ({"network": with_dropout}, r"belongs to another network; it differs in backbone\.1\.bias"),
        ({"network": lambda: MLP(3, in_features=64, hidden=8, feature_dim=5)}, "belongs to another network"),
        ({"sampler": ClassBalancedSampler(DATA.labels)}, "written with other settings: sampler="),
        ({"loss": nn.MultiMarginLoss()}, "written with other settings: loss="),
        ({"augment": None}, "written with other settings: augment="),
        ({"schedule": constant_schedule}, "written with other settings: schedule="),
        ({"optimizer": torch.optim.AdamW}, "written with other settings: optimizer=SGD instead of AdamW"),
        ({"momentum": 0.5}, "written with other settings: momentum=0.9 instead of 0.5"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_and_left_alone(options, message, tmp_path):
    path = tmp_path / "run.pt"
    train(checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"checkpoint: .*run\.pt .*{message}"):
        train(checkpoint=path, **options)
    assert path.read_bytes() == before


def test_the_checkpoint_of_other_data_is_refused(tmp_path):
    train(checkpoint=tmp_path / "run.pt")
    other = LabeledImages(DATA.images, DATA.labels.clamp(max=1), DATA.class_names)
    with pytest.raises(ValueError, match="written with other settings: "):
        fit(made(mlp), other, epochs=4, batch_size=16, progress=False, checkpoint=tmp_path / "run.pt")


def test_the_checkpoint_of_other_trainable_weights_or_of_the_version_before_is_refused(tmp_path):
    path, frozen = tmp_path / "run.pt", made(mlp)
    train(checkpoint=path)
    frozen.head.requires_grad_(False)
    with pytest.raises(ValueError, match="written with other settings: trainable=6 instead of 4"):
        fit(frozen, DATA, epochs=4, batch_size=16, progress=False, checkpoint=path)
    state = torch.load(path, weights_only=True)
    state["velocity"] = state.pop("optimizer")["velocity"]
    del state["settings"]["optimizer"], state["settings"]["trainable"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.pt was written with other settings: optimizer=None inst"):
        train(checkpoint=path)


class Mischief:
    def __reduce__(self):
        return os.mkdir, ("mischief-done",)


def garbage(path):
    path.write_bytes(b"garbage" * 100)


def nothing(path):
    path.write_bytes(b"")


def half(path):
    path.write_bytes(path.read_bytes()[:1000])


def something_else(path):
    torch.save([1, 2, 3], path)


def only_weights(path):
    torch.save({"model": mlp().state_dict()}, path)


def without_history(path):
    state = torch.load(path, weights_only=True)
    del state["history"]
    torch.save(state, path)


def mischief(path):
    torch.save({"model": {}, "settings": Mischief(), "optimizer": {}, "history": []}, path)


@pytest.mark.parametrize("damage", [garbage, nothing, half, something_else, only_weights, without_history, mischief])
def test_a_file_that_is_no_checkpoint_is_refused_and_left_alone(damage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.pt"
    train(checkpoint=path)
    damage(path)
    before, model = path.read_bytes(), made(mlp)
    with pytest.raises(ValueError, match=r"checkpoint: .*run\.pt is not a checkpoint of fit\(\)"):
        fit(model, DATA, epochs=4, batch_size=16, progress=False, checkpoint=path)
    assert path.read_bytes() == before and same(model, made(mlp))
    assert not (tmp_path / "mischief-done").exists(), "code in a checkpoint must not run"


# ---- other optimizers ----------------------------------------------------------------------------------------------


OPTIMIZERS = {
    "SGD": {},
    "SGD without momentum": {"momentum": 0.0},
    "torch's SGD": {"optimizer": torch.optim.SGD, "momentum": 0.9},
    "Adam": {"optimizer": torch.optim.Adam, "lr": 0.01},
    "AdamW": {"optimizer": torch.optim.AdamW, "lr": 0.01},
    "AdamW with options": {"optimizer": partial(torch.optim.AdamW, betas=(0.8, 0.9), amsgrad=True), "lr": 0.01},
    "RMSprop": {"optimizer": torch.optim.RMSprop, "lr": 0.01},
    "RMSprop with momentum": {"optimizer": torch.optim.RMSprop, "lr": 0.01, "momentum": 0.5},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("network", [mlp, with_batch_norm])
def test_every_optimizer_goes_on_to_the_bit(network, name, tmp_path):
    options = OPTIMIZERS[name] | {"groups": {"head": {"lr": 0.5, "weight_decay": 0.0}}}
    whole, history = train(network, evaluate=accuracy, **options)
    with pytest.raises(Stop):
        train(network, evaluate=stops_after(2), checkpoint=tmp_path / "run.pt", **options)
    resumed, again = gone_on(network, 2, tmp_path / "run.pt", **options)
    assert same(whole, resumed) and without_seconds(again) == without_seconds(history)


@pytest.mark.parametrize(("name", "other"), [*itertools.permutations(["SGD", "torch's SGD", "AdamW", "RMSprop"], 2)])
def test_the_checkpoint_of_another_optimizer_is_refused_by_name(name, other, tmp_path):
    train(epochs=1, checkpoint=tmp_path / "run.pt", **OPTIMIZERS[name] | {"lr": 0.01})
    made_by, mine = (OPTIMIZERS[key].get("optimizer", SGD) for key in (name, other))
    message = (
        "dampening="
        if {name, other} == {"SGD", "torch's SGD"}
        else f"optimizer={made_by.__name__} instead of {mine.__name__}"
    )
    with pytest.raises(ValueError, match=f"written with other settings: {message}"):
        train(epochs=1, checkpoint=tmp_path / "run.pt", **OPTIMIZERS[other] | {"lr": 0.01})


def test_the_options_of_an_optimizer_are_part_of_its_checkpoint(tmp_path):
    for beta in (0.5, 0.9):
        other = partial(torch.optim.AdamW, betas=(beta, 0.9))
        if beta == 0.5:
            train(optimizer=other, lr=0.01, checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"other settings: betas=\(0.5, 0.9\) instead of \(0.9, 0.9\)$"):
        train(optimizer=other, lr=0.01, checkpoint=tmp_path / "run.pt")


def test_another_optimizer_follows_schedule_and_groups():
    model, history = train(optimizer=torch.optim.AdamW, lr=0.01, weight_decay=0.1, groups=GROUPS, augment=None)
    slow = made(mlp)
    factors = [("backbone.1", 0.1, 0.1), ("backbone.3", 1.0, 0.02), ("head.bias", 3.0, 0), ("head.weight", 1.0, 0.1)]
    parts = [
        {"params": [p for n, p in slow.named_parameters() if n.startswith(start)], "weight_decay": decay}
        for start, _, decay in factors
    ]
    optimizer, sampler = torch.optim.AdamW(parts), InstanceBalancedSampler(DATA.labels)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for group, (_, factor, _) in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = 0.01 * factor * cosine_schedule(epoch, 4)
        for chosen in torch.tensor(list(sampler)).split(16):
            optimizer.zero_grad()
            F.cross_entropy(slow(to_float(DATA.images[chosen])), DATA.labels[chosen]).backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert [row["lr"] for row in history] == pytest.approx([0.01 * cosine_schedule(e, 4) for e in range(4)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": torch.optim.AdamW, "momentum": 0.9}, "momentum: got 0.9; allowed: None: AdamW has no momentum"),
        ({"optimizer": "adam"}, "optimizer: got str; allowed: None, or a class with lr and weight_decay such as"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer: got LBFGS; allowed: None, or a class"),
        (
            {"optimizer": torch.optim.AdamW, "weight_decay": -1},
            "momentum, weight_decay: got None, -1; allowed: at least 0",
        ),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


def test_an_optimizer_that_is_already_made_is_refused():
    with pytest.raises(ValueError, match="optimizer: got AdamW; allowed: None, or a class with lr and weight_decay"):
        train(optimizer=torch.optim.AdamW(made(mlp).parameters()))


def test_momentum_is_the_optimizers_own_unless_it_is_given():
    plain = train(optimizer=torch.optim.SGD)[0]
    assert same(plain, train(optimizer=torch.optim.SGD, momentum=0.0)[0])
    assert not same(plain, train(optimizer=torch.optim.SGD, momentum=0.9)[0])
    assert same(train()[0], train(momentum=0.9)[0])


# ---- parts that learn slower or without weight decay ---------------------------------------------------------------


GROUPS = {"backbone": {"lr": 0.1}, "backbone.3": {"weight_decay": 0.02}, "head.bias": {"lr": 3.0, "weight_decay": 0}}


def test_groups_are_the_parameter_groups_of_torch():
    """The longest beginning of a name counts, and alone: backbone.3 has the whole learning rate."""
    settings = {"lr": 0.05, "momentum": 0.7, "weight_decay": 3e-3}
    model, history = train(epochs=3, batch_size=25, augment=None, groups=GROUPS, **settings)

    slow, losses = made(mlp), []
    named = dict(slow.named_parameters())
    factors = [("backbone.1", 0.1, 3e-3), ("backbone.3", 1.0, 0.02), ("head.bias", 3.0, 0), ("head.weight", 1.0, 3e-3)]
    parts = [
        {"params": [p for name, p in named.items() if name.startswith(beginning)], "weight_decay": decay}
        for beginning, _, decay in factors
    ]
    assert sum(len(part["params"]) for part in parts) == len(named) == 6
    optimizer = torch.optim.SGD(parts, **settings)
    sampler = InstanceBalancedSampler(DATA.labels)
    for epoch in range(3):
        for group, (_, factor, _) in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = 0.05 * factor * cosine_schedule(epoch, 3)
        sampler.set_epoch(epoch)
        total = 0.0
        for chosen in torch.tensor(list(sampler)).split(25):
            loss = F.cross_entropy(slow(to_float(DATA.images[chosen])), DATA.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        losses.append(total / 90)
    for mine, theirs in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert [row["loss"] for row in history] == pytest.approx(losses, abs=1e-5)


def test_groups_change_what_they_name_and_nothing_changes_without_them():
    plain, history = train()
    for groups in ({}, {"head": {}}, {"backbone": {"lr": 1.0}, "head": {"weight_decay": 5e-4}}):
        other, again = train(groups=groups)
        assert same(plain, other) and without_seconds(history) == without_seconds(again)
    for name, _ in made(mlp).named_parameters():
        for own in ({"lr": 0.5}, {"weight_decay": 0.1}):
            assert not same(plain, train(groups={name: own})[0]), f"{own} for {name} changed nothing"
    still = train(groups={"backbone": {"lr": 0}})[0]
    fresh = made(mlp)
    assert all(torch.equal(a, b) for a, b in zip(still.backbone.parameters(), fresh.backbone.parameters(), strict=True))
    assert not torch.equal(still.head.weight, fresh.head.weight)


def test_groups_with_frozen_and_unused_weights():
    model = made(mlp)
    model.backbone[1].requires_grad_(False)
    model.spare = nn.Parameter(torch.ones(3))
    first = model.backbone[1].weight.clone()
    fit(model, DATA, epochs=1, progress=False, groups={"backbone": {"lr": 0.5}, "spare": {"weight_decay": 1.0}})
    assert torch.equal(model.backbone[1].weight, first) and torch.equal(model.spare, torch.ones(3))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"haed": {"lr": 0.1}}, r"groups: got 'haed'; allowed: the beginning of a parameter's name: \['backbone"),
        ({"head": {"rate": 0.1}}, r"groups: got \{'rate': 0.1\} for 'head'; allowed: lr and weight_decay, at least 0"),
        ({"head": {"lr": -0.1}}, r"groups: got \{'lr': -0.1\} for 'head'"),
        ({"backbone": {}, "head": {"weight_decay": math.nan}}, r"groups: got \{'weight_decay': nan\} for 'head'"),
    ],
)
def test_wrong_groups_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        train(groups=groups)


def test_an_interrupted_run_with_groups_goes_on_and_other_groups_are_refused(tmp_path):
    path = tmp_path / "run.pt"
    whole, history = train(groups=GROUPS, evaluate=accuracy)
    with pytest.raises(Stop):
        train(groups=GROUPS, evaluate=stops_after(2), checkpoint=path)
    before = path.read_bytes()
    for groups, named in ((GROUPS | {"head": {"lr": 2.0}}, "groups="), ({"head": {"lr": 2.0}}, "groups="), (None, "")):
        with pytest.raises(ValueError, match=rf"checkpoint: .*run\.pt was written with other settings: {named}"):
            train(groups=groups, checkpoint=path)
    assert path.read_bytes() == before
    resumed, again = gone_on(mlp, 2, path, groups=GROUPS)
    assert same(whole, resumed) and without_seconds(again) == without_seconds(history)
    train(checkpoint=tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="written with other settings: groups=None instead of"):
        train(groups=GROUPS, checkpoint=tmp_path / "plain.pt")


# ---- reading a trained network -------------------------------------------------------------------------------------


@NETWORKS
@pytest.mark.parametrize("batch_size", [1, 7, 90, 512])
def test_predict_and_extract_features_equal_a_slow_loop(network, batch_size):
    model, _ = train(network, epochs=1)
    logits, features = (f(model, DATA, batch_size=batch_size) for f in (predict, extract_features))
    model.eval()
    with torch.no_grad():
        one_by_one = [to_float(image[None]) for image in DATA.images]
        assert torch.allclose(logits, torch.cat([model(x) for x in one_by_one]), atol=1e-4)
        assert torch.allclose(features, torch.cat([model.features(x) for x in one_by_one]), atol=1e-4)
    assert logits.dtype == features.dtype == torch.float32
    assert not logits.requires_grad and not features.requires_grad


def test_reading_leaves_every_module_in_its_mode_and_running_statistics_alone():
    model = made(with_batch_norm)
    model.train()
    model.backbone[1].eval()  # a frozen layer
    modes = [module.training for module in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    predict(model, DATA), extract_features(model, DATA)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_mode_comes_back_after_an_error():
    model = made(mlp)
    with pytest.raises(RuntimeError):
        predict(model, some_data(size=9))
    assert model.training and torch.is_grad_enabled()
