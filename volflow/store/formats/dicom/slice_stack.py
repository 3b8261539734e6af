"""A series of slices as one volume, read slice by slice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volflow.geometry.affine import orientation_of
from volflow.geometry.roi import Roi
from volflow.store.formats.dicom.frame_pixels import dtype_of, values_in
from volflow.store.formats.dicom.image_file import DicomSlice, ImageFile
from volflow.store.formats.dicom.slice_order import SliceGrid, grid_of, same_size
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Array, Source

__all__ = ["StackSource", "meta_of", "open_stack", "state_of_files"]


@dataclass(frozen=True, repr=False, kw_only=True)
class StackSource(Source):
    """The slices of a DICOM series, in their order along z.

    Parameters
    ----------
    path
        The file or folder that was named.
    shape, dtype, meta
        Of the volume.
    slices
        One for each z.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    meta: Meta
    slices: tuple[DicomSlice, ...]

    @property
    def decoded(self) -> tuple[int, ...]:
        """One slice with all its channels, which a file may hold packed."""
        return (*self.shape[:-3], 1, *self.shape[-2:])

    def identity(self) -> str:
        """Return a hash that changes when a file of the series does."""
        return state_of_files(self.path, self.slices)

    def read(self, roi: Roi) -> Array:
        """Return the values of a box, of which one slice at a time is decoded."""
        *channels, _, rows, columns = roi.slices()
        values = np.empty(roi.shape, self.dtype)
        for n, z in enumerate(range(roi.start[-3], roi.stop[-3])):
            found = values_in(self.slices[z], rows, columns, self.dtype)
            values[..., n, :, :] = found[channels[0]] if channels else found[0]
        return values


def open_stack(path: str, files: Sequence[ImageFile]) -> StackSource:
    """Open the slices of all files of a series.

    Raises
    ------
    InvalidInput
        If they do not form a volume.
    """
    slices = [one for file in files for one in file.slices]
    same_size(slices, path)
    grid = grid_of(slices, path)
    ordered = tuple(slices[n] for n in np.argsort(grid.places))
    first = ordered[0].stored
    front = (first.samples,) if first.samples > 1 else ()
    stored = dtype_of([one._replace(slope=1.0, inter=0.0) for one in ordered])
    meta = meta_of(grid, SourceInfo("dicom", str(stored), _origin(path, files[0].series)), front)
    return StackSource(
        path=path,
        shape=(*front, grid.depth, first.rows, first.columns),
        dtype=dtype_of(ordered),
        meta=meta,
        slices=ordered,
    )


def _origin(path: str, series: str) -> bytes:
    """Return where the series lies: all else that its segmentation needs is read there again.

    Names and numbers of patients are not carried along with volumes.
    """
    return json.dumps({"path": str(Path(path).absolute()), "series": series}).encode()


def meta_of(grid: SliceGrid, source: SourceInfo, front: tuple[int, ...] = ()) -> Meta:
    """Return the metadata of a grid of slices, whose channels are colours."""
    known = grid.spacing is not None
    return Meta(
        axes=("c", "z", "y", "x")[-3 - len(front) :],
        spacing=grid.spacing if grid.spacing is not None else Meta.spacing,
        unit="millimeter" if known else None,
        orientation=None if grid.affine is None else orientation_of(grid.affine),
        affine=None if grid.affine is None else tuple(map(tuple, grid.affine.tolist())),
        channels=("red", "green", "blue") if front else (),
        colors=("FF0000", "00FF00", "0000FF") if front else (),
        source=source,
    )


def state_of_files(path: str, slices: Sequence[DicomSlice]) -> str:
    """Return a hash of names, sizes and times of the files that slices lie in."""
    digest, root = hashlib.sha256(), Path(path)
    root = root if root.is_dir() else root.parent
    for name in sorted({one.path for one in slices}):
        stat = Path(name).stat()
        below = Path(name).relative_to(root)
        digest.update(f"{below} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()
