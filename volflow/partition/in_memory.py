"""A step of training with everything in memory, block by block: what other executors must equal.

It is for tests and for small volumes; nothing is saved here but by cutting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.gradients import (
    BlockLoss,
    Gradients,
    Segmented,
    Upstream,
    backward_block,
    forward_block,
    loss_upstream,
)
from volflow.partition.graph import Window, crop
from volflow.partition.reductions import Partial, statistic_of

__all__ = ["InMemory", "step_in_memory"]


@dataclass(eq=False)
class InMemory:
    """What blocks of a network read and leave, as whole tensors.

    Parameters
    ----------
    net
        The network.
    image
        Its input, padded.
    blocks
        Per segment, its blocks, boxes of the image that tile it.
    """

    net: Segmented
    image: Tensor
    blocks: Sequence[Sequence[Roi]]
    values: dict[int, Tensor] = field(default_factory=dict)
    statistics: dict[int, Partial] = field(default_factory=dict)
    given: dict[int, list[Window]] = field(default_factory=dict)
    pulls: dict[int, Tensor] = field(default_factory=dict)
    weights: dict[int, Tensor] = field(default_factory=dict)

    def fetch(self, node: int, box: Roi) -> Tensor:
        """Return a box of the image or of a stored node."""
        whole = self.values[node] if node else self.image
        window = Window(whole, Roi.full(self.net.graph.sizes(node)))
        return crop(window, box, self.net.graph.nodes[node].dims).values

    def statistic(self, node: int) -> Partial:
        """Return a merged statistic."""
        return self.statistics[node]

    def taken(self, node: int, box: Roi) -> Tensor | None:
        """Return the sum of the contributions that meet a box."""
        dims, total = self.net.graph.nodes[node].dims, None
        for window in self.given.get(node, ()):
            part = window.box.intersect(box)
            if part.size:
                if total is None:
                    shape = crop(window, part, dims).values.shape
                    sides = [
                        n if a is None else box.shape[a] for n, a in zip(shape, dims, strict=True)
                    ]
                    total = window.values.new_zeros(sides)
                crop(Window(total, box), part, dims).values.add_(crop(window, part, dims).values)
        return total

    def pull(self, node: int) -> Tensor | None:
        """Return the summed gradient of a statistic."""
        return self.pulls.get(node)

    def forward(self, number: int) -> None:
        """Run the blocks of a segment."""
        graph, segment = self.net.graph, self.net.segments[number]
        partials: dict[int, list[Partial]] = {s: [] for s in segment.statistics}
        with torch.no_grad():
            for block in self.blocks[number]:
                for node, share, found in forward_block(self.net, number, block, self):
                    if node in segment.stores:
                        self._keep(node, share)
                    for statistic, partial in found.items():
                        partials[statistic].append(partial.numpy())
        for statistic, parts in partials.items():
            self.statistics[statistic] = statistic_of(graph, statistic).merged(parts)

    def _keep(self, node: int, share: Window) -> None:
        found = self.net.graph.nodes[node]
        if node not in self.values:
            self.values[node] = torch.zeros(found.shape, dtype=found.dtype)
        whole = Window(self.values[node], Roi.full(self.net.graph.sizes(node)))
        crop(whole, share.box, found.dims).values.copy_(share.values)

    def backward(self, number: int, upstream: Upstream | None, *, image: bool) -> None:
        """Run the blocks of a segment backward."""
        found = [
            backward_block(self.net, number, block, self, upstream, image=image)
            for block in self.blocks[number]
        ]
        for gradients in found:
            for node, window in gradients.windows.items():
                self.given.setdefault(node, []).append(window)
        _add(self.pulls, found, "statistics")
        _add(self.weights, found, "weights")

    def total(self, loss: BlockLoss) -> Tensor:
        """Return the sums of a loss over the blocks of the last segment."""
        number = len(self.net.segments) - 1
        targets = (self.net.targets(number, block) for block in self.blocks[number])
        ends = [{n: t[n] for n in self.net.graph.ends if n in t} for t in targets]
        with torch.no_grad():
            sums = [
                loss.sums({n: self.fetch(n, box) for n, box in e.items()}, e) for e in ends if e
            ]
        return torch.stack(sums).sum(0)


def _add(total: dict[int, Tensor], found: Iterable[Gradients], what: str) -> None:
    for gradients in found:
        for key, gradient in getattr(gradients, what).items():
            total[key] = total[key] + gradient if key in total else gradient


def step_in_memory(
    net: Segmented,
    image: Tensor,
    blocks: Sequence[Sequence[Roi]],
    loss: BlockLoss,
    *,
    wants_image: bool = False,
) -> tuple[Tensor, InMemory]:
    """Return the loss of a step, and what its blocks left: among it the gradients of weights.

    Parameters
    ----------
    net, image, blocks
        As for `InMemory`.
    loss
        Of the outputs.
    wants_image
        Whether the gradient of the image is wanted, which is then `InMemory.taken` of node 0.
    """
    board = InMemory(net, image, blocks)
    last = len(net.segments) - 1
    for number in range(last + 1):
        board.forward(number)
    total = board.total(loss).requires_grad_()
    value = loss.finish(total)
    (vector,) = torch.autograd.grad(value, total)
    for number in range(last, -1, -1):
        upstream = loss_upstream(loss, vector) if number == last else None
        board.backward(number, upstream, image=wants_image)
    return value.detach(), board
