"""Choose the passes over the blocks in which a network is computed, and what each one keeps.

A pass computes some nodes in every block: it measures statistics, stores nodes in scratch space,
or makes the outputs. Statistics of the whole volume end a pass, since all that depends on them must
wait. Behind each pass there is a choice: keep what was computed (the next pass reads it, with a
small margin), or keep nothing and compute it again from the input. The cheapest path through these
choices is found among cuts behind the costly ops, by their computation, the bytes that are kept,
and the block that memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.partition.graph import Graph
from volflow.passes.cost import FETCH_BYTES_PER_S, STORE_BYTES_PER_S, UNLIMITED, Costs, Pass

__all__ = ["SIDES", "Planner"]

# Sides of blocks that are tried, besides the whole volume.
SIDES = (
    1024, 768, 640, 512, 448, 384, 320, 256, 224, 192, 160, 128, 112, 96, 80, 64, 48, 32, 24, 16, 8,
)  # fmt: skip
WHOLE = 2**62
# Cuts that are considered; a network with more costly ops is cut behind some of them.
MOST_CUTS = 26


@dataclass(frozen=True, eq=False)
class Planner:
    """Chooses passes for one graph.

    Parameters
    ----------
    costs
        Projects memory and time of passes over the graph.
    alignment
        Divides the sides of blocks, per axis.
    memory_bytes
        Budget of the tensors and buffers of one block.
    scratch_bytes
        Budget of what is kept at a time.
    sides
        Sides of blocks that are tried, largest first.
    device_bytes
        Budget of one block in the memory of a GPU, if one computes.
    """

    costs: Costs
    alignment: tuple[int, ...]
    memory_bytes: int
    scratch_bytes: int = 2**62
    sides: tuple[int, ...] = (WHOLE, *SIDES)
    device_bytes: int = UNLIMITED
    _known: dict[object, Pass | None] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The graph of the network."""
        return self.costs.graph

    def choose(self, blocks: Sequence[tuple[int, ...]] | None = None) -> tuple[Pass, ...]:
        """Return the passes with the least estimated time.

        Parameters
        ----------
        blocks
            Blocks that the last pass may use, largest first, as the layout of the output allows;
            any by default.

        Raises
        ------
        MemoryRefused
            If not even the smallest blocks fit, naming the memory that they take.
        """
        step = Pass((0,), self.graph.ends, (), self.graph.sizes(0))  # one block, statistics and all
        alone = self.fitted(step)
        if alone is not None and blocks is not None and alone.block not in blocks:
            alone = None
        if alone is not None and self.costs.workers == 1:
            return (alone,)
        found = self._path(blocks, lambda before, steps: before + sum(s.seconds for s in steps))
        if alone is not None and (found is None or alone.seconds <= found[0]):
            return (alone,)
        if found is None:
            raise self._too_little(blocks)
        return found[1]

    def fitted(self, step: Pass, known: frozenset[int] = frozenset()) -> Pass | None:
        """Return a pass with its projected memory and time; None if it exceeds a budget."""
        return self.costs.measured(step, known, self.memory_bytes, self.device_bytes)

    def enough(self, blocks: Sequence[tuple[int, ...]] | None = None) -> tuple[int, int]:
        """Return budgets in which the smallest blocks fit: of a worker's memory, and of a GPU's.

        The second stays as it is if the first can make room alone, and the first if the second can;
        both where a tensor has more values than a GPU's kernels can count, however small the block.

        Parameters
        ----------
        blocks
            As for `choose`.
        """
        given = self.memory_bytes, self.device_bytes
        memory = self._least(blocks, "peak_bytes", UNLIMITED, self.device_bytes)
        if memory is not None:
            return memory, given[1]
        device = self._least(blocks, "device_peak_bytes", given[0], UNLIMITED)
        if device is not None:
            return given[0], device
        device = self._least(blocks, "device_peak_bytes", UNLIMITED, UNLIMITED)
        if device is None:  # one pass that keeps nothing always is a way, but for what GPUs count
            return given
        memory = self._least(blocks, "peak_bytes", UNLIMITED, device)
        assert memory is not None
        return memory, device

    def _least(
        self,
        blocks: Sequence[tuple[int, ...]] | None,
        peak: str,
        memory_bytes: int,
        device_bytes: int,
    ) -> int | None:
        """Return the least of a peak for the smallest blocks in two budgets; None if none fit."""
        small = replace(
            self,
            memory_bytes=memory_bytes,
            device_bytes=device_bytes,
            sides=self.sides[-1:],
            _known={},
        )
        found = small._path(
            None if blocks is None else blocks[-1:],
            lambda before, steps: max([before, *(getattr(s, peak) for s in steps)]),
        )
        return None if found is None else int(found[0])

    def _path(
        self,
        blocks: Sequence[tuple[int, ...]] | None,
        value: Callable[[float, list[Pass]], float],
    ) -> tuple[float, tuple[Pass, ...]] | None:
        """Return the passes of least value, and that value; None if none fit."""
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
                reached = value(start[0], steps)
                found = best[j]
                if found is None or reached < found[0]:
                    best[j] = (reached, (*start[1], *steps))
        return best[-1]

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Node numbers behind which a pass may end: -1 before the first, then to the last.

        A cut lies behind a costly op and the statistics of what it computed.
        """
        nodes = self.graph.nodes
        found = []
        for number in range(len(nodes)):
            if self._costly(number):
                last = number
                while last + 1 < len(nodes) and (
                    nodes[last + 1].statistic or not nodes[last + 1].has_axes
                ):
                    last += 1
                found.append(last)
        found = [n for n in found if n < len(nodes) - 1]
        if len(found) > MOST_CUTS:
            # Only the cuts at which the least is kept.
            kept = sorted(found, key=lambda n: self.costs.kept_bytes(self._kept(n)))[:MOST_CUTS]
            found = sorted(kept)
        return (-1, *found, len(nodes) - 1)

    def _costly(self, number: int) -> bool:
        """Return whether a node's values cost more to compute than to keep and read."""
        node = self.graph.nodes[number]
        if not node.flops or node.dims[:2] != (None, None) or None in node.dims[2:]:
            return False
        keep = 1 / STORE_BYTES_PER_S + 1.5 / FETCH_BYTES_PER_S
        return self.costs.seconds_of(number) > keep * node.value_bytes

    def _kept(self, cut: int) -> frozenset[int]:
        """Return the nodes to keep at a cut so that no costly op before it is computed again.

        Cheap ops are computed again from the costly ones before them.
        """
        if cut < 0:
            return frozenset({0})
        nodes = self.graph.nodes
        crossing = {
            source
            for number in range(cut + 1, len(nodes))
            for source in nodes[number].inputs
            if source <= cut
        } | {number for number in self.graph.ends if number <= cut}
        kept, stack = set[int](), list(crossing)
        while stack:
            number = stack.pop()
            if number == 0 or self._costly(number):
                kept.add(number)
            elif not nodes[number].statistic:
                stack.extend(nodes[number].inputs)
        return frozenset(kept)

    def _between(
        self, first: int, last: int, blocks: Sequence[tuple[int, ...]] | None
    ) -> list[Pass] | None:
        """Return the passes from one cut to another; None if they do not fit."""
        end = last == len(self.graph.nodes) - 1
        given = self._kept(first)
        if end:
            stores = self.graph.ends
        else:
            stores = tuple(sorted(self._kept(last) - given - {0}))
            if self.costs.kept_bytes(self._kept(last) | given) > self.scratch_bytes:
                return None
        known = {s for s in self.graph.statistics if s <= first}
        todo = [s for s in self.graph.statistics if first < s <= last]
        steps: list[Pass] = []
        stored = not stores
        while todo or not stored:
            ready = tuple(s for s in todo if self._above[s] <= known)
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

    @cached_property
    def _above(self) -> dict[int, set[int]]:
        """By statistic, the other statistics that it depends on."""
        nodes, statistics = self.graph.nodes, set(self.graph.statistics)
        return {s: {*self.graph.above(nodes[s].inputs, ())} & statistics for s in statistics}

    def _all_known(self, targets: Iterable[int], given: frozenset[int], known: set[int]) -> bool:
        """Return whether targets follow from what is kept and the statistics known."""
        above = self.graph.above(targets, given | known)
        return not any(self.graph.nodes[n].statistic for n in above)

    def _fitted(
        self,
        given: frozenset[int],
        stores: tuple[int, ...],
        statistics: tuple[int, ...],
        known: frozenset[int],
        blocks: Sequence[tuple[int, ...]] | None,
    ) -> Pass | None:
        """Return the pass with the largest block that fits, or one that keeps more workers busy."""
        key = (given, stores, statistics, known, blocks is None)
        if key not in self._known:
            # Of the nodes that were kept those that the pass reads.
            targets = {*stores, *(self.graph.nodes[s].inputs[0] for s in statistics)}
            above = self.graph.above(targets, given | known)
            sources = {source for n in above for source in self.graph.nodes[n].inputs}
            read = tuple(sorted((sources | targets) & given))
            found: Pass | None = None
            for block in blocks if blocks is not None else self.blocks:
                step = Pass(read, stores, statistics, block)
                tried = self.fitted(step, known)
                if tried is None:
                    continue
                if found is not None and tried.seconds >= found.seconds:
                    break
                found = tried
                if self.costs.workers == 1:
                    break
            self._known[key] = found
        return self._known[key]

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Blocks to try, largest first; sides are evened out over the volume."""
        sizes = self.graph.sizes(0)
        found: list[tuple[int, ...]] = []
        for side in self.sides:
            block = tuple(
                _even(n, max(side, a), a) for n, a in zip(sizes, self.alignment, strict=True)
            )
            if block not in found:
                found.append(block)
        return tuple(found)

    def _too_little(self, blocks: Sequence[tuple[int, ...]] | None) -> MemoryRefused:
        sides, least = "×".join(map(str, (blocks or self.blocks)[-1])), self.enough(blocks)
        wants = [
            f"takes {format_bytes(most)}, and {name} leaves {format_bytes(max(0, given))}"
            for name, most, given in zip(
                ("memory", "device_memory"), least, (self.memory_bytes, self.device_bytes),
                strict=True,
            )
            if most > given
        ]  # fmt: skip
        return MemoryRefused(
            f"exact inference in blocks of {sides} voxels {', and '.join(wants)}; give more, or use"
            " blend='gaussian' with a smaller patch"
        )


def _even(size: int, side: int, step: int) -> int:
    """Return a multiple of the step, near the given side, that cuts the axis into equal parts."""
    count = max(1, -(-size // side))
    return min(size, -(-size // count // step) * step or step)
