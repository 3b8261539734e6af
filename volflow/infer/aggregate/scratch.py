"""Arrays in memory up to a budget, and beyond it in files beside the output.

The files have no name: they vanish when they are closed, however the process ends.
"""

from __future__ import annotations

import errno
import math
import os
import tempfile
import weakref
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput, StoreFull
from volflow.geometry.budget import format_bytes

__all__ = ["PendingPatches", "Scratch"]

Array = npt.NDArray[Any]

# Pending patches take at most this share of the budget: they wait, while rows are worked on.
PENDING_SHARE = 0.5
REMEDY = "make room there, or give more memory"


class Scratch:
    """Zeroed arrays, in memory while the budget lasts; what nobody refers to is free again.

    Parameters
    ----------
    folder
        Where the files lie that hold the rest.
    budget_bytes
        What may be in memory.

    Examples
    --------
    >>> scratch = Scratch(Path(tempfile.gettempdir()), budget_bytes=1000)
    >>> first = scratch.zeros((10, 20), np.dtype("float32"))
    >>> second = scratch.zeros((10, 20), np.dtype("float32"))
    >>> scratch.held_bytes, scratch.filed_bytes
    (800, 800)
    >>> del first, second
    >>> scratch.held_bytes, scratch.filed_bytes
    (0, 0)
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self.folder, self.budget_bytes = folder, budget_bytes
        self.pending_bytes = 0
        self._held: list[weakref.ref[Array]] = []
        self._filed: list[weakref.ref[Array]] = []

    @property
    def held_bytes(self) -> int:
        """Bytes in memory now."""
        return self.pending_bytes + _alive(self._held)

    @property
    def filed_bytes(self) -> int:
        """Bytes of arrays in files now, pending patches not counted."""
        return _alive(self._filed)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of zeros, in memory if it fits, else mapped from a file."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self.held_bytes + nbytes <= self.budget_bytes:
            array = np.zeros(shape, dtype)
            self._held.append(weakref.ref(array))
            return array
        with self.file(nbytes) as file:
            # A plain array: results of arithmetic on a memmap would call themselves memmaps.
            array = np.memmap(file, dtype, "r+", shape=shape).view(np.ndarray)
        self._filed.append(weakref.ref(array))
        return array

    def file(self, nbytes: int) -> IO[bytes]:
        """Open a file without a name that has room for so many bytes.

        Raises
        ------
        StoreFull
            Where there is no such room.
        InvalidInput
            Where no file can be made.
        """
        try:
            file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise InvalidInput(
                f"no scratch file can be made in {self.folder}: {error.strerror}; {REMEDY}"
            ) from error
        try:
            self.reserve(file, nbytes)
        except BaseException:
            file.close()
            raise
        return file

    def reserve(self, file: IO[bytes], nbytes: int) -> None:
        """Make a file as long as this; a mapping beyond the disk's end would kill the process."""
        try:
            if nbytes and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:  # macOS has none
                os.ftruncate(file.fileno(), nbytes)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise (StoreFull if full else InvalidInput)(
                f"{format_bytes(nbytes)} beside the output in {self.folder} cannot be had"
                f" ({error.strerror}), and memory is {format_bytes(self.budget_bytes)}; {REMEDY}"
            ) from error


def _alive(references: list[weakref.ref[Array]]) -> int:
    references[:] = [r for r in references if r() is not None]
    return sum(array.nbytes for r in references if (array := r()) is not None)


class PendingPatches:
    """Patches that came before their turn, all of one shape: in memory, or in slots of one file.

    Parameters
    ----------
    scratch
        Whose budget they share.
    """

    def __init__(self, scratch: Scratch) -> None:
        self.scratch = scratch
        self.places: dict[tuple[str, int], Array | int] = {}
        self.free: list[int] = []
        self.slots = 0
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[Any] = np.dtype("float32")

    @cached_property
    def file(self) -> IO[bytes]:
        """The file of the slots; made when memory is short for the first time."""
        return self.scratch.file(0)

    def __contains__(self, key: tuple[str, int]) -> bool:
        return key in self.places

    def numbers(self, case: str) -> list[int]:
        """Return the numbers of a case's pending patches, in order."""
        return sorted(number for name, number in self.places if name == case)

    def put(self, key: tuple[str, int], patch: Array) -> None:
        """Keep a copy of a patch under the name of its case and its number."""
        self.shape, self.dtype = patch.shape, patch.dtype
        scratch = self.scratch
        if scratch.held_bytes + patch.nbytes <= PENDING_SHARE * scratch.budget_bytes:
            self.places[key] = patch.copy()
            scratch.pending_bytes += patch.nbytes
            return
        slot = self.free.pop() if self.free else self.slots
        if slot == self.slots:
            scratch.reserve(self.file, (slot + 1) * patch.nbytes)
            self.slots += 1
        self.file.seek(slot * patch.nbytes)
        self.file.write(np.ascontiguousarray(patch).data.cast("B"))
        self.places[key] = slot

    def take(self, key: tuple[str, int]) -> Array:
        """Return a patch and forget it."""
        place = self.places.pop(key)
        if not isinstance(place, int):
            self.scratch.pending_bytes -= place.nbytes
            return place
        patch = np.empty(self.shape, self.dtype)
        self.file.seek(place * patch.nbytes)
        self.file.readinto(patch.data.cast("B"))  # type: ignore[attr-defined]
        self.free.append(place)
        return patch

    def close(self) -> None:
        """Forget all of them."""
        self.places.clear()
        self.scratch.pending_bytes = 0
        if "file" in self.__dict__:
            self.file.close()
