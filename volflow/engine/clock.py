"""Seconds per stage of a task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Clock"]


class Clock:
    """Seconds per stage: by step for progress, by block for the journal.

    Examples
    --------
    >>> clock = Clock()
    >>> with clock.stage("read"):
    ...     pass
    >>> list(clock.take_step()), list(clock.take_step())
    (['read'], [])
    """

    def __init__(self) -> None:
        self.step: dict[str, float] = {}
        self.block: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a block of code."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere, as in another thread."""
        for stages in (self.step, self.block):
            stages[name] = stages.get(name, 0.0) + seconds

    def take_step(self) -> dict[str, float]:
        """The seconds since the last step."""
        taken, self.step = self.step, {}
        return taken

    def take_block(self) -> dict[str, float]:
        """The seconds since the last block."""
        taken, self.block = self.block, {}
        return taken
