"""The one driver: a bounded window of runs of blocks, on any Dask client.

The driver keeps one task per slot in flight and releases each result at once, so that neither the
scheduler nor the client grows with the volume. Tasks report through Dask's event topics. A task
that fails is submitted again; what it had finished is in the journal, which it reads first.
A run that keeps failing loses the one block that fails and goes on behind it.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Client, Future

from volflow.engine.attempt import Outcome, Session, execute
from volflow.engine.cluster import Cluster, connect
from volflow.engine.events import State, reporter
from volflow.engine.plan import Plan
from volflow.engine.plugins import on_workers
from volflow.engine.workers import (
    Patience,
    Roster,
    address_of,
    offers,
    patience,
    scheduler_gone,
    workers,
)
from volflow.errors import RunFailed, Unreadable, VolflowError

__all__ = ["RunReport", "run"]

POLL_S = 1.0


@dataclass(frozen=True)
class RunReport:
    """What a run did: results by block, seconds per stage, wall seconds, tasks retried."""

    results: dict[int, Any]
    stages: dict[str, float]
    wall_s: float
    retries: int


@dataclass
class Attempt:
    """A run of blocks waiting for or holding a slot."""

    blocks: tuple[int, ...]
    worker: str = ""
    failures: int = 0


@dataclass
class Driver:
    """The state of one run: what waits, what is in flight, what is done, what failed."""

    client: Client
    plan: Plan
    state: State
    topic: str
    retries: int
    session: Session = field(default_factory=Session)
    waiting: deque[Attempt] = field(default_factory=deque)
    flying: dict[Future[Outcome], Attempt] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    damage: bool = False
    roster: Roster = field(default_factory=Roster)
    patience: Patience = field(default_factory=patience)
    landed: SimpleQueue[Future[Outcome]] = field(default_factory=SimpleQueue)

    def slots(self, threads: int) -> int:
        """Tasks that one worker may run at once within its memory."""
        if self.plan.exclusive:
            return 1
        return max(1, min(threads, self.plan.memory_bytes // max(1, self.plan.peak_bytes)))

    def read_workers(self) -> None:
        """Ask who works, if that is due; give up where nobody does for long."""
        now_s = time.monotonic()
        if not self.roster.due(now_s):
            return
        self.roster.read(workers(self.client), now_s)
        if self.roster.live:
            self.patience.worker_seen()
        else:
            self.patience.none_seen(self.client, now_s)

    def submit(self) -> None:
        """Fill the free slots of the live workers."""
        load = Counter(attempt.worker for attempt in self.flying.values())
        for address, threads in self.roster.live.items():
            while self.waiting and load[address] < self.slots(threads):
                attempt = self.waiting.popleft()
                attempt.worker = address
                job = self.plan.job_of(attempt.blocks) if self.plan.job_of else self.plan.job
                load[address] += 1
                future = self.client.submit(
                    execute,
                    self.plan.task,
                    job,
                    attempt.blocks,
                    self.topic,
                    self.session,
                    workers=[address],
                    pure=False,
                    key=f"{self.plan.operation}-{attempt.blocks[0]}-{uuid.uuid4().hex[:8]}",
                )
                self.flying[future] = attempt
                future.add_done_callback(self.landed.put)

    def take_back(self) -> None:
        """Queue again what lost workers held."""
        lost = self.roster.lost()
        for future, attempt in list(self.flying.items()):
            if attempt.worker in lost and not future.done():
                del self.flying[future]
                future.cancel()
                self.retry(attempt, "its worker died")
        for address in lost:
            self.roster.forget(address)

    def retry(self, attempt: Attempt, reason: str, *, damaged: bool = False) -> None:
        """Queue what is left of a run again, or give up its first block."""
        left = tuple(b for b in attempt.blocks if b not in self.results)
        if not left:
            return
        self.state.retries += 1
        if attempt.failures < self.retries:
            self.waiting.append(Attempt(left, failures=attempt.failures + 1))
            return
        self.failed[left[0]] = reason
        self.damage |= damaged
        if left[1:]:
            self.waiting.append(Attempt(left[1:]))

    def collect(self) -> None:
        """Take what has finished, waiting at most a moment for it."""
        try:
            future = self.landed.get(timeout=POLL_S)
        except Empty:
            return
        attempt = self.flying.pop(future, None)
        if attempt is None:  # taken back when its worker died
            return
        if future.status == "finished":
            outcome: Outcome = future.result()
        elif future.status == "error":
            error = future.exception()
            outcome = Outcome({}, RuntimeError(f"{type(error).__name__}: {error}"))
        else:
            self.await_scheduler()
            outcome = Outcome({}, RuntimeError("the scheduler lost its task"))
        future.release()
        self.results.update(outcome.results)
        reason = f"{outcome.error or 'its task ended without doing it'}\n{outcome.trace}"
        if isinstance(outcome.error, VolflowError):
            if type(outcome.error) not in (RunFailed, Unreadable):
                raise outcome.error
            reason = str(outcome.error)
        damaged = isinstance(outcome.error, Unreadable)
        self.retry(attempt, reason.strip(), damaged=damaged)

    def await_scheduler(self) -> None:
        """Wait while the client tries to find a lost scheduler again, as long as Dask tries."""
        while self.client.status == "connecting":
            time.sleep(POLL_S / 10)
        if self.client.status != "running":
            raise scheduler_gone()

    def loop(self) -> None:
        """Submit and collect until nothing is left."""
        self.waiting.extend(Attempt(blocks) for blocks in self.plan.runs)
        with offers(self.client) as offered:
            while self.waiting or self.flying:
                self.read_workers()
                self.take_back()
                self.submit()
                offered.hold(len(self.waiting))
                self.collect()
        if self.failed:
            blocks = ", ".join(str(b) for b in sorted(self.failed)[:8])
            raise (Unreadable if self.damage else RunFailed)(
                f"{len(self.failed)} of {self.state.total_blocks} blocks failed after"
                f" {self.retries} retries (blocks {blocks}); what is done is kept, run the same"
                f" command again to resume. First error: {next(iter(self.failed.values()))}"
            )


def run(
    plan: Plan,
    *,
    cluster: Cluster = None,
    progress: bool | Callable[[State], object] | None = None,
    retries: int = 2,
) -> RunReport:
    """Run a plan to its end; one with a journal while its lock is held.

    Parameters
    ----------
    plan
        What to run.
    cluster
        See `connect`.
    progress
        See `reporter`.
    retries
        How often a failing run of blocks is submitted again before its failing block is given up.

    Returns
    -------
    RunReport
        With the results by block.

    Raises
    ------
    ResumeRefused
        Where the plan's journal was begun with something else.
    RunFailed
        Where blocks failed after their retries, no worker came for as long as `patience` allows,
        or the scheduler is gone.
    VolflowError
        What a task raised of that kind, at once and without retry: what is refused stays refused,
        and a full disk stays full. A bare `RunFailed`, as of a file that cannot be reached, and
        an `Unreadable` place are tried again, and the other blocks go on.
    """
    with _session(plan) as session:
        if not plan.runs:
            return RunReport({}, {}, 0.0, 0)
        with connect(cluster) as client, on_workers(client, plan.plugin):
            return _drive(client, plan, session, progress, retries)


@contextmanager
def _session(plan: Plan) -> Iterator[Session]:
    """Open a session in the plan's journal, if it has one."""
    if plan.journal is None or plan.record is None:
        yield Session(memory_bytes=plan.memory_bytes)
        return
    token = plan.journal.begin(plan.record)
    try:
        yield Session(plan.journal, token, plan.memory_bytes)
    finally:
        plan.journal.end()


def _drive(
    client: Client,
    plan: Plan,
    session: Session,
    progress: bool | Callable[[State], object] | None,
    retries: int,
) -> RunReport:
    """Run a plan on a client."""
    state = State(plan.operation, plan.unit, plan.units, plan.blocks)
    shown = reporter(progress)
    topic = f"volflow-{uuid.uuid4().hex}"

    def on_event(event: tuple[float, dict[str, Any]]) -> None:
        state.add(**event[1]["step"])
        shown.update(state)

    address = address_of(client)
    driver = Driver(client, plan, state, topic, retries, session)
    client.subscribe_topic(topic, on_event)
    try:
        driver.loop()
        state.units, state.blocks = plan.units, plan.blocks  # the last events may lag behind
    except BaseException as error:
        if session.journal is not None:
            session.journal.end()  # tasks stop at their next check
        if client.status != "running" and isinstance(error, Exception):
            raise scheduler_gone(address) from None
        raise
    finally:
        if client.status == "running":  # else the scheduler has forgotten them all
            with suppress(OSError, RuntimeError):
                client.cancel(list(driver.flying))
                client.unsubscribe_topic(topic)
        shown.close(state)
    return RunReport(driver.results, dict(state.stages), state.elapsed_s, state.retries)
