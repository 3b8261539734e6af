"""A half-open box of voxels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Roi"]


@dataclass(frozen=True, order=True)
class Roi:
    """A half-open box ``[start, stop)`` with one entry per axis.

    Parameters
    ----------
    start, stop
        First voxel inside and first voxel beyond, per axis; ``stop >= start``. A box may reach
        outside its volume (negative starts): the reader pads it.

    Raises
    ------
    ValueError
        If the lengths differ or an axis is reversed.

    Examples
    --------
    >>> roi = Roi((0, 4, 4), (8, 8, 12))
    >>> roi.shape, roi.size
    ((8, 4, 8), 256)
    >>> roi.grow((2, 2, 2)).clip((10, 10, 10))
    Roi(start=(0, 2, 2), stop=(10, 10, 10))
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(int(v) for v in self.start))
        object.__setattr__(self, "stop", tuple(int(v) for v in self.stop))
        if len(self.start) != len(self.stop):
            raise ValueError(f"roi start {self.start} and stop {self.stop} differ in length")
        if any(b < a for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"roi stop {self.stop} lies before start {self.start}")

    @classmethod
    def full(cls, shape: Sequence[int]) -> Roi:
        """Return the box of a whole array of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    def slices(self) -> tuple[slice, ...]:
        """Return the slices that select this box in its volume."""
        return tuple(slice(a, b) for a, b in self)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self.start, self.stop, strict=True))

    def shift(self, offset: Sequence[int]) -> Roi:
        """Return the box moved by ``offset``."""
        return Roi(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def relative_to(self, origin: Sequence[int]) -> Roi:
        """Return the same box counted from ``origin``."""
        return self.shift([-o for o in origin])

    def grow(self, low: Sequence[int], high: Sequence[int] | None = None) -> Roi:
        """Return the box with ``low`` more voxels before and ``high`` (default: ``low``) behind."""
        high = low if high is None else high
        return Roi(
            tuple(a - v for a, v in zip(self.start, low, strict=True)),
            tuple(b + v for b, v in zip(self.stop, high, strict=True)),
        )

    def intersect(self, other: Roi) -> Roi:
        """Return the intersection, of size 0 if the boxes do not meet."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Roi(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def clip(self, shape: Sequence[int]) -> Roi:
        """Return the part inside an array of this shape."""
        return self.intersect(Roi.full(shape))
