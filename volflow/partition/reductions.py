"""Reductions over a whole volume, merged from blocks: what instance and group norms need.

A block gives a partial result in float64. Partial results are merged in the order of the blocks,
so that the order in which they were computed does not matter.

Sums fork by device. On the CPU they are taken in float32 or better along rows and in float64 over
rows, in pieces that stay in the cache, channel by channel or, where these lie innermost in memory,
of all channels at once. A GPU would be waited for at each piece: there everything is summed in
float64, in large pieces, and stays on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from volflow.geometry.histogram import merge_moments
from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, Window
from volflow.partition.weights import Partial

__all__ = [
    "GPU_BYTES",
    "MOMENT_BYTES",
    "MeanVariance",
    "Partial",
    "Statistic",
    "partials_of",
    "pieces",
    "statistic_of",
]

# Values centred at a time: what is summed once more should still be in the cache.
PIECE = 2**20
# The same of all channels at once, a copy of which should not be fresh memory.
PIECE_OF_CHANNELS = 2**18
# Values that a GPU sums at a time, and bytes beside each and all: two copies of them in float64.
GPU_PIECE = 2**23
MOMENT_BYTES = 2 * 8
GPU_BYTES = MOMENT_BYTES * GPU_PIECE


class Statistic(Protocol):
    """A number per channel of a whole volume, measured by blocks and merged."""

    @property
    def partial_shape(self) -> tuple[int, int]:
        """Shape of a block's partial result: float64 numbers per value, and values."""

    def partial(self, values: Tensor, box: Roi) -> Tensor:
        """Return the partial result of a block, a tensor on its device, which is not waited for."""

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Return the merged result of all blocks, given in their order."""

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Return the value of the node."""

    def pulled(self, values: Tensor, box: Roi, merged: Partial, gradient: Tensor) -> Tensor:
        """Return the gradient of a block's values.

        Parameters
        ----------
        values, box
            The block.
        merged
            The merged result of all blocks.
        gradient
            Of the node's value, in float64, summed over all that read it.
        """

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the value from a window that is the whole volume."""


def statistic_of(graph: Graph, number: int) -> Statistic:
    """Return the statistic that a node measures."""
    found: Any = graph.nodes[number].compute
    return found  # type: ignore[no-any-return] # a node of a statistic computes one


def partials_of(
    graph: Graph, statistics: Iterable[int], node: int, values: Tensor, box: Roi
) -> dict[int, Tensor]:
    """Return the partial results of a block for those statistics that are measured of a node."""
    return {
        number: statistic_of(graph, number).partial(values.detach(), box)
        for number in statistics
        if graph.nodes[number].inputs[0] == node
    }


@dataclass(frozen=True)
class MeanVariance:
    """Mean and variance over all axes, per value of the dims without one.

    The value is ``(2, …)`` in float64: means and biased variances.

    Parameters
    ----------
    dims
        Per dim of the tensor, its axis or None.
    kept
        The sizes of the dims without an axis.
    """

    dims: tuple[int | None, ...]
    kept: tuple[int, ...]

    @property
    def partial_shape(self) -> tuple[int, int]:
        """Count, mean and sum of squared deviations of each value."""
        return 3, math.prod(self.kept)

    def partial(self, values: Tensor, box: Roi) -> Tensor:
        """Return count, mean and sum of squared deviations, ``(3, n)``.

        Deviations are taken from the mean, so that a large mean cancels nothing. An empty block
        counts nothing.
        """
        if not values.numel():
            return torch.zeros(self.partial_shape, dtype=torch.float64, device=values.device)
        order = [d for d, axis in enumerate(self.dims) if axis is None]
        order += [d for d, axis in enumerate(self.dims) if axis is not None]
        front = values.permute(order)
        if not front.is_floating_point():
            front = front.double()
        if front.device.type == "cpu" and self.kept and _is_channels_last(front, len(self.kept)):
            lead = np.ndindex(self.kept[:-1])  # in one tensor a batch's channels do not lie in line
            return torch.cat([_moments_channels_last(front[index]) for index in lead], 1)
        flat = front.reshape(math.prod(self.kept), *front.shape[len(self.kept) :])
        return _moments(flat) if flat.device.type == "cpu" else _moments_on_gpu(flat)

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Merge those of all blocks, in the order given; empty ones add nothing."""
        total, *others = (np.asarray(part, np.float64) for part in partials)
        for part in others:
            if not total[0].any():
                total = part
            elif part[0].any():
                total = np.stack(merge_moments([*total], [*part]))
        return total

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Return means and biased variances, ``(2, *kept)``."""
        count, mean, squares = merged
        value = np.stack([mean, squares / count]).reshape(2, *self.kept)
        return torch.from_numpy(value).to(device)

    def pulled(self, values: Tensor, box: Roi, merged: Partial, gradient: Tensor) -> Tensor:
        """Return ``gmean / n + 2 · gvar · (x − mean) / n``, in float32 or better."""
        values = values.detach()
        count, mean = (torch.from_numpy(np.asarray(row)).to(values.device) for row in merged[:2])
        shape = [n if axis is None else 1 for n, axis in zip(values.shape, self.dims, strict=True)]
        wide = torch.promote_types(values.dtype, torch.float32)
        upon_mean, upon_variance = gradient.to(values.device).reshape(2, -1) / count
        centre, slope, level = (
            one.reshape(shape).to(wide) for one in (mean, 2 * upon_variance, upon_mean)
        )
        result = torch.empty_like(values)
        for into, x in zip(pieces(result, self.dims), pieces(values, self.dims), strict=True):
            into.copy_(torch.addcmul(level, x.to(wide) - centre, slope))
        return result

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return means and variances from a window that is the whole volume."""
        count, mean, squares = self.partial(windows[0].values, windows[0].box)
        return torch.stack([mean, squares / count]).reshape(2, *self.kept)


def _moments(flat: Tensor) -> Tensor:
    """Return the moments of ``(n, *axes)`` on the CPU; rows are summed in the tensor's dtype."""
    count = math.prod(flat.shape[1:])
    result = np.empty((3, len(flat)))
    step = max(1, PIECE // max(1, math.prod(flat.shape[2:])))
    wide = torch.promote_types(flat.dtype, torch.float32)
    for n, channel in enumerate(flat):
        pieces = channel.to(wide).split(step)
        mean = sum(_row_sums(piece) for piece in pieces) / count
        squares = sum(_row_sums((piece - mean).square_()) for piece in pieces)
        result[:, n] = count, mean, squares
    return torch.from_numpy(result)


def pieces(values: Tensor, dims: Sequence[int | None]) -> Sequence[Tensor]:
    """Return parts of a block along its first axis, as large as what should stay in the cache."""
    along = next((d for d, axis in enumerate(dims) if axis is not None), 0)
    largest = PIECE_OF_CHANNELS if values.device.type == "cpu" else GPU_PIECE
    step = max(1, largest * values.shape[along] // max(1, values.numel()))
    return torch.split(values, step, along)


def _row_sums(rows: Tensor) -> float:
    return float(rows.sum(-1).double().sum())


def _is_channels_last(front: Tensor, kept: int) -> bool:
    """Return True if the last dim without an axis lies innermost in memory, with many values."""
    return front.shape[kept - 1] > 1 and front.stride(kept - 1) == 1 and front.stride(-1) > 1


def _moments_channels_last(channels: Tensor) -> Tensor:
    """Return the moments of ``(n, *axes)`` whose first dim lies innermost, all at once."""
    count, row = math.prod(channels.shape[1:]), math.prod(channels.shape[2:])
    wide = torch.promote_types(channels.dtype, torch.float32)
    pieces = channels.split(max(1, PIECE_OF_CHANNELS // max(1, len(channels) * row)), 1)
    axes = list(range(1, channels.ndim - 1))

    def summed(rows: Tensor) -> Tensor:
        sums = rows.sum(-1).double()
        return sums.sum(axes) if axes else sums

    mean = torch.stack([summed(piece.to(wide)) for piece in pieces]).sum(0) / count
    centre = mean.to(wide).reshape(-1, *(1,) * (channels.ndim - 1))
    squares = torch.stack([summed((piece.to(wide) - centre).square_()) for piece in pieces]).sum(0)
    return torch.stack([torch.full_like(mean, count), mean, squares])


def _moments_on_gpu(flat: Tensor) -> Tensor:
    """Return the moments of ``(n, *axes)`` on a GPU, where they stay."""
    count, row = math.prod(flat.shape[1:]), math.prod(flat.shape[2:])
    axes, found = list(range(1, flat.ndim)), []
    for channels in flat.split(max(1, GPU_PIECE // max(1, count))):
        pieces = channels.split(max(1, GPU_PIECE // max(1, len(channels) * row)), 1)
        mean = torch.stack([p.sum(axes, dtype=torch.float64) for p in pieces]).sum(0) / count
        centre = mean.reshape(-1, *(1,) * len(axes))
        squares = [(p - centre).square_().sum(axes) for p in pieces]
        number = torch.full_like(mean, count)
        found.append(torch.stack([number, mean, torch.stack(squares).sum(0)]))
    return torch.cat(found, 1)
