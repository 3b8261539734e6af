"""Statistics of a whole volume, streamed: each stored object is read once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from volflow.engine.cluster import Cluster
from volflow.engine.plan import Plan
from volflow.engine.progress import Progress
from volflow.engine.run_options import RunOptions
from volflow.engine.task import Context, Step
from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import BlockGrid
from volflow.geometry.histogram import PIECE_VOXELS, Foreground, Histogram, measure, merge
from volflow.geometry.roi import Roi
from volflow.option import from_keywords, journey
from volflow.store.slabs import Source
from volflow.store.volume import Volume
from volflow.volumes.arrays.inputs import VolumeLike, open_input, refuse_sequential
from volflow.volumes.distribution import (
    Statistics,
    check_foreground,
    load_statistics,
    save_statistics,
)
from volflow.volumes.fold import fold

__all__ = ["plan_statistics", "statistics"]

PIECE_BYTES = (16 * 2**20, 64 * 2**20)
# The driver holds a histogram per block, so their number must not grow with the volume.
BLOCKS = 256


@dataclass(frozen=True)
class StatisticsJob:
    """Data of a task: the volume, its blocks, and which voxels count.

    Blocks are runs of pieces; both follow from the stored layout alone, never from memory or
    workers, so that the sums are rounded alike everywhere.
    """

    volume: Source
    foreground: Foreground

    @cached_property
    def pieces(self) -> BlockGrid:
        """Boxes that are read at once."""
        return BlockGrid(self.volume.shape, piece_shape(self.volume))

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return min(BLOCKS, len(self.pieces))

    def pieces_of(self, block: int) -> range:
        """Return the numbers of the pieces in a block."""
        count = len(self.pieces)
        return range(count * block // self.blocks, count * (block + 1) // self.blocks)


def piece_shape(volume: Source) -> tuple[int, ...]:
    """Return a box of whole shards, or of whole chunks of a large one: 16 to 64 MiB if possible.

    Examples
    --------
    >>> import zarr
    >>> from volflow.store.volume import open_volume
    >>> layout = {"shape": (999,) * 3, "shards": (256,) * 3, "chunks": (64,) * 3}
    >>> piece_shape(open_volume(zarr.create_array({}, dtype="float64", **layout)))
    (128, 256, 256)
    """
    unit = volume.shards or volume.piece
    piece = [min(u, n) for u, n in zip(unit, volume.shape, strict=True)]
    least, most = PIECE_BYTES

    def size() -> int:
        return math.prod(piece) * volume.dtype.itemsize

    for axis, chunk in enumerate(volume.piece):  # thinner along z first: rows stay whole
        while size() > most and piece[axis] > chunk:
            piece[axis] = -(-piece[axis] // chunk // 2) * chunk
    for axis in reversed(range(volume.ndim - 3, volume.ndim)):
        while size() < least and piece[axis] < volume.shape[axis]:
            piece[axis] = min(2 * piece[axis], volume.shape[axis])
    return tuple(piece)


def measure_blocks(job: StatisticsJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """The histograms of some blocks, one per channel that they meet."""
    for block in blocks:
        found: dict[int, Histogram] = {}
        for number in job.pieces_of(block):
            context.check()
            roi = job.pieces[number]
            _measure_piece(job, roi, found, context)
            yield Step(None, roi.size)
        yield Step(block, 0, found)


def _measure_piece(
    job: StatisticsJob, roi: Roi, found: dict[int, Histogram], context: Context
) -> None:
    """Add one piece to what was found per channel. Its voxels end here."""
    with context.stage("read"):
        voxels = job.volume.read(roi)
    first, channels = (roi.start[0], voxels) if roi.ndim == 4 else (0, voxels[None])
    with context.stage("count"):
        for channel, data in enumerate(channels, start=first):
            part = measure(data, job.foreground)
            found[channel] = merge([found[channel], part]) if channel in found else part


def plan_statistics(job: StatisticsJob, memory_bytes: int) -> Plan:
    """Return the plan of `statistics`; no voxel is read.

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
    if not isinstance(volume, Volume):  # what Dask computes is made from a few of its chunks
        peak += 4 * math.prod(volume.piece) * volume.dtype.itemsize
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


@journey
def statistics(
    volume: VolumeLike,
    *,
    foreground: Foreground = False,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    progress: Progress = None,
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
    cluster, workers, resources, wait, memory, progress
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
    27 voxels, min 0, p1 0.26, p5 1.3, p50 13, p95 24.7, p99 25.74, max 26, mean 13, std 7.78888
    >>> stats.percentile(75), stats.percentile([5, 95])
    ((19.5,), ((1.3, 24.7),))
    """
    options = from_keywords(RunOptions, locals())
    source, asked = open_input(volume), check_foreground(foreground)

    def plan_of(source: Source, memory_bytes: int) -> Plan:
        return plan_statistics(StatisticsJob(source, asked), memory_bytes)

    def merged(parts: list[dict[int, Histogram]]) -> Statistics:
        channels = range(source.channels_count)
        return Statistics(tuple(merge([p[c] for p in parts if c in p]) for c in channels), asked)

    def measured() -> Statistics:
        return fold(plan_of, source, merged, options)

    if not isinstance(source, Volume):
        refuse_sequential(source)
        return measured()
    identity = source.identity()
    known = load_statistics(source, identity, asked)
    if known is not None:
        return known
    found = measured()
    if source.identity() == identity:  # else it was being written: these fit neither state
        save_statistics(source, identity, found)
    return found
