"""Connections to Dask, in this process or on a cluster, and the memory of workers."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from distributed import (
    Client,
    Nanny,
    Scheduler,
    SpecCluster,
    Worker,
    WorkerPlugin,
    default_client,
)
from distributed.deploy.cluster import Cluster as DaskCluster
from psutil import virtual_memory

from volflow.engine.pages import prepare_allocators
from volflow.engine.quiet import quieten
from volflow.engine.workers import (
    await_workers,
    is_embedded,
    offers,
    patience,
    patient,
    worker_records,
    workers,
)
from volflow.errors import InvalidInput
from volflow.geometry.budget import parse_bytes

__all__ = [
    "DEFAULT_SHARE",
    "Cluster",
    "connect",
    "cores",
    "free_memory_bytes",
    "is_embedded",
    "memory_per_worker",
    "workers",
]

Cluster = str | int | Client | DaskCluster | None

# The rest is left to the allocator's slack, the page tables and Dask itself.
DEFAULT_SHARE = 0.6

# Workers started here, replacements included, are ready within seconds.
OWN_WORKERS_S = 60.0
# A scheduler at a correct address answers much sooner.
ANSWER_S = 10.0

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Return the CPU cores of this process, by its affinity and its cgroups' quota."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Rounded up: half a core of a quota of 2.5 would be idle, and at least one is needed.
    return min(here, math.ceil(_cgroup_cpus() or here))


class OwnProcess(WorkerPlugin):
    """Prepares a worker process: it ignores Ctrl-C, tunes its allocator and quietens its log."""

    def setup(self, worker: Any) -> None:
        """Run in the main thread of each worker process, replacements included."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        prepare_allocators(own=True)
        quieten()


@contextmanager
def connect(cluster: Cluster = None, *, wait: float | str | None = None) -> Iterator[Client]:
    """Yield a Dask client of ``cluster`` with a worker; it is closed if it was opened here.

    Parameters
    ----------
    cluster
        None: the active client, else threads; ``"threads"``: Dask inside this process, no ports;
        ``"processes"`` or a number: that many worker processes on this machine;
        ``"tcp://host:port"``: a scheduler; a ``distributed.Client`` or cluster object
        (``dask_jobqueue.SLURMCluster``, ``dask_cuda.LocalCUDACluster``, …).
    wait
        How long to wait while the cluster has no worker, now or later, or none that can take a
        block (all idle ones paused, or too small): seconds, or a text such as ``"10 minutes"``;
        None for as long as it takes, or for the limit of the enclosing connection. Workers
        started here are given at most a minute, a scheduler at an address ten seconds, or this
        limit if it is shorter.

    Raises
    ------
    InvalidInput
        If ``cluster`` is invalid, or the scheduler does not answer.
    RunFailed
        If no worker joined in time.

    Examples
    --------
    >>> with connect("threads") as client:
    ...     client.submit(sum, [1, 2]).result()
    3
    """
    quieten()
    with (
        patient(wait),
        _client(cluster) as (client, opened),
        patient(None, OWN_WORKERS_S if opened else None),
        offers(client) as hold,
    ):
        hold(1)
        await_workers(client)
        yield client


@contextmanager
def _client(cluster: Any) -> Iterator[tuple[Client, bool]]:
    """Yield a client, and True if its workers are started here."""
    if cluster is None:
        try:
            cluster = default_client()
        except ValueError:
            cluster = "threads"
    if not isinstance(cluster, Client):
        with _open_client(cluster) as client:
            yield client, client.cluster not in (None, cluster)
        return
    if cluster.asynchronous:
        raise InvalidInput(
            "an asynchronous Dask client cannot be waited for here; use"
            " distributed.Client(address) without asynchronous=True"
        )
    if cluster.status not in ("running", "connecting"):
        raise InvalidInput(f"the Dask client is {cluster.status}; make a new one")
    yield cluster, False


def _own_cluster(workers: int, embedded: bool) -> SpecCluster:
    """Workers of this machine: threads of this process, or processes that share its cores.

    `distributed.LocalCluster` would have each worker open an HTTP port on all interfaces or, given
    an address for it, start a Bokeh dashboard.
    """
    place: dict[str, Any] = {"protocol": "inproc://" if embedded else "tcp://", "dashboard": False}
    place |= {"host": None if embedded else "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    options = {
        "nthreads": max(1, cores() // workers), "memory_limit": None, "silence_logs": logging.ERROR,
    }  # fmt: skip
    worker = {"cls": Worker if embedded else Nanny, "options": {**place, **options}}
    # Workers must survive a laptop's sleep; dead processes close their connection anyway. The
    # profiler, which samples stacks a hundred times a second, is for the dashboard only.
    settings = {"scheduler.worker-ttl": None, "worker.profile.enabled": False}
    with dask.config.set({f"distributed.{name}": value for name, value in settings.items()}):
        return SpecCluster(
            workers=dict.fromkeys(range(workers), worker),
            scheduler={"cls": Scheduler, "options": place},
            silence_logs=logging.ERROR,
        )


@contextmanager
def _open_client(cluster: Any) -> Iterator[Client]:
    if isinstance(cluster, str) and cluster.isdecimal():
        cluster = int(cluster)
    if cluster == "processes":
        cluster = cores()
    if cluster == "threads" or isinstance(cluster, int):
        embedded = cluster == "threads"
        if not embedded and cluster < 1:
            raise InvalidInput(f"cluster needs at least one process; got {cluster}")
        with (
            _own_cluster(1 if embedded else cluster, embedded) as local,
            Client(local, set_as_default=False) as client,
        ):
            if not embedded:
                client.register_plugin(OwnProcess())
            yield client
    elif hasattr(cluster, "scheduler_address"):
        with Client(cluster, set_as_default=False) as client:
            yield client
    elif isinstance(cluster, str) and "://" in cluster:
        try:
            client = Client(cluster, set_as_default=False, timeout=_answer_s())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"no Dask scheduler answers at {cluster}: {error}") from error
        with client:
            yield client
    else:
        raise InvalidInput(
            f"unknown cluster {cluster!r}; use threads, processes, a number of processes,"
            " a scheduler address like tcp://host:8786, or a Dask client or cluster"
        )


def _answer_s() -> float:
    """Return the seconds to wait for a scheduler, at most those to wait for workers."""
    wait_s = patience().wait_s
    return ANSWER_S if wait_s is None else min(ANSWER_S, max(1.0, wait_s))


def memory_per_worker(client: Client, memory: str | int | None) -> int:
    """Return the bytes that one worker may use above its resident size.

    Parameters
    ----------
    client
        The connected client.
    memory
        The user's request; None takes a share of the memory that the machine, the cgroup, SLURM
        or the worker's own limit leaves free.
    """
    if memory is not None:
        return parse_bytes(memory)
    known = worker_records(client).values()
    limits = [
        w["memory_limit"] - w.get("metrics", {}).get("memory", 0)
        for w in known
        if w.get("memory_limit")
    ]
    if limits:
        return max(1, int(min(limits) * DEFAULT_SHARE))
    hosts = [w.get("host") for w in known]
    shared_by = max((hosts.count(h) for h in hosts), default=1)
    return max(1, int(free_memory_bytes() * DEFAULT_SHARE / shared_by))


def free_memory_bytes() -> int:
    """Return the bytes that this process could still allocate on this machine."""
    candidates: list[int | None] = [virtual_memory().available, _cgroup_free(), _slurm_limit()]
    return min(c for c in candidates if c is not None)


def _cgroup_free() -> int | None:
    """Return the free bytes of this process's cgroups, version 1 or 2, up to the outermost."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    rooms = [_room(at, *names[version]) for at, version in _cgroups("memory")]
    return min((room for room in rooms if room is not None), default=None)


def _cgroup_cpus() -> float | None:
    """Return the CPU quota of this process's cgroups in cores; None without a quota."""
    quotas = [_quota(at, version) for at, version in _cgroups("cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _cgroups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield folder and version of this process's cgroups, up to the outermost."""
    try:
        own = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in own:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            base, version = CGROUPS, 2
        elif controller in kinds.split(","):
            base, version = CGROUPS / controller, 1
        else:
            continue
        here = base / path.lstrip("/")
        yield from ((at, version) for at in (here, *here.parents) if at.is_relative_to(base))


def _quota(cgroup: Path, version: int) -> float | None:
    try:
        if version == 2:
            quota, period = map(int, (cgroup / "cpu.max").read_text().split())
        else:
            quota = int((cgroup / "cpu.cfs_quota_us").read_text())
            period = int((cgroup / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None  # -1 means no quota


def _room(cgroup: Path, limit: str, used: str, cache: str) -> int | None:
    try:
        room = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
        # Page cache counts as used memory, but is reclaimable.
        room += sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
    except (OSError, ValueError):  # absent, or "max"
        return None
    return max(1, room)


def _slurm_limit() -> int | None:
    """Return the bytes that SLURM grants on this node, from its MiB per node or per CPU."""
    per_node = _slurm("SLURM_MEM_PER_NODE")
    per_cpu = _slurm("SLURM_MEM_PER_CPU") * _slurm("SLURM_CPUS_ON_NODE")
    return (per_node or per_cpu) * 1024**2 or None


def _slurm(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0
