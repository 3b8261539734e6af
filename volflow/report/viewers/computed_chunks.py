"""Arrays that lie in no file, for viewers: a Zarr array whose chunks are made when they are read.

A viewer asks for the chunks that it shows, and only those are computed, one after the other, all
channels of a place together; the last ones are kept.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from zarr.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from volflow.geometry.roi import Roi
from volflow.store.formats.sources import ArraySource
from volflow.store.meta import Level
from volflow.store.slabs import Source
from volflow.store.volume import Volume

__all__ = ["ComputedStore", "computed_volume"]

CHUNK = re.compile(r"c((?:/\d+)+)")
CHUNK_SIDE = 64  # of what is in memory
MOST_CHUNK_BYTES = 2**26  # of what Dask computes in larger pieces
CACHE_BYTES = 2**28


class ComputedStore(MemoryStore):
    """The store of a Zarr array: its metadata in memory, its chunks read from a source.

    Parameters
    ----------
    source
        ``zyx`` or ``czyx``. Floats of other sizes are read as float32, which viewers know.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.dtype = np.dtype("float32" if source.dtype.kind == "f" else source.dtype)
        self.sides = _sides(source)
        self.places: OrderedDict[tuple[int, ...], np.ndarray[Any, Any]] = OrderedDict()
        self.turn = threading.Lock()

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """Return the bytes at a key; those of a chunk are made now."""
        if CHUNK.fullmatch(key) and key not in self._store_dict:
            content = await asyncio.to_thread(self.content, key)
            if content is None:
                return None
            buffer = (prototype or default_buffer_prototype()).buffer
            return buffer.from_bytes(content)
        return await super().get(key, prototype, byte_range)

    def content(self, key: str) -> bytes | None:
        """Return what a server sends for a key; None where there is nothing.

        Raises
        ------
        VolflowError
            Where a chunk cannot be read; whatever its computation raises.
        """
        found = CHUNK.fullmatch(key)
        if found is None:
            stored = self._store_dict.get(key)
            return None if stored is None else stored.to_bytes()
        numbers = [int(number) for number in found[1][1:].split("/")]
        if len(numbers) != self.source.ndim:
            return None
        *channel, z, y, x = numbers
        start = tuple(n * side for n, side in zip((z, y, x), self.sides, strict=True))
        shape = self.source.shape
        if any(a >= n for a, n in zip((*channel, *start), shape, strict=True)):
            return None
        voxels = self._place(start)
        return bytes((voxels[channel[0]] if channel else voxels).tobytes())

    def _place(self, start: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return all channels of a chunk, padded at the far end to its sides."""
        with self.turn:  # channels of one place are asked for at once
            if start in self.places:
                self.places.move_to_end(start)
                return self.places[start]
            front, space = self.source.shape[:-3], self.source.shape[-3:]
            stop = tuple(
                min(a + side, n) for a, side, n in zip(start, self.sides, space, strict=True)
            )
            read = self.source.read(Roi((*(0 for _ in front), *start), (*front, *stop)))
            voxels = np.zeros((*front, *self.sides), self.dtype.newbyteorder("<"))
            z, y, x = (b - a for a, b in zip(start, stop, strict=True))
            voxels[..., :z, :y, :x] = read
            self.places[start] = voxels
            while len(self.places) > 1 and voxels.nbytes * len(self.places) > CACHE_BYTES:
                self.places.popitem(last=False)
            return voxels

    @property
    def lazy(self) -> bool:
        """Whether reading a chunk computes it."""
        return _is_lazy(self.source)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the array, as a server sends them."""
        found: dict[str, Any] = json.loads(self.content("zarr.json") or b"{}")
        return found


def computed_volume(source: Source) -> Volume:
    """Return a source that lies in no store as a volume; no voxel is read.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> volume = computed_volume(open_source(np.arange(24.0).reshape(2, 3, 4)))
    >>> volume[1, 2].tolist(), volume.dtype
    ([20.0, 21.0, 22.0, 23.0], dtype('float32'))
    """
    store, axes = ComputedStore(source), source.meta.axes
    chunks = (*(1 for _ in axes[:-3]), *store.sides)
    array = zarr.create_array(
        store, shape=source.shape, dtype=store.dtype, chunks=chunks,
        compressors=None, filters=None, fill_value=0, dimension_names=axes,
    )  # fmt: skip
    meta = replace(source.meta, axes=axes)
    level = Level("", meta.spacing, meta.translation)
    return Volume(array, meta, levels=(level,), stored_axes="".join(axes))


def _is_lazy(source: Source) -> bool:
    return not isinstance(source, ArraySource | Volume)


def _sides(source: Source) -> tuple[int, ...]:
    """Return the sides of a chunk: of what Dask computes its own, unless those are very large."""
    space = source.shape[-3:]
    if not _is_lazy(source):
        return tuple(min(CHUNK_SIDE, n) for n in space)
    sides = [min(side, n) for side, n in zip(source.piece[-3:], space, strict=True)]
    voxel_bytes = source.dtype.itemsize * source.channels_count
    while math.prod(sides) * voxel_bytes > MOST_CHUNK_BYTES and max(sides) > 1:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    return tuple(sides)
