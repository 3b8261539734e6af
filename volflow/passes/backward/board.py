"""What blocks of a pass read on a worker: the image, what is kept on disk, and gradients of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph
from volflow.partition.reductions import Partial
from volflow.passes.backward.contributions import Contributions
from volflow.passes.network import Blockwise, tensor_of

__all__ = ["DiskBoard"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class DiskBoard:
    """Implements `volflow.partition.gradients.Board` for the tasks of a pass.

    Parameters
    ----------
    graph
        The network, on the device that computes.
    blockwise
        The image, what is kept, and the statistics.
    contributions
        What readers gave of the nodes that the pass stores.
    pulls
        Gradients of the values of the statistics that it measures.
    """

    graph: Graph
    blockwise: Blockwise
    contributions: Mapping[int, Contributions] = field(default_factory=dict)
    pulls: Mapping[int, Array] = field(default_factory=dict)

    def fetch(self, node: int, box: Roi) -> Tensor:
        """Return a box of the image or of a node that is kept, on the device."""
        values = tensor_of(self.blockwise.read(self.graph, node, box))
        return values.to(self.graph.device, self.graph.nodes[node].dtype)

    def statistic(self, node: int) -> Partial:
        """Return a merged statistic."""
        return self.blockwise.statistics[node]

    def taken(self, node: int, box: Roi) -> Tensor | None:
        """Return the gradient of a box of a node, on the device."""
        if node not in self.contributions:
            return None
        total = self.contributions[node].read(box)
        if total is None:
            return None
        shape = self.graph.nodes[node].shape[:2]
        return tensor_of(total.reshape(*shape, *box.shape)).to(self.graph.device)

    def pull(self, node: int) -> Tensor | None:
        """Return the gradient of a statistic's value, on the device."""
        if node not in self.pulls:
            return None
        return torch.from_numpy(self.pulls[node]).to(self.graph.device)
