"""Make blocks of a level from the stored level before it, a few chunks at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.engine.task import Context, Step
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.store.volume import Volume
from volflow.volumes.pyramid.halving import Factors, mean, mode

__all__ = ["LevelJob", "halve_blocks"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LevelJob:
    """Data of a task; small and picklable.

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
    """

    source: Volume
    target: Volume
    array: str
    factors: Factors
    blocks: BlockGrid
    piece: tuple[int, ...]

    def pieces(self, number: int) -> list[Roi]:
        """Return the pieces of a block, cut so that each chunk of the source is read once."""
        block = self.blocks[number]
        return [piece.shift(block.start) for piece in BlockGrid(block.shape, self.piece)]

    def read(self, piece: Roi) -> tuple[Array, float]:
        """Read the voxels ``zyx`` that merge into a piece; returns them and the seconds it took."""
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


def halve_blocks(job: LevelJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Make blocks; the next piece is read while one is halved and while a block is written."""
    context.trim()
    filled = np.empty((), job.target.dtype)
    with ThreadPoolExecutor(1) as pool:
        pieces = _read_ahead(job, blocks, pool, context)
        for number in blocks:
            block = job.blocks[number]
            if filled.shape != block.shape:
                del filled
                filled = np.empty(block.shape, job.target.dtype)
            for piece in job.pieces(number):
                voxels, read_s = next(pieces)
                context.clock.add("read", read_s)
                with context.stage("halve"):
                    inside = filled[piece.relative_to(block.start).slices()]
                    job.halve(voxels, _spatial(inside))
                del voxels  # before another one is read
                yield Step(None, piece.size)
                context.trim()
            with context.block(number) as writer:
                writer.write(job.target, block, filled, job.array)
            yield Step(number, 0)


def _read_ahead(
    job: LevelJob, blocks: Sequence[int], pool: ThreadPoolExecutor, context: Context
) -> Iterator[tuple[Array, float]]:
    """Yield the voxels ``zyx`` of each piece and the seconds it took, reading one piece ahead."""
    pending: Future[tuple[Array, float]] | None = None
    for piece in (piece for number in blocks for piece in job.pieces(number)):
        context.check()
        ready, pending = pending, pool.submit(job.read, piece)
        if ready is not None:
            yield ready.result()
    if pending is not None:
        yield pending.result()


def _spatial(voxels: Array) -> Array:
    """Return a view of one channel without the channel axis."""
    spatial: Array = voxels[(0,) * (voxels.ndim - 3)]
    return spatial
