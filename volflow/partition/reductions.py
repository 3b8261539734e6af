"""Reductions over a whole volume, merged from blocks: what instance and group norms need.

A block gives a partial result in float64. Partial results are merged in the order of the blocks,
so that the order in which they were computed does not matter.
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

__all__ = ["Extreme", "MeanVariance", "Statistic", "partials_of", "statistic_of"]

Partial = npt.NDArray[np.float64]

# Values centred at a time: what is summed once more should still be in the cache.
PIECE = 2**20


class Statistic(Protocol):
    """A number per channel of a whole volume, measured by blocks and merged."""

    @property
    def partial_shape(self) -> tuple[int, int]:
        """Shape of a block's partial result: float64 numbers per value, and values."""

    def partial(self, values: Tensor) -> Partial:
        """Return the partial result of a block."""

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
) -> dict[int, Partial]:
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

    def partial(self, values: Tensor) -> Partial:
        """Return count, mean and sum of squared deviations, ``(3, n)``.

        Rows are summed in the tensor's dtype, their sums and all else in float64; deviations are
        taken from the mean, so that a large mean cancels nothing.
        """
        order = [d for d, axis in enumerate(self.dims) if axis is None]
        order += [d for d, axis in enumerate(self.dims) if axis is not None]
        front = values.permute(order)
        flat = front.reshape(math.prod(self.kept), *front.shape[len(self.kept) :])
        if not flat.is_floating_point():
            flat = flat.double()
        count = math.prod(flat.shape[1:])
        result = np.empty((3, len(flat)))
        step = max(1, PIECE // max(1, math.prod(flat.shape[2:])))
        for n, channel in enumerate(flat):
            pieces = channel.split(step)
            mean = sum(_row_sums(piece) for piece in pieces) / count
            squares = sum(_row_sums((piece - mean).square_()) for piece in pieces)
            result[:, n] = count, mean, squares
        return result

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
        values = windows[0].values
        return self.finish(self.partial(values), values.device)


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

    def partial(self, values: Tensor) -> Partial:
        """Return the extremes of a block, ``(1, n)``."""
        axes = [d for d, axis in enumerate(self.dims) if axis is not None]
        found = values.amax(axes) if self.largest else values.amin(axes)
        return found.double().reshape(1, -1).cpu().numpy()

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Return the extremes of all blocks."""
        stacked = np.stack(list(partials))
        return np.asarray(stacked.max(0) if self.largest else stacked.min(0))

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Return the extremes as a tensor of shape `kept`."""
        return torch.from_numpy(merged.reshape(self.kept)).to(device)

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the extremes of a window that is the whole volume."""
        values = windows[0].values
        return self.finish(self.partial(values), values.device)


def _row_sums(rows: Tensor) -> float:
    return float(rows.sum(-1).double().sum())
