"""Activations stored between passes: one file per block and node.

The files hold plain values and are memory-mapped, so that reading a margin reads only the margin,
and from the page cache if it is large enough. Where the CPU computes, the values of a voxel lie
beside each other, as its convolutions have them and a margin is read fastest. They are deleted when
the last pass that reads them is done, or block by block before, where nobody reads one again.
"""

from __future__ import annotations

import errno
import itertools
import math
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from volflow.errors import RunFailed, StoreFull
from volflow.geometry.roi import Roi
from volflow.store.atomic import write_file
from volflow.store.unfinished.fence import Fence

__all__ = [
    "ActivationStore",
    "empty_raw",
    "free_bytes",
    "making_room",
    "mapped_raw",
    "parts_of",
    "used_bytes",
    "write_raw",
]

Array = npt.NDArray[Any]
# What is left of a file that nobody reads again; it is shorter than any block. An empty file would
# be taken for one that a power cut left.
RELEASED = b"-"


@dataclass(frozen=True)
class ActivationStore:
    """The values of one node, ``(depth, *axes)``, cut into blocks.

    Parameters
    ----------
    folder
        Folder of its files.
    depth
        Values per voxel.
    cuts
        Per axis, the first voxels of blocks, followed by the node's size.
    dtype
        Dtype of the values.
    last
        Whether the values of a voxel lie beside each other, instead of those along the last axis.
    fence
        Of the session that writes; None where no other may write.
    """

    folder: Path
    depth: int
    cuts: tuple[tuple[int, ...], ...]
    dtype: str
    last: bool = False
    fence: Fence | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return (
            self.depth * math.prod(axis[-1] for axis in self.cuts) * np.dtype(self.dtype).itemsize
        )

    def box(self, index: Sequence[int]) -> Roi:
        """Return the box of a block."""
        return _box(self.cuts, index)

    def path(self, index: Sequence[int]) -> Path:
        """Return the file of a block."""
        return self.folder / (".".join(map(str, index)) + ".raw")

    def index(self, box: Roi) -> tuple[int, ...]:
        """Return the index of the block that begins where a box does."""
        return tuple(map(_block_at, self.cuts, box.start))

    def write(self, index: Sequence[int], values: Array) -> None:
        """Store a block, ``(…, *box)`` of `depth` values per voxel, atomically."""
        flat = values.reshape(self.depth, *self.box(index).shape)
        write_raw(self.path(index), flat, self.dtype, last=self.last, fence=self.fence)

    def read(self, box: Roi) -> Array:
        """Return a box ``(depth, *box.shape)``; raises RunFailed if a file cannot be read."""
        result = empty_raw((self.depth, *box.shape), self.dtype, last=self.last)
        for index, part in parts_of(self.cuts, box):
            block = self.box(index)
            inner = part.relative_to(block.start).slices()
            outer = part.relative_to(box.start).slices()
            result[(slice(None), *outer)] = self._mapped(index, block)[(slice(None), *inner)]
        return result

    def _mapped(self, index: Sequence[int], block: Roi) -> Array:
        shape, remedy = (self.depth, *block.shape), f"delete {self.folder.parent} and run the same"
        return mapped_raw(
            self.path(index),
            shape,
            self.dtype,
            last=self.last,
            remedy=f"{remedy} command again, which computes it again",
        )

    def missing(self, index: Sequence[int]) -> bool:
        """Return True if a block's file is absent or differs in size from the block.

        One that was released is not missing: nobody needs it.
        """
        size = self.depth * self.box(index).size * np.dtype(self.dtype).itemsize
        try:
            return self.path(index).stat().st_size not in (size, len(RELEASED))
        except FileNotFoundError:
            return True

    def release(self, index: Sequence[int]) -> None:
        """Free the room of a block that nobody will read again; who reads it still has it."""
        with making_room(self.folder):
            write_file(self.path(index), RELEASED)

    def open(self) -> None:
        """Make the folder."""
        with making_room(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def drop(self) -> None:
        """Delete all blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)


def parts_of(cuts: Sequence[Sequence[int]], box: Roi) -> Iterator[tuple[tuple[int, ...], Roi]]:
    """Yield the blocks that meet a box: the index of each, and what they have in common.

    Parameters
    ----------
    cuts
        Per axis, the first voxels of blocks, followed by the size.
    box
        A box that is not empty.
    """
    ranges = [
        range(_block_at(axis, low), _block_at(axis, high - 1) + 1)
        for axis, (low, high) in zip(cuts, box, strict=True)
    ]
    for index in itertools.product(*ranges):
        part = _box(cuts, index).intersect(box)
        if part.size:
            yield index, part


def _box(cuts: Sequence[Sequence[int]], index: Sequence[int]) -> Roi:
    pairs = [(axis[i], axis[i + 1]) for axis, i in zip(cuts, index, strict=True)]
    return Roi(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))


def _block_at(cuts: Sequence[int], position: int) -> int:
    """Return the number of the block of an axis that holds a position."""
    return int(np.searchsorted(cuts, position, side="right")) - 1


def empty_raw(shape: tuple[int, ...], dtype: str, *, last: bool) -> Array:
    """Return an array ``(depth, *sides)`` for values that are read, without values."""
    return (
        np.moveaxis(np.empty((*shape[1:], shape[0]), dtype), -1, 0)
        if last
        else np.empty(shape, dtype)
    )


def mapped_raw(path: Path, shape: tuple[int, ...], dtype: str, *, last: bool, remedy: str) -> Array:
    """Return the values ``(depth, *sides)`` of a file; raises RunFailed if it cannot be read."""
    stored = (*shape[1:], shape[0]) if last else shape
    try:
        found = np.memmap(path, dtype, "r", shape=stored)
    except (OSError, ValueError) as error:
        raise RunFailed(f"{path} cannot be read ({error}); {remedy}") from error
    return np.moveaxis(found, -1, 0) if last else found


def write_raw(
    path: Path, values: Array, dtype: str, *, last: bool, fence: Fence | None = None
) -> None:
    """Store plain values ``(depth, *sides)``, atomically; raises StoreFull with a remedy."""
    values = np.moveaxis(values, 0, -1) if last else values
    with making_room(path.parent), _part(path) if fence is None else fence.file(path) as file:
        # A part of an array is copied in pieces, so that no second one is held.
        for piece in [values] if values.flags.c_contiguous else values:
            np.ascontiguousarray(piece, dtype).tofile(file)


@contextmanager
def _part(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file beside a path, to which it is renamed when it is whole."""
    part = path.with_suffix(f".{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def making_room(folder: Path) -> Iterator[None]:
    """Raise StoreFull with a remedy if a disk is full."""
    try:
        yield
    except OSError as error:
        # NumPy's tofile reports how much it wrote, not why it stopped.
        if error.errno not in (None, errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreFull(
            f"{folder} cannot be written: no space is left for activations between passes; make"
            " room and run the same command again, or give more memory"
        ) from error


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def used_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder, which need not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
