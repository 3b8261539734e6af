"""Two results side by side, with where and how much they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.report.colors import class_color, class_counts, class_numbers
from volflow.report.facts.grid_facts import counted
from volflow.report.grey_range import Window
from volflow.report.pictures.class_agreement import agreement, volume_agreement
from volflow.report.pictures.layers import GREYS, Greys, Layer, Ramp, heat_window
from volflow.report.pictures.scene import Foot, Table, plane_panels
from volflow.report.pictures.slices import Cut, Slice, on_one_grid
from volflow.report.pictures.stack import at_levels, check_display, drawing, ground, scene_of
from volflow.report.pictures.subject import Names, Subject, class_names, few_values, open_together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["compare", "deviation"]

Array = npt.NDArray[Any]

PIXELS = 1200  # of a plane: a third of a page shows no more
MOST_ROWS = 12
SATURATION = 99.5  # percentile of deviations beyond which their colours are alike
# How two planes of classes disagree: only one of the two holds something where the other holds
# background, or both do, of different classes or of the same.
ONLY_A, ONLY_B, UNLIKE, AGREED = 1, 2, 3, 4
# Unlike the classes' palette; they differ in brightness, too.
UNLIKE_COLORS = {ONLY_A: "#D63AFF", ONLY_B: "#45E838", UNLIKE: "#FFFFFF", AGREED: "#3A4450"}
UNLIKE_NAMES = {
    ONLY_A: "only in A", ONLY_B: "only in B", UNLIKE: "of another class", AGREED: "the same"
}  # fmt: skip


def compare(  # noqa: PLR0913 - each says what to show
    a: VolumeLike,
    b: VolumeLike,
    over: VolumeLike | None = None,
    *,
    at: str | Sequence[int] | None = None,
    level: int | None = None,
    classes: Names = None,
    channel: int | None = None,
    percentiles: tuple[float, float] = (1, 99.5),
    window: Window = None,
    whole: bool = True,
) -> Figure:
    """Show two results side by side with their difference, in three orthogonal planes.

    Of classes the third column shows where they disagree, and a table their Dice and voxels in the
    whole volumes; of scores and images it shows a − b, with figures of the planes shown.

    Parameters
    ----------
    a, b
        What to compare: each any `VolumeLike`; they cover the same box, on any grids. Several
        channels are taken for scores of classes.
    over
        The scan underneath.
    at
        ``"content"``, where a few planes say that they differ most, the default; ``"center"``; or
        a voxel (z, y, x) of a's finest level.
    level
        Of a's pyramid; by default the finest that a picture can show. Of b the level that is most
        like it is read.
    classes, channel, percentiles, window
        As in `preview`. Images of few different whole numbers count as classes.
    whole
        Whether classes are counted in the whole volumes, each voxel read once; False counts the
        planes shown. Of volumes on different grids only these can be counted.

    Returns
    -------
    matplotlib.figure.Figure
        As from `preview`; ``figure.facts["difference"]`` holds the figures.

    Raises
    ------
    InvalidInput
        If one shows classes and the other does not, or as `preview` raises.

    Examples
    --------
    >>> a, b = np.zeros((2, 8, 8, 8), "uint8")
    >>> a[2:6, 2:6, 2:6] = 1
    >>> b[2:6, 2:6, 3:7] = 1
    >>> figure = compare(a, b, at=(4, 4, 4))
    >>> figure.facts["difference"]["classes"][0]["dice"]
    0.75
    """
    draw = drawing()
    greys = check_display(classes, percentiles, window)
    (one, other), under = open_together([a, b], over, channel)
    slices = _slices(one, other, "content" if at is None else at)
    one, under = at_levels(one, under, level, PIXELS)
    pair = one, other.like(one)
    exact = all(each.named_classes(classes) or each.whole for each in pair)
    cuts = [each.cut(slices, average=not exact) for each in pair]
    below, level_below = ground(under, slices, greys)
    if _as_classes(pair, cuts, classes):
        last, (layers, feet, found) = "A ≠ B", _classes(pair, cuts, classes, below, whole)
    else:
        last, (layers, feet, found) = "A − B", _numbers(pair, cuts, greys, below)

    names = (f"A   {one.name}", f"B   {other.name}", last)
    grounds = (below[:1], below[:1], below[1:])
    columns = [
        plane_panels(slices, [*ground, top], one.size, name, captioned=name == names[0])
        for ground, top, name in zip(grounds, layers, names, strict=True)
    ]
    scene = scene_of(one, None, slices, [*_shown(pair, not exact), *level_below], columns)
    lacking = [one.lacking() for one in (other, under) if one is not None]
    lines = [*lacking, f"over {under.name}" if under else "", scene.subtitle]
    facts = {"over": under and under.name, "against": other.name}
    return draw(
        replace(
            scene,
            title=(one.name, " against ", other.name),
            subtitle="   ·   ".join(filter(None, lines)),
            facts={**scene.facts, **facts, "difference": {"of": "planes shown"} | found},
            feet=[feet],
        )
    )


Pair = tuple[Subject, Subject]
Found = tuple[list[Layer], list[list[Foot]], dict[str, Any]]  # layers, texts below them, and facts


def _slices(one: Subject, other: Subject, at: str | Sequence[int]) -> list[Slice]:
    """Return the planes at a place; the content is where the two differ, if they do anywhere."""
    if not isinstance(at, str) or at != "content":
        return one.slices(at)
    scans = one.scan(), other.scan()
    if len(scans[0]) != len(scans[1]):
        return one.slices(at)
    weights = list(map(unlike, *scans))
    return one.slices(at, weights if any(map(np.any, weights)) else None)


def _shown(pair: Pair, average: bool) -> list[str]:
    """Return which levels are shown of A and B, in one text if it is the same for both."""
    texts = [each.shown(average) for each in pair]
    if pair[0].voxel != pair[1].voxel:
        texts = [text or f"voxels of {each.voxel}" for text, each in zip(texts, pair, strict=True)]
    elif texts[0] == texts[1]:
        return texts[:1]
    return [f"{letter} {text}" for letter, text in zip("AB", texts, strict=True) if text]


def _as_classes(pair: Pair, cuts: Sequence[Sequence[Cut]], classes: Names) -> bool:
    """Return True if both show classes; raise InvalidInput if only one of them can."""
    for one, other in (pair, pair[::-1]):
        if one.named_classes(classes) and not (other.named_classes(classes) or other.whole):
            raise InvalidInput(
                f"{one.name} shows classes and {other.name} does not, so that they cannot be"
                " compared; choose a channel of scores, or name the classes"
            )
    return any(each.named_classes(classes) for each in pair) or all(
        each.whole and few_values(cut) for each, cut in zip(pair, cuts, strict=True)
    )


def _classes(
    pair: Pair,
    cuts: Sequence[Sequence[Cut]],
    classes: Names,
    below: Sequence[Layer],
    whole: bool,
) -> Found:
    """Return two results of classes and their disagreement."""
    first, second = (each.finest.meta for each in pair)
    names = class_names(classes, second.channels) | class_names(classes, first.channels)
    colors = first.colors or second.colors
    common = [on_one_grid(mine, theirs) for mine, theirs in zip(*cuts, strict=True)]
    pairs = [(class_numbers(mine), class_numbers(theirs)) for mine, theirs, _ in common]
    volumes = volume_agreement(*pair, names) if whole else None
    facts = volumes or agreement(pairs, names)
    maps = [disagreement(*planes) for planes in pairs]
    if below:  # the scan shows the place; without it what agrees does
        maps = [np.where(plane == AGREED, 0, plane) for plane in maps]
    shown = [Cut(plane, extent) for plane, (*_, extent) in zip(maps, common, strict=True)]
    layers = [Layer.classes(cut, names, colors, over_scan=bool(below)) for cut in cuts]
    counts = sum((class_counts(plane) for plane in maps), Counter[int]())
    kinds = {kind: f"{UNLIKE_NAMES[kind]}   {counted(counts[kind])}" for kind in counts if kind}
    layers.append(Layer.classes(shown, kinds, UNLIKE_COLORS, outlined=False))
    equal, total = facts["equal"], facts["total"]
    seen, where = ("", "everywhere") if volumes else (" shown", "in these planes")
    agreed = f"{100 * equal / total:.4g} % of {counted(total)} voxels{seen} agree"
    if equal == total:
        agreed = f"the same {where}"
    # Those of which most is shown, by their numbers.
    most = sorted(facts["classes"], key=lambda one: -max(one["a"], one["b"]))[:MOST_ROWS]
    rows = tuple(
        (
            one["name"] or f"class {one['class']}",
            class_color(one["class"], colors),
            (f"{one['dice']:.4f}", counted(one["a"]), counted(one["b"])),
        )
        for one in sorted(most, key=lambda one: one["class"])
    )
    more = len(facts["classes"]) - len(rows)
    table: list[Foot] = [
        "In the whole volumes:" if volumes else "In these planes, not in the volumes:",
        Table(("class", "Dice", "voxels in A", "voxels in B"), rows),
        *([f"… and {more} more classes"] if more else []),
    ]
    of = {"of": "volumes" if volumes else "planes shown"}
    key: list[Foot] = [layers[-1].key, "voxels in these planes"] if volumes else [layers[-1].key]
    return layers, [table, [], [*key, agreed]], of | facts


def _numbers(
    pair: Pair,
    cuts: Sequence[Sequence[Cut]],
    greys: Greys,
    below: Sequence[Layer],
) -> Found:
    """Return two results of numbers and their difference."""
    both = [*cuts[0], *cuts[1]]
    if below:
        window = heat_window(both)
        layers = [Layer.heat(cut, pair[0].channel_name(), window) for cut in cuts]
    else:
        window = greys.ends(both)
        layers = [Layer.grey(cut, window) for cut in cuts]
    scale = layers[0].key or Ramp("in A and B", *window, GREYS)
    common = [on_one_grid(mine, theirs) for mine, theirs in zip(*cuts, strict=True)]
    differences = [Cut(signed(mine, theirs), extent) for mine, theirs, extent in common]
    facts, reach = deviation([cut.values for cut in differences])
    layers.append(Layer.differences(differences, "A − B", reach))
    mean, largest = facts["mean_abs"], facts["max_abs"]
    figures = f"|A − B| in these planes: mean {mean:.3g}, largest {largest:.3g}"
    if largest == 0:
        figures = "the same in these planes"
    if facts["compared"] == 0:
        figures = "no voxel is a number in both"
    key: list[Foot] = [layers[-1].key] if largest else []
    return layers, [[scale], [], [*key, figures]], facts


def disagreement(a: Array, b: Array) -> Array:
    """Return how two planes of classes disagree, voxel by voxel.

    Examples
    --------
    >>> disagreement(np.array([0, 1, 0, 1, 2]), np.array([0, 0, 1, 2, 2])).tolist()
    [0, 1, 2, 3, 4]
    """
    cases = [(a == 0) & (b == 0), a == b, a == 0, b == 0]
    return np.select(cases, [0, AGREED, ONLY_B, ONLY_A], UNLIKE).astype(np.uint8)


def deviation(differences: Sequence[Array]) -> tuple[dict[str, Any], float]:
    """Return the mean and the largest deviation, and the one at which colours saturate.

    Parameters
    ----------
    differences
        Planes of a − b.

    Returns
    -------
    facts
        ``mean_abs``, ``max_abs``, and how many voxels were ``compared``: finite in both.
    reach
        A percentile of the deviations, or the largest where that is 0.

    Examples
    --------
    >>> deviation([np.array([0.0, -0.5, 0.1, np.nan])])
    ({'mean_abs': 0.2, 'max_abs': 0.5, 'compared': 3}, 0.5)
    """
    away = np.abs(np.concatenate([plane.ravel() for plane in differences]))
    away = away[np.isfinite(away)]
    if away.size == 0:
        return {"mean_abs": 0.0, "max_abs": 0.0, "compared": 0}, 0.0
    mean, largest = float(np.round(away.mean(), 15)), float(away.max())
    reach = float(np.percentile(away, SATURATION, method="nearest")) or largest
    return {"mean_abs": mean, "max_abs": largest, "compared": away.size}, reach


def signed(a: Array, b: Array) -> Array:
    """Return a − b in float64; it is finite only where both are."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.subtract(a, b, dtype=np.float64))


def unlike(a: Array, b: Array) -> Array:
    """Return how much two planes differ, (1, y, x), as weights for `busiest`.

    Parameters
    ----------
    a, b
        Two planes of one place; the coarser is read at the pixels of the finer. Classes differ or
        do not, numbers by their distance.
    """
    whole = (0.0, 1.0, 1.0, 0.0)
    a, b, _ = on_one_grid(Cut(a, whole), Cut(b, whole))
    if "f" in a.dtype.kind + b.dtype.kind:
        away = np.abs(signed(a, b))
        return np.where(np.isfinite(away), away, 0)[None]
    return np.asarray(a != b, np.float64)[None]
