"""What a user hands over as a volume, opened as a source: a volume, a file, or an array."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.array.core import getter, getter_nofancy
from dask.highlevelgraph import MaterializedLayer
from distributed import Future

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Array, check_dtype, slab_rois
from volflow.store.sources import Source, open_source
from volflow.store.volume import Volume

__all__ = ["DaskSource", "open_input", "stored_in"]


@dataclass(frozen=True, eq=False)
class DaskSource:
    """An array that Dask computes, box by box; it pickles with its graph."""

    array: da.Array
    meta: Meta
    sequential: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As the array's."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """In the machine's byte order."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype.newbyteorder("=")

    def identity(self) -> str:
        """A hash of the name that Dask gives the array, which follows what it is made of."""
        return hashlib.sha256(f"{self.array.name} {self.dtype} {self.shape}".encode()).hexdigest()

    def read(self, roi: Roi) -> Array:
        """The voxels of a box, computed by threads of this process."""
        # A worker may read while its client is busy with this very task: never on the cluster.
        voxels = self.array[roi.slices()].compute(scheduler="threads")
        return np.asarray(voxels, self.dtype)

    def slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """All voxels in C order."""
        return ((roi, self.read(roi)) for roi in slab_rois(self.shape, depth))


def open_input(x: Any) -> Source:
    """Open anything that an array of a case can be; no voxel is read.

    Parameters
    ----------
    x
        Whatever `open_source` opens, or a Dask array, ``zyx`` or ``czyx``. One that merely reads
        a Zarr array counts as that volume.

    Raises
    ------
    InvalidInput
        Where it cannot be read; one line says why.

    Examples
    --------
    >>> source = open_input(da.ones((4, 30, 40), dtype="int16") * 2)
    >>> source.read(Roi((0, 0, 0), (1, 1, 3)))
    array([[[2, 2, 2]]], dtype=int16)
    """
    if not isinstance(x, da.Array):
        return x if hasattr(x, "slabs") else open_source(x)
    if any(math.isnan(n) for n in x.shape):
        raise InvalidInput(
            f"the array has unknown sizes, shape {x.shape}; call x.compute_chunk_sizes() first"
        )
    if _is_persisted(x):
        raise InvalidInput(
            "the array lies in the memory of a Dask cluster, which boxes of it cannot be computed"
            " from; give the array as it was before persist(), or store it first with vf.write"
        )
    stored = stored_in(x)
    if stored is not None and x.ndim in (3, 4):
        return open_source(stored)
    if x.ndim == 2:
        x = x[None]
    if x.ndim not in (3, 4) or 0 in x.shape:
        raise InvalidInput(f"the array has shape {x.shape}; a volume is zyx or czyx and not empty")
    dtype = check_dtype(x.dtype, "the array").newbyteorder("=")
    return DaskSource(
        x, Meta(("c", "z", "y", "x")[-x.ndim :], source=SourceInfo("dask", str(dtype)))
    )


def stored_in(x: da.Array) -> Volume | zarr.Array[Any] | None:
    """The Zarr array that a Dask array reads as it is; None where it computes anything."""
    layers: Any = getattr(x.dask, "layers", {})
    original = f"original-{x.name}"
    if set(layers) != {x.name, original}:
        return None
    source = dict(layers[original]).get(original)
    source = getattr(source, "value", source)  # wrapped by some versions of Dask
    task = getattr(layers[x.name], "task", None)
    if getattr(task, "func", getter) not in (getter, getter_nofancy):  # from_array(getitem=…)
        return None
    if not isinstance(source, Volume | zarr.Array) or tuple(source.shape) != x.shape:
        return None
    return source


def _is_persisted(x: da.Array) -> bool:
    """Whether results on a cluster are part of its graph."""
    layers: Any = getattr(x.dask, "layers", {})
    return any(
        isinstance(task, Future)
        for layer in layers.values()
        if isinstance(layer, MaterializedLayer)
        for task in layer.mapping.values()
    )
