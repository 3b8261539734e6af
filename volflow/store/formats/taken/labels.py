"""Label maps: read a source as classes or as an image, overriding its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.store.formats.taken.derived import Derived
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source

__all__ = ["NotHeld", "taken_as", "whole_numbers"]


class NotHeld(InvalidInput):
    """Raised if a voxel does not fit the dtype that is to be stored."""


def taken_as(source: Source, labels: bool | None) -> Source:
    """Return a source as a label map or as an image.

    Parameters
    ----------
    source
        The source to read.
    labels
        True for a label map, whose voxels are whole numbers: floats become integers of their size,
        so that none is rounded. False for an image. None keeps the source's own kind.

    Examples
    --------
    >>> from volflow.geometry.roi import Roi
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
    # Whole floats of up to four bytes fit into four-byte integers, or are out of range.
    dtype = np.dtype(f"i{max(4, source.dtype.itemsize)}") if integers else source.dtype
    return _TakenAs(source, kind, dtype)


@dataclass(frozen=True, eq=False, repr=False)
class _TakenAs(Derived):
    """A source read as another kind than its own, or with its floats as integers."""

    kind: str
    numbers: np.dtype[Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the numbers of classes, or of the source."""
        return self.numbers

    @property
    def meta(self) -> Meta:
        """Metadata of the source, with the kind replaced."""
        return replace(super().meta, kind=self.kind)

    def changed(self, voxels: Array, corner: Sequence[int]) -> Array:
        """Return voxels as whole numbers."""
        return whole_numbers(voxels, self.dtype, corner)


def whole_numbers(voxels: Array, dtype: np.dtype[Any], corner: Sequence[int]) -> Array:
    """Return whole floats as integers of the same shape; other dtypes are returned unchanged.

    Parameters
    ----------
    voxels
        Voxels of a box; overwritten in place if the integers are as wide as the floats.
    dtype
        Dtype of the integers.
    corner
        First voxel of the box, for the message.

    Raises
    ------
    NotHeld
        If a voxel is not a whole number or does not fit the dtype, naming the first.
    """
    if voxels.dtype == dtype:
        return voxels
    own = voxels.flags.owndata and voxels.flags.carray
    in_place = own and voxels.dtype.itemsize == dtype.itemsize
    numbers = voxels.view(dtype) if in_place else np.empty(voxels.shape, dtype)
    for place in np.ndindex(voxels.shape[:-2]):  # plane by plane, to save memory
        plane = voxels[place]
        with np.errstate(invalid="ignore"):
            whole = plane.astype(dtype)
        wrong = np.argwhere(whole != plane)
        if len(wrong):
            first = tuple(wrong[0].tolist())
            voxel = tuple(a + b for a, b in zip(corner, (*place, *first), strict=True))
            raise NotHeld(
                f"voxel {voxel} is {plane[first]}, and a label map holds whole numbers that"
                f" {dtype} can hold; convert it as an image (labels=False, --image), or correct its"
                " values first"
            )
        numbers[place] = whole
    return numbers
