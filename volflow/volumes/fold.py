"""Measure a source block by block, and merge what the blocks yield in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, TypeVar

from volflow.engine.cluster import connect, is_embedded, memory_per_worker
from volflow.engine.clusters.held import one_plugin
from volflow.engine.clusters.sight import check_sight
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.run_options import RunOptions
from volflow.engine.task import Context
from volflow.store.formats.sources import ArraySource
from volflow.store.slabs import Source
from volflow.store.volume import Volume
from volflow.volumes.arrays.computed import at_hand

__all__ = ["fold", "fold_together", "in_memory"]

Merged = TypeVar("Merged")


def in_memory(source: Source) -> bool:
    """Return True where no other process could read a source, or only a copy of it."""
    inner = getattr(source, "source", None)  # of one that turns or changes another
    if isinstance(inner, Source):
        return in_memory(inner)
    return source.path is None and isinstance(source, ArraySource | Volume)


def fold(
    plan_of: Callable[[Source, int], Plan],
    source: Source,
    merge: Callable[[list[Any]], Merged],
    options: RunOptions,
) -> Merged:
    """Run an unjournalled plan over a source on any cluster, and merge its results.

    Parameters
    ----------
    plan_of
        Makes the plan from a source and the memory of a worker in bytes; its blocks yield small
        results. It is called again with the source as it travels to the workers.
    source
        What is read. One in memory is read in this thread.
    merge
        Of the results, in the order of the blocks: the outcome does not depend on the workers.
    options
        Where it runs, and within which memory.

    Raises
    ------
    MemoryRefused
        Where one task does not fit into ``memory``.
    RunFailed
        Where the source cannot be read.
    """

    def plan_of_one(sources: Sequence[Source], memory_bytes: int) -> Plan:
        return plan_of(sources[0], memory_bytes)

    return fold_together(plan_of_one, [source], merge, options)


def fold_together(
    plan_of: Callable[[Sequence[Source], int], Plan],
    sources: Sequence[Source],
    merge: Callable[[list[Any]], Merged],
    options: RunOptions,
) -> Merged:
    """Run as `fold` a plan over several sources that each block reads together.

    Where one of them is in memory, all are read in this thread.
    """
    if any(map(in_memory, sources)):
        plan = plan_of(sources, 2**62)
        blocks = tuple(block for blocks in plan.runs for block in blocks)
        steps = plan.task(plan.job, blocks, Context())
        results = {step.block: step.result for step in steps if step.block is not None}
    else:
        with connect(options.cluster, **options.connection) as client, ExitStack() as stack:
            check_sight(client, None, *(source.path for source in sources))
            memory_bytes = memory_per_worker(client, options.memory)
            plan_of(sources, memory_bytes)  # refuses before anything is sent
            here = is_embedded(client)
            held = [stack.enter_context(at_hand(source, here=here)) for source in sources]
            plan = plan_of([carried for carried, _ in held], memory_bytes)
            plan = replace(plan, plugin=one_plugin([plugin for _, plugin in held]))
            results = run(plan, cluster=client, progress=options.progress).results
    return merge([results[block] for block in sorted(results)])
