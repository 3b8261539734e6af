"""Surfaces of classes: the voxels of a class that have a face in common with what is not of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from volflow.geometry.roi import Roi
from volflow.store.slabs import Array
from volflow.volumes.evaluate.label_pair import LabelPair

__all__ = ["SurfacePoints", "SurfaceReader", "surface_mask"]

Mask = npt.NDArray[np.bool_]


def surface_mask(labels: Array, border: Sequence[tuple[bool, bool]]) -> Mask:
    """Return which voxels of a box lie on the surface of their class.

    Voxels that differ from one of their six neighbours do; what lies outside of the volume differs
    from all, as in MONAI's ``get_mask_edges`` and in a binary erosion of the zero-padded class.

    Parameters
    ----------
    labels
        Whole numbers along z, y, x. Where a side of the box is not the volume's, its outermost
        layer is there for its neighbours only: nothing is known of its own surface.
    border
        Per axis: whether the box begins and ends with the volume.

    Examples
    --------
    >>> cube = np.ones((3, 3, 3), "uint8")
    >>> surface_mask(cube, [(True, True)] * 3).sum(), surface_mask(cube, [(False, True)] * 3).sum()
    (np.int64(26), np.int64(19))
    """
    found = np.zeros(labels.shape, bool)
    for axis, (first, last) in enumerate(border):
        one, other = ((*([slice(None)] * axis), part) for part in (slice(1, None), slice(None, -1)))
        differs = labels[one] != labels[other]
        found[one] |= differs
        found[other] |= differs
        ends = (slice(0, 1),) * first + (slice(-1, None),) * last
        for end in ends:
            found[(*([slice(None)] * axis), end)] = True
    return found


@dataclass(frozen=True)
class SurfacePoints:
    """Voxels of surfaces, ordered by their class.

    Parameters
    ----------
    voxels
        Their places along z, y, x in the volume, int64 (n, 3).
    classes
        Different classes, ascending.
    ends
        For each class the first of its voxels, and the end of the last.
    """

    voxels: npt.NDArray[np.int64]
    classes: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def of(cls, mask: Mask, labels: Array, start: Sequence[int], classes: Array) -> SurfacePoints:
        """Return the voxels of a mask that hold some classes.

        Parameters
        ----------
        mask, labels, start
            Which voxels of a box, their classes, and the first voxel of the box.
        classes
            Those that are wanted, ascending.
        """
        voxels, held = np.argwhere(mask), labels[mask]
        # Both hold the classes, so that they fit; of mixed integers NumPy makes floats.
        wanted = np.isin(held, classes.astype(held.dtype))
        voxels, held = voxels[wanted], held[wanted]
        order = np.argsort(held, kind="stable")
        found, first = np.unique(held[order], return_index=True)
        ends = (*first.tolist(), len(held))
        return cls(voxels[order] + np.asarray(start), tuple(found.tolist()), ends)

    def of_class(self, value: int) -> npt.NDArray[np.int64]:
        """Return the voxels of a class; none where it has none."""
        if value not in self.classes:
            return self.voxels[:0]
        place = self.classes.index(value)
        return self.voxels[self.ends[place] : self.ends[place + 1]]


@dataclass(frozen=True)
class SurfaceReader:
    """Reads boxes of a pair with the surfaces of its classes.

    Parameters
    ----------
    pair
        What is read.
    classes
        Those whose surfaces are wanted, ascending.
    """

    pair: LabelPair
    classes: Array

    def read(self, which: int, roi: Roi) -> tuple[Array, Mask]:
        """Return the classes in a box of pred (0) or the truth (1), and which lie on a surface."""
        shape = self.pair.shape
        grown = roi.grow((1, 1, 1)).clip(shape)
        labels = self.pair.read(which, grown)
        border = [(a == 0, b == n) for (a, b), n in zip(grown, shape, strict=True)]
        mask = surface_mask(labels, border)
        inner = roi.relative_to(grown.start).slices()
        return labels[inner], mask[inner]

    def points(self, which: int, roi: Roi) -> SurfacePoints:
        """Return the voxels of all surfaces in a box."""
        labels, mask = self.read(which, roi)
        return SurfacePoints.of(mask, labels, roi.start, self.classes)
