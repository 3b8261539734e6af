"""Which planes of a box are made at once, and what the making of a block holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from volflow.geometry.resampling.regridding import Regridding
from volflow.geometry.roi import Roi

__all__ = ["held_in_making", "pieces", "read_box"]

PIECE_BYTES = 48 * 2**20  # that the making of some planes may hold
READ_BYTES = 8 * 2**20  # that are read at once, unless a chunk is larger
READING = 3  # times that what is read at once is held: packed, unpacked, in its place


def pieces(how: Regridding, box: Roi) -> list[Roi]:
    """Return the parts of a box that are made one after the other, upwards in the source.

    Examples
    --------
    >>> import numpy as np
    >>> from volflow.geometry.resampling.regridding import GridMap
    >>> grid = GridMap.spaced((800, 800, 800), (1, 1, 1), (2, 2, 2))
    >>> how = Regridding(grid, (1, 1, 1), np.dtype("float32"))
    >>> [part.shape for part in pieces(how, Roi((0, 0, 0), (40, 256, 256)))]
    [(8, 256, 256), (8, 256, 256), (8, 256, 256), (8, 256, 256), (8, 256, 256)]
    """
    axis, depth = how.grid.frame.axes.index(0), _depth(how, box)
    start, stop = box.start[axis], box.stop[axis]
    parts = [_cut(box, axis, n, min(n + depth, stop)) for n in range(start, stop, depth)]
    return parts[::-1] if how.grid.frame.flips[axis] else parts


def _depth(how: Regridding, box: Roi) -> int:
    """Return how many planes of a box are made at once, along the source's first axis."""
    axis = how.grid.frame.axes.index(0)
    low, depth = box.start[axis], 1
    while (
        depth < box.shape[axis]
        and how.bytes(_cut(box, axis, low, min(box.stop[axis], low + 2 * depth))) <= PIECE_BYTES
    ):
        depth *= 2
    return depth


def _cut(box: Roi, axis: int, low: int, high: int) -> Roi:
    start, stop = list(box.start), list(box.stop)
    start[axis], stop[axis] = low, high
    return Roi(tuple(start), tuple(stop))


def read_box(shape: Sequence[int], cell: Sequence[int], layer: int, itemsize: int) -> list[int]:
    """Return the sides of what is read of a source at once: whole cells of a layer.

    Examples
    --------
    >>> read_box((900, 900, 900), (64, 64, 64), 64, 4)
    [64, 64, 512]
    """
    box = [layer, *cell[1:]]
    for axis in (2, 1):
        while box[axis] < shape[axis] and 2 * math.prod(box) * itemsize <= READ_BYTES:
            box[axis] *= 2
    return box


def held_in_making(how: Regridding, block: Sequence[int], cell: Sequence[int], layer: int) -> int:
    """Return what the making of a block holds at most, beside the block.

    Parameters
    ----------
    how
        How it is made.
    block
        Sides of the blocks along the target's axes.
    cell
        What is decoded as a whole along the source's axes; 1 where that is a voxel.
    layer
        Planes of the source that are read at once.
    """
    # Along each axis the block that needs most of the source: axes do not depend on each other.
    ends = [_neediest(how, axis, side) for axis, side in enumerate(block)]
    box = Roi(*zip(*ends, strict=True))
    part = max(pieces(how, box), key=lambda one: how.source(one).shape[0])
    whole, needed = how.source(box), how.source(part)
    planes = min(whole.shape[0], needed.shape[0] + 2 * layer)
    once = read_box(how.grid.source_shape, cell, max(layer, cell[0]), how.dtype.itemsize)
    read = READING * math.prod(map(min, once, how.grid.source_shape))
    return how.dtype.itemsize * (planes * math.prod(whole.shape[1:]) + read) + how.bytes(part)


def _neediest(how: Regridding, axis: int, side: int) -> tuple[int, int]:
    """Return the side of the block that needs most of the source along an axis."""
    n = how.grid.shape[axis]
    ends = [(low, min(low + side, n)) for low in range(0, n, side)]
    return max(ends, key=lambda end: how.span(axis, *end))
