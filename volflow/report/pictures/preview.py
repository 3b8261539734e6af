"""Previews: planes of a volume, or of a result over its scan; three, or many along an axis."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from volflow.errors import InvalidInput
from volflow.geometry.units import unit_sign
from volflow.geometry.views import View
from volflow.report.grey_range import Window
from volflow.report.pictures.layers import Layer
from volflow.report.pictures.scene import MARGIN, WIDTH, Panel, beside, in_columns, plane_panels
from volflow.report.pictures.slices import Slice
from volflow.report.pictures.stack import at_levels, check_display, drawing, scene_of, stack
from volflow.report.pictures.subject import Names, Subject, check_tiles, open_together, view_across

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["check_target", "contact_sheet", "preview", "save"]

NARROWED = 4  # times that a sheet is laid closer around what there is to see
LONGEST = 1600  # pixels of a plane; no picture shows more
SHARP = 300  # pixels per inch at which tiles are read, twice what is commonly written
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
    window: Window = None,
) -> Figure:
    """Show three orthogonal planes of a volume; only these planes are read.

    Parameters
    ----------
    volume
        What to show: any `VolumeLike`. A part of a volume keeps its spacing and direction as
        ``scan.xarray()[40:60]``; ``scan[40:60]`` is a bare NumPy array. A result shows its
        classes in colours, or its scores as heat; where there are several channels of scores, the
        class that they add up to.
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
    window
        These values themselves, in place of percentiles: two numbers, or of a CT the name of a
        window as radiologists use it: ``"brain"``, ``"stroke"``, ``"temporal bone"``, ``"lung"``,
        ``"mediastinum"``, ``"soft tissue"``, ``"abdomen"``, ``"liver"`` or ``"bone"``.

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
    greys = check_display(classes, percentiles, window)
    (top,), under = open_together([volume], over, channel)
    if at is None:
        at = "center" if under is None else "content"
    slices = top.slices(at)
    top, under = at_levels(top, under, level, LONGEST)
    layers, levels = stack(top, under, slices, classes, greys)
    columns = beside(plane_panels(slices, layers, top.size), top.size)
    return draw(scene_of(top, under, slices, levels, columns))


def contact_sheet(  # noqa: PLR0913 - each says what to show
    volume: VolumeLike,
    over: VolumeLike | None = None,
    *,
    axis: str = "z",
    tiles: int = 24,
    level: int | None = None,
    classes: Names = None,
    channel: int | None = None,
    percentiles: tuple[float, float] = (1, 99.5),
    window: Window = None,
) -> Figure:
    """Show evenly spaced planes along an axis; only these planes are read.

    Planes at either end that show nothing, such as those above a head, give their place to others.
    All tiles have one scale, one grey window and one colour per class. Each is labelled with its
    index at the finest level and the position of its centre.

    Parameters
    ----------
    volume
        What to show: any `VolumeLike`, as in `preview`.
    over
        The scan underneath; it covers the same box, on any grid.
    axis
        Across the planes: ``"z"``, ``"y"`` or ``"x"`` as stored, or the name of a plane as
        `preview` shows it, such as ``"axial"``.
    tiles
        How many, 1 to 200; fewer where the volume has fewer planes.
    level
        Of the pyramid; by default the finest that a tile can show.
    classes, channel, percentiles, window
        As in `preview`.

    Returns
    -------
    matplotlib.figure.Figure
        As from `preview`.

    Raises
    ------
    InvalidInput
        If there is no such axis, the number of tiles cannot be shown, or as `preview` raises.

    Examples
    --------
    >>> import numpy as np
    >>> figure = contact_sheet(np.arange(4096.0).reshape(16, 16, 16), tiles=4)
    >>> [plane["index"] for plane in figure.facts["planes"]]
    [2, 6, 10, 14]
    """
    draw = drawing()
    greys = check_display(classes, percentiles, window)
    check_tiles(tiles)
    (top,), under = open_together([volume], over, channel)
    view = view_across(axis, top.finest.meta.orientation)
    if not view.is_area(top.shape):
        raise InvalidInput(
            f"{top.name} has no planes across {axis}: it is {top.shape} voxels; choose another axis"
        )
    low, high = 0, top.shape[view.normal]
    count = min(tiles, high)
    columns = len(in_columns([Panel(view, ())] * count, top.size))
    pixels = max(64, int(SHARP * (WIDTH - 2 * MARGIN) / columns))
    top, under = at_levels(top, under, level, pixels, (view.rows, view.columns))
    for _ in range(NARROWED):
        count = min(tiles, high - low)
        places = ((n + 0.5) / count * (high - low) for n in range(count))
        slices = [top.slice(view, low + int(place)) for place in places]
        layers, levels = stack(top, under, slices, classes, greys)
        seen = [n for n in range(count) if not _blank(layers, n)]
        if not seen or (seen[0], seen[-1]) == (0, count - 1):
            break
        # Between two planes of which one is blank may lie something to see.
        low = slices[seen[0] - 1].index + 1 if seen[0] else low
        high = slices[seen[-1] + 1].index if seen[-1] < count - 1 else high
    panels = [
        Panel(view, layers, n, caption=f"{view.axis} = {one.index}", note=_place(top, one))
        for n, one in enumerate(slices)
    ]
    scene = scene_of(top, under, slices, levels, in_columns(panels, top.size))
    subtitle = f"{_planes_text(top, view, count)}   ·   {scene.subtitle}"
    return draw(replace(scene, subtitle=subtitle, tiles=True))


def _blank(layers: Sequence[Layer], number: int) -> bool:
    """Return True if one of each layer's pictures has the same colour everywhere."""
    pictures = [layer.pictures[number].values for layer in layers]
    return all(bool((picture == picture[:1, :1]).all()) for picture in pictures)


def _planes_text(top: Subject, view: View, count: int) -> str:
    """Return the number and name of the tiles' planes, and their direction."""
    orientation = top.finest.meta.orientation
    if orientation is None:
        return f"{count} {view.name} planes, {view.name[0]} →  {view.name[1]} ↓"
    toward = orientation[view.normal]
    return f"{count} {view.name} planes along {view.axis}, towards {toward}"


def _place(top: Subject, one: Slice) -> str:
    """Return where the centre of a plane lies in the volume's coordinates, if they have a unit."""
    meta, axis = top.finest.meta, one.view.normal
    place = meta.translation[axis] + one.index * meta.spacing[axis]
    return "" if meta.unit is None else f"{round(place, 2):.10g} {unit_sign(meta.unit)}"


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
