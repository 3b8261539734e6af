"""A score over many cases: mean, median and the interval in which the mean probably lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from volflow.volumes.evaluate.distance_counts import Bounded

__all__ = ["ScoreSummary", "summary_of"]

DRAWS, SEED = 2000, 0
OUTSIDE = 0.05  # of the draws, on both sides together


@dataclass(frozen=True)
class ScoreSummary:
    """One score of one class over cases.

    Parameters
    ----------
    cases
        How many have the score: those that lack the class in both volumes have none.
    mean, median
        Over these.
    low, high
        95 % interval of the mean; NaN of fewer than two cases, and where a score is not known.
    """

    cases: int
    mean: Bounded
    median: Bounded
    low: float = math.nan
    high: float = math.nan


def summary_of(scores: Sequence[Bounded]) -> ScoreSummary:
    """Return mean, median and interval of some scores.

    The interval is that of the percentile bootstrap (Efron and Tibshirani 1993, section 13.3): of
    2000 draws of as many cases with replacement, by a fixed seed, the middle 95 % of the means. Of
    a score that is larger than a bound only what follows from that is said.

    Examples
    --------
    >>> found = summary_of([Bounded(0.8), Bounded(0.9), Bounded(1.0), Bounded(float("nan"))])
    >>> found.cases, round(found.mean.value, 12), found.median.value, round(found.low, 12)
    (3, 0.9, 0.9, 0.8)
    >>> summary_of([Bounded(1.0), Bounded(2.0), Bounded(float("nan"), 50.0)]).median.value
    2.0
    """
    there = [score for score in scores if not math.isnan(score.least)]
    if not there:
        return ScoreSummary(0, Bounded(math.nan), Bounded(math.nan))
    least = np.asarray([score.least for score in there])
    known = all(score.known for score in there)
    mean = math.fsum(least) / len(least) if np.isfinite(least).all() else math.inf
    most = np.asarray([score.value if score.known else math.inf for score in there])
    middle, highest = _median(least), _median(most)
    return ScoreSummary(
        len(there),
        Bounded(mean) if known else Bounded(math.nan, mean),
        Bounded(middle) if middle == highest else Bounded(math.nan, middle),
        *(_interval(least) if known and len(there) > 1 else (math.nan, math.nan)),
    )


def _median(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    ordered = sorted(values.tolist())
    one, other = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return one if one == other else (one + other) / 2


def _interval(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float]:
    drawn = np.random.default_rng(SEED).integers(0, len(values), (DRAWS, len(values)))
    means = np.sort(values[drawn].mean(axis=1))  # infinite scores sort last
    low = math.floor(OUTSIDE / 2 * (DRAWS - 1))
    return float(means[low]), float(means[DRAWS - 1 - low])
