"""Who works for a Dask client: asked of the scheduler itself, awaited where nobody is there yet.

`distributed.Client.scheduler_info` answers from a cache that a timer of Dask's overwrites without
workers, so its answer is no evidence. Nor is one reading of the scheduler: a worker counts as lost
when it has been missing from several readings in a row.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from dask.utils import parse_timedelta
from distributed import Client, Future

from volflow.errors import InvalidInput, RunFailed

__all__ = [
    "Patience",
    "Roster",
    "address_of",
    "await_workers",
    "is_embedded",
    "offers",
    "patience",
    "patient",
    "scheduler_gone",
    "worker_records",
    "workers",
]

log = logging.getLogger("volflow")

# The scheduler is asked for its workers at most this often; a query costs it 0.6 ms.
READ_EVERY_S = 1.0
# A worker is lost when it was missing for so long, and from so many readings in a row.
LOST_AFTER_S = 3.0
LOST_AFTER_READINGS = 3
# A wait is announced when it is more than a hiccup, and then now and again.
ANNOUNCE_AFTER_S = 2.0
ANNOUNCE_EVERY_S = 60.0
# An adaptive cluster grows by what it is offered; more at once would only load the scheduler.
MOST_OFFERS = 16
# No worker has it: a task that asks for it stays with the scheduler and counts as work to come.
OFFER = {"volflow-offer": 1}


def address_of(client: Client) -> str:
    """Return the address of a client's scheduler; empty where the client is closed."""
    return str(getattr(client.scheduler, "address", ""))


def is_embedded(client: Client) -> bool:
    """Return True where the client's workers are threads of this process."""
    return address_of(client).startswith("inproc://")


def scheduler_gone(address: str = "") -> RunFailed:
    """Return the error for a scheduler that answers no more; what is done is kept."""
    place = f" at {address}" if address else ""
    return RunFailed(
        f"the Dask scheduler{place} is gone; what is done is kept: start the cluster again and run"
        " the same command again to do the rest"
    )


def worker_records(client: Client) -> dict[str, Mapping[str, Any]]:
    """Return what the scheduler knows of its live workers, by address.

    Raises
    ------
    RunFailed
        Where the scheduler does not answer.
    """
    try:
        scheduler: Any = client.scheduler
        known = client.sync(scheduler.identity)["workers"]
    except (OSError, AttributeError, RuntimeError) as error:  # closed, or closing
        raise scheduler_gone(address_of(client)) from error
    return dict(sorted(known.items()))


def workers(client: Client) -> dict[str, int]:
    """Return the addresses of the live workers with their threads."""
    return {address: int(w["nthreads"]) for address, w in worker_records(client).items()}


@dataclass
class Roster:
    """Which workers live, by readings of the scheduler; the time is handed in.

    Examples
    --------
    >>> roster = Roster()
    >>> roster.read({"a": 1, "b": 2}, now_s=0)
    >>> roster.read({"b": 2}, now_s=1)
    >>> roster.live, sorted(roster.lost())
    ({'b': 2}, [])
    >>> roster.read({"b": 2}, now_s=3), roster.read({"b": 2}, now_s=4)
    (None, None)
    >>> sorted(roster.lost())
    ['a']
    """

    live: dict[str, int] = field(default_factory=dict)
    read_s: float | None = None
    missing: dict[str, list[float]] = field(default_factory=dict)

    def due(self, now_s: float) -> bool:
        """Return True where it is time for another reading."""
        return self.read_s is None or now_s - self.read_s >= READ_EVERY_S

    def read(self, reading: Mapping[str, int], now_s: float) -> None:
        """Account for a reading: addresses of workers with their threads."""
        known = {*self.live, *self.missing}
        for address in known - reading.keys():
            self.missing.setdefault(address, []).append(now_s)
        for address in self.missing.keys() & reading.keys():
            times = self.missing.pop(address)
            level = logging.INFO if len(times) == 1 else logging.WARNING
            log.log(level, "worker %s was out of sight for %.0f s", address, now_s - times[0])
        self.live, self.read_s = dict(reading), now_s

    def lost(self) -> set[str]:
        """Return the workers that were missing long enough to be dead."""
        return {
            address
            for address, times in self.missing.items()
            if len(times) >= LOST_AFTER_READINGS and times[-1] - times[0] >= LOST_AFTER_S
        }

    def forget(self, address: str) -> None:
        """Forget a lost worker, once what it held was taken back."""
        self.missing.pop(address, None)


@dataclass
class Patience:
    """How long to wait where a cluster has no worker, and what is said meanwhile.

    Parameters
    ----------
    wait_s
        Seconds; None waits for ever.
    """

    wait_s: float | None
    since_s: float | None = None
    said_s: float | None = None

    def worker_seen(self) -> None:
        """Account for a worker: the wait is over."""
        self.since_s = self.said_s = None

    def none_seen(self, client: Client, now_s: float) -> None:
        """Account for a reading without workers.

        Raises
        ------
        RunFailed
            Where the wait has been long enough.
        """
        self.since_s = now_s if self.since_s is None else self.since_s
        waited_s, address = now_s - self.since_s, address_of(client)
        if self.wait_s is not None and waited_s >= self.wait_s:
            raise RunFailed(
                f"the Dask cluster at {address} had no worker for {self.wait_s:g} s; start workers,"
                " or wait longer (wait=, --wait), and run the same command again"
            )
        if waited_s >= (ANNOUNCE_AFTER_S if self.said_s is None else self.said_s):
            self.said_s = waited_s + ANNOUNCE_EVERY_S
            limit = "" if self.wait_s is None else f", for {self.wait_s:g} s at most"
            log.warning("waiting for a worker: the Dask cluster at %s has none%s", address, limit)


_patience: ContextVar[float | None] = ContextVar("volflow_patience", default=None)


def patience() -> Patience:
    """Return the patience that the connection around this call was opened with."""
    return Patience(_patience.get())


@contextmanager
def patient(wait: float | str | None, most_s: float | None = None) -> Iterator[None]:
    """Let everything that runs inside wait so long for a first or another worker.

    Parameters
    ----------
    wait
        Seconds, or a text such as "10 minutes"; None leaves it as it is: for ever, at first.
    most_s
        Where more is of no use.

    Raises
    ------
    InvalidInput
        Where it is no time, or below 0.
    """
    wait_s = _patience.get() if wait is None else _seconds(wait)
    if most_s is not None:
        wait_s = most_s if wait_s is None else min(wait_s, most_s)
    before = _patience.set(wait_s)
    try:
        yield
    finally:
        _patience.reset(before)


def _seconds(wait: float | str) -> float:
    try:
        seconds = float(parse_timedelta(wait, default="s"))
    except (ValueError, KeyError, TypeError, AttributeError):
        seconds = math.nan
    if not seconds >= 0:
        raise InvalidInput(f'wait must be seconds or a text like "10 minutes", given {wait!r}')
    return seconds


class Offers:
    """Tasks that no worker can take, which an adaptive cluster counts as work to come."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.futures: list[Future[None]] = []

    def hold(self, count: int) -> None:
        """Let so many tasks wait, up to a bound."""
        count = min(count, MOST_OFFERS)
        while len(self.futures) < count:
            key = f"volflow-offer-{uuid.uuid4().hex[:8]}"
            self.futures.append(self.client.submit(_nothing, key=key, resources=OFFER))
        while len(self.futures) > count:
            self.futures.pop().release()


def _nothing() -> None:
    """Do nothing: an offer is never run."""


@contextmanager
def offers(client: Client) -> Iterator[Offers]:
    """Offer work to an adaptive cluster, which grows or stays as long as it is held."""
    offered = Offers(client)
    try:
        yield offered
    finally:
        with suppress(OSError, RuntimeError):  # the scheduler is gone, and its tasks with it
            offered.hold(0)


def await_workers(client: Client) -> None:
    """Wait until a cluster has a worker, as long as `patience` allows.

    Raises
    ------
    RunFailed
        Where none came in time, or the scheduler is gone.
    """
    waiting = patience()
    while not worker_records(client):
        waiting.none_seen(client, time.monotonic())
        time.sleep(READ_EVERY_S / 4)
