"""What an augmentation may be asked for, and of which batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from volflow.errors import InvalidInput
from volflow.sampling.augment.warp import Outside

__all__ = [
    "amount",
    "check_elastic",
    "check_images",
    "check_outside",
    "check_turn",
    "keys_of",
    "probabilities",
    "shared_patch",
]

Amount = float | tuple[float, ...]

# What each is and the largest that makes sense; others need only be finite.
_LIMITS = {
    "flip": ("a probability from 0 to 1", 1.0),
    "turn": ("a probability from 0 to 1", 1.0),
    "probability": ("from 0 to 1", 1.0),
    "rotate": ("degrees from 0 to 180", 180.0),
    "scale": ("a fraction from 0 to 0.9", 0.9),
    "shear": ("a slope from 0 to 1", 1.0),
    "contrast": ("a fraction from 0 to 1", 1.0),
    "gamma": ("the logarithm of a power, from 0 to 3", 3.0),
    "bias": ("the logarithm of a factor, from 0 to 3", 3.0),
    "spacing": ("a voxel size above 0", np.finfo(np.float32).max),
    "elastic_spacing": ("voxels, at least 2", np.finfo(np.float32).max),
}
_OTHERS = ("a finite number from 0", np.finfo(np.float32).max)
_LEAST = {"spacing": np.finfo(np.float32).tiny, "elastic_spacing": 2.0}
_ONE_NUMBER = ("gamma", "contrast", "brightness", "bias", "noise", "probability")

# Control points of a cubic B-spline that move by less than this share of their distance cannot
# fold a volume: Choi and Lee, Injectivity conditions of 2D and 3D uniform cubic B-spline
# functions, Graphical Models 62 (2000).
_NO_FOLD = 1 / 2.479472335


def amount(name: str, given: Any) -> Amount:
    """A number, or where an axis is meant maybe three, within the limits of what is named.

    Raises
    ------
    InvalidInput
        Naming what is expected.

    Examples
    --------
    >>> amount("rotate", [10, 0, 0]), amount("noise", None)
    ((10.0, 0.0, 0.0), 0.0)
    """
    meaning, most = _LIMITS.get(name, _OTHERS)
    shapes = [()] if name in _ONE_NUMBER else [(), (3,)]
    try:
        amounts = np.asarray(0 if given is None else given, float)
    except (TypeError, ValueError):
        amounts = np.array(np.nan)
    within = (amounts >= _LEAST.get(name, 0)) & (amounts <= most)
    if amounts.shape not in shapes or not within.all():
        three = "" if name in _ONE_NUMBER else "; one number or three (z, y, x)"
        raise InvalidInput(f"{name} must be {meaning}{three}, got {given!r}")
    return tuple(amounts.tolist()) if amounts.ndim else float(amounts)


def probabilities(given: Any, families: Collection[str]) -> float | dict[str, float]:
    """One probability, or one for each family named.

    Examples
    --------
    >>> probabilities({"blur": 0.2}, ["blur", "noise"])
    {'blur': 0.2}
    """
    if not isinstance(given, Mapping):
        return float(np.asarray(amount("probability", given)))
    for name in given:
        if name not in families:
            raise InvalidInput(f"probability names {name!r}; it may name {', '.join(families)}")
    return {name: float(np.asarray(amount("probability", p))) for name, p in given.items()}


def check_outside(outside: str) -> None:
    """Refuse an unknown rule for what lies outside a patch."""
    if outside not in get_args(Outside):
        raise InvalidInput(
            f"outside must be one of {', '.join(get_args(Outside))}; got {outside!r}"
        )


def check_elastic(elastic: npt.NDArray[Any], spacing: npt.NDArray[Any]) -> None:
    """Refuse displacements that could fold a volume."""
    if (elastic > _NO_FOLD * spacing).any():
        raise InvalidInput(
            f"elastic must be at most 0.4 of elastic_spacing, or tissue could fold: got "
            f"{elastic.tolist()} with control points {spacing.tolist()} voxels apart; "
            f"widen elastic_spacing"
        )


def check_turn(turn: Any, square: npt.NDArray[np.bool_], patch: Any, spacing: Any) -> None:
    """Refuse quarter turns of planes that do not look the same afterwards.

    Parameters
    ----------
    turn
        Probability: a number means every plane that can be turned, three are meant as they are.
    square
        For the planes across z, y and x, whether they can be turned.
    patch, spacing
        Named in the message.
    """
    asked = np.broadcast_to(np.asarray(turn) > 0, 3)
    refused = not square.any() if np.ndim(turn) == 0 else (asked & ~square).any()
    if asked.any() and refused:
        raise InvalidInput(
            f"turn needs planes of equal sides and spacing; the patch is {tuple(patch)}, the "
            f"spacing {spacing}: switch turn off, or give 0 for those planes (across z, y, x)"
        )


def check_images(images: Sequence[str], arrays: Mapping[str, torch.Tensor]) -> None:
    """Refuse to change the values of what is no image."""
    for name in images:
        if name not in arrays:
            raise InvalidInput(
                f"images names {name!r}, and the 5-D arrays of the batch are {', '.join(arrays)}"
            )
        if not arrays[name].is_floating_point():
            raise InvalidInput(
                f"images names {name!r}, whose values are classes ({arrays[name].dtype}): "
                f"make it floating, or leave it out"
            )


def shared_patch(arrays: Mapping[str, torch.Tensor]) -> tuple[int, int, int]:
    """The voxels along z, y and x of all arrays ``(B, C, z, y, x)``.

    Raises
    ------
    InvalidInput
        Where there is none, or where they cannot be moved alike.
    """
    if not arrays:
        raise InvalidInput(
            "the batch holds no 5-D tensor (B, C, z, y, x); a slice has one voxel on an axis"
        )
    kinds = {(len(a), *a.shape[2:], a.device, a.is_complex()) for a in arrays.values()}
    if len(kinds) > 1 or next(iter(kinds))[-1]:
        given = ", ".join(
            f"{k} {tuple(v.shape)} {v.dtype} on {v.device}" for k, v in arrays.items()
        )
        raise InvalidInput(
            f"the 5-D arrays of a batch must be real and agree in batch size, patch and device; "
            f"got {given}"
        )
    _, z, y, x, _, _ = kinds.pop()
    return z, y, x


def keys_of(batch: Mapping[str, Any], count: int) -> list[int]:
    """The key of each sample."""
    if "key" not in batch:
        raise InvalidInput(
            "the batch has no 'key': give a whole number for each sample, from which follows all "
            "that is drawn for it"
        )
    keys = torch.as_tensor(batch["key"])
    if keys.is_floating_point() or keys.shape != (count,):
        raise InvalidInput(
            f"'key' must hold {count} whole numbers, one for each sample; got {keys.dtype} of "
            f"shape {tuple(keys.shape)}"
        )
    return [int(key) for key in keys.tolist()]
