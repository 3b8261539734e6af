"""The formats of other software that are written: by their names, and how each is filled."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.dicom.segmentation_file import segmentation_pieces, series_of
from volflow.store.formats.hdf5.hdf5_file import import_h5py
from volflow.store.formats.hdf5.hdf5_written import hdf5_dtype, write_hdf5
from volflow.store.formats.itk.metaimage import metaimage_bytes
from volflow.store.formats.itk.nrrd import nrrd_bytes
from volflow.store.formats.nifti_header import header_bytes, stored_dtype
from volflow.store.formats.tiff.tiff_written import (
    refuse_tiff,
    tiff_dtype,
    write_ome_tiff,
    write_tiff,
)
from volflow.store.meta import VolumeSpec
from volflow.store.slabs import Array, Source

__all__ = [
    "WRITERS",
    "FileWriter",
    "gzipped",
    "is_foreign",
    "planes",
    "refuse_unwritable",
    "writer_of",
]

Dtype = np.dtype[Any]


@dataclass(frozen=True)
class FileWriter:
    """A format of other software, as it is written.

    Parameters
    ----------
    name
        As people call it, for messages.
    suffixes
        Of its files, in lower case.
    dtype
        The dtype in which it stores a dtype without loss.
    pieces
        Returns the bytes of the file one after the other, given the volume and how many planes may
        be held; refuses before the first what the format cannot hold.
    write
        Instead of that, where a file is not written from front to back: fills one.
    placed
        Whether other software puts a file of it into the body, also where it says no place.
    interleaves
        Whether the channels of a voxel lie side by side, so that all of a plane are held.
    refuse
        Refuses a volume that the format cannot hold, before there is one, given its spec and name.
    """

    name: str
    suffixes: tuple[str, ...]
    dtype: Callable[[Dtype], Dtype]
    pieces: Callable[[Source, int], Iterable[Any]] | None = None
    write: Callable[[Source, int, IO[bytes]], None] | None = None
    placed: bool = False
    interleaves: bool = False
    refuse: Callable[[VolumeSpec, str], Any] | None = None


def planes(volume: Source, depth: int, dtype: Dtype) -> Iterator[Any]:
    r"""Yield the bytes of each plane of a volume, in C order, ``depth`` of which are held.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> ramp = open_source(np.arange(8, dtype="uint8").reshape(2, 2, 2))
    >>> [bytes(plane) for plane in planes(ramp, 2, ramp.dtype)]
    [b'\x00\x01\x02\x03', b'\x04\x05\x06\x07']
    """
    for _, slab in volume.slabs(depth):
        for plane in slab.reshape(-1, *slab.shape[-2:]):
            yield _bytes_of(plane, dtype)
        del slab, plane  # before the next are read


def interleaved(volume: Source, depth: int, dtype: Dtype) -> Iterator[Any]:
    r"""Yield the bytes of a volume with the channels of each voxel side by side.

    ``depth`` planes of all channels are held.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> two = open_source(np.arange(8, dtype="uint8").reshape(2, 1, 2, 2))
    >>> b"".join(interleaved(two, 1, two.dtype))
    b'\x00\x04\x01\x05\x02\x06\x03\x07'
    """
    if volume.ndim == 3:
        yield from planes(volume, depth, dtype)
        return
    if volume.sequential:
        raise InvalidInput(
            f"{volume.path} is compressed as a whole, so its channels cannot be read side by side;"
            " convert it to OME-Zarr first (vf.convert, volflow convert)"
        )
    size_z = volume.shape[1]
    for z in range(0, size_z, depth):
        stop = (volume.shape[0], min(z + depth, size_z), *volume.shape[2:])
        for plane in np.moveaxis(volume.read(Roi((0, z, 0, 0), stop)), 0, -1):
            yield _bytes_of(plane, dtype)
        del plane  # before the next are read


def _bytes_of(plane: Array, dtype: Dtype) -> bytes:
    """Return a copy of a plane as bytes: whoever writes them does not hold all of its slab."""
    return np.asarray(plane, dtype).tobytes()


def gzipped(pieces: Iterable[Any]) -> Iterator[bytes]:
    """Yield the bytes of a gzip file; the same voxels give the same bytes, at any time.

    Examples
    --------
    >>> gzip.decompress(b"".join(gzipped([b"ab", b"c"])))
    b'abc'
    """
    taken = BytesIO()
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=taken, mtime=0) as packed:
        for piece in pieces:
            packed.write(piece)
            yield _emptied(taken)
    yield _emptied(taken)


def _emptied(taken: BytesIO) -> bytes:
    data = taken.getvalue()
    taken.seek(0)
    taken.truncate()
    return data


def _npy_pieces(volume: Source, depth: int) -> Iterator[Any]:
    file = BytesIO()
    descr = np.lib.format.dtype_to_descr(volume.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": volume.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return _after(file.getvalue(), planes(volume, depth, volume.dtype))


def _nifti_pieces(volume: Source, depth: int) -> Iterator[Any]:
    dtype = stored_dtype(volume.dtype)
    head = header_bytes(volume.meta, volume.shape, dtype)
    return _after(head, planes(volume, depth, dtype))


def _nrrd_pieces(volume: Source, depth: int) -> Iterator[Any]:
    dtype = stored_dtype(volume.dtype)
    head = nrrd_bytes(volume.meta, volume.shape, dtype)
    return _after(head, gzipped(planes(volume, depth, dtype)))


def _metaimage_pieces(volume: Source, depth: int) -> Iterator[Any]:
    dtype = stored_dtype(volume.dtype)
    head = metaimage_bytes(volume.meta, volume.shape, dtype)
    return _after(head, interleaved(volume, depth, dtype))


def _after(head: bytes, rest: Iterator[Any]) -> Iterator[Any]:
    yield head
    yield from rest


def as_it_is(dtype: Dtype) -> Dtype:
    """Return the dtype in which NumPy's own files store a dtype."""
    return dtype


WRITERS = (
    FileWriter("NIfTI", (".nii",), stored_dtype, _nifti_pieces, placed=True),
    FileWriter(
        "NIfTI",
        (".nii.gz",),
        stored_dtype,
        lambda *given: gzipped(_nifti_pieces(*given)),
        placed=True,
    ),
    FileWriter(
        "OME-TIFF",
        (".ome.tif", ".ome.tiff"),
        tiff_dtype,
        write=write_ome_tiff,
        refuse=refuse_tiff,
    ),
    FileWriter("TIFF", (".tif", ".tiff"), tiff_dtype, write=write_tiff, refuse=refuse_tiff),
    FileWriter(
        "HDF5",
        (".h5", ".hdf5"),
        hdf5_dtype,
        write=write_hdf5,
        refuse=lambda *_: import_h5py(),
    ),
    FileWriter("NumPy", (".npy",), as_it_is, _npy_pieces),
    FileWriter("NRRD", (".nrrd",), stored_dtype, _nrrd_pieces, placed=True),
    FileWriter(
        "MetaImage", (".mha",), stored_dtype, _metaimage_pieces, placed=True, interleaves=True
    ),
    FileWriter("DICOM segmentation", (".dcm",), as_it_is, segmentation_pieces, refuse=series_of),
)


def writer_of(path: str | os.PathLike[str]) -> FileWriter | None:
    """Return what writes a file of this name; None if nothing does.

    Examples
    --------
    >>> found = writer_of("seg.NII.gz")
    >>> found.suffixes if found else ()
    ('.nii.gz',)
    """
    name = Path(os.fspath(path)).name.lower()
    return next((one for one in WRITERS if name.endswith(one.suffixes)), None)


def refuse_unwritable(spec: VolumeSpec, path: Path) -> None:
    """Refuse a volume that is to be computed for a file whose format cannot hold it.

    Raises
    ------
    InvalidInput
        With what the format holds.
    """
    writer = writer_of(path)
    if writer is not None and writer.refuse is not None:
        writer.refuse(spec, path.name)


def refuse_levels(path: Any) -> None:
    """Refuse a file where coarser levels are asked for."""
    if is_foreign(path):
        raise InvalidInput(
            f"levels are arrays of an OME-Zarr volume, which {Path(path).name} cannot hold; use an"
            ' output like "out.zarr", or leave levels out'
        )


def is_foreign(path: Any) -> bool:
    """Return True if something is the name of a file in a format that `export` writes.

    Examples
    --------
    >>> is_foreign("seg.NII.gz"), is_foreign("seg.zarr")
    (True, False)
    """
    return isinstance(path, str | os.PathLike) and writer_of(path) is not None
