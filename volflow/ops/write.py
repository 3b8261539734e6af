"""Store a Dask array as a volume: each shard is computed and written by one task."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
from dask.base import optimize, tokenize

from volflow.engine.cluster import Cluster, connect, memory_per_worker
from volflow.errors import InvalidInput
from volflow.ops.copying import Progress, Run, adopted, lay_out, make_record, run_copy
from volflow.ops.session import check_apart
from volflow.store.meta import Meta
from volflow.store.volume import Volume

__all__ = ["check_array", "write"]


@dataclass(frozen=True)
class ArrayShape:
    """What a layout needs to know of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    meta: Meta
    sequential: bool = False


def _largest_chunk(array: da.Array) -> int:
    return int(math.prod(max(sizes) for sizes in array.chunks) * array.dtype.itemsize)


def check_array(array: da.Array) -> None:
    """Refuse a Dask array that is no volume."""
    if array.ndim not in (3, 4) or any(math.isnan(n) for n in array.shape):
        raise InvalidInput(
            f"a volume has axes zyx or czyx of known size; the array has shape {array.shape}"
        )


def write(  # noqa: PLR0913 - a public journey takes flat options
    array: da.Array,
    out: str | os.PathLike[str],
    *,
    like: Volume | None = None,
    meta: Meta | None = None,
    chunk: int | Sequence[int] | None = None,
    shard: int | Sequence[int] | None = None,
    cluster: Cluster = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> Volume:
    """Store a Dask array as a volume: each shard is computed and written by one task.

    ``dask.array.to_zarr`` lets tasks whose chunks cross a shard overwrite each other's voxels;
    here the shards are the tasks, whatever the array's chunks.

    Parameters
    ----------
    array
        ``zyx`` or ``czyx``; a NumPy array is taken too.
    out
        Path of the volume.
    like
        A volume whose spacing, unit, orientation and layout the new one takes.
    meta
        The same in detail, where there is no such volume.
    chunk, shard, cluster, memory, overwrite, progress
        As in `convert`.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     volume = write(da.ones((8, 8, 8), chunks=3), f"{folder}/a.zarr", progress=False)
    ...     float(volume[:].sum())
    512.0
    """
    array = da.asarray(array)
    check_array(array)
    check_apart(out, like)
    axes = ("z", "y", "x") if array.ndim == 3 else ("c", "z", "y", "x")
    meta = replace(meta or (like.meta if like is not None else Meta(axes)), axes=axes)
    if like is not None:
        if like.spatial_shape != array.shape[-3:]:
            raise InvalidInput(
                f"like= has shape {like.spatial_shape} but the array {array.shape[-3:]};"
                " leave like out and give meta="
            )
        chunk = like.chunks[-3:] if chunk is None else chunk
        shard = (like.shards or like.chunks)[-3:] if shard is None else shard
    shaped = ArrayShape(array.shape, array.dtype, meta)
    chunk, shard = adopted(out, chunk, shard, overwrite=overwrite)
    with connect(cluster) as client:
        memory_bytes = memory_per_worker(client, memory)
        copy = lay_out(shaped, os.fspath(out), chunk, shard, memory_bytes)
        copy = replace(
            copy,
            # What a block is computed from: a few of the array's own chunks.
            peak_bytes=copy.peak_bytes + 4 * _largest_chunk(array),
            what=f"Dask array {array.shape} in {array.npartitions} chunks",
        )

        def pieces(blocks: tuple[int, ...]) -> dict[int, Any]:
            # Culled, so that no task carries the graph of the whole array.
            parts = {n: array[copy.blocks[n].write_roi.slices()] for n in blocks}
            return dict(zip(parts, optimize(*parts.values()), strict=True))

        record = make_record(tokenize(array), copy)
        return run_copy(copy, record, Run(client, memory_bytes, overwrite, progress), None, pieces)
