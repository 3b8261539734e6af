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

from volflow.errors import Damaged, InvalidInput, RunFailed, first_line
from volflow.geometry.roi import Roi
from volflow.store.coverage import BAD, MISSING, VERIFIED, Coverage, FileCheck
from volflow.store.formats.exported import (
    Receipt,
    fault_of,
    foreign_voxels,
    read_receipt,
    state_of,
    stored_behind,
)
from volflow.store.formats.written import is_foreign
from volflow.store.frames import check_frames
from volflow.store.journal.complete import begun_store
from volflow.store.journal.journal import Journal, journal_dir, journal_of
from volflow.store.journal.levels import level_journals
from volflow.store.journal.refusals import refuse_plain_http, unread
from volflow.store.layout import ShardEntry
from volflow.store.opening import is_url
from volflow.store.remote.address import Address, Location, check_answers, location
from volflow.store.remote.fetched import fetched
from volflow.store.remote.zarr_store import Remote
from volflow.store.unfinished.root import is_unfinished
from volflow.store.volume import Volume, open_volume

__all__ = ["Coverage", "FileCheck", "verify"]


def verify(
    path: str | os.PathLike[str] | Volume, *, progress: Callable[[int, int], object] | None = None
) -> Coverage:
    """Read every stored object of an output back and compare it with its checksum.

    Blocks found bad are marked undone, so that running the same command again repairs just these.
    Coarser levels are read too; `pyramid` repairs those. An exported file is compared with the
    checksum recorded when it was written, and the volume that it was exported from is read.

    Parameters
    ----------
    path
        An output that volflow wrote, or its `Volume`; or a file that `predict` or `export` wrote.
    progress
        Called with the number of blocks read so far and the number to read.

    Raises
    ------
    InvalidInput
        If the output has no journal, as outputs of other programs.
    Damaged
        If the journal is damaged.
    Locked
        If a driver is writing the output.
    """
    named = path.path if isinstance(path, Volume) else isinstance(path, str | os.PathLike)
    if not named:
        raise InvalidInput(
            f"only outputs on disk can be verified, given a {type(path).__name__} in memory; give"
            " the path of an output that volflow wrote, or its Volume"
        )
    out = os.fspath((path.path or "") if isinstance(path, Volume) else path)
    refuse_plain_http(out, "it cannot be verified")
    at = location(out)
    if is_foreign(at) and isinstance(at, Address):
        raise InvalidInput(
            f"{at} is a file on a store, and there only volumes can be verified; copy it to a disk"
            f" with its receipt, {at}.volflow"
        )
    if isinstance(at, Path) and is_foreign(at) and not at.is_dir():
        return _verify_file(at, progress)
    return _verify_volume(at, progress)


def _verify_volume(out: Location, progress: Callable[[int, int], object] | None) -> Coverage:
    check_answers(out)
    journal = journal_of(out)
    if journal.recorded() is None:
        raise InvalidInput(
            f"{out} has no journal ({journal.directory}), which holds the checksums; only outputs"
            " that volflow wrote can be verified"
        )
    with journal.lock():
        parts = [_part("", journal)]
        parts += [_part(array, level) for array, level in level_journals(journal).items()]
        total, read = sum(len(part.done) for part in parts), itertools.count(1)

        def step() -> None:
            if progress is not None:
                progress(next(read), total)

        found, *levels = (_coverage(out, part, step) for part in parts)
    return replace(found, levels=tuple(levels), unfinished=is_unfinished(out))


def _verify_file(path: Path, progress: Callable[[int, int], object] | None) -> Coverage:
    receipt, stored = read_receipt(path), stored_behind(path)
    if stored is not None:
        coverage = _verify_volume(stored, progress)
        remedy = "run the same command again, which exports the volume again"
        removed = f"move it away and {remedy}" if path.exists() else remedy
        check = _check_file(path, removed, coverage)
        if receipt and check.ok and coverage.ok and _is_older(path, receipt, stored):
            check = FileCheck(str(path), "it holds an earlier result than the volume", note=remedy)
        return replace(coverage, file=check)
    if receipt is None and "{case}" in path.name:
        raise InvalidInput(
            f"{path} names the results of many cases, and one is verified at a time; give the path"
            " of a result (volflow status takes the pattern)"
        )
    if receipt is None:
        raise InvalidInput(
            f"{path} has no receipt in {journal_dir(path)}, which holds the checksum; only files"
            " that volflow wrote can be verified"
        )
    origin = receipt.volume or "what it came from"
    remedy = f"export it again from {origin} with overwrite=True (--overwrite)"
    coverage, note = _verify_exported(path, receipt, progress)
    return replace(coverage, file=_check_file(path, remedy, coverage, note))


def _is_older(path: Path, receipt: Receipt, stored: Path) -> bool:
    """Return True if the volume behind a file was written again since, with other voxels."""
    volume = open_volume(stored)
    return receipt.state != state_of(volume) and bool(foreign_voxels(path, volume))


def _verify_exported(
    path: Path, receipt: Receipt, progress: Callable[[int, int], object] | None
) -> tuple[Coverage, str]:
    """Return the coverage of the volume that a file was exported from, and a note on its state."""
    nothing = Coverage(str(path), (), "")
    if not receipt.volume or is_url(receipt.volume):
        return nothing, "the volume it was exported from has no journal on this machine"
    try:
        changed = state_of(open_volume(receipt.volume)) != receipt.state
        coverage = _verify_volume(begun_store(Path(receipt.volume)), progress)
    except (ValueError, OSError) as error:  # gone, without a journal, or being written
        return nothing, f"the volume it was exported from was not verified: {error}"
    if not (coverage.ok or coverage.damaged):
        blocks = f"{coverage.done} of {coverage.total} blocks"
        return nothing, f"the volume it was exported from is no longer complete: {blocks}"
    return coverage, "the volume it was exported from has changed since" if changed else ""


def _check_file(path: Path, remedy: str, coverage: Coverage, note: str = "") -> FileCheck:
    """Compare a file with its receipt or, if it holds no checksum, with the volume."""
    receipt = read_receipt(path)
    while receipt is not None:
        fault, now = fault_of(path, receipt), read_receipt(path)
        if not fault or now == receipt:
            return FileCheck(str(path), fault, bool(fault), remedy if fault else note)
        receipt = now  # it was exported again meanwhile
    if not path.exists():
        fault = "it is missing" if coverage.ok else "it is not written yet"
        return FileCheck(str(path), fault, coverage.ok, remedy if coverage.ok else "")
    if not coverage.ok:
        return FileCheck(str(path), "it cannot be compared, as the volume is not complete")
    fault = foreign_voxels(path, open_volume(coverage.path))
    note = (
        "no checksum was recorded at its export: its voxels equal the volume's, its header was not"
        " compared"
    )
    return FileCheck(str(path), fault, bool(fault), remedy if fault else note)


@dataclass(frozen=True)
class _Part:
    """The output that one journal describes: the run's own, or a coarser level."""

    array: str
    journal: Journal
    grid: tuple[int, ...]
    done: Mapping[int, Sequence[ShardEntry]]


def _part(array: str, journal: Journal) -> _Part:
    record = journal.recorded()
    grid = record.settings.get("grid") if record else ()
    if grid is None:
        raise Damaged(
            f"the journal {journal.directory} records no grid of blocks; write the output again"
        )
    total = math.prod(grid)
    done = {block: entries for block, entries in journal.done().items() if block < total}
    return _Part(array, journal, tuple(grid), done)


def _coverage(out: Location, part: _Part, step: Callable[[], None]) -> Coverage:
    cells, bad = bytearray(MISSING.encode() * math.prod(part.grid)), []
    for block, fault in _check(out, part.done):
        cells[block] = ord(BAD if fault else VERIFIED)
        if fault:
            part.journal.forget([block])
            bad.append((block, fault))
        step()
    return Coverage(str(out / part.array), part.grid, cells.decode(), tuple(bad))


def _check(
    out: Location, done: Mapping[int, Sequence[ShardEntry]]
) -> Iterator[tuple[int, str | None]]:
    """Yield the number of each finished block, and its fault or None."""
    names = {entry.array for entries in done.values() for entry in entries}
    arrays = {name: _open(out, name) for name in sorted(names)}
    # One object at a time: zarr decodes its chunks on all cores.
    for block, entries in done.items():
        yield block, _fault(arrays, entries)


def _open(out: Location, name: str) -> zarr.Array[Any] | str:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise Damaged(
            f"the journal of {out} names an array outside the output: {name!r}; it is damaged,"
            " write the output again"
        )
    try:
        return zarr.open_array(
            out / inside if isinstance(out, Path) else Remote(str(out / name)), mode="r"
        )
    except Exception as error:  # zarr raises any error for a damaged or deleted array
        gone = isinstance(error, FileNotFoundError)
        if isinstance(out, Address) and isinstance(error, OSError) and not gone:
            raise unread(out / name, error) from error  # which says nothing of what it holds
        return f"array {name} cannot be opened ({first_line(error)})"


def _fault(
    arrays: Mapping[str, zarr.Array[Any] | str], entries: Sequence[ShardEntry]
) -> str | None:
    """Return the fault of a block's stored objects; None if all are intact."""
    for entry in entries:
        array = arrays[entry.array]
        if isinstance(array, str):
            return array
        where = f"array {entry.array} at {entry.start}"
        bounds = (entry.start, entry.stop, array.shape)
        if not len(entry.start) == len(entry.stop) == array.ndim or not all(
            0 <= a < b <= n for a, b, n in zip(*bounds, strict=True)
        ):
            return f"{where}: the journal's box lies outside the array"
        unit = array.shards or array.chunks
        if any(a % n or b - a > n for a, b, n in zip(entry.start, entry.stop, unit, strict=True)):
            return f"{where}: the journal's box is not a stored object of the array"
        try:
            box = Roi(entry.start, entry.stop).slices()
            check_frames(array, box)
            voxels = np.ascontiguousarray(fetched(array, box)[box])
        except PermissionError as error:
            raise InvalidInput(f"{where} cannot be read: permission denied") from error
        except OSError as error:
            if not isinstance(array.store, Remote):
                return f"{where}: cannot be decoded ({first_line(error)})"
            raise RunFailed(
                f"{where} cannot be read: {error.strerror or first_line(error)}; run the same"
                " command again when the store answers"
            ) from error
        except Exception as error:  # codecs raise errors of any class
            return f"{where}: cannot be decoded ({first_line(error)})"
        if google_crc32c.value(voxels) != entry.crc32c:
            return f"{where}: checksum differs"
    return None
