"""Chunks in stored objects: where they lie in a shard; truncated Blosc chunks, which would crash.

Blosc trusts the length in a chunk's header and reads beyond the end of a truncated chunk (c-blosc
1.21, as in numcodecs 0.16), which ends the process without an exception.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, ShardingCodec
from zarr.storage import LocalStore

__all__ = [
    "check_frames",
    "chunk_spans",
    "index_bytes",
    "is_blosc",
    "objects_of",
    "refuse_truncated",
]

HEADER = 16  # bytes of a Blosc header; the frame's length is at byte 12
EMPTY = 2**64 - 1  # offset of a chunk that a shard does not hold

Index = Sequence[int | slice]


def check_frames(array: zarr.Array[Any], index: Index) -> None:
    """Refuse a box of a local array if one of its Blosc chunks is truncated.

    Parameters
    ----------
    array
        Any Zarr array; only chunks that Blosc compressed are checked.
    index
        Per axis an integer, or a slice with both ends.

    Raises
    ------
    ValueError
        If a chunk is truncated, naming the chunk or shard.

    Examples
    --------
    >>> check_frames(zarr.ones(shape=(4, 4), chunks=(2, 2), dtype="uint8"), (0, slice(0, 4)))
    """
    if not isinstance(array.store, LocalStore) or not is_blosc(array):
        return
    folder = Path(array.store.root) / array.path
    for number, name in objects_of(array, index):
        try:
            with (folder / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                for start, length in _frames(file.fileno(), size, array, number, index):
                    head = os.pread(file.fileno(), HEADER, start)
                    refuse_truncated(name, head, min(length, size - start))
        except FileNotFoundError:
            continue  # an empty chunk


def refuse_truncated(name: str, head: bytes, length: int) -> None:
    """Raise ValueError if a Blosc chunk has fewer bytes than its header claims.

    Parameters
    ----------
    name
        Of the stored object.
    head
        The chunk's first bytes.
    length
        Of the chunk, as it is stored.
    """
    claimed = int.from_bytes(head[12:HEADER], "little")
    if len(head) < HEADER or claimed > length:
        raise ValueError(f"{name} has a chunk of {length} bytes whose header claims {claimed}")


def is_blosc(array: zarr.Array[Any]) -> bool:
    """Return True if Blosc compressed the chunks of an array."""
    if array.metadata.zarr_format == 2:
        return getattr(array.metadata.compressor, "codec_id", "") == "blosc"
    return isinstance(_codecs(array)[-1], BloscCodec)


def _codecs(array: zarr.Array[Any]) -> Sequence[Any]:
    """Return the codecs of a chunk, inside a shard or not."""
    codecs: Sequence[Any] = array.metadata.codecs  # type: ignore[union-attr] # of Zarr v3
    return codecs[0].codecs if isinstance(codecs[0], ShardingCodec) else codecs


def _frames(
    file: int, size: int, array: zarr.Array[Any], number: Sequence[int], index: Index
) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each chunk in a file that an index touches."""
    if array.shards is None:
        yield 0, size
        return
    length, at_start = index_bytes(array)
    at = 0 if at_start else size - length
    yield from chunk_spans(array, os.pread(file, length, at) if at >= 0 else b"", number, index)


def index_bytes(array: zarr.Array[Any]) -> tuple[int, bool]:
    """Return the length of a shard's index in bytes, and whether it lies at the shard's start."""
    codec: Any = array.metadata.codecs[0]  # type: ignore[union-attr] # of Zarr v3
    shard = array.shards or array.chunks
    extra = 4 if len(codec.index_codecs) > 1 else 0  # a checksum
    bytes_ = 16 * math.prod(s // c for s, c in zip(shard, array.chunks, strict=True))
    return bytes_ + extra, codec.index_location.value == "start"


def chunk_spans(
    array: zarr.Array[Any], found: bytes, number: Sequence[int], index: Index
) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each chunk of a shard that an index touches.

    Parameters
    ----------
    array
        Sharded.
    found
        The shard's index, as stored; nothing is yielded if it is cut short, for which zarr raises.
    number
        Of the shard, per axis.
    index
        As in `check_frames`.
    """
    shards = array.shards or array.chunks
    counts = [s // c for s, c in zip(shards, array.chunks, strict=True)]
    if len(found) < 16 * math.prod(counts):
        return
    table = np.frombuffer(found, "<u8", 2 * math.prod(counts)).reshape(*counts, 2)
    corner = [n * s for n, s in zip(number, shards, strict=True)]
    inside = [
        range(max(0, r.start - a // c), min(count, r.stop - a // c))
        for r, a, c, count in zip(
            _ranges(array.chunks, index), corner, array.chunks, counts, strict=True
        )
    ]
    for place in itertools.product(*inside):
        start, length = (int(n) for n in table[place])
        if (start, length) != (EMPTY, EMPTY):
            yield min(start, 2**62), length


def objects_of(array: zarr.Array[Any], index: Index) -> Iterator[tuple[tuple[int, ...], str]]:
    """Yield number and key of each stored object (shard or chunk) that an index touches."""
    for number in itertools.product(*_ranges(array.shards or array.chunks, index)):
        yield number, array.metadata.encode_chunk_key(number)


def _ranges(sizes: Sequence[int], index: Index) -> list[range]:
    """Return the numbers of the chunks that an index touches, per axis.

    Examples
    --------
    >>> _ranges((2, 3), (1, slice(2, 7)))
    [range(0, 1), range(0, 3)]
    """
    return [
        range(at // n, at // n + 1)
        if isinstance(at, int)
        else range(at.start // n, -(-at.stop // n))
        for at, n in zip(index, sizes, strict=True)
    ]
