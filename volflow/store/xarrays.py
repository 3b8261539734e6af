"""Volumes from and to xarray: grids from coordinates, and coordinates from grids.

xarray is imported only if a volume is converted to it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.units import unit_name
from volflow.store.layout import piece_of
from volflow.store.meta import Affine, Meta, SourceInfo, Vector

if TYPE_CHECKING:
    import xarray

    from volflow.store.volume import Volume

__all__ = ["from_xarray", "to_xarray"]

CHANNEL_DIMS = ("c", "channel", "channels")
# Steps of coordinates may differ by this fraction of a step, as in float32.
REGULAR = 1e-3
# A measured step and the spacing in the coordinate's attributes are equal within this.
NOTED = 1e-6


def from_xarray(x: xarray.DataArray) -> tuple[Any, Meta]:
    """Return the voxels of a DataArray in the order ``zyx`` or ``czyx``, and their metadata.

    Parameters
    ----------
    x
        With the dimensions z, y, x and optionally a channel dimension, in any order; without z it
        is one slice. Dask arrays stay lazy, and files are not read.

    Returns
    -------
    array
        A NumPy or Dask array, ``zyx`` or ``czyx``, of the DataArray's dtype.
    meta
        Spacing and origin from the coordinates, the unit from their ``units``, names of channels
        from the channel coordinate; orientation, affine and kind as `to_xarray` stores them.

    Raises
    ------
    InvalidInput
        If a dimension is unknown, or a coordinate is not regular and ascending.

    Examples
    --------
    >>> import xarray
    >>> coords = {"y": ("y", [0.0, 0.5], {"units": "mm"}), "x": ("x", [3.0, 3.5], {"units": "mm"})}
    >>> array, meta = from_xarray(xarray.DataArray(np.ones((2, 2)), coords, dims=("x", "y")))
    >>> array.shape, meta.spacing, meta.unit, meta.translation
    ((1, 2, 2), (1.0, 0.5, 0.5), 'millimeter', (0.0, 0.0, 3.0))
    """
    dims = _dims(x.dims)
    axes = tuple(axis for axis in "czyx" if axis in dims or axis == "z")
    array = _voxels(x.transpose(*(dims[axis] for axis in axes if axis in dims)))
    if "z" not in dims:
        array = array[..., None, :, :]
    spacing, origin, unit = _grid(x, dims)
    noted = x.attrs
    kind = "classes" if noted.get("kind") == "classes" and array.dtype.kind in "biu" else "image"
    names: Sequence[Any] = ()
    if "c" in dims and dims["c"] in x.coords:
        names = x.coords[dims["c"]].values.tolist()
    elif kind == "classes":
        names = noted.get("classes", ())
    return array, Meta(
        axes,
        spacing,
        unit,
        origin,
        _orientation(noted),
        _affine(noted, spacing, origin),
        tuple(map(str, names)),
        kind,
        source=SourceInfo("xarray", str(np.dtype(array.dtype).newbyteorder("="))),
    )


def to_xarray(volume: Volume) -> xarray.DataArray:
    """Return a volume as a lazy DataArray, ``zyx`` or ``czyx``; no voxel is read.

    Coordinates are voxel centres; their attributes hold the spacing, which a single slice does not
    show. The affine is stored relative to the coordinates, so that it also holds for cut-outs.

    Raises
    ------
    InvalidInput
        If xarray is not installed.

    Examples
    --------
    >>> import zarr
    >>> from volflow.store.volume import open_volume
    >>> scan = to_xarray(open_volume(zarr.ones(shape=(8, 9, 10), dtype="uint8")))
    >>> scan.isel(z=slice(2, 5)).coords["z"].values.tolist(), scan.coords["z"].attrs
    ([2.0, 3.0, 4.0], {'spacing': 1.0})
    """
    try:
        import xarray
    except ImportError as error:
        raise InvalidInput(
            'this needs xarray, which is not installed; pip install "volflow[xarray]"'
        ) from error
    meta = volume.meta
    coords: dict[str, Any] = {}
    for axis, count, step, origin in zip(
        "zyx", volume.spatial_shape, meta.spacing, meta.translation, strict=True
    ):
        noted: dict[str, Any] = {"spacing": step} | ({"units": meta.unit} if meta.unit else {})
        coords[axis] = (axis, origin + step * np.arange(count), noted)
    if "c" in volume.axes and len(meta.channels) == volume.channels_count:
        coords["c"] = ("c", list(meta.channels))
    attrs: dict[str, Any] = {"kind": meta.kind}
    if meta.kind == "classes" and meta.channels:
        attrs["classes"] = list(meta.channels)
    if meta.orientation:
        attrs["orientation"] = meta.orientation
    if meta.affine is not None:
        to_index = np.linalg.inv(_index_to_coordinates(meta.spacing, meta.translation))
        attrs["to_world"] = (np.array(meta.affine) @ to_index).ravel().tolist()
    name = Path(volume.path).stem if volume.path else None
    return xarray.DataArray(volume.dask(), coords, volume.axes, name, attrs)


def _dims(dims: Sequence[Hashable]) -> dict[str, Hashable]:
    """Return the dimension of each axis."""
    found: dict[str, Hashable] = {}
    for dim in dims:
        name = str(dim).lower()
        found.setdefault("c" if name in CHANNEL_DIMS else name, dim)
    if len(found) < len(dims) or not {"y", "x"} <= set(found) <= set("czyx"):
        raise InvalidInput(
            f"dimensions must be z, y, x and optionally c, given {', '.join(map(str, dims))};"
            ' rename them, x.rename({"lat": "y"}), and select along others, x.isel(time=0)'
        )
    return found


def _voxels(x: xarray.DataArray) -> Any:
    """Return the array of a DataArray: NumPy if in memory, else Dask."""
    if x.chunks is not None:
        return x.data
    if not x.variable._in_memory:  # in a file: ``x.data`` would load all of it
        preferred = x.encoding.get("preferred_chunks")
        if not preferred:
            return x.chunk("auto").data
        unit = tuple(min(preferred.get(dim, n), n) for dim, n in x.sizes.items())
        piece = piece_of(unit, None, x.shape, x.dtype)
        return x.chunk(dict(zip(x.dims, piece, strict=True))).data
    if not isinstance(x.data, np.ndarray):
        raise InvalidInput(
            f"the DataArray holds a {type(x.data).__name__}; expected NumPy or Dask; give"
            " x.as_numpy()"
        )
    return x.data


def _grid(x: xarray.DataArray, dims: Mapping[str, Hashable]) -> tuple[Vector, Vector, str | None]:
    """Return spacing, origin (z, y, x) and unit; the defaults if there are no coordinates."""
    there = {
        axis: x.coords[dims.get(axis, axis)] for axis in "zyx" if dims.get(axis, axis) in x.coords
    }
    bare = [str(dims[a]) for a in "zyx" if a in dims and a not in there and x.sizes[dims[a]] > 1]
    if there and bare:
        raise InvalidInput(
            f"dimension {bare[0]} has no coordinate, but {next(iter(there.values())).name} has;"
            f" its spacing is unknown; add it, x.assign_coords({bare[0]}=…), or drop them all"
        )
    steps = {axis: _step(coordinate) for axis, coordinate in there.items()}
    units = {
        str(coordinate.name): unit_name(coordinate.attrs.get("units"))
        for coordinate in there.values()
        if coordinate.size > 1 or "units" in coordinate.attrs
    }
    if len(set(units.values())) > 1:
        given = ", ".join(f"{name}: {unit or 'none'}" for name, unit in units.items())
        raise InvalidInput(
            f"coordinates of a volume must share one unit, given {given}; convert them, and set"
            ' x.coords["z"].attrs["units"]'
        )
    z, y, x_ = (steps.get(axis, (1.0, 0.0)) for axis in "zyx")
    return (z[0], y[0], x_[0]), (z[1], y[1], x_[1]), next(iter(units.values()), None)


def _step(coordinate: xarray.DataArray) -> tuple[float, float]:
    """Return step and first value of a coordinate."""
    name, stored = str(coordinate.name), np.atleast_1d(coordinate.values)
    if stored.dtype.kind not in "iuf" or not np.isfinite(stored).all():
        raise InvalidInput(
            f"coordinate {name} must hold finite numbers, given {stored.dtype};"
            f" drop it, x.drop_vars({name!r}), or give it positions"
        )
    values = stored.astype(float)
    noted = coordinate.attrs.get("spacing")
    noted = float(noted) if isinstance(noted, int | float | np.number) and noted > 0 else None
    if len(values) == 1:
        return noted or 1.0, float(values[0])
    steps = np.diff(values)
    mean = float((values[-1] - values[0]) / len(steps))
    if mean < 0 and (steps < 0).all():
        raise InvalidInput(
            f"coordinate {name} must ascend, given {values[0]:g} to {values[-1]:g}; reverse it:"
            f" x.isel({name}=slice(None, None, -1))"
        )
    precision = np.finfo(stored.dtype).eps if stored.dtype.kind == "f" else 0.0
    allowed = REGULAR * abs(mean) + 4 * precision * float(np.abs(values).max())
    if mean <= 0 or np.abs(steps - mean).max() > allowed:
        _refuse_irregular(name, steps)
    exact = noted is not None and math.isclose(noted, mean, rel_tol=NOTED)
    return noted if exact and noted else mean, float(values[0])


def _refuse_irregular(name: str, steps: npt.NDArray[Any]) -> None:
    other = int(np.abs(steps - steps[0]).argmax())
    raise InvalidInput(
        f"coordinate {name} is not regular: it steps by {steps[0]:g} from {name}[0] to {name}[1]"
        f" but by {steps[other]:g} from {name}[{other}] to {name}[{other + 1}]; resample it,"
        f" x.interp({name}=…), or drop it, x.drop_vars({name!r})"
    )


def _orientation(attrs: Mapping[Any, Any]) -> str | None:
    """Return the orientation stored by `to_xarray`; other software's attribute is ignored."""
    try:
        return Meta(orientation=attrs.get("orientation")).orientation
    except (AttributeError, InvalidInput):
        return None


def _affine(attrs: Mapping[Any, Any], spacing: Vector, origin: Vector) -> Affine | None:
    """Return the affine of the voxels, from the stored affine of the coordinates."""
    noted = attrs.get("to_world")
    if noted is None:
        return None
    try:
        to_world = np.reshape(np.array(noted, float), (4, 4))
    except (TypeError, ValueError):
        raise InvalidInput(
            f'attrs["to_world"] must hold the 16 numbers that Volume.xarray sets, given {noted!r};'
            ' remove it: del x.attrs["to_world"]'
        ) from None
    return Meta(affine=to_world @ _index_to_coordinates(spacing, origin)).affine


def _index_to_coordinates(spacing: Vector, origin: Vector) -> npt.NDArray[Any]:
    """Return the 4 x 4 float64 matrix from voxel (x, y, z) to coordinates (x, y, z)."""
    matrix = np.diag([*spacing[::-1], 1.0])
    matrix[:3, 3] = origin[::-1]
    return matrix
