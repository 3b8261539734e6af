"""Halve a volume: which axes, and the mean or the commonest value of the voxels that merge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput

__all__ = ["Factors", "halved", "halvings", "mean", "mode"]

Array = npt.NDArray[Any]
Factors = tuple[int, int, int]

# A level whose sides are no longer than this is the last: any viewer holds it whole.
COARSEST = 64
# Rows are reduced a few at a time, so that sums stay in the cache.
ROWS_BYTES = 2**20


def halvings(
    shape: Sequence[int], spacing: Sequence[float], levels: int | None = None
) -> tuple[Factors, ...]:
    """How each level follows from the one before: 2 along the axes that are halved, else 1.

    An axis is halved where its spacing is below √2 times the finest one's. No other choice makes
    the voxels more like cubes; thick slices stay until the voxels within them are as large. An
    axis of one voxel is left alone.

    Parameters
    ----------
    shape, spacing
        Of the full resolution, along z, y, x.
    levels
        How many; by default until no side is longer than 64 voxels.

    Raises
    ------
    InvalidInput
        Where so many cannot be: the last has a single voxel.

    Examples
    --------
    >>> halvings((120, 512, 512), (5, 0.8, 0.8))
    ((1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    >>> halvings((120, 512, 512), (1.5, 1, 1), levels=2)
    ((1, 2, 2), (2, 2, 2))
    """
    coarser = list(_coarser(tuple(shape), tuple(spacing)))
    if levels is None:
        sides = [tuple(shape), *(reached for _, reached in coarser)]
        levels = next(n for n, reached in enumerate(sides) if max(reached) <= COARSEST)
    elif isinstance(levels, bool) or levels not in range(1, len(coarser) + 1):
        raise InvalidInput(
            f"levels must be a whole number from 1 to {len(coarser)} for {tuple(shape)} voxels,"
            f" given {levels!r}"
        )
    return tuple(factors for factors, _ in coarser[:levels])


def _coarser(
    sides: tuple[int, ...], sizes: tuple[float, ...]
) -> Iterator[tuple[Factors, tuple[int, ...]]]:
    """Each halving and the shape it leads to, down to a single voxel."""
    while max(sides) > 1:
        finest = min(size for n, size in zip(sides, sizes, strict=True) if n > 1)
        z, y, x = (
            2 if n > 1 and size < math.sqrt(2) * finest else 1
            for n, size in zip(sides, sizes, strict=True)
        )
        sides = halved(sides, (z, y, x))
        sizes = tuple(size * factor for size, factor in zip(sizes, (z, y, x), strict=True))
        yield (z, y, x), sides


def halved(shape: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """The shape after a halving; an odd side is rounded up.

    Examples
    --------
    >>> halved((2, 5, 8, 1), (1, 2, 2, 1))
    (2, 3, 4, 1)
    """
    return tuple(-(-n // factor) for n, factor in zip(shape, factors, strict=True))


def mean(voxels: Array, factors: Factors, out: Array) -> None:
    """The mean of the voxels that merge into each one of ``out``; only those that exist count.

    Integers are exact and rounded half to even, as `numpy.rint`; floats are summed in float64.
    Where a NaN is among the voxels, the mean is NaN.

    Parameters
    ----------
    voxels
        ``zyx``, bool, integer or float.
    factors
        1 or 2 along each axis, 2 along one at least.
    out
        Of shape ``halved(voxels.shape, factors)`` and the same dtype; it is filled.

    Examples
    --------
    >>> out = np.empty((1, 1, 2), "uint8")
    >>> mean(np.array([[[1, 2, 250]], [[3, 4, 255]]], "uint8"), (2, 1, 2), out)
    >>> out
    array([[[  2, 252]]], dtype=uint8)
    """
    kind, size = voxels.dtype.kind, voxels.dtype.itemsize
    if kind == "b":
        voxels, out, kind = voxels.view("u1"), out.view("u1"), "u"
    if kind == "f":
        _each(voxels, factors, out, np.dtype("f8"), _float_mean)
    else:
        _each(voxels, factors, out, np.dtype(f"{kind}{min(8, 2 * size)}"), _integer_mean)


def mode(voxels: Array, factors: Factors, out: Array) -> None:
    """The commonest of the voxels that merge into each one of ``out``; the smallest of several.

    No value arises that was not among them.

    Parameters
    ----------
    voxels, factors, out
        As in `mean`.

    Examples
    --------
    >>> out = np.empty((1, 1, 2), "uint8")
    >>> mode(np.array([[[7, 1, 9, 4]], [[1, 1, 4, 9]]], "uint8"), (2, 1, 2), out)
    >>> out
    array([[[1, 4]]], dtype=uint8)
    """
    _each(voxels, factors, out, voxels.dtype, _mode)


Kernel = Callable[[Array, Factors, Array, "np.dtype[Any]"], None]


def _each(voxels: Array, factors: Factors, out: Array, wide: np.dtype[Any], kernel: Kernel) -> None:
    """Apply a kernel to a few rows at a time, with an even number of voxels along halved axes."""
    depth = max(1, ROWS_BYTES // (math.prod(voxels.shape[1:]) * wide.itemsize * factors[0]))
    for row in range(0, len(out), depth):
        rows = voxels[row * factors[0] : (row + depth) * factors[0]]
        odd = [n % factor for n, factor in zip(rows.shape, factors, strict=True)]
        if any(odd):
            # The last voxel twice: means and majorities of those that exist stay what they are.
            rows = np.pad(rows, [(0, n) for n in odd], mode="edge")
        kernel(rows, factors, out[row : row + depth], wide)


def _sums(rows: Array, factors: Factors, wide: np.dtype[Any]) -> Array:
    """Sums over the voxels that merge, in a type that holds them."""
    for axis, factor in enumerate(factors):
        if factor == 2:
            low, high = _every_other(rows, axis)
            rows = np.add(low, high, dtype=wide)
    return rows


def _every_other(rows: Array, axis: int) -> tuple[Array, Array]:
    before = (slice(None),) * axis
    return rows[(*before, slice(0, None, 2))], rows[(*before, slice(1, None, 2))]


def _float_mean(rows: Array, factors: Factors, out: Array, wide: np.dtype[Any]) -> None:
    share = 1 / math.prod(factors)
    with np.errstate(invalid="ignore"):  # infinities of both signs
        if rows.dtype == wide:  # scaled before, as the sum may exceed what float64 holds
            out[...] = _sums(rows * share, factors, wide)
        else:
            sums = _sums(rows, factors, wide)
            sums *= share
            out[...] = sums


def _integer_mean(rows: Array, factors: Factors, out: Array, wide: np.dtype[Any]) -> None:
    count = math.prod(factors)
    bits = count.bit_length() - 1
    if rows.dtype == wide:  # 64 bits: what is divided away is summed apart, as the sum may wrap
        whole = _sums(rows >> bits, factors, wide)
        rest = _sums(rows & (count - 1), factors, wide)
        whole += rest >> bits
    else:
        rest = _sums(rows, factors, wide)
        whole = rest >> bits
    rest &= count - 1
    rest += count // 2 - 1
    rest += whole & 1  # a half goes to the even neighbour
    rest >>= bits
    whole += rest
    out[...] = whole


def _mode(rows: Array, factors: Factors, out: Array, wide: np.dtype[Any]) -> None:
    first, mixed = rows, np.zeros(rows.shape, bool)
    for axis, factor in enumerate(factors):  # where all are one class, as nearly everywhere
        if factor == 2:
            first, second = _every_other(first, axis)
            low, high = _every_other(mixed, axis)
            mixed = low | high
            mixed |= first != second
    out[...] = first
    if mixed.any():
        out[mixed] = _commonest(np.stack([cell[mixed] for cell in _merging(rows, factors)]))


def _merging(rows: Array, factors: Factors) -> Iterator[Array]:
    """The first of the voxels that merge, everywhere; the second ones; and so on."""
    for offset in itertools.product(*(range(factor) for factor in factors)):
        yield rows[tuple(slice(o, None, f) for o, f in zip(offset, factors, strict=True))]


def _commonest(cells: Array) -> Array:
    """The commonest value of each column, the smallest of those that are equally common."""
    counts = np.zeros(cells.shape, np.uint8)
    for a, b in itertools.combinations(range(len(cells)), 2):
        equal = cells[a] == cells[b]
        counts[a] += equal
        counts[b] += equal
    best: Array = cells[0].copy()
    most = counts[0]
    for cell, count in zip(cells[1:], counts[1:], strict=True):
        better = (count > most) | ((count == most) & (cell < best))
        np.copyto(best, cell, where=better)
        np.copyto(most, count, where=better)
    return best
