"""A Dask cluster in virtual time, with a journal: what the driver's actions lead to, and its laws.

Processes join, die, come back at their address, pause, vanish from readings, lose touch with the
scheduler and work on, and answer late. Blocks fail, are refused, or kill their process. A
`Scenario` is plain data drawn from any `random.Random`: one generator serves Hypothesis and seeds.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from volflow.engine.driver import Driver
from volflow.engine.messages import (
    HoldOffers,
    Log,
    Outcome,
    Quarantine,
    Stop,
    Submit,
    TakeBack,
    WorkerReading,
)
from volflow.engine.plan import Plan, split_runs
from volflow.engine.roster import Patience
from volflow.errors import InvalidInput, RunFailed, StoreFull, Unreadable

ALWAYS = 10**6
LONGEST_S = 5000.0
# Dask gives a task up when so many workers died under it (distributed.scheduler.allowed-failures).
ALLOWED_DEATHS = 3
LOSSES = {"die", "restart", "hide", "cut off", "retire", "lose a task"}


@dataclass(frozen=True)
class Move:
    """Something that happens to a worker at a time."""

    at_s: float
    kind: str
    worker: str
    threads: int = 1
    memory_bytes: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """A run, its cluster, and all that goes wrong; `faults`: what ails a block, and how often."""

    runs: tuple[tuple[int, ...], ...]
    retries: int
    exclusive: bool
    peak_bytes: int
    memory_bytes: int
    wait_s: float | None
    seconds: tuple[float, ...]
    faults: Mapping[int, tuple[str, int]]
    moves: tuple[Move, ...]
    polls_s: tuple[float, ...]
    lags_s: tuple[float, ...]
    late_answers: bool
    time_up_s: float | None = None

    @property
    def blocks(self) -> set[int]:
        """All blocks of the run."""
        return {block for run in self.runs for block in run}

    @property
    def gentle(self) -> bool:
        """Whether no attempt is lost: what is given up then fails by itself."""
        kinds = {kind for kind, _ in self.faults.values()}
        return not LOSSES & {move.kind for move in self.moves} and "kills" not in kinds

    @property
    def blames(self) -> bool:
        """Whether no attempt is lost but by a block that kills its worker."""
        return not LOSSES & {move.kind for move in self.moves}

    def failing(self) -> dict[int, str]:
        """Blocks that fail more often than they are tried again."""
        return {b: kind for b, (kind, times) in self.faults.items() if times > self.retries}

    def slots(self, worker: WorkerReading) -> int:
        """Attempts that a worker may hold, by the words of the rule."""
        limits = [1 if self.exclusive else worker.threads]
        limits.append(max(1, self.memory_bytes // self.peak_bytes))
        if worker.memory_bytes is not None:
            limits.append(worker.memory_bytes // self.peak_bytes)
        return min(limits)


def scenario(random: Random) -> Scenario:
    """Draw a scenario; in its last second a worker joins that nothing happens to any more."""
    quick = random.randint(0, 2) == 0  # many short blocks: several runs are then one attempt
    count = 80 if quick else random.randint(1, 16)
    moves = [Move(0.0, "join", "a", random.randint(1, 3), random.choice([None, None, 40]))]
    at_s = 0.0
    for _ in range(random.randint(0, 16)):
        at_s += random.choice([0.0, 0.4, 1.0, 2.5, 5.0])
        kind = random.choice([*sorted(LOSSES), "join", "join", "pause", "resume"])
        threads, memory_bytes = random.randint(1, 3), random.choice([None, None, 5, 20, 40])
        seconds = random.choice([0.0, 0.7, 3.0, 6.0, 10.0])
        moves.append(Move(at_s, kind, random.choice("aaabbc"), threads, memory_bytes, seconds))
    if random.randint(0, 2) == 0:
        moves = [move for move in moves if move.kind not in LOSSES]
    moves.append(Move(at_s + 1, "join", "rescue", random.randint(1, 2)))
    faults = {}
    kinds = ["fails", "cannot be read", "is damaged", "ends early", "kills", "is refused", "full"]
    for block in range(count):
        if random.randint(0, 40 if quick else 5) == 0:
            kind = random.choice(kinds[: random.choice([4, 5, 7])])
            faults[block] = (kind, random.choice([1, 1, 2, 3, ALWAYS]))
    each_s = [0.02] if quick else [0.1, 1.0, 3.0, 8.0]
    reads_s = [0.3] if quick else [1.0, 1.0, 1.1, 2.5, 4.0]
    return Scenario(
        runs=split_runs(range(count), random.randint(1, count)),
        retries=random.randint(0, 3),
        exclusive=random.choice([False, False, True]),
        peak_bytes=10,
        memory_bytes=random.choice([10, 25, 100]),
        wait_s=random.choice([None, None, None, 2.0, 30.0]),
        seconds=tuple(random.choice(each_s) for _ in range(count)),
        faults=faults,
        moves=tuple(moves),
        polls_s=tuple(random.choice(reads_s) for _ in range(3)),
        lags_s=tuple(random.choice([0.0, 0.0, 0.2, 3.5]) for _ in range(3)),
        late_answers=random.choice([False, True]),
        time_up_s=random.choice([None, None, None, 0.0, 3.3, 9.0]),
    )


@dataclass(eq=False)
class Process:
    """A worker process: what the scheduler knows of it, and which blocks its threads work on."""

    address: str
    threads: int
    memory_bytes: int | None
    paused: bool = False
    alive: bool = True
    known: bool = True
    hidden_until_s: float = 0.0
    at_work: set[int] = field(default_factory=set)


@dataclass(eq=False)
class Task:
    """An attempt as Dask holds it: for one address, with the process that runs it, if one does."""

    number: int
    blocks: tuple[int, ...]
    worker: str
    process: Process | None = None
    deaths: int = 0
    cancelled: bool = False
    ended: bool = False


class Simulation:
    """Runs a scenario to its end and asserts on the way each law that can be broken there."""

    def __init__(self, given: Scenario) -> None:
        self.given = given
        plan = Plan(
            "simulate", print, None, given.runs, len(given.blocks), "voxels",
            given.peak_bytes, given.memory_bytes, given.exclusive,
        )  # fmt: skip
        self.driver = Driver(plan, given.retries, Patience(given.wait_s), "tcp://virtual")
        self.now_s = 0.0
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.polls, self.lags = itertools.cycle(given.polls_s), itertools.cycle(given.lags_s)
        self.processes: dict[str, Process] = {}
        self.tasks: dict[int, Task] = {}
        self.faults = {block: times for block, (_, times) in given.faults.items()}
        self.journal: dict[int, str] = {}
        self.writes: Counter[int] = Counter()
        self.begun: Counter[int] = Counter()
        # What an onlooker knows of the driver by its words alone.
        self.reading: dict[str, WorkerReading] = {}
        self.missing: dict[str, list[float]] = {}
        self.idle_since_s: float | None = None
        self.outstanding: dict[int, Submit] = {}
        self.tried: Counter[int] = Counter()
        self.suspected: set[int] = set()  # blocks whose worker was lost
        self.quarantined: set[int] = set()
        self.grown: set[str] = set()  # addresses of workers that had one slot when they got a run
        self.answered: set[int] = set()
        self.offers = 0
        self.time_up = False
        self.stop: Stop | None = None

    def run(self) -> Stop:
        """Let time pass until the driver stops; it must."""
        for move in self.given.moves:
            self.later(move.at_s, self.move, move)
        self.later(0.0, self.poll)
        if self.given.time_up_s is not None:
            self.later(self.given.time_up_s, self.end_time)
        while self.stop is None:
            self.now_s, _, action, arguments = heapq.heappop(self.heap)
            assert self.now_s < LONGEST_S, "it waits for ever"
            action(*arguments)
        return self.stop

    def later(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.heap, (self.now_s + seconds, next(self.order), action, arguments))

    # The cluster.

    def end_time(self) -> None:
        self.time_up = True
        self.perform(self.driver.on_time_up("at 07:00"))

    def move(self, move: Move) -> None:
        process = self.processes.get(move.worker)
        if move.kind == "join":
            if process is None:
                self.join(Process(move.worker, move.threads, move.memory_bytes))
        elif process is not None:
            self.happen(move.kind, process, move.seconds)

    def happen(self, kind: str, process: Process, seconds: float) -> None:
        match kind:
            case "die":  # the scheduler may hear of it late
                self.die(process)
                self.later(seconds, self.forget, process)
            case "restart":
                self.die(process)
                self.later(0.5, self.restart, process)
            case "hide":
                process.hidden_until_s = self.now_s + seconds
            case "cut off":  # the scheduler is done with it, and it does not know yet
                self.forget(process)
            case "lose a task":
                self.lose_a_task(process)
            case "pause" | "resume":
                process.paused = kind == "pause"
            case "retire":
                process.paused = True
                self.later(seconds, self.forget, process)

    def lose_a_task(self, process: Process) -> None:
        held = [task for task in self.tasks.values() if task.process is process]
        for task in [task for task in held if not (task.ended or task.cancelled)][:1]:
            task.cancelled = True
            self.later(0.0, self.tell, task, None)

    def join(self, process: Process) -> None:
        """Dask gives a process the tasks that its address is owed."""
        self.processes[process.address] = process
        for task in list(self.tasks.values()):
            lost = task.process is None or not (task.process.alive and task.process.known)
            if task.worker == process.address and lost and not task.cancelled:
                task.deaths += task.process is not None
                task.process, task.ended = process, False
                if task.deaths > ALLOWED_DEATHS:
                    task.cancelled = True
                    self.later(0.0, self.tell, task, None)
                else:
                    self.begin(task, process)

    def die(self, process: Process) -> None:
        process.alive = False

    def forget(self, process: Process) -> None:
        process.known = False
        if self.processes.get(process.address) is process:
            del self.processes[process.address]

    def restart(self, process: Process) -> None:
        if process.known:
            self.forget(process)
            self.join(Process(process.address, process.threads, process.memory_bytes))

    def begin(self, task: Task, process: Process) -> None:
        """A thread of a process takes a task up, when no other works on its blocks any more."""
        if task.process is not process or not process.alive or task.cancelled:
            return
        if process.at_work & set(task.blocks):
            self.later(0.5, self.begin, task, process)
            return
        process.at_work |= set(task.blocks)
        self.begun.update(task.blocks)
        done = {block: self.journal[block] for block in task.blocks if block in self.journal}
        todo = [block for block in task.blocks if block not in done]
        self.work(task, process, done, todo)

    def work(self, task: Task, process: Process, done: dict[int, str], todo: list[int]) -> None:
        if todo:
            seconds = self.given.seconds[todo[0]]
            self.later(seconds, self.finish, task, process, done, todo)
        else:
            self.end(task, process, Outcome(done))

    def finish(self, task: Task, process: Process, done: dict[int, str], todo: list[int]) -> None:
        """A block's time is over: it fails, or it is written and marked as done."""
        if not process.alive:
            return
        block = todo[0]
        if self.faults.get(block, 0) > 0:
            self.faults[block] -= 1
            kind = self.given.faults[block][0]
            if kind == "kills":
                self.die(process)
                self.later(0.5, self.restart, process)
            else:
                self.end(task, process, Outcome(done, ERRORS[kind]))
            return
        self.writes[block] += 1
        assert self.journal.setdefault(block, bytes_of(block)) == bytes_of(block)
        done = {**done, block: bytes_of(block)}
        if self.time_up:
            self.end(task, process, Outcome(done, released=True))
            return
        # After each block a task looks whether it is still wanted.
        wanted = task.process is process and process.known
        if wanted and (self.given.late_answers or not task.cancelled):
            self.work(task, process, done, todo[1:])
        else:
            process.at_work -= set(task.blocks)

    def end(self, task: Task, process: Process, outcome: Outcome) -> None:
        process.at_work -= set(task.blocks)
        if task.process is process and (self.given.late_answers or not task.cancelled):
            task.ended = True
            self.later(next(self.lags), self.answer, task, process, outcome)

    def answer(self, task: Task, process: Process, outcome: Outcome) -> None:
        """The driver hears of an end, unless the answer died with its process."""
        if process.alive and process.known and task.process is process:
            self.tell(task, outcome)

    # The driver.

    def tell(self, task: Task, outcome: Outcome | None) -> None:
        """Tell the driver of an attempt that ended; a refusal ends the run, if it is not late."""
        late = self.outstanding.pop(task.number, None) is None
        self.tasks.pop(task.number, None)
        if outcome is None:
            lost = Outcome({}, RunFailed("the scheduler lost its task"), lost=True)
            self.suspected.update(() if late else task.blocks)
            self.perform(self.driver.on_completed(task.number, lost))
            return
        self.answered |= outcome.results.keys()
        actions = self.driver.on_completed(task.number, outcome)
        refused = outcome.error in REFUSALS and not late
        assert (Stop(outcome.error) in actions and outcome.error is not None) == refused
        self.perform(actions)

    def poll(self) -> None:
        """The driver reads who works."""
        self.reading = {
            p.address: WorkerReading(p.threads, p.memory_bytes, p.paused)
            for p in self.processes.values()
            if p.known and p.hidden_until_s <= self.now_s
        }
        holding = {submit.worker for submit in self.outstanding.values()}
        for address in holding | self.missing.keys():
            if address in self.reading:
                self.missing.pop(address, None)
            else:
                self.missing.setdefault(address, []).append(self.now_s)
        actions = self.driver.on_workers(self.reading, self.now_s)
        for number, submit in self.outstanding.items():
            assert (TakeBack(number) in actions) == self.lost(submit.worker)
        self.missing = {a: times for a, times in self.missing.items() if not self.lost(a)}
        self.check_patience(actions)
        self.perform(actions)
        self.later(next(self.polls), self.poll)

    def lost(self, address: str) -> bool:
        times = self.missing.get(address, [])
        return len(times) >= 3 and times[-1] - times[0] >= 3

    def check_patience(self, actions: list[Any]) -> None:
        """It gives up when nobody could work for so long, and not before."""
        back = {action.number for action in actions if isinstance(action, TakeBack)}
        holding = {s.worker for number, s in self.outstanding.items() if number not in back}
        able = [
            address
            for address, worker in self.reading.items()
            if self.given.slots(worker) and (not worker.paused or address in holding)
        ]
        if able:
            self.idle_since_s = None
        elif self.idle_since_s is None:
            self.idle_since_s = self.now_s
        errors = [str(action.error) for action in actions if isinstance(action, Stop)]
        waited_s = None if self.idle_since_s is None else self.now_s - self.idle_since_s
        too_long = None not in (waited_s, self.given.wait_s) and waited_s >= self.given.wait_s
        assert any("had no worker" in e for e in errors) == (too_long and not self.time_up)

    def perform(self, actions: list[Any]) -> None:
        """Do what the driver says, which keeps its laws at every moment."""
        for action in actions:
            assert self.stop is None, "it goes on behind its end"
            match action:
                case Submit():
                    self.submit(action)
                case TakeBack(number):
                    self.suspected.update(self.outstanding.pop(number).blocks)
                    self.tasks.pop(number).cancelled = True
                case Quarantine(block):
                    assert block in self.driver.given_up or block in self.answered
                    self.quarantined.add(block)
                case HoldOffers(count):
                    self.offers = count
                case Stop():
                    self.stop = action
                case _:
                    assert isinstance(action, Log)
        if self.stop is None:
            self.check_all_slots_are_used()

    def submit(self, submit: Submit) -> None:
        worker = self.reading[submit.worker]
        assert not self.time_up
        assert not worker.paused
        assert self.held(submit.worker) < self.given.slots(worker)
        self.grown |= {submit.worker} if self.given.slots(worker) == 1 else set()
        beside = self.blocks_of(submit.worker)
        if self.suspected & {*beside, *submit.blocks}:
            assert not beside, "a block whose worker was lost is not alone"
        at_work = {block for other in self.outstanding.values() for block in other.blocks}
        assert submit.blocks
        assert not at_work & set(submit.blocks), "a block is given out twice"
        assert not self.answered & set(submit.blocks), "a block is done again"
        self.outstanding[submit.number] = submit
        self.tried.update(submit.blocks)
        task = Task(submit.number, submit.blocks, submit.worker)
        self.tasks[submit.number] = task
        process = self.processes.get(submit.worker)
        if process is not None:
            task.process = process
            self.begin(task, process)

    def held(self, address: str) -> int:
        return sum(submit.worker == address for submit in self.outstanding.values())

    def blocks_of(self, address: str) -> list[int]:
        held = [submit for submit in self.outstanding.values() if submit.worker == address]
        return [block for submit in held for block in submit.blocks]

    def check_all_slots_are_used(self) -> None:
        at_work = {block for other in self.outstanding.values() for block in other.blocks}
        places = [*at_work, *self.driver.given_up]
        waiting = [*self.driver.waiting, *self.driver.suspects]
        places += [block for attempt in waiting for block in attempt.blocks]
        assert len(places) == len(set(places)), "a block is in two places"
        assert set(places) | self.answered == self.given.blocks, "a block is lost"
        waiting = [] if self.time_up else waiting
        for address, worker in self.reading.items() if waiting else ():
            held, slots = self.held(address), self.given.slots(worker)
            full = held >= (slots if self.driver.waiting else min(slots, 1))
            alone = self.suspected & {*self.blocks_of(address)} or address in self.grown
            assert worker.paused or full or alone
        assert self.offers == min(16, len(waiting))


REFUSALS = [InvalidInput("not like this"), StoreFull("out.zarr cannot be written")]
ERRORS: dict[str, Exception | None] = {
    "fails": RuntimeError("OSError: it did not work"),
    "cannot be read": RunFailed("scan.zarr cannot be read"),
    "is damaged": Unreadable("scan.zarr is damaged"),
    "ends early": None,
    "is refused": REFUSALS[0],
    "full": REFUSALS[1],
}


def bytes_of(block: int) -> str:
    """What a block's bytes are, whoever computes it."""
    return f"bytes of block {block}"
