"""From blended scores to what is stored: activation, classes, small dtypes, background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.errors import Damaged, InvalidInput
from volflow.store.slabs import refuse_complex

__all__ = ["Activation", "Finish"]

Activation = str | Callable[[torch.Tensor], torch.Tensor] | None

# Rows come as NumPy arrays on the CPU, whose vector loops give an element the same bits wherever
# it lies, and as tensors on a GPU.


@dataclass(frozen=True)
class Finish:
    """Turns rows of scores into rows of the output: activation, classes, dtype, background.

    Parameters
    ----------
    output
        ``"scores"``: float32 ``czyx`` (or ``dtype``; integers round and clip).
        ``"classes"``: ``zyx``, the channel of the highest score, the first of equals; of a single
        channel, 1 where the activated score exceeds 0.5.
    activation
        Applied to blended scores: ``"softmax"`` over channels, ``"sigmoid"``, a function of a
        ``CZYX`` tensor, or None.
    dtype
        What is stored.
    fill
        The value of voxels that no patch covered: the background class, or a score.

    Examples
    --------
    >>> finish = Finish("classes", None, "uint8")
    >>> finish(np.array([0.1, 0.7]).reshape(2, 1, 1, 1)).tolist()
    [[[1]]]
    """

    output: str
    activation: Activation
    dtype: str
    fill: float = 0

    def __call__(self, scores_CZYX: Any, covered_ZYX: Any = None) -> npt.NDArray[Any]:
        """Return rows to store, ``CZYX`` scores or ``ZYX`` classes; may overwrite what is given."""
        with np.errstate(over="ignore", invalid="ignore"):  # the sum of large scores, of ±inf
            total = float(scores_CZYX.sum())
        if not np.isfinite(total) and not bool((abs(scores_CZYX) < float("inf")).all()):
            raise Damaged(
                "the model produced NaN or infinity; check its weights, its normalisation and"
                " whether the volume itself is finite (volflow statistics)"
            )
        if self.output == "classes":
            rows = self._classes(scores_CZYX)
        else:
            rows = self._cast(_to_numpy(self._activate(scores_CZYX)))
        if covered_ZYX is not None:
            rows[..., ~_to_numpy(covered_ZYX)] = self.fill
        return rows

    def _classes(self, scores: Any) -> npt.NDArray[Any]:
        if len(scores) == 1:
            return (_to_numpy(self._activate(scores)[0]) > 0.5).astype(self.dtype)
        if callable(self.activation):  # a function of the user's may reorder scores
            scores = self._activate(scores)
        if isinstance(scores, torch.Tensor):
            return _to_numpy(scores.argmax(0).to(torch.int32)).astype(self.dtype)
        best, classes = scores[0].copy(), np.zeros(scores.shape[1:], self.dtype)
        for channel in range(1, len(scores)):
            better = scores[channel] > best
            np.copyto(best, scores[channel], where=better)
            classes[better] = channel
        return classes

    def _activate(self, scores: Any) -> Any:
        if self.activation is None:
            return scores
        if callable(self.activation):
            return self._call(self.activation, scores)
        if isinstance(scores, torch.Tensor):
            return scores.softmax(0) if self.activation == "softmax" else scores.sigmoid()
        if self.activation == "softmax":
            scores -= scores.max(axis=0)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=0)
        else:
            np.negative(scores, out=scores)
            with np.errstate(over="ignore"):  # exp(89) is infinite in float32: the score is 0
                np.exp(scores, out=scores)
            scores += 1
            np.reciprocal(scores, out=scores)
        return scores

    def _call(self, function: Callable[[torch.Tensor], torch.Tensor], scores: Any) -> Any:
        given = scores if isinstance(scores, torch.Tensor) else torch.from_numpy(scores)
        result = function(given)
        refuse_complex(result, "what activation returns")
        if result.shape != given.shape:
            raise InvalidInput(
                f"activation must keep the shape of the scores: got {tuple(result.shape)}"
                f" for {tuple(given.shape)}"
            )
        if result.dtype == torch.bfloat16:  # NumPy has none
            result = result.float()
        return result if isinstance(scores, torch.Tensor) else result.numpy()

    def _cast(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        dtype = np.dtype(self.dtype)
        if dtype.kind not in "iu":
            with np.errstate(over="ignore"):
                cast = values.astype(dtype, copy=False)
            if dtype.itemsize < values.dtype.itemsize and not np.isfinite(cast).all():
                raise InvalidInput(
                    f"scores reach {float(abs(values).max()):g}, which {dtype} cannot hold; use"
                    f" dtype={values.dtype.name!r}, or an activation that bounds them"
                )
            return cast
        limits = np.iinfo(dtype)
        # The largest of 64 bits is no float: one step below it, lest it wrap.
        top = limits.max if dtype.itemsize < 8 else np.nextafter(float(limits.max), 0)
        rounded = np.rint(values).astype(np.float64)
        return np.asarray(np.clip(rounded, limits.min, top).astype(dtype))


def _to_numpy(values: Any) -> npt.NDArray[Any]:
    return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
