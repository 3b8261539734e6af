"""Blend patches into rows: weighted sums in the order of the global grid, each row emitted once.

A run of blocks goes along the first axis of the frame. Its patches are added layer by layer, row
by row, patch by patch: the lexicographic order of the global grid, whatever the blocks. Rows that
no later layer reaches are finished and leave; only the rows still open are held.

On the CPU the sums are NumPy's: one thread, no barriers, and each multiplication and addition
rounds by itself, so that a voxel's bits do not depend on where it lies. Torch would spend more on
waking its threads than on the sums. On a GPU they are torch's; the calls have the same names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch

from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import Blend, weights

__all__ = ["FINISH_ROWS", "RollingBlend"]

# Planes of a patch that are weighted and added together: few enough for the CPU's cache, many
# enough that the calls rarely wait for Python's lock while chunks are decoded in other threads.
CACHE_BYTES = 4 * 2**20
# Rows that are finished at once, so that they and their temporaries stay in the CPU's cache.
FINISH_ROWS = 16

# A NumPy array on the CPU, a tensor on a GPU.
Scores = Any


class RollingBlend:
    """The open rows of a tile.

    Parameters
    ----------
    grid
        The global grid, in output voxels and frame coordinates.
    tile
        The box of the output that the run writes; rows along axis 0.
    blend, channels, dtype, device
        Sums are kept in ``dtype`` (float32 or float64) on ``device``.
    skipping
        Whether patches may be missing: then the weights are summed as the patches come, else
        they follow from the grid alone.
    zeros
        Makes the arrays of open rows on the CPU, of a shape and a dtype: in memory or elsewhere.
    """

    def __init__(
        self,
        grid: PatchGrid,
        tile: Roi,
        blend: Blend,
        *,
        channels: int,
        dtype: torch.dtype,
        device: torch.device,
        skipping: bool = False,
        zeros: Callable[[tuple[int, ...], Any], Scores] = np.zeros,
    ) -> None:
        self.grid, self.tile, self.blend = grid, tile, blend
        self.crop = blend == "crop"
        depth, (height, width) = grid.patch[0], tile.shape[1:]
        on_cpu = device.type == "cpu"
        self.xp: ModuleType = np if on_cpu else torch
        window = torch.from_numpy(weights(blend, grid.patch)).to(device, dtype)
        self.weights: Scores = window.numpy() if on_cpu else window
        plane_bytes = grid.patch[1] * grid.patch[2] * window.element_size()
        self.planes = max(1, min(depth, CACHE_BYTES // plane_bytes)) if on_cpu else depth
        hold = zeros if on_cpu else lambda shape, _: self._zeros(shape)
        self.sums = hold((channels, depth, height, width), self.weights.dtype)
        self.norm = hold((depth, height, width), self.weights.dtype) if skipping else None
        self.product = self._zeros((self.planes, *grid.patch[1:]))
        if not skipping and not self.crop:
            self.full = self._zeros((min(FINISH_ROWS, depth), height, width))
            self.across = self._across(1, self.rows), self._across(2, self.columns)
        layers = self.layers
        self.last = layers[-1]
        self.row = int(grid.starts[0][layers[0]])  # the volume row of sums[:, 0]

    def _zeros(self, shape: tuple[int, ...]) -> Scores:
        if self.xp is np:
            return np.zeros(shape, self.weights.dtype)
        return torch.zeros(shape, dtype=self.weights.dtype, device=self.weights.device)

    @property
    def layers(self) -> range:
        """Layers of patches along axis 0 that the run needs."""
        return self._needed(0)

    @property
    def rows(self) -> range:
        """Rows of patches along axis 1 that the run needs."""
        return self._needed(1)

    @property
    def columns(self) -> range:
        """Patches along axis 2 that the run needs."""
        return self._needed(2)

    def _needed(self, axis: int) -> range:
        low, high = self.tile.start[axis], self.tile.stop[axis]
        return self.grid.touching(axis, low, high, owned=self.crop)

    def _reach(self, index: Sequence[int]) -> Roi:
        """The part of the tile that a patch adds to, rows above the tile included."""
        if self.crop:
            owned = [self.grid.owned[axis][i] for axis, i in enumerate(index)]
            box = Roi(tuple(int(o[0]) for o in owned), tuple(int(o[1]) for o in owned))
        else:
            box = self.grid.roi(index)
        open_rows = Roi((self.row, *self.tile.start[1:]), self.tile.stop)
        return box.intersect(open_rows)

    def add(self, index: Sequence[int], scores_CZYX: torch.Tensor) -> None:
        """Add one patch of scores; calls come in the lexicographic order of `index`."""
        box = self._reach(index)
        if not box.size:
            return
        scores = scores_CZYX.numpy() if self.xp is np else scores_CZYX
        origin = self.grid.roi(index).start
        patch = box.relative_to(origin).slices()
        place = box.relative_to((self.row, *self.tile.start[1:])).slices()
        target = self.sums[(slice(None), *place)]
        if self.norm is not None:
            self.norm[place] += 1 if self.crop else self.weights[patch]
        if self.crop:
            target[...] = scores[(slice(None), *patch)]
            return
        source, weight = scores[(slice(None), *patch)], self.weights[patch]
        for low in range(0, box.shape[0], self.planes):
            part = slice(low, min(low + self.planes, box.shape[0]))
            product = self.product[(slice(part.stop - low), *patch[1:])]
            for channel in range(len(source)):
                self.xp.multiply(source[channel, part], weight[part], out=product)
                sums = target[channel, part]
                sums += product

    def finish(self, layer: int) -> Iterator[tuple[int, Scores, Scores | None]]:
        """Close the rows that no later layer reaches, a few at a time.

        Yields
        ------
        row
            The first of them, in the volume.
        scores_CZYX
            Their blended scores; valid until the next.
        covered_ZYX
            False where no patch was run; None where all were.
        """
        final = layer == self.last
        stop = self.tile.stop[0] if final else int(self.grid.starts[0][layer + 1])
        high = min(stop, self.tile.stop[0])
        for low in range(max(self.row, self.tile.start[0]), high, FINISH_ROWS):
            rows = range(low, min(low + FINISH_ROWS, high))
            here = slice(low - self.row, rows.stop - self.row)
            scores, covered = self.sums[:, here], None
            if self.norm is not None:
                norm = self.norm[here]
                covered = norm > 0
                scores /= self.xp.where(covered, norm, self.xp.ones_like(norm))
            elif not self.crop:
                scores /= self._full_norm(rows)
            yield low, scores, covered

    def advance(self, layer: int) -> None:
        """Drop the closed rows and make room for the next layer's."""
        if layer == self.last:
            return
        step = int(self.grid.starts[0][layer + 1]) - self.row
        for buffer in (self.xp.moveaxis(self.sums, 1, 0), self.norm):
            if buffer is None:
                continue
            depth = len(buffer)
            for low in range(0, depth - step, step):  # never onto itself
                high = min(low + step, depth - step)
                buffer[low:high] = buffer[low + step : high + step]
            buffer[max(0, depth - step) :] = 0
        self.row += step

    def _full_norm(self, rows: range) -> Scores:
        """Return the sums of weights that a full grid gives to rows, in the order of `add`."""
        norm = self.full[: len(rows)]
        norm[...] = 0
        depth = self.grid.patch[0]
        for layer in self.grid.touching(0, rows.start, rows.stop):
            start = int(self.grid.starts[0][layer])
            low, high = max(rows.start, start), min(rows.stop, start + depth)
            sums = norm[low - rows.start : high - rows.start]
            weights = self.weights[low - start : high - start]
            for (row, patch_row), (column, patch_column) in itertools.product(*self.across):
                part = sums[:, row, column]
                part += weights[:, patch_row, patch_column]
        return norm

    def _across(self, axis: int, patches: range) -> list[tuple[slice, slice]]:
        """Return where patches along an axis lie in the tile, and which part of each that is."""
        low, high = self.tile.start[axis], self.tile.stop[axis]
        found = []
        for number in patches:
            start = int(self.grid.starts[axis][number])
            first, stop = max(low, start), min(high, start + self.grid.patch[axis])
            found.append((slice(first - low, stop - low), slice(first - start, stop - start)))
        return found
