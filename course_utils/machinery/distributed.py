"""One training in several processes: `training.fit()` under torchrun, with the numbers of one process.

    torch.manual_seed(0)                                 # in train.py: every process makes the same network
    model = SmallCNN(train.num_classes)
    with several_processes() as device:
        fit(model.to(device), train.to(device), batch_size=256)

    torchrun --nproc-per-node 4 train.py                 # or: python train.py

Every process has all images and the whole network. Process r of W takes the images r, r + W, r + 2 W ... of each batch,
so a batch is as large as before, no image is lost or shown twice, and a sampler's class shares stay as they are. The
loss is that of the whole batch: each process gathers the logits of all, so margins, class weights and whatever else a
loss adds up over images mean the same as in one process. Gradients are averaged by torch's DistributedDataParallel.

Dropout is drawn in each process on its own. All else is as in one process, but for the order of the terms in sums: the
weights differ by 1e-13 or less in float64, and by 1e-3 after some epochs in float32, which forgets more.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..runtime import choose_device, device_of_process, require, tensor_digest


@contextlib.contextmanager
def several_processes() -> Iterator[torch.device]:
    """Join the processes that torchrun started, and leave them at the end; gives the device of this process.

    A program that torchrun did not start is alone and goes on as always. On GPUs the process number k of a machine has
    GPU k and speaks NCCL, on a CPU gloo. With several machines and `--max-restarts`, start torchrun with
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.

    Raises:
        ValueError: a machine has fewer GPUs than processes.
    """
    if "RANK" not in os.environ or distributed.is_initialized():
        yield choose_device()[0]
        return
    device = device_of_process(int(os.environ.get("LOCAL_RANK", 0)))
    if device.type != "cpu":
        torch.cuda.set_device(device)
    store, rank, world = next(distributed.rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):  # on one machine the number of restarts is known to all
        # torchrun keeps its store over restarts, and with it the addresses of processes that are dead
        store = distributed.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    backend = "gloo" if device.type == "cpu" else "nccl"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def process() -> tuple[int, int]:
    """(r, W): the number of this process, from 0, and how many train together; (0, 1) if it is alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def share_of(batch: Tensor) -> Tensor:
    """This process's rows of a batch: every W-th; all of them if there are fewer rows than processes."""
    rank, world = process()
    return batch if len(batch) < world else batch[rank::world]


def in_shares(function: Callable[[Any], Tensor], dataset) -> Tensor:
    """function(dataset), a tensor of N rows, each process computing every W-th; equal in all processes.

    Every process has to call it. `training.predict()` itself computes all rows wherever it is called:

        fit(..., evaluate=lambda model: {"accuracy": accuracy(in_shares(partial(predict, model), test), test)})
    """
    rows = function(dataset.subset(share_of(torch.arange(len(dataset)))))
    return _of_all(rows, len(dataset))


# ---- what processes say to each other --------------------------------------------------------------------------------


def from_first(function: Callable[[], Any]) -> Any:
    """What `function()` gives, or the error it raises, in process 0: the others have no disk in common with it."""
    rank, world = process()
    if world == 1:
        return function()
    said: list[Any] = [None, None]
    if rank == 0:
        try:
            said[0] = function()
        except (OSError, ValueError) as error:
            said[1] = error
    distributed.broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    return said[0]


def refuse_differences(find: Callable[[], Mapping[str, Any]]) -> None:
    """ValueError in every process that names what `find()` does not find equal in all of them."""
    world = process()[1]
    if world > 1:
        said: list[Any] = [None] * world
        distributed.all_gather_object(said, dict(find()))
        odd = {
            f"{k} in process {r}" for r, one in enumerate(said) for k in one | said[0] if one.get(k) != said[0].get(k)
        }
        allowed = "the same in every process as in process 0 (seed before the model is made)"
        require(not odd, "processes", f"another value of {', '.join(sorted(odd)[:3])}", allowed)


def weights_of(model: nn.Module) -> dict[str, str]:
    """{name: digest} of the parameters and buffers."""
    return {name: tensor_digest(v) for name, v in model.state_dict().items() if isinstance(v, Tensor)}


class _Sum(torch.autograd.Function):
    """Sum over all processes. Its gradient: each process knows a part of it, for the loss of its own rows."""

    @staticmethod
    def forward(ctx, mine: Tensor) -> Tensor:
        return _added_up(mine)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        return _added_up(gradients[0])


def _added_up(mine: Tensor) -> Tensor:
    total = mine.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def _of_all(rows: Tensor, size: int) -> Tensor:
    """The `size` rows of a batch, in its order, out of each process's share; gradients reach this process's alone."""
    rank, world = process()
    if world == 1 or size < world:
        return rows
    most = -(-size // world)
    mine = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, most - len(rows))).contiguous()
    parts = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(parts, mine.detach())
    parts[rank] = mine
    return torch.stack(parts, 1).flatten(0, 1)[:size]  # row k W + r is row k of process r


# ---- the loss of a batch ---------------------------------------------------------------------------------------------


_SYNC_BUFFERS = "forward_sync_buffers"  # they are equal already; torch called this broadcast_buffers for long
if _SYNC_BUFFERS not in inspect.signature(DistributedDataParallel).parameters:
    _SYNC_BUFFERS = "broadcast_buffers"


class SharedLoss:
    """(images of this process, labels and places of the whole batch) -> the loss of the whole batch.

    loss, objective: as `training.fit()` has them. The gradients of the value are those of one process after
    DistributedDataParallel has averaged them. Statistics of batch normalization are those of the whole batch.

    A loss gets the logits of all images, so any loss is exact. An objective sees the images of this process alone, and
    its values are added up by their shares of the batch. That is right for a mean over images, so the first batch of
    each epoch is computed in one piece too, in evaluation mode, and another value is an error.
    """

    def __init__(self, model: nn.Module, loss: Any, objective: Any):
        self.model, self.objective, self.checked = model, objective, objective is None
        if process()[1] == 1:
            alone = objective or (lambda model, images, labels, _places: loss(model(images), labels))
            self.step: Any = partial(alone, model)
        else:
            # find_unused_parameters: gradients stay in the buckets in which they are at first, so that a restart adds
            # them up in the same order; and a network may leave out some of its weights, as in one process
            options: dict[str, Any] = {"find_unused_parameters": True, _SYNC_BUFFERS: False}
            self.step = DistributedDataParallel(_Step(model, loss, objective), **options)

    def set_epoch(self, epoch: int) -> None:
        self.checked = self.objective is None

    def __call__(self, images: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        if not self.checked and len(images) < len(labels):
            self._check(images, labels, places)
        return self.step(images, labels, places)

    @torch.no_grad()
    def _check(self, images: Tensor, labels: Tensor, places: Tensor) -> None:
        modes, size = {module: module.training for module in self.model.modules()}, len(labels)
        self.model.eval()
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            whole = self.objective(self.model, _of_all(images, size), labels, places)
            part = self.objective(self.model, images, share_of(labels), share_of(places))
        parts = _added_up(part * (len(images) / size))
        for module, mode in modes.items():
            module.training = mode
        seen = f"{float(whole):.6g} for a batch, {float(parts):.6g} for its parts"
        close = torch.allclose(whole, parts, rtol=1e-4, atol=1e-6, equal_nan=True)
        require(close, "objective", seen, "with several processes a mean over images; give any other one as a loss")
        self.checked = True


class _Step(nn.Module):
    """The loss as the forward of one module: so DistributedDataParallel sees whatever an objective calls."""

    def __init__(self, model: nn.Module, loss: Any, objective: Any):
        super().__init__()
        self.model, self.functions = model, (loss, objective)  # in a tuple: a loss's own weights are not trained
        first = next(model.parameters())
        self.unused = nn.Parameter(torch.zeros((), device=first.device))  # else torch warns that there is none

    def forward(self, images: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        (loss, objective), world, size = self.functions, process()[1], len(labels)
        alone = len(images) == size  # every process has the whole batch
        with contextlib.nullcontext() if alone else _statistics_of_all(self.model):
            if objective is None:
                value = loss(_of_all(self.model(images), size), labels)
                whole = value.detach()
            else:
                own = (labels, places) if alone else (share_of(labels), share_of(places))
                value = objective(self.model, images, *own) * (len(images) / size)
                whole = value.detach() if alone else _added_up(value.detach())
        return value if alone else whole + world * (value - value.detach())  # W times the gradient: it will be averaged


@contextlib.contextmanager
def _statistics_of_all(model: nn.Module) -> Iterator[None]:
    """Batch normalization takes mean and variance over all processes (torch's SyncBatchNorm does so on GPUs alone)."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        vars(layer)["forward"] = partial(_normalized, layer)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


def _normalized(layer: Any, x: Tensor) -> Tensor:
    if not layer.training and layer.running_mean is not None:
        return type(layer).forward(layer, x)
    layer._check_input_dim(x)
    z = x if x.dtype == torch.float64 else x.float()
    others, shape = [0, *range(2, z.ndim)], [1, -1, *[1] * (z.ndim - 2)]
    sums = z.sum(others)
    sums = _Sum.apply(torch.cat([sums, torch.full_like(sums[:1], z.numel() / z.shape[1])]))
    n = sums[-1].detach()
    # mean_c = sum x / n, variance_c = sum (x - mean_c)^2 / n, over all images of the batch and their places
    mean = sums[:-1] / n
    centred = z - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(others)) / n
    if layer.training and layer.running_mean is not None:
        with torch.no_grad():
            layer.num_batches_tracked += 1
            number = layer.num_batches_tracked.to(layer.running_mean.dtype)
            share = 1 / number if layer.momentum is None else layer.momentum
            for kept, new in ((layer.running_mean, mean), (layer.running_var, variance * n / (n - 1))):
                kept.copy_((1 - share) * kept + share * new)
    y = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y.to(x.dtype)
