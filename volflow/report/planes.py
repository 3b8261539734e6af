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
    average = average and channel is not None
    pictures = [_PlaneReader(volume, *plane, steps(volume, pixels), average) for plane in planes]
    if volume.sequential:
        passes = [(pictures, _stream(volume, planes, channel))]
    else:
        across = ([one for one in pictures if one.normal == axis] for axis in range(3))
        passes = [(some, _pieces(volume, some, channel)) for some in across if some]
    for some, pieces in passes:
        for roi, voxels in pieces:
            for picture in some:
                picture.take(roi, voxels, channel)
    return [picture.done() for picture in pictures]


class _PlaneReader:
    """Collects one plane from the boxes that are read of it."""

    def __init__(
        self, volume: Source, normal: int, index: int, step: Sequence[int], average: bool
    ) -> None:
        shape = volume.shape[-3:]
        self.normal, self.index = normal, index
        self.axes = [axis for axis in range(3) if axis != normal]
        self.size = [shape[axis] for axis in self.axes]
        if math.prod(self.size) > MOST_PIXELS:
            raise InvalidInput(
                f"a plane of {self.size[0]} × {self.size[1]} voxels is too large to be read for a"
                " picture; give the volume coarser levels (vf.pyramid, volflow pyramid) and show"
                " one, or check its shape"
            )
        self.step = [step[axis] for axis in self.axes]
        count = [-(-n // s) for n, s in zip(self.size, self.step, strict=True)]
        # The voxel in the middle of each pixel.
        self.middle = [
            np.minimum(np.arange(c) * s + s // 2, n - 1)
            for c, s, n in zip(count, self.step, self.size, strict=True)
        ]
        self.average = average and max(self.step) > 1
        self.values: Array = np.zeros(count, np.float64 if self.average else volume.dtype)
        self.best: Array | None = None

    def take(self, roi: Roi, voxels: Array, channel: int | None) -> None:
        """Take what a box, (c, z, y, x), holds of this plane."""
        box = list(roi)
        low, high = box[1 + self.normal]
        if not low <= self.index < high:
            return
        part = voxels.take(self.index - low, axis=1 + self.normal)
        inside = [box[1 + axis] for axis in self.axes]
        if self.average:
            self._add(part[0], inside)
            return
        span = [
            slice(*np.searchsorted(middle, bounds))
            for middle, bounds in zip(self.middle, inside, strict=True)
        ]
        rows, columns = (
            middle[cells] - bounds[0]
            for middle, cells, bounds in zip(self.middle, span, inside, strict=True)
        )
        part = part[:, rows][:, :, columns]
        if channel is None:
            self._compare(part, box[0][0], (span[0], span[1]))
        else:
            self.values[span[0], span[1]] = part[0]

    def _add(self, part: Array, inside: Sequence[tuple[int, int]]) -> None:
        """Add the voxels of each pixel to its sum."""
        cells = []
        for axis, ((low, high), step) in enumerate(zip(inside, self.step, strict=True)):
            first = low // step
            starts = np.arange(first, -(-high // step)) * step - low
            part = np.add.reduceat(part, np.maximum(starts, 0), axis=axis, dtype=np.float64)
            cells.append(slice(first, first + len(starts)))
        self.values[tuple(cells)] += part

    def _compare(self, part: Array, first: int, span: tuple[slice, slice]) -> None:
        """Keep the number of the highest channel so far, the first of equal ones."""
        if self.best is None:
            self.best = np.full(self.values.shape, -np.inf)
            self.values = np.zeros(self.values.shape, np.int64)
        highest = part.max(axis=0)
        better = highest > self.best[span]
        self.best[span][better] = highest[better]
        self.values[span][better] = first + part.argmax(axis=0)[better]

    def done(self) -> Array:
        """Return the plane; sums become means."""
        if not self.average:
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
    count = volume.shape[0] if channel is None and len(volume.shape) == 4 else 1
    begin = channel or 0
    normal, (first, second) = pictures[0].normal, pictures[0].axes
    for low, high in _layers([one.index for one in pictures], chunks[normal]):
        free = PIECE_VOXELS // ((high - low) * count)
        wide = _whole(free // chunks[first], chunks[second], shape[second])
        tall = _whole(free // wide, chunks[first], shape[first])
        corners = itertools.product(range(0, shape[first], tall), range(0, shape[second], wide))
        for row, column in corners:
            start, stop = [begin, 0, 0, 0], [begin + count, 0, 0, 0]
            start[1 + normal], stop[1 + normal] = low, high
            start[1 + first], stop[1 + first] = row, min(row + tall, shape[first])
            start[1 + second], stop[1 + second] = column, min(column + wide, shape[second])
            roi = Roi(tuple(start), tuple(stop))
            yield roi, _read(volume, roi)


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


def _read(volume: Source, roi: Roi) -> Array:
    """Read a box of all four axes, (c, z, y, x); a volume without channels has one."""
    if len(volume.shape) == 4:
        return volume.read(roi)
    return np.reshape(volume.read(Roi(roi.start[1:], roi.stop[1:])), roi.shape)


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
