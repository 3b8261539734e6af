"""In which passes over the blocks a network is computed, and what is kept between them.

A pass computes some nodes in every block: it measures statistics, stores nodes in scratch space,
or makes the outputs. Statistics of the whole volume end a pass, since what depends on them must
wait. Behind each pass there is a choice: keep what was computed (the next pass reads it, with a
small margin), or keep nothing and compute it again from the input. The cheapest path through these
choices is found among cuts behind the costly ops, by their computation, the bytes that are kept,
and the block that memory allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, live_bytes, needed

__all__ = ["Pass", "Planner", "Rates", "core", "cuts_of"]

# Sides that blocks are tried with, besides the whole volume.
SIDES = (
    1024, 768, 640, 512, 448, 384, 320, 256, 224, 192, 160, 128, 112, 96, 80, 64, 48, 32, 24, 16, 8,
)  # fmt: skip
# What a pass costs before its first block, and each of its blocks: tasks, files, entries.
PASS_S = 0.3
BLOCK_S = 0.01
# Cuts that are looked at; a network with more costly ops is cut behind some of them.
MOST_CUTS = 26


@dataclass(frozen=True)
class Rates:
    """How fast things go: what the choice of passes rests on.

    Parameters
    ----------
    flops_per_s
        Of convolutions.
    memory_bytes_per_s
        Of all other ops, reading and writing.
    store_bytes_per_s, fetch_bytes_per_s
        Of nodes kept in scratch space.
    """

    flops_per_s: float = 6e10
    memory_bytes_per_s: float = 4e9
    store_bytes_per_s: float = 1e9
    fetch_bytes_per_s: float = 2e9


@dataclass(frozen=True)
class Pass:
    """One pass over all blocks.

    Parameters
    ----------
    given
        Nodes that it reads: the input, and what earlier passes stored.
    stores
        Nodes that it stores; in the last pass the outputs.
    statistics
        What it measures.
    block
        Voxels of the input, per axis.
    peak_bytes, seconds, flops
        Projected: of one block; of all on one worker.
    """

    given: tuple[int, ...]
    stores: tuple[int, ...]
    statistics: tuple[int, ...]
    block: tuple[int, ...]
    peak_bytes: int = 0
    seconds: float = 0.0
    flops: float = 0.0


def core(graph: Graph, number: int, box: Roi) -> Roi:
    """A node's share of a box of the input: shares of blocks tile the node."""
    whole, sizes = graph.sizes(0), graph.sizes(number)
    return Roi(
        tuple(a * m // n for a, m, n in zip(box.start, sizes, whole, strict=True)),
        tuple(b * m // n for b, m, n in zip(box.stop, sizes, whole, strict=True)),
    )


def cuts_of(size: int, side: int) -> list[int]:
    """Where blocks of a side begin along an axis, and its end."""
    return [*range(0, size, side), size]


@dataclass(frozen=True, eq=False)
class Planner:
    """Chooses passes for one graph.

    Parameters
    ----------
    graph
        The network.
    alignment
        Of its blocks.
    memory_bytes
        What tensors and buffers of one block may take.
    rates
        How fast things go.
    input_bytes, output_bytes
        Per voxel of the input as it is read, and of the outputs as they are finished and written.
    scratch_bytes
        What may be kept at a time.
    """

    graph: Graph
    alignment: tuple[int, ...]
    memory_bytes: int
    rates: Rates = field(default_factory=Rates)
    input_bytes: int = 4
    output_bytes: int = 4
    scratch_bytes: int = 2**62
    _known: dict[object, Pass | None] = field(default_factory=dict)

    def choose(self, blocks: Sequence[tuple[int, ...]] | None = None) -> tuple[Pass, ...]:
        """The passes with the least estimated time.

        Parameters
        ----------
        blocks
            Those that the last pass may use, largest first, as the layout of the output wants
            them; any by default.

        Raises
        ------
        MemoryRefused
            Where not even the smallest blocks fit, saying what they take.
        """
        outputs = tuple(sorted(set(self.graph.outputs.values())))
        alone = self._whole(outputs)
        if alone is not None and (blocks is None or alone.block in blocks):
            return (alone,)
        cuts = self.cuts
        best: list[tuple[float, tuple[Pass, ...]] | None] = [None] * len(cuts)
        best[0] = (0.0, ())
        for j in range(1, len(cuts)):
            for i in range(j):
                start = best[i]
                if start is None:
                    continue
                steps = self._between(cuts[i], cuts[j], blocks if j == len(cuts) - 1 else None)
                if steps is None:
                    continue
                seconds = start[0] + sum(step.seconds for step in steps)
                found = best[j]
                if found is None or seconds < found[0]:
                    best[j] = (seconds, (*start[1], *steps))
        last = best[-1]
        if last is None:
            raise self._too_little(outputs, blocks)
        return last[1]

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Node numbers behind which a pass may end: -1 before the first, then to the last.

        A cut lies behind a costly op and the statistics of what it computed.
        """
        nodes = self.graph.nodes
        found = []
        for number, node in enumerate(nodes):
            if self._costly(number):
                last = number
                while last + 1 < len(nodes) and (
                    nodes[last + 1].statistic
                    or not any(a is not None for a in nodes[last + 1].dims)
                ):
                    last += 1
                found.append(last)
            del node
        found = [n for n in found if n < len(nodes) - 1]
        if len(found) > MOST_CUTS:
            # Where little is kept.
            kept = sorted(found, key=lambda n: self._kept_bytes(self._kept(n)))[:MOST_CUTS]
            found = sorted(kept)
        return (-1, *found, len(nodes) - 1)

    def _costly(self, number: int) -> bool:
        """Whether a node's values are dearer to compute than to keep and read."""
        node = self.graph.nodes[number]
        keep = node.dtype.itemsize * (
            1 / self.rates.store_bytes_per_s + 1.5 / self.rates.fetch_bytes_per_s
        )
        return node.flops / self.rates.flops_per_s > keep

    def _kept(self, cut: int) -> frozenset[int]:
        """What must be kept at a cut so that nothing before it is computed again.

        Cheap ops are computed again from the costly ones before them.
        """
        if cut < 0:
            return frozenset({0})
        nodes = self.graph.nodes
        ends = set(self.graph.outputs.values())
        crossing = {
            source
            for number in range(cut + 1, len(nodes))
            for source in nodes[number].inputs
            if source <= cut
        } | {number for number in ends if number <= cut}
        kept, stack = set[int](), list(crossing)
        while stack:
            number = stack.pop()
            if number == 0 or self._costly(number):
                kept.add(number)
            elif not nodes[number].statistic:
                stack.extend(nodes[number].inputs)
        return frozenset(kept)

    def _kept_bytes(self, kept: Iterable[int]) -> int:
        return sum(
            self.graph.nodes[n].value_bytes * math.prod(self.graph.sizes(n)) for n in kept if n
        )

    def _between(
        self, first: int, last: int, blocks: Sequence[tuple[int, ...]] | None
    ) -> list[Pass] | None:
        """The passes from one cut to another; None where they do not fit."""
        end = last == len(self.graph.nodes) - 1
        given = self._kept(first)
        if end:
            stores = tuple(sorted(set(self.graph.outputs.values())))
        else:
            stores = tuple(sorted(self._kept(last) - given - {0}))
            if self._kept_bytes(self._kept(last) | given) > self.scratch_bytes:
                return None
        known = {s for s in self.graph.statistics if s <= first}
        todo = [s for s in self.graph.statistics if first < s <= last]
        steps: list[Pass] = []
        stored = not stores
        while todo or not stored:
            ready = tuple(s for s in todo if self._depends(s) <= known)
            now = () if stored or not self._all_known(stores, given, known) else stores
            step = self._fitted(
                given, now, ready, frozenset(known), blocks if end and now else None
            )
            if step is None:
                return None
            steps.append(step)
            known |= set(ready)
            todo = [s for s in todo if s not in known]
            stored = stored or bool(now)
            if end and stored:
                break
        return steps

    def _depends(self, statistic: int) -> set[int]:
        """The other statistics that one is computed with."""
        return self._above[statistic]

    @cached_property
    def _above(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}
        behind: list[set[int]] = []
        for number, node in enumerate(self.graph.nodes):
            reached: set[int] = set()
            for source in node.inputs:
                reached |= behind[source]
            found[number] = set(reached)
            behind.append(reached | {number} if node.statistic else reached)
        return found

    def _all_known(self, targets: Iterable[int], given: frozenset[int], known: set[int]) -> bool:
        """Whether targets can be computed from what is kept with the statistics known."""
        above = self.graph.above(targets, given | known)
        return not any(self.graph.nodes[n].statistic for n in above)

    def _whole(self, outputs: tuple[int, ...]) -> Pass | None:
        """Everything in one block, statistics included, if it fits."""
        return self.measured(
            Pass((0,), outputs, (), self.graph.sizes(0)), frozenset(), self.memory_bytes
        )

    def _fitted(
        self,
        given: frozenset[int],
        stores: tuple[int, ...],
        statistics: tuple[int, ...],
        known: frozenset[int],
        blocks: Sequence[tuple[int, ...]] | None,
    ) -> Pass | None:
        """The pass with the largest block that fits."""
        key = (given, stores, statistics, known, blocks is None)
        if key not in self._known:
            read = self._read(given, stores, statistics, known)
            found = None
            for block in blocks if blocks is not None else self.blocks:
                step = Pass(read, stores, statistics, block)
                found = self.measured(step, known, self.memory_bytes)
                if found is not None:
                    break
            self._known[key] = found
        return self._known[key]

    def _read(
        self,
        given: frozenset[int],
        stores: tuple[int, ...],
        statistics: tuple[int, ...],
        known: frozenset[int],
    ) -> tuple[int, ...]:
        """Which of the nodes that were kept a pass reads."""
        targets = [*stores, *(self.graph.nodes[s].inputs[0] for s in statistics)]
        stop = set(given) | set(known)
        above = self.graph.above(targets, stop)
        read = {source for n in above for source in self.graph.nodes[n].inputs} | set(targets)
        return tuple(sorted(read & given))

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Blocks to try, largest first; sides are evened out over the volume."""
        sizes = self.graph.sizes(0)
        found = [tuple(sizes)]
        for side in SIDES:
            block = tuple(
                _even(n, max(side, a), a) for n, a in zip(sizes, self.alignment, strict=True)
            )
            if block not in found:
                found.append(block)
        return tuple(found)

    def measured(self, step: Pass, known: frozenset[int], limit_bytes: int) -> Pass | None:
        """A pass with its projected memory and time; None where it does not fit."""
        graph = self.graph
        given = (*step.given, *known)
        # The largest block is one in the middle; if none is, the first.
        sizes = graph.sizes(0)
        middle = Roi(
            tuple((n - 1) // b // 2 * b for n, b in zip(sizes, step.block, strict=True)),
            tuple(
                min(n, (n - 1) // b // 2 * b + b) for n, b in zip(sizes, step.block, strict=True)
            ),
        )
        boxes = needed(graph, self.targets(step, middle), given)
        peak = live_bytes(graph, boxes, given) + self._buffers(step, boxes, middle)
        if peak > limit_bytes:
            return None
        seconds, flops = self._cost(step, given)
        return Pass(step.given, step.stores, step.statistics, step.block, peak, seconds, flops)

    def targets(self, step: Pass, box: Roi) -> dict[int, Roi]:
        """What a block computes: its share of what is stored, and of what is measured."""
        numbers = {*step.stores, *(self.graph.nodes[s].inputs[0] for s in step.statistics)}
        return {number: core(self.graph, number, box) for number in numbers}

    def _buffers(self, step: Pass, boxes: Mapping[int, Roi], box: Roi) -> int:
        """Bytes beside the tensors: what is read, and what is written."""
        read = boxes[0].size * self.input_bytes if 0 in boxes else 0
        ends = set(self.graph.outputs.values())
        write = sum(
            core(self.graph, n, box).size
            * (2 * self.output_bytes if n in ends else self.graph.nodes[n].value_bytes)
            for n in step.stores
        )
        return read + write

    def _cost(self, step: Pass, given: Sequence[int]) -> tuple[float, float]:
        """Seconds and flops of all blocks.

        A box is a product of ranges, one per axis, so that the sum over all blocks of its volume is
        the product of the sums over each axis: blocks along the diagonal show them all.
        """
        graph, sizes = self.graph, self.graph.sizes(0)
        cuts = [cuts_of(n, b) for n, b in zip(sizes, step.block, strict=True)]
        totals: dict[int, list[float]] = {}
        for picks, weights in _diagonal([len(axis) - 1 for axis in cuts]):
            box = Roi(
                tuple(axis[i] for axis, i in zip(cuts, picks, strict=True)),
                tuple(axis[i + 1] for axis, i in zip(cuts, picks, strict=True)),
            )
            for number, part in needed(graph, self.targets(step, box), given).items():
                sums = totals.setdefault(number, [0.0] * graph.ndim)
                for axis, weight in enumerate(weights):
                    sums[axis] += weight * part.shape[axis]
        volumes = {number: math.prod(sums) for number, sums in totals.items()}
        return self._seconds(step, volumes, given), self._flops(volumes, given)

    def _flops(self, volumes: Mapping[int, float], given: Sequence[int]) -> float:
        nodes = self.graph.nodes
        return sum(
            nodes[n].flops * nodes[n].depth * v for n, v in volumes.items() if n not in given
        )

    def _seconds(self, step: Pass, volumes: Mapping[int, float], given: Sequence[int]) -> float:
        nodes, rates = self.graph.nodes, self.rates
        fetched = sum(nodes[n].value_bytes * v for n, v in volumes.items() if n in given)
        moved = sum(2 * nodes[n].value_bytes * v for n, v in volumes.items() if n not in given)
        stored = self._kept_bytes(step.stores)
        return (
            self._flops(volumes, given) / rates.flops_per_s
            + moved / rates.memory_bytes_per_s
            + fetched / rates.fetch_bytes_per_s
            + stored / rates.store_bytes_per_s
            + PASS_S
            + BLOCK_S * self._count(step)
        )

    def _count(self, step: Pass) -> int:
        sizes = self.graph.sizes(0)
        return math.prod(-(-n // b) for n, b in zip(sizes, step.block, strict=True))

    def _too_little(
        self, outputs: tuple[int, ...], blocks: Sequence[tuple[int, ...]] | None
    ) -> MemoryRefused:
        smallest = (blocks or self.blocks)[-1]
        known = frozenset(self.graph.statistics)
        step = self.measured(Pass((0,), outputs, (), smallest), known, 2**62)
        assert step is not None
        sides = "×".join(map(str, smallest))
        return MemoryRefused(
            f"exact inference of a block of {sides} voxels takes {format_bytes(step.peak_bytes)},"
            f" and memory leaves {format_bytes(max(0, self.memory_bytes))}; give more memory, or"
            " use blend='gaussian' with a smaller patch"
        )


def _even(size: int, side: int, step: int) -> int:
    """A side near the one given, a multiple of the step, that cuts the axis into equal parts."""
    count = max(1, -(-size // side))
    return min(size, -(-size // count // step) * step or step)


def _diagonal(counts: Sequence[int]) -> Iterable[tuple[tuple[int, ...], tuple[float, ...]]]:
    """Blocks to look at along all axes at once, and how many of each axis each one stands for.

    Those near both borders are looked at one by one, the others are alike.
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
