"""The picture of a seam certificate: a slice, its result, and the differences of blends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from volflow.geometry.views import View, views
from volflow.infer.seams.certificate import Certificate, Seams, percent
from volflow.report.colors import PERCENTILES
from volflow.report.facts.grid_facts import short_name, times
from volflow.report.pictures.compare import deviation
from volflow.report.pictures.layers import Layer, grey_window, heat_window
from volflow.report.pictures.scene import Panel, Scene, in_columns
from volflow.report.pictures.slices import Cut
from volflow.report.pictures.stack import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["seams_figure"]


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
    >>> import numpy as np
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
    extent = (0.0, size[view.columns], size[view.rows], 0.0)
    image, whole, *away = (
        Cut(view.turn(values), extent) for values in (plane.image, plane.whole, *plane.differences)
    )
    grey = Layer.grey([image], grey_window([image], PERCENTILES))
    if plane.whole.dtype.kind in "iu":
        names = dict(enumerate(certificate.classes))
        kind, result = "classes", Layer.classes([whole], names, over_scan=True)
    else:
        kind, result = "scores", Layer.heat([whole], "score", heat_window([whole]))
    _, reach = deviation(plane.differences)
    window = (0.0, reach or 1.0)
    heat = Layer.heat(away, "difference of scores from the whole run", window, alone=True)
    panels = [
        Panel(view, [grey], 0, "image", "as the network sees it"),
        Panel(view, [grey, result], 0, "whole", f"{kind} in one forward"),
        *(Panel(view, [heat], n, *_words(seams)) for n, seams in enumerate(region.blends)),
    ]
    figure = draw(
        Scene(
            title=(short_name(certificate.volume), " through ", short_name(certificate.model)),
            subtitle=_subtitle(certificate, view),
            size=size,
            unit=certificate.unit,
            facts=certificate.to_dict() | {"plane": {"axis": view.axis, "index": plane.index}},
            columns=in_columns(panels, size),
            feet=[[[result.key, heat.key]]],
        )
    )
    for axes, borders in zip(figure.axes[2:], plane.borders, strict=False):
        edges = [
            [n * s for n in along] for along, s in zip(borders, certificate.spacing, strict=True)
        ]
        for axis, flip, set_ticks in (
            (view.columns, view.flip_columns, axes.set_xticks),
            (view.rows, view.flip_rows, axes.set_yticks),
        ):
            set_ticks([size[axis] - edge if flip else edge for edge in edges[axis]])
        axes.tick_params(
            top=True, right=True, labelleft=False, labelbottom=False, length=4, color="white"
        )
    return figure


def _words(seams: Seams) -> tuple[str, str]:
    """Return heading and caption of a blend; the figures are those of the whole region."""
    heading = f"{seams.blend}, overlap {seams.name.partition(' ')[2]}"
    figures = f"mean {seams.mean:.2g}, largest {seams.largest:.2g}".replace("e-", "e−")
    return heading, f"{figures}, {percent(seams.changed)} other class"


def _subtitle(certificate: Certificate, view: View) -> str:
    """Return the place of the slice and the settings that are compared."""
    plane = certificate.plane
    region = certificate.regions[plane.region - 1]
    spans = ", ".join(
        f"{axis} {a}–{b}" for axis, a, b in zip("zyx", region.start, region.stop, strict=True)
    )
    sides = certificate.patch
    patch = f"{sides[0]}³" if len(set(sides)) == 1 else times(sides)
    parts = [f"{view.name} {view.axis} = {plane.index} of {spans}", f"patch {patch}"]
    if region.exact is not None:
        largest = f"{region.exact.largest:.1e}".replace("e-", "e−")
        parts.append(f"exact: largest {largest}")
    return "   ·   ".join(parts)
