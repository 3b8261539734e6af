"""Contact sheets: many planes along one axis on one page."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from volflow.errors import InvalidInput
from volflow.geometry.units import unit_sign
from volflow.geometry.views import View
from volflow.report.pictures.scene import MARGIN, WIDTH, Panel, in_columns
from volflow.report.pictures.slices import Slice
from volflow.report.pictures.stack import (
    at_levels,
    check_display,
    drawing,
    open_both,
    scene_of,
    stack,
)
from volflow.report.pictures.subject import Names, Subject, check_tiles, view_across

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["contact_sheet"]

SHARP = 300  # pixels per inch at which tiles are read, twice what is commonly written


def contact_sheet(
    volume: VolumeLike,
    over: VolumeLike | None = None,
    *,
    axis: str = "z",
    tiles: int = 24,
    level: int | None = None,
    classes: Names = None,
    channel: int | None = None,
    percentiles: tuple[float, float] = (1, 99.5),
) -> Figure:
    """Show evenly spaced planes along an axis; only these planes are read.

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
    classes, channel, percentiles
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
    check_display(classes, percentiles)
    check_tiles(tiles)
    top, under = open_both(volume, over, channel)
    view = view_across(axis, top.finest.meta.orientation)
    if not view.is_area(top.shape):
        raise InvalidInput(
            f"{top.name} has no planes across {axis}: it is {top.shape} voxels; choose another axis"
        )
    depth = top.shape[view.normal]
    count = min(tiles, depth)
    slices = [top.slice(view, int((n + 0.5) / count * depth)) for n in range(count)]

    columns = len(in_columns([Panel(view, ())] * count, top.size))
    pixels = max(64, int(SHARP * (WIDTH - 2 * MARGIN) / columns))
    top, under = at_levels(top, under, level, pixels, (view.rows, view.columns))
    layers, levels = stack(top, under, slices, classes, percentiles)
    tiles_shown = [
        Panel(view, layers, n, caption=f"{view.axis} = {one.index}", note=_place(top, one))
        for n, one in enumerate(slices)
    ]
    scene = scene_of(top, under, slices, levels, in_columns(tiles_shown, top.size))
    subtitle = f"{_planes_text(top, view, count)}   ·   {scene.subtitle}"
    return draw(replace(scene, subtitle=subtitle, tiles=True))


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
