"""The forms in which a cluster is named, and the Dask client that each opens.

| form | workers |
|---|---|
| ``threads`` | threads of this process |
| ``processes``, ``processes:4``, ``4`` | processes of this machine, by default one per core |
| ``cuda`` | one process per GPU of this machine |
| ``tcp://host:8786``, ``tls://host:8786`` | a scheduler's; certificates as Dask is configured |
| ``slurm``, ``slurm:8`` | SLURM jobs, at most so many at once |
| a Dask client or cluster | its own |
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from distributed import Client, default_client
from distributed.deploy.cluster import Cluster as DaskCluster
from distributed.versions import VersionMismatchWarning

from volflow.engine.clusters.machine import cores
from volflow.engine.clusters.own import OwnProcess, gpus, process_cluster, thread_cluster
from volflow.engine.clusters.slurm import slurm_cluster
from volflow.engine.workers import patience
from volflow.errors import InvalidInput

__all__ = ["Cluster", "open_client"]

Cluster = str | int | Client | DaskCluster | None

# A scheduler at a correct address answers much sooner.
ANSWER_S = 10.0
WORDS = ("threads", "processes", "cuda", "slurm")


@contextmanager
def open_client(cluster: Any, memory: str | int | None = None) -> Iterator[tuple[Client, bool]]:
    """Yield a client of a cluster, and True if its workers are processes started here.

    Parameters
    ----------
    cluster
        One of the forms; None for the active client, or threads if there is none.
    memory
        What one worker will be asked to add to its resident size, for jobs that are sized by it.

    Raises
    ------
    InvalidInput
        If the form is unknown, its scheduler does not answer, or what it needs is absent.
    """
    if cluster is None:
        try:
            cluster = default_client()
        except ValueError:
            cluster = "threads"
    if isinstance(cluster, Client):
        yield _usable(cluster), False
    elif hasattr(cluster, "scheduler_address"):
        with Client(cluster, set_as_default=False) as client:
            yield client, False
    elif isinstance(cluster, str) and "://" in cluster:
        with _client_at(cluster) as client:
            yield client, False
    else:
        word, number = _named(cluster)
        with (
            _start(word, number, memory) as started,
            Client(started, set_as_default=False) as client,
        ):
            if word in ("processes", "cuda"):
                client.register_plugin(OwnProcess())
            yield client, word != "slurm"


def _usable(client: Client) -> Client:
    if client.asynchronous:
        raise InvalidInput(
            "an asynchronous Dask client cannot be waited for here; use"
            " distributed.Client(address) without asynchronous=True"
        )
    if client.status not in ("running", "connecting"):
        raise InvalidInput(f"the Dask client is {client.status}; make a new one")
    return client


def _named(cluster: Any) -> tuple[str, int | None]:
    """Return the word of a form and its number, if it has one."""
    text = str(cluster) if isinstance(cluster, str | int) else ""
    if text.removeprefix("-").isdecimal():
        text = f"processes:{text}"
    word, colon, number = text.partition(":")
    counted = word in ("processes", "slurm") and number.removeprefix("-").isdecimal()
    if word not in WORDS or (colon and not counted):
        raise _unknown(cluster)
    if counted and int(number) < 1:
        what = "process" if word == "processes" else "job"
        raise InvalidInput(f"cluster needs at least one {what}; got {number}")
    return word, int(number) if counted else None


def _unknown(cluster: Any) -> InvalidInput:
    near = get_close_matches(str(cluster).partition(":")[0].lower(), WORDS, 1)
    meant = near[0] if near else ""
    if isinstance(cluster, str) and cluster.rpartition(":")[2].isdecimal() and not near:
        meant = f"tcp://{cluster}"
    hint = f"did you mean {meant!r}? U" if meant else "u"
    return InvalidInput(
        f"unknown cluster {cluster!r}; {hint}se threads, processes, a number of processes, cuda,"
        " slurm, a scheduler address like tcp://host:8786, or a Dask client or cluster"
    )


def _start(word: str, number: int | None, memory: str | int | None) -> Any:
    if word == "threads":
        return thread_cluster()
    if word == "processes":
        return process_cluster(cores() if number is None else number)
    if word == "cuda":
        devices = gpus()
        return process_cluster(len(devices), devices)
    return slurm_cluster(number, memory)


def _client_at(address: str) -> Client:
    """Return a client of a scheduler at an address; its versions are compared later."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)
            return Client(address, set_as_default=False, timeout=_answer_s())
    except TypeError as error:  # TLS without certificates
        raise InvalidInput(
            f"the Dask scheduler at {address} cannot be reached without certificates; name them in"
            " Dask's configuration (distributed.comm.tls.ca-file and .client.cert, .client.key)"
        ) from error
    except (OSError, ValueError) as error:
        raise InvalidInput(f"no Dask scheduler answers at {address}: {error}") from error


def _answer_s() -> float:
    """Return the seconds to wait for a scheduler, at most those to wait for workers."""
    wait_s = patience().wait_s
    return ANSWER_S if wait_s is None else min(ANSWER_S, max(1.0, wait_s))
