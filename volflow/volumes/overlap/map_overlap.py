"""``map_overlap`` with Dask's signature: one task per block where the arrays lie in a Zarr store.

Dask's own cuts halos out of its neighbours' chunks: some 25 tasks per block, the whole input moved
between workers, thin chunks merged silently. Here each block reads itself and its halo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import zarr
from dask.base import tokenize

from volflow.errors import InvalidInput
from volflow.store.layout import piece_of
from volflow.store.slabs import Source
from volflow.store.volume import Volume, open_volume
from volflow.volumes.arrays.computed import refuse_unknown_sizes
from volflow.volumes.arrays.inputs import (
    VolumeLike,
    as_array,
    open_input,
    refuse_sequential,
    stored_in,
)
from volflow.volumes.arrays.leaves import Mapped, identity_of, mapped
from volflow.volumes.overlap.depth import check_chunks, check_constants, is_whole, padded_axes
from volflow.volumes.overlap.padding import PaddedAxis, padded_block

__all__ = ["Stored", "as_lazy", "map_overlap"]

Chunks = tuple[tuple[int, ...], ...]
Block = int | Sequence[int] | None
# One for all axes, one per axis (those of a mapping only), or a list of these, one per source.
Depth = int | Sequence[object] | Mapping[int, object] | None
Boundary = str | float | Sequence[object] | Mapping[int, object] | None


def map_overlap(
    func: Callable[..., Any],
    *sources: VolumeLike,
    depth: Depth = None,
    boundary: Boundary = None,
    trim: bool = True,
    align_arrays: bool = True,
    allow_rechunk: bool = False,
    block: Block = None,
    **kwargs: Any,
) -> da.Array:
    """Apply a function to overlapping blocks, lazily: ``dask.array.map_overlap`` that scales.

    Arrays that lie in a Zarr store take one task per block, which reads the block and its halo,
    applies ``func`` and trims; nothing moves between workers, and chunks stay regular. Arrays that
    are computed go to ``dask.array.map_overlap``.

    Parameters
    ----------
    func
        Gets one padded block per source and returns one of the same shape.
    sources
        `VolumeLike`, and Dask or NumPy arrays of any number of axes. Those straight from a store
        (``dask.array.from_zarr``, ``Volume.dask``) count as stored and keep their chunks.
    depth
        Halo in voxels. An integer means the spatial axes, the last three; a tuple has one entry
        per axis, a dictionary those it names; ``(low, high)`` on an axis needs the boundary
        ``"none"``; a list has one entry per source.
    boundary
        Outside of the array: ``"reflect"`` (the edge voxel counts twice, as NumPy's
        ``symmetric``), ``"periodic"``, ``"nearest"``, a number, or ``"none"`` (default: nothing);
        per axis or source like ``depth``.
    trim
        Cut the halo off again; False where ``func`` does.
    align_arrays, allow_rechunk
        As in Dask, for arrays that are computed. Rechunking is refused unless allowed, since it
        changes chunks where nobody asked for it.
    block
        Voxels per block of stored sources; by default a shard, or about 256³ voxels.
    **kwargs
        As in ``dask.array.map_blocks``: ``dtype``, ``meta``, ``chunks``, ``drop_axis``,
        ``new_axis``, ``name``; the rest goes to ``func``. With ``dtype`` or ``meta`` nothing is
        called before it is computed.

    Returns
    -------
    dask.array.Array
        Store it with `volflow.write`.

    Raises
    ------
    InvalidInput
        For a depth or boundary that does not fit, or chunks thinner than the depth.

    Examples
    --------
    >>> import zarr
    >>> x = zarr.create_array({}, shape=(30, 30, 30), chunks=(10, 10, 10), dtype="f4")
    >>> y = map_overlap(lambda b: b + 1, x, depth=2, boundary="reflect", dtype="f4", block=20)
    >>> y.chunks[0], float(y.mean().compute())
    ((20, 10), 1.0)
    """
    if not sources:
        raise InvalidInput("map_overlap needs at least one array: map_overlap(func, volume, …)")
    arrays = [as_lazy(source, block) for source in sources]
    halos = padded_axes([a.chunks for a in arrays], depth, boundary)
    for a, axes in zip(arrays, halos, strict=True):
        check_constants(axes, a.dtype)
    if any(axis < 0 for axis in _axes_of(kwargs, "new_axis")):
        raise InvalidInput(f"new_axis counts from 0, given {kwargs['new_axis']}")
    if "meta" not in kwargs and kwargs.get("dtype") is not None:
        ndim = max(a.ndim for a in arrays)
        ndim += len(_axes_of(kwargs, "new_axis")) - len(_axes_of(kwargs, "drop_axis"))
        kwargs["meta"] = np.empty((0,) * ndim, kwargs["dtype"])
    stored = [a for a in arrays if isinstance(a, Stored)]
    if len(stored) == len(arrays):
        return _map_stored(func, stored, halos, trim, kwargs)
    new = _axes_of(kwargs, "new_axis")
    kinds = {(a.depth, a.boundary) for axes in halos for a in axes}
    if trim and new and (len(kinds) > 1 or max(new) >= min(a.ndim for a in arrays)):
        raise InvalidInput(
            f"with new_axis {kwargs['new_axis']} Dask trims the wrong axes of a computed array,"
            " except for a first axis and one depth for all; store the array with vf.write first"
        )
    computed: list[da.Array] = [a.dask(arrays) if isinstance(a, Stored) else a for a in arrays]
    if not allow_rechunk:
        for axes in padded_axes([a.chunks for a in computed], depth, boundary):
            check_chunks(axes)
    result: da.Array = da.map_overlap(
        func,
        *computed,
        depth=[{n: a.depth for n, a in enumerate(axes)} for axes in halos],
        boundary=[{n: a.boundary for n, a in enumerate(axes)} for axes in halos],
        trim=trim,
        align_arrays=align_arrays,
        allow_rechunk=allow_rechunk,
        **kwargs,
    )
    return result


@dataclass(frozen=True)
class Stored:
    """An array in a Zarr store or a mapped file, and the blocks it is read in."""

    source: Source | zarr.Array[Any] | Mapped
    chunks: Chunks

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return tuple(self.source.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.chunks)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its voxels."""
        return np.dtype(self.source.dtype)

    def identity(self) -> str:
        """Changes when the stored voxels do, so that Dask never takes old results for new."""
        if isinstance(self.source, Source):
            return self.source.identity()
        return str(identity_of(self.source) or tokenize(self.source))

    def dask(self, beside: Sequence[Any] = ()) -> da.Array:
        """As a plain Dask array, in the chunks of a computed array of the same grid."""
        chunks = self.chunks
        for other in beside:
            if isinstance(other, da.Array) and other.shape[-3:] == self.shape[-3:]:
                chunks = (*chunks[:-3], *other.chunks[-3:])
                break
        if isinstance(self.source, Volume):
            volume: da.Array = self.source.dask(chunks)
            return volume
        name = f"volume-{tokenize(self.identity(), chunks)}"
        meta = np.empty((0,) * self.ndim, self.dtype)
        array: da.Array = da.from_array(self.source, chunks=chunks, name=name, meta=meta)
        return array


def as_lazy(x: Any, block: Block = None) -> Stored | da.Array:
    """What a user hands over as a stored array with its blocks, or as a Dask array."""
    x, _ = as_array(x)
    if isinstance(x, da.Array):
        refuse_unknown_sizes(x)
        stored = stored_in(x)
        if stored is None:
            return x
        return Stored(stored, x.chunks if block is None else _cut(stored, block))
    if isinstance(x, np.ndarray):
        part = mapped(x)
        if part is None:
            array: da.Array = da.asarray(x)
            return array
        return Stored(part, _cut(part, block))
    source = open_volume(x) if isinstance(x, Volume | zarr.Array) else open_input(x)
    refuse_sequential(source)
    return Stored(source, _cut(source, block))


def _cut(source: Source | zarr.Array[Any] | Mapped, block: Block) -> Chunks:
    """Regular chunks over a stored array."""
    shape = tuple(source.shape)
    chunk = source.piece if isinstance(source, Source) else source.chunks
    sizes: Sequence[int]
    if block is None:
        sizes = piece_of(chunk, source.shards, shape, source.dtype)
    else:
        space = min(3, len(shape))
        given = tuple(block) if isinstance(block, Iterable) else (block,) * space
        sizes = (*chunk[:-space], *given) if len(given) == space else given
        if len(sizes) != len(shape) or not all(is_whole(b) and b > 0 for b in sizes):
            raise InvalidInput(
                f"block must be a positive integer or one per axis, given {block!r} for an array"
                f" of shape {shape}"
            )
    chunks: Chunks = da.core.normalize_chunks(tuple(int(b) for b in sizes), shape)
    return chunks


def _map_stored(
    func: Callable[..., Any],
    arrays: Sequence[Stored],
    halos: Sequence[tuple[PaddedAxis, ...]],
    trim: bool,
    kwargs: dict[str, Any],
) -> da.Array:
    """One task per block: read with halo, apply, trim; Dask fuses the three."""
    lead = max(range(len(arrays)), key=lambda n: (arrays[n].ndim, -n))
    cut = arrays[lead].chunks
    padded = []
    for array, axes in zip(arrays, halos, strict=True):
        if any(n not in (1, sum(sizes)) for n, sizes in zip(array.shape[::-1], cut[::-1])):  # noqa: B905
            raise InvalidInput(
                f"sources must have equal shapes along their last axes, given {array.shape} and"
                f" {arrays[lead].shape}"
            )
        aligned = tuple(
            PaddedAxis(axis.sizes if n == 1 else sizes, axis.low, axis.high, axis.boundary)
            for n, sizes, axis in zip(array.shape, cut[-array.ndim :], axes, strict=True)
        )
        padded.append((array, aligned))
    dropped = {axis % len(cut) for axis in _axes_of(kwargs, "drop_axis")}
    if not trim and "chunks" not in kwargs:
        left = [sizes for axis, sizes in enumerate(cut) if axis not in dropped]
        new = _axes_of(kwargs, "new_axis")
        for axis in sorted(a % (len(left) + len(new)) for a in new):
            left.insert(axis, (1,))  # as Dask takes a new axis to be
        kwargs["chunks"] = tuple(left)
    result: da.Array = da.map_blocks(func, *(_read(a, axes) for a, axes in padded), **kwargs)
    if not trim or not any(axis.low or axis.high for axis in padded[lead][1]):
        return result
    edges = [axis.halos for axis in padded[lead][1]]
    edges = [halos for axis, halos in enumerate(edges) if axis not in dropped]
    for axis in sorted(a % result.ndim for a in _axes_of(kwargs, "new_axis")):
        edges.insert(axis, ((0, 0),) * len(result.chunks[axis]))
    chunks = tuple(
        tuple(n - sum(h) for n, h in zip(sizes, halos, strict=True))
        for sizes, halos in zip(result.chunks, edges, strict=True)
    )
    trimmed: da.Array = da.map_blocks(
        _trim, result, edges=tuple(edges), chunks=chunks, dtype=result.dtype, meta=result._meta
    )
    return trimmed


def _axes_of(kwargs: dict[str, Any], name: str) -> list[int]:
    """The axes of ``drop_axis`` or ``new_axis``: none, one or several."""
    given = kwargs.get(name)
    if given is None:
        return []
    return list(given) if isinstance(given, Iterable) else [given]


def _read(array: Stored, axes: tuple[PaddedAxis, ...]) -> da.Array:
    """The padded blocks of a stored array."""
    identity = array.identity()
    read: da.Array = da.map_blocks(
        _read_block,
        source=array.source,
        axes=axes,
        identity=identity,
        name=f"read-{tokenize(identity, axes)}",
        chunks=tuple(axis.padded for axis in axes),
        dtype=array.dtype,
        meta=np.empty((0,) * array.ndim, array.dtype),
    )
    return read


def _read_block(
    source: Any, axes: tuple[PaddedAxis, ...], identity: str, block_id: tuple[int, ...]
) -> npt.NDArray[Any]:
    """A padded block; with query planning Dask makes its own names, which follow the identity."""
    del identity
    return padded_block(source.__getitem__, axes, block_id, np.dtype(source.dtype))


def _trim(
    block: npt.NDArray[Any],
    edges: tuple[tuple[tuple[int, int], ...], ...],
    block_id: tuple[int, ...],
) -> npt.NDArray[Any]:
    halos = [axis[index] for axis, index in zip(edges, block_id, strict=True)]
    index = tuple(slice(lo, n - hi) for n, (lo, hi) in zip(block.shape, halos, strict=True))
    return block[index]
