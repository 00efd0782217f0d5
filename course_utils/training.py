"""One readable training loop, `fit()`, and two ways to read a trained network: `predict()` and `extract_features()`.

`fit()` knows neither the device nor the method. Methods come in as a loss, a sampler, a head or a schedule.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Sampler

from .data import LabeledImages
from .networks import device_of
from .runtime import progress_bar, write_atomically
from .sampling import EpochSampler, InstanceBalancedSampler, switch_epoch

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
History = list[dict[str, float]]
Groups = Mapping[str, Mapping[str, float]]
Objective = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]


# ---- batches cut out of one tensor -----------------------------------------------------------------------------------


def to_float(images: Tensor) -> Tensor:
    """uint8 0 .. 255 to float32 -1 .. 1, channels-last in memory, as the networks of the course are."""
    order = torch.channels_last if images.ndim == 4 else torch.preserve_format
    return images.to(torch.float32, memory_format=order).mul_(2 / 255).sub_(1)


def random_shift(images: Tensor, generator: torch.Generator, pixels: int = 2) -> Tensor:
    """Shift every image by up to `pixels` in each direction, on its own; what comes in at the border is 0.

    images: (B, channels, H, W) on any device. The generator is a CPU generator, so that a seed gives the same shifts
    on every device.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, channels, 2p+1, 2p+1, H, W)
    dy, dx = torch.randint(2 * pixels + 1, (2, batch), generator=generator).to(images.device, non_blocking=True)
    return windows[torch.arange(batch, device=images.device), :, dy, dx]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images left to right. Not for letters."""
    flip = torch.rand(len(images), generator=generator).to(images.device, non_blocking=True) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


class Batches:
    """Iterate over (float images, labels), already on the dataset's device.

    Args:
        dataset: on the device where training happens.
        batch_size: B; the last batch of an epoch may be smaller.
        sampler: which images an epoch shows, in which order; by default all, in their order.
        augment: function (uint8 images, generator) -> uint8 images.
        generator: CPU generator for `augment`.
    """

    def __init__(
        self,
        dataset: LabeledImages,
        batch_size: int,
        *,
        sampler: Sampler | None = None,
        augment: Augmentation | None = None,
        generator: torch.Generator | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: got {batch_size}; allowed: at least 1")
        self.dataset, self.batch_size, self.sampler, self.augment = dataset, batch_size, sampler, augment
        self.generator = generator or torch.Generator()

    def __len__(self) -> int:
        size = len(self.dataset) if self.sampler is None else len(self.sampler)
        return -(-size // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images, labels) for images, labels, _ in self.with_indices())

    def with_indices(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(float images, labels, their places in the dataset), for what is stored beside the images."""
        data = self.dataset
        if self.sampler is None:
            order = torch.arange(len(data))
        else:  # the samplers of this course give the whole epoch at once; any other one is asked index by index
            whole = getattr(self.sampler, "indices", None)
            order = whole() if callable(whole) else torch.tensor(list(self.sampler))
        for part in order.to(data.labels.device).split(self.batch_size):
            images = data.images[part]
            if self.augment is not None:
                images = self.augment(images, self.generator)
            yield to_float(images), data.labels[part], part


# ---- schedules: pure functions of (epoch, epochs), epochs counted from 0 ---------------------------------------------


def cosine_schedule(epoch: int, epochs: int) -> float:
    """Factor of the learning rate in `epoch` (0-based) of `epochs`: 1 at the start, close to 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def constant_schedule(epoch: int, epochs: int) -> float:
    """Factor 1 in every epoch."""
    return 1.0


def step_schedule(epoch: int, epochs: int, *, at: float = 0.8, factor: float = 0.01, warmup: float = 0.025) -> float:
    """Linear warm-up, then 1, then `factor` from `at` on, then factor^2 half-way between `at` and the end.

    With the defaults and 200 epochs, the schedule of the released LDAM code: 0.2, 0.4 ... 1 in the first five epochs,
    0.01 from epoch 160 and 0.0001 from epoch 180. at = 1 never drops.
    """
    if not 0 < factor <= 1:
        raise ValueError(f"factor: got {factor}; allowed: above 0, at most 1")
    rising = switch_epoch(epochs, warmup)
    if epoch < rising:
        return (epoch + 1) / rising
    drops = switch_epoch(epochs, at), switch_epoch(epochs, (1 + at) / 2)
    return factor ** sum(epoch >= drop for drop in drops)


# ---- the loop --------------------------------------------------------------------------------------------------------


class SGD:
    """Gradient descent with momentum, as `torch.optim.SGD`: v <- momentum v + gradient + weight_decay w; w <- w - lr v.

    Written out because making any optimizer of torch.optim imports torch's compiler: five seconds in every process.
    """

    def __init__(self, model: nn.Module, momentum: float, weight_decay: float, groups: Groups | None = None):
        self.lr, self.momentum = 0.0, momentum
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.weights = [p for _, p in named]
        self.velocity = [torch.zeros_like(p) for p in self.weights]
        self.groups: dict[tuple[float, float], list[int]] = {}  # (factor of lr, weight decay) -> which weights
        for i, (name, _) in enumerate(named):
            own = (groups or {}).get(max((g for g in groups or {} if name.startswith(g)), key=len, default=""), {})
            setting = (own.get("lr", 1.0), own.get("weight_decay", weight_decay))
            self.groups.setdefault(setting, []).append(i)

    @torch.no_grad()
    def step(self) -> None:
        for (factor, weight_decay), members in self.groups.items():
            used = [(self.weights[i], self.velocity[i]) for i in members if self.weights[i].grad is not None]
            if not used:
                continue
            weights, velocity = map(list, zip(*used, strict=True))
            torch._foreach_mul_(velocity, self.momentum)  # for all layers at once: one call on a GPU
            torch._foreach_add_(velocity, [w.grad for w in weights])
            torch._foreach_add_(velocity, weights, alpha=weight_decay)
            torch._foreach_add_(weights, velocity, alpha=-self.lr * factor)


def fit(
    model: nn.Module,
    train: LabeledImages,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    groups: Groups | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    objective: Objective | None = None,
    sampler: EpochSampler | None = None,
    augment: Augmentation | None = random_shift,
    schedule: Callable[[int, int], float] = cosine_schedule,
    precision: torch.dtype = torch.float32,
    seed: int = 0,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> History:
    """Train `model` in place with SGD and return one dictionary for each epoch.

    A part whose parameters all have `requires_grad = False` stays as it is: it is in evaluation mode, so the statistics
    of its batch normalization stand still too.

    Args:
        model: already on its device. `train` has to be there too: `dataset.to(run.device)`.
        epochs, batch_size, lr, momentum, weight_decay: of SGD. An epoch is as long as the sampler says.
        groups: {beginning of parameter names: {"lr": factor of lr, "weight_decay": instead of weight_decay}}, for
            parts that learn slower or without decay; the longest beginning counts.
        loss: function (logits (B, C), labels (B,)) -> scalar; cross-entropy by default. A module's class weights are
            moved to the device of the model. If it has `set_epoch`, that is called with the 0-based epoch first, so a
            loss may change over time.
        objective: instead of `loss`, for methods that need more than logits: function (model, float images, labels,
            indices into train) -> scalar.
        sampler: instance-balanced by default.
        augment: function (uint8 images, generator) -> uint8 images, or None.
        schedule: function (epoch, epochs) -> factor of lr, a pure function.
        precision: dtype for autocast, `run.precision`; float32 means no autocast.
        seed: order, augmentation and dropout of epoch e depend on (seed, e) alone. Torch's global generator is left
            as it was. Weights are drawn when the model is made: seed before that.
        evaluate: called after every epoch; its numbers join that epoch's dictionary.
        checkpoint: file written after every epoch. If it exists, training goes on where it stopped, and ends with the
            same numbers as an uninterrupted run on the same device.
        progress: show a bar if training takes more than two seconds.

    Returns:
        [{"epoch": 0, "lr": ..., "loss": mean over the epoch's images, "seconds": ..., **evaluate(model)}, ...]

    Raises:
        ValueError: an argument out of range, model and data on different devices, or a checkpoint that another
            network or other settings wrote.
        FloatingPointError: the loss became NaN or infinite.
    """
    if epochs < 1:
        raise ValueError(f"epochs: got {epochs}; allowed: at least 1")
    if not lr > 0:
        raise ValueError(f"lr: got {lr}; allowed: above 0")
    if not (momentum >= 0 and weight_decay >= 0):
        raise ValueError(f"momentum, weight_decay: got {momentum}, {weight_decay}; allowed: at least 0")
    device = device_of(model)
    if train.images.device != device:
        raise ValueError(f"train: images on {train.images.device}, model on {device}; use train.to({str(device)!r})")
    if sampler is None:
        sampler = InstanceBalancedSampler(train.labels, seed=seed)
    if len(getattr(sampler, "labels", train)) != len(train):
        raise ValueError(f"sampler: made for {len(sampler.labels)} images; allowed: for the {len(train)} of train")
    generator = torch.Generator()
    batches = Batches(train, batch_size, sampler=sampler, augment=augment, generator=generator)
    if loss is not None and objective is not None:
        raise ValueError("objective: got one beside a loss; allowed: one of them")
    loss = nn.CrossEntropyLoss() if loss is None else loss
    if isinstance(loss, nn.Module):
        loss.to(device)
    name = _name(objective or loss)
    objective = objective or (lambda model, images, labels, _indices: loss(model(images), labels))
    _check_groups(groups or {}, model)
    optimizer = SGD(model, momentum, weight_decay, groups)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "momentum": momentum,
        "seed": seed,
        "weight_decay": weight_decay,
        "precision": str(precision),
        "counts": train.counts.tolist(),
        "sampler": _name(sampler),
        "loss": name,
        "augment": _name(augment),
        "schedule": _name(schedule),
    }
    if groups:
        settings["groups"] = {name: dict(own) for name, own in groups.items()}
    history: History = []
    if checkpoint is not None and Path(checkpoint).exists():
        history = _load_checkpoint(Path(checkpoint), model, optimizer, settings)

    bar = progress_bar(epochs, "epoch", done=len(history), delay=2) if progress else contextlib.nullcontext()
    fork = torch.random.fork_rng(devices=[device] if train.images.is_cuda else [])
    with bar, keeping_modes(model), fork, _repeatable():
        for epoch in range(len(history), epochs):
            started = time.perf_counter()
            factor = schedule(epoch, epochs)
            optimizer.lr = lr * factor
            for part in (sampler, loss, objective):
                if hasattr(part, "set_epoch"):
                    part.set_epoch(epoch)
            torch.manual_seed(seed * 1_000_003 + epoch)
            generator.manual_seed(seed * 1_000_003 + epoch)
            mean_loss = _one_epoch(model, batches, objective, optimizer, precision)
            if not math.isfinite(mean_loss):
                raise FloatingPointError(f"the loss is {mean_loss} in epoch {epoch}: lr={lr} may be too large")
            row = {"epoch": epoch, "lr": lr * factor, "loss": mean_loss, "seconds": time.perf_counter() - started}
            history.append(row | {k: float(v) for k, v in (evaluate(model) if evaluate else {}).items()})
            if checkpoint is not None:
                _save_checkpoint(Path(checkpoint), model, optimizer, settings, history)
            if progress:
                bar.set_postfix(loss=f"{mean_loss:.3f}", refresh=False)
                bar.update()
    return history


def _check_groups(groups: Groups, model: nn.Module) -> None:
    names = [name for name, _ in model.named_parameters()]
    for beginning, own in groups.items():
        if not any(name.startswith(beginning) for name in names):
            raise ValueError(f"groups: got {beginning!r}; allowed: the beginning of a parameter's name: {names}")
        if not own.keys() <= {"lr", "weight_decay"} or not all(value >= 0 for value in own.values()):
            raise ValueError(f"groups: got {dict(own)} for {beginning!r}; allowed: lr and weight_decay, at least 0")


def _one_epoch(model: nn.Module, batches: Batches, objective: Objective, optimizer, precision: torch.dtype) -> float:
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()
    total, seen = torch.zeros((), device=batches.dataset.labels.device), 0
    for images, labels, indices in batches.with_indices():
        with _autocast(images.device, precision):
            value = objective(model, images, labels, indices)
        model.zero_grad()
        value.backward()
        optimizer.step()
        total += value.detach() * len(labels)  # stays on the device: reading it here would stop a GPU at every batch
        seen += len(labels)
    return total.item() / seen


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


def _over_batches(function: Callable[[Tensor], Tensor], model: nn.Module, images: Tensor, batch_size: int) -> Tensor:
    with evaluating(model):
        return torch.cat([function(to_float(part)).float() for part in images.split(batch_size)])


def predict(model: nn.Module, dataset: LabeledImages, *, batch_size: int = 512) -> Tensor:
    """Logits float32 (N, C) of all images, in evaluation mode, without augmentation."""
    return _over_batches(model, model, dataset.images, batch_size)


def extract_features(model: nn.Module, dataset: LabeledImages, *, batch_size: int = 512) -> Tensor:
    """Features float32 (N, D) of all images, in evaluation mode, without augmentation."""
    return _over_batches(model.features, model, dataset.images, batch_size)


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def _save_checkpoint(path: Path, model: nn.Module, optimizer, settings: dict, history: History) -> None:
    state = {"model": model.state_dict(), "velocity": optimizer.velocity, "settings": settings, "history": history}
    write_atomically(path, lambda file: torch.save(state, file))


def _load_checkpoint(path: Path, model: nn.Module, optimizer, settings: dict) -> History:
    try:
        state = torch.load(path, map_location=device_of(model), weights_only=True)
        weights, saved = state["model"], state["settings"]
        history, velocity = state["history"], state["velocity"]
        shapes = {k: v.shape for k, v in weights.items()}
    except FileNotFoundError:  # another run of the same training has just finished
        return []
    except Exception as error:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of fit() ({type(error).__name__})") from error
    mine = {k: v.shape for k, v in model.state_dict().items()}
    if shapes != mine:
        odd = sorted(k for k in shapes.keys() | mine.keys() if shapes.get(k) != mine.get(k))
        raise ValueError(f"checkpoint: {path} belongs to another network; it differs in {', '.join(odd[:3])}")
    if saved != settings:
        pairs = {k: (saved.get(k), settings.get(k)) for k in saved | settings}
        odd = [f"{k}={theirs} instead of {ours}" for k, (theirs, ours) in pairs.items() if theirs != ours]
        raise ValueError(f"checkpoint: {path} was written with other settings: {', '.join(odd)}")
    model.load_state_dict(weights)
    optimizer.velocity = [v.to(w.device) for v, w in zip(velocity, optimizer.weights, strict=True)]
    return history


def _name(part) -> str:
    """Of a function or of an object's class: enough to notice a checkpoint of another method."""
    return getattr(part, "__name__", type(part).__name__)
