"""Resident memory of this process: its size, its peak, and returning free memory."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

__all__ = [
    "BETWEEN_LOOKS_BYTES",
    "MemoryGuard",
    "begin_peak",
    "give_back",
    "peak_bytes",
    "resident_bytes",
]

# Memory is returned before the budget is reached, as the next allocation adds to it.
GIVE_BACK_SHARE = 0.6
# Bytes that readers, writers and a forward may allocate between two checks.
BETWEEN_LOOKS_BYTES = 96 * 2**20


def give_back() -> None:
    """Return free memory to the system, which allocators otherwise keep."""
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes."""
    return int(_process(os.getpid()).memory_info().rss)


@cache
def _process(pid: int) -> psutil.Process:
    return psutil.Process(pid)


def begin_peak() -> int:
    """Start to record the peak of resident memory, and return the bytes resident now."""
    give_back()  # else the next allocations would seem to cost nothing
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_bytes()
    return resident_bytes()


def peak_bytes() -> int:
    """Return the peak resident bytes since `begin_peak`; off Linux, since the process started."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


class MemoryGuard:
    """Returns free memory to the system when a task nears its budget.

    The allocator keeps memory freed by many threads in fragments that the next run cannot use.
    Unless they are returned, resident memory grows from run to run although nothing is held.

    Parameters
    ----------
    budget_bytes
        Bytes that the task may add to the memory that is resident when the guard is made.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        give_back()  # leftovers of the last task do not belong to this one's base
        self.base_bytes = resident_bytes()

    def trim(self, next_bytes: int = 0) -> None:
        """Return free memory if the budget is near, or too near for `next_bytes` more."""
        ahead = max(next_bytes, BETWEEN_LOOKS_BYTES)
        room = min(GIVE_BACK_SHARE * self.budget_bytes, self.budget_bytes - ahead)
        if resident_bytes() - self.base_bytes > room:
            give_back()
