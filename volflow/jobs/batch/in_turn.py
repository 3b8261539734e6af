"""Cases one after the other, several of them at a time, until one stops them all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextvars import copy_context
from typing import TypeVar

__all__ = ["SMALL_VOXELS", "in_turn"]

# A volume of at most so many voxels is one block, which one worker computes.
SMALL_VOXELS = 2**24

J = TypeVar("J")
R = TypeVar("R")


def in_turn(
    jobs: Sequence[J],
    work: Callable[[J], R],
    at_once: int,
    stop: threading.Event,
    halt: Callable[[], object],
) -> Generator[R, None, None]:
    """Yield the results of jobs as they end, several at a time in threads of this process.

    Parameters
    ----------
    jobs, work
        What is done with each.
    at_once
        How many at a time; a single one is done by the thread that asks, which signals interrupt.
    stop
        Set where no further job shall begin.
    halt
        Called where a job raised, or the caller stops: it ends what is at work sooner.

    Examples
    --------
    >>> sorted(in_turn([1, 2, 3], lambda n: n * n, 2, threading.Event(), lambda: None))
    [1, 4, 9]
    """
    if at_once == 1:
        yield from map(work, jobs)
        return

    def begin(job: J) -> list[R]:
        return [] if stop.is_set() else [work(job)]

    with ThreadPoolExecutor(at_once, "volflow-case") as pool:
        # Who watches runs, and how long they wait, stands in the context of this thread.
        futures = [pool.submit(copy_context().run, begin, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield from future.result()
        except BaseException:
            stop.set()
            halt()
            raise
