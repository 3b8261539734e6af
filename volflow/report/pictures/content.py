"""The place in a volume where there is most to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.report.planes import read_planes
from volflow.store.slabs import Source

__all__ = ["busiest", "class_maps", "scan"]

Array = npt.NDArray[Any]

SCAN_PLANES = 24
SCAN_PIXELS = 256  # of a plane that is only searched
SCAN_VOXELS = 2**28  # decoded at most
FOLD = 32  # more classes, as in instances, share this many maps


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
