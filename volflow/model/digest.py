"""A digest that tells one model from another: changed weights or code must not resume a run."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from volflow.errors import InvalidInput

__all__ = ["digest_of"]

Parts = Iterator[bytes | memoryview]
Seen = dict[int, Any]

# The code of these packages counts by name only, so that neither their updates nor a new
# Python make a run with the same weights look like another.
_STABLE = ("torch.", "volflow.", "builtins.")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, np.dtype)


def digest_of(model: nn.Module | Callable[..., Any]) -> str:
    """Return the sha256 of what a model computes with.

    It covers every parameter and buffer (name, dtype, shape, bytes), the class of every layer
    with its plain public attributes, and the byte code of classes that are neither PyTorch's
    nor volflow's. Of a function it covers the byte code, the defaults, and the tensors,
    arrays, plain values, modules and neighbouring functions that it closes over or names.

    Raises
    ------
    InvalidInput
        Where a parameter has no values yet (a lazy layer, or the meta device).

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1)
    >>> before = digest_of(net)
    >>> with torch.no_grad():
    ...     _ = net.weight.add_(1)
    >>> before == digest_of(net)
    False
    """
    sha = hashlib.sha256()
    for part in _parts(model, {}):
        # Lengths keep neighbouring parts apart.
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def _parts(thing: Any, seen: Seen) -> Parts:
    """Describe what a model may hold as a stream of bytes; unknown things by their type."""
    if isinstance(thing, _PLAIN):
        yield repr(thing).encode()
    elif isinstance(thing, torch.Tensor):
        yield from _tensor("", thing)
    elif isinstance(thing, np.ndarray):
        yield f"array {thing.dtype.str} {thing.shape}".encode()
        yield repr(thing).encode() if thing.dtype.hasobject else thing.tobytes()
    elif isinstance(thing, CodeType):
        yield thing.co_code
        yield repr(thing.co_names).encode()
        yield from _all(thing.co_consts, seen)
    elif isinstance(thing, tuple):
        yield from _all(thing, seen)
    elif isinstance(thing, (set, frozenset)):
        yield from _all(sorted(thing, key=repr), seen)
    elif id(thing) in seen:
        yield b"seen before"
    else:
        # Kept, not only its id: an id may be given to another object once this one is gone.
        seen[id(thing)] = thing
        yield from _object(thing, seen)


def _object(thing: Any, seen: Seen) -> Parts:
    kind = thing if isinstance(thing, type) else type(thing)
    yield f"{kind.__module__}.{kind.__qualname__}".encode()
    if isinstance(thing, nn.Module):
        yield from _module(thing, seen)
    elif isinstance(thing, list):
        yield from _all(thing, seen)
    elif isinstance(thing, dict):
        yield from _all(thing.items(), seen)
    elif isinstance(thing, functools.partial):
        yield from _all((thing.func, thing.args, thing.keywords), seen)
    elif isinstance(thing, MethodType):
        yield from _all((thing.__func__, thing.__self__), seen)
    elif isinstance(thing, FunctionType):
        yield from _function(thing, seen)
    elif callable(thing) and not isinstance(thing, type):
        yield str(getattr(thing, "__name__", "")).encode()
        yield from _all(getattr(thing, "__dict__", {}).items(), seen)
        yield from _class(kind, seen)


def _all(things: Any, seen: Seen) -> Parts:
    yield str(len(things)).encode()
    for thing in things:
        yield from _parts(thing, seen)


def _tensor(name: str, tensor: torch.Tensor) -> Parts:
    if tensor.is_meta or is_lazy(tensor):
        raise InvalidInput(
            f"the model's tensor {name!r} has no values yet; load weights into it, or run a"
            " lazy layer once, before using the model"
        )
    yield f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    yield memoryview(raw.numpy().data)


def _module(module: nn.Module, seen: Seen) -> Parts:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield from _tensor(name, tensor)
    for name, layer in module.named_modules():
        kind = type(layer)
        yield f"{name}: {kind.__module__}.{kind.__qualname__}".encode()
        for key, value in sorted(vars(layer).items()):
            # Private attributes hold the parameters, taken above, and PyTorch's bookkeeping.
            if not key.startswith("_") and key != "training":
                yield key.encode()
                yield from _parts(value, seen)
        yield from _class(kind, seen)


def _class(kind: type, seen: Seen) -> Parts:
    for base in kind.__mro__:
        if not _stable(base.__module__):
            for name, member in sorted(vars(base).items()):
                if isinstance(member, FunctionType):
                    yield name.encode()
                    yield from _parts(member, seen)


def _function(function: FunctionType, seen: Seen) -> Parts:
    yield f"{function.__module__}.{function.__qualname__}".encode()
    if _stable(function.__module__):
        return
    yield from _all((function.__code__, function.__defaults__, function.__kwdefaults__), seen)
    for cell in function.__closure__ or ():
        yield from _parts(cell.cell_contents, seen)
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        near = isinstance(value, FunctionType) and value.__module__ == function.__module__
        if near or isinstance(value, (nn.Module, torch.Tensor, np.ndarray, int, float, str)):
            yield name.encode()
            yield from _parts(value, seen)


def _names(code: CodeType) -> list[str]:
    """All global names in a function, those inside its comprehensions and lambdas included."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return [*code.co_names, *(name for each in inner for name in _names(each))]


def _stable(module: str | None) -> bool:
    return f"{module}.".startswith(_STABLE)
