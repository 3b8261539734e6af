"""Volumes as layers: the scan underneath in grey, the result over it in its colours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volflow.errors import InvalidInput
from volflow.report.colors import PERCENTILES
from volflow.report.grey_range import Window, window_ends
from volflow.report.pictures.layers import Greys, Layer, heat_window
from volflow.report.pictures.scene import Panel, Scene
from volflow.report.pictures.slices import Slice
from volflow.report.pictures.subject import Names, Subject, class_names, few_values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["at_levels", "check_display", "drawing", "ground", "scene_of", "stack"]


def drawing() -> Callable[[Scene], Figure]:
    """Return what draws a scene; it needs matplotlib.

    Raises
    ------
    InvalidInput
        If matplotlib is missing; the error names the extra.
    """
    try:
        from volflow.report.pictures.page import draw
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f'a picture needs {error.name}, which is missing; pip install "volflow[report]"'
        ) from error
    return draw


def check_display(classes: Any, percentiles: Any = PERCENTILES, window: Window = None) -> Greys:
    """Return what is shown black and white; refuse it, and class names that are not names."""
    names = classes.values() if isinstance(classes, Mapping) else classes
    listed = isinstance(names, Collection) and not isinstance(names, str)
    if names is not None and not (listed and all(isinstance(name, str) for name in names)):
        raise InvalidInput(
            "classes must be names in the order of their numbers, or by number, given"
            f" {classes!r}; such as ['background', 'liver']"
        )
    try:
        low, high = percentiles
        right = 0 <= low < high <= 100
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InvalidInput(
            "percentiles must be two numbers from 0 to 100, the lower first, given"
            f" {percentiles!r}; such as (1, 99.5)"
        )
    return Greys((low, high), window_ends(window))


def at_levels(
    top: Subject,
    under: Subject | None,
    level: int | None,
    pixels: int,
    axes: Sequence[int] = (0, 1, 2),
) -> tuple[Subject, Subject | None]:
    """Choose levels: those that ``pixels`` can show, or one by number and the scan's like it."""
    top = top.at_level(level, pixels, axes)
    if under is not None:
        under = under.at_level(None, pixels, axes) if level is None else under.like(top)
    return top, under


def stack(
    top: Subject,
    under: Subject | None,
    slices: Sequence[Slice],
    classes: Names,
    greys: Greys,
) -> tuple[list[Layer], list[str]]:
    """Read slices of a volume, and of the scan underneath, and give them their colours.

    Returns
    -------
    layers
        From the bottom to the top.
    levels
        What `Subject.shown` says of each volume.
    """
    named = top.named_classes(classes)
    guessed = under is not None and top.whole
    average = not (named or guessed)
    cuts = top.cut(slices, average=average)
    below, levels = ground(under, slices, greys)
    if named or (guessed and few_values(cuts)):
        names, meta = class_names(classes, top.finest.meta.channels), top.finest.meta
        layer = Layer.classes(cuts, names, meta.colors, over_scan=under is not None)
    elif under is not None:
        layer = Layer.heat(cuts, top.channel_name(), heat_window(cuts))
    else:
        layer = Layer.grey(cuts, greys.ends(cuts))
    return [*below[:1], layer], [top.shown(average), *levels]


def ground(
    under: Subject | None, slices: Sequence[Slice], greys: Greys
) -> tuple[list[Layer], list[str]]:
    """Return layers of the scan under a result and under a difference, and what it shows."""
    if under is None:
        return [], []
    cuts = under.cut(slices, average=True)
    window, shown = greys.ends(cuts), under.shown(average=True)
    layers = [Layer.grey(cuts, window, top) for top in ("result", "difference")]
    return layers, [f"{under.name} {shown}"] if shown else []


def scene_of(
    top: Subject,
    under: Subject | None,
    slices: Sequence[Slice],
    levels: Sequence[str],
    columns: Sequence[Sequence[Panel]],
) -> Scene:
    """Return the scene of a volume over a scan, or alone, with the legend of its top layer."""
    levels = list(filter(None, levels))
    shown = ["shown: " + "; ".join(levels)] if levels else []
    lacking = [one.lacking() for one in (top, under) if one is not None]
    planes = [{"name": s.view.name, "axis": s.view.axis, "index": s.index} for s in slices]
    return Scene(
        title=(top.name,) if under is None else (top.name, " over ", under.name),
        subtitle="   ·   ".join(filter(None, [*lacking, top.facts(), *shown])),
        size=top.size,
        unit=top.finest.meta.unit,
        facts={
            "volume": top.name,
            "over": None if under is None else under.name,
            "level": getattr(top.level, "level", 0),
            "spacing": list(top.level.meta.spacing),
            "unit": top.level.meta.unit,
            "planes": planes,
        },
        columns=columns,
        feet=[[[columns[0][0].layers[-1].key]]],
    )
