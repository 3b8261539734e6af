"""A network as data: which module, for an image of which shape, on which device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from volflow.model.flips import Flipped
from volflow.model.forward import pick_device
from volflow.model.precision import explaining_half, resolve_precision
from volflow.model.resident import resident
from volflow.partition.graph import Graph
from volflow.partition.reach import trace_any

__all__ = ["Network"]


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
