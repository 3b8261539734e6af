"""The layers of volumes: the scan underneath in grey, the result over it in its colours."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from volflow.errors import InvalidInput
from volflow.report.pictures.layers import (
    Layer,
    class_layer,
    grey_layer,
    grey_window,
    heat_layer,
    heat_window,
)
from volflow.report.pictures.scene import Foot, Panel, Scene
from volflow.report.pictures.slices import Cut, Slice
from volflow.report.pictures.subject import (
    Names,
    Subject,
    open_subject,
    same_box,
    with_distinct_names,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Display",
    "Stack",
    "drawing",
    "facts_shown",
    "feet_of",
    "ground",
    "open_both",
    "scene_of",
    "stack",
]


@dataclass(frozen=True)
class Display:
    """The options with which volumes are shown.

    Parameters
    ----------
    level
        The chosen level; None for the one that fits.
    classes
        Names given for the classes.
    percentiles
        Percentiles of the voxels shown that are black and white in a scan.
    pixels
        The number of pixels that a picture can show along an axis.
    axes
        The axes that it shows, of 0, 1, 2 for z, y, x.
    """

    level: int | None
    classes: Names
    percentiles: tuple[float, float]
    pixels: int
    axes: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        if not _are_names(self.classes):
            raise InvalidInput(
                "classes must be names in the order of their numbers, or by number, given"
                f" {self.classes!r}; such as ['background', 'liver']"
            )
        try:
            low, high = self.percentiles
            right = 0 <= low < high <= 100
        except (TypeError, ValueError):
            right = False
        if not right:
            raise InvalidInput(
                "percentiles must be two numbers from 0 to 100, the lower first, given"
                f" {self.percentiles!r}; such as (1, 99.5)"
            )


def _are_names(classes: Any) -> bool:
    names = classes.values() if isinstance(classes, Mapping) else classes
    if names is None:
        return True
    listed = isinstance(names, Collection) and not isinstance(names, str)
    return listed and all(isinstance(name, str) for name in names)


@dataclass(frozen=True)
class Stack:
    """The layers of a picture, from the bottom to the top, the level read, and a text about it."""

    layers: tuple[Layer, ...]
    read: Subject
    levels: str


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


def open_both(volume: Any, over: Any, channel: int | None) -> tuple[Subject, Subject | None]:
    """Open a volume, and the scan underneath if one is given; they cover the same box."""
    top = open_subject(volume, channel, merge=over is not None)
    if over is None:
        return top, None
    top, under = with_distinct_names(top, open_subject(over))
    same_box(top, under)
    return top, under


def stack(top: Subject, under: Subject | None, slices: Sequence[Slice], display: Display) -> Stack:
    """Read slices of a volume, and of the scan underneath, and give them their colours."""
    read = top.at_level(display.level, display.pixels, display.axes)
    guess = under is not None
    average = not top.may_be_classes(display.classes, guess)
    cuts = top.cut(read, slices, display.pixels, average=average)
    layers: list[Layer] = []
    levels = [read.shown(display.pixels, average)]
    if under is not None:
        (dimmed, _), level_below = ground(under, read, slices, display)
        layers.append(dimmed)
        levels.append(level_below)
    if top.are_classes(cuts, display.classes, guess):
        names = top.class_names(display.classes)
        layers.append(class_layer(cuts, names, top.finest.meta.colors, over_scan=guess))
    elif under is not None:
        layers.append(heat_layer(cuts, top.channel_name(), heat_window(cuts)))
    else:
        layers.append(grey_layer(cuts, grey_window(cuts, display.percentiles)))
    return Stack(tuple(layers), read, "; ".join(filter(None, levels)))


def ground(
    under: Subject, read: Subject, slices: Sequence[Slice], display: Display
) -> tuple[tuple[Layer, Layer], str]:
    """Return the scan underneath, at the level that fits, or the one nearest to a chosen level.

    The layers are those under a result and under a difference; the text is `Subject.shown`.
    """
    chosen = display.level is not None
    level = under.like(read) if chosen else under.at_level(None, display.pixels, display.axes)
    cuts: list[Cut] = under.cut(level, slices, display.pixels, average=True)
    window = grey_window(cuts, display.percentiles)
    shown = level.shown(display.pixels, average=True)
    layers = grey_layer(cuts, window, "result"), grey_layer(cuts, window, "difference")
    return layers, f"{under.name} {shown}" if shown else ""


def scene_of(
    top: Subject,
    under: Subject | None,
    shown: Stack,
    slices: Sequence[Slice],
    columns: Sequence[Sequence[Panel]],
) -> Scene:
    """Return the scene of a volume over a scan, or alone."""
    levels = [f"shown: {shown.levels}"] if shown.levels else []
    return Scene(
        title=(top.name,) if under is None else (top.name, " over ", under.name),
        subtitle="   ·   ".join([top.facts(), *levels]),
        size=top.size,
        unit=top.finest.meta.unit,
        facts=facts_shown(top, under, shown.read, slices),
        columns=columns,
        feet=feet_of(shown.layers),
    )


def facts_shown(
    top: Subject, under: Subject | None, read: Subject, slices: Sequence[Slice]
) -> dict[str, Any]:
    """Return what a picture shows as plain values."""
    meta = read.finest.meta
    return {
        "volume": top.name,
        "over": None if under is None else under.name,
        "level": getattr(read.finest, "level", 0),
        "spacing": list(meta.spacing),
        "unit": meta.unit,
        "planes": [
            {"name": one.view.name, "axis": one.view.axis, "index": one.index} for one in slices
        ],
    }


def feet_of(layers: Sequence[Layer]) -> list[list[list[Foot]]]:
    """Return what stands below all panels: the legend of classes, or the scale of scores."""
    top = layers[-1]
    return [[[foot for foot in (top.legend, top.ramp) if foot]]]
