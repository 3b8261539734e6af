"""Two results side by side, with where and how much they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.report.colors import class_color, class_numbers
from volflow.report.facts.grid_facts import counted
from volflow.report.pictures.difference import (
    AGREED,
    ONLY_A,
    ONLY_B,
    UNLIKE,
    Deviation,
    agreement,
    deviation,
    disagreement,
    signed,
    unlike,
)
from volflow.report.pictures.layers import (
    GREYS,
    Layer,
    Ramp,
    class_layer,
    difference_layer,
    grey_layer,
    grey_window,
    heat_layer,
    heat_window,
)
from volflow.report.pictures.scene import Foot, Scene, Table, plane_panels
from volflow.report.pictures.slices import Cut, on_one_grid
from volflow.report.pictures.stack import Display, drawing, facts_shown, ground
from volflow.report.pictures.subject import (
    Names,
    Subject,
    open_subject,
    same_box,
    with_distinct_names,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["compare"]

PIXELS = 1200  # of a plane: a third of a page shows no more
MOST_ROWS = 12
# Unlike the classes' palette; they differ in brightness, too.
UNLIKE_COLORS = {ONLY_A: "#D63AFF", ONLY_B: "#45E838", UNLIKE: "#FFFFFF", AGREED: "#3A4450"}
UNLIKE_NAMES = {
    ONLY_A: "only in A", ONLY_B: "only in B", UNLIKE: "of another class", AGREED: "the same"
}  # fmt: skip


def compare(
    a: VolumeLike,
    b: VolumeLike,
    over: VolumeLike | None = None,
    *,
    at: str | Sequence[int] | None = None,
    level: int | None = None,
    classes: Names = None,
    channel: int | None = None,
    percentiles: tuple[float, float] = (1, 99.5),
) -> Figure:
    """Show two results side by side with their difference, in three orthogonal planes.

    Of classes the third column shows where they disagree, and a table their Dice and voxels; of
    scores and images it shows a − b. All figures are those of the planes shown, not of the
    volumes.

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
    classes, channel, percentiles
        As in `preview`. Images of few different whole numbers count as classes.

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
    0.8333333333333334
    """
    draw = drawing()
    display = Display(level, classes, percentiles, PIXELS)
    pair = with_distinct_names(
        open_subject(a, channel, merge=True), open_subject(b, channel, merge=True)
    )
    under = None if over is None else open_subject(over)
    for other in (pair[1], under):
        if other is not None:
            same_box(pair[0], other)
    where = "content" if at is None else at
    weights = _weights(pair) if isinstance(where, str) and where == "content" else []
    # If they do not differ anywhere, the planes are those with most to see.
    slices = pair[0].slices(where, weights if any(w.any() for w in weights) else None)

    read = pair[0].at_level(level, PIXELS)
    average = not all(one.may_be_classes(classes, True) for one in pair)
    like = pair[1].like(read)
    cuts = (
        pair[0].cut(read, slices, PIXELS, average=average),
        pair[1].cut(like, slices, PIXELS, average=average),
    )
    levels = [f"{letter} {text}".strip() for letter, text in _shown(read, like, average) if text]
    below: tuple[Layer, ...] = ()
    if under is not None:
        below, level_below = ground(under, read, slices, display)
        levels += [level_below] if level_below else []
    if _as_classes(pair, cuts, classes):
        last, (layers, feet, found) = "A ≠ B", _classes(pair, cuts, below, classes)
    else:
        last, (layers, feet, found) = "A − B", _numbers(pair, cuts, below, percentiles)

    facts = facts_shown(pair[0], under, read, slices)
    subtitle = [] if under is None else [f"over {under.name}"]
    subtitle += [pair[0].facts(), *(["shown: " + "; ".join(levels)] if levels else [])]
    names = (f"A   {pair[0].name}", f"B   {pair[1].name}", last)
    grounds = (below[:1], below[:1], below[1:])
    columns = [
        plane_panels(slices, (*ground, top), pair[0].size, name, captioned=name == names[0])
        for ground, top, name in zip(grounds, layers, names, strict=True)
    ]
    return draw(
        Scene(
            title=(pair[0].name, " against ", pair[1].name),
            subtitle="   ·   ".join(subtitle),
            size=pair[0].size,
            unit=pair[0].finest.meta.unit,
            facts=facts | {"against": pair[1].name, "difference": {"of": "planes shown"} | found},
            columns=columns,
            feet=[feet],
        )
    )


Pair = tuple[Subject, Subject]
Cuts = tuple[list[Cut], list[Cut]]


def _shown(read: Subject, like: Subject, average: bool) -> list[tuple[str, str]]:
    """Return which levels are shown of A and B, in one text if it is the same for both."""
    texts = [one.shown(PIXELS, average) for one in (read, like)]
    if read.finest.meta.spacing != like.finest.meta.spacing:
        texts = [
            text or f"voxels of {one.voxel}" for text, one in zip(texts, (read, like), strict=True)
        ]
    elif texts[0] == texts[1]:
        return [("", texts[0])]
    return [("A", texts[0]), ("B", texts[1])]


def _weights(pair: Pair) -> list[Any]:
    """Return maps of how much the two differ, one per plane of a few along z."""
    scans = [one.scan() for one in pair]
    if len(scans[0]) != len(scans[1]):
        return []
    return [unlike(mine, theirs) for mine, theirs in zip(*scans, strict=True)]


def _as_classes(pair: Pair, cuts: Cuts, classes: Names) -> bool:
    """Return True if both show classes; raise InvalidInput if only one of them can."""
    declared = [one.may_be_classes(classes, guess=False) for one in pair]
    possible = [one.may_be_classes(classes, guess=True) for one in pair]
    if any(declared) and not all(possible):
        one, other = pair if declared[0] else (pair[1], pair[0])
        raise InvalidInput(
            f"{one.name} shows classes and {other.name} does not, so that they cannot be compared;"
            " choose a channel of scores, or name the classes"
        )
    if any(declared):
        return True
    return all(one.are_classes(cut, classes, True) for one, cut in zip(pair, cuts, strict=True))


def _classes(
    pair: Pair, cuts: Cuts, below: tuple[Layer, ...], classes: Names
) -> tuple[list[Layer], list[list[Foot]], dict[str, Any]]:
    """Return layers of two results of classes and of their disagreement, texts below, and facts."""
    names = pair[1].class_names(classes) | pair[0].class_names(classes)
    colors = pair[0].finest.meta.colors or pair[1].finest.meta.colors
    common = [on_one_grid(mine, theirs) for mine, theirs in zip(*cuts, strict=True)]
    pairs = [(class_numbers(mine), class_numbers(theirs)) for mine, theirs, _ in common]
    facts = agreement(pairs, names)
    maps = [disagreement(*planes) for planes in pairs]
    if below:  # the scan shows the place; without it what agrees does
        maps = [np.where(plane == AGREED, 0, plane) for plane in maps]
    shown = [Cut(plane, extent) for plane, (*_, extent) in zip(maps, common, strict=True)]
    layers = [class_layer(cut, names, colors, over_scan=bool(below)) for cut in cuts]
    layers.append(class_layer(shown, UNLIKE_NAMES, UNLIKE_COLORS, outlined=False))

    counts = {kind: sum(int((plane == kind).sum()) for plane in maps) for kind in UNLIKE_NAMES}
    legend = tuple(
        (f"{UNLIKE_NAMES[kind]}   {counted(count)}", UNLIKE_COLORS[kind])
        for kind, count in counts.items()
        if count
    )
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
        "In these planes, not in the volumes:",
        Table(("class", "Dice", "voxels in A", "voxels in B"), rows),
        *([f"… and {more} more classes"] if more else []),
    ]
    return layers, [table, [], [legend, _agreed(facts["equal"], facts["total"])]], facts


def _numbers(
    pair: Pair, cuts: Cuts, below: tuple[Layer, ...], percentiles: tuple[float, float]
) -> tuple[list[Layer], list[list[Foot]], dict[str, Any]]:
    """Return layers of two results of numbers and of their difference, texts below, and facts."""
    both = [*cuts[0], *cuts[1]]
    if below:
        window = heat_window(both)
        layers = [heat_layer(cut, pair[0].channel_name(), window) for cut in cuts]
    else:
        window = grey_window(both, percentiles)
        layers = [grey_layer(cut, window) for cut in cuts]
    scale = layers[0].ramp or Ramp("in A and B", *window, GREYS)
    common = [on_one_grid(mine, theirs) for mine, theirs in zip(*cuts, strict=True)]
    differences = [Cut(signed(mine, theirs), extent) for mine, theirs, extent in common]
    found = deviation([cut.values for cut in differences])
    last = difference_layer(differences, "A − B", found.shown)
    reach: list[Foot] = [last.ramp] if found.largest and last.ramp else []
    facts = {"mean_abs": found.mean, "max_abs": found.largest, "compared": found.compared}
    return [*layers, last], [[scale], [], [*reach, _deviates(found)]], facts


def _agreed(equal: int, total: int) -> str:
    if equal == total:
        return "the same in these planes"
    return f"{100 * equal / total:.4g} % of {counted(total)} voxels shown agree"


def _deviates(found: Deviation) -> str:
    if found.compared == 0:
        return "no voxel is a number in both"
    if found.largest == 0:
        return "the same in these planes"
    return f"|A − B| in these planes: mean {found.mean:.3g}, largest {found.largest:.3g}"
