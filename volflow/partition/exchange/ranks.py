"""A step of training whose tensors are divided over processes: what each holds, and when it asks.

Each process computes its own share of every segment. Between the forward and the backward half it
keeps one window of each stored node, as wide as the segments that read it need; everything else is
computed again. Windows are put together behind the segment that stores a node, and gradients go
back before that segment runs backward, so that there is one exchange per segment and direction.
Every process takes part in each, even if its share is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.exchange.gathering import added, rows_of, summed_over
from volflow.partition.exchange.mesh import Mesh
from volflow.partition.exchange.moving import Exchange, blank
from volflow.partition.exchange.portions import portion_bytes, portions_of
from volflow.partition.exchange.routes import shares_of, windows_of
from volflow.partition.gradients import (
    BlockLoss,
    Segmented,
    Upstream,
    backward_block,
    forward_block,
)
from volflow.partition.graph import Window, crop
from volflow.partition.reductions import Partial, statistic_of

__all__ = ["Rank"]


@dataclass(eq=False)
class Rank:
    """What one process reads and leaves in a step.

    Parameters
    ----------
    net
        The network.
    mesh
        The processes.
    boxes
        The box of the padded image that each process of this volume owns, by rank.
    read
        Returns a box of the padded image, with the dims of the input.
    portion_bytes
        What a portion of a share reads and makes, about; by default a small part of what is kept.
    outputs
        Of each output, the part of this process that lies in the volume, once it was computed.
    """

    net: Segmented
    mesh: Mesh
    boxes: Sequence[Roi]
    read: Callable[[Roi], Tensor]
    portion_bytes: int | None = None
    outputs: dict[int, Window] = field(default_factory=dict, init=False)
    _windows: dict[int, Window] = field(default_factory=dict, init=False)
    _statistics: dict[int, Partial] = field(default_factory=dict, init=False)
    # Backward: of windows and values, what this process gives; of shares, what all have given.
    _given: dict[int, Window] = field(default_factory=dict, init=False)
    _pulls: dict[int, Tensor] = field(default_factory=dict, init=False)
    _taken: dict[int, Window] = field(default_factory=dict, init=False)
    _pulled: dict[int, Tensor] = field(default_factory=dict, init=False)
    _weights: dict[int, Tensor] = field(default_factory=dict, init=False)

    @property
    def box(self) -> Roi:
        """The box of the image that this process owns."""
        return self.boxes[self.mesh.space.rank]

    @property
    def last(self) -> int:
        """Number of the segment that makes the outputs."""
        return len(self.net.segments) - 1

    @cached_property
    def exchange(self) -> Exchange:
        """What moves windows and gradients between the processes of this volume."""
        wanted = windows_of(self.net, self.boxes)
        owned = shares_of(self.net, self.boxes)
        return Exchange(self.net.graph, self.mesh.space, owned, wanted)

    @property
    def held_bytes(self) -> int:
        """Bytes of all tensors that are held now, each counted once."""
        groups = (self.outputs, self._windows, self._given, self._taken)
        windows = [window.values for group in groups for window in group.values()]
        tensors = [*windows, *self._pulls.values(), *self._pulled.values(), *self._weights.values()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values()) + sum(s.nbytes for s in self._statistics.values())

    def fetch(self, node: int, box: Roi) -> Tensor:
        """Return a box of a stored node, or of the image, that lies in this process's window."""
        return crop(self._windows[node], box, self.net.graph.nodes[node].dims).values

    def statistic(self, node: int) -> Partial:
        """Return a statistic merged over all processes."""
        return self._statistics[node]

    def taken(self, node: int, box: Roi) -> Tensor | None:
        """Return what all processes gave to a box of this process's share."""
        found = self._taken.get(node)
        return None if found is None else crop(found, box, self.net.graph.nodes[node].dims).values

    def pull(self, node: int) -> Tensor | None:
        """Return the gradient of a statistic's value, summed over all processes."""
        return self._pulled.get(node)

    def forward(self) -> Mapping[int, Window]:
        """Run all segments; return the outputs of this process."""
        with self.mesh.together():
            image = self.exchange.wanted[0][self.mesh.space.rank]
            if image.size:
                self._windows[0] = Window(self.read(image), image)
            for number in range(len(self.net.segments)):
                self._forward(number)
        return self.outputs

    def _forward(self, number: int) -> None:
        graph, last = self.net.graph, number == self.last
        rooms = {} if last else {n: self.exchange.room(n) for n in self._read_later(number)}
        shares = self._room_of_outputs() if last else {n: share for n, (_, share) in rooms.items()}
        partials: dict[int, list[Partial]] = {s: [] for s in self.net.segments[number].statistics}
        with torch.no_grad():
            for block in self._blocks(number):
                for node, part, measured in forward_block(self.net, number, block, self):
                    if node in shares:
                        place = crop(shares[node], part.box, graph.nodes[node].dims)
                        place.values.copy_(part.values)
                    for statistic, partial in measured.items():
                        partials[statistic].append(partial.cpu().numpy())
        self._merge(number, partials)
        if last:
            self.outputs = shares
            return
        windows = {node: window for node, (window, _) in rooms.items()}
        self.exchange.fetch(windows, shares)
        self._windows |= windows

    def _room_of_outputs(self) -> dict[int, Window]:
        graph, targets = self.net.graph, self.net.targets(self.last, self.box)
        return {n: blank(graph, n, targets[n]) for n in graph.ends if n in targets}

    def _blocks(self, number: int) -> tuple[Roi, ...]:
        """Return the parts of this process's box that are computed one after the other."""
        return portions_of(self.net, number, self.box, self._most_bytes)

    @cached_property
    def _most_bytes(self) -> int:
        if self.portion_bytes is not None:
            return self.portion_bytes
        nodes, me = self.net.graph.nodes, self.mesh.space.rank
        windows = self.exchange.wanted.items()
        kept = sum(nodes[node].value_bytes * each[me].size for node, each in windows)
        return portion_bytes(kept, self.net.graph.device)

    def _read_later(self, number: int) -> list[int]:
        """Return the nodes that a segment stores and later ones read."""
        return [n for n in self.net.segments[number].stores if n in self.exchange.wanted]

    def _merge(self, number: int, partials: Mapping[int, Sequence[Partial]]) -> None:
        """Merge the partial statistics of all processes, in rank order."""
        rules = {s: statistic_of(self.net.graph, s) for s in partials}
        shapes = {s: rule.partial_shape for s, rule in rules.items()}
        mine = {
            s: torch.from_numpy(rules[s].merged(parts)) for s, parts in partials.items() if parts
        }
        rows = rows_of(self.mesh.space, shapes, mine)
        targets = [self.net.targets(number, box) for box in self.boxes]
        for s, rule in rules.items():
            (source,) = self.net.graph.nodes[s].inputs
            there = [row[s].numpy() for row, t in zip(rows, targets, strict=True) if source in t]
            self._statistics[s] = rule.merged(there)

    def backward(self, upstream: Upstream, *, wants_image: bool = False) -> None:
        """Run all segments backward, given the gradients of this process's outputs."""
        with self.mesh.together():
            self._backward(self.last, upstream, image=wants_image)
            for number in range(self.last - 1, -1, -1):
                self._backward(number, None, image=wants_image)

    def _backward(self, number: int, upstream: Upstream | None, *, image: bool) -> None:
        segment = self.net.segments[number]
        if upstream is None:
            self._taken = self.exchange.given_back(self._read_later(number), self._given)
            for node in segment.stores:
                self._given.pop(node, None)
        self._pulled = self._all_pulls(segment.statistics)
        for block in self._blocks(number):
            gradients = backward_block(self.net, number, block, self, upstream, image=image)
            for node, window in gradients.windows.items():
                self._give(node, window)
            _add(self._pulls, gradients.statistics)
            _add(self._weights, gradients.weights)
        self._taken.clear()
        for node in segment.stores:
            self._windows.pop(node, None)

    def _give(self, node: int, window: Window) -> None:
        """Add what one block gives to what others gave to a window."""
        box = self._windows[node].box
        if node not in self._given:
            if window.box == box:
                # A copy: autograd may return one tensor as the gradient of several.
                self._given[node] = Window(window.values.clone(), box)
                return
            self._given[node] = Window(torch.zeros_like(self._windows[node].values), box)
        place = crop(self._given[node], window.box, self.net.graph.nodes[node].dims)
        place.values.add_(window.values)

    def _all_pulls(self, statistics: Sequence[int]) -> dict[int, Tensor]:
        """Return the gradients of statistics, summed over all processes in rank order."""
        graph = self.net.graph
        mine = {s: self._pulls.pop(s) for s in statistics if s in self._pulls}
        shapes = {s: graph.nodes[s].shape for s in statistics}
        rows = rows_of(self.mesh.space, shapes, mine)
        return {s: added([row[s] for row in rows]).to(graph.device) for s in statistics}

    def total(self, loss: BlockLoss) -> Tensor:
        """Return the sums of a loss over the outputs of all processes of this volume."""
        space, sums = self.mesh.space, list[Tensor]()
        with torch.no_grad(), self.mesh.together():
            for block in self._blocks(self.last):
                targets = self.net.targets(self.last, block)
                boxes = {n: targets[n] for n in self.outputs if n in targets}
                if boxes:
                    sums.append(
                        loss.sums({n: self._output(n, box) for n, box in boxes.items()}, boxes)
                    )
        mine = {0: added(sums)} if sums else {}
        # A process without outputs does not know how many sums there are.
        count = max(int(n) for n in space.gathered(torch.tensor([len(sums[0]) if sums else 0])))
        rows = rows_of(space, {0: [count]}, mine)
        return added([row[0] for row in rows]).to(self.net.graph.device)

    def _output(self, node: int, box: Roi) -> Tensor:
        return crop(self.outputs[node], box, self.net.graph.nodes[node].dims).values

    def weight_gradients(self) -> dict[int, Tensor]:
        """Return the gradients of weights in float64: summed over shares, averaged over volumes.

        Weights that have no gradient on any process are left out. What this process has of them is
        given up.
        """
        graph = self.net.graph
        shapes = {n: weight.leaf.shape for n, weight in enumerate(graph.weights)}
        sums = summed_over(self.mesh.world, shapes, self._weights)
        return {n: total.to(graph.device).div_(self.mesh.volumes) for n, total in sums.items()}

    def image_gradient(self) -> Tensor:
        """Return the gradient of this process's box of the padded image."""
        return self.exchange.given_back([0], self._given)[0].values

    def statistics(self) -> dict[int, Partial]:
        """Return the merged statistics, as buffers are to be updated with them.

        Where several volumes are computed at once they are the first one's, so that the buffers
        of all processes stay equal.
        """
        shapes = {s: merged.shape for s, merged in self._statistics.items()}
        mine = {s: torch.from_numpy(merged) for s, merged in self._statistics.items()}
        first = rows_of(self.mesh.world, shapes, mine)[0]
        return {s: row.numpy() for s, row in first.items()}


def _add(total: dict[int, Tensor], found: Mapping[int, Tensor]) -> None:
    for key, gradient in found.items():
        total[key] = total[key] + gradient if key in total else gradient
