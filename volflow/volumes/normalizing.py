"""Normalisations as constants of a volume, whose statistics are measured once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from volflow.geometry.normalize import Normalization, normalization
from volflow.volumes.distribution import Statistics
from volflow.volumes.statistics import statistics

__all__ = ["constants_of"]


def constants_of(
    choice: str | Callable[[Any], Any], volume: Any, **options: Any
) -> Normalization | Callable[[Any], Any]:
    """Return a normalisation as constants of a volume; a function as it is.

    Parameters
    ----------
    choice
        As `predict` takes it.
    volume
        An opened one; read whole, once, where the choice needs its statistics and nobody knows
        them yet.
    **options
        Of `statistics`.
    """
    if callable(choice):
        return choice

    def measure(foreground: bool) -> Statistics:
        return statistics(volume, foreground=foreground, **options)

    return normalization(choice, volume.channels_count, measure)
