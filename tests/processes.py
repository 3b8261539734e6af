"""A Dask scheduler and workers in processes of their own, as a site starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from distributed import Client, get_worker

from volflow.engine.task import Step

PATIENCE_S = 120


def wait_for(condition: Callable[[], object]) -> None:
    """Return when a condition is true, or fail."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def dask_processes(
    folder: Path, root: Path, *, workers: int = 1, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yield the address of a scheduler with workers, which have another environment.

    Parameters
    ----------
    folder, root
        Where they work, and the repository.
    workers, environment
        How many workers, and what is different in theirs.
    """
    file = folder / "scheduler.json"
    common = {**os.environ, "PYTHONPATH": str(root)}
    started = [
        _started(
            ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
             "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file)],
            folder, common,
        )
    ]  # fmt: skip
    try:
        for _ in range(workers):
            started.append(_start_worker(folder, {**common, **(environment or {})}))
        wait_for(file.exists)
        with Client(scheduler_file=str(file), set_as_default=False, timeout="60s") as client:
            client.wait_for_workers(workers, timeout=PATIENCE_S)
            address = client.scheduler.address
        yield address
    finally:
        for process in reversed(started):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start_worker(folder: Path, environment: Mapping[str, str], *options: str):
    """Start a worker that joins the scheduler of a folder, now or when it is there."""
    return _started(
        ["dask_worker", "--scheduler-file", str(folder / "scheduler.json"), "--no-nanny",
         "--no-dashboard", "--nthreads", "1", "--host", "127.0.0.1", "--death-timeout", "60",
         *options],
        folder, environment,
    )  # fmt: skip


@contextmanager
def joining(
    client: Client, folder: Path, environments: Mapping[str, Mapping[str, str]]
) -> Iterator[None]:
    """Have workers join a running cluster, by name with what is different in their environment."""
    count = len(client.scheduler_info(n_workers=-1)["workers"])
    started = [
        _start_worker(folder, {**os.environ, **one}, "--name", name)
        for name, one in environments.items()
    ]
    try:
        client.wait_for_workers(count + len(started), timeout=PATIENCE_S)
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def whose(job, blocks, context):
    """A task of workers in other processes, whose results name the one that did it."""
    time.sleep(0.02)
    for block in blocks:
        yield Step(block, 1, result=get_worker().address)


def _started(command: list[str], folder: Path, environment: Mapping[str, str]):
    module, *options = command
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", *options],
        cwd=folder, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
