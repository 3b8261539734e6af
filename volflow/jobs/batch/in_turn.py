"""Cases one after the other, several of them at a time, until one stops them all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["SMALL_VOXELS", "in_turn", "small_first"]

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


def small_first(
    jobs: Sequence[J],
    is_small: Callable[[J], bool],
    work: Callable[[J, int, bool], R | None],
    at_once: int,
    client: Client,
    memory_bytes: int,
    stop: threading.Event,
    halt: Callable[[], object],
) -> Generator[R, None, None]:
    """Yield the results of jobs: of small ones several at a time, then of each other one alone.

    Parameters
    ----------
    jobs, is_small
        What is done, and what of it is done several at a time.
    work
        Called with a job, its budget, and whether it is alone; if not, it may return None, by which
        the job comes again when it is.
    at_once, stop, halt
        As in `in_turn`.
    client, memory_bytes
        Where it is done, and within which budget per worker.
    """
    from volflow.engine.admission.sharing import sharing
    from volflow.engine.cluster import is_embedded

    at_once = min(at_once, len(jobs))
    # On a cluster each has a worker to itself, as a rule.
    shares = at_once if is_embedded(client) else 1
    small: list[J] = []
    alone: list[J] = []
    for job in jobs:
        (small if at_once > 1 and is_small(job) else alone).append(job)

    def shared(job: J) -> tuple[J, R | None]:
        with sharing(shares):
            return job, work(job, memory_bytes // shares, False)

    with closing(in_turn(small, shared, at_once, stop, halt)) as ended:
        for job, done in ended:
            if done is None:
                alone.append(job)
            else:
                yield done
    for job in alone:
        done = work(job, memory_bytes, True)
        if done is not None:
            yield done
