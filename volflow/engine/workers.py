"""Who works for a Dask client: asked of the scheduler itself, awaited where nobody is there yet.

`distributed.Client.scheduler_info` answers from a cache that a timer of Dask's overwrites without
workers, so its answer is no evidence.
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

# A cluster without workers is asked again so soon.
LOOK_EVERY_S = 0.25
# Others are paused, or close; one that starts is running before its first task reaches it.
STARTED = ("init", "running")
# No worker has it: a task that asks for it stays with the scheduler and counts as work to come.
OFFER = {"volflow-offer": 1}


def address_of(client: Client) -> str:
    """Return the address of a client's scheduler; empty where the client is closed."""
    return str(getattr(client.scheduler, "address", ""))


def is_embedded(client: Client) -> bool:
    """Return True where the client's workers are threads of this process."""
    return address_of(client).startswith("inproc://")


def grows(client: Client) -> bool:
    """Return True where the client's cluster starts workers by itself, or may do so."""
    # One that is no cluster of Dask's own has its own ways; one of which only the address is known
    # counts as it is.
    return getattr(client.cluster, "_adaptive", client.cluster) is not None


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
    """Return what a driver needs to know of the live workers, by address.

    A worker that Dask runs nothing new on is paused: it is short of memory, or about to leave.
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
        If it is no time, or below 0.
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
    """Offer work to an adaptive cluster, which grows or stays as long as it is held.

    Yields
    ------
    Callable
        Lets so many tasks wait that no worker can take.
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
        If none came in time, or the scheduler is gone.
    """
    waiting = patience()
    while not worker_records(client):
        for action in waiting.none_seen(address_of(client), time.monotonic()):
            tell(action)
        time.sleep(LOOK_EVERY_S)


def tell(action: Log | Stop) -> None:
    """Write a line to the log, or raise the error that a run ends with, if there is one."""
    if isinstance(action, Log):
        log.log(action.level, action.text)
    elif action.error is not None:
        raise action.error
