"""A batch of outputs, checked before any of it is added: whose patches, and of which kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.grid import PatchGrid, slice_axis
from volflow.model.forward import Output, check_name
from volflow.partition.graph import named_outputs

__all__ = [
    "Kind",
    "check_finite",
    "coarser",
    "corner_of",
    "kind_of",
    "named_tensors",
    "places_of",
]

# The case of a patch, and its number in the order of the grid.
Place = tuple[str, int]

SAME_STREAM = "give the aggregator the stream that the batch came from"
NAMED = 3  # cases that a message names

WIDE = (torch.int32, torch.int64, torch.uint32, torch.uint64)


@dataclass(frozen=True)
class Kind:
    """Outputs, their dtype and which part of them is whose, equal in all batches."""

    outputs: tuple[Output, ...]
    dtype: torch.dtype

    @property
    def channels(self) -> int:
        """Of all outputs together."""
        return sum(output.channels for output in self.outputs)

    @property
    def scale(self) -> tuple[int, int, int]:
        """Voxels of a patch per voxel of the outputs."""
        return self.outputs[0].scale

    @property
    def integer(self) -> bool:
        """Return True for integers and bool."""
        return not (self.dtype.is_floating_point or self.dtype.is_complex)

    @property
    def computed(self) -> torch.dtype:
        """Dtype of the sums: float32, or float64 for what float32 would round."""
        return torch.float64 if self.dtype in (torch.float64, *WIDE) else torch.float32

    def parts(self) -> Iterator[tuple[Output, slice]]:
        """Yield each output with its channels among those of all."""
        first = 0
        for output in self.outputs:
            yield output, slice(first, first + output.channels)
            first += output.channels

    def __str__(self) -> str:
        named = ", ".join(f"{one.name} {one.channels}".strip() for one in self.outputs)
        coarse = "" if self.scale == (1, 1, 1) else f", {self.scale} times coarser"
        return f"{named} channels of {str(self.dtype).removeprefix('torch.')}{coarse}"


def kind_of(
    outputs: Mapping[str, torch.Tensor], count: int, patch: Sequence[int], before: Kind | None
) -> Kind:
    """Return the kind of a batch's outputs, which must fit the batch and earlier ones.

    Parameters
    ----------
    outputs
        Of one batch by name, with all axes of the patch.
    count, patch
        Patches in the batch, and voxels of each.
    before
        That of earlier batches.

    Raises
    ------
    InvalidInput
        Where they are no tensors ``(B, C, *patch)`` of real numbers, or the kind has changed.

    Examples
    --------
    >>> print(kind_of({"": torch.zeros(4, 2, 8, 8, 8)}, 4, (8, 8, 8), None))
    2 channels of float32
    """
    found = tuple(_output_of(name, one, count, patch) for name, one in outputs.items())
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in outputs.values()})
    if len({output.scale for output in found}) > 1 or len(dtypes) > 1:
        raise InvalidInput(
            f"outputs must have one resolution and one dtype; got scales"
            f" {sorted({output.scale for output in found})} of {', '.join(dtypes)}; resample or"
            " cast them before they are added, or make an aggregator for each"
        )
    kind = Kind(found, next(iter(outputs.values())).dtype)
    if kind.dtype.is_complex:
        raise InvalidInput(f"outputs must be real numbers; got {kind}; give their real part")
    if before not in (None, kind):
        raise InvalidInput(f"outputs were {before}, now {kind}; they must stay the same")
    return kind


def _output_of(name: str, one: torch.Tensor, count: int, patch: Sequence[int]) -> Output:
    check_name(name)
    shape, known = tuple(one.shape), f"output {name}".strip() if name else "outputs"
    sides = shape[2:]
    divides = len(sides) == 3 and all(n and p % n == 0 for p, n in zip(patch, sides, strict=True))
    if not divides or shape[0] != count or not shape[1]:
        raise InvalidInput(
            f"{known} must have the shape (B, C, *patch) = ({count}, C,"
            f" {', '.join(map(str, patch))}); got {shape}; hand over the outputs of the whole"
            " batch, of a network that keeps the size of a patch, or divides it"
        )
    z, y, x = (p // n for p, n in zip(patch, sides, strict=True))
    return Output(name, shape[1], (z, y, x))


def named_tensors(outputs: Any, patch: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return the outputs of a batch by name, as `predict` names them, with all axes of the patch.

    Outputs of slices get back the axis that networks lack.

    Raises
    ------
    InvalidInput
        Where they are no tensors.

    Examples
    --------
    >>> named_tensors((torch.zeros(4, 2, 8, 9),), (8, 1, 9))["output0"].shape
    torch.Size([4, 2, 8, 1, 9])
    """
    named, axis = named_outputs(outputs), slice_axis(patch)
    if not named or not all(isinstance(one, torch.Tensor) for one in named.values()):
        raise InvalidInput(
            "outputs must be a tensor, or a dict or tuple of tensors, got"
            f" {type(outputs).__name__}; make a tensor of an array (torch.from_numpy)"
        )
    return {
        name: one if axis is None or one.ndim != 4 else one.unsqueeze(2 + axis)
        for name, one in named.items()
    }


def coarser(grid: PatchGrid, scale: Sequence[int]) -> PatchGrid:
    """Return a grid in voxels of outputs, each of which is ``scale`` voxels of the volume.

    Raises
    ------
    InvalidInput
        Where patches do not begin at voxels of the outputs.

    Examples
    --------
    >>> coarser(PatchGrid((8, 8, 8), (4, 4, 4), (2, 2, 4)), (2, 2, 2)).starts[0].tolist()
    [0, 1, 2]
    """
    if set(scale) == {1}:
        return grid
    sizes = (grid.shape, grid.patch, grid.stride, grid.padding)
    shape, patch, stride, padding = (
        tuple(n // s for n, s in zip(size, scale, strict=True)) for size in sizes
    )
    whole = all(n % s == 0 for size in sizes for n, s in zip(size, scale, strict=True))
    found = PatchGrid(shape, patch, stride, padding=padding) if whole else None
    starts = zip(grid.starts, found.starts if found else grid.starts, scale, strict=True)
    if found is None or any(not np.array_equal(at, s * out) for at, out, s in starts):
        raise InvalidInput(
            f"outputs are {tuple(scale)} times coarser than their patches, which do not all begin"
            f" at multiples of that: volume {grid.shape}, patch {grid.patch}, stride"
            f" {grid.stride}, padding {grid.padding}; resample outputs to the size of their patch"
            " (torch.nn.functional.interpolate), or use vf.predict"
        )
    return found


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
