"""`VolumeLike`: whatever a user hands over as a volume, opened as a source."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.sources import ArraySource, Source, VolumeSource, open_source
from volflow.store.indexing import to_box
from volflow.store.layout import default_layout
from volflow.store.meta import Meta, SourceInfo, VolumeSpec
from volflow.store.slabs import Array, check_dtype
from volflow.store.volume import Volume
from volflow.store.xarrays import from_xarray
from volflow.volumes.arrays.computed import DaskSource, is_dask_array, refuse_masked
from volflow.volumes.arrays.leaves import Mapped, identity_of, mapped
from volflow.volumes.arrays.pieces import settled

if TYPE_CHECKING:
    import dask.array as da
    import torch
    import xarray

__all__ = [
    "Sliced",
    "VolumeLike",
    "as_array",
    "chunk_of",
    "lazy_array",
    "open_input",
    "refuse_sequential",
    "spec_of",
    "stored_in",
]

VolumeLike = Union[
    str,
    os.PathLike[str],
    Volume,
    "zarr.Array[Any]",
    Array,
    "da.Array",
    "xarray.DataArray",
    "torch.Tensor",
]
"""A volume as every function takes it.

Path or URL (OME-Zarr, plain Zarr; ``.npy``, ``.nii``, ``.nii.gz``), `Volume`, ``zarr.Array``, NumPy
array or memmap, Dask array, ``xarray.DataArray``, torch tensor; ``zyx`` or ``czyx``, a DataArray in
any order of its dimensions.
"""


@dataclass(frozen=True, eq=False)
class Sliced:
    """A source that is indexed as arrays are, so that Dask reads it piece by piece."""

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """As the source's."""
        return tuple(self.source.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As the source's."""
        return np.dtype(self.source.dtype)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Pieces that are read without waste."""
        return (1,) * (self.ndim - 3) + chunk_of(self.source)

    shards = None
    path = None

    @property
    def meta(self) -> Meta:
        """As the source's."""
        return self.source.meta

    def identity(self) -> str:
        """As the source's."""
        return self.source.identity()

    def read(self, roi: Roi) -> Array:
        """The voxels of a box."""
        return self.source.read(roi)

    def __repr__(self) -> str:
        kind = type(self.source).__name__.removesuffix("Source")
        return f"{kind}(shape={self.shape}, dtype={self.dtype})"

    def __dask_tokenize__(self) -> Any:
        return self.identity()

    def __getitem__(self, key: Any) -> Array:
        """Read with integers, slices and ``...``, as from a NumPy array."""
        roi, inner = to_box(key, self.shape)
        return np.asarray(self.source.read(roi)[inner])


def open_input(x: VolumeLike | Source) -> Source:
    """Open whatever is a volume to a user; no voxel is read.

    Parameters
    ----------
    x
        A `VolumeLike`. A Dask array that merely reads a Zarr array counts as that volume.

    Raises
    ------
    InvalidInput
        Where it cannot be read, or holds a mask; one line says why.

    Examples
    --------
    >>> import dask.array as da
    >>> source = open_input(da.ones((4, 30, 40), dtype="int16") * 2)
    >>> source.read(Roi((0, 0, 0), (1, 1, 3)))
    array([[[2, 2, 2]]], dtype=int16)
    """
    if hasattr(x, "slabs"):
        return open_source(x)
    array, meta = as_array(x)
    if is_dask_array(array):
        return _open_dask(array, meta)
    if not isinstance(array, str | os.PathLike | Volume | zarr.Array | zarr.Group | np.ndarray):
        raise InvalidInput(
            "a volume is a path, a URL, a Volume, a zarr.Array, a NumPy or Dask array, an"
            f" xarray.DataArray or a torch tensor, given {type(x).__name__}"
        )
    source = open_source(array)
    return source if meta is None else replace(source, meta=meta)  # type: ignore[type-var]


def spec_of(source: Source) -> VolumeSpec:
    """The spec of a stored volume, or the one that a source gets when it is converted.

    Examples
    --------
    >>> spec_of(open_input(np.zeros((40, 50, 60), "uint8"))).chunk
    (64, 64, 64)
    """
    if isinstance(source, VolumeSource):
        return source.volume.spec
    shape, dtype, meta = tuple(source.shape), np.dtype(source.dtype), source.meta
    return VolumeSpec(shape, dtype, *default_layout(shape, meta.spacing, dtype), meta)


def as_array(x: Any) -> tuple[Any, Meta | None]:
    """A DataArray or tensor as a NumPy or Dask array, with what it says of its grid; else x itself.

    Raises
    ------
    InvalidInput
        Where it holds a mask, or a tensor cannot become an array.

    Examples
    --------
    >>> as_array(np.ma.masked_less(np.arange(3), 1))
    Traceback (most recent call last):
    volflow.errors.InvalidInput: the array is masked, and a volume has no mask; say what masked
    voxels hold: array.filled(value)
    """
    meta = None
    xarray, torch = sys.modules.get("xarray"), sys.modules.get("torch")
    if xarray is not None and isinstance(x, xarray.Dataset):
        names = ", ".join(map(str, x.data_vars))
        raise InvalidInput(f"a volume is one DataArray, given a Dataset of {names}; choose one")
    if xarray is not None and isinstance(x, xarray.DataArray):
        x, meta = from_xarray(x)
    if torch is not None and isinstance(x, torch.Tensor):
        try:
            x = x.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:
            raise InvalidInput(
                f"a tensor of {x.dtype}, {x.layout} cannot become a NumPy array; give x.float(),"
                " or x.to_dense()"
            ) from error
    refuse_masked(x)
    return x, meta


def lazy_array(source: Source) -> da.Array:
    """The voxels of a source as a Dask array.

    Raises
    ------
    InvalidInput
        Where the source can only be read from front to back.
    """
    if isinstance(source, DaskSource):
        return source.array
    import dask.array as da

    array: da.Array
    if isinstance(source, VolumeSource):
        array = source.volume.dask()
        return array
    read: Mapped | Sliced
    if isinstance(source, ArraySource):
        part = mapped(source.array)
        if part is None:
            array = da.asarray(source.array)
            return array
        # What maps a file is not read: it travels as which part of which file it is.
        read, identity = part, identity_of(part)
        sizes = tuple(2 * n for n in read.chunks[-3:])
    else:
        refuse_sequential(source)
        read, identity = Sliced(source), source.identity()
        sizes = read.chunks[-3:]
    meta = np.empty((0,) * read.ndim, read.dtype)
    chunks = (*read.chunks[:-3], *sizes)
    array = da.from_array(read, chunks=chunks, name=f"source-{identity}", meta=meta)
    return array


def refuse_sequential(source: Source, *, labels: bool = False) -> None:
    """Refuse a file of which no part can be read alone.

    Parameters
    ----------
    source
        To be read by parts.
    labels
        Whether it is to hold classes, as its conversion then has to know.

    Raises
    ------
    InvalidInput
        Naming the remedy.
    """
    if source.sequential:
        path = Path(getattr(source, "path", "scan.nii.gz"))
        name = path.name.lower().removesuffix(".gz").removesuffix(".nii")
        there = shlex.join([str(path), str(path.with_name(f"{name}.zarr"))])
        raise InvalidInput(
            f"{path} is compressed as a whole and cannot be read by parts; convert it first:"
            f" volflow convert {'--labels ' if labels else ''}{there}"
        )


def chunk_of(source: Source) -> tuple[int, int, int]:
    """Smallest piece that is read at once, along z, y, x."""
    sizes: Sequence[int]
    if isinstance(source, VolumeSource):
        sizes = source.volume.chunks
    elif isinstance(source, DaskSource):
        sizes = tuple(max(axis) for axis in source.array.chunks)
    else:
        sizes = tuple(min(64, n) for n in source.shape)
    z, y, x = sizes[-3:]
    return z, y, x


def stored_in(x: da.Array) -> Volume | zarr.Array[Any] | Mapped | None:
    """What a Dask array reads as it is; None where it computes anything."""
    from dask.array.core import getter, getter_nofancy

    source, get = _planned_source(x) if hasattr(x, "expr") else _layered_source(x)
    if get not in (None, getter, getter_nofancy):  # from_array(getitem=…)
        return None
    if not isinstance(source, Volume | zarr.Array | Mapped) or tuple(source.shape) != x.shape:
        return None
    return source


def _layered_source(x: da.Array) -> tuple[Any, Any]:
    """What an array reads and the function that does, where two layers are all there is."""
    layers: Any = getattr(x.dask, "layers", {})
    original = f"original-{x.name}"
    if set(layers) != {x.name, original}:
        return None, None
    source = dict(layers[original]).get(original)
    task = getattr(layers[x.name], "task", None)
    # Some versions of Dask wrap it.
    return getattr(source, "value", source), getattr(task, "func", None)


def _planned_source(x: Any) -> tuple[Any, Any]:
    """The same with Dask's query planning, where an array is an expression."""
    if type(x.expr).__name__ != "FromArray":
        return None, None
    return x.expr.array, x.expr.operand("getitem")


def _open_dask(x: da.Array, meta: Meta | None) -> Source:
    if any(math.isnan(n) for n in x.shape):
        raise InvalidInput(
            f"the array has unknown sizes, shape {x.shape}; call x.compute_chunk_sizes() first"
        )
    stored = stored_in(x)
    if stored is not None and x.ndim in (3, 4) and not isinstance(stored, Mapped):
        source = open_source(stored)
        return source if meta is None else _placed(source, meta)
    if x.ndim == 2:
        x = x[None]
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise InvalidInput(f"the array has shape {x.shape}; a volume is zyx or czyx and not empty")
    dtype = check_dtype(x.dtype, "the array").newbyteorder("=")
    bare = Meta(("c", "z", "y", "x")[-x.ndim :], source=SourceInfo("dask", str(dtype)))
    return DaskSource(settled(x), bare if meta is None else meta)


def _placed(source: Source, meta: Meta) -> Source:
    """A stored volume on the grid that a DataArray over it says; itself where that is its own."""
    assert isinstance(source, VolumeSource)
    volume = source.volume
    own = volume.meta
    same = np.allclose(
        (*meta.spacing, *meta.translation), (*own.spacing, *own.translation), rtol=1e-6, atol=0
    )
    named = meta.channels in ((), own.channels)
    if same and named and (meta.unit, meta.orientation) == (own.unit, own.orientation):
        return source
    moved = replace(
        own,
        spacing=meta.spacing,
        translation=meta.translation,
        unit=meta.unit,
        orientation=meta.orientation,
        affine=meta.affine,
        channels=meta.channels or own.channels,
    )
    return VolumeSource(replace(volume, meta=moved))
