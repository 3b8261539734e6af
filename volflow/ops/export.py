"""Export: a volume back into one file, streamed in the order of the file."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from volflow.errors import InvalidInput, MemoryRefused, RunFailed
from volflow.geometry.budget import format_bytes, parse_bytes
from volflow.store.aside import file_aside, sweep
from volflow.store.complete import open_complete
from volflow.store.nifti_header import header_bytes, stored_dtype
from volflow.store.slabs import slab_rois
from volflow.store.volume import Volume

__all__ = ["check_file", "export", "is_foreign"]

SUFFIXES = (".nii.gz", ".nii", ".npy")


def is_foreign(path: Any) -> bool:
    """Whether something is the name of a file in a format that `export` writes.

    Examples
    --------
    >>> is_foreign("seg.NII.gz"), is_foreign("seg.zarr")
    (True, False)
    """
    return isinstance(path, str | os.PathLike) and os.fspath(path).lower().endswith(SUFFIXES)


def export(
    volume: Volume | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    memory: str | int = "1GiB",
) -> Path:
    """Write a volume as one ``.nii.gz``, ``.nii`` or ``.npy`` file.

    A volume that came from a NIfTI file goes back onto that file's axes, orientation and affine.
    The file appears under its name when it is complete. NIfTI knows no float16 and no bool: these
    become float32 and uint8.

    Parameters
    ----------
    volume
        A volume, or what `open_volume` opens.
    out
        Name of the file; the suffix decides the format.
    overwrite
        Replace a file that is there.
    memory
        What the slabs in memory may take.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InvalidInput
        Where the format is unknown, the file exists or the volume cannot be opened.
    MemoryRefused
        Where not even one plane fits into the memory.
    RunFailed
        Where the disk is full or the volume damaged; no partial file is left.

    Examples
    --------
    >>> import tempfile, zarr
    >>> from volflow.store.volume import open_volume
    >>> ones = open_volume(zarr.ones(shape=(4, 5, 6), dtype="uint8"))
    >>> np.load(export(ones, f"{tempfile.mkdtemp()}/ones.npy")).shape
    (4, 5, 6)
    """
    path = check_file(out, overwrite=overwrite)
    opened = open_complete(volume)
    budget = parse_bytes(memory)
    if path.name.lower().endswith(".npy"):
        dtype, head = opened.dtype, _npy_header(opened)
    else:
        dtype = stored_dtype(opened.dtype)
        head = header_bytes(opened.meta, opened.shape, dtype)
    depth = _depth(opened, dtype, budget)
    with _replacing(path) as file:
        file.write(head)
        for roi in slab_rois(opened.shape, depth):
            slab = opened.read(roi)
            for plane in slab.reshape(-1, *slab.shape[-2:]):
                file.write(np.ascontiguousarray(plane, dtype).data)
    return path


def check_file(out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The absolute path of a file to be written, or a refusal; nothing is changed."""
    path = Path(out).expanduser().absolute()
    if not is_foreign(path):
        raise InvalidInput(
            f"{path.name} names no format that can be written; use {', '.join(SUFFIXES)}"
        )
    if not path.parent.is_dir():
        raise InvalidInput(f"the folder {path.parent} does not exist; make it first")
    if path.is_dir() or (path.exists() and not overwrite):
        raise InvalidInput(f"{path} exists; choose another name or overwrite=True")
    return path


def _depth(volume: Volume, dtype: np.dtype[Any], budget: int) -> int:
    """Planes per slab: a whole layer of chunks where it fits, so that each is decoded once."""
    size_y, size_x = volume.shape[-2:]
    # A slab is held twice while zarr fills it; beside it lies one plane in the file's dtype.
    plane = size_y * size_x * max(volume.dtype.itemsize, dtype.itemsize)
    fits = (budget // plane - 1) // 2
    if fits < 1:
        raise MemoryRefused(
            f"a plane of {size_y} × {size_x} voxels needs memory of {format_bytes(3 * plane)}, "
            f"given {format_bytes(budget)}; raise memory="
        )
    return min(fits, volume.chunks[-3])


def _npy_header(volume: Volume) -> bytes:
    file = BytesIO()
    descr = np.lib.format.dtype_to_descr(volume.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": volume.shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is complete, and not at all otherwise."""
    sweep(path)
    try:
        with file_aside(path) as raw:
            if path.name.lower().endswith(".gz"):
                # No name and no time inside: the same voxels give the same bytes.
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
                    yield file  # type: ignore[misc]
            else:
                yield raw
    except OSError as error:
        raise RunFailed(
            f"{path} cannot be written: {error.strerror or error}; nothing is left of it, free "
            "space or choose another place"
        ) from error
