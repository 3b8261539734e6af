"""Chunks that must not reach their decoder: it would take the process with it.

Blosc believes what a chunk says of its own length and reads on behind its end (c-blosc 1.21, as in
numcodecs 0.16): a chunk that was cut short ends the process, and no exception tells why.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import BloscCodec
from zarr.storage import LocalStore

__all__ = ["check_frames"]

HEADER = 16  # of a Blosc frame; its length stands at byte 12


def check_frames(array: zarr.Array[Any], index: Sequence[int | slice]) -> None:
    """Refuse a box of a local array, one of whose Blosc chunks claims more bytes than it has.

    Parameters
    ----------
    array
        Any; only unsharded ones of Blosc are looked at.
    index
        An integer or a slice with both ends per axis.

    Raises
    ------
    ValueError
        Naming the chunk.

    Examples
    --------
    >>> check_frames(zarr.ones(shape=(4, 4), chunks=(2, 2), dtype="uint8"), (0, slice(0, 4)))
    """
    if not isinstance(array.store, LocalStore) or array.shards is not None or not _is_blosc(array):
        return
    folder = Path(array.store.root) / array.path
    for chunk in _chunks(array.chunks, index):
        name = array.metadata.encode_chunk_key(chunk)
        try:
            with (folder / name).open("rb") as file:
                head, size = file.read(HEADER), os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            continue  # an empty chunk
        claimed = int.from_bytes(head[12:HEADER], "little")
        if len(head) < HEADER or claimed > size:
            raise ValueError(f"chunk {name} has {size} bytes and says it had {claimed}")


def _is_blosc(array: zarr.Array[Any]) -> bool:
    if array.metadata.zarr_format == 2:
        return getattr(array.metadata.compressor, "codec_id", "") == "blosc"
    return isinstance(array.metadata.codecs[-1], BloscCodec)


def _chunks(sizes: Sequence[int], index: Sequence[int | slice]) -> Iterator[tuple[int, ...]]:
    """The numbers of the chunks that an index touches.

    Examples
    --------
    >>> list(_chunks((2, 3), (1, slice(2, 7))))
    [(0, 0), (0, 1), (0, 2)]
    """
    ranges = [
        range(at // n, at // n + 1)
        if isinstance(at, int)
        else range(at.start // n, -(-at.stop // n))
        for at, n in zip(index, sizes, strict=True)
    ]
    return itertools.product(*ranges)
