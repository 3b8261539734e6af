"""Statistics of a whole volume, merged from blocks: what instance and group norms need.

A block gives a partial result in float64; partial results merge in the order of the blocks, so
that the order in which they were computed is no matter.
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

from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, Window

__all__ = ["Extreme", "Moments", "Statistic", "merge_moments", "partials_of", "statistic_of"]

Partial = npt.NDArray[np.float64]

# Values centred at a time: what is summed once more should still be in the cache.
PIECE = 2**20


class Statistic(Protocol):
    """A number per channel of a whole volume, and how it comes together."""

    @property
    def partial_shape(self) -> tuple[int, int]:
        """Of what a block knows: float64 numbers per value, and values."""

    def partial(self, values: Tensor) -> Partial:
        """What a block knows."""

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """What all know."""

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """The node's value."""

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """The value, of a block that is the whole volume."""


def statistic_of(graph: Graph, number: int) -> Statistic:
    """The statistic that a node measures."""
    found: Any = graph.nodes[number].compute
    return found  # type: ignore[no-any-return] # what a node computes is not told by its type


def partials_of(
    graph: Graph, statistics: Iterable[int], node: int, values: Tensor
) -> dict[int, Partial]:
    """What values of a block know of those statistics that are measured of their node."""
    return {
        number: statistic_of(graph, number).partial(values)
        for number in statistics
        if graph.nodes[number].inputs[0] == node
    }


@dataclass(frozen=True)
class Moments:
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
        """Three numbers for each."""
        return 3, math.prod(self.kept)

    def partial(self, values: Tensor) -> Partial:
        """Count, mean and sum of squared deviations, ``(3, n)``.

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
        """Those of all blocks, by Chan's formula."""
        return merge_moments(partials)

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """Means and variances."""
        count, mean, squares = merged
        value = np.stack([mean, squares / count]).reshape(2, *self.kept)
        return torch.from_numpy(value).to(device)

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Means and variances of a window that is the whole."""
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
        """One number for each."""
        return 1, math.prod(self.kept)

    def partial(self, values: Tensor) -> Partial:
        """Of a block, ``(1, n)``."""
        axes = [d for d, axis in enumerate(self.dims) if axis is not None]
        found = values.amax(axes) if self.largest else values.amin(axes)
        return found.double().reshape(1, -1).cpu().numpy()

    def merged(self, partials: Iterable[Partial]) -> Partial:
        """Of all blocks."""
        stacked = np.stack(list(partials))
        return np.asarray(stacked.max(0) if self.largest else stacked.min(0))

    def finish(self, merged: Partial, device: torch.device) -> Tensor:
        """As a tensor."""
        return torch.from_numpy(merged.reshape(self.kept)).to(device)

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Of a window that is the whole."""
        values = windows[0].values
        return self.finish(self.partial(values), values.device)


def _row_sums(rows: Tensor) -> float:
    return float(rows.sum(-1).double().sum())


def merge_moments(partials: Iterable[Any]) -> Partial:
    """Merge counts, means and sums of squared deviations, ``(3, …)`` each, in the order given.

    References
    ----------
    Chan, Golub, LeVeque: Algorithms for computing the sample variance, The American Statistician
    37(3), 1983.

    Examples
    --------
    >>> merge_moments([[2.0, 1.0, 2.0], [2.0, 3.0, 2.0]]).tolist()
    [4.0, 2.0, 8.0]
    """
    total: Partial | None = None
    for part in partials:
        part = np.asarray(part, np.float64)
        if total is None:
            total = part.copy()
            continue
        (n, mean, squares), (m, other, more) = total, part
        difference = other - mean
        count = n + m
        share = np.divide(m, count, out=np.zeros_like(m), where=count > 0)
        total = np.stack(
            [count, mean + difference * share, squares + more + difference**2 * n * share]
        )
    if total is None:
        raise ValueError("there is nothing to merge")
    return total
