"""Losses of classes: cross-entropy, Dice, and their sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from volflow.errors import InvalidInput
from volflow.training.losses.loss import Loss, Outputs, ratio, scores_of, sum_each
from volflow.training.losses.truth import Truth, truth_of

__all__ = ["CrossEntropy", "Dice", "DiceCE"]


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy, the mean over voxels of −log of the probability of the true class.

    The values are those of `torch.nn.functional.cross_entropy`; with `sigmoid`, of
    `torch.nn.functional.binary_cross_entropy_with_logits`. Where no voxel counts, it is 0.

    Parameters
    ----------
    weight
        A weight for each class. The mean over voxels with labels, and over masks, is a weighted
        one: divided by the sum of weights. With probabilities it is divided by the number of
        voxels, as torch does.
    ignore
        The label of voxels that count for nothing, such as 255 or −1; with `sigmoid`, the value of
        masks there.
    sigmoid
        Whether classes may overlap: then scores become probabilities each by itself, not by the
        softmax over channels, and the target is a mask for each class.

    Examples
    --------
    >>> scores = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])  # (N, C, x)
    >>> round(CrossEntropy()(scores, torch.tensor([[0, 1, 1]])).item(), 4)
    0.2794
    >>> round(CrossEntropy(ignore=255)(scores, torch.tensor([[0, 255, 1]])).item(), 4)
    0.0725
    """

    weight: Sequence[float] | None = None
    ignore: int | None = None
    sigmoid: bool = False

    def __post_init__(self) -> None:
        _take_weight(self)

    def partial(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return the weighted sum over voxels, and the sum of their weights."""
        return _cross_entropy_sums(self, *_read(self, scores, target))

    def finish(self, total: Tensor) -> Tensor:
        """Return their quotient."""
        return ratio(total)


@dataclass(frozen=True, kw_only=True)
class Dice(Loss):
    """The soft Dice loss, the mean over classes of 1 − 2 Σ p·t / (Σ p + Σ t).

    p is the predicted and t the true probability of a class in a voxel. Milletari et al. (2016)
    proposed it, with squares in the denominator; this is the form without, as Drozdzal et al.
    (2016), nnU-Net and MONAI's ``DiceLoss`` have it, whose values these are.

    Parameters
    ----------
    weight
        A weight for each class, the background too; the mean over classes is a weighted one.
    ignore, sigmoid
        As for `CrossEntropy`.
    include_background
        Whether class 0 counts.
    batch
        Whether the sums are over all samples of a batch, not over each, of which then the mean is
        taken.
    smooth_nr, smooth_dr
        What is added to the numerator and to the denominator.

    References
    ----------
    F. Milletari, N. Navab and S.-A. Ahmadi, "V-Net: Fully convolutional neural networks for
    volumetric medical image segmentation", 3DV 2016. M. Drozdzal et al., "The importance of skip
    connections in biomedical image segmentation", DLMIA 2016.

    Examples
    --------
    >>> scores = torch.tensor([[[9.0, -9.0, 0.0], [-9.0, 9.0, 0.0]]])  # (N, C, x)
    >>> round(Dice()(scores, torch.tensor([[0, 1, 1]])).item(), 3)
    0.171
    >>> round(Dice(ignore=-1)(scores, torch.tensor([[0, 1, -1]])).item(), 3)
    0.0
    """

    weight: Sequence[float] | None = None
    ignore: int | None = None
    sigmoid: bool = False
    include_background: bool = True
    batch: bool = False
    smooth_nr: float = 1e-5
    smooth_dr: float = 1e-5

    def __post_init__(self) -> None:
        _take_weight(self)
        if self.weight is not None and not any(self.weight[self._first :]):
            raise InvalidInput(
                f"Dice needs a class whose weight is above 0; got {self.weight} with"
                f" include_background={self.include_background}: raise one, or leave weight out"
            )
        for name in ("smooth_nr", "smooth_dr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidInput(
                    f"{name} is a number, 0 or above; got {getattr(self, name)!r}; the default is"
                    " 1e-5"
                )

    def partial(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return Σ p·t, Σ p and Σ t of each class, for each sample unless `batch`."""
        return _dice_sums(self, *_read(self, scores, target))

    def finish(self, total: Tensor) -> Tensor:
        """Return the mean over samples and classes."""
        both, predicted, true = total.view(-1, 3).unbind(1)
        losses = 1 - (2 * both + self.smooth_nr) / (predicted + true + self.smooth_dr)
        if self.weight is None:
            return losses.mean()
        weight = losses.new_tensor(self.weight[self._first :])
        return (losses.view(-1, len(weight)) * weight).sum(1).mean() / weight.sum()

    @property
    def _first(self) -> int:
        """The first class that counts."""
        return 0 if self.include_background else 1


@dataclass(frozen=True, kw_only=True)
class DiceCE(Dice):
    """The weighted sum of `Dice` and `CrossEntropy`, the usual loss of segmentation.

    Isensee et al. (2021) train nnU-Net with it; MONAI has it as ``DiceCELoss``. The options of
    `Dice` mean the same here; `weight`, `ignore` and `sigmoid` hold for both. The background is
    never left out of the cross-entropy. With `sigmoid`, that is the binary one for any number of
    channels, where MONAI takes the softmax of more than one.

    Parameters
    ----------
    lambda_dice, lambda_ce
        The weights of the two.

    References
    ----------
    F. Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
    segmentation", Nature Methods 18, 2021.

    Examples
    --------
    >>> scores, target = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    >>> loss = DiceCE(batch=True, include_background=False, lambda_ce=2.0)
    >>> round((loss(scores, target) - 2 * CrossEntropy()(scores, target)).item(), 4)
    1.0
    """

    lambda_dice: float = 1.0
    lambda_ce: float = 1.0

    def partial(self, scores: Outputs, target: Outputs) -> Tensor:
        """Return the sums of both: two of the cross-entropy, then those of Dice."""
        given = _read(self, scores, target)
        return torch.cat([_cross_entropy_sums(self, *given), _dice_sums(self, *given)])

    def finish(self, total: Tensor) -> Tensor:
        """Return the weighted sum of both."""
        return self.lambda_ce * ratio(total[:2]) + self.lambda_dice * super().finish(total[2:])


def _take_weight(loss: CrossEntropy | Dice) -> None:
    """Make the weights of a loss a tuple, so that equal losses are equal and say their values."""
    if loss.weight is None:
        return
    weight = tuple(float(w) for w in loss.weight)
    if not all(0 <= w < math.inf for w in weight) or not any(weight):
        raise InvalidInput(
            f"weights of classes are 0 or above, not all 0, one for each; got {weight}"
        )
    object.__setattr__(loss, "weight", weight)


def _read(loss: CrossEntropy | Dice, outputs: Outputs, target: Outputs) -> tuple[Tensor, Truth]:
    scores = scores_of(outputs)
    channels = scores.shape[1]
    if loss.weight is not None and len(loss.weight) != channels:
        raise InvalidInput(
            f"there is one weight for each class; got {len(loss.weight)} for scores of"
            f" {channels} channels: give {channels} weights"
        )
    if isinstance(loss, Dice) and channels <= loss._first:
        raise InvalidInput(
            f"Dice without background has no class left in scores of {channels} channel; leave"
            " include_background=True"
        )
    return scores, truth_of(scores, target, ignore=loss.ignore, sigmoid=loss.sigmoid)


def _cross_entropy_sums(loss: CrossEntropy | Dice, scores: Tensor, truth: Truth) -> Tensor:
    # One class after another, as a sum in float64 first copies what it sums to float64.
    sums, counts = [], []
    if loss.sigmoid:
        for number, values in enumerate(scores.unbind(1)):
            true = truth.classes[number].to(values.dtype)
            entropy = F.binary_cross_entropy_with_logits(values, true, reduction="none")
            sums.append(sum_each(truth.kept(number, entropy)).sum())
            counts.append(sum_each(truth.kept(number, torch.ones_like(true))).sum())
    else:
        for number, values in enumerate(F.log_softmax(scores, 1).unbind(1)):
            sums.append(-sum_each(truth.within(number, values)).sum())
            counts.append(truth.size(number).sum())
    above, below = torch.stack(sums), torch.stack(counts)
    if loss.weight is not None:
        weight = above.new_tensor(loss.weight)
        above, below = weight * above, weight * below
    if not loss.sigmoid and not truth.labelled:
        below = below.new_tensor(scores.numel() / scores.shape[1])  # voxels, as torch counts them
    return torch.stack([above.sum(), below.sum()])


def _dice_sums(loss: Dice, scores: Tensor, truth: Truth) -> Tensor:
    chances = scores.sigmoid() if loss.sigmoid else scores.softmax(1)
    rows = [
        torch.stack(
            [
                sum_each(truth.within(number, values)),
                sum_each(truth.kept(number, values)),
                truth.size(number),
            ],
            1,
        )
        for number, values in enumerate(chances.unbind(1))
        if number >= loss._first
    ]
    each = torch.stack(rows, 1)  # (N, C, 3)
    return (each.sum(0) if loss.batch else each).flatten()
