"""Where a network may be cut into passes, and the passes from one cut to another.

A pass computes some nodes in every block: it measures statistics, stores nodes in scratch space,
or makes the outputs. Statistics of the whole volume end a pass, since all that depends on them must
wait. Behind each pass there is a choice: keep what was computed (the next pass reads it, with a
small margin), or keep nothing and compute it again from what was kept before. A cut is a place
where something is kept, behind an op that costs more to compute than to keep and read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from volflow.partition.graph import Graph
from volflow.passes.cost import Pass

__all__ = ["SIDES", "WHOLE", "Cuts", "PassCosts"]

# Sides of blocks that are tried, besides the whole volume.
SIDES = (
    1024, 768, 640, 512, 448, 384, 320, 256, 224, 192, 160, 128, 112, 96, 80, 64, 48, 32, 24, 16, 8,
)  # fmt: skip
WHOLE = 2**62
# Cuts that are considered; a network with more costly ops is cut behind some of them.
MOST_CUTS = 26


class PassCosts(Protocol):
    """What passes over a graph cost."""

    @property
    def graph(self) -> Graph:
        """The graph of the network."""

    @property
    def workers(self) -> int:
        """Number of workers that share the blocks of a pass."""

    def worth_keeping(self, number: int) -> bool:
        """Return whether a node's values cost more to compute than to keep and read."""

    def kept_bytes(self, kept: Iterable[int]) -> int:
        """Return the bytes that whole nodes take where they are kept."""


@dataclass(frozen=True, eq=False)
class Cuts:
    """The cuts of a graph, and the passes from one to another.

    Parameters
    ----------
    costs
        Of passes over the graph.
    fitted
        Returns a pass with its projected memory and time, given the statistics that are known;
        None if it exceeds a budget.
    alignment
        Divides the sides of blocks, per axis.
    sides
        Sides of blocks that are tried, largest first.
    scratch_bytes
        Budget of what is kept at a time.
    ends
        Blocks that the last pass may use, largest first; any by default.
    forgotten
        Nodes that are not kept, whatever they cost.
    """

    costs: PassCosts
    fitted: Callable[[Pass, frozenset[int]], Pass | None]
    alignment: tuple[int, ...]
    sides: tuple[int, ...]
    scratch_bytes: int
    ends: Sequence[tuple[int, ...]] | None = None
    forgotten: frozenset[int] = frozenset()
    _known: dict[object, Pass | None] = field(default_factory=dict)
    _found: dict[tuple[int, int], list[Pass] | None] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        """The graph of the network."""
        return self.costs.graph

    @cached_property
    def places(self) -> tuple[int, ...]:
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
            kept = sorted(found, key=lambda n: self.costs.kept_bytes(self.kept(n)))[:MOST_CUTS]
            found = sorted(kept)
        return (-1, *found, len(nodes) - 1)

    def _costly(self, number: int) -> bool:
        """Return whether a node is kept at the cuts that its values cross."""
        node = self.graph.nodes[number]
        if not node.flops or not node.is_image:
            return False
        return number not in self.forgotten and self.costs.worth_keeping(number)

    def kept(self, cut: int) -> frozenset[int]:
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

    def between(self, first: int, last: int) -> list[Pass] | None:
        """Return the passes from one cut to another; None if they do not fit."""
        if (first, last) not in self._found:
            self._found[first, last] = self._between(first, last)
        return self._found[first, last]

    def _between(self, first: int, last: int) -> list[Pass] | None:
        end = last == len(self.graph.nodes) - 1
        given = self.kept(first)
        if end:
            stores = self.graph.ends
        else:
            stores = tuple(sorted(self.kept(last) - given - {0}))
            if self.costs.kept_bytes(self.kept(last) | given) > self.scratch_bytes:
                return None
        known = {s for s in self.graph.statistics if s <= first}
        todo = [s for s in self.graph.statistics if first < s <= last]
        steps: list[Pass] = []
        stored = not stores
        while todo or not stored:
            ready = tuple(s for s in todo if self._above[s] <= known)
            now = () if stored or not self._all_known(stores, given, known) else stores
            blocks = self.ends if end and now and self.ends is not None else self.blocks
            step = self._largest(given, now, ready, frozenset(known), blocks)
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

    def _largest(
        self,
        given: frozenset[int],
        stores: tuple[int, ...],
        statistics: tuple[int, ...],
        known: frozenset[int],
        blocks: Sequence[tuple[int, ...]],
    ) -> Pass | None:
        """Return the pass with the largest block that fits, or one that keeps more workers busy."""
        key = (given, stores, statistics, known, blocks is self.blocks)
        if key not in self._known:
            # Of the nodes that were kept those that the pass reads.
            targets = {*stores, *(self.graph.nodes[s].inputs[0] for s in statistics)}
            above = self.graph.above(targets, given | known)
            sources = {source for n in above for source in self.graph.nodes[n].inputs}
            read = tuple(sorted((sources | targets) & given))
            found: Pass | None = None
            for block in blocks:
                tried = self.fitted(Pass(read, stores, statistics, block), known)
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


def _even(size: int, side: int, step: int) -> int:
    """Return a multiple of the step, near the given side, that cuts the axis into equal parts."""
    count = max(1, -(-size // side))
    return min(size, -(-size // count // step) * step or step)
