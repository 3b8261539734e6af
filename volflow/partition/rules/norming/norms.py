"""Rules of norms and of reductions: over channels alone, or over the whole volume.

An op that needs the whole volume becomes two nodes: a statistic, measured by blocks and merged, and
the voxelwise computation that uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volflow.partition.extremes import Extreme, Ties, shared_extreme
from volflow.partition.ranges import Whole
from volflow.partition.reductions import MeanVariance
from volflow.partition.rules.elementwise import pointwise
from volflow.partition.rules.kernels import Local
from volflow.partition.rules.norming.normalized import normalized, normalized_over
from volflow.partition.rules.norming.running import RunningMoments
from volflow.partition.rules.tracing import OpCall, Traced, leaves

__all__ = ["NORMS", "mean_over", "reduced_dims", "updates_buffers"]

_BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_INSTANCE = (
    "input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps",
)  # fmt: skip


@dataclass(frozen=True)
class Pick:
    """Which voxel is meant by an extreme: the largest or the smallest, and of equal ones which."""

    largest: bool
    ties: Ties


def _statistic(call: OpCall, x: Traced, pick: Pick | None = None) -> Traced:
    """Record a statistic of a whole tensor: its moments, or its largest or smallest value."""
    dims = call.tracer.dims(x)
    kept = tuple(n for n, axis in zip(x.shape, dims, strict=True) if axis is None)
    compute: Any = MeanVariance(dims, kept)
    if pick is not None:
        compute = Extreme(dims, kept, pick.largest, pick.ties, call.tracer.sizes(x))
    shape = (2, *kept) if pick is None or pick.ties else kept
    reads = [Whole(n) for n in call.tracer.sizes(x)]
    meta = torch.empty(shape, dtype=torch.float64, device="meta")
    none = (None,) * len(shape)
    return call.tracer.add(call, [x], [reads], compute, meta, none, statistic=True)


def _apply(
    call: OpCall, x: Traced, moments: Traced, function: Callable[[Tensor, Tensor], Tensor]
) -> Traced:
    """Record the voxelwise computation that uses a statistic, in the call's dtype."""
    reads = [call.tracer.straight(y, call.tracer.sizes(x)) for y in (x, moments)]
    compute = Local(lambda tensors, sizes: function(tensors[0], tensors[1]), fresh=True)
    return call.tracer.add(call, [x, moments], reads, compute, call.metas(), call.tracer.dims(x))


def _image(call: OpCall) -> Traced:
    """Return the input, which must be ``(N, C, *axes)``."""
    x = call.inputs[0]
    dims = call.tracer.dims(x)
    if len(dims) < 3 or dims[:2] != (None, None) or None in dims[2:]:
        raise call.refuse(f"it is given a tensor of shape {tuple(x.shape)} that is not an image")
    if len(call.inputs) > 1:
        raise call.refuse("its weights depend on the image")
    return x


def instance_norm(call: OpCall) -> Traced:
    """Record an instance norm: statistics of each whole volume, or running ones."""
    given = call.named(_INSTANCE)
    if not given.get("use_input_stats", True):
        return _with_running(call, given)
    if given.get("running_mean") is not None:
        raise call.refuse("it updates its running statistics in training mode; call model.eval()")
    x = _image(call)
    weight, bias, eps = _affine(given)

    def normed(x: Tensor, moments: Tensor) -> Tensor:
        return normalized(x, moments[0], moments[1], weight, bias, eps)

    return _apply(call, x, _statistic(call, x), normed)


def batch_norm(call: OpCall) -> Traced:
    """Record a batch norm: running statistics, or those of the whole volumes of the batch."""
    given = call.named(_BATCH)
    if not given.get("training", False):
        return _with_running(call, given)
    tracer, mean, var = call.tracer, given.get("running_mean"), given.get("running_var")
    updated = mean is not None or var is not None
    if updated and not tracer.training:
        raise call.refuse("it updates its running statistics in training mode; call model.eval()")
    x = _image(call)
    weight, bias, eps = _affine(given)

    def normed(x: Tensor, moments: Tensor) -> Tensor:
        return normalized(x, *_grouped(moments, [0]), weight, bias, eps)

    moments = _statistic(call, x)
    if updated:
        momentum = float(given.get("momentum", 0.1))
        tracer.updates.append(RunningMoments(moments.number, mean, var, momentum))
    return _apply(call, x, moments, normed)


def updates_buffers(call: OpCall) -> bool:
    """Return True if a call is of a norm that changes its running statistics."""
    names, mode = {
        "batch_norm": (_BATCH, False), "instance_norm": (_INSTANCE, True),
    }.get(call.name, ((), False))  # fmt: skip
    given = call.named(names)
    measured = given.get("training", given.get("use_input_stats", mode))
    return bool(names and measured) and given.get("running_mean") is not None


def _affine(given: dict[str, Any]) -> tuple[Any, Any, float]:
    """Return weight, bias and what is added to the variance."""
    return given.get("weight"), given.get("bias"), float(given.get("eps", 1e-5))


def _with_running(call: OpCall, given: dict[str, Any]) -> Traced:
    x = _image(call)
    mean, var = given["running_mean"], given["running_var"]
    weight, bias, eps = _affine(given)

    training = call.tracer.training

    def normed(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        if training:
            return normalized(x, mean, var, weight, bias, eps)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    def over(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return normalized_over(x, mean, var, weight, bias, eps)

    return call.local(x, call.tracer.dims(x), normed, over=over)


def group_norm(call: OpCall) -> Traced:
    """Record a group norm: the moments of channels merge to those of their groups."""
    x, given = _image(call), call.named(("input", "num_groups", "weight", "bias", "eps"))
    weight, bias, eps = _affine(given)
    number, channels = x.shape[:2]
    groups = int(given["num_groups"])

    def normed(x: Tensor, moments: Tensor) -> Tensor:
        means, variances = moments.reshape(2, number * groups, channels // groups)
        mean = means.mean(1, keepdim=True)
        var = variances.mean(1, keepdim=True) + (means - mean).square().mean(1, keepdim=True)
        mean, var = (
            v.expand(-1, channels // groups).reshape(number, channels) for v in (mean, var)
        )
        return normalized(x, mean, var, weight, bias, eps)

    return _apply(call, x, _statistic(call, x), normed)


def layer_norm(call: OpCall) -> Any:
    """Record a layer norm over dims without an axis, such as channels that come last."""
    x = call.inputs[0]
    shape = call.named(("input", "normalized_shape"))["normalized_shape"]
    count = 1 if isinstance(shape, int) else len(shape)
    if any(axis is not None for axis in call.tracer.dims(x)[-count:]):
        raise call.refuse("it has a weight for every voxel of the volume, or none per channel")
    return call.as_is()


def reduced_dims(x: Tensor, dim: Any) -> list[int]:
    """Return the dims of a reduction, counted from the front; all if ``dim`` is None."""
    if dim is None or dim == [] or dim == ():
        return list(range(x.ndim))
    listed = [dim] if isinstance(dim, int) else list(dim)
    return [d % x.ndim for d in listed]


def mean_over(call: OpCall, x: Traced, over: Sequence[int], *, largest: bool = False) -> Traced:
    """Record a mean (or maximum) over some dims, among them all axes of the volume."""
    if largest:
        return _extreme(call, x, over, Pick(True, "first" if call.tracer.training else ""))
    return _moment(call, x, over, lambda m, dims: _grouped(m, dims)[0])


def _moment(
    call: OpCall,
    x: Traced,
    over: Sequence[int],
    finish: Callable[[Tensor, list[int]], Tensor],
) -> Traced:
    """Record a reduction of moments over all axes and possibly other dims.

    ``finish`` reduces the moments of the whole volume over the remaining dims.
    """
    also = _also(call, x, over)
    return _reduced(call, _statistic(call, x), lambda moments: finish(moments, also))


def _extreme(call: OpCall, x: Traced, over: Sequence[int], pick: Pick) -> Traced:
    """Record a maximum or minimum over all axes and possibly other dims."""
    also = _also(call, x, over)

    def finish(found: Tensor) -> Tensor:
        if pick.ties:
            return shared_extreme(found, also, pick.largest) if also else found[0]
        if not also:
            return found
        return found.amax(also) if pick.largest else found.amin(also)

    return _reduced(call, _statistic(call, x, pick), finish)


def _also(call: OpCall, x: Traced, over: Sequence[int]) -> list[int]:
    """Return which dims of a statistic are reduced, too; refuse to keep an axis."""
    dims = call.tracer.dims(x)
    if any(axis is not None and d not in over for d, axis in enumerate(dims)):
        raise call.refuse("it reduces some axes of the volume and keeps others")
    kept = [d for d, axis in enumerate(dims) if axis is None]
    return [n for n, d in enumerate(kept) if d in over]


def _reduced(call: OpCall, statistic: Traced, finish: Callable[[Tensor], Tensor]) -> Traced:
    """Record the use of a statistic as the result of a reduction."""
    meta: Tensor = call.metas()
    shape = tuple(meta.shape)

    def values(tensors: Sequence[Tensor], sizes: tuple[int, ...]) -> Tensor:
        found = finish(tensors[0])
        if not meta.dtype.is_floating_point:  # a count, perhaps
            found = found.round()
        return found.reshape(shape).to(meta.dtype)

    reads = [call.tracer.straight(statistic, (1,) * call.tracer.ndim)]
    return call.tracer.add(call, [statistic], reads, Local(values), meta, (None,) * len(shape))


def _grouped(moments: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over channel dims, which have equally many voxels."""
    if not dims:
        return moments[0], moments[1]
    mean = moments[0].mean(dims, keepdim=True)
    var = moments[1].mean(dims, keepdim=True) + (moments[0] - mean).square().mean(
        dims, keepdim=True
    )
    return mean.mean(dims), var.mean(dims)


def _root(var: Tensor) -> Tensor:
    """Return a deviation, whose gradient is 0 where it is 0, as torch has it."""
    plain = var.detach() ** 0.5
    return torch.where(var > 0, torch.where(var > 0, var, 1.0) ** 0.5, plain)


def reduction(call: OpCall) -> Any:
    """Record a reduction: over channels unchanged, over the volume as a statistic."""
    x = call.inputs[0]
    given = call.named(("input", "dim"))
    if sum(isinstance(one, Tensor) for one in leaves((call.args, call.kwargs))) > 1:  # max(x, y)
        return pointwise(call)
    if call.name in ("var", "std"):
        given = _spread_named(call)
    dim = given.get("dim", given.get("axis"))
    over = reduced_dims(x, dim)
    if not any(call.tracer.dims(x)[d] is not None for d in over):
        return _over_channels(call, x, over)
    return _over_volume(call, x, over, given)


def _spread_named(call: OpCall) -> dict[str, Any]:
    """Return the arguments of a variance, whose second may be ``dim`` or ``unbiased``."""
    alone = len(call.args) > 1 and isinstance(call.args[1], bool)
    given = call.named(("input", "unbiased") if alone else ("input", "dim", "unbiased"))
    if "correction" not in given or given["correction"] is None:
        given["correction"] = int(given.get("unbiased", True))
    return given


def _over_volume(call: OpCall, x: Traced, over: list[int], given: dict[str, Any]) -> Traced:
    if not isinstance(call.metas(), Tensor):
        raise call.refuse("it returns positions in the whole volume; use amax or amin")
    count = math.prod(x.shape[d] for d in over)
    if call.name in ("mean", "sum"):
        times = count if call.name == "sum" else 1
        return _moment(call, x, over, lambda m, dims: _grouped(m, dims)[0] * times)
    if call.name in ("amax", "max", "amin", "min"):
        largest = call.name in ("amax", "max")
        return _extreme(call, x, over, Pick(largest, "all" if call.tracer.training else ""))
    if call.name in ("var", "std"):
        # torch, too, divides by 0 if there are no more voxels than that
        # A tensor without dims on the CPU works with those of any device.
        factor = count / torch.tensor(max(0.0, count - given["correction"]), dtype=torch.float64)
        root = _root if call.name == "std" else torch.Tensor.clone
        return _moment(call, x, over, lambda m, dims: root(_grouped(m, dims)[1] * factor))
    raise call.refuse("it reduces the whole volume in a way that blocks cannot merge")


def _over_channels(call: OpCall, x: Traced, over: list[int]) -> Any:
    """Record a reduction over dims without an axis."""
    dims, metas = call.tracer.dims(x), call.metas()
    first = metas if isinstance(metas, Tensor) else metas[0]
    if first.ndim == x.ndim:
        return call.as_is(dims)
    return call.as_is(tuple(axis for d, axis in enumerate(dims) if d not in over))


NORMS: dict[str, Callable[[OpCall], Any]] = {
    "instance_norm": instance_norm,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": layer_norm,
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "logsumexp", "argmax", "argmin",
         "prod", "any", "all", "norm", "count_nonzero", "median"),
        reduction,
    ),
}  # fmt: skip
