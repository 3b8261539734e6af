"""Pinned memory, and the copies from and to it that the host does not know to be done.

A copy to the host puts garbage into its destination until the host has waited for it; what a copy
from the host read is compared with what stands there when the host has waited. So whoever reads or
writes too early, through torch or NumPy, gets wrong voxels and is logged.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tests.gpu.stand_in.clocks import Accesses, Clocks, Place, StreamId, place_of

__all__ = ["Copies", "PinnedMemory", "Pins", "raw_bits"]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def raw_bits(values: torch.Tensor) -> torch.Tensor:
    """The values as integers of the same bits, so that NaN equals itself."""
    flat = values.detach().contiguous()
    if flat.dtype.is_complex:
        flat = torch.view_as_real(flat)
    return flat.view(_BITS[flat.element_size()])


def garbage_for(values: torch.Tensor) -> torch.Tensor:
    """Values that differ from the given ones everywhere."""
    if values.dtype == torch.bool:
        return ~values
    if values.dtype.is_complex:
        return torch.view_as_complex(garbage_for(torch.view_as_real(values.contiguous())))
    return raw_bits(values).bitwise_not().view(values.dtype).view(values.shape)


@dataclass(eq=False)
class PinnedMemory:
    """One pinned allocation and what launches do to it."""

    start: int
    size: int
    accesses: Accesses

    def place(self, tensor: torch.Tensor) -> Place:
        """The bytes of a tensor in it, whatever storage object the tensor has."""
        place = place_of(tensor)
        return place._replace(start=tensor.data_ptr() - self.start)


class Pins:
    """Which host memory is pinned, by address: views through NumPy are pinned, too."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._starts: list[int] = []
        self._by_start: dict[int, PinnedMemory] = {}
        self._gone: deque[int] = deque()
        self.peak = 0

    @property
    def bytes(self) -> int:
        """Bytes that are pinned now."""
        with self._lock:
            self._forget()
            return sum(memory.size for memory in self._by_start.values())

    def add(self, tensor: torch.Tensor) -> None:
        """Make the storage of a tensor known as pinned for as long as it lives."""
        storage = tensor.untyped_storage()
        start, size = storage.data_ptr(), storage.nbytes()
        if not size:
            return
        with self._lock:
            self._forget()
            bisect.insort(self._starts, start)
            self._by_start[start] = PinnedMemory(start, size, Accesses())
            self.peak = max(self.peak, self.bytes)
        # A finalizer may run at any time in any thread, so it only notes what a later call does.
        weakref.finalize(storage, self._gone.append, start).atexit = False

    def _forget(self) -> None:
        while self._gone:
            start = self._gone.popleft()
            del self._by_start[start]
            self._starts.remove(start)

    def find(self, tensor: torch.Tensor) -> PinnedMemory | None:
        """Return the pinned memory in which a tensor lies."""
        if not self._starts or not tensor.numel():
            return None
        address = tensor.data_ptr()
        with self._lock:
            self._forget()
            n = bisect.bisect_right(self._starts, address)
            found = self._by_start[self._starts[n - 1]] if n else None
        return found if found is not None and address < found.start + found.size else None


@dataclass(eq=False)
class Pending:
    """A copy that the host does not know to be done."""

    host: torch.Tensor
    place: Place
    memory: PinnedMemory
    values: torch.Tensor
    garbage: torch.Tensor | None
    stream: StreamId
    number: int
    label: str

    def settle(self) -> str | None:
        """Bring the host's side to what it is after the copy; return what went wrong."""
        expected = self.values if self.garbage is None else self.garbage
        changed = not torch.equal(raw_bits(self.host), raw_bits(expected))
        if self.garbage is not None:
            with torch.inference_mode():  # in which both kinds of tensors may be changed
                self.host.copy_(self.values)
        if not changed:
            return None
        side = "source" if self.garbage is None else "destination"
        return f"the host changed the {side} of a copy before it knew it done: {self.label}"


class Copies:
    """The copies under way between pinned memory and the devices.

    Parameters
    ----------
    clocks
        Which tell what the host knows.
    """

    def __init__(self, clocks: Clocks) -> None:
        self.clocks = clocks
        self.pending: list[Pending] = []

    def from_host(
        self, host: torch.Tensor, memory: PinnedMemory, launch: tuple[StreamId, int, str]
    ) -> None:
        """Note a copy from the host."""
        place = memory.place(host)
        self.pending.append(Pending(host, place, memory, host.clone(), None, *launch))

    def to_host(
        self,
        host: torch.Tensor,
        memory: PinnedMemory,
        launch: tuple[StreamId, int, str],
        values: torch.Tensor,
    ) -> None:
        """Note a copy to the host, which does not find the values there yet."""
        garbage = garbage_for(values)
        host.copy_(garbage)
        place = memory.place(host)
        self.pending.append(Pending(host, place, memory, values, garbage, *launch))

    def supersede(self, memory: PinnedMemory, place: Place) -> None:
        """Let earlier copies of the same bytes end: whoever launches a copy now comes after them.

        Races between copies are found by the accesses of the pinned memory.
        """
        self._end([p for p in self.pending if p.memory is memory and p.place.overlaps(place)])

    def settle(self) -> None:
        """End the copies that the host now knows to be done."""
        self._end([p for p in self.pending if self._known(p)])

    def end_all(self) -> None:
        """End all copies, at the end of a test."""
        self._end(list(self.pending))

    def _known(self, pending: Pending) -> bool:
        return self.clocks.covers({pending.stream: pending.number})

    def _end(self, copies: Sequence[Pending]) -> None:
        for copy in copies:
            self.pending.remove(copy)
            wrong = copy.settle()
            if wrong:
                self.clocks.report(wrong)

    def touched(self, tensor: torch.Tensor, memory: PinnedMemory, writes: bool) -> list[str]:
        """Return what is wrong with the host's reading or writing a tensor now."""
        place = memory.place(tensor)
        return [
            f"the host {'writes' if writes else 'reads'} {tuple(tensor.shape)} while it may be"
            f" under way: {copy.label}"
            for copy in self.pending
            if copy.memory is memory
            and (writes or copy.garbage is not None)
            and copy.place.overlaps(place)
        ]
