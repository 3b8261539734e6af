"""Results of verifying an output: which blocks and which exported file are intact, which wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from volflow.geometry.sampled_wrong import most_wrong

__all__ = ["BAD", "MISSING", "VERIFIED", "Coverage", "FileCheck", "Recomputed"]

VERIFIED, BAD, MISSING, MIXED = "#", "x", ".", "o"
MAP_SIZE = 100  # cells of the map along each side
NAMED = 5  # bad blocks that a summary names


@dataclass(frozen=True)
class FileCheck:
    """Whether an exported file is still as it was written.

    Parameters
    ----------
    path
        Path of the file.
    fault
        How it differs from what was written; ``""`` if it does not.
    damaged
        Whether it was written and has changed since; False if the run has not written it yet.
    note
        How it was verified, or how to repair it.

    Examples
    --------
    >>> print(FileCheck("seg.nii.gz", "its checksum differs", True, "export it again"))
    seg.nii.gz: its checksum differs; export it again
    """

    path: str
    fault: str = ""
    damaged: bool = False
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the file is intact."""
        return not self.fault

    def __str__(self) -> str:
        return f"{self.path}: {self.fault or 'verified'}" + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True)
class Recomputed:
    """Random blocks of an output that were computed anew and compared with what is stored.

    Parameters
    ----------
    total
        Number of finished blocks, from which was drawn.
    drawn
        Numbers of the blocks that were computed anew.
    seed
        Of the draw, by which it can be repeated.
    compared
        How they were compared, in words.
    wrong
        Number and reason of each that is not what the model computes.
    differing_voxels
        Voxels of the others that differ within the tolerance.

    Examples
    --------
    >>> found = Recomputed(343, tuple(range(20)), 7, "bit for bit")
    >>> print(found)
    20 of 343 blocks computed anew (seed 7), bit for bit: all are what the model computes; at 95 %
    confidence at most 46 of 343 are wrong, shares of 13.8 % and more are excluded
    >>> found.most_wrong, round(found.excluded_share, 3)
    (46, 0.137)
    """

    total: int
    drawn: tuple[int, ...]
    seed: int
    compared: str
    wrong: tuple[tuple[int, str], ...] = ()
    differing_voxels: int = 0

    @property
    def most_wrong(self) -> int:
        """Number of wrong blocks, the found ones among them, that are not excluded at 95 %."""
        return most_wrong(self.total, len(self.drawn), len(self.wrong))

    @property
    def excluded_share(self) -> float:
        """The smallest share of wrong blocks that is excluded at 95 %; above 1 where none is."""
        return (self.most_wrong + 1) / self.total if self.total else math.inf

    def __str__(self) -> str:
        found = f"{len(self.wrong)} are not" if self.wrong else "all are"
        text = (
            f"{len(self.drawn)} of {self.total} blocks computed anew (seed {self.seed}),"
            f" {self.compared}: {found} what the model computes"
        )
        if self.differing_voxels:
            text += f" ({self.differing_voxels:,} voxels differ within that)"
        text += f"; at 95 % confidence at most {self.most_wrong} of {self.total} are wrong"
        if self.excluded_share <= 1:
            share = math.ceil(1000 * self.excluded_share) / 10  # never more than is excluded
            text += f", shares of {share} % and more are excluded"
        return text


@dataclass(frozen=True)
class Coverage:
    """Which blocks of an output are stored and intact.

    Parameters
    ----------
    path
        Path of the output.
    grid
        Blocks per axis; block numbers count in C order.
    cells
        One letter per block: ``#`` verified, ``x`` bad, ``.`` missing.
    bad
        Number and reason of each bad block.
    levels
        Coverage of each coarser level.
    file
        The check of the file, if the output is one; the blocks are then those of the volume that
        it was exported from, none if that volume is gone.
    recomputed
        The blocks that were computed anew, if any were; wrong ones count among the bad.
    unfinished
        Whether the run that writes it has not ended, so that it cannot be opened yet.

    Examples
    --------
    >>> coverage = Coverage("out.zarr", (2, 2, 2), "###x##..", ((3, "checksum differs"),))
    >>> print(coverage)
    out.zarr: 5 of 8 blocks verified, 1 bad, 2 missing; block 3 (0, 1, 1): checksum differs
    >>> print(coverage.map())
    z 0  ## #x
    z 1  ## ..
    # verified  x bad  . missing; a row is a layer of blocks, y by y
    """

    path: str
    grid: tuple[int, ...]
    cells: str
    bad: tuple[tuple[int, str], ...] = ()
    levels: tuple[Coverage, ...] = ()
    file: FileCheck | None = None
    recomputed: Recomputed | None = None
    unfinished: bool = False

    @property
    def total(self) -> int:
        """Number of blocks of the output."""
        return len(self.cells)

    @property
    def done(self) -> int:
        """Number of blocks that are stored and read back with the right checksum."""
        return self.cells.count(VERIFIED)

    @property
    def missing(self) -> int:
        """Number of blocks that were never finished."""
        return self.cells.count(MISSING)

    @property
    def ok(self) -> bool:
        """Whether the run has ended, and every block of every level, and the file, is intact."""
        whole = self.done == self.total and all(level.ok for level in self.levels)
        return whole and not self.unfinished and (self.file is None or self.file.ok)

    @property
    def damaged(self) -> bool:
        """Whether a finished block of any level, or the file, differs from what was written."""
        blocks = bool(self.bad) or any(level.damaged for level in self.levels)
        return blocks or (self.file is not None and self.file.damaged)

    def map(self) -> str:
        """Return the blocks as text: a row per z, a letter per (y, x) in reading order.

        A grid wider or higher than 100 is condensed: one letter then stands for several blocks,
        ``x`` if any is bad, ``o`` if some are missing.
        """
        if not self.cells:
            return ""
        columns = math.prod(self.grid[-2:])
        count = self.total // columns
        width, height = -(-columns // MAP_SIZE), -(-count // MAP_SIZE)
        lines = []
        for first in range(0, count, height):
            rows = range(first, min(first + height, count))
            band = [self.cells[row * columns : (row + 1) * columns] for row in rows]
            letters = "".join(
                _condense("".join(row[i : i + width] for row in band))
                for i in range(0, columns, width)
            )
            step = self.grid[-1] if width == 1 else len(letters)
            groups = (letters[i : i + step] for i in range(0, len(letters), step))
            lines.append((f"z {first}", " ".join(groups)))
        label = max(len(name) for name, _ in lines)
        legend = f"{VERIFIED} verified  {BAD} bad  {MISSING} missing"
        if width * height == 1:
            legend += "; a row is a layer of blocks, y by y"
        else:
            legend += f"  {MIXED} some missing; a letter is up to {width * height} blocks"
        return "\n".join([*(f"{name:{label}}  {row}" for name, row in lines), legend])

    def __str__(self) -> str:
        text = f"{self.path}: {self.done} of {self.total} blocks verified"
        if self.done < self.total:
            text += f", {len(self.bad)} bad, {self.missing} missing"
        for block, reason in self.bad[:NAMED]:
            index = tuple(int(i) for i in np.unravel_index(block, self.grid))
            text += f"; block {block} {index}: {reason}"
        text += f"; and {len(self.bad) - NAMED} more" if len(self.bad) > NAMED else ""
        if self.unfinished and self.done == self.total:
            text += "; its run has not ended, run the same command again"
        blocks = [text] if self.cells else []
        anew = [] if self.recomputed is None else [str(self.recomputed)]
        file = [] if self.file is None else [str(self.file)]
        return "\n".join([*file, *blocks, *map(str, self.levels), *anew])

    def with_recomputed(self, found: Recomputed) -> Coverage:
        """Return the coverage after blocks were computed anew: the wrong ones are bad."""
        cells = list(self.cells)
        for block, _ in found.wrong:
            cells[block] = BAD
        bad = tuple(sorted({**dict(self.bad), **dict(found.wrong)}.items()))
        return replace(self, cells="".join(cells), bad=bad, recomputed=found)


def _condense(letters: str) -> str:
    if BAD in letters:
        return BAD
    return letters[0] if len(set(letters)) == 1 else MIXED
