"""Pictures of patches: a sheet of what they show, a chart of where they fall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.views import View, views
from volflow.report.colors import class_color
from volflow.report.facts.grid_facts import times
from volflow.report.grey_range import Window
from volflow.report.pictures.layers import MANY, Greys, Layer
from volflow.report.pictures.patch_counts import (
    DrawnPatch,
    PatchCounts,
    each_patch,
    leading_classes,
)
from volflow.report.pictures.scene import (
    BarChart,
    Foot,
    Panel,
    Scene,
    Table,
    in_columns,
    plane_name,
)
from volflow.report.pictures.slices import Cut
from volflow.report.pictures.stack import check_display, drawing
from volflow.report.pictures.subject import Names, check_tiles, view_across

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from volflow.sampling.cases.open_cases import CasesLike

__all__ = ["patch_sheet", "patch_stats"]

MOST_PIXELS = 512  # of a tile; no page shows more


def patch_sheet(  # noqa: PLR0913 - each says what to show
    samples: Iterable[Mapping[str, Any]],
    *,
    cases: CasesLike | None = None,
    tiles: int = 32,
    axis: str = "z",
    image: str | None = None,
    label: str | None = None,
    channel: int = 0,
    classes: Names = None,
    percentiles: tuple[float, float] = (1, 99.5),
    window: Window = None,
) -> Figure:
    """Show the middle slices of the first patches, with their classes in colours.

    Only these slices are held. Each case has its own grey window, unless one is given.

    Parameters
    ----------
    samples
        A `PatchStream`, its loader, or any iterable of samples or batches; no more are taken than
        are shown.
    cases
        Those that the samples come from; by default the stream's.
    tiles
        How many patches to show at most, 1 to 200.
    axis
        Across the slices: ``"z"``, ``"y"`` or ``"x"`` of the patches, or the name of a plane such
        as ``"axial"``.
    image, label
        Names of the arrays shown in grey and in colours; by default the first of each kind.
    channel
        Channel of the image.
    classes
        Names of the classes by number; by default those of the label's metadata.
    percentiles
        The grey values shown black and white, in percent of the voxels shown.
    window
        The same as values for all cases, as of `preview`: of normalised ones where the stream
        normalises.

    Returns
    -------
    matplotlib.figure.Figure
        As from `preview`; ``figure.facts`` counts what the patches hold.

    Raises
    ------
    InvalidInput
        If there are no samples or no such array, axis or channel, or matplotlib is missing.

    Examples
    --------
    >>> scan = np.arange(4096, dtype="int16").reshape(16, 16, 16)
    >>> case = {"name": "scan", "image": scan, "label": (scan > 2000).astype("uint8")}
    >>> patch = {"image": scan[None, :8, :8, :8], "label": case["label"][None, :8, :8, :8],
    ...          "case": "scan", "location": np.array([0, 0, 0, 8, 8, 8])}
    >>> figure = patch_sheet([patch, patch], cases=case)
    >>> figure.facts["locations"], figure.facts["cases"]
    ([[0, 0, 0], [0, 0, 0]], {'scan': 2})
    """
    draw = drawing()
    check_tiles(tiles)
    greys = check_display(classes, percentiles, window)
    counts = PatchCounts.of(
        samples, cases, image=image, label=label, channel=channel, classes=classes
    )
    view = view_across(axis, counts.grid.orientation)
    images: list[Cut] = []
    labels: list[Cut] = []
    drawn: list[tuple[str, tuple[int, ...]]] = []
    for patch in islice(each_patch(samples), tiles):
        counts.add(patch)
        if not view.is_area(patch.shape):
            raise InvalidInput(
                f"patches of {times(patch.shape)} voxels are a line across {axis}; choose another"
                " axis"
            )
        shown = (view, counts.grid.spacing)
        if counts.image is not None:
            images.append(_middle(patch, patch.arrays[counts.image][channel], *shown))
        if counts.label is not None:
            labels.append(_middle(patch, patch.classes(counts.label), *shown))
        drawn.append((patch.case, patch.start))
    size = _scaled(counts.shape, counts.grid.spacing)
    layers = []
    if images:
        layers.append(_greys(images, [case for case, _ in drawn], greys, bool(labels)))
    if labels:
        layers.append(Layer.classes(labels, counts.names, counts.colors, over_scan=bool(images)))
    # Of a single case only the place is worth saying.
    texts = [(case, ", ".join(map(str, start))) for case, start in drawn]
    texts = texts if len(counts.cases) > 1 else [(place, "") for _, place in texts]
    panels = [Panel(view, layers, n, "", *captions) for n, captions in enumerate(texts)]
    locations = [list(start) for _, start in drawn]
    return draw(
        Scene(
            title=counts.title(),
            subtitle=counts.subtitle(samples, f"middle slices across {view.axis}"),
            size=size,
            unit=counts.grid.unit,
            facts=counts.facts() | {"axis": view.axis, "locations": locations},
            columns=in_columns(panels, size),
            feet=[[[layers[-1].key]]],
            tiles=True,
        )
    )


def patch_stats(
    samples: Iterable[Mapping[str, Any]],
    *,
    cases: CasesLike | None = None,
    patches: int | None = None,
    label: str | None = None,
    classes: Names = None,
) -> Figure:
    """Show where the centres of patches fall, and how much of each class the patches hold.

    Patches are counted one by one and forgotten. Places are fractions of the case's extent, so
    that cases of different sizes share one chart.

    Parameters
    ----------
    samples, cases, classes
        As in `patch_sheet`.
    patches
        How many to count; by default all there are.
    label
        The array whose classes are counted; by default the first that holds classes.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.facts`` holds the shares, and the histograms of centres along z, y and x.

    Raises
    ------
    InvalidInput
        If there are no samples or no such array, or matplotlib is missing.

    Examples
    --------
    >>> scan = np.zeros((16, 16, 16), "int16")
    >>> starts = ([0, 0, 0], [8, 0, 0])
    >>> samples = [{"image": scan[None, :8, :8, :8], "case": "case0", "location": np.array(start)}
    ...            for start in starts]
    >>> patch_stats(samples, cases=scan).facts["along"]["z"]
    [0, 0, 1, 0, 0, 0, 1, 0]
    """
    draw = drawing()
    check_display(classes)
    counts = PatchCounts.of(samples, cases, label=label, classes=classes)
    for patch in islice(each_patch(samples), patches):
        counts.add(patch)
    facts = counts.facts()
    largest = max((case.shape for case in counts.cases.values()), key=np.prod)
    size = _scaled(largest, counts.grid.spacing)
    planes = views(counts.grid.orientation)
    places = [counts.projection(view.normal) for view in planes]
    cuts = [
        Cut(view.turn(place), (0.0, size[view.columns], size[view.rows], 0.0))
        for view, place in zip(planes, places, strict=True)
    ]
    highest = max(int(place.max()) for place in places)
    heat = Layer.heat(cuts, "patches by where their centre falls", (0, highest), alone=True)
    along = {axis: counts.histogram(n).tolist() for n, axis in enumerate("zyx")}
    most = max(max(numbers) for numbers in along.values())
    charts = [[BarChart(f"along {axis}", numbers, most)] for axis, numbers in along.items()]
    return draw(
        Scene(
            title=counts.title(),
            subtitle=counts.subtitle(samples),
            size=size,
            unit=counts.grid.unit,
            facts=facts | {"along": along},
            columns=[
                [Panel(view, [heat], n, caption=plane_name(view))] for n, view in enumerate(planes)
            ],
            scale_bar=False,
            feet=[[[heat.key], [], []], charts, [_table(facts, counts), [], []]],
        )
    )


def _scaled(shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, ...]:
    return tuple(n * s for n, s in zip(shape, spacing, strict=True))


def _middle(patch: DrawnPatch, voxels: Any, view: View, spacing: Sequence[float]) -> Cut:
    """Return the middle slice of an array of a patch, copied so that the patch can be freed."""
    turned = view.turn(voxels.take(patch.middle[view.normal], axis=view.normal))
    step = -(-max(patch.shape) // MOST_PIXELS)
    size = _scaled(patch.shape, spacing)
    return Cut(turned[::step, ::step].copy(), (0.0, size[view.columns], size[view.rows], 0.0))


def _greys(images: Sequence[Cut], cases: Sequence[str], greys: Greys, dimmed: bool) -> Layer:
    """Return the images in grey, those of each case in its own window."""
    windows = {
        name: greys.ends([cut for cut, case in zip(images, cases, strict=True) if case == name])
        for name in set(cases)
    }
    layers = [
        Layer.grey([cut], windows[case], "result" if dimmed else "").pictures[0]
        for cut, case in zip(images, cases, strict=True)
    ]
    return Layer(layers)


def _table(facts: Mapping[str, Any], counts: PatchCounts) -> list[Foot]:
    """Return the share of each class in voxels, in centres and in patches that hold it."""
    every, leading = facts["classes"], leading_classes(facts["classes"])
    if not leading:
        return []
    more = f": {len(leading)} of {len(every)} classes" if len(every) > len(leading) else ""
    head = (
        f"{facts['label']}{more}",
        "share of voxels",
        "share of centres",
        "patches that hold it",
    )
    rows = []
    for one in leading:
        value = one["class"]
        name = counts.names.get(value) or (f"class {value}" if value else "background")
        shares = (one["voxels"], one["centres"], one["patches"] / facts["patches"])
        rows.append((name, class_color(value, counts.colors) if value else MANY, shares))
    return [Table(head, tuple(rows))]
