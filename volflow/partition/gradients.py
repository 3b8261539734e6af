"""One block of a segment of a network: forward, and backward by computing it again.

What a block reads and leaves goes through a `Board`, wherever it lies: in memory, on disk, or with
other processes. A block backward computes its share of what the segment stores and measures once
more, now under autograd, from windows of what is at hand; gradients of its share come from those
who read it, and gradients of the windows go to those who stored them. All of it is linear in the
gradients, so that the sum over blocks is the gradient of the whole, however it was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, Window, compute, crop, needed
from volflow.partition.reductions import Partial, partials_of, statistic_of
from volflow.partition.segments import Segment, known_before, output_box, targets_of

__all__ = [
    "BlockLoss",
    "Board",
    "Gradients",
    "Segmented",
    "Upstream",
    "backward_block",
    "forward_block",
    "loss_upstream",
    "unread_nodes",
]

# Given the values of the outputs of a block, returns their gradients, by node.
Upstream = Callable[[Mapping[int, Tensor], Mapping[int, Roi]], Mapping[int, Tensor]]


class Board(Protocol):
    """What blocks read, which earlier segments or, backward, later ones have left."""

    def fetch(self, node: int, box: Roi) -> Tensor:
        """Return a box of a stored node, or of the image (node 0), with the dims of the node."""

    def statistic(self, node: int) -> Partial:
        """Return the merged statistic that an earlier segment measured."""

    def taken(self, node: int, box: Roi) -> Tensor | None:
        """Return the gradient of a box of a stored node: the sum of what its readers gave.

        It is summed in the order of segments and blocks. None if no reader gave any.
        """

    def pull(self, node: int) -> Tensor | None:
        """Return the gradient of a statistic's value, summed over the blocks of all its readers.

        None if nothing that has a gradient depends on it.
        """


class BlockLoss(Protocol):
    """A loss that is a function of sums over blocks."""

    def sums(self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]) -> Tensor:
        """Return the sums of a block, float64 of one dim, as a function of its outputs."""

    def finish(self, total: Tensor) -> Tensor:
        """Return the loss, a scalar, of the sums of all blocks."""


@dataclass(frozen=True, eq=False)
class Segmented:
    """A network in segments, for a volume.

    Parameters
    ----------
    graph
        The network, for the padded volume.
    segments
        In order. The last one makes the outputs.
    sizes
        Sides of the volume without its padding; outputs beyond it are not computed.
    """

    graph: Graph
    segments: Sequence[Segment]
    sizes: tuple[int, ...]

    def known(self, number: int) -> frozenset[int]:
        """Return the statistics that a segment may use."""
        return known_before(self.segments, number)

    def targets(self, number: int, box: Roi) -> dict[int, Roi]:
        """Return the boxes that a block computes by node; empty ones are left out.

        Outputs are cut to the volume.
        """
        targets = targets_of(self.graph, self.segments[number], box)
        if number == len(self.segments) - 1:
            for node in self.graph.ends:
                targets[node] = targets[node].intersect(output_box(self.graph, node, self.sizes))
        return {node: part for node, part in targets.items() if part.size}

    def windows(self, number: int, box: Roi) -> dict[int, Roi]:
        """Return the boxes of its given nodes that a block reads; empty ones are left out."""
        targets = self.targets(number, box)
        if not targets:
            return {}
        given = self.segments[number].given
        boxes = needed(self.graph, targets, (*given, *self.known(number)))
        return {node: boxes[node] for node in given if node in boxes and boxes[node].size}


@dataclass(frozen=True, eq=False)
class Gradients:
    """What a block gives backward.

    Parameters
    ----------
    windows
        By given node, the gradient of the window that the block read.
    statistics
        By statistic, the gradient of its value, in float64.
    weights
        By number in `Graph.weights`, in float64.
    """

    windows: Mapping[int, Window] = field(default_factory=dict)
    statistics: Mapping[int, Tensor] = field(default_factory=dict)
    weights: Mapping[int, Tensor] = field(default_factory=dict)


def forward_block(
    net: Segmented, number: int, box: Roi, board: Board
) -> Iterator[tuple[int, Window, dict[int, Tensor]]]:
    """Compute a block of a segment, in the caller's grad mode.

    Parameters
    ----------
    net, number
        The network, and the number of the segment.
    box
        The block, a box of the image.
    board
        Gives what it reads.

    Yields
    ------
    node, share, partials
        Of each target as soon as it is there: its values, and the partial results of the block for
        the statistics that the segment measures of it.
    """
    graph, segment = net.graph, net.segments[number]
    targets, known = net.targets(number, box), net.known(number)
    if not targets:
        return
    fetch = _fetcher(graph, known, board)
    for node, values in compute(graph, targets, {*segment.given, *known}, fetch):
        partials = partials_of(graph, segment.statistics, node, values, targets[node])
        yield node, Window(values, targets[node]), partials


def _fetcher(graph: Graph, known: frozenset[int], board: Board) -> Callable[[int, Roi], Tensor]:
    def fetch(node: int, box: Roi) -> Tensor:
        if node in known:
            return statistic_of(graph, node).finish(board.statistic(node), graph.device)
        return board.fetch(node, box)

    return fetch


def backward_block(
    net: Segmented,
    number: int,
    box: Roi,
    board: Board,
    upstream: Upstream | None = None,
    *,
    image: bool = False,
) -> Gradients:
    """Return the gradients that a block of a segment gives, computing it again under autograd.

    Parameters
    ----------
    net, number, box, board
        As for `forward_block`.
    upstream
        Returns gradients of the outputs; for the last segment.
    image
        Whether the gradient of the image is wanted, too.
    """
    graph, known = net.graph, net.known(number)
    given = net.segments[number].given
    pulls = _pulls(net.segments[number], board)
    targets, taken = _with_gradient(net, number, box, board, pulls, last=upstream is not None)
    if not targets:
        return Gradients()
    boxes = needed(graph, targets, (*given, *known))
    computed = [n for n in boxes if n not in known and n not in given]
    unread = unread_nodes(graph, net.segments[number], computed, last=upstream is not None)
    leaves: dict[int, Window] = {}
    plain = _fetcher(graph, known, board)

    def fetch(node: int, part: Roi) -> Tensor:
        # A target that is given is fetched once more, behind all others.
        if node not in leaves:
            values = plain(node, boxes[node]).detach()
            leaves[node] = Window(values.requires_grad_(node != 0 or image), boxes[node])
        return crop(leaves[node], part, graph.nodes[node].dims).values

    with torch.enable_grad():
        values = dict(compute(graph, targets, {*given, *known}, fetch, unread))
    if upstream is not None:
        ends = {n: v.detach() for n, v in values.items() if n in graph.ends}
        taken |= upstream(ends, {n: targets[n] for n in ends})
    for statistic, gradient in pulls.items():
        node = graph.nodes[statistic].inputs[0]
        if node in targets:
            part = targets[node]
            kept = board.fetch(node, part) if node in unread else values[node].detach()
            rule, merged = statistic_of(graph, statistic), board.statistic(statistic)
            found = rule.pulled(kept, part, merged, gradient).to(values[node].dtype)
            # One tensor, for autograd would hold both and their sum.
            taken[node] = found.add_(taken[node]) if node in taken else found
            del kept, found
    heads = [(values[node], gradient) for node, gradient in taken.items()]
    weights = sorted({w for n in computed for w in graph.nodes[n].weights})
    return _pulled_back(graph, heads, leaves, weights, known)


def _pulls(segment: Segment, board: Board) -> dict[int, Tensor]:
    """Return the gradients of the statistics that a segment measures, where there are any."""
    found = {statistic: board.pull(statistic) for statistic in segment.statistics}
    return {statistic: gradient for statistic, gradient in found.items() if gradient is not None}


def _with_gradient(
    net: Segmented,
    number: int,
    box: Roi,
    board: Board,
    pulls: Iterable[int],
    *,
    last: bool,
) -> tuple[dict[int, Roi], dict[int, Tensor]]:
    """Return the targets of a block that have a gradient, and what their readers gave."""
    graph, segment = net.graph, net.segments[number]
    targets = net.targets(number, box)
    taken = dict[int, Tensor]()
    for node in segment.stores:
        gradient = board.taken(node, targets[node]) if node in targets and not last else None
        if gradient is not None:
            taken[node] = gradient
    pulled = {graph.nodes[statistic].inputs[0] for statistic in pulls}
    wanted = {*taken, *pulled, *(graph.ends if last else ())}
    return {node: part for node, part in targets.items() if node in wanted}, taken


def unread_nodes(
    graph: Graph, segment: Segment, computed: Iterable[int], *, last: bool
) -> frozenset[int]:
    """Return the stored nodes whose values nobody in a block reads, so that none are computed.

    Parameters
    ----------
    graph, segment
        The network, and the segment.
    computed
        The nodes that are computed again.
    last
        Whether the segment is the last one, whose outputs are read by a loss.
    """
    if last:
        return frozenset()
    computed = set(computed)
    read = {source for n in computed for source in graph.nodes[n].inputs}
    stored = (n for n in segment.stores if n in computed and n not in read)
    return frozenset(n for n in stored if hasattr(graph.nodes[n].compute, "unread"))


def _pulled_back(
    graph: Graph,
    heads: Sequence[tuple[Tensor, Tensor]],
    leaves: Mapping[int, Window],
    weights: Sequence[int],
    known: frozenset[int],
) -> Gradients:
    """Return the gradients of leaves and weights."""
    heads = [(value, gradient.to(value.dtype)) for value, gradient in heads if value.requires_grad]
    wanted = {n: w for n, w in leaves.items() if w.values.requires_grad}
    inputs = [w.values for w in wanted.values()] + [graph.weights[w].leaf for w in weights]
    if not heads or not inputs:
        return Gradients()
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        [value for value, _ in heads], inputs, [g for _, g in heads], allow_unused=True
    )
    windows, statistics = dict[int, Window](), dict[int, Tensor]()
    for (node, leaf), gradient in zip(wanted.items(), found, strict=False):
        if gradient is None:
            continue
        if node in known:
            statistics[node] = gradient.double()
        else:
            windows[node] = Window(gradient, leaf.box)
    behind = zip(weights, found[len(wanted) :], strict=True)
    return Gradients(windows, statistics, {w: g.double() for w, g in behind if g is not None})


def loss_upstream(loss: BlockLoss, vector: Tensor) -> Upstream:
    """Return the gradients of a block's outputs, given that of the total of the loss's sums."""

    def upstream(outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]) -> Mapping[int, Tensor]:
        leaves = {n: v.requires_grad_() for n, v in outputs.items()}
        with torch.enable_grad():
            sums = loss.sums(leaves, boxes)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            sums, [*leaves.values()], vector, allow_unused=True
        )
        return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}

    return upstream
