"""A task on its worker: it reports each step, and stops when nobody waits for it any more.

Dask does not stop a thread whose task was cancelled: when a driver dies, takes a run of blocks back
or loses its scheduler, the task would go on beside the one that does its blocks again. So a task
looks after each step whether its worker still counts it as running, and one that comes to a process
where another still works on its blocks waits for that one to stop.
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

# A waiting task looks this often whether it is still wanted itself.
LOOK_EVERY_S = 0.5


_at_work: set[tuple[str, int]] = set()  # (run, block) of the tasks of this process
_changed = threading.Condition()


@contextmanager
def _alone(topic: str, blocks: tuple[int, ...], wanted: Callable[[], bool]) -> Iterator[None]:
    """Hold blocks of a run, after an earlier task of this process has let go of them."""
    mine = {(topic, block) for block in blocks}
    with _changed:
        while wanted() and mine & _at_work:
            _changed.wait(LOOK_EVERY_S)
        mine -= _at_work  # only where nobody wants this task, which then does nothing
        _at_work.update(mine)
    try:
        yield
    finally:
        with _changed:
            _at_work.difference_update(mine)
            _changed.notify_all()


def _wanted(worker: Worker, key: Any) -> bool:
    """Whether a worker still counts a task as running."""
    if worker.status in (Status.closed, Status.closing, Status.failed):
        return False
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


@dataclass(frozen=True)
class Session:
    """What a driver says of its run to each task: journal, its token there, memory of a worker."""

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
        Names the run; its steps are events of it.
    session
        What the task's context is made from.
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
            # Closed, so that the task has stopped, before others are let at its blocks.
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
    """The error itself where it is ours, else its text: foreign classes may not unpickle."""
    if isinstance(error, VolflowError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
