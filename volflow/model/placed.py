"""A module on a device and in a memory layout: itself where it lies so already, else a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pickle import PicklingError
from typing import Any

import cloudpickle
import torch
from torch import Tensor, nn

from volflow.errors import InvalidInput, first_line

__all__ = ["placed_module", "snapshot"]


def snapshot(module: nn.Module, known: dict[int, Any] | None = None) -> nn.Module:
    """Return a copy of a module.

    Parameters
    ----------
    module
        Any.
    known
        What stands for some of its tensors in the copy, by their `id`, where it can be had so.
    """
    try:
        return copy.deepcopy(module, known)
    except RuntimeError:  # after training weight_norm keeps a tensor that only pickle copies
        found: nn.Module = cloudpickle.loads(cloudpickle.dumps(module))
        return found


def placed_module(module: nn.Module, device: torch.device, layout: str) -> nn.Module:
    """Return a module on a device: itself if it lies there already, else a copy.

    Parameters
    ----------
    module
        Any; it is not changed.
    device
        With its number.
    layout
        Of the weights on a GPU: "contiguous", or "channels_last". On a CPU they are left as they
        are.

    Raises
    ------
    InvalidInput
        Where it cannot be copied.

    Examples
    --------
    >>> net = nn.Conv3d(1, 1, 3)
    >>> placed_module(net, torch.device("cpu"), "contiguous") is net
    True
    """
    if all(_is_placed(one, device, layout) for one in _tensors(module)):
        return module
    # What is made in inference mode cannot be trained, and a copy may be handed on.
    with torch.inference_mode(False), torch.no_grad():
        # Each tensor goes to the device by itself: the host needs no memory for a second copy.
        known = {id(one): _placed(one, device, layout) for one in _tensors(module)}
        try:
            copied = snapshot(module, known)
        except (TypeError, AttributeError, PicklingError) as error:
            raise InvalidInput(
                f"the model cannot be copied to {device}: {first_line(error)}; move it there"
                f' yourself, as by model.to("{device}")'
            ) from error
        copied.to(device)  # what a module keeps beside its weights
        for one in _tensors(copied):
            if not _is_placed(one, device, layout):
                one.data = _placed(one, device, layout).data
        return copied


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _format(tensor: Tensor, device: torch.device, layout: str) -> torch.memory_format | None:
    """Return the memory format of a tensor in a layout; None where it may have any."""
    if device.type != "cuda" or tensor.ndim not in (4, 5):
        return None
    last = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
    return last if layout == "channels_last" else torch.contiguous_format


def _is_placed(tensor: Tensor, device: torch.device, layout: str) -> bool:
    if device.type != "cuda":
        return tensor.device.type == device.type
    wanted = _format(tensor, device, layout)
    placed = wanted is None or tensor.is_contiguous(memory_format=wanted)
    return placed and tensor.device == device


def _placed(tensor: Tensor, device: torch.device, layout: str) -> Tensor:
    wanted = _format(tensor, device, layout)
    moved = tensor.detach().to(device)
    if wanted is not None:
        moved = moved.contiguous(memory_format=wanted)
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
