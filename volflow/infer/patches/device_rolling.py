"""The open rows of a tile on a device: the sums of `RollingBlend`, in few launches.

Each of its steps is one multiplication or addition of torch's, so that a voxel's bits are those of
the CPU; ``addcmul`` may fuse the two. Where a CPU works in pieces for its cache, a GPU takes all
channels and rows at once, as each launch costs as much as thousands of voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import Blend, WeightMap
from volflow.infer.patches.rolling import RollingBlend

__all__ = ["CLOSED_BYTES", "PRODUCT_BYTES", "DeviceBlend"]

# Scores of a patch that are weighted at once, and scores that are finished at once: many voxels
# for each launch, and few beside the rows that are open.
PRODUCT_BYTES = 64 * 2**20
CLOSED_BYTES = 128 * 2**20

# How many rows are closed, and where the layers that reach into them begin, counted from the first.
Layout = tuple[int, ...]


class DeviceBlend(RollingBlend):
    """The open rows of a tile on a device.

    Parameters
    ----------
    grid, tile, blend, channels, dtype, skipping
        As of `RollingBlend`.
    weights
        Those of a patch, on the device, in ``dtype``.
    finish_rows
        Rows that are finished at once.
    """

    def __init__(
        self,
        grid: PatchGrid,
        tile: Roi,
        blend: Blend | WeightMap,
        weights: Tensor,
        *,
        channels: int,
        dtype: str,
        skipping: bool,
        finish_rows: int,
    ) -> None:
        self.weights = weights
        self.finish_rows = finish_rows
        self.norms: dict[Layout, Tensor] = {}  # of the layer that is closed now, or was last
        self.before: dict[Layout, Tensor] = {}
        super().__init__(grid, tile, blend, channels=channels, dtype=dtype, skipping=skipping)

    def _hold(self, zeros: Callable[[tuple[int, ...], Any], Any]) -> None:
        depth, (height, width) = self.grid.patch[0], self.tile.shape[1:]
        channel_bytes = self.weights.numel() * self.weights.element_size()
        at_once = max(1, min(self.channels, PRODUCT_BYTES // channel_bytes))
        make = self.weights.new_zeros
        self.sums = make((self.channels, depth, height, width))
        self.norm = make((depth, height, width)) if self.skipping else None
        self.product = None if self.crop else make((at_once, *self.grid.patch))

    def _add_weighted(self, source: Tensor, weight: Tensor, target: Tensor) -> None:
        depth, height, width = weight.shape
        at_once = len(self.product)
        for low in range(0, len(source), at_once):
            part = slice(low, min(low + at_once, len(source)))
            product = self.product[: part.stop - low, :depth, :height, :width]
            torch.mul(source[part], weight, out=product)
            target[part].add_(product)

    def _closed(self, scores: Tensor, norm: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Divide into fresh memory: the sums move on while the rows are on their way."""
        if self.norm is not None and norm is not None:
            covered = norm > 0
            return scores / norm.masked_fill(~covered, 1), covered
        return (scores.clone() if norm is None else scores / norm), None

    def finish(self, layer: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Close the rows that no later layer reaches; they stay as they are."""
        self.before, self.norms = self.norms, {}
        yield from super().finish(layer)
        self.before = {}

    def _full_norm(self, rows: range) -> Tensor:
        """Return the sums of weights, which most layers of patches share."""
        starts = self.grid.starts[0][list(self.grid.touching(0, rows.start, rows.stop))]
        layout = (len(rows), *(starts - rows.start).tolist())
        if layout not in self.norms:
            if layout not in self.before:
                self.before.clear()
            kept = self.before.pop(layout, None)
            self.norms[layout] = super()._full_norm(rows) if kept is None else kept
        return self.norms[layout]

    def _cleared(self, rows: int) -> Tensor:
        zeros: Tensor = self.weights.new_zeros((rows, *self.tile.shape[1:]))
        return zeros
