"""What becomes of the outputs of the last pass, and the gradients that come back from it.

Either a loss is summed over the blocks, or the outputs are stored, and whoever has taken them whole
gives their gradients back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.gradients import BlockLoss, loss_upstream
from volflow.passes.activations import ActivationStore
from volflow.passes.network import for_numpy

__all__ = ["Head", "LossHead", "ScoresHead"]

Array = npt.NDArray[Any]


class Head(Protocol):
    """The end of a network; small and picklable."""

    def receive(self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]) -> Array:
        """Take the outputs of a block, by node; return its sums, float64 of one dim."""

    def upstream(
        self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]
    ) -> Mapping[int, Tensor]:
        """Return the gradients of the outputs of a block."""


@dataclass(frozen=True, eq=False)
class LossHead:
    """A loss that is a function of sums over blocks.

    Parameters
    ----------
    loss
        The loss; it reads its target.
    vector
        Gradient of the loss's value with respect to its sums; None before all are known.
    """

    loss: BlockLoss
    vector: Array | None = None

    def receive(self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]) -> Array:
        """Return the sums of a block."""
        with torch.no_grad():
            found: Array = self.loss.sums(outputs, boxes).double().cpu().numpy()
        return found

    def upstream(
        self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]
    ) -> Mapping[int, Tensor]:
        """Return the gradients of the outputs of a block."""
        assert self.vector is not None
        device = next(iter(outputs.values())).device
        return loss_upstream(self.loss, torch.from_numpy(self.vector).to(device))(outputs, boxes)


@dataclass(frozen=True, eq=False)
class ScoresHead:
    """Outputs that are stored whole.

    Parameters
    ----------
    stores
        Where they are stored, by node, in the blocks of the last pass.
    gradients
        Their gradients once they are known, by node, ``(N, C, *axes)``: memory-mapped files.
    """

    stores: Mapping[int, ActivationStore]
    gradients: Mapping[int, str] | None = None

    def receive(self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]) -> Array:
        """Store the outputs of a block."""
        for node, values in outputs.items():
            store = self.stores[node]
            store.write(store.index(boxes[node]), for_numpy(values).cpu().numpy())
        return np.empty(0)

    def upstream(
        self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]
    ) -> Mapping[int, Tensor]:
        """Return the gradients of the outputs of a block."""
        assert self.gradients is not None
        found = {}
        for node, values in outputs.items():
            if node in self.gradients:
                whole = np.load(self.gradients[node], mmap_mode="r")
                part = np.array(whole[(..., *boxes[node].slices())])  # a copy, which may be written
                found[node] = torch.from_numpy(part).to(values.device)
        return found
