"""Resident memory of this process: how much, its peak, and giving back what is free."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["Ceiling", "begin_peak", "give_back", "peak_bytes", "resident_bytes"]

# Give back before the budget is reached: what is asked for next comes on top.
GIVE_BACK_SHARE = 0.6


def give_back() -> None:
    """Return memory that is free to the system; allocators keep what they were given."""
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return _status("VmRSS")


def begin_peak() -> int:
    """Begin to watch the peak of resident memory; returns what is resident now."""
    give_back()  # lest what comes next seems to cost nothing
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_bytes()
    return resident_bytes()


def peak_bytes() -> int:
    """The peak of resident memory since `begin_peak`."""
    return _status("VmHWM")


def _status(field: str) -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux: the peak of the process so far
        import resource
        import sys

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return os.sysconf("SC_PAGE_SIZE")


class Ceiling:
    """Gives free memory back when a task nears its budget.

    The allocator keeps what many threads freed, in pieces that the next run cannot use: unless it
    is told to, resident memory grows from run to run though nothing is held.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        give_back()  # what the last task left is not this one's base
        self.base_bytes = resident_bytes()

    def keep(self, next_bytes: int = 0) -> None:
        """Give back what is free if the budget is near, or too near for what comes next."""
        room = min(GIVE_BACK_SHARE * self.budget_bytes, self.budget_bytes - next_bytes)
        if resident_bytes() - self.base_bytes > room:
            give_back()
