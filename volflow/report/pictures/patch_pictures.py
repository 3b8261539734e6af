"""Pictures of patches: a sheet of what they show, a chart of where they fall."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.views import View
from volflow.report.pictures.arrange import best_columns, grid
from volflow.report.pictures.layers import (
    ALONE,
    DIMMED,
    OVER_SCAN,
    Layer,
    class_layer,
    grey_layer,
    grey_window,
)
from volflow.report.pictures.patch_counts import Patch, PatchCounts, each_patch
from volflow.report.pictures.patch_subject import PatchSubject, by, open_patches, said, title
from volflow.report.pictures.slices import Cut, Slice
from volflow.report.pictures.stack import Look, drawing
from volflow.report.pictures.subject import Names, is_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["patch_sheet", "patch_stats"]

Array = npt.NDArray[Any]

MOST_TILES = 200
MOST_PIXELS = 512  # of a tile; no page shows more
LEAST_NAME = 0.3  # inches of a case's name that still say something


@dataclass(frozen=True, eq=False)
class _Tile:
    """What is kept of a patch: its middle slices as displayed."""

    case: str
    start: tuple[int, ...]
    index: int
    image: Array | None
    label: Array | None


def patch_sheet(  # noqa: PLR0913 - each says what to show
    samples: Iterable[Mapping[str, Any]],
    *,
    cases: Any = None,
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
        Of the image.
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
        Where there are no samples or no such array, axis or channel, or matplotlib is missing.

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
    if not is_whole(tiles) or not 1 <= tiles <= MOST_TILES:
        raise InvalidInput(f"tiles must be 1 to {MOST_TILES}, given {tiles!r}")
    look = Look(None, classes, percentiles, MOST_PIXELS)
    shown = open_patches(samples, cases, image, label, channel)
    view = shown.view(axis)
    counts = PatchCounts(shown.cases, shown.label)
    kept: list[_Tile] = []
    patch = None
    for patch in islice(each_patch(samples), tiles):
        counts.add(patch)
        kept.append(_tile(patch, shown, view, channel))
    shape = _shape(patch)
    if not view.is_area(shape):
        raise InvalidInput(
            f"patches of {by(shape)} voxels are a line across {axis}; choose another axis"
        )
    size = tuple(n * s for n, s in zip(shape, shown.grid.spacing, strict=True))
    flat = (size[view.columns], size[view.rows])
    columns = best_columns(len(kept), flat, draw.TILE_CAPTION, draw.TILE_GAP)
    scene = draw.Scene(
        title=title(counts, shape),
        subtitle=said(samples, counts, f"middle slices across {view.axis}"),
        size=size,
        unit=shown.grid.unit,
        facts={
            **_facts(counts, shape),
            "axis": view.axis,
            "locations": [list(tile.start) for tile in kept],
        },
    )
    figure: Figure = draw.sheet_figure(
        [Slice(view, tile.index, 0.0) for tile in kept],
        _captions(draw, kept, flat, columns, len(shown.cases) > 1),
        _layers(kept, shown, flat, look),
        scene,
        columns,
    )
    return figure


def patch_stats(
    samples: Iterable[Mapping[str, Any]],
    *,
    cases: Any = None,
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
        Where there are no samples or no such array, or matplotlib is missing.

    Examples
    --------
    >>> scan = np.zeros((16, 16, 16), "int16")
    >>> starts = ([0, 0, 0], [8, 0, 0])
    >>> samples = [{"image": scan[None, :8, :8, :8], "case": "case0", "location": np.array(start)}
    ...            for start in starts]
    >>> patch_stats(samples, cases=scan).facts["along"]["z"]
    [0, 0, 1, 0, 0, 0, 1, 0]
    """
    drawing()
    from volflow.report.pictures.patch_chart import Scene, chart

    look = Look(None, classes, (0, 100), MOST_PIXELS)
    shown = open_patches(samples, cases, None, label, 0)
    counts = PatchCounts(shown.cases, shown.label)
    patch = None
    for patch in islice(each_patch(samples), patches):
        counts.add(patch)
    shape = _shape(patch)
    along = {axis: counts.histogram(n).tolist() for n, axis in enumerate("zyx")}
    largest = max((case.shape for case in shown.cases.values()), key=np.prod)
    figure: Figure = chart(
        counts,
        shown.grid.orientation,
        tuple(n * s for n, s in zip(largest, shown.grid.spacing, strict=True)),
        (shown.class_names(look.classes), shown.label_meta.colors),
        Scene(
            title(counts, shape), said(samples, counts), {**_facts(counts, shape), "along": along}
        ),
    )
    return figure


def _shape(patch: Patch | None) -> tuple[int, ...]:
    """Of the last patch, as of all; refused where there was none."""
    if patch is None:
        raise InvalidInput("there are no patches to show; the stream is at its end or empty")
    return patch.shape


def _facts(counts: PatchCounts, shape: Sequence[int]) -> dict[str, Any]:
    return {**counts.facts(), "patch": list(shape)}


def _tile(patch: Patch, shown: PatchSubject, view: View, channel: int) -> _Tile:
    """The middle slices of a patch, copied so that the patch can go."""
    place: list[Any] = [slice(None)] * 3
    place[view.normal] = patch.middle[view.normal]
    step = -(-max(patch.shape) // MOST_PIXELS)

    def plane(name: str | None, channel: int) -> Array | None:
        if name is None:
            return None
        turned = view.turn(patch.arrays[name][channel][tuple(place)])
        return turned[::step, ::step].copy()

    index = patch.start[view.normal] + patch.middle[view.normal]
    image, label = plane(shown.image, channel), plane(shown.label, 0)
    return _Tile(patch.case, patch.start, index, image, label)


def _layers(
    kept: Sequence[_Tile], shown: PatchSubject, flat: tuple[float, float], look: Look
) -> list[Layer]:
    """The image in grey, each case with its own window; the classes above."""
    extent = (0.0, flat[0], flat[1], 0.0)
    layers = []
    images = [(tile.case, Cut(tile.image, extent)) for tile in kept if tile.image is not None]
    if images:
        white = 1.0 if shown.label is None else DIMMED
        windows = {
            name: grey_window([cut for case, cut in images if case == name], look.percentiles)
            for name in {case for case, _ in images}
        }
        parts = [grey_layer([cut], windows[case], white) for case, cut in images]
        layers.append(Layer(tuple(part.pictures[0] for part in parts)))
    labels = [Cut(tile.label, extent) for tile in kept if tile.label is not None]
    if labels:
        names, colors = shown.class_names(look.classes), shown.label_meta.colors
        layers.append(class_layer(labels, names, colors, fill=OVER_SCAN if images else ALONE))
    return layers


def _captions(
    draw: Any, kept: Sequence[_Tile], flat: tuple[float, float], columns: int, named: bool
) -> list[tuple[str, str]]:
    """First voxel of each tile, after the case's name where there are several."""
    rows = -(-len(kept) // columns)
    boxes, _ = grid([[flat] * columns] * rows, caption=draw.TILE_CAPTION, gap=draw.TILE_GAP)
    room = boxes[0][0][2]
    captions = []
    for tile in kept:
        start = ", ".join(map(str, tile.start))
        left = room - draw.text_width(f"  {start}", 8)
        name = draw.fitted(tile.case, left, 8) if named and left > LEAST_NAME else ""
        captions.append((name, start) if name else (start, ""))
    return captions
