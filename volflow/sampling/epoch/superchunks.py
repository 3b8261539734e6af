"""Superchunks: what is decoded at once so that many patches can be cut from it.

A superchunk owns a box of starts, its *core*, and reads every voxel that a patch starting there
needs. Cores tile the starts without overlap, so each start has one owner and none is out of reach.
Their size follows from patch and stored chunk alone, never from memory: it is part of the order.
All boxes and sizes are in order z, y, x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volflow.geometry.roi import Roi
from volflow.sampling.samplers import Border

__all__ = ["HELD_VOXELS", "GridGroups", "SuperchunkGrid", "Superchunks", "centres_of", "starts_of"]

# Voxels that a superchunk holds, if its chunks allow: 66 MB of uint16. Larger ones waste less on
# their halo, smaller ones leave more of them in the window.
HELD_VOXELS = 320**3

Axes = tuple[int, ...]
Ints = npt.NDArray[np.int64]
Span = tuple[Ints, Ints, Ints]


def starts_of(shape: Sequence[int], patch: Sequence[int], border: Border) -> Roi:
    """Return the box of all possible starts of patches in a volume.

    ``"inside"``: the patch lies in the volume; along an axis that is shorter than the patch it has
    one start, half of what is lacking before the volume. ``"pad"``: its centre, which is
    start + patch // 2, lies in the volume.

    Examples
    --------
    >>> starts_of((100, 64, 64), (32, 64, 1), "inside")
    Roi(start=(0, 0, 0), stop=(69, 1, 64))
    >>> starts_of((100, 64, 64), (32, 64, 1), "pad")
    Roi(start=(-16, -32, 0), stop=(84, 32, 64))
    >>> starts_of((100, 64, 61), (32, 64, 64), "inside")
    Roi(start=(0, 0, -1), stop=(69, 1, 0))
    """
    if border == "pad":
        start = tuple(-(p // 2) for p in patch)
        return Roi(start, tuple(n + a for n, a in zip(shape, start, strict=True)))
    start = tuple(-(max(0, p - n) // 2) for n, p in zip(shape, patch, strict=True))
    return Roi(
        start,
        tuple(a + max(1, n - p + 1) for a, n, p in zip(start, shape, patch, strict=True)),
    )


def centres_of(starts: Roi, patch: Sequence[int]) -> Roi:
    """Return the box of the centres of patches that start in a box."""
    return starts.shift([p // 2 for p in patch])


@dataclass(frozen=True)
class SuperchunkGrid(ABC):
    """Superchunks in C order: products of ranges that are read along each axis.

    Parameters
    ----------
    shape, patch, chunk
        Voxels per axis of the volume, of a patch, and of what is stored and decoded in one piece.
    """

    shape: Axes
    patch: Axes
    chunk: Axes

    @property
    @abstractmethod
    def spans(self) -> tuple[Span, ...]:
        """Along each axis the ends of the ranges, low and high, and the starts in each."""

    @cached_property
    def counts(self) -> Axes:
        """Superchunks per axis."""
        return tuple(len(starts) for _, _, starts in self.spans)

    def __len__(self) -> int:
        return math.prod(self.counts)

    def reads(self, number: int) -> Roi:
        """Return the box that the patches of a superchunk cover; it may reach outside."""
        index = np.unravel_index(number, self.counts)
        ends = [(int(a[i]), int(b[i])) for (a, b, _), i in zip(self.spans, index, strict=True)]
        return Roi(*zip(*ends, strict=True))

    def sizes(self) -> tuple[Ints, Ints]:
        """Return the starts in each superchunk, and the voxels of all chunks that it touches.

        Both are int64 of shape ``(superchunks,)``.
        """
        touched = [
            np.minimum(-(-np.minimum(high, n) // c) * c, n) - np.maximum(low, 0) // c * c
            for (low, high, _), c, n in zip(self.spans, self.chunk, self.shape, strict=True)
        ]
        return _outer([starts for _, _, starts in self.spans]), _outer(touched)


@dataclass(frozen=True)
class Superchunks(SuperchunkGrid):
    """The superchunks of random patches of one volume: a tiling of its starts.

    Parameters
    ----------
    shape, patch, chunk
        As in `SuperchunkGrid`.
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

    border: Border = "inside"
    anchor: Literal["start", "centre"] = "start"

    @cached_property
    def only(self) -> tuple[int | None, ...]:
        """The one start along axes that are shorter than a patch that is to lie inside."""
        starts = starts_of(self.shape, self.patch, "inside").start
        sizes = zip(starts, self.shape, self.patch, strict=True)
        inside = self.border == "inside"
        return tuple(start if inside and n < p else None for start, n, p in sizes)

    @cached_property
    def reach(self) -> Roi:
        """Box of all starts; centred, a voxel along a short axis stands for its `only` one."""
        inside = starts_of(self.shape, self.patch, self.border)
        if self.anchor == "start":
            return inside
        voxels = starts_of(self.shape, self.patch, "pad")
        pairs = zip(self.only, inside, voxels, strict=True)
        return Roi(*zip(*(a if only is None else b for only, a, b in pairs), strict=True))

    def settle(self, starts: Ints) -> Ints:
        """Return starts that were drawn within `reach`, ``(n, 3)``, as those of their patches."""
        for axis, only in enumerate(self.only):
            if only is not None:
                starts[:, axis] = only
        return starts

    @cached_property
    def origin(self) -> Axes:
        """The start that belongs to voxel 0 of the grid of cores."""
        return tuple(-(p // 2) if self.anchor == "centre" else 0 for p in self.patch)

    @cached_property
    def cell(self) -> Axes:
        """Voxels per axis of a chunk, which a volume may fill in part."""
        return tuple(min(c, n) for c, n in zip(self.chunk, self.shape, strict=True))

    @cached_property
    def chunks_per_core(self) -> Axes:
        """Chunks per axis: grown, where they gain most, up to `HELD_VOXELS`."""
        chunk, count = self.cell, [1, 1, 1]
        for axis, only in enumerate(self.only):
            if only is not None:
                count[axis] = -(-self.shape[axis] // chunk[axis])

        def held(axis: int, more: int = 0) -> int:
            if self.only[axis] is not None:
                return self.patch[axis]
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
    def spans(self) -> tuple[Span, ...]:
        """Along each axis what the cores read, and how many starts they own."""
        spans = []
        axes = zip(self.reach, self.origin, self.core, self.patch, self.only, strict=True)
        for (low, high), o, c, p, only in axes:
            if only is not None:
                spans.append((np.array([only]), np.array([only + p]), np.array([high - low])))
                continue
            numbers = np.arange((low - o) // c, -(-(high - o) // c) + 1, dtype=np.int64)
            edges = np.clip(o + c * numbers, low, high)
            spans.append((edges[:-1], edges[1:] + p - 1, np.diff(edges)))
        return tuple(spans)

    def starts(self, number: int) -> Roi:
        """Return the core of a superchunk: the box of the starts that it owns."""
        inside = self.reads(number).grow((0, 0, 0), [1 - p for p in self.patch])
        axes = zip(self.only, inside, self.reach, strict=True)
        return Roi(*zip(*(a if only is None else b for only, a, b in axes), strict=True))

    @cached_property
    def held(self) -> Axes:
        """Voxels per axis of the largest superchunk."""
        sizes = zip(self.core, self.reach.shape, self.patch, self.only, strict=True)
        return tuple(min(c, n) + p - 1 if only is None else p for c, n, p, only in sizes)

    def inner(self, per_box: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Pick what belongs to superchunks from values per box of ``chunks_per_core`` chunks.

        Centred cores tile the volume's chunks as such boxes do; boxes without a start are left out.

        Parameters
        ----------
        per_box
            ``(boxes,)`` or ``(boxes, columns)``, boxes of the whole volume in C order.

        Returns
        -------
        numpy.ndarray
            ``(superchunks,)`` or ``(superchunks, columns)``.
        """
        boxes = tuple(-(-n // c) for n, c in zip(self.shape, self.core, strict=True))
        first = [
            (low - o) // c
            for low, o, c in zip(self.reach.start, self.origin, self.core, strict=True)
        ]
        kept = tuple(slice(f, f + n) for f, n in zip(first, self.counts, strict=True))
        rest = per_box.shape[1:]
        return np.ascontiguousarray(per_box.reshape(boxes + rest)[kept].reshape(-1, *rest))


@dataclass(frozen=True)
class GridGroups(SuperchunkGrid):
    """The superchunks of a grid of patches: groups of neighbours that are read together.

    Whole rows are grouped first, then whole layers, up to `HELD_VOXELS`. Groups follow each other
    in C order, and so do the patches of a group.

    Parameters
    ----------
    shape, patch, chunk
        As in `SuperchunkGrid`.
    starts
        First voxels of the grid's patches along each axis.

    Examples
    --------
    >>> from volflow.geometry.grid import PatchGrid
    >>> grid = PatchGrid((500, 500, 500), (64, 64, 64), (64, 64, 64))
    >>> groups = GridGroups(grid.shape, grid.patch, (32, 32, 32), grid.starts)
    >>> groups.group, len(groups), groups.reads(0).shape
    ((2, 8, 8), 4, (128, 500, 500))
    """

    starts: tuple[Ints, ...]

    @cached_property
    def group(self) -> Axes:
        """Patches per axis that are read together; at the border fewer."""
        group = [1, 1, 1]
        for axis in (2, 1, 0):
            for count in range(2, len(self.starts[axis]) + 1):
                larger = [*group[:axis], count, *group[axis + 1 :]]
                if math.prod(self._covered(larger)) > HELD_VOXELS:
                    return tuple(group)
                group = larger
        return tuple(group)

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Along each axis what the groups read, and how many patches they hold."""
        spans = []
        for starts, g, p in zip(self.starts, self.group, self.patch, strict=True):
            sizes = np.minimum(g, len(starts) - np.arange(0, len(starts), g, dtype=np.int64))
            spans.append((starts[::g], starts[np.cumsum(sizes) - 1] + p, sizes))
        return tuple(spans)

    @cached_property
    def held(self) -> Axes:
        """Voxels per axis of the largest group."""
        return self._covered(self.group)

    def patches(self, number: int) -> Ints:
        """Return the first voxels of a group's patches, int64 of shape ``(patches, 3)``."""
        index = np.unravel_index(number, self.counts)
        axes = [
            starts[int(i) * g : (int(i) + 1) * g]
            for starts, i, g in zip(self.starts, index, self.group, strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

    def _covered(self, group: Sequence[int]) -> Axes:
        """Voxels per axis that the first patches of the grid cover, so many per axis."""
        return tuple(
            int(starts[count - 1] - starts[0]) + p
            for starts, count, p in zip(self.starts, group, self.patch, strict=True)
        )


def _outer(axes: Sequence[Ints]) -> Ints:
    """Products of one number per axis, in C order."""
    z, y, x = axes
    product: Ints = z[:, None, None] * y[:, None] * x
    return product.ravel()
