"""Files of Imaris (.ims): levels, timepoints and channels are datasets of HDF5."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.units import metres, unit_name
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.hdf5.hdf5_file import check_dataset, own
from volflow.store.formats.hdf5.hdf5_source import Hdf5Source, pieces_of
from volflow.store.meta import Meta, SourceInfo

__all__ = ["is_imaris", "open_imaris"]

FINEST = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"


def is_imaris(file: Any, path: str) -> bool:
    """Return True if a file is laid out as Imaris does it."""
    return own(file, "DataSetInfo/Image", path) is not None and own(file, FINEST, path) is not None


def open_imaris(file: Any, path: str, choice: ImageChoice) -> Hdf5Source:
    """Open a level and timepoint of an Imaris file, with all its channels.

    Raises
    ------
    InvalidInput
        If a level or timepoint must be chosen, or there is none such.
    Damaged
        If its channels differ, or are smaller than it says.
    """
    level = choice.at_level(_count(own(file, "DataSet", path), "ResolutionLevel"), path)
    times = own(file, f"DataSet/ResolutionLevel {level}", path)
    timepoint = choice.at_time(_count(times, "TimePoint"), path)
    place = f"DataSet/ResolutionLevel {level}/TimePoint {timepoint}"
    count = _count(own(file, place, path), "Channel")
    channels = [own(file, f"{place}/Channel {n}", path) for n in range(count)]
    names = tuple(f"{place}/Channel {n}/Data" for n in range(count))
    datasets = [own(file, name, path) for name in names]
    if not count or None in datasets:
        raise Damaged(f"{path} has a channel without voxels at {place}; export it again")
    for dataset in datasets:
        check_dataset(dataset, path)
    sizes = [
        _size(channel, dataset, path) for channel, dataset in zip(channels, datasets, strict=True)
    ]
    if len(set(sizes)) > 1 or len({dataset.dtype for dataset in datasets}) > 1:
        raise InvalidInput(
            f"{path} has channels of different sizes or dtypes; choose one as a dataset, such as"
            f" {path}::{names[0]}"
        )
    shape = (count, *sizes[0]) if count > 1 else sizes[0]
    dtype = datasets[0].dtype.newbyteorder("=")
    called = tuple(_text(own(file, f"DataSetInfo/Channel {n}", path), "Name") for n in range(count))
    meta = _grid(own(file, "DataSetInfo/Image", path), sizes[0])
    return Hdf5Source(
        path=path,
        shape=shape,
        dtype=dtype,
        meta=Meta(
            axes=("c", "z", "y", "x")[-len(shape) :],
            spacing=meta.spacing,
            unit=meta.unit,
            translation=meta.translation,
            channels=called if count > 1 and all(called) else (),
            source=SourceInfo("imaris", str(dtype)),
        ),
        datasets=names,
        axes="zyx",
        decoded=pieces_of(datasets[0], "zyx", shape),
    )


def _count(group: Any, word: str) -> int:
    """Return how many members of a group are numbered behind a word, from 0."""
    names = set(group.keys()) if group is not None else set()
    return next(n for n in range(len(names) + 1) if f"{word} {n}" not in names)


def _size(channel: Any, dataset: Any, path: str) -> tuple[int, int, int]:
    """Return the voxels along z, y, x, of which a dataset may hold more, up to whole chunks."""
    said = [_text(channel, f"ImageSize{axis}") for axis in "ZYX"]
    if dataset.ndim != 3:
        raise Damaged(f"{path} has {dataset.name} of {dataset.ndim} axes; export it again")
    z, y, x = (
        int(text) if text.isdecimal() and len(text) < 10 else side
        for text, side in zip(said, dataset.shape, strict=True)
    )
    if any(not 0 < a <= b for a, b in zip((z, y, x), dataset.shape, strict=True)):
        raise Damaged(
            f"{path} says {z} × {y} × {x} voxels at {dataset.name} and has"
            f" {' × '.join(map(str, dataset.shape))}; export it again"
        )
    return z, y, x


def _grid(image: Any, size: tuple[int, int, int]) -> Meta:
    """Return spacing, unit and place from the extent of the image, which all levels share."""
    low, high = (
        [_number(_text(image, f"Ext{end}{axis}")) for axis in (2, 1, 0)] for end in ("Min", "Max")
    )
    spacing = [(b - a) / n for a, b, n in zip(low, high, size, strict=True)]
    if not all(0 < side < math.inf for side in spacing):
        return Meta()
    unit = unit_name(_text(image, "Unit"))
    return Meta(
        spacing=(spacing[0], spacing[1], spacing[2]),
        unit=unit if metres(unit) else "micrometer",
        translation=(low[0] + spacing[0] / 2, low[1] + spacing[1] / 2, low[2] + spacing[2] / 2),
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _text(group: Any, name: str) -> str:
    """Return a text, which Imaris stores letter by letter; "" if there is none."""
    value = None if group is None else group.attrs.get(name)
    if isinstance(value, np.ndarray) and value.dtype.kind == "S":
        return b"".join(value.ravel().tolist()).decode(errors="replace")
    return value if isinstance(value, str) else ""
