"""Computation of each kind of op on a box, with padding only at the true border.

A kernel is given exactly the windows that its `AxisMap` reads, and returns exactly the box. The
part of a window beyond the border is padded here, as the op itself pads the whole array.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.graph import Window
from volflow.partition.ranges import Gather, Lerp, Slide, Split, Spread
from volflow.partition.rules.convolving import Edges, convolve, precision_of, unread
from volflow.partition.rules.onednn import Form

__all__ = [
    "AveragePool",
    "Convolution",
    "Interpolation",
    "Local",
    "MaxPool",
    "Relocation",
    "Shuffle",
    "Transposed",
]


@dataclass(frozen=True, eq=False)
class Local:
    """A function that is independent of positions: it computes each voxel alone.

    Parameters
    ----------
    function
        Called with the tensors of the windows, and the sizes of the box per axis.
    fresh
        Whether the result shares no memory with anything else.
    over
        If given, does the same with one tensor, which it may overwrite.
    """

    function: Callable[[Sequence[Tensor], tuple[int, ...]], Tensor]
    fresh: bool = False
    over: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the values of the function."""
        return self.function([window.values for window in windows], box.shape)


@dataclass(frozen=True, eq=False)
class Convolution:
    """A convolution of any kernel, stride, padding, dilation and groups."""

    weight: Tensor
    bias: Tensor | None
    axes: tuple[Slide, ...]
    groups: int

    fresh = True

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Convolve the window, zero-padded beyond the border."""
        x = windows[0].values
        if not x.numel():
            return self._of_padding(x, box)
        return convolve(*self._padded(x, box))

    def unread(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the result with its history, for gradients, without computing its values."""
        x = windows[0].values
        if not x.numel():
            return self._of_padding(x, box)
        return unread(*self._padded(x, box), (len(x), len(self.weight), *box.shape))

    def _padded(self, x: Tensor, box: Roi) -> tuple[Tensor, Tensor, Tensor | None, Form]:
        """Return what is convolved; an even overhang is padded on the way, without a copy."""
        overhang = [axis.overhang(*span) for axis, span in zip(self.axes, box, strict=True)]
        even = all(low == high for low, high in overhang)
        form = Form(
            tuple(axis.stride for axis in self.axes),
            tuple(low if even else 0 for low, _ in overhang),
            tuple(axis.dilation for axis in self.axes),
            self.groups,
        )
        return x if even else _padded(x, overhang, 0.0), self.weight, self.bias, form

    def _of_padding(self, x: Tensor, box: Roi) -> Tensor:
        return _constant(self.bias, x, (len(x), len(self.weight), *box.shape))


@dataclass(frozen=True, eq=False)
class Transposed:
    """A transposed convolution of any kernel, stride, padding, dilation and groups.

    Outputs that no input reaches (behind the last window, or between windows narrower than the
    stride) hold the bias.
    """

    weight: Tensor
    bias: Tensor | None
    axes: tuple[Spread, ...]
    groups: int

    fresh = True

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Spread the window, then cut it or fill it up to the box."""
        x = windows[0].values
        if not x.numel():
            return _constant(self.bias, x, self._shape(x, box))
        edges = self._edges(windows[0].box, box)
        covered = all(side <= 0 for edge in edges for side in edge)
        result = convolve(x, self.weight, self.bias if covered else None, self._form)
        result = _padded(result, edges, 0.0)
        if not covered and self.bias is not None:
            result = result + self.bias.to(result.dtype).reshape(1, -1, *(1,) * len(self.axes))
        return result

    def unread(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the result with its history, for gradients, without computing its values."""
        x, shape = windows[0].values, self._shape(windows[0].values, box)
        if not x.numel():
            return _constant(self.bias, x, shape)
        edges = self._edges(windows[0].box, box)
        return unread(x, self.weight, self.bias, self._form, shape, edges)

    @property
    def _form(self) -> Form:
        return Form(
            tuple(axis.stride for axis in self.axes),
            (0,) * len(self.axes),
            tuple(axis.dilation for axis in self.axes),
            self.groups,
            transposed=True,
        )

    def _shape(self, x: Tensor, box: Roi) -> tuple[int, ...]:
        return (len(x), self.weight.shape[1] * self.groups, *box.shape)

    def _edges(self, ranges: Roi, box: Roi) -> Edges:
        """Return by how much the box exceeds what the window spreads over, before and behind."""
        lands = [axis.lands(*span) for axis, span in zip(self.axes, ranges, strict=True)]
        return tuple((a - low, high - b) for (a, b), (low, high) in zip(lands, box, strict=True))


@dataclass(frozen=True, eq=False)
class MaxPool:
    """Maxima over a window, padded with minus infinity beyond the border."""

    axes: tuple[Slide, ...]

    fresh = True

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Pool the padded window."""
        x = windows[0].values
        overhang = [axis.overhang(*span) for axis, span in zip(self.axes, box, strict=True)]
        pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(self.axes) - 1]
        result: Tensor = pool(
            _padded(x, overhang, -math.inf),
            tuple(axis.kernel for axis in self.axes),
            tuple(axis.stride for axis in self.axes),
            0,
            tuple(axis.dilation for axis in self.axes),
        )
        return result


@dataclass(frozen=True, eq=False)
class AveragePool:
    """Means over a window.

    Parameters
    ----------
    axes
        Windows per axis.
    counts
        Per axis, the number of voxels by which each output is divided.
    divisor
        If given, the divisor of all outputs instead.
    """

    axes: tuple[Slide, ...]
    counts: tuple[Tensor, ...]
    divisor: int | None

    fresh = True

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Sum the padded window, and divide by the number of voxels that count."""
        x = windows[0].values
        overhang = [axis.overhang(*span) for axis, span in zip(self.axes, box, strict=True)]
        ndim = len(self.axes)
        kernel = tuple(axis.kernel for axis in self.axes)
        stride = tuple(axis.stride for axis in self.axes)
        padded = _padded(x, overhang, 0.0)
        if ndim == 1:  # which takes no divisor
            sums: Tensor = F.avg_pool1d(padded, kernel, stride) * math.prod(kernel)
        else:
            pool: Any = F.avg_pool2d if ndim == 2 else F.avg_pool3d
            sums = pool(padded, kernel, stride, divisor_override=1)
        if self.divisor is not None:
            return sums / self.divisor
        alike = 1.0
        for axis, (low, high) in enumerate(box):
            counts = self.counts[axis][low:high]
            if bool((counts == counts[0]).all()):
                alike *= float(counts[0])
                continue
            shape = [1] * ndim
            shape[axis] = -1
            sums = sums / _sent(counts.to(sums.dtype), sums).reshape(shape)
        return sums / alike


@dataclass(frozen=True, eq=False)
class Relocation:
    """Voxels copied from elsewhere: crops, pads, flips, rolls, nearest neighbours.

    Parameters
    ----------
    axes
        Per axis, the source of each voxel; None for itself.
    dims
        The dim of the tensor along each axis.
    value
        Value of voxels without a source.
    """

    axes: tuple[Gather | None, ...]
    dims: tuple[int, ...]
    value: float = 0.0

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Gather along one axis after the other."""
        x, start = windows[0].values, windows[0].box.start
        if not x.numel():
            shape = list(x.shape)
            for axis, dim in enumerate(self.dims):
                shape[dim] = box.shape[axis]
            return x.new_full(shape, self.value)
        for axis, gather in enumerate(self.axes):
            if gather is not None:
                low, high = box.start[axis], box.stop[axis]
                positions = torch.from_numpy(gather.positions[low:high])
                x = _gathered(x, self.dims[axis], positions, start[axis], self.value)
        return x


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Linear interpolation between neighbours, along one axis after the other."""

    axes: tuple[Lerp | None, ...]

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Mix the two neighbours of each voxel."""
        x, start = windows[0].values, windows[0].box.start
        for axis, lerp in enumerate(self.axes):
            if lerp is None:
                continue
            part = slice(box.start[axis], box.stop[axis])
            lower, upper = (
                _sent(torch.from_numpy(side[part] - start[axis]), x)
                for side in (lerp.lower, lerp.upper)
            )
            shape = [1] * x.ndim
            shape[2 + axis] = -1
            weight = _sent(torch.from_numpy(lerp.weight[part]).to(x.dtype), x).reshape(shape)
            x = torch.lerp(x.index_select(2 + axis, lower), x.index_select(2 + axis, upper), weight)
        return x


@dataclass(frozen=True, eq=False)
class Shuffle:
    """Pixel shuffle: channels become voxels."""

    axes: tuple[Split, ...]

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Shuffle the window and crop it to the box."""
        factor = self.axes[0].factor
        whole = F.pixel_shuffle(windows[0].values, factor)
        corner = [low * factor for low in windows[0].box.start]
        rows, columns = box.relative_to(corner).slices()
        return whole[..., rows, columns]


def _sent(values: Tensor, x: Tensor) -> Tensor:
    """Return numbers of a kernel on the device of its tensor, without waiting for a GPU."""
    if x.device.type == "cpu":
        return values
    return values.pin_memory().to(x.device, non_blocking=True)


def _padded(x: Tensor, overhang: Sequence[tuple[int, int]], value: float) -> Tensor:
    """Return a tensor with its last dims padded; where the overhang is negative they are cut."""
    if not any(low or high for low, high in overhang):
        return x
    if torch.is_grad_enabled():
        flat = [side for low, high in reversed(overhang) for side in (low, high)]
        return F.pad(x, flat, value=value)
    first = x.ndim - len(overhang)
    for dim, (low, high) in enumerate(overhang, start=first):
        x = x.narrow(dim, max(0, -low), x.shape[dim] - max(0, -low) - max(0, -high))
    overhang = [(max(0, low), max(0, high)) for low, high in overhang]
    if not any(low or high for low, high in overhang):
        return x
    # Torch would fill all of it with the value first.
    shape = [*x.shape[:first]]
    shape += [n + low + high for n, (low, high) in zip(x.shape[first:], overhang, strict=True)]
    last = x.stride(1) == 1
    result = x.new_empty([shape[0], *shape[2:], shape[1]] if last else shape)
    result = inner = result.movedim(-1, 1) if last else result
    for dim, (low, high) in enumerate(overhang, start=first):
        result.narrow(dim, 0, low).fill_(value)
        result.narrow(dim, shape[dim] - high, high).fill_(value)
        inner = inner.narrow(dim, low, x.shape[dim])
    inner.copy_(x)
    return result


def _constant(bias: Tensor | None, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the result of a convolution of zeros."""
    dtype = precision_of(like)
    if bias is None:
        return like.new_zeros(shape, dtype=dtype)
    return bias.to(dtype).reshape(1, -1, *(1,) * (len(shape) - 2)).expand(shape).clone()


def _gathered(x: Tensor, dim: int, positions: Tensor, start: int, value: float) -> Tensor:
    inside = positions >= 0
    local = positions - start
    first, count = int(local[inside][0]) if inside.any() else 0, len(local)
    if bool((local == torch.arange(first, first + count)).all()) and bool(inside.all()):
        return x.narrow(dim, first, count)
    local = torch.where(inside, local, 0)
    x = x.index_select(dim, _sent(local, x))
    if not bool(inside.all()):
        x.index_fill_(dim, _sent(torch.nonzero(~inside).flatten(), x), value)
    return x
