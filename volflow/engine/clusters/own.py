"""Clusters that start on this machine: threads of this process, processes, or one per GPU."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster, Worker, WorkerPlugin

from volflow.engine.clusters.machine import cores
from volflow.engine.clusters.quiet import quieten
from volflow.engine.pages import prepare_allocators
from volflow.errors import InvalidInput

__all__ = ["OwnProcess", "gpus", "process_cluster", "thread_cluster"]

DEVICES = "CUDA_VISIBLE_DEVICES"


class OwnProcess(WorkerPlugin):
    """Prepares a worker process: it ignores Ctrl-C, tunes its allocator and quietens its log."""

    def setup(self, worker: Any) -> None:
        """Run in the main thread of each worker process, replacements included."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        prepare_allocators(own=True)
        quieten()


def thread_cluster() -> SpecCluster:
    """Start a worker whose threads belong to this process; only loopback ports are opened."""
    options = {**_place("inproc://", None), "nthreads": cores()}
    return _started([{"cls": Worker, "options": options}], _place("inproc://", None))


def process_cluster(count: int, devices: Sequence[str] = ()) -> SpecCluster:
    """Start worker processes that share the cores of this machine.

    Parameters
    ----------
    count
        Number of processes.
    devices
        The GPU that each process sees as its only one, as ``CUDA_VISIBLE_DEVICES`` names it;
        such a worker has Dask's resource ``GPU: 1``. By default no process is given one.
    """
    place = _place("tcp://", "127.0.0.1")
    options = {**place, "nthreads": max(1, cores() // count)}
    workers: list[dict[str, Any]] = [{"cls": Nanny, "options": options} for _ in range(count)]
    for worker, device in zip(workers, devices, strict=False):
        own = {"env": {DEVICES: device}, "resources": {"GPU": 1}}
        worker["options"] = {**options, **own}
    return _started(workers, place)


def _place(protocol: str, host: str | None) -> dict[str, Any]:
    """Return where a scheduler or worker listens: on loopback, without a dashboard.

    `distributed.LocalCluster` would have each worker open an HTTP port on all interfaces or, given
    an address for it, start a Bokeh dashboard.
    """
    loopback = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    return {"protocol": protocol, "host": host, **loopback}


def _started(workers: Sequence[dict[str, Any]], place: dict[str, Any]) -> SpecCluster:
    quiet = {"memory_limit": None, "silence_logs": logging.ERROR}
    specs = {
        number: {**worker, "options": {**worker["options"], **quiet}}
        for number, worker in enumerate(workers)
    }
    # Workers must survive a laptop's sleep; dead processes close their connection anyway. The
    # profiler, which samples stacks a hundred times a second, is for the dashboard only.
    settings = {"scheduler.worker-ttl": None, "worker.profile.enabled": False}
    with dask.config.set({f"distributed.{name}": value for name, value in settings.items()}):
        return SpecCluster(
            workers=specs,
            scheduler={"cls": Scheduler, "options": place},
            silence_logs=logging.ERROR,
        )


def gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.

    Raises
    ------
    InvalidInput
        If there are none.
    """
    visible = os.environ.get(DEVICES)
    found = _listed() if visible is None else [name.strip() for name in visible.split(",")]
    devices = tuple(name for name in found if name and name != "-1")
    if not devices:
        why = f"{DEVICES} is {visible!r}" if visible is not None else "nvidia-smi lists none"
        raise InvalidInput(
            f"cluster 'cuda' needs an NVIDIA GPU, and {why}; use threads or processes, or run on"
            " a machine with a GPU"
        )
    return devices


def _listed() -> list[str]:
    """Return the unique names of the GPUs that the driver lists; none without a driver."""
    ask = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()
