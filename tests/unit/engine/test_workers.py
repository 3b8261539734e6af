"""Who works: by several readings of the scheduler, awaited where nobody is there yet."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from types import SimpleNamespace

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
import torch
from distributed import Client, LocalCluster, Status, get_worker
from distributed.comm.core import CommClosedError

import volflow as vf
from volflow.engine import driver
from volflow.engine.cluster import connect
from volflow.engine.messages import WorkerReading
from volflow.engine.plan import Plan
from volflow.engine.roster import Patience
from volflow.engine.run import run
from volflow.engine.task import Step
from volflow.engine.workers import (
    MANY,
    expected_workers,
    grows,
    patience,
    patient,
    read_workers,
    workers,
)
from volflow.errors import InvalidInput, MemoryRefused, RunFailed, VolflowError


def empty_cluster(**options) -> LocalCluster:
    """A cluster without workers, which open no dashboards."""
    return LocalCluster(
        n_workers=0, threads_per_worker=1, dashboard_address=None,
        worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"}, **options,
    )  # fmt: skip


def squares(job, blocks, context):
    for block in blocks:
        yield Step(block, 1, result=block**2)


def plan_of(count: int) -> Plan:
    runs = tuple((n,) for n in range(count))
    return Plan("square", squares, None, runs, count, "voxels", peak_bytes=1, memory_bytes=100)


class TestReading:
    @pytest.mark.slow
    def test_a_cache_without_workers_is_no_evidence(self):
        """Dask's own timer overwrites what `scheduler_info` answers from."""
        # The timer runs all the time, and forgets the workers each time.
        with (
            dask.config.set({"distributed.client.scheduler-info-interval": "1ms"}),
            connect("threads") as client,
        ):
            report = run(plan_of(400), cluster=client, progress=False)
            assert report.retries == 0
            assert all(len(workers(client)) == 1 for _ in range(400))


@pytest.mark.parametrize(
    ("status", "paused"),
    [("init", False), ("running", False), ("paused", True), ("closing_gracefully", True)],
)
def test_a_worker_that_leaves_is_paused_and_one_that_starts_is_not(status, paused):
    record = {"nthreads": 2, "memory_limit": 0, "status": status}
    client = SimpleNamespace(
        scheduler=SimpleNamespace(identity=None), sync=lambda _: {"workers": {"tcp://a": record}}
    )
    assert read_workers(client) == {"tcp://a": WorkerReading(2, None, paused)}


def whereabouts(job, blocks, context):
    for block in blocks:
        yield Step(block, 1, result=get_worker().name)


class TestPaused:
    def test_a_paused_worker_gets_nothing_until_it_goes_on(self):
        # Without a limit of memory nothing but this test pauses and resumes a worker.
        local = empty_cluster(processes=False, memory_limit=None)
        with local as cluster, Client(cluster) as client:
            cluster.scale(2)
            client.wait_for_workers(2)
            first, second = (worker for worker in cluster.workers.values())
            first.status = Status.paused
            while not read_workers(client)[first.address].paused:
                threading.Event().wait(0.01)
            plan = Plan("where", whereabouts, None, tuple((n,) for n in range(20)), 20, "", 1, 100)
            results = run(plan, cluster=client, progress=False).results
            assert set(results.values()) == {second.name}
            first.status = Status.running


class TestWaiting:
    @pytest.mark.slow
    def test_an_adaptive_cluster_grows_from_nothing_and_is_used(self, tmp_path):
        scan = vf.convert(_scan(), tmp_path / "scan.zarr", progress=False)
        expected = vf.predict(
            scan, torch.nn.Identity(), tmp_path / "a.zarr", patch=8, progress=False
        )
        with empty_cluster(processes=False) as cluster:
            cluster.adapt(minimum=0, maximum=2, interval="50ms")
            result = vf.predict(
                scan, torch.nn.Identity(), tmp_path / "b.zarr", patch=8, cluster=cluster,
                memory="1GiB", progress=False,
            )  # fmt: skip
        assert (result[:] == expected[:]).all()

    @pytest.mark.slow
    def test_work_that_waits_makes_an_adaptive_cluster_grow(self):
        most = [0]

        def count(state):
            most[0] = max(most[0], len(cluster.scheduler.workers))

        with empty_cluster(processes=False) as cluster:
            cluster.adapt(minimum=0, maximum=2, interval="20ms")
            plan = Plan("wait", slow, None, tuple((n,) for n in range(40)), 40, "voxels", 1, 100)
            report = run(plan, cluster=cluster, progress=count)
        assert sorted(report.results) == list(range(40))
        assert most == [2]

    @pytest.mark.slow
    def test_workers_that_come_late_are_awaited_saying_so(self, caplog):
        with empty_cluster(processes=False) as cluster:
            late = threading.Timer(3, cluster.scale, [1])
            late.start()
            report = run(plan_of(3), cluster=cluster, progress=False)
            late.join()
        assert report.results == {0: 0, 1: 1, 2: 4}
        waits = [message for message in caplog.messages if message.startswith("waiting")]
        assert waits == [
            f"waiting for a worker: the Dask cluster at {cluster.scheduler_address} has none"
        ]

    def test_no_longer_than_was_asked(self, tmp_path):
        with empty_cluster(processes=False) as cluster, pytest.raises(RunFailed) as failed:
            vf.write(da.ones((8, 8, 8)), tmp_path / "one.zarr", cluster=cluster, wait="200ms")
        assert str(failed.value) == (
            f"the Dask cluster at {cluster.scheduler_address} had no worker for 0.2 s; start"
            " workers, or wait longer (wait=, --wait), and run the same command again"
        )
        assert failed.value.exit_code == 1
        assert not list(tmp_path.iterdir())

    def test_work_is_cut_for_those_that_an_adaptive_cluster_grows_to(self):
        with empty_cluster(processes=False) as cluster, Client(cluster) as empty:
            assert expected_workers(empty) == 1
            cluster.adapt(minimum=0, maximum=5, interval="1h")
            assert expected_workers(empty) == 5
            cluster.adapt(minimum=0, interval="1h")
            assert expected_workers(empty) == MANY

    @pytest.mark.slow
    @pytest.mark.parametrize(("wait", "adaptive"), [(None, False), ("1s", False), ("1s", True)])
    def test_workers_that_are_all_too_small_are_refused(self, wait, adaptive, monkeypatch):
        monkeypatch.setattr(driver, "ALONE_S", 1.0)
        with empty_cluster(processes=False, memory_limit="1GiB") as cluster:
            if adaptive:
                cluster.adapt(minimum=1, maximum=1, interval="50ms")
            else:
                cluster.scale(1)
            plan = replace(plan_of(3), peak_bytes=2**31, memory_bytes=2**32)
            with connect(cluster, wait=wait) as client, pytest.raises(VolflowError) as failed:
                run(plan, cluster=client, progress=False)
        if wait is None:
            assert type(failed.value) is MemoryRefused
            assert "square needs 2 GiB per worker, but the largest worker" in str(failed.value)
        else:
            assert "had no worker with 2 GiB of memory for 1 s" in str(failed.value)

    def test_a_cluster_of_another_kind_may_grow(self):
        for cluster, grown in (
            (None, False),
            (SimpleNamespace(_adaptive=None), False),
            (SimpleNamespace(_adaptive=object()), True),
            (object(), True),
        ):
            assert grows(SimpleNamespace(cluster=cluster)) is grown

    @pytest.mark.parametrize("wait", [-1, "soon", float("nan"), "-2s", []])
    def test_what_is_no_time_is_refused(self, wait):
        with (
            pytest.raises(InvalidInput, match=r'^wait must be seconds or a text like "10 minutes"'),
            connect("threads", wait=wait),
        ):
            pass

    def test_what_is_inside_waits_as_long(self):
        assert patience() == Patience(None)
        with patient("2 minutes"):
            with patient(None):
                assert patience() == Patience(120)
            with patient(1):
                assert patience() == Patience(1)
            with connect("threads"):  # workers that are started here come soon or never
                assert patience() == Patience(60)
        assert patience() == Patience(None)


class TestRefused:
    def test_an_asynchronous_client_is_refused_at_once(self):
        async def ask():
            async with (
                LocalCluster(
                    n_workers=1, processes=False, asynchronous=True, dashboard_address=None,
                    worker_dashboard_address="127.0.0.1:0",
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                ) as cluster,
                Client(cluster, asynchronous=True) as client,
            ):  # fmt: skip
                for given_ in (client, None):  # None: it is the active one
                    with pytest.raises(InvalidInput) as refused, connect(given_):
                        pass
                    assert str(refused.value) == (
                        "an asynchronous Dask client cannot be waited for here; use"
                        " distributed.Client(address) without asynchronous=True"
                    )

        asyncio.run(ask())

    def test_a_closed_client_is_refused(self):
        with connect("threads") as client:
            pass
        with pytest.raises(InvalidInput, match=r"^the Dask client is closed; make a new one$"):
            run(plan_of(1), cluster=client, progress=False)


def listening(process: psutil.Process) -> set[str]:
    connections = process.net_connections(kind="inet")
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["threads", 1])
def test_all_sockets_are_on_loopback(cluster):
    me = psutil.Process()
    before = me.net_connections(kind="inet")
    with connect(cluster):
        mine = {c.laddr.ip for c in me.net_connections(kind="inet") if c not in before}
        theirs = {ip for child in me.children(recursive=True) for ip in listening(child)}
        assert mine | theirs <= {"127.0.0.1"}
        assert mine if cluster == "threads" else theirs


def test_closed_connections_are_not_logged(caplog):
    with connect("threads"):
        pass
    for name in ("distributed.worker", "asyncio"):
        for error in (CommClosedError("closed"), ValueError("wrong")):
            try:
                raise error
            except Exception:
                logging.getLogger(name).exception("Failed to communicate with scheduler")
    logged = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert logged == [ValueError, ValueError]


def _scan():
    return np.random.default_rng(0).random((16, 16, 16), "float32")


def slow(job, blocks, context):
    for block in blocks:
        threading.Event().wait(0.1)
        yield Step(block, 1)
