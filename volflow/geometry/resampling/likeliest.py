"""Classes between voxels: linear on the one-hot encoding, then the largest, without making it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.geometry.resampling.lines import Taps

__all__ = ["likeliest", "likeliest_bytes"]

Array = npt.NDArray[Any]

# Rows are worked on a few at a time, and of them the voxels between classes in batches, so that
# what is held beside the result stays small.
ROWS_VOXELS, BATCH_VOXELS = 2**18, 2**15
# Weights that differ by less are equal: what rounding decides would not be the same when mirrored.
EQUAL = 1e-6


def likeliest(
    labels: Array, taps: Sequence[Taps], low: Sequence[int], high: Sequence[int]
) -> Array:
    """Return the class of the largest weight at target voxels; the smallest of several equal ones.

    Each class is 1 at its voxels and 0 elsewhere, interpolated linearly (along axes of order 0 from
    the nearest voxel): what that gives at a point is the sum of the weights of those of the eight
    voxels around it that are of the class, whatever the number of classes.

    Parameters
    ----------
    labels
        ``zyx``, bool or integer: the source voxels that the taps need.
    taps
        Of each axis, of order 0 or 1.
    low, high
        The box of target voxels.

    Examples
    --------
    >>> from volflow.geometry.resampling.lines import GridAxis
    >>> taps = [Taps(GridAxis.spaced(n, step), 1) for n, step in ((1, 1), (1, 1), (3, 0.5))]
    >>> likeliest(np.array([[[7, 7, 3]]]), taps, (0, 0, 0), (1, 1, 6)).tolist()
    [[[7, 7, 7, 7, 3, 3]]]
    """
    around = []
    for tap, start, stop in zip(taps, low, high, strict=True):
        first, _ = tap.range(start, stop)
        indices, weights = tap.weighted(start, stop)
        around.append((indices - first, weights))
    shape = tuple(b - a for a, b in zip(low, high, strict=True))
    result = np.empty(shape, labels.dtype)
    depth = max(1, ROWS_VOXELS // max(1, _row_voxels(labels.shape, shape)))
    # First the axis that leaves the least.
    order = sorted(range(3), key=lambda n: -taps[n].axis.step)
    for begin in range(0, shape[0], depth):
        rows = slice(begin, min(begin + depth, shape[0]))
        z, weights = (part[:, rows] for part in around[0])
        at, end = int(z.min()), int(z.max()) + 1
        part = [(z - at, weights), *around[1:]]
        result[rows] = _between(labels[at:end], part, order)
    return result


def likeliest_bytes(source: Sequence[int], shape: Sequence[int], itemsize: int) -> int:
    """Return what `likeliest` holds at most beside labels and result.

    Parameters
    ----------
    source, shape
        Sides of the labels and of the box.
    itemsize
        Of a label.
    """
    rows = max(ROWS_VOXELS, _row_voxels(source, shape))
    return rows * (4 * itemsize + 14) + BATCH_VOXELS * (8 * (3 * 8 + itemsize) + 64)


def _row_voxels(source: Sequence[int], shape: Sequence[int]) -> int:
    """Return the most voxels that a row of the result takes on the way to it."""
    area = max(source[1], shape[1]) * max(source[2], shape[2])
    return (2 + source[0] // max(1, shape[0])) * area


def _between(
    labels: Array, around: list[tuple[npt.NDArray[np.int64], Array]], order: Sequence[int]
) -> Array:
    """Return rows of the result: where all voxels around are one class that, else the largest."""
    first, mixed = labels, np.zeros((1, 1, 1), bool)
    for axis in order:
        low, *high = around[axis][0]
        near = first.take(low, axis)
        mixed = _taken(mixed, low, axis) | (
            _taken(mixed, high[0], axis) | (near != first.take(high[0], axis)) if high else False
        )
        first = near
    between = np.flatnonzero(np.broadcast_to(mixed, first.shape))
    corners = list(itertools.product(*(range(len(indices)) for indices, _ in around)))
    (z, wz), (y, wy), (x, wx) = around
    for begin in range(0, len(between), BATCH_VOXELS):
        a, b, c = np.unravel_index(between[begin : begin + BATCH_VOXELS], first.shape)
        near = np.stack([labels[z[i, a], y[j, b], x[k, c]] for i, j, k in corners])
        weight = np.stack([wz[i, a] * wy[j, b] * wx[k, c] for i, j, k in corners])
        first[a, b, c] = _largest(near, weight)
    return first


def _taken(mixed: Array, indices: npt.NDArray[np.int64], axis: int) -> Array:
    """Return voxels along an axis; where there is one, it stands for all."""
    return mixed if mixed.shape[axis] == 1 else mixed.take(indices, axis)


def _largest(near: Array, weight: Array) -> Array:
    """Return of each column the class whose weights are the most, the smallest of several."""
    total = weight.copy()
    for one, other in itertools.combinations(range(len(near)), 2):
        same = near[one] == near[other]
        total[one] += same * weight[other]
        total[other] += same * weight[one]
    equal = total >= total.max(axis=0) - EQUAL
    found: Array = np.where(equal, near, near.max(axis=0)).min(axis=0)
    return found
