"""Boxes of a network's nodes, computed from an image, kept activations and known statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, compute
from volflow.partition.reductions import statistic_of
from volflow.passes.activations import ActivationStore
from volflow.passes.network import Network

__all__ = ["Blockwise", "ImageReader"]

Array = npt.NDArray[Any]

# A box of the network's image ``(channels, *box.shape)`` in the network's dtype. Boxes may reach
# into the padding beyond the volume, which holds zeros.
ImageReader = Callable[[Roi], Array]


@dataclass(frozen=True)
class Blockwise:
    """Computes boxes of a network's nodes; small and picklable where its reader is.

    Parameters
    ----------
    network
        The network.
    image
        Reads a box of its image.
    stores
        Activations that were kept, by node.
    statistics
        Merged statistics of the whole image, by node.
    """

    network: Network
    image: ImageReader
    stores: Mapping[int, ActivationStore] = field(default_factory=dict)
    statistics: Mapping[int, Array] = field(default_factory=dict)

    def compute(self, graph: Graph, targets: Mapping[int, Roi]) -> Iterator[tuple[int, Tensor]]:
        """Compute boxes of nodes, in the caller's mode (see `Network.inference`).

        Parameters
        ----------
        graph
            Of the network.
        targets
            Boxes by node.

        Yields
        ------
        number, values
            Of each target as soon as it is there, a tensor of its box on the network's device.
        """
        device = torch.device(self.network.device)
        known = {
            number: statistic_of(graph, number).finish(merged, graph.device)
            for number, merged in self.statistics.items()
        }

        def fetch(number: int, box: Roi) -> Tensor:
            if number in known:
                return known[number]
            if number in self.stores:
                kept = torch.from_numpy(self.stores[number].read(box))
                return kept.reshape(*graph.nodes[number].shape[:2], *box.shape).to(device)
            return torch.from_numpy(np.ascontiguousarray(self.image(box)))[None].to(device)

        yield from compute(graph, targets, {0, *self.stores, *known}, fetch)
