"""Rules of ops along dims without an axis: channels and parts of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from volflow.partition.rules.tracing import OpCall, Traced

__all__ = ["LOCAL"]


def _require_free(call: OpCall, x: Traced, dim: int) -> int:
    """Return the dim, counted from the front; refuse one along which an axis lies."""
    dim = dim % x.ndim
    if call.tracer.dims(x)[dim] is not None:
        raise call.refuse(f"it works along dim {dim}, which is an axis of the volume")
    return dim


def along(*names: str, default: int | None = None) -> Callable[[OpCall], Any]:
    """Return the rule of an op along one dim that keeps the number of dims."""

    def rule(call: OpCall) -> Any:
        dim = call.named(names).get("dim", default)
        if dim is None:
            raise call.refuse("its dim is not given; give dim=1")
        _require_free(call, call.inputs[0], int(dim))
        return call.as_is()

    return rule


def concatenate(call: OpCall) -> Any:
    """Record a concatenation along channels."""
    given = call.named(("tensors", "dim"))
    first = call.inputs[0]
    _require_free(call, first, int(given.get("dim", given.get("axis", 0))))
    for x in given["tensors"]:
        if not isinstance(x, Traced):
            raise call.refuse("it joins the image with a tensor that is not computed from it")
        if call.tracer.dims(x) != call.tracer.dims(first):
            raise call.refuse("it joins tensors whose axes lie along different dims")
    return call.as_is()


def stack(call: OpCall) -> Any:
    """Record a stack: a new dim without an axis."""
    given = call.named(("tensors", "dim"))
    first = call.inputs[0]
    if any(
        not isinstance(x, Traced) or call.tracer.dims(x) != call.tracer.dims(first)
        for x in given["tensors"]
    ):
        raise call.refuse("it stacks tensors whose axes lie along different dims")
    dims = list(call.tracer.dims(first))
    dims.insert(int(given.get("dim", 0)) % (first.ndim + 1), None)
    return call.as_is(dims)


def unbind(call: OpCall) -> Any:
    """Record an unbinding of channels."""
    x = call.inputs[0]
    dim = _require_free(call, x, int(call.named(("input", "dim")).get("dim", 0)))
    dims = tuple(axis for d, axis in enumerate(call.tracer.dims(x)) if d != dim)
    return call.as_is(dims)


def channel_shuffle(call: OpCall) -> Any:
    """Record a shuffle of channels, which lie along dim 1."""
    _require_free(call, call.inputs[0], 1)
    return call.as_is()


def linear(call: OpCall) -> Any:
    """Record a linear layer over the last dim."""
    x = call.inputs[0]
    _require_free(call, x, -1)
    if len(call.inputs) > 1:
        raise call.refuse("its weights depend on the image")
    return call.as_is()


def matmul(call: OpCall) -> Any:
    """Record a product of the last dim with a matrix of weights."""
    x, other = (*call.args, None)[:2]
    plain = isinstance(x, Traced) and not isinstance(other, Traced)
    if not plain or not isinstance(other, Tensor) or other.ndim != 2:
        raise call.refuse("every voxel may depend on every other")
    _require_free(call, call.inputs[0], -1)
    return call.as_is()


LOCAL: dict[str, Callable[[OpCall], Any]] = {
    "softmax": along("input", "dim"),
    "log_softmax": along("input", "dim"),
    "softmin": along("input", "dim"),
    "normalize": along("input", "p", "dim", default=1),
    "glu": along("input", "dim", default=-1),
    "cumsum": along("input", "dim"),
    "cumprod": along("input", "dim"),
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "chunk": along("input", "chunks", "dim", default=0),
    "split": along("input", "split_size", "dim", default=0),
    "tensor_split": along("input", "sections", "dim", default=0),
    "index_select": along("input", "dim", "index"),
    "repeat_interleave": along("input", "repeats", "dim"),
    "cat": concatenate,
    "concat": concatenate,
    "concatenate": concatenate,
    "stack": stack,
    "unbind": unbind,
    "linear": linear,
    "matmul": matmul,
    "__matmul__": matmul,
}
