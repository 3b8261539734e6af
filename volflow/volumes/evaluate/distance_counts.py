"""Distances as exact values with counts: percentiles and means without holding each distance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["Bounded", "DistanceCounts", "exact_lengths", "merge_distances", "to_40_bits"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BITS = 40  # of a distance, about twelve digits
DIGITS = 6


@dataclass(frozen=True)
class Bounded:
    """A number that is known, or of which is known only that it is larger than a bound.

    Parameters
    ----------
    value
        The number; NaN where it is not known, or does not exist.
    above
        Where the number is not known: it is larger than this, or as large. NaN elsewhere.

    Examples
    --------
    >>> Bounded(2.5).least, Bounded(math.nan, 50.0).least
    (2.5, 50.0)
    """

    value: float
    above: float = math.nan

    @property
    def least(self) -> float:
        """The number, or what it exceeds."""
        return self.value if math.isnan(self.above) else self.above

    @property
    def known(self) -> bool:
        """Whether nothing is left open."""
        return math.isnan(self.above)


def exact_lengths(offsets: Integers, spacing: tuple[float, float, float]) -> Floats:
    """Return the lengths of offsets, so that equal lengths are one number.

    Parameters
    ----------
    offsets
        In voxels along z, y, x, (n, 3).
    spacing
        Of a voxel. Decimals of up to six digits are computed with as whole numbers; otherwise
        lengths are rounded to 40 bits, so that those of two offsets do not differ by rounding.

    Returns
    -------
    numpy.ndarray
        (n,), in the unit of the spacing.

    Examples
    --------
    >>> exact_lengths(np.array([[3, 4, 0], [0, 0, 5], [0, 0, 0]]), (0.7, 0.7, 0.7)).tolist()
    [3.5, 3.5, 0.0]
    >>> exact_lengths(np.array([[1, 2, 2], [0, 5, 12]]), (2.0, 0.1, 0.1)).tolist()
    [2.0199009876724157, 1.3]
    """
    whole = _whole_units(spacing)
    if whole is not None:
        sides, unit = whole
        found: Floats = np.sqrt(np.square(offsets * np.asarray(sides)).sum(axis=1)) / unit
        return found
    squares = np.zeros(len(offsets))
    for side in sorted(set(spacing)):  # offsets along sides that are alike add up exactly
        alike = [axis for axis in range(3) if spacing[axis] == side]
        squares += np.square(offsets[:, alike]).sum(axis=1) * (side * side)
    return to_40_bits(np.sqrt(squares))


@cache
def _whole_units(spacing: tuple[float, float, float]) -> tuple[tuple[float, ...], float] | None:
    """Return sides as whole numbers of a unit, and how many of these are 1; None of odd ones."""
    for digits in range(DIGITS + 1):
        sides = tuple(float(round(side * 10**digits)) for side in spacing)
        exact = all(a / 10**digits == side for a, side in zip(sides, spacing, strict=True))
        if exact and max(sides) <= 10**DIGITS:
            return sides, float(10**digits)
    return None


def to_40_bits(lengths: npt.ArrayLike) -> Floats:
    """Return numbers rounded to 40 bits, about twelve digits.

    Examples
    --------
    >>> float(to_40_bits(3.4999999999999996))
    3.5
    >>> float(to_40_bits(0.1 + 0.2)) == float(to_40_bits(0.3))
    True
    """
    mantissa, exponent = np.frexp(np.asarray(lengths, np.float64))
    found: Floats = np.ldexp(np.rint(np.ldexp(mantissa, BITS)), exponent - BITS)
    return found


@dataclass(frozen=True)
class DistanceCounts:
    """How often each distance occurs from one surface to another.

    Parameters
    ----------
    values
        Different distances, ascending.
    counts
        How often each occurs.
    beyond
        How many distances are larger than the bound, by how much is not known.
    bound
        The largest distance that is looked for.

    Examples
    --------
    >>> counts = DistanceCounts.of(np.array([0.0, 1.0, 1.0, 3.0]))
    >>> counts.percentile(50).value, counts.mean().value, counts.within(1.0)
    (1.0, 1.25, 3)
    """

    values: Floats
    counts: Integers
    beyond: int = 0
    bound: float = math.inf

    @classmethod
    def of(
        cls, distances: Floats, counts: Integers | None = None, bound: float = math.inf
    ) -> DistanceCounts:
        """Return the counts of distances, each as often as said, or once."""
        number = np.ones(len(distances), np.int64) if counts is None else counts
        far = to_40_bits(distances) > to_40_bits(bound)
        beyond = int(number[far].sum())
        values, place = np.unique(distances[~far], return_inverse=True)
        added = np.zeros(len(values), np.int64)
        np.add.at(added, place, number[~far])
        return cls(values, added, beyond, bound)

    @property
    def total(self) -> int:
        """Number of distances."""
        return int(self.counts.sum()) + self.beyond

    def within(self, tolerance: float) -> int:
        """Return how many distances are at most the tolerance, which is within the bound."""
        return int(self.counts[to_40_bits(self.values) <= to_40_bits(tolerance)].sum())

    def percentile(self, percent: float) -> Bounded:
        """Return a percentile, interpolated as by `numpy.percentile`; NaN of no distances.

        One that depends on distances beyond the bound is known to be larger only.
        """
        if not self.total:
            return Bounded(math.nan)
        at = (self.total - 1) * (percent / 100)
        low = math.floor(at)
        share, last = at - low, np.cumsum(self.counts)

        def ranked(rank: int) -> float:
            place = int(np.searchsorted(last, rank, side="right"))
            return float(self.values[place]) if place < len(self.values) else math.inf

        one, other = ranked(low), ranked(min(low + 1, self.total - 1))
        if share == 0 or one == other:
            other = one
        ends = [self.bound if math.isinf(end) else end for end in (one, other)]
        step = ends[1] - ends[0]
        # As NumPy: from the nearer end, so that rounding never leaves the interval.
        value = ends[0] + step * share if share < 0.5 else ends[1] - step * (1 - share)
        return Bounded(math.nan, value) if math.isinf(one + other) else Bounded(value)

    def sum(self) -> float:
        """Return the sum, in which distances beyond the bound count as it."""
        known = math.fsum((self.values * self.counts).tolist())
        return known + (self.beyond * self.bound if self.beyond else 0.0)

    def mean(self) -> Bounded:
        """Return the mean; NaN of no distances."""
        if not self.total:
            return Bounded(math.nan)
        mean = self.sum() / self.total
        return Bounded(math.nan, mean) if self.beyond else Bounded(mean)


def merge_distances(parts: Iterable[DistanceCounts]) -> DistanceCounts:
    """Return the counts of several together; they do not depend on their order.

    Examples
    --------
    >>> one = DistanceCounts.of(np.array([0.0, 2.0]), bound=1.0)
    >>> both = merge_distances([one, one])
    >>> both.values.tolist(), both.counts.tolist(), both.beyond
    ([0.0], [2], 2)
    """
    parts = list(parts)
    found = DistanceCounts.of(
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.counts for part in parts]),
    )
    beyond = sum(part.beyond for part in parts)
    return DistanceCounts(found.values, found.counts, beyond, parts[0].bound)
