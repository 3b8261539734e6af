"""The picture of a seam certificate: a slice, what the network says of it, where blends differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volflow.geometry.views import View, views
from volflow.infer.seams.certificate import Certificate, Seams, percent
from volflow.report.facts.card import short_name
from volflow.report.pictures.arrange import MARGIN, best_columns, grid, raised
from volflow.report.pictures.difference import deviation
from volflow.report.pictures.layers import (
    HEAT,
    OVER_SCAN,
    Layer,
    Picture,
    Ramp,
    class_layer,
    grey_layer,
    grey_window,
    heat_layer,
    heat_window,
    painted,
)
from volflow.report.pictures.slices import Cut
from volflow.report.pictures.stack import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["seams_figure"]

Array = npt.NDArray[Any]

CAPTION, GAP, FOOT = 0.5, 0.3, 0.42
PERCENTILES = (1, 99.5)
TICK = {"length": 4, "width": 0.8, "color": "#e6edf3"}


@dataclass(frozen=True)
class Panel:
    """One panel: two lines above it, its layers, and where patches begin and end."""

    heading: str
    line: str
    layers: tuple[Layer, ...]
    borders: tuple[tuple[int, ...], ...] = ((), (), ())


def seams_figure(certificate: Certificate) -> Figure:
    """Draw a slice of a region in which blended patches differ most from the network run whole.

    One panel for the image, one for the whole run, and one for each blend at each overlap with
    the largest difference of each voxel's scores, all in one scale of colours. Ticks on the frame
    show where patches begin and end.

    Parameters
    ----------
    certificate
        From `volflow.infer.seams.certify.certify`.

    Returns
    -------
    matplotlib.figure.Figure
        As from `preview`; ``figure.facts`` is the certificate in plain values, with the plane.

    Raises
    ------
    InvalidInput
        Where matplotlib is missing.

    Examples
    --------
    >>> import torch
    >>> from volflow.infer.seams.certify import certify
    >>> scan = np.random.default_rng(0).random((12, 12, 12), "float32")
    >>> net = torch.nn.Conv3d(1, 2, 3, padding=1)
    >>> figure = seams_figure(certify(scan, net, patch=6, overlaps=[0, 0.5]))
    >>> [axes.get_label() for axes in figure.axes]
    ['xy', 'xy', 'xy', 'xy', 'scale of difference of scores from the whole run']
    """
    drawing()
    from volflow.report.pictures import draw

    plane = certificate.plane
    region = certificate.regions[plane.region - 1]
    view = next(v for v in views(certificate.orientation) if v.normal == plane.axis)
    spans = zip(region.start, region.stop, certificate.spacing, strict=True)
    size = tuple((b - a) * s for a, b, s in spans)
    sides = (size[view.columns], size[view.rows])
    panels, scale = _panels(certificate, view, sides)
    columns = best_columns(len(panels), sides, CAPTION, GAP)
    rows = [panels[n : n + columns] for n in range(0, len(panels), columns)]
    boxes, (wide, high) = grid([[sides] * len(row) for row in rows], caption=CAPTION, gap=GAP)
    legend = draw.legend_rows(panels[1].layers[-1].legend, wide - 2 * MARGIN)
    foot = FOOT + draw.LEGEND_ROW * len(legend) + (0.1 if legend else 0)

    title = (short_name(certificate.volume), " through ", short_name(certificate.model))
    facts = certificate.to_dict() | {"plane": {"axis": view.axis, "index": plane.index}}
    figure = draw.page((wide, high + foot), title, _subtitle(certificate, view), facts)
    placed = [box for row in boxes for box in raised(row, foot)]
    for n, (one, box) in enumerate(zip(panels, placed, strict=True)):
        pictures = [(layer, layer.pictures[0]) for layer in one.layers]
        axes = draw.panel(figure, box, view, pictures, size, letters=n == 0)
        _ticks(axes, view, one.borders, certificate.spacing, size)
        left, top = box[0], box[1] + box[3]
        heading = draw.fitted(one.heading, box[2], 11, "bold")
        draw.write(figure, left, top + 0.26, heading, size=11, weight="bold")
        line = draw.fitted(one.line, box[2], 9)
        draw.write(figure, left, top + 0.08, line, size=9, color=draw.MUTED)
    left, bottom, across, _ = placed[0]
    draw.scale_bar(figure, left + 0.14, bottom + 0.16, (sides[0], across), certificate.unit)
    draw.legend(figure, MARGIN, foot - 0.1, legend)
    draw.ramp(figure, MARGIN, 0.22, scale)
    return figure


def _panels(
    certificate: Certificate, view: View, sides: tuple[float, float]
) -> tuple[list[Panel], Ramp]:
    """The panels in their order, and the scale of the differences."""
    plane = certificate.plane
    region = certificate.regions[plane.region - 1]
    extent = (0.0, sides[0], sides[1], 0.0)

    def turned(values: Array) -> Cut:
        return Cut(view.turn(values), extent)

    image = turned(plane.image)
    grey = grey_layer([image], grey_window([image], PERCENTILES))
    whole = turned(plane.whole)
    if plane.whole.dtype.kind in "iu":
        names = dict(enumerate(certificate.classes))
        result, said = class_layer([whole], names, fill=OVER_SCAN), "classes"
    else:
        result, said = heat_layer([whole], "score", heat_window([whole])), "scores"
    panels = [
        Panel("image", "as the network sees it", (grey,)),
        Panel("whole", f"{said} in one forward", (grey, result)),
    ]
    cuts = [turned(away) for away in plane.differences]
    reach = deviation([cut.values for cut in cuts]).shown or 1.0
    for seams, cut, borders in zip(region.blends, cuts, plane.borders, strict=True):
        pixels = painted(np.clip(cut.values / reach, 0, 1), HEAT)
        layer = Layer((Picture(pixels, extent),), smooth=False)
        panels.append(Panel(_heading(seams), _line(seams), (layer,), borders))
    return panels, Ramp("difference of scores from the whole run", 0.0, reach, HEAT)


def _heading(seams: Seams) -> str:
    return f"{seams.blend}, overlap {seams.name.partition(' ')[2]}"


def _line(seams: Seams) -> str:
    """What is known of the whole region."""
    figures = f"mean {seams.mean:.2g}, largest {seams.largest:.2g}".replace("e-", "e−")
    return f"{figures}, {percent(seams.changed)} other class"


def _subtitle(certificate: Certificate, view: View) -> str:
    """Where the slice lies, and what is compared."""
    plane = certificate.plane
    region = certificate.regions[plane.region - 1]
    spans = ", ".join(
        f"{axis} {a}–{b}" for axis, a, b in zip("zyx", region.start, region.stop, strict=True)
    )
    parts = [
        f"{view.name} {view.axis} = {plane.index} of {spans}",
        f"patch {_by(certificate.patch)}",
    ]
    if region.exact is not None:
        largest = f"{region.exact.largest:.1e}".replace("e-", "e−")
        parts.append(f"exact: largest {largest}")
    return "   ·   ".join(parts)


def _by(sides: tuple[int, ...]) -> str:
    return f"{sides[0]}³" if len(set(sides)) == 1 else " × ".join(map(str, sides))


def _ticks(
    axes: Any,
    view: View,
    borders: tuple[tuple[int, ...], ...],
    spacing: tuple[float, ...],
    size: tuple[float, ...],
) -> None:
    """Where patches begin and end, on all four edges of the frame."""

    def places(axis: int, flip: bool) -> list[float]:
        found = [edge * spacing[axis] for edge in borders[axis]]
        return [size[axis] - place for place in found] if flip else found

    axes.set_xticks(places(view.columns, view.flip_columns))
    axes.set_yticks(places(view.rows, view.flip_rows))
    axes.tick_params(
        top=True, right=True, labelleft=False, labelbottom=False, direction="out", **TICK
    )
