"""Whether volumes lie on one grid, and how their grids differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from volflow.geometry.units import metres, unit_sign
from volflow.store.meta import Meta

__all__ = ["difference_of_grids", "same_spacing", "shared_grid", "spacing_text"]


def difference_of_grids(
    grids: Mapping[str, tuple[Sequence[int], Meta]],
) -> tuple[str, str, str, str, str] | None:
    """Return how the first array that lies on another grid differs; None if all share one grid.

    Parameters
    ----------
    grids
        Shape (``zyx`` or ``czyx``) and metadata by name. An unknown spacing or orientation, such as
        that of a bare array, fits any.

    Returns
    -------
    tuple of str
        ``"shape"``, ``"spacing"`` or ``"orientation"``; a name and its value; the other name and
        its value.

    Examples
    --------
    >>> scan = (20, 30, 30), Meta(spacing=(2, 1, 1), unit="millimeter")
    >>> difference_of_grids({"scan": scan, "mask": ((20, 30, 30), Meta())})
    >>> difference_of_grids({"scan": scan, "t1": ((20, 30, 30), Meta(unit="millimeter"))})
    ('spacing', 'scan', '2×1×1 mm', 't1', '1×1×1 mm')
    """
    values = {
        "shape": {name: str(tuple(shape[-3:])) for name, (shape, _) in grids.items()},
        "spacing": {name: spacing_text(meta) for name, (_, meta) in grids.items()},
        "orientation": {name: meta.orientation or "" for name, (_, meta) in grids.items()},
    }
    for what, value_of in values.items():
        first, *others = [name for name, value in value_of.items() if value] or [""]
        for name in others:
            close = what == "spacing" and same_spacing(grids[first][1], grids[name][1])
            if not close and value_of[name] != value_of[first]:
                return what, first, value_of[first], name, value_of[name]
    return None


def shared_grid(metas: Sequence[Meta]) -> Meta:
    """Return the metadata of the first array of several on one grid, completed from the others.

    Examples
    --------
    >>> shared_grid([Meta(), Meta(spacing=(2, 1, 1), unit="millimeter", orientation="SAR")]).spacing
    (2.0, 1.0, 1.0)
    """
    placed = next((meta for meta in metas if meta.orientation), metas[0])
    grid = next((meta for meta in metas if meta.knows_spacing), placed)
    placed = placed if placed.orientation else grid
    return replace(grid, orientation=placed.orientation, affine=placed.affine)


def spacing_text(meta: Meta) -> str:
    """Return the spacing as people write it, ``""`` if it is unknown."""
    if not meta.knows_spacing:
        return ""
    return "×".join(f"{s:.6g}" for s in meta.spacing) + f" {unit_sign(meta.unit)}".rstrip()


def same_spacing(a: Meta, b: Meta) -> bool:
    """Whether two known spacings agree to a thousandth; an unknown unit fits any.

    Examples
    --------
    >>> mm, um = Meta(spacing=(2, 1, 1), unit="mm"), Meta(spacing=(2000, 1000, 1000), unit="um")
    >>> same_spacing(mm, um), same_spacing(mm, Meta(spacing=(2, 1, 1.01)))
    (True, False)
    """
    known = a.unit != b.unit and a.unit is not None and b.unit is not None
    one, other = (metres(a.unit), metres(b.unit)) if known else (1.0, 1.0)
    if one is None or other is None:
        return False
    return all(
        math.isclose(s * one, t * other, rel_tol=1e-3)
        for s, t in zip(a.spacing, b.spacing, strict=True)
    )
