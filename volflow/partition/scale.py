"""The scale of each node of a graph over its input, and the alignment of blocks."""

from __future__ import annotations

import math
from fractions import Fraction

from volflow.partition.graph import Graph
from volflow.partition.ranges import AxisMap, Gather, Lerp, Merge, Slide, Split, Spread

__all__ = ["alignment_of", "scales_of"]


def scales_of(graph: Graph) -> tuple[tuple[Fraction, ...], ...]:
    """Return the input voxels per voxel of each node, per axis; 1 where it has no such axis."""
    one = (Fraction(1),) * graph.ndim
    scales = [one]
    for number, node in enumerate(graph.nodes[1:], start=1):
        found = list(one)
        for source, maps in zip(node.inputs, node.reads, strict=True):
            for axis, each in enumerate(maps):
                # An axis of one voxel is an axis, too; a tensor without it is broadcast.
                if axis in graph.nodes[source].dims and axis in graph.nodes[number].dims:
                    sizes = graph.sizes(source)[axis], graph.sizes(number)[axis]
                    found[axis] = scales[source][axis] * _step(each, *sizes)
        scales.append(tuple(found))
    return tuple(scales)


def _step(each: AxisMap, size: int, outputs: int) -> Fraction:
    """Return the input voxels per output voxel of one op."""
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
    """Return the number that divides the sides of blocks and of the padded volume, per axis.

    Every node's share of an aligned block then begins and ends with a whole voxel.
    """
    scales = scales_of(graph)
    return tuple(
        math.lcm(*(scale[axis].numerator for scale in scales)) for axis in range(graph.ndim)
    )
