"""What a prediction task needs to know, as data."""

from __future__ import annotations

from dataclasses import dataclass

from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.infer.method import Target
from volflow.infer.patches.sliding import SlidingWindow

__all__ = ["PredictJob"]


@dataclass(frozen=True)
class PredictJob:
    """Everything a task needs to know; small and picklable.

    Parameters
    ----------
    window
        What decides the voxels.
    blocks
        The tiling of the outputs, in output voxels and stored axis order.
    targets
        Where they are written.
    threads
        Of torch.
    """

    window: SlidingWindow
    blocks: BlockGrid
    targets: tuple[Target, ...]
    threads: int

    @property
    def frame(self) -> Frame:
        """In which the model sees the volume."""
        return self.window.inputs.frame

    def roi(self, block: int) -> Roi:
        """A block's box in frame coordinates, in output voxels."""
        return self.frame.roi(self.blocks[block].write_roi, self.blocks.shape)

    def tile(self, blocks: tuple[int, ...]) -> Roi:
        """The box of a run of blocks in frame coordinates, in output voxels."""
        return Roi(self.roi(blocks[0]).start, self.roi(blocks[-1]).stop)
