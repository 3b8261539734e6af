"""Coarser levels by a plain loop over their voxels: what `pyramid` must equal."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def merged(voxels, factors, of_cell):
    """A function of the voxels that merge, those that exist, at each voxel of the level."""
    shape = [-(-n // f) for n, f in zip(voxels.shape, factors, strict=True)]
    out = np.empty(shape, voxels.dtype)
    for index in np.ndindex(*shape):
        box = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        out[index] = of_cell(voxels[box].ravel())
    return out


def exact_mean(cell):
    """The mean of integers, a half to the even one; of floats in full precision."""
    total = sum(map(Fraction, cell.tolist())) / len(cell)
    return round(total) if cell.dtype.kind in "iub" else float(total)


def commonest(cell):
    """The commonest value, the smallest of several."""
    values, counts = np.unique(cell, return_counts=True)  # sorted: the first is smallest
    return values[counts.argmax()]
