"""A network as data: which module, for an image of which shape, on which device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from volflow.model.forward import pick_device
from volflow.model.precision import explaining_half, resolve_precision
from volflow.model.resident import resident
from volflow.partition.graph import Graph
from volflow.partition.reach import trace_any

__all__ = ["Flipped", "Network"]


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
        """Return the mean of the outputs, turned back; tensors or tuples or dicts of them."""
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
        """Return the graph of the resident model, or of a given one; node numbers are the same."""
        if module is None:
            module = resident(self.digest, torch.device(self.device))
        if self.flips:
            module = Flipped(module, self.flips)
        with explaining_half(module, self.dtype):
            return trace_any(module, self.channels, self.sizes, self.torch_dtype)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Compute without gradients, under autocast where the precision is bfloat16."""
        kind, low = torch.device(self.device).type, self.precision == "bfloat16"
        with torch.inference_mode(), torch.autocast(kind, dtype=torch.bfloat16, enabled=low):
            yield
