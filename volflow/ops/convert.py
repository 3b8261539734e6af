"""Bring voxels into a volume: from files, NumPy and Dask arrays, a few shards at a time."""

from __future__ import annotations

import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt

from volflow.engine.cluster import Cluster, connect, memory_per_worker
from volflow.engine.events import State
from volflow.engine.plan import Plan, Step
from volflow.errors import InvalidInput
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.ops.session import run_journalled
from volflow.store.create import create
from volflow.store.journal import Journal, Record, ShardEntry, journal_dir
from volflow.store.layout import resolve_layout
from volflow.store.meta import Meta
from volflow.store.sources import Source, open_source
from volflow.store.volume import Volume, open_volume

__all__ = ["convert", "plan_convert", "write"]

CONVERT_VERSION = 1
Progress = bool | Callable[[State], object] | None
# A block is read, and while it is compressed the next one is read.
SLACK_BYTES = 32 * 2**20

_held: dict[str, Any] = {}


@dataclass(frozen=True)
class Held:
    """An array of this process, for tasks that run in it: pickled by name, never copied."""

    key: str

    def get(self) -> Any:
        """The array."""
        return _held[self.key]


@contextmanager
def _hold(array: Any) -> Iterator[Held]:
    key = uuid.uuid4().hex
    _held[key] = array
    try:
        yield Held(key)
    finally:
        del _held[key]


@dataclass(frozen=True)
class CopyJob:
    """Copy blocks of a source, or compute blocks of a Dask array, into a volume."""

    source: str | Held | dict[int, Any]
    volume: Volume
    blocks: BlockGrid
    journal: Journal
    session: str = ""

    def store(self, number: int, voxels: npt.NDArray[Any]) -> None:
        """Write a block, then its journal entry."""
        self.journal.check(self.session)
        sums = self.volume.write(self.blocks[number].write_roi, voxels)
        entries = [ShardEntry("0", s.start, s.stop, s.crc32c) for s in sums]
        self.journal.mark(number, entries, {}, session=self.session)

    def open(self) -> Source:
        """The source, opened on this worker."""
        return open_source(self.source.get() if isinstance(self.source, Held) else self.source)


def _bind(job: CopyJob, session: str) -> CopyJob:
    return replace(job, session=session)


def copy_blocks(job: CopyJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    """Copy blocks of a source that can be read anywhere."""
    done = job.journal.done(blocks)
    source = None if isinstance(job.source, dict) else job.open()
    for number in blocks:
        roi = job.blocks[number].write_roi
        if number not in done:
            if source is None:
                voxels = _compute(job.source[number], job.volume.dtype)  # type: ignore[index]
            else:
                voxels = source.read(roi)
            job.store(number, voxels)
        yield Step(number, roi.size)


def _compute(piece: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    (voxels,) = dask.compute(piece, scheduler="synchronous")
    voxels = np.asarray(voxels)
    if voxels.dtype != dtype:
        raise InvalidInput(
            f"the Dask array declares {dtype} but computes {voxels.dtype}; pass the right dtype="
            " and meta= to the function that made it, or add .astype"
        )
    return voxels


def stream_blocks(job: CopyJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    """Copy blocks of a source that can only be read forward, once."""
    done = job.journal.done(blocks)
    depth = job.blocks.block[-3]
    pending: tuple[int, Future[None]] | None = None
    with ThreadPoolExecutor(1) as pool:
        for roi, voxels in job.open().slabs(depth):
            number = job.blocks.number(
                [a // b for a, b in zip(roi.start, job.blocks.block, strict=True)]
            )
            if pending is not None:
                pending[1].result()
                yield Step(pending[0], job.blocks[pending[0]].write_roi.size)
                pending = None
            if number in done or number not in blocks:
                continue
            pending = number, pool.submit(job.store, number, voxels)
        if pending is not None:
            pending[1].result()
            yield Step(pending[0], job.blocks[pending[0]].write_roi.size)


@dataclass(frozen=True)
class Copy:
    """A conversion ready to run: where to, in which layout, and how it is cut."""

    path: str
    meta: Meta
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    blocks: BlockGrid
    sequential: bool
    peak_bytes: int

    def volume(self, *, overwrite: bool = False) -> Volume:
        """Make the volume on disk, without voxels."""
        return create(
            self.path,
            self.shape,
            self.dtype,
            self.meta,
            chunk=self.chunk[-3:],
            shard=self.shard[-3:],
            overwrite=overwrite,
        )


def _lay_out(source: Source, path: str, chunk: Any, shard: Any, memory_bytes: int) -> Copy:
    """Choose the layout and blocks of a copy; shards shrink along z where memory is short."""
    shape, dtype = tuple(source.shape), np.dtype(source.dtype)
    inner, outer = resolve_layout(shape, source.meta.spacing, dtype, chunk, shard)
    front = (1,) * (len(shape) - 3)

    def sized(outer: Sequence[int]) -> tuple[BlockGrid, int]:
        space = shape[-3:] if source.sequential else outer[-3:]
        block = BlockGrid(shape, (*front, outer[-3], *space[-2:]))
        voxels = math.prod(min(b, n) for b, n in zip(block.block, shape, strict=True))
        copies = 3.5 if source.sequential else 2.5  # the slab, its successor, shards in flight
        return block, int(voxels * dtype.itemsize * copies) + SLACK_BYTES

    blocks, peak = sized(outer)
    while peak > memory_bytes and shard is None and outer[-3] > inner[-3]:
        halves = -(-(outer[-3] // inner[-3]) // 2)
        outer = (*outer[:-3], inner[-3] * halves, *outer[-2:])
        blocks, peak = sized(outer)
    return Copy(path, source.meta, shape, dtype, inner, outer, blocks, source.sequential, peak)


def _plan(copy: Copy, what: str, job: Any, done: frozenset[int], memory_bytes: int) -> Plan:
    left = tuple(n for n in range(len(copy.blocks)) if n not in done)
    return Plan(
        "convert",
        stream_blocks if copy.sequential else copy_blocks,
        job,
        ((left,) if copy.sequential and left else tuple((n,) for n in left)),
        units=sum(copy.blocks[n].write_roi.size for n in left),
        unit="voxels",
        peak_bytes=copy.peak_bytes,
        memory_bytes=memory_bytes,
        exclusive=copy.sequential,
        facts=(
            ("input", what),
            ("output", f"{copy.path}: {copy.shape} {copy.dtype}"),
            ("layout", f"chunks {copy.chunk}, shards {copy.shard}"),
        ),
    )


def _remedy(copy: Copy) -> str:
    least = math.ceil(copy.peak_bytes / 2**20)
    return f'use memory="{least}MiB" or more, or a smaller shard'


def plan_convert(
    source: Any,
    out: str | os.PathLike[str],
    *,
    chunk: int | Sequence[int] | None = None,
    shard: int | Sequence[int] | None = None,
    cluster: Cluster = None,
    memory: str | int | None = None,
) -> Plan:
    """What `convert` would do; nothing is written."""
    with connect(cluster) as client:
        memory_bytes = memory_per_worker(client, memory)
    opened = open_source(source)
    copy = _lay_out(opened, os.fspath(out), chunk, shard, memory_bytes)
    done = frozenset(Journal(journal_dir(out)).done())
    plan = _plan(copy, _describe(source, opened), None, done, memory_bytes)
    plan.require_memory(_remedy(copy))
    return plan


def convert(
    source: Any,
    out: str | os.PathLike[str],
    *,
    chunk: int | Sequence[int] | None = None,
    shard: int | Sequence[int] | None = None,
    cluster: Cluster = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> Volume:
    """Convert a file or array to a sharded OME-Zarr 0.5 volume, without holding it whole.

    Parameters
    ----------
    source
        ``.npy``, ``.nii``, ``.nii.gz``, a Zarr v2 or v3 array or OME-Zarr image, a `Volume`, or a
        NumPy array, ``zyx`` or ``czyx``.
    out
        Path of the volume; level 0 is array ``"0"`` in it.
    chunk, shard
        Voxels per axis; by default about 64³ and 256³, thinner along thick slices.
    cluster, memory, progress
        As in `predict`. A ``.nii.gz`` is one forward pass in one task.
    overwrite
        Replace a volume that is there. Without it, an interrupted conversion is resumed.

    Returns
    -------
    Volume
        The converted volume, with the spacing, unit and orientation of its source.

    Raises
    ------
    InvalidInput
        For a source that cannot be read, a layout that does not fit, or an output that exists.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     volume = convert(np.zeros((8, 9, 10), "uint8"), f"{folder}/a.zarr", progress=False)
    ...     volume.shape
    (8, 9, 10)
    """
    opened = open_source(source)
    here = isinstance(source, np.ndarray)
    with connect("threads" if here else cluster) as client:
        memory_bytes = memory_per_worker(client, memory)
        copy = _lay_out(opened, os.fspath(out), chunk, shard, memory_bytes)
        with _hold(source) as held:
            origin: str | Held = held if here else _path_of(source)
            record = _record(opened.identity(), copy)
            return _run_copy(
                copy,
                record,
                lambda volume, journal: CopyJob(origin, volume, copy.blocks, journal),
                what=_describe(source, opened),
                memory_bytes=memory_bytes,
                client=client,
                overwrite=overwrite,
                progress=progress,
            )


def write(
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
    if array.ndim not in (3, 4) or any(math.isnan(n) for n in array.shape):
        raise InvalidInput(
            f"a volume has axes zyx or czyx of known size; the array has shape {array.shape}"
        )
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
    shaped = _ArraySource(array.shape, array.dtype, meta)
    with connect(cluster) as client:
        memory_bytes = memory_per_worker(client, memory)
        copy = _lay_out(shaped, os.fspath(out), chunk, shard, memory_bytes)
        copy = replace(copy, peak_bytes=copy.peak_bytes + 4 * _largest_chunk(array))
        record = _record(dask.base.tokenize(array), copy)
        return _run_copy(
            copy,
            record,
            lambda volume, journal: CopyJob({}, volume, copy.blocks, journal),
            what=f"Dask array {array.shape} in {array.npartitions} chunks",
            memory_bytes=memory_bytes,
            client=client,
            overwrite=overwrite,
            progress=progress,
            array=array,
        )


@dataclass(frozen=True)
class _ArraySource:
    """The shape of a Dask array, as a source's."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    meta: Meta
    sequential: bool = False


def _largest_chunk(array: da.Array) -> int:
    return int(math.prod(max(sizes) for sizes in array.chunks) * array.dtype.itemsize)


def _record(identity: str, copy: Copy) -> Record:
    return Record(
        "convert",
        {"input": identity, "version": CONVERT_VERSION},
        {"grid": list(copy.blocks.counts), "chunk": copy.chunk, "shard": copy.shard},
    )


def _run_copy(
    copy: Copy,
    record: Record,
    make_job: Callable[[Volume, Journal], CopyJob],
    *,
    what: str,
    memory_bytes: int,
    client: Any,
    overwrite: bool,
    progress: Progress,
    array: da.Array | None = None,
) -> Volume:
    journal = Journal(journal_dir(copy.path))
    _plan(copy, what, None, frozenset(), memory_bytes).require_memory(_remedy(copy))
    with journal.lock():
        begun = journal.recorded() is not None and Path(copy.path).exists()
        if overwrite or not begun:
            journal.clear()  # first: no block may count as done of a volume that is made anew
            volume = copy.volume(overwrite=overwrite)
        else:
            volume = open_volume(copy.path)
        job = make_job(volume, journal)
        plan = _plan(copy, what, job, frozenset(journal.done()), memory_bytes)
        if array is not None:
            plan = replace(plan, job=None, job_of=lambda blocks: _with_pieces(job, array, blocks))
        run_journalled(plan, journal, record, _bind, cluster=client, progress=progress)
    return volume


def _with_pieces(job: CopyJob, array: da.Array, blocks: tuple[int, ...]) -> CopyJob:
    """The job with the culled graphs of its blocks, so that no task carries the whole graph."""
    pieces = {n: array[job.blocks[n].write_roi.slices()] for n in blocks}
    culled = dict(zip(pieces, dask.optimize(*pieces.values()), strict=True))
    return replace(job, source=culled)


def _path_of(source: Any) -> Any:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else source


def _describe(source: Any, opened: Source) -> str:
    name = _path_of(source) if isinstance(source, str | os.PathLike) else type(source).__name__
    return f"{name}: {tuple(opened.shape)} {np.dtype(opened.dtype)}"


def is_foreign(x: Any) -> bool:
    """Whether a path names a file of another format rather than a Zarr store."""
    return isinstance(x, str | os.PathLike) and os.fspath(x).endswith((".npy", ".nii", ".nii.gz"))


def as_volume(x: Any, keep: Path, **options: Any) -> Volume:
    """A volume on disk for whatever a user may hand over.

    Paths of Zarr stores, Zarr arrays on disk and volumes are opened; NumPy and Dask arrays and
    foreign files are converted to ``keep`` first, where an interrupted conversion is resumed.
    """
    if isinstance(x, da.Array):
        return write(x, keep, **options)
    if isinstance(x, np.ndarray) or is_foreign(x):
        return convert(x, keep, **options)
    return open_volume(x)


def forget(keep: Path) -> None:
    """Delete a volume that was made by `as_volume`, with its journal."""
    shutil.rmtree(keep, ignore_errors=True)
    shutil.rmtree(journal_dir(keep), ignore_errors=True)
