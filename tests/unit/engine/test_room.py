"""Memory of workers on clusters: declared, asked of them, or said by the last heartbeat."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker, get_worker

from tests.processes import dask_processes
from volflow.engine.cluster import connect, memory_per_worker
from volflow.engine.clusters import asking
from volflow.engine.memory import resident_bytes
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.task import Step

GIB = 2**30
PLACE = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "dashboard": False}


def test_a_cluster_without_workers_is_taken_by_the_size_that_it_declares():
    with (
        LocalCluster(
            n_workers=0, processes=False, memory_limit="2GiB", dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        assert memory_per_worker(client, None) == int(0.6 * 2 * GIB)
        assert memory_per_worker(client, "1GiB") == GIB


@pytest.mark.slow
def test_without_a_declared_size_the_first_worker_is_awaited():
    with (
        SpecCluster(scheduler={"cls": Scheduler, "options": PLACE}) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        spec = {"cls": Worker, "options": {**PLACE, "nthreads": 1, "memory_limit": 4 * GIB}}
        cluster.worker_spec["late"] = spec
        late = threading.Timer(0.5, lambda: cluster.sync(cluster._correct_state))
        late.start()
        assert 0 < memory_per_worker(client, None) <= 0.6 * (4 * GIB - resident_bytes() / 2)
        late.join()


@pytest.mark.slow
def test_of_a_worker_that_is_stopped_the_last_heartbeat_speaks(tmp_path, root, monkeypatch):
    monkeypatch.setattr(asking, "ANSWER_S", 0.5)
    with dask_processes(tmp_path, root) as address, Client(address, set_as_default=False) as client:
        (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGSTOP)
        try:
            (record,) = client.scheduler_info(n_workers=-1)["workers"].values()
            found = memory_per_worker(client, None)
            assert 0 < found < 0.6 * record["memory_limit"]
        finally:
            os.kill(pid, signal.SIGCONT)


def names(job, blocks, context):
    time.sleep(job)
    for block in blocks:
        yield Step(block, 1, result=get_worker().name)


@pytest.mark.slow
def test_a_smaller_worker_that_joins_later_gets_no_block_and_a_line(caplog):
    def sized(limit):
        return {"cls": Worker, "options": {**PLACE, "nthreads": 1, "memory_limit": limit}}

    with SpecCluster(
        workers={"large": sized(4 * GIB)}, scheduler={"cls": Scheduler, "options": PLACE}
    ) as cluster:
        cluster.worker_spec["small"] = sized(3 * GIB)
        late = threading.Timer(0.3, lambda: cluster.sync(cluster._correct_state))
        runs = tuple((n,) for n in range(150))
        plan = Plan("halve", names, 0.02, runs, 150, "blocks", 7 * GIB // 2, 4 * GIB)
        late.start()
        with caplog.at_level(logging.WARNING, logger="volflow"), connect(cluster) as client:
            results = run(plan, cluster=client, progress=False).results
            small = cluster.workers["small"].address
        late.join()
    assert set(results.values()) == {"large"}
    line = f"worker {small} has 3 GiB of memory and gets no block: one of halve needs 3.5 GiB"
    assert caplog.messages.count(line) == 1
