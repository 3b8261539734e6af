"""The context of a task on its worker: cancellation, writing and recording blocks, timing.

A task is ``task(job, blocks, context)``, a generator of `Step`, called with the blocks that are
left to do. The context checks that the driver still waits for the task, writes and records blocks,
and times each stage, so that a task contains only its own work.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from volflow.engine.memory import MemoryGuard
from volflow.errors import Superseded
from volflow.geometry.roi import Roi
from volflow.store.journal.journal import Journal
from volflow.store.layout import ShardEntry
from volflow.store.unfinished.fence import Fence
from volflow.store.volume import Volume

__all__ = ["BlockWriter", "Clock", "Context", "Step", "Task", "run_task"]


ASK_EVERY_S = 1.0  # of a store, whether the driver is still there


@dataclass(frozen=True)
class Step:
    """One step of a task, reported to the driver.

    Parameters
    ----------
    block
        The block that is now stored and recorded in the journal; None for a step within a block.
    units
        Work done since the last step, in the plan's units.
    result
        Result of the block for the driver; small.
    """

    block: int | None
    units: int
    result: Any = None


class Clock:
    """Seconds per stage: by step for progress, by block for the journal.

    Examples
    --------
    >>> clock = Clock()
    >>> with clock.stage("read"):
    ...     pass
    >>> list(clock.take_step()), list(clock.take_step())
    (['read'], [])
    """

    def __init__(self) -> None:
        self.step: dict[str, float] = {}
        self.block: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of a block of code to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere, as in another thread."""
        for stages in (self.step, self.block):
            stages[name] = stages.get(name, 0.0) + seconds

    def take_step(self) -> dict[str, float]:
        """Return the seconds per stage since the last step, and reset them."""
        taken, self.step = self.step, {}
        return taken

    def take_block(self) -> dict[str, float]:
        """Return the seconds per stage since the last block, and reset them."""
        taken, self.block = self.block, {}
        return taken


@dataclass
class BlockWriter:
    """Writes the shards of one block and collects their checksums for its journal entry."""

    context: Context
    entries: list[ShardEntry] = field(default_factory=list)
    seconds: float = 0.0

    def write(self, volume: Volume, roi: Roi, voxels: npt.NDArray[Any], array: str = "0") -> None:
        """Write whole shards of a volume.

        Parameters
        ----------
        volume, roi, voxels
            As for `Volume.write`: a box that owns its shards, and voxels of its shape and dtype.
        array
            The volume's array below the output, as the journal names it.

        Raises
        ------
        Superseded
            If the driver no longer waits for the task, or another has replaced it; nothing is
            written then.
        """
        self.context.check(now=True)
        began = time.perf_counter()
        self.entries += volume.write(roi, voxels, array, self.context.fence)
        self.seconds += time.perf_counter() - began


@dataclass
class Context:
    """Context of one attempt at some blocks, made on the worker.

    Parameters
    ----------
    journal, session
        Journal of finished blocks, and the token of the driver; None for a task without a
        journal, whose written blocks are collected in ``written`` instead.
    memory_bytes
        Bytes that the task may add to its process; None without a limit.
    wanted
        Returns True while the driver waits for this attempt.

    Examples
    --------
    >>> context = Context()
    >>> context.left((3, 4))
    (3, 4)
    >>> with context.stage("read"):
    ...     context.check()
    >>> list(context.clock.take_step())
    ['read']
    """

    journal: Journal | None = None
    session: str = ""
    memory_bytes: int | None = None
    wanted: Callable[[], bool] = lambda: True
    clock: Clock = field(default_factory=Clock)
    written: dict[int, tuple[list[ShardEntry], dict[str, float]]] = field(default_factory=dict)
    _guard: MemoryGuard | None = None
    _checked_s: float = -math.inf

    @property
    def fence(self) -> Fence | None:
        """What this task writes through; None without a journal, or where that is on a store."""
        if self.journal is None or not self.journal.is_local:
            return None
        return self.journal.fence(self.session)

    def left(self, blocks: Sequence[int]) -> tuple[int, ...]:
        """Return the blocks that the journal does not hold as done, in their order."""
        done = self.journal.done(blocks, session=self.session) if self.journal is not None else {}
        return tuple(block for block in blocks if block not in done)

    def check(self, *, now: bool = False) -> None:
        """Stop the task if its driver has ended, was replaced or took its blocks back.

        A store is asked once a second at most, but for ``now``, as each question is a request.

        Raises
        ------
        Superseded
            If the task must stop.
        """
        if not self.wanted():
            raise Superseded("the driver no longer waits for this task, which stops")
        if self.journal is None:
            return
        at_s = time.monotonic()
        if now or self.journal.is_local or at_s - self._checked_s > ASK_EVERY_S:
            self.journal.check(self.session)
            self._checked_s = at_s

    @contextmanager
    def block(
        self, number: int, stages: Mapping[str, float] | None = None
    ) -> Iterator[BlockWriter]:
        """Write a block, which is recorded as done when the ``with`` ends without an error.

        Parameters
        ----------
        number
            Number of the block.
        stages
            Seconds of the block so far, by stage; by default those measured by `stage` since the
            last block. The seconds of writing are added.

        Raises
        ------
        Superseded
            As `check`, before the first write and before the block is recorded.
        """
        self.check()
        writer = BlockWriter(self)
        yield writer
        written = {"write": writer.seconds} if writer.entries else {}
        if stages is None:  # in the task's own thread, whose clock measures the writing, too
            for stage, seconds in written.items():
                self.clock.add(stage, seconds)
            took = self.clock.take_block()
        else:
            took = {**stages, **written}
        if self.journal is None:
            self.written[number] = writer.entries, took
        else:
            self.journal.mark(number, writer.entries, took, session=self.session)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a block of code as a stage, for progress and the journal."""
        return self.clock.stage(name)

    def trim(self, next_bytes: int = 0) -> None:
        """Return free memory to the system if the process nears its budget.

        Parameters
        ----------
        next_bytes
            Bytes that the task will allocate next. The first call, before any allocation, sets
            the base from which the process is measured.
        """
        if self.memory_bytes is None:
            return
        if self._guard is None:
            self._guard = MemoryGuard(self.memory_bytes)
        self._guard.trim(next_bytes)


Task = Callable[[Any, tuple[int, ...], Context], Iterator[Step]]


def run_task(
    task: Task, job: Any, blocks: tuple[int, ...], context: Context
) -> Generator[Step, None, None]:
    """Yield a step for each block that is done already, then run the task on those left."""
    left = context.left(blocks)
    yield from (Step(block, 0) for block in blocks if block not in left)
    if left:
        yield from task(job, left, context)
