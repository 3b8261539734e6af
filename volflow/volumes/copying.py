"""Copy voxels into a new volume, a few whole shards at a time, under a journal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from distributed import Client

from volflow.engine.cluster import is_embedded
from volflow.engine.clusters.held import InProcess, within_reach
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.run_options import OutputOptions
from volflow.engine.task import Context, Step
from volflow.errors import InvalidInput, SourceChanged
from volflow.geometry.grid import BlockGrid
from volflow.geometry.strips import hull, strips
from volflow.store.aside import sweep
from volflow.store.create import check_target, create, open_begun
from volflow.store.formats.taken.labels import NotHeld
from volflow.store.journal.journal import Journal, Record, journal_of
from volflow.store.journal.outputs import discard, withheld
from volflow.store.remote.address import is_stored, location, remove_tree
from volflow.store.slabs import Source
from volflow.store.volume import Volume
from volflow.volumes.arrays.computed import refuse_masked
from volflow.volumes.arrays.pieces import Parcel, Pieces, compute_parcel
from volflow.volumes.copy_layout import Copy
from volflow.volumes.origin import Origin
from volflow.volumes.unpacking import forget_unpacked

__all__ = [
    "CopyJob",
    "make_plan",
    "make_record",
    "resumes",
    "run_copy",
]

COPY_VERSION = 1


@dataclass(frozen=True)
class CopyJob:
    """Copy blocks of a source, or compute blocks of a Dask array, into a volume.

    Parameters
    ----------
    source
        What is copied, perhaps by name; of a Dask array the parcels of the blocks, by number.
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
        """Return the source on this worker."""
        found: Source = self.source.get() if isinstance(self.source, InProcess) else self.source
        return found


def copy_blocks(job: CopyJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Copy blocks of a source that can be read anywhere, which are read at once."""
    rois = [job.blocks[number] for number in blocks]
    whole = hull(rois)
    voxels = job.open().read(whole)
    for number, roi in zip(blocks, rois, strict=True):
        job.store(number, voxels[roi.relative_to(whole.start).slices()], context)
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
        for roi, voxels in job.open().once(sides[-3]):
            number = job.blocks.number([a // b for a, b in zip(roi.start, sides, strict=True)])
            if pending is not None:
                yield pending.result()
            pending = pool.submit(store, number, voxels) if number in blocks else None
        if pending is not None:
            yield pending.result()


def make_plan(copy: Copy, job: Any, done: frozenset[int]) -> Plan:
    """Return the plan for the blocks that are left."""
    left = tuple(n for n in range(len(copy.blocks)) if n not in done)
    ones, front_to_back = (1,) * len(copy.blocks.shape), copy.source.sequential
    return Plan(
        copy.operation,
        copy.task or (stream_blocks if front_to_back else copy_blocks),
        job,
        (left,)
        if copy.source.sequential and left
        else strips(copy.blocks, copy.reach or ones, left),
        units=copy.blocks.voxels(left),
        unit="voxels",
        peak_bytes=copy.peak_bytes,
        memory_bytes=copy.memory_bytes,
        exclusive=front_to_back,
        grid=copy.blocks,
        facts=(
            ("input", copy.what),
            ("output", f"{copy.path}: {copy.spec.shape} {copy.spec.dtype}"),
            ("layout", f"chunks {copy.spec.chunk}, shards {copy.spec.shard}"),
            *copy.facts,
        ),
    )


def make_record(identity: str, copy: Copy, **more: Any) -> Record:
    """Return the record of a copy: of which source, what is made of it otherwise, its blocks."""
    return Record(
        "convert",
        {"input": identity, "version": COPY_VERSION, **more},
        {"grid": list(copy.blocks.counts), "chunk": copy.spec.chunk, "shard": copy.spec.shard},
    )


def run_copy(
    copy: Copy,
    record: Record,
    client: Client,
    options: OutputOptions,
    pieces: Pieces | None = None,
) -> Volume:
    """Make the volume, or open the one begun, and copy what is left.

    Parameters
    ----------
    copy, record
        What is copied, and its record.
    client, options
        Where it runs; whether what is there is replaced, and what is shown.
    pieces
        Of a Dask array, which tasks compute instead of reading the source.
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
            forget_unpacked(journal)
            if copy.origin is not None:  # noted while there is no record: they never differ
                copy.origin.note(journal)
            journal.begin(record)
            volume = create(copy.path, copy.spec, finished=False)
        file = copy.origin if copy.origin is not None and copy.origin.is_file else None
        job = CopyJob(None, volume, copy.blocks, file)
        plan = make_plan(copy, None, frozenset(journal.done()))
        plan = replace(plan, journal=journal, record=record)
        with (
            withheld(journal, journal.output, left=bool(plan.runs)),
            _discarding_the_useless(copy, journal),
        ):
            if copy.unpacking is not None and plan.runs:
                copy.unpacking.perform(client, copy.memory_bytes, options.progress)
            with ExitStack() as stack:
                if pieces is None:
                    reach = within_reach(copy.source, here=is_embedded(client))
                    source, plugin = stack.enter_context(reach)
                    plan = replace(plan, job=replace(job, source=source), plugin=plugin)
                else:
                    held = stack.enter_context(pieces.held())
                    plan = _computing(plan, job, pieces, held)
                run(plan, cluster=client, progress=options.progress)
            if copy.origin is not None and plan.runs:
                try:
                    copy.origin.check()
                except SourceChanged:
                    journal.forget(range(len(copy.blocks)))
                    raise
        forget_unpacked(journal)
    return volume


@contextmanager
def _discarding_the_useless(copy: Copy, journal: Journal) -> Iterator[None]:
    """Delete the volume where the same source can never fill it, and nothing of it counts.

    A voxel does not fit it, or a source that is read from front to back is damaged or cut short.
    """
    forward = copy.source.sequential or copy.unpacking is not None
    try:
        yield
    except InvalidInput as error:
        if forward or isinstance(error, NotHeld):
            discard(location(copy.path), journal)
            if isinstance(journal.directory, Path):  # a store's lease is still held there
                remove_tree(journal.directory)
        raise


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
