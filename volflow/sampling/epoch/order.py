"""The order of an epoch: which superchunk gives how many patches, and in which lane they come.

An epoch's patches are shared out along one line of *visits*. A visit is one decoding of a
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

__all__ = [
    "POSITIONS",
    "VISITS",
    "Visits",
    "deal",
    "generator",
    "interleave",
    "plan_visits",
    "remaining",
    "systematic_round",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# What a generator decides: the visits of an epoch, the positions of a visit. Part of the order.
VISITS, POSITIONS = 1, 2
_WORD = 2**64


def generator(seed: int, epoch: int, purpose: int, index: int = 0) -> np.random.Generator:
    """Return the random generator for one purpose in one epoch.

    Its numbers are a pure function of these arguments: never of workers, threads or time. It is
    counter-based (Philox; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so
    that any of them is made at once, without those before it.

    Parameters
    ----------
    seed, epoch
        Seed of the stream, below 2^64, and number of the epoch, below 2^48.
    purpose
        Number of the decision that it is for, below 2^16.
    index
        Number of the thing that is decided, such as a visit.

    Examples
    --------
    >>> generator(0, 1, 2, 3).integers(0, 100, 4).tolist()
    [91, 86, 43, 91]
    """
    key = [int(seed) % _WORD, (int(epoch) * 2**16 + purpose) % _WORD]
    counter = [0, 0, int(index) % _WORD, 0]
    # As uint64: a list with a number from 2^63 on would pass through floats and lose its last bits.
    philox = np.random.Philox(key=np.array(key, np.uint64), counter=np.array(counter, np.uint64))
    return np.random.Generator(philox)


@dataclass(frozen=True, eq=False)
class Visits:
    """The visits of an epoch in their order: the superchunk of each, and how many patches it gives.

    Both arrays are int64 of shape ``(visits,)``.
    """

    superchunk: Ints
    quota: Ints

    def __len__(self) -> int:
        return len(self.superchunk)


def systematic_round(shares: Floats, total: int, offset: float) -> Ints:
    """Round shares to whole numbers that add up to a total, each less than one away from its share.

    Systematic sampling (Madow, "On the theory of systematic sampling", 1949): unbiased where
    ``offset`` is uniform in [0, 1).

    Parameters
    ----------
    shares
        ``(n,)``, not negative, not all zero, of any scale.
    total
        The sum of the result.
    offset
        Place on the line of shares at which rounding begins, in [0, 1).

    Returns
    -------
    numpy.ndarray
        int64 of shape ``(n,)``.

    Examples
    --------
    >>> systematic_round(np.array([1.0, 2.0, 1.0]), 6, 0.5).tolist()
    [2, 3, 1]
    """
    line = np.cumsum(shares)
    # Scaled by its own end, so that the last mark is the total itself whatever was rounded.
    marks = np.floor(line / line[-1] * total + offset).astype(np.int64)
    marks[-1] = total
    counts: Ints = np.diff(marks, prepend=np.int64(0))
    return counts


def plan_visits(
    probability: Floats,
    total: int,
    per_visit: float,
    rng: np.random.Generator,
    *,
    split: bool = True,
) -> Visits:
    """Plan visits that give ``total`` patches, in proportion to the probability of superchunks.

    A superchunk whose share is worth at least one visit is visited as often as it is worth, and
    gives its share to less than one patch. The others are too many to visit each: some are drawn,
    in proportion to their probability, to give one visit's patches each. Either way the expected
    number of patches of each superchunk is its share exactly; those of probability 0 give none.

    Parameters
    ----------
    probability
        Of each superchunk, ``(superchunks,)``: not negative, not all zero, of any scale.
    total
        Patches of the epoch.
    per_visit
        Patches that are worth a visit.
    rng
        Generator that decides which superchunks, how many patches, and in which order.
    split
        False: a superchunk is visited once, however many patches it gives.

    Examples
    --------
    >>> visits = plan_visits(np.array([0.0, 3.0, 1.0]), 8, 2, np.random.default_rng(0))
    >>> len(visits), np.bincount(visits.superchunk, visits.quota).tolist()
    (4, [0.0, 6.0, 2.0])
    """
    offset, pick = rng.random(2)
    order = rng.permutation(np.flatnonzero(probability))
    share = probability[order] / probability[order].sum() * total
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
    quota = systematic_round(shares, total, offset)
    if split:
        repeats = np.maximum(1, np.rint(quota / per_visit).astype(np.int64))
        part = np.concatenate([np.arange(n) for n in repeats])
        chosen = np.repeat(chosen, repeats)
        whole, times = np.repeat(quota, repeats), np.repeat(repeats, repeats)
        quota = whole * (part + 1) // times - whole * part // times
    line_order = rng.permutation(np.flatnonzero(quota))
    return Visits(chosen[line_order].astype(np.int64), quota[line_order])


def deal(total: int, lanes: int) -> Ints:
    """Return where each lane begins on the line of samples, and the end: ``(lanes + 1,)``.

    Sample ``i`` belongs to lane ``i % lanes``.

    Examples
    --------
    >>> deal(10, 4).tolist()
    [0, 3, 6, 8, 10]
    """
    lane = np.arange(lanes + 1, dtype=np.int64)
    return total // lanes * lane + np.minimum(lane, total % lanes)


def interleave(quota: Sequence[int] | Ints, lanes: int) -> Ints:
    """Cut the line of visits into lanes, one lane's segments after the other's.

    A segment is a part of a visit that one lane gives.

    Each lane is turned on itself so that lanes come to their next superchunk one after the other,
    not all at once: a reader that is a little ahead then never keeps the trainer waiting.

    Parameters
    ----------
    quota
        Patches of each visit, ``(visits,)``, at least one each.
    lanes
        Number of lanes.

    Returns
    -------
    numpy.ndarray
        int64 of shape ``(segments, 4)``: lane, visit, and the ends of a range of its patches.

    Examples
    --------
    >>> interleave([3, 3, 2], 2).tolist()
    [[0, 0, 0, 3], [0, 1, 0, 1], [1, 1, 1, 3], [1, 2, 0, 2]]
    """
    ends = np.cumsum(np.asarray(quota, np.int64))
    marks = deal(int(ends[-1]), lanes)
    cuts = np.union1d(ends, marks)
    visit = np.searchsorted(ends, cuts[:-1], "right")
    lane = np.searchsorted(marks, cuts[:-1], "right") - 1
    begin = (ends - quota)[visit]
    table = np.stack([lane, visit, cuts[:-1] - begin, cuts[1:] - begin], axis=1)
    parts = np.split(table, np.searchsorted(lane, np.arange(1, lanes)))
    return np.concatenate([_turned(part, (n + 1) / lanes) for n, part in enumerate(parts)])


def _turned(lane: Ints, share: float) -> Ints:
    """Begin a lane with the last ``share`` of its second segment; the rest goes to the end."""
    if len(lane) < 4 or share == 1:
        return lane
    number, visit, low, high = lane[1].tolist()
    cut = high - max(1, round((high - low) * share))
    turned = np.roll(lane, -1, axis=0)
    turned[0, 2] = cut
    return turned if cut == low else np.append(turned, [[number, visit, low, cut]], axis=0)


def remaining(segments: Ints, lanes: int, wanted: Sequence[int], begin: int) -> Ints:
    """Return the segments that some lanes still give from place ``begin`` on, in order of need.

    Parameters
    ----------
    segments, lanes
        The whole epoch, as `interleave` cut it into so many lanes.
    wanted
        Numbers of the lanes that are wanted.
    begin
        Place in the epoch; earlier patches have been given.
    """
    lane, visit, low, high = segments.T
    length = high - low
    ends = np.cumsum(length) - deal(int(length.sum()), lanes)[lane]
    # Position in its lane of the first patch whose place, position * lanes + lane, is not given.
    position = np.maximum(0, -(-(begin - lane) // lanes))
    first = np.maximum(ends - length, position)
    kept = np.flatnonzero((ends > position) & np.isin(lane, wanted))
    order = kept[np.argsort((first * lanes + lane)[kept])]
    return np.stack([lane, visit, high - ends + first, high], axis=1)[order]
