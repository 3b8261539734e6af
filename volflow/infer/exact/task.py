"""The tasks of an exact prediction: a pass between, and the last, which writes the result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.engine.memory import Ceiling
from volflow.engine.plan import Step
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.infer.exact.job import Blockwise, ExactOutput, Plane
from volflow.infer.patches.job import Target
from volflow.model.forward import torch_threads
from volflow.partition.graph import Graph, needed
from volflow.partition.moments import partials_of
from volflow.passes.activations import Kept, making_room
from volflow.passes.cost import Pass, targets_of
from volflow.store.atomic import write_file
from volflow.store.journal.journal import Journal, ShardEntry

__all__ = ["OutputJob", "PassJob", "exact_outputs", "exact_pass", "partial_path"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PassJob:
    """A pass that stores nodes or measures statistics.

    Parameters
    ----------
    blockwise
        The image, the network, and what is at hand.
    step
        What the pass computes, in which blocks.
    stores
        Where nodes are kept.
    journal, session
        Of the pass.
    threads, memory_bytes, peak_bytes
        Torch threads, what the task may add to its process, and what a block is thought to take.
    """

    blockwise: Blockwise
    step: Pass
    stores: Mapping[int, Kept]
    journal: Journal
    session: str
    threads: int
    memory_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class OutputJob:
    """The last pass, which writes the result.

    Parameters
    ----------
    blockwise, output
        What computes boxes of the outputs, and what becomes of them.
    blocks
        The tiling of the result, stored axes, output voxels.
    targets
        Where the outputs are written.
    journal, session, threads, memory_bytes, peak_bytes
        As in `PassJob`.
    """

    blockwise: Blockwise
    output: ExactOutput
    blocks: BlockGrid
    targets: tuple[Target, ...]
    journal: Journal
    session: str
    threads: int
    memory_bytes: int
    peak_bytes: int


def partial_path(journal: Journal, number: int) -> Path:
    """Where what a block knows of a pass's statistics is kept."""
    return journal.directory / "partials" / f"{number:08d}.f64"


def exact_pass(job: PassJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    """Store nodes and measure statistics, block by block; what the journal holds is left out."""
    graph = job.blockwise.network.graph()
    done = job.journal.done(blocks)
    ceiling = Ceiling(job.memory_bytes)
    for number in blocks:
        if number in done:
            yield Step(number, 0)
            continue
        job.journal.check(job.session)
        ceiling.keep(job.peak_bytes)
        began = time.perf_counter()
        with torch_threads(job.threads):
            size = _pass_block(job, graph, number)
        took = {"model": time.perf_counter() - began}
        job.journal.mark(number, (), took, session=job.session)
        yield Step(number, size, took)


def _pass_block(job: PassJob, graph: Graph, number: int) -> int:
    step, block = job.step, job.step.grid(graph)[number]
    partials: dict[int, Array] = {}
    for node, values in job.blockwise.compute(graph, targets_of(graph, step, block.write_roi)):
        partials |= partials_of(graph, step.statistics, node, values)
        if node in job.stores:
            plain = values.float() if values.dtype == torch.bfloat16 else values
            job.stores[node].write(block.index, plain.numpy(force=True))
    if partials:
        flat = np.concatenate([partials[s].ravel() for s in step.statistics])
        path = partial_path(job.journal, number)
        with making_room(path.parent):
            write_file(path, flat.tobytes())
    return block.write_roi.size


def exact_outputs(job: OutputJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    """Compute blocks of the outputs and write them; what the journal holds is left out."""
    graph = job.blockwise.network.graph()
    done = job.journal.done(blocks)
    ceiling = Ceiling(job.memory_bytes)
    for number in blocks:
        if number in done:
            yield Step(number, 0)
            continue
        job.journal.check(job.session)
        ceiling.keep(job.peak_bytes)
        began = time.perf_counter()
        box = job.blocks[number].write_roi
        frame = job.output.frame
        with torch_threads(job.threads):
            shown = output_rows(job.blockwise, job.output, graph, frame.roi(box, job.blocks.shape))
        took = {"model": time.perf_counter() - began}
        began = time.perf_counter()
        job.journal.check(job.session)
        entries = []
        for target in job.targets:
            stored = frame.store(shown.pop(target.name))
            for shard in target.volume.write(box, stored):
                entries.append(ShardEntry(target.array, shard.start, shard.stop, shard.crc32c))
        took["write"] = time.perf_counter() - began
        job.journal.mark(number, entries, took, session=job.session)
        yield Step(number, box.size, took)


def output_rows(
    blockwise: Blockwise, output: ExactOutput, graph: Graph, tile: Roi
) -> dict[str, Array]:
    """Finished voxels of a box of the outputs, in frame order, by output."""
    dropped = blockwise.network.dropped
    if dropped is None:
        return _finished(blockwise, output, graph, tile)
    planes: dict[str, list[Array]] = {}
    low, high = tile.start[dropped], tile.stop[dropped]
    flat = Roi(_without(tile.start, dropped), _without(tile.stop, dropped))
    read = needed(graph, dict.fromkeys(output.names.values(), flat), {0})[0]
    # All slices at once, since they share the stored chunks.
    slices = blockwise.slices(read, low, high)
    for plane in range(high - low):
        shown = Plane(slices.take(plane, axis=1 + dropped), read)
        for name, rows in _finished(blockwise, output, graph, flat, shown).items():
            planes.setdefault(name, []).append(rows)
    return {name: np.concatenate(rows, axis=dropped - 3) for name, rows in planes.items()}


def _without(values: Sequence[int], axis: int) -> tuple[int, ...]:
    return (*values[:axis], *values[axis + 1 :])


def _finished(
    blockwise: Blockwise, output: ExactOutput, graph: Graph, box: Roi, plane: Plane | None = None
) -> dict[str, Array]:
    dropped = blockwise.network.dropped
    by_node = dict(blockwise.compute(graph, dict.fromkeys(output.names.values(), box), plane))
    rows = {}
    for name, number in output.names.items():
        scores = by_node[number][0]
        wide = scores if dropped is None else scores.unsqueeze(1 + dropped)
        # In the network's own precision, as scores of patches are.
        wide = wide.to(blockwise.network.torch_dtype)
        rows[name] = output.rows(wide.numpy(force=True))
    return rows
