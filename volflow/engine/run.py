"""The one driver: a bounded window of runs of blocks, on any Dask client.

The driver keeps one task per slot in flight and releases each result at once, so that neither the
scheduler nor the client grows with the volume. Tasks report through Dask's event topics. A task
that fails is submitted again; what it had finished is in the journal, which it reads first.
A run that keeps failing loses the one block that fails and goes on behind it.
"""

from __future__ import annotations

import time
import traceback
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from distributed import Client, Future, get_worker

from volflow.engine.cluster import Cluster, connect, is_embedded, workers
from volflow.engine.events import State, reporter
from volflow.engine.plan import Plan, Task
from volflow.errors import RunFailed, Unreadable, VolflowError

__all__ = ["RunReport", "run"]

POLL_S = 1.0
WORKERS_PATIENCE_S = 60.0


@dataclass(frozen=True)
class RunReport:
    """What a run did: results by block, seconds per stage, wall seconds, tasks retried."""

    results: dict[int, Any]
    stages: dict[str, float]
    wall_s: float
    retries: int


@dataclass(frozen=True)
class Outcome:
    """What came of one task: finished blocks, and the error that stopped it, if one did."""

    results: dict[int, Any]
    error: BaseException | None = None
    trace: str = ""


@dataclass
class Attempt:
    """A run of blocks waiting for or holding a slot."""

    blocks: tuple[int, ...]
    worker: str = ""
    failures: int = 0


def execute(task: Task, job: Any, blocks: tuple[int, ...], topic: str) -> Outcome:
    """Run a task on its worker, reporting each step to the driver."""
    results: dict[int, Any] = {}
    try:
        for step in task(job, blocks):
            if step.block is not None:
                results[step.block] = step.result
            done = step.block is not None
            message = {"units": step.units, "blocks": int(done), "stages": dict(step.stages)}
            get_worker().log_event(topic, {"step": message})
    except Exception as error:
        return Outcome(results, _portable(error), traceback.format_exc(limit=-4))
    return Outcome(results)


def _portable(error: Exception) -> Exception:
    """The error itself where it is ours, else its text: foreign classes may not unpickle."""
    if isinstance(error, VolflowError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


@dataclass
class Driver:
    """The state of one run: what waits, what is in flight, what is done, what failed."""

    client: Client
    plan: Plan
    state: State
    topic: str
    retries: int
    waiting: deque[Attempt] = field(default_factory=deque)
    flying: dict[Future[Outcome], Attempt] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    damage: bool = False
    seen_s: float = field(default_factory=time.monotonic)
    landed: SimpleQueue[Future[Outcome]] = field(default_factory=SimpleQueue)

    def slots(self, threads: int) -> int:
        """Tasks that one worker may run at once within its memory."""
        if self.plan.exclusive:
            return 1
        return max(1, min(threads, self.plan.memory_bytes // max(1, self.plan.peak_bytes)))

    def submit(self) -> None:
        """Fill the free slots of the live workers."""
        live = workers(self.client)
        self.requeue_lost(live)
        load = Counter(attempt.worker for attempt in self.flying.values())
        for address, threads in live.items():
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
                    workers=[address],
                    pure=False,
                    key=f"{self.plan.operation}-{attempt.blocks[0]}-{uuid.uuid4().hex[:8]}",
                )
                self.flying[future] = attempt
                future.add_done_callback(self.landed.put)

    def requeue_lost(self, live: dict[str, int]) -> None:
        """Take back what a dead worker held; give up when no worker comes back."""
        now = time.monotonic()
        self.seen_s = now if live else self.seen_s
        if now - self.seen_s > WORKERS_PATIENCE_S:
            raise RunFailed("no Dask worker is left; start workers and run the same command again")
        for future, attempt in list(self.flying.items()):
            if attempt.worker not in live and not future.done():
                del self.flying[future]
                future.cancel()
                self.retry(attempt, "its worker died")

    def retry(self, attempt: Attempt, reason: str) -> None:
        """Queue what is left of a run again, or give up its first block."""
        left = tuple(b for b in attempt.blocks if b not in self.results)
        if not left:
            return
        self.state.retries += 1
        if attempt.failures < self.retries:
            self.waiting.append(Attempt(left, failures=attempt.failures + 1))
            return
        self.failed[left[0]] = reason
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
        else:
            error = future.exception() if future.status == "error" else "the task was lost"
            outcome = Outcome({}, RuntimeError(f"{type(error).__name__}: {error}"))
        future.release()
        self.results.update(outcome.results)
        reason = f"{outcome.error or 'its task ended without doing it'}\n{outcome.trace}"
        if isinstance(outcome.error, VolflowError):
            if type(outcome.error) not in (RunFailed, Unreadable):
                raise outcome.error
            self.damage = self.damage or isinstance(outcome.error, Unreadable)
            reason = str(outcome.error)
        self.retry(attempt, reason.strip())

    def loop(self) -> None:
        """Submit and collect until nothing is left."""
        self.waiting.extend(Attempt(blocks) for blocks in self.plan.runs)
        while self.waiting or self.flying:
            self.submit()
            if self.flying:
                self.collect()
            else:
                time.sleep(POLL_S)
        if self.failed:
            blocks = ", ".join(str(b) for b in sorted(self.failed)[:8])
            raise (Unreadable if self.damage else RunFailed)(
                f"{len(self.failed)} of {self.state.total_blocks} blocks failed after"
                f" {self.retries} retries (blocks {blocks}); what is done is kept, run the same"
                f" command again to resume. First error: {next(iter(self.failed.values()))}"
            )


@contextmanager
def _plugin(client: Client, plan: Plan) -> Iterator[None]:
    """The plan's plugin on every worker; called directly where the workers are this process."""
    if plan.plugin is None:
        yield
    elif is_embedded(client):
        plan.plugin.setup(None)  # type: ignore[arg-type] # there is no worker of its own
        try:
            yield
        finally:
            plan.plugin.teardown(None)  # type: ignore[arg-type]
    else:
        name = f"volflow-{uuid.uuid4().hex[:8]}"
        client.register_plugin(plan.plugin, name=name)
        try:
            yield
        finally:
            client.unregister_worker_plugin(name)


def run(
    plan: Plan,
    *,
    cluster: Cluster = None,
    progress: bool | Callable[[State], object] | None = None,
    retries: int = 2,
    stop: Callable[[], None] | None = None,
) -> RunReport:
    """Run a plan to its end.

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
    stop
        Called when the run ends early, before the cluster is closed: tells tasks to stop.

    Returns
    -------
    RunReport
        With the results by block.

    Raises
    ------
    RunFailed
        Where blocks failed after their retries, or no worker is left.
    VolflowError
        What a task raised of that kind, at once and without retry: what is refused stays refused,
        and a full disk stays full. A bare `RunFailed`, as of a file that cannot be reached, and
        an `Unreadable` place are tried again, and the other blocks go on.
    """
    state = State(plan.operation, plan.unit, plan.units, plan.blocks)
    shown = reporter(progress)
    topic = f"volflow-{uuid.uuid4().hex}"

    def on_event(event: tuple[float, dict[str, Any]]) -> None:
        state.add(**event[1]["step"])
        shown.update(state)

    with connect(cluster) as client, _plugin(client, plan):
        driver = Driver(client, plan, state, topic, retries)
        client.subscribe_topic(topic, on_event)
        try:
            driver.loop()
            state.units, state.blocks = plan.units, plan.blocks  # the last events may lag behind
        except BaseException:
            if stop is not None:
                stop()
            for future in driver.flying:
                future.cancel()
            raise
        finally:
            client.unsubscribe_topic(topic)
            shown.close(state)
    return RunReport(driver.results, dict(state.stages), state.elapsed_s, state.retries)
