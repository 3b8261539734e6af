"""What a loss is: sums over voxels, and the number that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from volflow.errors import InvalidInput

__all__ = ["Loss", "Outputs", "precise", "ratio", "scores_of", "sum_each"]

# What a network returns, and what is compared with it: one tensor, or several of deep supervision.
Outputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


@runtime_checkable
class Loss(Protocol):
    """A loss that follows from sums over voxels.

    However the voxels are cut into boxes, what `partial` returns for the boxes adds up to what it
    returns for the whole, to float64 rounding, and `finish` makes the loss of that. So the loss of
    a volume, and its gradient, are known without ever holding all of its scores at once. Called
    with scores and a target, a loss is an ordinary function of tensors.

    Examples
    --------
    A loss of one's own needs two methods.

    >>> class Hinge(Loss):
    ...     def partial(self, scores, target):
    ...         lacking = (1 - scores * target).clamp(min=0).double()
    ...         return torch.stack([lacking.sum(), torch.tensor(lacking.numel())])
    ...     def finish(self, total):
    ...         return total[0] / total[1]
    >>> Hinge()(torch.tensor([[[0.5, 2.0]]]), torch.tensor([[[1.0, -1.0]]])).item()
    1.75
    """

    def partial(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return the sums over some of the voxels.

        Parameters
        ----------
        scores
            What the network says of a box of voxels: ``(N, C, …)``.
        target
            What is true there. A box without voxels adds zeros.

        Returns
        -------
        Tensor
            Float64, of one dim, with a history where the scores have one.
        """
        ...

    def finish(self, total: Tensor) -> Tensor:
        """Return the loss, a float64 scalar, of the sums over all voxels."""
        ...

    def __call__(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return the loss of scores that are all at hand: a float64 scalar with a history."""
        return self.finish(self.partial(scores, target))


def scores_of(outputs: Outputs) -> Tensor:
    """Return the scores ``(N, C, …)`` of a network with one output, in float32 or better."""
    if not isinstance(outputs, Tensor):
        raise InvalidInput(
            f"this loss takes the scores of one output, a tensor; got a {type(outputs).__name__};"
            " losses.deep(loss) takes several"
        )
    if outputs.ndim < 3 or not outputs.is_floating_point():
        raise InvalidInput(
            "scores are floating-point numbers (N, C, …) with at least one axis of voxels; got"
            f" {outputs.dtype} of shape {tuple(outputs.shape)}"
        )
    return precise(outputs)


def precise(values: Tensor) -> Tensor:
    """Return values in float32 where they have fewer bits, as under autocast."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def sum_each(values: Tensor) -> Tensor:
    """Return the sum over voxels in float64 of each sample of values ``(N, …)``."""
    return values.sum(dim=tuple(range(1, values.ndim)), dtype=torch.float64)


def ratio(total: Tensor) -> Tensor:
    """Return the quotient of two sums; 0 where nothing counts, as there is nothing to learn."""
    above, below = total.unbind()
    return above / torch.where(below > 0, below, 1.0)
