"""NumPy's basic indexing, converted to boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi

__all__ = ["to_box"]


def to_box(key: Any, shape: Sequence[int]) -> tuple[Roi, tuple[int | slice, ...]]:
    """Return the box that an index selects from, and the index within that box.

    Parameters
    ----------
    key
        Integers, forward slices and ``...``, as in ``array[key]``.
    shape
        Voxels per axis of the array.

    Raises
    ------
    InvalidInput
        If the key holds anything else.
    IndexError
        If an integer is out of bounds, or there are more entries than axes.

    Examples
    --------
    >>> to_box((-1, slice(2, 8, 3)), (4, 9, 9))
    (Roi(start=(3, 2, 0), stop=(4, 8, 9)), (0, slice(None, None, 3), slice(None, None, 1)))
    """
    bounds: list[tuple[int, int]] = []
    inner: list[int | slice] = []
    for item, size in zip(_expand(key, len(shape)), shape, strict=True):
        if isinstance(item, slice):
            start, stop, step = item.indices(size)
            if step < 1:
                raise InvalidInput(f"slice steps must be positive, given {step}; flip the result")
            bounds.append((start, max(start, stop)))
            inner.append(slice(None, None, step))
        else:
            at = int(item) + (size if item < 0 else 0)
            if not 0 <= at < size:
                raise IndexError(f"index {item} is out of bounds for an axis of {size}")
            bounds.append((at, at + 1))
            inner.append(0)
    return Roi(tuple(a for a, _ in bounds), tuple(b for _, b in bounds)), tuple(inner)


def _expand(key: Any, ndim: int) -> tuple[Any, ...]:
    """Return one integer or slice per axis."""
    keys = key if isinstance(key, tuple) else (key,)
    if not all(item is Ellipsis or isinstance(item, slice | int | np.integer) for item in keys):
        raise InvalidInput(f"a volume is indexed with integers, slices and ..., given {key!r}")
    at = next((n for n, item in enumerate(keys) if item is Ellipsis), len(keys))
    before, after = keys[:at], keys[at + 1 :]
    missing = ndim - len(before) - len(after)
    if missing < 0 or any(item is Ellipsis for item in after):
        raise IndexError(f"the index {key!r} does not fit {ndim} axes")
    return (*before, *(slice(None),) * missing, *after)
