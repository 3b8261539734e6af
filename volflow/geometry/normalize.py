"""Normalisation as data: a zero and a scale per channel, equal for all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput

__all__ = ["Normalization", "normalization"]

PERCENTILES = (2.0, 98.0)


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

    def check(self, channels: int) -> None:
        """Refuse another number of channels."""
        if channels != len(self.scale):
            raise InvalidInput(
                f"the normalisation is for {len(self.scale)} channels; got {channels}"
            )


def normalization(name: str, statistics: Distribution) -> Normalization:
    """Return the normalisation of a name, from whole-volume statistics.

    Parameters
    ----------
    name
        ``"minmax"``: (x - min) / (max - min); ``"zscore"``: (x - mean) / std; ``"percentile"``:
        the 2nd percentile becomes 0, the 98th 1, values beyond are clipped;
        ``"percentile:0.5,99.5"`` sets other percentiles. A divisor of 0, as in a constant image,
        is replaced by 1.
    statistics
        Statistics of the volume, or of its foreground.

    Raises
    ------
    InvalidInput
        If the name is unknown or the percentiles are not ascending in 0..100.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> stats = SimpleNamespace(min=(10.0,), max=(30.0,))
    >>> normalization("minmax", stats)
    Normalization(zero=(10.0,), scale=(0.05,), low=(None,), high=(None,))
    """
    kind, _, detail = name.partition(":")
    if kind == "minmax" and not detail:
        return _between(statistics.min, statistics.max, clip=False)
    if kind == "percentile":
        low, high = _percentiles(name, detail)
        return _between(statistics.percentile(low), statistics.percentile(high), clip=True)
    if kind == "zscore" and not detail:
        scale = tuple(1 / std if std else 1.0 for std in statistics.std)
        none = (None,) * len(scale)
        return Normalization(tuple(statistics.mean), scale, none, none)
    raise InvalidInput(
        f"unknown normalize {name!r}; use minmax, zscore, percentile, percentile:LOW,HIGH"
        " or a callable"
    )


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
