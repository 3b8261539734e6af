"""Dask's performance report of what runs on a client."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client

from volflow.errors import InvalidInput
from volflow.store.atomic import write_file

__all__ = ["is_reporting", "recorded", "reporting"]

INSTALL = 'pip install "volflow[dashboard]"'


@dataclass
class Reports:
    """The file of a report, and how many were begun."""

    path: Path
    begun: int = 0

    def next_path(self) -> Path:
        """Return the file of the next report."""
        self.begun += 1
        path, number = self.path, f"-{self.begun}" if self.begun > 1 else ""
        return path.with_name(f"{path.stem}{number}{path.suffix}")


_reports: ContextVar[Reports | None] = ContextVar("volflow_reports", default=None)


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Have a report written of each connection inside the block.

    Raises
    ------
    InvalidInput
        If bokeh is missing, which draws it.
    """
    if not _has_bokeh():
        raise InvalidInput(f"a performance report needs bokeh; {INSTALL}")
    before = _reports.set(Reports(path))
    try:
        yield
    finally:
        _reports.reset(before)


def is_reporting() -> bool:
    """Return True inside of `reporting`."""
    return _reports.get() is not None


@contextmanager
def recorded(client: Client) -> Iterator[None]:
    """Write the report of what runs on a client inside the block, if one was asked for.

    Raises
    ------
    InvalidInput
        If the scheduler's machine lacks bokeh.
    """
    asked = _reports.get()
    if asked is None:
        yield
        return
    # `distributed.performance_report` needs the client to be the current one of the process.
    if not client.run_on_scheduler(_has_bokeh):
        where = "on the scheduler's machine"
        raise InvalidInput(f"a performance report needs bokeh {where}; {INSTALL}")
    client.get_task_stream(start=0, stop=0)  # from now on the scheduler keeps it
    path, began_s = asked.next_path(), time.time()
    count = client.run_on_scheduler(_readings)
    before = _reports.set(None)  # a connection inside is part of this one
    try:
        yield
    finally:
        _reports.reset(before)
        if client.status == "running":
            scheduler: Any = client.scheduler
            html = client.sync(
                scheduler.performance_report, start=began_s, last_count=count, code="", mode=None
            )
            write_file(path, html.encode())


def _has_bokeh() -> bool:
    return importlib.util.find_spec("bokeh") is not None


def _readings(dask_scheduler: Any) -> int:
    """Return how often a scheduler has measured its own process."""
    return int(dask_scheduler.monitor.count)
