"""What the two passes over a pair of label maps share: blocks within the budget, and a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from volflow.engine.plan import Plan, split_runs
from volflow.engine.task import Task
from volflow.geometry.budget import format_bytes
from volflow.volumes.evaluate.compared_blocks import ComparedBlocks, fitting_blocks
from volflow.volumes.evaluate.label_pair import LabelPair

__all__ = ["blocks_within", "pair_plan"]

TASKS = 256

PeakOf = Callable[[ComparedBlocks], int]


def blocks_within(pair: LabelPair, peak_of: PeakOf, memory_bytes: int) -> ComparedBlocks:
    """Return the largest blocks that fit into a budget; single cells where none do.

    Parameters
    ----------
    pair
        What is compared.
    peak_of
        What one block takes.
    memory_bytes
        What a worker may use.
    """
    blocks = fitting_blocks(pair.sources)
    while peak_of(blocks) > memory_bytes and math.prod(blocks.block) > blocks.cell**3:
        blocks = fitting_blocks(pair.sources, math.prod(blocks.block) // 2)
    return blocks


def pair_plan(
    operation: str,
    task: Task,
    job: Any,
    numbers: Sequence[int],
    peak_bytes: int,
    memory_bytes: int,
) -> Plan:
    """Return the plan of a pass over some blocks of a job's pair.

    Raises
    ------
    MemoryRefused
        Where not even a cell fits.
    """
    pair, blocks = job.pair, job.blocks
    plan = Plan(
        operation,
        task,
        job,
        split_runs(numbers, TASKS),
        units=blocks.grid.voxels(numbers),
        unit="voxels",
        peak_bytes=peak_bytes,
        memory_bytes=memory_bytes,
        facts=(("pred", pair.names[0]), ("truth", pair.names[1]), ("block", f"{blocks.block}")),
        grid=blocks.grid,
    )
    plan.require_memory(f"give it at least {format_bytes(math.ceil(peak_bytes * 1.01))}")
    return plan
