"""Input rows of a tile, read ahead: each stored chunk is decoded once per run of blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.geometry.roi import Roi
from volflow.infer.patches.course import exchanged
from volflow.volumes.framed import FramedImage

__all__ = ["RowReader", "rows_at_once"]

THIN_ROWS = 32
THICK_ROWS = 128

# Each volume's voxels as stored, in the frame; other readers hold something else.
Voxels = Any
# And which of them are worth computing (None: all).
Held = tuple[Voxels, npt.NDArray[np.bool_] | None]


def rows_at_once(image: FramedImage) -> int:
    """Return the rows along the frame's first axis to read at once: whole chunks, 32 to 128."""
    axis = image.frame.axes[0]
    chunk = min(max(spec.chunk[axis - 3] for spec in image.specs), image.shape[0])
    if chunk < THIN_ROWS:
        return chunk * (THIN_ROWS // chunk)
    return chunk if chunk <= THICK_ROWS else THICK_ROWS


class RowReader:
    """Rows of a tile in frame order, loaded ahead of use by one thread.

    Parameters
    ----------
    image
        What to read.
    tile
        The box of the volume, in frame coordinates, that the run reads.
    dtype
        float32, or float64 for models that compute in it.
    turned
        Whether the network's patches have the first two axes exchanged.
    """

    def __init__(self, image: FramedImage, tile: Roi, dtype: str, *, turned: bool = False) -> None:
        self.image, self.tile, self.dtype, self.turned = image, tile, dtype, turned
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="volflow-read")
        # Boxes of whole rows that follow each other, and what is read of them.
        self.segments: deque[tuple[Roi, Future[Held]]] = deque()
        self.next_row = tile.start[0]
        n, step = image.shape[0], rows_at_once(image)
        # Rows are cut where the stored chunks are, also when the frame runs against them.
        phase = n % step if image.frame.flips[0] else 0
        self.cuts = [c for c in range(phase, n, step) if tile.start[0] < c < tile.stop[0]]
        self.cuts.append(tile.stop[0])
        self.buffer = torch.empty(0)

    def load(self, high: int) -> None:
        """Begin to read all rows below ``high``."""
        while self.next_row < min(high, self.tile.stop[0]):
            low, self.next_row = self.next_row, self.cuts.pop(0)
            box = Roi((low, *self.tile.start[1:]), (self.next_row, *self.tile.stop[1:]))
            self.segments.append((box, self.pool.submit(self._read, box)))

    def _read(self, box: Roi) -> Held:
        """Read rows, in the thread that reads."""
        return self.image.read_stored(box, self.dtype)

    def wait(self) -> None:
        """Wait until everything asked for is read."""
        for _, read in self.segments:
            read.result()

    def drop(self, low: int) -> None:
        """Forget rows below ``low``."""
        while self.segments and self.segments[0][0].stop[0] <= low:
            self.segments.popleft()

    def close(self) -> None:
        """Stop the reading thread."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.segments.clear()

    def batch(self, rois: Sequence[Roi]) -> torch.Tensor:
        """Return patches of one size ``(B, C, *patch)``, valid until the next."""
        shape = self._shape(rois)
        if len(self.buffer) < len(rois):
            self.buffer = torch.empty(shape, dtype=getattr(torch, self.dtype))
        batch = self.buffer[: len(rois)]
        for patch, roi in zip(batch.numpy(), rois, strict=True):
            self.fill(self._rows(patch), roi)
        return batch

    def _shape(self, rois: Sequence[Roi]) -> tuple[int, ...]:
        """Return the shape of a batch, as the network sees it."""
        patch = exchanged(rois[0].shape) if self.turned else rois[0].shape
        return len(rois), self.image.channels, *patch

    def _rows(self, patch: Any) -> Any:
        """Return a view of a patch whose axes are those of the rows."""
        return patch.swapaxes(1, 2) if self.turned else patch

    def fill(self, patch: Any, roi: Roi) -> None:
        """Copy a patch ``(C, *roi.shape)`` out of the rows, scaled and padded."""
        padding, shape = self.image.padding, self.image.shape
        source = padding.source(roi, shape)
        if padding.number is None and source != roi:
            known = self._empty((len(patch), *source.shape))
            self._gather(known, source)
            padding.put(known, source, patch, roi, shape)
            return
        inside = source.intersect(self.tile)
        if inside != roi:
            patch[...] = padding.number
        z, y, x = inside.relative_to(roi.start).slices()
        self._gather(patch[:, z, y, x], inside)

    def _empty(self, shape: tuple[int, ...]) -> Any:
        """Return memory for voxels that are on their way into a patch."""
        return np.empty(shape, self.dtype)

    def _gather(self, out: Any, roi: Roi) -> None:
        """Copy a box ``(C, *roi.shape)`` of the volume out of the rows, scaled."""
        for box, read in self.segments:
            rows = roi.intersect(box)
            if rows.size:
                here = rows.relative_to(box.start).slices()
                z, y, x = rows.relative_to(roi.start).slices()
                self._copy(read.result()[0], here, out[:, z, y, x])

    def _copy(self, voxels: Voxels, here: tuple[slice, ...], out: Any) -> None:
        """Copy a box of the rows into a part of a patch."""
        self.image.fill([part[(slice(None), *here)] for part in voxels], out)

    def active(self, roi: Roi) -> bool:
        """Return True if a patch has a voxel worth computing."""
        if not self.image.skipping:
            return True
        for box, read in self.segments:
            rows = roi.intersect(box)
            if rows.size:
                active = read.result()[1]
                if active is not None and active[rows.relative_to(box.start).slices()].any():
                    return True
        return False
