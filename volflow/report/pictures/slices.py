"""Slices of a volume as pictures show them: where there is most to see, voxels, direction."""

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

__all__ = ["Cut", "Slice", "busiest", "class_maps", "cut", "on_one_grid", "scan"]

Array = npt.NDArray[Any]

SCAN_PLANES = 24
SCAN_PIXELS = 256  # of a plane that is only searched
SCAN_VOXELS = 2**28  # decoded at most
FOLD = 32  # more classes, as in instances, share this many maps


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
        edges: list[float] = []  # where the first pixel begins and the last ends, as displayed
        for axis, flip, count in zip(
            (view.columns, view.rows),
            (view.flip_columns, view.flip_rows),
            turned.shape[::-1],
            strict=True,
        ):
            low, high = shift[axis], shift[axis] + count * pixel[axis]
            edges += [size[axis] - high, size[axis] - low] if flip else [low, high]
        left, right, top, bottom = edges
        cuts.append(Cut(turned, (left, right, bottom, top)))
    return cuts


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


def scan(volume: Source, channel: int | None) -> list[Array]:
    """Read a few planes, (y, x), spread evenly over z; none if they would cost too much.

    Parameters
    ----------
    volume
        A coarse level is enough.
    channel
        The channel to read; None for the number of the highest one.
    """
    depth, high, wide = volume.shape[-3:]
    decoded = high * wide * getattr(volume, "chunks", (1, 1, 1))[-3]
    if channel is None and len(volume.shape) == 4:
        decoded *= volume.shape[0]
    count = min(SCAN_PLANES, depth, SCAN_VOXELS // decoded)
    if count == 0:
        return []
    planes = [(0, int((n + 0.5) / count * depth)) for n in range(count)]
    return read_planes(volume, planes, pixels=SCAN_PIXELS, channel=channel)


def busiest(weights: Sequence[Array]) -> tuple[float, float, float]:
    """Return where along z, y, x there is most to see, from 0 to 1; the middle of an empty volume.

    Parameters
    ----------
    weights
        For planes spread evenly over z: one map per thing of interest, (things, y, x).

    Examples
    --------
    >>> spot = np.zeros((1, 4, 8))
    >>> spot[0, 3, 1] = 1
    >>> busiest([spot * 0, spot])
    (0.75, 0.875, 0.1875)
    """
    best, place = 0.0, (0.5, 0.5, 0.5)
    for n, things in enumerate(weights):
        at = (n + 0.5) / len(weights)
        # The root favours planes that show several things over those that show much of one.
        interest = float(np.sqrt(things.sum(axis=(1, 2))).sum() * _centred(np.array(at)))
        if interest > best:
            best = interest
            place = (at, _busiest_line(things.sum(axis=2)), _busiest_line(things.sum(axis=1)))
    return place


def _centred(at: Array) -> Array:
    """Return weights that prefer the middle slightly, for places from 0 (first) to 1 (last)."""
    return 1 - 0.6 * np.square(at - 0.5)


def _busiest_line(weights: Array) -> float:
    """Return where along an axis there is most to see, for weights (things, positions)."""
    at = (np.arange(weights.shape[1]) + 0.5) / weights.shape[1]
    return float(at[np.argmax(np.sqrt(weights).sum(axis=0) * _centred(at))])


def class_maps(plane: Array) -> Array:
    """Return one map per class in a plane of labels, (classes, y, x); scores are their own map.

    Examples
    --------
    >>> class_maps(np.array([[0, 1], [2, 1]])).tolist()
    [[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]]
    """
    if plane.dtype.kind == "f":
        return np.asarray(np.clip(np.nan_to_num(plane, posinf=0), 0, None), np.float32)[None]
    folded = np.where(plane == 0, 0, 1 + (plane.astype(np.int64) - 1) % FOLD)
    present = np.unique(folded[folded != 0])
    return np.asarray(folded == present.reshape(-1, 1, 1), np.float32)
