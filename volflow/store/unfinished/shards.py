"""Write whole shards of an array, behind a fence if there is one."""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, StorePath

from volflow.errors import Superseded
from volflow.geometry.roi import Roi
from volflow.store.remote.address import Address, Location
from volflow.store.remote.zarr_store import Remote
from volflow.store.unfinished.fence import Fence

__all__ = ["write_shard"]


def write_shard(
    array: zarr.Array[Any],
    box: Roi,
    voxels: npt.NDArray[Any],
    folder: Path | None,
    fence: Fence | None = None,
) -> None:
    """Write a shard, or a chunk of an array without shards.

    Parameters
    ----------
    array
        The array.
    box, voxels
        The box of the shard, cut at the array's border, and its voxels in the array's dtype.
    folder
        Folder of the array; None if it is not on this machine.
    fence
        Of the session that writes; None for an array that nobody else may write.

    Raises
    ------
    Superseded
        If the session has ended; the array is as it was.
    OSError
        If it cannot be written.
    """
    target = array if fence is None else _fenced(array, fence)
    # Zarr compares each voxel to find empty chunks; here one voxel that differs is enough.
    corners, empty = voxels[tuple(slice(None, None, n) for n in array.chunks)], array.fill_value
    # Zarr takes NaN as equal to NaN, and has a fill value even if the array names none.
    if empty is not None and ((corners != empty) & np.isfinite(corners)).all():
        target = target.with_config({"write_empty_chunks": True})
    try:
        target.set_basic_selection(box.slices(), voxels)
    except (OSError, Superseded):
        raise
    except Exception:
        # Zarr reads a shard at the border before it writes it. A damaged one is deleted, as this
        # write repairs it.
        place: Location | None = folder
        if isinstance(array.store, Remote):
            place = Address(array.store.address) / array.path
        if place is None or not _discard(place / _key(array, box), fence):
            raise
        target.set_basic_selection(box.slices(), voxels)


def _key(array: zarr.Array[Any], box: Roi) -> str:
    """Return the path of a shard below its array."""
    unit = array.shards or array.chunks
    number = tuple(a // n for a, n in zip(box.start, unit, strict=True))
    return array.metadata.encode_chunk_key(number)


def _discard(path: Location, fence: Fence | None) -> bool:
    """Delete a file or an object; return False if there is none."""
    exists = path.is_file()
    if fence is None or isinstance(path, Address):
        path.unlink(missing_ok=True)
    else:
        fence.remove(path)
    return exists


def _fenced(array: zarr.Array[Any], fence: Fence) -> zarr.Array[Any]:
    """Return an array on this machine whose files are written behind a fence."""
    if not isinstance(array.store, LocalStore):
        return array
    place = StorePath(_FencedStore(array.store.root, fence), array.path)
    return zarr.Array(type(array.async_array)(array.metadata, place, array.async_array.config))


class _FencedStore(LocalStore):
    """A local store whose files are written and deleted behind a fence."""

    def __init__(self, root: Path, fence: Fence) -> None:
        super().__init__(root)
        self.fence = fence
        self._is_open = True  # opening would make a folder that was taken away anew

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        path = self.root / key
        if not path.parent.is_dir():
            self.fence.check()
            for folder in reversed(PurePosixPath(key).parents[:-1]):  # those below the root
                (self.root / folder).mkdir(exist_ok=True)
        self.fence.put(path, value.as_numpy_array())

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self.delete_sync, key)

    def delete_sync(self, key: str) -> None:
        self.fence.remove(self.root / key)
