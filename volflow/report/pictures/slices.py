"""Slices of a volume as pictures show them: their place, their voxels, their direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.geometry.views import View
from volflow.report.planes import read_planes, steps
from volflow.store.slabs import Source

__all__ = ["Cut", "Slice", "cut", "on_one_grid"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Slice:
    """One plane of a volume.

    Parameters
    ----------
    view
        Which way it is seen.
    index
        Across the plane, in voxels of the volume's finest level.
    at
        The same as a distance from the volume's low edge, in its unit.
    """

    view: View
    index: int
    at: float


@dataclass(frozen=True)
class Cut:
    """The voxels read of a slice, turned as it is displayed.

    Parameters
    ----------
    values
        A 2-D array, (rows, columns).
    extent
        Left, right, bottom and top edge in the unit of the volume, counted from the left and the
        top of the box as displayed. A coarse level may reach a little beyond its box.
    """

    values: Array
    extent: tuple[float, float, float, float]


def cut(
    volume: Source,
    slices: Sequence[Slice],
    size: Sequence[float],
    *,
    pixels: int,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
    channel: int | None = 0,
    average: bool = False,
) -> list[Cut]:
    """Read slices and turn them as they are displayed.

    Parameters
    ----------
    volume
        Any level of any volume of the same box.
    slices
        Where they lie.
    size
        Size of the box along z, y, x.
    pixels, channel, average
        As in `read_planes`.
    shift
        How far the volume's low edge lies inside the box.
    """
    spacing, shape = volume.meta.spacing, volume.shape[-3:]
    planes = []
    for one in slices:
        normal = one.view.normal
        index = math.floor((one.at - shift[normal]) / spacing[normal])
        planes.append((normal, min(max(index, 0), shape[normal] - 1)))
    read = read_planes(volume, planes, pixels=pixels, channel=channel, average=average)
    pixel = [s * n for s, n in zip(spacing, steps(volume, pixels), strict=True)]
    cuts = []
    for one, values in zip(slices, read, strict=True):
        view, turned = one.view, one.view.turn(values)
        top, bottom = _edges(view.rows, view.flip_rows, turned.shape[0], pixel, shift, size)
        left, right = _edges(view.columns, view.flip_columns, turned.shape[1], pixel, shift, size)
        cuts.append(Cut(turned, (left, right, bottom, top)))
    return cuts


def _edges(
    axis: int,
    flip: bool,
    count: int,
    pixel: Sequence[float],
    shift: Sequence[float],
    size: Sequence[float],
) -> tuple[float, float]:
    """Return where the first pixel begins and the last ends, along an axis as displayed."""
    low = shift[axis]
    high = low + count * pixel[axis]
    return (size[axis] - high, size[axis] - low) if flip else (low, high)


def on_one_grid(a: Cut, b: Cut) -> tuple[Array, Array, tuple[float, float, float, float]]:
    """Return the values of two cuts of one slice on the finer of their grids, and its extent.

    A pixel of the coarser cut is the one in which the finer pixel's centre lies; nothing is
    interpolated.

    Examples
    --------
    >>> fine = Cut(np.arange(4).reshape(1, 4), (0, 4, 1, 0))
    >>> coarse = Cut(np.array([[10, 20]]), (0, 4, 1, 0))
    >>> on_one_grid(fine, coarse)[1].tolist()
    [[10, 10, 20, 20]]
    """
    if a.values.size >= b.values.size:
        return a.values, _sampled(b, a), a.extent
    return _sampled(a, b), b.values, b.extent


def _sampled(cut: Cut, like: Cut) -> Array:
    """Return the values of a cut at the centres of another's pixels."""
    index = []
    for n, (start, stop) in enumerate(((3, 2), (0, 1))):
        count = like.values.shape[n]
        centres = like.extent[start] + (np.arange(count) + 0.5) / count * (
            like.extent[stop] - like.extent[start]
        )
        mine = cut.values.shape[n]
        place = (centres - cut.extent[start]) / (cut.extent[stop] - cut.extent[start]) * mine
        index.append(np.clip(np.floor(place).astype(np.int64), 0, mine - 1))
    return np.asarray(cut.values[np.ix_(*index)])
