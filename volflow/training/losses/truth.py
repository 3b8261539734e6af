"""What a target says of each class: labels, probabilities, or masks of classes that overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from volflow.errors import InvalidInput
from volflow.training.losses.loss import Outputs, sum_each

__all__ = ["Truth", "target_at", "truth_of"]


@dataclass(frozen=True)
class Truth:
    """What a target says of each class.

    Parameters
    ----------
    classes
        Of each class, the voxels that belong to it (bool), or with which probability: ``(N, …)``.
    counted
        Of each class, the voxels that count; None where all do.
    labelled
        Whether the target was of labels, so that each voxel that counts has one class.
    """

    classes: tuple[Tensor, ...]
    counted: tuple[Tensor | None, ...]
    labelled: bool

    def within(self, number: int, values: Tensor) -> Tensor:
        """Return values ``(N, …)`` times the truth of a class, where they count."""
        true = self.classes[number]
        if true.dtype == torch.bool:
            return self.kept(number, torch.where(true, values, 0))
        return self.kept(number, values * true)

    def kept(self, number: int, values: Tensor) -> Tensor:
        """Return values ``(N, …)``, and 0 in the voxels that do not count for a class."""
        counted = self.counted[number]
        return values if counted is None else torch.where(counted, values, 0)

    def size(self, number: int) -> Tensor:
        """Return how much of each sample belongs to a class: float64 ``(N,)``."""
        return sum_each(self.kept(number, self.classes[number]))


def truth_of(scores: Tensor, target: Outputs, *, ignore: int | None, sigmoid: bool) -> Truth:
    """Return what a target says of each class of scores ``(N, C, …)``.

    Parameters
    ----------
    target
        Labels ``(N, …)`` or ``(N, 1, …)``, or a value from 0 to 1 for each class, ``(N, C, …)``.
    ignore
        The label, or with `sigmoid` the value of a mask, of voxels that count for nothing.
    sigmoid
        Whether the classes may overlap: then the target is a mask for each.

    Raises
    ------
    InvalidInput
        If the target has another shape, or holds what is no label or no probability.
    """
    if not isinstance(target, Tensor):
        raise InvalidInput(
            f"the target of one output is a tensor; got a {type(target).__name__};"
            " losses.deep(loss) takes several"
        )
    samples, channels, *sides = scores.shape
    if target.shape == (samples, *sides):
        target = target.unsqueeze(1)
    if channels == 1 and not sigmoid:
        raise InvalidInput(
            "the softmax of one channel is always 1; got scores of shape"
            f" {tuple(scores.shape)}: use sigmoid=True, or scores of two classes"
        )
    if target.shape == scores.shape:
        return _dense(target, ignore, sigmoid=sigmoid)
    if target.shape != (samples, 1, *sides) or sigmoid:
        raise InvalidInput(_wrong_shape(scores, target, sigmoid=sigmoid))
    return _labelled(target.squeeze(1), channels, ignore)


def _wrong_shape(scores: Tensor, target: Tensor, *, sigmoid: bool) -> str:
    samples, _, *sides = scores.shape
    dense, flat = tuple(scores.shape), (samples, *sides)
    got = f"scores are {dense}, the target {tuple(target.shape)}"
    if sigmoid:
        return (
            f"with sigmoid=True the target holds a mask for each class, here {dense}; {got}: stack"
            " masks of the classes, or leave sigmoid out where each voxel has one class"
        )
    return (
        f"a target holds labels, here {flat} or {(samples, 1, *sides)}, or a probability for each"
        f" class, {dense}; {got}: cut or resample it to the voxels of the scores"
    )


def _labelled(target: Tensor, channels: int, ignore: int | None) -> Truth:
    labels = target.long()  # in narrow types, a comparison with a large number wraps around
    right = (labels >= 0) & (labels < channels)
    if target.is_floating_point():
        right &= labels == target
    counted = None if ignore is None else labels != ignore
    if counted is not None:
        right |= ~counted
    if not right.all():
        wrong = ", ".join(f"{value:g}" for value in target[~right].double().unique()[:5].tolist())
        raise InvalidInput(
            f"labels for scores of {channels} channels are whole numbers from 0 to {channels - 1}"
            f"{'' if ignore is None else f', or {ignore}, which is ignored'}; the target also holds"
            f" {wrong}: number the classes so, or give ignore= the label of voxels without a class"
        )
    masks = [labels == number for number in range(channels)]
    if ignore is not None and 0 <= ignore < channels:
        masks[ignore] = torch.zeros_like(masks[ignore])
    return Truth(tuple(masks), (counted,) * channels, labelled=True)


def _dense(target: Tensor, ignore: int | None, *, sigmoid: bool) -> Truth:
    if ignore is not None and not sigmoid:
        raise InvalidInput(
            f"ignore={ignore} is a label, so it needs a target of labels; got probabilities of"
            f" shape {tuple(target.shape)}: give labels, or leave ignore out"
        )
    classes = target.unbind(1)
    # In float64, as in narrow types a comparison with a large number wraps around.
    counted = tuple(None if ignore is None else each.double() != ignore for each in classes)
    for number, (values, kept) in enumerate(zip(classes, counted, strict=True)):
        right = (values >= 0) & (values <= 1)
        if not (right if kept is None else right | ~kept).all():
            raise InvalidInput(
                "a target of shape (N, C, …) holds a value from 0 to 1 for each class"
                f"{'' if ignore is None else f', or {ignore}, which is ignored'}; channel {number}"
                f" holds {values.min().item():g} to {values.max().item():g}: give masks of 0 and 1"
                " or probabilities, or labels of shape (N, …)"
            )
    return Truth(classes, counted, labelled=False)


def target_at(target: Tensor, scale: Sequence[int]) -> Tensor:
    """Return a target at a lower resolution, by the nearest voxel.

    Voxel i is voxel ``s · i + s // 2`` of the target, the one at its centre (of the two beside it,
    the upper), or the last voxel where the centre lies beyond the end. That is how nnU-Net makes
    the targets of deep supervision (``nearest-exact``), and what a box whose corner is a multiple
    of the scale needs of the target is that box of it alone.

    Parameters
    ----------
    target
        Of any leading axes, then the axes of voxels.
    scale
        For each axis of voxels, how many of them make one: the target of an output of sides
        ``⌈n / s⌉``.

    Raises
    ------
    InvalidInput
        If the scale is no whole number of voxels for each of the last axes.

    Examples
    --------
    >>> target_at(torch.arange(8).view(1, 8), (4,)).tolist()
    [[2, 6]]
    >>> target_at(torch.arange(9).view(1, 9), (4,)).tolist()
    [[2, 6, 8]]
    """
    if len(scale) > target.ndim or not all(type(s) is int and s >= 1 for s in scale):
        raise InvalidInput(
            "the scale of a target is a whole number of voxels, at least 1, for each of its last"
            f" axes; got {tuple(scale)} for a target of shape {tuple(target.shape)}"
        )
    for axis, step in enumerate(scale, start=target.ndim - len(scale)):
        if step > 1:
            side = target.shape[axis]
            places = torch.arange(step // 2, side + step // 2, step, device=target.device)
            target = target.index_select(axis, places.clamp(max=side - 1))
    return target
