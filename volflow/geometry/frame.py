"""Frames: the axis order and directions in which a model expects its voxels.

Volumes are stored zyx. A network trained on arrays in (x, y, z) order pointing right, anterior
and superior has the frame ``"RAS"``. A `Frame` maps between the two; patch grids are laid out in
the frame, so that a flipped copy of a scan is cut in the same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi

__all__ = ["Frame"]

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}

T = TypeVar("T")


def _check(letters: str, what: str) -> str:
    letters = letters.upper()
    pairs = {frozenset((a, _OPPOSITE.get(a, ""))) for a in letters}
    if len(letters) != 3 or len(pairs) != 3 or not set(letters) <= set(_OPPOSITE):
        raise InvalidInput(
            f"{what} must be three letters, one of each pair R/L, A/P, S/I; got {letters!r}"
        )
    return letters


@dataclass(frozen=True)
class Frame:
    """Mapping from the axes of a model to the axes of the stored array.

    Parameters
    ----------
    axes
        For each frame axis, the stored axis along it.
    flips
        For each frame axis, whether its index runs against the stored one.

    Examples
    --------
    >>> frame = Frame.between("SAR", "RAS")      # a RAS NIfTI stored zyx, shown as the file had it
    >>> frame.axes, frame.flips
    ((2, 1, 0), (False, False, False))
    >>> Frame.between("SAL", "RAS").flips
    (True, False, False)
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def between(cls, stored: str | None, wanted: str | None) -> Frame:
        """Return the frame ``wanted`` over an array stored with orientation ``stored``.

        Raises
        ------
        InvalidInput
            If the letters are invalid, or the volume has no orientation but a frame is given.
        """
        if wanted is None:
            return cls()
        wanted = _check(wanted, "frame")
        if stored is None:
            raise InvalidInput(
                f"frame {wanted!r} needs a volume with orientation, and this one has none;"
                ' store it with one (vf.write(x, out, orientation="SAR")), or leave frame out'
            )
        stored = _check(stored, "orientation")
        axes, flips = [], []
        for letter in wanted:
            flip = letter not in stored
            axes.append(stored.index(_OPPOSITE[letter] if flip else letter))
            flips.append(flip)
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    def reorder(self, per_axis: Sequence[T]) -> tuple[T, ...]:
        """Return values given per stored axis in the order of frame axes."""
        return tuple(per_axis[a] for a in self.axes)

    def restore(self, per_axis: Sequence[T]) -> tuple[T, ...]:
        """Return values given per frame axis in the order of stored axes."""
        return tuple(per_axis[self.axes.index(a)] for a in range(3))

    def roi(self, stored: Roi, shape: Sequence[int]) -> Roi:
        """Return a box of the stored array of ``shape``, in frame coordinates."""
        bounds = []
        for axis, flip in zip(self.axes, self.flips, strict=True):
            low, high, n = stored.start[axis], stored.stop[axis], shape[axis]
            bounds.append((n - high, n - low) if flip else (low, high))
        return Roi(tuple(b[0] for b in bounds), tuple(b[1] for b in bounds))

    def stored_roi(self, roi: Roi, shape: Sequence[int]) -> Roi:
        """Return a box given in frame coordinates, in the stored array of ``shape``."""
        return self.inverse.roi(roi, self.reorder(shape))

    @property
    def inverse(self) -> Frame:
        """Return the inverse frame."""
        axes = tuple(self.axes.index(a) for a in range(3))
        return Frame(axes, self.restore(self.flips))  # type: ignore[arg-type]

    def show(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of ``(..., z, y, x)`` as stored, its last three axes in frame order."""
        lead = stored.ndim - 3
        shown = stored.transpose(*range(lead), *(lead + a for a in self.axes))
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return shown[..., z, y, x]

    def store(self, shown: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view of an array in frame order, its last three axes as stored."""
        return self.inverse.show(shown)
