"""The driver's rules, one by one; its laws are in the property tests."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.engine.driver import Driver
from volflow.engine.messages import (
    HoldOffers,
    Log,
    Outcome,
    Quarantine,
    Stop,
    Submit,
    TakeBack,
    WorkerReading,
)
from volflow.engine.plan import Plan
from volflow.engine.roster import Patience, Roster
from volflow.errors import MemoryRefused, RunFailed, TimeUp
from volflow.geometry.grid import BlockGrid

ONE, PAUSED = WorkerReading(threads=1), WorkerReading(threads=1, paused=True)


def driver_of(runs, *, peak_bytes=1, memory_bytes=100, exclusive=False, **options) -> Driver:
    blocks = sum(len(run) for run in runs)
    plan = Plan("test", print, None, runs, blocks, "voxels", peak_bytes, memory_bytes, exclusive)
    return Driver(plan, **options)


def kinds(actions, *kept):
    return [action for action in actions if isinstance(action, kept)]


class TestRoster:
    @given(st.lists(st.booleans(), min_size=1, max_size=40), st.floats(1, 2))
    def test_a_worker_is_lost_only_after_several_readings_in_a_row(self, seen, every_s):
        roster, row = Roster({"a": ONE}), 0
        for number, there in enumerate(seen):
            roster.read({"a": ONE} if there else {}, now_s=number * every_s)
            row = 0 if there else row + 1
            lost = row >= 3 and (row - 1) * every_s >= 3
            assert roster.take_lost() == ({"a"} if lost else set())
            assert ("a" in roster.live) == there
            if lost:  # it is forgotten until it is seen again
                roster, row = Roster({"a": ONE}), 0

    def test_a_false_alarm_costs_a_line(self):
        driver = driver_of(((0, 1),))
        driver.on_workers({"a": ONE}, now_s=0)
        assert driver.on_workers({}, now_s=1) == driver.on_workers({}, now_s=2) == []
        text = "worker a was out of sight for 2 s"
        assert driver.on_workers({"a": ONE}, now_s=3) == [Log(logging.WARNING, text)]
        assert driver.on_workers({}, now_s=4) == []
        assert driver.retried == 0


class TestSlots:
    def slots(self, threads: int, limit_bytes: int | None = None, **changes) -> int:
        return driver_of((), **changes).slots(WorkerReading(threads, limit_bytes))

    def test_as_many_tasks_as_fit_in_memory(self):
        assert self.slots(8, peak_bytes=30, memory_bytes=100) == 3
        assert self.slots(2, peak_bytes=30, memory_bytes=100) == 2
        assert self.slots(8, peak_bytes=101, memory_bytes=100) == 1
        assert self.slots(8, peak_bytes=0, memory_bytes=100) == 8

    def test_one_where_the_task_uses_all_cores_itself(self):
        assert self.slots(8, exclusive=True) == 1

    def test_a_worker_whose_limit_is_lower_gets_what_fits_into_that(self):
        assert self.slots(8, 70, peak_bytes=30, memory_bytes=100) == 2
        assert self.slots(8, 29, peak_bytes=30, memory_bytes=100) == 0
        assert self.slots(8, 29, peak_bytes=30, memory_bytes=100, exclusive=True) == 0

    def test_the_window_is_bounded(self):
        driver = driver_of(tuple((n,) for n in range(60)), memory_bytes=2)
        assert len(kinds(driver.on_workers({"a": WorkerReading(8)}, now_s=0), Submit)) == 2
        for number in range(1, 59):
            submitted = kinds(driver.on_completed(number, Outcome({number - 1: None})), Submit)
            assert submitted == [Submit(number + 2, (number + 1,), "a")]


class TestPaused:
    def test_it_keeps_what_it_holds_and_gets_nothing_new(self):
        driver = driver_of(((0,), (1,), (2,)))
        driver.on_workers({"a": ONE}, now_s=0)
        assert driver.on_workers({"a": PAUSED}, now_s=1) == []
        assert kinds(driver.on_completed(1, Outcome({0: None})), Submit) == []
        assert kinds(driver.on_workers({"a": ONE}, now_s=2), Submit) == [Submit(2, (1,), "a")]

    def test_one_that_holds_nothing_is_waited_for_saying_so(self):
        driver = driver_of(((0,),), patience=Patience(60), cluster="tcp://x")
        assert kinds(driver.on_workers({"a": PAUSED}, now_s=0), Log) == []
        (log,) = driver.on_workers({"a": PAUSED}, now_s=2)
        assert log.text == (
            "waiting for a worker: the Dask cluster at tcp://x has none that is not paused,"
            " for 60 s at most"
        )
        (stop,) = driver.on_workers({"a": PAUSED}, now_s=60)
        assert str(stop.error) == (
            "the Dask cluster at tcp://x had no worker that is not paused for 60 s; start workers,"
            " or wait longer (wait=, --wait), and run the same command again"
        )

    def test_workers_that_are_too_small_are_no_help(self):
        driver = driver_of(((0,),), peak_bytes=2**30, patience=Patience(0), cluster="tcp://x")
        (stop,) = driver.on_workers({"a": WorkerReading(1, 2**20)}, now_s=0)
        assert "had no worker with 1 GiB of memory for 0 s" in str(stop.error)

    def test_where_no_others_are_expected_they_are_refused(self):
        driver = driver_of(((0,),), peak_bytes=2**30, fixed=True, cluster="tcp://x")
        small = {"a": WorkerReading(1, 2**20), "b": WorkerReading(1, 2**21)}
        for second in range(10):  # others may be about to join
            assert kinds(driver.on_workers(small, now_s=second), Stop) == []
        (stop,) = driver.on_workers(small, now_s=10)
        assert type(stop.error) is MemoryRefused
        assert str(stop.error) == (
            "test needs 1 GiB per worker, but the largest worker of the Dask cluster at tcp://x"
            " has 2 MiB; ask for less than that (memory=, --memory), start larger workers, or wait"
            " for them (wait=, --wait)"
        )

    def test_while_a_larger_one_is_started_again_they_are_not(self):
        """As between two passes, of which each has a driver of its own."""
        small, large = {"a": WorkerReading(1, 2**20)}, {"b": WorkerReading(1, 2**30)}
        driver = driver_of(((0,),), peak_bytes=2**30, fixed=True, cluster="tcp://x")
        for second in range(70):  # nobody has come yet, as from a queue
            assert kinds(driver.on_workers({}, now_s=second), Stop) == []
        for second in range(70, 78):  # the smaller one comes first
            assert kinds(driver.on_workers(small, now_s=second), Stop) == []
        assert kinds(driver.on_workers({**small, **large}, now_s=78), Submit)

    def test_those_of_a_cluster_that_grows_and_those_that_stay_behind_are_not(self):
        small, large = WorkerReading(1, 2**20), WorkerReading(1, 2**30)
        driver = driver_of(((0,),), peak_bytes=2**30, cluster="tcp://x")
        for second in range(60):
            assert kinds(driver.on_workers({"a": small}, now_s=second), Stop) == []
        driver = driver_of(((0,),), peak_bytes=2**30, fixed=True, cluster="tcp://x")
        driver.on_workers({"a": large, "b": small}, now_s=0)  # a dies, and is started again
        for second in range(1, 60):
            assert kinds(driver.on_workers({"b": small}, now_s=second), Stop) == []
        assert kinds(driver.on_workers({"a": large, "b": small}, now_s=60), Submit)
        driver = driver_of(((0,),), peak_bytes=2**30, fixed=True, cluster="tcp://x")
        for second in range(60):
            assert kinds(driver.on_workers({}, now_s=second), Stop) == []

    def test_one_beside_larger_ones_is_named_once_and_gets_no_block(self):
        driver = driver_of(((0,), (1,), (2,)), peak_bytes=2**30, memory_bytes=2**31)
        small, large = WorkerReading(1, 2**20), WorkerReading(1, 2**31)
        assert driver.on_workers({"s": small}, now_s=0) == [HoldOffers(3)]
        text = "worker s has 1 MiB of memory and gets no block: one of test needs 1 GiB"
        assert driver.on_workers({"s": small, "l": large}, now_s=1) == [
            Log(logging.WARNING, text), Submit(1, (0,), "l"), HoldOffers(2),
        ]  # fmt: skip
        assert driver.on_workers({"s": small, "l": large}, now_s=2) == []
        actions = driver.on_completed(1, Outcome({0: None}))
        assert kinds(actions, Submit) == [Submit(2, (1,), "l")]


class TestLost:
    def lose(self, driver, from_s):
        for second in range(3):
            assert kinds(driver.on_workers({"b": ONE}, now_s=from_s + second), TakeBack) == []
        return driver.on_workers({"b": ONE}, now_s=from_s + 3)

    def test_another_worker_gets_what_it_held_in_halves(self):
        driver = driver_of(((0, 1, 2),))
        driver.on_workers({"a": ONE}, now_s=0)
        assert self.lose(driver, 1) == [TakeBack(1), Submit(2, (0,), "b"), HoldOffers(1)]
        assert driver.retried == 1

    def test_a_late_answer_counts_once_and_shortens_what_waits(self):
        driver = driver_of(((0, 1, 2), (3,)))
        driver.on_workers({"a": ONE}, now_s=0)
        driver.on_workers({"a": ONE, "b": ONE}, now_s=0.5)
        assert TakeBack(1) in self.lose(driver, 1)  # and b works on block 3
        late = Outcome({0: "zero"}, RuntimeError("its end is of no interest any more"))
        assert driver.on_completed(1, late) == [HoldOffers(1)]
        actions = driver.on_completed(2, Outcome({3: "three"}))
        assert Submit(3, (1, 2), "b") in actions
        assert driver.on_completed(3, Outcome({1: "one", 2: "two"})) == [Stop()]
        assert driver.results == {0: "zero", 1: "one", 2: "two", 3: "three"}

    def test_what_came_too_late_for_its_retries_is_not_given_up(self):
        driver = driver_of(((0,), (1,)), retries=0)
        driver.on_workers({"a": ONE, "b": ONE}, now_s=0)
        assert TakeBack(1) in self.lose(driver, 1)
        assert list(driver.given_up) == [0]
        assert driver.on_completed(1, Outcome({0: None})) == []
        assert driver.on_completed(2, Outcome({1: None})) == [Stop()]

    def test_a_worker_that_restarts_at_its_address_keeps_its_attempt(self):
        """Dask itself runs the task again there."""
        driver = driver_of(((0,),))
        driver.on_workers({"a": ONE}, now_s=0)
        driver.on_workers({}, now_s=1)
        assert kinds(driver.on_workers({"a": ONE}, now_s=2), TakeBack, Submit) == []
        assert driver.on_completed(1, Outcome({0: None})) == [Stop()]


class TestBlame:
    """Block 5 ends each worker that comes to it."""

    def died_of(self, driver: Driver, threads: int, poison: int = 5) -> tuple[Stop, int]:
        """Run to the end on workers that die one by one; returns the stop, and how many died."""
        died, now_s, stops = 0, 0.0, []
        while not stops:
            worker = f"w{died}"
            stops = kinds(driver.on_workers({worker: WorkerReading(threads)}, now_s), Stop)
            held = [number for number, one in driver.in_flight.items() if one.worker == worker]
            while fine := [n for n in held if poison not in driver.in_flight[n].blocks]:
                actions = driver.on_completed(fine[0], done(driver.in_flight[fine[0]].blocks))
                stops += kinds(actions, Stop)
                held = [number for number, one in driver.in_flight.items() if one.worker == worker]
            died, now_s = died + bool(held), now_s + 1
        return stops[0], died

    @pytest.mark.parametrize(("threads", "exclusive"), [(1, False), (4, False), (4, True)])
    @pytest.mark.parametrize("runs", [(range(8),), ((0, 1, 2, 3), (4, 5, 6, 7)), 8])
    def test_it_is_found_and_its_neighbours_are_done(self, threads, exclusive, runs):
        runs = tuple((n,) for n in range(8)) if runs == 8 else tuple(map(tuple, runs))
        driver = driver_of(runs, exclusive=exclusive)
        stop, died = self.died_of(driver, threads)
        assert list(driver.given_up) == [5]
        assert sorted(driver.results) == [0, 1, 2, 3, 4, 6, 7]
        assert str(stop.error).endswith("tries them again: block 5: its worker died")
        # Halved until it is alone, three tries; one more where others ran beside it.
        halvings = (len(next(run for run in runs if 5 in run)) - 1).bit_length()
        assert died <= halvings + 3 + (threads > 1 and not exclusive)

    def test_what_ran_beside_it_is_tried_alone(self):
        driver = driver_of(((0,), (1,), (2,), (3,)))
        driver.on_workers({"a": WorkerReading(3)}, now_s=0)
        for second in range(1, 5):
            actions = driver.on_workers({"b": WorkerReading(3)}, now_s=second)
        assert kinds(actions, Submit) == []  # b works at block 3
        (submit,) = kinds(driver.on_completed(4, Outcome({3: None})), Submit)
        assert submit == Submit(5, (0,), "b")  # two of its three threads stay idle
        assert driver.given_up == {}


class TestTimeUp:
    def test_what_is_at_work_ends_and_nothing_is_begun(self):
        driver = driver_of(((0, 1, 2), (3,), (4, 5)))
        driver.on_workers({"a": ONE, "b": ONE}, now_s=0)
        assert driver.on_time_up("at 07:00") == [HoldOffers(0)]
        assert driver.on_workers({"a": ONE, "b": ONE, "c": ONE}, now_s=1) == []
        assert driver.on_completed(2, done((3,))) == []
        (stop,) = driver.on_completed(1, Outcome({0: None}, released=True))
        assert type(stop.error) is TimeUp
        assert stop.error.exit_code == 1
        assert str(stop.error) == (
            "test stopped at 07:00; 2 of 6 blocks are done; run the same command again to do the"
            " rest"
        )
        assert driver.retried == 0

    def test_what_is_lost_meanwhile_is_left_for_the_next_run(self):
        driver = driver_of(((0,), (1,)), patience=Patience(1))
        driver.on_workers({"a": ONE, "b": ONE}, now_s=0)
        assert driver.on_time_up("after 8h") == []
        assert driver.on_completed(2, Outcome({}, RuntimeError("it did not work"))) == []
        for second in range(1, 4):  # longer than is waited for workers
            assert driver.on_workers({}, now_s=second) == []
        lost, stop = driver.on_workers({}, now_s=4)
        assert lost == TakeBack(1)
        assert "stopped after 8h; 0 of 2 blocks are done; run" in str(stop.error)

    def test_a_run_that_was_done_by_then_is_done(self):
        driver = driver_of(((0,),))
        driver.on_workers({"a": ONE}, now_s=0)
        assert driver.on_time_up("at 07:00") == []
        assert driver.on_completed(1, done((0,))) == [Stop()]

    def test_before_it_began(self):
        driver = driver_of(((0,),))
        (stop,) = driver.on_time_up("at 07:00")
        assert "0 of 1 blocks are done" in str(stop.error)

    def test_a_worker_that_is_a_little_ahead_costs_no_retry(self):
        driver = driver_of(((0, 1),), retries=0)
        driver.on_workers({"a": ONE}, now_s=0)
        again = driver.on_completed(1, Outcome({0: None}, released=True))
        assert kinds(again, Submit) == [Submit(2, (1,), "a")]

    def test_what_failed_is_counted(self):
        driver = driver_of(((0,), (1,)), retries=0)
        driver.on_workers({"a": ONE}, now_s=0)
        driver.on_completed(1, Outcome({}, RuntimeError("it did not work")))
        driver.on_time_up("at 07:00")
        (stop,) = driver.on_completed(2, Outcome({}, released=True))
        assert "0 of 2 blocks are done, 1 failed; run" in str(stop.error)


def done(blocks) -> Outcome:
    return Outcome(dict.fromkeys(blocks))


class TestRetries:
    def test_they_count_anew_behind_a_block_that_was_done(self):
        """Three blocks that each fail twice at first are not given up."""
        driver = driver_of(((0, 1, 2),))
        driver.on_workers({"a": ONE}, now_s=0)
        for done in ({}, {}, {0: None}, {}, {1: None}, {}):
            failed = Outcome(done, RuntimeError("it did not work"))
            assert kinds(driver.on_completed(driver.submitted, failed), Submit)
        assert driver.on_completed(driver.submitted, Outcome({2: None})) == [Stop()]

    def test_what_dask_lost_is_tried_again(self):
        driver = driver_of(((0,),), retries=1)
        driver.on_workers({"a": ONE}, now_s=0)
        lost = Outcome({}, RunFailed("KilledWorker: a died"), lost=True)
        assert driver.on_completed(1, lost) == [Submit(2, (0,), "a")]
        quarantine, stop = driver.on_completed(2, lost)
        assert quarantine == Quarantine(0, "KilledWorker: a died")
        assert isinstance(stop.error, RunFailed)
        assert str(stop.error).endswith("again: block 0: KilledWorker: a died")

    def test_nothing_follows_the_end(self):
        driver = driver_of(((0,),))
        driver.on_workers({"a": ONE}, now_s=0)
        assert driver.on_completed(1, Outcome({0: None})) == [Stop()]
        assert driver.on_workers({"a": ONE}, now_s=1) == []
        assert driver.on_completed(1, Outcome({}, RunFailed("late"))) == []


class TestAtOnce:
    """Short runs are handed over several at once."""

    def driven(self, count, done, **changes):
        """A driver whose one worker did so many of the runs of one block in a second."""
        driver = driver_of(tuple((n,) for n in range(count)), **changes)
        driver.on_workers({"a": ONE}, now_s=0)
        for number in range(done):
            driver.on_completed(driver.submitted, Outcome({number: None}))
        driver.on_workers({"a": ONE}, now_s=1)
        return driver

    def next_of(self, driver, outcome):
        return kinds(driver.on_completed(driver.submitted, outcome), Submit)

    def test_a_worker_gets_what_it_does_in_a_quarter_of_a_second(self):
        driver = self.driven(200, 40)
        (submitted,) = self.next_of(driver, Outcome({40: None}))
        assert submitted.blocks == tuple(range(41, 51))

    def test_runs_that_take_longer_come_one_by_one(self):
        driver = self.driven(200, 7)
        assert self.next_of(driver, Outcome({7: None})) == [Submit(9, (8,), "a")]

    def test_enough_is_left_for_the_others(self):
        """Each time half of what waits at most, for one slot."""
        driver, sizes = self.driven(50, 40), []
        while not driver.stopped:
            blocks = driver.in_flight[driver.submitted].blocks
            sizes.append(len(blocks))
            driver.on_completed(driver.submitted, Outcome(dict.fromkeys(blocks)))
        assert sizes == [1, 4, 2, 1, 1, 1]

    def of_two_threads(self):
        driver, two = driver_of(tuple((n,) for n in range(200))), {"a": WorkerReading(2)}
        driver.on_workers(two, now_s=0)
        for number in range(1, 41):
            driver.on_completed(number, Outcome({number - 1: None}))
        driver.on_workers(two, now_s=1)
        return driver

    def test_threads_share_the_pace_of_their_worker(self):
        (submitted,) = kinds(self.of_two_threads().on_completed(41, Outcome({40: None})), Submit)
        assert len(submitted.blocks) == 5

    def test_one_that_failed_comes_alone(self):
        driver = self.of_two_threads()
        driver.on_completed(41, Outcome({}, RuntimeError("it did not work")))
        tried = []
        while 40 not in tried:
            number, attempt = next(iter(driver.in_flight.items()))
            tried = attempt.blocks
            driver.on_completed(number, Outcome(dict.fromkeys(tried)))
        assert tried == (40,)

    def test_jobs_that_hold_voxels_are_never_joined(self):
        runs = tuple((n,) for n in range(200))
        plan = Plan("test", print, None, runs, 200, "voxels", 1, 100, job_of=str)
        driver = Driver(plan)
        driver.on_workers({"a": ONE}, now_s=0)
        for number in range(40):
            driver.on_completed(driver.submitted, Outcome({number: None}))
        driver.on_workers({"a": ONE}, now_s=1)
        assert self.next_of(driver, Outcome({40: None})) == [Submit(42, (41,), "a")]


def test_blocks_are_named_with_their_boxes_and_reasons():
    grid = BlockGrid((8, 4, 4), (2, 4, 4))
    plan = Plan("test", print, None, ((0,), (1,), (2,), (3,)), 4, "voxels", 1, 100, grid=grid)
    driver = Driver(plan, retries=0)
    driver.on_workers({"a": WorkerReading(4)}, now_s=0)
    for number in (4, 3, 2):
        error = ValueError(f"too bright in block {number - 1}")
        actions = driver.on_completed(number, Outcome({}, error, "Traceback: of a task"))
        assert Quarantine(number - 1, f"too bright in block {number - 1}") in actions
    *_, stop = driver.on_completed(1, Outcome({}, RunFailed("scan.zarr cannot be read")))
    line, *trace = str(stop.error).splitlines()
    assert line == (
        "4 of 4 blocks failed after 0 retries; what is done is kept, and the same command tries"
        " them again: block 0 [0:2, 0:4, 0:4]: scan.zarr cannot be read; block 1 [2:4, 0:4, 0:4]:"
        " too bright in block 1; block 2 [4:6, 0:4, 0:4]: too bright in block 2; and 1 more"
    )
    assert trace == ["Traceback: of a task"]


@pytest.mark.parametrize(("runs", "most"), [(1, 0), (5, 4), (40, 16)])
def test_what_waits_is_offered_up_to_a_bound(runs, most):
    driver = driver_of(tuple((n,) for n in range(runs)))
    offers = kinds(driver.on_workers({"a": ONE}, now_s=0), HoldOffers)
    assert [offer.count for offer in offers] == ([most] if most else [])
