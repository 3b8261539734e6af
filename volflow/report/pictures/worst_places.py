"""Where label maps differ most from the truth: planes through the worst places of some cases."""

from __future__ import annotations

import math
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

__all__ = ["WorstPlace", "worst_places"]

Array = npt.NDArray[Any]

SIDE = 96  # voxels of the finest spacing that a plane shows
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
        The scan underneath, on the same grid; None for none.
    """

    row: ClassScores
    pair: LabelPair
    over: Any = None


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
        If a scan lies on another grid, or matplotlib is missing.
    """
    draw = drawing()
    first = places[0].pair.meta
    side = SIDE * min(min(one.pair.spacing) for one in places)
    rows = [_row(one, side, options) for one in places]
    planes = [plane for row in rows for plane in row.planes]
    layers = [_differences(planes), *_outlines(planes)]
    if all(plane.scan is not None for plane in planes):
        layers = [_greys(rows), *layers]
    columns: list[list[Panel]] = [[], [], []]
    for number, row in enumerate(rows):
        for column, plane in enumerate(row.planes):
            heading = row.heading if column == 0 else ""
            caption = plane_name(plane.view, f"   {plane.view.axis} = {plane.index}")
            cross = (side / 2,) * 3
            place = 3 * number + column
            columns[column].append(Panel(plane.view, layers, place, heading, caption, cross=cross))
    legend = tuple((NAMES[one], COLORS[one]) for one in (PRED, TRUTH))
    return draw(
        Scene(
            title=(title,),
            subtitle=f"planes of {side:.4g} {unit_sign(first.unit) or 'voxels'} around each place",
            size=(side,) * 3,
            unit=first.unit,
            facts={"places": [row.facts for row in rows]},
            columns=columns,
            feet=[[[legend]]],
        )
    )


@dataclass(frozen=True)
class _Plane:
    """One plane through a place: pred, truth and scan, turned as they are displayed."""

    view: View
    index: int
    pred: Array
    truth: Array
    scan: Array | None
    extent: tuple[float, float, float, float]

    def cut(self, values: Array) -> Cut:
        return Cut(values, self.extent)


@dataclass(frozen=True)
class _Row:
    heading: str
    planes: tuple[_Plane, ...]
    facts: Mapping[str, Any]


def _row(one: WorstPlace, side: float, options: RunOptions) -> _Row:
    """Return the planes through a place, which alone are read."""
    assert one.row.place is not None
    row, place = one.row, one.row.place
    sources = [*one.pair.sources]
    if one.over is not None:
        sources.append(_scan(one))
    with readable(sources, options) as opened:
        pair = one.pair.carried(opened)
        scan = opened[2] if len(opened) > 2 else None
        seen = views(pair.meta.orientation)
        planes = tuple(_plane(pair, scan, view, place, row.label, side) for view in seen)
    name = f"{row.label} {row.name}".rstrip()
    dice = score_text("dice", row.values["dice"], None, 3)
    far = row.place_distance
    away = "" if math.isnan(far) or math.isinf(far) else f"{far:.3g} {unit_sign(pair.meta.unit)}"
    texts = [row.case, f"class {name}", f"Dice {dice}", away and f"{away.rstrip()} apart here"]
    facts = {
        "case": row.case, "class": row.label, "dice": row.values["dice"].value,
        "place": list(place), "distance": None if not away else far,
    }  # fmt: skip
    return _Row("   ".join(filter(None, texts)), planes, facts)


def _scan(one: WorstPlace) -> Source:
    scan = open_input(one.over)
    grids = {"truth": (one.pair.shape, one.pair.meta), "over": (scan.shape, scan.meta)}
    differing = difference_of_grids(grids)
    if scan.ndim != 3 or differing is not None:
        what, _, value, _, other = differing or ("shape", "", str(one.pair.shape), "", scan.shape)
        raise InvalidInput(
            f"the scan under {one.row.case or 'the label maps'} must lie on their grid, but they"
            f" have {what} {value} and the scan {other}; leave over out, or resample the scan"
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
    spacing = pair.spacing
    start, stop = list(place), [at + 1 for at in place]
    for axis in (view.rows, view.columns):
        half = max(1, round(side / spacing[axis] / 2))
        start[axis], stop[axis] = place[axis] - half, place[axis] + half
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
    left, top = (side - wide) / 2, (side - high) / 2
    extent = (left, left + wide, top + high, top)
    return _Plane(view, place[view.normal], pred, truth, shown, extent)


def _greys(rows: Sequence[_Row]) -> Layer:
    """Return the scans in grey, those of each case in its own window."""
    pictures: list[Cut] = []
    for row in rows:
        cuts = [plane.cut(plane.scan) for plane in row.planes if plane.scan is not None]
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
