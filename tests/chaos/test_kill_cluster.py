"""A cluster loses its scheduler, its driver, or a worker that lives on; real processes die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster

import volflow as vf
from tests.processes import wait_for
from volflow.engine.plan import Plan
from volflow.engine.run import Adapter, run
from volflow.engine.task import Step

pytestmark = pytest.mark.chaos

PATIENCE_S = 120


@pytest.fixture
def cluster(tmp_path, root):
    """A scheduler and a worker in processes of their own: address, and the scheduler."""
    environment = {**os.environ, "PYTHONPATH": str(root), "VOLFLOW_TEST_SLEEP": "0.1"}
    options = {"env": environment, "cwd": tmp_path, "start_new_session": True}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    file = tmp_path / "scheduler.json"
    scheduler = subprocess.Popen(
        [
            sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
            "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0",
            "--scheduler-file", str(file),
        ],
        **options, **quiet,
    )  # fmt: skip
    worker = subprocess.Popen(
        [
            sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file),
            "--no-nanny", "--no-dashboard", "--nthreads", "2", "--death-timeout", "60",
        ],
        **options, **quiet,
    )  # fmt: skip
    wait_for(file.exists)
    with Client(scheduler_file=str(file), set_as_default=False, timeout="60s") as client:
        client.wait_for_workers(1, timeout=60)
        address = client.scheduler.address
    yield address, scheduler
    for process in (worker, scheduler):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def driver(cluster, tmp_path, root):
    """A prediction of many slow patches by the command line, under way on the cluster."""
    vf.convert(np.ones((64, 16, 16), "float32"), tmp_path / "scan.zarr", progress=False)
    code = (
        "import volflow.engine.clusters.plugins as plugins; plugins.GRACE_S = 0.5;"
        "from volflow.cli import main; main()"
    )
    arguments = ["predict", "scan.zarr", "out.zarr", "--model", "tests.nets:slow", "--patch", "8"]
    arguments += ["--batch-size", "1", "--shard", "8", "--chunk", "8", "--memory", "1GiB"]
    arguments += ["--cluster", cluster[0], "--quiet", "--overlap", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    done = tmp_path / "out.zarr.volflow" / "done"
    wait_for(lambda: len(list(done.glob("*.json"))) > 1 or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    with process:
        yield process
        process.kill()


def marks(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "out.zarr.volflow" / "done").glob("*.json"))


def test_a_scheduler_that_dies_is_one_line(cluster, driver, tmp_path):
    address, scheduler = cluster
    os.kill(scheduler.pid, signal.SIGKILL)
    out, errors = driver.communicate(timeout=PATIENCE_S)
    assert errors == (
        f"volflow: the Dask scheduler at {address} is gone; what is done is kept: start the cluster"
        " again and run the same command again to do the rest\n"
    )
    assert (driver.returncode, out) == (1, "")
    assert 1 < len(marks(tmp_path)) < 8


def test_workers_of_a_killed_driver_stop_and_forget_its_model(cluster, driver, tmp_path):
    address, _ = cluster
    with Client(address, set_as_default=False) as client:

        def on_worker(look) -> bool:
            return any(client.run(look).values())

        def plugged() -> bool:
            return on_worker(lambda dask_worker: "volflow-" in " ".join(dask_worker.plugins))

        assert plugged()
        driver.kill()
        driver.wait()
        # The task stops at its next look: no thread of the worker is left with it.
        wait_for(lambda: not on_worker(lambda dask_worker: bool(dask_worker.active_keys)))
        then = marks(tmp_path)
        assert len(then) < 8
        wait_for(lambda: not plugged())
        assert marks(tmp_path) == then


at_work: Counter[int] = Counter()
most: Counter[int] = Counter()
begun, go_on = threading.Event(), threading.Event()


def holds(job, blocks, context):
    """The first task of all waits amid its first block until it is told to go on."""
    for block in blocks:
        at_work[block] += 1
        most[block] = max(most[block], at_work[block])
        if not begun.is_set():
            begun.set()
            assert go_on.wait(PATIENCE_S)
        at_work[block] -= 1
        yield Step(block, 1, result=block)


def test_a_worker_given_up_while_it_lives_does_no_block_beside_the_next():
    """Its thread is still amid a block when another worker of the process gets that block."""
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, memory_limit=None,
        dashboard_address=None, worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as local:  # fmt: skip
        scheduler = local.scheduler
        plan = Plan("hold", holds, None, ((0, 1, 2, 3),), 4, "voxels", 1, 100, exclusive=True)

        def lose():
            assert begun.wait(PATIENCE_S)
            (first,) = scheduler.workers
            local.sync(
                scheduler.remove_worker, first, stimulus_id="test", close=False, expected=True
            )
            local.scale(2)
            # The blocks have been given to another, which waits for the thread that still runs.
            wait_for(lambda: any(w.processing for w in scheduler.workers.values()))
            time.sleep(1)
            go_on.set()

        thread = threading.Thread(target=lose)
        thread.start()
        report = run(plan, cluster=local, progress=False)
        thread.join()
    assert report.results == {n: n for n in range(4)}
    assert set(most.values()) == {1}
    assert report.retries == 1


def doubles(job, blocks, context):
    for block in blocks:
        yield Step(block, 1, result=2 * block)


def test_a_result_that_dies_with_its_worker_is_computed_by_another(monkeypatch):
    """The worker ends after the task and before the driver has fetched what it brought back."""
    ending, lost = Adapter.ending, []
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, memory_limit=None,
        dashboard_address=None, worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as local:  # fmt: skip

        def loses_the_first(adapter, future):
            if not lost:
                (address,) = local.scheduler.tasks[future.key].who_has
                lost.append(address.address)
                local.sync(local.scheduler.remove_worker, lost[0], stimulus_id="test", close=True)
                wait_for(lambda: future.status != "finished")
                future._state.status = "finished"  # as it was when the driver looked
            return ending(adapter, future)

        monkeypatch.setattr(Adapter, "ending", loses_the_first)
        plan = Plan("double", doubles, None, ((0,), (1,), (2,)), 3, "voxels", 1, 100)
        report = run(plan, cluster=local, progress=False)
    assert report.results == {0: 0, 1: 2, 2: 4}
    assert report.retries == 1
