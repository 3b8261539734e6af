"""A resampled volume as a source: any box of it is made from the voxels of its source around it.

A box is made a few planes at a time, and what they need is read layer by layer, once each, so that
what is held grows with neither the volume nor the depth of the box.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from volflow.engine.task import Context
from volflow.geometry.resampling.regridding import Regridding
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source
from volflow.volumes.resample.resample_pieces import pieces

__all__ = ["RESAMPLE_VERSION", "ResampledSource"]

# Raised when the same volume gives other voxels than before; part of the fingerprint.
RESAMPLE_VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class ResampledSource(Source):
    """A volume on another grid.

    Parameters
    ----------
    source
        Read by parts.
    how
        Where its voxels lie, and how those between them are made.
    meta
        Of the result.
    stored
        Dtype of the result.
    layer
        Planes of the source that are read at once; layers begin at multiples of it.
    """

    source: Source
    how: Regridding
    meta: Meta
    stored: np.dtype[Any]
    layer: int = 1
    path = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis of the result."""
        return (*self.source.shape[:-3], *self.how.grid.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the result."""
        return self.stored

    @property
    def unidentified(self) -> str:
        """Why the identity of the source holds for this process only."""
        return self.source.unidentified

    def identity(self) -> str:
        """Return a hash of the source's identity and of what is made of it."""
        made = f"{self.how} {self.stored} {self.meta} {RESAMPLE_VERSION}"
        return hashlib.sha256(f"{self.source.identity()} {made}".encode()).hexdigest()

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box, ``zyx`` or ``czyx``."""
        voxels = np.empty(roi.shape, self.dtype)
        for _ in self.fill(voxels, roi, Context()):
            pass
        return voxels

    def fill(self, voxels: Array, roi: Roi, context: Context) -> Iterator[int]:
        """Fill an array with the voxels of a box; yields how many were made, piece by piece."""
        *front, z, y, x = roi
        box = Roi(*zip(z, y, x, strict=True))
        for channel in itertools.product(*(range(*side) for side in front)):
            layers = _Layers(self, channel, self.how.source(box), context)
            into = voxels[tuple(n - side[0] for n, side in zip(channel, front, strict=True))]
            for part in pieces(self.how, box):
                source = layers.take(self.how.source(part))
                with context.stage("resample"):
                    into[part.relative_to(box.start).slices()] = self.how.make(
                        source, part, self.dtype
                    )
                del source  # before more is read
                yield part.size


class _Layers:
    """The source's voxels of a box, which are read once while its parts are taken upwards."""

    def __init__(
        self, resampled: ResampledSource, channel: tuple[int, ...], box: Roi, context: Context
    ) -> None:
        self.source, self.layer = resampled.source, resampled.layer
        self.channel, self.box, self.context = channel, box, context
        self.held: list[tuple[int, Array]] = []  # where each layer begins, and its planes

    def take(self, part: Roi) -> Array:
        """Return the voxels of a part of the box that begins no lower than those before."""
        if not part.size:
            return np.empty(part.shape, self.source.dtype)
        low, high = part.start[0], part.stop[0]
        self.held = [(at, planes) for at, planes in self.held if at + len(planes) > low]
        at = max([low, *(at + len(planes) for at, planes in self.held)])
        while at < high:
            stop = min((at // self.layer + 1) * self.layer, self.box.stop[0])
            self.held.append((at, self._read(at, stop)))
            at = stop
        _, y, x = part.relative_to(self.box.start).slices()
        parts = [planes[max(0, low - at) : high - at, y, x] for at, planes in self.held]
        parts = [planes for planes in parts if len(planes)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read(self, low: int, high: int) -> Array:
        self.context.check()
        self.context.trim()
        start = (*self.channel, low, *self.box.start[1:])
        stop = (*(n + 1 for n in self.channel), high, *self.box.stop[1:])
        with self.context.stage("read"):
            voxels = self.source.read(Roi(start, stop))
        return voxels.reshape(voxels.shape[-3:])
