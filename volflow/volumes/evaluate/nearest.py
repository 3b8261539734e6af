"""The nearest voxel of another surface: within a box, then in ever farther cells of the volume."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.volumes.evaluate.distance_counts import Floats, exact_lengths
from volflow.volumes.evaluate.surfaces import SurfacePoints, SurfaceReader

__all__ = ["FarSearch", "nearest_in", "reach_of", "require_scipy"]

Voxels = npt.NDArray[np.int64]

KEPT_BYTES = 2**25  # of surface voxels of cells that may be asked for again
LEAF = 32  # voxels of a leaf of the tree: fast for a tree that is asked once


def require_scipy() -> Any:
    """Return what finds nearest neighbours.

    Raises
    ------
    InvalidInput
        Where scipy is missing; the error names the extra.
    """
    try:
        from scipy.spatial import cKDTree
    except ModuleNotFoundError as error:
        raise InvalidInput(
            "surface distances need scipy, which is missing; pip install"
            ' "volflow[evaluate]", or take the counts alone: distances=False (--counts)'
        ) from error
    return cKDTree


def nearest_in(
    queries: Voxels, targets: Voxels, spacing: tuple[float, float, float], within: float = math.inf
) -> Floats:
    """Return the distance of each voxel to the nearest of some others.

    Parameters
    ----------
    queries, targets
        Places along z, y, x, (n, 3) and (m, 3).
    spacing
        Of a voxel.
    within
        Farther ones are not looked for.

    Returns
    -------
    numpy.ndarray
        (n,) in the unit of the spacing; infinite where there is none.

    Examples
    --------
    >>> nearest_in(np.array([[0, 0, 0]]), np.array([[0, 3, 4], [9, 0, 0]]), (1, 1, 1)).tolist()
    [5.0]
    """
    found = np.full(len(queries), math.inf)
    if not len(targets) or not len(queries):
        return found
    origin = targets[0]  # so that places are small numbers, which a tree holds exactly
    tree = require_scipy()((targets - origin) * np.asarray(spacing), LEAF, balanced_tree=False)
    bound = within * (1 + 1e-9) if math.isfinite(within) else math.inf
    _, place = tree.query((queries - origin) * np.asarray(spacing), distance_upper_bound=bound)
    near = place < len(targets)
    found[near] = exact_lengths(queries[near] - targets[place[near]], spacing)
    return found


def reach_of(queries: Voxels, seen: Roi, shape: Sequence[int], spacing: Sequence[float]) -> Floats:
    """Return how far each voxel sees in a box: the distance to the first voxel outside of it.

    What lies outside of the volume need not be seen.
    """
    reach = np.full(len(queries), math.inf)
    for axis, ((low, high), n) in enumerate(zip(seen, shape, strict=True)):
        if low > 0:
            np.minimum(reach, (queries[:, axis] - low + 1) * spacing[axis], out=reach)
        if high < n:
            np.minimum(reach, (high - queries[:, axis]) * spacing[axis], out=reach)
    return reach


@dataclass
class FarSearch:
    """Looks for nearest voxels beyond the boxes of blocks, cell by cell, the nearest first.

    A cell is read only where it holds the class and is nearer than what is known of some voxel, so
    that memory does not depend on distances.

    Parameters
    ----------
    reader
        Reads surfaces of the pair.
    grid
        The boxes of all cells.
    cells
        For pred and for the truth: the numbers of the cells that hold a class.
    bound
        Farther voxels are not looked for.
    """

    reader: SurfaceReader
    grid: BlockGrid
    cells: tuple[dict[int, npt.NDArray[np.int64]], dict[int, npt.NDArray[np.int64]]]
    bound: float = math.inf
    _kept: OrderedDict[tuple[int, int], SurfacePoints] = field(default_factory=OrderedDict)
    _kept_bytes: int = 0
    _boxes: dict[tuple[int, int], tuple[Voxels, Voxels]] = field(default_factory=dict)

    @cached_property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along z, y, x."""
        return self.reader.pair.spacing

    def improve(self, which: int, value: int, queries: Voxels, known: Floats, seen: Roi) -> Floats:
        """Return the distances of voxels to a class of pred (0) or the truth (1).

        Parameters
        ----------
        which, value
            Where, and which class.
        queries
            Places along z, y, x, (n, 3).
        known
            Distances to what lies in ``seen``, which may be infinite.
        seen
            The box that is known.
        """
        best = known.copy()
        starts, stops = self._cells_of(which, value)
        low, high = queries.min(axis=0), queries.max(axis=0)
        lowest = _gap(low, high, starts, stops, self.spacing)
        for cell in np.argsort(lowest, kind="stable"):
            if lowest[cell] >= best.max() or lowest[cell] > self.bound * (1 + 1e-9):
                break
            box = Roi(tuple(starts[cell].tolist()), tuple(stops[cell].tolist()))
            if box.intersect(seen) == box:
                continue
            gaps = _gap(queries, queries, starts[cell], stops[cell], self.spacing)
            asked = gaps < best
            if asked.any():
                targets = self._points(which, box).of_class(value)
                most = float(best[asked].max())
                found = nearest_in(queries[asked], targets, self.spacing, most)
                best[asked] = np.minimum(best[asked], found)
        return best

    def _cells_of(self, which: int, value: int) -> tuple[Voxels, Voxels]:
        """Return first voxels and ends of the cells that hold a class, (n, 3) each."""
        key = which, value
        if key not in self._boxes:
            grid = self.grid
            index = np.unravel_index(self.cells[which][value], grid.counts)
            starts = np.stack(index, axis=1) * np.asarray(grid.block)
            stops = np.minimum(starts + np.asarray(grid.block), np.asarray(grid.shape))
            self._boxes[key] = starts, stops
        return self._boxes[key]

    def _points(self, which: int, box: Roi) -> SurfacePoints:
        sides = zip(box.start, self.grid.block, strict=True)
        key = which, self.grid.number([start // side for start, side in sides])
        if key not in self._kept:
            self._kept[key] = found = self.reader.points(which, box)
            self._kept_bytes += found.voxels.nbytes
            while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].voxels.nbytes
        self._kept.move_to_end(key)
        return self._kept[key]


def _gap(
    low: Voxels, high: Voxels, starts: Voxels, stops: Voxels, spacing: Sequence[float]
) -> Floats:
    """Return the distances between boxes of voxels, given first and last, and first and end."""
    apart = np.maximum(np.maximum(starts - high, low - (stops - 1)), 0)
    found: Floats = np.sqrt(np.square(apart * np.asarray(spacing)).sum(axis=-1))
    return found
