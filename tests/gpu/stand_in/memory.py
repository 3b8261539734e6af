"""The memory of one device: what is allocated, its peak, its limit, and failures on request."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import torch

from tests.gpu.stand_in.clocks import Accesses, Clocks, StreamId

__all__ = ["Block", "Failure", "Pool"]

# The caching allocator gives out multiples of the one and asks for multiples of the other.
GRAIN_BYTES = 512
SEGMENT_BYTES = 2 * 2**20


@dataclass
class Failure:
    """Allocations that will fail on request."""

    left: int
    above_bytes: int
    message: str
    error: type[Exception]


class Block:
    """One allocation; lives as long as a tensor that looks into it."""

    def __init__(self, pool: Pool, size: int, stream: StreamId) -> None:
        self.pool, self.size, self.stream, self.clocks = pool, size, stream, pool.clocks
        self.accesses = Accesses()
        self.recorded: set[StreamId] = set()

    def __del__(self) -> None:
        """Give the memory back; another stream may still be at work in it.

        Any thread may get here at any time, so this only notes what a later call will do.
        """
        for access in self.accesses.unknown_to(self.stream, self.clocks):
            if access.stream not in self.recorded:
                self.clocks.report(
                    f"memory of {self.stream} is freed while it may be in use: {access};"
                    " record_stream, or wait, before it is dropped"
                )
        pending = {s: n for by in self.recorded for s, n in self.clocks.recorded(by).items()}
        self.pool.freed.append((self.size, pending))


class Pool:
    """The allocator of one device.

    What was freed but recorded on other streams is not handed on before those are done, of which
    only a host that waits is sure: so ``reserved`` is what a device needs that lags far behind.

    Parameters
    ----------
    index, total
        Of the device: its number, and the bytes that it has.
    clocks
        Which tell what the host knows.
    """

    def __init__(self, index: int, total: int, clocks: Clocks) -> None:
        self.index, self.total, self.limit = index, total, total
        self.clocks = clocks
        self.lock = threading.RLock()
        self.freed: deque[tuple[int, dict[StreamId, int]]] = deque()
        self.lingering: list[tuple[int, dict[StreamId, int]]] = []
        self.failures: list[Failure] = []
        self.allocated = self.peak = self.active_peak = 0
        self.reserved = self.reserved_peak = 0
        self.oom_count = 0

    @property
    def active(self) -> int:
        """Bytes that cannot be handed on: allocated, or freed while another stream may use them."""
        return self.allocated + sum(size for size, _ in self.lingering)

    def settle(self) -> None:
        """Take back what was freed meanwhile."""
        with self.lock:
            while self.freed:
                size, pending = self.freed.popleft()
                self.allocated -= size
                self.lingering.append((size, pending))
            self.lingering = [x for x in self.lingering if not self.clocks.covers(x[1])]

    def allocate(self, size: int, stream: StreamId) -> Block:
        """Return a block; raises what torch raises where there is no room or a failure is due."""
        size = -(-size // GRAIN_BYTES) * GRAIN_BYTES
        with self.lock:
            self._take(size)
        return Block(self, size, stream)

    def _take(self, size: int) -> None:
        self.settle()
        self._fail(size)
        if self.allocated + size > self.limit:
            self.oom_count += 1
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU {self.index} has a total"
                f" capacity of {self.total} bytes of which {self.limit - self.allocated} are free."
            )
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        self.active_peak = max(self.active_peak, self.active)
        segments = -(-self.active // SEGMENT_BYTES) * SEGMENT_BYTES
        self.reserved = min(self.limit, max(self.reserved, segments))
        self.reserved_peak = max(self.reserved_peak, self.reserved)

    def _fail(self, size: int) -> None:
        for failure in self.failures:
            if failure.left and size > failure.above_bytes:
                failure.left -= 1
                self.oom_count += 1
                raise failure.error(failure.message)

    def empty_cache(self) -> None:
        """Give back what is reserved but not allocated."""
        with self.lock:
            self.settle()
            self.reserved = -(-self.active // SEGMENT_BYTES) * SEGMENT_BYTES

    def reset_peak(self) -> None:
        """Begin to measure peaks anew."""
        with self.lock:
            self.settle()
            self.peak, self.reserved_peak = self.allocated, self.reserved
            self.active_peak = self.active

    def stats(self) -> dict[str, int]:
        """The figures of ``torch.cuda.memory_stats`` that are known."""
        self.settle()
        return {
            "allocated_bytes.all.current": self.allocated,
            "allocated_bytes.all.peak": self.peak,
            "active_bytes.all.current": self.active,
            "active_bytes.all.peak": self.active_peak,
            "reserved_bytes.all.current": self.reserved,
            "reserved_bytes.all.peak": self.reserved_peak,
            "num_ooms": self.oom_count,
            "num_alloc_retries": 0,
        }
