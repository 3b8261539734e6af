"""Tasks that training has beside those of exact inference: the last pass, and passes backward.

A group of blocks is done when the file of its sums is there, which is written after all that it
gives. What it alone has read is then deleted; nobody else reads that, and the group is not run
again. So it has its inputs whenever it runs, wherever it was stopped before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.engine.task import Context, Step
from volflow.errors import RunFailed
from volflow.geometry.grid import BlockGrid
from volflow.model.forward import torch_threads
from volflow.partition.gradients import Gradients, Segmented, backward_block, forward_block
from volflow.partition.graph import Window
from volflow.passes.activations import ActivationStore, making_room
from volflow.passes.backward.board import DiskBoard
from volflow.passes.backward.contributions import Contributions
from volflow.passes.backward.heads import Head
from volflow.passes.backward.totals import Totals, groups_of
from volflow.passes.cost import Pass
from volflow.passes.keeping import partial_path
from volflow.passes.network import Blockwise, for_numpy
from volflow.store.atomic import write_file

__all__ = ["BackwardJob", "LastJob", "backward_groups", "last_blocks", "release", "totals_path"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LastJob:
    """The last pass forward: outputs go to a head.

    Parameters
    ----------
    blockwise
        The image, the network, and what earlier passes kept and measured.
    steps
        All passes.
    sizes
        Sides of the volume without its padding.
    head
        Takes the outputs.
    sums
        Folder of the sums of each block.
    threads, peak_bytes
        Torch threads, and the projected memory of a block.
    """

    blockwise: Blockwise
    steps: tuple[Pass, ...]
    sizes: tuple[int, ...]
    head: Head
    sums: Path
    threads: int
    peak_bytes: int


def last_blocks(job: LastJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Compute the outputs of blocks and hand them to the head."""
    network = job.blockwise.network
    graph, last = network.graph(), len(job.steps) - 1
    net = Segmented(graph, job.steps, job.sizes)
    board, grid = DiskBoard(graph, job.blockwise), job.steps[-1].grid(graph)
    for number in blocks:
        context.trim(job.peak_bytes)
        context.check()
        with context.block(number), context.stage("model"), torch_threads(job.threads):
            with network.training(), torch.no_grad():
                sums = _received(job.head, forward_block(net, last, grid[number], board))
            path = partial_path(job.sums, number)
            with making_room(path.parent):
                write_file(path, sums.tobytes())
        yield Step(number, grid[number].size)


def _received(head: Head, computed: Iterable[tuple[int, Window, Any]]) -> Array:
    """Return the sums that a head makes of the outputs of a block, which are let go."""
    shares = {node: share for node, share, _ in computed}
    if not shares:
        return np.empty(0)
    boxes = {node: share.box for node, share in shares.items()}
    return head.receive({node: share.values for node, share in shares.items()}, boxes)


@dataclass(frozen=True, eq=False)
class BackwardJob:
    """A pass backward.

    Parameters
    ----------
    blockwise, steps, sizes
        As for `LastJob`.
    number
        Of the pass.
    takes
        What readers gave of the nodes that it stores.
    rereads
        What it stored and reads again; nobody else does any more.
    pulls
        Gradients of the statistics that it measures.
    gives
        Where gradients of windows go, by given node.
    totals
        Folder of the sums of each group.
    head
        Gives the gradients of the outputs; for the last pass.
    threads, peak_bytes
        Torch threads, and the projected memory of a block.
    """

    blockwise: Blockwise
    steps: tuple[Pass, ...]
    sizes: tuple[int, ...]
    number: int
    takes: Mapping[int, Contributions]
    rereads: Mapping[int, ActivationStore]
    pulls: Mapping[int, Array]
    gives: Mapping[int, Contributions]
    totals: Path
    threads: int
    peak_bytes: int
    head: Head | None = None


def totals_path(totals: Path, group: int) -> Path:
    """Return the file of the sums of a group of blocks."""
    return totals / f"{group:08d}.npz"


def backward_groups(job: BackwardJob, groups: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Run groups of blocks backward."""
    network = job.blockwise.network
    graph = network.graph()
    net, grid = Segmented(graph, job.steps, job.sizes), job.steps[job.number].grid(graph)
    stores = {**job.blockwise.stores, **job.rereads}
    board = DiskBoard(graph, replace(job.blockwise, stores=stores), job.takes, job.pulls)
    upstream = None if job.head is None else job.head.upstream
    blocks_of = groups_of(len(grid))

    def backward(number: int) -> Gradients:
        with context.stage("model"), torch_threads(job.threads), network.training():
            return backward_block(
                net, job.number, grid[number], board, upstream, image=0 in job.gives
            )

    for group in groups:
        totals, done = Totals(), totals_path(job.totals, group)
        with context.block(group):
            for number in blocks_of[group]:
                context.trim(job.peak_bytes)
                context.check()
                found = _unless_done(done, backward, number)
                if found is None:
                    break
                with context.stage("write"):
                    _give(job, number, found)
                    totals.add(Totals.of(found))
                del found  # before the next block is begun
                if number != blocks_of[group][-1]:
                    yield Step(None, grid[number].size)
            else:
                totals.write(done)
            release(job, grid, blocks_of[group])
        yield Step(group, grid[blocks_of[group][-1]].size)


def _give(job: BackwardJob, block: int, found: Gradients) -> None:
    """Write the gradients of the windows that a block has read."""
    for node, window in found.windows.items():
        values = for_numpy(window.values).cpu().numpy()
        job.gives[node].write(job.number, block, window.box, values)


def _unless_done(done: Path, backward: Callable[[int], Gradients], number: int) -> Gradients | None:
    """Return what a block gives; None if its group is done, by a task that was thought lost."""
    if done.exists():
        return None
    try:
        return backward(number)
    except RunFailed:
        # What it reads may be deleted, if the group was done meanwhile.
        if not done.exists():
            raise
        return None


def release(job: BackwardJob, grid: BlockGrid, blocks: Iterable[int]) -> None:
    """Delete what blocks of a group that is done have read, and nobody will read again."""
    for number in blocks:
        index = grid.index(number)
        for taken in job.takes.values():
            taken.release(index)
        for kept in job.rereads.values():
            kept.release(index)
