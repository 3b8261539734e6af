"""A network as a graph of ops: which box of each node a result needs, and computing it.

Boxes have one range per axis of the network's image, whatever the dims of a node's tensor: a node
without an axis (a statistic, a vector per channel) has one voxel along it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.ranges import AxisMap, Range

__all__ = ["Compute", "Graph", "Node", "Window", "compute", "crop", "live_bytes", "needed"]

# Channels that the widest instructions of a processor take at a time.
VECTOR = 16
# Torch unfolds small inputs in float32 too: up to so many channels × voxels along two axes, however
# long the third is. They are found where blocks end at a border.
UNFOLDED = 20480


@dataclass(frozen=True)
class Window:
    """A box of a node's values."""

    values: Tensor
    box: Roi


class Compute(Protocol):
    """Computes a box of a node from exactly the windows of its inputs that the box reads."""

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """The values of the box."""


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
        Per input, per axis: which range.
    compute
        Its values; None for the network's input.
    shape
        Of the whole tensor.
    dims
        Per dim of the tensor: the axis that lies along it, or None.
    dtype
        Of the values.
    flops
        Floating-point operations per value, of convolutions.
    statistic
        Whether its value needs the whole of its input.
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

    def sizes(self, ndim: int) -> tuple[int, ...]:
        """Voxels per axis."""
        found = dict(zip(self.dims, self.shape, strict=True))
        return tuple(found.get(axis, 1) for axis in range(ndim))

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
        Axes of its image: 1, 2 or 3.
    nodes
        In the order in which they were called; the first is the input.
    outputs
        Numbers by name; a lone tensor's name is empty.
    device
        Where its weights are.
    """

    ndim: int
    nodes: tuple[Node, ...]
    outputs: Mapping[str, int]
    device: torch.device

    def sizes(self, number: int) -> tuple[int, ...]:
        """Voxels per axis of a node."""
        return self.nodes[number].sizes(self.ndim)

    @cached_property
    def statistics(self) -> tuple[int, ...]:
        """Nodes that need the whole of their input, of those that the outputs need."""
        return tuple(n for n in self.above(self.outputs.values(), ()) if self.nodes[n].statistic)

    def above(self, targets: Iterable[int], stop: Iterable[int]) -> tuple[int, ...]:
        """Nodes to compute for the targets, in order, where the values of some are at hand."""
        stop, wanted, stack = set(stop), set[int](), list(targets)
        while stack:
            number = stack.pop()
            if number not in wanted and number not in stop:
                wanted.add(number)
                stack.extend(self.nodes[number].inputs)
        return tuple(sorted(wanted))


def needed(graph: Graph, targets: Mapping[int, Roi], given: Iterable[int]) -> dict[int, Roi]:
    """Which box of each node must be at hand to compute boxes of some.

    Parameters
    ----------
    graph
        The network.
    targets
        The boxes wanted, by node.
    given
        Nodes whose values are at hand: nothing behind them is needed.

    Returns
    -------
    dict
        By node number, descending: what is needed of the given nodes, and what is computed.
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
            boxes[source] = _hull(boxes[source], part) if source in boxes else part
    return result


def read_by(maps: Sequence[AxisMap], box: Roi) -> Roi:
    """The box of an input from which a box of an op's output is computed."""
    ranges = [axis.reads(low, high) for axis, (low, high) in zip(maps, box, strict=True)]
    return _box(ranges)


def _box(ranges: Sequence[Range]) -> Roi:
    return Roi(tuple(low for low, _ in ranges), tuple(high for _, high in ranges))


def _hull(one: Roi, other: Roi) -> Roi:
    if not one.size or not other.size:
        return one if one.size else other
    return Roi(
        tuple(min(a, b) for a, b in zip(one.start, other.start, strict=True)),
        tuple(max(a, b) for a, b in zip(one.stop, other.stop, strict=True)),
    )


def crop(window: Window, box: Roi, dims: Sequence[int | None]) -> Window:
    """The part of a window that a consumer reads."""
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
) -> Iterator[tuple[int, Tensor]]:
    """Compute boxes of some nodes, each op on what is needed of it and no more.

    Parameters
    ----------
    graph, targets, given
        As for `needed`.
    fetch
        Gives a box of a node whose values are at hand.

    Yields
    ------
    number, values
        Of each target as soon as it is there; a tensor is let go after its last use.
    """
    given = set(given)
    boxes = needed(graph, targets, given)
    order = [number for number in sorted(boxes) if number not in given]
    last = _last_use(graph, order)
    windows: dict[int, Window] = {}

    def window(number: int) -> Window:
        """A node that is read: computed before, or fetched now, as late as can be."""
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
            windows[number] = Window(node.compute(parts, box), box)
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


def _last_use(graph: Graph, order: Sequence[int]) -> dict[int, int]:
    return {source: number for number in order for source in graph.nodes[number].inputs}


def _nothing(graph: Graph, number: int) -> Tensor:
    """Values of an empty box: of what lies in a border's padding alone."""
    node = graph.nodes[number]
    shape = [n if axis is None else 0 for n, axis in zip(node.shape, node.dims, strict=True)]
    return torch.empty(shape, dtype=node.dtype, device=graph.device)


def live_bytes(
    graph: Graph,
    boxes: Mapping[int, Roi],
    given: Iterable[int],
    workspaces: Mapping[int, float] | None = None,
) -> int:
    """The most bytes alive at once while boxes are computed in order, with each op's workspace.

    Parameters
    ----------
    graph
        The network.
    boxes
        As `needed` returns them.
    given
        As there.
    workspaces
        By node, bytes per voxel of it that its op takes beside; an estimate where not known.
    """
    given, known = set(given), workspaces or {}
    order = [number for number in sorted(boxes) if number not in given]
    last = _last_use(graph, order)
    sizes = {n: graph.nodes[n].value_bytes * box.size for n, box in boxes.items()}
    alive, peak = 0, 0
    held: set[int] = set()
    for number in order:
        node = graph.nodes[number]
        for source in node.inputs:
            if source not in held:
                held.add(source)
                alive += sizes[source]
        held.add(number)
        alive += sizes[number]
        # A library that keeps its workspace for the next call hides it from whoever measures.
        tried = int(known.get(number, 0) * boxes[number].size)
        peak = max(peak, alive + max(tried, _workspace(graph, boxes, number)))
        for source in {*node.inputs, number}:
            if last.get(source, -1) <= number and source in held:
                held.remove(source)
                alive -= sizes[source]
    return peak


def _workspace(graph: Graph, boxes: Mapping[int, Roi], number: int) -> int:
    """Bytes an op takes beside its input and output.

    At a border the input is copied with its padding. Convolutions copy both into a layout of whole
    vectors of channels; in float64 they unfold the input, so that each output voxel has a column of
    what it is computed from.
    """
    node = graph.nodes[number]
    if not node.flops:
        return 0
    size, itemsize = boxes[number].size, node.dtype.itemsize
    source = graph.nodes[node.inputs[0]]
    read = read_by(node.reads[0], boxes[number])
    padded = source.value_bytes * read.size
    if node.dtype == torch.float64:
        return (node.flops // 2 + node.depth) * size * itemsize + padded
    beside = _in_vectors(node.depth) * size + _in_vectors(source.depth) * read.size
    if not node.name.startswith("conv_transpose"):
        small = UNFOLDED / source.depth * math.prod(read.shape[2:])
        beside = max(beside, int(node.flops // 2 * min(size, small)))
    return beside * itemsize + padded


def _in_vectors(channels: int) -> int:
    return -(-channels // VECTOR) * VECTOR
