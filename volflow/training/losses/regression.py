"""Losses that are means over voxels: of distances, or of any function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from volflow.errors import InvalidInput
from volflow.training.losses.loss import Loss, Outputs, ratio, scores_of, sum_each

__all__ = ["L1", "L2", "Mean", "mean"]


@dataclass(frozen=True, kw_only=True)
class L1(Loss):
    """The mean over voxels and channels of the absolute difference, as `torch.nn.L1Loss`.

    Parameters
    ----------
    ignore
        The value of the target, which may be NaN, where it counts for nothing.

    Examples
    --------
    >>> scores, target = torch.tensor([[[1.0, 2.0, 5.0]]]), torch.tensor([[[0.0, 4.0, -1.0]]])
    >>> L1()(scores, target).item(), L1(ignore=-1)(scores, target).item()
    (3.0, 1.5)
    """

    ignore: float | None = None

    def partial(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return the sum, and of how many values it is."""
        return _mean_sums(_absolute, scores, _same(scores, target), self.ignore)

    def finish(self, total: Tensor) -> Tensor:
        """Return their quotient."""
        return ratio(total)


@dataclass(frozen=True, kw_only=True)
class L2(Loss):
    """The mean over voxels and channels of the squared difference, as `torch.nn.MSELoss`.

    Parameters
    ----------
    ignore
        As for `L1`.

    Examples
    --------
    >>> L2()(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.0, 4.0]]])).item()
    2.5
    """

    ignore: float | None = None

    def partial(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return the sum, and of how many values it is."""
        return _mean_sums(_squared, scores, _same(scores, target), self.ignore)

    def finish(self, total: Tensor) -> Tensor:
        """Return their quotient."""
        return ratio(total)


@dataclass(frozen=True)
class Mean(Loss):
    """The mean over voxels of a function; see `mean`, which makes one."""

    function: Callable[[Tensor, Tensor], Tensor]
    ignore: float | None = None

    def partial(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return the sum, and of how many values it is."""
        return _mean_sums(self.function, scores, target, self.ignore)

    def finish(self, total: Tensor) -> Tensor:
        """Return their quotient."""
        return ratio(total)


def mean(function: Callable[[Tensor, Tensor], Tensor], *, ignore: float | None = None) -> Loss:
    """Return a loss that is the mean over voxels of any function.

    Parameters
    ----------
    function
        Takes scores ``(N, C, …)`` and a target, and returns a value for each voxel, ``(N, …)``, or
        several, ``(N, K, …)``, over which the mean is taken, too. The value of a voxel must not
        depend on others, which may be in another box.
    ignore
        The value of the target, which may be NaN, where it counts for nothing; the function finds
        0 in its place. Where the target has another number of channels than what the function
        returns, a voxel counts if it does in all of them.

    Examples
    --------
    >>> import torch.nn.functional as F
    >>> huber = mean(lambda scores, target: F.smooth_l1_loss(scores, target, reduction="none"))
    >>> huber(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, 4.0]]])).item()
    1.0
    """
    return Mean(function, ignore)


def _absolute(scores: Tensor, target: Tensor) -> Tensor:
    return (scores - target).abs()


def _squared(scores: Tensor, target: Tensor) -> Tensor:
    return (scores - target).square()


def _same(scores: Outputs, target: Outputs) -> Outputs:
    """Return a target of the shape of the scores, as nothing may be broadcast."""
    if isinstance(scores, Tensor) and isinstance(target, Tensor):
        if scores.shape[1:2] == (1,) and target.shape == (scores.shape[0], *scores.shape[2:]):
            return target.unsqueeze(1)
        if target.shape != scores.shape:
            raise InvalidInput(
                f"the target of a distance has the shape of the scores, {tuple(scores.shape)}; got"
                f" {tuple(target.shape)}: cut or resample it to their voxels"
            )
    return target


def _mean_sums(
    function: Callable[[Tensor, Tensor], Tensor],
    outputs: Outputs,
    target: Outputs,
    ignore: float | None,
) -> Tensor:
    scores = scores_of(outputs)
    if not isinstance(target, Tensor):
        raise InvalidInput(f"the target of one output is a tensor; got a {type(target).__name__}")
    counted = None
    if ignore is not None:
        counted = ~target.isnan() if math.isnan(ignore) else target.double() != ignore
        # A gradient through what is left out would be NaN where the target is.
        target = torch.where(counted, target, 0)
    values = _by_channel(function(scores, target), scores)
    if counted is not None:
        counted = _by_channel(counted, scores)
        if counted.shape[1] not in (1, values.shape[1]):
            counted = counted.all(1, keepdim=True)
        counted = counted.expand_as(values)
        values = torch.where(counted, values, 0)
    # One channel after another, as a sum in float64 first copies what it sums to float64.
    sums = torch.stack([sum_each(channel) for channel in values.unbind(1)])
    count = values.numel() if counted is None else counted.sum()
    return torch.stack([sums.sum(), torch.as_tensor(count, dtype=sums.dtype, device=sums.device)])


def _by_channel(values: Tensor, scores: Tensor) -> Tensor:
    """Return values of each voxel of scores as ``(N, K, …)``."""
    samples, _, *sides = scores.shape
    if values.shape == (samples, *sides):
        return values.unsqueeze(1)
    if values.ndim != scores.ndim or (values.shape[0], *values.shape[2:]) != (samples, *sides):
        raise InvalidInput(
            "a mean over voxels needs a value for each, (N, …) or (N, K, …), for scores of shape"
            f' {tuple(scores.shape)}; got {tuple(values.shape)}: use reduction="none", and a target'
            " of the same voxels"
        )
    return values
