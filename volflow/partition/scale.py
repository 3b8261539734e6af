"""How finely each node of a graph lies over the input, and what blocks must be multiples of."""

from __future__ import annotations

import math
from fractions import Fraction

from volflow.partition.graph import Graph
from volflow.partition.ranges import AxisMap, Gather, Lerp, Merge, Slide, Split, Spread

__all__ = ["alignment_of", "scales_of"]


def scales_of(graph: Graph) -> tuple[tuple[Fraction, ...], ...]:
    """Input voxels per voxel of each node, per axis; 1 where it has no such axis."""
    one = (Fraction(1),) * graph.ndim
    scales = [one]
    for number, node in enumerate(graph.nodes[1:], start=1):
        found = list(one)
        for source, maps in zip(node.inputs, node.reads, strict=True):
            for axis, each in enumerate(maps):
                # An axis of one voxel is an axis too; what has none is broadcast.
                if axis in graph.nodes[source].dims and axis in graph.nodes[number].dims:
                    sizes = graph.sizes(source)[axis], graph.sizes(number)[axis]
                    found[axis] = scales[source][axis] * _step(each, *sizes)
        scales.append(tuple(found))
    return tuple(scales)


def _step(each: AxisMap, size: int, outputs: int) -> Fraction:
    """Input voxels per output voxel of one op."""
    if isinstance(each, Slide):
        return Fraction(each.stride)
    if isinstance(each, Spread):
        return Fraction(1, each.stride)
    if isinstance(each, Split):
        return Fraction(1, each.factor)
    if isinstance(each, Merge):
        return Fraction(each.factor)
    if isinstance(each, Lerp):
        return Fraction(size, outputs)
    if isinstance(each, Gather):
        return each.scale
    return Fraction(1)


def alignment_of(graph: Graph) -> tuple[int, ...]:
    """What the sides of blocks and of the padded volume are multiples of, per axis.

    Where they are, every node's share of a block begins and ends with a voxel of its own.
    """
    scales = scales_of(graph)
    return tuple(
        math.lcm(*(scale[axis].numerator for scale in scales)) for axis in range(graph.ndim)
    )
