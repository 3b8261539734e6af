"""The largest or smallest value of a whole volume, and the voxels to which its gradient goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from volflow.geometry.roi import Roi
from volflow.partition.graph import Window
from volflow.partition.weights import Partial

__all__ = ["Extreme", "Ties", "shared_extreme"]

# Which of several equal voxels get the gradient of an extreme, as torch has it: all of them alike,
# or the first in order. Empty where no gradient is wanted, and nothing more is measured.
Ties = Literal["", "all", "first"]


@dataclass(frozen=True)
class Extreme:
    """The largest (or smallest) value over all axes, per value of the dims without one.

    For gradients the value is ``(2, …)``: extremes, and how many voxels are as extreme, or the
    place of the first of them in the whole volume.

    Parameters
    ----------
    dims
        Per dim of the tensor, its axis or None.
    kept
        The sizes of the dims without an axis.
    largest
        False for the smallest.
    ties
        Which voxels get the gradient.
    sizes
        Voxels of the whole volume per axis.
    """

    dims: tuple[int | None, ...]
    kept: tuple[int, ...]
    largest: bool
    ties: Ties = ""
    sizes: tuple[int, ...] = ()

    @property
    def partial_shape(self) -> tuple[int, int]:
        """One number for each value, or two where the voxels are to be known."""
        return 1 + bool(self.ties), math.prod(self.kept)

    def partial(self, values: Tensor, box: Roi) -> Tensor:
        """Return the extremes of a block, ``(1, n)`` or ``(2, n)``."""
        if not values.numel():
            worst = -math.inf if self.largest else math.inf
            return torch.tensor([worst, 0.0], dtype=torch.float64, device=values.device)[
                : self.partial_shape[0], None
            ].expand(self.partial_shape)
        axes = self._axes
        if self.ties == "first":
            flat = self._rows(values)
            found, at = flat.max(1) if self.largest else flat.min(1)
            return torch.stack([found.double(), self._place(at, box)])
        found = values.amax(axes, keepdim=True) if self.largest else values.amin(axes, True)
        rows = [found]
        if self.ties:
            rows.append((values == found).sum(axes))
        return torch.stack([row.double().reshape(-1) for row in rows])

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Return the extremes of all blocks."""
        stacked = np.stack(list(partials))
        best = stacked[:, 0].max(0) if self.largest else stacked[:, 0].min(0)
        if not self.ties:
            return np.asarray(best[None])
        equal, other = stacked[:, 0] == best, stacked[:, 1]
        if self.ties == "all":
            return np.stack([best, np.where(equal, other, 0.0).sum(0)])
        return np.stack([best, np.where(equal, other, np.inf).min(0)])

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Return the extremes as a tensor of shape `kept`, with their counts or places."""
        shape = (2, *self.kept) if self.ties else self.kept
        return torch.from_numpy(merged.reshape(shape)).to(device)

    def pulled(self, values: Tensor, box: Roi, merged: Partial, gradient: Tensor) -> Tensor:
        """Return the gradient of the extremes at the voxels that are as extreme, else 0."""
        values = values.detach()
        best, other = (torch.from_numpy(np.array(row)).to(values.device) for row in merged)
        upon = gradient.to(values.device)[0].reshape(-1)
        if self.ties == "first":
            return self._at_first(values, box, other, upon)
        shape = [n if axis is None else 1 for n, axis in zip(values.shape, self.dims, strict=True)]
        equal = values == best.to(values.dtype).reshape(shape)
        return equal * (upon / other).to(values.dtype).reshape(shape)

    def _at_first(self, values: Tensor, box: Roi, places: Tensor, upon: Tensor) -> Tensor:
        """Return the gradient at one voxel per value, if it lies in the box."""
        result = torch.zeros_like(values, memory_format=torch.contiguous_format)
        where = list[Tensor]()
        rest, inside = places.long(), torch.ones_like(places, dtype=torch.bool)
        for size, (low, high) in reversed(list(zip(self.sizes, box, strict=True))):
            at, rest = rest % size, rest // size
            inside &= (low <= at) & (at < high)
            where.insert(0, at - low)
        flat = result.reshape(len(places), *box.shape)  # a view: the axes come last, in order
        flat[(inside.nonzero()[:, 0], *(at[inside] for at in where))] = upon[inside].to(flat.dtype)
        return result

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the extremes of a window that is the whole volume."""
        shape = (2, *self.kept) if self.ties else self.kept
        return self.partial(windows[0].values, windows[0].box).reshape(shape)

    @property
    def _axes(self) -> list[int]:
        return [d for d, axis in enumerate(self.dims) if axis is not None]

    def _rows(self, values: Tensor) -> Tensor:
        """Return a row per value; places are told only of images, whose axes come last."""
        return values.reshape(math.prod(self.kept), -1)

    def _place(self, at: Tensor, box: Roi) -> Tensor:
        """Return places in the whole volume, in its order, of places in a box."""
        place, step = torch.zeros_like(at, dtype=torch.float64), 1
        for size, side, low in reversed(list(zip(self.sizes, box.shape, box.start, strict=True))):
            place += (at % side + low) * step
            at, step = at // side, step * size
        return place


def shared_extreme(found: Tensor, dims: list[int], largest: bool) -> Tensor:
    """Return the extreme of several, whose gradient all voxels that are as extreme share alike.

    Parameters
    ----------
    found
        ``(2, …)``: extremes of the whole volume, and how many voxels are as extreme.
    dims
        Dims of each over which the extreme is taken.
    largest
        False for the smallest.
    """
    function: Any = _Shared.apply
    return function(found[0], found[1], dims, largest)  # type: ignore[no-any-return]


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, found: Tensor, counts: Tensor, dims: list[int], largest: bool) -> Tensor:
        best = found.amax(dims, True) if largest else found.amin(dims, True)
        ctx.save_for_backward(torch.where(found == best, counts, 0.0))
        ctx.dims = dims
        return best.squeeze(tuple(dims))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (counts,) = ctx.saved_tensors
        for dim in sorted(ctx.dims):
            gradient = gradient.unsqueeze(dim)
        return gradient * counts / counts.sum(ctx.dims, keepdim=True), None, None, None
