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
    """Outcome of a task: results of the blocks it finished, and the error that ended it."""

    results: Mapping[int, Any]
    error: BaseException | None = None
    trace: str = ""


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


Action = Submit | TakeBack | HoldOffers | Log | Stop
