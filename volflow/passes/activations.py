"""Activations stored between passes: one file per block and node.

The files hold plain values in C order and are memory-mapped, so that reading a margin reads only
the margin, and from the page cache if it is large enough. They are deleted when the last pass that
reads them is done.
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
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import RunFailed, StoreFull
from volflow.geometry.roi import Roi

__all__ = ["ActivationStore", "free_bytes", "making_room"]

Array = npt.NDArray[Any]


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
    """

    folder: Path
    depth: int
    cuts: tuple[tuple[int, ...], ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return (
            self.depth * math.prod(axis[-1] for axis in self.cuts) * np.dtype(self.dtype).itemsize
        )

    def box(self, index: Sequence[int]) -> Roi:
        """Return the box of a block."""
        pairs = [(axis[i], axis[i + 1]) for axis, i in zip(self.cuts, index, strict=True)]
        return Roi(tuple(a for a, _ in pairs), tuple(b for _, b in pairs))

    def path(self, index: Sequence[int]) -> Path:
        """Return the file of a block."""
        return self.folder / (".".join(map(str, index)) + ".raw")

    def write(self, index: Sequence[int], values: Array) -> None:
        """Store a block, ``(…, *box)`` of `depth` values per voxel, atomically."""
        path = self.path(index)
        part = path.with_suffix(f".{uuid.uuid4().hex[:8]}.part")
        with making_room(self.folder):
            try:
                with part.open("wb") as file:
                    np.ascontiguousarray(values, self.dtype).tofile(file)
                part.replace(path)
            except OSError:
                part.unlink(missing_ok=True)
                raise

    def read(self, box: Roi) -> Array:
        """Return a box ``(depth, *box.shape)``; raises RunFailed if a file cannot be read."""
        result = np.empty((self.depth, *box.shape), self.dtype)
        ranges = [
            range(_block_at(axis, low), _block_at(axis, high - 1) + 1)
            for axis, (low, high) in zip(self.cuts, box, strict=True)
        ]
        for index in itertools.product(*ranges):
            block = self.box(index)
            part = block.intersect(box)
            inner = part.relative_to(block.start).slices()
            outer = part.relative_to(box.start).slices()
            result[(slice(None), *outer)] = self._mapped(index, block)[(slice(None), *inner)]
        return result

    def _mapped(self, index: Sequence[int], block: Roi) -> Array:
        path = self.path(index)
        try:
            return np.memmap(path, self.dtype, "r", shape=(self.depth, *block.shape))
        except (OSError, ValueError) as error:
            raise RunFailed(
                f"{path} cannot be read ({error}); delete {self.folder.parent} and run the same"
                " command again, which computes it again"
            ) from error

    def missing(self, index: Sequence[int]) -> bool:
        """Return True if a block's file is absent or differs in size from the block."""
        size = self.depth * self.box(index).size * np.dtype(self.dtype).itemsize
        try:
            return self.path(index).stat().st_size != size
        except FileNotFoundError:
            return True

    def open(self) -> None:
        """Make the folder."""
        with making_room(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def drop(self) -> None:
        """Delete all blocks."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _block_at(cuts: Sequence[int], position: int) -> int:
    """Return the number of the block of an axis that holds a position."""
    return int(np.searchsorted(cuts, position, side="right")) - 1


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
