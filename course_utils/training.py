"""One readable training loop, `fit()`, and two ways to read a trained network: `predict()` and `extract_features()`.

`fit()` knows neither the device nor the method. Methods come in as a loss, a sampler, a head or a schedule.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd
from torch.utils.data import Sampler

from .data import Labeled, LabeledImages
from .machinery.checkpoints import load_checkpoint, name_of, save_checkpoint, tell, training_settings
from .machinery.distributed import SharedLoss, process, refuse_differences, share_of, weights_of
from .networks import ImageClassifier, device_of
from .runtime import keeping_random_state, progress_bar, require
from .sampling import EpochSampler, InstanceBalancedSampler, switch_epoch

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
History = list[dict[str, float]]
Groups = Mapping[str, Mapping[str, float]]
Objective = Callable[..., Tensor]  # (model, float images, labels, their places in the dataset)


# ---- batches cut out of one tensor -----------------------------------------------------------------------------------


def to_float(images: Tensor) -> Tensor:
    """uint8 0 .. 255 to float32 -1 .. 1, channels-last in memory, as the networks of the course are."""
    require(images.dtype == torch.uint8, "images", images.dtype, "uint8, 0 to 255")
    order = torch.channels_last if images.ndim == 4 else torch.preserve_format
    return images.to(torch.float32, memory_format=order).mul_(2 / 255).sub_(1)


def random_shift(images: Tensor, generator: torch.Generator, pixels: int = 2) -> Tensor:
    """Shift every image by up to `pixels` in each direction, on its own; what comes in at the border is 0.

    images: (B, channels, H, W) on any device. The generator is a CPU generator, so that a seed gives the same shifts
    on every device.
    """
    require(images.ndim == 4, "images", f"shape {tuple(images.shape)}", "(B, channels, H, W)")
    batch, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, channels, 2p+1, 2p+1, H, W)
    dy, dx = torch.randint(2 * pixels + 1, (2, batch), generator=generator).to(images.device, non_blocking=True)
    return windows[torch.arange(batch, device=images.device), :, dy, dx]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images left to right. Not for letters."""
    require(images.ndim == 4, "images", f"shape {tuple(images.shape)}", "(B, channels, H, W)")
    flip = torch.rand(len(images), generator=generator).to(images.device, non_blocking=True) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


class Batches:
    """Iterate over (inputs, labels), already on the dataset's device: float images, or what else the data are.

    Args:
        dataset: on the device where training happens.
        batch_size: B; the last batch of an epoch may be smaller.
        sampler: which images an epoch shows, in which order; by default all, in their order.
        augment: as `fit()` has it; none by default.
        generator: CPU generator for `augment`.
        shared: with several processes, inputs of this one's share alone, beside labels and places of whole batches.
    """

    def __init__(
        self,
        dataset: Labeled,
        batch_size: int,
        *,
        sampler: Sampler | None = None,
        augment: Any = None,
        generator: torch.Generator | None = None,
        shared: bool = False,
    ):
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        self.dataset, self.batch_size, self.sampler, self.shared = dataset, batch_size, sampler, shared
        self.augment = augment if augment != "usual" else self._usual()
        self.generator = generator or torch.Generator()

    def _usual(self) -> Any:
        return random_shift if isinstance(self.dataset, LabeledImages) else self.dataset.augmentation

    def __len__(self) -> int:
        shown: Any = self.dataset if self.sampler is None else self.sampler  # torch's Sampler declares no length
        return -(-len(shown) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images, labels) for images, labels, _ in self.with_indices())

    def with_indices(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(inputs, labels, their places in the dataset), for what is stored beside the images."""
        data: Any = self.dataset
        if self.sampler is None:
            order = torch.arange(len(data))
        else:  # the samplers of this course give the whole epoch at once; any other one is asked index by index
            whole = getattr(self.sampler, "indices", None)
            order = whole() if callable(whole) else torch.tensor(list(self.sampler))
        parts = order.to(data.device).split(self.batch_size)
        cut = share_of if self.shared else (lambda rows: rows)
        if data.in_memory:  # cut after augmentation, whose random numbers are then those of one process
            inputs = map(cut, data.stream(parts, self.augment, self.generator))
        else:  # files of the others are not opened
            at = map(cut, torch.arange(len(order)).split(self.batch_size))
            inputs = data.stream(map(cut, parts), self.augment, self.generator, at)
        for part, batch in zip(parts, inputs, strict=True):
            yield to_float(batch) if batch.dtype == torch.uint8 else batch, data.labels[part], part


# ---- schedules: pure functions of (epoch, epochs), epochs counted from 0 ---------------------------------------------


def cosine_schedule(epoch: int, epochs: int) -> float:
    """Factor of the learning rate in `epoch` (0-based) of `epochs`: 1 at the start, close to 0 at the end.

    Differs from the released code of Kang et al. 2020, which steps before each epoch: with today's torch it starts one
    step further on, and its last epoch has rate 0.
    """
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def constant_schedule(epoch: int, epochs: int) -> float:
    """Factor 1 in every epoch."""
    return 1.0


def step_schedule(epoch: int, epochs: int, *, at: float = 0.8, factor: float = 0.01, warmup: float = 0.025) -> float:
    """Linear warm-up, then 1, then `factor` from `at` on, then factor^2 half-way between `at` and the end.

    With the defaults and 200 epochs, the schedule of the released LDAM code: 0.2, 0.4 ... 1 in the first five epochs,
    0.01 from epoch 160 and 0.0001 from epoch 180. at = 1 never drops.
    """
    require(0 < factor <= 1, "factor", factor, "above 0, at most 1")
    rising = switch_epoch(epochs, warmup)
    if epoch < rising:
        return (epoch + 1) / rising
    drops = switch_epoch(epochs, at), switch_epoch(epochs, (1 + at) / 2)
    return factor ** sum(epoch >= drop for drop in drops)


# ---- the loop --------------------------------------------------------------------------------------------------------


def parameter_groups(model: nn.Module, weight_decay: float, groups: Groups | None = None) -> list[dict[str, Any]]:
    """The trainable weights of `model` as parameter groups of torch.optim; `groups` as in `fit()`.

    Each has its "weight_decay", and a "factor" that `set_rate()` multiplies the learning rate by.
    """
    members: dict[tuple[float, float], list[Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            longest = max((beginning for beginning in groups or {} if name.startswith(beginning)), key=len, default="")
            own = (groups or {}).get(longest, {})
            members.setdefault((own.get("lr", 1.0), own.get("weight_decay", weight_decay)), []).append(weight)
    return [{"params": ws, "factor": factor, "weight_decay": decay} for (factor, decay), ws in members.items()]


def set_rate(optimizer, lr: float) -> None:
    """Learning rate `lr`, times the factor of each parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


class SGD:
    """Gradient descent with momentum: v <- momentum v + gradient + weight_decay w; w <- w - lr v. Set `lr` first.

    The update is torch's own, but making a `torch.optim.SGD` imports torch's compiler: seconds in every process.
    """

    lr = property(fset=set_rate)

    def __init__(self, model: nn.Module, momentum: float, weight_decay: float, groups: Groups | None = None):
        self.defaults = {"momentum": momentum, "weight_decay": weight_decay}
        self.param_groups = parameter_groups(model, weight_decay, groups)
        for group in self.param_groups:
            group |= {"lr": 0.0, "velocity": [torch.zeros_like(w) for w in group["params"]]}
        self.velocity = [v for group in self.param_groups for v in group["velocity"]]

    @torch.no_grad()
    def step(self) -> None:
        constants: dict = {"momentum": self.defaults["momentum"], "dampening": 0, "nesterov": False, "maximize": False}
        for group in self.param_groups:
            pairs = zip(group["params"], group["velocity"], strict=True)
            if used := [(w, w.grad, v) for w, v in pairs if w.grad is not None]:
                w, gradients, v = map(list, zip(*used, strict=True))  # foreach: all layers at once, few calls on a GPU
                sgd(w, gradients, v, foreach=True, lr=group["lr"], weight_decay=group["weight_decay"], **constants)

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"velocity": self.velocity}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        for mine, saved in zip(self.velocity, state["velocity"], strict=True):
            mine.copy_(saved)


def fit(
    model: nn.Module,
    train: Labeled,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 0.1,
    momentum: float | None = None,
    weight_decay: float = 5e-4,
    groups: Groups | None = None,
    optimizer: Callable | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    objective: Objective | None = None,
    sampler: EpochSampler | None = None,
    augment: Any = "usual",
    schedule: Callable[[int, int], float] = cosine_schedule,
    precision: torch.dtype = torch.float32,
    seed: int = 0,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train `model` in place and return one dictionary for each epoch.

    A part whose parameters all have `requires_grad = False` stays as it is: it is in evaluation mode, so the statistics
    of its batch normalization stand still too.

    Args:
        model: already on its device. `train` has to be there too: `dataset.to(run.device)`.
        epochs, batch_size: an epoch is as long as the sampler says.
        lr, momentum, weight_decay: of the optimizer. momentum None: 0.9 for SGD; with `optimizer`, that class's own.
        groups: {beginning of parameter names: {"lr": factor of lr, "weight_decay": instead of weight_decay}}, for
            parts that learn slower or without decay; the longest beginning counts.
        optimizer: a class of torch.optim, such as `torch.optim.AdamW` or `partial(torch.optim.AdamW, eps=1e-6)`;
            SGD with momentum by default. The defaults of lr and weight_decay are for SGD: give another one its own.
        loss: function (logits (B, C), labels (B,)) -> scalar; cross-entropy by default. A module's class weights are
            moved to the device of the model. If it has `set_epoch`, that is called with the 0-based epoch first, so a
            loss may change over time.
        objective: instead of `loss`, for methods that need more than logits: function (model, float images, labels,
            indices into train) -> scalar; with several processes a mean over images.
        sampler: instance-balanced by default.
        augment: function (uint8 images, generator) -> uint8 images, None, or "usual": what these data usually get,
            `random_shift` for images in memory, a random part for photographs, nothing for features.
        schedule: function (epoch, epochs) -> factor of lr, a pure function.
        precision: dtype for autocast, `run.precision`; float32 means no autocast.
        seed: order, augmentation and dropout of epoch e depend on (seed, e) alone. Torch's generators are left as
            they were. Weights are drawn when the model is made: seed before that.
        evaluate: called after every epoch; its numbers join that epoch's dictionary.
        checkpoint: file written after every epoch. If it exists, training goes on where it stopped, and ends with the
            same numbers as an uninterrupted run on the same device. No other training goes on from it: it knows the
            images, every part (`checkpoints.describe()`) and the first weights; `model` has these, or those saved.
        progress: show a bar if training takes more than two seconds.

    Returns:
        [{"epoch": 0, "lr": ..., "loss": mean over the epoch's images, "seconds": ..., **evaluate(model)}, ...]

    Raises:
        ValueError: an argument out of range, model and data on different devices, or a checkpoint that another
            network, other settings or other first weights wrote.
        FloatingPointError: the loss became NaN or infinite.
    """
    _check_arguments(model, train, epochs, batch_size, lr, groups or {}, loss, objective, sampler, augment)
    device = device_of(model)
    sampler = InstanceBalancedSampler(train.labels, seed=seed) if sampler is None else sampler
    batches = Batches(train, batch_size, sampler=sampler, augment=augment, shared=True)
    loss = loss.to(device) if isinstance(loss, nn.Module) else loss or nn.CrossEntropyLoss()
    updates = _made_optimizer(optimizer, model, lr, momentum, weight_decay, groups)
    parts: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed, "precision": precision}
    parts |= {"sampler": sampler, "loss": objective or loss, "augment": batches.augment, "schedule": schedule}
    rank, world = process()
    settings = {} if checkpoint is None and world == 1 else training_settings(model, train, updates, groups, parts)
    history, start = load_checkpoint(checkpoint, model, updates, loss, settings)
    step = SharedLoss(model, loss, objective)
    bar = progress_bar(epochs, "epoch", done=len(history), delay=2, show=progress and rank == 0)
    with bar, keeping_modes(model), keeping_random_state(device) as seed_torch, _repeatable():
        for epoch in range(len(history), epochs):
            started, rate = time.perf_counter(), lr * schedule(epoch, epochs)
            set_rate(updates, rate)
            tell(epoch, sampler, loss, objective, step)
            seed_torch(seed * 1_000_003 + epoch + (rank << 40))
            batches.generator.manual_seed(seed * 1_000_003 + epoch)
            mean_loss = _one_epoch(model, batches, step, updates, precision)
            _refuse_infinite(mean_loss, epoch, lr)
            row = {"epoch": epoch, "lr": rate, "loss": mean_loss, "seconds": time.perf_counter() - started}
            history.append(row | {k: float(v) for k, v in (evaluate(model) if evaluate else {}).items()})
            save_checkpoint(checkpoint, model, updates, loss, settings, history, start)
            bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
            bar.update()
    return history


def _check_arguments(model, train, epochs, batch_size, lr, groups, loss, objective, sampler, augment) -> None:
    device, made_for = device_of(model), len(getattr(sampler, "labels", train))
    require(epochs >= 1, "epochs", epochs, "at least 1")
    require(0 < lr < math.inf, "lr", lr, "above 0")
    known = augment == "usual" or not isinstance(augment, str)
    require(known, "augment", repr(augment), "a function, None or 'usual'")
    where = f"{train.KIND} on {train.device}, model on {device}"
    require(train.device == device, "train", where, f"one device, as of train.to({str(device)!r})")
    require(made_for == len(train), "sampler", f"one for {made_for} images", f"one for the {len(train)} of train")
    require(loss is None or objective is None, "objective", "one beside a loss", "one of them")
    for name, part in (("loss", loss), ("objective", objective), ("sampler", sampler)):
        for_epochs = getattr(part, "epochs", epochs)  # it changes over time, and would do so at other moments
        ok = for_epochs == epochs or not isinstance(for_epochs, int)
        require(ok, name, f"one made for {for_epochs} epochs", f"one for the {epochs} of this training")
    names = [name for name, _ in model.named_parameters()]
    for beginning, own in groups.items():
        known = any(name.startswith(beginning) for name in names)
        require(known, "groups", repr(beginning), f"the beginning of a parameter's name: {names}")
        ok = own.keys() <= {"lr", "weight_decay"} and all(value >= 0 for value in own.values())
        require(ok, "groups", f"{dict(own)} for {beginning!r}", "lr and weight_decay, at least 0")
    _check_last_batch(model, train, batch_size, sampler)


def _check_last_batch(model, train, batch_size, sampler) -> None:
    """Batch normalization cannot use a batch of one image whose maps have one place: say so now, not after an epoch."""
    shown = len(train if sampler is None else sampler)
    alone = batch_size == 1 or (batch_size > 1 and shown % batch_size == 1)
    if alone and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        trial = copy.deepcopy(model)
        _in_training_mode(trial)
        try:
            with keeping_random_state(device_of(model)), torch.no_grad():
                trial(first_input(train))
        except ValueError as error:
            seen = f"{batch_size} for {shown} images, so one image is a batch of its own"
            require(False, "batch_size", seen, f"another one: batch normalization needs two images ({error})")


def _made_optimizer(optimizer, model, lr, momentum, weight_decay, groups):
    ok = weight_decay >= 0 and (momentum is None or momentum >= 0)
    require(ok, "momentum, weight_decay", f"{momentum}, {weight_decay}", "at least 0")
    if optimizer is None:
        return SGD(model, 0.9 if momentum is None else momentum, weight_decay, groups)
    takes = inspect.signature(optimizer).parameters.keys() if callable(optimizer) else set()
    allowed = "None, or a class with lr and weight_decay such as torch.optim.AdamW"
    require(takes >= {"lr", "weight_decay"}, "optimizer", name_of(optimizer), allowed)
    require(
        momentum is None or "momentum" in takes, "momentum", momentum, f"None: {name_of(optimizer)} has no momentum"
    )
    own = {} if momentum is None else {"momentum": momentum}
    return optimizer(parameter_groups(model, weight_decay, groups), lr=lr, weight_decay=weight_decay, **own)


def freeze_statistics(model: nn.Module) -> nn.Module:
    """From now on `fit()` leaves the means and variances of batch normalization as they are; the same model.

    For fine-tuning, where small batches of new images would spoil what millions of others gave; weights still learn.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            vars(module)["frozen_statistics"] = True
    return model


def _in_training_mode(model: nn.Module) -> None:
    """But for parts that are frozen: their batch normalization stands still."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if getattr(module, "frozen_statistics", False) or (own and not any(p.requires_grad for p in own)):
            module.eval()


def _one_epoch(model: nn.Module, batches: Batches, step: Callable, optimizer, precision: torch.dtype) -> float:
    _in_training_mode(model)
    total, seen = torch.zeros((), device=batches.dataset.labels.device), 0
    for images, labels, indices in batches.with_indices():
        with _autocast(images.device, precision):
            value = step(images, labels, indices)
        model.zero_grad()
        value.backward()
        optimizer.step()
        total += value.detach() * len(labels)  # stays on the device: reading it here would stop a GPU at every batch
        seen += len(labels)
    refuse_differences(lambda: weights_of(model))  # of several processes
    return total.item() / seen


def _refuse_infinite(mean_loss: float, epoch: int, lr: float) -> None:
    if not math.isfinite(mean_loss):
        raise FloatingPointError(f"the loss is {mean_loss} in epoch {epoch}: lr={lr} may be too large")


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """The same numbers in every run on one GPU: cuDNN could choose algorithms that add up in any order."""
    before, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def _autocast(device: torch.device, precision: torch.dtype):
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


@contextlib.contextmanager
def keeping_modes(model: nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode (training or evaluation) in which it came."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients."""
    with keeping_modes(model), torch.no_grad():
        model.eval()
        yield


# ---- reading a trained network ---------------------------------------------------------------------------------------


def first_input(dataset: Labeled) -> Tensor:
    """What a network reads of the first of them, (1, ...): to see a shape, or to try a network."""
    return next(iter(Batches(dataset.subset(torch.zeros(1, dtype=torch.int64)), 1)))[0]


def _over_batches(function: Callable[[Tensor], Tensor], model: nn.Module, data: Labeled, size: int | None) -> Tensor:
    with evaluating(model):
        found = torch.cat([function(part).float() for part, _ in Batches(data, size or data.reading_batch)])
    require(not found.isnan().any(), "model", "NaN in its answers", "a network that gives numbers")  # argmax would not
    return found


def predict(model: nn.Module, dataset: Labeled, *, batch_size: int | None = None) -> Tensor:
    """Logits float32 (N, C) of all images, in evaluation mode, without augmentation; a ValueError for NaN."""
    return _over_batches(model, model, dataset, batch_size)


def extract_features(model: ImageClassifier, dataset: Labeled, *, batch_size: int | None = None) -> Tensor:
    """Features float32 (N, D) of all images, in evaluation mode, without augmentation; a ValueError for NaN."""
    return _over_batches(model.features, model, dataset, batch_size)
