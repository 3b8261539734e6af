"""Rules of norms and of reductions: over channels alone, or over the whole volume.

An op that needs the whole volume becomes two nodes: a statistic, measured by blocks and merged, and
the voxelwise computation that uses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volflow.partition.ranges import Whole
from volflow.partition.reductions import Extreme, MeanVariance
from volflow.partition.rules.elementwise import pointwise
from volflow.partition.rules.kernels import Local
from volflow.partition.rules.tracing import OpCall, Traced, leaves

__all__ = ["NORMS", "mean_over", "reduced_dims"]

_BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_INSTANCE = (
    "input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps",
)  # fmt: skip


def _statistic(call: OpCall, x: Traced, extreme: bool | None = None) -> Traced:
    """Record a statistic of a whole tensor: its moments, or its largest or smallest value."""
    dims = call.tracer.dims(x)
    kept = tuple(n for n, axis in zip(x.shape, dims, strict=True) if axis is None)
    compute: Any = MeanVariance(dims, kept) if extreme is None else Extreme(dims, kept, extreme)
    shape = (2, *kept) if extreme is None else kept
    reads = [Whole(n) for n in call.tracer.sizes(x)]
    meta = torch.empty(shape, dtype=torch.float64, device="meta")
    none = (None,) * len(shape)
    return call.tracer.add(call, [x], [reads], compute, meta, none, statistic=True)


def _apply(
    call: OpCall, x: Traced, moments: Traced, function: Callable[[Tensor, Tensor], Tensor]
) -> Traced:
    """Record the voxelwise computation that uses a statistic, in the call's dtype."""
    reads = [call.tracer.straight(y, call.tracer.sizes(x)) for y in (x, moments)]
    compute = Local(lambda tensors, sizes: function(tensors[0], tensors[1]))
    return call.tracer.add(call, [x, moments], reads, compute, call.metas(), call.tracer.dims(x))


def _scaled(x: Tensor, mean: Tensor, var: Tensor, weight: Any, bias: Any, eps: float) -> Tensor:
    """Subtract means and divide by deviations per channel, in one pass."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if one is None else one.to(dtype) for one in (weight, bias))
    result: Tensor = F.batch_norm(
        x, mean.to(dtype), var.to(dtype), weight, bias, training=False, eps=eps
    )
    return result


def _channels_first(call: OpCall, x: Traced) -> None:
    dims = call.tracer.dims(x)
    if len(dims) < 3 or dims[:2] != (None, None) or None in dims[2:]:
        raise call.refuse(f"it is given a tensor of shape {tuple(x.shape)} that is not an image")


def _one_image(call: OpCall, x: Traced) -> None:
    _channels_first(call, x)
    if x.shape[0] != 1:
        raise call.refuse(f"it is given {x.shape[0]} images, made of the channels of one")
    if len(call.inputs) > 1:
        raise call.refuse("its weights depend on the image")


def _as_instance(call: OpCall, x: Traced, given: dict[str, Any]) -> Traced:
    _one_image(call, x)
    weight, bias, eps = given.get("weight"), given.get("bias"), float(given.get("eps", 1e-5))

    def normed(x: Tensor, moments: Tensor) -> Tensor:
        return _scaled(x, moments[0, 0], moments[1, 0], weight, bias, eps)

    return _apply(call, x, _statistic(call, x), normed)


def instance_norm(call: OpCall) -> Traced:
    """Record an instance norm: statistics of the whole volume, or running ones."""
    given = call.named(_INSTANCE)
    if not given.get("use_input_stats", True):
        return _with_running(call, given)
    if given.get("running_mean") is not None:
        raise call.refuse("it updates its running statistics in training mode; call model.eval()")
    return _as_instance(call, call.inputs[0], given)


def batch_norm(call: OpCall) -> Traced:
    """Record a batch norm: running statistics, or those of the one volume."""
    given = call.named(_BATCH)
    if not given.get("training", False):
        return _with_running(call, given)
    if given.get("running_mean") is not None:
        raise call.refuse("it updates its running statistics in training mode; call model.eval()")
    return _as_instance(call, call.inputs[0], given)


def _with_running(call: OpCall, given: dict[str, Any]) -> Traced:
    x = call.inputs[0]
    _channels_first(call, x)
    mean, var = given["running_mean"], given["running_var"]
    weight, bias, eps = given.get("weight"), given.get("bias"), float(given.get("eps", 1e-5))

    def normed(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    return call.local(x, call.tracer.dims(x), normed)


def group_norm(call: OpCall) -> Traced:
    """Record a group norm: the moments of channels merge to those of their groups."""
    x = call.inputs[0]
    given = call.named(("input", "num_groups", "weight", "bias", "eps"))
    _one_image(call, x)
    groups, eps = int(given["num_groups"]), float(given.get("eps", 1e-5))
    weight, bias, channels = given.get("weight"), given.get("bias"), x.shape[1]

    def normed(x: Tensor, moments: Tensor) -> Tensor:
        means, variances = moments.reshape(2, groups, channels // groups)
        mean = means.mean(1, keepdim=True)
        var = variances.mean(1, keepdim=True) + (means - mean).square().mean(1, keepdim=True)
        mean, var = (v.expand(-1, channels // groups).reshape(-1) for v in (mean, var))
        return _scaled(x, mean, var, weight, bias, eps)

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
        return _whole(call, x, over, True, torch.amax)
    return _whole(call, x, over, None, lambda m, dims: _grouped(m, dims)[0])


def _whole(
    call: OpCall,
    x: Traced,
    over: Sequence[int],
    extreme: bool | None,
    finish: Callable[[Tensor, list[int]], Tensor],
) -> Traced:
    """Record a reduction over all axes and possibly other dims, as a statistic and its use.

    ``finish`` reduces the result over the remaining dims.
    """
    dims = call.tracer.dims(x)
    missing = [d for d, axis in enumerate(dims) if axis is not None and d not in over]
    if missing:
        raise call.refuse("it reduces some axes of the volume and keeps others")
    kept = [d for d, axis in enumerate(dims) if axis is None]
    also = [n for n, d in enumerate(kept) if d in over]
    meta: Tensor = call.metas()
    shape = tuple(meta.shape)
    statistic = _statistic(call, x, extreme)

    def values(tensors: Sequence[Tensor], sizes: tuple[int, ...]) -> Tensor:
        plain = extreme is not None and not also
        found = tensors[0] if plain else finish(tensors[0], also)
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
        return _whole(call, x, over, None, lambda m, dims: _grouped(m, dims)[0] * times)
    if call.name in ("amax", "max", "amin", "min"):
        largest = call.name in ("amax", "max")
        pick = torch.amax if largest else torch.amin
        return _whole(call, x, over, largest, pick)
    if call.name in ("var", "std"):
        # torch, too, divides by 0 if there are no more voxels than that
        # A tensor without dims on the CPU works with those of any device.
        factor = count / torch.tensor(max(0.0, count - given["correction"]), dtype=torch.float64)
        power = 0.5 if call.name == "std" else 1.0
        return _whole(
            call, x, over, None,
            lambda m, dims: (_grouped(m, dims)[1] * factor) ** power,
        )  # fmt: skip
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
