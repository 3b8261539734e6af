"""From blended scores to what is stored: activation, classes, small dtypes, background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.errors import InvalidInput

__all__ = ["Activation", "Finish"]

Activation = str | Callable[[torch.Tensor], torch.Tensor] | None

# numpy, not torch, on the CPU: its vector loops give an element the same bits wherever it lies.
ELEMENTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Finish:
    """How rows of scores become rows of the output.

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
    >>> finish(torch.tensor([0.1, 0.7]).reshape(2, 1, 1, 1)).tolist()
    [[[1]]]
    """

    output: str
    activation: Activation
    dtype: str
    fill: float = 0

    def __call__(
        self, scores_CZYX: torch.Tensor, covered_ZYX: torch.Tensor | None = None
    ) -> npt.NDArray[Any]:
        """Rows to store: ``CZYX`` scores or ``ZYX`` classes; the given scores are used up."""
        if not bool(torch.isfinite(scores_CZYX.sum())) and not bool(
            torch.isfinite(scores_CZYX).all()
        ):
            raise InvalidInput(
                "the model produced NaN or infinity; check its weights, its normalisation and"
                " whether the volume itself is finite (volflow statistics)"
            )
        if self.output == "classes":
            rows = self._classes(scores_CZYX)
        else:
            rows = self._cast(self._activate(scores_CZYX).cpu().numpy())
        if covered_ZYX is not None:
            rows[..., ~covered_ZYX.cpu().numpy()] = self.fill
        return rows

    def _classes(self, scores: torch.Tensor) -> npt.NDArray[Any]:
        if len(scores) == 1:
            return (self._activate(scores)[0].cpu().numpy() > 0.5).astype(self.dtype)
        if callable(self.activation):  # a function of the user's may reorder scores
            scores = self._activate(scores)
        if scores.device.type != "cpu":
            return scores.argmax(0).to(torch.int32).cpu().numpy().astype(self.dtype)
        values = scores.numpy()
        best, classes = values[0].copy(), np.zeros(values.shape[1:], self.dtype)
        for channel in range(1, len(values)):
            better = values[channel] > best
            np.copyto(best, values[channel], where=better)
            classes[better] = channel
        return classes

    def _activate(self, scores: torch.Tensor) -> torch.Tensor:
        if self.activation is None:
            return scores
        if callable(self.activation):
            result = self.activation(scores)
            if result.shape != scores.shape:
                raise InvalidInput(
                    f"activation must keep the shape of the scores: got {tuple(result.shape)}"
                    f" for {tuple(scores.shape)}"
                )
            return result
        if scores.device.type != "cpu":
            return scores.softmax(0) if self.activation == "softmax" else scores.sigmoid()
        values = scores.numpy()
        rows = max(1, ELEMENTS_AT_ONCE // max(1, values[0, 0].size))
        for low in range(0, values.shape[1], rows):
            part = values[:, low : low + rows]
            if self.activation == "softmax":
                part -= part.max(axis=0)
                np.exp(part, out=part)
                part /= part.sum(axis=0)
            else:
                np.negative(part, out=part)
                with np.errstate(over="ignore"):  # exp(89) is infinite in float32: the score is 0
                    np.exp(part, out=part)
                part += 1
                np.reciprocal(part, out=part)
        return scores

    def _cast(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        dtype = np.dtype(self.dtype)
        if dtype.kind not in "iu":
            return values.astype(dtype, copy=True)
        limits = np.iinfo(dtype)
        top = (
            np.nextafter(np.float32(limits.max), np.float32(0))
            if dtype.itemsize > 2
            else limits.max
        )
        return np.clip(np.rint(values), limits.min, top).astype(dtype)
