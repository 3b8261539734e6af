"""How much memory one worker of a cluster may use for the tasks of a run."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

from distributed import Client

from volflow.engine.admission.desk import desk_of
from volflow.engine.clusters.asking import ask
from volflow.engine.clusters.machine import DEFAULT_SHARE, free_memory_bytes
from volflow.engine.memory import resident_bytes
from volflow.engine.workers import await_workers, worker_records
from volflow.errors import InvalidInput
from volflow.geometry.budget import parse_bytes

__all__ = ["declared_bytes", "memory_per_worker"]


def memory_per_worker(client: Client, memory: str | int | None) -> int:
    """Return the bytes that one worker may use above its resident size.

    Parameters
    ----------
    client
        The connected client.
    memory
        The user's request. None takes a share of what the least of the workers has beside its
        resident size: of its own limit, or of what is free on its machine, in its cgroup or SLURM
        job. What tasks of ours use just now counts as free, as others wait for it. If no worker
        is there, the size counts that the cluster declares for those to come, or one is awaited.
    """
    if memory is not None:
        return parse_bytes(memory)
    known = worker_records(client)
    declared = declared_bytes(client.cluster)
    if not known and declared is not None:
        return max(1, int(declared * DEFAULT_SHARE))
    await_workers(client)
    known = known or worker_records(client)
    rooms = {
        address: (record["memory_limit"] - record.get("metrics", {}).get("memory", 0), False)
        for address, record in known.items()
        if record["memory_limit"]
    }
    with suppress(TimeoutError):  # of a worker that is stopped its last heartbeat speaks
        rooms |= ask(client, room_here, workers=list(known))
    hosts = Counter(record.get("host") for record in known.values())
    free = [
        bytes_ // hosts[known[address].get("host")] if shared else bytes_
        for address, (bytes_, shared) in rooms.items()
    ]
    least = min(free, default=free_memory_bytes() // max(hosts.values(), default=1))
    return max(1, int(least * DEFAULT_SHARE))


def room_here(dask_worker: Any) -> tuple[int, bool]:
    """Return the bytes for tasks on this worker, and True if all workers of its host share them."""
    added = desk_of(dask_worker).added_bytes()
    limit = dask_worker.memory_manager.memory_limit
    if limit:
        return limit - (resident_bytes() - added), False
    return free_memory_bytes() + added, True


def declared_bytes(cluster: Any) -> int | None:
    """Return the memory limit that a cluster gives to the workers that it will start.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> declared_bytes(SimpleNamespace(new_spec={"options": {"memory_limit": "1GiB"}}))
    1073741824
    >>> declared_bytes(None) is None
    True
    """
    spec = getattr(cluster, "new_spec", None) or {}
    with suppress(InvalidInput):  # "auto", or a share of a machine that is not known yet
        return parse_bytes(spec.get("options", {}).get("memory_limit") or "none")
    return None
