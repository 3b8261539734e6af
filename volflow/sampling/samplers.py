"""Samplers: which patches, as data. A sampler is a law; it holds no voxels and no state.

A patch is named by its *start*, its first voxel; its *centre* is ``start + patch // 2``. With
``border="inside"`` patches lie in the volume, so that voxels near its border are seen less often:
a corner in one of ``prod(patch)`` of the patches that could hold it; along an axis that is shorter
than the patch all of it is in each patch, half of what is lacking before it, and any of its voxels
may be drawn. With ``border="pad"`` every voxel can be a centre. What lies outside of the volume is
the stream's ``padding``, and locations say so: they may be negative, or beyond the volume.

=================  =====================================================================
sampler            law of a patch, over all cases together
=================  =====================================================================
`UniformSampler`   every start is equally likely
`WeightedSampler`  a centre is drawn in proportion to the weight of its voxel
`LabelSampler`     a class is drawn, then a centre among the voxels of that class
`GridSampler`      no chance: the patches of a grid, once each
=================  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.grid import PatchGrid, stride_of
from volflow.sampling.patch_size import Size, checked_size, has_lengths, in_voxels
from volflow.store.meta import Meta

if TYPE_CHECKING:
    from volflow.sampling.cases.named_arrays import Case
    from volflow.store.volume import Volume

__all__ = [
    "Border",
    "GridSampler",
    "LabelSampler",
    "RandomSampler",
    "Sampler",
    "UniformSampler",
    "WeightedSampler",
    "guide_of",
]

Border = Literal["inside", "pad"]


@dataclass(frozen=True)
class UniformSampler:
    """Patches at uniformly random places: every start is equally likely, over all cases.

    Parameters
    ----------
    patch
        Voxels along z, y, x, or one number for all; 1 on an axis gives slices, and batches
        without that axis, as networks of slices take them. A side may be a length, such as
        ``"64 mm"``: the nearest number of voxels, by the spacing that all cases share.
    border
        ``"inside"``: starts are uniform where the patch lies in the volume; ``"pad"``: centres are
        uniform over the volume.

    Raises
    ------
    InvalidInput
        If the patch is not positive, or the border is not one of these.

    Examples
    --------
    >>> UniformSampler(64)
    UniformSampler(patch=(64, 64, 64), border='inside')
    """

    patch: Size
    border: Border = "inside"

    def __post_init__(self) -> None:
        _normalise(self)


@dataclass(frozen=True)
class WeightedSampler:
    """Patches whose centres are drawn in proportion to a map of weights.

    Parameters
    ----------
    patch
        As in `UniformSampler`.
    weight
        Name of the case's array of weights: not negative, of any scale, one channel. Weights of
        all cases lie on one scale.
    border
        ``"inside"``: only centres whose patch lies in the volume count; ``"pad"``: all do.

    Examples
    --------
    >>> WeightedSampler((1, 96, 96), weight="prob")
    WeightedSampler(patch=(1, 96, 96), weight='prob', border='inside')
    """

    patch: Size
    weight: str = "prob"
    border: Border = "inside"

    def __post_init__(self) -> None:
        _normalise(self)


@dataclass(frozen=True)
class LabelSampler:
    """Patches whose centres are drawn class by class, so that rare classes are seen as often.

    A class is drawn with its probability, a case by how many such voxels it has, then a voxel. A
    class that one case lacks is drawn from the others; one that all lack is refused.

    Parameters
    ----------
    patch
        As in `UniformSampler`.
    label
        Name of the case's array of classes; of several channels each is a class, where a voxel
        holds 1 or 0, and a voxel may be of several.
    probabilities
        Weights of the classes, as ``{class: weight}``; they need not add up to one. By default
        all voxels above 0 are equally likely; of several channels they must be given.
    border
        As in `WeightedSampler`.

    Raises
    ------
    InvalidInput
        If a weight is negative or not finite, or none is above zero.

    Examples
    --------
    >>> LabelSampler(64, probabilities={0: 1, 1: 3}).shares
    {0: 0.25, 1: 0.75}
    """

    patch: Size
    label: str = "label"
    probabilities: Mapping[int, float] | None = None
    border: Border = "inside"

    def __post_init__(self) -> None:
        _normalise(self)
        if self.probabilities is None:
            return
        try:
            weights = {float(c): float(w) for c, w in self.probabilities.items()}
        except (AttributeError, TypeError, ValueError):  # no mapping, or not of numbers
            weights = {}
        right = all(c.is_integer() and math.isfinite(w) and w >= 0 for c, w in weights.items())
        if not right or not any(weights.values()):
            raise InvalidInput(
                "probabilities must be finite, not negative and not all zero, like {0: 1, 1: 3};"
                f" got {self.probabilities}"
            )
        # A copy, in an order and of types of its own: it is part of what a state is checked by.
        object.__setattr__(self, "probabilities", {int(c): weights[c] for c in sorted(weights)})

    @property
    def shares(self) -> dict[int, float] | None:
        """Probability of each class that has one; None where no probabilities were given."""
        if self.probabilities is None:
            return None
        total = sum(self.probabilities.values())
        return {c: w / total for c, w in self.probabilities.items() if w}


@dataclass(frozen=True)
class GridSampler:
    """All patches of a grid, once each, case after case: for inference and for validation.

    Per axis patches start at 0, s, 2s, … while they fit (s = patch - overlap), then one last is
    shifted back to end at the border. A volume smaller than the patch is padded.

    Parameters
    ----------
    patch
        As in `UniformSampler`.
    overlap
        Voxels, or a fraction of the patch if below 1; one for all axes or one per axis.
    padding
        Voxels around the volume that the grid covers, too; the stream says what they hold.

    Examples
    --------
    >>> sampler = GridSampler(32, overlap=0.25)
    >>> grid = sampler.grid((80, 64, 20))
    >>> len(grid), [int(start) for start in grid.starts[0]]
    (9, [0, 24, 48])
    """

    patch: Size
    overlap: float | Sequence[float] = 0
    padding: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        patch = checked_size(self.patch)
        try:
            padding = np.broadcast_to(np.array(self.padding, float), 3)
            right = all(v.is_integer() and v >= 0 for v in padding.tolist())
        except (TypeError, ValueError):  # not of numbers, or too many
            right = False
        if not right:
            raise InvalidInput(
                f"padding must be a number of voxels or one for each of z, y, x; got {self.padding}"
            )
        if not has_lengths(patch):
            stride_of(in_voxels(patch, Meta()), self.overlap)
        object.__setattr__(self, "patch", patch)
        object.__setattr__(self, "padding", tuple(int(v) for v in padding))

    def grid(self, x: Volume | Case | Sequence[int]) -> PatchGrid:
        """Return the patches over a volume: boxes that may reach outside, in lexicographic order.

        Parameters
        ----------
        x
            A `Volume`, a case, or a shape; the last three axes count. Of a shape, the patch must be
            in voxels.
        """
        given: Any = getattr(x, "shape", x)
        shape = tuple(int(n) for n in given[-3:])
        patch = in_voxels(checked_size(self.patch), getattr(x, "meta", Meta()))
        padding = tuple(self.padding) if isinstance(self.padding, Sequence) else ()
        return PatchGrid(shape, patch, stride_of(patch, self.overlap), padding=padding)


RandomSampler = UniformSampler | WeightedSampler | LabelSampler
Sampler = RandomSampler | GridSampler


def guide_of(sampler: Sampler) -> str | None:
    """Return the name of the array that decides where patches lie; None where none does."""
    if isinstance(sampler, LabelSampler):
        return sampler.label
    return sampler.weight if isinstance(sampler, WeightedSampler) else None


def _normalise(sampler: RandomSampler) -> None:
    object.__setattr__(sampler, "patch", checked_size(sampler.patch))
    if sampler.border not in ("inside", "pad"):
        raise InvalidInput(f'border must be "inside" or "pad"; got {sampler.border!r}')
