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

    A voxel that is computed again in other blocks may differ by rounding: a single extreme is found
    by its place. Several are found by their value, which most often is exact, as the zeros of a
    ReLU and what was clipped are; in blocks of the same sides it always is.

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
        """Of each value the extreme, the place of the first voxel, and how many there are."""
        return {"": 1, "first": 2, "all": 3}[self.ties], math.prod(self.kept)

    def partial(self, values: Tensor, box: Roi) -> Tensor:
        """Return the extremes of a block, and where they are as far as it is asked."""
        rows, device = self.partial_shape[0], values.device
        if not values.numel():
            worst = -math.inf if self.largest else math.inf
            none = torch.tensor([worst, 0.0, 0.0], dtype=torch.float64, device=device)
            return none[:rows, None].expand(self.partial_shape)
        axes = self._axes
        if self.ties == "first":
            flat = self._rows(values)
            found, at = flat.max(1) if self.largest else flat.min(1)
            return torch.stack([found.double(), self._place(at, box)])
        found = values.amax(axes, keepdim=True) if self.largest else values.amin(axes, True)
        result = [found]
        if self.ties:
            equal = values == found
            at = self._rows(equal).view(torch.uint8).argmax(1)
            result += [self._place(at, box), equal.sum(axes)]
        return torch.stack([row.double().reshape(-1) for row in result])

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Return the extremes of all blocks."""
        stacked = np.stack(list(partials))
        best = stacked[:, 0].max(0) if self.largest else stacked[:, 0].min(0)
        if not self.ties:
            return np.asarray(best[None])
        equal = (stacked[:, 0] == best) | np.isnan(stacked[:, 0])
        found = [best, np.where(equal, stacked[:, 1], np.inf).min(0)]
        if self.ties == "all":
            found.append(np.where(equal, stacked[:, 2], 0.0).sum(0))
        return np.stack(found)

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Return the extremes as a tensor of shape `kept`, with their counts or places."""
        return self._value(torch.from_numpy(merged)).to(device)

    def pulled(self, values: Tensor, box: Roi, merged: Partial, gradient: Tensor) -> Tensor:
        """Return the gradient of the extremes at the voxels that are as extreme, else 0."""
        values = values.detach()
        best, places, *counts = (torch.from_numpy(np.array(r)).to(values.device) for r in merged)
        upon = gradient.to(values.device)[0].reshape(-1)
        result = torch.zeros_like(values, memory_format=torch.contiguous_format)
        alone = torch.ones_like(best, dtype=torch.bool)
        if counts:
            (count,) = counts
            alone = count == 1
            shape = [
                n if axis is None else 1 for n, axis in zip(values.shape, self.dims, strict=True)
            ]
            each = torch.where(alone, 0.0, upon / count).to(values.dtype).reshape(shape)
            result += each * (values == best.to(values.dtype).reshape(shape))
        self._add_at(result, box, places, torch.where(alone, upon, 0.0))
        return result

    def _add_at(self, result: Tensor, box: Roi, places: Tensor, upon: Tensor) -> None:
        """Add a number at one voxel per value, if it lies in the box."""
        where = list[Tensor]()
        rest, inside = places.long(), torch.ones_like(places, dtype=torch.bool)
        for axis, (low, high) in reversed(list(enumerate(box))):
            at, rest = rest % self.sizes[axis], rest // self.sizes[axis]
            inside &= (low <= at) & (at < high)
            if axis in self.dims:
                where.insert(0, at - low)
        kept = torch.unravel_index(inside.nonzero()[:, 0], self.kept) if self.kept else ()
        index = (*kept, *(at[inside] for at in where))
        self._in_order(result)[index] += upon[inside].to(result.dtype)

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the extremes of a window that is the whole volume."""
        return self._value(self.partial(windows[0].values, windows[0].box))

    def _value(self, rows: Tensor) -> Tensor:
        """Return the extremes with their counts or places, the last row of those measured."""
        return rows[[0, -1]].reshape(2, *self.kept) if self.ties else rows.reshape(self.kept)

    @property
    def _axes(self) -> list[int]:
        return [d for d, axis in enumerate(self.dims) if axis is not None]

    def _in_order(self, values: Tensor) -> Tensor:
        """Return a view whose axes come last, in the order of the volume's."""
        kept = [d for d, axis in enumerate(self.dims) if axis is None]
        return values.permute(kept + sorted(self._axes, key=lambda d: self.dims[d] or 0))

    def _rows(self, values: Tensor) -> Tensor:
        """Return a row per value, in the order of the volume."""
        return self._in_order(values).reshape(math.prod(self.kept), -1)

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
