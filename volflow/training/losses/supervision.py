"""Deep supervision: one loss on several outputs of a network, each at its own resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volflow.errors import InvalidInput
from volflow.training.losses.loss import Loss, Outputs
from volflow.training.losses.truth import target_at

__all__ = ["Deep", "deep"]


@dataclass(frozen=True)
class Deep(Loss):
    """A weighted mean of one loss over several outputs; see `deep`, which makes one."""

    loss: Loss
    weights: tuple[float, ...] | None = None

    def partial(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return the sums of each output.

        Before them stand two by which `finish`, which sees nothing but sums, knows how many outputs
        there are: over the values of the first output, the sum of that number, and the sum of 1.

        Parameters
        ----------
        scores
            The outputs, by name or in order. All of them are there for each box; one that has no
            voxels there is an empty tensor ``(N, C, …)``.
        target
            By the same names or in the same order, as `target_at` makes them of a box; or, of the
            whole, one at full resolution for all.
        """
        outputs = _in_order(scores)
        targets = _targets(scores, target)
        sums = [
            self.loss.partial(each, _resampled(each, true) if true is target else true)
            for each, true, weight in zip(outputs, targets, self._shares(len(outputs)), strict=True)
            if weight
        ]
        values = outputs[0].numel()
        return torch.cat([sums[0].new_tensor([len(outputs) * values, values]), *sums])

    def finish(self, total: Tensor) -> Tensor:
        """Return the weighted mean of the losses of the outputs."""
        weights = [w for w in self._shares(round((total[0] / total[1]).item())) if w]
        each = total[2:].view(len(weights), -1)
        losses = [w * self.loss.finish(sums) for w, sums in zip(weights, each, strict=True)]
        return torch.stack(losses).sum()

    def _shares(self, count: int) -> list[float]:
        """Return the weight of each output; together they are 1."""
        weights = self.weights or tuple(0.5**number for number in range(count))
        if len(weights) != count:
            raise InvalidInput(
                f"deep supervision has one weight for each output; got {len(weights)} weights for"
                f" {count} outputs: give {count}, 0 for one that does not count"
            )
        return [weight / sum(weights) for weight in weights]


def deep(loss: Loss, weights: Sequence[float] | None = None) -> Loss:
    """Return a loss of several outputs: the weighted mean of one loss over them.

    A network with deep supervision returns scores at several resolutions, finest first, in a list
    or by name. Called with these and one target at full resolution, each output is compared with
    the target at its own resolution, by the nearest voxel (`target_at`); the sides of an output
    then divide those of the target.

    Parameters
    ----------
    loss
        Of one output, such as `dice_ce`.
    weights
        One for each output, 0 for one that does not count; they are divided by their sum. By
        default 1, ½, ¼, …; nnU-Net has the same, but 0 for the coarsest.

    References
    ----------
    C.-Y. Lee et al., "Deeply-supervised nets", AISTATS 2015. F. Isensee et al., "nnU-Net: a
    self-configuring method for deep learning-based biomedical image segmentation", Nature Methods
    18, 2021.

    Examples
    --------
    >>> from volflow.training.losses.regression import L1
    >>> fine, coarse = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)
    >>> target = torch.tensor([[[0.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    >>> loss = deep(L1())
    >>> round(loss([fine, coarse], target).item(), 4) == round((2 * 3 / 16 + 3 / 4) / 3, 4)
    True

    Of a box, the target is cut for each output:

    >>> corner = target[:, :2, :2]
    >>> targets = {"fine": corner, "coarse": target_at(corner, (2, 2))}
    >>> box = loss.partial({"fine": fine[..., :2, :2], "coarse": coarse[..., :1, :1]}, targets)
    >>> box.tolist()  # 4 values × 2 outputs, 4; then the sum and the number of each output
    [8.0, 4.0, 3.0, 4.0, 3.0, 1.0]
    """
    if weights is None:
        return Deep(loss)
    given = tuple(float(weight) for weight in weights)
    if not all(0 <= weight < math.inf for weight in given) or not any(given):
        raise InvalidInput(
            f"weights of outputs are 0 or above, not all 0; got {given}; 1, ½, ¼, … is the default"
        )
    return Deep(loss, given)


def _in_order(outputs: Outputs) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    found = list(outputs.values() if isinstance(outputs, Mapping) else outputs)
    if not found:
        raise InvalidInput("deep supervision needs an output; got none")
    return found


def _targets(outputs: Outputs, target: Outputs) -> list[Tensor]:
    """Return the target of each output, in the order of outputs."""
    count = len(_in_order(outputs))
    if isinstance(target, Tensor):
        return [target] * count
    if isinstance(outputs, Mapping) and isinstance(target, Mapping):
        if missing := [name for name in outputs if name not in target]:
            raise InvalidInput(
                f"each output needs a target; there is none for {', '.join(map(str, missing))}: "
                f"give one of each name, or one tensor at full resolution; got"
                f" {', '.join(map(str, target))}"
            )
        return [target[name] for name in outputs]
    found = _in_order(target)
    if isinstance(outputs, Mapping) != isinstance(target, Mapping) or len(found) != count:
        raise InvalidInput(
            f"targets come as the outputs do, by name or in order, or as one tensor at full"
            f" resolution; got a {type(target).__name__} of {len(found)} for a"
            f" {type(outputs).__name__} of {count} outputs"
        )
    return found


def _resampled(scores: Tensor, target: Tensor) -> Tensor:
    """Return a target at the resolution of scores."""
    sides = scores.shape[2:]
    full = target.shape[target.ndim - len(sides) :]
    if len(full) != len(sides) or any(n and m % n for m, n in zip(full, sides, strict=True)):
        raise InvalidInput(
            f"the sides of an output divide those of the target; got {tuple(sides)} and"
            f" {tuple(full)}: give each output its own target, made by target_at"
        )
    return target_at(target, [m // n if n else 1 for m, n in zip(full, sides, strict=True)])
