"""Two runs on one cluster: they share each worker's budget, slow each other down and no more."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from distributed import Client, LocalCluster, get_worker

from volflow.engine.admission.desk import Desk, desk_of
from volflow.engine.admission.ledger import Claim
from volflow.engine.cluster import connect, free_memory_bytes, memory_per_worker
from volflow.engine.clusters.room import room_here
from volflow.engine.memory import begin_peak, peak_bytes
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.task import Step
from volflow.errors import RunFailed

MIB = 2**20

together: Counter[str] = Counter()
most: Counter[str] = Counter()
counting = threading.Lock()


@pytest.fixture(autouse=True)
def forget():
    together.clear()
    most.clear()


@pytest.fixture
def shared():
    """One worker with six threads, in this process."""
    with LocalCluster(
        n_workers=1, threads_per_worker=6, processes=False, memory_limit=None,
        dashboard_address=None, worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as cluster:  # fmt: skip
        yield cluster


def takes(job, blocks, context):
    """Count what runs beside this task: its run's name and what it takes."""
    name, peak = job
    for block in blocks:
        with counting:
            together.update({"bytes": peak, "tasks": 1, name: 1})
            for what, count in together.items():
                most[what] = max(most[what], count)
        time.sleep(0.01)
        with counting:
            together.subtract({"bytes": peak, "tasks": 1, name: 1})
        yield Step(block, 1, result=name)


def plan_of(name: str, peak: int, budget: int = 10, count: int = 20, **changes) -> Plan:
    runs = tuple((n,) for n in range(count))
    return Plan(name, takes, (name, peak), runs, count, "blocks", peak, budget, **changes)


def at_once(cluster, *plans: Plan):
    """Run plans at the same time, each by a driver of its own with a client of its own."""
    with ThreadPoolExecutor(len(plans)) as pool:
        return list(pool.map(lambda plan: run(plan, cluster=cluster, progress=False), plans))


class TestBudget:
    @pytest.mark.slow
    @pytest.mark.parametrize("peaks", [(4, 4), (7, 3), (6, 6), (10, 1), (2, 5)])
    def test_two_runs_keep_to_one(self, shared, peaks):
        plans = [plan_of(name, peak) for name, peak in zip("ab", peaks, strict=True)]
        reports = at_once(shared, *plans)
        assert [set(r.results.values()) for r in reports] == [{"a"}, {"b"}]
        assert [len(r.results) for r in reports] == [20, 20]
        assert [r.retries for r in reports] == [0, 0]
        assert max(peaks) <= most["bytes"] <= 10

    def test_a_task_that_uses_all_cores_runs_alone(self, shared):
        at_once(shared, plan_of("a", 1, exclusive=True), plan_of("b", 1, exclusive=True))
        assert (most["a"], most["b"], most["tasks"]) == (1, 1, 1)

    def test_runs_that_fit_together_run_together(self, shared):
        barrier.reset()
        plans = [
            Plan("meet", meets, None, ((0,),), 1, "blocks", 3, 10) for _ in range(3)
        ]  # fmt: skip
        assert [report.results for report in at_once(shared, *plans)] == [{0: True}] * 3

    def test_a_task_that_fails_makes_room(self, shared):
        good, bad = plan_of("a", 6), plan_of("b", 6)
        bad = Plan("bad", fails, None, bad.runs, 20, "blocks", 6, 10)
        with ThreadPoolExecutor() as pool:
            failing = pool.submit(run, bad, cluster=shared, progress=False, retries=0)
            assert len(run(good, cluster=shared, progress=False).results) == 20
            with pytest.raises(RunFailed, match="20 of 20 blocks failed"):
                failing.result()

    def test_it_says_once_that_it_waits(self, shared, caplog):
        with caplog.at_level(logging.WARNING, logger="volflow"):
            reports = at_once(shared, plan_of("a", 6), plan_of("b", 6))
        said = [text for text in caplog.messages if "shares the worker" in text]
        assert 1 <= len(said) <= 2
        assert any(report.stages.get("wait", 0) > 0 for report in reports)

    @pytest.mark.slow
    def test_so_it_is_in_processes_of_their_own(self):
        """Two drivers on a worker process: what it holds at its peak is one budget."""
        with connect(1) as client:
            client.run(begin_peak)
            base = next(iter(client.run(peak_bytes).values()))
            runs = tuple((n,) for n in range(6))
            plans = [
                Plan(name, holds, 120 * MIB, runs, 6, "blocks", 120 * MIB, 150 * MIB)
                for name in "ab"
            ]
            address = client.scheduler.address
            reports = at_once(address, *plans)
            peak = next(iter(client.run(peak_bytes).values()))
        assert [len(report.results) for report in reports] == [6, 6]
        assert 120 * MIB <= peak - base <= 190 * MIB  # two at once would be 240


barrier = threading.Barrier(3)


def meets(job, blocks, context):
    barrier.wait(60)
    yield Step(blocks[0], 1, result=True)


def fails(job, blocks, context):
    yield from ()
    raise OSError("it does not work")


def holds(job, blocks, context):
    for block in blocks:
        kept = np.ones(job, "uint8")
        time.sleep(0.05)
        yield Step(block, 1, result=int(kept[0]))


def test_what_a_run_uses_just_now_counts_as_free_for_the_next(shared):
    """A second notebook plans as the first one did, and takes turns."""
    filled, go_on = threading.Event(), threading.Event()
    waiting[:] = [filled, go_on]
    plan = Plan("fill", fills, 200 * MIB, ((0,),), 1, "blocks", 200 * MIB, 400 * MIB)
    with ThreadPoolExecutor(1) as pool, Client(shared, set_as_default=False) as client:
        running = pool.submit(run, plan, cluster=shared, progress=False)
        assert filled.wait(60)
        room, shared_by_host = room_here(shared.workers[0])
        assert shared_by_host
        assert room >= free_memory_bytes() + 100 * MIB
        assert memory_per_worker(client, None) > 0
        go_on.set()
        running.result()


waiting: list[threading.Event] = []


def fills(job, blocks, context):
    kept = np.ones(job, "uint8")
    waiting[0].set()
    assert waiting[1].wait(60)
    desk = desk_of(get_worker())
    assert desk.idle_bytes is not None
    assert desk.added_bytes() >= 150 * MIB
    yield Step(blocks[0], 1, result=int(kept[0]))


class TestDesk:
    @pytest.mark.slow
    def test_one_that_is_no_longer_wanted_leaves_the_line(self):
        desk, told = Desk(), []
        alone = Claim({"tasks": 1}, {"tasks": 1})
        with desk.admitted(alone, lambda: True, told.append) as first:
            assert first
            wanted = iter([True, True, False, False])
            with desk.admitted(alone, lambda: next(wanted), lambda: told.append("waits")) as second:
                assert not second
            assert told == ["waits"]
            assert not desk.ledger.waiting
        with desk.admitted(alone, lambda: True, lambda: told.append("waits")) as third:
            assert third
        assert told == ["waits"]

    def test_it_is_one_for_all_tasks_of_a_worker(self):
        worker = SimpleNamespace(extensions={})
        assert desk_of(worker) is desk_of(worker)
        assert desk_of(worker) is not desk_of(SimpleNamespace(extensions={}))

    def test_an_error_inside_leaves_room(self):
        desk = Desk()
        with pytest.raises(ValueError, match="inside"), desk.admitted(Claim(), bool, bool):
            raise ValueError("inside")
        assert not desk.ledger.running
