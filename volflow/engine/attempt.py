"""A task on its worker: it waits for room, reports each step, and stops when it is unwanted.

Dask does not stop the thread of a cancelled task: if a driver dies, takes blocks back or loses its
scheduler, the task would run on beside its replacement. So after each step a task checks that its
worker still counts it as running, and a task whose blocks are still in work in the same process
waits for the earlier one to stop.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from distributed import Worker, get_worker

from volflow.engine.admission.desk import desk_of
from volflow.engine.admission.ledger import Claim
from volflow.engine.clusters.held import InProcess
from volflow.engine.messages import Outcome
from volflow.engine.task import Context, Step, Task, run_task
from volflow.engine.wanted import wanted_by
from volflow.errors import Superseded, VolflowError
from volflow.store.journal.journal import Journal
from volflow.store.journal.records import process_name

__all__ = ["Assignment", "Session", "execute"]

# Interval at which a waiting task checks that it is still wanted itself.
LOOK_EVERY_S = 0.5


_at_work: set[tuple[str, int]] = set()  # (driver, block) of the running tasks of this process
_changed = threading.Condition()


@contextmanager
def _alone(driver: str, blocks: tuple[int, ...], wanted: Callable[[], bool]) -> Iterator[None]:
    """Reserve blocks of a run, after an earlier task of this process has released them."""
    mine = {(driver, block) for block in blocks}
    with _changed:
        while wanted() and mine & _at_work:
            _changed.wait(LOOK_EVERY_S)
        mine -= _at_work  # not empty only if this task is unwanted; it then does nothing
        _at_work.update(mine)
    try:
        yield
    finally:
        with _changed:
            _at_work.difference_update(mine)
            _changed.notify_all()


@contextmanager
def _in_turn(
    worker: Worker, given: Assignment, blocks: tuple[int, ...], context: Context
) -> Iterator[bool]:
    """Reserve blocks, and room for them beside the tasks of other runs; yield False if unwanted."""
    began_s, waited = time.perf_counter(), []

    def on_wait() -> None:
        waited.append(worker.address)
        worker.log_event(given.topic, {"driver": given.driver, "waits": worker.address})

    claim = given.session.claim.capped("memory", worker.memory_manager.memory_limit)
    with (
        _alone(given.driver, blocks, context.wanted),
        desk_of(worker).admitted(claim, context.wanted, on_wait) as admitted,
    ):
        if waited:
            context.clock.add("wait", time.perf_counter() - began_s)
        yield admitted and context.wanted()


@dataclass(frozen=True)
class Session:
    """A driver's run as each task needs it: journal, token, memory, claim on its worker, time."""

    journal: Journal | None = None
    token: str = ""
    memory_bytes: int | None = None
    claim: Claim = field(default_factory=Claim)
    left_s: float | None = None  # of its time, when a task is submitted: clocks may differ


@dataclass(frozen=True)
class Assignment:
    """What a worker is given to do at once.

    Parameters
    ----------
    task, runs
        See `Plan`: one run of blocks, or several short ones.
    topic, driver
        The event topic that receives its steps, and what names its driver there.
    session
        Source of the task's context.
    """

    task: Task
    runs: tuple[tuple[int, ...], ...]
    topic: str
    driver: str
    session: Session

    def steps(self, job: Any, context: Context) -> Generator[Step, None, None]:
        """Run the task on one run after the other."""
        found = job.get() if isinstance(job, InProcess) else job
        for run in self.runs:
            yield from run_task(self.task, found, run, context)


def execute(given: Assignment, job: Any) -> Outcome:
    """Do an assignment on its worker, reporting each step to the driver.

    Parameters
    ----------
    given
        What is to be done.
    job
        See `Plan`, or its name in this process; apart, as Dask replaces futures by what they stand
        for in arguments alone.
    """
    worker, session = get_worker(), given.session
    blocks = tuple(block for run in given.runs for block in run)
    key, name = worker.get_current_task(), process_name()
    results: dict[int, Any] = {}
    end_s = math.inf if session.left_s is None else time.monotonic() + session.left_s
    released = False

    def wanted() -> bool:
        return wanted_by(worker, key)

    def report(step: Step) -> None:
        if step.block is not None:
            results[step.block] = step.result
        if wanted():
            blocks = int(step.block is not None)
            message = {
                "units": step.units,
                "blocks": blocks,
                "stages": context.clock.take_step(),
                "worker": name,
            }
            block = None if step.block is None or step.result is not None else int(step.block)
            told = {"driver": given.driver, "step": message, "key": key, "block": block}
            worker.log_event(given.topic, told)

    context = Context(session.journal, session.token, session.memory_bytes, wanted)
    try:
        with _in_turn(worker, given, blocks, context) as mine:
            if not mine or time.monotonic() >= end_s:  # its turn came too late
                return Outcome(results, released=bool(mine))
            # Closed first, so that the task has stopped before its blocks are released.
            with closing(given.steps(job, context)) as steps:
                released = _follow(steps, report, wanted, end_s)
            if released:
                results |= _written(context, blocks, results)
    except Exception as error:
        if isinstance(error, Superseded) and not wanted():  # by its worker, not by another driver
            return Outcome(results)
        return Outcome(results, _portable(error), traceback.format_exc(limit=-4))
    return Outcome(results, released=released)


def _follow(
    steps: Iterator[Step],
    report: Callable[[Step], object],
    wanted: Callable[[], bool],
    end_s: float,
) -> bool:
    """Report the steps of a task while it is wanted; return True if its time was up before."""
    for step in steps:
        report(step)
        if step.block is not None and time.monotonic() >= end_s:
            return True
        if not wanted():
            break
    return False


def _written(
    context: Context, blocks: tuple[int, ...], results: Mapping[int, Any]
) -> dict[int, Any]:
    """Return the blocks that were recorded while their task was closed, which reports none."""
    if context.journal is None:
        return {}
    left = context.left(blocks)
    return {block: None for block in blocks if block not in results and block not in left}


def _portable(error: Exception) -> Exception:
    """Return the error if it is ours, else a copy of its text: foreign classes may not unpickle."""
    if isinstance(error, VolflowError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
