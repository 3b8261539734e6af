"""From blended scores to what is stored: activation, classes, small dtypes, background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.errors import Damaged, InvalidInput
from volflow.infer import device_finish
from volflow.store.slabs import refuse_complex

__all__ = ["Activation", "Finish"]

NO_NUMBER = (
    "the model produced NaN or infinity; check its weights, its normalisation and whether the"
    " volume itself is finite (volflow statistics)"
)

Activation = str | Callable[[torch.Tensor], torch.Tensor] | None

# Rows come as NumPy arrays on the CPU, whose vector loops give an element the same bits wherever
# it lies; as tensors they are finished where they are (`volflow.infer.device_finish`).


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
        if isinstance(scores_CZYX, torch.Tensor):
            launched = self.launch(scores_CZYX, covered_ZYX)
            return self.arrived(*(tensor.numpy(force=True) for tensor in launched))
        with np.errstate(over="ignore", invalid="ignore"):  # the sum of large scores, of ±inf
            total = float(scores_CZYX.sum())
        if not np.isfinite(total) and not bool((abs(scores_CZYX) < float("inf")).all()):
            raise Damaged(NO_NUMBER)
        if self.output == "classes":
            rows = self._classes(scores_CZYX)
        else:
            rows = self._cast(self._activate(scores_CZYX))
        if covered_ZYX is not None:
            rows[..., ~covered_ZYX] = self.fill
        return rows

    def launch(
        self, scores_CZYX: torch.Tensor, covered_ZYX: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Finish tensors where they are; nobody waits for a device.

        Returns
        -------
        rows
            As a call returns them.
        extremes
            The lowest and the highest score, and those of what is stored. Both are for `arrived`,
            once they are in this machine's memory.
        """
        found = [*scores_CZYX.aminmax()]
        if self.output == "classes":
            if len(scores_CZYX) == 1 or callable(self.activation):
                scores_CZYX = self._activate_tensor(scores_CZYX)
            rows = device_finish.classes(scores_CZYX, self.dtype)
        else:
            values = self._activate_tensor(scores_CZYX)
            if self._narrows(values.dtype.itemsize):
                found += values.aminmax()
            rows = device_finish.cast(values, self.dtype)
        if covered_ZYX is not None:
            rows = device_finish.filled(rows, covered_ZYX, self.fill, self.dtype)
        return rows, torch.stack(found)

    def arrived(self, rows: npt.NDArray[Any], extremes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the rows that were launched; raises as a call does."""
        if not np.isfinite(extremes[:2]).all():
            raise Damaged(NO_NUMBER)
        with np.errstate(over="ignore"):
            cast = extremes[2:].astype(rows.dtype)
        if not np.isfinite(cast).all():
            raise self._too_high(extremes[2:])
        return rows

    def _narrows(self, given_bytes: int) -> bool:
        """Return True if what is stored may be too high for its floating dtype."""
        dtype = np.dtype(self.dtype)
        return dtype.kind not in "iu" and dtype.itemsize < given_bytes

    def _classes(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if len(scores) == 1:
            return np.asarray((self._activate(scores)[0] > 0.5).astype(self.dtype))
        if callable(self.activation):  # a function of the user's may reorder scores
            scores = self._activate(scores)
        best, classes = scores[0].copy(), np.zeros(scores.shape[1:], self.dtype)
        for channel in range(1, len(scores)):
            better = scores[channel] > best
            np.copyto(best, scores[channel], where=better)
            classes[better] = channel
        return classes

    def _activate(self, scores: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.activation is None:
            return scores
        if callable(self.activation):
            return self._call(self.activation, torch.from_numpy(scores)).numpy()
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

    def _activate_tensor(self, scores: torch.Tensor) -> torch.Tensor:
        if self.activation is None:
            return scores
        if callable(self.activation):
            return self._call(self.activation, scores)
        return scores.softmax(0) if self.activation == "softmax" else scores.sigmoid()

    def _call(
        self, function: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor
    ) -> torch.Tensor:
        result = function(given)
        refuse_complex(result, "what activation returns")
        if result.shape != given.shape:
            raise InvalidInput(
                f"activation must keep the shape of the scores: got {tuple(result.shape)}"
                f" for {tuple(given.shape)}"
            )
        # NumPy has no bfloat16.
        return result.float() if result.dtype == torch.bfloat16 else result

    def _cast(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        dtype = np.dtype(self.dtype)
        if dtype.kind not in "iu":
            with np.errstate(over="ignore"):
                cast = values.astype(dtype, copy=False)
            if self._narrows(values.dtype.itemsize) and not np.isfinite(cast).all():
                raise self._too_high(values)
            return cast
        limits = np.iinfo(dtype)
        # The largest of 64 bits is no float: one step below it, lest it wrap.
        top = limits.max if dtype.itemsize < 8 else np.nextafter(float(limits.max), 0)
        rounded = np.rint(values).astype(np.float64)
        return np.asarray(np.clip(rounded, limits.min, top).astype(dtype))

    def _too_high(self, values: npt.NDArray[Any]) -> InvalidInput:
        return InvalidInput(
            f"scores reach {float(abs(values).max()):g}, which {self.dtype} cannot hold; use"
            f" dtype={values.dtype.name!r}, or an activation that bounds them"
        )
