"""The reach of a network: the margin, alignment and statistics that its output depends on.

All of it is derived by tracing the network on a tensor without values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from volflow.errors import InvalidInput, VolflowError, first_line
from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import per_axis
from volflow.geometry.roi import Roi
from volflow.partition.draws import Draws
from volflow.partition.footprint import live_bytes
from volflow.partition.graph import Graph, needed
from volflow.partition.ranges import AxisMap, Gather, Lerp, Merge, Slide, Split, Spread
from volflow.partition.trace import trace

__all__ = [
    "Halo",
    "alignment_of",
    "halo_of",
    "padded_sizes",
    "scale_of",
    "trace_any",
    "work",
]

# Sides on which a network is traced when no shape is given: with many powers of 2, then with other
# factors as well. They cost nothing, and no margin exceeds them.
SIDES = (4096, 15120, 46080)
BLOCKS = (64, 128, 256, 512)
# Places at which the margin is measured: ops such as corner-aligned interpolation drift.
PLACES = 33


@dataclass(frozen=True)
class Halo:
    """Requirements of exact inference with a network.

    Parameters
    ----------
    margin
        ``(low, high)`` per axis: voxels of the input beyond an aligned block from which its
        output is computed.
    alignment
        Per axis, the number that divides the sides of blocks; a volume is zero-padded at its far
        end to a multiple.
    statistics
        Number of layers that need statistics of the whole volume, such as instance norms.
    scale
        Per axis, input voxels per output voxel.
    graph
        The network, for a volume of one shape.

    Examples
    --------
    >>> from volflow.model.unet import UNet
    >>> found = halo_of(UNet(1, 2, features=(4, 8, 16), norm="instance").eval())
    >>> found.margin[0], found.alignment, found.statistics
    ((22, 22), (4, 4, 4), 10)
    >>> round(found.overhead(64), 1), round(found.overhead(256), 2)
    (2.0, 1.18)
    """

    margin: tuple[tuple[int, int], ...]
    alignment: tuple[int, ...]
    statistics: int
    scale: tuple[int, ...]
    graph: Graph = field(repr=False, compare=False)

    def overhead(self, block: int | Sequence[int]) -> float:
        """Return the computation of an interior block relative to its share of the whole volume's.

        Each layer is computed only where it is needed, so this is less than the volume of block
        and margin would suggest.

        Parameters
        ----------
        block
            Sides in input voxels, one or one per axis.
        """
        boxes = self._boxes(block)
        whole = work(self.graph, {n: self._full(n) for n in boxes})
        share = math.prod(self._inside(block)) / math.prod(self.graph.sizes(0))
        # A network that returns its image computes nothing.
        return work(self.graph, boxes) / (whole * share) if whole else 1.0

    def activation_bytes(self, block: int | Sequence[int]) -> int:
        """Return the projected bytes of the tensors alive at once in an interior block."""
        return live_bytes(self.graph, self._boxes(block), self._given)

    def to_dict(self, blocks: Sequence[int] = BLOCKS) -> dict[str, Any]:
        """Return plain values, for machines."""
        return {
            "margin": [list(sides) for sides in self.margin],
            "alignment": list(self.alignment),
            "statistics": self.statistics,
            "scale": list(self.scale),
            "blocks": [
                {
                    "block": block,
                    "overhead": round(self.overhead(block), 3),
                    "activation_bytes": self.activation_bytes(block),
                }
                for block in blocks
                if block >= max(self.alignment)
            ],
        }

    def describe(self, blocks: Sequence[int] = BLOCKS) -> str:
        """Return the same as text for people."""
        axes = "zyx"[-len(self.margin) :]

        def by_axis(values: Sequence[Any]) -> str:
            if len(set(values)) == 1:
                return str(values[0])
            return ", ".join(f"{axis} {value}" for axis, value in zip(axes, values, strict=True))

        sides = by_axis([f"{a}" if a == b else f"{a} before, {b} behind" for a, b in self.margin])
        lines = [
            f"margin      {sides} voxels per side",
            f"alignment   {by_axis(self.alignment)}",
            f"statistics  {self.statistics} layers need the whole volume",
        ]
        if set(self.scale) != {1}:
            lines.append(f"scale       {by_axis(self.scale)} input voxels per output voxel")
        lines.append("block       computed  activations")
        lines += [
            f"{row['block']:>5}³      {row['overhead']:7.2f}×"
            f"  {format_bytes(row['activation_bytes'])}"
            for row in self.to_dict(blocks)["blocks"]
        ]
        return "\n".join(lines)

    @property
    def _given(self) -> tuple[int, ...]:
        return (0, *self.graph.statistics)

    def _full(self, number: int) -> Roi:
        return Roi.full(self.graph.sizes(number))

    def _inside(self, block: int | Sequence[int]) -> tuple[int, ...]:
        sides = per_axis(block, "block", self.graph.ndim)
        return tuple(
            min(n, -(-side // a) * a)
            for side, a, n in zip(sides, self.alignment, self.graph.sizes(0), strict=True)
        )

    def _boxes(self, block: int | Sequence[int]) -> dict[int, Roi]:
        """Return the boxes of all nodes that a block in the middle needs."""
        sides = self._inside(block)
        start = [
            (n - side) // 2 // a * a
            for n, side, a in zip(self.graph.sizes(0), sides, self.alignment, strict=True)
        ]
        target = Roi(
            tuple(a // s for a, s in zip(start, self.scale, strict=True)),
            tuple((a + b) // s for a, b, s in zip(start, sides, self.scale, strict=True)),
        )
        return needed(self.graph, dict.fromkeys(self.graph.outputs.values(), target), self._given)


def work(graph: Graph, boxes: dict[int, Roi]) -> float:
    """Return floating-point operations on boxes, or the number of values without convolutions."""
    if not any(node.flops for node in graph.nodes):
        return float(sum(graph.nodes[n].depth * box.size for n, box in boxes.items() if n))
    return float(
        sum(graph.nodes[n].flops * graph.nodes[n].depth * box.size for n, box in boxes.items())
    )


def halo_of(module: nn.Module, channels: int = 1, shape: Sequence[int] | None = None) -> Halo:
    """Derive the requirements of exact inference with a network.

    Parameters
    ----------
    module
        In eval mode; on any device, in any dtype.
    channels
        Channels of its input.
    shape
        Sides of the volume per axis of the model. By default the network is traced on a very large
        volume of three axes, or of two if it takes images.

    Returns
    -------
    Halo
        Margin, alignment and number of statistics; overhead and memory by block.

    Raises
    ------
    NoExactRule
        If an op cannot be cut into blocks, naming it and its module.
    InvalidInput
        If the model does not take such a volume.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 1, 5, padding=2)).eval()
    >>> halo_of(net).margin
    ((3, 3), (3, 3), (3, 3))
    """
    graph = _followed(module, channels) if shape is None else trace_any(
        module, channels, padded_sizes(module, channels, shape)
    )  # fmt: skip
    alignment, scale = alignment_of(graph), scale_of(graph)
    return Halo(_margin(graph, alignment, scale), alignment, len(graph.statistics), scale, graph)


def padded_sizes(
    module: nn.Module, channels: int, shape: Sequence[int], training: Draws | None = None
) -> tuple[int, ...]:
    """Return the sides of a volume padded to the network's alignment.

    A network may accept a volume whose sides are not multiples of its alignment; that volume is
    padded all the same, so that the result does not depend on which sides it accepts.
    """
    try:
        graph = _followed(module, channels, len(shape), training)
        alignment = alignment_of(graph)
        twice = trace_any(module, channels, [2 * n for n in graph.sizes(0)], training=training)
    except VolflowError as error:
        if training is None:  # it may accept this shape alone
            return tuple(shape)
        try:
            trace_any(module, channels, shape, training=training)
        except VolflowError:
            raise error from None  # that of a small image: this shape may have a fault of its own
        return tuple(shape)
    if alignment_of(twice) != alignment:  # it makes as many voxels of any volume
        return tuple(shape)
    return tuple(-(-n // a) * a for n, a in zip(shape, alignment, strict=True))


def trace_any(
    module: nn.Module,
    channels: int,
    sizes: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    *,
    training: Draws | None = None,
    batch: int = 1,
) -> Graph:
    """Trace a module like `trace`; its own errors become InvalidInput in one line."""
    try:
        return trace(module, channels, sizes, dtype, device, training=training, batch=batch)
    except VolflowError:
        raise
    except Exception as error:  # models raise errors of any class
        raise InvalidInput(
            f"the model does not take an image of shape ({batch}, {channels},"
            f" {', '.join(map(str, sizes))}): {first_line(error)}; give its"
            " channels and a shape that it takes"
        ) from error


def _followed(
    module: nn.Module, channels: int, ndim: int | None = None, training: Draws | None = None
) -> Graph:
    """The graph on sides that suit the network."""
    first: VolflowError | None = None
    for dims in (ndim,) if ndim else (3, 2):
        for side in SIDES:
            try:
                return trace_any(module, channels, (side,) * dims, training=training)
            except VolflowError as error:
                first = first or error
                if type(error) is not InvalidInput:
                    raise
    assert first is not None
    raise first


def _scales_of(graph: Graph) -> tuple[tuple[Fraction, ...], ...]:
    """Return the input voxels per voxel of each node, per axis; 1 if it has no such axis."""
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
    scales = _scales_of(graph)
    return tuple(
        math.lcm(*(scale[axis].numerator for scale in scales)) for axis in range(graph.ndim)
    )


def scale_of(graph: Graph) -> tuple[int, ...]:
    """Return the input voxels per output voxel per axis, which all outputs share.

    Raises
    ------
    InvalidInput
        If outputs differ in scale, are finer than the input, or lose voxels at the border.
    """
    scales = _scales_of(graph)
    found = {tuple(scales[n]) for n in graph.outputs.values()}
    if len(found) > 1:
        raise InvalidInput(
            "the model's outputs differ in resolution; wrap it so that it returns those of one"
            " resolution"
        )
    wanted = [n / s for n, s in zip(graph.sizes(0), next(iter(found)), strict=True)]
    for number in graph.outputs.values():
        node = graph.nodes[number]
        image = node.dims == (None, None, *range(graph.ndim))
        if not image or list(graph.sizes(number)) != wanted:
            raise InvalidInput(
                f"the model makes {node.shape} of an image {graph.nodes[0].shape}; each axis must"
                " equal the image's, or divide it (a model of stride 2 halves it). For a model that"
                " crops its borders pad its convolutions instead"
            )
    if any(s.denominator > 1 for s in next(iter(found))):
        raise InvalidInput("the model's output is finer than its input, which has no exact rule")
    return tuple(int(s) for s in next(iter(found)))


def _margin(
    graph: Graph, alignment: Sequence[int], scale: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Return the largest margin of the smallest aligned blocks, at places all over the volume."""
    sizes = graph.sizes(0)
    given = (0, *graph.statistics)
    reach = [(0, 0)] * graph.ndim
    for place in range(PLACES):
        start = [n // a * place // PLACES * a for n, a in zip(sizes, alignment, strict=True)]
        target = Roi(
            tuple(c // s for c, s in zip(start, scale, strict=True)),
            tuple(-(-(c + a) // s) for c, a, s in zip(start, alignment, scale, strict=True)),
        )
        boxes = needed(graph, dict.fromkeys(graph.outputs.values(), target), given)
        read = boxes.get(0)
        for axis, (low, high) in enumerate(read or ()):
            before, behind = reach[axis]
            reach[axis] = (
                max(before, start[axis] - low),
                max(behind, high - start[axis] - alignment[axis]),
            )
    return tuple(reach)
