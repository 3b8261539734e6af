"""What batch norms in training mode do to their buffers, done once a step for the whole volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from volflow.partition.weights import Partial

__all__ = ["Counted", "RunningMoments"]


@dataclass(frozen=True, eq=False)
class RunningMoments:
    """Running mean and variance move towards those of the batch of whole volumes.

    Parameters
    ----------
    statistic
        Node of the moments per volume and channel.
    mean, var
        The module's buffers, where it has them.
    momentum
        How far they move: 1 to the end.
    """

    statistic: int
    mean: Tensor | None
    var: Tensor | None
    momentum: float

    def apply(self, merged: Mapping[int, Partial]) -> None:
        """Move both; the variance is the unbiased one of all voxels of the batch."""
        channels = next(len(buffer) for buffer in (self.mean, self.var) if buffer is not None)
        moments = torch.tensor(merged[self.statistic], dtype=torch.float64)
        counts, means, squares = moments.reshape(3, -1, channels)
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        var = (squares + counts * (means - mean).square()).sum(0) / (count - 1)
        for buffer, value in ((self.mean, mean), (self.var, var)):
            if buffer is not None:
                with torch.no_grad():
                    before = buffer.double() * (1 - self.momentum)
                    buffer.copy_(before + value.to(buffer.device) * self.momentum)


@dataclass(frozen=True, eq=False)
class Counted:
    """A buffer counts the batches that a norm has seen."""

    buffer: Tensor
    more: int

    def apply(self, merged: Mapping[int, Partial]) -> None:
        """Count one more."""
        with torch.no_grad():
            self.buffer.add_(self.more)
