"""Bytes alive at once while boxes of a network's nodes are computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, last_use, read_by
from volflow.partition.ranges import Slide

__all__ = ["live_bytes"]

# Channels that the widest instructions of a processor handle at once.
VECTOR = 16
# Torch unfolds small inputs of one axis in float32, too: up to so many values.
UNFOLDED_ALONE = 20480


def live_bytes(
    graph: Graph,
    boxes: Mapping[int, Roi],
    given: Iterable[int],
    workspaces: Mapping[int, float] | None = None,
    ahead: Iterable[int] = (),
    *,
    copied: bool = True,
) -> int:
    """Return the most bytes alive at once while boxes are computed, with each op's workspace.

    Parameters
    ----------
    graph
        The network.
    boxes
        As `needed` returns them.
    given
        As for `needed`.
    workspaces
        By node, bytes per voxel that its op takes beside; they are estimated if not given.
    ahead
        Known nodes that are there from the beginning; others only when they are read.
    copied
        Whether convolutions of float32 copy into a layout of their own, as on a GPU they may.
    """
    given, known = set(given), workspaces or {}
    order = [number for number in sorted(boxes) if number not in given]
    last = last_use(graph, order)
    sizes = {n: graph.nodes[n].value_bytes * box.size for n, box in boxes.items()}
    held = set(ahead)
    alive = sum(sizes[number] for number in held)
    peak = alive
    for number in order:
        node = graph.nodes[number]
        for source in node.inputs:
            if source not in held:
                held.add(source)
                alive += sizes[source]
        held.add(number)
        alive += sizes[number]
        # A library that keeps its workspace for the next call hides it from measurements.
        tried = int(known.get(number, 0) * boxes[number].size)
        peak = max(peak, alive + max(tried, _workspace(graph, boxes, number, copied)))
        for source in {*node.inputs, number}:
            if last.get(source, -1) <= number and source in held:
                held.remove(source)
                alive -= sizes[source]
    return peak


def _workspace(graph: Graph, boxes: Mapping[int, Roi], number: int, copied: bool) -> int:
    """Estimate the bytes that an op takes beside its input and output.

    At a border the input is copied with its padding, and elsewhere where others read more of it.
    Convolutions may copy both into a layout of whole vectors of channels; in float64 they unfold
    the input into one column per output voxel.
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
    if graph.ndim > 1 and not copied:
        whole = read == boxes[node.inputs[0]] and not _perhaps_uneven(graph, number, boxes[number])
        return 0 if whole else padded
    beside = _in_vectors(node.depth) * size + _in_vectors(source.depth) * read.size
    if graph.ndim == 1 and not node.name.startswith("conv_transpose"):
        beside = max(beside, int(node.flops // 2 * min(size, UNFOLDED_ALONE / source.depth)))
    return beside * itemsize + padded


def _perhaps_uneven(graph: Graph, number: int, box: Roi) -> bool:
    """Return whether a box, or one like it at a border, is padded more on one side than the other.

    Blocks are planned for by one in the middle, and those at a border may take no more.
    """
    spans = zip(graph.nodes[number].reads[0], box, graph.sizes(number), strict=True)
    for axis, (low, high), size in spans:
        if isinstance(axis, Slide):
            before, behind = axis.overhang(low, high) if high - low == size else (axis.padding, 0)
            if before != behind:
                return True
    return False


def _in_vectors(channels: int) -> int:
    return -(-channels // VECTOR) * VECTOR
