"""Copy voxels into a new volume, a few whole shards at a time, under a journal."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from distributed import Client

from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.run_options import OutputOptions
from volflow.engine.task import Context, Step
from volflow.errors import Damaged, InvalidInput, SourceChanged
from volflow.geometry.grid import BlockGrid
from volflow.store.aside import sweep
from volflow.store.create import check_target, create, open_begun
from volflow.store.formats.labels import taken_as
from volflow.store.formats.sources import open_source
from volflow.store.journal.journal import Record, journal_of
from volflow.store.journal.outputs import discard, withheld
from volflow.store.journal.records import typed
from volflow.store.layout import shrinking
from volflow.store.meta import VolumeSpec
from volflow.store.remote.address import is_stored, location
from volflow.store.slabs import Source
from volflow.store.volume import Volume, described
from volflow.volumes.arrays.computed import refuse_masked
from volflow.volumes.arrays.held import InProcess
from volflow.volumes.arrays.pieces import Parcel, Pieces, compute_parcel
from volflow.volumes.origin import Origin

__all__ = [
    "COPIES",
    "Copy",
    "CopyJob",
    "held_bytes",
    "lay_out",
    "make_plan",
    "resumes",
    "run_copy",
]

COPY_VERSION = 1
SLACK_BYTES = 32 * 2**20
COPIES = 2.5  # of a block that a task holds: its voxels, and shards in flight


@dataclass(frozen=True)
class CopyJob:
    """Copy blocks of a source, or compute blocks of a Dask array, into a volume.

    Parameters
    ----------
    source
        What `open_source` opens, by name where it lies in this process; of a Dask array the
        parcels of the blocks, by number.
    volume, blocks
        Where the blocks go.
    origin
        The file that is read, which must not change meanwhile.
    """

    source: Any
    volume: Volume
    blocks: BlockGrid
    origin: Origin | None = None

    def store(self, number: int, voxels: npt.NDArray[Any], context: Context) -> None:
        """Write a block, unless its source has changed meanwhile."""
        with context.block(number) as block:
            block.write(self.volume, self.blocks[number], voxels)
            if self.origin is not None:
                self.origin.check()

    def open(self) -> Source:
        """Open the source on this worker; whole floats become the integers that are stored."""
        opened = open_source(
            self.source.get() if isinstance(self.source, InProcess) else self.source
        )
        whole = opened.dtype.kind == "f" and self.volume.dtype.kind == "i"
        return taken_as(opened, True) if whole else opened


def copy_blocks(job: CopyJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Copy blocks of a source that can be read anywhere."""
    source = job.open()
    for number in blocks:
        roi = job.blocks[number]
        job.store(number, source.read(roi), context)
        yield Step(number, roi.size)


def compute_blocks(
    job: tuple[CopyJob, list[Any], list[Any]], blocks: tuple[int, ...], context: Context
) -> Iterator[Step]:
    """Compute blocks of a Dask array.

    The names of results on the cluster and the results come beside the job: Dask replaces futures
    by what they stand for in plain lists only.
    """
    own, names, results = job
    for number in blocks:
        voxels = compute_parcel(own.source[number], dict(zip(names, results, strict=True)))
        own.store(number, _checked(voxels, own.volume.dtype), context)
        yield Step(number, own.blocks[number].size)


def _checked(voxels: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    refuse_masked(voxels)
    found: npt.NDArray[Any] = np.asarray(voxels)
    if found.dtype.newbyteorder("=") != dtype:  # of whatever byte order
        raise InvalidInput(
            f"the Dask array declares {dtype} but computes {found.dtype}; pass the right dtype="
            " and meta= to the function that made it, or add .astype"
        )
    return found.astype(dtype, copy=False)


def stream_blocks(job: CopyJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Copy blocks of a source that can only be read forward, once."""
    try:
        yield from _stream_blocks(job, blocks, context)
    except InvalidInput:  # it is damaged, and so may be what came of it before
        if context.journal is not None:
            context.journal.forget(range(len(job.blocks)))
        raise


def _stream_blocks(job: CopyJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Write each slab while the next is read."""
    sides = job.blocks.block

    def store(number: int, voxels: npt.NDArray[Any]) -> Step:
        job.store(number, voxels, context)
        return Step(number, voxels.size)

    pending: Future[Step] | None = None
    with ThreadPoolExecutor(1) as pool:
        for roi, voxels in job.open().slabs(sides[-3]):
            number = job.blocks.number([a // b for a, b in zip(roi.start, sides, strict=True)])
            if pending is not None:
                yield pending.result()
            pending = pool.submit(store, number, voxels) if number in blocks else None
        if pending is not None:
            yield pending.result()


@dataclass(frozen=True)
class Copy:
    """A conversion ready to run: its destination, layout and blocks."""

    path: str
    spec: VolumeSpec
    blocks: BlockGrid
    sequential: bool
    peak_bytes: int
    memory_bytes: int
    what: str = ""
    origin: Origin | None = None

    def remedy(self) -> str:
        """Return what would make the copy fit."""
        least = math.ceil(self.peak_bytes / 2**20)
        return f'use memory="{least}MiB" or more (--memory), or a smaller shard'


def held_bytes(block: BlockGrid, dtype: np.dtype[Any], copies: float) -> int:
    """Return the projected peak of a task that holds so many copies of a block."""
    voxels = math.prod(min(b, n) for b, n in zip(block.block, block.shape, strict=True))
    return int(voxels * dtype.itemsize * copies) + SLACK_BYTES


def lay_out(source: Source, path: str, chunk: Any, shard: Any, memory_bytes: int) -> Copy:
    """Choose the layout and blocks of a copy; shards shrink along z where memory is short."""
    spec = VolumeSpec.of(source.shape, source.dtype, described(source), chunk, shard)
    front, least = (1,) * (source.ndim - 3), spec.chunk

    def sized(outer: Sequence[int]) -> tuple[BlockGrid, int]:
        space = spec.shape[-3:] if source.sequential else outer[-3:]
        block = BlockGrid(spec.shape, (*front, outer[-3], *space[-2:]))
        # The slab, its successor where one is read ahead, shards in flight.
        return block, held_bytes(block, spec.dtype, 3.5 if source.sequential else COPIES)

    outer = spec.shard or least
    smaller = shrinking(outer, least, (*(0,) * len(front), 1, 0, 0)) if shard is None else (outer,)
    for outer in smaller:
        blocks, peak = sized(outer)
        if peak <= memory_bytes:
            break
    return Copy(path, replace(spec, shard=outer), blocks, source.sequential, peak, memory_bytes)


def adopted(
    out: str | os.PathLike[str], chunk: Any, shard: Any, *, overwrite: bool
) -> tuple[Any, Any]:
    """Return chunk and shard of the run to resume, unless asked for: memory may differ now."""
    before = None if overwrite else journal_of(out).recorded()
    if before is None or chunk is not None or shard is not None:
        return chunk, shard
    try:
        saved = typed(_Layout, before.settings)
    except ValueError as error:
        raise Damaged(
            f"the journal of {out} records no layout ({error}); begin again (overwrite=True,"
            " --overwrite)"
        ) from error
    return saved.chunk[-3:], saved.shard[-3:]


@dataclass(frozen=True)
class _Layout:
    """The layout of a copy in its journal."""

    chunk: tuple[int, ...]
    shard: tuple[int, ...]


def make_plan(copy: Copy, job: Any, done: frozenset[int]) -> Plan:
    """Return the plan for the blocks that are left."""
    left = tuple(n for n in range(len(copy.blocks)) if n not in done)
    return Plan(
        "convert",
        stream_blocks if copy.sequential else copy_blocks,
        job,
        ((left,) if copy.sequential and left else tuple((n,) for n in left)),
        units=copy.blocks.voxels(left),
        unit="voxels",
        peak_bytes=copy.peak_bytes,
        memory_bytes=copy.memory_bytes,
        exclusive=copy.sequential,
        grid=copy.blocks,
        facts=(
            ("input", copy.what),
            ("output", f"{copy.path}: {copy.spec.shape} {copy.spec.dtype}"),
            ("layout", f"chunks {copy.spec.chunk}, shards {copy.spec.shard}"),
        ),
    )


def make_record(identity: str, copy: Copy, **more: Any) -> Record:
    return Record(
        "convert",
        {"input": identity, "version": COPY_VERSION, **more},
        {"grid": list(copy.blocks.counts), "chunk": copy.spec.chunk, "shard": copy.spec.shard},
    )


def run_copy(
    copy: Copy,
    record: Record,
    source: str | InProcess | Volume | Pieces | None,
    client: Client,
    options: OutputOptions,
) -> Volume:
    """Make the volume, or open the one begun, and copy what is left.

    Parameters
    ----------
    copy, record
        What is copied, and its record.
    source
        What tasks open, or the pieces of a Dask array that they compute.
    client, options
        Where it runs; whether what is there is replaced, and what is shown.
    """
    journal, at = journal_of(copy.path), location(copy.path)
    make_plan(copy, None, frozenset()).require_memory(copy.remedy())
    resumes(copy.path, overwrite=options.overwrite)  # refuses before the lock leaves its file
    with journal.lock():
        sweep(at)
        if resumes(copy.path, overwrite=options.overwrite):
            journal.compare(record)
            volume = open_begun(copy.path)
        else:
            discard(at, journal)
            if copy.origin is not None:  # noted while there is no record: they never differ
                copy.origin.note(journal)
            journal.begin(record)
            volume = create(copy.path, copy.spec, finished=False)
        file = copy.origin if copy.origin is not None and copy.origin.is_file else None
        job = CopyJob(source, volume, copy.blocks, file)
        plan = make_plan(copy, job, frozenset(journal.done()))
        with withheld(journal, journal.output, left=bool(plan.runs)):
            with source.held() if isinstance(source, Pieces) else nullcontext() as held:
                if isinstance(source, Pieces):
                    plan = _computing(plan, job, source, held)
                plan = replace(plan, journal=journal, record=record)
                run(plan, cluster=client, progress=options.progress)
            if copy.origin is not None and plan.runs:
                try:
                    copy.origin.check()
                except SourceChanged:
                    journal.forget(range(len(copy.blocks)))
                    raise
    return volume


def _computing(plan: Plan, job: CopyJob, pieces: Pieces, held: InProcess | None) -> Plan:
    """Return the plan with a job for each run of blocks: what they are computed from."""

    def job_of(blocks: tuple[int, ...]) -> Any:
        parcels: dict[int, Parcel] = {}
        results: dict[Any, Any] = {}
        for number in blocks:
            parcels[number], needed = pieces.parcel(job.blocks[number], held)
            results |= needed
        return replace(job, source=parcels), list(results), list(results.values())

    return replace(plan, task=compute_blocks, job=None, job_of=job_of, plugin=pieces.plugin)


def resumes(out: str | os.PathLike[str], *, overwrite: bool) -> bool:
    """Return True if there is a run to resume; where there is none, the place must be free."""
    journal = journal_of(out)
    if not overwrite and is_stored(location(out)) and journal.recorded() is not None:
        return True
    check_target(out, overwrite=overwrite)
    return False
