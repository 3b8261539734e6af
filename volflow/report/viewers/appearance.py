"""The appearance of volumes in viewers: grey, colours or classes, and the range of values.

The first volume is the ground, later ones lie over it. What is decided here holds for every
viewer, so that a result looks alike in all of them.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.histogram import Histogram
from volflow.geometry.units import metres
from volflow.report.colors import FEW_VALUES, PERCENTILES, class_color
from volflow.report.facts.value_counts import middle_counts, value_counts
from volflow.report.grey_range import Window, window_ends
from volflow.report.viewers.computed_chunks import ComputedStore, computed_volume
from volflow.store.opening import is_url
from volflow.store.volume import Volume, open_volume

__all__ = [
    "CLASS_OPACITY",
    "SCORE_OPACITY",
    "Appearance",
    "appearances",
    "direction",
]

CLASS_OPACITY, SCORE_OPACITY = 0.35, 0.6
MANY_CLASSES = 256  # instances rather: the viewer chooses their colours
MANY_CHANNELS = 12  # further ones are there but not shown at first


@dataclass(frozen=True)
class Appearance:
    """How one layer of a viewer is shown: one channel of an image, or classes.

    Parameters
    ----------
    volume
        Its finest level.
    number
        Which of the volumes shown it is; 0 is the ground.
    name
        The name of the volume, unlike that of any other volume shown.
    unit
        Unit of the spacing; that of the other volumes if this one has none.
    channel, channel_name
        The channel shown, and its name among several.
    window
        The values shown darkest and brightest; None for classes.
    color
        "#RRGGBB" of the brightest value of an image; "" for grey.
    visible
        Whether it is shown at first.
    labels, colors
        Names and colours ("#RRGGBB") of classes by number; () if no names are known, or if the
        viewer chooses the colours. Class 0 is clear, whatever its colour.
    """

    volume: Volume
    number: int
    name: str
    unit: str | None
    channel: int = 0
    channel_name: str = ""
    window: tuple[float, float] | None = None
    color: str = ""
    visible: bool = True
    labels: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()

    @property
    def layer(self) -> str:
        """The name of the layer, unlike that of any other."""
        return f"{self.name}: {self.channel_name}" if self.channel_name else self.name


def direction(orientation: str, letter: str) -> npt.NDArray[np.float64]:
    """Return a direction of the patient as a vector along x, y, z of the index.

    Parameters
    ----------
    orientation
        Where the index along z, y, x grows to.
    letter
        The direction: R, L, A, P, S or I.

    Examples
    --------
    >>> direction("SAR", "P").tolist()
    [0.0, -1.0, 0.0]
    """
    opposite = dict(zip("RLAPSI", "LRPAIS", strict=True))[letter]
    grows_to = reversed(orientation)
    return np.array([(to == letter) - (to == opposite) for to in grows_to], dtype=float)


def appearances(volumes: Sequence[Any], window: Window = None) -> tuple[Appearance, ...]:
    """Return how the layers of volumes are shown together, the first volume as the ground.

    Of a volume whose statistics are not known a few chunks are read, of its coarsest level.

    Parameters
    ----------
    volumes
        Paths of local OME-Zarr volumes, `Volume`, or arrays: of Zarr stores, in memory, of Dask.
        Of what Dask computes one piece is, in the middle.
    window
        What is shown black and white of what is grey, as `preview` takes it.

    Raises
    ------
    InvalidInput
        If there are none, one is not a local volume, or their units or orientations differ
        so that they cannot be laid over each other.
    """
    opened = [_finest(volume) for volume in volumes]
    if not opened:
        raise InvalidInput("there is no volume to view; give one or more: scan.zarr out.zarr")
    _refuse_different(opened)
    unit = next((volume.unit for volume in opened if volume.unit), None)
    names, ends = _names([Path(volume.path or "array") for volume in opened]), window_ends(window)
    return tuple(
        layer if ends is None or layer.window is None or layer.color else _within(layer, ends)
        for number, (volume, name) in enumerate(zip(opened, names, strict=True))
        for layer in _layers(Appearance(volume, number, name, volume.unit or unit))
    )


def _within(layer: Appearance, ends: tuple[float, float]) -> Appearance:
    """Return a layer with another window, as far as its dtype holds such values."""
    dtype = layer.volume.dtype
    if dtype.kind not in "iu":
        return replace(layer, window=ends)
    limits = np.iinfo(dtype)
    low, high = max(math.floor(ends[0]), limits.min), min(math.ceil(ends[1]), limits.max)
    if low >= high:
        raise InvalidInput(
            f"window {ends[0]:g} to {ends[1]:g} lies outside of what {layer.name} holds, {dtype};"
            " give another, or leave it out"
        )
    return replace(layer, window=(low, high))


def _refuse_different(volumes: Sequence[Volume]) -> None:
    """Refuse volumes that cannot be placed in one space."""
    for what in ("unit", "orientation"):
        known = [
            (volume.path or "an array", value)
            for volume in volumes
            if (value := getattr(volume, what))
        ]
        if what == "unit" and all(metres(unit) for _, unit in known):
            continue
        for path, value in known:
            first, expected = known[0]
            if value != expected:
                raise InvalidInput(
                    f"volumes shown together must have one {what}; {first} has {expected},"
                    f" {path} has {value}; view them one by one, or give the scan that the"
                    " result was made from"
                )


def _finest(volume: Any) -> Volume:
    if not isinstance(volume, str | os.PathLike):
        from volflow.volumes.arrays.inputs import open_input  # which knows Dask

        volume = open_input(volume)
        if volume.path is None:
            return computed_volume(volume)
    path: Any = volume.path if isinstance(volume, Volume) else volume
    if is_url(os.fspath(path)):
        raise InvalidInput(
            f"{path} is remote, viewers are given volumes of this machine; copy it with"
            f' vf.convert("{path}", "copy.zarr"), or volflow convert {path} copy.zarr'
        )
    timepoint = volume.timepoint if isinstance(volume, Volume) else None
    return open_volume(path, 0, timepoint=timepoint)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return file names without their endings, numbered if two are the same."""
    stems = [path.name.removesuffix(".zarr").removesuffix(".ome") or "volume" for path in paths]
    # Label images and levels of others are mere numbers in a folder.
    stems = [
        f"{path.parent.name}/{stem}" if stem.isdigit() else stem
        for path, stem in zip(paths, stems, strict=True)
    ]
    counts = {stem: itertools.count(1) for stem in stems}
    return [f"{s} {next(counts[s])}" if stems.count(s) > 1 else s for s in stems]


def _layers(one: Appearance) -> list[Appearance]:
    """Return the layers of a volume: classes, or its channels.

    A scan is grey, several channels have their own colours, scores those of classes.
    """
    volume, meta, overlay = one.volume, one.volume.meta, one.number > 0
    distinct = len(set(meta.channels)) == len(meta.channels)
    labels = meta.channels if distinct and all(meta.channels) else ()
    declared = meta.kind == "classes"
    classes = max(len(labels), len(meta.colors)) if declared else 0
    values = [] if classes else _values(volume)
    if not classes and (declared or overlay):
        classes = _classes_seen(volume, values, MANY_CLASSES if declared else FEW_VALUES)
    if declared or classes:
        known = range(classes if classes <= MANY_CLASSES else 0)
        colors = tuple(class_color(value, meta.colors) for value in known)
        return [replace(one, labels=labels, colors=colors)]
    if len(values) == 1:
        color = class_color(1, ("", *meta.colors)) if overlay or meta.colors else ""
        return [replace(one, window=_window(volume, values[0], overlay), color=color)]
    # Channel 0 is class 0 only where it says so.
    background = bool(labels) and labels[0].strip().lower() in ("background", "bg")
    first = 0 if background else 1
    return [
        replace(
            one,
            channel=n,
            channel_name=labels[n] if labels else str(n),
            window=_window(volume, found, overlay),
            color=class_color(n + first, ("",) * first + meta.colors),
            visible=n < MANY_CHANNELS and not (background and n == 0),
        )
        for n, found in enumerate(values)
    ]


def _values(volume: Volume) -> list[Histogram | None]:
    """Return the values of each channel; of what has to be computed, those in its middle."""
    store = volume.array.store
    lazy = isinstance(store, ComputedStore) and store.lazy
    return list(middle_counts(volume)) if lazy else value_counts(volume)


def _classes_seen(volume: Volume, values: Sequence[Histogram | None], most: int) -> int:
    """Return how many classes whole numbers stand for; 0 if they have too many values."""
    if volume.dtype.kind == "b":
        return 2
    only = values[0]
    whole = volume.dtype.kind in "iu" and len(values) == 1
    if not whole or only is None or not 2 <= len(only.bins) <= most:
        return 0
    return int(only.max) + 1


def _window(volume: Volume, channel: Histogram | None, overlay: bool) -> tuple[float, float]:
    """Return the values shown darkest and brightest; whole numbers if the voxels are."""
    real = volume.dtype.kind == "f"
    limits = np.iinfo("u1" if volume.dtype.kind == "b" else volume.dtype) if not real else None
    if channel is None or not channel.count:
        # Viewers count in floats, which are not exact beyond.
        return (0.0, 1.0) if limits is None else (int(limits.min), min(int(limits.max), 2**53))
    if overlay and real and channel.min >= 0 and channel.max <= 1:
        return 0.0, 1.0  # probabilities, however rare the high ones are
    low, high = (channel.percentile(q) for q in PERCENTILES)
    if high <= low:  # almost everything has one value
        low, high = channel.min, channel.max
    if limits is not None:
        low, high = math.floor(low), math.ceil(high)
    if high > low:
        return low, high
    return (low, low + 1) if limits is None or low < limits.max else (low - 1, low)
