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
from volflow.geometry.grid import slice_axis
from volflow.geometry.roi import Roi
from volflow.infer.exact.finishing import Finished, finished, joined, leaving
from volflow.infer.finish import Finish
from volflow.infer.method import OutputJob, Rows, array_of
from volflow.infer.request import Request
from volflow.model.copies import Copies
from volflow.model.device import machine_of
from volflow.model.forward import Output, torch_threads
from volflow.partition.graph import Graph, Window, needed
from volflow.partition.reach import padded_sizes, scale_of
from volflow.passes.network import Blockwise, Network, Sent
from volflow.passes.pipeline import Launched, Pipeline, within_memory
from volflow.store.journal.provenance import note_machine
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
    return slice_axis(request.options.sides)


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
        yield tile.start[0], self.begun(tile, self.copies())()

    def copies(self) -> Copies:
        """Return copies to the network's device and from it."""
        return Copies(self.blockwise.network.place)

    def send(self, tile: Roi, copies: Copies) -> Sent:
        """Read all that a box of the output is computed from, and begin to copy it to the device.

        Of a network of slices all slices at once, since they share the stored chunks.
        """
        graph, axis = self.blockwise.network.graph(), self.dropped
        if axis is None:
            return self.blockwise.send(graph, dict.fromkeys(graph.outputs.values(), tile), copies)
        read = self._slice(graph, tile)
        slices = self.blockwise.image(_across(read, axis, tile.start[axis], tile.stop[axis]))
        return Sent({0: (read, copies.upload([slices]))})

    def begun(
        self, tile: Roi, copies: Copies, sent: Sent | None = None
    ) -> Launched[dict[str, Array]]:
        """Compute a box of the output, or begin to on a GPU.

        Parameters
        ----------
        tile
            In frame coordinates and output voxels.
        copies, sent
            To the device, and what was sent with them; by default it is read now.

        Returns
        -------
        Launched
            Waits for finished voxels, ``CZYX`` or ``ZYX``, by output.
        """
        graph, ahead = self.blockwise.network.graph(), [] if sent is None else [sent]

        def compute(box: Roi) -> Launched[dict[str, Array]]:
            given = ahead.pop() if ahead else None
            if self.dropped is None:
                found = self._finished(graph, box, None if given is None else given.taken())
            else:
                found = self._slices(graph, box, given or self.send(box, copies))
            return leaving(self.finish, found, copies)

        def join(axis: int, low: dict[str, Array], high: dict[str, Array]) -> dict[str, Array]:
            return {name: np.concatenate([low[name], high[name]], axis - 3) for name in low}

        return within_memory(copies.device, tile, lambda: (1, 1, 1), compute, join)

    def _slice(self, graph: Graph, tile: Roi) -> Roi:
        """Return the box of the image from which a slice of a box of the output is computed."""
        assert self.dropped is not None
        flat = _without(tile, self.dropped)
        return needed(graph, dict.fromkeys(graph.outputs.values(), flat), {0})[0]

    def _slices(self, graph: Graph, box: Roi, sent: Sent) -> dict[str, Finished]:
        """Return finished voxels of a box of a network of slices, one after the other."""
        axis = self.dropped
        assert axis is not None
        flat, slices = _without(box, axis), sent.taken()[0]
        found = []
        for number in range(box.shape[axis]):
            image = slices.values.select(1 + axis, number).contiguous()[None]
            found.append(self._finished(graph, flat, {0: Window(image, slices.box)}))
        return {n: joined([one[n] for one in found], axis - 3) for n in graph.outputs}

    def _finished(
        self, graph: Graph, box: Roi, windows: dict[int, Window] | None
    ) -> dict[str, Finished]:
        """Return finished voxels of a box of the outputs, as the network sees it, by output."""
        network, targets = self.blockwise.network, dict.fromkeys(graph.outputs.values(), box)
        with network.inference():  # an activation of the user's runs outside of it
            values = dict(self.blockwise.compute(graph, targets, windows))
        found = {}
        for name, number in graph.outputs.items():
            scores = values[number][0]
            wide = scores if self.dropped is None else scores.unsqueeze(1 + self.dropped)
            # In the network's own precision, as scores of patches are.
            found[name] = finished(self.finish, wide, network.torch_dtype)
        return found


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
    window, frame, copies = job.window, job.window.inputs.frame, job.window.copies()
    with torch_threads(job.threads):
        note_machine(context.journal, machine_of(str(copies.device)))
    pipeline = Pipeline(copies.device, context, job.threads, job.peak_bytes)

    def tile(number: int) -> Roi:
        return frame.roi(job.grid[number], job.grid.shape)

    def send(number: int) -> Sent:
        return window.send(tile(number), copies)

    def launch(number: int, sent: Sent | None) -> Launched[dict[str, Array]]:
        return window.begun(tile(number), copies, sent)

    for number, launched in pipeline.run(blocks, send, launch):
        box = job.grid[number]
        with context.block(number) as block:
            with context.stage("model"):
                rows = launched()
            for name, volume in job.targets.items():
                block.write(volume, box, frame.store(rows.pop(name)), array_of(name))
        yield Step(number, box.size)
