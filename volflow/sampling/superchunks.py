"""Superchunks: what is decoded at once so that many patches can be cut from it.

A superchunk owns a box of starts, its *core*, and reads every voxel that a patch starting there
needs. Cores tile the starts without overlap, so each start has one owner and none is out of reach.
Their size follows from patch and stored chunk alone, never from memory: it is part of the order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi

__all__ = ["HELD_VOXELS", "Border", "Superchunks", "centres_of", "starts_of", "whole_chunks"]

# Voxels that a superchunk holds, if its chunks allow: 66 MB of uint16. Larger ones waste less on
# their halo, smaller ones leave more of them in the window.
HELD_VOXELS = 320**3

Border = Literal["inside", "pad"]
Axes = tuple[int, ...]


def starts_of(shape: Sequence[int], patch: Sequence[int], border: Border) -> Roi:
    """Where patches may start.

    ``"inside"``: where the patch lies in the volume. ``"pad"``: where its centre, which is
    start + patch // 2, lies in the volume.

    Raises
    ------
    InvalidInput
        Where no patch lies inside, or the border is neither.

    Examples
    --------
    >>> starts_of((100, 64, 64), (32, 64, 1), "inside")
    Roi(start=(0, 0, 0), stop=(69, 1, 64))
    >>> starts_of((100, 64, 64), (32, 64, 1), "pad")
    Roi(start=(-16, -32, 0), stop=(84, 32, 64))
    """
    if border not in ("inside", "pad"):
        raise InvalidInput(f'border must be "inside" or "pad"; got {border!r}')
    if border == "pad":
        start = tuple(-(p // 2) for p in patch)
        return Roi(start, tuple(n + a for n, a in zip(shape, start, strict=True)))
    small = [axis for axis, n, p in zip("zyx", shape, patch, strict=True) if p > n]
    if small:
        raise InvalidInput(
            f"patch {tuple(patch)} is larger than the volume {tuple(shape)} on axis "
            f'{", ".join(small)}; use a smaller patch or border="pad"'
        )
    return Roi((0,) * 3, tuple(n - p + 1 for n, p in zip(shape, patch, strict=True)))


def centres_of(starts: Roi, patch: Sequence[int]) -> Roi:
    """The centres of patches that start in a box."""
    return starts.shift([p // 2 for p in patch])


def whole_chunks(roi: Roi, chunk: Sequence[int], shape: Sequence[int]) -> Roi:
    """The chunks that are decoded to read a box; nothing where it lies outside.

    Examples
    --------
    >>> whole_chunks(Roi((-8, 60, 70), (8, 70, 90)), (64, 64, 64), (100, 100, 100))
    Roi(start=(0, 0, 64), stop=(64, 100, 100))
    """
    box = roi.clip(shape)
    if not box.size:
        return Roi(box.start, box.start)
    start = tuple(a // c * c for a, c in zip(box.start, chunk, strict=True))
    stop = tuple(-(-b // c) * c for b, c in zip(box.stop, chunk, strict=True))
    return Roi(start, stop).clip(shape)


@dataclass(frozen=True)
class Superchunks:
    """A tiling of the starts of one volume.

    Parameters
    ----------
    shape, patch, chunk
        Voxels per axis of the volume, of a patch, and of what is stored and decoded in one piece.
    border
        As in `starts_of`.
    anchor
        ``"start"``: cores begin where chunks do, which reads least; ``"centre"``: the centres of a
        core's patches tile whole chunks, so that what is known per chunk is known per core.

    Examples
    --------
    >>> tiles = Superchunks((1000, 1000, 1000), (64, 64, 64), (64, 64, 64))
    >>> tiles.core, tiles.counts, len(tiles)
    ((256, 256, 256), (4, 4, 4), 64)
    >>> tiles.starts(63), tiles.reads(63).shape
    (Roi(start=(768, 768, 768), stop=(937, 937, 937)), (232, 232, 232))
    """

    shape: Axes
    patch: Axes
    chunk: Axes
    border: Border = "inside"
    anchor: Literal["start", "centre"] = "start"

    @cached_property
    def reach(self) -> Roi:
        """All starts."""
        return starts_of(self.shape, self.patch, self.border)

    @cached_property
    def origin(self) -> Axes:
        """The start that belongs to voxel 0 of the grid of cores."""
        return tuple(-(p // 2) if self.anchor == "centre" else 0 for p in self.patch)

    @cached_property
    def first(self) -> Axes:
        """Number of the first core per axis, counted from `origin`."""
        return tuple(
            (a - o) // c for a, o, c in zip(self.reach.start, self.origin, self.core, strict=True)
        )

    @cached_property
    def cell(self) -> Axes:
        """Voxels per axis of a chunk, which a volume may fill in part."""
        return tuple(min(c, n) for c, n in zip(self.chunk, self.shape, strict=True))

    @cached_property
    def chunks_per_core(self) -> Axes:
        """Chunks per axis: grown, where they gain most, up to `HELD_VOXELS`."""
        chunk, count = self.cell, [1, 1, 1]

        def held(axis: int, more: int = 0) -> int:
            return (count[axis] + more) * chunk[axis] + self.patch[axis] - 1

        while True:
            total = math.prod(held(axis) for axis in range(3))
            open_axes = [
                axis
                for axis in range(3)
                if count[axis] * chunk[axis] < self.reach.shape[axis]
                and total // held(axis) * held(axis, 1) <= HELD_VOXELS
            ]
            if not open_axes:
                return tuple(count)
            # The share of the halo is largest where the core is shortest for its patch.
            best = min(open_axes, key=lambda a: (count[a] * chunk[a] / held(a), a))
            count[best] += 1

    @cached_property
    def core(self) -> Axes:
        """Starts per axis that a superchunk owns; at the border fewer."""
        return tuple(n * c for n, c in zip(self.chunks_per_core, self.cell, strict=True))

    @cached_property
    def counts(self) -> Axes:
        """Superchunks per axis."""
        return tuple(
            -(-(b - o) // c) - f
            for b, o, c, f in zip(self.reach.stop, self.origin, self.core, self.first, strict=True)
        )

    def __len__(self) -> int:
        return math.prod(self.counts)

    def starts(self, number: int) -> Roi:
        """The core of a superchunk."""
        index = np.unravel_index(number, self.counts)
        start = tuple(
            o + (f + int(i)) * c
            for o, f, i, c in zip(self.origin, self.first, index, self.core, strict=True)
        )
        stop = tuple(a + c for a, c in zip(start, self.core, strict=True))
        return Roi(start, stop).intersect(self.reach)

    def reads(self, number: int) -> Roi:
        """The voxels that its patches cover; outside of the volume, too, with ``border="pad"``."""
        return self.starts(number).grow((0, 0, 0), [p - 1 for p in self.patch])

    @cached_property
    def held(self) -> Axes:
        """Voxels per axis of the largest superchunk."""
        sizes = zip(self.core, self.reach.shape, self.patch, strict=True)
        return tuple(min(c, n) + p - 1 for c, n, p in sizes)

    def inner(self, per_box: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What is known per box of ``chunks_per_core`` chunks, for the superchunks that there are.

        Centred cores tile the volume's chunks as such boxes do; those without a start are left out.
        """
        boxes = tuple(-(-n // c) for n, c in zip(self.shape, self.core, strict=True))
        kept = tuple(slice(f, f + n) for f, n in zip(self.first, self.counts, strict=True))
        return per_box.reshape(boxes)[kept].ravel()

    def sizes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Per superchunk, how many starts it owns and how many voxels of whole chunks it reads."""
        owned, decoded = [], []
        for axis in range(3):
            grid = self.origin[axis] + self.core[axis] * (
                self.first[axis] + np.arange(self.counts[axis] + 1, dtype=np.int64)
            )
            low = np.maximum(grid[:-1], self.reach.start[axis])
            high = np.minimum(grid[1:], self.reach.stop[axis])
            n, chunk = self.shape[axis], self.cell[axis]
            begin = np.maximum(low, 0) // chunk * chunk
            end = np.minimum(high + self.patch[axis] - 1, n)
            end = np.minimum(-(-end // chunk) * chunk, n)
            owned.append(high - low)
            decoded.append(np.maximum(end - begin, 0))
        return _outer(owned), _outer(decoded)


def _outer(axes: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    z, y, x = axes
    product: npt.NDArray[np.int64] = z[:, None, None] * y[:, None] * x
    return product.ravel()
