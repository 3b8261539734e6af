"""The values of a volume, estimated without reading all of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from volflow.geometry.histogram import Histogram, measure
from volflow.geometry.roi import Roi
from volflow.store.slabs import Source
from volflow.store.volume import Volume, open_volume
from volflow.volumes.distribution import load_statistics, sidecars

__all__ = [
    "SAMPLE_BYTES",
    "middle_counts",
    "sample_boxes",
    "sampled_counts",
    "stored_counts",
    "value_counts",
]

SAMPLE_BYTES = 2**26  # read of a volume, and held; of one chunk at least,
CHUNK_BYTES = 2**28  # unless that alone is larger
SAMPLE_SIDE = 3  # pieces per axis
SAMPLED_SIDE = 64  # voxels that a piece has at least


def value_counts(volume: Volume) -> list[Histogram | None]:
    """Return the values of each channel, as stored by `statistics`, otherwise those of a sample.

    A histogram is None if one chunk alone is too much to read.

    Raises
    ------
    RunFailed
        If the stored bytes are damaged.
    """
    return [*stored_counts(volume)] or sampled_counts(volume)


def stored_counts(volume: Volume) -> tuple[Histogram, ...]:
    """Return the values of each channel as stored by `statistics`; none where they are not."""
    for foreground in (False, True):
        # The identity looks at every file of the volume: only where it is of use.
        if any(path.is_file() for path in sidecars(volume, foreground)):
            known = load_statistics(volume, volume.identity(), foreground)
            if known is not None:
                return known.histograms
    return ()


def sampled_counts(volume: Volume) -> list[Histogram | None]:
    """Return the values of each channel in a sample.

    That is the coarsest level of the pyramid, and of a large one a few chunks spread over it. A
    histogram is None if one chunk alone is too much to read.
    """
    if volume.path is not None and len(volume.levels) > 1:
        volume = open_volume(volume.path, len(volume.levels) - 1, timepoint=volume.timepoint)
    count = volume.channels_count
    read = [volume.read(box).reshape(count, -1) for box in sample_boxes(volume)]
    if not read:
        return [None] * count
    return [measure(np.concatenate(parts)) for parts in zip(*read, strict=True)]


def middle_counts(volume: Source) -> list[Histogram]:
    """Return the values of each channel in the middle piece of an image that is dear to read."""
    box = Roi.full(volume.shape)
    for axis, side in enumerate(volume.piece[-3:], start=volume.ndim - 3):
        low = volume.shape[axis] // 2 // side * side
        start, stop = list(box.start), list(box.stop)
        start[axis], stop[axis] = low, min(low + side, volume.shape[axis])
        box = Roi(tuple(start), tuple(stop))
    return [measure(one) for one in volume.read(box).reshape(volume.channels_count, -1)]


def sample_boxes(image: Source) -> list[Roi]:
    """Return the box of a whole small image, or those of a few pieces of a larger one."""
    shape = image.shape[-3:]
    # A strip or a row is too little to see what an image is like.
    piece = tuple(p * max(1, SAMPLED_SIDE // p) for p in image.piece[-3:])
    voxel_bytes = image.channels_count * image.dtype.itemsize
    if math.prod(shape) * voxel_bytes <= SAMPLE_BYTES:
        return [Roi.full(image.shape)]
    decoded = math.prod(map(min, piece, shape)) * voxel_bytes
    if decoded > CHUNK_BYTES:
        return []
    front = image.shape[:-3]
    return [
        Roi((*(0 for _ in front), *box.start), (*front, *box.stop))
        for box in _spread(shape, piece)[: max(1, SAMPLE_BYTES // decoded)]
    ]


def _spread(shape: Sequence[int], chunk: Sequence[int]) -> list[Roi]:
    """Return the boxes of chunks spread over a volume, those nearest its middle first."""
    along = []
    for size, step in zip(shape, chunk, strict=True):
        places = {int((n + 0.5) / SAMPLE_SIDE * size) // step for n in range(SAMPLE_SIDE)}
        along.append([(n * step, min(size, (n + 1) * step)) for n in sorted(places)])

    def from_middle(box: Sequence[tuple[int, int]]) -> float:
        parts = ((a + b) / 2 / n - 0.5 for (a, b), n in zip(box, shape, strict=True))
        return sum(part * part for part in parts)

    boxes = sorted(itertools.product(*along), key=from_middle)
    return [Roi(tuple(a for a, _ in box), tuple(b for _, b in box)) for box in boxes]
