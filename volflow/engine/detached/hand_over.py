"""Hand the driver of a run over to a cluster, where it outlives this process; or find it there."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickle import PickleBuffer
from typing import Any

import cloudpickle
import dask
from distributed import Client, default_client

from volflow.engine.clusters.forms import Cluster
from volflow.engine.detached.driver_task import Perform, drive
from volflow.engine.detached.handle import is_under_way, state_of_task
from volflow.engine.observing.performance import is_reporting
from volflow.engine.progress import Progress, is_watched
from volflow.engine.roster import Selection
from volflow.engine.workers import address_of, selection, worker_records
from volflow.errors import InvalidInput, Locked, RunFailed, VolflowError, first_line
from volflow.geometry.budget import format_bytes
from volflow.store.journal.detachment import (
    Detachment,
    drop_detachment,
    keep_detachment,
    read_detachment,
    run_before,
)
from volflow.store.journal.journal import Journal, journal_of
from volflow.store.remote.address import Location

__all__ = ["DetachedCall", "find_run", "hand_over", "lasting_cluster", "refuse_watching"]

log = logging.getLogger("volflow")

# What the scheduler keeps of a call, as long as it runs: a model and what else has no path.
MOST_BYTES = 2**30
# A scheduler takes a task within milliseconds.
TAKEN_S, LOOK_EVERY_S = 60.0, 0.01
# The driver takes no thread once it runs, so it need not wait for the blocks of other runs.
SOON = 1000


@dataclass(frozen=True)
class DetachedCall:
    """A call whose driver is to run on a cluster.

    Parameters
    ----------
    operation, out
        What it does, and the path, pattern or URL of its output.
    journal
        Beside the output: its folder holds the notes.
    digest
        Of all that decides the result.
    perform
        What the driver does.
    store
        The volume that it stores, under whose lock it does so; "" where there are several, and the
        journal beside the output has the lock.
    """

    operation: str
    out: str
    journal: Journal
    digest: str
    perform: Perform
    store: str = ""

    @property
    def folder(self) -> Location:
        """The folder beside the output, which holds the notes."""
        return self.journal.directory

    @property
    def locked(self) -> Journal:
        """The journal whose lock the driver takes."""
        return journal_of(self.store) if self.store else self.journal


def lasting_cluster(cluster: Cluster) -> str | Client:
    """Return the cluster of a detached run; refuses one that would end with this process.

    Raises
    ------
    InvalidInput
        If it is neither the address of a scheduler nor a client of one that was started elsewhere.

    Examples
    --------
    >>> lasting_cluster("processes:4")
    Traceback (most recent call last):
    volflow.errors.InvalidInput: detach needs a cluster that outlives this process, and
    'processes:4' ends with it; start a Dask scheduler and workers, and give its address:
    cluster="tcp://host:8786" (--cluster)
    """
    named = repr(cluster) if isinstance(cluster, str | int) else f"a {type(cluster).__name__}"
    if cluster is None:
        try:
            cluster, named = default_client(), "the active Dask client's"
        except ValueError:
            named = "threads"
    own = isinstance(cluster, Client) and cluster.cluster is None
    address = isinstance(cluster, str) and "://" in cluster and not cluster.startswith("inproc:")
    if own or address:
        return cluster  # type: ignore[return-value] # it is one of both
    raise InvalidInput(
        f"detach needs a cluster that outlives this process, and {named} ends with it; start a Dask"
        ' scheduler and workers, and give its address: cluster="tcp://host:8786" (--cluster)'
    )


def refuse_watching(progress: Progress) -> None:
    """Refuse what would watch a run in this process, where there is none.

    Raises
    ------
    InvalidInput
        If there is such a thing.
    """
    if callable(progress):
        raise InvalidInput(
            "progress cannot be a function of a detached run, which no process of yours drives;"
            " leave it out and ask the handle: status()"
        )
    if is_watched() or is_reporting():
        raise InvalidInput(
            "observe (--metrics, --performance-report) sees the runs of its own process, and a"
            " detached run is driven by the cluster; use volflow status OUT --metrics FILE"
        )


def require_lasting(client: Client) -> None:
    """Refuse a scheduler that lives in this process, under whatever address.

    Raises
    ------
    InvalidInput
        If it does.
    """
    here = (socket.gethostname(), os.getpid())
    ask: Any = client.run_on_scheduler
    try:
        there = (ask(socket.gethostname), ask(os.getpid))
    except Exception as error:  # some schedulers run no code
        log.debug("where the scheduler runs is not known: %s", error)
        return
    if here == there:
        raise InvalidInput(
            f"detach needs a cluster that outlives this process, and the scheduler at"
            f" {address_of(client)} lives in it; start one with the command dask scheduler"
        )


def find_run(client: Client, call: DetachedCall) -> str | None:
    """Return the key of the run that the same call has detached before; None if none is at work.

    Raises
    ------
    Locked
        If another call's is.
    """
    note = read_detachment(call.folder)
    if note is None or not is_under_way(client, note.key):
        return None
    if note.call != call.digest:
        raise Locked(
            f"{call.out} is being written by a detached run of another input, model or settings,"
            f" {note.key} at {note.scheduler}; wait for it to end, or stop it (volflow cancel)"
        )
    return note.key


def hand_over(
    client: Client, call: DetachedCall, check: Callable[[], object] = lambda: None
) -> str:
    """Have a cluster drive a run from now on, unless the same call has done so: return its key.

    Parameters
    ----------
    client
        The connected client.
    call
        Checked, as far as it can be without a cluster.
    check
        Refuses what the cluster shows to be impossible; not called for a run that is found.

    Raises
    ------
    Locked
        If another driver holds the output.
    InvalidInput
        If the call cannot travel, or the scheduler ends with this process.
    RunFailed
        If the scheduler does not take it.
    """
    require_lasting(client)
    found = find_run(client, call)
    if found is not None:
        return found
    check()
    perform, folder, name = _packed(call.perform), call.folder, call.out.rpartition("/")[2]
    call.journal.make_place()
    # Nobody else hands it over meanwhile; the driver waits for the lock.
    with call.locked.lock():
        found = find_run(client, call)
        if found is not None:
            return found
        last = read_detachment(folder)
        if last is not None:  # a driver that was lost has not taken itself out
            client.unpublish_dataset(last.key)
        key = f"{call.operation}-{name}-{uuid.uuid4().hex[:8]}"
        before = run_before(call.store) if call.store else None
        note = Detachment(
            call.operation, call.store, address_of(client), key, call.digest, time.time(), before
        )
        keep_detachment(folder, note)
        try:
            _submit(client, key, perform, folder)
        except BaseException:
            drop_detachment(folder)
            raise
    return key


def _submit(client: Client, key: str, perform: bytes, folder: Location) -> None:
    """Submit the driver, and return when the scheduler keeps it for itself."""
    chosen: Mapping[str, Any] = {}
    if selection() != Selection():  # where they see its files; others, if all of them are lost
        chosen = {"workers": list(worker_records(client)), "allow_other_workers": True}
    # Dask's advice on large graphs is no use here: the model has to travel.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": 2 * MOST_BYTES}):
        future = client.submit(
            drive, perform, str(folder), key=key, pure=False, priority=SOON, **chosen
        )
    until_s = time.monotonic() + TAKEN_S
    while state_of_task(client, key) is None:  # what it does not know cannot be published
        if future.status != "pending" or time.monotonic() > until_s:
            raise RunFailed(
                f"the Dask scheduler at {address_of(client)} does not take the driver {key}; look"
                " at its log, and run the same command again"
            )
        time.sleep(LOOK_EVERY_S)
    client.publish_dataset(future, name=key)


def _packed(perform: Perform) -> bytes:
    """Return a call as bytes; refuses what is too large, or cannot travel."""
    buffers: list[PickleBuffer] = []
    pack: Callable[..., bytes] = cloudpickle.dumps
    try:
        # First without copying arrays: they may be larger than what is free.
        head = pack(perform, protocol=5, buffer_callback=buffers.append)
        size = len(head) + sum(buffer.raw().nbytes for buffer in buffers)
        if size <= MOST_BYTES:
            return pack(perform)
    except VolflowError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"a detached call travels to the cluster, and this one cannot: {first_line(error)};"
            " give inputs and model as paths"
        ) from error
    raise InvalidInput(
        f"a detached call travels to the cluster, and this one holds {format_bytes(size)}, more"
        f" than {format_bytes(MOST_BYTES)}; store its inputs (vf.convert) and give their paths"
    )
