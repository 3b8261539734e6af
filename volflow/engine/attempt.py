"""A task on its worker: it reports each step, and stops when its driver no longer waits for it.

Dask does not stop the thread of a cancelled task: if a driver dies, takes blocks back or loses its
scheduler, the task would run on beside its replacement. So after each step a task checks that its
worker still counts it as running, and a task whose blocks are still in work in the same process
waits for the earlier one to stop.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import Status, Worker, get_worker

from volflow.engine.messages import Outcome
from volflow.engine.task import Context, Step, Task, run_task
from volflow.errors import Superseded, VolflowError
from volflow.store.journal.journal import Journal

__all__ = ["Session", "execute"]

# Interval at which a waiting task checks that it is still wanted itself.
LOOK_EVERY_S = 0.5


_at_work: set[tuple[str, int]] = set()  # (run, block) of the running tasks of this process
_changed = threading.Condition()


@contextmanager
def _alone(topic: str, blocks: tuple[int, ...], wanted: Callable[[], bool]) -> Iterator[None]:
    """Reserve blocks of a run, after an earlier task of this process has released them."""
    mine = {(topic, block) for block in blocks}
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


def _wanted(worker: Worker, key: Any) -> bool:
    """Return True if a worker still counts a task as running."""
    if worker.status in (Status.closed, Status.closing, Status.failed):
        return False
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


@dataclass(frozen=True)
class Session:
    """A driver's run as each task needs it: journal, session token, memory of a worker."""

    journal: Journal | None = None
    token: str = ""
    memory_bytes: int | None = None


def execute(task: Task, job: Any, blocks: tuple[int, ...], topic: str, session: Session) -> Outcome:
    """Run a task on its worker, reporting each step to the driver.

    Parameters
    ----------
    task, job, blocks
        See `Plan`.
    topic
        Event topic of the run, which receives its steps.
    session
        Source of the task's context.
    """
    worker = get_worker()
    key = worker.get_current_task()
    results: dict[int, Any] = {}

    def wanted() -> bool:
        return _wanted(worker, key)

    def report(step: Step) -> None:
        if step.block is not None:
            results[step.block] = step.result
        if wanted():
            blocks = int(step.block is not None)
            message = {"units": step.units, "blocks": blocks, "stages": context.clock.take_step()}
            worker.log_event(topic, {"step": message})

    context = Context(session.journal, session.token, session.memory_bytes, wanted)
    try:
        with _alone(topic, blocks, wanted):
            if not wanted():
                return Outcome(results)
            # Closed first, so that the task has stopped before its blocks are released.
            with closing(run_task(task, job, blocks, context)) as steps:
                for step in steps:
                    report(step)
                    if not wanted():
                        break
    except Exception as error:
        if isinstance(error, Superseded) and not wanted():  # by its worker, not by another driver
            return Outcome(results)
        return Outcome(results, _portable(error), traceback.format_exc(limit=-4))
    return Outcome(results)


def _portable(error: Exception) -> Exception:
    """Return the error if it is ours, else a copy of its text: foreign classes may not unpickle."""
    if isinstance(error, VolflowError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
