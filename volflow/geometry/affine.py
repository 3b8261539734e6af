"""Affines: where voxels lie in the body, from what files of any format say of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

__all__ = ["affine_between", "from_lps", "orientation_of", "spacing_of"]

Matrix = np.ndarray[Any, np.dtype[Any]]
_LETTERS = ("LR", "PA", "IS")  # towards smaller and larger x, y, z of the world


def orientation_of(affine: Sequence[Sequence[float]] | Matrix) -> str:
    """Return the direction in which the index grows along z, y, x.

    Of an oblique volume the closest directions: those with which its axes enclose the smallest
    angles, taken together.

    Parameters
    ----------
    affine
        4 x 4, voxel (x, y, z) to world (right, anterior, superior).

    Examples
    --------
    >>> orientation_of(np.diag([-1, 2, 3, 1]))
    'SAL'
    """
    steps = np.asarray(affine, dtype=float)[:3, :3]
    # The rotation that is closest to the axes, which shear does not tilt towards one of them.
    left, _, right = np.linalg.svd(steps / np.linalg.norm(steps, axis=0))
    turn = left @ right
    world = max(permutations(range(3)), key=lambda rows: sum(abs(turn[rows, range(3)])))
    letters = [_LETTERS[row][int(turn[row, axis] > 0)] for axis, row in enumerate(world)]
    return "".join(reversed(letters))


def spacing_of(affine: Sequence[Sequence[float]] | Matrix) -> tuple[float, float, float]:
    """Return the voxel size along z, y, x.

    Examples
    --------
    >>> spacing_of(np.diag([-1, 2, 3, 1]))
    (3.0, 2.0, 1.0)
    """
    x, y, z = (math.hypot(*column) for column in np.asarray(affine, float)[:3, :3].T.tolist())
    return z, y, x


def from_lps(steps: Any, origin: Any) -> Matrix:
    """Return the affine of a grid given in the coordinates of DICOM and ITK.

    Parameters
    ----------
    steps
        3 x 3: row by row the vectors from a voxel to the next along x, y and z of the array, in
        left, posterior, superior.
    origin
        Centre of the first voxel, in the same coordinates.

    Examples
    --------
    >>> from_lps(np.diag([1, 2, 3]), (10, 20, 30)).tolist()[1]
    [0.0, -2.0, 0.0, -20.0]
    """
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(steps, dtype=float).T
    affine[:3, 3] = origin
    affine[:2] *= -1
    return affine + 0.0  # no negative zeros


def affine_between(
    spacing: Sequence[float], orientation: str, translation: Sequence[float]
) -> Matrix:
    """Return the affine of a grid whose axes are those of the body.

    Parameters
    ----------
    spacing, translation
        Voxel size and centre of the first voxel along z, y, x of the array.
    orientation
        The direction in which the index grows along z, y, x.

    Examples
    --------
    >>> affine_between((3, 2, 1), "SAL", (30, 20, 10)).tolist()[0]
    [-1.0, 0.0, 0.0, -10.0]
    """
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, letter in enumerate(reversed(orientation)):
        row = next(n for n, pair in enumerate(_LETTERS) if letter in pair)
        sign = 1 if letter in "RAS" else -1
        affine[row, column] = sign * spacing[2 - column]
        affine[row, 3] = sign * translation[2 - column]
    return affine
