"""Which regions of a volume are looked at: as large as memory allows, where most is to be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.volumes.framed import FramedImage

__all__ = ["busy_regions", "fitting_sides"]

SIDES = (256, 192, 160, 128, 96, 64, 48, 32, 16)
CANDIDATES = 32  # regions whose structure is looked at
PLANES = 3  # of each


def fitting_sides(
    shape: Sequence[int],
    most: Sequence[int],
    needed: Callable[[tuple[int, ...]], int],
    memory_bytes: int,
) -> tuple[int, ...]:
    """The sides of the largest region that memory allows.

    Parameters
    ----------
    shape
        Of the volume.
    most
        Sides that are large enough.
    needed
        What a region of some sides takes.
    memory_bytes
        What there is.

    Raises
    ------
    MemoryRefused
        Where not even a small region fits.

    Examples
    --------
    >>> fitting_sides((20, 300, 300), (160, 160, 160), lambda sides: 100 * sides[2], 13_000)
    (20, 128, 128)
    """
    whole = tuple(min(n, m) for n, m in zip(shape, most, strict=True))
    sides = whole
    for side in (max(whole), *(s for s in SIDES if s < max(whole))):
        sides = tuple(min(n, side) for n in whole)
        if needed(sides) <= memory_bytes:
            return sides
    raise MemoryRefused(
        f"a region of {'×'.join(map(str, sides))} voxels run whole takes"
        f" {format_bytes(needed(sides))}, and memory leaves {format_bytes(max(0, memory_bytes))};"
        " give more memory"
    )


def busy_regions(
    inputs: FramedImage, dtype: str, sides: Sequence[int], count: int, seed: int
) -> list[Roi]:
    """Boxes with the most structure, in frame coordinates; fewer where they would be the same.

    Structure is the mean step from voxel to voxel in a few planes. Of many boxes some are drawn.

    Parameters
    ----------
    inputs, dtype
        What is read, and as what.
    sides
        Of the boxes.
    count
        How many are wanted.
    seed
        Of the draw.
    """
    boxes = list(PatchGrid(inputs.shape, tuple(sides), tuple(sides)))
    if len(boxes) > CANDIDATES:
        drawn = np.random.default_rng(seed).choice(len(boxes), CANDIDATES, replace=False)
        boxes = [boxes[n] for n in sorted(drawn.tolist())]
    if len(boxes) > 1:
        structure = [_structure(inputs, dtype, box) for box in boxes]
        boxes = [boxes[n] for n in np.argsort(structure, kind="stable")[::-1]]
    chosen: list[Roi] = []
    for box in boxes:
        if len(chosen) < count and all(2 * box.intersect(c).size <= box.size for c in chosen):
            chosen.append(box)
    return chosen


def _structure(inputs: FramedImage, dtype: str, box: Roi) -> float:
    """Mean absolute step between neighbours in a few planes of a box."""
    steps = []
    for n in range(PLANES):
        at = box.start[0] + (2 * n + 1) * box.shape[0] // (2 * PLANES)
        plane = Roi((at, *box.start[1:]), (at + 1, *box.stop[1:]))
        image = inputs.read(plane, dtype)
        steps += [np.abs(np.diff(image, axis=axis)).ravel() for axis in (-1, -2)]
    together = np.concatenate(steps)
    return float(together.mean()) if together.size else 0.0
