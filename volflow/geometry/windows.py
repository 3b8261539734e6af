"""Blending windows: the weight of each voxel of a patch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput

__all__ = ["SIGMA_SCALE", "Blend", "check_blend", "weights", "window"]

Blend = Literal["crop", "average", "gaussian", "hann"]

GAUSSIAN_FLOOR = 1e-3
SIGMA_SCALE = 0.125  # sigma of the gaussian, in sides of the patch


def check_blend(blend: str) -> Blend:
    """Return the name of a blend; raise InvalidInput if it is unknown."""
    if blend not in get_args(Blend):
        raise InvalidInput(f"unknown blend {blend!r}; use one of {', '.join(get_args(Blend))}")
    return blend  # type: ignore[return-value]


def window(blend: Blend, p: int, sigma_scale: float = SIGMA_SCALE) -> npt.NDArray[np.float64]:
    """Return the weights of a patch along one axis, float64 of shape ``(p,)``.

    Parameters
    ----------
    blend
        ``average`` and ``crop`` are 1 (`PatchGrid.owned` decides what is kept); ``hann`` is
        ½(1 − cos(2π(n+1)/(p+1))), strictly positive, as TorchIO's aggregator; ``gaussian`` is
        exp(−½((n − (p−1)/2)/(p·sigma_scale))²), as MONAI's importance map.
    p, sigma_scale
        Voxels along the axis, and what part of them the gaussian's sigma is.

    Examples
    --------
    >>> window("hann", 3).round(3).tolist()
    [0.5, 1.0, 0.5]
    """
    n = np.arange(p)
    if blend == "hann":
        return np.asarray(0.5 * (1 - np.cos(2 * np.pi * (n + 1) / (p + 1))))
    if blend == "gaussian":
        return np.asarray(np.exp(-0.5 * ((n - (p - 1) / 2) / (p * sigma_scale)) ** 2))
    return np.ones(p)


def weights(
    blend: Blend, patch: Sequence[int], sigma_scale: float = SIGMA_SCALE
) -> npt.NDArray[np.float32]:
    """Return a patch's weights, float32: the product of the axes' windows, gaussian ≥ 1e-3.

    Examples
    --------
    >>> weights("average", (2, 2, 2)).sum()
    np.float32(8.0)
    >>> float(weights("gaussian", (8, 8, 8)).min())
    0.0010000000474974513
    """
    z, y, x = (window(blend, p, sigma_scale) for p in patch)
    product = z[:, None, None] * y[None, :, None] * x[None, None, :]
    if blend == "gaussian":
        product = np.maximum(product, GAUSSIAN_FLOOR)
    return product.astype(np.float32)
