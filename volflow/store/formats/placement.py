"""Where a volume lies in the body, as files of other formats say it: in millimetres."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from volflow.geometry.affine import affine_between
from volflow.geometry.units import metres
from volflow.store.meta import Meta
from volflow.store.slabs import Array

__all__ = ["affine_of", "in_millimeters"]


def affine_of(meta: Meta) -> Array | None:
    """Return the 4 x 4 affine, or one from spacing, orientation and translation.

    Examples
    --------
    >>> found = affine_of(Meta(spacing=(3, 2, 1), orientation="SAR"))
    >>> np.diag(found).tolist() if found is not None else []
    [1.0, 2.0, 3.0, 1.0]
    """
    if meta.affine is not None:
        return np.array(meta.affine, dtype=float)
    if meta.orientation is None:
        return None
    return affine_between(meta.spacing, meta.orientation, meta.translation)


def in_millimeters(meta: Meta) -> Meta:
    """Return the metadata with all lengths in millimetres; those of an unknown unit are unchanged.

    Examples
    --------
    >>> in_millimeters(Meta(spacing=(4, 2, 2), unit="micrometer")).spacing
    (0.004, 0.002, 0.002)
    """
    length = metres(meta.unit)
    if length is None or meta.unit == "millimeter":
        return meta
    factor = float(f"{length * 1000:.12g}")  # a whole number or its fraction, as decimals
    affine = affine_of(meta)
    if affine is not None:
        affine[:3] *= factor
    z, y, x = (s * factor for s in meta.spacing)
    moved = np.multiply(meta.translation, factor).tolist()
    return replace(
        meta,
        spacing=(z, y, x),
        translation=(moved[0], moved[1], moved[2]),
        affine=None if affine is None else affine.tolist(),
        unit="millimeter",
    )
