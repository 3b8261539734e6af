"""What the graphs of Dask arrays read: how each kind is identified, and how it travels.

Dask names a Zarr array by its path alone, and gives an HDF5 dataset another name each time. Here
a file is what its size, its time and its beginning say, a Zarr store what its objects are, and
voxels in memory are their bytes. A file travels as how to open it and which part of it is meant.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from dask.utils import SerializableLock
from zarr.storage import MemoryStore, ZipStore

from volflow.store.opening import local_folder, stored_objects
from volflow.store.slabs import file_identity
from volflow.store.volume import Volume

__all__ = [
    "Mapped",
    "called",
    "hash_of",
    "identity_of",
    "is_leaf",
    "is_lock",
    "is_voxels",
    "mapped",
    "reopening",
]

_LOCKS = (SerializableLock, type(threading.Lock()), type(threading.RLock()))


@dataclass(frozen=True)
class Mapped:
    """A part of a file that NumPy maps into memory, as which part of which file it is.

    It is mapped for each read: a mapping that is kept open counts its pages as ours.

    Parameters
    ----------
    path, offset, strides
        Where its first voxel lies, in bytes.
    shape, dtype
        As the array's.
    """

    path: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is worth reading at once; a file has no chunks of its own."""
        return (*(1 for _ in self.shape[:-3]), *(min(n, 64) for n in self.shape[-3:]))

    @property
    def shards(self) -> None:
        """A file has none."""

    def open(self) -> npt.NDArray[Any]:
        """The array, mapped."""
        whole = np.memmap(self.path, np.uint8, "r")
        return np.ndarray(self.shape, self.dtype, whole, self.offset, self.strides)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        return np.array(self.open()[index])


def mapped(x: Any) -> Mapped | None:
    """The part of a file that an array or a view of one maps; None where it lies in memory."""
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray) or not x.size:
        return None
    root: Any = x
    while isinstance(root, np.ndarray) and not isinstance(root, np.memmap):
        root = root.base
    buffer = getattr(root, "_mmap", None)
    # What mode "c" changes reaches no file, and Dask copies mappings into memory as memmaps.
    if not isinstance(buffer, mmap.mmap) or root.filename is None or root.mode == "c":
        return None
    path = Path(root.filename)
    first = root.offset - root.offset % mmap.ALLOCATIONGRANULARITY
    offset = first + _address(x) - _address(np.frombuffer(buffer, np.uint8))
    if not path.is_file() or path.stat().st_size < first + len(buffer):
        return None  # deleted or cut since, and no more than memory now
    return Mapped(str(path.absolute()), offset, x.shape, x.strides, x.dtype)


def is_lock(x: Any) -> bool:
    """Whether it only keeps others waiting, which changes no voxel."""
    return isinstance(x, _LOCKS)


def is_leaf(x: Any) -> bool:
    """Whether it is of a kind that voxels are read from and that can be identified."""
    return is_voxels(x) or (isinstance(x, np.ndarray) and not x.dtype.hasobject)


def is_voxels(x: Any) -> bool:
    """Whether a leaf holds voxels for certain; an array in memory may be a table of file names."""
    known = isinstance(x, Volume | zarr.Array | Mapped)
    return known or _is_hdf5(x) or _is_proxy(x) or mapped(x) is not None


def identity_of(x: Any) -> str:
    """A text that changes when the voxels of a leaf do; empty where there is none."""
    if isinstance(x, np.ndarray) and (part := mapped(x)) is not None:
        return identity_of(part)
    if isinstance(x, np.ndarray):
        return _of_bytes(x)
    try:
        if isinstance(x, Volume):
            voxels = _of_zarr(x.array)
            return voxels and hash_of(voxels, x.timepoint, x.stored_axes)
        if isinstance(x, zarr.Array):
            return _of_zarr(x)
        if isinstance(x, Mapped):
            return hash_of(file_identity(x.path), x)
        if _is_hdf5(x):
            return hash_of(file_identity(x.file.filename), x.name, x.shape, x.dtype)
        spec = (x.offset, x.shape, x.dtype, x.slope, x.inter, x.order)
        return hash_of(file_identity(x.file_like), *spec)
    except (OSError, TypeError, ValueError):  # not of a file on this machine
        return ""


def called(x: Any) -> str:
    """What a leaf is called in a message."""
    array = x.array if isinstance(x, Volume) else x
    if isinstance(array, zarr.Array):
        return f"a Zarr array in a {type(array.store).__name__}"
    return f"voxels of type {type(x).__name__}"


def reopening(x: Any) -> tuple[Any, ...] | None:
    """How a process that has not opened a leaf opens it: a function and its arguments.

    None for what pickles in that way by itself, as Zarr arrays and the proxies of nibabel do.
    """
    if isinstance(x, np.ndarray) and (part := mapped(x)) is not None:
        return Mapped.open, (part,)
    if _is_hdf5(x):
        return _open_hdf5, (str(Path(x.file.filename).absolute()), x.name)
    return None


def _open_hdf5(path: str, name: str) -> Any:
    import h5py  # it was there where the dataset came from

    return h5py.File(path, "r")[name]


def _is_hdf5(x: Any) -> bool:
    h5py = sys.modules.get("h5py")
    return h5py is not None and isinstance(x, h5py.Dataset)


def _is_proxy(x: Any) -> bool:
    nibabel = sys.modules.get("nibabel.arrayproxy")
    return nibabel is not None and isinstance(x, nibabel.ArrayProxy)


def _of_zarr(array: zarr.Array[Any]) -> str:
    store = array.store
    if isinstance(store, MemoryStore):
        return _of_bytes(array)
    if isinstance(store, ZipStore):
        return hash_of(file_identity(str(store.path)), array.path)
    objects = stored_objects(array)
    if objects is None:
        return ""
    place = () if local_folder(array) is not None else (str(array.store_path),)
    return hash_of(str(array.metadata), *place, *objects)


def _of_bytes(x: Any) -> str:
    dtype = np.dtype(x.dtype)
    digest = hashlib.sha256(f"{dtype!r} {x.shape}\n".encode())
    # A few MiB at a time, as what is not contiguous is copied.
    rows = max(1, 2**24 // max(1, dtype.itemsize * math.prod(x.shape[1:])))
    for low in range(0, x.shape[0] if x.shape else 1, rows):
        voxels = x[low : low + rows] if x.shape else x[()]
        digest.update(np.ascontiguousarray(voxels).view("u1").data)
        if isinstance(voxels, np.ma.MaskedArray):
            digest.update(np.ascontiguousarray(np.ma.getmaskarray(voxels)).data)
    return digest.hexdigest()


def _address(x: npt.NDArray[Any]) -> int:
    return int(x.__array_interface__["data"][0])


def hash_of(*parts: Any) -> str:
    """A hash of what parts are as text."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()
