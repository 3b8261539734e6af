"""Segments that end behind every convolution: nothing costly is ever computed twice.

What lies between two convolutions is cheap, so it is computed again wherever it is read, on a
window that is no wider than the kernel that reads it.
"""

from __future__ import annotations

from volflow.partition.graph import Graph
from volflow.partition.segments import Segment

__all__ = ["segments_for_ranks"]


def segments_for_ranks(graph: Graph) -> tuple[Segment, ...]:
    """Return segments of which each computes the convolutions that the ones before allow.

    The raw output of every convolution is stored, and statistics are measured as soon as what they
    are measured of can be computed. An output that nothing else reads is computed in the last
    segment.

    Examples
    --------
    >>> from torch import nn
    >>> from volflow.partition.trace import trace
    >>> layers = nn.Conv1d(1, 4, 3), nn.InstanceNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 3)
    >>> segments_for_ranks(trace(nn.Sequential(*layers), 1, (64,)))
    (Segment(given=(0,), stores=(1,), statistics=(2,)), Segment(given=(1,), stores=(5,), \
statistics=()))
    """
    made = _made(graph)
    last = max(_first(graph, made, number) for number in graph.ends)
    return tuple(_segment(graph, made, number, last) for number in range(last + 1))


def _made(graph: Graph) -> dict[int, int]:
    """Return the segment that stores or measures a node, for those that one does."""
    order = graph.above(graph.ends, ())
    read = {source for number in order for source in graph.nodes[number].inputs}
    made: dict[int, int] = {}
    for number in order:
        node = graph.nodes[number]
        if node.statistic:
            (source,) = node.inputs
            made[number] = made.get(source, _first(graph, made, source))
        elif node.flops and node.has_axes and number in read:
            made[number] = _first(graph, made, number)
    return made


def _first(graph: Graph, made: dict[int, int], number: int) -> int:
    """Return the first segment that can compute a node, given what earlier ones made."""
    found, stack, seen = 0, list(graph.nodes[number].inputs), set[int]()
    while stack:
        source = stack.pop()
        if source in made:
            found = max(found, made[source] + 1)
        elif source not in seen:
            seen.add(source)
            stack.extend(graph.nodes[source].inputs)
    return found


def _segment(graph: Graph, made: dict[int, int], number: int, last: int) -> Segment:
    nodes = graph.nodes
    here = tuple(sorted(n for n, at in made.items() if at == number))
    statistics = tuple(n for n in here if nodes[n].statistic)
    stores = graph.ends if number == last else tuple(n for n in here if not nodes[n].statistic)
    before = {n for n, at in made.items() if at < number}
    given, seen = set[int](), set[int]()
    stack = [*stores, *(nodes[s].inputs[0] for s in statistics)]
    while stack:
        source = stack.pop()
        if source == 0 or source in before:
            if not nodes[source].statistic:
                given.add(source)
        elif source not in seen:
            seen.add(source)
            stack.extend(nodes[source].inputs)
    return Segment(tuple(sorted(given)), stores, statistics)
