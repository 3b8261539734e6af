"""Augmentation of batches, keyed by sample: each depends on its key alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from volflow.errors import InvalidInput
from volflow.sampling.augment.intensity import CHANGES
from volflow.sampling.augment.separable import points
from volflow.sampling.augment.warp import Motion, Outside, affine, move, signed_turn, sources

__all__ = ["Augment", "keys_of", "shared_patch"]

Array = npt.NDArray[np.float64]
PerAxis = float | Sequence[float] | None
Amount = float | tuple[float, ...]

# A family's place is the number of its random stream: append, never reorder.
_FAMILIES = (
    "flip", "turn", "rotate", "scale", "shear", "translate", "elastic",
    "gamma", "contrast", "brightness", "bias", "blur", "noise",
)  # fmt: skip
_BENDS = _FAMILIES[2:7]

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


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to the samples of a batch, on whatever device the batch is.

    Call it with a batch; it returns a new one and leaves the given tensors as they are. Every 5-D
    tensor ``(B, C, z, y, x)`` of the batch is moved, all of a sample alike: floating ones by
    linear interpolation, others as classes, which come out with their dtype and no value that
    was not there, but 0 outside. The values of ``images`` alone are changed. All motions
    together are one interpolation; a sample that was only flipped and turned has none, and keeps
    its voxels to the bit. On an axis of one voxel nothing is turned, bent or shifted.

    All that is drawn for a sample follows from its ``batch["key"]``, whatever else is in the
    batch, and each family below draws from a stream of its own: switching one on changes none of
    the others. Across devices the amounts are equal; voxels are up to rounding, and those of the
    noise are not. torch's and NumPy's global random states are neither used nor changed.

    Amounts are numbers, or where an axis is meant, also three of them (z, y, x). 0 or None
    switches a family off. Motions follow each other as flip, turn, scale, shear, rotate,
    translate, elastic, alike for all channels. Values change in the order below, each channel by
    amounts of its own; its mean, deviation and range are those of the patch at that moment.

    Parameters
    ----------
    flip
        Probability of mirroring each axis: the one family that is on by default. 0 keeps left left.
    turn
        Probability of 1, 2 or 3 quarter turns about each axis, in the plane across it. That
        plane needs equal sides and spacing: one number means all planes that have.
    rotate
        Degrees: angles about each axis are uniform within ±rotate.
    scale
        Things grow by a factor uniform in 1 ± scale: one number keeps proportions, three are
        drawn for each axis.
    shear
        Slopes uniform within ±shear, in the planes across z, y and x.
    translate
        Voxels: shifts uniform within ±translate.
    elastic, elastic_spacing
        Voxels: a smooth field (cubic B-spline) whose control points lie ``elastic_spacing``
        apart and move within ±elastic along each axis, which bounds all voxels; most move by a
        fifth of it. Up to 0.4 of the spacing, where nothing can fold.
    spacing
        Voxel size, so that rotations, scalings and shears are those of the world.
    outside
        Values from outside the patch: ``"zeros"``, or ``"edge"`` for its outermost voxels.
    gamma
        Logarithm of the power, within ±gamma, within the channel's range.
    contrast
        Factor about the channel's mean, uniform in 1 ± contrast.
    brightness
        Shift in standard deviations of the channel, within ±brightness.
    bias
        Logarithm of a smooth factor, bounded by ±bias; most of it lies within a fifth.
    blur
        Voxels: standard deviation of the Gaussian, uniform from 0 to blur.
    noise
        Standard deviation of Gaussian noise, as a share of the channel's, uniform from 0 to noise.
    probability
        Probability of each family but flip and turn to act on a sample: one number, or by family;
        a family that is not named always acts.
    images
        Arrays whose values are changed; floating.

    Raises
    ------
    InvalidInput
        For an amount out of range; when called, for a batch without keys or with arrays of
        different shapes, and where ``turn`` asks for a plane of unequal sides.

    Examples
    --------
    >>> augment = Augment(rotate=15, noise=0.1, probability={"noise": 0.5})
    >>> image, label = torch.rand(2, 1, 16, 16, 16), torch.ones(2, 1, 16, 16, 16, dtype=torch.uint8)
    >>> batch = augment({"image": image, "label": label, "key": torch.tensor([7, 8])})
    >>> alone = augment({"image": image[1:], "label": label[1:], "key": torch.tensor([8])})
    >>> torch.equal(alone["image"][0], batch["image"][1]), batch["label"].unique().tolist()
    (True, [0, 1])
    """

    flip: PerAxis = (0.5, 0.5, 0.5)
    turn: PerAxis = 0.0
    rotate: PerAxis = 0.0
    scale: PerAxis = 0.0
    shear: PerAxis = 0.0
    translate: PerAxis = 0.0
    elastic: PerAxis = 0.0
    elastic_spacing: float | Sequence[float] = 16.0
    spacing: float | Sequence[float] = (1.0, 1.0, 1.0)
    outside: Outside = "zeros"
    gamma: float | None = 0.0
    contrast: float | None = 0.0
    brightness: float | None = 0.0
    bias: float | None = 0.0
    blur: PerAxis = 0.0
    noise: float | None = 0.0
    probability: float | Mapping[str, float] = 1.0
    images: Sequence[str] = ("image",)

    def __post_init__(self) -> None:
        checked = {
            name: _amount(name, getattr(self, name))
            for name in (*_FAMILIES, "elastic_spacing", "spacing")
        }
        names = (self.images,) if isinstance(self.images, str) else tuple(self.images)
        chances = _probabilities(self.probability, _FAMILIES[2:])
        for name, value in {**checked, "images": names, "probability": chances}.items():
            object.__setattr__(self, name, value)
        if self.outside not in get_args(Outside):
            raise InvalidInput(
                f"outside must be one of {', '.join(get_args(Outside))}; got {self.outside!r}"
            )
        elastic, step = self._three("elastic"), self._three("elastic_spacing")
        if (elastic > _NO_FOLD * step).any():
            raise InvalidInput(
                f"elastic must be at most 0.4 of elastic_spacing, or tissue could fold: got "
                f"{elastic.tolist()} with control points {step.tolist()} voxels apart; "
                f"widen elastic_spacing"
            )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Augment a batch.

        Parameters
        ----------
        batch
            Holds ``"key"``, a whole number for each sample; entries that are not 5-D tensors are
            handed on.
        """
        arrays = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim == 5}
        patch = shared_patch(arrays)
        _check_turn(self.turn, self._square(patch), patch, self.spacing)
        if any(self._three(family).any() for family in CHANGES):
            _check_images(self.images, arrays)
        keys = keys_of(batch, len(next(iter(arrays.values()))))
        moved = {name: torch.empty_like(array) for name, array in arrays.items()}
        with torch.no_grad(), torch.autocast(_device(arrays).type, enabled=False):
            for place, key in enumerate(keys):
                sample = {name: array[place] for name, array in arrays.items()}
                for name, values in self._sample(key, sample, patch).items():
                    moved[name][place].copy_(values)
        return {**batch, **moved}

    def _sample(
        self, key: int, sample: dict[str, torch.Tensor], patch: tuple[int, ...]
    ) -> dict[str, torch.Tensor]:
        """Augment one sample: alone, so that its bits cannot depend on its neighbours."""
        motion = self._motion(key, patch)
        wide = {
            name: values.to(torch.promote_types(values.dtype, torch.float32))
            if values.is_floating_point()
            else values
            for name, values in sample.items()
        }
        double = any(values.dtype == torch.float64 for values in wide.values())
        grid = sources(motion, patch, _device(wide), torch.float64 if double else torch.float32)
        moved = {name: move(values, motion, grid, self.outside) for name, values in wide.items()}
        streams = {family: rng for family in CHANGES if (rng := self._stream(family, key))}
        if streams:
            for name in self.images:
                values = moved[name].clone(memory_format=torch.contiguous_format)
                for family, rng in streams.items():
                    values = CHANGES[family](values, self._three(family), rng)
                moved[name] = values
        return moved

    def _motion(self, key: int, patch: tuple[int, ...]) -> Motion:
        """Draw where the voxels of a sample come from."""
        turn = self._turn(key, patch)
        flat = np.array(patch) == 1
        across = np.array([flat[[1, 2]].any(), flat[[0, 2]].any(), flat[[0, 1]].any()])
        acts = {family: rng for family in _BENDS if (rng := self._stream(family, key))}
        if not acts:
            return Motion(turn)

        def drawn(family: str, still: npt.NDArray[np.bool_]) -> Array:
            if family not in acts:
                return np.zeros(3)
            return np.where(still, 0, self._three(family) * acts[family].uniform(-1, 1, 3))

        growth = drawn("scale", np.zeros(3, bool))
        if isinstance(self.scale, float):
            growth[:] = growth[0]
        world = affine(np.radians(drawn("rotate", across)), 1 + growth, drawn("shear", across))
        size = self._three("spacing")
        matrix = turn @ np.linalg.inv(world * size / size[:, None])
        shift, step = drawn("translate", flat), self._three("elastic_spacing")
        displacement = None
        if "elastic" in acts:
            counts = [points(side, s) for side, s in zip(patch, step, strict=True)]
            unit = acts["elastic"].uniform(-1, 1, (3, *counts))
            displacement = self._three("elastic")[:, None, None, None] * unit
        return Motion(turn, matrix, shift, displacement, step.tolist())

    def _turn(self, key: int, patch: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Draw quarter turns and flips."""
        flips, quarters = np.zeros(3, bool), np.zeros(3, int)
        if rng := self._stream("flip", key):
            flips = rng.random(3) < self._three("flip")
        if rng := self._stream("turn", key):
            chosen = rng.random(3) < self._three("turn")
            quarters = np.where(chosen & self._square(patch), rng.integers(1, 4, 3), 0)
        return signed_turn(quarters, flips)

    def _square(self, patch: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Say of the plane across each axis whether it looks the same after a quarter turn."""
        sides = np.array([patch, self._three("spacing")])
        return np.array([np.ptp(np.delete(sides, i, 1), axis=1).max() == 0 for i in range(3)])

    def _stream(self, family: str, key: int) -> np.random.Generator | None:
        """Return the random stream of a family for a sample; None where it does not act."""
        if not self._three(family).any():
            return None
        words = np.array([key % 2**64, _FAMILIES.index(family)], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=words))
        chances = self.probability
        chance = chances.get(family, 1.0) if isinstance(chances, Mapping) else chances
        # Drawn in any case: a probability decides whether, not how.
        acts = rng.random() < chance or family in ("flip", "turn")
        return rng if acts else None

    def _three(self, name: str) -> Array:
        return np.broadcast_to(np.asarray(getattr(self, name), float), 3)


def _device(arrays: Mapping[str, torch.Tensor]) -> torch.device:
    return next(iter(arrays.values())).device


def _amount(name: str, given: Any) -> Amount:
    """Return a number, or where an axis is meant maybe three, within the limits of its name.

    Examples
    --------
    >>> _amount("rotate", [10, 0, 0]), _amount("noise", None)
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


def _probabilities(given: Any, families: Collection[str]) -> float | dict[str, float]:
    """Return one probability, or one for each family named."""
    if not isinstance(given, Mapping):
        return float(np.asarray(_amount("probability", given)))
    for name in given:
        if name not in families:
            raise InvalidInput(f"probability names {name!r}; it may name {', '.join(families)}")
    return {name: float(np.asarray(_amount("probability", p))) for name, p in given.items()}


def _check_turn(turn: Any, square: npt.NDArray[np.bool_], patch: Any, spacing: Any) -> None:
    """Refuse quarter turns of planes that do not look the same afterwards.

    One number for ``turn`` means every plane that can be turned, three are meant as they are;
    ``square`` holds for the planes across z, y and x whether they can be turned.
    """
    asked = np.broadcast_to(np.asarray(turn) > 0, 3)
    refused = not square.any() if np.ndim(turn) == 0 else (asked & ~square).any()
    if asked.any() and refused:
        raise InvalidInput(
            f"turn needs planes of equal sides and spacing; the patch is {tuple(patch)}, the "
            f"spacing {spacing}: switch turn off, or give 0 for those planes (across z, y, x)"
        )


def _check_images(images: Sequence[str], arrays: Mapping[str, torch.Tensor]) -> None:
    """Refuse to change the values of arrays that are not images."""
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
    """Return the voxels along z, y and x of all arrays ``(B, C, z, y, x)``."""
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
    """Return the key of each sample."""
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
