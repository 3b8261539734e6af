"""What a network is shown where a patch reaches outside of the volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi

__all__ = ["ZEROS", "Padding"]

WORDS = ("edge", "reflect")

# An array ``czyx``, or a tensor.
Voxels = Any
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Padding:
    """The values outside of a volume, as if the whole of it were padded by `numpy.pad`.

    Parameters
    ----------
    given
        A number, in values as the network sees them; ``"edge"``: the nearest voxel; ``"reflect"``:
        mirrored at the middle of the outermost voxel, again and again where need be.

    Raises
    ------
    InvalidInput
        If it is none of these.

    Examples
    --------
    >>> box, shape = Roi((0, 0, -3), (1, 1, 4)), (1, 1, 3)
    >>> Padding("reflect").source(box, shape)
    Roi(start=(0, 0, 0), stop=(1, 1, 3))
    >>> line, out = np.array([[[[5, 6, 7]]]]), np.empty((1, 1, 1, 7), int)
    >>> Padding("reflect").put(line, Roi((0, 0, 0), shape), out, box, shape)
    >>> out.tolist()
    [[[[6, 7, 6, 5, 6, 7, 6]]]]
    """

    given: float | str = 0.0

    def __post_init__(self) -> None:
        given: Any = self.given
        if isinstance(given, str) and given in WORDS:
            return
        number = isinstance(given, int | float | np.number) and not isinstance(given, bool)
        if not number or not math.isfinite(given):
            raise InvalidInput(
                f'padding must be a finite number, "edge" or "reflect"; got {given!r}'
            )
        object.__setattr__(self, "given", float(given))

    def range(self, low: int, high: int, n: int) -> tuple[int, int]:
        """Return the voxels of an axis of ``n`` that are needed to show ``[low, high)``."""
        if low >= 0 and high <= n:
            return low, high
        shown = self._shown(low, high, n)
        shown = shown[shown >= 0]
        return (int(shown.min()), int(shown.max()) + 1) if len(shown) else (0, 0)

    def source(self, box: Roi, shape: Sequence[int]) -> Roi:
        """Return the box inside a volume of ``shape`` of which the voxels of ``box`` are made."""
        axes = [self.range(*side, n) for side, n in zip(box, shape, strict=True)]
        return Roi(*zip(*axes, strict=True))

    @property
    def number(self) -> float | None:
        """The number outside of the volume; None where voxels of the volume are shown there."""
        return None if isinstance(self.given, str) else self.given

    def put(self, voxels: Voxels, part: Roi, out: Voxels, box: Roi, shape: Sequence[int]) -> None:
        """Put voxels of a part of the volume wherever a box shows them.

        Parameters
        ----------
        voxels, part
            ``(C, *part.shape)``, and where they lie: some rows, or all, of the `source` of ``box``.
        out, box
            ``(C, *box.shape)``, and where it lies; it may reach outside of the volume.
        shape
            Of the volume.
        """
        places: list[Any] = [slice(None)]
        for axis, ((low, high), (first, stop), n) in enumerate(
            zip(part, box, shape, strict=True), 1
        ):
            shown = self._shown(first, stop, n)
            here = np.flatnonzero((shown >= low) & (shown < high))
            picked = shown[here] - low
            if not np.array_equal(picked, np.arange(high - low)):
                voxels = voxels[(*[slice(None)] * axis, picked)]
            where = slice(int(here[0]), int(here[-1]) + 1) if len(here) else slice(0, 0)
            places.append(where if where.stop - where.start == len(here) else here)
        out[tuple(places)] = voxels

    def _shown(self, low: int, high: int, n: int) -> Ints:
        """Return the voxel of an axis of ``n`` that each place of a range shows; -1 for none."""
        places = np.arange(low, high, dtype=np.int64)
        if self.given == "edge":
            return np.clip(places, 0, n - 1)
        if self.given == "reflect":
            away = np.abs(places) % max(1, 2 * (n - 1))
            return cast(Ints, np.minimum(away, 2 * (n - 1) - away))
        return np.where((places >= 0) & (places < n), places, -1)


ZEROS = Padding()
