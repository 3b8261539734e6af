"""Blocks with a halo, filled at the border of the array as Dask fills them.

What lies outside is mirrored with the edge (``"reflect"``), wrapped around (``"periodic"``),
repeated (``"nearest"``), a constant, or left away (``"none"``), as in ``dask.array.overlap``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BOUNDARIES", "PaddedAxis", "padded_block"]

BOUNDARIES = ("reflect", "periodic", "nearest", "none")

Read = Callable[[tuple[slice, ...]], npt.NDArray[Any]]


@dataclass(frozen=True)
class PaddedAxis:
    """One axis of an array, cut into blocks that overlap.

    Parameters
    ----------
    sizes
        Voxels per block, without halo.
    low, high
        Voxels of halo before and behind each block; at most the length of the axis.
    boundary
        One of `BOUNDARIES`, or the number that lies outside.

    Examples
    --------
    >>> PaddedAxis((4, 4, 1), 2, 2, "none").halos
    ((0, 2), (2, 1), (2, 0))
    >>> PaddedAxis((4, 4, 1), 2, 2, "nearest").padded
    (8, 8, 5)
    """

    sizes: tuple[int, ...]
    low: int = 0
    high: int = 0
    boundary: Any = "none"

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Where blocks begin, and the length of the axis."""
        return (0, *itertools.accumulate(self.sizes))

    @cached_property
    def halos(self) -> tuple[tuple[int, int], ...]:
        """Voxels that each block has before and behind its own."""
        if self.boundary != "none":
            return ((self.low, self.high),) * len(self.sizes)
        return tuple(
            (min(self.low, a), min(self.high, self.cuts[-1] - b))
            for a, b in itertools.pairwise(self.cuts)
        )

    @property
    def depth(self) -> int | tuple[int, int]:
        """The halo in Dask's spelling."""
        return self.low if self.low == self.high else (self.low, self.high)

    @property
    def padded(self) -> tuple[int, ...]:
        """Voxels per block with its halo."""
        return tuple(n + sum(h) for n, h in zip(self.sizes, self.halos, strict=True))

    def range(self, block: int) -> tuple[int, int]:
        """First and last voxel (exclusive) of a padded block; they may lie outside the array."""
        low, high = self.halos[block]
        return self.cuts[block] - low, self.cuts[block + 1] + high


def padded_block(
    read: Read, axes: Sequence[PaddedAxis], block: Sequence[int], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    """One block with its halo; each voxel is read once.

    Parameters
    ----------
    read
        The array: ``read(slices)`` gives the voxels of a box inside of it.
    axes, block
        How it is cut, and the index of the block.
    dtype
        Of the voxels.

    Examples
    --------
    >>> line = np.arange(6)
    >>> axes = [PaddedAxis((4, 2), 2, 2, "reflect")]
    >>> padded_block(line.__getitem__, axes, [0], line.dtype).tolist()
    [1, 0, 0, 1, 2, 3, 4, 5]
    """
    ranges = [axis.range(index) for axis, index in zip(axes, block, strict=True)]
    if all(a >= 0 and b <= axis.cuts[-1] for axis, (a, b) in zip(axes, ranges, strict=True)):
        return read(tuple(slice(a, b) for a, b in ranges))
    out = np.empty([b - a for a, b in ranges], dtype)
    pieces = [_pieces(axis, *bounds) for axis, bounds in zip(axes, ranges, strict=True)]
    for piece in itertools.product(*pieces):
        place = tuple(slice(at, at + b - a) for at, a, b in piece)
        out[place] = read(tuple(slice(a, b) for _, a, b in piece))
    for number, (axis, (a, b)) in enumerate(zip(axes, ranges, strict=True)):
        low, high = max(0, -a), max(0, b - axis.cuts[-1])
        if axis.boundary != "periodic" and (low or high):
            # A later axis fills its strips over the whole of the earlier ones, corners included.
            _fill(np.moveaxis(out, number, 0), low, high, axis.boundary)
    return out


def _pieces(axis: PaddedAxis, a: int, b: int) -> list[tuple[int, int, int]]:
    """Ranges of the array that a padded block holds: where in the block, from, to."""
    n = axis.cuts[-1]
    inside = (max(0, -a), max(0, a), min(n, b))
    if axis.boundary != "periodic":
        return [inside]
    wrapped = [(0, n + a, n)] if a < 0 else []
    return [*wrapped, inside, *([(n - a, 0, b - n)] if b > n else [])]


def _fill(lines: npt.NDArray[Any], low: int, high: int, boundary: Any) -> None:
    """Fill the first ``low`` and last ``high`` voxels of the first axis."""
    n = len(lines)
    if boundary == "reflect":
        lines[:low] = lines[low : 2 * low][::-1]
        lines[n - high :] = lines[n - 2 * high : n - high][::-1]
    else:
        nearest = boundary == "nearest"
        lines[:low] = lines[low : low + 1] if nearest else boundary
        lines[n - high :] = lines[n - high - 1 : n - high] if nearest else boundary
