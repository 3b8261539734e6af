"""Folders of TIFF files that hold one plane each."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.tiff.tiff_file import count_pages, import_tifffile, opened_tiff
from volflow.store.formats.tiff.tiff_pages import Pages, Target, pages_of
from volflow.store.formats.tiff.tiff_series import Planes, planes_of

__all__ = ["PlaneFiles", "is_plane_folder", "opened_plane", "plane_names"]

SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True, eq=False, repr=False)
class PlaneFiles:
    """Pages that are files of their own, of one shape and dtype.

    Parameters
    ----------
    folder, names
        The folder, and its files in the order of the planes.
    shape, dtype, segment
        As in `Pages`.
    """

    folder: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    segment: tuple[int, int, int]

    def identity(self) -> str:
        """Return a hash that changes when a file does, or when there are others."""
        digest = hashlib.sha256()
        for name in self.names:
            stat = Path(self.folder, name).stat()
            digest.update(f"{name}\0{stat.st_size} {stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def fill(self, targets: Iterable[Target], box: Roi) -> None:
        """Read one box of several planes, as `Pages.fill`."""
        for number, target in targets:
            self.pages(number).fill(((0, target),), box)

    def check(self) -> None:
        """Open the files that may differ from the first: those of another size.

        Raises
        ------
        InvalidInput
            Naming the first that does.
        """
        sizes = [Path(self.folder, name).stat().st_size for name in self.names]
        for number, size in enumerate(sizes):
            if size != sizes[0]:
                self.pages(number)

    def pages(self, number: int) -> Pages:
        """Return where a plane lies in its file; InvalidInput if it is unlike the first."""
        path = Path(self.folder, self.names[number])
        stat = path.stat()
        pages = _pages(str(path), stat.st_size, stat.st_mtime_ns)
        found = _said(pages.shape, pages.dtype)
        if found != (expected := _said(self.shape, self.dtype)):
            raise InvalidInput(
                f"{self.folder} holds planes that differ: {self.names[number]} is {found},"
                f" {self.names[0]} {expected}; keep only the planes of one image in a folder"
            )
        return pages


@lru_cache(maxsize=2**12)  # each block asks for those of its planes, which others asked for
def _pages(path: str, _size: int, _time_ns: int) -> Pages:
    with opened_plane(path) as (_, series, planes):
        return pages_of(path, series, planes.numbers.ravel().tolist())


def _said(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    separate, _, size_y, size_x, beside = shape
    samples = max(separate, beside)
    colours = f" of {samples} colours" if samples > 1 else ""
    return f"{size_y} × {size_x} {dtype.newbyteorder('=')}{colours}"


@contextmanager
def opened_plane(path: str) -> Iterator[tuple[Any, Any, Planes]]:
    """Open a file of one plane; yield it, its series as tifffile has it, and its plane.

    Raises
    ------
    InvalidInput
        If it holds more than one.
    """
    count = count_pages(path)
    if count > 1:
        raise InvalidInput(
            f"{path} has {count} pages, and the files of a folder are read as planes of one page"
            " each; convert the file by itself"
        )
    with opened_tiff(path) as file:
        page = file.pages.first
        if page.shaped[1] > 1:
            raise InvalidInput(f"{path} holds several planes; convert the file by itself")
        series = import_tifffile().TiffPageSeries([page], page.shape, page.dtype, page.axes)
        yield file, series, planes_of(series, path, ImageChoice())


def is_plane_folder(folder: Path) -> bool:
    """Return True if a folder holds TIFF files; whatever lies beside them is not looked at.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("z1.tif", "z2.tif", "notes.txt"):
    ...     (folder / name).touch()
    >>> is_plane_folder(folder)
    True
    """
    return bool(_tiff_names(path.name for path in folder.iterdir()))


def plane_names(folder: Path) -> tuple[str, ...]:
    """Return the TIFF files of a folder in the order of their numbers: z2 before z10.

    Raises
    ------
    InvalidInput
        If the numbers in their names count along several axes: planes of several channels would
        lie one behind the other.
    """
    names = sorted(_tiff_names(path.name for path in folder.iterdir()), key=_natural)
    numbers = [tuple(map(int, re.findall(r"\d+", name))) for name in names]
    if len(set(map(len, numbers))) == 1:
        counted = [n for n in (len(set(column)) for column in zip(*numbers, strict=True)) if n > 1]
        if len(counted) > 1 and math.prod(counted) == len(names):
            raise InvalidInput(
                f"{folder} holds {' × '.join(map(str, counted))} files, which count along"
                f" {len(counted)} axes, from {names[0]} to {names[-1]}; keep only the planes of one"
                " channel and timepoint in a folder"
            )
    return tuple(names)


def _tiff_names(names: Iterable[str]) -> list[str]:
    return [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]


def _natural(name: str) -> tuple[tuple[int | str, ...], str]:
    """Return a key that sorts numbers by their value; text and numbers alternate."""
    parts = re.split(r"(\d+)", name.lower())
    return tuple(int(part) if n % 2 else part for n, part in enumerate(parts)), name
