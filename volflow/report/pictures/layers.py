"""Layers of a picture: scans in grey, scores as heat, classes and differences in colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.report.colors import (
    PERCENTILES,
    class_color,
    class_counts,
    class_numbers,
    shades,
    tinted,
    wider,
    window,
)
from volflow.report.pictures.slices import Cut

__all__ = [
    "GREYS",
    "HEAT",
    "MANY",
    "Greys",
    "Layer",
    "Ramp",
    "grey_window",
    "heat_window",
    "painted",
]

Array = npt.NDArray[Any]
Legend = tuple[tuple[str, str], ...]  # names and colours

MANY_CLASSES = 32  # more are not outlined
MOST_NAMED = 32  # in a legend, those of which most is shown
# Black over purple and orange to a pale yellow: brightness grows all the way.
HEAT = (
    "#000004", "#210c4a", "#57106e", "#8a226a", "#bc3754", "#e45a31", "#f98e09", "#f9cb35",
    "#fcffa4",
)  # fmt: skip
GREYS = ("#000000", "#ffffff")
# Blue below zero, orange above, distinct for any colour vision; black where nothing differs.
DIVERGING = ("#a6dcff", "#56B4E9", "#0b5d92", "#080808", "#945c00", "#E69F00", "#ffe0a3")
MANY = "#8b98a9"  # stands for the other classes in a legend
OVER_SCAN, ALONE, OPAQUE, HEAT_ALPHA = 0.36, 0.75, 0.92, 0.85  # how opaque


@dataclass(frozen=True)
class Ramp:
    """The scale of a layer of numbers: its name, its ends, its colours from low to high."""

    name: str
    low: float
    high: float
    colors: tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One picture per plane, and what its colours mean.

    Parameters
    ----------
    pictures
        In the order of the planes: their values are rows, columns, RGBA as uint8.
    key
        A legend, which is name and colour of what occurs, or the scale of numbers; () for none.
    smooth
        Whether enlarging may interpolate; never for classes.
    labels, colors
        What is outlined: planes of class numbers, and colours by class number.
    """

    pictures: Sequence[Cut]
    key: Legend | Ramp = ()
    smooth: bool = True
    labels: Sequence[Array] = ()
    colors: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def grey(cls, cuts: Sequence[Cut], window: tuple[float, float], under: str = "") -> Layer:
        """Return a scan in grey, dimmed ``under`` a "result" or a "difference"."""
        white = {"result": 0.8, "difference": 0.5}.get(under, 1.0)
        return cls(
            [Cut(painted(white * shades(cut.values, *window), GREYS), cut.extent) for cut in cuts]
        )

    @classmethod
    def heat(
        cls, cuts: Sequence[Cut], name: str, window: tuple[float, float], *, alone: bool = False
    ) -> Layer:
        """Return numbers as heat: the higher, the brighter.

        Over a scan it is less transparent, too, and smooth; ``alone`` each pixel is seen.
        """
        pictures = []
        for cut in cuts:
            scaled = shades(cut.values, *window)
            alpha = 1.0 if alone else HEAT_ALPHA * np.clip(scaled * 1.6, 0, 1)
            pictures.append(Cut(painted(scaled, HEAT, alpha), cut.extent))
        return cls(pictures, Ramp(name, *window, HEAT), smooth=not alone)

    @classmethod
    def differences(cls, cuts: Sequence[Cut], name: str, largest: float) -> Layer:
        """Return signed differences: blue below zero, orange above, clear at zero."""
        reach = largest if largest > 0 else 1.0
        pictures = []
        for cut in cuts:
            scaled = shades(cut.values, -reach, reach)
            away = np.where(np.isfinite(cut.values), np.abs(2 * scaled - 1), 0.0)
            pictures.append(Cut(painted(scaled, DIVERGING, np.clip(away * 3, 0, 1)), cut.extent))
        return cls(pictures, Ramp(name, -reach, reach, DIVERGING))

    @classmethod
    def classes(
        cls,
        cuts: Sequence[Cut],
        names: Mapping[int, str],
        colors: Mapping[int, str] | Sequence[str] = (),
        *,
        over_scan: bool = False,
        outlined: bool = True,
    ) -> Layer:
        """Return classes as translucent colours; 0 is left clear.

        Parameters
        ----------
        cuts
            Slices of class numbers.
        names
            Names by class number.
        colors
            The colours of the metadata by class number, or a mapping that holds every class.
        over_scan
            Whether a scan underneath must be seen through the colours.
        outlined
            Whether outlines may be drawn around few classes.
        """
        planes = [class_numbers(cut.values) for cut in cuts]
        shown = sum((class_counts(plane[plane != 0]) for plane in planes), Counter[int]())
        chosen = {
            value: colors[value] if isinstance(colors, Mapping) else class_color(value, colors)
            for value in sorted(shown)
        }
        few = len(shown) <= MANY_CLASSES
        fill = (OVER_SCAN if over_scan else ALONE) if outlined else OPAQUE
        fill = fill if few else min(1.0, fill + 0.25)  # without outlines to set them off
        pictures = []
        for plane, cut in zip(planes, cuts, strict=True):
            alpha = np.where(plane != 0, round(255 * fill), 0).astype(np.uint8)
            pixels = np.concatenate([tinted(plane, chosen), alpha[..., None]], axis=-1)
            pictures.append(Cut(pixels, cut.extent))
        named = sorted(sorted(chosen, key=lambda value: -shown[value])[:MOST_NAMED])
        legend = [(names.get(value) or f"class {value}", chosen[value]) for value in named]
        if more := len(chosen) - len(named):
            legend.append((f"and {more} more", MANY))
        outlines = planes if few and outlined else ()
        return cls(pictures, tuple(legend), smooth=False, labels=outlines, colors=chosen)


@dataclass(frozen=True)
class Greys:
    """Which values are shown black and white: a window, or else percentiles of what is shown."""

    percentiles: tuple[float, float] = PERCENTILES
    window: tuple[float, float] | None = None

    def ends(self, cuts: Sequence[Cut]) -> tuple[float, float]:
        """Return the values for some slices."""
        return self.window or grey_window(cuts, self.percentiles)


def grey_window(cuts: Sequence[Cut], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return the values shown black and white: two percentiles of the voxels shown."""
    return window(np.concatenate([cut.values.ravel() for cut in cuts]), percentiles)


def heat_window(cuts: Sequence[Cut]) -> tuple[float, float]:
    """Return the range of scores shown, from 0 or below to the highest."""
    low, high = grey_window(cuts, (0, 100))
    low = min(0.0, low)
    return low, wider(low, high)


def painted(scaled: Array, colors: Sequence[str], alpha: Array | float = 1.0) -> Array:
    """Return colours for numbers from 0 to 1, (..., RGBA) in uint8.

    Examples
    --------
    >>> painted(np.array([[0.0, 0.5, 1.0]]), ("#000000", "#ff0000")).tolist()
    [[[0, 0, 0, 255], [127, 0, 0, 255], [255, 0, 0, 255]]]
    """
    stops = np.linspace(0, 1, len(colors))
    table = np.asarray([list(bytes.fromhex(color[1:])) for color in colors], np.float64)
    pixels = np.empty((*scaled.shape, 4), np.uint8)
    for n in range(3):
        pixels[..., n] = np.interp(scaled, stops, table[:, n])
    pixels[..., 3] = 255 * alpha
    return pixels
