"""HDF5 files to write: one dataset, with what others and we read of its grid."""

from __future__ import annotations

import json
from typing import IO, Any

import numpy as np

from volflow.geometry.units import metres
from volflow.store.formats.hdf5.hdf5_file import import_h5py
from volflow.store.formats.hdf5.hdf5_grid import OWN, own_note
from volflow.store.meta import Meta
from volflow.store.slabs import Source

__all__ = ["hdf5_dtype", "write_hdf5"]

NAME = "data"
CHUNK = 64  # voxels per axis
TYPES = {"c": 1, "z": 2, "y": 2, "x": 2}  # of axes, as vigra numbers them: channels, space


def hdf5_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the little-endian dtype in which HDF5 stores these voxels without loss.

    Examples
    --------
    >>> hdf5_dtype(np.dtype("bool")).name, hdf5_dtype(np.dtype("float16")).name
    ('uint8', 'float16')
    """
    return (np.dtype("uint8") if dtype.kind == "b" else dtype).newbyteorder("<")


def write_hdf5(volume: Source, depth: int, file: IO[bytes]) -> None:
    """Write the dataset ``data``, packed by gzip in chunks, ``depth`` planes at a time.

    Its attributes say the voxel size as ``element_size_um`` (Fiji, ilastik), the axes as
    ``axistags`` (ilastik), and all that a volume knows, as JSON.
    """
    h5py = import_h5py()
    dtype, meta = hdf5_dtype(volume.dtype), volume.meta
    # Chunks are filled by one slab each: else they would be unpacked and packed again.
    deep = min(CHUNK, depth, volume.shape[-3])
    chunk = (*(1 for _ in volume.shape[:-3]), deep, *(min(CHUNK, n) for n in volume.shape[-2:]))
    # The file is locked already, by the process that writes it.
    with h5py.File(file.name, "w", locking=False) as out:
        data = out.create_dataset(
            NAME,
            volume.shape,
            dtype,
            chunks=chunk,
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        data.attrs["axistags"] = _axistags(meta)
        if (length := metres(meta.unit)) is not None:
            data.attrs["element_size_um"] = [size * length * 1e6 for size in meta.spacing]
        data.attrs[OWN] = own_note(meta)
        for roi, voxels in volume.slabs(depth // deep * deep):
            data[roi.slices()] = voxels
            del voxels  # before the next are read


def _axistags(meta: Meta) -> str:
    """Return the names of the axes as vigra writes them."""
    tags = [
        {"key": axis, "typeFlags": TYPES[axis], "resolution": 0, "description": ""}
        for axis in meta.axes
    ]
    return json.dumps({"axes": tags})
