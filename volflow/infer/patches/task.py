"""The task behind ``predict``: one run of neighbouring blocks through the model.

Read → forward → blend → write, each in its own thread or stream: while the model computes one
layer of patches, the next rows are read and the last block is compressed and written. The seam
between two blocks of a run stays open in the blend, so each patch is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from volflow.engine.task import Context, Step
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.infer.method import Targets
from volflow.infer.patches.sliding import SlidingWindow, slide
from volflow.infer.patches.writer import Writer, tile_of
from volflow.model.forward import torch_threads

__all__ = ["PredictJob", "predict_blocks"]


@dataclass(frozen=True)
class PredictJob:
    """Everything a task needs to know; small and picklable.

    Parameters
    ----------
    window
        What decides the voxels.
    grid
        The tiling of the outputs, in output voxels and stored axis order.
    targets
        Where they are written.
    threads
        Of torch.
    """

    window: SlidingWindow
    grid: BlockGrid
    targets: Targets
    threads: int

    def tile(self, *blocks: int) -> Roi:
        """Return the box of a run of blocks, in frame coordinates and output voxels."""
        return tile_of(self.grid, self.window.inputs.frame, blocks)


def predict_blocks(job: PredictJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Run blocks that lie behind each other along the frame's first axis."""
    context.trim()
    for run in _neighbours(job, blocks):
        with torch_threads(job.threads), torch.inference_mode():
            yield from _run(job, run, context)


def _neighbours(job: PredictJob, blocks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Cut a sequence of blocks where the next does not begin where the last ended."""
    run: list[int] = []
    for number in blocks:
        if run and job.tile(run[-1]).stop[0] != job.tile(number).start[0]:
            yield tuple(run)
            run = []
        run.append(number)
    if run:
        yield tuple(run)


def _run(job: PredictJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    tile, frame = job.tile(*blocks), job.window.inputs.frame
    with (
        closing(Writer(job.grid, frame, job.targets, blocks, context)) as writer,
        closing(slide(job.window, tile, context)) as sliding,
    ):
        for first, rows in sliding:
            for number in writer.put(first, rows):
                yield Step(number, 0)
            height = next(iter(rows.values())).shape[-3]
            yield Step(None, height * tile.shape[1] * tile.shape[2])
        for number in writer.flush():
            yield Step(number, 0)
