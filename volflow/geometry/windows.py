"""Blending windows: the weight of each voxel of a patch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput

__all__ = [
    "SIGMA_SCALE",
    "Blend",
    "WeightMap",
    "check_blend",
    "refuse_coarser",
    "weight_map",
    "weights",
    "window",
]

Blend = Literal["crop", "average", "gaussian", "hann"]

GAUSSIAN_FLOOR = 1e-3
SIGMA_SCALE = 0.125  # sigma of the gaussian, in sides of the patch


@dataclass(frozen=True, eq=False)
class WeightMap:
    """One's own weights of the voxels of a patch, as MONAI's ``roi_weight_map``.

    Two of the same values are equal, and one is written as the hash of its values.

    Parameters
    ----------
    values
        float32, ``zyx``, finite and above 0; an axis of one voxel stands for the whole side.
    """

    values: npt.NDArray[np.float32]

    @cached_property
    def digest(self) -> str:
        """A hash of shape and values."""
        little = np.ascontiguousarray(self.values, "<f4")
        return hashlib.sha256(f"{little.shape} ".encode() + little.tobytes()).hexdigest()

    def fitted(self, patch: Sequence[int]) -> WeightMap:
        """Return the weights of all voxels of a patch; refuses those of another one."""
        sides = tuple(int(p) for p in patch)
        if any(n not in (1, p) for n, p in zip(self.values.shape, sides, strict=True)):
            raise InvalidInput(
                f"blend is a weight map of shape {self.values.shape}, and the patch is {sides};"
                " give one weight for each voxel of the patch, zyx (1 on an axis: the same along"
                " it)"
            )
        return replace(self, values=np.broadcast_to(self.values, sides).copy())

    def exchanged(self) -> WeightMap:
        """Return the weights of a patch whose first two axes are exchanged."""
        return replace(self, values=np.ascontiguousarray(self.values.swapaxes(0, 1)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightMap) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"weights {self.digest[:16]}"


def weight_map(given: Any) -> WeightMap:
    """Return the weight map of an array, or of a file of one.

    Parameters
    ----------
    given
        Numbers of up to three axes, broadcast as NumPy does; or the path of a ``.npy`` file.

    Raises
    ------
    InvalidInput
        Where it cannot be read, is no array of numbers, or a weight is not above 0 and finite.

    Examples
    --------
    >>> weight_map([1, 2, 1]).fitted((1, 2, 3)).values.tolist()
    [[[1.0, 2.0, 1.0], [1.0, 2.0, 1.0]]]
    >>> weight_map([1, 0])
    Traceback (most recent call last):
    volflow.errors.InvalidInput: blend is a weight map with a weight of 0.0; each must be finite and
    above 0 as float32
    """
    values = _loaded(given) if isinstance(given, str | os.PathLike) else _as_array(given)
    if values.dtype.kind not in "iuf" or not values.size or values.ndim > 3:
        raise InvalidInput(
            f"blend is an array of shape {values.shape}, {values.dtype}; a weight map holds a"
            " number for each voxel of the patch, zyx"
        )
    with np.errstate(over="ignore"):  # what does not fit is refused
        single = values.astype(np.float32)
    wrong = values[~(np.isfinite(single) & (single >= np.finfo(np.float32).tiny))]
    if wrong.size:
        raise InvalidInput(
            f"blend is a weight map with a weight of {float(wrong[0])}; each must be finite and"
            " above 0 as float32"
        )
    return WeightMap(single.reshape((1,) * (3 - single.ndim) + single.shape))


def _as_array(given: Any) -> npt.NDArray[Any]:
    try:
        return np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"blend must be a name, such as gaussian, or an array of weights, zyx: {error}"
        ) from error


def _loaded(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    if Path(path).suffix != ".npy":
        raise InvalidInput(
            f"blend {os.fspath(path)} is no .npy file; save the weights by numpy.save"
        )
    try:
        found = np.load(Path(path).expanduser(), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"the weight map {os.fspath(path)} cannot be read: {text}") from error
    return np.asarray(found)


def refuse_coarser(blend: Blend | WeightMap, scale: Sequence[int]) -> None:
    """Refuse a weight map, which is of the patch's voxels, for outputs of larger ones.

    Raises
    ------
    InvalidInput
        Where ``scale``, voxels of the patch for one of the outputs per axis, is not 1.
    """
    if isinstance(blend, WeightMap) and max(scale) > 1:
        raise InvalidInput(
            "blend is a weight map of the patch's voxels, and the model's outputs are coarser by"
            f" {tuple(scale)}; use crop, average, gaussian or hann"
        )


def check_blend(blend: object) -> Blend:
    """Return the name of a blend; raise InvalidInput if it is unknown."""
    if not isinstance(blend, str) or blend not in get_args(Blend):
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
    blend: Blend | WeightMap, patch: Sequence[int], sigma_scale: float = SIGMA_SCALE
) -> npt.NDArray[np.float32]:
    """Return a patch's weights, float32: the product of the axes' windows, gaussian ≥ 1e-3.

    Those of a weight map are its own.

    Examples
    --------
    >>> weights("average", (2, 2, 2)).sum()
    np.float32(8.0)
    >>> float(weights("gaussian", (8, 8, 8)).min())
    0.0010000000474974513
    """
    if isinstance(blend, WeightMap):
        return blend.fitted(patch).values
    z, y, x = (window(blend, p, sigma_scale) for p in patch)
    product = z[:, None, None] * y[None, :, None] * x[None, None, :]
    if blend == "gaussian":
        product = np.maximum(product, GAUSSIAN_FLOOR)
    return product.astype(np.float32)
