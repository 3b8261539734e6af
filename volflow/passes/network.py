"""A network as data, and boxes of its nodes, computed from an image and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from volflow.geometry.roi import Roi
from volflow.model.device import pick_device
from volflow.model.forward import (
    explaining_half,
    mirrored_outputs,
    resolve_precision,
)
from volflow.model.resident import made_once, resident
from volflow.partition.graph import Graph, compute, named_outputs
from volflow.partition.reach import trace_any
from volflow.partition.reductions import statistic_of
from volflow.passes.activations import ActivationStore

__all__ = ["Blockwise", "Flipped", "ImageReader", "Network"]

Array = npt.NDArray[Any]

# A box of the network's image ``(channels, *box.shape)`` in the network's dtype. Boxes may reach
# into the padding beyond the volume, which holds zeros.
ImageReader = Callable[[Roi], Array]


class Flipped(nn.Module):
    """A network averaged over mirrored copies of its image, as a module that can be traced.

    Parameters
    ----------
    module
        The network.
    axes
        Axes of the image, counted from 0, along which it is mirrored, in all combinations.
    """

    def __init__(self, module: nn.Module, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.axes = module, axes

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the mean of the outputs by name."""
        copies: list[list[int]] = [[]]
        for axis in self.axes:
            copies += [[*axes, axis] for axes in copies]
        # Journals number the nodes of this graph: all copies come first, then their sums.
        results = [mirrored_outputs(self._outputs, image, axes) for axes in copies]
        return {
            name: sum((result[name] for result in results[1:]), first) / len(results)
            for name, first in results[0].items()
        }

    def _outputs(self, image: Tensor) -> dict[str, Tensor]:
        return named_outputs(self.module(image))


@dataclass(frozen=True)
class Network:
    """A resident model as a graph for an image of one shape; small and picklable.

    Parameters
    ----------
    digest
        The resident model.
    channels, sizes
        Of its image ``(1, channels, *sizes)``, padded to the network's alignment.
    device, precision, dtype
        As for `volflow.model.forward.Forward`.
    flips
        Axes of the image, counted from 0, over whose mirrored copies the network is averaged.
    """

    digest: str
    channels: int
    sizes: tuple[int, ...]
    device: str
    precision: str
    dtype: str
    flips: tuple[int, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the image and of the outputs."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def resolved(self) -> Network:
        """Return the network on the device and in the precision that "auto" means here.

        ``"auto"`` is float32: bfloat16 is not exact, so it must be requested explicitly.
        """
        device = pick_device(self.device)
        asked = "float32" if self.precision == "auto" else self.precision
        precision = resolve_precision(asked, device, self.dtype)
        return replace(self, device=str(device), precision=precision)

    def graph(self, module: nn.Module | None = None) -> Graph:
        """Return the graph of the resident model, or of a given one; node numbers are the same.

        It is traced once while the model is resident.
        """
        net = resident(self.digest, torch.device(self.device)) if module is None else module
        places = frozenset(tensor.device for tensor in (*net.parameters(), *net.buffers()))
        cast = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))  # to other dtypes
        key = net, places, cast, self.channels, self.sizes, self.dtype, self.flips
        return made_once(self.digest, key, partial(self._traced, net))

    def _traced(self, module: nn.Module) -> Graph:
        shown = Flipped(module, self.flips) if self.flips else module
        with explaining_half(shown, self.dtype):
            return trace_any(shown, self.channels, self.sizes, self.torch_dtype)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute without gradients, under autocast if the precision is bfloat16."""
        kind, low = torch.device(self.device).type, self.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(kind, dtype=torch.bfloat16, enabled=low):
            yield


@dataclass(frozen=True)
class Blockwise:
    """Computes boxes of a network's nodes; small and picklable if its reader is.

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
