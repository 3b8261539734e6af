"""Copies between this machine's memory and a device's, beside what computes there.

On a GPU they go through pinned memory on streams of their own, and nobody waits for them but who
needs the values. Torch keeps a pinned buffer until the copy from it or to it is done, so each copy
makes its own, which torch hands on. On the CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from volflow.model.device import numbered, on_device

__all__ = ["Copies", "Download", "Upload"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Upload:
    """Tensors that are on their way to a device."""

    tensors: tuple[Tensor, ...]
    event: Any = None

    def taken(self) -> tuple[Tensor, ...]:
        """Return them, for work on the current stream, which will wait for them."""
        if self.event is not None:
            current = torch.cuda.current_stream(self.tensors[0].device)
            current.wait_event(self.event)
            for tensor in self.tensors:
                tensor.record_stream(current)
        return self.tensors


@dataclass(frozen=True, eq=False)
class Download:
    """Tensors that are on their way from a device."""

    tensors: tuple[Tensor, ...]
    event: Any = None

    def arrived(self) -> tuple[Tensor, ...]:
        """Return them, as soon as they are there."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensors

    def wait(self) -> tuple[Array, ...]:
        """Return them as arrays, as soon as they are there."""
        return tuple(tensor.numpy(force=True) for tensor in self.arrived())


class Copies:
    """The copies of one task to a device and from it.

    Parameters
    ----------
    device
        The CPU, or a GPU.

    Examples
    --------
    >>> copies = Copies(torch.device("cpu"))
    >>> (image,) = copies.upload([np.arange(3.0)]).taken()
    >>> (found,) = copies.download([image * 2]).wait()
    >>> found
    array([0., 2., 4.])
    """

    def __init__(self, device: torch.device) -> None:
        self.device = numbered(device)
        on_gpu = self.device.type == "cuda"
        self.up, self.down = (torch.cuda.Stream(self.device) if on_gpu else None for _ in range(2))

    def upload(
        self,
        arrays: Sequence[Array],
        prepare: Callable[[Sequence[Tensor]], Sequence[Tensor]] = tuple,
    ) -> Upload:
        """Begin to copy arrays to the device; they may be changed when this returns.

        Parameters
        ----------
        arrays
            Of numbers, in any layout; on the CPU they are not copied unless they must be.
        prepare
            What is done with the tensors on the device, beside what computes there.
        """
        if self.up is None:
            return Upload(tuple(prepare([torch.from_numpy(_plain(array)) for array in arrays])))
        with on_device(self.device), torch.cuda.stream(self.up):
            sent = [self._pinned(array).to(self.device, non_blocking=True) for array in arrays]
            return Upload(tuple(prepare(sent)), self.up.record_event())

    def download(self, tensors: Sequence[Tensor]) -> Download:
        """Begin to copy tensors from the device, behind the work on the current stream."""
        if self.down is None:
            return Download(tuple(tensors))
        with on_device(self.device):
            self.down.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.down):
                found = []
                for tensor in tensors:
                    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                    found.append(host.copy_(tensor, non_blocking=True))
                    tensor.record_stream(self.down)
                return Download(tuple(found), self.down.record_event())

    @staticmethod
    def _pinned(array: Array) -> Tensor:
        dtype = torch.from_numpy(np.empty(0, array.dtype.newbyteorder("="))).dtype
        pinned = torch.empty(array.shape, dtype=dtype, pin_memory=True)
        np.copyto(pinned.numpy(), array)
        return pinned


def _plain(array: Array) -> Array:
    """Return an array that torch takes: in one piece, in this machine's byte order."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
