"""The lease on an output on an object store, in the place of a lock.

::

    out.zarr.volflow/lease/00000003.json    of the third driver: its process, and a sign of life

A driver takes lease n + 1 by writing it where there is none, of which a store lets one succeed; it
may do so once lease n was given back, or has not been written anew for a minute by the store's own
clock. The highest number counts: a driver that finds one above its own stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from volflow.errors import InvalidInput, Locked, Superseded
from volflow.store.atomic import parse_json
from volflow.store.journal.lock import Holder
from volflow.store.journal.refusals import output_of, writing
from volflow.store.remote.address import Address, Location, ObjectStat

__all__ = ["check_lease", "leased", "leaseholder_of"]

HEARTBEAT_S, LAPSE_S = 10.0, 60.0

_held: dict[Address, Lease] = {}  # of this process, by the folder of the journal


@dataclass(frozen=True)
class Lease:
    """A lease that this process took.

    Parameters
    ----------
    folder
        Of the leases of an output.
    number
        Of this one.
    since_s
        When it was taken, in seconds since 1970.
    token
        By which it differs from all others.
    ended
        Set when it is given back.
    """

    folder: Address
    number: int
    since_s: float
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def own(self) -> Address:
        """Where it lies."""
        return _numbered(self.folder, self.number)

    def written(self, *, released: bool = False) -> bytes:
        """Return what is written there."""
        who = {"host": socket.gethostname(), "pid": os.getpid(), "since_s": self.since_s}
        return json.dumps({**who, "token": self.token, "released": released}).encode()

    def is_lost(self) -> bool:
        """Return True if another driver took a later one."""
        leases = _leases(self.folder)
        return bool(leases) and int(leases[-1][0].stem) > self.number

    def beat(self) -> None:
        """Give signs of life until it ends or is lost; runs in a thread."""
        while not self.ended.wait(HEARTBEAT_S):
            # The store may answer again in time. A thread that ended here would lose the lease.
            with suppress(Exception):
                if self.is_lost():
                    return
                self.own.write_bytes(self.written())

    def give_back(self) -> None:
        """Let the next driver begin at once."""
        with suppress(OSError):  # which must not hide how the run ended; it lapses then
            if not self.is_lost():
                self.own.write_bytes(self.written(released=True))


@contextmanager
def leased(directory: Address) -> Iterator[None]:
    """Hold the lease on an output, which lapses if this process dies.

    Raises
    ------
    Locked
        If another driver holds it.
    InvalidInput
        If the store cannot be written, or writes where there is something already though it was
        asked not to.
    """
    with writing(directory, begun=False):
        lease = _take(directory)
    thread = threading.Thread(target=lease.beat, name="lease", daemon=True)
    thread.start()
    _held[directory] = lease
    try:
        yield
    finally:
        _held.pop(directory, None)
        lease.ended.set()
        thread.join()
        lease.give_back()


def check_lease(at: Location) -> None:
    """Stop a driver whose lease on an output, or on the one around it, another took over.

    Parameters
    ----------
    at
        The output or its journal, or what lies in one of them.

    Raises
    ------
    Superseded
        If so.
    """
    for held, lease in list(_held.items()):
        places = (str(held), output_of(held)) if isinstance(at, Address) else ()
        if any(at.is_relative_to(place) for place in places) and lease.is_lost():
            raise Superseded(
                f"another driver took over {output_of(held)}, as this one gave no sign of life"
                f" for {LAPSE_S:.0f} s; this one stops"
            )


def leaseholder_of(directory: Address) -> Holder | None:
    """Return the driver that holds the lease, or left it; None if it was given back."""
    try:
        last = _leases(directory / "lease")[-1]
        noted = _noted(last[0])
        alive = time.time() - last[1].st_mtime < LAPSE_S
        if noted.get("released"):
            return None
        return Holder(str(noted["host"]), int(noted["pid"]), float(noted["since_s"]), alive)
    except (OSError, ValueError, TypeError, KeyError, IndexError):  # nobody, or damaged
        return None


def _take(directory: Address) -> Lease:
    folder = directory / "lease"
    now_s = _store_time(folder, output_of(directory))
    leases = _leases(folder)
    last = 0
    if leases:
        latest, seen = leases[-1]
        last, silent_s, noted = int(latest.stem), now_s - seen.st_mtime, _noted(latest)
        if not noted.get("released") and silent_s < LAPSE_S:
            raise _refusal(directory, noted, silent_s)
    lease = Lease(folder, last + 1, time.time())
    if not lease.own.create(lease.written()):
        raise _refusal(directory, _noted(lease.own), 0)
    if lease.is_lost():  # the one that was looked at was two behind, and its successor deleted
        raise _refusal(directory, {}, 0)
    for earlier, _ in leases:
        with suppress(OSError):
            earlier.unlink(missing_ok=True)
    return lease


def _store_time(folder: Address, output: str) -> float:
    """Return the time by the clock of a store that keeps what is there; refuse any other."""
    probe = folder / f"probe-{uuid.uuid4().hex}"
    try:
        probe.create(b"first")
        if probe.create(b"second") or probe.read_bytes() != b"first":
            raise InvalidInput(
                f"{output} lies on a store that writes over an object though it was asked not to"
                " (If-None-Match: *), so that two drivers could write at once; write to a folder,"
                " and copy that to the store"
            )
        return probe.stat().st_mtime
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def _leases(folder: Address) -> list[tuple[Address, ObjectStat]]:
    found = [(one, seen) for one, seen in folder.below() if one.stem.isdecimal()]
    return sorted(found, key=lambda item: int(item[0].stem))


def _numbered(folder: Address, number: int) -> Address:
    return folder / f"{number:08d}.json"


def _noted(lease: Address) -> dict[str, Any]:
    try:
        noted = parse_json(lease.read_bytes(4096))
    except (FileNotFoundError, ValueError):
        noted = None
    return noted if isinstance(noted, dict) else {}


def _refusal(directory: Address, noted: dict[str, Any], silent_s: float) -> Locked:
    who = f"process {noted['pid']} on {noted['host']}" if {"pid", "host"} <= {*noted} else "another"
    return Locked(
        f"{output_of(directory)} is being written by {who}, which gave a sign of life"
        f" {max(0, silent_s):.0f} s ago; only one driver may write; wait for it to end or stop it:"
        f" after {LAPSE_S:.0f} s without a sign the next run takes over"
    )
