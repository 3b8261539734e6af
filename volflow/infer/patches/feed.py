"""Input rows of a tile, read ahead: each stored chunk is decoded once per run of blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.normalize import Normalization
from volflow.geometry.roi import Roi
from volflow.model.precision import refuse_complex
from volflow.store.volume import Volume

__all__ = ["Feed", "Inputs", "apply_function", "segment_rows"]

THIN_ROWS = 32
THICK_ROWS = 128

Normalize = Normalization | Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None


@dataclass(frozen=True)
class Inputs:
    """What patches are cut from.

    Parameters
    ----------
    volumes, normalize
        One or more volumes on one grid, channels concatenated in order, and how each one's
        values are scaled: per voxel, by constants of the whole volume.
    frame
        Axis order and directions in which the model sees them.
    mask, skip_below
        A patch runs only if one of its voxels lies in the mask and is not below the threshold.
    """

    volumes: tuple[Volume, ...]
    normalize: tuple[Normalize, ...]
    frame: Frame
    mask: Volume | None = None
    skip_below: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per frame axis."""
        return self.frame.reorder(self.volumes[0].spatial_shape)

    @property
    def channels(self) -> int:
        """Channels of all volumes together."""
        return sum(v.channels_count for v in self.volumes)

    @property
    def skipping(self) -> bool:
        """Whether some patches may be left out."""
        return self.mask is not None or self.skip_below is not None


def segment_rows(inputs: Inputs) -> int:
    """Rows along the frame's first axis that are read at once: of whole chunks, 32 to 128."""
    axis = inputs.frame.axes[0]
    chunk = max(v.chunks[v.ndim - 3 + axis] for v in inputs.volumes)
    chunk = min(chunk, inputs.shape[0])
    if chunk < THIN_ROWS:
        return chunk * (THIN_ROWS // chunk)
    return chunk if chunk <= THICK_ROWS else THICK_ROWS


@dataclass
class Segment:
    """Some rows of the tile: where they are, and once read each volume's voxels, as stored."""

    low: int
    high: int
    read: Future[tuple[list[npt.NDArray[Any]], npt.NDArray[np.bool_] | None]]


class Feed:
    """Rows of a tile in frame order, loaded ahead of use by one thread.

    Parameters
    ----------
    inputs
        What to read.
    tile
        The box of the volume, in frame coordinates, that the run reads.
    dtype
        float32, or float64 for models that compute in it.
    """

    def __init__(self, inputs: Inputs, tile: Roi, dtype: str) -> None:
        self.inputs = inputs
        self.tile = tile
        self.dtype = np.dtype(dtype)
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="volflow-read")
        self.segments: deque[Segment] = deque()
        self.next_row = tile.start[0]
        n, step = inputs.shape[0], segment_rows(inputs)
        # Rows are cut where the stored chunks are, also when the frame runs against them.
        phase = n % step if inputs.frame.flips[0] else 0
        self.cuts = [c for c in range(phase, n, step) if tile.start[0] < c < tile.stop[0]]
        self.cuts.append(tile.stop[0])

    def load(self, high: int) -> None:
        """Begin to read all rows below ``high``."""
        while self.next_row < min(high, self.tile.stop[0]):
            low, self.next_row = self.next_row, self.cuts.pop(0)
            roi = Roi((low, *self.tile.start[1:]), (self.next_row, *self.tile.stop[1:]))
            self.segments.append(Segment(low, self.next_row, self.pool.submit(self._read, roi)))

    def wait(self) -> None:
        """Wait until everything asked for is read."""
        for segment in self.segments:
            segment.read.result()

    def drop(self, low: int) -> None:
        """Forget rows below ``low``."""
        while self.segments and self.segments[0].high <= low:
            self.segments.popleft()

    def close(self) -> None:
        """Stop the reading thread."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.segments.clear()

    def _read(self, roi: Roi) -> tuple[list[npt.NDArray[Any]], npt.NDArray[np.bool_] | None]:
        inputs, frame = self.inputs, self.inputs.frame
        stored = frame.stored_roi(roi, inputs.volumes[0].spatial_shape)
        active = np.full(roi.shape, inputs.skip_below is None) if inputs.skipping else None
        voxels = []
        for volume, normalize in zip(inputs.volumes, inputs.normalize, strict=True):
            raw = volume.read(stored)
            raw = frame.show(raw if raw.ndim == 4 else raw[None])
            if active is not None and inputs.skip_below is not None:
                # The threshold is one of stored values, whatever the network is shown.
                active |= (raw >= inputs.skip_below).any(axis=0)
            if callable(normalize):  # once per voxel rather than once per patch
                raw = apply_function(normalize, raw.astype(self.dtype))
            voxels.append(raw)
        if active is not None and inputs.mask is not None:
            active &= frame.show(inputs.mask.read(stored)) > 0
        return voxels, active

    def fill(self, patch: npt.NDArray[Any], roi: Roi) -> None:
        """Copy a patch ``(C, *roi.shape)`` out of the rows, scaled; zeros outside the volume."""
        inside = roi.intersect(self.tile)
        if inside != roi:
            patch[...] = 0
        for segment in self.segments:
            rows = inside.intersect(self._box(segment))
            if rows.size:
                z, y, x = rows.relative_to(roi.start).slices()
                here = rows.relative_to(self._box(segment).start).slices()
                first = 0
                read = segment.read.result()[0]
                for voxels, normalize in zip(read, self.inputs.normalize, strict=True):
                    part = patch[first : first + len(voxels), z, y, x]
                    if isinstance(normalize, Normalization):
                        normalize.apply(voxels[(slice(None), *here)], part)
                    else:
                        part[...] = voxels[(slice(None), *here)]
                    first += len(voxels)

    def active(self, roi: Roi) -> bool:
        """Whether a patch has a voxel worth computing."""
        if not self.inputs.skipping:
            return True
        for segment in self.segments:
            rows = roi.intersect(self._box(segment))
            if rows.size:
                _, active = segment.read.result()
                here = rows.relative_to(self._box(segment).start).slices()
                if active is not None and active[here].any():
                    return True
        return False

    def _box(self, segment: Segment) -> Roi:
        return Roi((segment.low, *self.tile.start[1:]), (segment.high, *self.tile.stop[1:]))


def apply_function(
    normalize: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], raw: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Scale voxels with a user's function; refuses one that changes their shape."""
    values = np.asarray(normalize(raw))
    refuse_complex(values, "what normalize returns")
    values = values.astype(raw.dtype, copy=False)
    if values.shape != raw.shape:
        raise InvalidInput(
            f"normalize must keep the shape of its block: got {values.shape} for {raw.shape}"
        )
    return values
