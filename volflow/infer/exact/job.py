"""What a task of an exact prediction knows, and how it computes a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from volflow.geometry.frame import Frame
from volflow.geometry.normalize import Normalization
from volflow.geometry.roi import Roi
from volflow.infer.finish import Finish
from volflow.infer.patches.feed import Inputs, apply_function
from volflow.model.forward import pick_device
from volflow.model.precision import explaining_half, resolve_precision
from volflow.model.resident import resident
from volflow.partition.graph import Graph, compute
from volflow.partition.moments import statistic_of
from volflow.partition.reach import trace_any
from volflow.passes.activations import Kept

__all__ = ["Blockwise", "ExactOutput", "Flipped", "Network", "Plane", "read_image"]

Array = npt.NDArray[Any]


class Flipped(nn.Module):
    """A network averaged over mirrored copies of its image.

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

    def forward(self, image: Tensor) -> Any:
        """The mean of the outputs, turned back; tensors or tuples or dicts of them."""
        copies: list[list[int]] = [[]]
        for axis in self.axes:
            copies += [[*dims, 2 + axis] for dims in copies]
        results = []
        for dims in copies:
            raw = self.module(image.flip(dims) if dims else image)
            results.append(_each(raw, lambda x, dims=dims: x.flip(dims) if dims else x))
        return _mean(results)


def _each(raw: Any, change: Any) -> Any:
    if isinstance(raw, Tensor):
        return change(raw)
    if isinstance(raw, Mapping):
        return {name: change(value) for name, value in raw.items()}
    return tuple(change(value) for value in raw)


def _mean(results: list[Any]) -> Any:
    if isinstance(results[0], Tensor):
        return sum(results[1:], results[0]) / len(results)
    if isinstance(results[0], dict):
        return {name: _mean([result[name] for result in results]) for name in results[0]}
    return tuple(_mean(list(values)) for values in zip(*results, strict=True))


@dataclass(frozen=True)
class Network:
    """A resident model as a graph for a volume of one shape; small and picklable.

    Parameters
    ----------
    digest
        The resident model.
    channels, sizes
        Of its image, padded to the network's alignment; two sizes for a network of slices.
    dropped
        The axis of the frame that such a network does not see.
    device, precision, dtype
        As for a forward of patches.
    flips
        Axes over whose mirrored copies it is averaged.
    """

    digest: str
    channels: int
    sizes: tuple[int, ...]
    dropped: int | None
    device: str
    precision: str
    dtype: str
    flips: tuple[int, ...] = ()

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of its input."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def here(self) -> Network:
        """The same with the device that "auto" means here; in float32 unless it says otherwise."""
        device = pick_device(self.device)
        asked = "float32" if self.precision == "auto" else self.precision
        precision = resolve_precision(asked, device, self.dtype)
        return replace(self, device=str(device), precision=precision)

    def graph(self, module: nn.Module | None = None) -> Graph:
        """The graph of the resident model, or of one at hand; node numbers are the same."""
        if module is None:
            module = resident(self.digest, torch.device(self.device))
        if self.flips:
            seen = [a for a in range(3) if a != self.dropped]
            module = Flipped(module, tuple(seen.index(a) for a in self.flips if a in seen))
        with explaining_half(module, self.dtype):
            return trace_any(module, self.channels, self.sizes, self.torch_dtype)


def read_image(inputs: Inputs, box: Roi, dtype: str) -> Array:
    """A box of the image ``(C, *box)`` as the network sees it: scaled, zeros beyond the volume."""
    frame = inputs.frame
    inside = box.clip(inputs.shape)
    result = np.zeros((inputs.channels, *box.shape), dtype)
    if not inside.size:
        return result
    stored = frame.stored_roi(inside, inputs.volumes[0].spatial_shape)
    z, y, x = inside.relative_to(box.start).slices()
    first = 0
    for volume, normalize in zip(inputs.volumes, inputs.normalize, strict=True):
        raw = volume.read(stored)
        part = result[first : first + volume.channels_count, z, y, x]
        shown = frame.show(raw if raw.ndim == 4 else raw[None])
        if isinstance(normalize, Normalization):
            normalize.apply(shown, part)
        elif callable(normalize):
            part[...] = apply_function(normalize, shown.astype(dtype))
        else:
            part[...] = shown
        first += volume.channels_count
    return result


@dataclass(frozen=True)
class Plane:
    """The image of a box of one slice, ``(C, *box)``."""

    image: Array
    box: Roi


@dataclass(frozen=True)
class Blockwise:
    """Computes boxes of a network's nodes from the image and from what was kept.

    Parameters
    ----------
    inputs, network
        The image and the model.
    given
        What was kept, by node.
    statistics
        What was measured of the whole volume, by node.
    """

    inputs: Inputs
    network: Network
    given: Mapping[int, Kept] = field(default_factory=dict)
    statistics: Mapping[int, Array] = field(default_factory=dict)

    def compute(
        self, graph: Graph, targets: Mapping[int, Roi], plane: Plane | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """The values of boxes of nodes, as soon as each is there.

        Parameters
        ----------
        graph
            Of the network.
        targets
            Boxes by node.
        plane
            The image of one slice, for a network of slices.
        """
        network = self.network
        device = torch.device(network.device)
        known = {
            number: statistic_of(graph, number).finish(merged, graph.device)
            for number, merged in self.statistics.items()
        }

        def fetch(number: int, box: Roi) -> Tensor:
            if number in known:
                return known[number]
            if number in self.given:
                kept = torch.from_numpy(self.given[number].read(box))
                return kept.reshape(*graph.nodes[number].shape[:2], *box.shape).to(device)
            if plane is None:
                image = read_image(self.inputs, box, network.dtype)
            else:
                inner = box.relative_to(plane.box.start).slices()
                image = np.ascontiguousarray(plane.image[(slice(None), *inner)])
            return torch.from_numpy(image)[None].to(device)

        at_hand = {0, *self.given, *known}
        autocast = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=network.precision == "bfloat16"
        )
        with torch.inference_mode(), autocast:
            yield from compute(graph, targets, at_hand, fetch)

    def slices(self, box: Roi, low: int, high: int) -> Array:
        """The image of some slices, for a network of slices: a box of each, ``(C, *axes)``."""
        dropped = self.network.dropped
        assert dropped is not None
        start, stop = list(box.start), list(box.stop)
        start.insert(dropped, low)
        stop.insert(dropped, high)
        return read_image(self.inputs, Roi(tuple(start), tuple(stop)), self.network.dtype)


@dataclass(frozen=True)
class ExactOutput:
    """Turns boxes of a network's outputs into what is stored.

    Parameters
    ----------
    names
        Node number by the output's name.
    scale
        Input voxels per output voxel, along the frame's axes.
    finish
        What becomes of the scores.
    frame
        Of the network.
    """

    names: Mapping[str, int]
    scale: tuple[int, ...]
    finish: Finish
    frame: Frame

    def rows(self, scores: Array) -> Array:
        """Finished voxels of a box, ``CZYX`` or ``ZYX`` in frame order, a few rows at a time."""
        step = max(1, 2**22 // max(1, scores[:, :1].size))
        return np.concatenate(
            [
                # A copy: it may be finished in place, and outputs may share their memory.
                self.finish(scores[:, low : low + step].copy())
                for low in range(0, scores.shape[1], step)
            ],
            axis=-3,
        )
