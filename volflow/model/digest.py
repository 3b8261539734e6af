"""Digests of models: a run must not be resumed with changed weights or code."""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from volflow.errors import InvalidInput
from volflow.model.imports import Code, code_of, has_source
from volflow.model.loaded import unwrapped

__all__ = ["digest_of", "identity_of"]

Parts = Iterator[bytes | memoryview]


@dataclasses.dataclass
class Seen:
    """Objects described so far, by id, and the modules that they come from.

    Objects are kept, not only their ids, because ids are reused.
    """

    objects: dict[int, Any] = dataclasses.field(default_factory=dict)
    modules: set[str] = dataclasses.field(default_factory=set)

    def note(self, thing: Any) -> None:
        """Record the modules of an object, or of a class and its base classes."""
        if isinstance(thing, ModuleType):
            self.modules.add(thing.__name__)
            return
        for kind in (thing if isinstance(thing, type) else type(thing)).__mro__:
            self.modules.add(kind.__module__)
        if isinstance(thing, FunctionType | BuiltinFunctionType):
            self.modules.add(thing.__module__ or "")


# Code of these packages counts by name only, so that neither their updates nor a new Python
# version change the digest of a model with the same weights.
_STABLE = ("torch.", "volflow.", "builtins.")
_PLAIN = (
    bool, int, float, complex, str, bytes, slice, range, type(None),
    torch.dtype, torch.device, np.dtype, np.generic,
)  # fmt: skip
# Values of globals that functions use. If no file holds their assignment, as in a notebook,
# containers count, too; elsewhere they are more likely state.
_GLOBALS = (nn.Module, torch.Tensor, np.ndarray, int, float, str)
_CONTAINERS = (complex, bytes, tuple, list, dict, set, frozenset, type)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_BOOKKEEPING = frozenset(vars(nn.Module()))


def digest_of(model: nn.Module | Callable[..., Any]) -> str:
    """Return the sha256 (hex) of everything that a model computes with.

    It covers every parameter and buffer (name, dtype, shape, bytes), the class of every layer
    with its attributes and hooks, and the byte code of classes that are neither PyTorch's
    nor volflow's. Of a function it covers the byte code, the defaults, and the tensors,
    arrays, plain values, modules and neighbouring functions that it closes over or names.
    Imported code is covered by `identity_of`.

    Raises
    ------
    InvalidInput
        If a parameter has no values yet (a lazy layer, or the meta device).

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1)
    >>> before = digest_of(net)
    >>> with torch.no_grad():
    ...     _ = net.weight.add_(1)
    >>> before == digest_of(net)
    False
    """
    return _described(model, Seen())


def identity_of(model: Any, modules: Iterable[str] = ()) -> tuple[str, Code]:
    """Return the digest of a model, and the code that it runs.

    Parameters
    ----------
    model
        As for `digest_of`.
    modules
        Names of modules that it comes from, besides those found in the model itself.

    Examples
    --------
    >>> identity_of(torch.nn.ReLU())[1].packages
    {'torch': '2...'}
    """
    seen = Seen()
    digest = _described(model, seen)
    return digest, code_of({*modules, *seen.modules})


def _described(model: Any, seen: Seen) -> str:
    sha = hashlib.sha256()
    for part in _parts(model, seen):
        # With their lengths, neighbouring parts stay distinct.
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def _parts(thing: Any, seen: Seen) -> Parts:
    """Yield the bytes that describe a part of a model; unknown objects by their type."""
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
    elif id(thing) in seen.objects:
        yield b"seen before"
    else:
        seen.objects[id(thing)] = thing
        seen.note(thing)
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
    elif isinstance(thing, type):
        yield from _class(thing, seen)
    elif callable(thing):
        yield str(getattr(thing, "__name__", "")).encode()
        yield from _all(getattr(thing, "__dict__", {}).items(), seen)
        yield from _class(kind, seen)
    else:
        yield from _all(_fields(thing), seen)


def _fields(thing: Any) -> list[Any]:
    """Return the values of an object that exists to hold data."""
    if isinstance(thing, enum.Enum):
        return [thing.name]
    if dataclasses.is_dataclass(thing):
        return [getattr(thing, field.name, None) for field in dataclasses.fields(thing)]
    return sorted(vars(thing).items()) if isinstance(thing, SimpleNamespace | Namespace) else []


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
        seen.note(layer)
        yield f"{name}: {kind.__module__}.{kind.__qualname__}".encode()
        for key, value in sorted(vars(layer).items()):
            if _counts(key, value, kind):
                yield key.encode()
                yield from _parts(value, seen)
        for key in _HOOKS:
            for hook in vars(layer).get(key, {}).values():  # scripts have none
                yield key.encode()
                yield from _hook(hook, seen)
        yield from _script(layer, seen)
        yield from _class(kind, seen)


def _script(layer: nn.Module, seen: Seen) -> Parts:
    """Describe a scripted or traced layer by its code, as its class says nothing about it."""
    if isinstance(layer, torch.fx.GraphModule):
        yield str(layer.code).encode()
    elif isinstance(layer, torch.jit.ScriptModule):
        text, constants = "", {}
        with suppress(Exception):  # a layer without its own forward
            text, found = layer.code_with_constants
            constants = dict(found.const_mapping)
        yield text.encode()
        yield from _parts(constants, seen)


def _counts(key: str, value: Any, kind: type) -> bool:
    """Return True if a layer's attribute may affect what it computes."""
    if key == "training" or key in _BOOKKEEPING:
        return False
    # PyTorch's own attributes are not settings, and a user's private objects may be caches.
    return key[0] != "_" or (isinstance(value, _PLAIN) and not _stable(kind.__module__))


def _hook(hook: Any, seen: Seen) -> Parts:
    """Describe a hook by its code and plain values only: it may store what it has seen."""
    seen.note(hook)
    function = getattr(hook, "__func__", hook)
    if isinstance(function, FunctionType):
        plain = [value for value in _closed_over(function) if isinstance(value, _PLAIN)]
        yield from _all((function.__code__, *plain), seen)
    else:
        yield f"{type(hook).__module__}.{type(hook).__qualname__}".encode()


def _class(kind: type, seen: Seen) -> Parts:
    for base in kind.__mro__:
        if _stable(base.__module__):
            continue
        unwritten = not has_source(base.__module__)
        for name, member in sorted(vars(base).items()):
            value = unwritten and name[:2] != "__" and isinstance(member, _PLAIN)
            for part in (member,) if value else unwrapped(member):
                if value or isinstance(part, FunctionType):
                    yield name.encode()
                    yield from _parts(part, seen)


def _function(function: FunctionType, seen: Seen) -> Parts:
    yield f"{function.__module__}.{function.__qualname__}".encode()
    if _stable(function.__module__):
        return
    yield from _all((function.__code__, function.__defaults__, function.__kwdefaults__), seen)
    for value in _closed_over(function):
        yield from _parts(value, seen)
    codes = _codes(function.__code__)
    unwritten = not has_source(function.__module__)
    if unwritten:
        seen.modules.update(name for code in codes for name in _imported(code))
    kinds = _GLOBALS + (_CONTAINERS if unwritten else ())
    for name in (name for code in codes for name in code.co_names):
        value = function.__globals__.get(name)
        seen.note(value)
        if isinstance(value, FunctionType | type) and value.__module__ != function.__module__:
            continue  # its module is identified as such
        if isinstance(value, (FunctionType, *kinds)):
            yield name.encode()
            yield from _parts(value, seen)


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # a name that has no value yet
            yield cell.cell_contents


def _codes(code: CodeType) -> list[CodeType]:
    """Return the code of a function and of its comprehensions, lambdas and inner functions."""
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return [code, *(one for each in inner for one in _codes(each))]


def _imported(code: CodeType) -> Iterator[str]:
    """Yield names that a function imports when it runs; for ``from a import b`` also ``a.b``."""
    module = ""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME":
            module = str(step.argval)
            yield module
        elif step.opname == "IMPORT_FROM":
            yield f"{module}.{step.argval}"


def _stable(module: str | None) -> bool:
    return f"{module}.".startswith(_STABLE)
