"""The connection to a cluster: a client with workers, found by the form in which it is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from distributed import Client

from volflow.engine.clusters.forms import Cluster, open_client
from volflow.engine.clusters.machine import DEFAULT_SHARE, cores, free_memory_bytes
from volflow.engine.clusters.quiet import quieten
from volflow.engine.clusters.room import memory_per_worker
from volflow.engine.clusters.skew import alike
from volflow.engine.observing.performance import recorded
from volflow.engine.observing.reports import is_connected, reported
from volflow.engine.workers import (
    await_workers,
    choosing,
    is_embedded,
    offers,
    patient,
    workers,
)

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

# Workers started here, replacements included, are ready within seconds.
OWN_WORKERS_S = 60.0


@contextmanager
def connect(
    cluster: Cluster = None,
    *,
    wait: float | str | None = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    memory: str | int | None = None,
) -> Iterator[Client]:
    """Yield a Dask client of ``cluster`` with a worker; it is closed if it was opened here.

    Inside a connection of the same client to the same workers nothing is asked again.

    Parameters
    ----------
    cluster
        None: the active client, else threads; ``"threads"``: Dask inside this process, no ports;
        ``"processes"``, ``"processes:4"`` or a number: that many worker processes on this machine;
        ``"cuda"``: one worker process per GPU of this machine; ``"tcp://host:port"`` or
        ``"tls://host:port"``: a scheduler, with the certificates of Dask's configuration;
        ``"slurm"`` or ``"slurm:8"``: SLURM jobs, at most that many, as Dask's configuration
        describes them (``jobqueue.slurm``); a ``distributed.Client`` or cluster object
        (``dask_jobqueue.SLURMCluster``, ``dask_cuda.LocalCUDACluster``, …).
    wait
        How long to wait while the cluster has no worker, now or later, or none that can take a
        block (all idle ones paused, or too small): seconds, or a text such as ``"10 minutes"``;
        None for as long as it takes, or for the limit of the enclosing connection. Workers
        started here are given at most a minute, a scheduler at an address ten seconds, or this
        limit if it is shorter.
    workers
        Only these workers: their names, addresses or hosts, as a list or with commas.
    resources
        Only workers with these of Dask's resources, of which each task takes so much:
        ``{"GPU": 1}`` or ``"GPU=1"``. Like ``workers``, None is that of the enclosing connection.
    memory
        What one worker will be asked to add to its resident size; SLURM jobs are sized by it.

    Raises
    ------
    InvalidInput
        If ``cluster`` is invalid, the scheduler does not answer, or has other versions of Dask,
        volflow or torch than this process.
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
        choosing(workers, resources),
        open_client(cluster, memory) as (client, own),
    ):
        if is_connected(client):
            yield client
            return
        with patient(None, OWN_WORKERS_S if own else None), offers(client) as hold:
            hold(1)
            await_workers(client)
            with alike(client), recorded(client), reported(client):
                yield client
