"""The distribution of voxel values, of one block or of many merged.

Integers of up to 16 bits are counted value by value, so all their statistics are exact. Other types
are counted in bins of the order-preserving bits of float32: sign, exponent and 12 bits of mantissa.
A bin is 2⁻¹² of its value wide, so the range need not be known in advance; at most 2²¹ bins exist,
and only those that hold voxels are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput

__all__ = ["Foreground", "Histogram", "Moments", "measure", "merge", "merge_moments"]

Array = npt.NDArray[Any]
Foreground = bool | float
T = TypeVar("T", float, npt.NDArray[np.float64])

PIECE_VOXELS = 2**20  # fits in a core's cache; limits the temporaries of `measure`
FLOAT_BITS = 21
SHIFT = np.uint32(32 - FLOAT_BITS)
SIGN = np.uint32(2**31)


def merge_moments(first: Sequence[T], second: Sequence[T]) -> tuple[T, T, T]:
    """Merge counts, means and sums of squared deviations, of numbers or of arrays.

    Counts must be positive. Rounding depends on the order.

    References
    ----------
    Chan, Golub, LeVeque: Algorithms for computing the sample variance, The American Statistician
    37(3), 1983.

    Examples
    --------
    >>> merge_moments((2, 1.0, 2.0), (2, 3.0, 2.0))
    (4, 2.0, 8.0)
    """
    (n, mean, squares), (m, other, more) = first, second
    count, delta = n + m, other - mean
    return count, mean + delta * (m / count), squares + more + delta * delta * (n * m / count)


@dataclass(frozen=True)
class Moments:
    """Count, mean, sum of squared deviations from it, and range.

    Examples
    --------
    >>> Moments(1, 1.0, 0.0, 1.0, 1.0).merge(Moments(1, 3.0, 0.0, 3.0, 3.0))
    Moments(count=2, mean=2.0, m2=2.0, low=1.0, high=3.0)
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def merge(self, other: Moments) -> Moments:
        """Return the merged moments, by Chan's formula; rounding depends on the order."""
        if not self.count or not other.count:
            return self if self.count else other
        count, mean, m2 = merge_moments(
            (self.count, self.mean, self.m2), (other.count, other.mean, other.m2)
        )
        return Moments(int(count), mean, m2, min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of each value, or of each bin of values.

    Parameters
    ----------
    dtype
        Dtype of the voxels.
    bins, counts
        The bins that hold voxels, uint32 in order of their values, and their counts, int64.
    nonfinite
        Number of NaN and infinite voxels, which are counted only here.
    moments
        Moments of the voxels; None if they follow exactly from the counts.
    """

    dtype: str
    bins: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.int64]
    nonfinite: int = 0
    moments: Moments | None = None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Histogram)
            and (self.dtype, self.nonfinite, self.moments)
            == (other.dtype, other.nonfinite, other.moments)
            and np.array_equal(self.bins, other.bins)
            and np.array_equal(self.counts, other.counts)
        )

    @cached_property
    def count(self) -> int:
        """Number of finite voxels in the foreground."""
        return int(self.counts.sum())

    @property
    def min(self) -> float:
        """Smallest value."""
        return self._moments.low

    @property
    def max(self) -> float:
        """Largest value."""
        return self._moments.high

    @property
    def mean(self) -> float:
        """Mean value."""
        return self._moments.mean

    @property
    def std(self) -> float:
        """Standard deviation of the population, as `numpy.std`."""
        return math.sqrt(self._moments.m2 / self._moments.count)

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        """Value of each bin, float64; its smallest value if a bin holds a range."""
        return _edges(self.dtype, self.bins)[0]

    @cached_property
    def _cumulative(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.counts)

    @cached_property
    def _moments(self) -> Moments:
        if not self.count:
            raise InvalidInput(
                "statistics need at least one voxel that is finite and in the foreground;"
                " check the volume, or choose another foreground"
            )
        return self.moments or self._exact_moments()

    def _exact_moments(self) -> Moments:
        # Python's integers do not overflow, and their quotient is rounded only once.
        pairs = list(zip((int(v) for v in self.values), self.counts.tolist(), strict=True))
        total = sum(value * count for value, count in pairs)
        squares = sum(value * value * count for value, count in pairs)
        m2 = (self.count * squares - total * total) / self.count
        low, high = float(pairs[0][0]), float(pairs[-1][0])
        return Moments(self.count, total / self.count, m2, low, high)

    def percentile(self, q: float) -> float:
        """Return the ``q``-th percentile of the voxels, as `numpy.percentile`.

        Exact for integers of up to 16 bits. For other types each of the two interpolated voxels
        is known to 0.025 % of its value (2⁻¹² and the rounding to float32) if that is between
        1.2e-38 and 3.4e38; 0 and 100 return the exact extremes.

        Raises
        ------
        InvalidInput
            If ``q`` is not in 0..100, or there are no voxels.

        Examples
        --------
        >>> measure(np.array([1, 2, 3, 10], dtype="uint8")).percentile(50)
        2.5
        """
        given: Any = q
        if not isinstance(given, int | float | np.number) or not 0 <= q <= 100:
            raise InvalidInput(f"a percentile must be a number in 0..100; got {q!r}")
        last = self._moments.count - 1
        rank = last * (q / 100)
        first = min(math.floor(rank), last)
        low, high = self._voxel(first), self._voxel(min(first + 1, last))
        # The same two forms as NumPy, which differ in rounding.
        part = rank - first
        return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)

    def _voxel(self, rank: int) -> float:
        """Return the voxel of a rank in the order of values."""
        number = int(np.searchsorted(self._cumulative, rank, side="right"))
        if self.moments is None:
            return float(self.values[number])
        if rank in (0, self.count - 1):
            return self.moments.high if rank else self.moments.low
        low, high = (float(edge[0]) for edge in _edges(self.dtype, self.bins[[number]]))
        if abs(low) < np.finfo(np.float32).tiny:
            value = 0.0  # zeros are common; subnormal values count as 0
        else:
            before = int(self._cumulative[number] - self.counts[number])
            value = low + (high - low) * ((rank - before + 0.5) / int(self.counts[number]))
        return min(max(value, self.moments.low), self.moments.high)


def _is_exact(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "bui" and dtype.itemsize <= 2


def _bins_of(voxels: Array) -> Array:
    """Return the bin of each voxel, uint32; bins are in order of the values."""
    if _is_exact(voxels.dtype):
        bits = voxels.view(f"u{voxels.dtype.itemsize}")
        flip = bits.dtype.type(1 << (8 * voxels.dtype.itemsize - 1))
        return bits ^ flip if voxels.dtype.kind == "i" else bits
    limit = np.finfo(np.float32).max
    # Adding zero maps -0 to +0.
    single = np.clip(voxels, -limit, limit).astype(np.float32) + np.float32(0)
    bits = single.view(np.uint32)
    negative = (single.view(np.int32) >> 31).view(np.uint32)  # all bits set if the sign is
    keys: Array = (bits ^ (negative | SIGN)) >> SHIFT
    return keys


def _edges(dtype: str, bins: Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the smallest and the largest value of each bin."""
    kind = np.dtype(dtype)
    if _is_exact(kind):
        offset = 1 << (8 * kind.itemsize - 1) if kind.kind == "i" else 0
        values = bins.astype(np.float64) - offset
        return values, values
    first = bins.astype(np.uint32) << SHIFT
    last = first | np.uint32((1 << int(SHIFT)) - 1)
    low, high = (
        np.where(keys & SIGN, keys ^ SIGN, ~keys).astype(np.uint32).view(np.float32)
        for keys in (first, last)
    )
    return low.astype(np.float64), high.astype(np.float64)


def measure(data: Array, foreground: Foreground = False) -> Histogram:
    """Return the histogram of one block of one channel.

    Parameters
    ----------
    data
        Voxels of any shape, of boolean, integer or real dtype.
    foreground
        False: all voxels; True: those that are not zero; a number: those above it.

    Raises
    ------
    InvalidInput
        If the dtype is any other.

    Examples
    --------
    >>> histogram = measure(np.array([0, 0, 3, 5], dtype="int16"), foreground=True)
    >>> histogram.count, histogram.values.tolist(), histogram.mean, histogram.std
    (2, [3.0, 5.0], 4.0, 1.0)
    """
    if data.dtype.kind not in "buif":
        raise InvalidInput(f"statistics need real numbers; got voxels of type {data.dtype}")
    exact = _is_exact(data.dtype)
    size = 1 << (8 * data.dtype.itemsize) if exact else 1 << FLOAT_BITS
    table = np.zeros(size, dtype=np.int64) if data.size * 16 > size else None
    few = [np.empty(0, dtype=np.uint32)]  # small blocks are sorted, large ones use a table
    moments, nonfinite = Moments(), 0
    for piece in _pieces(data):
        finite = np.isfinite(piece) if data.dtype.kind == "f" else np.True_
        voxels = piece if finite.all() else piece[finite]
        nonfinite += piece.size - voxels.size
        if foreground is not False:
            voxels = voxels[voxels != 0 if foreground is True else voxels > foreground]
        if table is None:
            few.append(_bins_of(voxels))
        else:
            table += np.bincount(_bins_of(voxels), minlength=size)
        if not exact:
            moments = moments.merge(_moments_of(voxels))
    bins: Array
    if table is None:
        bins, counts = np.unique(np.concatenate(few), return_counts=True)
    else:
        bins = np.flatnonzero(table)
        counts = table[bins]
    return Histogram(
        data.dtype.name,
        bins.astype(np.uint32),
        counts.astype(np.int64),
        nonfinite,
        None if exact else moments,
    )


def _pieces(data: Array) -> Iterator[Array]:
    native = data if data.dtype.isnative else data.astype(data.dtype.newbyteorder("="))
    flat = np.ascontiguousarray(native).reshape(-1)
    return (flat[i : i + PIECE_VOXELS] for i in range(0, flat.size, PIECE_VOXELS))


def _moments_of(voxels: Array) -> Moments:
    if not voxels.size:
        return Moments()
    wide = voxels.astype(np.float64)
    with np.errstate(over="ignore"):  # of float64 near its limit
        mean = wide.mean()
        wide -= mean
        np.square(wide, out=wide)
        return Moments(
            voxels.size, float(mean), float(wide.sum()), float(voxels.min()), float(voxels.max())
        )


def merge(histograms: Sequence[Histogram]) -> Histogram:
    """Return the merged histogram of several of one dtype.

    Counts do not depend on the order; the last bits of mean and deviation of inexact types do, so
    pass the blocks in their order.

    Examples
    --------
    >>> parts = [measure(np.arange(n, dtype="uint8")) for n in (2, 4)]
    >>> total = merge(parts)
    >>> total.counts.tolist(), total.percentile(100)
    ([2, 2, 1, 1], 3.0)
    """
    bins = np.unique(np.concatenate([part.bins for part in histograms]))
    counts = np.zeros(len(bins), dtype=np.int64)
    moments: Moments | None = None
    for part in histograms:
        counts[np.searchsorted(bins, part.bins)] += part.counts
        if part.moments is not None:
            moments = part.moments if moments is None else moments.merge(part.moments)
    nonfinite = sum(part.nonfinite for part in histograms)
    return Histogram(histograms[0].dtype, bins, counts, nonfinite, moments)
