"""Finished rows become shards; a full block is compressed and written while the next one fills."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.engine.task import Context
from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.infer.method import Targets, array_of, box_of
from volflow.store.volume import Volume, shard_rois

__all__ = ["Writer", "tile_of"]


def tile_of(grid: BlockGrid, frame: Frame, blocks: Sequence[int]) -> Roi:
    """Return the box, in frame coordinates, of blocks in a row along the frame's first axis.

    Parameters
    ----------
    grid
        The tiling of the outputs, in stored axis order.
    frame, blocks
        The frame, and numbers of blocks.
    """
    first, last = (frame.roi(grid[n], grid.shape) for n in (blocks[0], blocks[-1]))
    return Roi(first.start, last.stop)


@dataclass(frozen=True)
class OpenShard:
    """One shard of an output that is being filled: its box as stored and in the frame, voxels."""

    output: str
    volume: Volume
    shard: Roi
    place: Roi
    voxels: npt.NDArray[Any]


@dataclass
class Writer:
    """Collects finished rows into shards, and writes each block behind the next one's back.

    Buffers are handed on from block to block: fresh memory costs more than the copy into it.

    Parameters
    ----------
    grid, frame, targets
        The tiling of the outputs in stored axis order, the frame of the rows, and where outputs go.
    blocks
        Numbers of blocks that follow each other along the frame's first axis.
    context
        Writes and records them.
    empty
        Makes the buffers.
    """

    grid: BlockGrid
    frame: Frame
    targets: Targets
    blocks: Sequence[int]
    context: Context
    empty: Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]] = np.empty
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    shards: list[OpenShard] = field(default_factory=list)
    spare: list[npt.NDArray[Any]] = field(default_factory=list)
    pending: Future[tuple[int, list[OpenShard]]] | None = None
    position: int = 0

    def put(self, row: int, rows: dict[str, npt.NDArray[Any]]) -> Iterator[int]:
        """Take rows of every target, from ``row`` on; yields the numbers of stored blocks."""
        last = row + next(iter(rows.values())).shape[-3]
        while row < last:
            number = self.blocks[self.position]
            end = tile_of(self.grid, self.frame, (number,)).stop[0]
            stop = min(last, end)
            if not self.shards:
                self.shards = list(self._open(number))
            for name, values in rows.items():
                part = values[..., row - last : stop - last or None, :, :]
                for one in self.shards:
                    if one.output == name:
                        self._copy(one, row, part)
            row = stop
            if row == end:
                yield from self.flush()
                full, self.shards = self.shards, []
                self.pending = self.pool.submit(
                    write_block, self.context, number, full, self.context.clock.take_block()
                )
                self.position += 1

    def _open(self, number: int) -> Iterator[OpenShard]:
        block = self.grid[number]
        for output, volume in self.targets.items():
            for shard in shard_rois(volume, box_of(volume, block)):
                space = Roi(shard.start[-3:], shard.stop[-3:])
                place = self.frame.roi(space, self.grid.shape)
                voxels = self._buffer(shard.shape, volume.dtype)
                yield OpenShard(output, volume, shard, place, voxels)

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        for n, spare in enumerate(self.spare):
            if spare.shape == shape and spare.dtype == dtype:
                return self.spare.pop(n)
        return self.empty(shape, dtype)

    def _copy(self, one: OpenShard, row: int, rows: npt.NDArray[Any]) -> None:
        """Copy what belongs to a shard out of rows of the tile that begin at ``row``."""
        tile = tile_of(self.grid, self.frame, self.blocks)
        corner = (row, *tile.start[1:])
        both = one.place.intersect(Roi.full(rows.shape[-3:]).shift(corner))
        if not both.size:
            return
        if rows.ndim == 4:
            rows = rows[one.shard.start[0] : one.shard.stop[0]]
        z, y, x = both.relative_to(corner).slices()
        here = rows[..., z, y, x]
        z, y, x = both.relative_to(one.place.start).slices()
        self.frame.show(one.voxels)[..., z, y, x] = here

    def flush(self) -> Iterator[int]:
        """Wait for the block being written, if there is one."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            with self.context.stage("write"):
                number, shards = pending.result()
            self.spare = [one.voxels for one in shards]
            yield number

    def close(self) -> None:
        """Stop the writing thread."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def write_block(
    context: Context, number: int, shards: list[OpenShard], stages: dict[str, float]
) -> tuple[int, list[OpenShard]]:
    """Write the shards of a block, and record it with the seconds it took."""
    with context.block(number, stages) as block:
        for one in shards:
            block.write(one.volume, one.shard, one.voxels, array_of(one.output))
    return number, shards
