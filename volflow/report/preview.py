"""Previews: three orthogonal planes of a volume, or of a result over the scan it came from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.report.slices import (
    LONGEST,
    Array,
    Readable,
    Streamed,
    View,
    busiest,
    class_maps,
    cut,
    same_box,
    views,
)
from volflow.report.units import unit_sign
from volflow.store.sources import open_source
from volflow.store.volume import Volume, open_volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from volflow.report.draw import Layer

__all__ = ["preview", "save"]

Names = Sequence[str] | Mapping[int, str] | None

COARSE = 128  # voxels along the longest side
FEW_VALUES = 32  # an image of whole numbers with no more is taken for classes over a scan


def preview(
    volume: Any,
    over: Any = None,
    *,
    at: str | Sequence[int] | None = None,
    level: int | None = None,
    classes: Names = None,
    channel: int | None = None,
    percentiles: tuple[float, float] = (1, 99.5),
) -> Figure:
    """Show three orthogonal planes of a volume; only these planes are read.

    Parameters
    ----------
    volume
        What to show: a path, `Volume` or array. A result shows its classes in colours, or its
        scores as heat; where there are several channels of scores, the class that they add up to.
    over
        The scan underneath; it covers the same box, on any grid.
    at
        ``"center"``; ``"content"``, where a few planes say that there is most to see, the default
        over a scan; or a voxel (z, y, x) of the volume's finest level. Of a ``.nii.gz``, which is
        read from front to back for each plane, the default is the centre.
    level
        Of the pyramid; by default the finest that a picture can show.
    classes
        Names of the classes by number. An image of whole numbers counts as classes where names
        are given, or where it lies over a scan and the planes hold few different values.
    channel
        Which channel to show.
    percentiles
        The grey values shown black and white, in percent of the voxels shown.

    Returns
    -------
    matplotlib.figure.Figure
        Notebooks show it; ``figure.savefig("p.png")`` writes it.

    Raises
    ------
    InvalidInput
        Where the volumes do not cover the same box, the position or channel lies outside, or
        matplotlib is missing.

    Examples
    --------
    >>> import numpy as np
    >>> z, y, x = np.ogrid[:20, :30, :40]
    >>> ball = ((z - 10) ** 2 + (y - 15) ** 2 + (x - 20) ** 2 < 60).astype("uint8")
    >>> figure = preview(ball, over=ball * 90.0 + z, classes=["background", "ball"])
    >>> [axes.get_label() for axes in figure.axes]
    ['xy', 'xz', 'yz']
    """
    draw = _drawing()
    finest = _open(volume)
    scan = None if over is None else _open(over)
    if scan is not None:
        same_box(finest, scan, _name(volume), _name(over))
    part = _channels(finest, channel, all_of_them=scan is not None)
    if at is None:
        at = "center" if scan is None or isinstance(finest, Streamed) else "content"
    where = _place(finest, at, part)

    top = _at_level(finest, level)
    planes = tuple(view for view in views(top.meta.orientation) if _is_area(top, view))
    cuts = [cut(top, view, where[view.normal], part) for view in planes]
    layers: list[Layer] = []
    if scan is not None:
        coarsest = len(scan.levels) - 1 if isinstance(scan, Volume) else 0
        under = _at_level(scan, level if level is None else min(level, coarsest))
        greys = [cut(under, view, where[view.normal])[0] for view in planes]
        layers.append(draw.grey_layer(greys, percentiles, draw.DIMMED))
    if _shows_classes(top, cuts, classes, scan is not None):
        labels = [plane.argmax(axis=0) if len(plane) > 1 else plane[0] for plane in cuts]
        layers.append(draw.class_layer(labels, _class_names(top, classes), top.meta.colors))
    elif scan is not None:
        name = top.meta.channels[part.start] if top.meta.channels else "score"
        layers.append(draw.heat_layer([plane[0] for plane in cuts], name))
    else:
        layers.append(draw.grey_layer([plane[0] for plane in cuts], percentiles))

    shape, spacing = finest.shape[-3:], finest.meta.spacing
    scene = draw.Scene(
        title=_name(volume) + ("" if over is None else f" over {_name(over)}"),
        subtitle=_facts(finest),
        size=tuple(n * s for n, s in zip(shape, spacing, strict=True)),
        unit=finest.meta.unit,
        where=where,
        index=tuple(int(w * n) for w, n in zip(where, shape, strict=True)),
    )
    figure: Figure = draw.draw(planes, layers, scene)
    return figure


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a preview as a picture, by the name's ending.

    Raises
    ------
    InvalidInput
        For an ending that is no format of pictures, or a folder that does not exist.
    """
    if not Path(path).absolute().parent.is_dir():
        raise InvalidInput(
            f"the folder of {os.fspath(path)} does not exist; make it first, or choose another"
        )
    ending = Path(path).suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if ending not in known:
        raise InvalidInput(
            f"a picture is written as .png, .pdf, .svg or .jpg, given {os.fspath(path)!r}"
        )
    figure.savefig(path, dpi=dpi)


def _drawing() -> Any:
    """The module that draws; it needs matplotlib."""
    try:
        from volflow.report import draw
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f'a preview needs {error.name}, which is missing; pip install "volflow[report]"'
        ) from error
    return draw


def _open(x: Any) -> Readable:
    """The finest level of a volume, or a file or array."""
    if isinstance(x, Volume):
        return x
    path = isinstance(x, str | os.PathLike) and "://" not in os.fspath(x)
    if not isinstance(x, np.ndarray) and not (path and Path(x).is_file()):
        return open_volume(x)
    source = open_source(x)
    return Streamed(source) if source.sequential else source


def _at_level(finest: Readable, level: int | None) -> Readable:
    """The level asked for; by default the finest that a picture can show."""
    if not isinstance(finest, Volume):
        return finest
    if level is not None:
        return _level(finest, level)
    volume = finest
    while max(volume.spatial_shape) > LONGEST and volume.level + 1 < len(volume.levels):
        volume = _level(volume, volume.level + 1)
    return volume


def _level(volume: Volume, level: int) -> Volume:
    """Another level of the same pyramid."""
    if level == volume.level or volume.path is None:
        return volume
    return open_volume(volume.path, level, timepoint=volume.timepoint)


def _coarse(finest: Readable) -> Readable:
    """The coarsest level that still shows where things are."""
    if not isinstance(finest, Volume):
        return finest
    for level in range(len(finest.levels) - 1, finest.level, -1):
        volume = _level(finest, level)
        if max(volume.spatial_shape) >= COARSE:
            return volume
    return finest


def _channels(volume: Readable, channel: int | None, all_of_them: bool) -> slice:
    """Which channels to read: the one asked for, all to take the argmax of, or the first."""
    count = volume.shape[0] if len(volume.shape) == 4 else 1
    if channel is None:
        return slice(0, count if all_of_them else 1)
    if not 0 <= channel < count:
        raise InvalidInput(f"channel must be 0 … {count - 1}, given {channel}")
    return slice(channel, channel + 1)


def _place(
    volume: Readable, at: str | Sequence[int], channels: slice
) -> tuple[float, float, float]:
    """The position of the planes along z, y, x, from 0 to 1."""
    if at == "center":
        return (0.5, 0.5, 0.5)
    if at == "content":
        return busiest(_coarse(volume), channels, class_maps)
    shape = volume.shape[-3:]
    if (
        isinstance(at, str)
        or len(at) != 3
        or any(not 0 <= i < n for i, n in zip(at, shape, strict=True))
    ):
        raise InvalidInput(
            f'at must be "center", "content" or a voxel z, y, x inside {shape}, given {at!r}'
        )
    z, y, x = ((i + 0.5) / n for i, n in zip(at, shape, strict=True))
    return (z, y, x)


def _is_area(volume: Readable, view: View) -> bool:
    """A single slice has one plane worth showing."""
    shape = volume.shape[-3:]
    return shape[view.rows] > 1 and shape[view.columns] > 1


def _shows_classes(volume: Readable, cuts: Sequence[Array], classes: Names, stacked: bool) -> bool:
    if volume.meta.kind == "classes" or classes is not None or len(cuts[0]) > 1:
        return True
    if not stacked or volume.dtype.kind not in "biu":
        return False
    return len(np.unique(np.concatenate([plane.ravel() for plane in cuts]))) <= FEW_VALUES


def _class_names(volume: Readable, classes: Names) -> dict[int, str]:
    if isinstance(classes, Mapping):
        return dict(classes)
    return dict(enumerate(volume.meta.channels if classes is None else classes))


def _name(x: Any) -> str:
    if isinstance(x, np.ndarray):
        return "array"
    path = getattr(x, "path", None) or (x if isinstance(x, str | os.PathLike) else "volume")
    return Path(path).name


def _facts(volume: Readable) -> str:
    """Shape, voxel size, orientation and dtype in one line."""
    meta = volume.meta
    shape = " × ".join(str(n) for n in volume.shape)
    spacing = " × ".join(f"{s:.4g}" for s in meta.spacing)
    facts = [
        f"{shape} voxels",
        f"{spacing} {unit_sign(meta.unit)}".rstrip(),
        meta.orientation or "",
    ]
    return "   ·   ".join(fact for fact in [*facts, str(volume.dtype)] if fact)
