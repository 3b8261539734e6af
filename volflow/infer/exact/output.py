"""The last pass of an exact prediction, which writes the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.engine.task import Context, Step
from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.infer.finish import Finish
from volflow.infer.method import Target
from volflow.model.forward import torch_threads
from volflow.partition.graph import Graph, needed
from volflow.passes.network import Blockwise

__all__ = ["ExactOutput", "OutputJob", "exact_outputs"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ExactOutput:
    """Turns boxes of a network's outputs into what is stored.

    Parameters
    ----------
    names
        Node number by the output's name.
    finish
        Turns scores into stored voxels.
    frame
        Frame of the network.
    dropped
        The axis of the frame that a network of slices does not see.
    """

    names: Mapping[str, int]
    finish: Finish
    frame: Frame
    dropped: int | None

    def rows(self, blockwise: Blockwise, graph: Graph, box: Roi) -> dict[str, Array]:
        """Return finished voxels of a box of the outputs, in frame order, by output.

        Parameters
        ----------
        blockwise
            Computes boxes of the network; for a network of slices its image has three axes.
        graph
            The graph of the network.
        box
            A box in frame coordinates, output voxels.

        Returns
        -------
        dict
            ``CZYX`` scores or ``ZYX`` classes.
        """
        axis = self.dropped
        if axis is None:
            return self._finished(blockwise, graph, box)
        flat = _without(box, axis)
        read = needed(graph, dict.fromkeys(self.names.values(), flat), {0})[0]
        # All slices at once, since they share the stored chunks.
        slices = blockwise.image(_across(read, axis, box.start[axis], box.stop[axis]))
        rows: dict[str, list[Array]] = {}
        for number in range(box.shape[axis]):
            image = slices.take(number, axis=1 + axis)

            def part(inner: Roi, image: Array = image) -> Array:
                return image[(slice(None), *inner.relative_to(read.start).slices())]

            for name, voxels in self._finished(replace(blockwise, image=part), graph, flat).items():
                rows.setdefault(name, []).append(voxels)
        return {name: np.concatenate(voxels, axis=axis - 3) for name, voxels in rows.items()}

    def _finished(self, blockwise: Blockwise, graph: Graph, box: Roi) -> dict[str, Array]:
        network = blockwise.network
        with network.inference():  # an activation of the user's runs outside of it
            values = dict(blockwise.compute(graph, dict.fromkeys(self.names.values(), box)))
        found = {}
        for name, number in self.names.items():
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


@dataclass(frozen=True)
class OutputJob:
    """The last pass.

    Parameters
    ----------
    blockwise, output
        What computes boxes of the outputs, and what becomes of them.
    blocks
        The tiling of the result, stored axes, output voxels.
    targets
        Where the outputs are written.
    threads, peak_bytes
        As in `PassJob`.
    """

    blockwise: Blockwise
    output: ExactOutput
    blocks: BlockGrid
    targets: tuple[Target, ...]
    threads: int
    peak_bytes: int


def exact_outputs(job: OutputJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Compute blocks of the outputs and write them."""
    graph = job.blockwise.network.graph()
    context.trim()
    for number in blocks:
        context.trim(job.peak_bytes)
        box = job.blocks[number].write_roi
        frame = job.output.frame
        with context.block(number) as block:
            with context.stage("model"), torch_threads(job.threads):
                rows = job.output.rows(job.blockwise, graph, frame.roi(box, job.blocks.shape))
            for target in job.targets:
                stored = frame.store(rows.pop(target.name))
                block.write(target.volume, box, stored, target.array)
        yield Step(number, box.size)
