"""Move a patch: each voxel of the result comes from one place, by at most one resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from volflow.sampling.augment.separable import along_axes, as_tensor, spline

__all__ = ["Motion", "Outside", "affine", "move", "signed_turn", "sources"]

Array = npt.NDArray[np.float64]
Outside = Literal["zeros", "edge"]

# Classes are moved as bits of their size: torch gathers few of the unsigned types.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Motion:
    """The place that each voxel comes from: matrix · (voxel + displacement − shift), centred.

    Parameters
    ----------
    turn
        ``(3, 3)``: a signed permutation of the axes, from the moved patch to the given one.
    matrix
        ``(3, 3)``, in voxels from the centre; it includes the turn. None where nothing is done
        beyond the turn: then voxels change place, not value.
    shift
        In voxels.
    displacement
        Displacements of control points in voxels, ``(3, z, y, x)``, or None.
    step
        Voxels between control points, per axis.
    """

    turn: npt.NDArray[np.int64]
    matrix: Array | None = None
    shift: Array = field(default_factory=lambda: np.zeros(3))
    displacement: Array | None = None
    step: Sequence[float] = ()


def signed_turn(quarters: npt.ArrayLike, flips: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return quarter turns about z, y and x, then flips of these axes, as a signed permutation.

    Examples
    --------
    >>> signed_turn((1, 0, 0), (True, False, False)).tolist()
    [[-1, 0, 0], [0, 0, -1], [0, 1, 0]]
    """
    matrix = np.diag(np.where(flips, -1, 1))
    for axis, count in enumerate(np.asarray(quarters)):
        quarter = _rotation(axis, 0, 1).astype(int)
        matrix = matrix @ np.linalg.matrix_power(quarter, int(count))
    return matrix


def affine(angles: npt.ArrayLike, factors: npt.ArrayLike, shears: npt.ArrayLike) -> Array:
    """Return the matrix ``(3, 3)`` of scaling, then shear, then rotation, in world units.

    It takes a point, counted from the centre in order z, y, x, to where it goes.

    Parameters
    ----------
    angles
        Radians about z, y and x; the turn about x is the first.
    factors
        Along z, y and x; above 1 things grow.
    shears
        In the planes across z, y and x: shift along the plane's first axis per length along its
        second.

    Examples
    --------
    >>> (affine((np.pi / 2, 0, 0), (1, 1, 2), (0, 0, 0)) @ (0, 0, 1)).round(9).tolist()
    [0.0, -2.0, 0.0]
    """
    matrix = np.eye(3)
    sheared = np.eye(3)
    sheared[[1, 0, 0], [2, 2, 1]] = shears
    for axis, angle in enumerate(np.asarray(angles, float)):
        matrix = matrix @ _rotation(axis, np.cos(angle), np.sin(angle))
    return matrix @ sheared @ np.diag(np.asarray(factors, float))


def _rotation(axis: int, cosine: float, sine: float) -> Array:
    """Return the matrix of a rotation about an axis, in the plane of the two others."""
    matrix = np.eye(3)
    i, j = (other for other in range(3) if other != axis)
    matrix[np.ix_((i, j), (i, j))] = [[cosine, -sine], [sine, cosine]]
    return matrix


def sources(
    motion: Motion, patch: Sequence[int], device: torch.device, dtype: torch.dtype
) -> torch.Tensor | None:
    """Return the place that each voxel comes from: ``(3, z, y, x)``, x first, from −1 to 1.

    As `torch.nn.functional.grid_sample` takes them with ``align_corners=False``: −1 and 1 are the
    outer faces of the outer voxels, which holds on an axis of one voxel too; such an axis is never
    left. None if there is nothing to interpolate.
    """
    if motion.matrix is None:
        return None
    sides = np.array(patch)
    scale = np.where(sides == 1, 0, 2 / sides)[:, None] * motion.matrix

    def placed(values: Array) -> torch.Tensor:
        return as_tensor(values[::-1].copy(), dtype, device)

    z, y, x = (
        placed(column[:, None] * (np.arange(n) - (n - 1) / 2 - shift))
        for column, n, shift in zip(scale.T, patch, motion.shift, strict=True)
    )
    grid = z[:, :, None, None] + (y[:, :, None] + x[:, None, :])[:, None]
    if motion.displacement is not None:
        bent = placed(np.einsum("ij,jzyx->izyx", scale, motion.displacement))
        grid += along_axes(bent, [spline(n, s) for n, s in zip(patch, motion.step, strict=True)])
    return grid


def move(
    values: torch.Tensor, motion: Motion, grid: torch.Tensor | None, outside: Outside
) -> torch.Tensor:
    """Move one array of a patch.

    Parameters
    ----------
    values
        ``(C, z, y, x)``. Floating values are interpolated linearly, in their own dtype; others are
        classes: each voxel takes the nearest.
    motion
        The place that each voxel comes from.
    grid
        The same, from `sources`; None where the motion is only a turn.
    outside
        The values outside the patch: zeros, or its outermost voxels.

    Returns
    -------
    torch.Tensor
        A tensor of the same shape and dtype, maybe a view of the given one.
    """
    if grid is None:
        order = np.abs(motion.turn).argmax(axis=0)
        turned = values.permute(0, *(1 + int(axis) for axis in order))
        flipped = [1 + i for i in range(3) if motion.turn[order[i], i] < 0]
        return turned.flip(flipped) if flipped else turned
    if values.is_floating_point():
        return _linear(values, grid.to(values.dtype), outside)
    return _nearest(values, grid, outside)


def _linear(values: torch.Tensor, grid: torch.Tensor, outside: Outside) -> torch.Tensor:
    # Each plane of the result counts as a sample: on a CPU, threads take whole samples.
    planes = grid.permute(1, 2, 3, 0).unsqueeze(1)
    moved: torch.Tensor = functional.grid_sample(
        values.expand(len(planes), *values.shape),
        planes,
        mode="bilinear",
        padding_mode="border" if outside == "edge" else "zeros",
        align_corners=False,
    )
    return moved.squeeze(2).transpose(0, 1)


def _nearest(values: torch.Tensor, grid: torch.Tensor, outside: Outside) -> torch.Tensor:
    place = torch.zeros(grid.shape[1:], dtype=torch.int64, device=grid.device)
    inside = torch.ones(grid.shape[1:], dtype=torch.bool, device=grid.device)
    for coordinate, side in zip(grid.flip(0), values.shape[1:], strict=True):
        voxel = ((coordinate + 1) * (side / 2) - 0.5).round_()
        near = voxel.clamp(0, side - 1)
        inside &= near == voxel
        place = place.mul_(side).add_(near.to(torch.int64))
    bits = values.contiguous().view(_BITS[values.element_size()])
    moved = bits.flatten(1)[:, place.flatten()].view(bits.shape)
    if outside == "zeros":
        moved *= inside
    return moved.view(values.dtype)
