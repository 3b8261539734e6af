"""Superchunks in memory, those that lanes are at and those read ahead, and their readers.

All readers give the same voxels in the same order.

A reader never runs ahead by itself: the window asks it for one superchunk at a time and holds back
when its credit is used up, so that workers cannot flood the process that trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.engine.cluster import Cluster, connect
from volflow.errors import InvalidInput, RunFailed
from volflow.geometry.roi import Roi
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.epoch.catalog import PatchCatalog
from volflow.sampling.metrics import Metrics

__all__ = ["SuperchunkWindow", "open_window"]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LoadedSuperchunk:
    """The arrays of a superchunk, ``czyx``, by name, and the seconds that reading them took."""

    arrays: Mapping[str, Array]
    seconds: float
    buffers: Mapping[str, Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.arrays.values())


def load(case: Case, roi: Roi, buffers: Mapping[str, Array] | None = None) -> LoadedSuperchunk:
    """Read a box ``zyx`` of every array of a case, into buffers of bytes where there are any."""
    begin_s = time.perf_counter()
    arrays = {}
    for name in case.sources:
        out = None
        if buffers is not None:
            shape, dtype = (case.channels(name), *roi.shape), case.dtype(name)
            out = buffers[name][: int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
        arrays[name] = case.read(name, roi, out)
    return LoadedSuperchunk(arrays, time.perf_counter() - begin_s, buffers)


class ThreadReader:
    """Threads of this process, which hand the same few buffers round: fresh memory is dear."""

    def __init__(self, voxels: int, threads: int) -> None:
        self.voxels = voxels
        self.pool = ThreadPoolExecutor(threads, "volflow-read")
        self.spare: list[Mapping[str, Array]] = []

    def read(self, case: Case, roi: Roi) -> Callable[[], LoadedSuperchunk]:
        """Begin in one of the threads."""
        if not self.spare:
            sizes = {name: self.voxels * case.voxel_bytes(name) for name in case.sources}
            self.spare.append({name: np.empty(size, np.uint8) for name, size in sizes.items()})
        buffers = self.spare.pop()
        return self.pool.submit(load, case, roi, buffers).result

    def free(self, loaded: LoadedSuperchunk) -> None:
        """Keep the buffers for what is read next."""
        if loaded.buffers is not None:
            self.spare.append(loaded.buffers)

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(wait=True, cancel_futures=True)


class ClusterReader:
    """Workers of a Dask cluster, which read and preprocess; results come here one by one."""

    def __init__(self, client: Any) -> None:
        self.client, self.asked = client, 0
        self.in_flight: set[Any] = set()

    def read(self, case: Case, roi: Roi) -> Callable[[], LoadedSuperchunk]:
        """Begin on some worker; earlier ones go first."""
        self.asked += 1
        try:
            future = self.client.submit(load, case, roi, pure=False, priority=-self.asked)
        except TypeError as error:  # what Dask makes of an array that cannot be sent
            if isinstance(error.__cause__, InvalidInput):
                raise error.__cause__ from None
            raise
        self.in_flight.add(future)

        def result() -> LoadedSuperchunk:
            try:
                loaded: LoadedSuperchunk = future.result()
            except Exception as error:
                if self.client.status == "running" and not isinstance(error, CancelledError):
                    raise
                raise RunFailed(
                    "the cluster that reads for the stream was closed; go on from its state_dict()"
                    " in a stream on another"
                ) from error
            self.in_flight.discard(future)
            future.release()  # the worker's copy
            return loaded

        return result

    def free(self, loaded: LoadedSuperchunk) -> None:
        """Do nothing: what a worker sent is its own memory."""

    def close(self) -> None:
        """Wait for what is in flight, which is little: workers complain of cancelled reads."""
        for future in self.in_flight:
            if self.client.status == "running":
                with suppress(CancelledError):
                    future.exception()
            future.release()


SuperchunkReader = ThreadReader | ClusterReader


@dataclass
class _WindowPlace:
    """A superchunk in memory, or on its way, and how many segments need it."""

    wait: Callable[[], LoadedSuperchunk]
    users: int = 0
    loaded: LoadedSuperchunk | None = None


class SuperchunkWindow:
    """Superchunks in the order of their need, a few read ahead of it; made by `open_window`."""

    def __init__(
        self,
        catalog: PatchCatalog,
        reader: SuperchunkReader,
        metrics: Metrics,
        ahead: int,
        stalls: bool,
    ) -> None:
        self.catalog, self.reader, self.metrics = catalog, reader, metrics
        self.credit, self.stalls = ahead, stalls
        self.needed: Iterator[int] = iter(())
        self.next: int | None = None
        self.held: dict[int, _WindowPlace] = {}

    def expect(self, order: Ints, lanes: int) -> None:
        """Begin to read superchunks in the order in which the segments of some lanes need them."""
        self.needed = iter(order.tolist())
        self.next = next(self.needed, None)
        self.credit += lanes
        self._fill()

    def take(self, superchunk: int) -> Mapping[str, Array]:
        """Return the arrays ``czyx`` of a superchunk of the order, waited for if need be."""
        held, metrics = self.held[superchunk], self.metrics
        if held.loaded is None:
            begin_s = time.perf_counter()
            held.loaded = held.wait()
            if self.stalls:
                metrics.stall_s += time.perf_counter() - begin_s
            metrics.superchunks += 1
            metrics.decode_s += held.loaded.seconds
            metrics.decoded_voxels += int(self.catalog.decoded_voxels[superchunk])
            metrics.decoded_bytes += held.loaded.nbytes
            metrics.live_bytes += held.loaded.nbytes
            metrics.peak_bytes = max(metrics.peak_bytes, metrics.live_bytes)
        return held.loaded.arrays

    def drop(self, superchunk: int) -> None:
        """Note that one segment less needs a superchunk."""
        held = self.held[superchunk]
        held.users -= 1
        if not held.users:
            del self.held[superchunk]
            if held.loaded is not None:
                self.metrics.live_bytes -= held.loaded.nbytes
                self.reader.free(held.loaded)
        self._fill()

    def close(self) -> None:
        """Forget what is held: the trainer has left."""
        for held in self.held.values():
            if held.loaded is not None:
                self.metrics.live_bytes -= held.loaded.nbytes
        self.held.clear()

    def _fill(self) -> None:
        """Ask for what is needed next, as far as the credit goes."""
        while self.next is not None:
            if self.next not in self.held:
                if len(self.held) >= self.credit:
                    return
                case, roi = self.catalog.case_of(self.next), self.catalog.reads(self.next)
                self.held[self.next] = _WindowPlace(self.reader.read(case, roi))
            self.held[self.next].users += 1
            self.next = next(self.needed, None)


@contextmanager
def open_window(
    catalog: PatchCatalog,
    metrics: Metrics,
    cluster: Cluster,
    *,
    threads: int,
    ahead: int,
    stalls: bool,
) -> Iterator[SuperchunkWindow]:
    """Open the window of a stream, and end its reading when it is left.

    Parameters
    ----------
    catalog, metrics
        The superchunks, and the figures that reading adds to.
    cluster
        None: threads of this process read; else as in `volflow.engine.cluster.connect`.
    threads
        Number of threads that read in this process.
    ahead
        Number of superchunks held or on their way beside those that lanes are at.
    stalls
        True if the trainer itself waits here, so that waiting counts as a stall.
    """
    with ExitStack() as stack:
        reader: SuperchunkReader
        if cluster is None:
            reader = ThreadReader(math.prod(catalog.held), threads)
        else:
            reader = ClusterReader(stack.enter_context(connect(cluster)))
        stack.enter_context(closing(reader))
        window = SuperchunkWindow(catalog, reader, metrics, ahead, stalls)
        yield stack.enter_context(closing(window))
