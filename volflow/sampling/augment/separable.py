"""Matrices along each axis: splines over a coarse grid of control points, and Gaussian blur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["along_axes", "as_tensor", "gaussian", "points", "spline"]

Matrix = npt.NDArray[np.float64]


def as_tensor(array: npt.NDArray[Any], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Copy an array to a device, whose work is not waited for."""
    # A copy by torch lies aligned: what the last bits of a product may depend on.
    copied = torch.tensor(array, dtype=dtype)
    if device.type == "cuda":  # which waits for memory that is not pinned
        copied = copied.pin_memory()
    return copied.to(device, non_blocking=True)


def along_axes(values: torch.Tensor, matrices: Sequence[Matrix]) -> torch.Tensor:
    """Multiply by a matrix along each spatial axis.

    Parameters
    ----------
    values
        ``(C, z, y, x)``, floating.
    matrices
        For z, y and x, of shape ``(new side, side)``, or ``(C, new side, side)`` where channels
        differ; brought to the dtype and device of the values.

    Examples
    --------
    >>> double = np.array([[1.0], [1.0]])
    >>> along_axes(torch.ones(1, 1, 1, 3), (double, double, np.full((1, 3), 2.0))).shape
    torch.Size([1, 2, 2, 1])
    """
    z, y, x = (as_tensor(m, values.dtype, values.device).view(-1, *m.shape[-2:]) for m in matrices)
    channels, depth, height, _ = values.shape
    values = (values.flatten(1, 2) @ x.mT).view(channels, depth, height, -1)
    values = y.unsqueeze(1) @ values
    return (z @ values.flatten(2)).view(channels, -1, *values.shape[2:])


def points(side: int, step: float) -> int:
    """Return the number of control points that a spline over ``side`` voxels needs.

    Examples
    --------
    >>> points(9, 4.0), points(10, 4.0)
    (5, 6)
    """
    return math.ceil((side - 1) / step) + 3


def spline(side: int, step: float) -> Matrix:
    """Return the weights ``(side, points)`` of the uniform cubic B-spline.

    Control point ``k`` lies at voxel ``(k − 1) · step``. The weights of a voxel are at least 0
    and add up to 1, so values stay between those of the control points; values that are linear
    in the control points' places are linear in the voxels.

    Examples
    --------
    >>> weights = spline(9, 4.0)
    >>> weights.shape, (weights @ (np.arange(5) - 1) * 4.0).round(9).tolist()
    ((9, 5), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    """
    t = np.abs(np.arange(side)[:, None] / step - (np.arange(points(side, step)) - 1))
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)


def gaussian(side: int, sigma: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return the weights ``(…, side, side)`` of Gaussian blur; what lies outside does not count.

    Parameters
    ----------
    side
        Voxels along the axis.
    sigma
        In voxels, of any shape: a matrix for each; 0 leaves the values as they are.

    Examples
    --------
    >>> gaussian(3, 1.0)[1].round(3).tolist()
    [0.274, 0.452, 0.274]
    """
    narrow = np.maximum(np.asarray(sigma, float), 1e-3)[..., None, None]
    distance = np.subtract.outer(np.arange(side), np.arange(side)) / narrow
    # Beyond nine sigmas a weight is below the rounding of the sum; denormals would cost much time.
    weights = np.where(np.abs(distance) < 9, np.exp(-0.5 * distance**2), 0)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
