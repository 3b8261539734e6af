"""Run a plan on any Dask client: a bounded window of runs of blocks.

The driver (`volflow.engine.driver`) decides what is submitted where and how failures are handled;
this module performs its decisions with Dask. Results are released at once, so that neither the
scheduler nor the client grows with the volume. Tasks report over a topic (`observing/reports.py`).
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Client, Future, KilledWorker

from volflow.engine.admission.sharing import shared
from volflow.engine.attempt import Assignment, Session, execute
from volflow.engine.cluster import Cluster, connect
from volflow.engine.clusters.held import sent_once
from volflow.engine.clusters.plugins import with_plugin
from volflow.engine.clusters.skew import Newcomers
from volflow.engine.driver import Driver
from volflow.engine.messages import (
    Action,
    HoldOffers,
    Log,
    Outcome,
    Quarantine,
    Stop,
    Submit,
    TakeBack,
)
from volflow.engine.observing.reports import heard
from volflow.engine.plan import Plan
from volflow.engine.progress import Progress, RunState, announce, shown
from volflow.engine.time_limit import TimeLimit, current_limit
from volflow.engine.wanted import check_wanted
from volflow.engine.workers import (
    address_of,
    dashboard_of,
    grows,
    idle_first,
    offers,
    patience,
    scheduler_gone,
    selection,
    tell,
)
from volflow.errors import RunFailed
from volflow.store.journal.failures import Failure

__all__ = ["RunReport", "run"]

# The scheduler is asked for its workers at most this often; a query costs it 0.6 ms.
READ_EVERY_S = 1.0
# At first sooner, as it is not known yet how many runs they do in a second.
FIRST_READ_S = 0.1
# Results are small: one that takes longer than this was lost with its worker.
FETCH_S = 5.0
WAITS = "{} shares the worker {} with another run: a block waits there until it fits beside others"


@dataclass(frozen=True)
class RunReport:
    """Report of a run: results by block, seconds per stage, wall seconds, tasks retried."""

    results: dict[int, Any]
    stages: dict[str, float]
    wall_s: float
    retries: int


@dataclass
class Adapter:
    """Performs the driver's actions with a Dask client, and reports events to the driver.

    A task's steps arrive before the news that it has ended, and say which blocks are done. If they
    are all, and have no results, nothing is fetched: that would double the time of a short task.
    """

    client: Client
    plan: Plan
    session: Session
    driver: Driver
    state: RunState
    topic: str
    name: str
    futures: dict[int, Future[Outcome]] = field(default_factory=dict)
    ended: SimpleQueue[int] = field(default_factory=SimpleQueue)
    reported: dict[str, set[int]] = field(default_factory=dict)
    limit: TimeLimit | None = field(default_factory=current_limit)
    run_of: dict[int, int] = field(init=False)  # the run of the plan in which a block is

    def __post_init__(self) -> None:
        runs = enumerate(self.plan.runs)
        self.run_of = {block: number for number, run in runs for block in run}

    def loop(self) -> None:
        """Read the workers each second and collect ended attempts, until the driver stops."""
        due_s, every_s = time.monotonic(), FIRST_READ_S
        with offers(self.client) as hold, closing(Newcomers(self.client)) as newcomers:
            while not self.driver.stopped:
                check_wanted()
                now_s = time.monotonic()
                if self.limit is not None and self.limit.left_s <= 0 and not self.driver.time_up:
                    actions = self.driver.on_time_up(self.limit.text)
                elif now_s < due_s:
                    actions = self.collect(due_s - now_s)
                else:
                    due_s, every_s = now_s + every_s, min(READ_EVERY_S, 2 * every_s)
                    reading = newcomers.admitted(idle_first(self.client))
                    actions = self.driver.on_workers(reading, now_s)
                self.state.retries = self.driver.retried
                self.state.failed = len(self.driver.given_up)
                for action in actions:
                    self.perform(action, hold)

    def perform(self, action: Action, hold: Callable[[int], None]) -> None:
        """Perform one action of the driver."""
        match action:
            case Submit():
                self.submit(action)
            case TakeBack(number):
                # An attempt that has ended meanwhile stays: its late result counts.
                if not self.futures[number].done():
                    future = self.futures.pop(number)
                    future.cancel()
                    self.reported.pop(str(future.key), None)
            case Quarantine(block, reason):
                if self.session.journal is not None:
                    failure = Failure(block, self.plan.place(block).strip(), reason)
                    with suppress(OSError):  # a record that cannot be written ends no run
                        self.session.journal.failures.note(failure)
            case HoldOffers(count):
                hold(count)
            case Log() | Stop():
                tell(action)

    def submit(self, given: Submit) -> None:
        """Submit an attempt to its worker."""
        left_s = None if self.limit is None else self.limit.left_s
        runs = tuple(tuple(run) for _, run in groupby(given.blocks, self.run_of.__getitem__))
        future = self.client.submit(
            execute,
            Assignment(
                self.plan.task, runs, self.topic, self.name, replace(self.session, left_s=left_s)
            ),
            self.plan.job_of(given.blocks) if self.plan.job_of else self.plan.job,
            workers=[given.worker],
            resources=dict(selection().resources) or None,
            pure=False,
            key=f"{self.plan.operation}-{given.blocks[0]}-{uuid.uuid4().hex[:8]}",
        )
        self.futures[given.number] = future
        self.watch(given.number, future)

    def watch(self, number: int, future: Future[Outcome]) -> None:
        """Queue the number of an attempt when its future ends."""
        future.add_done_callback(lambda _: self.ended.put(number))

    def collect(self, most_s: float) -> list[Action]:
        """Collect one ended attempt, waiting at most ``most_s`` seconds for it."""
        try:
            number = self.ended.get(timeout=most_s)
            future = self.futures.pop(number)
        except (Empty, KeyError):  # none has ended, or it was taken back
            return []
        try:
            ending = self.plain_ending(number, future) or self.ending(future)
        except TimeoutError:  # lost with its worker: Dask runs it again, or it is taken back
            self.futures[number] = future
            self.watch(number, future)
            return []
        future.release()
        self.reported.pop(str(future.key), None)
        return self.driver.on_completed(number, ending)

    def close(self) -> None:
        """Cancel what is left; of a scheduler that is gone nothing is."""
        if self.client.status == "running":
            with suppress(OSError, RuntimeError):
                if self.futures:
                    self.client.cancel(list(self.futures.values()))

    def report(self, key: str, block: int) -> None:
        """Note a block of a task that is done and has no result."""
        self.reported.setdefault(key, set()).add(block)

    def plain_ending(self, number: int, future: Future[Outcome]) -> Outcome | None:
        """Return the outcome of an attempt whose blocks are all reported; None if some are not."""
        attempt = self.driver.in_flight.get(number)
        reported = self.reported.get(str(future.key), set())
        if attempt is None or not reported.issuperset(attempt.blocks):
            return None
        return Outcome(dict.fromkeys(attempt.blocks))

    def ending(self, future: Future[Outcome]) -> Outcome:
        """Return the outcome of an attempt, with an error if its result was lost."""
        if future.status == "finished":
            return future.result(timeout=FETCH_S)
        if future.status == "error":
            error = future.exception()
            died = isinstance(error, KilledWorker)
            return Outcome({}, RunFailed(f"{type(error).__name__}: {error}"), lost=died)
        while self.client.status == "connecting":  # Dask tries to reach a lost scheduler
            time.sleep(READ_EVERY_S / 10)
        if self.client.status != "running":
            raise scheduler_gone()
        return Outcome({}, RunFailed("the scheduler lost its task"), lost=True)


def run(
    plan: Plan,
    *,
    cluster: Cluster = None,
    progress: Progress = None,
    retries: int = 2,
) -> RunReport:
    """Run a plan to its end; if it has a journal, under the journal's lock.

    Parameters
    ----------
    plan
        The plan to run.
    cluster
        See `connect`.
    progress
        See `shown`.
    retries
        How often a failing run of blocks is submitted again before its failing block is given up.

    Returns
    -------
    RunReport
        With the results by block.

    Raises
    ------
    ResumeRefused
        If the plan's journal was started with different inputs or settings.
    MemoryRefused
        If all workers are too small for the plan and no others are expected: the cluster does
        not grow by itself, and no wait was set.
    TimeUp
        If the time that `time_limit` gives is over before the run.
    RunFailed
        If blocks failed after their retries, no worker joined within the `patience`, or the
        scheduler is gone.
    VolflowError
        If a task raised it, at once and without retry, as a retry would not help. Only a plain
        `RunFailed`, e.g. of an unreachable file, and `Unreadable` are retried, while the other
        blocks continue.
    """
    with _session(plan) as session:
        if not plan.runs:
            with shown(_state_of(plan), progress=False):  # those who watch learn that it is done
                return RunReport({}, {}, 0.0, 0)
        with (
            connect(cluster) as client,
            with_plugin(client, plan.plugin),
            sent_once(plan.job, client) as job,
        ):
            return _drive(client, replace(plan, job=job), session, progress, retries)


@contextmanager
def _session(plan: Plan) -> Iterator[Session]:
    """Open a session in the plan's journal, if it has one."""
    if plan.journal is None or plan.record is None:
        yield Session(memory_bytes=plan.kept_bytes, claim=shared(plan.claim))
        return
    token = plan.journal.begin(plan.record)
    try:
        yield Session(plan.journal, token, plan.kept_bytes, shared(plan.claim))
    finally:
        plan.journal.end(token)


def _state_of(plan: Plan) -> RunState:
    """Return the state of a run at its beginning."""
    output = "" if plan.journal is None else str(plan.journal.output)
    before = plan.whole - plan.blocks
    state = (plan.operation, plan.unit, plan.units, plan.blocks)
    return RunState(*state, output=output, blocks_before=before)


def _drive(
    client: Client,
    plan: Plan,
    session: Session,
    progress: Progress,
    retries: int,
) -> RunReport:
    """Run a plan on a client."""
    state = _state_of(plan)
    name, address, waiting = uuid.uuid4().hex, address_of(client), patience()
    fixed = waiting.wait_s is None and not grows(client)
    driver = Driver(plan, retries, waiting, address, fixed)
    if plan.journal and progress in (None, True) and (link := dashboard_of(client)):
        announce(f"{plan.operation}: dashboard at {link}", progress)
    waited: list[str] = []
    with shown(state, progress) as show:

        def hear(message: dict[str, Any]) -> None:
            if "step" in message:
                if message["block"] is not None:
                    adapter.report(message["key"], message["block"])
                state.add(**message["step"])
                show()
            elif not waited:
                waited.append(message["waits"])
                tell(Log(logging.WARNING, WAITS.format(plan.operation, *waited)))

        with heard(client, name, hear) as topic:
            adapter = Adapter(client, plan, session, driver, state, topic, name)
            try:
                adapter.loop()
                # The last events may arrive late.
                state.units, state.blocks = plan.units, plan.blocks
            except BaseException as error:
                if session.journal is not None:
                    session.journal.end(session.token)  # tasks stop at their next check
                if client.status != "running" and isinstance(error, Exception):
                    raise scheduler_gone(address) from None
                raise
            finally:
                adapter.close()
    return RunReport(driver.results, dict(state.stages), state.elapsed_s, state.retries)
