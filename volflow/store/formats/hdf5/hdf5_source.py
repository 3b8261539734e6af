"""Datasets of an HDF5 file as one source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from volflow.errors import Damaged, Unreadable, first_line
from volflow.geometry.roi import Roi
from volflow.store.formats.hdf5.hdf5_file import load_filters, opened_hdf5, own
from volflow.store.formats.hdf5.unpacked_chunks import read_unpacked
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source, file_identity

__all__ = ["Hdf5Source", "pieces_of"]

Ranges = dict[str, tuple[int, int]]


@dataclass(frozen=True, repr=False, kw_only=True)
class Hdf5Source(Source):
    """A dataset of an HDF5 file, or several of one shape as channels.

    Parameters
    ----------
    path
        The file.
    shape, dtype, meta
        Of the volume, ``zyx`` or ``czyx``.
    datasets
        Names of the dataset, or of one for each channel.
    axes
        A letter for each axis of a dataset; ``"1"`` for one that does not count.
    timepoint
        Where on the axis ``"t"``.
    decoded
        A chunk, per axis of the volume.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    meta: Meta
    datasets: tuple[str, ...]
    axes: str
    timepoint: int = 0
    decoded: tuple[int, ...] = ()

    def identity(self) -> str:
        """Return a hash that changes when the file does, or other datasets of it are meant."""
        return f"{file_identity(self.path)}-{'-'.join(self.datasets)}-{self.timepoint}"

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box; only the chunks in it are unpacked."""
        space: Ranges = dict(zip("zyx", list(roi)[-3:], strict=True))
        channels = roi.start[0], roi.stop[0]
        with opened_hdf5(self.path) as file:
            if len(self.datasets) == 1:
                across = {"c": channels if roi.ndim == 4 else (0, 1)}
                return self._part(file, self.datasets[0], across | space).reshape(roi.shape)
            voxels = np.empty(roi.shape, self.dtype)
            for place, name in enumerate(self.datasets[slice(*channels)]):
                voxels[place] = self._part(file, name, space).reshape(roi.shape[1:])
        return voxels

    def _part(self, file: Any, name: str, ranges: Ranges) -> Array:
        """Return a box of a dataset in the order of the volume's axes."""
        dataset = own(file, name, self.path)
        if dataset is None:
            raise Damaged(f"{self.path} has no dataset {name} any more; copy the file again")
        load_filters(dataset, self.path)
        fixed = {"t": self.timepoint, "1": 0}
        box = tuple(fixed[x] if x in fixed else slice(*ranges[x]) for x in self.axes)
        try:
            unpacked = read_unpacked(dataset, box)
            found: Array = np.asarray(dataset[box]) if unpacked is None else unpacked
        except (OSError, Damaged) as error:
            raise Unreadable(
                f"{self.path} cannot be read at {name} ({first_line(error)}); copy it again"
            ) from error
        left = [axis for axis in self.axes if axis not in fixed]
        found = found.transpose([left.index(axis) for axis in "czyx" if axis in left])
        # Others of the same size are only said to have a sign.
        native = found.dtype.newbyteorder("=")
        return found.astype(native, order="C", copy=False).view(self.dtype)


def pieces_of(dataset: Any, axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the chunk of a dataset per axis of the volume; ones if it has none."""
    sides = dict(zip(axes, dataset.chunks or (1,) * len(axes), strict=True))
    return tuple(sides.get(axis, 1) for axis in "czyx"[-len(shape) :])
