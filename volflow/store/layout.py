"""Dtypes, chunks and shards of volumes: the defaults, and what a user's choice must satisfy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi

__all__ = [
    "ShardEntry",
    "check_dtype",
    "default_layout",
    "piece_of",
    "piece_of_cells",
    "resolve_layout",
    "shrinking",
    "split",
]

Shape = tuple[int, ...]

# A chunk is the least that a reader decodes, a shard the least that a writer holds.
CHUNK_VOXELS = 64**3
SHARD_VOXELS = 256**3
SHARD_BYTES = 64 * 2**20
LONGEST_CHUNK = 256  # without it, chunks of very thick slices would be whole planes


@dataclass(frozen=True)
class ShardEntry:
    """One stored object: its array in the output, its box, crc32c of its decoded C-order bytes."""

    array: str
    start: tuple[int, ...]
    stop: tuple[int, ...]
    crc32c: int


def check_dtype(dtype: Any, name: str) -> np.dtype[Any]:
    """Return the dtype; refuse one that a volume cannot have.

    Examples
    --------
    >>> check_dtype("complex64", "a.nii")
    Traceback (most recent call last):
    volflow.errors.InvalidInput: a.nii holds complex64; a volume holds bool, integers or floats up
    to 64 bits; save its parts one by one
    """
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.kind not in "biuf" or kind.itemsize > 8:
        remedy = "save its parts one by one" if kind.kind in "cV" else "cast it to one of these"
        raise InvalidInput(
            f"{name} holds {kind}; a volume holds bool, integers or floats up to 64 bits; {remedy}"
        )
    return kind


def default_layout(
    shape: Sequence[int], spacing: Sequence[float], dtype: Any
) -> tuple[Shape, Shape]:
    """Return the default chunk and shard of a volume, about equally long along z, y, x.

    Both are powers of two, of about 64³ and 256³ voxels if the volume is large enough.

    Parameters
    ----------
    shape
        ``zyx`` or ``czyx``; chunk and shard hold one channel.
    spacing
        Voxel size along z, y, x.
    dtype
        Dtype of the stored voxels.

    Returns
    -------
    chunk, shard
        One entry per axis of ``shape``.

    Examples
    --------
    >>> default_layout((900, 900, 900), (1, 1, 1), "uint16")
    ((64, 64, 64), (256, 256, 256))
    >>> default_layout((2, 40, 512, 512), (6.5, 0.78, 0.78), "float32")
    ((1, 16, 128, 128), (1, 64, 512, 512))
    """
    space = tuple(shape)[-3:]
    front = (1,) * (len(shape) - 3)
    chunk = _grow((1, 1, 1), space, spacing, CHUNK_VOXELS, LONGEST_CHUNK)
    shard = _grow(chunk, space, spacing, _shard_voxels(dtype))
    return front + chunk, front + shard


def resolve_layout(
    shape: Sequence[int],
    spacing: Sequence[float],
    dtype: Any,
    chunk: int | Sequence[int] | None,
    shard: int | Sequence[int] | None,
) -> tuple[Shape, Shape]:
    """Return chunk and shard per axis: the user's where given, else the defaults.

    Raises
    ------
    InvalidInput
        If the shard is not a multiple of the chunk; the message names one that is.

    Examples
    --------
    >>> resolve_layout((300, 300, 300), (1, 1, 1), "uint8", 32, None)
    ((32, 32, 32), (256, 256, 256))
    >>> resolve_layout((300, 300, 300), (1, 1, 1), "uint8", 64, 200)
    Traceback (most recent call last):
    volflow.errors.InvalidInput: shard (200, 200, 200) is not a multiple of chunk (64, 64, 64) on
    axis z: 200 % 64 != 0; use shard 192 or 256
    """
    front = (1,) * (len(shape) - 3)
    space = tuple(shape)[-3:]
    if chunk is None and shard is None:
        return default_layout(shape, spacing, dtype)
    if chunk is None:
        outer = _sizes("shard", shard, len(shape))
        usual = default_layout(space, spacing, dtype)[0]
        inner = tuple(_divisor(s, c) for s, c in zip(outer, usual, strict=True))
    elif shard is None:
        inner = _sizes("chunk", chunk, len(shape))
        outer = _grow(inner, space, spacing, _shard_voxels(dtype))
    else:
        inner, outer = _sizes("chunk", chunk, len(shape)), _sizes("shard", shard, len(shape))
    for axis, c, s in zip("zyx", inner, outer, strict=True):
        if s % c:
            fits = " or ".join(str(n) for n in (s // c * c, (s // c + 1) * c) if n)
            raise InvalidInput(
                f"shard {outer} is not a multiple of chunk {inner} on axis {axis}: "
                f"{s} % {c} != 0; use shard {fits}"
            )
    return front + inner, front + outer


def piece_of(
    chunk: Sequence[int], shard: Sequence[int] | None, shape: Sequence[int], dtype: Any
) -> Shape:
    """Return the sides of a box for one task: the shard, or whole chunks of about 256³ voxels.

    A block with a halo also decodes the chunks around it: a single chunk would decode 27.

    Parameters
    ----------
    chunk, shard, shape
        Of a stored array with any number of axes; the last three are grown.
    dtype
        Dtype of its voxels.

    Examples
    --------
    >>> piece_of((1, 64, 64, 64), (1, 256, 256, 256), (2, 900, 900, 900), "uint8")
    (1, 256, 256, 256)
    >>> piece_of((64, 64, 64), None, (900, 900, 90), "uint16")
    (256, 512, 128)
    """
    if shard is not None and math.prod(shard) <= _shard_voxels(dtype):
        return tuple(shard)
    front, space = tuple(chunk)[:-3], tuple(chunk)[-3:]
    return front + _grow(space, tuple(shape)[-3:], (1.0,) * len(space), _shard_voxels(dtype))


def piece_of_cells(
    cell: Sequence[int], units: Sequence[Sequence[int]], shape: Sequence[int], dtype: Any
) -> Shape:
    """Return the sides of a box for one read: whole cells, and whole stored units if possible.

    It holds about 256³ voxels, or one unit if that is larger. If the borders of cells and units
    rarely coincide, units at the borders of the boxes are read twice.

    Parameters
    ----------
    cell
        Voxels per axis; cells are counted from voxel 0.
    units
        Sizes that are read without waste, best first: shards, chunks.
    shape, dtype
        Of the array.

    Examples
    --------
    >>> piece_of_cells((32, 32, 32), [(256,) * 3, (64,) * 3], (999,) * 3, "uint8")
    (256, 256, 256)
    >>> piece_of_cells((96, 96, 96), [(512,) * 3, (64,) * 3], (999,) * 3, "uint8")
    (192, 192, 384)
    >>> piece_of_cells((50, 50, 50), [(64,) * 3], (999,) * 3, "uint8")
    (200, 200, 400)
    """
    most = max(_shard_voxels(dtype), math.prod(map(min, units[-1], shape)))
    for unit in (*units, cell):
        whole = tuple(
            min(math.lcm(c, u), -(-n // c) * c) for c, u, n in zip(cell, unit, shape, strict=True)
        )
        if math.prod(map(min, whole, shape)) <= most:
            break
    return _grow(whole, tuple(shape), (1.0,) * len(whole), most)


def shrinking(
    shard: Sequence[int], chunk: Sequence[int], weights: Sequence[int]
) -> Iterator[Shape]:
    """Yield the sides of a shard, then ever smaller ones, until one fits into memory.

    Parameters
    ----------
    shard, chunk
        Voxels per axis; the smaller shards consist of whole chunks.
    weights
        Per axis, the weight of a chunk: the axis with the greatest weight in all is halved. An
        axis of weight 0 keeps its length.

    Examples
    --------
    >>> list(shrinking((64, 64, 96), (32, 32, 32), (1, 1, 1)))
    [(64, 64, 96), (64, 64, 64), (32, 64, 64), (32, 32, 64), (32, 32, 32)]
    >>> list(shrinking((96, 64, 64), (32, 32, 32), (1, 0, 0)))
    [(96, 64, 64), (64, 64, 64), (32, 64, 64)]
    """
    sides = tuple(shard)
    yield sides
    while True:
        counts = [-(-s // c) for s, c in zip(sides, chunk, strict=True)]
        lengths = [n * w if n > 1 else 0 for n, w in zip(counts, weights, strict=True)]
        if not any(lengths):
            return
        axis = lengths.index(max(lengths))
        half = -(-counts[axis] // 2) * chunk[axis]
        sides = (*sides[:axis], half, *sides[axis + 1 :])
        yield sides


def split(roi: Roi, shape: Sequence[int], unit: Sequence[int], axes: Sequence[str]) -> list[Roi]:
    """Cut a box into the stored objects it owns, in C order.

    Parameters
    ----------
    roi
        A box inside the array.
    shape, unit
        Voxels per axis of the array and of its stored objects (shards, or chunks if unsharded).
    axes
        Names of the axes, for the message.

    Raises
    ------
    InvalidInput
        If an object lies partly outside the box: writers of its two parts would overwrite each
        other's voxels.

    Examples
    --------
    >>> split(Roi((0, 0, 4), (4, 4, 9)), (4, 4, 9), (4, 4, 4), "zyx")
    [Roi(start=(0, 0, 4), stop=(4, 4, 8)), Roi(start=(0, 0, 8), stop=(4, 4, 9))]
    """
    for axis, (a, b), size, step in zip(axes, roi, shape, unit, strict=True):
        if a % step or (b % step and b != size):
            low, high = a // step * step, min(size, -(-b // step) * step)
            raise InvalidInput(
                f"roi {a}:{b} on axis {axis} owns stored objects of {step} voxels only in part; "
                f"start must be a multiple of {step}, stop too or the end {size}; use {low}:{high}"
            )
    counts = [-(-(b - a) // step) for (a, b), step in zip(roi, unit, strict=True)]
    pieces = []
    for index in np.ndindex(*counts):
        start = [a + i * step for (a, _), i, step in zip(roi, index, unit, strict=True)]
        stop = [min(a + step, b) for a, step, (_, b) in zip(start, unit, roi, strict=True)]
        pieces.append(Roi(tuple(start), tuple(stop)))
    return pieces


def _shard_voxels(dtype: Any) -> int:
    return min(SHARD_VOXELS, SHARD_BYTES // int(np.dtype(dtype).itemsize))


def _grow(
    start: Shape, shape: Shape, spacing: Sequence[float], voxels: int, longest: int = 2**62
) -> Shape:
    """Double the physically shortest side, x first, until the box has ``voxels`` voxels."""
    size = list(start)
    while np.prod(size, dtype=float) * 2 <= voxels:
        free = [n for n in reversed(range(len(size))) if size[n] < min(shape[n], longest)]
        if not free:
            break
        size[min(free, key=lambda n: size[n] * spacing[n])] *= 2
    return tuple(size)


def _divisor(size: int, usual: int) -> int:
    """Return the chunk for a shard of this size; the whole shard if it divides badly."""
    best = max(n for n in range(1, min(size, usual) + 1) if size % n == 0)
    return best if best * 4 > min(size, usual) else size


def _sizes(name: str, value: int | Sequence[int] | None, ndim: int) -> Shape:
    """Return sizes along z, y, x from one integer, three, or three after one channel."""
    try:
        sizes = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value or ())
    except (TypeError, ValueError):
        sizes = ()
    if len(sizes) == ndim == 4 and sizes[0] == 1:
        sizes = sizes[1:]
    if len(sizes) != 3 or any(v < 1 for v in sizes):
        raise InvalidInput(
            f"{name} must be a positive integer or one for each of z, y, x, given {value!r}"
        )
    return sizes
