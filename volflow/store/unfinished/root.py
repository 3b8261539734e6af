"""Outputs whose run has not ended: their root metadata are withheld until all blocks are done.

::

    out.zarr/zarr.json.unfinished    becomes zarr.json by renaming, when the last block is recorded
    out.zarr/0/                      the array, with the voxels written so far

Until then no reader, of whatever software, finds a volume there.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

import zarr
from zarr.core.group import GroupMetadata
from zarr.storage import LocalStore, StorePath

from volflow.errors import Damaged, InvalidInput, first_line, writing_failed
from volflow.store.atomic import read_json

__all__ = [
    "WITHHELD",
    "is_unfinished",
    "publish",
    "refuse_unfinished",
    "withheld_group",
    "withhold",
]

ROOT, WITHHELD = "zarr.json", "zarr.json.unfinished"
DEEPEST = 2  # folders above an array in an output: its volume, and the store of several


def is_unfinished(folder: os.PathLike[str]) -> bool:
    """Return True if the run that writes an output on a disk has not ended."""
    return isinstance(folder, Path) and (folder / WITHHELD).is_file()


def withhold(folder: Path) -> None:
    """Withhold the root metadata of a new output until `publish`; raises OSError if it cannot."""
    (folder / ROOT).rename(folder / WITHHELD)


def publish(*folders: os.PathLike[str]) -> None:
    """Put the root metadata of outputs in place, one after the other; those there already stay.

    Parameters
    ----------
    folders
        The volumes of an output, then the store around them.

    Raises
    ------
    RunFailed
        If they cannot be renamed.
    """
    for folder in folders:
        if not isinstance(folder, Path):  # on a store, where nothing is renamed, it is in place
            continue
        try:
            with suppress(FileNotFoundError):
                (folder / WITHHELD).rename(folder / ROOT)
        except OSError as error:
            raise writing_failed(error)(
                f"{folder} cannot be finished: {error.strerror or error}; all its blocks are kept,"
                " put this right and run the same command again"
            ) from error


def withheld_group(folder: Path) -> zarr.Group:
    """Return the group of an output that is unfinished, or lies in one, as its own run opens it.

    Raises
    ------
    Damaged
        If its metadata are damaged.
    """
    name = WITHHELD if is_unfinished(folder) else ROOT
    try:
        metadata = GroupMetadata.from_dict(read_json(folder / name))
    except Exception as error:  # any value may have any type
        raise Damaged(
            f"{folder} cannot be opened: {name}: {first_line(error)}; its metadata are damaged,"
            " write it again with overwrite=True (--overwrite)"
        ) from error
    return zarr.Group(zarr.AsyncGroup(metadata, StorePath(LocalStore(folder))))


def refuse_unfinished(path: Path) -> None:
    """Refuse an output that is not finished, and what lies in one, saying how far it is.

    Raises
    ------
    InvalidInput
        With the number of blocks, and the remedy.
    """
    for folder in (path, *path.parents[:DEEPEST]):
        if is_unfinished(folder):
            raise InvalidInput(f"{folder} is not complete: {_progress(folder)}")


def _progress(folder: Path) -> str:
    """Return how far the journal of an output is; of one volume of several, that of all."""
    store = folder.parent if is_unfinished(folder.parent) else folder
    # Read without the room of journals, which stands on this one.
    journal = Path(os.path.realpath(store) + ".volflow")
    try:
        total = math.prod(int(n) for n in read_json(journal / "plan.json")["settings"]["grid"])
        done = sum(1 for _ in (journal / "done").glob("*.json"))
        text = f"{done} of {total} blocks are done"
    except Exception:  # absent, or damaged in any way
        return (
            f"its journal {journal} is gone or damaged; write it again with overwrite=True"
            " (--overwrite)"
        )
    return (
        f"{text}; wait for its run, or run the command that started it again if that has ended"
        f" (volflow status {store} says which)"
    )
