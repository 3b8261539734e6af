"""The memory layout and the batch of a forward on a GPU, found by timing it.

How fast a convolution is depends on its shape, on the version of cuDNN, and on the layout of its
images and weights, by factors that nobody can foresee. So both layouts are tried, then larger
batches as long as they gain.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from volflow.errors import InvalidInput
from volflow.model.device import (
    MOST_ELEMENTS,
    device_memory,
    give_back_device,
    is_out_of_memory,
    mark_peak,
    numbered,
    on_device,
    read_peak,
    timed,
)
from volflow.model.forward import Forward, Output, tried_outputs
from volflow.model.resident import drop_copy, trials_of

__all__ = ["MOST_BATCH", "Choice", "search"]

MOST_BATCH = 64
# A layout must be faster by this share to be taken, a batch of twice the size per patch.
LAYOUT_GAIN, BATCH_GAIN = 0.03, 0.05
TIMINGS = 10  # at most: a short forward takes longer now and then
# Of a device's budget, for a forward; sums, patches and rows that wait take the rest.
FORWARD_SHARE = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Choice:
    """What a search found.

    Parameters
    ----------
    outputs
        Of the model.
    batch_size, layout
        What was fastest.
    peak_bytes, memory_bytes
        What a forward takes of the device's memory, and what a task may take.
    """

    outputs: tuple[Output, ...]
    batch_size: int
    layout: str
    peak_bytes: int
    memory_bytes: int


def search(forward: Forward, batch_size: int | None, most: int, asked_bytes: int | None) -> Choice:
    """Return how a forward is fastest on a GPU within its memory.

    Parameters
    ----------
    forward
        On a GPU.
    batch_size
        If one is asked for, it is tried as it is; halved if it does not fit.
    most
        Patches of a row, of which batches are made.
    asked_bytes
        Of the device's memory that the user allows; None for what is free.

    Raises
    ------
    InvalidInput
        Where the model does not take such a batch, or one patch does not fit, or has too many
        elements somewhere in the network.
    MemoryRefused
        Where more is asked for than is free.
    """
    device = numbered(torch.device(forward.device))
    with on_device(device):
        # The first forward loads libraries: it is not timed, and what it takes is not counted.
        first = partial(_first, forward, device, batch_size or 1)
        outputs, largest, size = _remembered(forward, ("first", device, batch_size), first)
        layout = partial(_best_layout, forward, device, size)
        forward, best = _remembered(forward, ("layout", device, size), layout)
        forward.module()  # before what is free is asked for
        memory_bytes = device_memory(device, asked_bytes)
        if batch_size is None:
            room = int(FORWARD_SHARE * memory_bytes)
            limits = min(most, MOST_BATCH, MOST_ELEMENTS // largest), room
            size, best = _best_batch(forward, device, best, limits)
            # Batches of a row that are alike take as many forwards, and less memory.
            size = -(-most // -(-most // size))
        return Choice(outputs, size, forward.layout, best.peak_bytes, memory_bytes)


@dataclass(frozen=True)
class Tried:
    """Seconds and peak bytes of a forward."""

    seconds: float
    peak_bytes: int


class Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an op makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def _remembered(forward: Forward, key: Hashable, found: Callable[[], T]) -> T:
    """Return what a trial of this process found, so that a loop over many cases tries once."""
    known = trials_of(forward.digest).setdefault((forward, key), [])
    if not known:
        known.append(found())
    result: T = known[0]
    return result


def _zeros(forward: Forward, device: torch.device, size: int) -> torch.Tensor:
    shape = (size, forward.channels, *forward.patch)
    return torch.zeros(shape, dtype=forward.torch_dtype, device=device)


def _first(
    forward: Forward, device: torch.device, size: int
) -> tuple[tuple[Output, ...], int, int]:
    """Return outputs, elements of the largest tensor per patch, and the batch that fitted."""
    forward.module()  # moved before anything is counted
    while True:
        seen = Largest()
        try:
            with seen:
                outputs = tried_outputs(forward, _zeros(forward, device, size))
            break
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
            size = forward.halved(size, error)
    largest = -(-seen.elements // size)  # at least those of the patch itself
    if seen.elements > MOST_ELEMENTS:
        fit = MOST_ELEMENTS // largest
        remedy = f"batch_size={fit} (--batch-size)" if fit else "a smaller patch"
        raise InvalidInput(
            f"a batch of {size} patches of {forward.patch} makes a tensor of {seen.elements:,}"
            f" elements in the network, and a GPU takes {MOST_ELEMENTS:,}; use {remedy}"
        )
    return outputs, largest, size


def _best_layout(forward: Forward, device: torch.device, size: int) -> tuple[Forward, Tried]:
    """Return the forward in the faster layout, and its trial."""
    best = _tried(forward, device, size)
    ndim = 5 if forward.dropped is None else 4
    if any(weight.ndim == ndim for weight in forward.module().parameters()):
        other = replace(forward, layout="channels_last")
        try:
            found = _tried(other, device, size)
            if found.seconds < (1 - LAYOUT_GAIN) * best.seconds:
                forward, best, other = other, found, forward
        except Exception as error:  # a model may take no other layout, and say so in any way
            _clear(error, device)
        drop_copy(other.digest, device, other.layout)
    return forward, best


def _best_batch(
    forward: Forward, device: torch.device, best: Tried, limits: tuple[int, int]
) -> tuple[int, Tried]:
    """Double the batch while each patch gets faster; return its size and its trial."""
    size, (most, room_bytes) = 1, limits
    while size < most and 2 * best.peak_bytes <= room_bytes:
        next_size = min(2 * size, most)
        tried = partial(_tried, forward, device, next_size)
        try:
            found = _remembered(forward, ("batch", device, next_size), tried)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _clear(error, device)
            break
        per_patch = found.seconds / next_size
        if found.peak_bytes > room_bytes or per_patch > best.seconds / size / (1 + BATCH_GAIN):
            break
        size, best = next_size, found
    return size, best


def _tried(forward: Forward, device: torch.device, size: int) -> Tried:
    """Return the time and the peak of a forward of so many patches, the batch included."""
    forward.module()  # moved, if it must be, before its peak is measured
    give_back_device(device)
    before, kept = mark_peak(device), torch.cuda.memory_reserved(device)
    batch = _zeros(forward, device, size)
    seconds = timed(device, partial(forward, batch), most=TIMINGS)
    if forward.fallback:  # a patch that overflows may take more
        forward.fallback(batch[:1])
    peak = read_peak(device) - before
    # The allocator takes whole segments, and what it cannot cut well is lost to all others.
    peak = max(peak, torch.cuda.max_memory_reserved(device) - kept)
    return Tried(seconds, peak)


def _clear(error: BaseException, device: torch.device) -> None:
    """Give back what a failed forward has made, which its frames hold."""
    traceback.clear_frames(error.__traceback__)
    give_back_device(device)
