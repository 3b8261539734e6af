"""The size of a patch: in voxels, or in lengths, which the spacing of what it is cut from turns."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from volflow.errors import InvalidInput
from volflow.geometry.grid import per_axis
from volflow.geometry.units import metres
from volflow.store.meta import Meta

__all__ = ["Side", "Size", "checked_size", "has_lengths", "in_voxels", "knows_lengths", "size_text"]

Side = int | str
Size = Side | Sequence[Side]
MOST_VOXELS = 2**31  # to which kernels count
LENGTH = re.compile(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?)\s*([^\W\d]\S*)\s*", re.IGNORECASE)


def checked_size(patch: Size) -> tuple[Side, ...]:
    """Return the sides of a patch along z, y, x: whole numbers of voxels, and lengths as texts.

    Raises
    ------
    InvalidInput
        If a side is neither.

    Examples
    --------
    >>> checked_size(64), checked_size("64mm"), checked_size((1, "0.5 cm", "5mm"))
    ((64, 64, 64), ('64 mm', '64 mm', '64 mm'), (1, '0.5 cm', '5 mm'))
    """
    given = [patch] * 3 if isinstance(patch, str) else patch
    if not isinstance(given, Sequence) or not has_lengths(given):
        return per_axis(patch, "patch")  # type: ignore[arg-type]
    found: list[Side] = []
    for side in given:
        parts = LENGTH.fullmatch(side) if isinstance(side, str) and len(given) == 3 else None
        if parts and metres(parts[2]) is not None and 0 < float(parts[1]) < math.inf:
            found.append(f"{float(parts[1]):.15g} {parts[2]}")
        elif isinstance(side, str) or len(given) != 3:
            raise InvalidInput(
                "a patch has one side or three (z, y, x), each a whole number of voxels or a"
                f' length with its unit, such as 64 or "32 mm"; got {patch!r}'
            )
        else:
            found.extend(per_axis([side], "patch", 1))
    return tuple(found)


def has_lengths(sides: Sequence[object]) -> bool:
    """Return True if a side is a length, and not a number of voxels."""
    return any(isinstance(side, str) for side in sides)


def size_text(sides: Sequence[Side]) -> str:
    """Return the sides of a patch as people write them.

    Examples
    --------
    >>> size_text(("64 mm",) * 3), size_text((1, "64 mm", "64 mm"))
    ('64 mm', '1 × 64 mm × 64 mm')
    """
    return str(sides[0]) if len(set(sides)) == 1 else " × ".join(map(str, sides))


def knows_lengths(meta: Meta) -> bool:
    """Whether a spacing has a unit of length, by which lengths become voxels."""
    return metres(meta.unit) is not None


def in_voxels(sides: Sequence[Side], meta: Meta) -> tuple[int, ...]:
    """Return the voxels of a patch where voxels are so large: the nearest number, at least one.

    Raises
    ------
    InvalidInput
        If a side is a length, and the spacing is not known or makes it absurdly many voxels.

    Examples
    --------
    >>> in_voxels(("64 mm", "64 mm", 5), Meta(spacing=(3, 0.5, 0.5), unit="millimeter"))
    (21, 128, 5)
    """
    if not has_lengths(sides):
        return per_axis(sides, "patch")  # type: ignore[arg-type]
    unit = metres(meta.unit)
    if unit is None:
        raise InvalidInput(
            f"a patch of {size_text(sides)} needs to know how large a voxel is, and the spacing"
            ' here has no unit of length; store it with spacing= and unit="mm" (volflow convert'
            " --spacing --unit), or give the patch in voxels"
        )
    found = tuple(
        _voxels(side, step * unit) if isinstance(side, str) else side
        for side, step in zip(sides, meta.spacing, strict=True)
    )
    if math.prod(found) > MOST_VOXELS:
        spacing = "×".join(f"{step:.6g}" for step in meta.spacing)
        raise InvalidInput(
            f"a patch of {size_text(sides)} is {'×'.join(map(str, found))} voxels here, where one"
            f" is {spacing} {meta.unit}, and no network takes more than 2³¹; give shorter lengths,"
            " or mend the spacing (volflow convert --spacing --unit)"
        )
    return found


def _voxels(length: str, step: float) -> int:
    number, unit = length.split()
    return max(1, math.floor(float(number) * (metres(unit) or 0) / step + 0.5))
