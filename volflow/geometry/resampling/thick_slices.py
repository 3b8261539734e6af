"""Slices so thick that nothing is interpolated between them."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["thick_axis"]

# Times as thick as the smallest side of a voxel: neighbours show other things.
THICK = 3


def thick_axis(*spacings: Sequence[float]) -> int | None:
    """Return the axis through thick slices, as nnU-Net finds it [1]_; None where there is none.

    Parameters
    ----------
    *spacings
        Of the volume, then that which is wanted, along the same axes. The first with thick slices
        decides; where two of its axes are equally long, neither is taken for that through slices.

    References
    ----------
    .. [1] nnU-Net v2, ``preprocessing/resampling/default_resampling.py``.

    Examples
    --------
    >>> thick_axis((1, 1, 1), (5, 1, 1)), thick_axis((3, 1, 1)), thick_axis((4, 1, 4), (5, 1, 1))
    (0, None, None)
    """
    for sides in spacings:
        longest = max(sides)
        if longest > THICK * min(sides):
            found = [axis for axis, side in enumerate(sides) if side == longest]
            return found[0] if len(found) == 1 else None
    return None
