"""Augmentation of batches, keyed by sample: each depends on its key alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.sampling.augment.augment_checks import (
    amount,
    check_elastic,
    check_images,
    check_outside,
    check_turn,
    keys_of,
    probabilities,
    shared_patch,
)
from volflow.sampling.augment.intensity import CHANGES
from volflow.sampling.augment.separable import points
from volflow.sampling.augment.warp import Motion, Outside, affine, move, signed_turn, sources

__all__ = ["Augment"]

Array = npt.NDArray[np.float64]
PerAxis = float | Sequence[float] | None

# A family's place is the number of its random stream: append, never reorder.
_FAMILIES = (
    "flip", "turn", "rotate", "scale", "shear", "translate", "elastic",
    "gamma", "contrast", "brightness", "bias", "blur", "noise",
)  # fmt: skip
_BENDS = _FAMILIES[2:7]


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
        What comes in from outside the patch: ``"zeros"``, or ``"edge"`` for its outermost voxels.
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
        Of each family but flip and turn to act on a sample: one number, or by family; a family
        that is not named always acts.
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
            name: amount(name, getattr(self, name))
            for name in (*_FAMILIES, "elastic_spacing", "spacing")
        }
        names = (self.images,) if isinstance(self.images, str) else tuple(self.images)
        chances = probabilities(self.probability, _FAMILIES[2:])
        for name, value in {**checked, "images": names, "probability": chances}.items():
            object.__setattr__(self, name, value)
        check_outside(self.outside)
        check_elastic(self._three("elastic"), self._three("elastic_spacing"))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Augment a batch.

        Parameters
        ----------
        batch
            Holds ``"key"``, a whole number for each sample; entries that are no 5-D tensors are
            handed on.
        """
        arrays = {k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and v.ndim == 5}
        patch = shared_patch(arrays)
        check_turn(self.turn, self._square(patch), patch, self.spacing)
        if any(self._three(family).any() for family in CHANGES):
            check_images(self.images, arrays)
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
        """Whether the plane across each axis looks the same after a quarter turn."""
        sides = np.array([patch, self._three("spacing")])
        return np.array([np.ptp(np.delete(sides, i, 1), axis=1).max() == 0 for i in range(3)])

    def _stream(self, family: str, key: int) -> np.random.Generator | None:
        """The random stream of a family for a sample; None where it does not act."""
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
