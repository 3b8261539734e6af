"""A resampled volume as a Dask array: one task per block, which reads what it needs itself."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from volflow.engine.run_options import OutputOptions
from volflow.errors import InvalidInput
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.store.layout import piece_of
from volflow.volumes.arrays.computed import DaskSource
from volflow.volumes.arrays.inputs import refuse_sequential
from volflow.volumes.resample.resample_layout import layer_of, made_of
from volflow.volumes.resample.resample_request import ResampleRequest

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["resampled_lazily"]


def resampled_lazily(asked: ResampleRequest) -> da.Array:
    """Return a resampled volume as a Dask array, in blocks of a shard.

    Raises
    ------
    InvalidInput
        Where options say how a result is stored, or the volume cannot be read by parts.
    """
    import dask.array as da
    from dask.base import tokenize

    _refuse_storing(asked)
    spec = asked.spec
    block = piece_of(spec.chunk, spec.shard, spec.shape, spec.dtype)
    if isinstance(asked.opened, DaskSource):
        return _derived(asked, block)
    refuse_sequential(asked.opened, labels=asked.how.classes)
    source = made_of(asked, layer_of(asked))
    array: da.Array = da.from_array(
        source,
        chunks=tuple(min(b, n) for b, n in zip(block, spec.shape, strict=True)),
        name=f"resample-{tokenize(source.identity(), block)}",
        meta=np.empty((0,) * source.ndim, source.dtype),
    )
    return array


def _refuse_storing(asked: ResampleRequest) -> None:
    names = sorted({one.name for one in fields(OutputOptions)} - {"progress"} | {"levels"})
    plain = type(asked.options)()
    given = [n for n in names if getattr(asked.options, n) != getattr(plain, n)]
    if given:
        raise InvalidInput(
            f"{given[0]}= says how a result is stored, and without out none is: a Dask array is"
            " returned; give out, or leave it out"
        )


def _derived(asked: ResampleRequest, block: tuple[int, ...]) -> da.Array:
    """Resample what Dask computes: each block is made of a slice of the array."""
    import dask.array as da

    assert isinstance(asked.opened, DaskSource)
    array = asked.opened.array
    grid = BlockGrid(asked.spec.shape, block)
    parts = np.empty(grid.counts, object)
    for number, place in enumerate(np.ndindex(*grid.counts)):
        parts[place] = _block(asked, array, grid[number])
    result: da.Array = da.block(parts.tolist())
    return result


def _block(asked: ResampleRequest, array: da.Array, roi: Roi) -> da.Array:
    import dask.array as da

    *front, z, y, x = roi
    box = Roi(*zip(z, y, x, strict=True))
    source = asked.how.source(box)
    part = array[tuple(slice(*side) for side in (*front, *source))]
    made: da.Array = da.map_blocks(
        partial(_made, asked=(asked.how, box, str(asked.spec.dtype))),
        part.rechunk(part.shape),
        chunks=tuple((n,) for n in roi.shape),
        dtype=asked.spec.dtype,
        meta=np.empty((0,) * roi.ndim, asked.spec.dtype),
    )
    return made


def _made(voxels: Any, asked: Any) -> Any:
    how, box, dtype = asked
    return how.make(np.asarray(voxels, how.dtype), box, np.dtype(dtype))
