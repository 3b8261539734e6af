"""Segments: parts of a network that are computed at once in every block, from what is at hand.

A statistic of the whole volume ends a segment, since all that depends on it must wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph

__all__ = [
    "Segment",
    "core",
    "known_before",
    "output_box",
    "targets_of",
]


@dataclass(frozen=True)
class Segment:
    """What is computed at once in every block.

    Parameters
    ----------
    given
        Nodes that it reads: the input, and those that earlier segments stored.
    stores
        Nodes that it stores; in the last segment the outputs.
    statistics
        Statistics that it measures.
    """

    given: tuple[int, ...]
    stores: tuple[int, ...]
    statistics: tuple[int, ...]


def core(graph: Graph, number: int, box: Roi) -> Roi:
    """Return a node's share of a box of the input; the shares of all blocks tile the node."""
    whole, sizes = graph.sizes(0), graph.sizes(number)
    return Roi(
        tuple(a * m // n for a, m, n in zip(box.start, sizes, whole, strict=True)),
        tuple(b * m // n for b, m, n in zip(box.stop, sizes, whole, strict=True)),
    )


def targets_of(graph: Graph, segment: Segment, box: Roi) -> dict[int, Roi]:
    """Return the boxes that a block computes by node: its shares of what is stored or measured."""
    numbers = {*segment.stores, *(graph.nodes[s].inputs[0] for s in segment.statistics)}
    return {number: core(graph, number, box) for number in numbers}


def output_box(graph: Graph, node: int, sizes: Sequence[int]) -> Roi:
    """Return the box of an output that lies within the volume, whose padding is cut away.

    Parameters
    ----------
    graph, node
        The network for the padded volume, and the output.
    sizes
        Sides of the volume without its padding.
    """
    padded, sides = graph.sizes(0), graph.sizes(node)
    return Roi.full(tuple(-(-n * m // p) for n, m, p in zip(sizes, sides, padded, strict=True)))


def known_before(segments: Sequence[Segment], number: int) -> frozenset[int]:
    """Return the statistics that the segments before one have measured."""
    return frozenset(s for segment in segments[:number] for s in segment.statistics)
