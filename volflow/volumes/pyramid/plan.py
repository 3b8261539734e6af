"""Coarser levels as data: their grids, how they are stored and cut, what is left of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import zarr

from volflow.engine.plan import Plan, split_runs
from volflow.errors import InvalidInput
from volflow.geometry.grid import BlockGrid
from volflow.store.journal.complete import require_complete
from volflow.store.journal.journal import Record
from volflow.store.journal.levels import Place
from volflow.store.layout import shrinking
from volflow.store.meta import Level, VolumeSpec
from volflow.store.opening import open_node
from volflow.store.remote.address import is_stored
from volflow.store.volume import Volume
from volflow.volumes.pyramid.halving import Factors, halved, halvings
from volflow.volumes.pyramid.task import halve_blocks

__all__ = ["Layout", "Task", "lay_out", "tasks_for"]

# Raised when the same level 0 gives other voxels than before; part of the fingerprint.
PYRAMID_VERSION = 1

PIECE_BYTES = 8 * 2**20  # of the level before, read at once
RUN_BYTES = 256 * 2**20  # of a level, written by one task
TASKS_PER_THREAD = 4
SLACK_BYTES = 48 * 2**20  # sums of a few rows, what the allocator keeps, Python objects


@dataclass(frozen=True)
class Layout:
    """A level to be made: its grid, how it is stored, and how it is cut.

    Parameters
    ----------
    level
        From 1 on.
    factors
        Voxels of the level before per voxel of this, along z, y, x.
    spec
        Of the level: chunks as level 0 has them; shards too, unless memory is short.
    memory_bytes
        What a task may take.
    """

    level: int
    factors: Factors
    spec: VolumeSpec
    memory_bytes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.spec.shape

    @property
    def shard(self) -> tuple[int, ...]:
        """Voxels per axis that are stored, and written, together."""
        return self.spec.shard or self.spec.chunk

    @property
    def blocks(self) -> BlockGrid:
        """A block is a shard."""
        return BlockGrid(self.shape, self.shard)

    @property
    def piece(self) -> tuple[int, ...]:
        """Return the box made at once: a chunk, or several while little is read for them."""
        piece = list(self.spec.chunk)
        for axis in (-1, -2, -3):
            while (
                piece[axis] < self.shape[axis]
                and self.shard[axis] % (2 * piece[axis]) == 0
                and 2 * self._read_bytes(piece) <= PIECE_BYTES
            ):
                piece[axis] *= 2
        return tuple(piece)

    def _read_bytes(self, piece: Sequence[int]) -> int:
        return math.prod(self._clipped(piece)) * math.prod(self.factors) * self.spec.dtype.itemsize

    def _clipped(self, box: Sequence[int]) -> tuple[int, ...]:
        return tuple(min(side, n) for side, n in zip(box, self.shape, strict=True))

    @property
    def peak_bytes(self) -> int:
        """Projected peak memory of a task."""
        shard = math.prod(self._clipped(self.shard)) * self.spec.dtype.itemsize
        # The shard being filled, its chunks compressed, and these put together; a piece that is
        # halved, and the next one compressed, decoded and put together.
        return 3 * shard + 4 * self._read_bytes(self.piece) + SLACK_BYTES

    def within_memory(self) -> Layout:
        """Return the same with smaller shards, as far as memory demands."""
        layout = self
        for shard in shrinking(self.shard, self.spec.chunk, (1,) * len(self.shard)):
            layout = replace(self, spec=replace(self.spec, shard=shard))
            if layout.peak_bytes <= self.memory_bytes:
                break
        return layout

    def require_memory(self) -> None:
        """Refuse a level that no task can make, saying what would do."""
        least = math.ceil(self.peak_bytes / 2**20)
        self.plan().require_memory(f'use memory="{least}MiB" or more (--memory), or smaller chunks')

    def plan(self, left: tuple[int, ...] = (), threads: int = 1) -> Plan:
        """Return the plan for the blocks that are left, without a job."""
        blocks = self.blocks
        voxels = blocks.voxels(left)
        tasks = max(TASKS_PER_THREAD * threads, voxels * self.spec.dtype.itemsize // RUN_BYTES)
        return Plan(
            f"level {self.level}",
            halve_blocks,
            None,
            split_runs(left, tasks),
            units=voxels,
            unit="voxels",
            peak_bytes=self.peak_bytes,
            memory_bytes=self.memory_bytes,
            grid=blocks,
        )

    def describe(self) -> str:
        """Return the level in a line, for people."""
        sides = " × ".join(map(str, self.shape[-3:]))
        spacing = " × ".join(f"{size:.6g}" for size in self.spec.meta.spacing)
        return f"{sides}, spacing {spacing} {self.spec.meta.unit or ''}".rstrip()


def lay_out(finest: VolumeSpec, levels: int | None, memory_bytes: int) -> list[Layout]:
    """Return the levels of a volume, in its chunks and shards.

    Raises
    ------
    InvalidInput
        Where there cannot be so many levels.
    """
    found: list[Layout] = []
    whole = (1, 1, 1)
    sides, meta = finest.shape, finest.meta
    for level, factors in enumerate(halvings(sides[-3:], meta.spacing, levels), start=1):
        sides = halved(sides, (1,) * (len(sides) - 3) + factors)
        z, y, x = (a * b for a, b in zip(whole, factors, strict=True))
        whole = (z, y, x)
        coarse = replace(finest, shape=sides, meta=meta.regrid(whole))
        found.append(Layout(level, factors, coarse, memory_bytes).within_memory())
    return found


@dataclass(frozen=True)
class Task:
    """A level to be made, and what is left of it."""

    layout: Layout
    record: Record
    begun: bool
    left: tuple[int, ...]

    @property
    def listed(self) -> Level:
        """The level as the metadata list it."""
        meta = self.layout.spec.meta
        return Level(str(self.layout.level), meta.spacing, meta.translation)


def tasks_for(
    finest: Volume, place: Place, levels: int | None, memory_bytes: int, overwrite: bool
) -> list[Task]:
    """Return the levels with what is left to do of each; nothing is changed."""
    require_complete(finest)
    # Levels that are being repaired are not listed, but have a journal.
    there = max(len(finest.levels) - 1, *place.surplus(0), 0)
    if levels is None and there > len(halvings(finest.spatial_shape, finest.spacing)):
        levels = there
    layouts = lay_out(finest.spec, levels, memory_bytes)
    identity = finest.identity()
    return [_task(layout, place, identity, overwrite) for layout in layouts]


def _task(layout: Layout, place: Place, identity: str, overwrite: bool) -> Task:
    fingerprint = {"input": identity, "version": PYRAMID_VERSION}
    begun = None if overwrite else _begun(layout, place, fingerprint)
    layout = begun or layout
    settings = {"grid": layout.blocks.counts, "chunk": layout.spec.chunk, "shard": layout.shard}
    done = place.journal(layout.level).done() if begun else {}
    left = tuple(n for n in range(len(layout.blocks)) if n not in done)
    if left:
        layout.require_memory()
    return Task(layout, Record("pyramid", fingerprint, settings), begun is not None, left)


def _begun(layout: Layout, place: Place, fingerprint: dict[str, Any]) -> Layout | None:
    """Return the layout of a level that can be completed; None where it has to start over."""
    record = place.journal(layout.level).recorded()
    path = place.path(layout.level)
    if record is None and is_stored(path):
        raise InvalidInput(
            f"{path} has no journal, so that volflow did not make it; replace it with"
            " overwrite=True (--overwrite)"
        )
    if record is None or record.fingerprint != fingerprint:  # levels follow what they are made from
        return None
    try:
        spec = replace(layout.spec, shard=tuple(record.settings["shard"]))
        array = open_node(str(path))[1]
        if not isinstance(array, zarr.Array):
            return None
    except Exception:  # deleted or damaged in any way
        return None
    found = (array.shape, array.dtype, array.chunks, array.shards)
    wanted = (spec.shape, spec.dtype, spec.chunk, spec.shard)
    return replace(layout, spec=spec) if found == wanted else None
