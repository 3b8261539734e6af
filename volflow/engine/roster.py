"""Live workers, from successive readings of the scheduler, and how long to wait for some.

One reading is not enough: a worker counts as lost if it is missing from several in a row. The time
is passed in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from volflow.engine.messages import Log, Stop, WorkerReading
from volflow.errors import RunFailed

__all__ = ["Patience", "Roster"]

# A worker is lost if it was missing this long, and from this many readings in a row.
LOST_AFTER_S = 3.0
LOST_AFTER_READINGS = 3
# A wait is announced after the first of these seconds, then at this interval.
ANNOUNCE_AFTER_S = 2.0
ANNOUNCE_EVERY_S = 60.0


@dataclass
class Roster:
    """The live workers, from readings of the scheduler.

    Examples
    --------
    >>> roster, a, b = Roster(), WorkerReading(1), WorkerReading(2)
    >>> for now_s, reading in enumerate([{"a": a, "b": b}, {"b": b}, {"b": b}, {"b": b}]):
    ...     _ = roster.read(reading, now_s)
    >>> list(roster.live), sorted(roster.take_lost())
    (['b'], [])
    >>> roster.read({"b": b}, now_s=4), sorted(roster.take_lost())
    ([], ['a'])
    """

    live: dict[str, WorkerReading] = field(default_factory=dict)
    missing: dict[str, list[float]] = field(default_factory=dict)

    def read(self, reading: Mapping[str, WorkerReading], now_s: float) -> list[Log]:
        """Account for a reading; a worker that reappears is logged."""
        logs = []
        for address in {*self.live, *self.missing} - reading.keys():
            self.missing.setdefault(address, []).append(now_s)
        for address in sorted(self.missing.keys() & reading.keys()):
            times = self.missing.pop(address)
            level = logging.INFO if len(times) == 1 else logging.WARNING
            text = f"worker {address} was out of sight for {now_s - times[0]:.0f} s"
            logs.append(Log(level, text))
        self.live = dict(reading)
        return logs

    def take_lost(self) -> set[str]:
        """Return the workers that count as lost, and remove them."""
        lost = {
            address
            for address, times in self.missing.items()
            if len(times) >= LOST_AFTER_READINGS and times[-1] - times[0] >= LOST_AFTER_S
        }
        for address in lost:
            del self.missing[address]
        return lost


@dataclass
class Patience:
    """How long to wait while a cluster has no worker, and the messages meanwhile.

    Parameters
    ----------
    wait_s
        Seconds; None waits forever.
    """

    wait_s: float | None = None
    since_s: float | None = None
    said_s: float | None = None

    def worker_seen(self) -> None:
        """Account for a worker: the wait is over."""
        self.since_s = self.said_s = None

    def none_seen(self, cluster: str, now_s: float, lacks: str = "") -> list[Log | Stop]:
        """Account for a reading without a worker, or without one that the run can use."""
        self.since_s = now_s if self.since_s is None else self.since_s
        waited_s = now_s - self.since_s
        if self.wait_s is not None and waited_s >= self.wait_s:
            text = (
                f"the Dask cluster at {cluster} had no worker{lacks} for {self.wait_s:g} s; start"
                " workers, or wait longer (wait=, --wait), and run the same command again"
            )
            return [Stop(RunFailed(text))]
        if waited_s < (ANNOUNCE_AFTER_S if self.said_s is None else self.said_s):
            return []
        self.said_s = waited_s + ANNOUNCE_EVERY_S
        limit = "" if self.wait_s is None else f", for {self.wait_s:g} s at most"
        text = f"waiting for a worker: the Dask cluster at {cluster} has none{lacks}{limit}"
        return [Log(logging.WARNING, text)]
