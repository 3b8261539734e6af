"""A run that its cluster drives outlives who began it, and the worker on which it is driven."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

import volflow as vf
from tests.nets import Slow, random_net
from tests.processes import dask_processes, wait_for
from tests.stores import files
from volflow import cli
from volflow.errors import RunFailed
from volflow.jobs.batch.case_record import batch_dir
from volflow.store.journal.history import find_holder
from volflow.store.journal.journal import Journal, journal_dir

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

BLOCKS = 8
OPTIONS = {"patch": 8, "overlap": 0.5, "batch_size": 2, "chunk": 8, "shard": 8, "memory": "1GiB"}
BEGINS = f"""
import sys
import volflow as vf
from tests.nets import slow
if __name__ == "__main__":
    scan, out, address = sys.argv[1:]
    run = vf.predict(scan, slow(), out, cluster=address, detach=True, **{OPTIONS})
    print(run.key, flush=True)
    run.result()
"""

BEGINS_BATCH = f"""
import sys
import volflow as vf
from tests.nets import slow
if __name__ == "__main__":
    cases, out, address = sys.argv[1:]
    run = vf.predict_cases(cases, slow(), out, cluster=address, detach=True, **{OPTIONS})
    print(run.key, flush=True)
    run.result()
"""


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A volume of eight blocks, which no test changes."""
    voxels = np.random.default_rng(0).random((64, 15, 14), "float32") + 0.1
    path = tmp_path_factory.mktemp("input") / "scan.zarr"
    return vf.convert(voxels, path, chunk=8, shard=8, progress=False)


@pytest.fixture(scope="module")
def whole(scan, tmp_path_factory):
    """What a quiet run in this process writes, byte by byte."""
    out = tmp_path_factory.mktemp("whole") / "whole.zarr"
    vf.predict(scan, Slow(random_net()), out, progress=False, **OPTIONS)
    return files(out)


@pytest.fixture
def address(tmp_path, root):
    """A scheduler and two workers of one thread, all in processes of their own."""
    slowly = {"VOLFLOW_TEST_SLEEP": "0.15", "OMP_NUM_THREADS": "1"}
    with dask_processes(tmp_path, root, workers=2, environment=slowly) as address:
        yield address


@pytest.fixture
def away(scan, tmp_path, address):
    def run(**options):
        model = Slow(random_net())
        given = {"cluster": address, "detach": True} | OPTIONS | options
        return vf.predict(scan, model, tmp_path / "out.zarr", **given)

    return run


def done(out: Path) -> dict[int, int]:
    """When each block that is done was recorded."""
    return {int(p.stem): p.stat().st_mtime_ns for p in (journal_dir(out) / "done").glob("*.json")}


def worker_of(address: str, key: str) -> int:
    """The process of the worker on which a driver is."""
    with Client(address, set_as_default=False) as client:
        (worker,) = (name for name, keys in client.processing().items() if key in keys)
        return client.run(os.getpid, workers=[worker])[worker]


def test_who_began_it_is_killed_and_it_ends_all_the_same(
    scan, whole, away, address, root, tmp_path
):
    out = tmp_path / "out.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", BEGINS, scan.path, str(out), address], text=True,
        env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE,
    ) as began:  # fmt: skip
        key = began.stdout.readline().strip()
        wait_for(lambda: done(out))
        began.send_signal(signal.SIGKILL)
    assert len(done(out)) < BLOCKS
    run = away()  # which finds it
    assert run.key == key
    facts = run.status()
    assert (facts["state"], facts["total"]) == ("running", BLOCKS)
    assert facts["holder"]["pid"] == worker_of(address, key)
    assert run.result().path == str(out)
    assert files(out) == whole


def test_who_began_a_batch_is_killed_and_it_ends_all_the_same(address, root, tmp_path):
    for n in range(3):
        np.save(tmp_path / f"p{n}.npy", np.random.default_rng(n).random((9, 8, 8), "f4") + 0.1)
    cases, out = str(tmp_path / "{case}.npy"), str(tmp_path / "{case}.zarr")
    with subprocess.Popen(
        [sys.executable, "-c", BEGINS_BATCH, cases, out, address], text=True,
        env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.PIPE,
    ) as began:  # fmt: skip
        key = began.stdout.readline().strip()
        wait_for(lambda: (batch_dir(out) / "cases.jsonl").exists())
        began.send_signal(signal.SIGKILL)
    model = Slow(random_net())
    run = vf.predict_cases(cases, model, out, cluster=address, detach=True, **OPTIONS)
    assert run.key == key  # which finds it
    facts = run.status()
    assert (facts["running"], facts["cases"]) == (True, 3)
    assert facts["holder"]["pid"] == worker_of(address, key)
    assert run.result().counts == {"done": 3}
    model = Slow(random_net())
    assert vf.predict_cases(cases, model, out, **OPTIONS, progress=False).counts == {"kept": 3}


def test_cancelled_it_is_resumed_by_the_same_call(whole, away, tmp_path, capsys):
    out = tmp_path / "out.zarr"
    run = away()
    assert vf.DetachedRun.of(out) == run
    wait_for(lambda: len(done(out)) > 1)
    assert cli.run(["cancel", str(out)]) == 0
    before = done(out)
    text = f"the detached run was cancelled; {len(before)} of {BLOCKS} blocks are done"
    assert text in capsys.readouterr().out
    assert 1 < len(before) < BLOCKS
    with Journal(journal_dir(out)).lock():  # nobody holds it
        pass
    assert run.status()["state"] == "stopped"
    with pytest.raises(RunFailed, match="was cancelled"):
        run.result()
    time.sleep(1)
    assert done(out) == before
    assert away().result().path == str(out)
    assert files(out) == whole
    after = done(out)
    assert {block: after[block] for block in before} == before
    assert cli.run(["cancel", str(out)]) == 0
    assert "had ended already (done)" in capsys.readouterr().out


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_worker_with_its_driver_is_killed(whole, away, address, tmp_path, overwrite):
    out = tmp_path / "out.zarr"
    if overwrite:
        vf.predict(np.ones((64, 15, 14), "float32"), random_net(), out, progress=False, **OPTIONS)
    run = away(overwrite=overwrite)
    wait_for(lambda: 1 < len(done(out)) < BLOCKS)
    pid = worker_of(address, run.key)
    before = done(out)
    os.kill(pid, signal.SIGKILL)
    run.result()
    assert files(out) == whole
    after = done(out)
    assert len(after) == BLOCKS
    assert {block: after[block] for block in before} == before


def test_its_scheduler_dies_and_it_is_resumed_on_another(whole, away, address, root, tmp_path):
    out, other = tmp_path / "out.zarr", tmp_path / "other"
    run = away()
    wait_for(lambda: len(done(out)) > 1)
    with Client(address, set_as_default=False) as client:
        scheduler = client.run_on_scheduler(os.getpid)
        workers = client.run(os.getpid).values()
    os.kill(scheduler, signal.SIGKILL)
    for worker in workers:  # which end by themselves, or wait for another scheduler at that address
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    wait_for(lambda: getattr(find_holder(Journal(journal_dir(out))), "alive", None) is not True)
    with pytest.raises(RunFailed, match="what is done is kept"):
        run.result()
    before = done(out)
    other.mkdir()
    with dask_processes(other, root) as second:
        assert away(cluster=second).result().path == str(out)
    assert files(out) == whole
    after = done(out)
    assert {block: after[block] for block in before} == before
