"""A GPU that is not there: tensors that live on another device as far as anyone can tell, and compute on the CPU.

Within `pretend_gpu() as gpu`, `tensor.to(gpu.device)` gives such a tensor. Three things are as on a real GPU: an
operation on tensors of both devices is an error; there is no float64, as on Apple's; and the program would have to wait
for the device whenever it wants to know a number: `gpu.waits` lists when. What it cannot show: speed, autocast, and
sums in another order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("lazy", 0)  # every build of torch knows the name, and none uses it
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")  # may take indices of the CPU
SIZE_UNKNOWN = ("nonzero", "masked_select", "unique_dim", "_unique2", "bincount", "equal")


class OnGPU(Tensor):
    """`inner`, a tensor of the CPU, in the clothes of one on the GPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: PretendGPU):
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner: Tensor, gpu: PretendGPU):
        self.inner, self.gpu = inner, gpu

    def __repr__(self, **_options) -> str:
        return f"OnGPU({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        gpu = next(t.gpu for t in tree_leaves((args, kwargs)) if isinstance(t, OnGPU))
        return gpu.run(function, args, kwargs or {})

    def __getitem__(self, where):
        return super().__getitem__(tree_map_only(list, torch.tensor, where, is_leaf=lambda w: isinstance(w, list)))

    def __setitem__(self, where, value):
        super().__setitem__(tree_map_only(list, torch.tensor, where, is_leaf=lambda w: isinstance(w, list)), value)

    def tolist(self):
        self.gpu.waits.append("tolist")
        return self.inner.detach().tolist()

    def numpy(self, *_args, **_options):
        raise TypeError("can't convert a GPU tensor to numpy; use .cpu() first")

    __array__ = numpy


class PretendGPU(TorchDispatchMode):
    """`device`; `waits`: names of what made the program wait for the device; `calls`: of all operations there."""

    device = DEVICE

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []
        self.calls: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.run(function, args, kwargs or {})

    def run(self, function, args: tuple, kwargs: dict):
        name = function.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in tensors if isinstance(t, OnGPU)]
        here = [t for t in tensors if not isinstance(t, OnGPU) and t.ndim]  # a lone number may be on the CPU
        asked = kwargs.get("device")
        goes_there = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
        copies = name in ("_to_copy", "copy_")
        if there and here and not copies and name not in INDEXING:
            raise RuntimeError(f"{name}: shapes {[tuple(t.shape) for t in here]} on the CPU, the others on the GPU")
        if there:
            self.calls.append(name)
            if self._must_wait(name, args, goes_there and not (name == "copy_" and not isinstance(args[0], OnGPU))):
                self.waits.append(name)
        if asked is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if "pin_memory" in kwargs:
            kwargs = {**kwargs, "pin_memory": None}
        result = function(*tree_map_only(OnGPU, _inner, args), **tree_map_only(OnGPU, _inner, kwargs))
        if name == "copy_":
            return args[0]
        if goes_there:
            if any(t.dtype == torch.float64 for t in tree_leaves(result) if isinstance(t, Tensor)):
                raise TypeError(f"{name}: this GPU has no float64")
            result = tree_map_only(Tensor, lambda t: OnGPU(t, self), result)
        return return_and_correct_aliasing(function, args, kwargs, result) if there and goes_there else result

    @staticmethod
    def _must_wait(name: str, args: tuple, stays: bool) -> bool:
        masks = name in INDEXING and any(t is not None and t.dtype == torch.bool for t in args[1])
        return name == "_local_scalar_dense" or name in SIZE_UNKNOWN or masks or not stays


def _inner(tensor: OnGPU) -> Tensor:
    return tensor.inner


@contextlib.contextmanager
def pretend_gpu() -> Iterator[PretendGPU]:
    with PretendGPU() as gpu:
        yield gpu
