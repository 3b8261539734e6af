"""Ranges along one axis: the input voxels that a range of an op's output depends on.

The rule of an op has one of these per axis. Positions are absolute: they count from the true
border of the whole array, so that a range means the same wherever blocks are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = [
    "AxisMap",
    "Gather",
    "Lerp",
    "Merge",
    "Range",
    "Same",
    "Slide",
    "Split",
    "Spread",
    "Whole",
]

Range = tuple[int, int]

EMPTY: Range = (0, 0)


class AxisMap(Protocol):
    """How an op's output lies over its input along one axis."""

    def reads(self, low: int, high: int) -> Range:
        """Return the range of input voxels, inside the array, that ``[low, high)`` depends on."""


@dataclass(frozen=True)
class Same:
    """Each output voxel is computed from the input voxel at its place."""

    def reads(self, low: int, high: int) -> Range:
        """Return the range itself."""
        return low, high


@dataclass(frozen=True)
class Whole:
    """Every output voxel depends on the whole axis: statistics and broadcast values.

    Parameters
    ----------
    size
        Number of input voxels.
    """

    size: int

    def reads(self, low: int, high: int) -> Range:
        """Return the whole axis."""
        return 0, self.size


@dataclass(frozen=True)
class Slide:
    """A window slides over a padded axis: convolutions and pooling.

    Output o reads ``o · stride − padding + j · dilation`` for j below ``kernel``.

    Parameters
    ----------
    kernel, stride, dilation
        Shape and steps of the window.
    padding
        Voxels before the first one.
    size
        Number of input voxels.

    Examples
    --------
    >>> Slide(3, 2, 1, 1, size=10).reads(0, 3), Slide(3, 2, 1, 1, size=10).overhang(0, 3)
    ((0, 6), (1, 0))
    """

    kernel: int
    stride: int
    padding: int
    dilation: int
    size: int

    def span(self, low: int, high: int) -> Range:
        """Return the range of window positions, which may exceed the array."""
        reach = (self.kernel - 1) * self.dilation + 1
        return low * self.stride - self.padding, (high - 1) * self.stride - self.padding + reach

    def reads(self, low: int, high: int) -> Range:
        """Return the part of the span inside the array."""
        return _clip(self.span(low, high), self.size)

    def overhang(self, low: int, high: int) -> Range:
        """Return how far the span exceeds what is read, before and behind."""
        (first, last), (start, stop) = self.span(low, high), self.reads(low, high)
        if start == stop:
            return 0, last - first
        return start - first, last - stop


@dataclass(frozen=True)
class Spread:
    """Each input voxel spreads over a window of the output: transposed convolutions.

    Output o is reached by input i where ``o = i · stride − padding + j · dilation``, j below
    ``kernel``.

    Parameters
    ----------
    kernel, stride, padding, dilation
        Of the transposed convolution.
    size
        Number of input voxels.

    Examples
    --------
    >>> Spread(3, 2, 1, 1, size=5).reads(0, 4), Spread(2, 2, 0, 1, size=5).reads(2, 6)
    ((0, 3), (1, 3))
    """

    kernel: int
    stride: int
    padding: int
    dilation: int
    size: int

    def reads(self, low: int, high: int) -> Range:
        """Return the inputs whose windows meet the range."""
        reach = (self.kernel - 1) * self.dilation
        first = -((reach - low - self.padding) // self.stride)
        last = (high - 1 + self.padding) // self.stride + 1
        return _clip((first, last), self.size)

    def lands(self, low: int, high: int) -> Range:
        """Return the outputs that inputs ``[low, high)`` spread over; they may exceed the array."""
        reach = (self.kernel - 1) * self.dilation + 1
        return low * self.stride - self.padding, (high - 1) * self.stride - self.padding + reach


@dataclass(frozen=True, eq=False)
class Gather:
    """Each output voxel is a copy of one input voxel: crops, pads, flips, nearest neighbours.

    Parameters
    ----------
    positions
        int64, per output voxel: the input voxel, or -1 for a constant.
    scale
        Input voxels per output voxel, which few or repeated positions do not reveal.

    Examples
    --------
    >>> Gather(np.array([-1, 2, 1, 0])).reads(0, 3)
    (1, 3)
    """

    positions: npt.NDArray[np.int64]
    scale: Fraction = Fraction(1)

    def reads(self, low: int, high: int) -> Range:
        """Return the hull of the positions."""
        inside = self.positions[low:high]
        inside = inside[inside >= 0]
        return (int(inside.min()), int(inside.max()) + 1) if inside.size else EMPTY


@dataclass(frozen=True, eq=False)
class Lerp:
    """Each output voxel lies between two neighbouring input voxels.

    Parameters
    ----------
    lower
        int64, per output voxel: the first of the two.
    upper
        The second; the same at the border.
    weight
        Of the second.
    """

    lower: npt.NDArray[np.int64]
    upper: npt.NDArray[np.int64]
    weight: npt.NDArray[np.floating]

    def reads(self, low: int, high: int) -> Range:
        """Return the hull of both neighbours of all outputs."""
        return int(self.lower[low:high].min()), int(self.upper[low:high].max()) + 1


@dataclass(frozen=True)
class Split:
    """One input voxel becomes ``factor`` output voxels: pixel shuffle."""

    factor: int

    def reads(self, low: int, high: int) -> Range:
        """Return the inputs of which a part lies in the range."""
        return low // self.factor, -(-high // self.factor)


@dataclass(frozen=True)
class Merge:
    """``factor`` input voxels become one output voxel: the inverse of pixel shuffle."""

    factor: int

    def reads(self, low: int, high: int) -> Range:
        """Return all parts of the range."""
        return low * self.factor, high * self.factor


def _clip(span: Range, size: int) -> Range:
    low, high = max(0, span[0]), min(size, span[1])
    return (low, high) if low < high else EMPTY
