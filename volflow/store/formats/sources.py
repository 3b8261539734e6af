"""Open arrays and files of any format as sources of volumes."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.known import FORMATS, Format, format_of
from volflow.store.formats.npy import volume_shape
from volflow.store.formats.taken.one_channel import one_channel
from volflow.store.journal.complete import require_complete
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta, SourceInfo
from volflow.store.opening import absent, is_url, is_zarr
from volflow.store.slabs import Array, Source
from volflow.store.volume import Volume, open_volume

__all__ = ["ArraySource", "open_source", "split_part", "stem"]

ZARR = "a Zarr volume"
_SUFFIX = re.compile(
    r"(\.ome)?\.zarr$|" + "|".join(f"{re.escape(end)}$" for one in FORMATS for end in one.suffixes),
    re.IGNORECASE,
)


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


def open_source(x: Any, choice: ImageChoice | None = None) -> Source:
    """Open anything that a volume can be made from; no voxel is read.

    Parameters
    ----------
    x
        Path of a file or folder of any known format, perhaps with what is meant in it behind
        ``::``, such as ``cells.h5::volumes/raw``; anything that `open_volume` opens; a NumPy
        array, ``zyx`` or ``czyx`` (``yx`` is one slice); or a source.
    choice
        Which image of several.

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
    choice = ImageChoice() if choice is None else choice
    return one_channel(_opened(x, choice), choice.channel)


def _opened(x: Any, choice: ImageChoice) -> Source:
    if isinstance(x, Source) and not isinstance(x, Volume):  # opened before
        choice.refuse_but((), x.path or "the array", "open already")
        return x
    if isinstance(x, np.ndarray):
        choice.refuse_but((), "the array", "in memory")
        shape, axes = volume_shape(x.shape, "the array")
        dtype = check_dtype(x.dtype, "the array")
        meta = Meta(axes, source=SourceInfo("numpy", str(dtype.newbyteorder("="))))
        return ArraySource(x.reshape(shape), meta)
    if not isinstance(x, str | os.PathLike):
        return _open_zarr(x, choice)
    return _open_path(os.fspath(x), choice)


def _open_path(text: str, choice: ImageChoice) -> Source:
    if is_url(text):
        if (found := _by_suffix(text)) is not None:
            raise InvalidInput(
                f"{text} is {found.name} behind a URL, where only Zarr can be read; copy it to a"
                " disk first"
            )
        return _open_zarr(text, choice)
    path, part = split_part(text)
    if not path.exists():
        raise absent(path)
    found = None if path.is_dir() and is_zarr(path) else format_of(path)
    if found is not None:
        return _open_file(path, part, found, choice)
    if not path.is_dir():
        raise InvalidInput(f"{path.name} is of a format that cannot be read; {_readable()} can")
    if part:
        raise InvalidInput(f"{path} is a folder, and what lies in it has a path: {path}/{part}")
    return _open_zarr(path, choice)  # or says what lies in it


def _open_file(path: Path, part: str, found: Format, choice: ImageChoice) -> Source:
    if part and not found.takes:
        raise InvalidInput(f"{path} is {found.name} and holds one image; leave ::{part} out")
    choice = choice.within(part, found.takes[0]) if part else choice
    choice.refuse_but(found.takes, str(path), found.name)
    return found.open(str(path), choice)


def _open_zarr(x: Any, choice: ImageChoice) -> Volume:
    choice.refuse_but(("level", "timepoint"), getattr(x, "path", None) or str(x), ZARR)
    volume = open_volume(x, choice.level or 0, timepoint=choice.timepoint)
    require_complete(volume)
    return volume


def split_part(text: str) -> tuple[Path, str]:
    """Return the absolute path of a file, and what is named in it behind ``::``.

    Examples
    --------
    >>> path, part = split_part("/data/cells.h5::volumes/raw")
    >>> path.name, part
    ('cells.h5', 'volumes/raw')
    """
    whole = Path(text.removeprefix("file://")).expanduser().absolute()
    if "::" not in text or whole.exists():
        return whole, ""
    name, _, part = text.removeprefix("file://").partition("::")
    return Path(name).expanduser().absolute(), part


def _by_suffix(name: str) -> Format | None:
    return next((one for one in FORMATS if name.lower().endswith(one.suffixes)), None)


def _readable() -> str:
    return f"{', '.join(one.name for one in FORMATS)}, OME-Zarr and Zarr v2 or v3"


def stem(name: str) -> str:
    """Return a file's name without the suffix of its format.

    Examples
    --------
    >>> stem("p01.nii.gz"), stem("p02.ome.zarr"), stem("p03.v2")
    ('p01', 'p02', 'p03.v2')
    """
    return _SUFFIX.sub("", name)
