"""Sources with another dtype, or with the spacing and unit that their files do not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.units import NGFF_UNITS, unit_name
from volflow.store.formats.taken.derived import Derived
from volflow.store.formats.taken.labels import NotHeld
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta, check_spacing
from volflow.store.slabs import Array, Source

__all__ = ["on_spacing", "restated", "stored_as"]


def on_spacing(source: Source, spacing: float | Sequence[float] | None, unit: str | None) -> Source:
    """Return a source with another spacing or unit; its voxels stay as they are.

    Parameters
    ----------
    source
        The source.
    spacing
        Voxel size along z, y, x, or one for all; None for its own.
    unit
        Unit of it; None for its own.

    Raises
    ------
    InvalidInput
        If the spacing is impossible or the unit unknown.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> stack = on_spacing(open_source(np.zeros((4, 5, 6))), (2, 0.5, 0.5), "um")
    >>> stack.meta.spacing, stack.meta.unit
    ((2.0, 0.5, 0.5), 'micrometer')
    """
    if spacing is None and unit is None:
        return source
    return _OnSpacing(source, restated(source.meta, spacing, unit))


def restated(
    own: Meta,
    spacing: float | Sequence[float] | None,
    unit: str | None,
    orientation: str | None = None,
) -> Meta:
    """Return metadata with another spacing, unit or orientation.

    Parameters
    ----------
    own
        The metadata.
    spacing
        Voxel size along z, y, x, or one for all; None for its own.
    unit
        Unit of it; None for its own.
    orientation
        Direction in which z, y, x grow, such as ``"SAR"``; None for its own.

    Raises
    ------
    InvalidInput
        If the spacing or orientation is impossible, or the unit unknown.

    Examples
    --------
    >>> restated(Meta(), 2, "mm", "sar").orientation
    'SAR'
    """
    name = own.unit if unit is None else unit_name(unit)
    if unit is not None and name not in NGFF_UNITS:
        raise InvalidInput(
            f"unit {unit!r} is not known; use nm, um, mm or any other length that NGFF names"
        )
    given: Any = own.spacing if spacing is None else spacing
    try:
        sizes = [float(size) for size in ([given] * 3 if np.ndim(given) == 0 else given)]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) != 3:
        raise InvalidInput(f"spacing needs one number, or one each for z, y, x; given {spacing}")
    check_spacing(sizes)
    # The axes keep their directions and the first voxel its place.
    factors = [new / old for new, old in zip(sizes, own.spacing, strict=True)]
    scaled = own.regrid(factors, (0, 0, 0))
    stated = replace(scaled, spacing=(sizes[0], sizes[1], sizes[2]), unit=name)
    turned = stated if orientation is None else replace(stated, orientation=orientation)
    # An affine says the orientation, too.
    return turned if turned.orientation == own.orientation else replace(turned, affine=None)


@dataclass(frozen=True, eq=False, repr=False)
class _OnSpacing(Derived):
    """A source with other metadata."""

    stated: Meta

    @property
    def meta(self) -> Meta:
        """Metadata as stated, with the source file's own."""
        return replace(self.stated, source=super().meta.source)

    def identity(self) -> str:
        """Return the identity of the source, with what was stated."""
        sizes = "x".join(f"{size:.9g}" for size in self.stated.spacing)
        return f"{self.source.identity()}-{sizes}-{self.stated.unit}"


def stored_as(source: Source, dtype: Any) -> Source:
    """Return a source whose voxels have another dtype; None keeps its own.

    Integers hold floats rounded to the nearest. No voxel is clipped.

    Raises
    ------
    InvalidInput
        If a volume cannot hold the dtype.
    NotHeld
        When it is read: if a voxel does not fit into the dtype, naming the first.

    Examples
    --------
    >>> from volflow.geometry.roi import Roi
    >>> from volflow.store.formats.sources import open_source
    >>> stored_as(open_source(np.array([[[1.6, 300]]])), "uint8").read(Roi.full((1, 1, 2)))
    Traceback (most recent call last):
    volflow.store.formats.taken.labels.NotHeld: voxel (0, 0, 1) is 300.0, which uint8 does not hold;
    choose a wider dtype (--dtype)
    """
    if dtype is None:
        return source
    try:
        wanted = check_dtype(np.dtype(dtype), "dtype").newbyteorder("=")
    except TypeError:
        raise InvalidInput(f"dtype must be a NumPy dtype such as uint16, given {dtype!r}") from None
    return source if wanted == source.dtype else _StoredAs(source, wanted)


@dataclass(frozen=True, eq=False, repr=False)
class _StoredAs(Derived):
    """A source whose voxels are cast."""

    wanted: np.dtype[Any]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype that is wanted."""
        return self.wanted

    def identity(self) -> str:
        """Return the identity of the source, with the dtype."""
        return f"{self.source.identity()}-{self.dtype}"

    def changed(self, voxels: Array, corner: Sequence[int]) -> Array:
        """Return voxels cast."""
        return _cast(voxels, self.dtype, corner)


def _cast(voxels: Array, dtype: np.dtype[Any], corner: Sequence[int]) -> Array:
    if np.can_cast(voxels.dtype, dtype, "safe"):
        return voxels.astype(dtype)
    cast = np.empty(voxels.shape, dtype)
    for place in np.ndindex(voxels.shape[:-2]):  # plane by plane, to save memory
        plane = voxels[place]
        whole = np.rint(plane) if plane.dtype.kind == "f" and dtype.kind in "iub" else plane
        with np.errstate(all="ignore"):
            cast[place] = whole
            lost = ~_held(whole, cast[place], dtype)
        if lost.any():
            first = tuple(int(i) for i in np.argwhere(lost)[0])
            voxel = tuple(a + b for a, b in zip(corner, (*place, *first), strict=True))
            raise NotHeld(
                f"voxel {voxel} is {plane[first]}, which {dtype} does not hold; choose a wider"
                " dtype (--dtype)"
            )
    return cast


def _held(values: Array, cast: Array, dtype: np.dtype[Any]) -> Array:
    """Return where a cast kept the value: whole ones exactly, floats as finite as they were."""
    if dtype.kind == "f":
        kept: Array = np.isfinite(cast) | ~np.isfinite(values)
        return kept
    return np.asarray(cast == values)
