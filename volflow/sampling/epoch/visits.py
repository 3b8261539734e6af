"""The order of an epoch: which superchunk gives how many patches, and in which lane they come.

An epoch's patches are counted out along one line of *visits*. A visit is one decoding of a
superchunk and the patches cut from it then. The line is cut into *lanes* of equal length which are
dealt out in turn: sample ``i`` comes from lane ``i % lanes``. So as many superchunks as there are
lanes are mixed at any time, each rank can take some of the lanes, and the order is the same for
every number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Lane", "Visits", "count_out", "deal", "plan_visits", "weave"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Visits:
    """Visits in the order of the line: the superchunk of each, and its patches."""

    superchunk: Ints
    quota: Ints

    def __len__(self) -> int:
        return len(self.superchunk)


def count_out(shares: Floats, total: int, offset: float) -> Ints:
    """Whole numbers that add up to ``total``, each less than one away from its share of it.

    Systematic rounding (Madow, "On the theory of systematic sampling", 1949): unbiased where
    ``offset`` is uniform in [0, 1).

    Examples
    --------
    >>> count_out(np.array([1.0, 2.0, 1.0]), 6, 0.5).tolist()
    [2, 3, 1]
    """
    line = np.cumsum(shares)
    # Scaled by its own end, so that the last mark is the total itself whatever was rounded.
    marks = np.floor(line / line[-1] * total + offset).astype(np.int64)
    marks[-1] = total
    counts: Ints = np.diff(marks, prepend=np.int64(0))
    return counts


def plan_visits(
    mass: Floats, total: int, per_visit: float, rng: np.random.Generator, *, split: bool = True
) -> Visits:
    """Visits that give ``total`` patches, in proportion to the mass of superchunks.

    A superchunk whose share is worth at least one visit is visited as often as it is worth, and
    gives its share to less than one patch. The others are too many to visit each: some are drawn,
    in proportion to their mass, to give one visit's patches each. Either way the expected number of
    patches of each superchunk is its share exactly; one without mass is never visited.

    Parameters
    ----------
    mass
        Of each superchunk, not negative, not all zero.
    total
        Patches.
    per_visit
        Patches worth a visit.
    rng
        Decides which, how many, and in which order.
    split
        False: a superchunk is visited once, however many patches it gives.

    Examples
    --------
    >>> visits = plan_visits(np.array([0.0, 3.0, 1.0]), 8, 2, np.random.default_rng(0))
    >>> len(visits), np.bincount(visits.superchunk, visits.quota).tolist()
    (4, [0.0, 6.0, 2.0])
    """
    offset, pick = rng.random(2)
    order = rng.permutation(np.flatnonzero(mass))
    share = mass[order] / mass[order].sum() * total
    large = share >= per_visit
    chosen, shares = order[large], share[large]
    rest, rest_share = order[~large], share[~large]
    if len(rest):
        line = np.cumsum(rest_share)
        visits = max(1, round(line[-1] / per_visit))
        marks = (np.arange(visits) + pick) * (line[-1] / visits)
        places = np.minimum(np.searchsorted(line, marks, side="right"), len(rest) - 1)
        places, times = np.unique(places, return_counts=True)
        chosen = np.concatenate([chosen, rest[places]])
        shares = np.concatenate([shares, times * (line[-1] / visits)])
    quota = count_out(shares, total, offset)
    repeats = np.maximum(1, np.rint(quota / per_visit).astype(np.int64)) if split else None
    if repeats is not None:
        part = np.concatenate([np.arange(n) for n in repeats])
        chosen = np.repeat(chosen, repeats)
        whole, times = np.repeat(quota, repeats), np.repeat(repeats, repeats)
        quota = whole * (part + 1) // times - whole * part // times
    line_order = rng.permutation(np.flatnonzero(quota))
    return Visits(chosen[line_order].astype(np.int64), quota[line_order])


@dataclass(frozen=True, eq=False)
class Lane:
    """A lane as pieces of visits: piece ``n`` gives draws ``low[n]:high[n]`` of its visit."""

    visit: Ints
    low: Ints
    high: Ints

    @property
    def ends(self) -> Ints:
        """Position in the lane behind each piece."""
        ends: Ints = np.cumsum(self.high - self.low)
        return ends


def deal(total: int, lanes: int) -> Ints:
    """Where each lane begins on the line, and the end: sample ``i`` belongs to lane ``i % lanes``.

    Examples
    --------
    >>> deal(10, 4).tolist()
    [0, 3, 6, 8, 10]
    """
    lane = np.arange(lanes + 1, dtype=np.int64)
    return total // lanes * lane + np.minimum(lane, total % lanes)


def weave(quota: Sequence[int] | Ints, lanes: int) -> tuple[Lane, ...]:
    """Cut the line into lanes.

    Each lane is turned on itself so that lanes come to their next superchunk one after the other,
    not all at once: a reader that is a little ahead then never keeps the trainer waiting.

    Examples
    --------
    >>> [lane.visit.tolist() for lane in weave([3, 3, 2], 2)]
    [[0, 1], [1, 2]]
    """
    ends = np.cumsum(np.asarray(quota, dtype=np.int64))
    starts = ends - quota
    marks = deal(int(ends[-1]) if len(ends) else 0, lanes)
    woven = []
    for number in range(lanes):
        begin, end = marks[number], marks[number + 1]
        first, last = np.searchsorted(ends, begin, "right"), np.searchsorted(starts, end, "left")
        visit = np.arange(first, max(first, last), dtype=np.int64)
        low = np.maximum(begin - starts[visit], 0)
        high = np.minimum(end, ends[visit]) - starts[visit]
        woven.append(_turned(Lane(visit, low, high), (number + 1) / lanes))
    return tuple(woven)


def _turned(lane: Lane, share: float) -> Lane:
    """The lane, begun with the last ``share`` of its second piece, whose rest goes to the end."""
    if len(lane.visit) < 4 or share == 1:
        return lane
    low, high = int(lane.low[1]), int(lane.high[1])
    cut = high - max(1, round((high - low) * share))
    order = np.roll(np.arange(len(lane.visit)), -1)
    turned = Lane(lane.visit[order], lane.low[order], lane.high[order])
    turned.low[0] = cut
    if cut == low:
        return turned
    return Lane(
        np.append(turned.visit, lane.visit[1]),
        np.append(turned.low, low),
        np.append(turned.high, cut),
    )
