"""Which blocks of a volume are read at once, so that what a file must decode is decoded seldom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi

__all__ = ["decoded_per_voxel", "hull", "strips", "widened"]


def decoded_per_voxel(shape: Sequence[int], sides: Sequence[int], piece: Sequence[int]) -> float:
    """Return how many voxels are decoded for each voxel of a volume that is read in boxes.

    Parameters
    ----------
    shape, sides, piece
        Of the volume, of the boxes, and of what is decoded as a whole, each from the first voxel
        on.

    Examples
    --------
    >>> decoded_per_voxel((256, 1024, 1024), (256, 256, 256), (1, 1024, 1024))
    16.0
    """
    factor = 1.0
    for n, side, step in zip(shape, sides, piece, strict=True):
        read = 0
        for begin in range(0, n, side):
            end = min(begin + side, n)
            read += min(-(-end // step) * step, n) - begin // step * step
        factor *= read / n
    return factor


def widened(
    blocks: BlockGrid, piece: Sequence[int], fits: Callable[[tuple[int, ...]], bool]
) -> tuple[int, ...]:
    """Return how many blocks per axis to read at once: as many as a piece spans and memory holds.

    Parameters
    ----------
    blocks
        What is written at once.
    piece
        What is decoded as a whole.
    fits
        Says whether memory holds so many blocks per axis.

    Examples
    --------
    >>> blocks = BlockGrid((256, 1024, 1024), (256, 256, 256))
    >>> widened(blocks, (1, 1024, 1024), lambda reach: reach[1] * reach[2] <= 8)
    (1, 2, 4)
    """
    reach = [1] * len(piece)
    for axis in reversed(range(len(piece))):
        spans = min(-(-piece[axis] // blocks.block[axis]), blocks.counts[axis])
        for cuts in range(1, spans + 1):
            reach[axis] = -(-spans // cuts)
            if fits(tuple(reach)):
                break
    return tuple(reach)


def strips(
    blocks: BlockGrid, reach: Sequence[int], left: Iterable[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of blocks that are read together, in order.

    Examples
    --------
    >>> strips(BlockGrid((2, 3), (1, 1)), (1, 2), range(6))
    ((0, 1), (2,), (3, 4), (5,))
    """
    together: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number in left:
        start = blocks[number].start
        sides = [b * r for b, r in zip(blocks.block, reach, strict=True)]
        together[tuple(a // side for a, side in zip(start, sides, strict=True))].append(number)
    return tuple(tuple(numbers) for numbers in together.values())


def hull(rois: Sequence[Roi]) -> Roi:
    """Return the smallest box that holds all of some.

    Examples
    --------
    >>> hull([Roi((0, 4), (2, 6)), Roi((0, 0), (2, 2))])
    Roi(start=(0, 0), stop=(2, 6))
    """
    starts, stops = ([getattr(roi, name) for roi in rois] for name in ("start", "stop"))
    return Roi(tuple(map(min, *starts, starts[0])), tuple(map(max, *stops, stops[0])))
