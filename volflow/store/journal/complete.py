"""Check that inputs are complete: blocks not written yet would be read as zeros."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.opening import is_url, is_zarr
from volflow.store.volume import Volume, open_volume

__all__ = ["begun_store", "count_blocks", "open_complete", "require_complete"]


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

    Volumes without a journal, remote or from other software, are accepted.

    Raises
    ------
    InvalidInput
        If blocks are missing, with their number and how to finish them.
    """
    if volume.path is None or is_url(volume.path):
        return
    done, total = count_blocks(Path(volume.path))
    if done < total:
        raise InvalidInput(
            f"{volume.path} is not complete: {done} of {total} blocks are done, and the others"
            " would be read as zeros; run the command that started it again first"
        )


def begun_store(path: Path) -> Path:
    """Return the store whose run wrote a volume: the volume itself, or one around it."""
    while not (journal_dir(path) / "plan.json").exists() and is_zarr(path.parent):
        path = path.parent
    return path


def count_blocks(path: Path) -> tuple[int, int]:
    """Return the numbers of finished and of all blocks of a volume; (0, 0) without a journal."""
    journal = Journal(journal_dir(begun_store(path)))
    record = journal.recorded()
    if record is None:
        return 0, 0
    total = math.prod(record.settings.get("grid", ()))
    # Only names are read: a volume of 10 TB has records of some 300 000 blocks.
    return sum(1 for _ in (journal.directory / "done").glob("*.json")), total
