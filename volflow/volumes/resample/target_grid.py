"""The grid of a resampled volume: voxels of a wanted size, or those of another volume."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.affine import affine_between
from volflow.geometry.resampling.regridding import GridMap
from volflow.geometry.units import metres, unit_sign, units_in
from volflow.store.meta import Meta, Vector, check_spacing
from volflow.volumes.arrays.grids import spacing_text

__all__ = [
    "Spacing",
    "grid_text",
    "map_to_grid",
    "map_to_spacing",
    "placed_as",
    "respaced",
    "wanted_spacing",
]

Length = float | str
Spacing = Length | Sequence[Length]
"""Voxel size along z, y, x, or one for all, in the volume's unit or as texts such as "2 mm"."""

LENGTH = re.compile(r"\s*([+-]?\d*\.?\d+(?:e[+-]?\d+)?)\s*([^\W\d]\S*)?\s*", re.IGNORECASE)
# Directions z, y, x of the letters S, A, R: those in which the axes of a world grow.
OWN_AXES = "SAR"


def wanted_spacing(spacing: Spacing, meta: Meta) -> Vector:
    """Return a wanted voxel size along z, y, x in the unit of a volume.

    Raises
    ------
    InvalidInput
        If it is no size, or the volume's own is not known.

    Examples
    --------
    >>> wanted_spacing(("0.5 cm", 1, "800um"), Meta(unit="millimeter"))
    (5.0, 1.0, 0.8)
    """
    if not meta.knows_spacing:
        raise InvalidInput(
            "spacing= needs to know how large the volume's voxels are, and it does not say; store"
            " it with its spacing and unit first (volflow convert --spacing 1 --unit mm, or"
            " vf.write with spacing= and unit=)"
        )
    single = isinstance(spacing, str) or np.ndim(spacing) == 0
    given: Any = [spacing] * 3 if single else spacing
    sizes = [_length(size, meta.unit) for size in given] if len(given) == 3 else []
    if not sizes or any(size is None for size in sizes):
        raise InvalidInput(
            "spacing must be one voxel size or three (z, y, x), each a number in the volume's unit"
            f' or a text with a unit, such as 1 or "0.5 mm"; got {spacing!r}'
        )
    z, y, x = (float(size) for size in sizes if size is not None)
    check_spacing((z, y, x))
    return z, y, x


def _length(size: Any, unit: str | None) -> float | None:
    """A voxel size in a unit; None where it is none."""
    if not isinstance(size, str):
        known = isinstance(size, int | float | np.number) and not isinstance(size, bool)
        return float(size) if known else None
    parts = LENGTH.fullmatch(size)
    if parts is None:
        return None
    number, named = float(parts[1]), parts[2]
    if named is None or unit_sign(unit) == named or unit == named:
        return number
    length, own = metres(named), metres(unit)
    if length is not None and own is None:
        raise InvalidInput(
            f"spacing {size!r} has a unit, and that of the volume is {unit or 'not known'}; give a"
            " number in the volume's own unit, or store it with its unit (volflow convert --unit"
            " mm)"
        )
    # A ratio of powers of ten, as decimals: 800 µm are 0.8 mm.
    return None if length is None or own is None else float(f"{number * (length / own):.15g}")


def map_to_spacing(shape: Sequence[int], meta: Meta, spacing: Spacing) -> GridMap:
    """Return the map from a volume to voxels of another size over the same field of view.

    There are ``max(1, round(n * s / t))`` of them along an axis of n voxels of size s, and the
    outer edges meet at the low side.

    Parameters
    ----------
    shape, meta
        Of the volume.
    spacing
        As in `wanted_spacing`, which raises.

    Examples
    --------
    >>> map_to_spacing((20, 64, 64), Meta(spacing=(3, 1, 1), unit="millimeter"), 2).shape
    (30, 32, 32)
    """
    return GridMap.spaced(shape[-3:], meta.spacing, wanted_spacing(spacing, meta))


def respaced(meta: Meta, grid: GridMap, sizes: Vector) -> Meta:
    """Return the metadata of a volume on voxels of another size.

    It has the same orientation and field of view; its first centre has moved with the voxel size.

    Parameters
    ----------
    meta, sizes
        Of the volume, and the voxel size from `wanted_spacing`.
    grid
        From `map_to_spacing`.

    Examples
    --------
    >>> meta = Meta(spacing=(3, 1, 1), unit="millimeter")
    >>> made = respaced(meta, map_to_spacing((20, 64, 64), meta, 2), (2, 2, 2))
    >>> made.spacing, made.translation
    ((2.0, 2.0, 2.0), (-0.5, 0.5, 0.5))
    """
    regridded = meta.regrid([a.step for a in grid.axes], [a.offset for a in grid.axes])
    # A size times the ratio of two is not what was asked for, by a rounding.
    z, y, x = (
        own if axis.step == 1 else size
        for own, axis, size in zip(meta.spacing, grid.axes, sizes, strict=True)
    )
    return replace(regridded, spacing=(z, y, x))


def map_to_grid(shape: Sequence[int], meta: Meta, like_shape: Sequence[int], like: Meta) -> GridMap:
    """Return the map from a volume to the grid of another, of any orientation.

    Where one has an affine or an orientation both must: they lie in one world. Volumes without are
    compared by spacing and translation along their own axes.

    Parameters
    ----------
    shape, meta, like_shape, like
        Of the volume, and of the one whose grid is wanted.

    Raises
    ------
    InvalidInput
        If it cannot be told how the two lie, they do not meet, or their axes are not parallel.

    Examples
    --------
    >>> scan = Meta(spacing=(2, 1, 1), unit="mm", orientation="SAR")
    >>> fine = Meta(spacing=(1, 1, 1), unit="mm", orientation="SAL", translation=(0, 0, -30))
    >>> map_to_grid((10, 32, 32), scan, (20, 31, 31), fine).frame.flips
    (False, False, True)
    """
    placed = ((meta, "the volume"), (like, "like="))
    for one, name in placed:
        if not one.knows_spacing:
            raise InvalidInput(
                f"the voxel size of {name} is not known, so that nobody can tell where its voxels"
                " lie; store it with its spacing and unit first (volflow convert --spacing 1 --unit"
                " mm, or vf.write with spacing= and unit=)"
            )
    oriented = [one.orientation is not None or one.affine is not None for one, _ in placed]
    if oriented[0] != oriented[1]:
        known, unknown = ("the volume", "like=") if oriented[0] else ("like=", "the volume")
        raise InvalidInput(
            f"{known} has an orientation and {unknown} has none, so that nobody can tell how the"
            " two lie; store the one without with its orientation (vf.write(x, out,"
            ' orientation="SAR"))'
        )
    grid = GridMap.between(_world(meta), shape[-3:], _world(like, meta.unit), like_shape[-3:])
    for axis, place, size in zip(grid.axes, "zyx", like_shape[-3:], strict=True):
        low, high = axis.inside(0, axis.target)
        if low == high:
            first, last = axis.at(0, size)[[0, -1]]
            raise InvalidInput(
                f"the two grids do not meet: along {place} of like=, its voxels lie at"
                f" {first:.6g} to {last:.6g} where those of the volume are 0 to {axis.source - 1};"
                " give a volume of the same scan or space, or one with the right affine"
            )
    return grid


def _world(meta: Meta, unit: str | None = None) -> Any:
    """The affine of a volume, x, y, z to a world, in a unit if both are known."""
    if meta.affine is None:
        letters = meta.orientation or OWN_AXES
        affine = affine_between(meta.spacing, letters, meta.translation)
    else:
        affine = np.array(meta.affine, float)
    affine[:3] *= units_in(meta.unit, unit) or 1.0
    return affine


def placed_as(meta: Meta, like: Meta) -> Meta:
    """Return the metadata of a volume on the grid of another.

    Channels, kind and colours stay its own; the file to which `export` goes back is that of the
    other, whose grid it has.

    Examples
    --------
    >>> made = placed_as(Meta(kind="classes"), Meta(spacing=(2, 1, 1), orientation="SAR"))
    >>> made.kind, made.spacing
    ('classes', (2.0, 1.0, 1.0))
    """
    return replace(
        meta,
        spacing=like.spacing,
        unit=like.unit,
        translation=like.translation,
        orientation=like.orientation,
        affine=like.affine,
        source=like.source,
    )


def grid_text(shape: Sequence[int], meta: Meta) -> str:
    """Return a grid as people write it: voxels, spacing, orientation.

    Examples
    --------
    >>> grid_text((20, 30, 30), Meta(spacing=(2, 1, 1), unit="millimeter", orientation="SAR"))
    '20 × 30 × 30 voxels of 2×1×1 mm, SAR'
    """
    sides = " × ".join(map(str, shape[-3:]))
    text = f"{sides} voxels of {spacing_text(meta)}"
    return f"{text}, {meta.orientation}" if meta.orientation else text
