"""The task that brings stored scores back to the grid of the volume, block by block."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from volflow.engine.task import Context, Step
from volflow.infer.method import OutputJob, array_of, box_of
from volflow.infer.regrid.brought_back import BroughtBack

__all__ = ["bring_back"]


def bring_back(
    job: OutputJob[BroughtBack], blocks: tuple[int, ...], context: Context
) -> Iterator[Step]:
    """Make blocks of the outputs of stored scores, and write them."""
    frame = job.window.inputs.frame
    for number in blocks:
        context.trim(job.peak_bytes)
        block = job.grid[number]
        tile = frame.roi(block, job.grid.shape)
        made = {
            name: np.empty(box_of(volume, block).shape, volume.dtype)
            for name, volume in job.targets.items()
        }
        shown = {name: frame.show(voxels) for name, voxels in made.items()}
        rows = job.window.rows(tile)
        while True:
            context.check()
            with context.stage("resample"):
                found = next(rows, None)
            if found is None:
                break
            first, values = found
            at = first - tile.start[0]
            for name, part in values.items():
                shown[name][..., at : at + part.shape[-3], :, :] = part
        with context.block(number) as writer:
            for name, volume in job.targets.items():
                writer.write(volume, box_of(volume, block), made.pop(name), array_of(name))
        yield Step(number, block.size)
