"""A Dask array that knows how to make a box of itself from less than whole blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
from dask.array.slicing import normalize_index

from volflow.geometry.roi import Roi

__all__ = ["Sliced"]

# Returns the array of a box; None where blocks of the whole serve as well.
Part = Callable[[Roi], da.Array | None]


class Sliced(da.Array):
    """A Dask array whose small slices are arrays of their own.

    Parameters
    ----------
    array
        The whole, whose last three axes are those of the box.
    part
        What makes the array of a box.
    """

    def __new__(cls, array: Any, part: Part) -> Sliced:
        """Return the array, of either of Dask's kinds."""
        make: Any = super().__new__
        if hasattr(array, "expr"):  # which query planning plans
            made: Sliced = make(cls)
        else:
            made = make(cls, array.dask, array.name, array.chunks, meta=array._meta)
        return made

    def __init__(self, array: Any, part: Part) -> None:
        if hasattr(array, "expr"):
            da.Array.__init__(self, array.expr)  # type: ignore[call-arg]
        self.part = part

    def __getitem__(self, index: Any) -> da.Array:
        array, found = self.plain(), _boxed(index, self.shape)
        part = None if found is None else self.part(found[0])
        if found is not None and part is not None:
            array, index = part, found[1]
        result: da.Array = array[index]
        return result

    def __reduce__(self) -> Any:
        expr = getattr(self, "expr", None)
        return self.plain().__reduce__() if expr is None else (da.Array, (expr,))

    def plain(self) -> da.Array:
        """Return the same as any Dask array."""
        make: Any = da.Array
        expr = getattr(self, "expr", None)
        made: da.Array = (
            make(self.dask, self.name, self.chunks, meta=self._meta) if expr is None else make(expr)
        )
        return made


def _boxed(index: Any, shape: tuple[int, ...]) -> tuple[Roi, tuple[Any, ...]] | None:
    """Return the box along the last three axes that an index lies in, and the index within it.

    None for what is not made of whole numbers and slices forwards, or selects nothing.

    Examples
    --------
    >>> _boxed((0, slice(5, 9, 2), -1), (2, 10, 10, 10))
    (Roi(start=(5, 9, 0), stop=(8, 10, 10)), (0, slice(0, 3, 2), 0, slice(0, 10, 1)))
    """
    asked = index if isinstance(index, tuple) else (index,)
    if not all(_is_plain(one) for one in asked):
        return None
    given = normalize_index(asked, shape)
    sides, within = [], []
    for one, n in zip(given[-3:], shape[-3:], strict=True):
        chosen = range(n)[one] if isinstance(one, slice) else range(one, one + 1)
        if not chosen or chosen.step < 0:
            return None
        low, high = chosen[0], chosen[-1] + 1
        sides.append((low, high))
        within.append(slice(0, high - low, chosen.step) if isinstance(one, slice) else 0)
    starts, stops = zip(*sides, strict=True)
    return Roi(starts, stops), (*given[:-3], *within)


def _is_plain(one: Any) -> bool:
    whole = isinstance(one, int | np.integer) and not isinstance(one, bool)
    return whole or one is Ellipsis or isinstance(one, slice)
