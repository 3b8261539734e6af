"""A network as data, and boxes of its nodes, computed from an image and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from volflow.geometry.roi import Roi
from volflow.model.copies import Copies, Upload
from volflow.model.device import arithmetic, numbered, on_device, pick_device
from volflow.model.forward import (
    explaining_half,
    mirrored_outputs,
    resolve_precision,
)
from volflow.model.resident import forward_lock, made_once, resident
from volflow.partition.graph import Graph, Window, compute, crop, named_outputs, needed
from volflow.partition.reach import trace_any
from volflow.partition.reductions import statistic_of
from volflow.passes.activations import ActivationStore

__all__ = ["Blockwise", "Flipped", "ImageReader", "Network", "Sent"]

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

    @property
    def place(self) -> torch.device:
        """The device, with its number, of a network that is `resolved`."""
        return numbered(torch.device(self.device))

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
        # A module that is given is planned for, wherever it lies.
        place = self.place if module is None else next(iter(places), torch.device("cpu"))
        cast = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))  # to other dtypes
        key = net, places, place, cast, self.channels, self.sizes, self.dtype, self.flips
        return made_once(self.digest, key, partial(self._traced, net, place))

    def _traced(self, module: nn.Module, place: torch.device) -> Graph:
        shown = Flipped(module, self.flips) if self.flips else module
        with explaining_half(shown, self.dtype):
            return trace_any(shown, self.channels, self.sizes, self.torch_dtype, place)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute without gradients and in the precision, on the device.

        One thread at a time is in here for a GPU, to which it only hands work; on the CPU nothing
        of the process is set, and each computes for itself.
        """
        device = self.place
        alone = nullcontext() if device.type == "cpu" else forward_lock(device)
        with (
            on_device(device), alone, torch.inference_mode(), arithmetic(device, self.precision),
        ):  # fmt: skip
            yield


@dataclass(frozen=True)
class Sent:
    """What a block is computed from, on its way to a device: boxes of nodes."""

    parts: Mapping[int, tuple[Roi, Upload]]

    def taken(self) -> dict[int, Window]:
        """Return it by node, for work on the current stream, which will wait for it."""
        return {n: Window(upload.taken()[0], box) for n, (box, upload) in self.parts.items()}


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

    def read(self, graph: Graph, number: int, box: Roi) -> Array:
        """Return a box of the image, or of a node that was kept, with the dims of the node."""
        if number in self.stores:
            kept = self.stores[number].read(box)
            return kept.reshape(*graph.nodes[number].shape[:2], *box.shape)
        return np.ascontiguousarray(self.image(box))[None]

    def send(self, graph: Graph, targets: Mapping[int, Roi], copies: Copies) -> Sent:
        """Read all that boxes of nodes are computed from, and begin to copy it to a device.

        Parameters
        ----------
        graph, targets
            As for `compute`.
        copies
            To the network's device.
        """
        boxes = needed(graph, targets, {0, *self.stores, *self.statistics})
        parts = {}
        for number in sorted({0, *self.stores} & boxes.keys()):
            if boxes[number].size:
                # One after the other, so that only one is in this machine's memory as it was read.
                upload = copies.upload([self.read(graph, number, boxes[number])])
                parts[number] = boxes[number], upload
        for number, value in self._known(graph, torch.device("cpu")).items():
            parts[number] = Roi.full(graph.sizes(number)), copies.upload([value.numpy()])
        return Sent(parts)

    def compute(
        self, graph: Graph, targets: Mapping[int, Roi], sent: dict[int, Window] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Compute boxes of nodes, in the caller's mode (see `Network.inference`).

        Parameters
        ----------
        graph
            Of the network.
        targets
            Boxes by node.
        sent
            What they are computed from, on the device (`send`); parts leave it as they are used.
            By default it is read now: on the CPU each part as late as possible.

        Yields
        ------
        number, values
            Of each target as soon as it is there, a tensor of its box on the network's device.
        """
        if sent is None and graph.device.type != "cpu":
            sent = self.send(graph, targets, Copies(graph.device)).taken()
        known = {} if sent is not None else self._known(graph, graph.device)

        def fetch(number: int, box: Roi) -> Tensor:
            if sent is not None:
                # A target that is not computed is fetched again, behind all others.
                window = sent[number] if number in targets else sent.pop(number)
                return crop(window, box, graph.nodes[number].dims).values
            if number in known:
                return known[number]
            return torch.from_numpy(self.read(graph, number, box))

        yield from compute(graph, targets, {0, *self.stores, *self.statistics}, fetch)

    def _known(self, graph: Graph, device: torch.device) -> dict[int, Tensor]:
        return {
            number: statistic_of(graph, number).finish(merged, device)
            for number, merged in self.statistics.items()
        }
