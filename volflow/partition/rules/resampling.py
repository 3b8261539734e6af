"""Rules of ops that move voxels: padding, cropping, flips, interpolation, pixel shuffle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from volflow.partition.ranges import AxisMap, Gather, Lerp, Merge, Same, Split, Whole
from volflow.partition.rules.kernels import Interpolation, Local, Relocation, Shuffle
from volflow.partition.rules.tracing import OpCall, Traced
from volflow.partition.rules.windowed import WINDOWED

__all__ = ["INTERPOLATE", "RESAMPLING"]

INTERPOLATE = (
    "input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias",
)  # fmt: skip

Positions = npt.NDArray[np.int64]
NO_SCALES: Mapping[int, Fraction] = {}


def copied(
    call: OpCall,
    x: Traced,
    positions: dict[int, Positions],
    value: float = 0.0,
    scales: Mapping[int, Fraction] = NO_SCALES,
) -> Traced:
    """Record that voxels are copied from other positions.

    Parameters
    ----------
    call, x
        The call, and the tensor.
    positions
        By dim of the tensor, along which an axis must lie: the source of each voxel.
    value
        Value of voxels whose source is -1.
    scales
        By dim, input voxels per output voxel if not 1.
    """
    dims = call.tracer.dims(x)
    gathers = {dims[d]: Gather(where, scales.get(d, Fraction(1))) for d, where in positions.items()}
    axes = [gathers.get(axis) for axis in range(call.tracer.ndim)]
    shape = [len(positions[d]) if d in positions else n for d, n in enumerate(x.shape)]
    reads: list[AxisMap] = [
        gather or (Same() if axis in dims else Whole(1)) for axis, gather in enumerate(axes)
    ]
    places = tuple(dims.index(axis) if axis in dims else 0 for axis in range(call.tracer.ndim))
    meta = torch.empty(shape, dtype=x.dtype, device="meta")
    return call.tracer.add(call, [x], [reads], Relocation(tuple(axes), places, value), meta, dims)


def pad(call: OpCall) -> Traced:
    """Record a padding (or, where negative, a cropping) in any mode."""
    x, given = call.inputs[0], call.named(("input", "pad", "mode", "value"))
    mode, value = given.get("mode") or "constant", given.get("value") or 0.0
    dims, sides = call.tracer.dims(x), [int(n) for n in given["pad"]]
    positions: dict[int, Positions] = {}
    free = [0] * len(sides)
    for n in range(0, len(sides), 2):
        low, high = sides[n : n + 2]
        dim = x.ndim - 1 - n // 2
        if not (low or high):
            continue
        if dims[dim] is None:
            free[n : n + 2] = low, high
            continue
        positions[dim] = _padded(int(x.shape[dim]), low, high, mode)
    result = x
    if any(free):
        if mode != "constant":
            raise call.refuse(f"it pads channels in mode {mode!r}")

        def padded(tensor: Tensor, sizes: tuple[int, ...] = ()) -> Tensor:
            return F.pad(tensor, free, value=value)

        result = call.local(x, dims, padded, padded(x.meta))
    return copied(call, result, positions, value) if positions else result


def _padded(size: int, low: int, high: int, mode: str) -> Positions:
    """Return the source of each voxel along one axis, found by calling torch itself."""
    line = torch.arange(size, dtype=torch.float64).reshape(1, 1, -1)
    padded = F.pad(line, (low, high), mode, -1.0 if mode == "constant" else None)
    return padded.flatten().numpy().astype(np.int64)


def flip(call: OpCall) -> Traced:
    """Record a flip."""
    x = call.inputs[0]
    rest = call.args[1:] or (call.kwargs["dims"],)
    listed = rest[0] if len(rest) == 1 and not isinstance(rest[0], int) else rest
    over = [d % x.ndim for d in listed]
    if any(call.tracer.dims(x)[d] is None for d in over):
        raise call.refuse("it flips channels")
    return copied(call, x, {d: np.arange(x.shape[d], dtype=np.int64)[::-1].copy() for d in over})


def roll(call: OpCall) -> Traced:
    """Record a roll: voxels that leave at one border enter at the other."""
    x, given = call.inputs[0], call.named(("input", "shifts", "dims"))
    shifts, over = given["shifts"], given.get("dims", ())
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    over = [over] if isinstance(over, int) else list(over)
    if not over or any(call.tracer.dims(x)[d % x.ndim] is None for d in over):
        raise call.refuse("it rolls along a dim that is not an axis of the volume")
    positions: dict[int, Positions] = {}
    for d, shift in zip((d % x.ndim for d in over), shifts, strict=True):
        before = positions.get(d, np.arange(x.shape[d], dtype=np.int64))
        positions[d] = np.roll(before, shift)
    return copied(call, x, positions)


def narrow(call: OpCall) -> Traced:
    """Record a narrowing along channels or an axis."""
    given = call.named(("input", "dim", "start", "length"))
    x, dim = call.inputs[0], given["dim"] % call.inputs[0].ndim
    start = given["start"] % x.shape[dim] if given["start"] < 0 else given["start"]
    return cut(call, x, {dim: slice(start, start + given["length"])})


def cut(call: OpCall, x: Traced, slices: dict[int, slice]) -> Traced:
    """Record slices along some dims: of channels directly, of axes as copied voxels."""
    dims = call.tracer.dims(x)
    axes = {
        d: np.arange(x.shape[d], dtype=np.int64)[part]
        for d, part in slices.items()
        if dims[d] is not None and len(range(*part.indices(x.shape[d]))) != x.shape[d]
    }
    free = {d: part for d, part in slices.items() if dims[d] is None}
    if free:
        index = tuple(free.get(d, slice(None)) for d in range(x.ndim))
        x = call.local(x, dims, lambda tensor, sizes: tensor[index], x.meta[index])
    if any(not len(where) for where in axes.values()):
        raise call.refuse("it cuts away the whole volume")
    scales = {d: Fraction(abs(slices[d].step or 1)) for d in axes}
    return copied(call, x, axes, scales=scales) if axes else x


def spread(call: OpCall, x: Traced, dims: Sequence[int | None]) -> Traced:
    """Record that a value per channel is repeated over the volume.

    Parameters
    ----------
    call, x
        The call, and the tensor.
    dims
        The axis along each dim of the result.
    """
    meta, ndim = call.metas(), call.tracer.ndim
    shape, found = tuple(meta.shape), dict(zip(dims, meta.shape, strict=True))

    def values(tensors: Sequence[Tensor], sizes: tuple[int, ...]) -> Tensor:
        box = [n if a is None else sizes[a] for n, a in zip(shape, dims, strict=True)]
        return tensors[0].expand(box)

    reads = [call.tracer.straight(x, [found.get(axis, 1) for axis in range(ndim)])]
    return call.tracer.add(call, [x], reads, Local(values), meta, dims)


def interpolate(call: OpCall) -> Traced:
    """Record an interpolation: nearest, nearest-exact, area, or linear with either corner mode."""
    x, given = call.inputs[0], call.named(INTERPOLATE)
    mode, meta = given.get("mode", "nearest"), call.metas()
    dims, ndim = call.tracer.dims(x), call.tracer.ndim
    if x.ndim == ndim + 2 and set(dims) == {None} and set(x.shape[2:]) == {1}:
        return spread(call, x, (None, None, *range(ndim)))
    if mode == "area":
        given = {"input": x, "output_size": tuple(meta.shape[2:])}
        same = OpCall(call.tracer, "interpolate", F.interpolate, (x,), given)
        same.result = meta
        return WINDOWED[f"adaptive_avg_pool{ndim}d"](same)  # type: ignore[no-any-return]
    if given.get("antialias") or mode in ("bicubic", "lanczos"):
        raise call.refuse(f"mode {mode!r} is not among nearest, linear and area")
    if dims != (None, None, *range(ndim)):
        raise call.refuse(f"it is given a tensor of shape {tuple(x.shape)} that is not an image")
    scales = _scales(given, ndim)
    if mode.startswith("nearest"):
        positions = {
            2 + axis: _nearest(call, 2 + axis, meta.shape[2 + axis], scale, mode)
            for axis, scale in enumerate(scales)
            if x.shape[2 + axis] != meta.shape[2 + axis] or scale not in (None, 1.0)
        }
        steps = {d: Fraction(x.shape[d], meta.shape[d]) for d in positions}
        return copied(call, x, positions, scales=steps) if positions else x
    lerps = [
        _lerp(n, m, scale, bool(given.get("align_corners")), meta.dtype)
        for n, m, scale in zip(x.shape[2:], meta.shape[2:], scales, strict=True)
    ]
    reads: list[AxisMap] = [lerp or Same() for lerp in lerps]
    return call.tracer.add(call, [x], [reads], Interpolation(tuple(lerps)), meta, dims)


def _scales(given: dict[str, Any], ndim: int) -> Sequence[float | None]:
    """Return torch's scale factors: those given, unless it recomputes them."""
    factor = given.get("scale_factor")
    if factor is None or given.get("recompute_scale_factor"):
        return (None,) * ndim
    return (float(factor),) * ndim if not isinstance(factor, tuple | list) else tuple(factor)


def _nearest(call: OpCall, dim: int, outputs: int, scale: float | None, mode: str) -> Positions:
    """Return the source of each voxel, found by calling torch itself on a line along one dim.

    Its rounding depends on the tensor's precision, the number of axes and the device.
    """
    x = call.inputs[0]
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    shape = [x.shape[d] if d == dim else 1 for d in range(x.ndim)]
    line = torch.arange(x.shape[dim], dtype=real, device=call.tracer.device).reshape(shape)
    if scale is None:
        size = [outputs if d == dim else 1 for d in range(2, x.ndim)]
        found = F.interpolate(line, size=size, mode=mode)
    else:
        factor = [scale if d == dim else 1.0 for d in range(2, x.ndim)]
        found = F.interpolate(line, scale_factor=factor, mode=mode)
    return found.flatten().cpu().numpy().astype(np.int64)


def _lerp(
    size: int, outputs: int, scale: float | None, align: bool, dtype: torch.dtype
) -> Lerp | None:
    """Return the two neighbours of each output voxel, in the tensor's precision like torch.

    With aligned corners output o lies at ``o · (n − 1) / (m − 1)``, else at
    ``(o + ½) · n / m − ½``, not below 0.
    """
    if size == outputs:  # torch copies for any factor
        return None
    real: Any = np.float64 if dtype == torch.float64 else np.float32
    places = np.arange(outputs, dtype=real)
    if align:
        step = real(size - 1) / real(outputs - 1) if outputs > 1 else real(0)
        places = places * step
    else:
        step = real(1.0 / scale) if scale else real(size) / real(outputs)
        places = np.maximum((places + real(0.5)) * step - real(0.5), real(0))
    lower = np.minimum(places.astype(np.int64), size - 1)
    upper = np.minimum(lower + 1, size - 1)
    weight = np.clip(places - lower.astype(real), real(0), real(1))
    return Lerp(lower, upper, weight)


def pixel_shuffle(call: OpCall) -> Traced:
    """Record a pixel shuffle or its inverse."""
    x = call.inputs[0]
    ndim, factor = call.tracer.ndim, int([*call.args, *call.kwargs.values()][1])
    if call.tracer.dims(x) != (None, None, *range(ndim)) or ndim != 2:
        raise call.refuse(f"it is given a tensor of shape {tuple(x.shape)} that is not a plane")
    dims, meta = call.tracer.dims(x), call.metas()
    if call.name == "pixel_shuffle":
        splits = (Split(factor),) * ndim
        return call.tracer.add(call, [x], [splits], Shuffle(splits), meta, dims)
    merges = (Merge(factor),) * ndim
    compute = Local(lambda tensors, sizes: F.pixel_unshuffle(tensors[0], factor))
    return call.tracer.add(call, [x], [merges], compute, meta, dims)


RESAMPLING: dict[str, Callable[[OpCall], Any]] = {
    "pad": pad,
    "flip": flip,
    "roll": roll,
    "narrow": narrow,
    "interpolate": interpolate,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_shuffle,
}
