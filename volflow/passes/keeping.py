"""The task of a pass that keeps activations or measures statistics, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from volflow.engine.task import Context, Step
from volflow.geometry.roi import Roi
from volflow.model.copies import Copies, Download
from volflow.model.device import machine_of
from volflow.model.forward import torch_threads
from volflow.partition.graph import Graph
from volflow.partition.reach import alignment_of
from volflow.partition.reductions import partials_of, statistic_of
from volflow.partition.segments import targets_of
from volflow.passes.activations import ActivationStore, making_room
from volflow.passes.cost import Pass
from volflow.passes.network import Blockwise, Sent, for_numpy
from volflow.passes.pipeline import Launched, Pipeline, together, within_memory
from volflow.store.atomic import write_file
from volflow.store.journal.provenance import note_machine

__all__ = ["PassJob", "numbers_of", "partial_path", "pass_block", "pass_blocks"]

Array = npt.NDArray[Any]
# What a block gives: values of the nodes that it keeps, and its partial statistics, flat.
Given = tuple[dict[int, Array], Array]


@dataclass(frozen=True)
class PassJob:
    """A pass that keeps activations or measures statistics.

    Parameters
    ----------
    blockwise
        The image, the network, and what earlier passes kept and measured.
    step
        The pass: its nodes and its blocks.
    stores
        Stores of nodes.
    partials
        Folder of the partial statistics of each block.
    threads, peak_bytes
        Torch threads, and the projected memory of a block.
    """

    blockwise: Blockwise
    step: Pass
    stores: Mapping[int, ActivationStore]
    partials: Path
    threads: int
    peak_bytes: int


def numbers_of(graph: Graph, statistics: Sequence[int], flat: Array) -> dict[int, Array] | None:
    """Return partial statistics, one behind the other, by node; None if their number differs."""
    shapes = [statistic_of(graph, s).partial_shape for s in statistics]
    counts = [math.prod(shape) for shape in shapes]
    if sum(counts) != flat.size:
        return None
    parts = np.split(flat, np.cumsum(counts)[:-1])
    return {
        s: part.reshape(shape) for s, shape, part in zip(statistics, shapes, parts, strict=True)
    }


def partial_path(partials: Path, number: int) -> Path:
    """Return the file of one block's partial statistics."""
    return partials / f"{number:08d}.f64"


def pass_blocks(job: PassJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Keep nodes and measure statistics, block by block."""
    graph, grid = job.blockwise.network.graph(), job.step.grid(job.blockwise.network.graph())
    fence, copies = context.fence, Copies(graph.device)
    job = replace(job, stores={n: replace(s, fence=fence) for n, s in job.stores.items()})
    with torch_threads(job.threads):
        note_machine(context.journal, machine_of(str(copies.device)))
    pipeline = Pipeline(copies.device, context, job.threads, job.peak_bytes)

    def send(number: int) -> Sent:
        return job.blockwise.send(graph, targets_of(graph, job.step, grid[number]), copies)

    def launch(number: int, sent: Sent | None) -> Launched[Given]:
        return pass_block(job, graph, number, copies, sent)

    for number, launched in pipeline.run(blocks, send, launch):
        with context.block(number), context.stage("model"):
            values, partials = launched()
            for node, kept in values.items():
                job.stores[node].write(grid.index(number), kept)
            if partials.size:
                path = partial_path(job.partials, number)
                with making_room(path.parent):
                    put = write_file if fence is None else fence.put
                    put(path, partials.tobytes())
        yield Step(number, grid[number].size)


def pass_block(
    job: PassJob, graph: Graph, number: int, copies: Copies, sent: Sent | None
) -> Launched[Given]:
    """Compute one block; on the CPU what is kept is written as soon as it is there."""
    step, grid = job.step, job.step.grid(graph)
    ahead = [] if sent is None else [sent]

    def compute(part: Roi) -> Launched[Given]:
        kept: dict[int, Download] = {}
        partials: dict[int, Tensor] = {}
        windows = ahead.pop().taken() if ahead else None
        targets = targets_of(graph, step, part)
        with job.blockwise.network.inference():
            for node, values in job.blockwise.compute(graph, targets, windows):
                partials |= partials_of(graph, step.statistics, node, values, targets[node])
                if node in job.stores:
                    kept[node] = copies.download([for_numpy(values)])
                    if copies.device.type == "cpu":
                        job.stores[node].write(grid.index(number), *kept.pop(node).wait())
            flat = [partials[s].ravel() for s in step.statistics]
            measured = copies.download([torch.cat(flat)] if flat else [])
        whole = together([*kept.values(), measured])

        def given() -> Given:
            arrays = list(whole.wait())
            numbers = arrays.pop() if flat else np.empty(0)
            return dict(zip(kept, arrays, strict=True)), numbers

        return given

    def join(axis: int, low: Given, high: Given) -> Given:
        at = {n: graph.nodes[n].dims.index(axis) for n in low[0]}
        values = {n: np.concatenate([low[0][n], high[0][n]], at[n]) for n in low[0]}
        parts = [numbers_of(graph, step.statistics, flat) or {} for flat in (low[1], high[1])]
        merged = [statistic_of(graph, s).merged(part[s] for part in parts) for s in step.statistics]
        return values, np.concatenate([np.empty(0), *(one.ravel() for one in merged)])

    return within_memory(copies.device, grid[number], partial(alignment_of, graph), compute, join)
