"""Whether a task is still wanted by its worker, and a driver that is itself such a task.

Dask does not stop the thread of a task that it has cancelled: whoever runs in one must look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from distributed import Status, Worker

from volflow.errors import Superseded

__all__ = ["check_wanted", "wanted_by", "while_wanted"]

_wanted: ContextVar[Callable[[], bool] | None] = ContextVar("volflow_wanted", default=None)


def wanted_by(worker: Worker, key: Any) -> bool:
    """Return True if a worker still counts a task as running."""
    if worker.status in (Status.closed, Status.closing, Status.failed):
        return False
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


@contextmanager
def while_wanted(wanted: Callable[[], bool]) -> Iterator[None]:
    """Have the runs inside the block stop when their driver is no longer wanted.

    Parameters
    ----------
    wanted
        Says so; called about once a second.
    """
    before = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(before)


def check_wanted() -> None:
    """Stop a driver that is no longer wanted.

    Raises
    ------
    Superseded
        If the function given to `while_wanted` says so.
    """
    wanted = _wanted.get()
    if wanted is not None and not wanted():
        raise Superseded(
            "the cluster no longer wants this driver; what is done is kept, and the same call does"
            " the rest"
        )
