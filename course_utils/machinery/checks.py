"""In which form numbers come in: whole numbers as int64, floats as at least float32, classes in their order.

As they come, small integers wrap (25 * 26 + 25 is 163 in uint8), and half precision loses count (adding 1 to 2048
changes nothing in float16). Tensors of int64, float32 and float64 stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime import require


def _as_tensor(name: str, values: Any, allowed: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: got a {type(values).__name__} ({error}); allowed: {allowed}") from error


def whole(name: str, values: Any, num_classes: int | None = None) -> Tensor:
    """Integers of any size as int64 (N,), each from 0 to num_classes - 1 if that is given. No bool, no floats."""
    values = _as_tensor(name, values, "integers of shape (N,)")
    odd = values.is_floating_point() or values.is_complex() or values.dtype == torch.bool
    seen = f"{values.dtype} of shape {tuple(values.shape)}"
    require(values.ndim == 1 and not odd, name, seen, "integers of shape (N,)")
    values = values.long()
    if num_classes is not None and len(values):
        low, high = values.aminmax()
        require(low >= 0 and high < num_classes, name, lambda: f"{low} to {high}", f"0 to {num_classes - 1}")
    return values


def floats(**tensors: Tensor) -> list[Tensor]:
    """Tensors of floats in the finest type among them, at least float32."""
    for name, tensor in tensors.items():
        fits = isinstance(tensor, Tensor) and tensor.is_floating_point()
        require(fits, name, getattr(tensor, "dtype", type(tensor).__name__), "a tensor of floats, such as float32")
    double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    return [tensor.to(torch.float64 if double else torch.float32) for tensor in tensors.values()]


def of_classes(name: str, values: Any, least: float | None = None) -> Tensor:
    """One number for each class, (C,): int64, or at least float32. Finite and at least `least`, if that is given.

    A mapping or a pandas Series names its numbers, and `value_counts()` puts the largest one first: only if the names
    are 0, 1, 2 ... in this order, the j-th number is that of class j.
    """
    allowed = "one number for each class" if least is None else f"one number of at least {least} for each class"
    if hasattr(values, "keys"):
        keys = list(values.keys())
        require(keys == list(range(len(keys))), name, f"them for {keys[:5]}", "for 0, 1, 2 ... in this order")
        values = [values[key] for key in keys]
    values = _as_tensor(name, values, allowed)
    fits = values.ndim == 1 and values.dtype != torch.bool and not values.is_complex()
    require(fits, name, values.tolist, allowed)
    values = floats(**{name: values})[0] if values.is_floating_point() else values.long()
    if least is not None:
        good = (values >= least) & values.isfinite()
        where = f", where class {int(good.int().argmin())} is empty" if least == 1 and not good.all() else ""
        require(len(values) and good.all(), name, lambda: f"{values.tolist()}{where}", allowed)
    return values


def sums(values: Tensor, groups: Tensor, number: int) -> Tensor:
    """The sum of the values of each of `number` groups: (N, ...) and int64 (N,) to (number, ...).

    65,536 values at a time: one long sum of a million in float32 is wrong by 1 %, this one by less than 0.1 %.
    """
    parts = zip(values.split(1 << 16), groups.split(1 << 16), strict=True)
    return torch.stack([part.new_zeros(number, *part.shape[1:]).index_add(0, g, part) for part, g in parts]).sum(0)
