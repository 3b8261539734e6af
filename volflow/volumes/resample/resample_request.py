"""What a resampling is asked for, checked: the volume, its new grid, how its voxels are made."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.resampling.regridding import GridMap, Regridding, rounded
from volflow.geometry.resampling.thick_slices import thick_axis
from volflow.store.formats.exported import BEHIND
from volflow.store.formats.sources import ArraySource
from volflow.store.formats.taken.labels import taken_as
from volflow.store.formats.written import is_foreign, refuse_levels, refuse_unwritable
from volflow.store.journal.journal import Record, journal_dir, journal_of
from volflow.store.journal.outputs import check_apart
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.remote.address import Address, Location, location
from volflow.store.slabs import Source
from volflow.store.volume import Volume, described
from volflow.volumes.arrays.inputs import VolumeLike, open_input
from volflow.volumes.resample.resample_options import ResampleOptions
from volflow.volumes.resample.resampled_source import RESAMPLE_VERSION
from volflow.volumes.resample.target_grid import (
    grid_text,
    map_to_grid,
    map_to_spacing,
    placed_as,
    respaced,
    wanted_spacing,
)

__all__ = ["ResampleRequest"]

MOST_VOXELS = 2**50


@dataclass(frozen=True)
class ResampleRequest:
    """A volume to be resampled.

    Parameters
    ----------
    given
        The volume as it was handed over.
    opened, source
        The volume as it is, and as what it is taken for: an image, or a label map.
    options
        What is asked for.
    how, spec
        How its voxels are made, and the result.
    out, file
        The volume that is written, if one is; and the file that it is exported to.
    """

    given: Any
    opened: Source
    source: Source
    options: ResampleOptions
    how: Regridding
    spec: VolumeSpec
    out: Location | None = None
    file: Path | None = None

    @classmethod
    def of(cls, volume: Any, out: Any, options: ResampleOptions) -> ResampleRequest:
        """Open a volume and check what is asked for; no voxel is read.

        Raises
        ------
        InvalidInput
            For a grid that cannot be, or what cannot work together.
        """
        if (options.spacing is None) == (options.like is None):
            raise InvalidInput(
                "resample needs either spacing= (--spacing), the voxel size that is wanted, or"
                " like= (--like), a volume on whose grid the voxels shall lie; give one of them"
            )
        place, file = (None, None) if out is None else _places(out, options)
        if place is not None:
            check_apart(file or place, volume, options.like)
        opened = open_input(volume)
        source = taken_as(opened, options.labels)
        grid, meta = _grid(source, options)
        how = _regridding(source, grid, meta, options)
        dtype = how.dtype if options.dtype is None else _dtype(options.dtype, how)
        if options.like is not None:
            how = replace(how, fill=_fill(options.fill, dtype))
        shape = (*source.shape[:-3], *grid.shape)
        if np.prod(shape, dtype=float) > MOST_VOXELS:
            raise InvalidInput(
                f"the result would have {' × '.join(map(str, grid.shape))} voxels; check the unit"
                " of spacing= (--spacing)"
            )
        spec = VolumeSpec.of(shape, dtype, meta, options.chunk, options.shard)
        if file is not None:
            refuse_unwritable(spec, file)
        return cls(volume, opened, source, options, how, spec, place, file)

    @property
    def is_direct(self) -> bool:
        """Whether any box of the volume can be read at once, so that no copy of it is needed."""
        if isinstance(self.opened, Volume | ArraySource):
            return True
        plain = max(self.opened.decoded) == 1 and not self.opened.sequential
        return plain and self.opened.path is not None  # else Dask computes it

    @property
    def cell(self) -> tuple[int, ...]:
        """Voxels along z, y, x that are decoded as a whole where the volume is read."""
        if isinstance(self.opened, Volume):
            return self.opened.chunks[-3:]
        return (1, 1, 1) if self.is_direct else self.opened.spec.chunk[-3:]

    @property
    def sidecar(self) -> Location:
        """The folder beside the output that was named."""
        assert self.out is not None
        return journal_of(self.file or self.out).directory

    def record(self, identity: str, grid: Sequence[int]) -> Record:
        """Return the record of a run: of which volume, what is made of it, in which blocks."""
        how, meta = self.how, self.spec.meta
        place = repr((how.grid, how.fill, replace(meta, made="")))
        made = {
            "grid": grid_text(self.spec.shape, meta),
            "place": hashlib.sha256(place.encode()).hexdigest()[:16],
            "order": list(how.order),
            "antialias": how.antialias,
            "classes": how.classes,
            "fill": how.fill,
            "dtype": str(self.spec.dtype),
        }
        return Record(
            "resample",
            {"input": identity, "version": RESAMPLE_VERSION, **made},
            {"grid": list(grid), "chunk": self.spec.chunk, "shard": self.spec.shard},
        )


def _places(out: Any, options: ResampleOptions) -> tuple[Location, Path | None]:
    """Return the volume to write, and the file to which it is exported."""
    place = location(out).expanduser().absolute()
    if not is_foreign(place if isinstance(place, Path) else place.name):
        return place, None
    if isinstance(place, Address):
        raise InvalidInput(
            f"{place} is a file, which resample does not write to a store; resample to a .zarr"
            " there and export that (vf.export, volflow export)"
        )
    if options.levels:
        refuse_levels(place)
    if not place.parent.is_dir():
        raise InvalidInput(f"the folder {place.parent} does not exist; make it first")
    return journal_dir(place) / BEHIND, place


def _grid(source: Source, options: ResampleOptions) -> tuple[GridMap, Meta]:
    """Return where the voxels of the source lie in the result, and the metadata of that."""
    meta = described(source)
    if options.spacing is not None:
        grid = map_to_spacing(source.shape, meta, options.spacing)
        return grid, respaced(meta, grid, wanted_spacing(options.spacing, meta))
    like = _opened_like(options.like)
    placed = described(like)
    return map_to_grid(source.shape, meta, like.shape, placed), placed_as(meta, placed)


def _opened_like(like: VolumeLike | None) -> Source:
    assert like is not None
    try:
        return open_input(like)
    except InvalidInput as error:
        raise type(error)(f"like= (--like): {error}") from error


def _regridding(source: Source, grid: GridMap, meta: Meta, options: ResampleOptions) -> Regridding:
    classes = source.meta.kind == "classes" or source.dtype.kind == "b"
    order = _orders(options.order, grid, source.meta, meta, 1 if classes else 3)
    if not isinstance(options.antialias, bool):
        raise InvalidInput(f"antialias must be True or False, given {options.antialias!r}")
    if options.fill is not None and options.spacing is not None:
        raise InvalidInput(
            "fill= (--fill) is the value outside of the volume, and spacing= keeps its field of"
            " view; leave it out"
        )
    # Voxels of another size cover the same field of view: none lies outside but by rounding.
    return Regridding(grid, order, source.dtype, options.antialias, classes, fill=None)


def _orders(order: Any, grid: GridMap, meta: Meta, made: Meta, most: int) -> tuple[int, int, int]:
    """Return the order along each axis of the result."""
    if isinstance(order, str) and order == "nnunet":
        thick = thick_axis(grid.frame.reorder(meta.spacing), made.spacing)
        z, y, x = (0 if axis == thick else most for axis in range(3))
        return z, y, x
    given = [order] * 3 if isinstance(order, int | np.integer) else order
    if isinstance(given, str | bool) or not isinstance(given, Sequence):
        given = []
    if len(given) != 3 or any(isinstance(n, bool) or n not in (0, 1, 3) for n in given):
        raise InvalidInput(
            "order must be 0 (nearest), 1 (linear) or 3 (cubic B-spline), or one of them for each"
            f' of z, y, x, or "nnunet"; got {order!r}'
        )
    return int(given[0]), int(given[1]), int(given[2])


def _fill(fill: float | None, dtype: np.dtype[Any]) -> float:
    """Return the value outside of the volume; refuses one that its dtype cannot hold."""
    value = 0.0 if fill is None else float(fill)
    held = dtype.kind == "f" or (
        np.isfinite(value) and float(rounded(np.array(value), dtype)) == value
    )
    if not held:
        raise InvalidInput(
            f"fill must be a value that {dtype} holds, given {fill!r}; give another, or a dtype"
            " that holds it (dtype=, --dtype)"
        )
    return value


def _dtype(name: str, how: Regridding) -> np.dtype[Any]:
    try:
        dtype = check_dtype(name, "the result").newbyteorder("=")
    except TypeError:
        raise InvalidInput(f"dtype must be a NumPy dtype such as float32, given {name!r}") from None
    if dtype != how.dtype and (how.classes or dtype.kind == "b"):
        raise InvalidInput(
            f"classes keep their dtype, {how.dtype}, given dtype={name!r}; convert the result"
            " (vf.convert with dtype=, volflow convert --dtype)"
        )
    return dtype
