"""Ops that are computed over the result of the op before them, where nobody else reads it.

Fresh memory costs several times what a norm or an activation does: the system hands it out page by
page, zeroed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.graph import Compute, Graph, Node, Window
from volflow.partition.ranges import Same
from volflow.partition.rules.kernels import Local

__all__ = ["Chained", "fused"]


@dataclass(frozen=True, eq=False)
class Chained:
    """An op whose result belongs to nobody else, and those that are computed over it.

    Parameters
    ----------
    first
        The op that makes the tensor.
    then
        In order.
    """

    first: Compute
    then: tuple[Local, ...]

    fresh = True

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the result of the last."""
        values = self.first(windows, box)
        for local in self.then:
            assert local.over is not None
            values = local.over(values, box.shape)
        return values


def fused(graph: Graph) -> Graph:
    """Return a graph in which chains of ops that are computed in one place are one node each.

    A graph for training is returned as it is: gradients need what is in between.
    """
    if graph.training:
        return graph
    nodes: list[Node] = []
    places: list[int] = []
    for node in graph.nodes:
        alone = len(node.inputs) == 1 and graph.readers[node.inputs[0]] == 1
        joined = _joined(nodes[places[node.inputs[0]]], node) if alone else None
        if joined is not None:
            places.append(places[node.inputs[0]])
            nodes[places[-1]] = joined
        else:
            nodes.append(replace(node, inputs=tuple(places[n] for n in node.inputs)))
            places.append(len(nodes) - 1)
    outputs = {name: places[number] for name, number in graph.outputs.items()}
    return replace(graph, nodes=tuple(nodes), outputs=outputs)


def _joined(source: Node, node: Node) -> Node | None:
    """Return a node and its only reader as one; None if that cannot be computed over the node."""
    rule, local = source.compute, node.compute
    if not isinstance(local, Local) or local.over is None:
        return None
    alike = (node.shape, node.dims, node.dtype) == (source.shape, source.dims, source.dtype)
    straight = all(axis == Same() for axis in node.reads[0])
    if (
        rule is None
        or source.statistic
        or not (alike and straight and getattr(rule, "fresh", False))
    ):
        return None
    first, then = (rule.first, rule.then) if isinstance(rule, Chained) else (rule, ())
    return replace(
        source,
        name=f"{source.name}, {node.name}",
        compute=Chained(first, (*then, local)),
    )
