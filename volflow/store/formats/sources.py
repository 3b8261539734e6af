"""Open arrays and files as sources of volumes."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput, first_line
from volflow.geometry.roi import Roi
from volflow.store.formats.nifti import open_nifti
from volflow.store.journal.complete import open_complete
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta, SourceInfo
from volflow.store.opening import is_url
from volflow.store.slabs import Array, Source, file_identity
from volflow.store.volume import Volume

__all__ = ["ArraySource", "NpySource", "open_source", "stem", "volume_shape"]

MOST_HEADER = 2**16  # bytes of a .npy header
_SUFFIX = re.compile(r"(\.ome)?\.zarr$|\.nii(\.gz)?$|\.npy$", re.IGNORECASE)
FORMATS = ".npy, .nii, .nii.gz, OME-Zarr and Zarr v2 or v3"


@dataclass(frozen=True, eq=False, repr=False)
class ArraySource(Source):
    """An array in memory."""

    array: Array
    meta: Meta
    path = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, ``zyx`` or ``czyx``."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array, in the machine's byte order."""
        return self.array.dtype.newbyteorder("=")

    def identity(self) -> str:
        """Return a hash of the values."""
        digest = hashlib.sha256(f"{self.dtype} {self.shape}\n".encode())
        for _, voxels in self.slabs(16):
            digest.update(np.ascontiguousarray(voxels).data)
        return digest.hexdigest()

    def read(self, roi: Roi) -> Array:
        """Return a copy of the voxels of a box."""
        return self.array[roi.slices()].astype(self.dtype)


@dataclass(frozen=True, repr=False)
class NpySource(Source):
    """A ``.npy`` file, memory-mapped for each read."""

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
        voxels = _map_npy(self.path)
        voxels = voxels if voxels.ndim > 2 else voxels[None]
        return voxels[roi.slices()].astype(self.dtype)


def open_source(x: Any) -> Source:
    """Open anything that a volume can be made from; no voxel is read.

    Parameters
    ----------
    x
        Path of a ``.npy``, ``.nii`` or ``.nii.gz`` file; anything that `open_volume` opens; a
        NumPy array, ``zyx`` or ``czyx`` (``yx`` is one slice); or a source.

    Raises
    ------
    InvalidInput
        If it cannot be read; one line with the reason.

    Examples
    --------
    >>> source = open_source(np.zeros((30, 40, 50), "uint8"))
    >>> source.shape, [roi.start for roi, voxels in source.slabs(16)]
    ((30, 40, 50), [(0, 0, 0), (16, 0, 0)])
    """
    if isinstance(x, Source) and not isinstance(x, Volume):  # opened before
        return x
    if isinstance(x, np.ndarray):
        shape, axes = volume_shape(x.shape, "the array")
        dtype = check_dtype(x.dtype, "the array")
        meta = Meta(axes, source=SourceInfo("numpy", str(dtype.newbyteorder("="))))
        return ArraySource(x.reshape(shape), meta)
    if not isinstance(x, str | os.PathLike):
        return open_complete(x)
    if is_url(text := os.fspath(x)):
        if text.lower().endswith((".nii", ".nii.gz", ".npy")):
            raise InvalidInput(
                f"{text} is a file behind a URL, where only Zarr can be read; copy it to a disk"
                " first"
            )
        return open_complete(text)
    path = Path(os.fspath(x).removeprefix("file://")).expanduser().absolute()
    if not path.exists():
        raise InvalidInput(f"{path} does not exist; check the path")
    if path.is_dir():
        return open_complete(path)
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return open_nifti(str(path))
    if name.endswith(".npy"):
        return _open_npy(str(path))
    raise InvalidInput(f"{path.name} is of a format that cannot be read; {FORMATS} can")


def _open_npy(path: str) -> NpySource:
    voxels = _map_npy(path)
    shape, axes = volume_shape(voxels.shape, path)
    dtype = check_dtype(voxels.dtype, path).newbyteorder("=")
    return NpySource(path, Meta(axes, source=SourceInfo("npy", str(dtype))), shape, dtype)


def _map_npy(path: str) -> Array:
    try:
        with Path(path).open("rb") as file:
            version = np.lib.format.read_magic(file)
            # NumPy reads the whole header before it refuses a long one.
            if version != (1, 0) and int.from_bytes(file.read(4), "little") > MOST_HEADER:
                raise ValueError(f"its header has more than {MOST_HEADER} bytes")
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
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


def stem(name: str) -> str:
    """Return a file's name without the suffix of its format.

    Examples
    --------
    >>> stem("p01.nii.gz"), stem("p02.ome.zarr"), stem("p03.v2")
    ('p01', 'p02', 'p03.v2')
    """
    return _SUFFIX.sub("", name)
