"""What limited a run, in words that its seconds per stage and per worker bear out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

__all__ = ["WorkerTime", "explain_bottleneck", "shares", "worker_lines"]

# A stage below this share of the time is not what limits a run.
DOMINANT = 0.5
# A worker that takes so many times the median per block is named.
SLOW = 2.0
# Blocks per worker below which its pace says little.
FEW = 4
# Workers that are listed one by one: the slowest, when there are more.
MOST_LISTED = 8

# What a stage does, and what would shorten it.
REMEDIES = {
    "read": (
        "reading and decoding",
        "larger chunks, a faster disk, or workers on machines with disks of their own",
    ),
    "model": ("the network", "more workers, or a GPU"),
    "blend": ("summing overlapping patches", "less overlap, or more workers"),
    "write": (
        "compressing and storing",
        "a faster disk, or workers on machines with disks of their own",
    ),
    "halve": ("averaging voxels", "more workers"),
    "count": ("counting voxels", "more workers"),
}


@dataclass
class WorkerTime:
    """Blocks that a worker did, and its seconds by stage."""

    blocks: int = 0
    stages: dict[str, float] = field(default_factory=dict)

    def add(self, blocks: int, stages: Mapping[str, float]) -> None:
        """Add blocks and seconds."""
        self.blocks += blocks
        for stage, seconds in stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @property
    def took_s(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages.values())

    @property
    def block_s(self) -> float:
        """Mean seconds per block."""
        return self.took_s / max(1, self.blocks)


def shares(stages: Mapping[str, float]) -> str:
    """Return the share of each stage in the time, the largest first.

    Examples
    --------
    >>> shares({"read": 1.0, "model": 3.0})
    'model 75%, read 25%'
    """
    total = sum(stages.values())
    found = sorted(stages.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{stage} {seconds / total:.0%}" for stage, seconds in found if total)


def explain_bottleneck(workers: Mapping[str, WorkerTime]) -> str:
    """Return in one sentence what took the workers' time, and what would help; "" if none is known.

    Examples
    --------
    >>> explain_bottleneck({"a:1": WorkerTime(9, {"read": 71.0, "model": 29.0})})
    "reading and decoding took 71% of the workers' time; larger chunks, a faster disk, or workers on
    machines with disks of their own would help"
    >>> explain_bottleneck({"a:1": WorkerTime(9, {"read": 4.0, "model": 4.0, "write": 4.0})})
    "no stage alone limits it: model 33%, read 33%, write 33% of the workers' time"
    """
    whole = WorkerTime()
    for worker in workers.values():
        whole.add(worker.blocks, worker.stages)
    if not whole.took_s:
        return ""
    stage, seconds = max(whole.stages.items(), key=lambda item: item[1])
    if seconds < DOMINANT * whole.took_s:
        said = f"no stage alone limits it: {shares(whole.stages)} of the workers' time"
    else:
        what, remedy = REMEDIES.get(stage, (stage, ""))
        said = f"{what} took {seconds / whole.took_s:.0%} of the workers' time"
        said += f"; {remedy} would help" if remedy else ""
    slow = _slow(workers)
    return f"{said}; {slow}" if slow else said


def _slow(workers: Mapping[str, WorkerTime]) -> str:
    """Name the worker that takes much longer per block than the others; "" if none does."""
    known = {name: worker.block_s for name, worker in workers.items() if worker.blocks >= FEW}
    if len(known) < 2:
        return ""
    name, block_s = max(known.items(), key=lambda item: item[1])
    times = block_s / max(1e-9, median(one for other, one in known.items() if other != name))
    return f"{name} takes {times:.1f} times as long per block as the others" if times > SLOW else ""


def worker_lines(workers: Mapping[str, WorkerTime]) -> list[str]:
    """Return a line for each worker with its pace and its stages, the slowest first.

    Examples
    --------
    >>> worker_lines({"a:1": WorkerTime(2, {"model": 3.0}), "b:7": WorkerTime(1, {"read": 4.0})})
    ['b:7  1 blocks, 4 s each: read 100%', 'a:1  2 blocks, 1.5 s each: model 100%']
    """
    found = sorted(workers.items(), key=lambda item: -item[1].block_s)
    lines = [
        f"{name}  {worker.blocks} blocks, {worker.block_s:.3g} s each: {shares(worker.stages)}"
        for name, worker in found[:MOST_LISTED]
        if worker.took_s
    ]
    more = len(found) - MOST_LISTED
    return [*lines, f"and {more} faster workers"] if more > 0 else lines
