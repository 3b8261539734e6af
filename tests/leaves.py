"""Dask arrays over every kind of leaf, for tests of how leaves are identified and travel."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import h5py
import nibabel as nib
import numpy as np
import zarr

KINDS = ("numpy", "memmap", "mapped", "zarr", "volume", "hdf5", "nibabel")
FILES = {"mapped": "a.npy", "zarr": "a.zarr", "hdf5": "a.h5", "nibabel": "a.nii"}


def save(folder: Path, scan: np.ndarray) -> None:
    """Write a scan in every format."""
    np.save(folder / "a.npy", scan)
    array = zarr.create_array(
        folder / "a.zarr", shape=scan.shape, chunks=(32,) * 3, dtype=scan.dtype, overwrite=True
    )
    array[:] = scan
    with h5py.File(folder / "a.h5", "w") as file:
        file["scan"] = scan
    nib.save(nib.Nifti1Image(scan, np.eye(4)), folder / "a.nii")


def leaf(kind: str, folder: Path):
    """What a user opens: the array in memory, or one that lies in a file."""
    if kind == "numpy":
        return np.load(folder / "a.npy")
    if kind in ("memmap", "mapped"):
        return np.load(folder / "a.npy", mmap_mode="r")
    if kind in ("zarr", "volume"):
        return zarr.open_array(folder / "a.zarr", mode="r")
    if kind == "hdf5":
        return h5py.File(folder / "a.h5")["scan"]
    return nib.load(folder / "a.nii").dataobj


def lazy(kind: str, folder: Path, chunks: int = 32) -> da.Array:
    """A Dask array over it, as people make one; "mapped" through a function of the mapping."""
    import volflow as vf

    source = leaf(kind, folder)
    if kind == "mapped":
        return da.map_blocks(
            box_of, da.zeros(source.shape, chunks=chunks, dtype="u1"), whole=source,
            dtype=source.dtype, meta=np.empty((0, 0, 0), source.dtype),
        )  # fmt: skip
    if kind == "volume":
        return vf.open(source).dask((chunks,) * 3)
    if kind == "zarr" and not da._array_expr_enabled():
        return da.from_zarr(str(folder / "a.zarr"), chunks=chunks)
    return da.from_array(source, chunks=chunks)


def box_of(block: np.ndarray, whole: np.ndarray, block_info=None) -> np.ndarray:
    """The box of an array at a block's place."""
    place = block_info[0]["array-location"]
    return whole[tuple(slice(*axis) for axis in place)]


def same(block: np.ndarray) -> np.ndarray:
    """The block itself."""
    return block


def looked_up(block: np.ndarray, table: np.ndarray) -> np.ndarray:
    """What a table holds for each voxel."""
    return table[block]
