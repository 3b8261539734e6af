"""Make blocks of a level from the stored level before it, a few chunks at a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.engine.memory import Ceiling
from volflow.engine.plan import Step
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.store.journal.journal import Journal, ShardEntry
from volflow.store.volume import Volume
from volflow.volumes.pyramid.halving import Factors, mean, mode

__all__ = ["LevelJob", "halve_blocks"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LevelJob:
    """What a task needs to know; small and picklable.

    Parameters
    ----------
    source, target
        The stored level and the next coarser one.
    array
        The target below its store, as the journal names it.
    factors
        Source voxels per target voxel along z, y, x.
    blocks, piece
        Target voxels written at once, a shard; and made at once, whole chunks of it.
    journal, session
        Where done blocks are recorded, and the driver this task belongs to.
    memory_bytes
        What the task may add to its process.
    """

    source: Volume
    target: Volume
    array: str
    factors: Factors
    blocks: BlockGrid
    piece: tuple[int, ...]
    journal: Journal
    session: str
    memory_bytes: int

    def pieces(self, number: int) -> list[Roi]:
        """A block, cut so that each chunk of the source is read once."""
        block = self.blocks[number].write_roi
        grid = BlockGrid(block.shape, self.piece)
        return [piece.write_roi.shift(block.start) for piece in grid]

    def read(self, piece: Roi) -> tuple[Array, float]:
        """The voxels that merge into a piece, without the channel axis, and the seconds it took."""
        began = time.perf_counter()
        factors = (1,) * (piece.ndim - 3) + self.factors
        low, high = (
            tuple(a * factor for a, factor in zip(corner, factors, strict=True))
            for corner in (piece.start, piece.stop)
        )
        voxels = self.source.read(Roi(low, high).clip(self.source.shape))
        return _spatial(voxels), time.perf_counter() - began

    def halve(self, voxels: Array, out: Array) -> None:
        """Fill ``out`` with the mean of an image, or the commonest of classes."""
        kernel = mode if self.target.meta.kind == "classes" else mean
        kernel(voxels, self.factors, out)


def halve_blocks(job: LevelJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    """Make blocks; the next piece is read while one is halved and while a block is written."""
    done = job.journal.done(blocks)
    left = [number for number in blocks if number not in done]
    ceiling = Ceiling(job.memory_bytes)
    filled = np.empty((), job.target.dtype)
    for number in done:
        yield Step(number, 0)
    with ThreadPoolExecutor(1) as pool:
        pieces = _read_ahead(job, left, pool)
        for number in left:
            block = job.blocks[number].write_roi
            if filled.shape != block.shape:
                del filled
                filled = np.empty(block.shape, job.target.dtype)
            spent: Counter[str] = Counter()
            for piece in job.pieces(number):
                voxels, read_s = next(pieces)
                began = time.perf_counter()
                inside = filled[piece.relative_to(block.start).slices()]
                job.halve(voxels, _spatial(inside))
                del voxels  # before another one is read
                stages = {"read": read_s, "halve": time.perf_counter() - began}
                spent.update(stages)
                yield Step(None, piece.size, stages)
                ceiling.keep()
            yield Step(number, 0, _store(job, number, filled, spent))


def _read_ahead(
    job: LevelJob, blocks: list[int], pool: ThreadPoolExecutor
) -> Iterator[tuple[Array, float]]:
    """The voxels of each piece of some blocks, and the seconds it took; one piece ahead."""
    pending: Future[tuple[Array, float]] | None = None
    for piece in (piece for number in blocks for piece in job.pieces(number)):
        job.journal.check(job.session)
        ready, pending = pending, pool.submit(job.read, piece)
        if ready is not None:
            yield ready.result()
    if pending is not None:
        yield pending.result()


def _store(job: LevelJob, number: int, voxels: Array, spent: Counter[str]) -> dict[str, float]:
    """Write a block, then its journal entry; returns the seconds that the writing took."""
    began = time.perf_counter()
    job.journal.check(job.session)
    sums = job.target.write(job.blocks[number].write_roi, voxels)
    stages = {"write": time.perf_counter() - began}
    entries = [ShardEntry(job.array, s.start, s.stop, s.crc32c) for s in sums]
    job.journal.mark(number, entries, {**spent, **stages}, session=job.session)
    return stages


def _spatial(voxels: Array) -> Array:
    """A view of one channel without the channel axis."""
    spatial: Array = voxels[(0,) * (voxels.ndim - 3)]
    return spatial
