"""The grid on which a network sees a volume of another spacing, and the way back from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.resampling.lines import GridAxis
from volflow.geometry.resampling.regridding import GridMap, Regridding, computed_in
from volflow.geometry.resampling.thick_slices import thick_axis
from volflow.geometry.roi import Roi
from volflow.geometry.units import units_in
from volflow.store.meta import Meta, Vector, VolumeSpec
from volflow.volumes.arrays.grids import spacing_text
from volflow.volumes.framed import BoxReader, FramedImage

__all__ = ["ModelGrid", "grid_of_model"]

Array = npt.NDArray[Any]
Axes = tuple[GridAxis, GridAxis, GridAxis]

# Spacings that differ by less are one: scanners round theirs.
SAME_SPACING = 0.02
# What a view of a volume on another grid takes beside the voxels that it returns, unless a box of
# so many voxels along each axis takes more.
VIEW_BYTES, LEAST_SIDE = 32 * 2**20, 16


@dataclass(frozen=True)
class ModelGrid:
    """Where a network sees the voxels of a volume whose spacing is not its own.

    Parameters
    ----------
    frame
        Of the network over the volume.
    axes
        From the volume to the network's voxels, along the axes of the frame: aligned at its low
        ends, so that a flipped copy of a volume is seen on the same grid.
    spacing
        Of the network's voxels along the stored axes, in the volume's unit.
    thick
        The frame's axis between whose slices nothing is interpolated; None if there is none.
    """

    frame: Frame
    axes: Axes
    spacing: Vector
    thick: int | None = None

    @property
    def stored(self) -> GridMap:
        """The map from the volume to the network's voxels along the stored axes."""
        turned = (
            axis.flipped if flip else axis
            for axis, flip in zip(self.axes, self.frame.flips, strict=True)
        )
        z, y, x = self.frame.restore(tuple(turned))
        return GridMap(Frame(), (z, y, x))

    def order(self, usual: int) -> tuple[int, int, int]:
        """Return the order of interpolation along the frame's axes: 0 through thick slices."""
        z, y, x = (0 if axis == self.thick else usual for axis in range(3))
        return z, y, x

    def meta(self, meta: Meta) -> Meta:
        """Return the metadata of a volume as the network sees it."""
        axes = self.stored.axes
        made = meta.regrid([a.step for a in axes], [a.offset for a in axes])
        return replace(made, spacing=self.spacing)

    def seen(self, image: FramedImage) -> FramedImage:
        """Return volumes as they lie on the network's grid: a view, which nothing is read for.

        Images are interpolated by cubic splines, and not rounded; a voxel near the mask counts as
        in it.
        """
        order, shape = self.frame.restore(self.order(3)), self.stored.shape
        z, y, x = order
        specs, volumes, beside = [], [], [0]
        for number, spec in enumerate(image.specs):
            regridding = Regridding(self.stored, (z, y, x), spec.dtype, fill=None)
            kind = np.dtype(computed_in(spec.dtype))
            seen = VolumeSpec(
                (*spec.shape[:-3], *shape), kind, self._chunk(spec, shape), None,
                self.meta(spec.meta),
            )  # fmt: skip
            specs.append(seen)
            beside.append(_view_bytes(regridding, spec.channels))
            if image.volumes:  # a computed array brings its voxels block by block
                volumes.append(SeenVolume(image.volumes[number], regridding, spec.channels))
        mask: BoxReader | None = image.mask
        if mask is not None:
            near = Regridding(self.stored, (1, 1, 1), np.dtype("f4"), antialias=True, fill=None)
            mask = SeenMask(mask, near)
            beside.append(_view_bytes(near, 1))
        return replace(
            image,
            specs=tuple(specs),
            volumes=tuple(volumes),
            mask=mask,
            beside_bytes=max(beside),
        )

    def _chunk(self, spec: VolumeSpec, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the chunk of a volume in the network's voxels."""
        sides = (
            min(n, max(1, round(side / axis.step)))
            for side, axis, n in zip(spec.chunk[-3:], self.stored.axes, shape, strict=True)
        )
        return (*spec.chunk[:-3], *sides)

    def back(self, scale: Sequence[int], dtype: str) -> Regridding:
        """Return how scores come back to the grid of the volume, along the frame's axes.

        Linearly, and from the nearest slice through thick ones; beyond the outermost centres they
        are those at the outermost centre.

        Parameters
        ----------
        scale
            Voxels of the network's input per voxel of its output, along the frame's axes.
        dtype
            Of the scores.
        """
        axes = []
        for axis, s in zip(self.axes, scale, strict=True):
            back = axis.inverse
            offset = (back.offset - (s - 1) / 2) / s
            axes.append(GridAxis(-(-back.source // s), back.target, back.step / s, offset))
        z, y, x = axes
        return Regridding(GridMap(Frame(), (z, y, x)), self.order(1), np.dtype(dtype), fill=None)

    def read_range(self, axis: int, low: int, high: int) -> tuple[int, int]:
        """Return the voxels of the volume, along a frame axis, that network voxels are made of."""
        stored, flip = self.frame.axes[axis], self.frame.flips[axis]
        z, y, x = self.frame.restore(self.order(3))
        tap = Regridding(self.stored, (z, y, x), np.dtype("f8"), fill=None).taps[stored]
        if not flip:
            return tap.range(low, high)
        first, last = tap.range(tap.axis.target - high, tap.axis.target - low)
        return tap.axis.source - last, tap.axis.source - first

    def identity(self) -> dict[str, Any]:
        """Return what decides where the network's voxels lie, and their sides along its axes."""
        axes = ([axis.source, axis.target, axis.step, axis.offset] for axis in self.axes)
        return {"spacing": list(self.frame.reorder(self.spacing)), "grid": [*axes, self.thick]}


def grid_of_model(
    image: FramedImage, wanted: Sequence[float], unit: str | None
) -> ModelGrid | None:
    """Return the grid on which a network sees volumes; None where it is their own.

    Parameters
    ----------
    image
        The volumes in the frame of the network.
    wanted, unit
        The network's voxel size along the axes of its frame, and its unit; without one it is that
        of the volumes.

    Raises
    ------
    InvalidInput
        If the voxel size of the volumes is not known, or its unit cannot be converted.
    """
    meta, frame = image.meta, image.frame
    ratio = _ratio(unit, meta)
    sizes = tuple(size * ratio for size in wanted)
    given = frame.reorder(meta.spacing)
    # Bare arrays, whose voxels are 1 of whatever, are taken for those of a network of 1 mm.
    if np.allclose(given, sizes, rtol=SAME_SPACING, atol=0):
        return None
    if not meta.knows_spacing:
        raise InvalidInput(
            f"the network expects voxels of {tuple(wanted)} {unit or ''}".rstrip() + ", and the"
            " volume does not say how large its own are; store it with its spacing and unit"
            " (vf.write, volflow convert --spacing), or let the network see it as it is"
            ' (spacing="stored", --spacing stored)'
        )
    z, y, x = (
        GridAxis.spaced(n, 1.0 if math.isclose(s, t, rel_tol=1e-6) else t / s)
        for n, s, t in zip(image.shape, given, sizes, strict=True)
    )
    stored = frame.restore(sizes)
    spacing = (stored[0], stored[1], stored[2])
    return ModelGrid(frame, (z, y, x), spacing, thick_axis(given, sizes))


def _ratio(unit: str | None, meta: Meta) -> float:
    """Return how many units of a volume a unit of the network has."""
    if unit is None or meta.unit is None or unit == meta.unit:
        return 1.0
    ratio = units_in(unit, meta.unit)
    if ratio is None:
        raise InvalidInput(
            f"the network's voxels are given in {unit}, and those of the volume in {meta.unit}"
            f" ({spacing_text(meta)}), of which one cannot be converted; store the volume with the"
            " unit that it has (volflow convert --unit)"
        )
    return ratio


@dataclass(frozen=True)
class SeenVolume:
    """A volume as it lies on another grid; voxels are interpolated as they are read.

    Parameters
    ----------
    volume, regridding
        Where its voxels are, and what is made of them.
    channels
        That are made at once.
    """

    volume: Any
    regridding: Regridding
    channels: int = 1

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box, ``zyx`` or ``czyx``, float32 or float64."""
        dtype = computed_in(self.regridding.dtype)
        if self.regridding.bytes(roi, self.channels) <= VIEW_BYTES:
            return self._made(roi, dtype)
        result: Array | None = None
        for part in _parts(self.regridding, roi, self.channels):
            made = self._made(part, dtype)
            if result is None:
                result = np.empty((*made.shape[:-3], *roi.shape), dtype)
            z, y, x = part.relative_to(roi.start).slices()
            result[..., z, y, x] = made
        assert result is not None
        return result

    def _made(self, part: Roi, dtype: str) -> Array:
        return self.regridding.make(self.volume.read(self.regridding.source(part)), part, dtype)

    @property
    def path(self) -> str | None:
        """Where the volume lies."""
        path: str | None = self.volume.path
        return path

    @property
    def unidentified(self) -> str:
        """Why it cannot be told whether the volume is what it was."""
        reason: str = self.volume.unidentified
        return reason

    def identity(self) -> str:
        """Return what identifies the volume; where it lies on the other grid is said apart."""
        known: str = self.volume.identity()
        return known


@dataclass(frozen=True)
class SeenMask(SeenVolume):
    """A mask as it lies on another grid: 1 where a voxel of it is near."""

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box, bool."""
        return np.asarray(super().read(roi) > 0)

    def _made(self, part: Roi, dtype: str) -> Array:
        voxels = self.volume.read(self.regridding.source(part))
        return self.regridding.make((voxels > 0).astype("f4"), part, dtype)


def _view_bytes(regridding: Regridding, channels: int) -> int:
    """Return what reading a view takes at most beside the voxels that it returns."""
    shape = regridding.grid.shape
    sides = [min(n, LEAST_SIDE) for n in shape]
    low = [(n - side) // 2 for n, side in zip(shape, sides, strict=True)]
    least = Roi(tuple(low), tuple(a + side for a, side in zip(low, sides, strict=True)))
    whole = regridding.bytes(Roi.full(shape), channels)
    return max(min(VIEW_BYTES, whole), regridding.bytes(least, channels))


def _parts(regridding: Regridding, roi: Roi, channels: int) -> Iterator[Roi]:
    """Cut a box along its longest sides until what its making takes fits.

    Rows are left whole as long as they are short, so that chunks are rarely decoded twice.
    """
    side = max(range(3), key=lambda axis: roi.shape[axis])
    small = regridding.bytes(roi, channels) <= VIEW_BYTES or roi.shape[side] <= LEAST_SIDE
    if small:
        yield roi
        return
    middle = roi.start[side] + roi.shape[side] // 2
    stop, start = list(roi.stop), list(roi.start)
    stop[side] = start[side] = middle
    yield from _parts(regridding, Roi(roi.start, tuple(stop)), channels)
    yield from _parts(regridding, Roi(tuple(start), roi.stop), channels)
