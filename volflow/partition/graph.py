"""A network as a graph of ops: which box of each node a result needs, and its computation.

Boxes have one range per axis of the network's image, regardless of the node's dims: a node
without an axis (a statistic, a vector per channel) has one voxel along it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from volflow.errors import NoExactRule
from volflow.geometry.roi import Roi
from volflow.partition.ranges import AxisMap, Range
from volflow.partition.weights import Update, Weight

__all__ = [
    "Compute",
    "Graph",
    "Node",
    "Window",
    "compute",
    "crop",
    "hull_of",
    "last_use",
    "named_outputs",
    "needed",
]


@dataclass(frozen=True)
class Window:
    """A box of a node, and its values, whose dims are those of the node."""

    values: Tensor
    box: Roi


class Compute(Protocol):
    """Computes a box of a node from exactly the windows of its inputs that the box reads."""

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the values of the box, a tensor with the dims of the node."""


@dataclass(frozen=True, eq=False)
class Node:
    """One op of a network.

    Parameters
    ----------
    name, where
        The op, and the path of the module that called it.
    inputs
        Numbers of the nodes that it reads.
    reads
        Per input and axis, the range of the input that a range of the output depends on.
    compute
        Computes its values; None for the network's input.
    shape
        Shape of the whole tensor.
    dims
        Per dim of the tensor: the axis of the image that lies along it, or None.
    dtype
        Dtype of the values.
    flops
        Floating-point operations per value; 0 for all but convolutions.
    statistic
        True if its value depends on the whole of its input.
    weights
        Numbers of the graph's weights that its op uses.
    constants
        What its op is given beside tensors of the network.
    """

    name: str
    where: str
    inputs: tuple[int, ...]
    reads: tuple[tuple[AxisMap, ...], ...]
    compute: Compute | None
    shape: tuple[int, ...]
    dims: tuple[int | None, ...]
    dtype: torch.dtype
    flops: int = 0
    statistic: bool = False
    weights: tuple[int, ...] = ()
    constants: tuple[str, ...] = ()

    def sizes(self, ndim: int) -> tuple[int, ...]:
        """Return the voxels of the node per axis of the image; 1 if it has no such axis."""
        found = dict(zip(self.dims, self.shape, strict=True))
        return tuple(found.get(axis, 1) for axis in range(ndim))

    @property
    def has_axes(self) -> bool:
        """Whether an axis of the image lies along any of its dims."""
        return any(axis is not None for axis in self.dims)

    @property
    def is_image(self) -> bool:
        """Whether its dims are batch, channels, and axes of the image."""
        return self.dims[:2] == (None, None) and len(self.dims) > 2 and None not in self.dims[2:]

    @cached_property
    def depth(self) -> int:
        """Values per voxel: the product of all dims without an axis."""
        return math.prod(n for n, axis in zip(self.shape, self.dims, strict=True) if axis is None)

    @property
    def value_bytes(self) -> int:
        """Bytes per voxel."""
        return self.depth * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Graph:
    """A network for a volume of one shape.

    Parameters
    ----------
    ndim
        Number of axes of its image: 1, 2 or 3.
    nodes
        In the order in which they were called; the first is the input.
    outputs
        Node numbers by name; the name of a lone tensor is empty.
    device
        Device of the weights.
    training
        True if it was traced for training, with gradients.
    weights
        All tensors that an op is given and that get a gradient, in the order of their first use.
    updates
        What a step does to the module's buffers, in order.
    """

    ndim: int
    nodes: tuple[Node, ...]
    outputs: Mapping[str, int]
    device: torch.device
    training: bool = False
    weights: tuple[Weight, ...] = ()
    updates: tuple[Update, ...] = ()

    @cached_property
    def identity(self) -> str:
        """A hash of what is computed: ops, their constants and shapes, apart from all values."""
        nodes = [
            (n.name, n.where, n.inputs, n.shape, n.dims, str(n.dtype), n.weights, n.constants)
            for n in self.nodes
        ]
        parts = nodes, dict(self.outputs), self.training
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def sizes(self, number: int) -> tuple[int, ...]:
        """Return the voxels of a node per axis."""
        return self.nodes[number].sizes(self.ndim)

    @cached_property
    def statistics(self) -> tuple[int, ...]:
        """Nodes that depend on the whole of their input, among those that the outputs need."""
        return tuple(n for n in self.above(self.outputs.values(), ()) if self.nodes[n].statistic)

    @cached_property
    def readers(self) -> Counter[int]:
        """How many read each node, outputs of the network among them."""
        read = Counter(source for node in self.nodes for source in node.inputs)
        return read + Counter(self.outputs.values())

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Nodes that are outputs, in order."""
        return tuple(sorted(set(self.outputs.values())))

    def bytes_of(self, numbers: Iterable[int]) -> int:
        """Return the bytes of whole nodes."""
        return sum(self.nodes[n].value_bytes * math.prod(self.sizes(n)) for n in numbers)

    def above(self, targets: Iterable[int], stop: Iterable[int]) -> tuple[int, ...]:
        """Return the nodes to compute for the targets, in order, if those of `stop` are known."""
        stop, wanted, stack = set(stop), set[int](), list(targets)
        while stack:
            number = stack.pop()
            if number not in wanted and number not in stop:
                wanted.add(number)
                stack.extend(self.nodes[number].inputs)
        return tuple(sorted(wanted))


def named_outputs(raw: Any) -> dict[str, Any]:
    """Return the outputs of a network by name; empty if it returns anything else.

    Examples
    --------
    >>> list(named_outputs(torch.ones(1))), list(named_outputs((torch.ones(1), torch.ones(2))))
    ([''], ['output0', 'output1'])
    """
    if isinstance(raw, Tensor):
        return {"": raw}
    if isinstance(raw, Mapping):
        return {str(name): value for name, value in raw.items()}
    if isinstance(raw, Sequence):
        return {f"output{n}": value for n, value in enumerate(raw)}
    return {}


def needed(graph: Graph, targets: Mapping[int, Roi], given: Iterable[int]) -> dict[int, Roi]:
    """Return the box of each node that is needed to compute boxes of some nodes.

    Parameters
    ----------
    graph
        The network.
    targets
        The boxes wanted, by node.
    given
        Nodes whose values are known: none of their inputs is needed.

    Returns
    -------
    dict
        Boxes by node number, descending: of the given nodes, and of those that are computed.
    """
    boxes = dict(targets)
    given = set(given)
    result: dict[int, Roi] = {}
    for number in range(max(boxes), -1, -1):
        box = boxes.pop(number, None)
        if box is None:
            continue
        result[number] = box
        node = graph.nodes[number]
        if number in given or not box.size:
            continue
        for source, maps in zip(node.inputs, node.reads, strict=True):
            part = read_by(maps, box)
            boxes[source] = hull_of(boxes[source], part) if source in boxes else part
    return result


def read_by(maps: Sequence[AxisMap], box: Roi) -> Roi:
    """Return the box of an input from which a box of an op's output is computed."""
    ranges = [axis.reads(low, high) for axis, (low, high) in zip(maps, box, strict=True)]
    return _box(ranges)


def _box(ranges: Sequence[Range]) -> Roi:
    return Roi(tuple(low for low, _ in ranges), tuple(high for _, high in ranges))


def hull_of(one: Roi, other: Roi) -> Roi:
    """Return the smallest box that holds two; an empty one counts for nothing."""
    if not one.size or not other.size:
        return one if one.size else other
    return Roi(
        tuple(min(a, b) for a, b in zip(one.start, other.start, strict=True)),
        tuple(max(a, b) for a, b in zip(one.stop, other.stop, strict=True)),
    )


def crop(window: Window, box: Roi, dims: Sequence[int | None]) -> Window:
    """Return the part of a window that a consumer reads."""
    if window.box == box:
        return window
    if not box.size:
        index = tuple(slice(None if axis is None else 0) for axis in dims)
        return Window(window.values[index], box)
    inner = box.relative_to(window.box.start).slices()
    index = tuple(slice(None) if axis is None else inner[axis] for axis in dims)
    return Window(window.values[index], box)


def compute(
    graph: Graph,
    targets: Mapping[int, Roi],
    given: Iterable[int],
    fetch: Callable[[int, Roi], Tensor],
    unread: Collection[int] = (),
) -> Iterator[tuple[int, Tensor]]:
    """Compute boxes of some nodes, each op on exactly the box that is needed of it.

    Parameters
    ----------
    graph, targets, given
        As for `needed`.
    fetch
        Returns a box of a node whose values are known.
    unread
        Targets whose gradient alone is wanted: their values are not computed.

    Yields
    ------
    number, values
        Of each target as soon as it is computed; a tensor is freed after its last use.
    """
    given = set(given)
    boxes = needed(graph, targets, given)
    order = [number for number in sorted(boxes) if number not in given]
    last = last_use(graph, order)
    windows: dict[int, Window] = {}

    def window(number: int) -> Window:
        """Return a node that is read: computed before, or fetched now, as late as possible."""
        if number not in windows:
            box = boxes[number]
            values = fetch(number, box) if box.size else _nothing(graph, number)
            windows[number] = Window(values, box)
        return windows[number]

    for number in order:
        node, box = graph.nodes[number], boxes[number]
        if box.size and node.compute is not None:
            parts = [
                crop(window(source), read_by(maps, box), graph.nodes[source].dims)
                for source, maps in zip(node.inputs, node.reads, strict=True)
            ]
            rule: Any = node.compute  # one whose values are unread has a computation without them
            made = rule.unread if number in unread else rule
            windows[number] = Window(made(parts, box), box)
            _check_gradient(graph, node, windows[number].values)
            del parts
        else:
            windows[number] = Window(_nothing(graph, number), box)
        if number in targets:
            yield number, crop(windows[number], targets[number], node.dims).values
        for source in {*node.inputs, number}:
            if last.get(source, -1) <= number:
                windows.pop(source, None)
    for number in sorted(given & set(targets)):
        yield number, fetch(number, targets[number])


def _check_gradient(graph: Graph, node: Node, values: Tensor) -> None:
    """Refuse values whose gradient would be wrong or lack a part."""
    if not torch.is_grad_enabled():
        return
    if values.requires_grad and not graph.training:
        raise NoExactRule(
            f"{node.name} in {node.where or 'the model'} has no exact gradient in a graph that was"
            " traced for inference; trace it for training, or compute without gradients"
        )
    if node.statistic and graph.training:
        raise NoExactRule(
            f"the statistic of {node.name} in {node.where or 'the model'} is of the whole volume,"
            " and has no exact gradient inside a block; measure it first, in a segment before"
        )


def last_use(graph: Graph, order: Sequence[int]) -> dict[int, int]:
    """Return by node the last of some nodes, which are computed in order, that reads it."""
    return {source: number for number in order for source in graph.nodes[number].inputs}


def _nothing(graph: Graph, number: int) -> Tensor:
    """Return the values of an empty box, which lies in the padding of a border alone."""
    node = graph.nodes[number]
    shape = [n if axis is None else 0 for n, axis in zip(node.shape, node.dims, strict=True)]
    return torch.empty(shape, dtype=node.dtype, device=graph.device)
