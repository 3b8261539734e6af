"""Who has waited for whom: vector clocks of streams and host, and the races they show.

As in ``torch.cuda._sanitizer``: each launch gets a number; a stream knows, of every other stream,
the last number that it has waited for. Two launches that touch the same bytes, one of them writing,
race unless the later one's stream knows of the earlier. Unlike there, ranges of bytes are compared,
so that two streams may work in two parts of one buffer, and host and pinned memory take part.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["Access", "Accesses", "Clocks", "Place", "Race", "StreamId", "place_of", "whereabouts"]

# Accesses of one piece of memory that are remembered before those that all know of are dropped.
MOST_ACCESSES = 64


class StreamId(NamedTuple):
    """A stream by the number of its device and its own; 0 is the default stream."""

    device: int
    number: int

    def __str__(self) -> str:
        return f"cuda:{self.device} stream {self.number}"


class Race(AssertionError):
    """Work that would run in an order that nothing ensures; tells all that were found."""


class Place(NamedTuple):
    """The bytes that a tensor covers in its storage."""

    start: int
    item: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The first byte behind the last."""
        if 0 in self.shape:
            return self.start
        reach = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        return self.start + reach + self.item

    def overlaps(self, other: Place) -> bool:
        """Whether two tensors of one storage share a byte; True where that is hard to tell."""
        if self.start >= other.stop or other.start >= self.stop:
            return False
        low = min(self.start, other.start)
        # Never touched, so it takes addresses but no memory.
        memory = np.zeros(max(self.stop, other.stop) - low, np.uint8)
        arrays = [
            np.ndarray((*p.shape, p.item), np.uint8, memory, p.start - low, (*p.strides, 1))
            for p in (self, other)
        ]
        try:
            return bool(np.shares_memory(*arrays, max_work=10**6))
        except np.exceptions.TooHardError:
            return True


def place_of(tensor: torch.Tensor) -> Place:
    """The bytes of a CPU tensor in its storage."""
    item = tensor.element_size()
    return Place(
        tensor.storage_offset() * item,
        item,
        tuple(tensor.shape),
        tuple(s * item for s in tensor.stride()),
    )


@dataclass(frozen=True)
class Access:
    """One launch that touched some memory."""

    stream: StreamId
    number: int
    place: Place
    writes: bool
    what: str
    where: str

    def __str__(self) -> str:
        return (
            f"{self.what} {'writes' if self.writes else 'reads'} on {self.stream} at {self.where}"
        )


@dataclass
class Accesses:
    """What launches have done to one piece of memory, as far as it may still matter."""

    latest: dict[tuple[StreamId, bool, Place], Access] = field(default_factory=dict)

    def add(self, access: Access, clocks: Clocks) -> None:
        """Note an access; log a race with each earlier one that it does not come after."""
        for earlier in self.latest.values():
            if (
                earlier.stream != access.stream
                and (earlier.writes or access.writes)
                and not clocks.knows(access.stream, earlier)
                and earlier.place.overlaps(access.place)
            ):
                clocks.report(f"{access}, without having waited for: {earlier}")
        if len(self.latest) > MOST_ACCESSES:
            self.latest = {k: a for k, a in self.latest.items() if not clocks.host_knows(a)}
        self.latest[access.stream, access.writes, access.place] = access

    def unknown_to(self, stream: StreamId, clocks: Clocks) -> Iterator[Access]:
        """Yield the accesses of other streams that a stream has not waited for."""
        for access in list(self.latest.values()):
            if not clocks.knows(stream, access):
                yield access


class Clocks:
    """What each stream, and the host, know to be done.

    Parameters
    ----------
    on_host
        Called whenever the host has learned of more.
    """

    def __init__(self, on_host: Callable[[], None]) -> None:
        self.races: list[str] = []
        self._on_host = on_host
        self._number = 0
        self._streams: dict[StreamId, dict[StreamId, int]] = {}
        self._host: dict[StreamId, int] = {}

    def launch(self, stream: StreamId) -> int:
        """Number the next launch of a stream; the host gives it what it knows."""
        self._number += 1
        known = self._known(stream)
        _merge(known, self._host)
        known[stream] = self._number
        return self._number

    def _known(self, stream: StreamId) -> dict[StreamId, int]:
        return self._streams.setdefault(stream, {})

    def recorded(self, stream: StreamId) -> dict[StreamId, int]:
        """What an event knows that is recorded on a stream now."""
        return dict(self._known(stream))

    def wait(self, stream: StreamId, known: dict[StreamId, int]) -> None:
        """Let a stream wait for an event."""
        _merge(self._known(stream), known)

    def host_waits(self, known: dict[StreamId, int]) -> None:
        """Let the host wait for an event."""
        _merge(self._host, known)
        self._on_host()

    def host_waits_for_stream(self, stream: StreamId) -> None:
        """Let the host wait for all work of a stream."""
        self.host_waits(self._known(stream))

    def host_waits_for_device(self, device: int) -> None:
        """Let the host wait for all work of a device."""
        for stream in [s for s in self._streams if s.device == device]:
            self.host_waits(self._known(stream))

    def knows(self, stream: StreamId, access: Access) -> bool:
        """Whether work launched on a stream now comes after an access."""
        known = max(
            self._streams.get(stream, {}).get(access.stream, 0), self._host.get(access.stream, 0)
        )
        return access.number <= known or access.stream == stream

    def host_knows(self, access: Access) -> bool:
        """Whether the host knows that an access is done."""
        return access.number <= self._host.get(access.stream, 0)

    def covers(self, known: dict[StreamId, int]) -> bool:
        """Whether the host knows all that an event knows."""
        return all(number <= self._host.get(stream, 0) for stream, number in known.items())

    def report(self, race: str) -> None:
        """Log a race."""
        self.races.append(race)


def _merge(known: dict[StreamId, int], other: dict[StreamId, int]) -> None:
    for stream, number in list(other.items()):
        known[stream] = max(known.get(stream, 0), number)


def whereabouts() -> str:
    """The line of code outside torch, and outside the stand-in, that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/" not in name and "/stand_in/" not in name and "contextlib" not in name:
            return f"{name}:{frame.f_lineno} ({frame.f_code.co_name})"
        frame = frame.f_back
    return "an unknown line"
