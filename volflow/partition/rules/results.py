"""Shapes and dtypes of results that torch infers by importing its compiler, which takes seconds.

On the meta device torch runs many ops as Python code that imports ``torch._dynamo``: arithmetic,
activations, norms, reductions, concatenation, interpolation. Their shapes follow from those of
their inputs, and their dtypes from a trial on two voxels per axis.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volflow.partition.rules.elementwise import COMPUTED
from volflow.partition.rules.norming.norms import reduced_dims
from volflow.partition.rules.resampling import INTERPOLATE
from volflow.partition.rules.tracing import OpCall, Traced, leaves, mapped

__all__ = ["result_of"]

TRIAL_VOXELS = 2  # along an axis; one would be refused by norms that take more
_SAME_SHAPE = frozenset(
    ("batch_norm", "group_norm", "instance_norm", "log_softmax", "roll", "softmax")
)
_REDUCTIONS = frozenset(("amax", "amin", "mean", "sum"))


def result_of(call: OpCall) -> Tensor | None:
    """Return the result of a call on the meta device; None if torch must compute it."""
    try:
        if call.name in COMPUTED:
            return _broadcast(call)
        if call.name in _SAME_SHAPE:
            return _like(call, call.inputs[0].meta.shape)
        if call.name in _REDUCTIONS:
            return _reduced(call)
        if call.name in ("cat", "concat", "concatenate"):
            return _joined(call)
        if call.name == "interpolate":
            return _resized(call)
        if call.name.startswith("adaptive_avg_pool"):
            return _pooled(call)
    except Exception:  # torch then reports the error on the meta device
        return None
    return None


def _broadcast(call: OpCall) -> Tensor | None:
    tensors = [x for x in leaves((call.args, call.kwargs)) if isinstance(x, Tensor)]
    shapes = [x.meta.shape if isinstance(x, Traced) else x.shape for x in tensors]
    if call.name == "prelu":  # its weights lie along the channel dim
        del shapes[1:]
    return _like(call, torch.broadcast_shapes(*shapes))


def _like(call: OpCall, shape: torch.Size) -> Tensor | None:
    """Return a result of this shape, in the memory order of the first input that has it."""
    args, kwargs = mapped((call.args, call.kwargs), lambda x: _trial(x, call))
    tried = call.func(*args, **kwargs)
    if not isinstance(tried, Tensor) or tried.ndim != len(shape):
        return None
    same = (x.meta for x in call.inputs if x.meta.shape == shape)
    model = next(same, None)
    if model is None:
        return torch.empty(shape, dtype=tried.dtype, device="meta")
    return torch.empty_like(model, dtype=tried.dtype)


def _trial(x: Tensor, call: OpCall) -> Tensor:
    """Return ones in place of a tensor, as the model's own tensors are never passed to an op."""
    if not isinstance(x, Traced):
        if x.device.type == "meta":
            raise ValueError("a tensor without values is refused by the tracer")
        return torch.ones(x.shape, dtype=x.dtype)
    dims = call.tracer.dims(x)
    sides = [
        n if axis is None else min(n, TRIAL_VOXELS)
        for n, axis in zip(x.meta.shape, dims, strict=True)
    ]
    return torch.ones(sides, dtype=x.meta.dtype)


def _reduced(call: OpCall) -> Tensor | None:
    x = call.inputs[0]
    given = call.named(("input", "dim", "keepdim"))
    over = reduced_dims(x, given.get("dim", given.get("axis")))
    kept = [1 if d in over else n for d, n in enumerate(x.meta.shape)]
    left = [n for d, n in enumerate(x.meta.shape) if d not in over]
    keepdim = given.get("keepdim", given.get("keepdims", False))  # as NumPy spells it
    return _like(call, torch.Size(kept if keepdim else left))


def _joined(call: OpCall) -> Tensor | None:
    given = call.named(("tensors", "dim"))
    shapes = [list(x.meta.shape if isinstance(x, Traced) else x.shape) for x in given["tensors"]]
    dim = given.get("dim", given.get("axis", 0))
    shape = [*shapes[0]]
    shape[dim] = sum(one[dim] for one in shapes)
    return _like(call, torch.Size(shape))


def _pooled(call: OpCall) -> Tensor | None:
    given = call.named(("input", "output_size"))
    before, size = call.inputs[0].meta.shape, given["output_size"]
    ndim = int(call.name[-2])
    sizes = [size] * ndim if isinstance(size, int) else size
    sides = [n if m is None else m for n, m in zip(before[-ndim:], sizes, strict=True)]
    return _like(call, torch.Size([*before[:-ndim], *sides]))


def _resized(call: OpCall) -> Tensor:
    """Return the result of an interpolation, whose shape is independent of the mode."""
    given: dict[str, Any] = call.named(INTERPOLATE)
    names = ("size", "scale_factor", "recompute_scale_factor")
    return F.interpolate(call.inputs[0].meta, **{n: given[n] for n in names if n in given})
