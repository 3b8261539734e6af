"""The notes on a detached run: which scheduler drives it, under which key, and how it ended.

::

    out.zarr.volflow/
        detached.json     written when the run is handed over to a scheduler
        ended.json        written by its driver, or by who cancelled it

By them a rerun finds the run, and its result or its error are read when the scheduler has long
forgotten both. They lie beside the output, on a disk or on an object store.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, TypeVar

from pydantic import Field

from volflow.errors import Damaged, writing_failed
from volflow.store.atomic import read_json, write_json
from volflow.store.journal.journal import journal_of
from volflow.store.journal.records import typed
from volflow.store.journal.refusals import reason, unread
from volflow.store.remote.address import Address, Location, is_stored, location

__all__ = [
    "CANCELLED",
    "DONE",
    "Detachment",
    "Ending",
    "detachment_facts",
    "drop_detachment",
    "has_begun",
    "keep_detachment",
    "keep_ending",
    "read_detachment",
    "read_ending",
    "run_before",
]

T = TypeVar("T")

DONE, CANCELLED = "done", "cancelled"
NOTE, END = "detached.json", "ended.json"

Moment = Annotated[float, Field(ge=0, le=1e11)]  # which a date can show


@dataclass(frozen=True)
class Detachment:
    """A run whose driver is a task of a cluster.

    Parameters
    ----------
    operation, store
        What it does, and the path or URL of the volume that it stores; "" where it stores several.
    scheduler, key
        Address of the scheduler, and the key of the driver's task there.
    call
        Digest of what was asked for, by which the same call is known.
    since_s
        When it was handed over, in seconds since 1970.
    before
        The name of the run that the volume was of just before; None if it was of none.
    """

    operation: str
    store: str
    scheduler: str
    key: str
    call: str
    since_s: Moment
    before: str | None = None


@dataclass(frozen=True)
class Ending:
    """How a detached run ended.

    Parameters
    ----------
    key
        Of its driver.
    how
        ``"done"``, ``"cancelled"``, or the name of the error that ended it.
    text
        What the error says.
    result
        What the call returns, as plain values.
    """

    key: str
    how: str
    text: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


def read_detachment(folder: Location) -> Detachment | None:
    """Return the note in the folder beside an output; None if there is none, or a damaged one.

    Raises
    ------
    RunFailed
        If the folder is on a store, and that does not answer.
    """
    return _read(Detachment, folder / NOTE)


def read_ending(folder: Location, key: str) -> Ending | None:
    """Return how the run of a driver ended; None as long as nothing says so.

    Raises
    ------
    RunFailed
        As `read_detachment`.
    """
    ending = _read(Ending, folder / END)
    return ending if ending is not None and ending.key == key else None


def detachment_facts(folder: Location) -> dict[str, Any] | None:
    """Return which scheduler was given the run of an output, and how that ended, as plain values.

    None where none was given it; raises as `read_detachment`.
    """
    note = read_detachment(folder)
    if note is None:
        return None
    ending = read_ending(folder, note.key)
    ended, text = ("", "") if ending is None else (ending.how, ending.text)
    given = {name: getattr(note, name) for name in ("operation", "scheduler", "key", "since_s")}
    return {**given, "ended": ended, "text": text}


def _read(kind: type[T], at: Location) -> T | None:
    try:
        return typed(kind, read_json(at))
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        if isinstance(at, Address):  # it may be there
            raise unread(at, error) from error
        return None


def keep_detachment(folder: Location, note: Detachment) -> None:
    """Write the note of a run into the folder beside its output; raises RunFailed if impossible."""
    _keep(folder / NOTE, note)


def keep_ending(folder: Location, ending: Ending) -> None:
    """Write how a run ended into the folder beside its output; raises RunFailed if impossible."""
    _keep(folder / END, ending)


def _keep(path: Location, note: Detachment | Ending) -> None:
    try:
        write_json(path, asdict(note))
    except OSError as error:
        raise writing_failed(error)(
            f"{path} cannot be written: {reason(error)}; fix this and run the same command again"
        ) from error


def drop_detachment(folder: Location) -> None:
    """Delete the note of a run that no scheduler has taken."""
    with suppress(OSError):
        (folder / NOTE).unlink(missing_ok=True)


def run_before(store: str) -> str | None:
    """Return the name of the run that a volume is of; None if it is of none, or of a damaged one.

    Raises
    ------
    VolflowError
        If its record is there and cannot be read.
    """
    with suppress(Damaged):
        return journal_of(store).run()
    return None


def has_begun(note: Detachment) -> bool:
    """Return True if a run has begun its output since it was handed over.

    A driver that is begun again, as its worker died, must not replace what it has done. Names are
    compared, as a store tells times to the second; raises as `run_before`.
    """
    begun = bool(note.store) and run_before(note.store) not in (None, note.before)
    return begun and is_stored(location(note.store))
