"""Label maps: a source taken for classes or for an image, whatever its file says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source
from volflow.store.volume import described

__all__ = ["NotLabels", "taken_as", "whole_numbers"]


class NotLabels(InvalidInput):
    """A voxel that should be the number of a class is not a whole number."""


def taken_as(source: Source, labels: bool | None) -> Source:
    """A source as a label map or as an image.

    Parameters
    ----------
    source
        What is read.
    labels
        True for a label map, whose voxels are whole numbers: floats become integers of their size,
        so that none is rounded. False for an image. None for what the source says of itself.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> image = open_source(np.array([[[0.0, 7.0]]], "float32"))
    >>> labels = taken_as(image, True)
    >>> labels.dtype.name, labels.meta.kind, labels.read(Roi.full((1, 1, 2))).tolist()
    ('int32', 'classes', [[[0, 7]]])
    """
    kind = source.meta.kind if labels is None else "classes" if labels else "image"
    integers = kind == "classes" and source.dtype.kind == "f"
    if kind == source.meta.kind and not integers:
        return source
    # No float of up to four bytes needs more than four to be an integer, or it is out of range.
    dtype = np.dtype(f"i{max(4, source.dtype.itemsize)}") if integers else source.dtype
    return _TakenAs(source, kind, dtype)


@dataclass(frozen=True, eq=False, repr=False)
class _TakenAs(Source):
    """A source that counts as another kind than it says, or whose floats are whole numbers."""

    source: Source
    kind: str
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """As the source's."""
        return self.source.shape

    @property
    def meta(self) -> Meta:
        """As the source's, but for the kind."""
        return replace(described(self.source), kind=self.kind)

    @property
    def path(self) -> str | None:
        """As the source's."""
        return self.source.path

    @property
    def sequential(self) -> bool:
        """As the source's."""
        return self.source.sequential

    def identity(self) -> str:
        """As the source's."""
        return self.source.identity()

    def read(self, roi: Roi) -> Array:
        """The voxels of a box."""
        return whole_numbers(self.source.read(roi), self.dtype, roi.start)

    def slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """All voxels in C order."""
        # Mapped and not looped over: a loop would hold each slab while the next is read.
        return map(self._whole, self.source.slabs(depth))

    def _whole(self, slab: tuple[Roi, Array]) -> tuple[Roi, Array]:
        roi, voxels = slab
        return roi, whole_numbers(voxels, self.dtype, roi.start)


def whole_numbers(voxels: Array, dtype: np.dtype[Any], corner: tuple[int, ...]) -> Array:
    """Floats that are whole numbers as integers; voxels of another dtype as they are.

    Parameters
    ----------
    voxels
        Of a box, read for this call: where integers are as wide, they take the place of floats.
    dtype
        That of the integers.
    corner
        Of the box, for the message.

    Raises
    ------
    NotLabels
        Naming the first voxel that is not a whole number, or too large for one.
    """
    if voxels.dtype == dtype:
        return voxels
    own = voxels.flags.owndata and voxels.flags.carray
    in_place = own and voxels.dtype.itemsize == dtype.itemsize
    numbers = voxels.view(dtype) if in_place else np.empty(voxels.shape, dtype)
    for place in np.ndindex(voxels.shape[:-2]):  # plane by plane, so that little is held
        plane = voxels[place]
        with np.errstate(invalid="ignore"):
            whole = plane.astype(dtype)
        wrong = np.argwhere(whole != plane)
        if len(wrong):
            first = tuple(wrong[0].tolist())
            voxel = tuple(a + b for a, b in zip(corner, (*place, *first), strict=True))
            raise NotLabels(
                f"voxel {voxel} is {plane[first]}, and a label map holds whole numbers that"
                f" {dtype} can hold; convert it as an image (labels=False, --image), or mend its"
                " values first"
            )
        numbers[place] = whole
    return numbers
