"""Gradients on disk: what each block that reads a node gives back to those who stored it.

A block that reads a window of a node gives the gradient of that window, margin included, in a file
of its own for each block that takes a part of it: no file has two writers, and none two readers, so
that it is deleted as soon as that block has run backward. Who takes the gradient of a block adds up
all that was given for it, in the order in which passes run backward and of their blocks, so that
the sum has the same bits whatever workers there were.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from volflow.errors import RunFailed
from volflow.geometry.roi import Roi
from volflow.passes.activations import empty_raw, making_room, mapped_raw, parts_of, write_raw

__all__ = ["Contributions"]

Array = npt.NDArray[Any]
# "pass.block.low-high.low-high.….raw", in a folder for each block that takes.
NAME = re.compile(r"(\d+)\.(\d+)((?:\.\d+-\d+)+)\.raw")
REMEDY = "delete the scratch folder and take the step again"


@dataclass(frozen=True, eq=False)
class Contributions:
    """The gradients that blocks gave of windows of one node, ``(depth, *axes)``.

    Parameters
    ----------
    folder
        Folder of its files.
    depth
        Values per voxel.
    cuts
        Of the blocks that take them: per axis their first voxels, followed by the node's size.
    dtype, last
        Dtype of the values, and whether those of a voxel lie beside each other.
    """

    folder: Path
    depth: int
    cuts: tuple[tuple[int, ...], ...]
    dtype: str
    last: bool = False

    def open(self) -> None:
        """Make the folder."""
        with making_room(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, block: int, box: Roi, values: Array) -> None:
        """Store the gradient of the window that a block of a pass read, each part atomically."""
        flat = values.reshape(self.depth, *box.shape)
        for index, part in parts_of(self.cuts, box):
            spans = ".".join(f"{low}-{high}" for low, high in part)
            path = self._taken_by(index) / f"{number:03d}.{block:08d}.{spans}.raw"
            with making_room(self.folder):
                path.parent.mkdir(exist_ok=True)
            inner = part.relative_to(box.start).slices()
            write_raw(path, flat[(slice(None), *inner)], self.dtype, last=self.last)

    def read(self, box: Roi) -> Array | None:
        """Return the sum of all that meet a box, ``(depth, *box.shape)``; None if none does.

        Parameters
        ----------
        box
            Of the node.

        Raises
        ------
        RunFailed
            If a file cannot be read, or was deleted by `release`.
        """
        total: Array | None = None
        for path, window in self.meeting(box):
            if total is None:
                total = empty_raw((self.depth, *box.shape), self.dtype, last=self.last)
                total[...] = 0
            part = window.intersect(box)
            inner = part.relative_to(window.start).slices()
            outer = part.relative_to(box.start).slices()
            total[(slice(None), *outer)] += self._mapped(path, window)[(slice(None), *inner)]
        return total

    def release(self, index: Sequence[int]) -> None:
        """Delete what was given for a block, which has run backward; who reads it still has it."""
        folder = self._taken_by(index)
        if not folder.is_dir():
            return  # nobody gave any
        # Marked first: who lists the folder from now on must not take a part for all.
        with making_room(folder):
            (folder / "released").touch()
        for path in folder.glob("*.raw"):
            path.unlink(missing_ok=True)

    def drop(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def meeting(self, box: Roi) -> Iterator[tuple[Path, Roi]]:
        """Yield the files that meet a box and their boxes, in the order in which they are summed.

        That is from the last pass to the first, and by block.
        """
        for index, part in parts_of(self.cuts, box):
            folder = self._taken_by(index)
            found = []
            for path in folder.glob("*.raw"):
                name = NAME.fullmatch(path.name)
                if name is not None:
                    spans = [[int(n) for n in span.split("-")] for span in name[3].split(".")[1:]]
                    window = Roi(tuple(low for low, _ in spans), tuple(high for _, high in spans))
                    found.append((-int(name[1]), int(name[2]), path, window))
            if (folder / "released").exists():
                raise RunFailed(f"gradients in {folder} were used and deleted; {REMEDY}")
            for _, _, path, window in sorted(found, key=lambda one: one[:2]):
                if window.intersect(part).size:
                    yield path, window

    def _taken_by(self, index: Sequence[int]) -> Path:
        return self.folder / ".".join(map(str, index))

    def _mapped(self, path: Path, window: Roi) -> Array:
        return mapped_raw(
            path,
            (self.depth, *window.shape),
            self.dtype,
            last=self.last,
            remedy=REMEDY,
        )
