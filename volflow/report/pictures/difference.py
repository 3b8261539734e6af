"""The differences of two results in the planes shown, as numbers; nothing is drawn here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.report.colors import class_counts
from volflow.report.pictures.slices import Cut, on_one_grid

__all__ = [
    "AGREED",
    "ONLY_A",
    "ONLY_B",
    "UNLIKE",
    "agreement",
    "deviation",
    "disagreement",
    "signed",
    "unlike",
]

Array = npt.NDArray[Any]
Pairs = Sequence[tuple[Array, Array]]

# The values of `disagreement`: only one of the two holds something where the other holds
# background, or both do, of different classes or of the same.
ONLY_A, ONLY_B, UNLIKE, AGREED = 1, 2, 3, 4
SATURATION = 99.5  # percentile of deviations beyond which their colours are alike


def agreement(pairs: Pairs, names: Mapping[int, str]) -> dict[str, Any]:
    """Count voxels in pairs of planes of classes, as plain values.

    Parameters
    ----------
    pairs
        Of planes of class numbers of one shape.
    names
        Of classes by number.

    Returns
    -------
    dict
        ``equal`` of ``total`` voxels; for each class but the background its voxels in ``a`` and
        in ``b`` and their Dice 2 |A ∩ B| / (|A| + |B|) (1945, https://doi.org/10.2307/1932409).

    Examples
    --------
    >>> found = agreement([(np.array([[0, 1, 1, 2]]), np.array([[0, 1, 2, 2]]))], {1: "one"})
    >>> found["equal"], found["total"], found["classes"][0]
    (3, 4, {'class': 1, 'name': 'one', 'dice': 0.6666666666666666, 'a': 2, 'b': 1})
    """
    in_a, in_b, in_both = Counter[int](), Counter[int](), Counter[int]()
    for a, b in pairs:
        for counter, values in ((in_a, a), (in_b, b), (in_both, a[a == b])):
            counter.update(class_counts(values))
    dice = {n: 2 * in_both[n] / (in_a[n] + in_b[n]) for n in sorted(in_a.keys() | in_b.keys()) if n}
    classes = [
        {"class": n, "name": names.get(n), "dice": dice[n], "a": in_a[n], "b": in_b[n]}
        for n in dice
    ]
    return {"equal": in_both.total(), "total": in_a.total(), "classes": classes}


def disagreement(a: Array, b: Array) -> Array:
    """Return how two planes of classes disagree, voxel by voxel.

    Examples
    --------
    >>> disagreement(np.array([0, 1, 0, 1, 2]), np.array([0, 0, 1, 2, 2])).tolist()
    [0, 1, 2, 3, 4]
    """
    kind = np.full(a.shape, UNLIKE, np.uint8)
    kind[b == 0] = ONLY_A
    kind[a == 0] = ONLY_B
    kind[a == b] = AGREED
    kind[(a == 0) & (b == 0)] = 0
    return kind


def deviation(differences: Sequence[Array]) -> tuple[dict[str, Any], float]:
    """Return the mean and the largest deviation, and the one at which colours saturate.

    Parameters
    ----------
    differences
        Planes of a − b.

    Returns
    -------
    facts
        ``mean_abs``, ``max_abs``, and how many voxels were ``compared``: finite in both.
    reach
        A percentile of the deviations, or the largest where that is 0.

    Examples
    --------
    >>> deviation([np.array([0.0, -0.5, 0.1, np.nan])])
    ({'mean_abs': 0.2, 'max_abs': 0.5, 'compared': 3}, 0.5)
    """
    away = np.abs(np.concatenate([plane.ravel() for plane in differences]))
    away = away[np.isfinite(away)]
    if away.size == 0:
        return {"mean_abs": 0.0, "max_abs": 0.0, "compared": 0}, 0.0
    mean, largest = float(np.round(away.mean(), 15)), float(away.max())
    reach = float(np.percentile(away, SATURATION, method="nearest")) or largest
    return {"mean_abs": mean, "max_abs": largest, "compared": away.size}, reach


def signed(a: Array, b: Array) -> Array:
    """Return a − b in float64; it is finite only where both are."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.subtract(a, b, dtype=np.float64))


def unlike(a: Array, b: Array) -> Array:
    """Return how much two planes differ, (1, y, x), as weights for `content.busiest`.

    Parameters
    ----------
    a, b
        Two planes of one place; the coarser is read at the pixels of the finer. Classes differ or
        do not, numbers by their distance.
    """
    whole = (0.0, 1.0, 1.0, 0.0)
    a, b, _ = on_one_grid(Cut(a, whole), Cut(b, whole))
    if "f" in a.dtype.kind + b.dtype.kind:
        away = np.abs(signed(a, b))
        return np.where(np.isfinite(away), away, 0)[None]
    return np.asarray(a != b, np.float64)[None]
