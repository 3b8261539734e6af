"""Which box of a node goes from which process to which: every process works out all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from volflow.geometry.roi import Roi
from volflow.partition.gradients import Segmented
from volflow.partition.graph import Graph, hull_of
from volflow.partition.segments import core

__all__ = ["Route", "carried_bytes", "routes_of", "shares_of", "windows_of"]


@dataclass(frozen=True)
class Route:
    """A box of a node that one process reads and one owns, perhaps the same.

    Parameters
    ----------
    node
        Number of the node.
    owner, reader
        Ranks of the processes.
    box
        The part of the owner's share that lies in the reader's window.
    """

    node: int
    owner: int
    reader: int
    box: Roi


def routes_of(node: int, owned: Sequence[Roi], wanted: Sequence[Roi]) -> tuple[Route, ...]:
    """Return the routes of a node, those of one reader behind each other.

    Parameters
    ----------
    node
        Number of the node.
    owned, wanted
        Share and window of each process, by rank; shares do not overlap.

    Examples
    --------
    >>> shares, windows = [Roi((0,), (4,)), Roi((4,), (8,))], [Roi((0,), (5,)), Roi((3,), (8,))]
    >>> [(r.owner, r.reader, r.box.start, r.box.stop) for r in routes_of(1, shares, windows)]
    [(0, 0, (0,), (4,)), (1, 0, (4,), (5,)), (0, 1, (3,), (4,)), (1, 1, (4,), (8,))]
    """
    found = (
        Route(node, owner, reader, share.intersect(window))
        for reader, window in enumerate(wanted)
        for owner, share in enumerate(owned)
    )
    return tuple(route for route in found if route.box.size)


def shares_of(net: Segmented, boxes: Sequence[Roi]) -> dict[int, tuple[Roi, ...]]:
    """Return the share of each process, by node that segments are given.

    Parameters
    ----------
    net
        The network.
    boxes
        The box of the image that each process owns, by rank.
    """
    nodes = sorted({n for segment in net.segments for n in segment.given})
    return {n: tuple(core(net.graph, n, box) for box in boxes) for n in nodes}


def windows_of(net: Segmented, boxes: Sequence[Roi]) -> dict[int, tuple[Roi, ...]]:
    """Return the window that each process keeps, by node that segments are given.

    A node has one window on a process, which holds what all segments read of it. Where it is
    measured, it holds the share of the process, too: the gradient of a statistic needs it.

    Parameters
    ----------
    net, boxes
        As for `shares_of`.
    """
    found = {node: list(shares) for node, shares in shares_of(net, boxes).items()}
    measured = {
        net.graph.nodes[s].inputs[0] for segment in net.segments for s in segment.statistics
    }
    for node, shares in found.items():
        if node not in measured:
            found[node] = [Roi(share.start, share.start) for share in shares]
    for number in range(len(net.segments)):
        for rank, box in enumerate(boxes):
            for node, read in net.windows(number, box).items():
                found[node][rank] = hull_of(found[node][rank], read)
    return {node: tuple(windows) for node, windows in found.items()}


def carried_bytes(graph: Graph, routes: Iterable[Route]) -> int:
    """Return the bytes that routes carry from one process to another, in one direction."""
    return sum(
        graph.nodes[route.node].value_bytes * route.box.size
        for route in routes
        if route.owner != route.reader
    )
