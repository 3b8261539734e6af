"""Finished rows become shards; a full block is compressed and written while the next one fills."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from volflow.engine.task import Context
from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.infer.method import Target
from volflow.store.volume import shard_rois

__all__ = ["WriteJob", "Writer"]


class WriteJob(Protocol):
    """What a writer needs to know: where rows go."""

    @property
    def blocks(self) -> BlockGrid:
        """The tiling of the outputs, in stored axis order."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """Where they are written."""

    @property
    def frame(self) -> Frame:
        """That of the rows."""

    def roi(self, block: int) -> Roi:
        """A block's box in frame coordinates."""

    def tile(self, blocks: tuple[int, ...]) -> Roi:
        """The box of a run of blocks in frame coordinates."""


@dataclass(frozen=True)
class Piece:
    """One shard of a block being filled: which, where in the frame, and its voxels as stored."""

    target: Target
    shard: Roi
    place: Roi
    voxels: npt.NDArray[Any]


@dataclass
class Writer:
    """Collects finished rows into shards, and writes each block behind the next one's back.

    Buffers are handed on from block to block: fresh memory costs more than the copy into it.
    """

    job: WriteJob
    blocks: tuple[int, ...]
    context: Context
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    pieces: list[Piece] = field(default_factory=list)
    spare: list[npt.NDArray[Any]] = field(default_factory=list)
    pending: Future[tuple[int, list[Piece]]] | None = None
    position: int = 0
    empty: Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]] = np.empty

    def put(self, row: int, rows: dict[str, npt.NDArray[Any]]) -> Iterator[int]:
        """Take rows from ``row`` on, of every target; yields blocks that are on the store."""
        last = row + next(iter(rows.values())).shape[-3]
        while row < last:
            number = self.blocks[self.position]
            stop = min(last, self.job.roi(number).stop[0])
            if not self.pieces:
                self.pieces = list(self._open(number))
            for name, values in rows.items():
                part = values[..., row - last : stop - last or None, :, :]
                for piece in self.pieces:
                    if piece.target.name == name:
                        self._copy(piece, row, part)
            row = stop
            if row == self.job.roi(number).stop[0]:
                yield from self.flush()
                full, self.pieces = self.pieces, []
                self.pending = self.pool.submit(
                    write_block, self.context, number, full, self.context.clock.take_block()
                )
                self.position += 1

    def _open(self, number: int) -> Iterator[Piece]:
        job = self.job
        for target in job.targets:
            block = job.blocks[number].write_roi
            if target.volume.ndim == 4:
                block = Roi((0, *block.start), (target.channels, *block.stop))
            for shard in shard_rois(target.volume, block):
                space = Roi(shard.start[-3:], shard.stop[-3:])
                place = job.frame.roi(space, job.blocks.shape)
                yield Piece(target, shard, place, self._buffer(shard.shape, target.volume.dtype))

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        for n, spare in enumerate(self.spare):
            if spare.shape == shape and spare.dtype == dtype:
                return self.spare.pop(n)
        return self.empty(shape, dtype)

    def _copy(self, piece: Piece, row: int, rows: npt.NDArray[Any]) -> None:
        """Copy what belongs to a shard out of rows of the tile that begin at ``row``."""
        tile = self.job.tile(self.blocks)
        corner = (row, *tile.start[1:])
        both = piece.place.intersect(Roi.full(rows.shape[-3:]).shift(corner))
        if not both.size:
            return
        if rows.ndim == 4:
            rows = rows[piece.shard.start[0] : piece.shard.stop[0]]
        z, y, x = both.relative_to(corner).slices()
        here = rows[..., z, y, x]
        z, y, x = both.relative_to(piece.place.start).slices()
        self.job.frame.show(piece.voxels)[..., z, y, x] = here

    def flush(self) -> Iterator[int]:
        """Wait for the block being written, if there is one."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            with self.context.stage("write"):
                number, pieces = pending.result()
            self.spare = [piece.voxels for piece in pieces]
            yield number

    def close(self) -> None:
        """Stop the writing thread."""
        self.pool.shutdown(wait=True, cancel_futures=True)


def write_block(
    context: Context, number: int, pieces: list[Piece], stages: dict[str, float]
) -> tuple[int, list[Piece]]:
    """Write the shards of a block, and record it with the seconds it took."""
    with context.block(number, stages) as block:
        for piece in pieces:
            target = piece.target
            block.write(target.volume, piece.shard, piece.voxels, target.array)
    return number, pieces
