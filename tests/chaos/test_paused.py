"""A worker is stopped, its blocks are given to another, and it comes back: no byte changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from distributed import Client

import volflow as vf
from tests.chaos.test_kill_cluster import PATIENCE_S, marks, wait_for
from tests.stores import files

pytestmark = pytest.mark.chaos

PREDICT = ["predict", "scan.zarr", "--model", "tests.nets:slow", "--patch", "8", "--overlap", "0"]
PREDICT += ["--batch-size", "1", "--shard", "8", "--chunk", "8", "--memory", "1GiB", "--quiet"]
CLI = "from volflow.cli import main\nif __name__ == '__main__': main()"


@pytest.fixture
def start(tmp_path, root):
    """Starts Python in a process group of its own, which ends with the test."""
    started = []

    def begin(*words, **more):
        environment = {**os.environ, "PYTHONPATH": str(root), **more}
        process = subprocess.Popen(
            [sys.executable, *words], env=environment, cwd=tmp_path, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        for number in (signal.SIGCONT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        process.wait()


@pytest.mark.parametrize(
    "comes_back", ["amid the run", pytest.param("after it", marks=pytest.mark.nightly)]
)
def test_what_a_stopped_worker_writes_late_changes_nothing(start, tmp_path, comes_back):
    vf.convert(np.random.default_rng(0).random((64, 16, 16), "float32"), tmp_path / "scan.zarr")
    whole = start("-c", CLI, *PREDICT[:2], "whole.zarr", *PREDICT[2:])
    file = tmp_path / "scheduler.json"
    start(
        "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
        "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file),
        # Longer than importing torch keeps a worker of a loaded machine from answering.
        DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="15s",
    )  # fmt: skip
    wait_for(file.exists)
    doomed, _ = (
        start(
            "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-nanny",
            "--no-dashboard", "--nthreads", "1", VOLFLOW_TEST_SLEEP="0.2",
        )
        for _ in range(2)
    )  # fmt: skip
    with Client(scheduler_file=str(file), set_as_default=False, timeout="60s") as client:
        client.wait_for_workers(2, timeout=60)
        words = [*PREDICT[:2], "out.zarr", *PREDICT[2:], "--cluster", client.scheduler.address]
        driver = start("-c", CLI, *words)
        wait_for(lambda: len(marks(tmp_path)) > 1)
        os.kill(doomed.pid, signal.SIGSTOP)
        wait_for(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)
        if comes_back == "amid the run":
            assert driver.poll() is None
            os.kill(doomed.pid, signal.SIGCONT)
        assert driver.wait(PATIENCE_S) == 0
        done = {path: path.read_bytes() for path in (tmp_path / "out.zarr.volflow").rglob("*.json")}
        if comes_back == "after it":
            os.kill(doomed.pid, signal.SIGCONT)
            assert doomed.wait(PATIENCE_S) is not None
        assert whole.wait(PATIENCE_S) == 0
    assert files(tmp_path / "out.zarr") == files(tmp_path / "whole.zarr")
    assert {path: path.read_bytes() for path in done} == done
    assert vf.verify(tmp_path / "out.zarr").ok
