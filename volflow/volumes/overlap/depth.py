"""Dask's ``depth`` and ``boundary`` arguments, checked, as padded axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.volumes.overlap.padding import BOUNDARIES, PaddedAxis

__all__ = ["check_chunks", "check_constants", "is_whole", "merged_chunks", "padded_axes"]

Chunks = tuple[tuple[int, ...], ...]


def padded_axes(
    chunks: Sequence[Chunks], depth: Any, boundary: Any
) -> list[tuple[PaddedAxis, ...]]:
    """The axes of several arrays with their halos.

    Parameters
    ----------
    chunks
        Of each array, per axis.
    depth, boundary
        As in `volflow.map_overlap`.

    Raises
    ------
    InvalidInput
        Where one of them is malformed, or the depth is larger than its axis.

    Examples
    --------
    >>> ((z, y),) = padded_axes([((4, 4), (5,))], {0: 2}, "reflect")
    >>> z.low, y.low, z.boundary
    (2, 0, 'reflect')
    """
    per_array = []
    for name, given in (("depth", depth), ("boundary", boundary)):
        entries = given if isinstance(given, list) else [given] * len(chunks)
        if len(entries) != len(chunks):
            raise InvalidInput(f"{name} lists {len(entries)} entries for {len(chunks)} arrays")
        per_array.append(entries)
    return [_axes(*one) for one in zip(chunks, *per_array, strict=True)]


def _axes(chunks: Chunks, depth: Any, boundary: Any) -> tuple[PaddedAxis, ...]:
    ndim = len(chunks)
    if not isinstance(depth, tuple | dict):
        depth = {axis: depth or 0 for axis in range(max(0, ndim - 3), ndim)}
    if not isinstance(boundary, tuple | dict):
        boundary = (boundary,) * ndim
    depths, kinds = _per_axis(depth, ndim, "depth"), _per_axis(boundary, ndim, "boundary")
    axes = []
    for axis, sizes in enumerate(chunks):
        name = axis_name(axis, ndim)
        kind = _checked_boundary(kinds.get(axis), name)
        low, high = _low_high(depths.get(axis, 0), kind, name)
        if max(low, high) > sum(sizes):
            raise InvalidInput(
                f"depth {max(low, high)} is larger than axis {name} of {sum(sizes)} voxels; use a"
                f" depth of at most {sum(sizes)}, or 0 for this axis"
            )
        axes.append(PaddedAxis(tuple(sizes), low, high, kind))
    return tuple(axes)


def axis_name(axis: int, ndim: int) -> str:
    """What to call an axis in a message."""
    return "czyx"[-ndim:][axis] if ndim in (3, 4) else str(axis)


def _per_axis(given: Any, ndim: int, name: str) -> dict[int, Any]:
    """A tuple or dictionary as a dictionary; negative axes count from the last."""
    entries = dict(enumerate(given)) if isinstance(given, tuple) else given
    if isinstance(given, tuple) and len(given) != ndim:
        entries = {ndim: given}
    if not all(is_whole(axis) and -ndim <= axis < ndim for axis in entries):
        raise InvalidInput(
            f"{name} must be one value, a tuple of {ndim} or a dictionary by axis, given {given!r}"
        )
    return {axis % ndim: value for axis, value in entries.items()}


def _checked_boundary(boundary: Any, axis: str) -> Any:
    if boundary is None:
        return "none"
    number = isinstance(boundary, int | float | np.number)
    if not number and not (isinstance(boundary, str) and boundary in BOUNDARIES):
        raise InvalidInput(
            f"boundary on axis {axis} must be one of {', '.join(BOUNDARIES)}, or a number; given"
            f" {boundary!r}"
        )
    return boundary


def check_constants(axes: Sequence[PaddedAxis], dtype: np.dtype[Any]) -> None:
    """Refuse a constant outside of the array that its voxels cannot hold.

    Raises
    ------
    InvalidInput
        Naming the range.
    """
    if dtype.kind not in "iu":
        return
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    for axis in axes:
        if not isinstance(axis.boundary, str) and not low <= axis.boundary <= high:
            raise InvalidInput(
                f"boundary {axis.boundary} does not fit {dtype} ({low} to {high}); use another, or"
                ' a wider dtype: array.astype("int32")'
            )


def _low_high(depth: Any, boundary: Any, axis: str) -> tuple[int, int]:
    pair = depth if isinstance(depth, tuple) else (depth, depth)
    if len(pair) != 2 or not all(is_whole(d) and d >= 0 for d in pair):
        raise InvalidInput(
            f"depth on axis {axis} must be a whole number from 0, or (low, high); given {depth!r}"
        )
    if pair[0] != pair[1] and boundary != "none":
        raise InvalidInput(
            f"depth {pair} on axis {axis} differs by side, which needs boundary 'none'; given"
            f" {boundary!r}"
        )
    return int(pair[0]), int(pair[1])


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, of Python or NumPy."""
    return isinstance(value, int | np.integer)


def merged_chunks(sizes: Sequence[int], least: int) -> tuple[int, ...]:
    """Chunks joined with their neighbours until each has at least so many voxels.

    Examples
    --------
    >>> merged_chunks((128, 128, 1), 16), merged_chunks((4, 4, 4, 4, 4), 8), merged_chunks((3,), 5)
    ((128, 129), (8, 12), (3,))
    """
    merged: list[int] = []
    for size in sizes:
        if merged and merged[-1] < least:
            merged[-1] += size
        else:
            merged.append(size)
    if len(merged) > 1 and merged[-1] < least:
        merged[-2:] = [merged[-2] + merged[-1]]
    return tuple(merged)


def check_chunks(axes: Sequence[PaddedAxis]) -> None:
    """Refuse chunks thinner than the depth, which Dask would merge and split again.

    Raises
    ------
    InvalidInput
        Naming the rechunk that fits.
    """
    for number, axis in enumerate(axes):
        deepest = max(axis.low, axis.high)
        if min(axis.sizes) < deepest:
            fits = merged_chunks(axis.sizes, deepest)
            remedy = f"x.rechunk({{{number}: {fits if len(fits) <= 8 else max(fits)}}})"
            raise InvalidInput(
                f"chunks on axis {axis_name(number, len(axes))} are as thin as {min(axis.sizes)}"
                f" but depth is {deepest}; use {remedy}"
            )
