"""Live workers, from readings of the scheduler: which are chosen, and how long to wait for some.

One reading is not enough: a worker counts as lost if it is missing from several in a row. The time
is passed in.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from volflow.engine.messages import Log, Stop, WorkerReading
from volflow.errors import InvalidInput, RunFailed

__all__ = ["Patience", "Roster", "Selection"]

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
    chosen
        Which workers are waited for, as `Selection` says it.
    """

    wait_s: float | None = None
    chosen: str = ""
    since_s: float | None = None
    said_s: float | None = None

    def worker_seen(self) -> None:
        """Account for a worker: the wait is over."""
        self.since_s = self.said_s = None

    def none_seen(self, cluster: str, now_s: float, lacks: str = "") -> list[Log | Stop]:
        """Account for a reading without a worker, or without one that the run can use."""
        self.since_s = now_s if self.since_s is None else self.since_s
        waited_s, lacks = now_s - self.since_s, self.chosen + lacks
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


@dataclass(frozen=True)
class Selection:
    """The workers of a cluster that a run may use, and what its tasks take of their resources.

    Parameters
    ----------
    names
        Names, addresses or hosts of workers; empty for all.
    resources
        Amounts of Dask's resources that each task takes, by name.

    Examples
    --------
    >>> gpus = Selection().narrowed("a, b", "GPU=1")
    >>> gpus
    Selection(names=('a', 'b'), resources=(('GPU', 1.0),))
    >>> gpus.threads("tcp://1:1", {"nthreads": 4, "name": "a", "resources": {"GPU": 2}})
    2
    >>> gpus.threads("tcp://1:1", {"nthreads": 4, "name": "a"})
    0
    """

    names: tuple[str, ...] = ()
    resources: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        named = f" named {', '.join(self.names)}" if self.names else ""
        amounts = ", ".join(f"{name}={amount:g}" for name, amount in self.resources)
        return named + (f" with resources {amounts}" if amounts else "")

    def narrowed(
        self,
        workers: str | Sequence[str] | None,
        resources: str | Mapping[str, float] | None,
    ) -> Selection:
        """Return the selection with other workers or resources; None leaves them as they are.

        Raises
        ------
        InvalidInput
            If ``workers`` holds no names, or ``resources`` no amounts.
        """
        changed = self
        if workers is not None:
            changed = replace(changed, names=_names(workers))
        if resources is not None:
            changed = replace(changed, resources=_amounts(resources))
        return changed

    def threads(self, address: str, record: Mapping[str, Any]) -> int:
        """Return how many tasks at a time a worker may be given; 0 if it is not chosen.

        Parameters
        ----------
        address, record
            Its address, and the scheduler's record of it.
        """
        if self.names and not {address, str(record.get("name")), record.get("host")} & {
            *self.names
        }:
            return 0
        has = record.get("resources") or {}
        fitting = [int(has.get(name, 0) / amount) for name, amount in self.resources]
        return min([int(record["nthreads"]), *fitting])


def _names(workers: str | Sequence[str]) -> tuple[str, ...]:
    given = workers.split(",") if isinstance(workers, str) else workers
    names = tuple(str(name).strip() for name in given)
    if not names or not all(names):
        raise InvalidInput(
            "workers must be names, addresses or hosts of workers, as a list or with commas; given"
            f" {workers!r}"
        )
    return names


def _amounts(resources: str | Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    try:
        pairs = (
            resources.items()
            if isinstance(resources, Mapping)
            else (part.split("=") for part in resources.split(","))
        )
        amounts = tuple((str(name).strip(), float(amount)) for name, amount in pairs)
    except (ValueError, TypeError, AttributeError):
        amounts = ()
    if not amounts or not all(name and 0 < x < math.inf for name, x in amounts):
        raise InvalidInput(
            "resources must be positive amounts by name, like {'GPU': 1} or \"GPU=1\"; given"
            f" {resources!r}"
        )
    return amounts
