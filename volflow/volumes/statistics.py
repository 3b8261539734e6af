"""Statistics of a whole volume, streamed: each stored object is read once."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from volflow.engine.cluster import Cluster, connect, is_embedded, memory_per_worker
from volflow.engine.events import State
from volflow.engine.plan import Plan, Step
from volflow.engine.run import run
from volflow.errors import Superseded
from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import BlockGrid
from volflow.geometry.histogram import PIECE_VOXELS, Foreground, Histogram, measure, merge
from volflow.geometry.roi import Roi
from volflow.store.formats.sources import ArraySource, VolumeSource
from volflow.store.volume import Volume
from volflow.volumes.arrays.computed import at_hand
from volflow.volumes.arrays.inputs import Sliced, VolumeLike, open_input, refuse_sequential
from volflow.volumes.distribution import (
    Statistics,
    check_foreground,
    load_statistics,
    save_statistics,
)

__all__ = ["plan_statistics", "statistics"]

PIECE_BYTES = (16 * 2**20, 64 * 2**20)
# The driver holds a histogram per block, so their number must not grow with the volume.
BLOCKS = 256

# Sessions that ended early, for tasks of theirs that still run in this process.
_stopped: set[str] = set()


@dataclass(frozen=True)
class StatisticsJob:
    """What a task needs: the volume, how it is cut, which voxels count.

    Blocks are runs of pieces; both follow from the stored layout alone, never from memory or
    workers, so that the sums are rounded alike everywhere.
    """

    volume: Volume | Sliced
    foreground: Foreground
    session: str = ""

    @cached_property
    def pieces(self) -> BlockGrid:
        """What is read at once."""
        return BlockGrid(self.volume.shape, piece_shape(self.volume))

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return min(BLOCKS, len(self.pieces))

    def pieces_of(self, block: int) -> range:
        """The pieces of a block."""
        count = len(self.pieces)
        return range(count * block // self.blocks, count * (block + 1) // self.blocks)


def piece_shape(volume: Volume | Sliced) -> tuple[int, ...]:
    """Whole shards together, or whole chunks of a large shard: 16 to 64 MiB where that can be.

    Examples
    --------
    >>> import zarr
    >>> from volflow.store.volume import open_volume
    >>> layout = {"shape": (999,) * 3, "shards": (256,) * 3, "chunks": (64,) * 3}
    >>> piece_shape(open_volume(zarr.create_array({}, dtype="float64", **layout)))
    (128, 256, 256)
    """
    unit = volume.shards or volume.chunks
    piece = [min(u, n) for u, n in zip(unit, volume.shape, strict=True)]
    least, most = PIECE_BYTES

    def size() -> int:
        return math.prod(piece) * volume.dtype.itemsize

    for axis, chunk in enumerate(volume.chunks):  # thinner along z first: rows stay whole
        while size() > most and piece[axis] > chunk:
            piece[axis] = -(-piece[axis] // chunk // 2) * chunk
    for axis in reversed(range(volume.ndim - 3, volume.ndim)):
        while size() < least and piece[axis] < volume.shape[axis]:
            piece[axis] = min(2 * piece[axis], volume.shape[axis])
    return tuple(piece)


def measure_blocks(job: StatisticsJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    """The histograms of some blocks, one per channel that they meet."""
    for block in blocks:
        found: dict[int, Histogram] = {}
        for number in job.pieces_of(block):
            if job.session in _stopped:
                raise Superseded("the driver of these statistics has ended; this task stops")
            roi = job.pieces[number].write_roi
            yield Step(None, roi.size, _measure_piece(job, roi, found))
        yield Step(block, 0, result=found)


def _measure_piece(job: StatisticsJob, roi: Roi, found: dict[int, Histogram]) -> dict[str, float]:
    """Add one piece to what was found per channel; seconds per stage. Its voxels end here."""
    start_s = time.perf_counter()
    voxels = job.volume.read(roi)
    read_s = time.perf_counter()
    first, channels = (roi.start[0], voxels) if roi.ndim == 4 else (0, voxels[None])
    for channel, data in enumerate(channels, start=first):
        part = measure(data, job.foreground)
        found[channel] = merge([found[channel], part]) if channel in found else part
    return {"read": read_s - start_s, "count": time.perf_counter() - read_s}


def plan_statistics(job: StatisticsJob, memory_bytes: int) -> Plan:
    """What `statistics` does; no voxel is read.

    Raises
    ------
    MemoryRefused
        Where one task does not fit.
    """
    volume = job.volume
    voxels = math.prod(job.pieces.block)
    # Reading holds the stored bytes and decoded chunks beside the piece; counting holds a bin
    # number per voxel, and for other types than small integers two dense tables of bins.
    peak = int(2.5 * voxels * volume.dtype.itemsize) + 32 * min(PIECE_VOXELS, voxels)
    if volume.dtype.kind == "f" or volume.dtype.itemsize > 2:
        peak += 32 * 2**20 + 36 * min(2**21, voxels)
    if isinstance(volume, Sliced):  # a piece that Dask computes is made from a few of its chunks
        peak += 4 * math.prod(volume.chunks) * volume.dtype.itemsize
    plan = Plan(
        "statistics",
        measure_blocks,
        job,
        tuple((block,) for block in range(job.blocks)),
        units=math.prod(volume.shape),
        unit="voxels",
        peak_bytes=peak,
        memory_bytes=memory_bytes,
        facts=(("input", repr(volume)), ("piece", f"{job.pieces.block} voxels")),
    )
    plan.require_memory(f"give it at least {format_bytes(math.ceil(peak * 1.01))}")
    return plan


def statistics(
    volume: VolumeLike,
    *,
    foreground: Foreground = False,
    cluster: Cluster = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    progress: bool | Callable[[State], object] | None = None,
) -> Statistics:
    """Count, range, mean, deviation and percentiles of a volume, each voxel read once.

    The result is kept beside a stored volume, in ``<volume>.volflow/`` or, where that cannot be
    written, in the user's cache, and taken from there until the volume changes. It does not
    depend on memory, workers or order.

    Parameters
    ----------
    volume
        Any `VolumeLike` that can be read by parts. Of arrays nothing is kept.
    foreground
        False: all voxels; True: those that are not zero; a number: those above it. NaN and
        infinite voxels never count.
    cluster, wait, memory, progress
        As in `predict`.

    Raises
    ------
    InvalidInput
        Where the volume cannot be opened, or ``foreground`` is none of these.
    MemoryRefused
        Where one block does not fit into ``memory``, saying what would.
    RunFailed
        Where the volume cannot be read.

    Examples
    --------
    >>> import numpy as np, zarr
    >>> stats = statistics(zarr.array(np.arange(27, dtype="uint8").reshape(3, 3, 3)))
    >>> print(stats)
    27 voxels, min 0, max 26, mean 13, std 7.78888
    >>> stats.percentile(75)
    (19.5,)
    """
    source = open_input(volume)
    session, asked = uuid.uuid4().hex, check_foreground(foreground)
    if not isinstance(source, VolumeSource):
        refuse_sequential(source)
        job = StatisticsJob(Sliced(source), asked, session)
        return _measured(job, isinstance(source, ArraySource), cluster, wait, memory, progress)
    stored = source.volume
    identity = stored.identity()
    known = load_statistics(stored, identity, asked)
    if known is not None:
        return known
    job = StatisticsJob(stored, asked, session)
    found = _measured(job, stored.path is None, cluster, wait, memory, progress)
    if stored.identity() == identity:  # else it was being written: these fit neither state
        save_statistics(stored, identity, found)
    return found


@contextmanager
def _carried(job: StatisticsJob, here: bool) -> Iterator[tuple[StatisticsJob, Any]]:
    """The job as tasks carry it, and what each worker gets once."""
    if not isinstance(job.volume, Sliced):
        yield job, None
        return
    with at_hand(job.volume.source, here=here) as (source, plugin):
        yield replace(job, volume=Sliced(source)), plugin


def _measured(
    job: StatisticsJob, in_memory: bool, cluster: Cluster, wait: Any, memory: Any, progress: Any
) -> Statistics:
    """The statistics, measured in this thread where no other process could read the voxels."""
    if in_memory:
        steps = measure_blocks(job, tuple(range(job.blocks)))
        results = {step.block: step.result for step in steps if step.block is not None}
    else:
        with connect(cluster, wait=wait) as client:
            plan = plan_statistics(job, memory_per_worker(client, memory))
            with _carried(job, is_embedded(client)) as (carried, plugin):
                report = run(
                    replace(plan, job=carried, plugin=plugin),
                    cluster=client,
                    progress=progress,
                    stop=lambda: _stopped.add(job.session),
                )
        results = report.results
    parts = [results[block] for block in sorted(results)]
    channels = range(job.volume.shape[0] if job.volume.ndim == 4 else 1)
    return Statistics(
        tuple(merge([part[c] for part in parts if c in part]) for c in channels), job.foreground
    )
