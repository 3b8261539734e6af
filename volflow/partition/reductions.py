"""Reductions over a whole volume, merged from blocks: what instance and group norms need.

A block gives a partial result in float64. Partial results are merged in the order of the blocks,
so that the order in which they were computed does not matter.

Sums fork by device. On the CPU they are taken in the tensor's dtype along rows and in float64 over
rows, in pieces that stay in the cache, each read back at once. A GPU would be waited for at each
piece: there everything is summed in float64, in large pieces, and stays on the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from volflow.geometry.histogram import merge_moments
from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, Window

__all__ = [
    "GPU_BYTES",
    "MOMENT_BYTES",
    "Extreme",
    "MeanVariance",
    "Statistic",
    "partials_of",
    "statistic_of",
]

Partial = npt.NDArray[np.float64]

# Values centred at a time: what is summed once more should still be in the cache.
PIECE = 2**20
# Values that a GPU sums at a time, and bytes beside each and all: two copies of them in float64.
GPU_PIECE = 2**23
MOMENT_BYTES = 2 * 8
GPU_BYTES = MOMENT_BYTES * GPU_PIECE


class Statistic(Protocol):
    """A number per channel of a whole volume, measured by blocks and merged."""

    @property
    def partial_shape(self) -> tuple[int, int]:
        """Shape of a block's partial result: float64 numbers per value, and values."""

    def partial(self, values: Tensor) -> Tensor:
        """Return the partial result of a block, a tensor on its device, which is not waited for."""

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Return the merged result of all blocks, given in their order."""

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Return the value of the node."""

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the value from a window that is the whole volume."""


def statistic_of(graph: Graph, number: int) -> Statistic:
    """Return the statistic that a node measures."""
    found: Any = graph.nodes[number].compute
    return found  # type: ignore[no-any-return] # a node of a statistic computes one


def partials_of(
    graph: Graph, statistics: Iterable[int], node: int, values: Tensor
) -> dict[int, Tensor]:
    """Return the partial results of a block for those statistics that are measured of a node."""
    return {
        number: statistic_of(graph, number).partial(values)
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

    def partial(self, values: Tensor) -> Tensor:
        """Return count, mean and sum of squared deviations, ``(3, n)``.

        Deviations are taken from the mean, so that a large mean cancels nothing.
        """
        order = [d for d, axis in enumerate(self.dims) if axis is None]
        order += [d for d, axis in enumerate(self.dims) if axis is not None]
        front = values.permute(order)
        flat = front.reshape(math.prod(self.kept), *front.shape[len(self.kept) :])
        if not flat.is_floating_point():
            flat = flat.double()
        return _moments(flat) if flat.device.type == "cpu" else _moments_on_gpu(flat)

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Merge those of all blocks, in the order given."""
        total, *others = (np.asarray(part, np.float64) for part in partials)
        for part in others:
            total = np.stack(merge_moments([*total], [*part]))
        return total

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Return means and biased variances, ``(2, *kept)``."""
        count, mean, squares = merged
        value = np.stack([mean, squares / count]).reshape(2, *self.kept)
        return torch.from_numpy(value).to(device)

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return means and variances from a window that is the whole volume."""
        count, mean, squares = self.partial(windows[0].values)
        return torch.stack([mean, squares / count]).reshape(2, *self.kept)


@dataclass(frozen=True)
class Extreme:
    """The largest (or smallest) value over all axes, per value of the dims without one."""

    dims: tuple[int | None, ...]
    kept: tuple[int, ...]
    largest: bool

    @property
    def partial_shape(self) -> tuple[int, int]:
        """One number for each value."""
        return 1, math.prod(self.kept)

    def partial(self, values: Tensor) -> Tensor:
        """Return the extremes of a block, ``(1, n)``."""
        axes = [d for d, axis in enumerate(self.dims) if axis is not None]
        found = values.amax(axes) if self.largest else values.amin(axes)
        return found.double().reshape(1, -1)

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Return the extremes of all blocks."""
        stacked = np.stack(list(partials))
        return np.asarray(stacked.max(0) if self.largest else stacked.min(0))

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Return the extremes as a tensor of shape `kept`."""
        return torch.from_numpy(merged.reshape(self.kept)).to(device)

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the extremes of a window that is the whole volume."""
        return self.partial(windows[0].values).reshape(self.kept)


def _moments(flat: Tensor) -> Tensor:
    """Return the moments of ``(n, *axes)`` on the CPU; rows are summed in the tensor's dtype."""
    count = math.prod(flat.shape[1:])
    result = np.empty((3, len(flat)))
    step = max(1, PIECE // max(1, math.prod(flat.shape[2:])))
    for n, channel in enumerate(flat):
        pieces = channel.split(step)
        mean = sum(_row_sums(piece) for piece in pieces) / count
        squares = sum(_row_sums((piece - mean).square_()) for piece in pieces)
        result[:, n] = count, mean, squares
    return torch.from_numpy(result)


def _row_sums(rows: Tensor) -> float:
    return float(rows.sum(-1).double().sum())


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
