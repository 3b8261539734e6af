"""Count classes or sum weights in boxes of a source, piece by piece, on any Dask cluster."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from distributed import Client

from volflow.engine.cluster import Cluster, connect
from volflow.engine.plan import Plan, split_runs
from volflow.engine.progress import Progress
from volflow.engine.run_options import RunOptions
from volflow.engine.task import Context, Step
from volflow.errors import InvalidInput
from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.sampling.counts.tally import (
    GROUP_VOXELS,
    Cell,
    Entries,
    one_hot,
    tally_classes,
    tally_weights,
)
from volflow.store.layout import piece_of_cells
from volflow.store.slabs import Array, Source
from volflow.store.volume import Volume
from volflow.volumes.arrays.computed import DaskSource
from volflow.volumes.fold import fold, in_memory

__all__ = ["CLASSES", "WEIGHTS", "CountJob", "Tally", "measure", "plan_counts"]

TASKS = 256
MOST_CELLS = 2**27  # some numbers each; 35 TB of labels have as many of 64³ voxels


@dataclass(frozen=True)
class Tally:
    """What is counted per cell: its name, the function that counts it, and the table's columns."""

    name: str
    operation: str
    count: Callable[[Array, Roi, Cell, Cell, str], Entries]
    columns: tuple[tuple[str, str], ...]

    def join(self, parts: Sequence[Entries]) -> Entries:
        """Put tables one below the other; no tables give one without rows."""
        return {
            key: np.concatenate([np.empty(0, dtype), *(part[key] for part in parts)])
            for key, dtype in self.columns
        }

    def fits(self, table: Entries, cells: Cell) -> bool:
        """Return True if a table that was kept can be one of these: by its columns and values."""
        columns = {name: (values.dtype.str[1:], values.ndim) for name, values in table.items()}
        if columns != {name: (dtype, 1) for name, dtype in self.columns}:
            return False
        if len({len(values) for values in table.values()}) > 1:
            return False
        number, amount = (table[self.columns[end][0]] for end in (0, -1))
        right = (number >= 0) & (number < math.prod(cells)) & (amount > 0) & (amount < np.inf)
        return bool(right.all())


CLASSES = Tally(
    "classes", "class counts", tally_classes, (("cell", "i8"), ("value", "i8"), ("count", "i8"))
)
WEIGHTS = Tally("weights", "weight sums", tally_weights, (("cell", "i8"), ("sum", "f8")))


@dataclass(frozen=True)
class CountJob:
    """What a task needs: the source, what to count, and the boxes to read, cut into pieces.

    Pieces are whole cells, but for the cells that a box cuts: each cell of a box lies in one piece.
    Boxes and sizes are in order z, y, x.
    """

    source: Source
    tally: Tally
    cell: Cell
    boxes: tuple[Roi, ...]

    @cached_property
    def cells(self) -> Cell:
        """Cells per axis."""
        z, y, x = (-(-n // c) for n, c in zip(self.source.shape[-3:], self.cell, strict=True))
        if z * y * x > MOST_CELLS:
            raise InvalidInput(
                f"cells {self.cell} cut a volume of shape {self.source.shape} into {z * y * x}, at"
                f" most {MOST_CELLS} are counted; check the volume's shape"
            )
        return z, y, x

    @cached_property
    def piece(self) -> tuple[int, ...]:
        """Voxels per axis that are read at once, counted from voxel 0."""
        source = self.source
        return piece_of_cells(self.cell, _units(source), source.shape[-3:], source.dtype)

    @cached_property
    def grids(self) -> tuple[tuple[tuple[int, ...], BlockGrid], ...]:
        """The pieces of each box: where the first begins, and their grid from there."""
        grids = []
        for box in self.boxes:
            low = tuple(a // p * p for a, p in zip(box.start, self.piece, strict=True))
            shape = tuple(b - a for a, b in zip(low, box.stop, strict=True))
            grids.append((low, BlockGrid(shape, self.piece)))
        return tuple(grids)

    @cached_property
    def firsts(self) -> tuple[int, ...]:
        """The number of the first piece of each box, and of all pieces."""
        return tuple(accumulate((len(grid) for _, grid in self.grids), initial=0))

    def __len__(self) -> int:
        return self.firsts[-1]

    def roi(self, piece: int) -> Roi:
        """Return the box of a piece."""
        number = bisect_right(self.firsts, piece) - 1
        low, grid = self.grids[number]
        return grid[piece - self.firsts[number]].shift(low).intersect(self.boxes[number])


def _units(source: Source) -> list[tuple[int, ...]]:
    """Boxes that are read without waste, z, y, x: stored objects, planes and rows of a file."""
    if isinstance(source, Volume | DaskSource):
        return [unit[-3:] for unit in (source.shards, source.piece) if unit is not None]
    _, y, x = source.shape[-3:]
    return [(1, y, x), (1, 1, x)]


def count_pieces(job: CountJob, pieces: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Yield the tables of some pieces."""
    for piece in pieces:
        context.check()
        table = _count_piece(job, job.roi(piece), context)
        yield Step(piece, job.roi(piece).size, table)


def _count_piece(job: CountJob, roi: Roi, context: Context) -> Entries:
    """Return the table of one piece, whose voxels are freed with this call."""
    channels = job.source.shape[:-3]
    with context.stage("read"):
        box = Roi((*(0 for _ in channels), *roi.start), (*channels, *roi.stop))
        voxels = job.source.read(box).reshape(-1, *roi.shape)
    with context.stage("count"):
        path = job.source.path
        name = "the array" if path is None else Path(path).name
        tables = [job.tally.count(one, roi, job.cell, job.cells, name) for one in voxels]
        return tables[0] if len(tables) == 1 else one_hot(tables, name)


def plan_counts(job: CountJob, source: Source, memory_bytes: int) -> Plan:
    """Plan the counting of a job whose source travels as it is given; no voxel is read.

    Raises
    ------
    MemoryRefused
        If one task does not fit.
    """
    job = replace(job, source=source)
    shape, dtype = job.source.shape[-3:], job.source.dtype
    edges = zip(job.piece, _units(job.source)[-1], shape, strict=True)
    decoded = math.prod(min(p + (u if p % u else 0), -(-n // u) * u) for p, u, n in edges)
    # Reading holds decoded chunks and stored bytes beside the piece; counting holds bin numbers,
    # or sorted values, of the cells or layers of a cell that are counted at once.
    layer = math.prod(map(min, job.cell[1:], shape[1:]))
    held = decoded * dtype.itemsize * job.source.channels_count
    peak = 3 * held + 64 * max(GROUP_VOXELS, layer)
    plan = Plan(
        job.tally.operation,
        count_pieces,
        job,
        split_runs(range(len(job)), TASKS),
        units=sum(box.size for box in job.boxes),
        unit="voxels",
        peak_bytes=peak,
        memory_bytes=memory_bytes,
        facts=(
            ("input", job.source.path or "an array"),
            ("cell", f"{job.cell} voxels"),
            ("piece", f"{job.piece} voxels"),
        ),
    )
    plan.require_memory(f"give it at least {format_bytes(math.ceil(peak * 1.01))}")
    return plan


def measure(
    jobs: Sequence[CountJob],
    *,
    cluster: Cluster | Callable[[], Client] = None,
    memory: str | int | None = None,
    progress: Progress = None,
) -> list[Entries]:
    """Return the table of each of some jobs over one source.

    Parameters
    ----------
    jobs
        Source, cells and boxes of each.
    cluster, memory, progress
        As in `predict`; an array in memory is counted in this thread. A function is called for the
        cluster's client where it is needed.

    Raises
    ------
    InvalidInput
        If a voxel is neither a class nor a weight, naming it and its place.
    MemoryRefused
        If one task does not fit into ``memory``, saying what would.
    RunFailed
        If the source cannot be read.
    """
    with ExitStack() as stack:
        client = None
        if not all(in_memory(job.source) for job in jobs):
            client = stack.enter_context(connect(cluster() if callable(cluster) else cluster))
        options = RunOptions(cluster=client, memory=memory, progress=progress)
        return [
            fold(partial(plan_counts, job), job.source, job.tally.join, options) for job in jobs
        ]
