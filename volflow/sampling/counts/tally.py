"""Count the classes, or sum the weights, in each cell of a box of voxels.

Cells tile the volume from voxel 0. A cell is always summed up in the same order, whatever box it
was read with, so that the sums do not depend on how the volume was cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.slabs import Array

__all__ = [
    "GROUP_VOXELS",
    "Cell",
    "Entries",
    "Int64s",
    "cell_rows",
    "one_hot",
    "tally_classes",
    "tally_weights",
]

Int64s = npt.NDArray[np.int64]
Cell = tuple[int, int, int]
Entries = dict[str, Array]  # columns of equal length: a table of what cells hold

GROUP_VOXELS = 2**16  # counted at once: their bin numbers stay in the cache


def tally_classes(voxels: Array, box: Roi, cell: Cell, cells: Cell, name: str) -> Entries:
    """Count the voxels of each value in every cell of a box.

    Parameters
    ----------
    voxels
        Voxels of the box, ``zyx``.
    box
        The box; each cell that it touches must end in it or be cut by it on purpose.
    cell, cells
        Voxels per cell, cells per axis.
    name
        Name of the array, for messages.

    Returns
    -------
    dict of numpy.ndarray
        ``"cell"`` (number of a cell in C order), ``"value"`` and ``"count"``, all int64 and
        sorted by value, then cell; what is not there has no entry.

    Raises
    ------
    InvalidInput
        If a voxel is not a whole number of 64 bits.

    Examples
    --------
    >>> labels = np.array([[[7, 7, 0, 7]]], "uint8")
    >>> found = tally_classes(labels, Roi((0, 0, 0), (1, 1, 4)), (1, 1, 2), (1, 1, 2), "labels")
    >>> list(zip(*(found[key].tolist() for key in ("cell", "value", "count"))))
    [(1, 0, 1), (0, 7, 2), (1, 7, 1)]
    """
    parts = []
    for numbers, rows in cell_rows(voxels, box, cell, cells):
        if rows.dtype.kind == "f" or rows.dtype == np.uint64:
            whole = _as_int64(rows)
            if (whole != rows).any():
                rule = "labels must be whole numbers of 64 bits at most"
                _refuse(voxels, box, lambda v: _as_int64(v) != v, rule, name, "round it first")
            rows = whole
        row, value, count = _count_values(rows)
        parts.append((numbers[row], value, count))
    return _merged(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def one_hot(channels: Sequence[Entries], name: str) -> Entries:
    """Return the table of classes of which each has a channel, where 1 says that a voxel is of it.

    Parameters
    ----------
    channels
        What `tally_classes` counted in each channel.
    name
        Name of the array, for messages.

    Raises
    ------
    InvalidInput
        If a channel holds another number than 0 and 1.
    """
    parts = []
    for number, table in enumerate(channels):
        other = table["value"][(table["value"] != 0) & (table["value"] != 1)]
        if len(other):
            raise InvalidInput(
                f"labels of several channels are 0 or 1, a channel for each class; {name} holds"
                f" {other[0]} in channel {number}; store them as one array of classes z, y, x"
            )
        rows = table["value"] == 1
        value = np.full(np.count_nonzero(rows), number)
        parts.append((table["cell"][rows], value, table["count"][rows]))
    cell, value, count = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {"cell": cell, "value": value, "count": count}


def tally_weights(voxels: Array, box: Roi, cell: Cell, cells: Cell, name: str) -> Entries:
    """Sum the weights in every cell of a box.

    Parameters
    ----------
    voxels, box, cell, cells, name
        As in `tally_classes`.

    Returns
    -------
    dict of numpy.ndarray
        ``"cell"`` (int64, ascending) and ``"sum"`` (float64); cells of no weight have no entry.

    Raises
    ------
    InvalidInput
        If a weight is negative, NaN or infinite.

    Examples
    --------
    >>> weights = np.array([[[0.5, 1, 0, 0]]])
    >>> tally_weights(weights, Roi((0, 0, 0), (1, 1, 4)), (1, 1, 2), (1, 1, 2), "weights")
    {'cell': array([0]), 'sum': array([1.5])}
    """
    rule = "weights must be finite and not negative"
    # NaN passes no comparison.
    if not (voxels.min() >= 0 and voxels.max() < np.inf):
        _refuse(voxels, box, lambda v: ~(np.isfinite(v) & (v >= 0)), rule, name, "set it to 0")
    parts = [
        # Cast first: NumPy would cast piecewise, and sum in an order that depends on the rows.
        (numbers, rows.astype(np.float64).sum(axis=1))
        for numbers, rows in cell_rows(voxels, box, cell, cells)
    ]
    numbers, inverse = np.unique(np.concatenate([n for n, _ in parts]), return_inverse=True)
    sums = np.zeros(len(numbers))
    np.add.at(sums, inverse, np.concatenate([s for _, s in parts]))
    if not np.isfinite(sums).all():
        raise InvalidInput(f"the weights of {name} exceed what float64 can sum; scale them down")
    return {"cell": numbers[sums > 0], "sum": sums[sums > 0]}


def cell_rows(voxels: Array, box: Roi, cell: Cell, cells: Cell) -> Iterator[tuple[Int64s, Array]]:
    """Yield the voxels of a box by cell, some cells at a time; large cells in parts along z.

    Yields
    ------
    numbers
        Numbers of the cells, ``(cells,)``.
    rows
        Their voxels, ``(cells, voxels of a cell)``, contiguous.

    Examples
    --------
    >>> box = Roi((0, 0, 1), (1, 1, 5))
    >>> for numbers, rows in cell_rows(np.arange(4).reshape(1, 1, 4), box, (1, 1, 2), (1, 1, 3)):
    ...     print(numbers.tolist(), rows.tolist())
    [0] [[0]]
    [1] [[1, 2]]
    [2] [[3]]
    """
    axes = [_even_parts(a, b, size) for (a, b), size in zip(box, cell, strict=True)]
    for runs in itertools.product(*axes):
        nz, ny, nx = (len(run) for run in runs)
        tz, ty, tx = (run.step for run in runs)
        part = voxels[
            tuple(slice(r.start - a, r.stop - a) for r, (a, _) in zip(runs, box, strict=True))
        ]
        tiles = part.reshape(nz, tz, ny, ty, nx, tx).transpose(0, 2, 4, 1, 3, 5)
        index = (np.array(run) // size for run, size in zip(runs, cell, strict=True))
        numbers = np.ravel_multi_index(np.ix_(*index), cells)
        many = max(1, GROUP_VOXELS // (tz * ty * tx))
        thick = max(1, min(tz, GROUP_VOXELS // (ty * tx)))
        for z, y in np.ndindex(nz, ny):
            for x, layer in itertools.product(range(0, nx, many), range(0, tz, thick)):
                rows = np.ascontiguousarray(tiles[z, y, x : x + many, layer : layer + thick])
                yield numbers[z, y, x : x + many], rows.reshape(len(rows), -1)


def _even_parts(low: int, high: int, step: int) -> list[range]:
    """Cut an interval where cells end, into runs of equal lengths.

    Examples
    --------
    >>> _even_parts(3, 22, 5), _even_parts(11, 14, 5)
    ([range(3, 5, 2), range(5, 20, 5), range(20, 22, 2)], [range(11, 14, 3)])
    """
    first = min(high, -(-low // step) * step)
    last = max(first, high // step * step)
    ends = ((low, first, first - low), (first, last, step), (last, high, high - last))
    return [range(a, b, size) for a, b, size in ends if a < b]


def _count_values(rows: Array) -> tuple[Int64s, Int64s, Int64s]:
    """Return row, value and number of every value in rows of integers."""
    low, high = int(rows.min()), int(rows.max())
    if low == high:  # most of a large volume
        row = np.arange(len(rows))
        return row, np.full(len(rows), low), np.full(len(rows), rows.shape[1])
    span = high - low + 1
    if len(rows) * span > max(4 * rows.size, 2**12):
        found = [np.unique(row, return_counts=True) for row in rows]
        row = np.repeat(np.arange(len(rows)), [len(values) for values, _ in found])
        values, counts = (np.concatenate(column) for column in zip(*found, strict=True))
        return row, values.astype(np.int64), counts
    bins = rows + (np.arange(len(rows)) * span - np.int64(low))[:, None]
    table = np.bincount(bins.ravel(), minlength=len(rows) * span).reshape(len(rows), span)
    row, column = table.nonzero()
    return row, column + low, table[row, column]


def _merged(cell: Int64s, value: Int64s, count: Int64s) -> Entries:
    """Return entries sorted by value and cell, those of one cell and value added up."""
    order = np.lexsort((cell, value))
    cell, value, count = cell[order], value[order], count[order]
    new = np.ones(len(cell), bool)
    new[1:] = (cell[1:] != cell[:-1]) | (value[1:] != value[:-1])
    starts = np.flatnonzero(new)
    return {
        "cell": cell[starts],
        "value": value[starts],
        "count": np.add.reduceat(count, starts) if len(starts) else count,
    }


def _as_int64(values: Array) -> Int64s:
    with np.errstate(invalid="ignore"):  # NaN becomes some number, which then differs from it
        return values.astype(np.int64)


def _refuse(
    voxels: Array, box: Roi, wrong: Callable[[Array], Any], rule: str, name: str, remedy: str
) -> None:
    """Refuse voxels, naming the first that breaks the rule in C order."""
    for z, plane in enumerate(voxels, start=box.start[0]):
        places = np.argwhere(wrong(plane))
        if len(places):
            y, x = (int(n) for n in places[0])
            at = (z, y + box.start[1], x + box.start[2])
            raise (InvalidInput if np.isfinite(plane[y, x]) else Damaged)(
                f"{rule}; {name} holds {plane[y, x]} at voxel {at} (z, y, x); {remedy}"
            )
