"""What the driver and its adapter tell each other: events in, actions out, as plain data."""

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
    """What the scheduler says of one worker: its threads, its memory limit, if it takes tasks."""

    threads: int
    memory_bytes: int | None = None
    paused: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a task brought back: results of the blocks it finished, and the error that ended it."""

    results: Mapping[int, Any]
    error: BaseException | None = None
    trace: str = ""


@dataclass(frozen=True)
class Submit:
    """Give some blocks to a worker, as an attempt with a number of its own."""

    number: int
    blocks: tuple[int, ...]
    worker: str


@dataclass(frozen=True)
class TakeBack:
    """Cancel an attempt; its blocks are given to another worker."""

    number: int


@dataclass(frozen=True)
class HoldOffers:
    """Let so many tasks that no worker can take stay with the scheduler."""

    count: int


@dataclass(frozen=True)
class Log:
    """Tell the log something, at a level of `logging`."""

    level: int
    text: str


@dataclass(frozen=True)
class Stop:
    """The run has ended: well, or with an error to raise."""

    error: VolflowError | None = None


Action = Submit | TakeBack | HoldOffers | Log | Stop
