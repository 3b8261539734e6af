"""Read planes of a volume in bounded memory, thinned to the pixels that a picture can show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.slabs import Source

__all__ = ["read_planes", "steps"]

Array = npt.NDArray[Any]

PIECE_VOXELS = 2**21  # read at a time, unless a chunk is larger
MOST_PIXELS = 2**36  # of a plane, read in some minutes
STREAM_PLANES = 8  # held at a time of a file that is read from front to back


def steps(volume: Source, pixels: int) -> tuple[int, int, int]:
    """Return the voxels per pixel along z, y, x of a picture at most ``pixels`` long."""
    z, y, x = (max(1, -(-n // pixels)) for n in volume.shape[-3:])
    return (z, y, x)


def read_planes(
    volume: Source,
    planes: Sequence[tuple[int, int]],
    *,
    pixels: int,
    channel: int | None = 0,
    average: bool = False,
) -> list[Array]:
    """Read planes across any axes, in one pass where the file only allows one.

    Parameters
    ----------
    volume
        ``zyx`` or ``czyx``.
    planes
        For each plane the axis across it (0 to 2 for z, y, x) and its index along that axis.
    pixels
        A longer side is thinned out: a pixel stands for `steps` voxels per axis.
    channel
        The channel to read; None gives the number of the highest channel, as of scores.
    average
        Whether a pixel is the mean of its voxels. Otherwise it is the voxel in the middle, because
        classes must not be mixed.

    Returns
    -------
    list of array
        One 2-D array per plane, its two axes in stored order.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> source = open_source(np.arange(2 * 4 * 6).reshape(2, 4, 6))
    >>> read_planes(source, [(0, 1)], pixels=3)[0].tolist()
    [[31, 33, 35], [43, 45, 47]]
    >>> read_planes(source, [(0, 1)], pixels=3, average=True)[0].tolist()
    [[27.5, 29.5, 31.5], [39.5, 41.5, 43.5]]
    """
    pictures = [_PlaneReader(volume, plane, pixels, channel, average) for plane in planes]
    if volume.sequential:
        passes = [(pictures, _stream(volume, planes, channel))]
    else:
        across = ([one for one in pictures if one.normal == axis] for axis in range(3))
        passes = [(some, _pieces(volume, some, channel)) for some in across if some]
    for some, pieces in passes:
        for roi, voxels in pieces:
            for picture in some:
                picture.take(roi, voxels)
    return [picture.done() for picture in pictures]


class _PlaneReader:
    """Collects one plane from the boxes that are read of it."""

    def __init__(
        self, volume: Source, plane: tuple[int, int], pixels: int, channel: int | None, mean: bool
    ) -> None:
        shape, step = volume.shape[-3:], steps(volume, pixels)
        self.normal, self.index = plane
        self.axes = [axis for axis in range(3) if axis != self.normal]
        self.size = [shape[axis] for axis in self.axes]
        if math.prod(self.size) > MOST_PIXELS:
            raise InvalidInput(
                f"a plane of {self.size[0]} × {self.size[1]} voxels is too large to be read for a"
                " picture; give the volume coarser levels (vf.pyramid) and show one, or check its"
                " shape"
            )
        self.step = [step[axis] for axis in self.axes]
        # The voxel in the middle of each pixel.
        self.middle = [
            np.minimum(np.arange(0, n, s) + s // 2, n - 1)
            for s, n in zip(self.step, self.size, strict=True)
        ]
        self.mean = mean and channel is not None and max(self.step) > 1
        count = [len(middle) for middle in self.middle]
        self.best = np.full(count, -np.inf) if channel is None else None
        dtype = np.int64 if channel is None else np.float64 if self.mean else volume.dtype
        self.values: Array = np.zeros(count, dtype)

    def take(self, roi: Roi, voxels: Array) -> None:
        """Take what a box, (c, z, y, x), holds of this plane."""
        (channel, _), *box = roi
        low, high = box[self.normal]
        if not low <= self.index < high:
            return
        part = voxels.take(self.index - low, axis=1 + self.normal)
        cells = []
        for n, (axis, step, middle) in enumerate(
            zip(self.axes, self.step, self.middle, strict=True)
        ):
            low, high = box[axis]
            if self.mean:
                first, last = low // step, -(-high // step)
                starts = np.maximum(np.arange(first, last) * step - low, 0)
                part = np.add.reduceat(part, starts, axis=1 + n, dtype=np.float64)
            else:
                first, last = np.searchsorted(middle, (low, high))
                part = part.take(middle[first:last] - low, axis=1 + n)
            cells.append(slice(first, last))
        values = self.values[tuple(cells)]
        if self.mean:
            values += part[0]
        elif self.best is None:
            values[...] = part[0]
        else:  # the number of the highest channel so far, the first of equal ones
            best, highest = self.best[tuple(cells)], part.max(axis=0)
            better = highest > best
            best[better] = highest[better]
            values[better] = channel + part.argmax(axis=0)[better]

    def done(self) -> Array:
        """Return the plane; sums become means."""
        if not self.mean:
            return self.values
        rows, columns = (
            np.minimum(s, n - np.arange(0, n, s)) for s, n in zip(self.step, self.size, strict=True)
        )
        return np.asarray(self.values / (rows[:, None] * columns))


def _pieces(
    volume: Source, pictures: Sequence[_PlaneReader], channel: int | None
) -> Iterator[tuple[Roi, Array]]:
    """Read boxes that cover planes across one axis, each chunk layer once, in small pieces."""
    shape = volume.shape[-3:]
    chunks: Sequence[int] = getattr(volume, "chunks", (1, 1, 1))[-3:]
    axes = len(volume.shape)
    count = volume.shape[0] if channel is None and axes == 4 else 1
    begin = channel or 0
    normal, (first, second) = pictures[0].normal, pictures[0].axes
    for low, high in _layers([one.index for one in pictures], chunks[normal]):
        free = PIECE_VOXELS // ((high - low) * count)
        wide = _whole(free // chunks[first], chunks[second], shape[second])
        tall = _whole(free // wide, chunks[first], shape[first])
        spans = {normal: [(low, high)]}
        for axis, length in ((first, tall), (second, wide)):
            begins = range(0, shape[axis], length)
            spans[axis] = [(n, min(n + length, shape[axis])) for n in begins]
        for box in itertools.product(*(spans[axis] for axis in range(3))):
            start, stop = zip((begin, begin + count), *box, strict=True)
            # A volume without channels has one.
            inside = Roi(start[-axes:], stop[-axes:])
            yield Roi(start, stop), volume.read(inside).reshape(-1, *inside.shape[-3:])


def _layers(indices: Sequence[int], chunk: int) -> list[tuple[int, int]]:
    """Return the first index and the one behind the last that is wanted of each chunk layer.

    Examples
    --------
    >>> _layers([9, 3, 1, 70], 64)
    [(1, 10), (70, 71)]
    """
    layers: dict[int, list[int]] = {}
    for index in sorted(indices):
        layers.setdefault(index // chunk, []).append(index)
    return [(held[0], held[-1] + 1) for held in layers.values()]


def _whole(length: int, chunk: int, size: int) -> int:
    """Return the length of as many whole chunks as fit, at least one, at most the whole axis."""
    return min(size, max(1, length // chunk) * chunk)


def _stream(
    source: Any, planes: Sequence[tuple[int, int]], channel: int | None
) -> Iterator[tuple[Roi, Array]]:
    """Read a file from its front to the last plane that is wanted."""
    depth = source.shape[-3]
    last = max(index + 1 if normal == 0 else depth for normal, index in planes)
    for box, slab in source.slabs(STREAM_PLANES):
        roi = box if box.ndim == 4 else Roi((0, *box.start), (1, *box.stop))
        beyond = roi.start[1] >= last
        if beyond and channel is not None and roi.start[0] >= channel:
            return
        if not beyond and channel in (None, roi.start[0]):
            yield roi, slab.reshape(roi.shape)
