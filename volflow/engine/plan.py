"""Plans: the work of an operation as data, with its pieces, memory and facts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from distributed import WorkerPlugin

from volflow.engine.admission.ledger import Claim
from volflow.engine.memory import BETWEEN_LOOKS_BYTES
from volflow.engine.task import Task
from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import BlockGrid
from volflow.store.journal.journal import Journal, Record

__all__ = ["Plan", "runs_for", "split_runs"]


@dataclass(frozen=True)
class Plan:
    """Everything a driver needs to run an operation; made without reading a voxel.

    Parameters
    ----------
    operation
        Name of the operation, as printed.
    task, job
        ``task(job, blocks, context)`` runs blocks in order and yields a `Step` per block. Both
        are sent to the workers, so the task is a module-level function and the job small and
        picklable.
    runs
        Blocks in the pieces that are scheduled: a task takes a run of neighbouring blocks, or
        several short runs one after the other.
    units, unit
        Total work, for progress, and the name of its unit.
    peak_bytes, memory_bytes
        Projected peak of one task, and the budget of a worker.
    exclusive
        True for one task at a time per worker process, instead of one per thread.
    facts
        Lines of the description: name and value.
    plugin
        Set up on every worker before its first task.
    job_of
        If each run needs its own job, the function that makes it when the run is submitted.
    journal, record
        Journal of finished blocks, and the record of the run; None for a plan without a journal.
    grid
        The boxes of the blocks, by number, by which messages name them.
    device_peak_bytes, device_memory_bytes
        Projected peak of one task in a GPU's memory, and the budget there; 0 where it takes none.

    Examples
    --------
    >>> plan = Plan("double", print, None, ((0, 1), (2,)), units=3, unit="voxels",
    ...             peak_bytes=10, memory_bytes=100, facts=(("input", "a.zarr"),))
    >>> print(plan)
    double
      input        a.zarr
      work         3 blocks in 2 tasks, 3 voxels
      peak memory  10 B per task of 100 B per worker
    """

    operation: str
    task: Task
    job: Any
    runs: tuple[tuple[int, ...], ...]
    units: int
    unit: str
    peak_bytes: int
    memory_bytes: int
    exclusive: bool = False
    facts: tuple[tuple[str, str], ...] = ()
    plugin: WorkerPlugin | None = None
    job_of: Callable[[tuple[int, ...]], Any] | None = None
    journal: Journal | None = None
    record: Record | None = None
    grid: BlockGrid | None = None
    device_peak_bytes: int = 0
    device_memory_bytes: int = 0

    @property
    def blocks(self) -> int:
        """Number of blocks left to do."""
        return sum(len(run) for run in self.runs)

    @property
    def whole(self) -> int:
        """Number of blocks of the output, with those that are done already."""
        settings = self.record.settings if self.journal and self.record else {}
        return math.prod(settings.get("grid", (self.blocks,)))

    def place(self, block: int) -> str:
        """Return the box of a block as text, in the form of an index; empty if it is not known.

        Examples
        --------
        >>> plan = Plan("double", print, None, ((0,), (1,)), 8, "voxels", 1, 1,
        ...             grid=BlockGrid((2, 2, 2), (1, 2, 2)))
        >>> plan.place(1)
        ' [1:2, 0:2, 0:2]'
        """
        if self.grid is None:
            return ""
        box = self.grid[block]
        return f" [{', '.join(f'{a}:{b}' for a, b in zip(box.start, box.stop, strict=True))}]"

    @property
    def kept_bytes(self) -> int:
        """Bytes by which a running task lets its process grow.

        The budget; or the projected peak, if the budget leaves less above it than a task may
        allocate between two looks at its memory.
        """
        tight = self.memory_bytes - self.peak_bytes < BETWEEN_LOOKS_BYTES
        return min(self.peak_bytes, self.memory_bytes) if tight else self.memory_bytes

    @property
    def claim(self) -> Claim:
        """What each task takes of its worker: it is admitted there beside those of other runs."""
        takes = {"memory": self.peak_bytes, "tasks": 1}
        limits = {"memory": self.memory_bytes, **({"tasks": 1} if self.exclusive else {})}
        if self.device_peak_bytes:
            takes["device memory"] = self.device_peak_bytes
            limits["device memory"] = self.device_memory_bytes
        return Claim(takes, limits)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, for machines."""
        return {
            "operation": self.operation,
            "blocks": self.blocks,
            "tasks": len(self.runs),
            "units": self.units,
            "unit": self.unit,
            "peak_bytes": self.peak_bytes,
            "memory_bytes": self.memory_bytes,
            **self._on_device(),
            **{name.replace(" ", "_"): value for name, value in self.facts},
        }

    def _on_device(self) -> dict[str, int]:
        names = ("device_peak_bytes", "device_memory_bytes") if self.device_peak_bytes else ()
        return {name: getattr(self, name) for name in names}

    def describe(self) -> str:
        """Return the plan as text, for people."""
        facts = (
            *self.facts,
            ("work", f"{self.blocks} blocks in {len(self.runs)} tasks, {self.units:,} {self.unit}"),
            (
                "peak memory",
                f"{format_bytes(self.peak_bytes)} per task"
                f" of {format_bytes(self.memory_bytes)} per worker",
            ),
        )
        if self.device_peak_bytes:
            given = format_bytes(self.device_memory_bytes)
            facts += (("on the device", f"{format_bytes(self.device_peak_bytes)} of {given}"),)
        width = max(len(name) for name, _ in facts)
        return "\n".join([self.operation, *(f"  {name:{width}}  {value}" for name, value in facts)])

    def __str__(self) -> str:
        return self.describe()

    def require_memory(self, remedy: str) -> None:
        """Refuse a plan whose projected peak exceeds its budget, with the remedy."""
        if self.peak_bytes > self.memory_bytes:
            raise MemoryRefused(
                f"{self.operation} needs {format_bytes(self.peak_bytes)} per worker but memory is"
                f" {format_bytes(self.memory_bytes)}; {remedy}"
            )


def runs_for(blocks: Sequence[int], workers: int) -> tuple[tuple[int, ...], ...]:
    """Cut blocks into one run for a single worker, and several for each of many.

    Examples
    --------
    >>> runs_for(range(5), 1), runs_for(range(5), 2)
    (((0, 1, 2, 3, 4),), ((0,), (1,), (2,), (3,), (4,)))
    """
    return split_runs(blocks, 1 if workers <= 1 else 4 * workers)


def split_runs(blocks: Sequence[int], pieces: int) -> tuple[tuple[int, ...], ...]:
    """Cut a sequence of blocks into at most ``pieces`` runs of nearly equal length.

    Examples
    --------
    >>> split_runs(range(7), 3)
    ((0, 1, 2), (3, 4), (5, 6))
    """
    pieces = max(1, min(pieces, len(blocks)))
    return tuple(tuple(run.tolist()) for run in np.array_split(blocks, pieces) if len(run))
