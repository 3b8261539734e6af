"""What a prediction task needs to know, as data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from volflow.geometry.grid import BlockGrid, PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import Blend
from volflow.model.forward import Forward
from volflow.ops.feed import Inputs
from volflow.ops.finish import Finish
from volflow.store.journal import Journal
from volflow.store.volume import Volume

__all__ = ["Clock", "PredictJob", "Target"]


@dataclass(frozen=True)
class Target:
    """Where one output of the model goes: its name there, its array below the output, a volume."""

    name: str
    array: str
    channels: int
    volume: Volume


@dataclass(frozen=True)
class PredictJob:
    """Everything a task needs to know; small and picklable.

    Parameters
    ----------
    inputs, grid, scale
        Patches in frame coordinates; input voxels per output voxel.
    blocks
        The tiling of the outputs, in output voxels and stored axis order.
    forward, batch_size, threads
        The model; batches are consecutive patches of one row of the grid.
    blend, finish, targets
        What becomes of its scores.
    journal, session
        Where done blocks are recorded, and the driver this task belongs to.
    memory_bytes
        What the task may add to its process.
    """

    inputs: Inputs
    grid: PatchGrid
    scale: tuple[int, ...]
    blocks: BlockGrid
    forward: Forward
    batch_size: int
    threads: int
    blend: Blend
    finish: Finish
    targets: tuple[Target, ...]
    journal: Journal
    session: str
    memory_bytes: int

    def roi(self, block: int) -> Roi:
        """A block's box in frame coordinates, in output voxels."""
        return self.inputs.frame.roi(self.blocks[block].write_roi, self.blocks.shape)

    def tile(self, blocks: tuple[int, ...]) -> Roi:
        """The box of a run of blocks in frame coordinates, in output voxels."""
        return Roi(self.roi(blocks[0]).start, self.roi(blocks[-1]).stop)


class Clock:
    """Seconds per stage: by step for progress, by block for the journal."""

    def __init__(self) -> None:
        self.step: dict[str, float] = {}
        self.block: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a block of code."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            for stages in (self.step, self.block):
                stages[name] = stages.get(name, 0.0) + seconds

    def take_step(self) -> dict[str, float]:
        """The seconds since the last step."""
        taken, self.step = self.step, {}
        return taken

    def take_block(self) -> dict[str, float]:
        """The seconds since the last block."""
        taken, self.block = self.block, {}
        return taken
