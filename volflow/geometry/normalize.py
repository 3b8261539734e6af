"""Normalisation as data: a zero and a scale per channel, equal for all blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput

__all__ = ["Normalization", "check_normalization", "normalization"]

PERCENTILES = (2.0, 98.0)
# Statistics of no channel, to check a name before there are any.
NOTHING: Any = SimpleNamespace(min=(), max=(), mean=(), std=(), percentile=lambda q: ())


class Distribution(Protocol):
    """Whole-volume statistics that normalisations use, with one value per channel."""

    @property
    def min(self) -> Sequence[float]: ...
    @property
    def max(self) -> Sequence[float]: ...
    @property
    def mean(self) -> Sequence[float]: ...
    @property
    def std(self) -> Sequence[float]: ...
    def percentile(self, q: float) -> Sequence[float]: ...


@dataclass(frozen=True)
class Normalization:
    """``clip((x - zero) · scale, low, high)``, with one entry per channel.

    Parameters
    ----------
    zero, scale
        Per channel, the stored value that becomes 0, and the factor of the distance from it.
    low, high
        Limits to which values are clipped; None for no limit.
    keep_zero
        Whether stored zeros become 0, whatever else becomes of the others.

    Examples
    --------
    >>> halve = Normalization((1.0,), (0.5,), (0.0,), (1.0,))
    >>> block = np.zeros((1, 1, 1, 3), "float32")
    >>> halve.apply(np.array([[[[0, 2, 4]]]], "uint16"), block)
    >>> block
    array([[[[0. , 0.5, 1. ]]]], dtype=float32)
    """

    zero: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    keep_zero: bool = False

    def apply(self, stored: npt.NDArray[Any], out: npt.NDArray[np.floating[Any]]) -> None:
        """Write a normalised ``czyx`` block of stored values into ``out``, float ``czyx``.

        Raises
        ------
        InvalidInput
            If the number of channels differs.
        """
        self.check(len(stored))
        for number, channel in enumerate(out):
            # In float64, before any rounding: in float32 a mean of 60 000 is known only to
            # 0.004, which matters if the deviation is small.
            np.subtract(stored[number], np.float64(self.zero[number]), out=channel)
            channel *= self.scale[number]
            low, high = self.low[number], self.high[number]
            if low is not None or high is not None:
                np.clip(channel, low, high, out=channel)
            if self.keep_zero:
                channel[stored[number] == 0] = 0

    def check(self, channels: int) -> None:
        """Refuse another number of channels."""
        if channels != len(self.scale):
            raise InvalidInput(
                f"the normalisation is for {len(self.scale)} channels; got {channels}"
            )


def normalization(
    name: str, channels: int, measure: Callable[[bool], Distribution]
) -> Normalization:
    """Return the normalisation of a name as constants of a volume.

    Parameters
    ----------
    name
        ``"minmax"``: (x - min) / (max - min); ``"zscore"``: (x - mean) / std;
        ``"zscore:foreground"``: the same with the statistics of voxels that are not zero, and
        zeros stay zero, as for brains that were cut out; ``"percentile"``: the 2nd percentile
        becomes 0, the 98th 1, values beyond are clipped; ``"percentile:0.5,99.5"`` sets other
        percentiles. ``"window:-160,240"`` takes a range of values to 0..1 and clips those beyond;
        ``"scale:255"`` divides by a number. A divisor of 0, as in a constant image, is replaced
        by 1.
    channels
        Of the volume.
    measure
        Returns statistics of the whole volume, or of the voxels that are not zero. It is called
        only where the name asks for them.

    Raises
    ------
    InvalidInput
        If the name is unknown, or its numbers are not what it needs.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> stats = SimpleNamespace(min=(10.0,), max=(30.0,))
    >>> normalization("minmax", 1, lambda foreground: stats)
    Normalization(zero=(10.0,), scale=(0.05,), low=(None,), high=(None,), keep_zero=False)
    """
    kind, _, detail = name.partition(":")
    if name == "minmax":
        statistics = measure(False)
        return _between(statistics.min, statistics.max, clip=False)
    if kind == "percentile":
        low, high = _percentiles(name, detail)
        statistics = measure(False)
        return _between(statistics.percentile(low), statistics.percentile(high), clip=True)
    if name in ("zscore", "zscore:foreground"):
        foreground = bool(detail)
        statistics = measure(foreground)
        scale = tuple(1 / std if std else 1.0 for std in statistics.std)
        none = (None,) * len(scale)
        return Normalization(tuple(statistics.mean), scale, none, none, foreground)
    if kind == "window":
        low, high = _window(name, detail)
        return _between((low,) * channels, (high,) * channels, clip=True)
    if kind == "scale":
        factor, none = 1 / _divisor(name, detail), (None,) * channels
        return Normalization((0.0,) * channels, (factor,) * channels, none, none)
    raise InvalidInput(
        f"unknown normalize {name!r}; use minmax, zscore, zscore:foreground, percentile,"
        " percentile:LOW,HIGH, window:LOW,HIGH, scale:NUMBER or a callable"
    )


def check_normalization(choice: Any) -> None:
    """Refuse what is neither a function nor the name of a normalisation.

    Examples
    --------
    >>> check_normalization("window:240,-160")
    Traceback (most recent call last):
    volflow.errors.InvalidInput: normalize 'window:240,-160' needs two ascending values, such as ...
    """
    if not callable(choice):
        normalization(str(choice), 0, lambda foreground: NOTHING)


def _window(name: str, detail: str) -> tuple[float, float]:
    try:
        low, high = map(float, detail.split(","))
    except ValueError:
        low = high = 0.0
    if not (low < high and math.isfinite(high - low)):
        raise InvalidInput(
            f'normalize {name!r} needs two ascending values, such as "window:-160,240"'
        )
    return low, high


def _divisor(name: str, detail: str) -> float:
    try:
        number = float(detail)
    except ValueError:
        number = 0.0
    if not (number > 0 and math.isfinite(number) and math.isfinite(1 / number)):
        raise InvalidInput(f'normalize {name!r} needs a number above 0, such as "scale:255"')
    return number


def _percentiles(name: str, detail: str) -> tuple[float, float]:
    try:
        low, high = map(float, detail.split(",")) if detail else PERCENTILES
    except ValueError:
        low = high = 0.0
    if not 0 <= low < high <= 100:
        raise InvalidInput(
            f"normalize {name!r} needs two ascending percentiles in 0..100,"
            ' such as "percentile:0.5,99.5"'
        )
    return low, high


def _between(lows: Sequence[float], highs: Sequence[float], *, clip: bool) -> Normalization:
    scale = tuple(1 / (b - a) if b > a else 1.0 for a, b in zip(lows, highs, strict=True))
    count = len(scale)
    return Normalization(
        tuple(lows), scale, (0.0 if clip else None,) * count, (1.0 if clip else None,) * count
    )
