"""Boxes of volumes as a network sees them: in its frame, normalised, all channels together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from volflow.geometry.frame import Frame
from volflow.geometry.outside import ZEROS, Padding
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta, VolumeSpec
from volflow.volumes.arrays.grids import shared_grid
from volflow.volumes.normalizing import Normalize, applied, write_normalized

__all__ = ["BoxReader", "FramedImage", "on_scale"]

Array = npt.NDArray[Any]


class BoxReader(Protocol):
    """Voxels that can be read box by box: a volume, a source, a part of an array."""

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box along z, y, x: ``zyx``, or ``czyx`` of all channels."""


@dataclass(frozen=True)
class FramedImage:
    """One or more volumes on one grid, as a network sees them.

    Plans are made from the specs; voxels are read from the volumes.

    Parameters
    ----------
    specs, volumes
        Of the volumes on one grid, whose channels are concatenated in order, and where their
        voxels are. What is converted before it is read stands there as its source until then.
    normalize
        How the values of each are scaled: per voxel, by constants of the whole volume.
    frame
        Axis order and directions in which the network sees them.
    mask, skip_below
        Only voxels in the mask (> 0) whose stored value is not below the threshold are worth
        computing.
    padding
        What the network is shown outside of the volume.
    beside_bytes
        What reading takes beside what it returns, where voxels are made of others.
    """

    specs: tuple[VolumeSpec, ...]
    volumes: tuple[BoxReader, ...]
    normalize: tuple[Normalize, ...]
    frame: Frame
    mask: BoxReader | None = None
    skip_below: float | None = None
    padding: Padding = ZEROS
    beside_bytes: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per frame axis."""
        return self.frame.reorder(self.specs[0].spatial_shape)

    @property
    def meta(self) -> Meta:
        """The metadata of the first volume; what it does not know of the grid is the others'."""
        return shared_grid([spec.meta for spec in self.specs])

    @property
    def channels(self) -> int:
        """Channels of all volumes together."""
        return sum(spec.channels for spec in self.specs)

    @property
    def skipping(self) -> bool:
        """Return True if some patches may be left out."""
        return self.mask is not None or self.skip_below is not None

    def read(self, box: Roi, dtype: str) -> Array:
        """Read a box ``(C, *box)`` as the network sees it; padded beyond the volume.

        Parameters
        ----------
        box
            In frame coordinates.
        dtype
            That the network computes in: float32 or float64.
        """
        source, number = self.padding.source(box, self.shape), self.padding.number
        result = np.empty((self.channels, *box.shape), dtype)
        if number is not None or source == box:
            part = result[(slice(None), *source.relative_to(box.start).slices())]
            if source != box:
                result[...] = number
        else:
            part = np.empty((self.channels, *source.shape), dtype)
        if source.size:
            self.fill(self.read_stored(source, dtype)[0], part)
        if number is None and source != box:
            self.padding.put(part, source, result, box, self.shape)
        return result

    def read_stored(self, box: Roi, dtype: str) -> tuple[list[Array], npt.NDArray[np.bool_] | None]:
        """Read a box of each volume, not yet scaled by constants.

        Parameters
        ----------
        box
            Inside the volume, in frame coordinates.
        dtype
            In which a function normalises.

        Returns
        -------
        voxels
            Per volume ``(C, *box)`` in the frame, of the stored dtype, or what a function made.
        active
            ``box.shape``: the voxels worth computing; None where all are.
        """
        stored = self.frame.stored_roi(box, self.specs[0].spatial_shape)
        active = np.full(box.shape, self.skip_below is None) if self.skipping else None
        voxels = []
        for volume, normalize in zip(self.volumes, self.normalize, strict=True):
            raw = volume.read(stored)
            raw = self.frame.show(raw if raw.ndim == 4 else raw[None])
            if active is not None and self.skip_below is not None:
                # The threshold is one of stored values, whatever the network is shown.
                active |= (raw >= self.skip_below).any(axis=0)
            if callable(normalize):  # once per voxel rather than once per patch
                raw = applied(normalize, raw.astype(dtype))
            voxels.append(raw)
        if active is not None and self.mask is not None:
            active &= self.frame.show(self.mask.read(stored)) > 0
        return voxels, active

    def fill(self, voxels: Sequence[Array], out: Array) -> None:
        """Scale what `read_stored` read and put its channels together.

        Parameters
        ----------
        voxels
            Per volume ``(C, *box)``.
        out
            ``(C, *box)`` of all channels, filled.
        """
        first = 0
        for part, normalize in zip(voxels, self.normalize, strict=True):
            channels = out[first : first + len(part)]
            # What a function made was made when it was read.
            write_normalized(None if callable(normalize) else normalize, part, channels)
            first += len(part)


def on_scale(meta: Meta, frame: Frame, shape: Sequence[int], scale: Sequence[int]) -> Meta:
    """Return the metadata of a coarser output of a volume, along the stored axes.

    Parameters
    ----------
    meta
        Of the volume.
    frame, shape
        The frame of the network, and the sides of the volume along its axes.
    scale
        Voxels of the volume per voxel of the output, along the frame's axes.
    """
    offsets = []
    for n, s, flip in zip(shape, scale, frame.flips, strict=True):
        centre = (s - 1) / 2
        offsets.append(n - 1 - (-(-n // s) - 1) * s - centre if flip else centre)
    return meta.regrid(frame.restore(scale), frame.restore(offsets))
