"""The memory of a block backward: it is computed again under autograd, then its gradients are.

What autograd keeps of each op lives until the gradient of the op is known. Windows that were read
and shares of gradients live to the end, as they are handed to autograd and come from it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from volflow.geometry.roi import Roi
from volflow.partition.footprint import live_bytes
from volflow.partition.graph import Graph, last_use, read_by
from volflow.passes.planning.gradient_cost import GradientCost, pieced_box

__all__ = ["BackwardMemory"]

# Tensors of the size of the outputs that a loss makes of them at once.
LOSS_COPIES = 4


@dataclass(frozen=True, eq=False)
class BackwardMemory:
    """The memory of one block of a pass backward.

    Parameters
    ----------
    graph
        The network, traced for training.
    boxes, given
        What is computed and from which nodes, as `volflow.partition.graph.needed` says.
    shares
        Boxes of the nodes whose gradients it begins with: what the pass stores or measures.
    taken
        Those of which readers gave gradients.
    pulled
        Those at which statistics pull.
    moving
        Nodes that have a gradient.
    unread
        Nodes whose values are not computed.
    gradients
        By node, what its gradient takes.
    workspaces
        By node, bytes per voxel that its op takes beside.
    """

    graph: Graph
    boxes: Mapping[int, Roi]
    given: frozenset[int]
    shares: Mapping[int, Roi]
    taken: Collection[int]
    pulled: Collection[int]
    moving: Collection[int]
    unread: Collection[int]
    gradients: Mapping[int, GradientCost]
    workspaces: Mapping[int, float] = field(default_factory=dict)

    def peak_bytes(self) -> int:
        """Return the most bytes alive at once."""
        alive = _Alive()
        for n in self.taken:
            alive.add(("taken", n), self._share(n))
        self._forward(alive)
        self._heads(alive)
        self._backward(alive)
        return alive.peak

    def largest_bytes(self) -> int:
        """Return the bytes of the largest tensor that comes or goes."""
        windows = (self._size(n) for n in self.given if n in self.boxes)
        return max([*windows, *map(self._share, self.taken)], default=0)

    @property
    def _order(self) -> list[int]:
        return [n for n in sorted(self.boxes) if n not in self.given]

    def _value(self, number: int) -> int:
        return self.graph.nodes[number].value_bytes

    def _size(self, number: int) -> int:
        return self._value(number) * self.boxes[number].size

    def _share(self, number: int) -> int:
        return self._value(number) * self.shares[number].size

    def _keepers(self) -> dict[int, set[int]]:
        """Return by node the ops that keep its values."""
        found: dict[int, set[int]] = {n: set() for n in self.boxes}
        for n in self._order:
            if n not in self.moving:
                continue
            cost = self.gradients[n]
            padded = self._padded(n) > 0  # then the copy is kept
            for source, kept in zip(self.graph.nodes[n].inputs, cost.keeps_inputs, strict=True):
                if kept and not padded:
                    found[source].add(n)
            if cost.keeps_output:
                found[n].add(n)
        return found

    def _forward(self, alive: _Alive) -> None:
        keepers, last = self._keepers(), last_use(self.graph, self._order)
        for n in self._order:
            for source in self.graph.nodes[n].inputs:
                if source in self.given and ("values", source) not in alive:
                    alive.add(("values", source), self._size(source))
                    alive.pass_through(self._mapped(source))
            if n not in self.unread:
                alive.add(("values", n), self._size(n))
                alive.pass_through(self._workspace(n))
            if n in self.moving:
                kept = int(self.gradients[n].kept_bytes * self.boxes[n].size)
                alive.add(("kept", n), kept + self._padded(n))
            for source in {*self.graph.nodes[n].inputs, n}:
                done = last.get(source, -1) <= n
                if done and not keepers[source] and not self._held(source):
                    alive.drop(("values", source))

    def _held(self, number: int) -> bool:
        """Return whether values live to the end: leaves of autograd, and results."""
        return number in self.given or number in self.shares

    def _mapped(self, number: int) -> int:
        """Return the bytes of a file in memory while a window is read from it."""
        return self._size(number) if number else 0

    def _padded(self, number: int) -> int:
        """Return the bytes of an input that is copied with its padding, which then is kept."""
        node, box = self.graph.nodes[number], self.boxes[number]
        axes = getattr(node.compute, "axes", ())
        if not axes or not all(hasattr(axis, "overhang") for axis in axes):
            return 0
        edges: list[tuple[int, int]] = [
            axis.overhang(*span) for axis, span in zip(axes, box, strict=True)
        ]
        # A convolution pads alike on both sides by itself.
        if all(low == high and (node.flops or not low) for low, high in edges):
            return 0
        part = read_by(node.reads[0], box)
        sides = [n + low + high for n, (low, high) in zip(part.shape, edges, strict=True)]
        return int(self._value(node.inputs[0]) * math.prod(sides))

    def _workspace(self, number: int) -> int:
        """Return the bytes that an op takes beside its tensors, forward."""
        node = self.graph.nodes[number]
        alone = {n: self.boxes[n] for n in (number, *node.inputs)}
        tensors = sum(self._size(n) for n in alone)
        return live_bytes(self.graph, alone, node.inputs, self.workspaces) - tensors

    def _heads(self, alive: _Alive) -> None:
        """Add the gradients with which autograd begins, one of each share."""
        for n in self.shares:
            if n not in self.taken and n not in self.pulled:  # an output
                alive.add(("taken", n), self._share(n))
                alive.pass_through(LOSS_COPIES * self._share(n))
        for n in self.pulled:
            alive.add(("taken", n), self._share(n))
            # What pulls is made beside what was taken, of values that are read if not computed.
            beside = (n in self.taken) + (n in self.unread)
            alive.pass_through(beside * self._share(n))

    def _backward(self, alive: _Alive) -> None:
        keepers = self._keepers()
        for n, box in self.shares.items():
            if box != self.boxes[n]:  # filled up to the whole
                alive.add(("gradient", n), self._size(n))
        plain = set[int]()
        for n in reversed(self._order):
            node, box = self.graph.nodes[n], self.boxes[n]
            if n in self.moving:
                # A gradient that lies otherwise in memory than the values is copied by some ops.
                copies = bool(node.flops) or node.name.endswith("_norm")
                beside = self._size(n) * (n in plain and copies)
                beside += self.gradients[n].beside_bytes(box, pieced_box(node, box))
                if node.name.startswith("max_pool") or (n in plain and not copies):
                    plain.update(node.inputs)
                alive.pass_through(beside + self._pulled_back(n, alive))
            alive.drop(("gradient", n))
            alive.drop(("kept", n))
            for source in {*node.inputs, n}:
                keepers[source].discard(n)
                if not keepers[source] and not self._held(source):
                    alive.drop(("values", source))

    def _pulled_back(self, number: int, alive: _Alive) -> int:
        """Add the gradients of an op's inputs; return the bytes that this takes for a moment."""
        node, moment = self.graph.nodes[number], 0
        for source, maps in zip(node.inputs, node.reads, strict=True):
            if source in self.moving:
                part = read_by(maps, self.boxes[number])
                cut = self._value(source) * part.size * (part != self.boxes[source])
                moment += cut + self._size(source) * (("gradient", source) in alive)
                alive.add(("gradient", source), self._size(source))
        return moment


class _Alive:
    """Bytes of what is alive, and the most there were."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[str, int], int] = {}
        self.total = self.peak = 0

    def __contains__(self, name: tuple[str, int]) -> bool:
        return name in self.sizes

    def add(self, name: tuple[str, int], size: int) -> None:
        """Count something, once."""
        if name not in self.sizes:
            self.sizes[name] = size
            self.total += size
            self.pass_through(0)

    def pass_through(self, size: int) -> None:
        """Count something that lives for a moment only."""
        self.peak = max(self.peak, self.total + size)

    def drop(self, name: tuple[str, int]) -> None:
        """Forget something."""
        self.total -= self.sizes.pop(name, 0)
