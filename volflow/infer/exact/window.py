"""Boxes of an exact prediction, each computed from its own margin: stored blocks and lazy ones.

A region costs its own boxes only. Between boxes nothing is kept but what passes before have left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.engine.task import Context, Step
from volflow.geometry.roi import Roi
from volflow.infer.finish import Finish
from volflow.infer.method import OutputJob, Rows, array_of
from volflow.infer.request import Request
from volflow.model.forward import Output, torch_threads
from volflow.partition.graph import Graph, needed
from volflow.partition.reach import padded_sizes, scale_of
from volflow.passes.network import Blockwise, Network
from volflow.store.slabs import refuse_complex
from volflow.volumes.framed import FramedImage

__all__ = [
    "ExactWindow",
    "dropped_axis",
    "exact_outputs",
    "network_of",
    "seen_axes",
    "traced",
]

Array = npt.NDArray[Any]


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


@dataclass(frozen=True)
class ExactWindow:
    """Everything that decides the voxels of an exact prediction; small and picklable.

    Parameters
    ----------
    inputs
        The image.
    blockwise
        The network, and what is known of its nodes; it reads the same image.
    dropped
        The frame's axis that a network of slices does not see.
    outputs, finish
        The outputs of the network, and their conversion to stored voxels.
    """

    inputs: FramedImage
    blockwise: Blockwise
    dropped: int | None
    outputs: tuple[Output, ...]
    finish: Finish

    @property
    def cache_key(self) -> tuple[object, ...]:
        """Values that decide the voxels beside the request."""
        return "exact", self.blockwise.network.device, self.blockwise.network.precision

    def resolve_device(self) -> ExactWindow:
        """Return the same on the device that "auto" means on this machine."""
        network = self.blockwise.network.resolved()
        return replace(self, blockwise=replace(self.blockwise, network=network))

    def with_inputs(self, inputs: FramedImage) -> ExactWindow:
        """Return the same for other inputs."""
        image = partial(inputs.read, dtype=self.blockwise.network.dtype)
        return replace(self, inputs=inputs, blockwise=replace(self.blockwise, image=image))

    def rows(self, tile: Roi) -> Iterator[Rows]:
        """Yield a box of the output at once, in frame coordinates and output voxels."""
        graph, axis = self.blockwise.network.graph(), self.dropped
        if axis is None:
            yield tile.start[0], self._finished(self.blockwise, graph, tile)
            return
        flat = _without(tile, axis)
        read = needed(graph, dict.fromkeys(graph.outputs.values(), flat), {0})[0]
        # All slices at once, since they share the stored chunks.
        slices = self.blockwise.image(_across(read, axis, tile.start[axis], tile.stop[axis]))
        found = []
        for number in range(tile.shape[axis]):
            image = slices.take(number, axis=1 + axis)

            def part(inner: Roi, image: Array = image) -> Array:
                return image[(slice(None), *inner.relative_to(read.start).slices())]

            found.append(self._finished(replace(self.blockwise, image=part), graph, flat))
        names = graph.outputs
        yield tile.start[0], {n: np.concatenate([f[n] for f in found], axis - 3) for n in names}

    def _finished(self, blockwise: Blockwise, graph: Graph, box: Roi) -> dict[str, Array]:
        """Return finished voxels of a box of the outputs, ``CZYX`` or ``ZYX``, by output."""
        network = blockwise.network
        with network.inference():  # an activation of the user's runs outside of it
            values = dict(blockwise.compute(graph, dict.fromkeys(graph.outputs.values(), box)))
        found = {}
        for name, number in graph.outputs.items():
            scores = values[number][0]
            wide = scores if self.dropped is None else scores.unsqueeze(1 + self.dropped)
            # In the network's own precision, as scores of patches are.
            found[name] = self._voxels(wide.to(network.torch_dtype).numpy(force=True))
        return found

    def _voxels(self, scores: Array) -> Array:
        """Return finished voxels of scores ``CZYX``, a few rows at a time."""
        step = max(1, 2**22 // max(1, scores[:, :1].size))
        return np.concatenate(
            [
                # A copy: it may be finished in place, and outputs may share their memory.
                self.finish(scores[:, low : low + step].copy())
                for low in range(0, scores.shape[1], step)
            ],
            axis=-3,
        )


def _without(box: Roi, axis: int) -> Roi:
    """Return a box without one of its axes, as a network of slices sees it."""
    start, stop = (side[:axis] + side[axis + 1 :] for side in (box.start, box.stop))
    return Roi(start, stop)


def _across(box: Roi, axis: int, low: int, high: int) -> Roi:
    """Return a box of slices ``[low, high)`` along an axis that the network does not see."""
    start = (*box.start[:axis], low, *box.start[axis:])
    return Roi(start, (*box.stop[:axis], high, *box.stop[axis:]))


def exact_outputs(
    job: OutputJob[ExactWindow], blocks: tuple[int, ...], context: Context
) -> Iterator[Step]:
    """Compute blocks of the outputs and write them."""
    frame = job.window.inputs.frame
    context.trim()
    for number in blocks:
        context.trim(job.peak_bytes)
        box = job.grid[number]
        with context.block(number) as block:
            with context.stage("model"), torch_threads(job.threads):
                _, rows = next(job.window.rows(frame.roi(box, job.grid.shape)))
            for name, volume in job.targets.items():
                block.write(volume, box, frame.store(rows.pop(name)), array_of(name))
        yield Step(number, box.size)
