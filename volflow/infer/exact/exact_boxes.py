"""Boxes of an exact prediction on demand, each computed from its own margin.

A region costs its own boxes only. Nothing is kept between boxes, so a whole volume goes faster
through ``predict``. Statistics of the whole volume are measured once, before the first box.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from volflow.engine.cluster import connect, memory_per_worker
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.infer.exact.output import ExactOutput
from volflow.infer.exact.plan import decide, passes_of
from volflow.infer.exact.seen import dropped_axis, network_of, seen_axes, traced
from volflow.infer.finish import Finish
from volflow.infer.method import Hull, Rows
from volflow.infer.request import Request
from volflow.model.forward import Output
from volflow.model.resident import ModelPlugin, lent
from volflow.partition.graph import needed
from volflow.partition.reductions import partials_of, statistic_of
from volflow.passes.cost import Pass, targets_of
from volflow.passes.executor import Passes, run_passes
from volflow.passes.network import Blockwise, Network
from volflow.volumes.framed import FramedImage

__all__ = ["ExactBoxes", "exact_boxes"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ExactBoxes:
    """Everything that decides the voxels of an exact prediction; small and picklable.

    Parameters
    ----------
    inputs, network
        The image and the network.
    dropped
        The frame's axis that a network of slices does not see.
    shape
        Sides of the image, per frame axis.
    outputs, finish
        The outputs of the network, and their conversion to stored voxels.
    statistics
        Merged statistics of the whole volume, by node.
    """

    inputs: FramedImage
    network: Network
    dropped: int | None
    shape: tuple[int, ...]
    outputs: tuple[Output, ...]
    finish: Finish
    statistics: Mapping[int, Array]

    @property
    def scale(self) -> tuple[int, ...]:
        """Input voxels per output voxel."""
        return self.outputs[0].scale

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Sides of the output, per frame axis."""
        return tuple(-(-n // s) for n, s in zip(self.shape, self.scale, strict=True))

    @property
    def cache_key(self) -> tuple[object, ...]:
        """Values that decide the voxels beside the request."""
        return "exact", self.network.device, self.network.precision

    def resolve_device(self) -> ExactBoxes:
        """Return the same on the device that "auto" means on this machine."""
        return replace(self, network=self.network.resolved())

    def with_inputs(self, inputs: FramedImage) -> ExactBoxes:
        """Return the same for other inputs."""
        return replace(self, inputs=inputs)

    def rows(self, tile: Roi) -> Iterator[Rows]:
        """Yield a box of the output at once, in frame coordinates and output voxels."""
        graph = self.network.graph()
        frame = self.inputs.frame
        image = partial(self.inputs.read, dtype=self.network.dtype)
        blockwise = Blockwise(self.network, image, statistics=self.statistics)
        output = ExactOutput(graph.outputs, self.finish, frame, self.dropped)
        yield tile.start[0], output.rows(blockwise, graph, tile)


def exact_boxes(request: Request, *, measurable: bool) -> tuple[ExactBoxes, Hull]:
    """Return what computes boxes of an exact prediction, and which voxels a range depends on.

    Parameters
    ----------
    request
        What is predicted.
    measurable
        Whether statistics of the whole volume can be measured now.

    Raises
    ------
    NoExactRule
        Where an op of the model has none.
    InvalidInput
        Where statistics of an array are needed that is yet to be computed.
    """
    inputs, options = request.inputs, request.options
    dropped, seen = dropped_axis(request), seen_axes(request)
    sizes, graph, outputs = traced(request)
    network = network_of(request, sizes, options.device, options.precision)
    statistics: Mapping[int, Array] = {}
    if graph.statistics and dropped is None:
        if not measurable:
            raise InvalidInput(
                f"the model needs {len(graph.statistics)} statistics of the whole volume, which a"
                " computed array does not have; store it first with vf.write, or use"
                " blend='gaussian'"
            )
        statistics = _measured(request)
    boxes = ExactBoxes(
        inputs,
        network,
        dropped,
        inputs.shape,
        outputs,
        request.finish(network.dtype),
        statistics,
    )

    def hull(axis: int, low: int, high: int) -> tuple[int, int]:
        if axis == dropped:
            return low, high
        at = seen.index(axis)
        start, stop = [0] * len(seen), [1] * len(seen)
        start[at], stop[at] = low, high
        box = Roi(tuple(start), tuple(stop))
        targets = dict.fromkeys(graph.outputs.values(), box)
        low, high = tuple(needed(graph, targets, (0, *statistics))[0])[at]
        return low, min(high, inputs.shape[axis])

    return boxes, hull


def _measured(request: Request) -> dict[int, Array]:
    """Return statistics of the whole volume by node, measured as `predict` does."""
    model = ModelPlugin(request.model.module, request.model.digest)
    with tempfile.TemporaryDirectory() as folder, connect(None) as client, lent(model):
        placed = replace(request, out=Path(folder) / "out.zarr")
        memory_bytes = memory_per_worker(client, None)
        settings = decide(placed, client, memory_bytes)
        passes = passes_of(placed, settings)
        if len(passes.steps) == 1:
            return _of_whole(passes)
        run_passes(passes, request.fingerprint(), client, memory_bytes, False)
        return dict(passes.inputs_of(len(passes.steps) - 1).statistics)


def _of_whole(passes: Passes) -> dict[int, Array]:
    """Return statistics by node of a volume that fits in memory as one block."""
    network = passes.blockwise.network
    graph, found = network.graph(), dict[int, Array]()
    measuring = Pass((0,), (), graph.statistics, graph.sizes(0))
    targets = targets_of(graph, measuring, Roi.full(graph.sizes(0)))
    with network.inference():
        for node, values in passes.blockwise.compute(graph, targets):
            found |= partials_of(graph, graph.statistics, node, values)
    return {number: statistic_of(graph, number).merged([part]) for number, part in found.items()}
