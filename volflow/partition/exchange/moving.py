"""Windows fetched from the shares of their owners, and its transpose: gradients given back.

What one process sends to another is one message, however many nodes and boxes it holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.exchange.peers import Peers
from volflow.partition.exchange.routes import Route, carried_bytes, routes_of
from volflow.partition.graph import Graph, Window, crop

__all__ = ["Exchange", "blank"]


@dataclass(frozen=True, eq=False)
class Exchange:
    """Moves boxes of nodes between the processes that share a volume.

    Parameters
    ----------
    graph
        The network.
    peers
        The processes.
    owned, wanted
        By node: the share and the window of each process, by rank.
    """

    graph: Graph
    peers: Peers
    owned: Mapping[int, Sequence[Roi]]
    wanted: Mapping[int, Sequence[Roi]]

    def room(self, node: int) -> tuple[Window, Window]:
        """Return memory for this process's window of a node and for its share, one for both.

        Where the share exceeds the window, it has memory of its own.
        """
        me = self.peers.rank
        window, owned = blank(self.graph, node, self.wanted[node][me]), self.owned[node][me]
        inside = owned.size > 0 and owned.intersect(window.box) == owned
        return window, self._part(window, owned, node) if inside else blank(self.graph, node, owned)

    def fetch(self, windows: Mapping[int, Window], shares: Mapping[int, Window]) -> None:
        """Fill this process's windows of some nodes; all processes take part.

        Parameters
        ----------
        windows, shares
            As `room` returned them, by node, the same nodes on all processes. The shares hold
            their values.
        """
        for node, share in shares.items():
            part = share.box.intersect(windows[node].box)
            if not part.size:
                continue
            into = self._part(windows[node], part, node).values
            own = self._part(share, part, node).values
            if into.data_ptr() != own.data_ptr():
                into.copy_(own)
        for route, values in self._carried(shares, lambda r: (r.owner, r.reader), shares):
            self._part(windows[route.node], route.box, route.node).values.copy_(values)

    def given_back(
        self, nodes: Iterable[int], gradients: Mapping[int, Window]
    ) -> dict[int, Window]:
        """Return the gradients of this process's shares; all processes take part.

        What others give is added in the order of their ranks, to what this process gives, in whose
        memory the sum may lie.

        Parameters
        ----------
        nodes
            The nodes, the same on all processes.
        gradients
            Those of this process's windows; zero where one is missing.
        """
        me, sums = self.peers.rank, dict[int, Window]()
        windows = {n: gradients[n] if n in gradients else self._zero(n, self.wanted[n][me])
                   for n in nodes}  # fmt: skip
        for n, window in windows.items():
            owned = self.owned[n][me]
            part = owned.intersect(window.box)
            if part.size and part == owned:
                sums[n] = self._part(window, part, n)
                continue
            sums[n] = self._zero(n, owned)
            if part.size:
                self._part(sums[n], part, n).values.copy_(self._part(window, part, n).values)
        for route, values in self._carried(sums, lambda r: (r.reader, r.owner), windows):
            self._part(sums[route.node], route.box, route.node).values.add_(values)
        return sums

    def _routes(self, nodes: Iterable[int]) -> list[Route]:
        """Return all routes; the widest values come first, which aligns all within a message."""
        order = sorted(nodes, key=lambda n: (-self.graph.nodes[n].dtype.itemsize, n))
        return [r for n in order for r in routes_of(n, self.owned[n], self.wanted[n])]

    def _carried(
        self,
        nodes: Iterable[int],
        ends: Callable[[Route], tuple[int, int]],
        held: Mapping[int, Window],
    ) -> list[tuple[Route, Tensor]]:
        """Return the boxes that others send to this process, in order of routes.

        Parameters
        ----------
        nodes
            Nodes of which boxes are moved.
        ends
            Sender and receiver of a route.
        held
            Windows, by node, in which lies what this process sends.
        """
        me = self.peers.rank
        going, coming = defaultdict[int, list[Route]](list), defaultdict[int, list[Route]](list)
        routes = [route for route in self._routes(nodes) if route.owner != route.reader]
        for route in routes:
            sender, receiver = ends(route)
            if sender == me:
                going[receiver].append(route)
            elif receiver == me:
                coming[sender].append(route)
        received = self.peers.swap(
            {peer: self._packed(each, held) for peer, each in going.items()},
            {peer: carried_bytes(self.graph, each) for peer, each in coming.items()},
        )
        parts: dict[Route, Tensor] = {}
        for peer, each in coming.items():
            counts = [carried_bytes(self.graph, [one]) for one in each]
            for route, flat in zip(each, received.pop(peer).split(counts), strict=True):
                parts[route] = self._unpacked(route, flat)
        return [(route, parts[route]) for route in routes if route in parts]

    def _packed(self, routes: Sequence[Route], held: Mapping[int, Window]) -> Tensor:
        parts = [self._part(held[r.node], r.box, r.node).values for r in routes]
        return torch.cat([part.contiguous().view(-1).view(torch.uint8) for part in parts])

    def _unpacked(self, route: Route, flat: Tensor) -> Tensor:
        values = flat.to(self.graph.device).view(self.graph.nodes[route.node].dtype)
        return values.view(_shape(self.graph, route.node, route.box))

    def _zero(self, node: int, box: Roi) -> Window:
        found = blank(self.graph, node, box)
        found.values.zero_()
        return found

    def _part(self, window: Window, box: Roi, node: int) -> Window:
        """Return a box within a window, a view."""
        return crop(window, box, self.graph.nodes[node].dims)


def blank(graph: Graph, number: int, box: Roi) -> Window:
    """Return memory for a box of a node."""
    dtype = graph.nodes[number].dtype
    return Window(torch.empty(_shape(graph, number, box), dtype=dtype, device=graph.device), box)


def _shape(graph: Graph, number: int, box: Roi) -> tuple[int, ...]:
    node, sides = graph.nodes[number], box.shape
    pairs = zip(node.shape, node.dims, strict=True)
    return tuple(size if axis is None else sides[axis] for size, axis in pairs)
