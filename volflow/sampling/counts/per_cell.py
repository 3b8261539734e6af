"""Classes and weights per cell of a volume, counted once and kept.

A sampler draws a cell before it draws a voxel, so that no draw needs the whole volume. What a
cell holds depends on the patch only where the box of possible centres (``reach``) cuts it: the
whole volume is counted once, and for another patch only the cells at the border.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.grid import per_axis
from volflow.geometry.roi import Roi
from volflow.sampling.counts.counting import CLASSES, WEIGHTS, CountJob, Tally, measure
from volflow.sampling.counts.tally import Cell, Entries, Int64s
from volflow.store.sidecars import load_arrays, part_of, save_arrays, sidecar_paths
from volflow.store.slabs import Source
from volflow.store.volume import Volume
from volflow.volumes.arrays.turned import TurnedSource

__all__ = ["ClassCounts", "WeightSums", "count_classes", "sum_weights"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Possible centres of each class in every cell of a volume.

    Parameters
    ----------
    cells
        Cells along z, y, x.
    cell, value, count
        One entry for each class in each cell that holds it (int64): the cell's number in C order,
        the class, its voxels.
    """

    cells: Cell
    cell: Int64s
    value: Int64s
    count: Int64s

    def boxes(self, per_box: Sequence[int], classes: Sequence[int] | None = None) -> Int64s:
        """Return how many centres of each class boxes of cells hold.

        Parameters
        ----------
        per_box
            Cells per box along z, y, x; the last boxes may hold fewer.
        classes
            One column for each; None: one column for all classes above 0.

        Returns
        -------
        numpy.ndarray
            int64, (boxes, columns), boxes in C order.
        """
        steps = per_axis(per_box, "per_box")
        counts = [-(-n // step) for n, step in zip(self.cells, steps, strict=True)]
        index = np.unravel_index(self.cell, self.cells)
        box = np.ravel_multi_index([i // s for i, s in zip(index, steps, strict=True)], counts)
        columns = [self.value > 0] if classes is None else [self.value == c for c in classes]
        table = np.zeros((len(columns), math.prod(counts)), np.int64)
        for row, entries in zip(table, columns, strict=True):
            np.add.at(row, box[entries], self.count[entries])
        return table.T


@dataclass(frozen=True, eq=False)
class WeightSums:
    """Weights of the possible centres in every cell of a volume.

    Parameters
    ----------
    sums
        float64, of the shape of the cells, z, y, x.
    """

    sums: npt.NDArray[np.float64]

    def boxes(self, per_box: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the weight in boxes of cells.

        Parameters
        ----------
        per_box
            Cells per box along z, y, x; the last boxes may hold fewer.

        Returns
        -------
        numpy.ndarray
            float64, (boxes,), in C order.
        """
        sums = self.sums
        for axis, step in enumerate(per_axis(per_box, "per_box")):
            sums = np.add.reduceat(sums, np.arange(0, sums.shape[axis], step), axis)
        return sums.ravel()


def count_classes(
    source: Source, cell: int | Sequence[int], reach: Roi, **options: Any
) -> ClassCounts:
    """Count the voxels of each class in every cell, within the box of possible centres.

    The counts of a source that has a path are kept beside it, in ``<path>.volflow/``, or in the
    user's cache, until it changes. They do not depend on memory, workers or order.

    Parameters
    ----------
    source
        Labels, ``zyx`` or one channel of ``czyx``: integers, or floats that are whole numbers; or
        several channels of 0 and 1, one for each class.
    cell
        Voxels per cell, z, y, x; cells are counted from voxel 0.
    reach
        The box of voxels that may be centres, z, y, x; none outside of the volume counts.
    **options
        ``cluster``, ``memory`` and ``progress``, as in `measure`.

    Raises
    ------
    InvalidInput
        If a voxel anywhere is not a whole number, naming its place, or of several channels another
        than 0 and 1.
    MemoryRefused, RunFailed
        As in `measure`.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> labels = np.zeros((4, 4, 4), "uint8")
    >>> labels[1:, 3] = 2
    >>> counts = count_classes(open_source(labels), 2, Roi((0, 0, 0), (4, 4, 3)))
    >>> counts.boxes((1, 2, 2), [0, 2]).tolist()
    [[21, 3], [18, 6]]
    """
    job, table = _count(CLASSES, source, cell, reach, options)
    return ClassCounts(job.cells, **table)


def sum_weights(
    source: Source, cell: int | Sequence[int], reach: Roi, **options: Any
) -> WeightSums:
    """Sum the weights in every cell, within the box of possible centres.

    They are kept as `count_classes` keeps its counts. Each cell is summed in the same order
    whatever was read with it, so that equal weights give equal bits.

    Parameters
    ----------
    source
        Weights, ``zyx`` or one channel of ``czyx``: finite and not negative, of any dtype.
    cell, reach, **options
        As in `count_classes`.

    Raises
    ------
    InvalidInput
        If there are several channels, or a weight anywhere is negative, NaN or infinite,
        naming its place.
    MemoryRefused, RunFailed
        As in `count_classes`.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> weights = sum_weights(open_source(np.full((2, 2, 3), 0.5)), 2, Roi((0, 0, 0), (2, 2, 3)))
    >>> weights.sums.tolist(), weights.boxes((1, 1, 2)).tolist()
    ([[[4.0, 2.0]]], [6.0])
    """
    job, table = _count(WEIGHTS, source, cell, reach, options)
    sums = np.zeros(job.cells)
    sums.ravel()[table["cell"]] = table["sum"]
    return WeightSums(sums)


def _count(
    tally: Tally, source: Source, cell: int | Sequence[int], reach: Roi, options: Mapping[str, Any]
) -> tuple[CountJob, Entries]:
    """Return the table of the cells within reach, and the job that counts the whole."""
    if source.channels_count > 1 and tally is WEIGHTS:
        raise InvalidInput(
            f"{tally.name} must be one number per voxel, given {source.shape[0]} channels; store"
            " them as one array z, y, x"
        )
    z, y, x = per_axis(cell, "cell")
    everything = Roi.full(source.shape[-3:])
    whole = CountJob(source, tally, (z, y, x), (everything,))
    reach = reach.clip(everything.stop)
    if source.path is None:
        # The rest is read too: whether voxels are refused must not depend on the patch.
        parts = ((reach,) if reach.size else (), _shell(everything, reach))
        table, _ = measure([replace(whole, boxes=boxes) for boxes in parts], **options)
        return whole, table
    inner, voxels = _whole_cells(whole, reach)
    jobs = {"": whole}
    border = _shell(reach, voxels)
    if border:
        jobs[f"-reach-{_text(reach.start)}-{_text(reach.stop)}"] = replace(whole, boxes=border)
    table, *cut = _kept(jobs, options)
    index = np.unravel_index(table["cell"], whole.cells)
    inside = np.logical_and.reduce(
        [(a <= i) & (i < b) for (a, b), i in zip(inner, index, strict=True)]
    )
    return whole, tally.join([{key: column[inside] for key, column in table.items()}, *cut])


def _kept(jobs: Mapping[str, CountJob], options: Mapping[str, Any]) -> list[Entries]:
    """Return the tables of jobs over one source, by the ends of their files' names.

    They are read from the sidecars, or counted and kept there.
    """
    whole = jobs[""]
    source, tally = whole.source, whole.tally
    stored = source.source if isinstance(source, TurnedSource) else source
    part = part_of(stored) if isinstance(stored, Volume) else ""
    part += f"-{source.letters}" if isinstance(source, TurnedSource) else ""
    name = f"{tally.name}-{_text(whole.cell)}{part}"

    def places(end: str) -> Iterator[Path]:
        return sidecar_paths(source.path, f"{name}{end}.npz")

    def fingerprint() -> str:
        return f"{tally.name} {FORMAT} {source.identity()}"

    state = fingerprint()
    known = {end: load_arrays(places(end), state) for end in jobs}
    missing = [
        end for end, table in known.items() if table is None or not tally.fits(table, whole.cells)
    ]
    if missing:
        tables = measure([jobs[end] for end in missing], **options)
        unchanged = fingerprint() == state  # else it was being written: these fit neither state
        for end, table in zip(missing, tables, strict=True):
            if unchanged:
                save_arrays(places(end), state, table)
            known[end] = table
    return [table for table in known.values() if table is not None]


def _whole_cells(job: CountJob, reach: Roi) -> tuple[Roi, Roi]:
    """Return the cells that lie wholly in reach: their numbers per axis, and their voxels.

    The last cell of an axis ends with the volume.
    """
    cells, voxels = [], []
    for (a, b), size, end in zip(reach, job.cell, job.source.shape[-3:], strict=True):
        first = -(-a // size)
        last = max(first, -(-b // size) if b == end else b // size)
        cells.append((first, last))
        voxels.append((min(first * size, end), min(last * size, end)))
    return Roi(*zip(*cells, strict=True)), Roi(*zip(*voxels, strict=True))


def _text(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _shell(outer: Roi, inner: Roi) -> tuple[Roi, ...]:
    """Return what the outer box has beyond the inner one, as boxes.

    Examples
    --------
    >>> _shell(Roi((1, 0), (4, 9)), Roi((2, 0), (4, 8)))
    (Roi(start=(1, 0), stop=(2, 9)), Roi(start=(2, 8), stop=(4, 9)))
    """
    if not inner.size:
        return (outer,) if outer.size else ()
    boxes = []
    for axis in range(outer.ndim):
        start, stop = list(outer.start), list(outer.stop)
        before, behind = stop.copy(), start.copy()
        before[axis] = start[axis] = inner.start[axis]
        behind[axis] = stop[axis] = inner.stop[axis]
        boxes += [Roi(outer.start, tuple(before)), Roi(tuple(behind), outer.stop)]
        outer = Roi(tuple(start), tuple(stop))
    return tuple(box for box in boxes if box.size)
