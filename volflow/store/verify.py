"""Read an output back and compare it with its journal."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c
import numpy as np
import zarr

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.journal import Journal, Record, ShardEntry, journal_dir
from volflow.store.pyramid import level_journals
from volflow.store.volume import Volume

__all__ = ["Coverage", "verify"]

VERIFIED, BAD, MISSING, MIXED = "#", "x", ".", "o"
MAP_SIZE = 100  # cells of the map along each side
NAMED = 5  # bad blocks that a summary names


@dataclass(frozen=True)
class Coverage:
    """Which blocks of an output are there and right.

    Parameters
    ----------
    path
        The output.
    grid
        Blocks per axis; block numbers count in C order.
    cells
        One letter per block: ``#`` verified, ``x`` bad, ``.`` missing.
    bad
        Number and reason of each bad block.
    levels
        The same of each coarser level.

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

    @property
    def total(self) -> int:
        """Blocks of the output."""
        return len(self.cells)

    @property
    def done(self) -> int:
        """Blocks that are stored and read back with the right checksum."""
        return self.cells.count(VERIFIED)

    @property
    def missing(self) -> int:
        """Blocks that were never finished."""
        return self.cells.count(MISSING)

    @property
    def ok(self) -> bool:
        """Whether every block is there and right, of all levels."""
        return self.done == self.total and all(level.ok for level in self.levels)

    @property
    def damaged(self) -> bool:
        """Whether a block that was done does not read back as it was written, of any level."""
        return bool(self.bad) or any(level.damaged for level in self.levels)

    def map(self) -> str:
        """The blocks as text: a row per z, a letter per (y, x) in reading order.

        A grid wider or higher than 100 is condensed: one letter then stands for several blocks,
        bad where any is bad, ``o`` where some are missing.
        """
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
        return "\n".join([text, *map(str, self.levels)])


def _condense(letters: str) -> str:
    if BAD in letters:
        return BAD
    return letters[0] if len(set(letters)) == 1 else MIXED


def verify(
    path: str | os.PathLike[str] | Volume, *, progress: Callable[[int, int], object] | None = None
) -> Coverage:
    """Read every stored object of an output back and compare it with its checksum.

    Blocks found bad are marked undone, so that running the same command again repairs just these.
    Coarser levels are read too; `pyramid` repairs those.

    Parameters
    ----------
    path
        An output that volflow wrote, or the `Volume` that it gave.
    progress
        Called with the number of blocks read so far and of those to read.

    Raises
    ------
    InvalidInput
        Where the output has no journal, as what other programs wrote.
    Damaged
        Where the journal is.
    Locked
        While a driver writes the output.
    """
    out = os.fspath((path.path or "") if isinstance(path, Volume) else path)
    journal = Journal(journal_dir(out))
    if journal.recorded() is None:
        raise InvalidInput(
            f"{out} has no journal ({journal.directory}); only what volflow wrote can be verified,"
            " as the checksums lie there"
        )
    with journal.lock():
        parts = [_part("", journal)]
        parts += [_part(array, level) for array, level in level_journals(journal).items()]
        total, read = sum(len(part.done) for part in parts), itertools.count(1)

        def step() -> None:
            if progress is not None:
                progress(next(read), total)

        found, *levels = (_coverage(Path(out), part, step) for part in parts)
    return replace(found, levels=tuple(levels))


@dataclass(frozen=True)
class _Part:
    """What one journal vouches for: the run's own output, or a coarser level."""

    array: str
    journal: Journal
    grid: tuple[int, ...]
    done: Mapping[int, Sequence[ShardEntry]]


def _part(array: str, journal: Journal) -> _Part:
    record = journal.recorded()
    grid = _grid(record, journal) if record else ()
    total = math.prod(grid)
    done = {block: entries for block, entries in journal.done().items() if block < total}
    return _Part(array, journal, grid, done)


def _coverage(out: Path, part: _Part, step: Callable[[], None]) -> Coverage:
    cells, bad = bytearray(MISSING.encode() * math.prod(part.grid)), []
    for block, fault in _check(out, part.done):
        cells[block] = ord(BAD if fault else VERIFIED)
        if fault:
            part.journal.forget([block])
            bad.append((block, fault))
        step()
    return Coverage(str(out / part.array), part.grid, cells.decode(), tuple(bad))


def _grid(record: Record, journal: Journal) -> tuple[int, ...]:
    grid = record.settings.get("grid")
    if grid is None:
        raise Damaged(
            f"the journal {journal.directory} records no grid of blocks; write the output again"
        )
    return tuple(grid)


def _check(out: Path, done: Mapping[int, Sequence[ShardEntry]]) -> Iterator[tuple[int, str | None]]:
    """The number of each done block, and what is wrong with it."""
    names = {entry.array for entries in done.values() for entry in entries}
    arrays = {name: _open(out, name) for name in sorted(names)}
    # One object at a time: zarr decodes its chunks on all cores.
    for block, entries in done.items():
        yield block, _fault(arrays, entries)


def _open(out: Path, name: str) -> zarr.Array[Any] | str:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise Damaged(
            f"the journal of {out} names an array outside of it: {name!r}; it is damaged,"
            " write the output again"
        )
    try:
        return zarr.open_array(out / inside, mode="r")
    except Exception as error:  # whatever zarr makes of a damaged or deleted array
        return f"array {name} cannot be opened ({_first_line(error)})"


def _fault(
    arrays: Mapping[str, zarr.Array[Any] | str], entries: Sequence[ShardEntry]
) -> str | None:
    """What is wrong with the objects of a block; None where all are right."""
    for entry in entries:
        array = arrays[entry.array]
        if isinstance(array, str):
            return array
        where = f"array {entry.array} at {entry.start}"
        bounds = (entry.start, entry.stop, array.shape)
        if not len(entry.start) == len(entry.stop) == array.ndim or not all(
            0 <= a < b <= n for a, b, n in zip(*bounds, strict=True)
        ):
            return f"{where}: the journal's box does not lie in the array"
        unit = array.shards or array.chunks
        if any(a % n or b - a > n for a, b, n in zip(entry.start, entry.stop, unit, strict=True)):
            return f"{where}: the journal's box is no stored object of the array"
        try:
            voxels = np.ascontiguousarray(array[Roi(entry.start, entry.stop).slices()])
        except PermissionError as error:
            raise InvalidInput(f"{where} cannot be read: permission denied") from error
        except Exception as error:  # codecs raise whatever they like
            return f"{where}: cannot be decoded ({_first_line(error)})"
        if google_crc32c.value(voxels) != entry.crc32c:
            return f"{where}: checksum differs"
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
