"""One pass over the blocks of a network: its work, its cost, and a description of both.

A box is a product of ranges, one per axis, so that the sum over all blocks of its volume is the
product of the sums over each axis: blocks along the diagonal of the volume show them all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, needed
from volflow.partition.segments import Segment, core, targets_of
from volflow.passes.peaks import BlockMemory, VoxelBytes

__all__ = ["UNLIMITED", "Cost", "Costs", "Pass", "duration", "pass_facts"]

UNLIMITED = 2**62
# More than any budget.
BEYOND = 2**63
# Overhead of a pass before its first block, and of each block: tasks, files, journal entries.
PASS_S = 0.3
BLOCK_S = 0.01
# Rates of convolutions, and of all other ops, reading and writing, if no op was timed.
FLOPS_PER_S = 6e10
MEMORY_BYTES_PER_S = 4e9
# Rates of writing and reading kept activations.
STORE_BYTES_PER_S = 1e9
FETCH_BYTES_PER_S = 2e9


@dataclass(frozen=True)
class Cost:
    """Cost of an op per voxel of its output (of its input, for a statistic).

    Parameters
    ----------
    seconds
        Time on one worker.
    workspace_bytes
        Memory beside its input and output while it runs.
    """

    seconds: float
    workspace_bytes: float


@dataclass(frozen=True)
class Pass(Segment):
    """One pass over all blocks: a segment, and how it is cut and what it takes.

    Parameters
    ----------
    given, stores, statistics
        As for the segment.
    block
        Sides of a block in voxels of the input, per axis.
    peak_bytes, seconds, flops
        Projected memory of one block, time of all blocks shared by the workers, and floating-point
        operations of all blocks.
    device_peak_bytes
        Projected memory of one block on a GPU; 0 where the CPU computes.
    """

    block: tuple[int, ...]
    peak_bytes: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    device_peak_bytes: int = 0

    def grid(self, graph: Graph) -> BlockGrid:
        """Return the blocks, boxes of the input."""
        return BlockGrid(graph.sizes(0), self.block)

    def middle(self, graph: Graph) -> Roi:
        """Return the block that needs the most: one in the middle; if none is, the first."""
        grid = self.grid(graph)
        return grid[grid.number([(n - 1) // 2 for n in grid.counts])]


@dataclass(frozen=True, eq=False)
class Costs:
    """Projects memory and time of passes.

    Parameters
    ----------
    graph
        The network.
    voxel
        Bytes of a voxel beside tensors.
    ops
        Measured costs of ops, by node.
    workers
        Number of workers that share the blocks of a pass.
    on_gpu
        Whether a GPU computes, beside whose memory that of a worker holds what is read and written.
    store_bytes_per_s, fetch_bytes_per_s
        Rates at which what is kept is written and read.
    """

    graph: Graph
    voxel: VoxelBytes = field(default_factory=VoxelBytes)
    ops: Mapping[int, Cost] = field(default_factory=dict)
    workers: int = 1
    on_gpu: bool = False
    store_bytes_per_s: float = STORE_BYTES_PER_S
    fetch_bytes_per_s: float = FETCH_BYTES_PER_S

    def seconds_of(self, number: int) -> float:
        """Return the seconds that one voxel of a node takes."""
        if number in self.ops:
            return self.ops[number].seconds
        node = self.graph.nodes[number]
        moved = 2 * node.value_bytes / MEMORY_BYTES_PER_S
        return node.flops * node.depth / FLOPS_PER_S + moved

    def worth_keeping(self, number: int) -> bool:
        """Return whether a node's values cost more to compute than to keep and read."""
        keep = 1 / self.store_bytes_per_s + 1.5 / self.fetch_bytes_per_s
        return self.seconds_of(number) > keep * self.graph.nodes[number].value_bytes

    def measured(
        self,
        step: Pass,
        known: frozenset[int],
        limit_bytes: int,
        device_limit_bytes: int = UNLIMITED,
    ) -> Pass | None:
        """Return a pass with its projected memory and time; None if it does not fit.

        Parameters
        ----------
        step, known
            The pass, and the statistics that are known.
        limit_bytes, device_limit_bytes
            Budgets of a block in the memory of a worker, and of a GPU if one computes.
        """
        peak, device_peak = self.peaks(step, known)
        if peak > limit_bytes or device_peak > device_limit_bytes:
            return None
        given = (*step.given, *known)
        volumes = self.volumes(step, given)
        return replace(
            step,
            peak_bytes=peak,
            seconds=self.seconds(step, volumes, given),
            flops=self.flops(volumes, given),
            device_peak_bytes=device_peak,
        )

    def peaks(self, step: Pass, known: frozenset[int]) -> tuple[int, int]:
        """Return the most bytes of a block: of a worker's memory, and of a GPU's.

        The second is unlimited where a tensor has more values than a GPU's kernels can count.
        """
        graph, given = self.graph, (*step.given, *known)
        middle = step.middle(graph)
        boxes = needed(graph, targets_of(graph, step, middle), given)
        memory = BlockMemory(
            graph,
            boxes,
            frozenset(given),
            {n: core(graph, n, middle).size for n in step.stores},
            self._summed(step, boxes, given),
            self.voxel,
            self.workspaces,
        )
        if not self.on_gpu:
            return memory.on_cpu(), 0
        most = memory.on_gpu() if memory.fits_counters() else BEYOND
        return memory.beside_gpu(), most

    def _summed(self, step: Pass, boxes: Mapping[int, Roi], given: Sequence[int]) -> frozenset[int]:
        """Return the nodes whose statistics a block measures: parts of them, or all at once."""
        nodes = self.graph.nodes
        within = [n for n in boxes if nodes[n].statistic and n not in given]
        return frozenset(nodes[s].inputs[0] for s in (*step.statistics, *within))

    def flops(self, volumes: Mapping[int, float], given: Sequence[int]) -> float:
        """Return the floating-point operations on the voxels that all blocks need."""
        nodes = self.graph.nodes
        computed = {n: volume for n, volume in volumes.items() if n not in given}
        return sum(nodes[n].flops * nodes[n].depth * v for n, v in computed.items())

    def volumes(self, step: Pass, given: Sequence[int]) -> dict[int, float]:
        """Return by node the voxels that all blocks need of it, those in margins each time."""
        graph, grid = self.graph, step.grid(self.graph)
        totals: dict[int, list[float]] = {}
        for picks, weights in _diagonal(grid.counts):
            box = grid[grid.number(picks)]
            for number, part in needed(graph, targets_of(graph, step, box), given).items():
                sums = totals.setdefault(number, [0.0] * graph.ndim)
                for axis, weight in enumerate(weights):
                    sums[axis] += weight * part.shape[axis]
        return {number: math.prod(sums) for number, sums in totals.items()}

    def seconds(self, step: Pass, volumes: Mapping[int, float], given: Sequence[int]) -> float:
        """Return the time of a pass whose blocks need so many voxels of each node."""
        nodes = self.graph.nodes
        fetched = sum(nodes[n].value_bytes * v for n, v in volumes.items() if n in given)
        computed = sum(self.seconds_of(n) * v for n, v in volumes.items() if n not in given)
        measured = sum(
            self.seconds_of(s) * math.prod(self.graph.sizes(nodes[s].inputs[0]))
            for s in step.statistics
        )
        stored = self.kept_bytes(n for n in step.stores if n not in self.graph.ends)
        moved = fetched / self.fetch_bytes_per_s + stored / self.store_bytes_per_s
        return self.shared(step, computed + measured + moved)

    def shared(self, step: Pass, seconds: float) -> float:
        """Return the time of a pass whose blocks take so many seconds on one worker."""
        count = len(step.grid(self.graph))
        rounds = -(-count // self.workers) / count  # of all blocks, when no worker waits
        return PASS_S + rounds * (seconds + BLOCK_S * count)

    @cached_property
    def workspaces(self) -> dict[int, float]:
        """By node, the bytes per voxel that its op takes beside."""
        return {number: cost.workspace_bytes for number, cost in self.ops.items()}

    def kept_bytes(self, kept: Iterable[int]) -> int:
        """Return the bytes of whole nodes."""
        return self.graph.bytes_of(n for n in kept if n)


def _diagonal(counts: Sequence[int]) -> Iterable[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Yield blocks along the diagonal, and how many blocks of each axis each one stands for.

    Those near both borders stand for themselves, the others are alike.
    """
    most = 4
    rows = []
    for count in counts:
        if count <= 2 * most + 1:
            rows.append([(i, 1.0) for i in range(count)])
        else:
            edge = [(i, 1.0) for i in (*range(most), *range(count - most, count))]
            rows.append([*edge, (count // 2, float(count - 2 * most))])
    for n in range(max(len(row) for row in rows)):
        picks = [row[n] if n < len(row) else (row[-1][0], 0.0) for row in rows]
        yield tuple(i for i, _ in picks), tuple(weight for _, weight in picks)


def pass_facts(graph: Graph, passes: Sequence[Pass]) -> tuple[tuple[str, str], ...]:
    """Return a plan's facts on passes: their number and cost, then a line for each."""
    seconds = sum(step.seconds for step in passes)
    whole = sum(
        node.flops * node.depth * math.prod(graph.sizes(n)) for n, node in enumerate(graph.nodes)
    )
    computed = sum(step.flops for step in passes)
    facts = [
        (
            "passes",
            f"{len(passes)}, computing {computed / whole if whole else 1:.2f}× the network,"
            f" about {duration(seconds)}",
        )
    ]
    for number, step in enumerate(passes, start=1):
        facts.append((f"pass {number}", _describe(graph, step, number == len(passes))))
    return tuple(facts)


def _describe(graph: Graph, step: Pass, last: bool) -> str:
    text = f"blocks of {'×'.join(map(str, step.block))}"
    read = [n for n in step.given if n]
    if read:
        text += f", reads {format_bytes(graph.bytes_of(read))}"
    if step.statistics:
        text += f", measures {len(step.statistics)} statistics"
    if step.stores and not last:
        text += f", keeps {format_bytes(graph.bytes_of(step.stores))}"
    text += f", {format_bytes(step.peak_bytes)}"
    if step.device_peak_bytes:
        text += f" and {format_bytes(step.device_peak_bytes)} on the device"
    return text + f", about {duration(step.seconds)}"


def duration(seconds: float) -> str:
    """Return seconds in words: of seconds, minutes or hours."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
