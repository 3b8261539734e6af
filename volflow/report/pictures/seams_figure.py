"""The picture of a seam certificate: a slice, its result, and the differences of blends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volflow.geometry.views import View, views
from volflow.infer.seams.certificate import Certificate, Seams, percent
from volflow.report.facts.grid_facts import short_name, times
from volflow.report.pictures.difference import deviation
from volflow.report.pictures.layers import (
    HEAT,
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
from volflow.report.pictures.scene import Panel, Scene, best_columns
from volflow.report.pictures.slices import Cut
from volflow.report.pictures.stack import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["seams_figure"]

Array = npt.NDArray[Any]

PERCENTILES = (1, 99.5)


def seams_figure(certificate: Certificate) -> Figure:
    """Draw a slice of a region in which blended patches differ most from the network run whole.

    One panel for the image, one for the whole run, and one for each blend at each overlap with
    the largest difference of each voxel's scores, all in one scale of colours. Ticks on the frame
    show where patches begin and end.

    Parameters
    ----------
    certificate
        From `volflow.infer.seams.certify.certify_seams`.

    Returns
    -------
    matplotlib.figure.Figure
        As from `preview`; ``figure.facts`` is the certificate in plain values, with the plane.

    Raises
    ------
    InvalidInput
        If matplotlib is missing.

    Examples
    --------
    >>> import torch
    >>> from volflow.infer.seams.certify import certify_seams
    >>> scan = np.random.default_rng(0).random((12, 12, 12), "float32")
    >>> net = torch.nn.Conv3d(1, 2, 3, padding=1)
    >>> figure = seams_figure(certify_seams(scan, net, patch=6, overlaps=[0, 0.5]))
    >>> [axes.get_label() for axes in figure.axes]
    ['xy', 'xy', 'xy', 'xy', 'scale of difference of scores from the whole run']
    """
    draw = drawing()
    plane = certificate.plane
    region = certificate.regions[plane.region - 1]
    view = next(v for v in views(certificate.orientation) if v.normal == plane.axis)
    spans = zip(region.start, region.stop, certificate.spacing, strict=True)
    size = tuple((b - a) * s for a, b, s in spans)
    panels, scale = _panels(certificate, view, size)
    columns = best_columns(len(panels), (size[view.columns], size[view.rows]))
    legend = panels[1].layers[-1].legend
    return draw(
        Scene(
            title=(short_name(certificate.volume), " through ", short_name(certificate.model)),
            subtitle=_subtitle(certificate, view),
            size=size,
            unit=certificate.unit,
            facts=certificate.to_dict() | {"plane": {"axis": view.axis, "index": plane.index}},
            columns=[panels[n::columns] for n in range(columns)],
            feet=[[[*([legend] if legend else []), scale]]],
        )
    )


def _panels(
    certificate: Certificate, view: View, size: tuple[float, ...]
) -> tuple[list[Panel], Ramp]:
    """Return the panels in their order, and the scale of the differences."""
    plane = certificate.plane
    extent = (0.0, size[view.columns], size[view.rows], 0.0)

    def turned(values: Array) -> Cut:
        return Cut(view.turn(values), extent)

    image, whole = turned(plane.image), turned(plane.whole)
    grey = grey_layer([image], grey_window([image], PERCENTILES))
    if plane.whole.dtype.kind in "iu":
        names = dict(enumerate(certificate.classes))
        result, kind = class_layer([whole], names, over_scan=True), "classes"
    else:
        result, kind = heat_layer([whole], "score", heat_window([whole])), "scores"
    panels = [
        Panel(view, (grey,), 0, "image", "as the network sees it"),
        Panel(view, (grey, result), 0, "whole", f"{kind} in one forward", letters=False),
    ]
    cuts = [turned(away) for away in plane.differences]
    reach = deviation([cut.values for cut in cuts]).shown or 1.0
    blends = certificate.regions[plane.region - 1].blends
    for seams, cut, borders in zip(blends, cuts, plane.borders, strict=True):
        pixels = painted(np.clip(cut.values / reach, 0, 1), HEAT)
        layer = Layer((Picture(pixels, extent),), smooth=False)
        ticks = _ticks(view, borders, certificate.spacing, size)
        panels.append(
            Panel(view, (layer,), 0, _heading(seams), _line(seams), letters=False, ticks=ticks)
        )
    return panels, Ramp("difference of scores from the whole run", 0.0, reach, HEAT)


def _ticks(
    view: View, borders: Sequence[Sequence[int]], spacing: Sequence[float], size: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Return where patches begin and end along columns and rows, as displayed."""

    def places(axis: int, flip: bool) -> list[float]:
        found = [edge * spacing[axis] for edge in borders[axis]]
        return [size[axis] - place for place in found] if flip else found

    return places(view.columns, view.flip_columns), places(view.rows, view.flip_rows)


def _heading(seams: Seams) -> str:
    return f"{seams.blend}, overlap {seams.name.partition(' ')[2]}"


def _line(seams: Seams) -> str:
    """Return the figures of the whole region."""
    figures = f"mean {seams.mean:.2g}, largest {seams.largest:.2g}".replace("e-", "e−")
    return f"{figures}, {percent(seams.changed)} other class"


def _subtitle(certificate: Certificate, view: View) -> str:
    """Return the place of the slice and the settings that are compared."""
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
    return f"{sides[0]}³" if len(set(sides)) == 1 else times(sides)
