"""``.npy`` files as sources."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput, first_line
from volflow.geometry.roi import Roi
from volflow.store.formats.raw import RawSource
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Array, Source, file_identity

__all__ = ["NpySource", "open_npy", "volume_shape"]

MOST_HEADER = 2**16  # bytes of a header


@dataclass(frozen=True, repr=False)
class NpySource(Source):
    """A ``.npy`` file in Fortran's order, memory-mapped for each read."""

    path: str
    meta: Meta
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def identity(self) -> str:
        """Return a hash that changes when the file does."""
        return file_identity(self.path)

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box, ``zyx`` or ``czyx``."""
        # Mapped for this read only: pages of an open mapping count as this process's memory.
        voxels: Array = _map_npy(self.path)
        voxels = voxels if voxels.ndim > 2 else voxels[None]
        return voxels[roi.slices()].astype(self.dtype)


def open_npy(path: str) -> Source:
    """Read the header of a ``.npy`` file.

    Raises
    ------
    InvalidInput
        If a volume cannot hold the array.
    Damaged
        If it is not an array or is cut short.
    """
    voxels = _map_npy(path)
    shape, axes = volume_shape(voxels.shape, path)
    dtype = check_dtype(voxels.dtype, path).newbyteorder("=")
    meta = Meta(axes, source=SourceInfo("npy", str(dtype)))
    if not voxels.flags.c_contiguous:
        return NpySource(path, meta, shape, dtype)
    begin = voxels.offset
    return RawSource(path=path, shape=shape, meta=meta, stored_dtype=voxels.dtype, begin=begin)


def _map_npy(path: str) -> np.memmap[Any, Any]:
    try:
        with Path(path).open("rb") as file:
            version = np.lib.format.read_magic(file)
            # NumPy reads the whole header before it refuses a long one.
            if version != (1, 0) and int.from_bytes(file.read(4), "little") > MOST_HEADER:
                raise ValueError(f"its header has more than {MOST_HEADER} bytes")
        mapped: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    except OSError:
        raise
    except Exception as error:  # parsing the header, a Python literal, may raise any error
        reason = first_line(error)
        raise Damaged(f"{path} is not a .npy array or is cut short ({reason})") from error


def volume_shape(shape: tuple[int, ...], name: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return shape and axes of an array as a volume; ``yx`` becomes one slice.

    Raises
    ------
    InvalidInput
        If it has another number of axes, or is empty.
    """
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise InvalidInput(f"{name} has shape {shape}; a volume is zyx or czyx and not empty")
    return shape, ("c", "z", "y", "x")[-len(shape) :]
