"""Classes between voxels: linear on the one-hot encoding, then the largest, without making it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.geometry.resampling.lines import Taps

__all__ = ["likeliest"]

Array = npt.NDArray[Any]

# Rows are worked on a few at a time, so that what is held beside the result stays small.
ROWS_BYTES = 2**20
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
    corners = list(itertools.product(*(range(len(indices)) for indices, _ in around)))
    depth = max(1, ROWS_BYTES // max(1, shape[1] * shape[2] * labels.dtype.itemsize))
    for begin in range(0, shape[0], depth):
        rows = slice(begin, min(begin + depth, shape[0]))
        result[rows] = _rows(labels, around, corners, rows)
    return result


def _rows(
    labels: Array,
    around: list[tuple[npt.NDArray[np.int64], Array]],
    corners: list[tuple[int, ...]],
    rows: slice,
) -> Array:
    (z, wz), (y, wy), (x, wx) = around
    z, wz = z[:, rows], wz[:, rows]
    first: Array = labels[np.ix_(z[0], y[0], x[0])]
    if len(corners) == 1:
        return first
    mixed = np.zeros(first.shape, bool)
    for i, j, k in corners[1:]:
        mixed |= labels[np.ix_(z[i], y[j], x[k])] != first
    if not mixed.any():
        return first
    a, b, c = np.nonzero(mixed)
    near = np.stack([labels[z[i, a], y[j, b], x[k, c]] for i, j, k in corners])
    weight = np.stack([wz[i, a] * wy[j, b] * wx[k, c] for i, j, k in corners])
    total = np.zeros_like(weight)
    for label, of_label in zip(near, total, strict=True):
        for other, part in zip(near, weight, strict=True):
            of_label += np.where(other == label, part, 0)
    equal = total >= total.max(axis=0) - EQUAL
    best = np.where(equal, near, near.max(axis=0)).min(axis=0)
    first[mixed] = best
    return first
