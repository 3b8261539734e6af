"""The decisions of one run as a pure state machine: events in, actions out.

It uses neither Dask nor a clock, and does no I/O. An adapter (`volflow.engine.run`) passes in
readings of the scheduler's workers, the outcome of each attempt, and the time. It returns actions
as plain data, to be performed in order. So its laws can be tested in virtual time.

A block that is not done is in exactly one place: in a waiting run, in one attempt in flight, or
given up. Only `Driver.slots` decides how many attempts a worker may hold. A worker that should get
no more, because it is short of memory or about to leave, is `paused`.

An error names its block: the first of the run that is not done. The death of a worker names none,
so the runs that it held come back in halves, each alone on a worker and after all others, until the
block that ends its worker is alone: neither its neighbours nor what ran beside it are blamed.

To hand a run over takes some 10 ms: a worker that does many a second gets several as one attempt.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from volflow.engine.messages import (
    Action,
    HoldOffers,
    Log,
    Outcome,
    Quarantine,
    Stop,
    Submit,
    TakeBack,
    WorkerReading,
)
from volflow.engine.roster import Patience, Roster
from volflow.errors import MemoryRefused, RunFailed, TimeUp, Unreadable, VolflowError, first_line
from volflow.geometry.budget import format_bytes

if TYPE_CHECKING:
    from volflow.engine.plan import Plan

__all__ = ["Driver"]

# An adaptive cluster grows with the work offered; more would only load the scheduler.
MOST_OFFERS = 16
# Seconds of only too small workers after which no larger one can still be restarting.
ALONE_S = 10.0
# Seconds of work that a worker is given as one attempt, where its pace shows that runs are shorter.
AT_ONCE_S = 0.25
# Blocks that an error names with their reasons; the journal holds them all.
MOST_NAMED = 3


@dataclass(frozen=True)
class Attempt:
    """Blocks of one or several runs, waiting or on a worker, and how often the first has failed.

    ``alone``: it has its worker to itself, or must have it.
    """

    blocks: tuple[int, ...]
    failures: int = 0
    worker: str = ""
    alone: bool = False

    def left(self, done: Mapping[int, Any]) -> Attempt:
        """Return the blocks left to do; with another first block, failures count from 0."""
        blocks = tuple(block for block in self.blocks if block not in done)
        failures = self.failures if blocks[:1] == self.blocks[:1] else 0
        return replace(self, blocks=blocks, failures=failures)


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
    suspects: deque[Attempt] = field(default_factory=deque)  # whose worker died: tried last, alone
    in_flight: dict[int, Attempt] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    given_up: dict[int, VolflowError] = field(default_factory=dict)
    submitted: int = 0
    retried: int = 0
    offered: int = 0
    read_s: float | None = None  # when the last reading came
    ended: Counter[str] = field(default_factory=Counter)  # blocks by worker since then
    at_once: dict[str, int] = field(default_factory=dict)  # blocks that a worker does in AT_ONCE_S
    small: set[str] = field(default_factory=set)  # workers that were named as too small
    small_since_s: float | None = None  # when the first reading of too small workers alone came
    time_up: str = ""  # when, in words
    stopped: bool = False

    def __post_init__(self) -> None:
        self.waiting = deque(Attempt(blocks) for blocks in self.plan.runs)

    def on_workers(self, reading: Mapping[str, WorkerReading], now_s: float) -> list[Action]:
        """Account for a reading of the scheduler: workers by address."""
        if self.stopped:
            return []
        self._pace(now_s)
        logs, taken = self.roster.read(reading, now_s), self._take_back()
        return [*logs, *self._name_small(), *taken, *self._wait(now_s), *self._proceed()]

    def on_time_up(self, text: str) -> list[Action]:
        """Account for the end of the run's time: no more is submitted, what is in flight ends."""
        if self.stopped or self.time_up:
            return []
        self.time_up = text
        return self._proceed()

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
        self.ended[attempt.worker] += len(outcome.results)
        error = outcome.error
        if outcome.released:
            left = attempt.left(self.results)
            queue = self.suspects if left.alone else self.waiting
            queue.extend([left] if left.blocks else [])
            return self._proceed()
        if isinstance(error, VolflowError) and type(error) not in (RunFailed, Unreadable):
            return self._stop(error)
        if not isinstance(error, VolflowError):
            reason = f"{error or 'its task ended without doing it'}\n{outcome.trace}"
            error = RunFailed(reason.strip())
        failed = (self._halve if outcome.lost else self._retry)(attempt, error)
        return [*failed, *self._proceed()]

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
        left = len(self.waiting) + len(self.suspects)
        if not self.in_flight and (self.time_up or not left):
            return self._stop(self._unfinished() if left else self._failure())
        actions: list[Action] = []
        load, alone = self._load(), {one.worker for one in self.in_flight.values() if one.alone}
        share = self._share()
        for address, worker in () if self.time_up else self.roster.live.items():
            slots = 0 if worker.paused or address in alone else self.slots(worker)
            while self.waiting and load[address] < slots:
                load[address] += 1
                attempt = self._next(self.at_once.get(address, 0), share)
                actions.append(self._submit(attempt, address, alone=slots == 1))
            if self.suspects and slots and not load[address]:
                actions.append(self._submit(self.suspects.popleft(), address, alone=True))
        left = 0 if self.time_up else len(self.waiting) + len(self.suspects)
        offers = min(left, MOST_OFFERS)
        if offers != self.offered:
            self.offered = offers
            actions.append(HoldOffers(offers))
        return actions

    def _share(self) -> int:
        """Return how many runs an attempt may hold, so that enough are left for the others."""
        if self.plan.job_of:  # a job may hold voxels, as many as its task may take at once
            return 1
        slots = sum(map(self.slots, self.roster.live.values()))
        return len(self.waiting) // max(1, 2 * slots)

    def _next(self, most_blocks: int, most_runs: int) -> Attempt:
        """Take a run from the queue, with those behind it that are done at once."""
        first = self.waiting.popleft()
        blocks, runs = [*first.blocks], 1
        while (
            runs < most_runs
            and self.waiting
            and not first.failures + self.waiting[0].failures
            and len(blocks) + len(self.waiting[0].blocks) <= most_blocks
        ):
            blocks += self.waiting.popleft().blocks
            runs += 1
        return replace(first, blocks=tuple(blocks))

    def _submit(self, attempt: Attempt, worker: str, *, alone: bool) -> Submit:
        self.submitted += 1
        self.in_flight[self.submitted] = replace(attempt, worker=worker, alone=alone)
        return Submit(self.submitted, attempt.blocks, worker)

    def _name_small(self) -> list[Log]:
        """Say once of each worker beside larger ones that is too small for a block."""
        live = self.roster.live
        small = {address for address, worker in live.items() if not self.slots(worker)}
        new = small - self.small if len(small) < len(live) else set()
        self.small |= new
        need = f"one of {self.plan.operation} needs {format_bytes(self.plan.peak_bytes)}"
        has = {address: format_bytes(live[address].memory_bytes or 0) for address in sorted(new)}
        return [
            Log(logging.WARNING, f"worker {one} has {memory} of memory and gets no block: {need}")
            for one, memory in has.items()
        ]

    def _pace(self, now_s: float) -> None:
        """Note how many blocks each worker does in the seconds of one attempt."""
        if self.read_s is not None and now_s > self.read_s:
            share = AT_ONCE_S / (now_s - self.read_s)
            slots = {address: self.slots(worker) for address, worker in self.roster.live.items()}
            self.at_once = {
                address: int(share * count / slots[address])
                for address, count in self.ended.items()
                if slots.get(address)
            }
            self.ended.clear()
        self.read_s = now_s

    def _load(self) -> Counter[str]:
        return Counter(attempt.worker for attempt in self.in_flight.values())

    def _take_back(self) -> list[Action]:
        """Queue the attempts of lost workers again."""
        lost = self.roster.take_lost()
        numbers = [n for n, attempt in self.in_flight.items() if attempt.worker in lost]
        actions: list[Action] = [TakeBack(number) for number in numbers]
        for number in numbers:
            actions += self._halve(self.in_flight.pop(number), RunFailed("its worker died"))
        return actions

    def _wait(self, now_s: float) -> list[Log | Stop]:
        """Wait while no worker is busy and none can take a block; fail after the patience."""
        if self.time_up:
            return []
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

    def _halve(self, attempt: Attempt, error: VolflowError) -> list[Quarantine]:
        """Queue the halves of a run whose worker died; a block that was alone has failed."""
        left = attempt.left(self.results)
        half = len(left.blocks) // 2
        if left.alone and not half:
            return self._retry(left, error)
        parts = left.blocks[:half], left.blocks[half:]
        self.suspects.extend(Attempt(part, alone=True) for part in parts if part)
        self.retried += 1
        return []

    def _retry(self, attempt: Attempt, error: VolflowError) -> list[Quarantine]:
        """Queue the rest of a run again, or give up its first block and continue after it."""
        left = attempt.left(self.results)
        if not left.blocks:
            return []
        self.retried += 1
        queue = self.suspects if left.alone else self.waiting
        if left.failures < self.retries:
            queue.append(replace(left, failures=left.failures + 1))
            return []
        first, rest = left.blocks[0], left.blocks[1:]
        self.given_up[first] = error
        if rest:
            queue.append(replace(left, blocks=rest, failures=0))
        return [Quarantine(first, first_line(error))]

    def _drop_done(self) -> None:
        """Remove finished blocks from the waiting runs."""
        for queue in (self.waiting, self.suspects):
            left = [attempt.left(self.results) for attempt in queue]
            queue.clear()
            queue.extend(attempt for attempt in left if attempt.blocks)

    def _unfinished(self) -> TimeUp:
        done = self.plan.whole - self.plan.blocks + len(self.results)
        failed = f", {len(self.given_up)} failed" if self.given_up else ""
        return TimeUp(
            f"{self.plan.operation} stopped {self.time_up}; {done} of {self.plan.whole} blocks are"
            f" done{failed}; run the same command again to do the rest"
        )

    def _failure(self) -> VolflowError | None:
        if not self.given_up:
            return None
        damaged = any(isinstance(error, Unreadable) for error in self.given_up.values())
        named = [
            f"block {block}{self.plan.place(block)}: {first_line(error)}"
            for block, error in sorted(self.given_up.items())[:MOST_NAMED]
        ]
        more = len(self.given_up) - len(named)
        named += [f"and {more} more"] if more else []
        _, *trace = str(next(iter(self.given_up.values()))).splitlines()
        return (Unreadable if damaged else RunFailed)(
            f"{len(self.given_up)} of {self.plan.blocks} blocks failed after {self.retries}"
            " retries; what is done is kept, and the same command tries them again:"
            f" {'; '.join(named)}" + "\n".join(["", *trace])
        )

    def _stop(self, error: VolflowError | None) -> list[Action]:
        self.stopped = True
        return [Stop(error)]
