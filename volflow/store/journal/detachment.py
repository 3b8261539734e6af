"""The notes on a detached run: which scheduler drives it, under which key, and how it ended.

::

    out.zarr.volflow/
        detached.json     written when the run is handed over to a scheduler
        ended.json        written by its driver, or by who cancelled it

By them a rerun finds the run, and its result or its error are read when the scheduler has long
forgotten both.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from volflow.errors import writing_failed
from volflow.store.atomic import read_json, write_json
from volflow.store.journal.journal import journal_dir
from volflow.store.journal.records import typed

__all__ = [
    "CANCELLED",
    "DONE",
    "Detachment",
    "Ending",
    "drop_detachment",
    "has_begun",
    "keep_detachment",
    "keep_ending",
    "read_detachment",
    "read_ending",
]

DONE, CANCELLED = "done", "cancelled"
NOTE, END = "detached.json", "ended.json"

Moment = Annotated[float, Field(ge=0, le=1e11)]  # which a date can show


@dataclass(frozen=True)
class Detachment:
    """A run whose driver is a task of a cluster.

    Parameters
    ----------
    operation, store
        What it does, and the path of the volume that it stores.
    scheduler, key
        Address of the scheduler, and the key of the driver's task there.
    call
        Digest of what was asked for, by which the same call is known.
    since_s
        When it was handed over, in seconds since 1970.
    """

    operation: str
    store: str
    scheduler: str
    key: str
    call: str
    since_s: Moment


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
    outputs
        Paths of the volumes that were written, by name of the output.
    """

    key: str
    how: str
    text: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)


def read_detachment(folder: Path) -> Detachment | None:
    """Return the note in the folder beside an output; None if there is none, or a damaged one."""
    with suppress(OSError, ValueError):
        return typed(Detachment, read_json(folder / NOTE))
    return None


def read_ending(folder: Path, key: str) -> Ending | None:
    """Return how the run of a driver ended; None as long as nothing says so."""
    with suppress(OSError, ValueError):
        ending = typed(Ending, read_json(folder / END))
        return ending if ending.key == key else None
    return None


def keep_detachment(folder: Path, note: Detachment) -> None:
    """Write the note of a run into the folder beside its output; raises RunFailed if impossible."""
    _keep(folder / NOTE, note)


def keep_ending(folder: Path, ending: Ending) -> None:
    """Write how a run ended into the folder beside its output; raises RunFailed if impossible."""
    _keep(folder / END, ending)


def _keep(path: Path, note: Detachment | Ending) -> None:
    try:
        write_json(path, asdict(note))
    except OSError as error:
        raise writing_failed(error)(
            f"{path} cannot be written: {(error.strerror or str(error)).lower()}; fix this and run"
            " the same command again"
        ) from error


def drop_detachment(folder: Path) -> None:
    """Delete the note of a run that no scheduler has taken."""
    with suppress(OSError):
        (folder / NOTE).unlink(missing_ok=True)


def has_begun(folder: Path, note: Detachment) -> bool:
    """Return True if a run has begun its output since it was handed over.

    A driver that is begun again, as its worker died, must not replace what it has done. Both times
    are those of the file system.
    """
    try:
        began_ns = (journal_dir(note.store) / "plan.json").stat().st_mtime_ns
        return began_ns > (folder / NOTE).stat().st_mtime_ns and Path(note.store).exists()
    except OSError:
        return False
