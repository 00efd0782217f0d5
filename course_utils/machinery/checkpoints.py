"""Checkpoints of `fit()`: a training goes on where it stopped, and no other training goes on from its file.

What a training is, is told by `describe()`: every number, tensor and function that it is made of.
"""

from __future__ import annotations

import contextlib
import dis
import io
import logging
import os
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import nn

from ..runtime import digest, located, require, tensor_digest, write_atomically
from .distributed import from_first, process, refuse_differences, weights_of


def save_checkpoint(
    path: str | Path | None, model: nn.Module, optimizer, loss: Any, settings: dict, history: list, start: dict
) -> None:
    """Write what `load_checkpoint()` goes on from, which gave `start`; `path` None: nothing."""
    if path is not None and process()[0] == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history, "start": start}
        state["loss"] = loss.state_dict() if isinstance(loss, nn.Module) else {}
        buffer = io.BytesIO()  # torch.save() into a file tells a full disk from other errors by no message
        torch.save(state | {"settings": settings, "digest": digest(describe("", state))}, buffer)
        write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(
    path: str | Path | None, model: nn.Module, optimizer, loss: Any, settings: dict[str, Any]
) -> tuple[list, dict[str, str]]:
    """Bring model, optimizer and loss to where they were saved; without a file they stay.

    Returns:
        The history, and {name: digest} of the weights that the training started from.

    Raises:
        ValueError: the file is no checkpoint or a damaged one, or one of another network, of other settings, or of
            another start: the model has neither the weights that the training began with nor those that were saved.
            With several processes, which go on from the file of the first one: settings or weights that are not equal.
    """
    refuse_differences(lambda: settings | weights_of(model))
    if path is None:
        return [], {}
    path, mine, start = located(path), model.state_dict(), weights_of(model)
    with _naming(path):
        raw = from_first(lambda: path.read_bytes() if path.exists() else None)
    if raw is None:
        return [], start
    with _naming(path):  # on the CPU: load_state_dict() knows what belongs elsewhere
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        weights, history = state["model"], state["history"]
        shapes = [{k: getattr(v, "shape", None) for k, v in one.items()} for one in (weights, mine)]
        pairs = {k: (state["settings"].get(k), settings.get(k)) for k in state["settings"] | settings}
        odd = [f"{k}={old} instead of {new}" for k, (old, new) in pairs.items() if old != new]
    if names := _differing(*shapes):
        raise ValueError(f"checkpoint: {path} belongs to another network; it differs in {', '.join(names[:3])}")
    if odd:
        raise ValueError(f"checkpoint: {path} was written with other settings: {', '.join(odd[:3])}")
    with _naming(path):
        found = {name: state[name] for name in ("model", "optimizer", "history", "start", "loss")}
        require(digest(describe("", found)) == state["digest"], "digest", "another one", state["digest"])
        saved = {k: tensor_digest(v) for k, v in weights.items() if isinstance(v, torch.Tensor)}
        names = _differing(state["start"], start)
    if names and start != saved:
        which = f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        way = "make the model as for that training (the same seed and first weights), or name another file"
        raise ValueError(f"checkpoint: {path} began with other weights than this model has, in {which}; {way}")
    with _naming(path):
        optimizer.load_state_dict(state["optimizer"])
        model.load_state_dict(weights)
        if isinstance(loss, nn.Module):
            loss.load_state_dict(state["loss"])
    return history, state["start"]


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which they have different values, or one has none."""
    return [name for name in sorted({**one, **other}) if one.get(name, "") != other.get(name, "")]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes an error that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"checkpoint: {path} is not a checkpoint of fit() ({type(error).__name__})") from error


def load_weights(module: nn.Module, path: str | Path, *, trusted: bool = False) -> None:
    """Fill `module` from a .safetensors, .pth or .pt file of weights; a classifier that it has besides is left out.

    path: {name: tensor}, or that under "state_dict" or "model", with or without "module." before each name.
    trusted: the file is known by its digest. Others are read by torch 2.10 or newer alone, unless they are safetensors:
    before, `weights_only` could be tricked to run code (CVE-2025-32434, CVE-2026-24747).

    Raises:
        ValueError: a damaged file, one that holds more than weights, or one of another network.
    """
    path, mine = located(path), module.state_dict()
    pickled = path.suffix != ".safetensors"
    safe = trusted or not pickled or Version(torch.__version__) >= Version("2.10")
    require(safe, "weights", f"{path} with torch {torch.__version__}", "a .safetensors file, or torch 2.10 or newer")
    try:
        if pickled:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state.get("model", state))
        else:
            from safetensors.torch import load_file

            state = load_file(path)
        state = {name.removeprefix("module."): value for name, value in state.items()}
    except Exception as error:
        raise ValueError(f"weights: {path} holds no weights that can be read ({type(error).__name__})") from error
    lacking = [name for name in mine if name not in state and not name.endswith("num_batches_tracked")]
    odd = [name for name in mine if name in state and getattr(state[name], "shape", None) != mine[name].shape]
    seen = f"{path}, {len(lacking)} missing and {len(odd)} of another shape, such as {', '.join((lacking + odd)[:2])}"
    require(not lacking and not odd, "weights", seen, f"a file of the {len(mine)} tensors of this network")
    module.load_state_dict({name: state.get(name, mine[name]) for name in mine})


# ---- what a part of a training is ------------------------------------------------------------------------------------


def describe(name: str, part: Any, known: frozenset[int] = frozenset()) -> dict[str, Any]:
    """{"loss": "FocalLoss", "loss.gamma": 2.0, ...}: all that makes `part` what it is, to tell it from others.

    Plain values as they are, tensors by digest; of a function its code, defaults, and what it uses from around it; of
    an object its class and attributes; the parts of all these in turn. Equal in every process, on every device. A
    module of one's own counts by its text, and by what a function uses of it; so does a package that is not installed.
    Loggers and cached properties are left out, and so is what has its id() in `known`.

    Not seen: the code of installed packages and of this one, but for numbers in them that a function of one's own uses;
    what code reaches by names in strings (`getattr`), through hooks of modules, from files, or from other programs.
    """
    if isinstance(part, np.generic):
        part = part.item()
    if part is None or type(part) in (bool, int, str) or (type(part) is float and part == part):
        return {name: part}
    if isinstance(part, int | float | str):  # a NaN, which equals nothing; an IntEnum, which a checkpoint cannot hold
        return {name: repr(part)}
    if id(part) in known or isinstance(part, torch.device | logging.Logger):
        return {}
    if isinstance(part, types.ModuleType):
        return {name: _source(part)}
    if isinstance(part, np.random.Generator):
        return {name: digest(part.bit_generator.state)}
    if isinstance(part, torch.Tensor):
        return {name: f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)} {tensor_digest(part)}"}
    if isinstance(part, np.ndarray):
        return {name: f"{part.dtype} {part.shape} {digest(part.tolist() if part.dtype.hasobject else part.tobytes())}"}
    if isinstance(part, os.PathLike):
        return {name: str(part)}
    if isinstance(part, torch.Generator):
        return {name: part.initial_seed()}
    if isinstance(part, list | tuple) and all(v is None or isinstance(v, bool | int | float | str) for v in part):
        return {name: str(list(part)) if len(part) <= 8 else f"{len(part)} values {digest(list(part))}"}
    title, inside = _inside(part)
    known = known | {id(part)}
    return {name: title} | {
        k: v for key, one in inside.items() for k, v in describe(f"{name}.{key}", one, known).items()
    }


def training_settings(model, train, optimizer, groups, parts: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint remembers of them, so that another training does not go on from it."""
    tell(0, parts["sampler"], parts["loss"])  # as they are before training
    known = frozenset(map(id, (*model.parameters(), *model.buffers(), *model.modules())))  # their values are kept
    found = {
        "optimizer": type(optimizer).__name__,
        **optimizer.defaults,
        "trainable": sum(w.requires_grad for w in model.parameters()),
        "groups": {name: dict(own) for name, own in (groups or {}).items()} or None,
        "counts": train.counts.tolist(),
        "images": train.digest(),
        **describe("frozen", [name for name, weight in model.named_parameters() if not weight.requires_grad]),
    }
    for name, part in parts.items():
        found |= describe(name, part, known)
    layers = {name: {"type": type(m).__name__} | code_of(type(m)) | _plain(m) for name, m in model.named_modules()}
    return found | describe("network", layers, known)


def _plain(module: nn.Module) -> dict[str, Any]:
    """Numbers, names and functions that a layer was made with: what the shapes of its weights do not show."""
    kinds = bool | int | float | str | tuple | types.FunctionType | types.MethodType
    return {k: v for k, v in vars(module).items() if isinstance(v, kinds) and k != "training"}


def tell(epoch: int, *parts) -> None:
    """Samplers and losses that change over time which epoch begins."""
    for part in parts:
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def name_of(part) -> str:
    """Of a function or of an object's class."""
    return getattr(part, "__name__", type(part).__name__)


def _inside(part: Any) -> tuple[str, dict[str, Any]]:
    """The name of a thing, and the things it is made of."""
    if isinstance(part, partial):
        title, inside = _inside(part.func)
        return title, inside | {str(i): v for i, v in enumerate(part.args)} | part.keywords
    if isinstance(part, types.MethodType):
        return part.__name__, {**_inside(part.__func__)[1], "self": part.__self__}
    if isinstance(part, types.FunctionType):
        return part.__name__, _around(part) | vars(part)
    if isinstance(part, type):
        own = [] if _in_package(part) else [vars(one) for one in reversed(part.__mro__) if not _in_package(one)]
        inside = {k: getattr(v, "__func__", getattr(v, "fget", v)) for found in own for k, v in found.items()}
        return part.__name__, {k: v for k, v in inside.items() if k[:2] != "__" or isinstance(v, types.FunctionType)}
    if isinstance(part, Mapping):
        return type(part).__name__, {str(k): v for k, v in part.items()}
    if isinstance(part, list | tuple):
        return type(part).__name__, {str(i): v for i, v in enumerate(part)}
    if isinstance(part, set | frozenset):
        return type(part).__name__, {"values": sorted(str(describe("", v)) for v in part)}
    attributes = _attributes(part)
    if attributes is None:  # a dtype, a range ... are what they are called; what has an address is its class
        text = repr(part)
        return type(part).__name__ if " at 0x" in text else text, {}
    return type(part).__name__, _inside(type(part))[1] | attributes


def _around(function: types.FunctionType) -> dict[str, Any]:
    """Defaults and closure of a function and, unless it is a package's, its code and the globals it uses."""
    code = function.__code__
    names, defaults = code.co_varnames[: code.co_argcount], function.__defaults__ or ()
    found = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (function.__kwdefaults__ or {})
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not filled yet
            found[key] = cell.cell_contents
    if not _in_package(function):
        around, codes = function.__globals__, list(_codes(code))
        names = {i.argval for c in codes for i in dis.get_instructions(c) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        found |= {key: around[key] for key in sorted(names & around.keys())}
        found |= _of_modules(found, {name for c in codes for name in c.co_names})
        found["code"] = digest(_code(code))
    return found


def _of_modules(found: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """gamma in `settings.gamma`, which may have been set since the module was imported; of packages, numbers alone."""
    modules, used = [(key, part) for key, part in found.items() if isinstance(part, types.ModuleType)], {}
    for key, module in modules:
        kinds = bool | int | float if _in_package(module) else object
        own = {f"{key}.{name}": vars(module)[name] for name in sorted(names & vars(module).keys())}
        own = {k: v for k, v in own.items() if isinstance(v, kinds) and v is not module}
        used |= own
        modules += [(k, v) for k, v in own.items() if isinstance(v, types.ModuleType) and k.count(".") < 5]
    return used


def code_of(kind: type) -> dict[str, str]:
    """{"type.forward": digest of its code, ...} for a class of one's own; not its counters, nor what its code uses."""
    own = [vars(one) for one in reversed(kind.__mro__) if not _in_package(one)]
    functions = {k: getattr(v, "__func__", v) for found in own for k, v in found.items()}
    return {f"type.{k}": digest(_code(v.__code__)) for k, v in functions.items() if isinstance(v, types.FunctionType)}


def _source(module: types.ModuleType) -> str:
    """Of a file of one's own by its contents, of a package by its name."""
    own = not _in_package(module) and getattr(module, "__file__", None)
    return digest(Path(own).read_bytes()) if own else module.__name__


def _attributes(part: Any) -> dict[str, Any] | None:
    if isinstance(part, nn.Module):
        own = {k: v for k, v in vars(part).items() if k not in _OF_EVERY_MODULE}
        return own | part._parameters | part._buffers | part._modules
    slots = [vars(one).get("__slots__", ()) for one in type(part).__mro__]
    names = [k for some in slots for k in ([some] if isinstance(some, str) else some) if hasattr(part, k)]
    if not names and not hasattr(part, "__dict__"):
        return None
    found = {k: getattr(part, k) for k in names if k[:2] != "__"} | getattr(part, "__dict__", {})
    return {k: v for k, v in found.items() if not isinstance(getattr(type(part), k, None), cached_property)}


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _in_package(part: Any) -> bool:
    """Whether it is Python's, this course's or an installed package's, whose versions one knows, not a reader's own."""
    name = (part.__name__ if isinstance(part, types.ModuleType) else part.__module__) or ""
    module = sys.modules.get(name) or sys.modules.get(name.partition(".")[0])
    if name == "__main__" or module is None:  # a notebook, or what exec() made
        return False
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return file is None or name.partition(".")[0] in sys.stdlib_module_names or _is_installed(file)


@cache
def _is_installed(file: str) -> bool:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    places = [Path(__file__).resolve().parents[1], *(Path(sysconfig.get_path(kind)).resolve() for kind in kinds)]
    path = Path(file).resolve()
    return any(map(path.is_relative_to, places)) or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def _code(code: types.CodeType) -> str:
    """What a function does, as text without addresses, lines and files."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    return repr((code.co_code.hex(), code.co_names, constants))


def _constant(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """It, and the functions and comprehensions inside."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
