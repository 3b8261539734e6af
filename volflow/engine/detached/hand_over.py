"""Hand the driver of a run over to a cluster, where it outlives this process; or find it there."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleBuffer
from typing import Any

import cloudpickle
import dask
from distributed import Client, default_client

from volflow.engine.clusters.forms import Cluster
from volflow.engine.detached.driver_task import Perform, drive
from volflow.engine.detached.handle import DetachedRun, is_under_way, state_of_task
from volflow.engine.roster import Selection
from volflow.engine.workers import address_of, selection, worker_records
from volflow.errors import InvalidInput, Locked, RunFailed, VolflowError, first_line
from volflow.geometry.budget import format_bytes
from volflow.store.journal.detachment import (
    Detachment,
    drop_detachment,
    keep_detachment,
    read_detachment,
)
from volflow.store.journal.journal import Journal, journal_dir

__all__ = ["DetachedCall", "find_run", "hand_over", "lasting_cluster", "require_lasting"]

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
    operation, out, store
        What it does, the path of its output, and that of the volume that it stores.
    digest
        Of all that decides the result.
    perform
        What the driver does.
    """

    operation: str
    out: Path
    store: Path
    digest: str
    perform: Perform

    @property
    def folder(self) -> Path:
        """The folder beside the output, which holds the note."""
        return journal_dir(self.out)


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


def find_run(client: Client, cluster: str | Client, call: DetachedCall) -> DetachedRun | None:
    """Return the handle of the run that the same call has detached before; None if none is at work.

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
    return DetachedRun(str(call.out), note.key, cluster)


def hand_over(client: Client, cluster: str | Client, call: DetachedCall) -> DetachedRun:
    """Have a cluster drive a run from now on; returns when its scheduler has taken it.

    Parameters
    ----------
    client, cluster
        The connected client, and what its handle will connect to.
    call
        Checked: what can be refused has been.

    Raises
    ------
    Locked
        If another driver holds the output.
    InvalidInput
        If the call cannot travel.
    RunFailed
        If the scheduler does not take it.
    """
    perform, folder = _packed(call.perform), call.folder
    Journal(folder).make_place()
    # Nobody else hands it over meanwhile; the driver waits for the lock.
    with Journal(journal_dir(call.store)).lock():
        found = find_run(client, cluster, call)
        if found is not None:
            return found
        before = read_detachment(folder)
        if before is not None:  # a driver that was lost has not taken itself out
            client.unpublish_dataset(before.key)
        key = f"{call.operation}-{call.out.name}-{uuid.uuid4().hex[:8]}"
        address = address_of(client)
        note = Detachment(call.operation, str(call.store), address, key, call.digest, time.time())
        keep_detachment(folder, note)
        try:
            _submit(client, key, perform, folder)
        except BaseException:
            drop_detachment(folder)
            raise
    return DetachedRun(str(call.out), key, cluster)


def _submit(client: Client, key: str, perform: bytes, folder: Path) -> None:
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
