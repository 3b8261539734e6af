"""Where label maps differ most from the truth: planes through the worst places of some cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.geometry.units import unit_sign
from volflow.geometry.views import View, views
from volflow.report.pictures.layers import Greys, Layer
from volflow.report.pictures.scene import Panel, Scene, plane_name
from volflow.report.pictures.slices import Cut
from volflow.report.pictures.stack import drawing
from volflow.store.slabs import Source
from volflow.volumes.arrays.grids import difference_of_grids
from volflow.volumes.arrays.inputs import open_input
from volflow.volumes.evaluate.class_scores import ClassScores, score_text
from volflow.volumes.evaluate.label_pair import LabelPair, readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from volflow.engine.run_options import RunOptions
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["WorstPlace", "open_scan", "worst_places"]

Array = npt.NDArray[Any]

SIDE = 96  # voxels of the finest spacing that a plane shows
ALONE = 3  # places below each other; more stand in two columns
PRED, TRUTH = 1, 2
COLORS = {PRED: "#D63AFF", TRUTH: "#45E838"}  # as in `compare`
NAMES = {PRED: "pred, and only there", TRUTH: "truth, and only there"}


@dataclass(frozen=True)
class WorstPlace:
    """A case, with the class and the place that are shown of it.

    Parameters
    ----------
    row
        The scores of the class, whose ``place`` is not None.
    pair
        Its volumes.
    over
        The scan underneath, as from `open_scan`; None for none.
    """

    row: ClassScores
    pair: LabelPair
    over: Source | None = None


def worst_places(
    places: Sequence[WorstPlace], options: RunOptions, title: str = "worst places"
) -> Figure:
    """Show three planes through each place, with both outlines of its class.

    Parameters
    ----------
    places
        What is shown, from top to bottom.
    options
        Where a file that is packed as a whole is unpacked.
    title
        Above the picture.

    Returns
    -------
    matplotlib.figure.Figure
        As from `preview`; ``figure.facts["places"]`` says in plain values what it shows.

    Raises
    ------
    InvalidInput
        If matplotlib is missing.
    """
    draw = drawing()
    side = _side([one.pair for one in places])
    rows = [_row(one, side, options) for one in places]
    planes = [plane for row in rows for plane in row.planes]
    layers = [_differences(planes), *_outlines(planes)]
    if any(plane.scan is not None for plane in planes):
        layers = [_greys(rows), *layers]
    across = 1 if len(rows) <= ALONE else 2  # places side by side
    columns: list[list[Panel]] = [[] for _ in range(3 * across)]
    for number, row in enumerate(rows):
        for n, (plane, heading) in enumerate(zip(row.planes, row.headings, strict=True)):
            caption = plane_name(plane.view, f"   {plane.view.axis} = {plane.index}")
            panel = Panel(plane.view, layers, 3 * number + n, heading, caption, cross=plane.cross)
            columns[3 * (number % across) + n].append(panel)
    legend = tuple((NAMES[one], COLORS[one]) for one in (PRED, TRUTH))
    unit = places[0].pair.meta.unit
    return draw(
        Scene(
            title=(title,),
            subtitle=f"planes of {side:.4g} {unit_sign(unit) or 'voxels'} through each place",
            size=(side,) * 3,
            unit=unit,
            facts={"places": [row.facts for row in rows]},
            columns=columns,
            feet=[[[legend]]],
        )
    )


def _side(pairs: Sequence[LabelPair]) -> float:
    """Return the side of the planes: of so many voxels, or all that the largest volume has."""
    finest = min(min(pair.spacing) for pair in pairs)
    extents = [n * s for pair in pairs for n, s in zip(pair.shape, pair.spacing, strict=True)]
    return min(SIDE * finest, max(extents))


@dataclass(frozen=True)
class _Plane:
    """One plane through a place: pred, truth and scan, turned as they are displayed."""

    view: View
    index: int
    pred: Array
    truth: Array
    scan: Array | None
    extent: tuple[float, float, float, float]
    cross: tuple[float, ...]

    def cut(self, values: Array) -> Cut:
        return Cut(values, self.extent)


@dataclass(frozen=True)
class _Row:
    """The planes of one place, with a heading above each."""

    headings: tuple[str, str, str]
    planes: tuple[_Plane, ...]
    facts: Mapping[str, Any]


def _row(one: WorstPlace, side: float, options: RunOptions) -> _Row:
    """Return the planes through a place, which alone are read."""
    assert one.row.place is not None
    row, place = one.row, one.row.place
    sources = [*one.pair.sources]
    if one.over is not None:
        sources.append(one.over)
    with readable(sources, options) as opened:
        pair = one.pair.carried(opened)
        scan = opened[2] if len(opened) > 2 else None
        seen = views(pair.meta.orientation)
        planes = tuple(_plane(pair, scan, view, place, row.label, side) for view in seen)
    name = f"{row.label} {row.name}".rstrip()
    dice = score_text("dice", row.values["dice"], None, 3)
    away = score_text("worst_distance", row.place_distance, None, 3)
    apart = f"{away} {unit_sign(pair.meta.unit)}".rstrip() + " apart" if away else ""
    headings = (row.case or f"class {name}", f"Dice {dice}", apart)
    facts = {
        "case": row.case, "class": row.label, "dice": row.values["dice"].value,
        "place": list(place), "distance": away,
    }  # fmt: skip
    return _Row(headings, planes, facts)


def open_scan(x: VolumeLike, pair: LabelPair, case: str = "") -> Source:
    """Return the scan under the label maps of a case.

    Raises
    ------
    InvalidInput
        If it lies on another grid, or has channels.
    """
    scan = open_input(x)
    grids = {"truth": (pair.shape, pair.meta), "over": (scan.shape, scan.meta)}
    differing = difference_of_grids(grids)
    if scan.ndim != 3 or differing is not None:
        what, _, value, _, other = differing or ("shape", "", str(pair.shape), "", scan.shape)
        raise InvalidInput(
            f"the scan under {case or 'the label maps'} must lie on their grid, but they"
            f" have {what} {value} and the scan {other}; leave over out, or bring it there:"
            ' vf.resample(scan, "scan.zarr", like=truth)'
        )
    return scan


def _plane(
    pair: LabelPair,
    scan: Source | None,
    view: View,
    place: Sequence[int],
    label: int,
    side: float,
) -> _Plane:
    spacing, shape = pair.spacing, pair.shape
    start, stop = list(place), [at + 1 for at in place]
    cross = [side / 2] * 3
    for axis in (view.rows, view.columns):
        many = max(1, round(side / spacing[axis]))
        # Within the volume where it is as long, else with the volume in the middle.
        first = min(max(0, place[axis] - many // 2), shape[axis] - many)
        start[axis] = first if many <= shape[axis] else (shape[axis] - many) // 2
        stop[axis] = start[axis] + many
        cross[axis] = (place[axis] - start[axis] + 0.5) * spacing[axis]
    box = Roi(tuple(start), tuple(stop))

    def turned(read: Any) -> Array:
        inside = box.clip(pair.shape)
        voxels = read(inside)
        padded = np.zeros(box.shape, voxels.dtype)
        padded[inside.relative_to(box.start).slices()] = voxels
        plane: Array = view.turn(padded.take(0, axis=view.normal))
        return plane

    pred, truth = (
        turned(lambda roi, which=which: pair.read(which, roi) == label) for which in (0, 1)
    )
    shown = None if scan is None else turned(scan.read)
    wide, high = ((stop[axis] - start[axis]) * spacing[axis] for axis in (view.columns, view.rows))
    # Where sides are no whole voxels the last may reach a little beyond the panel, or end before:
    # on the side where an axis that is seen from its far end ends.
    left = side - wide if view.flip_columns else 0.0
    top = side - high if view.flip_rows else 0.0
    extent = (left, left + wide, top + high, top)
    return _Plane(view, place[view.normal], pred, truth, shown, extent, tuple(cross))


def _greys(rows: Sequence[_Row]) -> Layer:
    """Return the scans in grey, those of each case in its own window; black where there is none."""
    pictures: list[Cut] = []
    for row in rows:
        cuts = [
            plane.cut(np.zeros(plane.pred.shape) if plane.scan is None else plane.scan)
            for plane in row.planes
        ]
        pictures += Layer.grey(cuts, Greys().ends(cuts), "result").pictures
    return Layer(pictures)


def _differences(planes: Sequence[_Plane]) -> Layer:
    """Return what only one of the two holds, in the colour of that one."""
    cuts = [
        plane.cut(
            np.where(plane.pred & ~plane.truth, PRED, 0)
            + np.where(plane.truth & ~plane.pred, TRUTH, 0)
        )
        for plane in planes
    ]
    return Layer.classes(cuts, NAMES, COLORS, over_scan=True)


def _outlines(planes: Sequence[_Plane]) -> list[Layer]:
    """Return the outlines of the truth, and of pred above them."""
    layers = []
    for which in (TRUTH, PRED):
        masks = [plane.truth if which == TRUTH else plane.pred for plane in planes]
        labels = [np.where(mask, which, 0) for mask in masks]
        clear = [
            plane.cut(np.zeros((*mask.shape, 4), np.uint8))
            for plane, mask in zip(planes, masks, strict=True)
        ]
        layers.append(Layer(clear, labels=labels, colors=COLORS))
    return layers
