"""The scores of one class in one case, made of its counts and its surface distances."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from volflow.geometry.units import unit_sign
from volflow.volumes.evaluate.distance_counts import Bounded, DistanceCounts, merge_distances
from volflow.volumes.evaluate.surface_distances import SurfaceDistances

__all__ = ["DISTANCES", "OVERLAPS", "ClassScores", "overlap_scores", "score_text", "surface_scores"]

OVERLAPS = ("dice", "iou", "precision", "recall", "volume_similarity")
LENGTHS = ("hd95", "mean_surface_distance")
IN_UNITS = (*LENGTHS, "worst_distance")
DISTANCES = (*LENGTHS, "surface_dice")
NAN = Bounded(math.nan)


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class in one case.

    Parameters
    ----------
    case
        Name of the case.
    label, name
        Number and name of the class.
    values
        Scores by name; see `volflow.evaluate`.
    pred_voxels, truth_voxels
        Voxels of the class.
    place
        A voxel (z, y, x) where the two differ most: the one with the largest surface distance, or,
        where there are none, one amid the most wrong voxels; None where nothing is wrong.
    place_distance
        The distance there; NaN where none was measured, or larger than a bound.
    """

    case: str
    label: int
    name: str
    values: Mapping[str, Bounded]
    pred_voxels: int
    truth_voxels: int
    place: tuple[int, int, int] | None = None
    place_distance: Bounded = NAN


def overlap_scores(pred: int, truth: int, both: int) -> dict[str, Bounded]:
    """Return the scores that follow from counts of voxels.

    Parameters
    ----------
    pred, truth, both
        Voxels of a class in pred, in the truth, and in both at once.

    Returns
    -------
    dict
        Dice 2·both / (pred + truth) (https://doi.org/10.2307/1932409), intersection over union,
        precision both / pred, recall both / truth and volume similarity
        2·(pred − truth) / (pred + truth), as SimpleITK's LabelOverlapMeasuresImageFilter counts
        them. What would divide by zero is NaN.

    Examples
    --------
    >>> scores = overlap_scores(3, 5, 2)
    >>> scores["dice"].value, scores["precision"].value, scores["volume_similarity"].value
    (0.5, 0.6666666666666666, -0.5)
    >>> overlap_scores(0, 0, 0)["dice"].value
    nan
    """

    def share(part: int, whole: int) -> Bounded:
        return Bounded(part / whole) if whole else NAN

    return {
        "dice": share(2 * both, pred + truth),
        "iou": share(both, pred + truth - both),
        "precision": share(both, pred),
        "recall": share(both, truth),
        "volume_similarity": share(2 * (pred - truth), pred + truth),
    }


def surface_scores(
    found: SurfaceDistances | None, present: tuple[bool, bool], tolerance: float
) -> dict[str, Bounded]:
    """Return the scores that follow from distances between two surfaces.

    Parameters
    ----------
    found
        The distances; None where one of the two surfaces is missing.
    present
        Whether pred and the truth hold the class.
    tolerance
        Of the surface Dice, within the bound of the distances.

    Returns
    -------
    dict
        As MONAI: the larger of both 95th percentiles; the mean of the distances in both
        directions; the share of distances in both directions within the tolerance
        (https://arxiv.org/abs/1809.04430). Where one of the two lacks the class: infinite,
        infinite and 0; where both do: NaN.
    """
    if found is None:
        missing = math.inf if any(present) else math.nan
        dice = 0.0 if any(present) else math.nan
        return {
            "hd95": Bounded(missing),
            "mean_surface_distance": Bounded(missing),
            "surface_dice": Bounded(dice),
        }
    ways = found.to_truth, found.to_pred
    together = merge_distances(ways)
    return {
        "hd95": larger(*(way.percentile(95) for way in ways)),
        "mean_surface_distance": together.mean(),
        "surface_dice": _within(together, tolerance),
    }


def larger(one: Bounded, other: Bounded) -> Bounded:
    """Return the larger of two numbers, as far as they are known.

    Examples
    --------
    >>> larger(Bounded(3.0), Bounded(float("nan"), 2.0))
    Bounded(value=nan, above=3.0)
    """
    least = max(one.least, other.least)
    return Bounded(least) if one.known and other.known else Bounded(math.nan, least)


def _within(distances: DistanceCounts, tolerance: float) -> Bounded:
    return Bounded(distances.within(tolerance) / distances.total)


def score_text(name: str, score: Bounded, unit: str | None, digits: int = 6) -> str:
    """Return a score as people read it; ``""`` where there is none.

    Examples
    --------
    >>> score_text("hd95", Bounded(float("nan"), 50.0), "millimeter")
    '> 50 mm'
    >>> score_text("dice", Bounded(0.91), "millimeter"), score_text("dice", Bounded(math.nan), None)
    ('0.91', '')
    """
    if not score.known:
        # Rounded down, so that what is said holds.
        text = f"{score.above - 0.5 * 10.0**-digits * abs(score.above):.{digits}g}"
        return f"> {text} {unit_sign(unit) if name in IN_UNITS else ''}".rstrip()
    return "" if math.isnan(score.value) else f"{score.value:.{digits}g}"
