"""The task behind ``predict``: one run of neighbouring blocks through the model.

Read → forward → blend → write, each in its own thread or stream: while the model computes one
layer of patches, the next rows are read and the last block is compressed and written. The seam
between two blocks of a run stays open in the blend, so each patch is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import torch

from volflow.engine.task import Context, Step
from volflow.infer.method import OutputJob
from volflow.infer.patches.sliding import SlidingWindow, slide
from volflow.infer.patches.writer import Writer, tile_of
from volflow.model.forward import torch_threads

__all__ = ["predict_blocks"]

Job = OutputJob[SlidingWindow]


def predict_blocks(job: Job, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Run blocks that lie behind each other along the frame's first axis."""
    context.trim()
    for run in _neighbours(job, blocks):
        with torch_threads(job.threads), torch.inference_mode():
            yield from _run(job, run, context)


def _neighbours(job: Job, blocks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Cut a sequence of blocks where the next does not begin where the last ended."""
    run: list[int] = []
    end = 0
    for number in blocks:
        box = tile_of(job.grid, job.window.inputs.frame, (number,))
        if run and box.start[0] != end:
            yield tuple(run)
            run = []
        run.append(number)
        end = box.stop[0]
    if run:
        yield tuple(run)


def _run(job: Job, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    frame = job.window.inputs.frame
    tile = tile_of(job.grid, frame, blocks)
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
