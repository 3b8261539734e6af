"""The workers of a Dask client: read from the scheduler itself, and awaited if there are none.

`distributed.Client.scheduler_info` returns a cache that a timer of Dask's overwrites without
workers, so it is not reliable.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from dask.utils import parse_timedelta
from distributed import Client, Future

from volflow.engine.messages import Log, Stop, WorkerReading
from volflow.engine.roster import Patience
from volflow.errors import InvalidInput, RunFailed

__all__ = [
    "address_of",
    "await_workers",
    "grows",
    "is_embedded",
    "offers",
    "patience",
    "patient",
    "read_workers",
    "scheduler_gone",
    "tell",
    "worker_records",
    "workers",
]

log = logging.getLogger("volflow")

# Interval at which a cluster without workers is queried.
LOOK_EVERY_S = 0.25
# Others are paused or closing; a starting worker runs before its first task reaches it.
STARTED = ("init", "running")
# No worker has it: a task that requires it stays at the scheduler and counts as future work.
OFFER = {"volflow-offer": 1}


def address_of(client: Client) -> str:
    """Return the address of a client's scheduler; empty if the client is closed."""
    return str(getattr(client.scheduler, "address", ""))


def is_embedded(client: Client) -> bool:
    """Return True if the client's workers are threads of this process."""
    return address_of(client).startswith("inproc://")


def grows(client: Client) -> bool:
    """Return True if the client's cluster starts workers by itself, or may do so."""
    # A cluster that is not one of Dask's classes may grow; one known by address only is fixed.
    return getattr(client.cluster, "_adaptive", client.cluster) is not None


def scheduler_gone(address: str = "") -> RunFailed:
    """Return the error for a scheduler that no longer answers."""
    place = f" at {address}" if address else ""
    return RunFailed(
        f"the Dask scheduler{place} is gone; what is done is kept: start the cluster again and run"
        " the same command again to do the rest"
    )


def worker_records(client: Client) -> dict[str, Mapping[str, Any]]:
    """Return the scheduler's records of its live workers, by address.

    Raises
    ------
    RunFailed
        If the scheduler does not answer.
    """
    try:
        scheduler: Any = client.scheduler
        known = client.sync(scheduler.identity)["workers"]
    except (OSError, AttributeError, RuntimeError) as error:  # closed, or closing
        raise scheduler_gone(address_of(client)) from error
    return dict(sorted(known.items()))


def workers(client: Client) -> dict[str, int]:
    """Return the addresses of the live workers with their threads."""
    return {address: worker.threads for address, worker in read_workers(client).items()}


def read_workers(client: Client) -> dict[str, WorkerReading]:
    """Return the driver's readings of the live workers, by address.

    A worker on which Dask starts nothing new is paused: short of memory, or about to leave.
    """
    return {
        address: WorkerReading(
            threads=int(record["nthreads"]),
            memory_bytes=record["memory_limit"] or None,
            paused=record["status"] not in STARTED,
        )
        for address, record in worker_records(client).items()
    }


_patience: ContextVar[float | None] = ContextVar("volflow_patience", default=None)


def patience() -> Patience:
    """Return the patience of the enclosing connection."""
    return Patience(_patience.get())


@contextmanager
def patient(wait: float | str | None, most_s: float | None = None) -> Iterator[None]:
    """Set how long everything inside the block waits for a first or another worker.

    Parameters
    ----------
    wait
        Seconds, or a text such as "10 minutes"; None keeps the current limit, by default none.
    most_s
        Upper limit in seconds, if longer waits are useless.

    Raises
    ------
    InvalidInput
        If ``wait`` is not a duration, or negative.
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


@contextmanager
def offers(client: Client) -> Iterator[Callable[[int], None]]:
    """Offer work to an adaptive cluster, which grows, or stays, while the offer is held.

    Yields
    ------
    Callable
        Sets the number of waiting tasks that no worker can take.
    """
    futures: list[Future[None]] = []

    def hold(count: int) -> None:
        while len(futures) < count:
            key = f"volflow-offer-{uuid.uuid4().hex[:8]}"
            futures.append(client.submit(_nothing, key=key, resources=OFFER))
        while len(futures) > count:
            futures.pop().release()

    try:
        yield hold
    finally:
        with suppress(OSError, RuntimeError):  # the scheduler is gone, and its tasks with it
            hold(0)


def _nothing() -> None:
    """Do nothing: an offer is never run."""


def await_workers(client: Client) -> None:
    """Wait until a cluster has a worker, as long as `patience` allows.

    Raises
    ------
    RunFailed
        If none joined in time, or the scheduler is gone.
    """
    waiting = patience()
    while not worker_records(client):
        for action in waiting.none_seen(address_of(client), time.monotonic()):
            tell(action)
        time.sleep(LOOK_EVERY_S)


def tell(action: Log | Stop) -> None:
    """Write a line to the log, or raise the error of a stop, if there is one."""
    if isinstance(action, Log):
        log.log(action.level, action.text)
    elif action.error is not None:
        raise action.error
