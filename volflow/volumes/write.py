"""Store a Dask array as a volume: each shard is computed and written by one task."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from volflow.engine.cluster import Cluster, connect, is_embedded, memory_per_worker
from volflow.engine.clusters.sight import check_sight
from volflow.engine.progress import Progress, announce
from volflow.errors import InvalidInput, ResumeRefused
from volflow.geometry.grid import BlockGrid
from volflow.option import from_keywords, journey
from volflow.store.formats.taken.adjusted import restated
from volflow.store.journal.journal import Record, journal_of
from volflow.store.journal.outputs import check_apart
from volflow.store.meta import Meta
from volflow.store.remote.address import is_stored, location
from volflow.store.slabs import Source
from volflow.store.volume import Volume, described
from volflow.volumes.arrays.computed import DaskSource
from volflow.volumes.arrays.grids import difference_of_grids
from volflow.volumes.arrays.identity import Identity
from volflow.volumes.arrays.inputs import VolumeLike, lazy_array, open_input
from volflow.volumes.arrays.pieces import Pieces
from volflow.volumes.copy_layout import COPIES, Copy, adopted, held_bytes, lay_out
from volflow.volumes.copying import make_record, run_copy
from volflow.volumes.volume_options import WriteOptions

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["grid_of", "write", "write_source"]


TOKEN_LENGTH = 32  # of the hashes that are Dask's


def _largest_chunk(array: da.Array) -> int:
    return int(math.prod(max(sizes) for sizes in array.chunks) * array.dtype.itemsize)


def _in_blocks(array: da.Array, copy: Copy, overwrite: bool) -> Copy:
    """Return a copy whose blocks hold the shards that a chunk spans, so that each is computed once.

    Where memory does not hold them blocks stay single shards, and chunks are computed again for
    each shard that they reach into. A run that is resumed keeps the blocks it began with.
    """
    chunks = [max(sizes) for sizes in array.chunks]
    sides = [b * -(-c // b) for b, c in zip(copy.blocks.block, chunks, strict=True)]
    large = BlockGrid(copy.blocks.shape, tuple(sides))
    # What a block is computed from: a few of the array's own chunks.
    whole = held_bytes(large, copy.spec.dtype, COPIES) + 4 * _largest_chunk(array)
    pieces = copy.peak_bytes + 4 * _largest_chunk(array)
    before = None if overwrite else journal_of(copy.path).recorded()
    fits = whole <= copy.memory_bytes
    if before is not None:
        fits = before.settings.get("grid") == list(large.counts)
    if fits:
        return replace(copy, blocks=large, peak_bytes=whole)
    return replace(copy, peak_bytes=pieces)


def grid_of(like: VolumeLike, shape: Sequence[int]) -> Source:
    """Open the volume that ``like=`` names; refuses one on another grid.

    Raises
    ------
    InvalidInput
        Where it cannot be opened, or its grid is another.
    """
    source = open_input(like)
    if tuple(source.shape[-3:]) != tuple(shape[-3:]):
        raise InvalidInput(
            f"like= has shape {tuple(source.shape[-3:])} but the array {tuple(shape[-3:])}; leave"
            " it out, or give a volume on the array's grid"
        )
    return source


@journey
def write(  # noqa: PLR0913 - a public journey takes flat options
    array: VolumeLike | Source,
    out: str | os.PathLike[str],
    *,
    like: VolumeLike | None = None,
    meta: Meta | None = None,
    spacing: float | Sequence[float] | None = None,
    unit: str | None = None,
    orientation: str | None = None,
    chunk: int | Sequence[int] | None = None,
    shard: int | Sequence[int] | None = None,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = None,
) -> Volume:
    """Store a Dask array as a volume: each shard is computed and written by one task.

    ``dask.array.to_zarr`` lets tasks whose chunks cross a shard overwrite each other's voxels;
    here tasks own whole shards, whatever the array's chunks. A task takes as many shards as a
    chunk spans, so that chunks of whole shards are computed once.

    Parameters
    ----------
    array
        ``zyx`` or ``czyx``; any other `VolumeLike` that can be read by parts is taken, too.
    out
        Path of the volume, or its URL, as in `convert`.
    like
        A volume whose spacing, unit, orientation and layout the new one takes.
    spacing, unit, orientation
        Voxel size along z, y, x, or one for all; its unit (``"mm"``, ``"um"``, …); the directions
        in which z, y, x grow, such as ``"SAR"``. What is not given is what the array knows: an
        ``xarray.DataArray`` by its coordinates.
    meta
        The same in detail. Beside it or ``like``, what says otherwise is refused.
    resume
        Trust that the array is what it was where that cannot be determined, because a function of
        it reads files: an interrupted run is then resumed instead of started over.
    chunk, shard, cluster, workers, resources, wait, memory, overwrite, progress
        As in `convert`. Memory is projected from the array's own chunks: what a graph computes on
        the way to them, such as the scores behind a threshold, comes on top.

    Examples
    --------
    >>> import dask.array as da, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     volume = write(da.ones((8, 8, 8), chunks=3), f"{folder}/a.zarr", progress=False)
    ...     float(volume[:].sum())
    512.0
    """
    options = from_keywords(WriteOptions, locals())
    source = open_input(array)
    check_apart(out, array, like)
    return write_source(source, out, options)


def write_source(source: Source, out: str | os.PathLike[str], options: WriteOptions) -> Volume:
    """Store a source as `write` does."""
    like, chunk, shard = options.like, options.chunk, options.shard
    array = lazy_array(source)
    grid = None if like is None else grid_of(like, array.shape)
    meta = _meta_of(source, grid, options)
    if isinstance(grid, Volume):
        chunk = grid.chunks[-3:] if chunk is None else chunk
        shard = (grid.shards or grid.chunks)[-3:] if shard is None else shard
    chunk, shard = adopted(out, chunk, shard, overwrite=options.overwrite)
    with connect(options.cluster, **options.connection) as client:
        check_sight(client, out)
        memory_bytes = memory_per_worker(client, options.memory)
        copy = lay_out(DaskSource(array, meta), os.fspath(out), chunk, shard, memory_bytes)
        what = f"Dask array {array.shape} in {math.prod(array.numblocks)} chunks"
        copy = _in_blocks(array, replace(copy, what=what), options.overwrite)

        pieces = Pieces.of(array, client, is_embedded(client))
        identity = pieces.identity()
        rois = [copy.blocks[n] for n in (0, len(copy.blocks) - 1)]
        pieces = pieces.shared(rois)
        copy = replace(copy, peak_bytes=copy.peak_bytes + pieces.kept_bytes)
        said = {word: getattr(meta, word) for word in WORDS if getattr(options, word) is not None}
        record = make_record(identity.token, copy, **said)
        overwrite = options.overwrite
        if not overwrite:
            _refuse_older(copy)
            overwrite = not options.resume and _begins_anew(copy, record, identity)
            if overwrite:
                announce(
                    f"write: {copy.path} is computed again: the array depends on"
                    f" {identity.unknown}, which may read something else by now; resume=True"
                    " trusts that it does not",
                    options.progress,
                )
        return run_copy(copy, record, client, replace(options, overwrite=overwrite), pieces)


WORDS = ("spacing", "unit", "orientation")  # by which a caller says where an array lies


def _meta_of(source: Source, grid: Source | None, options: WriteOptions) -> Meta:
    """Return the metadata of the new volume: as ``meta=``, ``like=`` or the array say, and words.

    Raises
    ------
    InvalidInput
        Where the words say otherwise than ``meta=`` or ``like=``.
    """
    given = "like=" if options.meta is None else "meta="
    meta = options.meta
    if meta is None and grid is not None:
        # Floats written like labels, such as distances to them, are an image.
        meta = described(grid)
        meta = replace(meta, kind="image") if source.dtype.kind == "f" else meta
    known = meta
    if meta is None:  # what Dask computes has no file to go back to
        computed = isinstance(source, DaskSource)
        meta = replace(source.meta, source=None) if computed else described(source)
    stated = restated(meta, *(getattr(options, word) for word in WORDS))
    found = None
    if known is not None:
        shape = source.shape
        found = difference_of_grids({given: (shape, known), "the call": (shape, stated)})
    if found is not None:
        what, _, there, _, here = found
        raise InvalidInput(
            f"{given} has {what} {there} and the call says {here}; leave out one of them"
        )
    return replace(stated, axes=("z", "y", "x") if source.ndim == 3 else ("c", "z", "y", "x"))


def _refuse_older(copy: Copy) -> None:
    """Refuse to resume a run of a version that knew arrays by the names that Dask gives them."""
    before = journal_of(copy.path).recorded()
    named = before is not None and len(str(before.fingerprint.get("input"))) == TOKEN_LENGTH
    if (
        named
        and before is not None
        and before.operation == "convert"
        and is_stored(location(copy.path))
    ):
        raise ResumeRefused(
            f"{copy.path} was written by an older version of volflow, which knew a Dask array by"
            " its name alone, so that it is not known whether this is the same; begin again"
            " (overwrite=True), or choose another output"
        )


def _begins_anew(copy: Copy, record: Record, identity: Identity) -> bool:
    """Return True if a run starts over because its input cannot be identified."""
    journal = journal_of(copy.path)
    if not identity.unknown or journal.recorded() is None or not is_stored(location(copy.path)):
        return False
    journal.compare(record)  # what differs otherwise is refused as ever
    return True
