"""A prediction on real SLURM jobs; skipped where there is no SLURM, or no dask-jobqueue.

Dask's configuration says what the site needs, such as ``DASK_JOBQUEUE__SLURM__INTERFACE=lo``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time

import dask
import numpy as np
import pytest

import volflow as vf
from tests.stores import files
from volflow.engine.clusters.slurm import job_memory
from volflow.engine.memory import resident_bytes

MIB = 2**20
MEMORY = "300MiB"

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="no SLURM here"),
]


@pytest.fixture
def site(root):
    """What this site needs, beside what Dask is configured with."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    names = ("SLURM_CONF", "VOLFLOW_TEST_SLEEP")
    exports = [f"export {name}={os.environ[name]}" for name in names if name in os.environ]
    exports.append(f"export PYTHONPATH={root}")
    prologue = dask.config.get("jobqueue.slurm.job-script-prologue") or []
    with dask.config.set(
        {
            "jobqueue.slurm.cores": 1,
            "jobqueue.slurm.walltime": "00:10:00",
            "jobqueue.slurm.job-script-prologue": [*prologue, *exports],
        }
    ):
        yield


@pytest.fixture
def slowly(tmp_path, monkeypatch):
    """Predicts 48 blocks, each of which takes so many seconds, and compares with a quiet run."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).random((96, 16, 16), "float32")
    scan = vf.convert(noise, tmp_path / "scan.zarr", progress=False)
    options = {
        "patch": 8, "overlap": 0, "batch_size": 1, "chunk": 8, "shard": 8, "progress": False,
    }  # fmt: skip

    def run(seconds, **where):
        monkeypatch.setenv("VOLFLOW_TEST_SLEEP", str(seconds))
        vf.predict(scan, "tests.nets:slow", tmp_path / "jobs.zarr", **where, **options)
        monkeypatch.setenv("VOLFLOW_TEST_SLEEP", "0")
        vf.predict(scan, "tests.nets:slow", tmp_path / "quiet.zarr", **options)
        assert files(tmp_path / "jobs.zarr") == files(tmp_path / "quiet.zarr")

    return run


def shown(job: str) -> str:
    """What SLURM knows of a job."""
    done = subprocess.run(
        ["scontrol", "show", "job", job], capture_output=True, text=True, check=True
    )
    return done.stdout


def jobs() -> list[str]:
    listed = subprocess.run(
        ["squeue", "--noheader", "--format=%i"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def all_end(before: set[str]) -> None:
    """Wait until no job of a run is left."""
    deadline = time.monotonic() + 60
    while set(jobs()) - before:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_jobs_are_sized_by_memory_and_one_may_be_cancelled(site, slowly, tmp_path):
    """The result equals that of threads, the memory that SLURM grants is what was to be asked."""
    granted: list[int] = []
    before = set(jobs())

    def cancel():
        done = tmp_path / "jobs.zarr.volflow" / "done"
        while len(list(done.glob("*.json"))) < 3:
            time.sleep(0.1)
        mine = sorted(set(jobs()) - before)
        granted.extend(int(re.search(r"MinMemoryNode=(\d+)M", shown(job))[1]) for job in mine)
        subprocess.run(["scancel", mine[0]], check=True)

    baseline = resident_bytes()
    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    slowly(0.1, cluster="slurm:2", memory=MEMORY)
    thread.join(10)
    _, least = job_memory(300 * MIB, baseline)
    assert granted
    assert all(least <= mib <= least + 400 for mib in granted)
    all_end(before)


def test_a_job_that_reaches_its_walltime_is_replaced(site, slowly):
    """SLURM ends a job of a minute up to half a minute late."""
    before, seen, ended = set(jobs()), set(), threading.Event()

    def watch():
        while not ended.wait(1):
            seen.update(set(jobs()) - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    with dask.config.set({"jobqueue.slurm.walltime": "00:01:00"}):
        slowly(3, cluster="slurm:1", memory=MEMORY)
    ended.set()
    thread.join(10)
    first, *others = sorted(seen, key=int)
    assert others
    assert "JobState=TIMEOUT" in shown(first)
    all_end(before)
