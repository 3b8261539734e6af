"""Colours of voxels, alike in all pictures: when they are classes, their palette, the greys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FEW_VALUES",
    "PALETTE",
    "PERCENTILES",
    "class_color",
    "class_counts",
    "class_numbers",
    "shades",
    "tinted",
    "wider",
    "window",
]

Array = npt.NDArray[Any]

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color), told apart with any colour vision;
# first what shows best on grey.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
FEW_VALUES = 32  # an image that holds no more different whole numbers may show classes
PERCENTILES = (1.0, 99.5)  # of voxels, shown black and white
TABLE = 2**16  # class numbers up to here are counted in a table
MOST_COLORS = 256  # of classes; their numbers go round after that
# Of further colours, in Oklab: no grey, nothing that is lost on black or white.
_LIGHTNESS, _LEAST_CHROMA = (0.5, 0.93), 0.07
_TO_CONES = np.array(
    [
        [0.4122214708, 0.2119034982, 0.0883024619],
        [0.5363325363, 0.6806995451, 0.2817188376],
        [0.0514459929, 0.1073969566, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 1.9779984951, 0.0259040371],
        [0.7936177850, -2.4285922050, 0.7827717662],
        [-0.0040720468, 0.4505937099, -0.8086757660],
    ]
)


def class_color(value: int, colors: Sequence[str] = ()) -> str:
    """Return the colour of a class, the same in every picture; 256 classes have different ones.

    Parameters
    ----------
    value
        Number of the class; 0 is the background and left clear by those who draw.
    colors
        The colours of the volume's metadata ("RRGGBB") by class number, or none.

    Examples
    --------
    >>> class_color(1), class_color(1, ["000000", "ff0000"]), class_color(8)
    ('#E69F00', '#ff0000', '#9900FF')
    """
    if 0 <= value < len(colors) and colors[value]:
        return f"#{colors[value].lstrip('#')}"
    return _palette()[(value - 1) % MOST_COLORS]


@cache
def _palette() -> tuple[str, ...]:
    """Return Okabe and Ito's colours, then always the one that differs most from all before it."""
    side = np.arange(0, 256, 17)
    rgb = np.stack(np.meshgrid(side, side, side, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(rgb)
    low, high = _LIGHTNESS
    usable = (low <= lab[:, 0]) & (lab[:, 0] <= high)
    usable &= np.hypot(lab[:, 1], lab[:, 2]) >= _LEAST_CHROMA
    rgb, lab = rgb[usable], lab[usable]
    colors = list(PALETTE)
    first = _oklab(np.array([list(bytes.fromhex(color[1:])) for color in colors]))
    nearest = np.square(lab[:, None] - first).sum(-1).min(axis=1)
    while len(colors) < MOST_COLORS:
        # Rounded, so that the last digit of a machine's arithmetic does not choose.
        best = int(np.argmax(np.round(nearest, 6)))
        colors.append("#" + bytes(rgb[best].tolist()).hex().upper())
        nearest = np.minimum(nearest, np.square(lab - lab[best]).sum(-1))
    return tuple(colors)


def _oklab(rgb: Array) -> Array:
    """Return lightness and two opponent colours, (..., 3), in which distances are perceptual.

    Ottosson 2020, https://bottosson.github.io/posts/oklab.
    """
    part = rgb / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _TO_CONES)
    return np.asarray(cones @ _TO_LAB)


def class_numbers(plane: Array) -> Array:
    """Return voxels as class numbers of the same shape; NaN and infinity count as background."""
    if plane.dtype.kind == "f":
        plane = np.nan_to_num(plane, nan=0, posinf=0, neginf=0)
    return plane.astype(np.int64)


def class_counts(numbers: Array) -> Counter[int]:
    """Return how many voxels each class number has.

    Examples
    --------
    >>> sorted(class_counts(np.array([[0, 3], [3, 3]])).items())
    [(0, 1), (3, 3)]
    """
    if numbers.size and numbers.min() >= 0 and numbers.max() < TABLE:
        found = np.bincount(numbers.ravel())
        return Counter({int(value): int(found[value]) for value in found.nonzero()[0]})
    values, counts = np.unique(numbers, return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))


def tinted(labels: Array, colors: Mapping[int, str]) -> Array:
    """Return classes as RGB in uint8, (..., 3); black where no colour is given.

    Parameters
    ----------
    labels
        Class numbers, an array of any shape.
    colors
        "#RRGGBB" by class number.

    Examples
    --------
    >>> tinted(np.array([0, 7]), {7: "#102030"}).tolist()
    [[0, 0, 0], [16, 32, 48]]
    """
    values = np.array(sorted({0, *colors}))
    table = np.array([list(bytes.fromhex(colors.get(v, "#000000")[1:])) for v in values], np.uint8)
    place = np.minimum(np.searchsorted(values, labels), len(values) - 1)
    return np.where((values[place] == labels)[..., None], table[place], np.uint8(0))


def window(voxels: Array, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return the values shown black and white: two percentiles of the finite voxels.

    Examples
    --------
    >>> window(np.array([5.0, 1.0, np.nan, 3.0]), (0, 100)), window(np.array([7]), (1, 99))
    ((1.0, 5.0), (7.0, 8.0))
    """
    numbers = voxels[np.isfinite(voxels)].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # of numbers as large as floats go
        low, high = (
            np.percentile(numbers, percentiles, method="nearest") if numbers.size else (0.0, 1.0)
        )
    return float(low), wider(float(low), float(high))


def wider(low: float, high: float) -> float:
    """Return the upper end of a window that is not empty, however large its numbers are."""
    return high if high > low else max(low + 1, float(np.nextafter(low, np.inf)))


def shades(voxels: Array, low: float, high: float) -> Array:
    """Return voxels scaled from 0 at ``low`` or below to 1 at ``high`` or above; 0 for NaN.

    Examples
    --------
    >>> shades(np.array([0, 5, 20, np.nan]), 0, 10).tolist()
    [0.0, 0.5, 1.0, 0.0]
    """
    numbers = np.nan_to_num(voxels.astype(np.float64), nan=low, posinf=high, neginf=low)
    # The range of all floats is not a float itself, its half is.
    return np.asarray(np.clip((numbers / 2 - low / 2) / (high / 2 - low / 2), 0, 1))
