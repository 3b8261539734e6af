"""Chunks of HDF5 packed by gzip, unpacked by the thread that needs them.

The library has one lock for all that it does: with it, one thread unpacks while all others wait.
Here it only fetches the packed bytes.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from volflow.errors import Damaged
from volflow.store.slabs import Array

__all__ = ["read_unpacked"]

GZIP, SHUFFLE = 1, 2
# In the order in which they were applied; what else there is the library unpacks.
KNOWN = ((GZIP,), (SHUFFLE, GZIP))


def read_unpacked(dataset: Any, box: Sequence[int | slice]) -> Array | None:
    """Return what ``dataset[box]`` does; None of a dataset that the library must unpack.

    Parameters
    ----------
    dataset
        Of h5py; open.
    box
        A number, or a slice with both its ends, for each axis.

    Raises
    ------
    Damaged
        If a chunk does not hold what it should.
    OSError
        If one cannot be read.
    """
    made = dataset.id.get_create_plist()
    filters = tuple(made.get_filter(number)[0] for number in range(made.get_nfilters()))
    if dataset.chunks is None or filters not in KNOWN or not _is_plain(dataset):
        return None
    ranges = [(x.start, x.stop) if isinstance(x, slice) else (x, x + 1) for x in box]
    found = np.empty([high - low for low, high in ranges], dataset.dtype)
    steps = [
        range(low // side * side, high, side)
        for (low, high), side in zip(ranges, dataset.chunks, strict=True)
    ]
    for start in itertools.product(*steps):
        chunk = _chunk(dataset, start, shuffled=SHUFFLE in filters)
        if chunk is None:
            return None
        here, there = [], []
        for (low, high), begin, side in zip(ranges, start, dataset.chunks, strict=True):
            first, last = max(low, begin), min(high, begin + side)
            here.append(slice(first - begin, last - begin))
            there.append(slice(first - low, last - low))
        found[tuple(there)] = chunk[tuple(here)]
    # By its shape: of a single voxel an index makes a number in the machine's byte order.
    sides = [n for n, x in zip(found.shape, box, strict=True) if isinstance(x, slice)]
    whole: Array = found.reshape(sides)
    return whole


def _is_plain(dataset: Any) -> bool:
    """Return whether its numbers lie in the file as they do in NumPy."""
    import h5py

    kind = dataset.dtype.kind in "iuf"
    return bool(kind and dataset.id.get_type().equal(h5py.h5t.py_create(dataset.dtype)))


def _chunk(dataset: Any, start: tuple[int, ...], *, shuffled: bool) -> Array | None:
    """Return the voxels of a chunk; None of one that was not packed as the others."""
    if not dataset.id.get_chunk_info_by_coord(start).size:  # never written
        return np.full(dataset.chunks, dataset.fillvalue, dataset.dtype)
    left_out, packed = dataset.id.read_direct_chunk(start)
    if left_out:
        return None
    item = dataset.dtype.itemsize
    size = math.prod(dataset.chunks) * item
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, size)
    except zlib.error as error:
        raise Damaged(f"the chunk at {start} cannot be unpacked: {error}") from error
    if len(content) != size:
        raise Damaged(f"the chunk at {start} holds {len(content)} bytes, expected {size}")
    numbers = np.frombuffer(content, np.uint8)
    if shuffled and item > 1:  # all first bytes, then all second ones
        numbers = np.ascontiguousarray(numbers.reshape(item, -1).T)
    voxels: Array = numbers.reshape(-1).view(dataset.dtype).reshape(dataset.chunks)
    return voxels
