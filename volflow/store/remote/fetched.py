"""Boxes of remote shards in few requests: the index, then all chunks of the box together.

Zarr before 3.3 asks for the chunks of a shard one by one, each waiting for the last: 65 requests
for 64 chunks, where two do. Here they are fetched first, neighbours in one request and shards side
by side, and zarr decodes them from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import ObjectStore, StorePath, WrapperStore

from volflow.store.frames import (
    HEADER,
    Index,
    chunk_spans,
    index_bytes,
    is_blosc,
    objects_of,
    refuse_truncated,
)
from volflow.store.remote.access import ask

__all__ = ["fetched"]

BETWEEN_BYTES = 2**20  # read and thrown away rather than asked around
SIDE_BY_SIDE = 8  # shards
COALESCES = (3, 3)  # since this version zarr itself

Parts = dict[tuple[str, Any], Any]


class _Fetched(WrapperStore[Any]):
    """A store of which some parts are in memory, and whose chunks are looked at if Blosc made them.

    Parameters
    ----------
    store
        The remote one.
    parts
        By key and range.
    blosc
        Refuse truncated chunks, on which its decoder would crash.
    index
        The range in which the index of a shard is asked for, if any.
    """

    def __init__(self, store: Any, parts: Parts, blosc: bool, index: Any) -> None:
        super().__init__(store)
        self.parts, self.blosc, self.index = parts, blosc, index

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        # Each part is asked for once, and zarr holds it from here on.
        part = self.parts.pop((key, byte_range), None)
        if part is None:
            found = await self._store.get(key, prototype, byte_range)
        else:
            found = prototype.buffer.from_bytes(part)
        # Not the index of a shard, nor a shard read whole, of whose index zarr takes the checksum.
        is_chunk = self.index is None or byte_range not in (None, self.index)
        if self.blosc and found is not None and is_chunk:
            refuse_truncated(key, found.as_numpy_array()[:HEADER].tobytes(), len(found))
        return found


def fetched(array: zarr.Array[Any], index: Index) -> zarr.Array[Any]:
    """Return an array whose chunks of a box are in memory, if they lie in remote shards.

    Shards that the box takes whole are left to zarr, which reads each in one request; so are
    unsharded chunks.

    Raises
    ------
    OSError
        If the store does not answer.
    """
    if not isinstance(array.store, ObjectStore):
        return array
    parts, blosc = _fetch_shards(array, index), is_blosc(array)
    if not parts and not blosc:
        return array
    table = None if array.shards is None else _index_range(array)
    place = StorePath(_Fetched(array.store, parts, blosc, table), array.path)
    return zarr.Array(type(array.async_array)(array.metadata, place, array.async_array.config))


def _fetch_shards(array: zarr.Array[Any], index: Index) -> Parts:
    """Return index and chunks of the shards of which a box takes parts."""
    parts: Parts = {}
    if array.shards is None or tuple(map(int, zarr.__version__.split(".")[:2])) >= COALESCES:
        return parts
    wanted = [
        (number, key)
        for number, key in objects_of(array, index)
        if not _is_whole(array, number, index)
    ]
    if wanted:
        with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(wanted))) as pool:
            for found in pool.map(partial(_fetch, array, index), *zip(*wanted, strict=True)):
                parts |= found
    return parts


def _index_range(array: zarr.Array[Any]) -> Any:
    """Return the range in which zarr asks for the index of a shard."""
    length, at_start = index_bytes(array)
    return RangeByteRequest(0, length) if at_start else SuffixByteRequest(length)


def _is_whole(array: zarr.Array[Any], number: Sequence[int], index: Index) -> bool:
    """Return True if an index touches all chunks of a shard, which zarr then reads whole."""
    shard, chunk = array.shards or array.chunks, array.chunks
    box = [(at, at + 1) if isinstance(at, int) else (at.start, at.stop) for at in index]
    return all(
        low < n * s + c and high > (n + 1) * s - c
        for (low, high), n, s, c in zip(box, number, shard, chunk, strict=True)
    )


def _fetch(array: zarr.Array[Any], index: Index, number: tuple[int, ...], key: str) -> Parts:
    import obstore

    store: Any = array.store
    path = f"{array.path}/{key}".lstrip("/")
    length, at_start = index_bytes(array)
    range_: Any = (0, length) if at_start else {"suffix": length}
    what = f"{store}/{path}"

    def table() -> tuple[bytes, int]:
        answer = obstore.get(store.store, path, options={"range": range_})
        return bytes(answer.bytes()), answer.meta["size"]

    try:
        found, size = ask(what, table)
    except FileNotFoundError:  # a shard of fill values; zarr asks again, and finds the same
        return {}
    spans = [(a, a + n) for a, n in chunk_spans(array, found, number, index)]
    parts: Parts = {(path, _index_range(array)): found}
    # Of a damaged index zarr finds the checksum wrong.
    if spans and max(stop for _, stop in spans) <= size:
        starts, stops = zip(*spans, strict=True)
        chunks = ask(
            what,
            lambda: obstore.get_ranges(
                store.store, path, starts=starts, ends=stops, coalesce=BETWEEN_BYTES
            ),
        )
        parts |= {
            (path, RangeByteRequest(*span)): chunk
            for span, chunk in zip(spans, chunks, strict=True)
        }
    return parts
