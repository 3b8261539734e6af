"""Previews: three orthogonal planes of a volume, or of a result over the scan it came from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from volflow.errors import InvalidInput
from volflow.report.pictures.scene import beside, plane_panels
from volflow.report.pictures.stack import (
    at_levels,
    check_display,
    drawing,
    open_both,
    scene_of,
    stack,
)
from volflow.report.pictures.subject import Names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["check_target", "preview", "save"]

LONGEST = 1600  # pixels of a plane; no picture shows more
ENDINGS = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
DPI = (20, 600)


def preview(
    volume: VolumeLike,
    over: VolumeLike | None = None,
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
        What to show: any `VolumeLike`. A result shows its classes in colours, or its
        scores as heat; where there are several channels of scores, the class that they add up to.
    over
        The scan underneath; it covers the same box, on any grid.
    at
        ``"center"``; ``"content"``, where a few planes say that there is most to see, the default
        over a scan; or a voxel (z, y, x) of the volume's finest level.
    level
        Of the pyramid; by default the finest that a picture can show. A volume without levels is
        thinned out while it is read, a few chunks at a time.
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
        Notebooks show it; ``figure.savefig("p.png")`` writes it; ``figure.facts`` says in plain
        values what it shows.

    Raises
    ------
    InvalidInput
        If the volumes do not cover the same box, the position, level or channel lies outside,
        or matplotlib is missing.

    Examples
    --------
    >>> import numpy as np
    >>> z, y, x = np.ogrid[:20, :30, :40]
    >>> ball = ((z - 10) ** 2 + (y - 15) ** 2 + (x - 20) ** 2 < 60).astype("uint8")
    >>> figure = preview(ball, over=ball * 90.0 + z, classes=["background", "ball"])
    >>> [axes.get_label() for axes in figure.axes]
    ['xy', 'xz', 'yz']
    """
    draw = drawing()
    check_display(classes, percentiles)
    top, under = open_both(volume, over, channel)
    if at is None:
        at = "center" if under is None else "content"
    slices = top.slices(at)
    top, under = at_levels(top, under, level, LONGEST)
    layers, levels = stack(top, under, slices, classes, percentiles)
    columns = beside(plane_panels(slices, layers, top.size), top.size)
    return draw(scene_of(top, under, slices, levels, columns))


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a picture in the format of its name's ending.

    Raises
    ------
    InvalidInput
        As `check_target` raises.
    """
    check_target(path, dpi)
    figure.savefig(path, dpi=dpi)


def check_target(path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Refuse a path that no picture can be written to, before anything is read for it.

    Raises
    ------
    InvalidInput
        For an ending that is not a format of pictures, a missing folder, or so few or so
        many pixels that nothing can be seen or the picture cannot be held.
    """
    if not Path(path).absolute().parent.is_dir():
        raise InvalidInput(
            f"the folder of {os.fspath(path)} does not exist; make it first, or choose another"
        )
    if Path(path).suffix.lower() not in ENDINGS:
        raise InvalidInput(
            f"a picture is written as .png, .pdf, .svg or .jpg, given {os.fspath(path)!r}"
        )
    if not DPI[0] <= dpi <= DPI[1]:
        raise InvalidInput(f"dpi must be {DPI[0]} to {DPI[1]} pixels per inch, given {dpi}")
