"""Feeds: who reads superchunks ahead of the trainer. All give the same voxels in the same order.

A feed never runs ahead by itself: the window asks it for one superchunk at a time and holds back
when its credit is used up, so that workers cannot flood the process that trains.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from volflow.engine.cluster import Cluster, connect
from volflow.errors import InvalidInput, RunFailed
from volflow.geometry.roi import Roi
from volflow.sampling.cases.cases import Case

__all__ = ["Feed", "Loaded", "open_feed"]

Array = npt.NDArray[Any]
Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Loaded:
    """The arrays of a superchunk, ``czyx``, and the seconds it took to read them."""

    arrays: Mapping[str, Array]
    seconds: float
    buffers: Mapping[str, Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.arrays.values())


class Feed(Protocol):
    """Reads superchunks."""

    def read(self, case: Case, roi: Roi) -> Callable[[], Loaded]:
        """Begin to read a box of a case; the result is waited for by a call."""

    def free(self, loaded: Loaded) -> None:
        """Take back what is no longer needed."""


def load(case: Case, roi: Roi, names: Names, buffers: Mapping[str, Array] | None = None) -> Loaded:
    """Read a box of every array of a case."""
    begin_s = time.perf_counter()
    arrays = {}
    for name in names:
        out = None
        if buffers is not None:
            shape, dtype = (case.channels(name), *roi.shape), case.dtype(name)
            out = buffers[name][: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
        arrays[name] = case.read(name, roi, out)
    return Loaded(arrays, time.perf_counter() - begin_s, buffers)


class ThreadFeed:
    """Threads of this process, which hand the same few buffers round: fresh memory is dear."""

    def __init__(self, names: Names, sizes: Mapping[str, int], threads: int) -> None:
        self.names, self.sizes = names, sizes
        self.pool = ThreadPoolExecutor(threads, "volflow-read")
        self.spare: SimpleQueue[Mapping[str, Array]] = SimpleQueue()

    def read(self, case: Case, roi: Roi) -> Callable[[], Loaded]:
        """Begin in one of the threads."""
        if self.spare.empty():
            buffers: Mapping[str, Array] = {
                name: np.empty(size, np.uint8) for name, size in self.sizes.items()
            }
        else:
            buffers = self.spare.get()
        return self.pool.submit(load, case, roi, self.names, buffers).result

    def free(self, loaded: Loaded) -> None:
        """Keep the buffers for what is read next."""
        if loaded.buffers is not None:
            self.spare.put(loaded.buffers)


class ClusterFeed:
    """Workers of a Dask cluster, which read and preprocess; results come here one by one."""

    def __init__(self, names: Names, client: Any) -> None:
        self.names, self.client, self.asked = names, client, 0
        self.under_way: set[Any] = set()

    def read(self, case: Case, roi: Roi) -> Callable[[], Loaded]:
        """Begin on some worker; earlier ones go first."""
        self.asked += 1
        try:
            future = self.client.submit(
                load, case, roi, self.names, pure=False, priority=-self.asked
            )
        except TypeError as error:  # what Dask makes of an array that cannot be sent
            if isinstance(error.__cause__, InvalidInput):
                raise error.__cause__ from None
            raise
        self.under_way.add(future)

        def result() -> Loaded:
            try:
                loaded: Loaded = future.result()
            except Exception as error:
                if self.client.status == "running" and not isinstance(error, CancelledError):
                    raise
                raise RunFailed(
                    "the cluster that reads for the stream was closed; go on from its state_dict()"
                    " in a stream on another"
                ) from error
            self.under_way.discard(future)
            future.release()  # the worker's copy
            return loaded

        return result

    def free(self, loaded: Loaded) -> None:
        """Nothing is kept: what a worker sent is its own memory."""

    def close(self) -> None:
        """Wait for what is under way, which is little: workers complain of cancelled reads."""
        for future in self.under_way:
            if self.client.status == "running":
                with suppress(CancelledError):
                    future.exception()
            future.release()


@contextmanager
def open_feed(
    cluster: Cluster, names: Names, sizes: Mapping[str, int], threads: int
) -> Iterator[Feed]:
    """The feed of a stream: threads of this process, or a cluster where one is given.

    Parameters
    ----------
    cluster
        None: own threads; else as in `volflow.engine.cluster.connect`.
    names, sizes
        The arrays, and the bytes of each in the largest superchunk.
    threads
        That read at a time.
    """
    if cluster is not None:
        with connect(cluster) as client:
            workers = ClusterFeed(names, client)
            try:
                yield workers
            finally:
                workers.close()
        return
    feed = ThreadFeed(names, sizes, threads)
    try:
        yield feed
    finally:
        feed.pool.shutdown(wait=True, cancel_futures=True)
