"""The task that drives a detached run: it begins on any worker, and takes no thread from blocks.

If its worker dies, the scheduler begins it again on another, where the journal says what is left.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import cloudpickle
from distributed import Client, Worker, get_worker, secede

from volflow.engine.wanted import check_wanted, wanted_by, while_wanted
from volflow.errors import Locked, RunFailed, Superseded, VolflowError, first_line
from volflow.store.journal.detachment import (
    CANCELLED,
    DONE,
    Detachment,
    Ending,
    has_begun,
    keep_ending,
    read_detachment,
    read_ending,
)
from volflow.store.journal.lease import LAPSE_S
from volflow.store.remote.address import Address, Location, location

__all__ = ["Perform", "drive", "is_driving"]

log = logging.getLogger("volflow")

# What a call does with a client, given whether an earlier attempt has begun its output: what it
# returns, as plain values.
Perform = Callable[[Client, bool], Mapping[str, Any]]

# A network file system may show a new note, or the lock of a driver that died, so much later.
PATIENCE_S = 60.0
LOOK_EVERY_S, LOOK_AT_LEAST_S = 0.25, 4.0

_driving: set[str] = set()  # keys of the drivers of this process


def drive(perform: bytes, folder: str) -> None:
    """Drive a run to its end, and note beside its output how it ended.

    Parameters
    ----------
    perform
        Pickled `Perform`.
    folder
        The folder beside the output, which holds the note.
    """
    worker = get_worker()
    key = str(worker.get_current_task())
    secede()
    # In a thread of its own: Dask would have all that this one submits go before later tasks, and
    # blocks shall take turns with those of other runs. It must not keep a worker from ending.
    given = (worker, key, perform, location(folder))
    thread = threading.Thread(target=_drive, args=given, name=key, daemon=True)
    _driving.add(key)
    thread.start()
    thread.join()


def is_driving(key: str) -> bool:
    """Return True while the thread of a driver runs in this process; asked of workers."""
    return key in _driving


def _drive(worker: Worker, key: str, perform: bytes, folder: Location) -> None:
    wanted = partial(wanted_by, worker, key)
    try:
        note = _note_of(key, folder, wanted)
        if note is None or _is_over(folder, key):
            return
        address, security = worker.scheduler.address, worker.security
        with Client(address, security=security, set_as_default=False) as client:
            with while_wanted(wanted):
                ending = _ending(note, folder, perform, client, wanted)
            if ending is None or (ending.how != DONE and _is_over(folder, key)):
                return
            keep_ending(folder, ending)
            if ending.how == DONE or wanted():  # else the scheduler has another attempt
                client.unpublish_dataset(key)
    except Exception:  # the scheduler is gone, or the disk is full
        log.exception("the driver %s could not say how it ended", key)
    finally:
        _driving.discard(key)


def _note_of(key: str, folder: Location, wanted: Callable[[], bool]) -> Detachment | None:
    """Return the note of a driver; None if it is not there, or is another's by now."""
    until_s = time.monotonic() + PATIENCE_S
    while wanted():
        note = read_detachment(folder)
        if note is not None and note.key == key:
            return note
        if time.monotonic() > until_s:
            log.warning("the driver %s finds no note of it in %s, and ends", key, folder)
            break
        time.sleep(LOOK_EVERY_S)
    return None


def _is_over(folder: Location, key: str) -> bool:
    """Return True if a run was cancelled, or is done: an attempt that failed is made again."""
    ending = read_ending(folder, key)
    return ending is not None and ending.how in (CANCELLED, DONE)


def _ending(
    note: Detachment, folder: Location, perform: bytes, client: Client, wanted: Callable[[], bool]
) -> Ending | None:
    """Run to the end, and return how that was; None if the driver is no longer wanted."""
    lapse_s = LAPSE_S if isinstance(folder, Address) else 0.0  # of the lease of one that died
    until_s, pause_s = time.monotonic() + lapse_s + PATIENCE_S, LOOK_EVERY_S
    while True:
        try:
            check_wanted()
            done: Perform = cloudpickle.loads(perform)
            return Ending(note.key, DONE, result=dict(done(client, has_begun(note))))
        except Superseded as error:
            return _failed(note, error) if wanted() else None
        except Locked as error:
            # By whoever handed it over, for a moment, or by a driver whose worker was lost.
            if time.monotonic() > until_s:
                return _failed(note, error)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LOOK_AT_LEAST_S)
        except Exception as error:
            return _failed(note, error)


def _failed(note: Detachment, error: Exception) -> Ending:
    if isinstance(error, VolflowError):
        return Ending(note.key, type(error).__name__, str(error))
    log.error("the driver %s failed", note.key, exc_info=error)
    text = f"{note.store}: the driver failed, {type(error).__name__}: {first_line(error)}"
    return Ending(note.key, RunFailed.__name__, text)
