"""What the network of an exact prediction sees: its axes, its padded image, its graph."""

from __future__ import annotations

import torch

from volflow.infer.request import Request
from volflow.model.forward import Output
from volflow.partition.graph import Graph
from volflow.partition.reach import padded_sizes, scale_of
from volflow.passes.network import Network
from volflow.store.slabs import refuse_complex

__all__ = ["dropped_axis", "network_of", "seen_axes", "traced"]


def dropped_axis(request: Request) -> int | None:
    """Return the axis of the frame that a network of slices does not see: where the patch is 1."""
    if request.options.patch is None:
        return None
    sides = request.options.sides
    return sides.index(1) if 1 in sides else None


def seen_axes(request: Request) -> tuple[int, ...]:
    """Return the axes of the frame that the network sees."""
    dropped = dropped_axis(request)
    return tuple(axis for axis in range(3) if axis != dropped)


def network_of(request: Request, sizes: tuple[int, ...], device: str, precision: str) -> Network:
    """Return the model as a network for the padded image, on a device in a precision."""
    forward, seen = request.forward(device, precision), seen_axes(request)
    return Network(
        request.model.digest,
        request.inputs.channels,
        sizes,
        device,
        precision,
        forward.dtype,
        tuple(seen.index(axis) for axis in forward.flips if axis in seen),
    )


def traced(request: Request) -> tuple[tuple[int, ...], Graph, tuple[Output, ...]]:
    """Trace the model on the padded image; nothing is computed.

    Returns
    -------
    sizes
        Sides of the padded image along the axes that the network sees.
    graph
        The network for such an image.
    outputs
        What the network returns, as for patches.

    Raises
    ------
    NoExactRule
        Where an op of the model has no rule.
    InvalidInput
        Where the model does not take such an image, or returns complex numbers.
    """
    module, inputs = request.model.module, request.inputs
    sides = [inputs.shape[axis] for axis in seen_axes(request)]
    sizes = padded_sizes(module, inputs.channels, sides)
    graph = network_of(request, sizes, "cpu", "float32").graph(module)
    for name, number in graph.outputs.items():
        value = torch.empty(0, dtype=graph.nodes[number].dtype)
        refuse_complex(value, f"the model's output {name}".rstrip())
    scales = dict(zip(seen_axes(request), scale_of(graph), strict=True))
    scale = (scales.get(0, 1), scales.get(1, 1), scales.get(2, 1))
    named = graph.outputs.items()
    return sizes, graph, tuple(Output(name, graph.nodes[n].shape[1], scale) for name, n in named)
