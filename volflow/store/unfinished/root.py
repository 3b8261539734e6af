"""Outputs whose run has not ended: their root metadata are withheld until all blocks are done.

::

    out.zarr/zarr.json.unfinished    becomes zarr.json when the last block is recorded
    out.zarr/0/                      the array, with the voxels written so far

Until then no reader, of whatever software, finds a volume there. On a disk the file is renamed. On
a store, where nothing can be, the new object is written before the old one is deleted: where a
process was killed in between, readers see a volume, and the next run deletes the rest.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import zarr
from zarr.core.group import GroupMetadata
from zarr.storage import LocalStore, StorePath

from volflow.errors import Damaged, InvalidInput, RunFailed, first_line, writing_failed
from volflow.store.atomic import read_json
from volflow.store.remote.access import UNLISTED, holds
from volflow.store.remote.address import ROOTS, Address, Location
from volflow.store.remote.zarr_store import Remote

__all__ = [
    "ROOT",
    "WITHHELD",
    "is_unfinished",
    "publish",
    "refuse_unfinished",
    "settle",
    "withheld_group",
    "withhold",
]

ROOT, WITHHELD = ROOTS[:2]
DEEPEST = 2  # folders above an array in an output: its volume, and the store of several


def is_unfinished(at: Location) -> bool:
    """Return True if the run that writes an output has not ended."""
    if isinstance(at, Path):
        return (at / WITHHELD).is_file()
    return _is_there(at, WITHHELD) and not _is_there(at, ROOT)


def _is_there(at: Address, name: str) -> bool:
    try:
        return holds(at.url, name)
    except PermissionError:  # so a public store answers for what it does not hold
        return False


def withhold(at: Location, check: Callable[[], None] = lambda: None) -> None:
    """Withhold the root metadata of an output until `publish`, if they are in place.

    Parameters
    ----------
    at
        A volume, or the store around several.
    check
        Called before an object is changed: stops a driver that was replaced.

    Raises
    ------
    OSError
        If that is impossible.
    """
    if isinstance(at, Path):
        with suppress(FileNotFoundError):
            (at / ROOT).rename(at / WITHHELD)
    else:
        # Metadata that are withheld already are those of the current run.
        _move(at / ROOT, at / WITHHELD, check, replace=False)


def publish(*places: Location, check: Callable[[], None] = lambda: None) -> None:
    """Put the root metadata of outputs in place, one after the other; those there already stay.

    Parameters
    ----------
    places
        The volumes of an output, then the store around them.
    check
        As in `withhold`.

    Raises
    ------
    RunFailed
        If that is impossible.
    """
    for at in places:
        try:
            if isinstance(at, Path):
                with suppress(FileNotFoundError):
                    (at / WITHHELD).rename(at / ROOT)
            else:
                _move(at / WITHHELD, at / ROOT, check, replace=True)
        except OSError as error:
            raise writing_failed(error)(
                f"{at} cannot be finished: {error.strerror or error}; all its blocks are kept,"
                " put this right and run the same command again"
            ) from error


def _move(one: Address, other: Address, check: Callable[[], None], *, replace: bool) -> None:
    """Give an object another name, if there is one; never are both names free."""
    try:
        data = one.read_bytes()
    except FileNotFoundError:
        return
    check()
    if replace or not other.exists():
        other.write_bytes(data)
    check()  # what is deleted may be the next run's by now
    one.unlink(missing_ok=True)


def settle(at: Location) -> None:
    """Delete what a `publish` that was cut off left beside root metadata, before these change."""
    if isinstance(at, Address):
        (at / WITHHELD).unlink(missing_ok=True)


def withheld_group(at: Location) -> zarr.Group:
    """Return the group of an output, be it finished or not, as its own run opens it.

    Raises
    ------
    Damaged
        If its metadata are damaged.
    RunFailed
        If they cannot be read.
    """
    name = WITHHELD
    try:
        try:
            found = read_json(at / name)
        except FileNotFoundError:
            name = ROOT
            found = read_json(at / name)
        metadata = GroupMetadata.from_dict(found)
    except Exception as error:  # any value may have any type
        why = getattr(error, "strerror", None) or first_line(error)
        why = f"{at} cannot be opened: {name}: {why}"
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise RunFailed(f"{why}; put this right and run the same command again") from error
        raise Damaged(
            f"{why}; its metadata are damaged, write it again with overwrite=True (--overwrite)"
        ) from error
    store = LocalStore(at) if isinstance(at, Path) else Remote(at.url)
    return zarr.Group(zarr.AsyncGroup(metadata, StorePath(store)))


def refuse_unfinished(at: Location) -> None:
    """Refuse an output that is not finished, on a disk also what lies in one, saying how far it is.

    Raises
    ------
    InvalidInput
        With the number of blocks, and the remedy.
    """
    around = at.parents[:DEEPEST] if isinstance(at, Path) else ()
    for place in (at, *around):
        if is_unfinished(place):
            raise InvalidInput(f"{place} is not complete: {_progress(place)}")


def _progress(at: Location) -> str:
    """Return how far the journal of an output is; of one volume of several, that of all."""
    if isinstance(at, Address) and at.url.partition("://")[0].lower() in UNLISTED:
        return (
            "how many blocks are done cannot be told behind plain HTTP, where nothing can be"
            " listed; wait for its run to end where it is written"
        )
    store = at.parent if is_unfinished(at.parent) else at
    # Read without the room of journals, which stands on this one.
    local = isinstance(store, Path)
    journal = Path(f"{os.path.realpath(store)}.volflow") if local else Address(f"{store}.volflow")
    try:
        plan = read_json(journal / "plan.json")
        total = math.prod(int(n) for n in plan["settings"]["grid"])
        records = "done" if local or not plan.get("run") else f"done-{plan['run']}"
        done = sum(1 for _ in (journal / records).glob("*.json"))
        text = f"{done} of {total} blocks are done"
    except Exception as error:  # absent, or damaged in any way
        if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
            return (
                f"its journal {journal} is gone or damaged; write it again with overwrite=True"
                " (--overwrite)"
            )
        text = "how many blocks are done cannot be seen from here"
    return (
        f"{text}; wait for its run, or run the command that started it again if that has ended"
        f" (volflow status {store} says which)"
    )
