"""Rules of ops that only rearrange dims: the axes are tracked, no voxel changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from volflow.partition.rules.resampling import cut, spread
from volflow.partition.rules.tracing import OpCall, Traced

__all__ = ["LAYOUTS"]

Dims = tuple[int | None, ...]


def permute(call: OpCall) -> Traced:
    """Record a permutation of dims by any function: torch shows where each dim goes."""
    x = call.inputs[0]
    labels = x.meta.new_empty(tuple(range(2, x.ndim + 2)))  # each dim has a different size
    moved = call.run([labels])
    dims = tuple(call.tracer.dims(x)[size - 2] for size in moved.shape)
    return call.local(x, dims, lambda tensor, sizes: call.run([tensor]))


def squeeze(call: OpCall) -> Traced:
    """Record that dims of 1 are removed."""
    x, dims = call.inputs[0], call.tracer.dims(call.inputs[0])
    given = call.named(("input", "dim")).get("dim")
    listed = range(x.ndim) if given is None else [given] if isinstance(given, int) else given
    gone = [d % x.ndim for d in listed if x.shape[d] == 1]
    if any(dims[d] is not None for d in gone):
        raise call.refuse("it drops an axis of the volume")
    rest = tuple(axis for d, axis in enumerate(dims) if d not in gone)
    return call.local(x, rest, lambda tensor, sizes: tensor.squeeze(gone))


def unsqueeze(call: OpCall) -> Traced:
    """Record a new dim of 1."""
    x = call.inputs[0]
    dim = int(call.named(("input", "dim"))["dim"]) % (x.ndim + 1)
    dims = list(call.tracer.dims(x))
    dims.insert(dim, None)
    return call.local(x, tuple(dims), lambda tensor, sizes: tensor.unsqueeze(dim))


def reshape(call: OpCall) -> Traced:
    """Record a reshape that splits and joins dims without an axis only."""
    x, meta = call.inputs[0], call.metas()
    dims = _matched(x.shape, call.tracer.dims(x), meta.shape)
    if meta.dtype != x.dtype:
        raise call.refuse("it reinterprets the bytes of its input as another dtype")
    if dims is None:
        raise call.refuse(
            f"it makes {tuple(meta.shape)} of {tuple(x.shape)}, which mixes axes of the volume"
        )
    shape = tuple(meta.shape)

    def values(tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return tensor.reshape(_filled(shape, dims, sizes))

    return call.local(x, dims, values)


def _filled(shape: Sequence[int], dims: Dims, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a box of a tensor."""
    return tuple(n if axis is None else sizes[axis] for n, axis in zip(shape, dims, strict=True))


def _matched(before: Sequence[int], dims: Dims, after: Sequence[int]) -> Dims | None:
    """Return the axes of a reshaped tensor if each axis is still a separate dim.

    Examples
    --------
    >>> _matched((1, 6, 9, 9), (None, None, 0, 1), (1, 2, 3, 9, 9))
    (None, None, None, 0, 1)
    >>> _matched((1, 6, 9, 9), (None, None, 0, 1), (1, 6, 81)) is None
    True
    """
    if dims and dims[-1] is not None and dims[0] is None:  # the axes come last: from behind
        found = _matched(before[::-1], dims[::-1], after[::-1])
        return None if found is None else found[::-1]
    result: list[int | None] = []
    wanted = 1
    rest = list(after)
    for n, axis in zip(before, dims, strict=True):
        if axis is None:
            wanted *= n
            continue
        if not _take(rest, wanted, result) or not rest or rest.pop(0) != n:
            return None
        result.append(axis)
        wanted = 1
    if math.prod(rest) != wanted:
        return None
    return (*result, *(None for _ in rest))


def _take(rest: list[int], wanted: int, result: list[int | None]) -> bool:
    """Take dims of the new shape until their product equals that of the dims before the axis."""
    have = 1
    while have != wanted:
        if not rest:
            return False
        have *= rest.pop(0)
        result.append(None)
    return True


def expand(call: OpCall) -> Traced:
    """Record that dims of 1 are repeated; a value per channel is spread over axes that it lacks."""
    x, meta = call.inputs[0], call.metas()
    dims = _repeated(call, x, meta)
    if call.tracer.nodes[x.number].has_axes:
        return spread(call, x, dims)
    if len(call.inputs) > 1:
        return spread(call, x, call.tracer.dims(call.inputs[1]))
    image = (None, None, *range(call.tracer.ndim))
    wide = meta.ndim == len(image) and tuple(meta.shape[2:]) != tuple(x.shape[2 - meta.ndim :])
    return spread(call, x, image if wide else dims)


def _repeated(call: OpCall, x: Traced, meta: Tensor) -> Dims:
    """Return the axis along each dim; refuse a repeated axis."""
    more = meta.ndim - x.ndim
    dims = (*(None,) * more, *call.tracer.dims(x))
    for axis, before, after in zip(dims[more:], x.shape, meta.shape[more:], strict=True):
        if axis is not None and before != after:
            raise call.refuse("it repeats the volume along an axis")
    return dims


def repeat(call: OpCall) -> Traced:
    """Record repeated channels."""
    x, meta = call.inputs[0], call.metas()
    dims = _repeated(call, x, meta)
    return call.local(x, dims, lambda tensor, sizes: call.run([tensor]))


def index(call: OpCall) -> Any:
    """Record an index of slices, integers, None and an ellipsis."""
    x, key = call.inputs[0], call.args[1]
    keys = list(key) if isinstance(key, tuple) else [key]
    plain = [k is None or k is ... or type(k) in (int, slice) for k in keys]
    if not all(plain):
        raise call.refuse("it is indexed by a tensor or a list; use slices")
    if Ellipsis in [k for k in keys if not isinstance(k, Tensor)]:
        at = keys.index(...)
        count = sum(k is not None and k is not ... for k in keys)
        keys[at : at + 1] = [slice(None)] * (x.ndim - count)
    slices: dict[int, slice] = {}
    dim, after = 0, list[Any]()
    for k in keys:
        if k is None:
            after.append(None)
            continue
        if isinstance(k, slice):
            slices[dim] = k
            after.append(slice(None))
        else:
            if call.tracer.dims(x)[dim] is not None:
                raise call.refuse("it takes one plane of the volume; use a slice")
            after.append(k)
        dim += 1
    result = cut(call, x, slices)
    if all(k == slice(None) for k in after):
        return result
    return _picked(call, result, after)


def _picked(call: OpCall, x: Traced, after: list[Any]) -> Traced:
    """Record the integers and new dims of an index, after its slices."""
    dims: list[int | None] = []
    left = list(call.tracer.dims(x))
    for k in after:
        if k is None:
            dims.append(None)
            continue
        axis = left.pop(0)
        if isinstance(k, slice):
            dims.append(axis)
    key = tuple(after)
    return call.local(x, (*dims, *left), lambda tensor, sizes: tensor[key], x.meta[key])


LAYOUTS: dict[str, Callable[[OpCall], Any]] = {
    **dict.fromkeys(
        ("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"), permute
    ),
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"), reshape),
    "expand": expand,
    "expand_as": expand,
    "broadcast_to": expand,
    "repeat": repeat,
    "tile": repeat,
    "__getitem__": index,
}
