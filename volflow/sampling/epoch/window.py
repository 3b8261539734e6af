"""The window: superchunks in memory, those that lanes are at and those read ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from volflow.sampling.epoch.feeds import Feed, Loaded
from volflow.sampling.epoch.field import Field, Ints, decoded_voxels
from volflow.sampling.epoch.visits import Lane
from volflow.sampling.metrics import Metrics

__all__ = ["Schedule", "Window", "schedule"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """Pieces of visits in the order in which they are needed.

    ``first`` and ``last`` are the places in the epoch of a piece's first and last patch here.
    """

    lane: Ints
    visit: Ints
    low: Ints
    high: Ints
    begins: Ints
    first: Ints

    def __len__(self) -> int:
        return len(self.visit)


def schedule(lanes: Sequence[Lane], numbers: Sequence[int], begin: int) -> Schedule:
    """The pieces that some lanes still need from place ``begin`` of the epoch on.

    Parameters
    ----------
    lanes
        All lanes of the epoch.
    numbers
        Those that are wanted.
    begin
        Place in the epoch; earlier patches are given already.
    """
    parts = []
    for number in numbers:
        lane = lanes[number]
        ends = lane.ends
        begins = ends - (lane.high - lane.low)
        # The first position of this lane whose place, position * lanes + number, is not given yet.
        position = max(0, -(-(begin - number) // len(lanes)))
        left = ends > position
        first = np.maximum(begins, position)[left] * len(lanes) + number
        here = np.full(len(first), number, np.int64)
        parts.append((here, lane.visit[left], lane.low[left], lane.high[left], begins[left], first))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[-1], kind="stable")
    return Schedule(*(column[order] for column in columns))


@dataclass
class _Held:
    """A superchunk in memory, or on its way, and how many pieces need it."""

    wait: Callable[[], Loaded]
    users: int = 0
    loaded: Loaded | None = None


class Window:
    """Reads superchunks in the order of their need, a few ahead of it.

    Parameters
    ----------
    field, feed, metrics
        What superchunks are, who reads them, where figures go.
    ahead
        How many are held or on their way beside those that lanes are at.
    stalls
        Whether it is the trainer itself that waits here.
    """

    def __init__(
        self, field: Field, feed: Feed, metrics: Metrics, ahead: int, *, stalls: bool
    ) -> None:
        self.field, self.feed, self.metrics = field, feed, metrics
        self.ahead, self.stalls = ahead, stalls
        self.order: Ints = np.empty(0, np.int64)
        self.credit, self.next = ahead, 0
        self.held: dict[int, _Held] = {}

    def expect(self, order: Ints, lanes: int) -> None:
        """Begin to read: superchunks in the order in which pieces need them, for so many lanes."""
        self.order, self.credit = order, lanes + self.ahead
        self._fill()

    def take(self, superchunk: int) -> Loaded:
        """A superchunk of the order, waited for if need be."""
        held = self.held[superchunk]
        if held.loaded is None:
            begin_s = time.perf_counter()
            held.loaded = held.wait()
            if self.stalls:
                self.metrics.stall_s += time.perf_counter() - begin_s
            self._account(superchunk, held.loaded)
        return held.loaded

    def drop(self, superchunk: int) -> None:
        """One piece less needs it."""
        held = self.held[superchunk]
        held.users -= 1
        if not held.users:
            del self.held[superchunk]
            if held.loaded is not None:
                self.metrics.live_bytes -= held.loaded.nbytes
                self.feed.free(held.loaded)
        self._fill()

    def close(self) -> None:
        """Forget what is held: the trainer has left."""
        for held in self.held.values():
            if held.loaded is not None:
                self.metrics.live_bytes -= held.loaded.nbytes
        self.held.clear()

    def _fill(self) -> None:
        """Ask for what is needed next, as far as the credit goes."""
        while self.next < len(self.order):
            superchunk = int(self.order[self.next])
            if superchunk not in self.held:
                if len(self.held) >= self.credit:
                    return
                case, _ = self.field.locate(superchunk)
                roi = self.field.reads(superchunk)
                self.held[superchunk] = _Held(self.feed.read(self.field.cases[case], roi))
            self.held[superchunk].users += 1
            self.next += 1

    def _account(self, superchunk: int, loaded: Loaded) -> None:
        metrics = self.metrics
        metrics.superchunks += 1
        metrics.decode_s += loaded.seconds
        metrics.decoded_voxels += decoded_voxels(self.field, superchunk)
        metrics.decoded_bytes += loaded.nbytes
        metrics.live_bytes += loaded.nbytes
        metrics.peak_bytes = max(metrics.peak_bytes, metrics.live_bytes)
