"""Voxels of each class in two label maps, in both at once, and where most are wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from volflow.engine.plan import Plan
from volflow.engine.task import Context, Step
from volflow.errors import InvalidInput
from volflow.store.slabs import Array
from volflow.volumes.evaluate.compared_blocks import ComparedBlocks
from volflow.volumes.evaluate.label_pair import LabelPair
from volflow.volumes.evaluate.pair_plan import blocks_within, pair_plan

__all__ = [
    "CountVoxelsJob",
    "VoxelCounts",
    "WrongPlace",
    "count_voxels",
    "merge_counts",
    "plan_voxel_counts",
]

MOST_CLASSES = 4096

Place = tuple[int, int, int]
CellsOf = dict[int, list[int]]
Found = TypeVar("Found")


@dataclass(frozen=True)
class WrongPlace:
    """The cell in which most voxels of a class are wrong.

    Parameters
    ----------
    wrong
        Voxels that hold the class in one of the two only.
    cell
        Its number.
    place
        A wrong voxel near the middle of them.
    """

    wrong: int
    cell: int
    place: Place


@dataclass
class VoxelCounts:
    """Counts by class.

    Parameters
    ----------
    pred, truth, both
        Voxels that hold the class.
    cells
        The numbers of the cells in which pred and the truth hold it, in ascending order.
    full
        Those that hold nothing else.
    worst
        Where most of its voxels are wrong; of equals the first.
    """

    pred: Counter[int] = field(default_factory=Counter)
    truth: Counter[int] = field(default_factory=Counter)
    both: Counter[int] = field(default_factory=Counter)
    cells: tuple[CellsOf, CellsOf] = field(default_factory=lambda: ({}, {}))
    full: tuple[CellsOf, CellsOf] = field(default_factory=lambda: ({}, {}))
    worst: dict[int, WrongPlace] = field(default_factory=dict)

    def add_cell(self, number: int, start: Sequence[int], pair: tuple[Array, Array]) -> None:
        """Count one cell, given its number, its first voxel and its classes in both."""
        here = [_by_class(*runs) for runs in zip(*_runs(*(x.ravel() for x in pair)), strict=True)]
        in_pred, in_truth, in_both = here
        self.pred.update(in_pred)
        self.truth.update(in_truth)
        self.both.update(in_both)
        for cells, full, found in zip(self.cells, self.full, (in_pred, in_truth), strict=True):
            for value in found:
                cells.setdefault(value, []).append(number)
                if len(found) == 1:
                    full.setdefault(value, []).append(number)
        for value in in_pred.keys() | in_truth.keys():
            wrong = in_pred[value] + in_truth[value] - 2 * in_both[value]
            if wrong > (self.worst[value].wrong if value in self.worst else 0):
                self.worst[value] = WrongPlace(wrong, number, _middle(value, start, *pair))

    def refuse_many(self, classes: Sequence[int] | None) -> None:
        """Refuse more classes than a table can hold, unless some were chosen."""
        count = len(self.pred.keys() | self.truth.keys())
        if classes is None and count > MOST_CLASSES:
            raise InvalidInput(
                f"there are more than {MOST_CLASSES} classes, which evaluate scores one by one;"
                " choose some (classes=), or compare instances as one class: x > 0"
            )


def _runs(
    pred: Array, truth: Array
) -> tuple[tuple[Array, Array, Array], tuple[npt.NDArray[np.int64], ...]]:
    """Return classes of runs of equal voxels (in pred, the truth, and both), and their lengths."""
    change = (pred[1:] != pred[:-1]) | (truth[1:] != truth[:-1])
    starts = np.concatenate([[0], np.flatnonzero(change) + 1])
    lengths = np.diff(starts, append=pred.size)
    one, other = pred[starts], truth[starts]
    equal = one == other
    return (one, other, one[equal]), (lengths, lengths, lengths[equal])


def _by_class(values: Array, lengths: npt.NDArray[np.int64]) -> Counter[int]:
    found, number = np.unique(values, return_inverse=True)
    counts = np.bincount(number, weights=lengths, minlength=len(found))  # exact below 2⁵³
    return Counter(dict(zip(found.tolist(), map(int, counts.tolist()), strict=True)))


def _middle(value: int, start: Sequence[int], pred: Array, truth: Array) -> Place:
    """Return the wrong voxel of a class that is nearest to the mean of all in a cell."""
    wrong = np.argwhere((pred == value) != (truth == value))
    away = np.square(wrong - wrong.mean(axis=0)).sum(axis=1)
    z, y, x = (wrong[int(np.argmin(away))] + np.asarray(start)).tolist()
    return z, y, x


def merge_counts(parts: Iterable[VoxelCounts]) -> VoxelCounts:
    """Return the counts of several blocks together; they do not depend on how these were cut.

    Examples
    --------
    >>> one, other = VoxelCounts(Counter({1: 2})), VoxelCounts(Counter({1: 3}))
    >>> merge_counts([one, other]).pred[1]
    5
    """
    total = VoxelCounts()
    for part in parts:
        total.pred.update(part.pred)
        total.truth.update(part.truth)
        total.both.update(part.both)
        pairs = zip((*total.cells, *total.full), (*part.cells, *part.full), strict=True)
        for cells, more in pairs:
            for value, numbers in more.items():
                cells.setdefault(value, []).extend(numbers)
        for value, worst in part.worst.items():
            total.worst[value] = min(
                (one for one in (worst, total.worst.get(value)) if one),
                key=lambda one: (-one.wrong, one.cell),
            )
    for cells in (*total.cells, *total.full):
        for numbers in cells.values():
            numbers.sort()
    total.refuse_many(None)
    return total


@dataclass(frozen=True)
class CountVoxelsJob:
    """Data of a task: the pair, its blocks, and the classes that count.

    Parameters
    ----------
    pair, blocks
        What is compared, and in which blocks.
    classes
        Only these; None for all.
    """

    pair: LabelPair
    blocks: ComparedBlocks
    classes: tuple[int, ...] | None = None


def count_voxels(job: CountVoxelsJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Count some blocks, each read once."""
    for number in blocks:
        context.check()
        roi = job.blocks.grid[number]
        with context.stage("read"):
            pair = job.pair.read(0, roi), job.pair.read(1, roi)
        found = VoxelCounts()
        with context.stage("count"):
            for cell, box in job.blocks.cells_of(number):
                slices = box.relative_to(roi.start).slices()
                found.add_cell(cell, box.start, (pair[0][slices], pair[1][slices]))
                found.refuse_many(job.classes)
        yield Step(number, roi.size, _chosen(found, job.classes))


def _chosen(found: VoxelCounts, classes: Sequence[int] | None) -> VoxelCounts:
    """Return the counts of the classes that were asked for; without a choice of all but 0."""

    def wanted(value: int) -> bool:
        return value > 0 if classes is None else value in classes

    def only(of: Mapping[int, Found]) -> dict[int, Found]:
        return {value: one for value, one in of.items() if wanted(value)}

    pred, truth, both = (Counter(only(one)) for one in (found.pred, found.truth, found.both))
    cells, full = ((only(one), only(other)) for one, other in (found.cells, found.full))
    return VoxelCounts(pred, truth, both, cells, full, only(found.worst))


def plan_voxel_counts(pair: LabelPair, classes: tuple[int, ...] | None, memory_bytes: int) -> Plan:
    """Return the plan that counts voxels; no voxel is read.

    Raises
    ------
    MemoryRefused
        Where not even a cell fits.
    """
    itemsize = sum(source.dtype.itemsize for source in pair.sources)

    def peak_of(blocks: ComparedBlocks) -> int:
        # Reading holds stored bytes and decoded chunks beside the box; a cell of noise has a run
        # per voxel, of numbers of eight bytes.
        return 4 * itemsize * math.prod(blocks.block) + 100 * blocks.cell**3

    blocks = blocks_within(pair, peak_of, memory_bytes)
    job, numbers = CountVoxelsJob(pair, blocks, classes), range(len(blocks.grid))
    return pair_plan("count classes", count_voxels, job, numbers, peak_of(blocks), memory_bytes)
