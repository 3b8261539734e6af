"""Values between voxels along one axis: nearest, linear, cubic B-spline, and what smooths before.

Every value of the result is made by the same multiplications and additions in the same order,
wherever the box that holds it begins and ends: any cut gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["GridAxis", "Taps", "resampled"]

Array = npt.NDArray[Any]

# The pole of the cubic B-spline's inverse, and how far the inverse is summed: what is left out is
# below the rounding of the type.
POLE = math.sqrt(3) - 2
REACH = {"f4": 13, "f8": 22}
# A centre that lies by less, in voxels, beyond the outer edge or below the middle of two voxels
# lies there: files round affines.
ON_EDGE = 1e-4
# Lines along the axis are worked on a few at a time, so that they stay in the cache.
PIECE_BYTES = 2**18


@dataclass(frozen=True)
class GridAxis:
    """Where the voxels of a target lie along one axis of a source.

    Parameters
    ----------
    source, target
        Voxels along the axis.
    step, offset
        The centre of target voxel ``j`` lies at ``offset + j * step``, counted in source voxels
        from the centre of the first; ``step`` is positive.

    Examples
    --------
    >>> GridAxis.spaced(10, 2.0).target, GridAxis.spaced(10, 2.0).offset
    (5, 0.5)
    >>> GridAxis.spaced(10, 2.0).inverse
    GridAxis(source=5, target=10, step=0.5, offset=-0.25)
    """

    source: int
    target: int
    step: float
    offset: float

    @classmethod
    def spaced(cls, source: int, step: float) -> GridAxis:
        """Return the map to voxels ``step`` times as long that cover the same field of view.

        The outer edges meet at the low side: the first centre moves by half the difference.
        """
        return cls(source, max(1, round(source / step)), step, (step - 1) / 2)

    @property
    def inverse(self) -> GridAxis:
        """Return the map back: where the voxels of the source lie in the target."""
        return GridAxis(self.target, self.source, 1 / self.step, -self.offset / self.step)

    @property
    def flipped(self) -> GridAxis:
        """Return the same map with both grids counted from their other ends."""
        last = self.offset + (self.target - 1) * self.step
        return GridAxis(self.source, self.target, self.step, self.source - 1 - last)

    @property
    def is_shift(self) -> bool:
        """Whether each target voxel is a source voxel, so that nothing is interpolated."""
        return self.step == 1 and float(self.offset).is_integer()

    def at(self, low: int, high: int) -> npt.NDArray[np.float64]:
        """Return where target voxels ``[low, high)`` lie, in source voxels."""
        return np.asarray(self.offset + np.arange(low, high, dtype=np.float64) * self.step)

    def inside(self, low: int, high: int) -> tuple[int, int]:
        """Return which of the target voxels ``[low, high)`` lie within the source's outer edges."""
        x = self.at(low, high)
        kept = np.flatnonzero((x >= -0.5 - ON_EDGE) & (x <= self.source - 0.5 + ON_EDGE))
        return (low + int(kept[0]), low + int(kept[-1]) + 1) if len(kept) else (low, low)


@dataclass(frozen=True)
class Taps:
    """How the values along one axis are interpolated.

    Parameters
    ----------
    axis
        Where the target's voxels lie.
    order
        0: the nearest voxel, of two the upper one in the target's direction; 1: linear; 3: the
        cubic B-spline through all voxels [1]_. Beyond the outermost centres the value is that at
        the outermost centre; the spline takes the volume as mirrored there.
    antialias
        Whether a Gaussian of sigma ``(step - 1) / 2`` smooths before voxels become larger, cut off
        at four sigma, as `skimage.transform.resize`; voxels longer than the volume count as long as
        it.
    dtype
        ``"f4"`` or ``"f8"``: in which the values are computed.

    References
    ----------
    .. [1] M. Unser, "Splines: a perfect fit for signal and image processing", IEEE Signal
       Processing Magazine 16(6), 1999.
    """

    axis: GridAxis
    order: int
    antialias: bool = False
    dtype: str = "f4"

    @property
    def filters(self) -> tuple[tuple[float, ...], ...]:
        """The halves of the symmetric filters that go before, from the middle outwards."""
        found = []
        sigma = (min(self.axis.step, self.axis.source) - 1) / 2
        if self.antialias and sigma > 0:
            bell = np.exp(-0.5 * (np.arange(int(4 * sigma + 0.5) + 1) / sigma) ** 2)
            bell /= bell[0] + 2 * bell[1:].sum()
            found.append(tuple(bell.tolist()))
        if self.order == 3 and not self.axis.is_shift and self.axis.source > 1:
            powers = POLE ** np.arange(REACH[self.dtype] + 1)
            found.append(tuple((math.sqrt(3) * powers).tolist()))
        return tuple(found)

    @property
    def reach(self) -> int:
        """Voxels beyond those next to a point on which its value depends, through the filters."""
        return sum(len(half) - 1 for half in self.filters)

    @property
    def is_plain(self) -> bool:
        """Whether the values are voxels of the source as they are."""
        return not self.filters and (self.order == 0 or self.axis.is_shift)

    def range(self, low: int, high: int) -> tuple[int, int]:
        """Return which source voxels the target voxels ``[low, high)`` are made of."""
        if high <= low:
            return 0, 0
        n = self.axis.source
        first, last = self._near(low, high)
        return max(0, first - self.reach), min(n, last + 1 + self.reach)

    def _near(self, low: int, high: int) -> tuple[int, int]:
        """The outermost source voxels that are weighted, mirrored into the volume."""
        indices, _ = self.weighted(low, high)
        return int(indices.min()), int(indices.max())

    def weighted(self, low: int, high: int) -> tuple[npt.NDArray[np.int64], Array]:
        """Return which source voxels make target voxels ``[low, high)``, and their weights.

        Returns
        -------
        indices
            Inside the source, of shape ``(taps, high - low)``.
        weights
            Of the same shape, float64.
        """
        n = self.axis.source
        x = np.clip(self.axis.at(low, high), 0, n - 1)
        if self.order == 0 or self.axis.is_shift or n == 1:
            nearest = np.minimum(np.floor(x + 0.5 + ON_EDGE), n - 1).astype(np.int64)
            return nearest[None], np.ones((1, len(x)))
        floor = np.floor(x)
        part, first = x - floor, floor.astype(np.int64)
        if self.order == 1:
            indices = np.stack([first, np.minimum(first + 1, n - 1)])
            return indices, np.stack([1 - part, part])
        rest = 1 - part
        cubes = (
            rest**3 / 6,
            (4 - 3 * part**2 * (2 - part)) / 6,
            (4 - 3 * rest**2 * (2 - rest)) / 6,
            part**3 / 6,
        )
        indices = _mirrored(first + np.arange(-1, 3)[:, None], n)
        return indices, np.stack(cubes)


def resampled(voxels: Array, axis: int, taps: Taps, low: int, high: int) -> Array:
    """Return the values at target voxels ``[low, high)`` along one axis of an array.

    Parameters
    ----------
    voxels
        Along ``axis`` the source voxels ``taps.range(low, high)``.
    axis
        Not negative.
    taps, low, high
        How, and which voxels of the target.

    Returns
    -------
    ndarray
        Of ``taps.dtype``; where ``taps.is_plain``, of the dtype of ``voxels``.

    Examples
    --------
    >>> line = np.array([[0.0, 10.0, 20.0, 30.0]])
    >>> linear = Taps(GridAxis.spaced(4, 0.5), 1, dtype="f8")
    >>> resampled(line, 1, linear, 0, 8).tolist()
    [[0.0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30.0]]
    """
    first, _ = taps.range(low, high)
    indices, weights = taps.weighted(low, high)
    if taps.is_plain:
        plain: Array = np.take(voxels, indices[0] - first, axis=axis)
        return plain
    shape = (*voxels.shape[:axis], high - low, *voxels.shape[axis + 1 :])
    result = np.empty(shape, taps.dtype)
    weights = weights.astype(taps.dtype)

    def kernel(lines: Array, out: Array) -> None:
        start = first
        for half in taps.filters:
            lines, start = _smoothed(lines, start, taps, half)
        _summed(lines, indices - start, weights, out)

    _by_lines(voxels, axis, result, kernel)
    return result


def _smoothed(lines: Array, start: int, taps: Taps, half: tuple[float, ...]) -> tuple[Array, int]:
    """Apply a symmetric filter to lines that begin at a source voxel, mirrored at its borders.

    Returns what can be computed of the lines, and where it begins: less by the radius, but where
    they end at a border.
    """
    radius, n = len(half) - 1, taps.axis.source
    stop = start + len(lines)
    begin = 0 if start == 0 else start + radius
    end = n if stop == n else stop - radius
    wide = np.take(lines, _mirrored(np.arange(begin - radius, end + radius), n) - start, axis=0)
    size = end - begin
    weights = np.asarray(half, taps.dtype)
    result = wide[radius : radius + size] * weights[0]
    pair = np.empty_like(result)
    for k in range(1, radius + 1):
        np.add(wide[radius - k : radius - k + size], wide[radius + k : radius + k + size], out=pair)
        pair *= weights[k]
        result += pair
    return result, begin


def _summed(lines: Array, indices: npt.NDArray[np.int64], weights: Array, out: Array) -> None:
    """Fill ``out`` with the weighted sums of lines."""
    np.multiply(np.take(lines, indices[0], axis=0), weights[0][:, None], out=out)
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        part = np.take(lines, index, axis=0)
        part *= weight[:, None]
        out += part


def _by_lines(
    voxels: Array, axis: int, result: Array, kernel: Callable[[Array, Array], None]
) -> None:
    """Apply a kernel to all lines along an axis, some at a time, the axis in front."""
    n, m = voxels.shape[axis], result.shape[axis]
    inner = math.prod(voxels.shape[axis + 1 :])
    flat = voxels.reshape(-1, n, inner), result.reshape(-1, m, inner)
    if inner == 1:  # the last axis: lines lie in rows
        flat = (flat[0][:, :, 0].T[None], flat[1][:, :, 0].T[None])
    source, target = flat
    count = max(1, PIECE_BYTES // (max(n, m) * result.itemsize))
    out = np.empty((m, min(count, source.shape[2])), result.dtype)
    for outer in range(source.shape[0]):
        for begin in range(0, source.shape[2], count):
            lines = np.ascontiguousarray(source[outer, :, begin : begin + count], result.dtype)
            piece = out[:, : lines.shape[1]]
            kernel(lines, piece)
            target[outer, :, begin : begin + count] = piece


def _mirrored(indices: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Indices beyond an axis of ``n`` voxels, mirrored at the centres of its outermost ones."""
    if n == 1:
        return np.zeros_like(indices)
    period = 2 * (n - 1)
    turned = np.mod(indices, period)
    return np.asarray(np.minimum(turned, period - turned))
