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
from volflow.report.pictures.layers import (
    HEAT,
    MANY,
    Layer,
    Picture,
    Ramp,
    class_layer,
    grey_layer,
    grey_window,
    painted,
)
from volflow.report.pictures.patch_counts import (
    DrawnPatch,
    PatchCounts,
    each_patch,
    leading_classes,
)
from volflow.report.pictures.patch_subject import PatchSubject, open_patches, subtitle, title
from volflow.report.pictures.scene import (
    SMALL_GAP,
    BarChart,
    Foot,
    Panel,
    Scene,
    Table,
    best_columns,
    plane_name,
    tile_panels,
)
from volflow.report.pictures.slices import Cut
from volflow.report.pictures.stack import Display, drawing, feet_of
from volflow.report.pictures.subject import Names, check_tiles, view_across
from volflow.store.meta import Meta

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
) -> Figure:
    """Show the middle slices of the first patches, with their classes in colours.

    Only these slices are held. Each case has its own grey window.

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
        Across the slices: ``"z"``, ``"y"`` or ``"x"`` as stored, or the name of a plane such as
        ``"axial"``.
    image, label
        Names of the arrays shown in grey and in colours; by default the first of each kind.
    channel
        Channel of the image.
    classes
        Names of the classes by number; by default those of the label's metadata.
    percentiles
        The grey values shown black and white, in percent of the voxels shown.

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
    display = Display(None, classes, percentiles, MOST_PIXELS)
    shown = open_patches(samples, cases, image, label, channel)
    view = view_across(axis, shown.grid.orientation)
    counts = PatchCounts(shown.cases, shown.label)
    images: list[tuple[str, Cut]] = []
    labels: list[Cut] = []
    captions = []
    for patch in islice(each_patch(samples), tiles):
        counts.add(patch)
        if not view.is_area(patch.shape):
            raise InvalidInput(
                f"patches of {times(patch.shape)} voxels are a line across {axis}; choose another"
                " axis"
            )
        if shown.image is not None:
            images.append((patch.case, _middle(patch, shown.image, channel, view, shown.grid)))
        if shown.label is not None:
            labels.append(_middle(patch, shown.label, 0, view, shown.grid))
        captions.append((patch.case if len(shown.cases) > 1 else "", patch.start))
    size = tuple(n * s for n, s in zip(counts.shape, shown.grid.spacing, strict=True))
    columns = best_columns(len(captions), (size[view.columns], size[view.rows]))
    layers = _layers(images, labels, shown, display)
    texts = [(case, ", ".join(map(str, start))) for case, start in captions]
    locations = [list(start) for _, start in captions]
    return draw(
        Scene(
            title=title(counts),
            subtitle=subtitle(samples, counts, f"middle slices across {view.axis}"),
            size=size,
            unit=shown.grid.unit,
            facts=counts.facts() | {"axis": view.axis, "locations": locations},
            columns=tile_panels(view, layers, texts, columns),
            feet=feet_of(layers),
            scale_bar="below",
            gap=SMALL_GAP,
            notes_first=True,
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
    Display(None, classes, (0, 100), MOST_PIXELS)  # refuses classes that are not names
    shown = open_patches(samples, cases, None, label, 0)
    counts = PatchCounts(shown.cases, shown.label)
    for patch in islice(each_patch(samples), patches):
        counts.add(patch)
    facts = counts.facts()
    largest = max((case.shape for case in shown.cases.values()), key=np.prod)
    size = tuple(n * s for n, s in zip(largest, shown.grid.spacing, strict=True))
    planes = views(shown.grid.orientation)
    highest = max(int(counts.projection(axis).max()) for axis in range(3))
    layer = Layer(tuple(_places(counts, view, size, highest) for view in planes), smooth=False)
    along = {axis: counts.histogram(n).tolist() for n, axis in enumerate("zyx")}
    most = max(max(numbers) for numbers in along.values())
    histograms = [[BarChart(f"along {axis}", along[axis], most)] for axis in "zyx"]
    scale = Ramp("patches by where their centre falls", 0, highest, HEAT)
    return draw(
        Scene(
            title=title(counts),
            subtitle=subtitle(samples, counts),
            size=size,
            unit=shown.grid.unit,
            facts=facts | {"along": along},
            columns=[
                [Panel(view, (layer,), n, caption=plane_name(view))]
                for n, view in enumerate(planes)
            ],
            scale_bar="none",
            feet=[[[scale], [], []], histograms, [_table(facts, shown, classes), [], []]],
        )
    )


def _places(counts: PatchCounts, view: View, size: Sequence[float], highest: int) -> Picture:
    """Return where centres fall on a plane, as heat."""
    pixels = painted(view.turn(counts.projection(view.normal)) / highest, HEAT)
    return Picture(pixels, (0.0, size[view.columns], size[view.rows], 0.0))


def _table(facts: Mapping[str, Any], shown: PatchSubject, classes: Names) -> list[Foot]:
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
    names, colors = shown.class_names(classes), shown.label_meta.colors
    rows = []
    for one in leading:
        value = one["class"]
        name = names.get(value) or (f"class {value}" if value else "background")
        shares = (one["voxels"], one["centres"], one["patches"] / facts["patches"])
        rows.append((name, class_color(value, colors) if value else MANY, shares))
    return [Table(head, tuple(rows))]


def _middle(patch: DrawnPatch, name: str, channel: int, view: View, grid: Meta) -> Cut:
    """Return the middle slice of a patch's array, copied so that the patch can be freed."""
    place: list[Any] = [slice(None)] * 3
    place[view.normal] = patch.middle[view.normal]
    step = -(-max(patch.shape) // MOST_PIXELS)
    turned = view.turn(patch.arrays[name][channel][tuple(place)])
    wide, high = (patch.shape[n] * grid.spacing[n] for n in (view.columns, view.rows))
    return Cut(turned[::step, ::step].copy(), (0.0, wide, high, 0.0))


def _layers(
    images: Sequence[tuple[str, Cut]], labels: Sequence[Cut], shown: PatchSubject, display: Display
) -> tuple[Layer, ...]:
    """Return the images in grey, each case with its own window, and the classes over them."""
    layers = []
    if images:
        windows = {
            name: grey_window([cut for case, cut in images if case == name], display.percentiles)
            for name in {case for case, _ in images}
        }
        under = "result" if labels else ""
        greys = [grey_layer([cut], windows[case], under).pictures[0] for case, cut in images]
        layers.append(Layer(tuple(greys)))
    if labels:
        names, colors = shown.class_names(display.classes), shown.label_meta.colors
        layers.append(class_layer(labels, names, colors, over_scan=bool(images)))
    return tuple(layers)
