"""The images of a TIFF file: which of them is meant, and which page holds which plane of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.raw import check_room
from volflow.store.slabs import Array

__all__ = ["Planes", "chosen_series", "planes_of"]

# Whose first image is the slide; the others are its thumbnail, its label and the like.
SLIDES = {"avs", "bif", "ndpi", "philips", "qpi", "scn", "svs"}
MOST_NAMED = 12

Axes = list[tuple[str, int]]


@dataclass(frozen=True)
class Planes:
    """Which page of a series holds which plane of a volume.

    Parameters
    ----------
    numbers
        Of pages, by channel and z; 1 along an axis that lies within pages.
    samples
        The axis of a page along which channels lie: 0, 4, or None.
    shape
        Of the volume, ``zyx`` or ``czyx``.
    """

    numbers: Array
    samples: int | None
    shape: tuple[int, ...]


def chosen_series(file: Any, path: str, choice: ImageChoice) -> tuple[Any, Any]:
    """Return the image that is meant, at the level that is meant, and at its finest level.

    Raises
    ------
    InvalidInput
        If there are several and none was chosen, or there is none such; all are listed.
    """
    series = [one for one in file.series if one.size]
    if not series:
        raise InvalidInput(f"{path} holds no image; export it again")
    whole = _series(series, path, choice.series)
    return whole.levels[choice.at_level(len(whole.levels), path)], whole


def _series(series: list[Any], path: str, wanted: str | int | None) -> Any:
    if wanted is None and (len(series) == 1 or series[0].kind in SLIDES):
        return series[0]
    if isinstance(wanted, int) and 0 <= wanted < len(series):
        return series[wanted]
    named = [one for one in series if isinstance(wanted, str) and one.name == wanted]
    if len(named) == 1:
        return named[0]
    images = [
        f"{number}{one.name and f' ({one.name})'}: {' × '.join(map(str, one.shape))} {one.dtype}"
        for number, one in enumerate(series)
    ]
    more = f", … {len(images) - MOST_NAMED} more" if len(images) > MOST_NAMED else ""
    given = "" if wanted is None else f", given {wanted}"
    raise InvalidInput(
        f"{path} holds {len(images)} image{'s' * (len(images) > 1)}{given}; choose one with"
        f" series= (--series, or {path}::0): {', '.join(images[:MOST_NAMED])}{more}"
    )


def planes_of(series: Any, path: str, choice: ImageChoice) -> Planes:
    """Return the planes of a series of tifffile at one timepoint.

    Pages without a meaning of their own are planes along z. Where a file has two such axes, they
    are channels and z, as in a ``.npy`` file.

    Raises
    ------
    InvalidInput
        If it has timepoints and none was chosen, or axes that a volume has not.
    Damaged
        If the series has more or fewer pages than its axes say.
    """
    page = series.keyframe
    if 0 in page.shaped or series.transform is not None:
        raise InvalidInput(
            f"{path} holds an empty image, or numbers that stand for others; export it again"
        )
    whole = list(zip(series.get_axes(False), series.get_shape(False), strict=True))
    axes = _leading([(name, size) for name, size in whole if size > 1], page, path)
    axes = _named(axes, page.shaped[1] > 1)
    separate, depth, size_y, size_x, beside = page.shaped
    samples = 0 if separate > 1 else 4 if beside > 1 else None
    names = "".join(name for name, _ in axes)
    twice = len(set(names)) < len(names) or (samples is not None and "C" in names)
    if twice or set(names) - set("TCZ") or (depth > 1 and "Z" in names):
        said = ", ".join(f"{name} {size}" for name, size in whole if size > 1)
        raise InvalidInput(
            f"{path} has the axes {said}; a volume has channels, z, y and x, and one timepoint can"
            " be chosen; save the rest as files of their own"
        )
    sizes = [size for _, size in axes]
    _check_count(series, math.prod(sizes), path)
    timepoint = choice.at_time(dict(axes).get("T", 1), path)
    numbers: Array = np.arange(math.prod(sizes)).reshape(sizes)
    if "T" in names:
        numbers = numbers.take(timepoint, names.index("T"))
    names = names.replace("T", "")
    numbers = numbers.transpose([names.index(name) for name in sorted(names)])
    counts = dict(zip(sorted(names), numbers.shape, strict=True))
    channels = max(counts.get("C", 1), separate, beside)
    space = (counts.get("Z", 1) * depth, size_y, size_x)
    return Planes(
        numbers.reshape(counts.get("C", 1), counts.get("Z", 1)),
        samples,
        (channels, *space) if channels > 1 else space,
    )


def _check_count(series: Any, count: int, path: str) -> None:
    """Refuse a series of more planes than its file holds, before a number is made for each."""
    if series.dataoffset is not None:  # raw planes, perhaps without a page for each
        each = math.prod(series.keyframe.shaped)
        check_room(path, series.dataoffset, (count, each), series.dtype)
    elif sum(1 for _ in itertools.islice(series, count)) < count:
        raise Damaged(f"{path} says {count} planes and has fewer pages; copy it again")


def _leading(axes: Axes, page: Any, path: str) -> Axes:
    """Return the axes across pages, of all: without those within a page, which are the last."""
    within = [size for size in page.shape if size > 1]
    split = max(0, len(axes) - len(within))
    sides = {"Y": page.imagelength, "X": page.imagewidth}
    if [size for _, size in axes[split:]] != within or any(
        size != sides[name] for name, size in axes if name in sides
    ):
        raise Damaged(f"{path} says a shape that its pages do not have; export it again")
    return axes[:split]


def _named(axes: Axes, deep: bool) -> Axes:
    """Return axes across pages with names for those that have none of their own."""
    plain = [place for place, (name, _) in enumerate(axes) if name in "IQ"]
    meant = {1: "Z", 2: "CZ"}.get(len(plain), "")
    if {name for name, _ in axes} & set(meant) or (deep and meant):
        return axes
    names = dict(zip(plain, meant, strict=False))
    return [(names.get(place, name), size) for place, (name, size) in enumerate(axes)]
