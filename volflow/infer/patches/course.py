"""The axis along which a run of blocks goes through its tile: the first that has several patches.

Sums are taken in the lexicographic order of the grid. Where the frame's first axis has one patch
only, as in a plane, that is also the order along the second axis, and a run that goes along it
carries its seam where the volume is long. The network sees its patches as ever: they are turned
where they are read and where their scores are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from volflow.geometry.frame import Frame
from volflow.geometry.grid import PatchGrid
from volflow.volumes.framed import FramedImage

__all__ = ["exchanged", "exchanged_grid", "exchanged_image", "goes_along_second"]

T = TypeVar("T")


def goes_along_second(grid: PatchGrid) -> bool:
    """Return whether runs go along the second axis of the frame.

    Examples
    --------
    >>> goes_along_second(PatchGrid((1, 90, 90), (1, 30, 30), (1, 20, 20)))
    True
    >>> goes_along_second(PatchGrid((40, 90, 90), (30, 30, 30), (20, 20, 20)))
    False
    """
    return grid.counts[0] == 1 < grid.counts[1]


def exchanged(per_axis: Sequence[T]) -> tuple[T, T, T]:
    """Return values per frame axis with those of the first two axes exchanged."""
    first, second, third = per_axis
    return second, first, third


def exchanged_grid(grid: PatchGrid) -> PatchGrid:
    """Return the same patches, the first two axes exchanged."""
    return PatchGrid(
        exchanged(grid.shape),
        exchanged(grid.patch),
        exchanged(grid.stride),
        exchanged(grid.pad_tail),
        exchanged(grid.padding),
    )


def exchanged_image(image: FramedImage) -> FramedImage:
    """Return the same image, the first two axes of its frame exchanged."""
    frame = Frame(exchanged(image.frame.axes), exchanged(image.frame.flips))
    return replace(image, frame=frame)
