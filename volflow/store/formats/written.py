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

from volflow.store.formats.nifti_header import header_bytes, stored_dtype
from volflow.store.formats.tiff.tiff_written import tiff_dtype, write_ome_tiff, write_tiff
from volflow.store.slabs import Source

__all__ = ["WRITERS", "FileWriter", "gzipped", "is_foreign", "planes", "writer_of"]

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
    """

    name: str
    suffixes: tuple[str, ...]
    dtype: Callable[[Dtype], Dtype]
    pieces: Callable[[Source, int], Iterable[Any]] | None = None
    write: Callable[[Source, int, IO[bytes]], None] | None = None


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
            yield np.ascontiguousarray(plane, dtype).data.cast("B")


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


def _after(head: bytes, rest: Iterator[Any]) -> Iterator[Any]:
    yield head
    yield from rest


def as_it_is(dtype: Dtype) -> Dtype:
    """Return the dtype in which NumPy's own files store a dtype."""
    return dtype


WRITERS = (
    FileWriter("NIfTI", (".nii",), stored_dtype, _nifti_pieces),
    FileWriter("NIfTI", (".nii.gz",), stored_dtype, lambda *given: gzipped(_nifti_pieces(*given))),
    FileWriter("OME-TIFF", (".ome.tif", ".ome.tiff"), tiff_dtype, write=write_ome_tiff),
    FileWriter("TIFF", (".tif", ".tiff"), tiff_dtype, write=write_tiff),
    FileWriter("NumPy", (".npy",), as_it_is, _npy_pieces),
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


def is_foreign(path: Any) -> bool:
    """Return True if something is the name of a file in a format that `export` writes.

    Examples
    --------
    >>> is_foreign("seg.NII.gz"), is_foreign("seg.zarr")
    (True, False)
    """
    return isinstance(path, str | os.PathLike) and writer_of(path) is not None
