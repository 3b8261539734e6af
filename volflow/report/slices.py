"""The three planes of a preview: how they are turned for the eye, where they lie, reading them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta
from volflow.store.sources import Source

__all__ = [
    "LONGEST",
    "Readable",
    "Streamed",
    "View",
    "busiest",
    "class_maps",
    "cut",
    "same_box",
    "views",
]

Array = npt.NDArray[Any]

LONGEST = 1600  # pixels; a longer plane is thinned out, as no picture shows more
SCAN_PLANES = 24
SCAN_VOXELS = 2**28  # decoded at most while looking for the place to show
MANY_CLASSES = 32
STREAM_PLANES = 8  # held at a time of a file that is read from front to back


class Readable(Protocol):
    """What a preview needs of a volume or of a file that can be read anywhere."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``zyx`` or ``czyx``."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels."""

    @property
    def meta(self) -> Meta:
        """Spacing and orientation."""

    def read(self, roi: Roi) -> Array:
        """The voxels of a box."""


@dataclass(frozen=True)
class Streamed:
    """A file that can only be read from front to back: each box is one forward pass."""

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """As the source's."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As the source's."""
        return self.source.dtype

    @property
    def meta(self) -> Meta:
        """As the source's."""
        return self.source.meta

    def read(self, roi: Roi) -> Array:
        """The voxels of a box; the pass ends where the box does."""
        voxels = np.empty(roi.shape, self.dtype)
        left = roi.size
        for box, slab in self.source.slabs(STREAM_PLANES):
            part = roi.intersect(box)
            if part.size:
                inside = slab[part.relative_to(box.start).slices()]
                voxels[part.relative_to(roi.start).slices()] = inside
            left -= part.size
            if left == 0:
                break
        return voxels


@dataclass(frozen=True)
class View:
    """One of three orthogonal planes, as it is displayed.

    Parameters
    ----------
    name
        Such as "axial".
    normal, rows, columns
        Stored axes: across the plane, downwards, to the right.
    flip_rows, flip_columns
        Whether the picture runs against the stored index.
    edges
        Letters for the left, right, top and bottom edge, or none.
    """

    name: str
    normal: int
    rows: int
    columns: int
    flip_rows: bool = False
    flip_columns: bool = False
    edges: tuple[str, str, str, str] = ("", "", "", "")


def views(orientation: str | None) -> tuple[View, View, View]:
    """The planes of a volume: axial, coronal, sagittal as a radiologist sees them.

    The patient's right is on the left, anterior is up or on the left, superior is up. Without
    orientation the planes are shown as stored and named by their axes.

    Examples
    --------
    >>> [view.name for view in views("SAR")], views("SAR")[0].edges
    (['axial', 'coronal', 'sagittal'], ('R', 'L', 'A', 'P'))
    >>> [view.name for view in views(None)]
    ['xy', 'xz', 'yz']
    """
    if orientation is None:
        return (View("xy", 0, 1, 2), View("xz", 1, 0, 2), View("yz", 2, 0, 1))
    # Downwards and to the right of the picture: inferior, posterior, left.
    frame = Frame.between(orientation, "IPL")
    planes = (
        ("axial", 0, 1, 2, "RLAP"),
        ("coronal", 1, 0, 2, "RLSI"),
        ("sagittal", 2, 0, 1, "APSI"),
    )
    made = [
        View(
            name,
            frame.axes[normal],
            frame.axes[rows],
            frame.axes[columns],
            frame.flips[rows],
            frame.flips[columns],
            (edges[0], edges[1], edges[2], edges[3]),
        )
        for name, normal, rows, columns, edges in planes
    ]
    return made[0], made[1], made[2]


def cut(volume: Readable, view: View, at: float, channels: slice = slice(0, 1)) -> Array:
    """Read one plane and turn it for the eye.

    Parameters
    ----------
    volume
        ``zyx`` or ``czyx``.
    view
        Which plane.
    at
        Where it lies along its normal, from 0 (first voxel) to 1 (behind the last).
    channels
        Which of them, where the volume has any.

    Returns
    -------
    array
        Channels, rows, columns; thinned out where longer than any picture.
    """
    size = volume.shape[-3:][view.normal]
    plane = _plane(volume, view.normal, min(size - 1, int(at * size)), channels)
    if view.rows > view.columns:
        plane = plane.swapaxes(1, 2)
    down, right = (-1 if flip else 1 for flip in (view.flip_rows, view.flip_columns))
    return plane[:, ::down, ::right]


def _plane(volume: Readable, normal: int, index: int, channels: slice) -> Array:
    """Channels and the two other axes in stored order; read in strips where it is long."""
    shape = volume.shape[-3:]
    first, second = (axis for axis in range(3) if axis != normal)
    step = max(1, -(-max(shape[first], shape[second]) // LONGEST))
    depth = shape[first] if step == 1 else 256 * step
    thin = [slice(None, None, step)] * 3
    thin[normal] = slice(None)
    strips = []
    for begin in range(0, shape[first], depth):
        start, stop = [0, 0, 0], list(shape)
        start[normal], stop[normal] = index, index + 1
        start[first], stop[first] = begin, min(begin + depth, shape[first])
        strips.append(_read(volume, start, stop, channels)[(slice(None), *thin)])
    return np.concatenate(strips, axis=1 + first).squeeze(1 + normal)


def _read(volume: Readable, start: list[int], stop: list[int], channels: slice) -> Array:
    """A box of some channels, always with a channel axis."""
    if len(volume.shape) == 3:
        return volume.read(Roi(tuple(start), tuple(stop)))[None]
    low, high, _ = channels.indices(volume.shape[0])
    return volume.read(Roi((low, *start), (high, *stop)))


def busiest(
    volume: Readable, channels: slice, weigh: Callable[[Array], Array]
) -> tuple[float, float, float]:
    """Where along z, y, x there is most to see; the middle where nothing is or it costs too much.

    A few planes are read, spread evenly over z.

    Parameters
    ----------
    volume, channels
        What to look at.
    weigh
        Gives for (channels, y, x) one weight map per thing of interest: (things, y, x).
    """
    shape = volume.shape[-3:]
    decoded = shape[1] * shape[2] * (channels.stop - channels.start)
    decoded *= getattr(volume, "chunks", (1, 1, 1))[-3]
    count = min(SCAN_PLANES, shape[0], SCAN_VOXELS // decoded)
    best, place = 0.0, (0.5, 0.5, 0.5)
    for n in range(count):
        at = (n + 0.5) / count
        weights = weigh(_plane(volume, 0, int(at * shape[0]), channels))
        # The root favours planes that show several things over those that show much of one.
        interest = float(np.sqrt(weights.sum(axis=(1, 2))).sum()) * _centred(np.array(at))
        if interest > best:
            best = float(interest)
            place = (at, _busiest_line(weights.sum(axis=2)), _busiest_line(weights.sum(axis=1)))
    return place


def _centred(at: Array) -> Array:
    """A slight preference for the middle, from 0 (first) to 1 (last)."""
    return 1 - 0.6 * np.square(at - 0.5)


def _busiest_line(weights: Array) -> float:
    """Where along an axis there is most to see, given (things, positions)."""
    at = (np.arange(weights.shape[1]) + 0.5) / weights.shape[1]
    return float(at[np.argmax(np.sqrt(weights).sum(axis=0) * _centred(at))])


def class_maps(planes: Array) -> Array:
    """One map per class that occurs in a plane of labels, or of scores, their argmax.

    One channel of scores is its own map. Many classes, as in instances, share a few maps.

    Examples
    --------
    >>> class_maps(np.array([[[0, 1], [2, 1]]])).tolist()
    [[[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]]]
    """
    if len(planes) == 1 and planes.dtype.kind == "f":
        return np.asarray(np.clip(np.nan_to_num(planes, posinf=0), 0, None), np.float32)
    labels = planes.argmax(axis=0) if len(planes) > 1 else planes[0]
    folded = np.where(labels == 0, 0, 1 + (labels.astype(np.int64) - 1) % MANY_CLASSES)
    present = np.unique(folded[folded != 0])
    return np.asarray(folded == present.reshape(-1, 1, 1), np.float32)


def same_box(volume: Readable, scan: Readable, name: str, scan_name: str) -> None:
    """Refuse two volumes that do not cover the same box in the same directions.

    Raises
    ------
    InvalidInput
        Naming both.
    """
    for what, mine, theirs in (
        ("unit", volume.meta.unit, scan.meta.unit),
        ("orientation", volume.meta.orientation, scan.meta.orientation),
    ):
        if mine and theirs and mine != theirs:
            raise InvalidInput(
                f"{name} and {scan_name} must have the same {what} to be shown as one;"
                f" got {mine} and {theirs}; give the scan that the result was made from"
            )
    sizes, voxel = [], []
    for one in (volume, scan):
        sizes.append(np.multiply(one.shape[-3:], one.meta.spacing))
        voxel.append(np.asarray(one.meta.spacing))
    if np.any(np.abs(sizes[0] - sizes[1]) > np.maximum(*voxel)):
        boxes = " and ".join(" × ".join(f"{n:.4g}" for n in size) for size in sizes)
        raise InvalidInput(
            f"{name} and {scan_name} must cover the same box to be shown as one; got {boxes};"
            " give the scan that the result was made from"
        )
