"""Cut patches out of superchunks, in the order of the epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.sampling.epoch.draw import Draws, draw
from volflow.sampling.epoch.field import Ints
from volflow.sampling.epoch.shares import Share
from volflow.sampling.epoch.visits import Visits, weave
from volflow.sampling.epoch.window import Window, schedule

__all__ = ["Order", "Patch", "cut"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Order:
    """The order of one epoch."""

    visits: Visits
    lanes: int
    seed: int
    epoch: int


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch in memory: views of its arrays ``czyx``, valid until the next is taken."""

    arrays: Mapping[str, Array]
    case: str
    start: Ints
    stop: Ints
    index: int
    key: int

    def sample(self) -> dict[str, Any]:
        """What a sample of the stream holds, its arrays still views."""
        return {
            **self.arrays,
            "location": np.concatenate([self.start, self.stop]),
            "case": self.case,
            "index": self.index,
            "key": self.key,
        }


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of a visit: its draws from ``low`` on, at ``begin`` to ``end`` of its lane."""

    superchunk: int
    case: str
    origin: Ints
    arrays: Mapping[str, Array]
    draws: Draws
    low: int
    begin: int
    end: int

    def cut(self, position: int, patch: Ints, index: int) -> Patch:
        """The patch at a position of the lane."""
        number = position - self.begin + self.low
        start = self.draws.starts[number]
        low = start - self.origin
        box = tuple(slice(a, b) for a, b in zip(low.tolist(), (low + patch).tolist(), strict=True))
        views = {name: array[(slice(None), *box)] for name, array in self.arrays.items()}
        key = int(self.draws.keys[number])
        return Patch(views, self.case, start, start + patch, index, key)


def cut(order: Order, window: Window, share: Share, begin: int) -> Iterator[Patch]:
    """The patches of a share of the epoch, from place ``begin`` on."""
    visits, field = order.visits, window.field
    first, total = begin + share.offset, int(visits.quota.sum())
    # Not from the offset on: another number of worker processes may have come as far as this.
    numbers = range(first % share.stride, order.lanes, share.stride)
    line = schedule(weave(visits.quota, order.lanes), numbers, first)
    patch = np.array(field.patch)
    window.expect(visits.superchunk[line.visit], len(numbers))
    left = {lane: iter(np.flatnonzero(line.lane == lane).tolist()) for lane in numbers}
    at: dict[int, _Piece] = {}
    for index in range(first, total, share.stride):
        lane, position = index % order.lanes, index // order.lanes
        piece = at.get(lane)
        if piece is None or position >= piece.end:
            if piece is not None:
                window.drop(piece.superchunk)
            number = next(left[lane])
            visit = int(line.visit[number])
            superchunk, quota = int(visits.superchunk[visit]), int(visits.quota[visit])
            arrays = window.take(superchunk).arrays
            draws = draw(field, superchunk, quota, arrays, (order.seed, order.epoch, visit))
            low, high = int(line.low[number]), int(line.high[number])
            start = int(line.begins[number])
            piece = at[lane] = _Piece(
                superchunk,
                field.cases[field.locate(superchunk)[0]].name,
                np.array(field.reads(superchunk).start),
                arrays,
                draws,
                low,
                start,
                start + high - low,
            )
        yield piece.cut(position, patch, index)
