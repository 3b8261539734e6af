"""The driver: bounded, patient with what fails, quick with what is refused."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster, WorkerPlugin, get_worker

from volflow.engine import attempt
from volflow.engine.driver import Attempt, Driver
from volflow.engine.plan import Plan, split_runs
from volflow.engine.run import Adapter, run
from volflow.engine.task import Step
from volflow.engine.workers import patient
from volflow.errors import InvalidInput, RunFailed, StoreFull, Unreadable
from volflow.store.journal.journal import Journal, Record, journal_dir

seen: Counter[object] = Counter()
going, stopping = threading.Event(), threading.Event()
running: list[float] = []


@pytest.fixture(autouse=True)
def forget():
    seen.clear()


def plan_of(task, job=None, *, blocks: int = 6, pieces: int = 3, **changes) -> Plan:
    base = {
        "operation": "square", "task": task, "job": job,
        "runs": split_runs(range(blocks), pieces), "units": 10 * blocks, "unit": "voxels",
        "peak_bytes": 1, "memory_bytes": 100,
    }  # fmt: skip
    return Plan(**{**base, **changes})


def square(job, blocks, context):
    for block in blocks:
        seen[block] += 1
        context.clock.add("read", 0.5)
        yield Step(None, 4)
        context.clock.add("write", 0.25)
        yield Step(block, 6, result=block**2)


def fails_at(job, blocks, context):
    """Fails at a block the first ``times`` that it comes to it."""
    block, times = job
    for one in blocks:
        seen[one] += 1
        if one == block and seen[one] <= times:
            raise OSError(f"block {one} did not work")
        yield Step(one, 10, result=one)


def fails_at_many(job, blocks, context):
    for one in blocks:
        seen[one] += 1
        if one in job:
            raise OSError(f"block {one} did not work")
        yield Step(one, 10, result=one)


class Odd(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def odd(job, blocks, context):
    yield from ()
    raise Odd("this", "that")


def refuses(job, blocks, context):
    seen["asked"] += 1
    yield Step(None, 1)
    raise InvalidInput("not like this")


def hiccups(job, blocks, context):
    """Cannot read a block at first."""
    for block in blocks:
        seen[block] += 1
        if block == job and seen[block] < 3:
            raise RunFailed("scan.zarr cannot be read")
        yield Step(block, 10)


def damaged_at_first(job, blocks, context):
    """One block reads as damaged once; another never works."""
    for block in blocks:
        seen[block] += 1
        if block == job[0] and seen[block] == 1:
            raise Unreadable("scan.zarr is damaged")
        if block == job[1]:
            raise OSError(f"block {block} did not work")
        yield Step(block, 10)


def finds_no_room(job, blocks, context):
    seen["asked"] += 1
    yield Step(None, 1)
    raise StoreFull("out.zarr cannot be written")


def forgets(job, blocks, context):
    for block in blocks:
        seen[block] += 1
        if block != job:
            yield Step(block, 10)


def counts_itself(job, blocks, context):
    running.append(1)
    seen["most"] = max(seen["most"], len(running))
    time.sleep(0.02)
    running.pop()
    yield Step(blocks[0], 10)


def waits(job, blocks, context):
    """Works until nobody waits for it any more."""
    going.set()
    try:
        while True:
            context.check()
            yield Step(None, 0)
            stopping.wait(0.01)
    finally:
        stopping.set()


def checks(job, blocks, context):
    for block in blocks:
        context.check()
        yield Step(block, 10, result="checked")


def named(job, blocks, context):
    for block in blocks:
        yield Step(block, 1, result=job)


class TestDone:
    def test_results_come_by_block(self, client):
        report = run(plan_of(square), cluster=client, progress=False)
        assert report.results == {b: b**2 for b in range(6)}
        assert report.retries == 0
        assert set(seen.values()) == {1}

    def test_stages_add_up(self, client):
        states = []
        report = run(plan_of(square), cluster=client, progress=lambda s: states.append(s.units))
        assert report.wall_s > 0
        assert states == sorted(states)
        assert states[-1] == 60
        # The last messages may come after the last result; what came is right.
        assert 0 < report.stages["read"] <= 3.0

    def test_a_plan_without_work_is_done(self, client):
        assert run(plan_of(square, runs=()), cluster=client, progress=False).results == {}

    def test_each_run_may_have_a_job_of_its_own(self, client):
        plan = plan_of(named, runs=((0, 1), (2,)), job_of=lambda blocks: f"job of {blocks}")
        results = run(plan, cluster=client, progress=False).results
        assert results == {0: "job of (0, 1)", 1: "job of (0, 1)", 2: "job of (2,)"}

    def test_nothing_is_left_on_the_scheduler(self, client):
        run(plan_of(square, blocks=40, pieces=40), cluster=client, progress=False)
        deadline = time.monotonic() + 30

        def left():  # beside what the connection offers as long as it lasts
            return [key for key in client.cluster.scheduler.tasks if "offer" not in key]

        while left() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left()

    def test_the_callers_client_stays_open(self, client):
        run(plan_of(square), cluster=client, progress=False)
        assert client.status == "running"


class TestSlots:
    @pytest.mark.parametrize(
        ("changes", "most"),
        [({"peak_bytes": 40}, 2), ({"peak_bytes": 100}, 1), ({"exclusive": True}, 1), ({}, 4)],
    )
    def test_no_more_tasks_run_at_once(self, changes, most):
        with LocalCluster(
            n_workers=1, threads_per_worker=4, processes=False, memory_limit=None,
            dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster:  # fmt: skip
            plan = plan_of(counts_itself, blocks=16, pieces=16, **changes)
            run(plan, cluster=cluster, progress=False)
        assert 1 <= seen["most"] <= most


class TestFailures:
    @pytest.mark.parametrize("times", [1, 2])
    def test_what_fails_at_first_is_done_again(self, client, times):
        report = run(plan_of(fails_at, (1, times)), cluster=client, progress=False)
        assert report.results == {b: b for b in range(6)}
        assert report.retries == times

    def test_only_what_is_left_of_a_run_is_repeated(self, client):
        run(plan_of(fails_at, (2, 2), pieces=1), cluster=client, progress=False)
        assert seen == {0: 1, 1: 1, 2: 3, 3: 1, 4: 1, 5: 1}

    @pytest.mark.parametrize("block", [0, 2, 5])
    @pytest.mark.parametrize("pieces", [1, 2, 6])
    def test_a_block_that_always_fails_is_lost_alone(self, client, block, pieces):
        with pytest.raises(RunFailed) as failed:
            run(plan_of(fails_at, (block, 99), pieces=pieces), cluster=client, progress=False)
        assert seen == {b: 3 if b == block else 1 for b in range(6)}
        message = str(failed.value)
        assert message.startswith(
            "1 of 6 blocks failed after 2 retries; what is done is kept, and the same command tries"
            f" them again: block {block}: OSError: block {block} did not work\n"
        )
        assert failed.value.exit_code == 1

    def test_several_that_always_fail_are_all_named(self, client):
        with pytest.raises(RunFailed, match=r"3 of 6 .* block 0: .* block 3: .* block 4: "):
            run(plan_of(fails_at_many, (0, 3, 4), pieces=1), cluster=client, progress=False)
        assert {b for b, count in seen.items() if count == 1} == {1, 2, 5}

    def test_the_number_of_retries_may_be_chosen(self, client):
        with pytest.raises(RunFailed, match="1 of 6 blocks failed after 0 retries"):
            run(plan_of(fails_at, (3, 1)), cluster=client, progress=False, retries=0)
        assert seen[3] == 1

    def test_an_error_that_cannot_be_unpickled_still_tells_its_text(self, client):
        with pytest.raises(RunFailed, match="block 0: Odd: this and that"):
            run(plan_of(odd, blocks=1), cluster=client, progress=False, retries=0)

    def test_what_is_refused_is_refused_at_once(self, client):
        with pytest.raises(InvalidInput, match=r"^not like this$"):
            run(plan_of(refuses, exclusive=True), cluster=client, progress=False)
        assert seen["asked"] == 1

    def test_what_cannot_be_read_is_tried_again(self, client):
        assert run(plan_of(hiccups, 2), cluster=client, progress=False).retries == 2

    def test_damage_that_was_got_over_does_not_name_another_failure(self, client):
        with pytest.raises(RunFailed, match=r"1 of 6 .* again: block 5: OSError: block 5 did not"):
            run(plan_of(damaged_at_first, (1, 5)), cluster=client, progress=False)

    def test_a_full_disk_ends_the_run_at_once(self, client):
        with pytest.raises(StoreFull, match=r"^out.zarr cannot be written$"):
            run(plan_of(finds_no_room, exclusive=True), cluster=client, progress=False)
        assert seen["asked"] == 1

    def test_a_task_that_ends_without_some_blocks_is_not_taken_for_done(self, client):
        with pytest.raises(RunFailed, match=r"1 of 6 .* block 2: .* ended without doing it"):
            run(plan_of(forgets, 2), cluster=client, progress=False)
        assert seen == {b: 3 if b == 2 else 1 for b in range(6)}

    def test_what_a_closing_worker_stops_is_done_again(self, client, monkeypatch):
        """A task that its worker no longer counts as running is not one of a replaced driver."""
        looks, wanted = [], attempt.wanted_by

        def not_for_a_moment(worker, key):
            looks.append(key)
            return looks.count(key) < 3 if key == looks[0] else wanted(worker, key)

        monkeypatch.setattr(attempt, "wanted_by", not_for_a_moment)
        report = run(plan_of(checks, blocks=1), cluster=client, progress=False)
        assert (report.results, report.retries) == ({0: "checked"}, 1)


class TestStopping:
    def test_ctrl_c_stops_the_tasks(self, client, monkeypatch):
        def interrupted(adapter, most_s):
            assert going.wait(30)
            raise KeyboardInterrupt

        monkeypatch.setattr(Adapter, "collect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(plan_of(waits), cluster=client, progress=False)
        assert stopping.wait(30)

    def test_without_any_worker_it_gives_up(self):
        with (
            LocalCluster(
                n_workers=0, processes=False, dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            ) as none,
            pytest.raises(RunFailed) as failed,
            patient(0.2),
        ):  # fmt: skip
            run(plan_of(square), cluster=none, progress=False)
        assert str(failed.value) == (
            f"the Dask cluster at {none.scheduler_address} had no worker for 0.2 s; start workers,"
            " or wait longer (wait=, --wait), and run the same command again"
        )
        assert failed.value.exit_code == 1


class Mark(WorkerPlugin):
    def setup(self, worker):
        seen["plugin"] += 1
        os.environ["VOLFLOW_TEST_PLUGIN"] = "here"

    def teardown(self, worker):
        seen["plugin"] -= 1


def needs_plugin(job, blocks, context):
    for block in blocks:
        yield Step(block, 10, result=(os.environ.get("VOLFLOW_TEST_PLUGIN"), os.getpid()))


def dies_once(job, blocks, context):
    """Kills its own process at block 2, the first time."""
    get_worker()
    for block in blocks:
        flag = Path(job) / "died"
        if block == 2 and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield Step(block, 10, result=(os.environ.get("VOLFLOW_TEST_PLUGIN"), os.getpid()))


class TestPlugin:
    def test_is_there_while_the_plan_runs_and_gone_after(self, client, monkeypatch):
        monkeypatch.delenv("VOLFLOW_TEST_PLUGIN", raising=False)
        report = run(plan_of(needs_plugin, plugin=Mark()), cluster=client, progress=False)
        assert {env for env, _ in report.results.values()} == {"here"}
        assert seen["plugin"] == 0
        monkeypatch.delenv("VOLFLOW_TEST_PLUGIN", raising=False)

    def test_is_gone_after_a_failure(self, client):
        plan = plan_of(fails_at, (0, 99), plugin=Mark())
        with pytest.raises(RunFailed):
            run(plan, cluster=client, progress=False, retries=0)
        assert seen["plugin"] == 0
        os.environ.pop("VOLFLOW_TEST_PLUGIN", None)


@pytest.mark.slow
class TestProcesses:
    def test_the_plugin_reaches_every_process(self):
        plan = plan_of(needs_plugin, blocks=12, pieces=12, plugin=Mark())
        report = run(plan, cluster=2, progress=False)
        assert {env for env, _ in report.results.values()} == {"here"}
        assert len({pid for _, pid in report.results.values()}) == 2
        assert "VOLFLOW_TEST_PLUGIN" not in os.environ

    def test_what_a_dead_process_held_is_done_by_another(self, tmp_path):
        plan = plan_of(dies_once, str(tmp_path), plugin=Mark())
        report = run(plan, cluster=2, progress=False)
        assert sorted(report.results) == list(range(6))
        # The process that came in place of the dead one has the plugin too.
        assert {env for env, _ in report.results.values()} == {"here"}
        assert report.retries == 1


def test_runs_side_by_side_leave_dask_as_it_was(client):
    """A run that ends amid another must not leave Dask pointing at its own client."""

    def one(seconds):
        run(plan_of(slow, seconds, blocks=1, pieces=1), cluster=client, progress=False)

    threads = [threading.Thread(target=one, args=(seconds,)) for seconds in (0.2, 0.5)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
        assert dask.config.get("scheduler", None) is None
    for thread in threads:
        thread.join()
    assert dask.config.get("scheduler", None) is None


def slow(job, blocks, context):
    time.sleep(job)
    for block in blocks:
        yield Step(block, 10)


def leaves_torn(job, blocks, context):
    """Fails once at a block, leaving a file; then does its blocks."""
    for block in blocks:
        seen[block] += 1
        if block == 3 and seen[block] == 1:
            (context.fence.folder / "torn").touch()
            raise OSError("killed amid a shard")
        with context.block(block):
            pass
        yield Step(block, 10)


def test_shards_that_the_dead_left_half_written_are_deleted(tmp_path):
    """Of drivers and of workers; earlier versions began them beside their places."""
    folder = tmp_path / "out.zarr" / "0" / "c"
    folder.mkdir(parents=True)
    journal = Journal(journal_dir(tmp_path / "out.zarr"))
    kept = {"journal": journal, "record": Record("square", {}, {"grid": [6]})}
    journal.make_place()
    (journal.fence(journal.begin(kept["record"])).folder / "torn").touch()
    (folder / f"2.{32 * 'a'}.partial").touch()
    run(plan_of(leaves_torn, None, **kept), progress=False)
    assert list(journal.done()) == list(range(6))
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in journal.directory.iterdir()) == ["done", "plan.json"]


def test_a_task_gets_its_runs_one_by_one_also_where_several_come_at_once(monkeypatch):
    """Only what lies in one run are neighbours."""

    def runs(job, blocks, context):
        yield from (Step(block, 10, result=blocks) for block in blocks)

    def all_at_once(driver, most_blocks, most_runs):
        blocks = tuple(block for attempt in driver.waiting for block in attempt.blocks)
        driver.waiting.clear()
        return Attempt(blocks)

    monkeypatch.setattr(Driver, "_next", all_at_once)
    report = run(plan_of(runs, runs=((0, 1), (2,), (3, 4, 5))), progress=False)
    assert report.results == {
        0: (0, 1), 1: (0, 1), 2: (2,), 3: (3, 4, 5), 4: (3, 4, 5), 5: (3, 4, 5),
    }  # fmt: skip


def test_blocks_without_results_are_not_fetched(monkeypatch):
    """Their steps have said that they are done; a result that nobody needs takes a round trip."""

    def bare(job, blocks, context):
        yield from (Step(block, 10) for block in blocks)

    fetched = []
    ending = Adapter.ending
    monkeypatch.setattr(Adapter, "ending", lambda *given: fetched.append(1) or ending(*given))
    assert run(plan_of(bare), progress=False).results == dict.fromkeys(range(6))
    assert fetched == []
    assert run(plan_of(square), progress=False).results == {n: n**2 for n in range(6)}
    assert len(fetched) == 3


class Long:
    """A job that is long to send; counts how often it is pickled."""

    def __init__(self, size):
        self.size = size

    def __reduce__(self):
        seen["pickled"] += 1
        return _long, (bytes(self.size),)


def _long(content):
    return Long(len(content))


def size_of(job, blocks, context):
    for block in blocks:
        yield Step(block, 10, result=job.size)


@pytest.mark.parametrize("size", [2**10, 2**20])
def test_a_long_job_goes_to_each_worker_once(local, size):
    report = run(plan_of(size_of, Long(size), pieces=6), cluster=local, progress=False)
    assert set(report.results.values()) == {size}
    assert (seen["pickled"] == 1) == (size == 2**20)
