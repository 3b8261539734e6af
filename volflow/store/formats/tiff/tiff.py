"""TIFF files and folders of planes as sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.tiff.ome_xml import OmeImage, own_xml, read_ome
from volflow.store.formats.tiff.plane_files import PlaneFiles, opened_plane, plane_names
from volflow.store.formats.tiff.tiff_file import count_pages, opened_tiff
from volflow.store.formats.tiff.tiff_grid import grid_of
from volflow.store.formats.tiff.tiff_pages import Pages, pages_of
from volflow.store.formats.tiff.tiff_series import chosen_series, planes_of
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source

__all__ = ["TiffSource", "open_tiff"]


@dataclass(frozen=True, eq=False, repr=False)
class TiffSource(Source):
    """An image in a TIFF file, or in a folder of planes.

    Parameters
    ----------
    path
        The file or folder.
    shape, meta
        Voxels per axis, ``zyx`` or ``czyx``, and their metadata.
    pages
        Its pages: those of the first channel along z, then those of the next.
    samples
        The axis of a page along which channels lie, 0 or 4; None where each has its own pages.
    which
        Which image of the file it is, for `identity`.
    """

    path: str
    shape: tuple[int, ...]
    meta: Meta
    pages: Pages | PlaneFiles
    samples: int | None
    which: str = ""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the voxels."""
        return self.pages.dtype.newbyteorder("=")

    @property
    def decoded(self) -> tuple[int, ...]:
        """A strip or tile, of all channels that lie in it side by side."""
        beside = self.shape[0] if self.samples == 4 else 1
        return (beside, *self.pages.segment)[-len(self.shape) :]

    def identity(self) -> str:
        """Return a hash that changes when a file does, or another image of it is meant."""
        return f"{self.pages.identity()}-{self.which}"

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box; of its pages only the strips or tiles in it are decoded."""
        one, depth = (0, 1), self.pages.shape[1]
        *front, z, y, x = roi
        channel = front[0] if front else one
        pages_c = channel if self.samples is None else one
        pages_z = z if depth == 1 else one
        within = (
            channel if self.samples == 0 else one,
            z if depth > 1 else one,
            y,
            x,
            channel if self.samples == 4 else one,
        )
        axes = (pages_c, within[0], within[4], pages_z, *within[1:4])
        voxels = np.empty([stop - start for start, stop in axes], self.dtype)
        per_channel = self.shape[-3] // depth
        targets = (
            (c * per_channel + k, voxels[c - pages_c[0], :, :, k - pages_z[0]])
            for c in range(*pages_c)
            for k in range(*pages_z)
        )
        box = Roi(*zip(*within, strict=True))
        self.pages.fill(((n, target.transpose(0, 2, 3, 4, 1)) for n, target in targets), box)
        return voxels.reshape(roi.shape)


def open_tiff(path: str, choice: ImageChoice) -> TiffSource:
    """Open an image in a TIFF file, or a folder of TIFF files of one plane each; reads no voxel.

    Known are stacks of pages, ImageJ's hyperstacks, OME-TIFF, and pyramids of slides, as tifffile
    knows them. Colours are channels. Voxel sizes count where the file says them for its voxels,
    see `grid_of`.

    Raises
    ------
    InvalidInput
        If it is no TIFF file, holds several images or timepoints of which none was chosen, or
        what a volume cannot hold.
    Damaged
        If it is cut short or says what it cannot hold.
    """
    if Path(path).is_dir():
        choice.refuse_but((), path, "a folder of planes")
        return _open_folder(path)
    count = count_pages(path)
    with opened_tiff(path) as file:
        text = file.ome_metadata if file.is_ome else None
        most = count * int(file.pages.first.samplesperpixel)
    if text is None:
        return _open_file(path, choice, None, ())
    ome = read_ome(text, path)
    if ome.files > 1:
        raise InvalidInput(
            f"{path} is one of {ome.files} files of an OME-TIFF; convert the folder that holds them"
        )
    if ome.planes > most:  # memory for all would be taken before one is read
        raise Damaged(
            f"{path} is an OME-TIFF of {ome.planes} planes and has {count} pages; copy it again"
        )
    return _open_file(path, choice, own_xml(text, path), ome.images)


def _open_file(
    path: str, choice: ImageChoice, omexml: str | None, images: tuple[OmeImage, ...]
) -> TiffSource:
    with opened_tiff(path, omexml) as file:
        series, whole = chosen_series(file, path, choice)
        check_dtype(series.dtype, path)
        planes = planes_of(series, path, choice)
        ome = _image_of(whole, images, len(file.series))
        channels = planes.shape[0] if len(planes.shape) == 4 else 1
        meta = grid_of(file, series, whole, ome, channels)
        pages = pages_of(path, series, planes.numbers.ravel().tolist())
        which = f"{file.series.index(whole)}-{choice.level or 0}-{choice.timepoint or 0}"
    return TiffSource(path, planes.shape, meta, pages, planes.samples, which)


def _image_of(series: Any, images: tuple[OmeImage, ...], count: int) -> OmeImage | None:
    """Return what OME-XML says of a series; of images without data there is no series."""
    if series.kind != "ome":
        return None
    if len(images) == count:
        number: int = series.parent.series.index(series)
        return images[number]
    named = [image for image in images if image.name == series.name]
    return named[0] if len(named) == 1 else None


def _open_folder(path: str) -> TiffSource:
    names = plane_names(Path(path))
    first = str(Path(path, names[0]))
    with opened_plane(first) as (file, series, planes):
        check_dtype(series.dtype, first)
        ome = _of_plane(first, file)
        channels = planes.shape[0] if len(planes.shape) == 4 else 1
        meta = grid_of(file, series, series, ome, channels)
        pages = pages_of(first, series, planes.numbers.ravel().tolist())
    plane = (1, *pages.shape[2:4])  # each read opens the file
    files = PlaneFiles(path, names, pages.shape, np.dtype(series.dtype), plane)
    files.check()
    shape = (*planes.shape[:-3], len(names), *planes.shape[-2:])
    return TiffSource(path, shape, meta, files, planes.samples)


def _of_plane(path: str, file: Any) -> OmeImage | None:
    """Return what OME-XML says of a plane, and all others of its image."""
    if not file.is_ome:
        return None
    images = read_ome(file.ome_metadata, path).images
    if len(images) != 1 or images[0].stacks != 1:
        raise InvalidInput(
            f"{path} is a plane of an OME-TIFF with several channels, timepoints or images, whose"
            " order in a folder is not known; save it as one file"
        )
    return images[0]
