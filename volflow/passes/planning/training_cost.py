"""The cost of a pass in training: forward, and backward, where it is computed again."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from volflow.geometry.roi import Roi
from volflow.partition.gradients import unread_nodes
from volflow.partition.graph import Graph, needed
from volflow.partition.segments import Segment, targets_of
from volflow.passes.backward.totals import MOST_GROUPS, groups_of
from volflow.passes.cost import MEMORY_BYTES_PER_S, UNLIMITED, Costs, Pass
from volflow.passes.planning.gradient_cost import GradientCost, estimated_gradient, with_gradient
from volflow.passes.planning.gradient_memory import BackwardMemory

__all__ = ["TrainingCosts", "TrainingPass"]

# Bytes of each number in the sums of the gradients of weights.
SUM_BYTES = 8
# Times that a loss reads or writes the outputs, forward and backward.
LOSS_MOVES = 12
# Times that what is not kept is computed more: forward, again backward, and its gradient.
COMPUTED_MORE = 5
# Times that what is kept is written and read more: forward, backward, and its gradient.
WRITTEN_MORE, READ_MORE = 2, 4


@dataclass(frozen=True)
class TrainingPass(Pass):
    """A pass that is run forward, and backward in its turn.

    Parameters
    ----------
    given, stores, statistics, block, peak_bytes, seconds, flops, device_peak_bytes
        As for the pass, in both directions together.
    backward_s
        Seconds of the pass backward.
    read_bytes, written_bytes
        From and to the disk, in both directions; what is read of gradients is counted where they
        are written.
    keeps, rereads, gives, in_work, sums_bytes
        As for `volflow.passes.planning.disk_use.Written`.
    """

    backward_s: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    keeps: tuple[tuple[int, int], ...] = ()
    rereads: tuple[int, ...] = ()
    gives: tuple[tuple[int, int], ...] = ()
    in_work: float = 1.0
    sums_bytes: int = 0

    @property
    def forward_s(self) -> float:
        """Seconds of the pass forward."""
        return self.seconds - self.backward_s


@dataclass(frozen=True, eq=False)
class TrainingCosts:
    """Projects memory, time and bytes of passes in training.

    Parameters
    ----------
    costs
        Of passes forward, over a graph that is traced for training.
    gradients
        What the gradients of ops take, by node.
    wants_image
        Whether the gradient of the image is wanted.
    """

    costs: Costs
    gradients: Mapping[int, GradientCost] = field(default_factory=dict)
    wants_image: bool = False

    @property
    def graph(self) -> Graph:
        """The graph of the network."""
        return self.costs.graph

    @property
    def workers(self) -> int:
        """Number of workers that share the blocks of a pass."""
        return self.costs.workers

    def worth_keeping(self, number: int) -> bool:
        """Return whether a node's values cost more to compute again than to keep and read."""
        costs = self.costs
        moved = WRITTEN_MORE / costs.store_bytes_per_s + READ_MORE / costs.fetch_bytes_per_s
        computed = COMPUTED_MORE * costs.seconds_of(number)
        return computed > moved * self._stored(number)

    def kept_bytes(self, kept: Iterable[int]) -> int:
        """Return the bytes that whole nodes take on disk."""
        return sum(self._stored(n) * math.prod(self.graph.sizes(n)) for n in kept if n)

    def _stored(self, number: int) -> int:
        """Return the bytes per voxel of a node on disk, where nothing is narrower than float32."""
        node = self.graph.nodes[number]
        return node.depth * max(4, node.dtype.itemsize)

    @cached_property
    def _gradients(self) -> dict[int, GradientCost]:
        """What the gradient of each op takes, profiled or estimated."""
        nodes = self.graph.nodes
        moving = with_gradient(self.graph, range(len(nodes)), {0} if self.wants_image else ())
        return {
            n: self.gradients.get(n)
            or estimated_gradient(
                self.costs, n, input_wanted=bool(moving.intersection(node.inputs))
            )
            for n, node in enumerate(nodes)
            if n
        }

    def measured(
        self,
        step: Pass,
        known: frozenset[int],
        limit_bytes: int,
        device_limit_bytes: int = UNLIMITED,
    ) -> TrainingPass | None:
        """Return a pass with what it takes in both directions; None if it does not fit.

        Parameters
        ----------
        step, known, limit_bytes, device_limit_bytes
            As for `Costs.measured`.
        """
        peak, device_peak = self.costs.peaks(step, known)
        if peak > limit_bytes or device_peak > device_limit_bytes:
            return None
        again = self._again(step, known)
        backward, device_backward = self._peaks(step, known, again)
        if backward > limit_bytes or device_backward > device_limit_bytes:
            return None
        given = (*step.given, *known)
        volumes = self.costs.volumes(step, given)
        whole = replace(
            step,
            peak_bytes=max(peak, backward),
            device_peak_bytes=max(device_peak, device_backward),
            seconds=self.costs.seconds(step, volumes, given),
            flops=self.costs.flops(volumes, given),
        )
        return self._counted(whole, again, volumes)

    def _again(self, step: Pass, known: frozenset[int]) -> _Again:
        """Return what is computed again in a pass backward."""
        graph, given = self.graph, {*step.given, *known}
        targets = {*step.stores, *(graph.nodes[s].inputs[0] for s in step.statistics)}
        computed = graph.above(targets, given)
        leaves = {n for n in given if n or self.wants_image}
        moving = frozenset(with_gradient(graph, computed, leaves))
        unread = unread_nodes(graph, step, computed, last=_is_last(graph, step))
        return _Again(computed, leaves, moving, unread)

    def _peaks(self, step: Pass, known: frozenset[int], again: _Again) -> tuple[int, int]:
        """Return the most bytes of a block backward: of a worker's memory, and of a GPU's."""
        weights = self._weights(again)
        boxes = {step.middle(self.graph), step.grid(self.graph)[0]}
        backward = [self._backward(step, known, again, box) for box in boxes]
        tensors = max(memory.peak_bytes() for memory in backward)
        tensors += weights * self.graph.nodes[0].dtype.itemsize
        sums = 2 * SUM_BYTES * weights
        if not self.costs.on_gpu:
            return tensors + sums, 0
        # Tensors come and go one after the other.
        return 2 * max(memory.largest_bytes() for memory in backward) + sums, tensors

    def _backward(
        self, step: Pass, known: frozenset[int], again: _Again, box: Roi
    ) -> BackwardMemory:
        """Return the memory of a block backward."""
        graph, given = self.graph, frozenset((*step.given, *known))
        shares = targets_of(graph, step, box)
        return BackwardMemory(
            graph,
            needed(graph, shares, given),
            given,
            shares,
            () if _is_last(graph, step) else step.stores,
            {graph.nodes[s].inputs[0] for s in step.statistics},
            again.moving,
            again.unread,
            self._gradients,
            self.costs.workspaces,
        )

    def _weights(self, again: _Again) -> int:
        """Return how many numbers are in the weights that a pass computes with."""
        used = {w for n in again.computed for w in self.graph.nodes[n].weights}
        return sum(self.graph.weights[w].leaf.numel() for w in used)

    def _counted(self, whole: Pass, again: _Again, volumes: Mapping[int, float]) -> TrainingPass:
        """Return a pass, known forward, with its time and bytes in both directions."""
        graph, last = self.graph, _is_last(self.graph, whole)
        sources = {graph.nodes[s].inputs[0] for s in whole.statistics}
        read = {n: round(self._stored(n) * volumes[n]) for n in whole.given if n in volumes}
        gives = {n: size for n, size in read.items() if n in again.leaves}
        windows, given = sum(read.values()), sum(gives.values())
        keeps = {} if last else {n: self.kept_bytes([n]) for n in whole.stores}
        rereads = tuple(n for n in keeps if n in sources)
        reread = sum(keeps[n] for n in rereads)
        moved = (windows + reread + given) / self.costs.fetch_bytes_per_s
        moved += given / self.costs.store_bytes_per_s
        computing = self._computing(whole, again, volumes)
        backward_s = self.costs.shared(whole, computing + moved)
        return TrainingPass(
            whole.given,
            whole.stores,
            whole.statistics,
            whole.block,
            whole.peak_bytes,
            whole.seconds + backward_s,
            whole.flops + self._flops(again, volumes),
            whole.device_peak_bytes,
            backward_s=backward_s,
            read_bytes=2 * windows + reread + given,
            written_bytes=sum(keeps.values()) + given,
            keeps=tuple(keeps.items()),
            rereads=rereads,
            gives=tuple(gives.items()),
            in_work=self._in_work(whole),
            sums_bytes=SUM_BYTES * self._weights(again) * min(MOST_GROUPS, len(whole.grid(graph))),
        )

    def _in_work(self, step: Pass) -> float:
        """Return the largest share of a pass's blocks that are run backward at a time."""
        sizes = self.graph.sizes(0)
        group = max(map(len, groups_of(len(step.grid(self.graph)))))
        return min(1.0, self.workers * group * math.prod(step.block) / math.prod(sizes))

    def _computing(self, step: Pass, again: _Again, volumes: Mapping[int, float]) -> float:
        """Return the seconds that one worker computes in a pass backward."""
        graph = self.graph
        found = sum(
            (n not in again.unread) * self.costs.seconds_of(n) * volumes[n]
            + (n in again.moving) * self._gradients[n].seconds * volumes[n]
            for n in again.computed
            if n in volumes
        )
        for s in step.statistics:
            found += self._gradients[s].seconds * math.prod(graph.sizes(graph.nodes[s].inputs[0]))
        if _is_last(graph, step):
            found += LOSS_MOVES * graph.bytes_of(graph.ends) / MEMORY_BYTES_PER_S
        return found

    def _flops(self, again: _Again, volumes: Mapping[int, float]) -> float:
        """Return the floating-point operations of a pass backward."""
        nodes, found = self.graph.nodes, 0.0
        for n in again.computed:
            times = int(n not in again.unread)
            if n in again.moving:
                times += 1 + bool(again.moving.intersection(nodes[n].inputs))
            found += times * nodes[n].flops * nodes[n].depth * volumes.get(n, 0.0)
        return found


@dataclass(frozen=True)
class _Again:
    """What a pass computes again backward.

    Parameters
    ----------
    computed
        Nodes, apart from those that are handed to it.
    leaves
        Those that are, and whose gradients it gives.
    moving
        Nodes that have a gradient.
    unread
        Nodes whose values are not computed.
    """

    computed: Collection[int]
    leaves: Collection[int]
    moving: frozenset[int]
    unread: frozenset[int]


def _is_last(graph: Graph, segment: Segment) -> bool:
    return segment.stores == graph.ends
