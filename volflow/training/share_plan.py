"""The plan of a step that is divided over processes: what each keeps, needs at most, and sends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.geometry.roi import Roi
from volflow.infer.exact.choose import ALLOCATED, KEPT_CODE_BYTES
from volflow.partition.exchange.division import Division
from volflow.partition.exchange.portions import portion_bytes, portions_of
from volflow.partition.exchange.projection import exchanged_bytes, kept_bytes
from volflow.partition.exchange.routes import carried_bytes, routes_of, shares_of, windows_of
from volflow.partition.footprint import live_bytes
from volflow.partition.gradients import Segmented, unread_nodes
from volflow.partition.graph import Graph, needed
from volflow.partition.reach import alignment_of
from volflow.partition.stages import segments_for_ranks
from volflow.passes.cost import Costs
from volflow.passes.planning.gradient_cost import GradientCost, estimated_gradient, with_gradient
from volflow.passes.planning.gradient_memory import BackwardMemory

__all__ = ["SharePlan", "plan_shares"]

# Processes beyond which none is proposed, and what is left of the memory where twice as many are
# worth it: margins and code of libraries are not divided.
MOST_PROCESSES, WORTH_DOUBLING = 256, 0.9
# Objects of the graph, and buffers of the process group.
GROUP_BYTES = 2**22
# Bytes of the gradient of a weight: as it is held, summed over portions; as autograd returns it,
# in float64, and added to what is held; as all processes' sum, and as the parameter gets it.
SUMMED, ADDED, ENDING = 8, 4 + 8 + 8, 8 + 4 + 4


@dataclass(frozen=True)
class SharePlan:
    """What a step takes of each process; printed, it says so to people.

    Parameters
    ----------
    partition
        Number of boxes along each axis.
    boxes
        The box of each process, of the volume with its padding.
    kept_bytes
        The most that a process keeps between forward and backward.
    peak_bytes
        The most that the memory of a process grows by: its tensors at a time with what allocators
        take beside, and code of the library of convolutions.
    sent_bytes
        What all processes together send of activations and their gradients.
    """

    partition: tuple[int, ...]
    boxes: tuple[Roi, ...]
    kept_bytes: int
    peak_bytes: int
    sent_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for machines."""
        boxes = [[list(box.start), list(box.stop)] for box in self.boxes]
        return {**asdict(self), "partition": list(self.partition), "boxes": boxes}

    def describe(self) -> str:
        """Return the plan as text, for people."""
        cuts = "×".join(map(str, self.partition))
        sides = ", ".join(sorted({"×".join(map(str, box.shape)) for box in self.boxes}))
        return "\n".join([
            f"step of {len(self.boxes)} processes, {cuts}",
            f"  boxes  {sides} voxels",
            f"  kept   {format_bytes(self.kept_bytes)} per process between forward and backward",
            f"  peak   {format_bytes(self.peak_bytes)} per process, beside the network",
            f"  sent   {format_bytes(self.sent_bytes)} by all together, both ways",
        ])  # fmt: skip

    def __str__(self) -> str:
        return self.describe()


def plan_shares(
    graph: Graph, sizes: tuple[int, ...], partition: Sequence[int], memory_bytes: int | None = None
) -> SharePlan:
    """Return what a step takes of each process among which a volume is divided.

    Parameters
    ----------
    graph, sizes
        The network, and the sides of the volume without its padding.
    partition
        Number of boxes along each axis.
    memory_bytes
        Budget of a process, if there is one.

    Raises
    ------
    MemoryRefused
        If a process needs more, naming a partition that would do.
    """
    net = Segmented(graph, segments_for_ranks(graph), sizes)
    plan = _planned(net, tuple(partition))
    if memory_bytes is None or plan.peak_bytes <= memory_bytes:
        return plan
    more = plan
    while len(more.boxes) < MOST_PROCESSES and max(more.boxes[0].shape) > 1:
        fewer, more = more, _planned(net, _doubled(more))
        if more.peak_bytes <= memory_bytes or more.peak_bytes > WORTH_DOUBLING * fewer.peak_bytes:
            break
    enough = f"start {len(more.boxes)} processes with partition={more.partition}"
    remedy = enough if more.peak_bytes <= memory_bytes else "give more"
    raise MemoryRefused(
        f"a step divided into {plan.partition} takes {format_bytes(plan.peak_bytes)} of each"
        f" process, and memory is {format_bytes(memory_bytes)}; {remedy}, or leave partition out"
        " (None), which keeps activations on disk"
    )


def _planned(net: Segmented, partition: tuple[int, ...]) -> SharePlan:
    graph = net.graph
    boxes = Division.even(graph.sizes(0), partition, alignment_of(graph)).boxes
    memory = _Memory(net, boxes)
    tensors = max(memory.peak_bytes(rank) for rank in range(len(boxes)))
    by_library = graph.device.type == "cpu" and graph.nodes[0].dtype != torch.float64
    peak = math.ceil(ALLOCATED * tensors) + GROUP_BYTES + by_library * KEPT_CODE_BYTES
    return SharePlan(
        partition, boxes, max(kept_bytes(net, boxes)), peak, exchanged_bytes(net, boxes)
    )


def _doubled(plan: SharePlan) -> tuple[int, ...]:
    """Return a partition into twice as many boxes, halved along their longest axis."""
    sides = plan.boxes[0].shape
    axis = sides.index(max(sides))
    return tuple(parts * (2 if n == axis else 1) for n, parts in enumerate(plan.partition))


@dataclass(frozen=True, eq=False)
class _Memory:
    """The tensors of a process, segment by segment.

    They are windows and their gradients, one portion, messages, and gradients of weights.
    """

    net: Segmented
    boxes: Sequence[Roi]

    @cached_property
    def windows(self) -> dict[int, tuple[Roi, ...]]:
        """The window of each node on each process."""
        return windows_of(self.net, self.boxes)

    def peak_bytes(self, rank: int) -> int:
        """Return the most bytes alive at once on a process."""
        each = range(len(self.net.segments))
        halves = (max(self._forward(n, rank), self._backward(n, rank)) for n in each)
        image = self._bytes({n: w[rank] for n, w in self.windows.items() if n == 0})
        weights = sum(w.leaf.numel() for w in self.net.graph.weights)
        return max(*halves, image + self._outputs(rank) + ENDING * weights)

    @cached_property
    def _carried(self) -> dict[int, list[int]]:
        """By node, the bytes of the messages that each process sends and receives, both at once."""
        graph, found = self.net.graph, dict[int, list[int]]()
        for node, owned in shares_of(self.net, self.boxes).items():
            found[node] = [0] * len(self.boxes)
            for route in routes_of(node, owned, self.windows[node]) if node else ():
                for rank in (route.owner, route.reader):
                    found[node][rank] += carried_bytes(graph, [route])
        return found

    def _messages(self, number: int, rank: int) -> int:
        stores = self.net.segments[number].stores
        return sum(self._carried[n][rank] for n in stores if n in self._carried)

    @cached_property
    def _weights(self) -> list[int]:
        """By segment, the values of its weights."""
        graph, found = self.net.graph, list[int]()
        for number, segment in enumerate(self.net.segments):
            ends = [*segment.stores, *(graph.nodes[s].inputs[0] for s in segment.statistics)]
            computed = graph.above(ends, {*segment.given, *self.net.known(number)})
            weights = {w for n in computed for w in graph.nodes[n].weights}
            found.append(sum(graph.weights[w].leaf.numel() for w in weights))
        return found

    @cached_property
    def _stored(self) -> dict[int, int]:
        """By node, the segment that stores it; -1 for the image."""
        segments = enumerate(self.net.segments)
        return {0: -1, **{n: number for number, segment in segments for n in segment.stores}}

    @cached_property
    def _gradients(self) -> dict[int, GradientCost]:
        graph = self.net.graph
        return {n: estimated_gradient(Costs(graph), n) for n in range(1, len(graph.nodes))}

    def _bytes(self, boxes: Mapping[int, Roi]) -> int:
        nodes = self.net.graph.nodes
        return sum(nodes[n].value_bytes * box.size for n, box in boxes.items())

    def _held(self, number: int, rank: int) -> int:
        """Return the bytes of the windows that are there while a segment runs, and of outputs."""
        stored = self._stored
        windows = {n: each[rank] for n, each in self.windows.items() if stored[n] <= number}
        return self._bytes(windows)

    def _portion(self, number: int, rank: int) -> Roi | None:
        """Return the portion of a segment that needs the most: one in the middle."""
        kept = self._bytes({n: each[rank] for n, each in self.windows.items()})
        most = portion_bytes(kept, self.net.graph.device)
        portions = portions_of(self.net, number, self.boxes[rank], most)
        return portions[len(portions) // 2] if portions else None

    def _forward(self, number: int, rank: int) -> int:
        outputs = self._outputs(rank) if number == len(self.net.segments) - 1 else 0
        portion = self._portion(number, rank)
        targets = {} if portion is None else self.net.targets(number, portion)
        there = self._held(number, rank) + outputs
        if portion is None or not targets:
            return there + self._messages(number, rank)
        given = (*self.net.segments[number].given, *self.net.known(number))
        boxes = needed(self.net.graph, targets, given)
        # Windows of a portion are parts of what is held.
        beside = live_bytes(self.net.graph, boxes, given, ahead=[n for n in given if n in boxes])
        beside -= self._bytes({n: boxes[n] for n in given if n in boxes})
        return there + max(beside, self._messages(number, rank))

    def _outputs(self, rank: int) -> int:
        last = len(self.net.segments) - 1
        return self._bytes(self.net.targets(last, self.boxes[rank]))

    def _backward(self, number: int, rank: int) -> int:
        """Return the bytes while a segment runs backward, beside those of weights."""
        net, last = self.net, number == len(self.net.segments) - 1
        later = {n for segment in net.segments[number:] for n in segment.given if n}
        # Gradients of windows that later segments gave and earlier ones have not yet taken.
        gradients = {n: self.windows[n][rank] for n in later if self._stored[n] <= number}
        alive = self._held(number, rank) + self._outputs(rank) + self._bytes(gradients)
        alive += SUMMED * sum(self._weights[number + 1 :])
        portion = self._portion(number, rank)
        targets = {} if portion is None else net.targets(number, portion)
        moved = max(self._messages(number, rank), ADDED * self._weights[number])
        if portion is None or not targets:
            return alive + moved
        graph, segment = net.graph, net.segments[number]
        given = frozenset((*segment.given, *net.known(number)))
        boxes = needed(graph, targets, given)
        computed = [n for n in boxes if n not in given]
        memory = BackwardMemory(
            graph,
            boxes,
            given,
            targets,
            (),
            {graph.nodes[s].inputs[0] for s in segment.statistics},
            with_gradient(graph, computed, given - {0}),
            unread_nodes(graph, segment, computed, last=last),
            self._gradients,
        )
        beside = memory.peak_bytes() - self._bytes({n: boxes[n] for n in given if n in boxes})
        return alive + max(moved, beside)
