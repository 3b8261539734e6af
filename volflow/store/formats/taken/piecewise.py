"""Sources that are read in several small boxes, where reading a large one takes much memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.store.formats.taken.derived import Derived
from volflow.store.meta import Meta
from volflow.store.slabs import Array

__all__ = ["Piecewise"]


@dataclass(frozen=True, eq=False, repr=False)
class Piecewise(Derived):
    """A source of which boxes are read in parts, one after the other.

    Zarr unpacks all chunks of what it is asked for at about the same time.

    Parameters
    ----------
    source
        The source.
    box
        Voxels per axis of what is read at once, on a grid from the first voxel on.
    """

    box: tuple[int, ...]

    @property
    def meta(self) -> Meta:
        """Metadata of the source, which stays what it is."""
        return self.source.meta

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box, ``zyx`` or ``czyx``."""
        grid = BlockGrid(self.shape, self.box)
        voxels = np.empty(roi.shape, self.dtype)
        for number in grid.touching(roi):
            part = grid[number].intersect(roi)
            voxels[part.relative_to(roi.start).slices()] = self.source.read(part)
        return voxels
