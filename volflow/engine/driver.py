"""The decisions of one run as a pure state machine: events in, actions out.

It uses neither Dask nor a clock, and does no I/O. An adapter (`volflow.engine.run`) passes in
readings of the scheduler's workers, the outcome of each attempt, and the time. It returns actions
as plain data, to be performed in order. So its laws can be tested in virtual time.

A block that is not done is in exactly one place: in a waiting run, in one attempt in flight, or
given up. Only `Driver.slots` decides how many attempts a worker may hold. A worker that should get
no more, because it is short of memory or about to leave, is `paused`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from volflow.engine.messages import (
    Action,
    HoldOffers,
    Log,
    Outcome,
    Stop,
    Submit,
    TakeBack,
    WorkerReading,
)
from volflow.engine.roster import Patience, Roster
from volflow.errors import MemoryRefused, RunFailed, Unreadable, VolflowError
from volflow.geometry.budget import format_bytes

if TYPE_CHECKING:
    from volflow.engine.plan import Plan

__all__ = ["Driver"]

# An adaptive cluster grows with the work offered; more would only load the scheduler.
MOST_OFFERS = 16
# Seconds of only too small workers after which no larger one can still be restarting.
ALONE_S = 10.0


@dataclass(frozen=True)
class Attempt:
    """A run of blocks, waiting or on a worker, and how often its first block has failed."""

    blocks: tuple[int, ...]
    failures: int = 0
    worker: str = ""

    def left(self, done: Mapping[int, Any]) -> Attempt:
        """Return the blocks left to do; with another first block, failures count from 0."""
        blocks = tuple(block for block in self.blocks if block not in done)
        return Attempt(blocks, self.failures if blocks[:1] == self.blocks[:1] else 0)


@dataclass
class Driver:
    """The blocks that wait, are in flight, done or given up, and the transitions between them.

    Parameters
    ----------
    plan
        The plan to run.
    retries
        How often a failing block is tried again before it is given up.
    patience
        How long to wait while no worker is available.
    cluster
        Address of the scheduler, for messages.
    fixed
        True if no other workers are expected: the plan is refused if all present ones are too
        small for it.

    Examples
    --------
    >>> from volflow.engine.plan import Plan
    >>> plan = Plan("double", print, None, ((0, 1), (2,)), units=3, unit="voxels",
    ...             peak_bytes=10, memory_bytes=100)
    >>> driver = Driver(plan)
    >>> driver.on_workers({"a": WorkerReading(threads=1)}, now_s=0)
    [Submit(number=1, blocks=(0, 1), worker='a'), HoldOffers(count=1)]
    >>> driver.on_completed(1, Outcome({0: "zero", 1: "two"}))
    [Submit(number=2, blocks=(2,), worker='a'), HoldOffers(count=0)]
    >>> driver.on_completed(2, Outcome({2: "four"}))
    [Stop(error=None)]
    """

    plan: Plan
    retries: int = 2
    patience: Patience = field(default_factory=Patience)
    cluster: str = ""
    fixed: bool = False
    roster: Roster = field(default_factory=Roster)
    waiting: deque[Attempt] = field(init=False)
    in_flight: dict[int, Attempt] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    given_up: dict[int, VolflowError] = field(default_factory=dict)
    submitted: int = 0
    retried: int = 0
    offered: int = 0
    small_since_s: float | None = None  # when the first reading of too small workers alone came
    stopped: bool = False

    def __post_init__(self) -> None:
        self.waiting = deque(Attempt(blocks) for blocks in self.plan.runs)

    def on_workers(self, reading: Mapping[str, WorkerReading], now_s: float) -> list[Action]:
        """Account for a reading of the scheduler: workers by address."""
        if self.stopped:
            return []
        logs, taken = self.roster.read(reading, now_s), self._take_back()
        return [*logs, *taken, *self._wait(now_s), *self._proceed()]

    def on_completed(self, number: int, outcome: Outcome) -> list[Action]:
        """Account for an attempt that ended, even if it was taken back before."""
        if self.stopped:
            return []
        attempt = self.in_flight.pop(number, None)
        for block, result in outcome.results.items():
            self.results.setdefault(block, result)
            self.given_up.pop(block, None)
        if attempt is None:  # its results count, its error does not
            self._drop_done()
            return self._proceed()
        error = outcome.error
        if isinstance(error, VolflowError) and type(error) not in (RunFailed, Unreadable):
            return self._stop(error)
        if isinstance(error, VolflowError):
            self._retry(attempt, error)
        else:
            reason = f"{error or 'its task ended without doing it'}\n{outcome.trace}"
            self._retry(attempt, RunFailed(reason.strip()))
        return self._proceed()

    def slots(self, worker: WorkerReading) -> int:
        """Return the number of attempts that a worker may hold at once, within the memory."""
        memory_bytes = self.plan.memory_bytes
        if worker.memory_bytes is not None:
            if worker.memory_bytes < self.plan.peak_bytes:
                return 0
            memory_bytes = min(memory_bytes, worker.memory_bytes)
        if self.plan.exclusive:
            return 1
        return max(1, min(worker.threads, memory_bytes // max(1, self.plan.peak_bytes)))

    def _proceed(self) -> list[Action]:
        """Fill the free slots, offer the remaining runs, and stop if nothing is left."""
        if self.stopped:
            return []
        if not self.waiting and not self.in_flight:
            return self._stop(self._failure())
        actions: list[Action] = []
        load = self._load()
        for address, worker in self.roster.live.items():
            free = 0 if worker.paused else self.slots(worker) - load[address]
            while self.waiting and free > 0:
                free -= 1
                self.submitted += 1
                waiting = self.waiting.popleft()
                attempt = Attempt(waiting.blocks, waiting.failures, address)
                self.in_flight[self.submitted] = attempt
                actions.append(Submit(self.submitted, attempt.blocks, address))
        offers = min(len(self.waiting), MOST_OFFERS)
        if offers != self.offered:
            self.offered = offers
            actions.append(HoldOffers(offers))
        return actions

    def _load(self) -> Counter[str]:
        return Counter(attempt.worker for attempt in self.in_flight.values())

    def _take_back(self) -> list[TakeBack]:
        """Queue the attempts of lost workers again."""
        lost = self.roster.take_lost()
        numbers = [n for n, attempt in self.in_flight.items() if attempt.worker in lost]
        for number in numbers:
            self._retry(self.in_flight.pop(number), RunFailed("its worker died"))
        return [TakeBack(number) for number in numbers]

    def _wait(self, now_s: float) -> list[Log | Stop]:
        """Wait while no worker is busy and none can take a block; fail after the patience."""
        live, load = self.roster.live, self._load()
        fitting = {a: worker for a, worker in live.items() if self.slots(worker)}
        if fitting or not live:
            self.small_since_s = None
        elif self.small_since_s is None:
            self.small_since_s = now_s
        if any(load[a] or not worker.paused for a, worker in fitting.items()):
            self.patience.worker_seen()
            return []
        lacks = ""
        if live:
            need = format_bytes(self.plan.peak_bytes)
            lacks = " that is not paused" if fitting else f" with {need} of memory"
        actions = self.patience.none_seen(self.cluster, now_s, lacks)
        alone = self.small_since_s is not None and now_s - self.small_since_s >= ALONE_S
        if self.fixed and alone and not self.submitted:
            actions = [Stop(self._too_small())]
        self.stopped = any(isinstance(action, Stop) for action in actions)
        return actions

    def _too_small(self) -> MemoryRefused:
        limits = (worker.memory_bytes or 0 for worker in self.roster.live.values())
        peak, largest = format_bytes(self.plan.peak_bytes), format_bytes(max(limits))
        # A run that was started keeps its division into blocks.
        anew = ", with overwrite=True, --overwrite" if self.plan.journal else ""
        return MemoryRefused(
            f"{self.plan.operation} needs {peak} per worker, but the largest worker of the Dask"
            f" cluster at {self.cluster} has {largest}; ask for less than that (memory=,"
            f" --memory{anew}), start larger workers, or wait for them (wait=, --wait)"
        )

    def _retry(self, attempt: Attempt, error: VolflowError) -> None:
        """Queue the rest of a run again, or give up its first block and continue after it."""
        left = attempt.left(self.results)
        if not left.blocks:
            return
        self.retried += 1
        if left.failures < self.retries:
            self.waiting.append(Attempt(left.blocks, left.failures + 1))
            return
        self.given_up[left.blocks[0]] = error
        if left.blocks[1:]:
            self.waiting.append(Attempt(left.blocks[1:]))

    def _drop_done(self) -> None:
        """Remove finished blocks from the waiting runs."""
        left = [attempt.left(self.results) for attempt in self.waiting]
        self.waiting = deque(attempt for attempt in left if attempt.blocks)

    def _failure(self) -> VolflowError | None:
        if not self.given_up:
            return None
        damaged = any(isinstance(error, Unreadable) for error in self.given_up.values())
        blocks = ", ".join(str(block) for block in sorted(self.given_up)[:8])
        return (Unreadable if damaged else RunFailed)(
            f"{len(self.given_up)} of {self.plan.blocks} blocks failed after {self.retries} retries"
            f" (blocks {blocks}); what is done is kept, run the same command again to resume."
            f" First error: {next(iter(self.given_up.values()))}"
        )

    def _stop(self, error: VolflowError | None) -> list[Action]:
        self.stopped = True
        return [Stop(error)]
