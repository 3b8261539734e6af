"""`VolumeLike`: whatever a user hands over as a volume, opened as a source."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import zarr

from volflow.errors import InvalidInput
from volflow.store.formats.npy import volume_shape
from volflow.store.formats.sources import ArraySource, open_source
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Array, Source
from volflow.store.volume import Volume
from volflow.store.xarrays import from_xarray
from volflow.volumes.arrays.computed import (
    DaskSource,
    is_dask_array,
    refuse_masked,
    refuse_unknown_sizes,
)
from volflow.volumes.arrays.leaves import Mapped, identity_of, mapped
from volflow.volumes.arrays.pieces import settled

if TYPE_CHECKING:
    import dask.array as da
    import torch
    import xarray

__all__ = [
    "VolumeLike",
    "as_array",
    "lazy_array",
    "open_input",
    "refuse_sequential",
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

Path or URL of OME-Zarr or plain Zarr, path of a file or folder of any other format that is read,
`Volume`, ``zarr.Array``, NumPy array or memmap, Dask array, ``xarray.DataArray``, torch tensor;
``zyx`` or ``czyx``, a DataArray in any order of its dimensions.
"""


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
    >>> source[:1, :1, :3]
    array([[[2, 2, 2]]], dtype=int16)
    """
    if isinstance(x, Source):
        return open_source(x)
    array, meta = as_array(x)
    if is_dask_array(array):
        return _open_dask(array, meta)
    if isinstance(array, Mapping) and array:
        names = [str(name) for name in array]
        raise InvalidInput(
            f"a dict of volumes by name was given ({', '.join(names)}), as map_model and predict"
            " return the outputs of a network with several; take one of it, such as"
            f' scores["{names[0]}"]'
        )
    if not isinstance(array, str | os.PathLike | Volume | zarr.Array | zarr.Group | np.ndarray):
        raise InvalidInput(
            "a volume is a path, a URL, a Volume, a zarr.Array, a NumPy or Dask array, an"
            f" xarray.DataArray or a torch tensor, given {type(x).__name__}"
        )
    source = open_source(array)
    return source if meta is None else replace(source, meta=meta)  # type: ignore[type-var]


def as_array(x: Any) -> tuple[Any, Meta | None]:
    """A DataArray or tensor as a NumPy or Dask array, with the grid that it states; else x itself.

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
    if isinstance(source, Volume):
        array = source.dask()
        return array
    read: Mapped | Source = source
    chunks = source.piece
    if isinstance(source, ArraySource):
        part = mapped(source.array)
        if part is None:
            array = da.asarray(source.array)
            return array
        # What maps a file is not read: it travels as which part of which file it is.
        read, identity = part, identity_of(part)
        chunks = (*chunks[:-3], *(2 * n for n in chunks[-3:]))
    else:
        refuse_sequential(source)
        identity = source.identity()
    meta = np.empty((0,) * read.ndim, read.dtype)
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
        path = Path(source.path or "scan.nii.gz")
        name = path.name.lower().removesuffix(".gz").removesuffix(".nii")
        there = shlex.join([str(path), str(path.with_name(f"{name}.zarr"))])
        raise InvalidInput(
            f"{path} is compressed as a whole and cannot be read by parts; convert it first:"
            f" volflow convert {'--labels ' if labels else ''}{there}"
        )


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
    refuse_unknown_sizes(x)
    stored = stored_in(x)
    if stored is not None and x.ndim in (3, 4) and not isinstance(stored, Mapped):
        source = open_source(stored)
        return source if meta is None else _placed(source, meta)
    _, axes = volume_shape(x.shape, "the array")
    dtype = check_dtype(x.dtype, "the array").newbyteorder("=")
    bare = Meta(axes, source=SourceInfo("dask", str(dtype)))
    return DaskSource(settled(x[None] if x.ndim == 2 else x), bare if meta is None else meta)


def _placed(source: Source, meta: Meta) -> Source:
    """A stored volume on the grid of a DataArray over it; unchanged where the two agree."""
    assert isinstance(source, Volume)
    own = source.meta
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
    return replace(source, meta=moved)
