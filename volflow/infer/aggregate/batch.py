"""A batch of outputs, checked before any of it is added: whose patches, and of which kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.grid import PatchGrid, slice_axis

__all__ = ["Kind", "check_finite", "corner_of", "kind_of", "places_of", "with_all_axes"]

# The case of a patch, and its number in the order of the grid.
Place = tuple[str, int]

SAME_STREAM = "give the aggregator the stream that the batch came from"
NAMED = 3  # cases that a message names

WIDE = (torch.int32, torch.int64, torch.uint32, torch.uint64)


@dataclass(frozen=True)
class Kind:
    """Number of channels and dtype of the outputs, equal in all batches."""

    channels: int
    dtype: torch.dtype

    @property
    def integer(self) -> bool:
        """Return True for integers and bool."""
        return not (self.dtype.is_floating_point or self.dtype.is_complex)

    @property
    def computed(self) -> torch.dtype:
        """Dtype of the sums: float32, or float64 for what float32 would round."""
        return torch.float64 if self.dtype in (torch.float64, *WIDE) else torch.float32

    def __str__(self) -> str:
        return f"{self.channels} channels of {str(self.dtype).removeprefix('torch.')}"


def kind_of(outputs: torch.Tensor, count: int, patch: Sequence[int], before: Kind | None) -> Kind:
    """Return the kind of a batch's outputs, which must fit the batch and earlier ones.

    Parameters
    ----------
    outputs
        Of one batch, with all axes of the patch.
    count, patch
        Patches in the batch, and voxels of each.
    before
        That of earlier batches.

    Raises
    ------
    InvalidInput
        Where they are no tensor ``(B, C, *patch)`` of real numbers, or the kind has changed.

    Examples
    --------
    >>> print(kind_of(torch.zeros(4, 2, 8, 8, 8), 4, (8, 8, 8), None))
    2 channels of float32
    """
    if not isinstance(outputs, torch.Tensor):
        raise InvalidInput(
            f"outputs must be one tensor, got {type(outputs).__name__}; make one aggregator for"
            " each output of the network, and of an array a tensor"
        )
    shape = tuple(outputs.shape)
    if len(shape) != 5 or shape[0] != count or shape[2:] != tuple(patch) or not shape[1]:
        raise InvalidInput(
            f"outputs must have the shape (B, C, *patch) = ({count}, C,"
            f" {', '.join(map(str, patch))}); got {shape}; hand over the outputs of the whole"
            " batch, of a network that keeps the size of a patch"
        )
    kind = Kind(shape[1], outputs.dtype)
    if kind.dtype.is_complex:
        raise InvalidInput(f"outputs must be real numbers; got {kind}; give their real part")
    if before not in (None, kind):
        raise InvalidInput(f"outputs were {before}, now {kind}; they must stay the same")
    return kind


def with_all_axes(outputs: Any, patch: Sequence[int]) -> Any:
    """Return outputs ``(B, C, *patch)``: those of slices get back the axis that networks lack.

    Examples
    --------
    >>> with_all_axes(torch.zeros(4, 2, 8, 9), (8, 1, 9)).shape
    torch.Size([4, 2, 8, 1, 9])
    """
    axis = slice_axis(patch)
    if axis is None or not isinstance(outputs, torch.Tensor) or outputs.ndim != 4:
        return outputs
    return outputs.unsqueeze(2 + axis)


def check_finite(
    scores: torch.Tensor, places: Sequence[Place], grids: Mapping[str, PatchGrid]
) -> None:
    """Refuse NaN and infinity, naming the patch.

    Parameters
    ----------
    scores
        ``(B, C, *patch)``.
    places, grids
        Of its patches.
    """
    if bool(torch.isfinite(scores.sum())):
        return
    for (name, number), patch in zip(places, scores, strict=True):
        if not bool(torch.isfinite(patch).all()):
            raise Damaged(
                f"case {name!r}: outputs of the patch at {corner_of(grids[name], number)} hold NaN"
                " or infinity; check the network, its weights and its input"
            )


def places_of(batch: Mapping[str, Any], grids: Mapping[str, PatchGrid]) -> list[Place]:
    """Return the case and the number of each patch of a batch.

    Parameters
    ----------
    batch
        With ``"location"`` (B, 6), first voxel and the one beyond, and ``"case"``, B names.
    grids
        By case.

    Raises
    ------
    InvalidInput
        Where these lack, a case is unknown, or a location is no patch of its grid.

    Examples
    --------
    >>> grid = PatchGrid((8, 8, 8), (4, 4, 4), (4, 4, 4))
    >>> places_of({"case": ["a"], "location": [[0, 4, 0, 4, 8, 4]]}, {"a": grid})
    [('a', 2)]
    """
    try:
        names, locations = batch["case"], np.asarray(batch["location"])
    except (KeyError, TypeError, IndexError):
        raise InvalidInput(
            'batch must have "location" and "case"; hand over the batch as the stream gave it'
        ) from None
    names = [names] if isinstance(names, str) else list(names)
    if locations.shape != (len(names), 6):
        raise InvalidInput(
            f"location must have the shape (B, 6) = ({len(names)}, 6), as there are {len(names)}"
            f" names of cases; got {locations.shape}; hand over the batch as the stream gave it"
        )
    for name in names:
        if name not in grids:
            known = ", ".join(list(grids)[:NAMED]) + (", …" if len(grids) > NAMED else "")
            raise InvalidInput(f"unknown case {name!r}: the stream has {known}; {SAME_STREAM}")
    pairs = zip(names, locations.tolist(), strict=True)
    return [(name, _number(name, grids[name], location)) for name, location in pairs]


def _number(name: str, grid: PatchGrid, location: Sequence[int]) -> int:
    """Return the number of a patch in the order of its grid."""
    index = [int(np.searchsorted(s, a)) for s, a in zip(grid.starts, location[:3], strict=True)]
    inside = all(i < n for i, n in zip(index, grid.counts, strict=True))
    roi = grid.roi(index) if inside else None
    if roi is None or (*roi.start, *roi.stop) != tuple(location):
        raise InvalidInput(
            f"case {name!r}: {tuple(location)} is no patch of its grid of {len(grid)} patches"
            f" {grid.patch}; {SAME_STREAM}"
        )
    return int(np.ravel_multi_index(index, grid.counts))


def corner_of(grid: PatchGrid, number: int) -> tuple[int, ...]:
    """Return the first voxel ``(z, y, x)`` of a patch."""
    return grid.roi([int(i) for i in np.unravel_index(number, grid.counts)]).start
