"""Messages between the driver and its adapter: events in, actions out, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from volflow.errors import VolflowError

__all__ = [
    "Action",
    "HoldOffers",
    "Log",
    "Outcome",
    "Quarantine",
    "Stop",
    "Submit",
    "TakeBack",
    "WorkerReading",
]


@dataclass(frozen=True)
class WorkerReading:
    """The scheduler's view of one worker: its threads, its memory limit, whether it is paused."""

    threads: int
    memory_bytes: int | None = None
    paused: bool = False


@dataclass(frozen=True)
class Outcome:
    """Outcome of a task: results of the blocks it finished, and the error that ended it.

    ``lost``: its worker died, so the error may be that of another task there. ``released``: the
    time of the run was up, so that the blocks without a result were not tried.
    """

    results: Mapping[int, Any]
    error: BaseException | None = None
    trace: str = ""
    lost: bool = False
    released: bool = False


@dataclass(frozen=True)
class Submit:
    """Submit blocks to a worker, as an attempt with its own number."""

    number: int
    blocks: tuple[int, ...]
    worker: str


@dataclass(frozen=True)
class TakeBack:
    """Cancel an attempt; its blocks are given to another worker."""

    number: int


@dataclass(frozen=True)
class Quarantine:
    """Record a block that failed too often; the run goes on without it."""

    block: int
    reason: str


@dataclass(frozen=True)
class HoldOffers:
    """Keep this many unrunnable tasks at the scheduler, as work on offer."""

    count: int


@dataclass(frozen=True)
class Log:
    """Write a line to the log, at a level of `logging`."""

    level: int
    text: str


@dataclass(frozen=True)
class Stop:
    """End the run, successfully or with an error to raise."""

    error: VolflowError | None = None


Action = Submit | TakeBack | Quarantine | HoldOffers | Log | Stop
