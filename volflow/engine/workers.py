"""The workers of a Dask client: read from the scheduler itself, and awaited if there are none.

`distributed.Client.scheduler_info` returns a cache that a timer of Dask's overwrites without
workers, so it is not reliable.
"""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from random import random
from typing import Any

from dask.utils import parse_timedelta
from distributed import Client, Future

from volflow.engine.messages import Log, Stop, WorkerReading
from volflow.engine.roster import Patience, Selection
from volflow.engine.time_limit import current_limit
from volflow.engine.wanted import check_wanted
from volflow.errors import InvalidInput, RunFailed, TimeUp

__all__ = [
    "address_of",
    "answering",
    "await_workers",
    "choosing",
    "dashboard_of",
    "expected_workers",
    "grows",
    "idle_first",
    "is_embedded",
    "offers",
    "patience",
    "patient",
    "read_workers",
    "scheduler_gone",
    "selection",
    "tell",
    "worker_records",
    "workers",
]

log = logging.getLogger("volflow")

# Interval at which a cluster without workers is queried.
LOOK_EVERY_S = 0.25
# Others are paused or closing; a starting worker runs before its first task reaches it.
STARTED = ("init", "running")
# Workers for which work is cut where an adaptive cluster names no maximum.
MANY = 16
# No worker has it: a task that requires it stays at the scheduler and counts as future work.
OFFER = {"volflow-offer": 1}


def address_of(client: Client) -> str:
    """Return the address of a client's scheduler; empty if the client is closed."""
    return str(getattr(client.scheduler, "address", ""))


def dashboard_of(client: Client) -> str:
    """Return the link to the dashboard of a client's cluster; "" if it has none."""
    try:
        # Without bokeh, or without the wish for one, its server has a port all the same.
        if client.run_on_scheduler(_has_dashboard):
            return str(client.dashboard_link or "")
    except Exception as error:  # some clusters have no such link, some schedulers run no code
        log.debug("no dashboard is known: %s", error)
    return ""


def _has_dashboard(dask_scheduler: Any) -> bool:
    return bool(dask_scheduler.http_application.applications)


def is_embedded(client: Client) -> bool:
    """Return True if the client's workers are threads of this process."""
    return address_of(client).startswith("inproc://")


def grows(client: Client) -> bool:
    """Return True if the client's cluster starts workers by itself, or may do so."""
    # A cluster that is not one of Dask's classes may grow; one known by address only is fixed.
    return getattr(client.cluster, "_adaptive", client.cluster) is not None


def expected_workers(client: Client) -> int:
    """Return how many workers may share a run: the live ones, or those that a cluster grows to.

    At least 1. Work that is cut for them leaves something for workers that join late.
    """
    most = getattr(getattr(client.cluster, "_adaptive", None), "maximum", 0) or 0
    return max(1, len(workers(client)), MANY if math.isinf(most) else int(most))


def scheduler_gone(address: str = "") -> RunFailed:
    """Return the error for a scheduler that no longer answers."""
    place = f" at {address}" if address else ""
    return RunFailed(
        f"the Dask scheduler{place} is gone; what is done is kept: start the cluster again and run"
        " the same command again to do the rest"
    )


@contextmanager
def answering(client: Client) -> Iterator[None]:
    """Ask a scheduler inside the block; raises RunFailed if it does not answer."""
    try:
        yield
    except (OSError, AttributeError, RuntimeError) as error:  # closed, or closing
        raise scheduler_gone(address_of(client)) from error


def worker_records(client: Client) -> dict[str, Mapping[str, Any]]:
    """Return the scheduler's records of its live workers that are `selection`'s, by address.

    Raises
    ------
    RunFailed
        If the scheduler does not answer.
    """
    with answering(client):
        scheduler: Any = client.scheduler
        known = client.sync(scheduler.identity)["workers"]
    threads = selection().threads
    return {address: one for address, one in sorted(known.items()) if threads(address, one)}


def workers(client: Client) -> dict[str, int]:
    """Return the addresses of the live workers with their threads."""
    return {address: worker.threads for address, worker in read_workers(client).items()}


def read_workers(client: Client) -> dict[str, WorkerReading]:
    """Return the driver's readings of the live workers, by address.

    A worker on which Dask starts nothing new is paused: short of memory, or about to leave.
    """
    threads = selection().threads
    return {
        address: WorkerReading(
            threads=threads(address, record),
            memory_bytes=record["memory_limit"] or None,
            paused=record["status"] not in STARTED,
        )
        for address, record in worker_records(client).items()
    }


def idle_first(client: Client) -> dict[str, WorkerReading]:
    """Return what `read_workers` does, those workers first that have the fewest tasks.

    The runs of several drivers begin with the first: so they spread over the workers. Among those
    with as many, chance decides.
    """
    found = read_workers(client)
    if len(found) < 2:
        return found
    with answering(client):
        tasks = client.processing()
    return dict(sorted(found.items(), key=lambda item: (len(tasks.get(item[0], ())), random())))


_patience: ContextVar[float | None] = ContextVar("volflow_patience", default=None)
_selection: ContextVar[Selection] = ContextVar("volflow_selection", default=Selection())  # noqa: B039 - it is frozen


def patience() -> Patience:
    """Return the patience of the enclosing connection."""
    return Patience(_patience.get(), str(selection()))


def selection() -> Selection:
    """Return the workers that the enclosing connection may use."""
    return _selection.get()


@contextmanager
def choosing(
    workers: str | Sequence[str] | None, resources: str | Mapping[str, float] | None
) -> Iterator[None]:
    """Choose the workers that everything inside the block may use.

    Parameters
    ----------
    workers, resources
        As in `connect`; None keeps those of the enclosing block, by default all workers.

    Raises
    ------
    InvalidInput
        If ``workers`` holds no names, or ``resources`` no amounts.
    """
    before = _selection.set(selection().narrowed(workers, resources))
    try:
        yield
    finally:
        _selection.reset(before)


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
        If none joined in time, or the scheduler is gone; `TimeUp` at the end of `time_limit`.
    """
    waiting, limit = patience(), current_limit()
    while not worker_records(client):
        check_wanted()
        if limit is not None and limit.left_s <= 0:
            raise TimeUp(
                f"stopped {limit.text}; the Dask cluster at {address_of(client)} had no worker so"
                " far; run the same command again"
            )
        for action in waiting.none_seen(address_of(client), time.monotonic()):
            tell(action)
        time.sleep(LOOK_EVERY_S)


def tell(action: Log | Stop) -> None:
    """Write a line to the log, or raise the error of a stop, if there is one."""
    if isinstance(action, Log):
        log.log(action.level, action.text)
    elif action.error is not None:
        raise action.error
