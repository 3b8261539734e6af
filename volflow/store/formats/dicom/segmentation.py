"""DICOM segmentations as sources: label maps, or segments as channels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.dicom.frame_pixels import numbers_in
from volflow.store.formats.dicom.image_file import DicomSlice, ImageFile, Segmentation
from volflow.store.formats.dicom.slice_order import grid_of, same_size
from volflow.store.formats.dicom.slice_stack import meta_of, state_of_files
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Array, Source

__all__ = ["SegmentsSource", "open_segmentation"]


@dataclass(frozen=True, repr=False, kw_only=True)
class SegmentsSource(Source):
    """The segments of a file: each voxel is the number of one, or each segment is a channel.

    Parameters
    ----------
    path
        The file or folder that was named.
    shape, dtype, meta
        Of the volume.
    slices
        For each z those that lie there; missing ones are background.
    names
        Of the segments that slices are masks of, by number.
    segments
        The numbers of those that are channels; () for a label map.
    most
        What means 1 in channels, if they are fractions.
    background
        What means no segment, where slices hold numbers of segments.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    meta: Meta
    slices: tuple[tuple[DicomSlice, ...], ...]
    names: tuple[tuple[int, str], ...] = ()
    segments: tuple[int, ...] = ()
    most: int = 1
    background: int = 0

    @property
    def decoded(self) -> tuple[int, ...]:
        """One slice, which a file may hold packed."""
        return (*(1 for _ in self.shape[:-3]), 1, *self.shape[-2:])

    def by_channel(self) -> SegmentsSource:
        """Return the source with each segment in a channel of its own, if slices are masks."""
        if self.segments or not self.names:
            return self
        numbers, names = zip(*self.names, strict=True)
        meta = replace(self.meta, axes=("c", *self.meta.axes), channels=names, kind="image")
        shape, dtype = (len(names), *self.shape), np.dtype(np.uint8)
        return replace(self, shape=shape, dtype=dtype, meta=meta, segments=numbers)

    def identity(self) -> str:
        """Return a hash that changes when the file does, or what is taken of it."""
        files = state_of_files(self.path, [one for here in self.slices for one in here])
        return f"{files}-channels" if self.segments else files

    def read(self, roi: Roi) -> Array:
        """Return the values of a box; one slice at a time is decoded.

        Raises
        ------
        InvalidInput
            If two segments of a label map overlap.
        """
        values = np.zeros(roi.shape, self.dtype)
        for n, z in enumerate(range(roi.start[-3], roi.stop[-3])):
            for one in self.slices[z]:
                if not self.segments:
                    self._label(values[n], one, roi, z)
                elif roi.start[0] <= self.segments.index(one.segment) < roi.stop[0]:
                    channel = self.segments.index(one.segment) - roi.start[0]
                    values[channel, n] = self._part(one, roi)
        if self.most > 1:
            values /= self.most
        return values

    def _part(self, one: DicomSlice, roi: Roi) -> Array:
        *_, rows, columns = roi.slices()
        part: Array = numbers_in(one, rows)[0, :, columns]
        return part

    def _label(self, labels: Array, one: DicomSlice, roi: Roi, z: int) -> None:
        found = self._part(one, roi)
        if not one.segment:  # each number is that of a segment
            labels[...] = np.where(found == self.background, 0, found)
            return
        inside = found != 0
        if (labels[inside] != 0).any():
            other = labels[inside].max()
            names = self.meta.channels
            raise InvalidInput(
                f"{self.path} has segments that overlap, {names[one.segment]} and {names[other]} in"
                f" slice {z}; a label map holds one in each voxel: take one segment"
                f" (--channel {names[one.segment]!r})"
            )
        labels[inside] = one.segment


def open_segmentation(path: str, files: Sequence[ImageFile]) -> SegmentsSource:
    """Open a segmentation: with each segment a channel, if they overlap or are fractional.

    Its grid goes from the first to the last slice that it holds.

    Raises
    ------
    InvalidInput
        If there are several files, or its slices do not form a grid.
    """
    said = files[0].segmentation
    if len(files) > 1 or said is None:
        listed = ", ".join(Path(one.path).name for one in files[:20])
        raise InvalidInput(f"{path} holds {len(files)} segmentations; name one file: {listed}")
    slices = files[0].slices
    names = _names(said, slices, path)
    same_size(slices, path)
    grid = grid_of(slices, path, gaps=True)
    here: list[list[DicomSlice]] = [[] for _ in range(grid.depth)]
    for place, one in zip(grid.places, slices, strict=True):
        here[place].append(one)
    every = ["background", *(names.get(n, f"class {n}") for n in range(1, max(names) + 1))]
    first, origin = slices[0].stored, json.dumps({"series": said.of_series}).encode()
    meta = meta_of(grid, SourceInfo("dicom-seg", f"uint{max(8, first.bits)}", origin))
    labels = SegmentsSource(
        path=path,
        shape=(grid.depth, first.rows, first.columns),
        dtype=np.dtype(np.uint8 if max(names) < 256 else np.uint16),
        meta=replace(meta, kind="classes", channels=tuple(every)),
        slices=tuple(map(tuple, here)),
        names=() if said.kind == "LABELMAP" else tuple(names.items()),
        background=said.background,
    )
    if said.kind == "FRACTIONAL":
        return replace(labels.by_channel(), dtype=np.dtype(np.float32), most=said.most)
    return labels.by_channel() if said.overlap else labels


def _names(said: Segmentation, slices: Sequence[DicomSlice], path: str) -> dict[int, str]:
    """Return the names of the segments by number, of which slices may have no others."""
    names = {number: name or f"segment {number}" for number, name in said.segments if number}
    known = said.kind in ("BINARY", "FRACTIONAL", "LABELMAP")
    used = {one.segment for one in slices} - ({0} if said.kind == "LABELMAP" else set())
    if not known or not names or not used <= names.keys():
        raise InvalidInput(
            f"{path} is a segmentation of kind {said.kind or 'unknown'} with segments"
            f" {sorted(names)}, and slices of {sorted(used)}; expected slices of known segments"
        )
    return names
