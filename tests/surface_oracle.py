"""Scores of whole label maps in plain NumPy and scipy, as `vf.evaluate` must give them."""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


def surface(mask):
    """The voxels of a mask that a background voxel touches by a face, also outside of the array."""
    return mask & ~binary_erosion(mask)


def directed(mask, other, spacing):
    """The distances of one surface's voxels to the other surface, ascending."""
    away = distance_transform_edt(~surface(other), sampling=spacing)
    return np.sort(away[surface(mask)])


def whole_scores(pred, truth, label, spacing=(1.0, 1.0, 1.0), tolerance=1.0):
    """All scores of one class; NaN and infinite ones as `vf.evaluate` documents them."""
    one, other = pred == label, truth == label
    a, b, both = (int(x.sum()) for x in (one, other, one & other))
    scores = {
        "dice": _share(2 * both, a + b),
        "iou": _share(both, a + b - both),
        "precision": _share(both, a),
        "recall": _share(both, b),
        "volume_similarity": _share(2 * (a - b), a + b),
    }
    if not (a and b):
        far = math.inf if a or b else math.nan
        return scores | {
            "hd95": far,
            "mean_surface_distance": far,
            "surface_dice": 0.0 if a or b else math.nan,
        }
    ways = directed(one, other, spacing), directed(other, one, spacing)
    together = np.concatenate(ways)
    return scores | {
        "hd95": max(float(np.percentile(way, 95)) for way in ways),
        "mean_surface_distance": float(together.mean()),
        "surface_dice": float((together <= tolerance * (1 + 1e-9)).mean()),
    }


def _share(part, whole):
    return part / whole if whole else math.nan
