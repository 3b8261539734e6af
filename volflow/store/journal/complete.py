"""Check that inputs are complete: blocks not written yet would be read as zeros."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput, RunFailed
from volflow.store.journal.journal import journal_of
from volflow.store.journal.refusals import reason, unanswered
from volflow.store.opening import is_zarr
from volflow.store.remote.address import Address, Location, location
from volflow.store.volume import Volume, open_volume

__all__ = ["begun_store", "count_blocks", "is_complete", "open_complete", "require_complete"]


def open_complete(x: Any) -> Volume:
    """Open a volume as an input, refusing one that is not complete.

    Raises
    ------
    InvalidInput
        If it cannot be opened, or the run that writes it has not ended.
    """
    volume = open_volume(x)
    require_complete(volume)
    return volume


def require_complete(volume: Volume) -> None:
    """Refuse a volume whose journal says that blocks are missing.

    Volumes without a journal, as those of other software, are accepted.

    Raises
    ------
    InvalidInput
        If blocks are missing, with their number and how to finish them.
    """
    if volume.path is None:
        return
    try:
        path = location(volume.path)
    except InvalidInput:  # where volflow writes nothing, there is no journal
        return
    try:
        done, total = count_blocks(path)
    except OSError as error:
        # Of a public store, which shows what is there and does not say what is not.
        if isinstance(path, Path):
            raise
        if isinstance(error, PermissionError):
            return
        raise RunFailed(unanswered(path, reason(error))) from error
    if done < total:
        raise InvalidInput(
            f"{volume.path} is not complete: {done} of {total} blocks are done, and the others"
            " would be read as zeros; run the command that started it again first"
        )


def begun_store(path: Location) -> Location:
    """Return the store whose run wrote a volume: the volume itself, or one around it."""
    while not (journal_of(path).directory / "plan.json").exists() and _is_inside(path):
        path = path.parent
    return path


def _is_inside(path: Location) -> bool:
    if isinstance(path, Address) and not path.parent.key:  # a bucket has no journal beside it
        return False
    return is_zarr(path.parent)


def count_blocks(path: Location) -> tuple[int, int]:
    """Return the numbers of finished and of all blocks of a volume; (0, 0) without a journal."""
    journal = journal_of(begun_store(path))
    record = journal.recorded()
    if record is None:
        return 0, 0
    total = math.prod(record.settings.get("grid", ()))
    # Only names are read: a volume of 10 TB has records of some 300 000 blocks.
    return sum(1 for _ in journal.done_folder().glob("*.json")), total


def is_complete(path: Location) -> bool:
    """Return True if a volume has a journal that says that all its blocks are done."""
    done, total = count_blocks(path)
    return 0 < done == total
