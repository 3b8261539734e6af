"""Blend patches into rows: weighted sums in the order of the global grid, each row emitted once.

A run of blocks goes along the first axis of the frame. Its patches are added layer by layer, row
by row, patch by patch: the lexicographic order of the global grid, whatever the blocks. Rows that
no later layer reaches are finished and leave; only the rows still open are held.

The sums are NumPy's: one thread, no barriers, and each multiplication and addition rounds by
itself, so that a voxel's bits do not depend on where it lies. Torch would spend more on waking its
threads than on the sums. On a GPU they are torch's (`volflow.infer.patches.device_rolling`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import SIGMA_SCALE, Blend, WeightMap, weights

__all__ = ["FINISH_ROWS", "RollingBlend"]

# Planes of a patch that are weighted and added together: few enough for the CPU's cache, many
# enough that the calls rarely wait for Python's lock while chunks are decoded in other threads.
CACHE_BYTES = 4 * 2**20
# Rows that are finished at once, so that they and their temporaries stay in the CPU's cache.
FINISH_ROWS = 16

# A NumPy array; a tensor on a GPU.
Scores = Any


class RollingBlend:
    """The open rows of a tile.

    Parameters
    ----------
    grid
        The global grid, in output voxels and frame coordinates.
    tile
        The box of the output that the run writes; rows along axis 0.
    blend, channels, dtype
        Sums are kept in ``dtype``, float32 or float64.
    skipping
        Whether patches may be missing: then the weights are summed as the patches come, else
        they follow from the grid alone.
    zeros
        Makes the arrays of open rows, of a shape and a dtype: in memory or elsewhere.
    sigma_scale
        Of the gaussian blend.
    """

    # Rows that are finished at once.
    finish_rows = FINISH_ROWS

    def __init__(
        self,
        grid: PatchGrid,
        tile: Roi,
        blend: Blend | WeightMap,
        *,
        channels: int,
        dtype: str,
        skipping: bool = False,
        zeros: Callable[[tuple[int, ...], Any], Scores] = np.zeros,
        sigma_scale: float = SIGMA_SCALE,
    ) -> None:
        self.grid, self.tile, self.blend = grid, tile, blend
        self.crop, self.sigma_scale = blend == "crop", sigma_scale
        self.channels, self.dtype, self.skipping = channels, dtype, skipping
        self.layers, self.rows, self.columns = (self._needed(axis) for axis in range(3))
        self.last = self.layers[-1]
        self.row = int(grid.starts[0][self.layers[0]])  # the volume row of sums[:, 0]
        if not skipping and not self.crop:
            self.across = self._across(1, self.rows), self._across(2, self.columns)
        self._hold(zeros)

    def _hold(self, zeros: Callable[[tuple[int, ...], Any], Scores]) -> None:
        """Allocate what is held from layer to layer."""
        depth, (height, width) = self.grid.patch[0], self.tile.shape[1:]
        dtype = np.dtype(self.dtype)
        weight = weights(self.blend, self.grid.patch, self.sigma_scale)
        self.weights: Scores = weight.astype(dtype)
        plane_bytes = self.grid.patch[1] * self.grid.patch[2] * dtype.itemsize
        self.planes = max(1, min(depth, CACHE_BYTES // plane_bytes))
        self.sums: Scores = zeros((self.channels, depth, height, width), dtype)
        self.norm: Scores = zeros((depth, height, width), dtype) if self.skipping else None
        self.product: Scores = np.zeros((self.planes, *self.grid.patch[1:]), dtype)
        if not self.skipping and not self.crop:
            self.full = np.zeros((min(FINISH_ROWS, depth), height, width), dtype)

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

    def add(self, index: Sequence[int], scores_CZYX: Scores) -> None:
        """Add one patch of scores ``CZYX``; calls come in the lexicographic order of `index`."""
        box = self._reach(index)
        if not box.size:
            return
        patch = box.relative_to(self.grid.roi(index).start).slices()
        place = box.relative_to((self.row, *self.tile.start[1:])).slices()
        source, target = scores_CZYX[(slice(None), *patch)], self.sums[(slice(None), *place)]
        if self.norm is not None:
            part = self.norm[place]
            part += 1 if self.crop else self.weights[patch]
        if self.crop:
            target[...] = source
        else:
            self._add_weighted(source, self.weights[patch], target)

    def _add_weighted(self, source: Scores, weight: Scores, target: Scores) -> None:
        """Add scores times weights, rounded in between."""
        depth, height, width = weight.shape
        for low in range(0, depth, self.planes):
            part = slice(low, min(low + self.planes, depth))
            product = self.product[: part.stop - low, :height, :width]
            for channel in range(len(source)):
                np.multiply(source[channel, part], weight[part], out=product)
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
        for low in range(max(self.row, self.tile.start[0]), high, self.finish_rows):
            rows = range(low, min(low + self.finish_rows, high))
            here = slice(low - self.row, rows.stop - self.row)
            norm = None if self.norm is None else self.norm[here]
            if norm is None and not self.crop:
                norm = self._full_norm(rows)
            yield low, *self._closed(self.sums[:, here], norm)

    def _closed(self, scores: Scores, norm: Scores) -> tuple[Scores, Scores | None]:
        """Divide sums by those of weights; return what is covered, too, where some may not be."""
        if self.norm is not None:
            covered = norm > 0
            scores /= np.where(covered, norm, np.ones_like(norm))
            return scores, covered
        if norm is not None:
            scores /= norm
        return scores, None

    def advance(self, layer: int) -> None:
        """Drop the closed rows and make room for the next layer's."""
        if layer == self.last:
            return
        step = int(self.grid.starts[0][layer + 1]) - self.row
        for buffer in (self.sums.swapaxes(0, 1), self.norm):
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
        norm = self._cleared(len(rows))
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

    def _cleared(self, rows: int) -> Scores:
        """Return zeros for the sums of weights of so many rows."""
        norm = self.full[:rows]
        norm[...] = 0
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
