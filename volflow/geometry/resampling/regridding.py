"""From one grid to another whose axes are parallel: which voxels are needed, and what they give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.resampling.likeliest import likeliest, likeliest_bytes
from volflow.geometry.resampling.lines import GridAxis, Taps, resampled
from volflow.geometry.roi import Roi

__all__ = ["GridMap", "Regridding", "computed_in"]

Array = npt.NDArray[Any]
Axes = tuple[GridAxis, GridAxis, GridAxis]

# Directions that differ by less are the same, where it takes the last voxel no further aside than
# so many voxels: files round their cosines.
OBLIQUE, ASIDE = 1e-3, 0.1
# Grids whose voxels are nowhere further apart, in voxels, are one: files round their affines.
SAME = 1e-4


@dataclass(frozen=True)
class GridMap:
    """Where the voxels of a target lie in a source.

    Parameters
    ----------
    frame
        For each axis of the target the axis of the source along it, and whether it runs against it.
    axes
        For each axis of the target, in its direction.

    Examples
    --------
    >>> grid = GridMap.spaced((10, 40, 40), (4, 1, 1), (2, 2, 2))
    >>> grid.shape, grid.inverse.shape
    ((20, 20, 20), (10, 40, 40))
    """

    frame: Frame
    axes: Axes

    @classmethod
    def spaced(
        cls, shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]
    ) -> GridMap:
        """Return the map to voxels of a wanted size, which cover the same field of view.

        Parameters
        ----------
        shape, spacing
            Of the source along z, y, x.
        wanted
            Voxel size of the target, in the same unit.
        """
        steps = [w / s for s, w in zip(spacing, wanted, strict=True)]
        z, y, x = (_snapped(GridAxis.spaced(n, step)) for n, step in zip(shape, steps, strict=True))
        return cls(Frame(), (z, y, x))

    @classmethod
    def between(
        cls,
        source: npt.ArrayLike,
        source_shape: Sequence[int],
        target: npt.ArrayLike,
        target_shape: Sequence[int],
    ) -> GridMap:
        """Return the map from one grid in the world to another.

        Parameters
        ----------
        source, target
            4 x 4, voxel (x, y, z) to world.
        source_shape, target_shape
            Along z, y, x.

        Raises
        ------
        InvalidInput
            If the axes of the two grids are not parallel.

        Examples
        --------
        >>> half = np.diag([2, 2, 2, 1.0])
        >>> half[:3, 3] = 0.5
        >>> GridMap.between(np.eye(4), (8, 8, 8), half, (4, 4, 4)).axes[0]
        GridAxis(source=8, target=4, step=2.0, offset=0.5)
        """
        own, other = np.asarray(source, float), np.asarray(target, float)
        matrix = np.linalg.inv(own) @ other
        turn, shift = matrix[:3, :3][::-1, ::-1], matrix[:3, 3][::-1]  # z, y, x
        # The same in lengths, as voxels may be longer along one axis than along another.
        sizes = np.linalg.norm(own[:3, :3], axis=0)[::-1]
        scaled = turn * sizes[:, None] / np.linalg.norm(other[:3, :3], axis=0)[::-1]
        along = [int(np.argmax(abs(scaled[:, axis]))) for axis in range(3)]
        aside, drift = scaled.copy(), turn * np.subtract(target_shape, 1)
        aside[along, range(3)] = drift[along, range(3)] = 0
        parallel = abs(aside).max() <= OBLIQUE and abs(drift).max() <= ASIDE
        if sorted(along) != [0, 1, 2] or not parallel:
            angle = math.degrees(math.asin(min(1.0, float(abs(aside).max()))))
            raise InvalidInput(
                f"the axes of the two grids must be parallel, and one is turned by {angle:.3g}"
                " degrees against the other; resample onto a grid that is not oblique to it, or"
                " turn it with other software first (SimpleITK's Resample)"
            )
        flips, axes = [], []
        for axis, stored in enumerate(along):
            n, m = source_shape[stored], target_shape[axis]
            step, offset = float(turn[stored, axis]), float(shift[stored])
            flips.append(step < 0)
            offset = n - 1 - offset if step < 0 else offset
            axes.append(_snapped(GridAxis(n, m, abs(step), offset)))
        frame = Frame((along[0], along[1], along[2]), (flips[0], flips[1], flips[2]))
        return cls(frame, (axes[0], axes[1], axes[2]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the target along its axes."""
        z, y, x = self.axes
        return z.target, y.target, x.target

    @property
    def source_shape(self) -> tuple[int, ...]:
        """Voxels of the source along its axes."""
        return self.frame.restore([axis.source for axis in self.axes])

    @property
    def inverse(self) -> GridMap:
        """Return the map that brings voxels of the target's grid back to the source's."""
        back = self.frame.inverse
        axes = []
        for axis, flip in zip(self.axes, self.frame.flips, strict=True):
            axes.append(axis.inverse.flipped if flip else axis.inverse)
        z, y, x = self.frame.restore(axes)
        return GridMap(back, (z, y, x))


def _snapped(axis: GridAxis) -> GridAxis:
    """Return a map that is a shift by whole voxels, but for rounding, as one."""
    shift = replace(axis, step=1.0, offset=float(round(axis.offset)))
    first = axis.offset - shift.offset
    last = first + (axis.target - 1) * (axis.step - 1)
    return shift if max(abs(first), abs(last)) < SAME else axis


def computed_in(dtype: np.dtype[Any]) -> str:
    """Return in which dtype voxels are interpolated: float64 where float32 cannot hold them."""
    return "f4" if np.can_cast(dtype, np.float32) else "f8"


@dataclass(frozen=True)
class Regridding:
    """How the voxels of a target are made of those of a source.

    Parameters
    ----------
    grid
        Where they lie.
    order
        Of each axis of the target, as in `Taps`.
    dtype
        Of the source's voxels; the target's have it, too, unless another is asked for.
    antialias
        As in `Taps`.
    classes
        Whether the voxels are classes: no value arises that was not there.
    fill
        The value of voxels whose centre lies beyond the source's outer edges; None: that of the
        nearest voxel inside.

    Raises
    ------
    InvalidInput
        If classes are to be smoothed or interpolated by splines.
    """

    grid: GridMap
    order: tuple[int, int, int]
    dtype: np.dtype[Any]
    antialias: bool = False
    classes: bool = False
    fill: float | None = 0

    def __post_init__(self) -> None:
        if self.classes and (self.antialias or max(self.order) > 1):
            raise InvalidInput(
                "classes are resampled with order 0 (nearest) or 1 (the likeliest of linear"
                f" one-hot values), without antialias; got order={self.order},"
                f" antialias={self.antialias}"
            )

    @property
    def taps(self) -> tuple[Taps, Taps, Taps]:
        """How each axis of the target is interpolated."""
        kind = computed_in(self.dtype)
        z, y, x = (
            Taps(axis, order, self.antialias, kind)
            for axis, order in zip(self.grid.axes, self.order, strict=True)
        )
        return z, y, x

    def inside(self, box: Roi) -> Roi:
        """Return the part of a box of the target that lies within the source's outer edges."""
        if self.fill is None:
            return box
        sides = [axis.inside(*side) for axis, side in zip(self.grid.axes, box, strict=True)]
        if any(low == high for low, high in sides):
            return Roi(box.start, box.start)
        return Roi(*zip(*sides, strict=True))

    def span(self, axis: int, low: int, high: int) -> int:
        """Return how many voxels of the source target voxels ``[low, high)`` of an axis need."""
        if self.fill is not None:
            low, high = self.grid.axes[axis].inside(low, high)
        first, last = self.taps[axis].range(low, high)
        return last - first

    def source(self, box: Roi) -> Roi:
        """Return the box of the source, along its own axes, that a box of the target is made of."""
        inside = self.inside(box)
        sides = [tap.range(*side) for tap, side in zip(self.taps, inside, strict=True)]
        if not inside.size:
            return Roi((0, 0, 0), (0, 0, 0))
        shown = Roi(*zip(*sides, strict=True))
        return self.grid.frame.stored_roi(shown, self.grid.source_shape)

    def make(self, voxels: Array, box: Roi, dtype: Any = None) -> Array:
        """Return a box of the target.

        Parameters
        ----------
        voxels
            ``zyx`` or ``czyx``: the source's voxels of ``source(box)``.
        box
            Of the target, along its axes.
        dtype
            Of the result; integers are rounded half to even and clipped. By default the source's.
        """
        lead = voxels.shape[:-3]
        wanted = np.dtype(self.dtype if dtype is None else dtype)
        inside = self.inside(box)
        if not inside.size:
            return np.full((*lead, *box.shape), self._filled(wanted), wanted)
        made = rounded(self._inside(self.grid.frame.show(voxels), inside), wanted)
        if inside == box:
            return made
        result = np.full((*lead, *box.shape), self._filled(wanted), wanted)
        z, y, x = inside.relative_to(box.start).slices()
        result[..., z, y, x] = made
        return result

    def _filled(self, dtype: np.dtype[Any]) -> Any:
        return rounded(np.asarray(self.fill or 0, np.float64), dtype)

    def _inside(self, shown: Array, box: Roi) -> Array:
        taps, lead = self.taps, shown.ndim - 3
        if self.classes:
            parts = [
                likeliest(channel, taps, box.start, box.stop)
                for channel in shown.reshape(-1, *shown.shape[lead:])
            ]
            return np.stack(parts).reshape(*shown.shape[:lead], *box.shape)
        # First the axis that leaves the least: always in the same order, whatever the box.
        for axis in sorted(range(3), key=lambda n: -self.grid.axes[n].step):
            low, high = box.start[axis], box.stop[axis]
            shown = resampled(shown, lead + axis, taps[axis], low, high)
        return shown

    def bytes(self, box: Roi, channels: int = 1) -> int:
        """Return what the making of a box holds at most, with the source's voxels and the result.

        Parameters
        ----------
        box
            Of the target.
        channels
            That are made at once.
        """
        source, taps = self.source(box), self.taps
        sides = list(self.grid.frame.reorder(source.shape))
        classes = likeliest_bytes(sides, box.shape, self.dtype.itemsize) if self.classes else 0
        size = self.dtype.itemsize
        most, before = 0, math.prod(sides) * size
        for axis in sorted(range(3), key=lambda n: -self.grid.axes[n].step):
            sides[axis] = box.shape[axis]
            size = size if taps[axis].is_plain or self.classes else int(taps[axis].dtype[1])
            after = math.prod(sides) * size
            most, before = max(most, before + after), after
        # The values, rounded, and in their dtype.
        made = math.prod(box.shape) * (2 * size + max(size, self.dtype.itemsize))
        beside = max(classes, 2**22)
        return channels * (source.size * self.dtype.itemsize + max(most, made)) + beside


def rounded(values: Array, dtype: np.dtype[Any]) -> Array:
    """Return values in a dtype; integers rounded half to even and clipped, NaN as 0.

    Examples
    --------
    >>> rounded(np.array([-3.0, 2.5, 300]), np.dtype("u1")).tolist()
    [0, 2, 255]
    """
    if dtype == values.dtype:
        return values
    if dtype.kind in "iu" and values.dtype.kind == "f":
        info = np.iinfo(dtype)
        values = values.astype(np.float32) if values.dtype.itemsize < 4 else values
        whole = np.asarray(np.nan_to_num(values, nan=0.0, posinf=info.max, neginf=info.min))
        np.rint(whole, out=whole)
        # The largest float below the bound: what rounds up to it would wrap.
        high = np.asarray(info.max, values.dtype)
        high = np.nextafter(high, 0, dtype=values.dtype) if int(high) > info.max else high
        np.clip(whole, np.asarray(info.min, values.dtype), high, out=whole)
        return np.asarray(whole.astype(dtype))
    return np.asarray(values.astype(dtype))
