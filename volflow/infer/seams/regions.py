"""Regions of a volume to measure: as large as memory allows, with the most structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from volflow.errors import MemoryRefused, NoExactRule
from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.infer.exact.window import seen_axes
from volflow.infer.request import Request
from volflow.model.resident import lent
from volflow.model.trial import probe
from volflow.partition.reach import Halo, halo_of
from volflow.volumes.framed import FramedImage

__all__ = ["busy_regions", "fitting_sides", "memory_of"]

SIDES = (256, 192, 160, 128, 96, 64, 48, 32, 16)
CANDIDATES = 32  # regions whose structure is measured
PLANES = 3  # of each
# Beside tensors alive: copies that fast convolutions make of them.
WORKSPACE = 1.5


def memory_of(
    request: Request, runs: int
) -> tuple[Callable[[tuple[int, ...]], int], Halo | None, str]:
    """Return the bytes that a region takes by its sides, and the network's halo or why it has none.

    Parameters
    ----------
    request
        The volume and the network.
    runs
        Results whose differences are held.
    """
    module, channels = request.model.module, request.inputs.channels
    forward = request.forward("cpu", "float32")
    itemsize, patch = (8 if forward.dtype == "float64" else 4), request.options.sides
    halo, why, per_voxel = None, "", 0.0

    def halo_at(sides: Sequence[int]) -> Halo:
        return halo_of(module, channels, [sides[axis] for axis in seen_axes(request)])

    try:
        halo = halo_at(patch)
        depth = sum(halo.graph.nodes[n].depth for n in halo.graph.ends)
    except NoExactRule as error:
        why = str(error)
        with lent(request.plugin):
            tried = probe(forward, 1, 2**62, torch.get_num_threads())
        depth = sum(output.channels for output in tried.outputs)
        # Of a small patch nothing may be seen.
        least = itemsize * (channels + 2 * depth) * math.prod(patch)
        per_voxel = max(tried.peak_bytes, least) / math.prod(patch)
    # The image, the scores, those that they are compared with, and the differences.
    values = channels + 2 * depth + runs

    def needed(sides: tuple[int, ...]) -> int:
        at_once = per_voxel * math.prod(sides[axis] for axis in seen_axes(request))
        if halo is not None:
            at_once = halo_at(sides).activation_bytes(max(sides))
        return int(WORKSPACE * at_once + itemsize * values * math.prod(sides))

    return needed, halo, why


def fitting_sides(
    shape: Sequence[int],
    most: Sequence[int],
    needed: Callable[[tuple[int, ...]], int],
    memory_bytes: int,
) -> tuple[int, ...]:
    """Return the sides of the largest region that memory allows.

    Parameters
    ----------
    shape, most
        Sides of the volume, and sides that are large enough.
    needed
        Bytes that a region of some sides takes.
    memory_bytes
        Bytes that there are.

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
    """Return the boxes with the most structure; fewer where they would be the same.

    Structure is the mean step from voxel to voxel in a few planes. Of many boxes some are drawn.

    Parameters
    ----------
    inputs, dtype
        The image, and the dtype in which it is read.
    sides, count
        Sides of the boxes, and how many are wanted.
    seed
        Of the draw.

    Returns
    -------
    list of Roi
        In frame coordinates.
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
    """Return the mean absolute step between neighbours in a few planes of a box."""
    steps = []
    for n in range(PLANES):
        at = box.start[0] + (2 * n + 1) * box.shape[0] // (2 * PLANES)
        image = inputs.read(Roi((at, *box.start[1:]), (at + 1, *box.stop[1:])), dtype)
        steps += [np.abs(np.diff(image, axis=axis)).ravel() for axis in (-1, -2)]
    together = np.concatenate(steps)
    return float(together.mean()) if together.size else 0.0
