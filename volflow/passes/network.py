"""A network as data, and boxes of its nodes, computed from an image and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from volflow.errors import NoExactRule
from volflow.geometry.roi import Roi
from volflow.model.copies import Copies, Upload
from volflow.model.device import LOW, arithmetic, numbered, on_device, pick_device
from volflow.model.forward import (
    explaining_half,
    mirrored_outputs,
    resolve_precision,
)
from volflow.model.resident import forward_lock, made_once, resident
from volflow.partition.draws import Draws
from volflow.partition.fusion import fused
from volflow.partition.graph import Graph, Window, compute, crop, named_outputs, needed
from volflow.partition.reach import trace_any
from volflow.partition.reductions import statistic_of
from volflow.passes.activations import ActivationStore

__all__ = ["Blockwise", "Flipped", "ImageReader", "Network", "Sent", "for_numpy", "tensor_of"]

Array = npt.NDArray[Any]

# A box of the image ``(channels, *box.shape)`` in the network's dtype; of a batch, whose dim comes
# first. Boxes may reach into the padding beyond the volume, which holds zeros.
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
    draws
        What random masks depend on, of a network that is trained.
    batch
        Number of images that go through it together.
    followed
        `Graph.identity` of the graph that it is, where another one is refused.
    """

    digest: str
    channels: int
    sizes: tuple[int, ...]
    device: str
    precision: str
    dtype: str
    flips: tuple[int, ...] = ()
    draws: Draws | None = None
    batch: int = 1
    followed: str = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the image and of the outputs."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes."""
        return torch.device(self.device).type == "cpu"

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
        key = net, places, cast, replace(self, device=str(place))
        return made_once(self.digest, key, partial(self._traced, net, place))

    def _traced(self, module: nn.Module, place: torch.device) -> Graph:
        shown = Flipped(module, self.flips) if self.flips else module
        with explaining_half(shown, self.dtype), self._casting():
            graph = trace_any(
                shown,
                self.channels,
                self.sizes,
                self.torch_dtype,
                place,
                training=self.draws,
                batch=self.batch,
            )
        if self.followed and graph.identity != self.followed:
            raise NoExactRule(
                "the network computes something else than when the step began: its mode was changed"
                " between forward and backward, or its forward depends on what changes from call to"
                " call, such as a counter or random numbers of Python or NumPy; make it a function"
                " of its input, its parameters and its buffers alone"
            )
        return fused(graph)

    def _casting(self) -> AbstractContextManager[object]:
        """Cast as the precision says, where dtypes of gradients follow from those of values."""
        low = self.draws is not None and self.precision in LOW
        if not low:
            return nullcontext()
        return torch.autocast(self.place.type, dtype=getattr(torch, self.precision))

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

    @contextmanager
    def training(self) -> Iterator[None]:
        """Compute with gradients and in the precision, on the device, one thread at a time."""
        device = self.place
        alone = nullcontext() if device.type == "cpu" else forward_lock(device)
        with on_device(device), alone, torch.enable_grad(), arithmetic(device, self.precision):
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
        image = np.ascontiguousarray(self.image(box))
        return image.reshape(*graph.nodes[number].shape[:2], *box.shape)

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
            return tensor_of(self.read(graph, number, box))

        yield from compute(graph, targets, {0, *self.stores, *self.statistics}, fetch)

    def _known(self, graph: Graph, device: torch.device) -> dict[int, Tensor]:
        return {
            number: statistic_of(graph, number).finish(merged, device)
            for number, merged in self.statistics.items()
        }


def for_numpy(values: Tensor) -> Tensor:
    """Return a tensor in a dtype that NumPy has: it knows no bfloat16."""
    return values.float() if values.dtype == torch.bfloat16 else values


def tensor_of(values: Array) -> Tensor:
    """Return an array ``(N, C, *axes)`` as a tensor that shares its memory.

    NumPy gives a dim of one any stride. Torch's kernels then take the same tensor for one layout
    here and for another there: the backward of its batch norm returns wrong numbers.

    Examples
    --------
    >>> last = np.zeros((4, 5, 6, 2)).transpose(3, 0, 1, 2)
    >>> tensor_of(last[None]).stride()
    (240, 1, 60, 12, 2)
    """
    tensor = torch.from_numpy(values)
    if len(tensor) != 1:
        return tensor
    return tensor.as_strided(tensor.shape, (tensor.numel(), *tensor.stride()[1:]))
