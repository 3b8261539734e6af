"""The task of a pass: it keeps activations and measures statistics, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.engine.task import Context, Step
from volflow.model.forward import torch_threads
from volflow.partition.graph import Graph
from volflow.partition.reductions import partials_of
from volflow.passes.activations import ActivationStore, making_room
from volflow.passes.blockwise import Blockwise
from volflow.passes.cost import Pass, targets_of
from volflow.store.atomic import write_file

__all__ = ["PassJob", "partial_path", "pass_blocks"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PassJob:
    """A pass that keeps activations or measures statistics.

    Parameters
    ----------
    blockwise
        The image, the network, and what earlier passes kept and measured.
    step
        What the pass computes, in which blocks.
    stores
        Where nodes are kept.
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


def partial_path(partials: Path, number: int) -> Path:
    """Return the file of one block's partial statistics."""
    return partials / f"{number:08d}.f64"


def pass_blocks(job: PassJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Keep nodes and measure statistics, block by block."""
    graph = job.blockwise.network.graph()
    context.trim()
    for number in blocks:
        context.trim(job.peak_bytes)
        with context.block(number), context.stage("model"), torch_threads(job.threads):
            size = pass_block(job, graph, number)
        yield Step(number, size)


def pass_block(job: PassJob, graph: Graph, number: int) -> int:
    """Compute one block; returns its voxels."""
    step, block = job.step, job.step.grid(graph)[number]
    targets, partials = targets_of(graph, step, block.write_roi), dict[int, Array]()
    with job.blockwise.network.inference():
        for node, values in job.blockwise.compute(graph, targets):
            partials |= partials_of(graph, step.statistics, node, values)
            if node in job.stores:
                plain = values.float() if values.dtype == torch.bfloat16 else values
                job.stores[node].write(block.index, plain.numpy(force=True))
    if partials:
        flat = np.concatenate([partials[s].ravel() for s in step.statistics])
        path = partial_path(job.partials, number)
        with making_room(path.parent):
            write_file(path, flat.tobytes())
    return block.write_roi.size
