"""What a task that predicts in patches takes of the memory of its worker, and of a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from volflow.geometry.frame import Frame
from volflow.geometry.grid import PatchGrid
from volflow.infer.method import SLACK_BYTES
from volflow.infer.patches.device_rolling import CLOSED_BYTES, PRODUCT_BYTES
from volflow.infer.patches.device_rows import PIECE_BYTES
from volflow.infer.patches.rolling import FINISH_ROWS

__all__ = ["Demand"]

# Torch takes pinned memory in powers of two, and takes more while a copy from the last is under
# way.
PINNED = 2
UNDER_WAY = 2
# Closed scores while they are finished on a device: themselves, activated, rounded, in float64.
FINISH_COPIES = 5
# What argmax finds.
CLASS_BYTES = 8


@dataclass(frozen=True)
class Demand:
    """All that the memory of a task depends on, apart from its tile.

    Parameters
    ----------
    grid, scale, frame, crop, skipping
        Patches in frame coordinates; whether they own voxels or are weighted, and whether some may
        be left out, so that the weights are summed.
    input_bytes, raw_bytes
        Per voxel: of all rows held, and of one volume while it is read.
    segment_rows
        Rows read at once.
    output_channels, output_bytes
        Channels, and stored bytes per voxel, of all outputs together.
    score_bytes
        Of one score in the blend.
    forward_bytes
        Peak of one forward, where it is computed.
    on_device, host_sums
        Whether a GPU computes, and whether scores are then summed by the host.
    input_channels, batch_size
        Of a batch of patches.
    beside_bytes
        What reading takes beside the voxels that it returns.
    """

    grid: PatchGrid
    scale: tuple[int, ...]
    frame: Frame
    crop: bool
    skipping: bool
    input_bytes: int
    raw_bytes: int
    segment_rows: int
    output_channels: int
    output_bytes: int
    score_bytes: int
    forward_bytes: int
    on_device: bool = False
    host_sums: bool = False
    input_channels: int = 1
    batch_size: int = 1
    beside_bytes: int = 0

    def peak_bytes(self, block: Sequence[int], shard: Sequence[int]) -> int:
        """Return a task's projected peak for a block in output voxels along the stored axes."""
        depth, height, width = self.frame.reorder(block)
        tile = height * width
        write = 2 * tile * depth * self.output_bytes + 3 * math.prod(shard) * self.output_bytes
        peak = self._read_bytes(tile_sides=(height, width)) + write + SLACK_BYTES
        if not self.on_device or self.host_sums:
            row = self.output_channels * self.score_bytes + self.output_bytes
            peak += tile * FINISH_ROWS * row + self._sums_bytes(tile)
        if not self.on_device:
            return peak + self.forward_bytes
        if self.host_sums:
            return peak + PINNED * UNDER_WAY * self._scores_bytes
        return peak + PINNED * self._closed_bytes(tile)

    def device_peak_bytes(self, block: Sequence[int]) -> int:
        """Return what a task is projected to take of a GPU; 0 without one."""
        if not self.on_device:
            return 0
        _, height, width = self.frame.reorder(block)
        tile, area = height * width, self._area((height, width))
        segment = area * self.segment_rows
        rows = area * self._rows * self.input_channels * self.score_bytes
        rows += segment * self.input_bytes + min(PIECE_BYTES, 8 * segment)
        peak = rows + self.forward_bytes + SLACK_BYTES
        if self.host_sums:  # copies of scores, one on its way
            return peak + UNDER_WAY * self._scores_bytes
        out = self.grid.reduced(self.scale).patch
        plane = tile * self.output_channels * self.score_bytes
        at_once = min(out[0], max(1, CLOSED_BYTES // plane))
        finish = at_once * (FINISH_COPIES * plane + CLASS_BYTES * tile) + self._closed_bytes(tile)
        patch = math.prod(out) * self.score_bytes
        weighted = patch + max(patch, min(PRODUCT_BYTES, patch * self.output_channels))
        return peak + self._sums_bytes(tile) + weighted + finish

    @property
    def _rows(self) -> int:
        """Rows of the input that are held."""
        rows = self.grid.patch[0] + self.grid.stride[0] + 2 * self.segment_rows
        return min(rows, self.grid.shape[0])

    def _area(self, tile_sides: Sequence[int]) -> int:
        """Return the voxels of a row of the input that a tile reads."""
        return math.prod(
            min(n, side * s + 2 * (p - 1))
            for n, side, s, p in zip(
                self.grid.shape[1:], tile_sides, self.scale[1:], self.grid.patch[1:], strict=True
            )
        )

    def _read_bytes(self, tile_sides: Sequence[int]) -> int:
        area = self._area(tile_sides)
        reading = area * self.segment_rows * (self.raw_bytes + 1) + self.beside_bytes
        if not self.on_device:
            return area * self._rows * self.input_bytes + reading
        # A GPU holds the rows; what is worth computing stays here.
        active = area * self._rows if self.skipping else 0
        sent = (1 + PINNED * UNDER_WAY) * area * self.segment_rows * self.input_bytes
        return reading + active + sent

    def _sums_bytes(self, tile: int) -> int:
        out = self.grid.reduced(self.scale)
        sums = tile * out.patch[0] * self.output_channels * self.score_bytes
        if self.skipping or not self.crop:
            sums += tile * out.patch[0] * self.score_bytes
        return sums

    def _closed_bytes(self, tile: int) -> int:
        """Return the bytes of rows that are on their way from a device, of two layers."""
        out = self.grid.reduced(self.scale)
        return tile * (out.stride[0] + out.patch[0]) * self.output_bytes

    @property
    def _scores_bytes(self) -> int:
        """Bytes of the scores of a batch."""
        patch = math.prod(self.grid.reduced(self.scale).patch)
        return self.batch_size * self.output_channels * patch * self.score_bytes
