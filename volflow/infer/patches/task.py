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
from volflow.infer.patches.job import PredictJob
from volflow.infer.patches.sliding import slide
from volflow.infer.patches.write_behind import Writer
from volflow.model.forward import torch_threads

__all__ = ["predict_blocks"]


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
        if run and job.roi(run[-1]).stop[0] != job.roi(number).start[0]:
            yield tuple(run)
            run = []
        run.append(number)
    if run:
        yield tuple(run)


def _run(job: PredictJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    tile = job.tile(blocks)
    with (
        closing(Writer(job, blocks, context)) as writer,
        closing(slide(job.window, tile, context)) as sliding,
    ):
        for first, rows in sliding:
            for number in writer.put(first, rows):
                yield Step(number, 0)
            height = next(iter(rows.values())).shape[-3]
            yield Step(None, height * tile.shape[1] * tile.shape[2])
        for number in writer.flush():
            yield Step(number, 0)
