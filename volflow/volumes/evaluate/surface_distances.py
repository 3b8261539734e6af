"""Distances between the surfaces of each class, block by block, each exact whatever the blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from volflow.engine.plan import Plan
from volflow.engine.task import Context, Step
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.store.slabs import Array
from volflow.volumes.evaluate.compared_blocks import ComparedBlocks
from volflow.volumes.evaluate.distance_counts import (
    DistanceCounts,
    Floats,
    merge_distances,
    to_40_bits,
)
from volflow.volumes.evaluate.label_pair import LabelPair
from volflow.volumes.evaluate.nearest import KEPT_BYTES, FarSearch, Voxels, nearest_in, reach_of
from volflow.volumes.evaluate.pair_plan import blocks_within, pair_plan
from volflow.volumes.evaluate.surfaces import Mask, SurfacePoints, SurfaceReader, surface_mask
from volflow.volumes.evaluate.voxel_counts import VoxelCounts

__all__ = [
    "FarPlace",
    "SurfaceDistances",
    "SurfaceJob",
    "cells_with_surface",
    "measure_surfaces",
    "merge_surfaces",
    "plan_surface_distances",
]

HALO = 16
PENDING = 2**18  # distances that are held one by one

Integers = npt.NDArray[np.int64]
SurfaceCells = dict[int, Integers]


@dataclass(frozen=True, order=True)
class FarPlace:
    """A voxel of one surface that lies far from the other.

    Parameters
    ----------
    distance
        To the other surface; infinite where it is beyond the bound.
    place
        The voxel (z, y, x).
    """

    distance: float
    place: tuple[int, int, int]


@dataclass(frozen=True)
class SurfaceDistances:
    """What is known of one class.

    Parameters
    ----------
    to_truth, to_pred
        Distances of the voxels of pred's surface to that of the truth, and the other way round.
    farthest
        The voxel with the largest distance, of equals the first; None where there is none.
    """

    to_truth: DistanceCounts
    to_pred: DistanceCounts
    farthest: FarPlace | None


def merge_surfaces(parts: Iterable[Mapping[int, SurfaceDistances]]) -> dict[int, SurfaceDistances]:
    """Return the distances of several blocks together, by class."""
    gathered: dict[int, list[SurfaceDistances]] = {}
    for part in parts:
        for value, one in part.items():
            gathered.setdefault(value, []).append(one)
    return {
        value: SurfaceDistances(
            merge_distances(one.to_truth for one in found),
            merge_distances(one.to_pred for one in found),
            _farther(one.farthest for one in found),
        )
        for value, found in gathered.items()
    }


def _farther(places: Iterable[FarPlace | None]) -> FarPlace | None:
    there = [place for place in places if place is not None]
    return min(there, key=lambda one: (-one.distance, one.place), default=None)


@dataclass(frozen=True)
class SurfaceJob:
    """Data of a task: the pair, its blocks, and where its classes are.

    Parameters
    ----------
    pair, blocks
        What is compared, and in which blocks.
    cells
        For pred and for the truth: the numbers of the cells that may hold voxels of the surface of
        a class, of each class that both hold.
    bound
        The largest distance that is looked for.
    halo
        Voxels along the finest axis that a block reads beyond itself, on each side; along others
        as many as are as long.
    """

    pair: LabelPair
    blocks: ComparedBlocks
    cells: tuple[SurfaceCells, SurfaceCells]
    bound: float = math.inf
    halo: int = HALO

    @cached_property
    def halos(self) -> tuple[int, ...]:
        """Voxels per side that a block reads beyond itself, along z, y, x."""
        least = min(self.pair.spacing)
        return tuple(max(1, math.ceil(self.halo * least / s)) for s in self.pair.spacing)

    @cached_property
    def busy_cells(self) -> Integers:
        """The cells that hold such a class."""
        held = [c for one in self.cells for c in one.values()]
        return np.unique(np.concatenate(held)) if held else np.empty(0, np.int64)


@dataclass
class _Tally:
    """Distances by class and direction, counted as they come."""

    bound: float
    pending: dict[tuple[int, int], list[DistanceCounts]] = field(default_factory=dict)
    farthest: dict[int, FarPlace] = field(default_factory=dict)
    held: int = 0

    def add(self, direction: int, value: int, voxels: Voxels, distances: Floats) -> None:
        """Count the distances of some voxels of a class."""
        counts = DistanceCounts.of(distances, bound=self.bound)
        self.pending.setdefault((direction, value), []).append(counts)
        self.held += len(counts.values)
        far = np.where(to_40_bits(distances) > to_40_bits(self.bound), math.inf, distances)
        largest = float(far.max())
        z, y, x = min(voxels[far == largest].tolist())
        there = FarPlace(largest, (z, y, x))
        nearest = _farther((self.farthest.get(value), there))
        if nearest is not None:
            self.farthest[value] = nearest
        if self.held > PENDING:
            self.pending = {key: [merge_distances(parts)] for key, parts in self.pending.items()}
            self.held = 0

    def add_zeros(self, direction: int, value: int, count: int) -> None:
        """Count voxels of a class that lie on both surfaces."""
        zeros = DistanceCounts.of(np.zeros(1), np.array([count]), self.bound)
        self.pending.setdefault((direction, value), []).append(zeros)

    def found(self) -> dict[int, SurfaceDistances]:
        """Return what was counted."""
        none = DistanceCounts.of(np.empty(0), bound=self.bound)

        def of(direction: int, value: int) -> DistanceCounts:
            return merge_distances(self.pending.get((direction, value), [none]))

        return {
            value: SurfaceDistances(of(0, value), of(1, value), self.farthest.get(value))
            for value in sorted({value for _, value in self.pending})
        }


def measure_surfaces(job: SurfaceJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Measure some blocks: each counts the distances of the surface voxels within it."""
    reader = SurfaceReader(job.pair, np.asarray(sorted(job.cells[0])))
    search = FarSearch(reader, job.blocks.cells, job.cells, job.bound)
    busy = frozenset(job.busy_cells.tolist())
    for number in blocks:
        context.check()
        roi = job.blocks.grid[number]
        seen = roi.grow(job.halos).clip(job.pair.shape)
        with context.stage("read"):
            both = reader.read(0, seen), reader.read(1, seen)
        tally = _Tally(job.bound)
        for cell, box in job.blocks.cells_of(number):
            if cell in busy:
                context.check()
                with context.stage("measure"):
                    _measure_cell(job, search, tally, box, seen, both)
        yield Step(number, roi.size, tally.found())


def _measure_cell(
    job: SurfaceJob,
    search: FarSearch,
    tally: _Tally,
    box: Roi,
    seen: Roi,
    both: tuple[tuple[Array, Mask], tuple[Array, Mask]],
) -> None:
    """Count the distances of the surface voxels of a cell, of both volumes."""
    classes, spacing = search.reader.classes, job.pair.spacing
    near = box.grow(job.halos).intersect(seen)
    own, around = (one.relative_to(seen.start).slices() for one in (box, near))
    (pred, on_pred), (truth, on_truth) = ((x[own], mask[own]) for x, mask in both)
    shared = on_pred & on_truth & (pred == truth)
    found, counts = np.unique(pred[shared], return_counts=True)
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        if value in job.cells[0]:
            tally.add_zeros(0, value, count)
            tally.add_zeros(1, value, count)
    for direction, (labels, mask) in enumerate(((pred, on_pred), (truth, on_truth))):
        queries = SurfacePoints.of(mask & ~shared, labels, box.start, classes)
        if not queries.classes:
            continue
        there, on_there = both[1 - direction]
        targets = SurfacePoints.of(on_there[around], there[around], near.start, classes)
        for value in queries.classes:
            voxels = queries.of_class(value)
            distances = nearest_in(voxels, targets.of_class(value), spacing)
            # A voxel outside of the box may be nearer than one that is farther than its sides.
            left = distances > reach_of(voxels, near, job.pair.shape, spacing)
            if left.any():
                distances[left] = search.improve(
                    1 - direction, value, voxels[left], distances[left], near
                )
            tally.add(direction, value, voxels, distances)


def cells_with_surface(counts: VoxelCounts, grid: BlockGrid) -> tuple[SurfaceCells, SurfaceCells]:
    """Return the cells that may hold voxels of a class's surface, of the classes that both hold.

    These are the cells that hold it, without those that it fills together with all six around.
    """
    both = sorted(counts.cells[0].keys() & counts.cells[1].keys())
    pred, truth = (
        {value: _without_inner(cells[value], full.get(value, []), grid) for value in both}
        for cells, full in zip(counts.cells, counts.full, strict=True)
    )
    return pred, truth


def _without_inner(cells: Sequence[int], full: Sequence[int], grid: BlockGrid) -> Integers:
    filled = np.zeros(len(grid), bool)
    filled[np.asarray(full, np.int64)] = True
    inner = filled.reshape(grid.counts) & ~surface_mask(
        filled.reshape(grid.counts).view(np.uint8), [(True, True)] * 3
    )
    numbers = np.asarray(cells, np.int64)
    found: Integers = numbers[~inner.ravel()[numbers]]
    return found


def plan_surface_distances(
    pair: LabelPair,
    counts: VoxelCounts,
    bound: float,
    memory_bytes: int,
) -> Plan:
    """Return the plan that measures distances; no voxel is read.

    Parameters
    ----------
    pair
        What is compared.
    counts
        Of the pair; of none there is nothing to do.
    bound
        The largest distance that is looked for.
    memory_bytes
        What a worker may use.

    Raises
    ------
    MemoryRefused
        Where not even a cell fits.
    """
    itemsize = sum(source.dtype.itemsize for source in pair.sources)

    def peak_of(blocks: ComparedBlocks) -> int:
        halos = SurfaceJob(pair, blocks, ({}, {})).halos
        read = math.prod(b + 2 * h + 2 for b, h in zip(blocks.block, halos, strict=True))
        near = math.prod(blocks.cell + 2 * h for h in halos)
        # Decoded chunks, the box and its surfaces; in noise every voxel around a cell is a place
        # of three numbers in a tree, and every voxel of a far cell.
        return (4 * itemsize + 4) * read + 120 * near + KEPT_BYTES + 24 * blocks.cell**3

    blocks = blocks_within(pair, peak_of, memory_bytes)
    job = SurfaceJob(pair, blocks, cells_with_surface(counts, blocks.cells), bound)
    busy = blocks.blocks_of(job.busy_cells)
    return pair_plan("measure surfaces", measure_surfaces, job, busy, peak_of(blocks), memory_bytes)
