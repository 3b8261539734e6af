"""What all sources share: the order of slabs, the numbers they may hold, the identity of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi

__all__ = ["Array", "check_dtype", "file_identity", "refuse_complex", "slab_rois"]

Array = np.ndarray[Any, np.dtype[Any]]


def slab_rois(shape: Sequence[int], depth: int) -> Iterator[Roi]:
    """Boxes of ``depth`` whole z-planes of one channel, in C order.

    Examples
    --------
    >>> [roi.start for roi in slab_rois((2, 5, 4, 4), 3)]
    [(0, 0, 0, 0), (0, 3, 0, 0), (1, 0, 0, 0), (1, 3, 0, 0)]
    """
    *channels, size_z, size_y, size_x = shape
    for index in np.ndindex(*channels):
        for z in range(0, size_z, max(1, depth)):
            start = (*index, z, 0, 0)
            stop = (*(i + 1 for i in index), min(z + max(1, depth), size_z), size_y, size_x)
            yield Roi(start, stop)


def check_dtype(dtype: Any, name: str) -> np.dtype[Any]:
    """The dtype, refused where it is none of a volume.

    Examples
    --------
    >>> check_dtype("complex64", "a.nii")
    Traceback (most recent call last):
    volflow.errors.InvalidInput: a.nii holds complex64; a volume holds bool, integers or floats up
    to 64 bits; save its parts one by one
    """
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.kind not in "biuf" or kind.itemsize > 8:
        raise InvalidInput(
            f"{name} holds {kind}; a volume holds bool, integers or floats up to 64 bits; save its "
            "parts one by one"
        )
    return kind


def refuse_complex(values: Any, what: str) -> None:
    """Refuse complex numbers, whose imaginary part a cast would drop.

    Parameters
    ----------
    values
        An array or a tensor.
    what
        Its name in the error.

    Raises
    ------
    InvalidInput
        Where they are complex.

    Examples
    --------
    >>> refuse_complex(np.ones(1, "complex64"), "the model's output")
    Traceback (most recent call last):
    ...
    volflow.errors.InvalidInput: the model's output is complex, and a volume holds real numbers;
    return its .abs(), or both its parts as channels (torch.view_as_real)
    """
    is_complex = getattr(values, "is_complex", None)  # of a tensor
    if np.iscomplexobj(values) if is_complex is None else is_complex():
        raise InvalidInput(
            f"{what} is complex, and a volume holds real numbers; return its .abs(), or both its"
            " parts as channels (torch.view_as_real)"
        )


def file_identity(path: str) -> str:
    """A hash of a file's size, time and first bytes: cheap, and new when the file is."""
    stat = Path(path).stat()
    digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    with Path(path).open("rb") as file:
        digest.update(file.read(2**16))
    return digest.hexdigest()
