"""Axes, spacing and unit of an N5 dataset, in the ways in which different software says them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from volflow.errors import InvalidInput
from volflow.geometry.units import metres, unit_name
from volflow.store.meta import Meta, SourceInfo, Vector

__all__ = ["grid_of_n5", "one_unit"]

Attributes = Mapping[str, Any]
_AXES = {2: "xy", 3: "xyz", 4: "xyzc"}


@dataclass(frozen=True)
class _Grid:
    """Voxel size, first voxel and unit, all along the dataset's own axes, the fastest first."""

    spacing: list[float]
    translation: list[float]
    units: Sequence[str | None]
    axes: list[str]


def grid_of_n5(own: Attributes, group: Attributes, level: int) -> tuple[str, Meta]:
    """Return a letter for each axis of a dataset, the fastest first, and the metadata of space.

    Parameters
    ----------
    own, group
        Attributes of the dataset, and of the pyramid in which it is a level.
    level
        Which.

    Raises
    ------
    InvalidInput
        If a volume has no such axes, or their units cannot be compared.

    Examples
    --------
    >>> own = {"dimensions": [9, 8, 7], "dataType": "uint8", "downsamplingFactors": [2, 2, 1]}
    >>> axes, meta = grid_of_n5(own, {"resolution": [4, 4, 40], "units": ["nm"] * 3}, 1)
    >>> axes, meta.spacing, meta.translation, meta.unit
    ('xyz', (40.0, 8.0, 8.0), (0.0, 2.0, 2.0), 'nanometer')
    """
    count = len(own["dimensions"])
    grid = _transformed(own, group, level) or _scaled(own, group, level, count)
    axes = "".join(grid.axes).lower() if all(len(axis) == 1 for axis in grid.axes) else "?"
    if not set("xy") <= set(axes) <= set("xyzct") or len(set(axes)) != count:
        raise InvalidInput(
            f"its {count} axes are called {', '.join(grid.axes)}; a volume has x, y, z and perhaps"
            " c and t; name them so in the attribute axes"
        )
    if {len(grid.spacing), len(grid.translation), len(grid.units)} != {count}:
        raise InvalidInput(f"it has {count} axes and a resolution of {grid.spacing}; correct it")
    space = [axes.index(axis) for axis in "zyx" if axis in axes]
    unit, factors = one_unit([grid.units[axis] for axis in space])
    painted = own.get("painteraData", group.get("painteraData"))
    is_labels = isinstance(painted, Mapping) and painted.get("type") == "label"

    def along(values: list[float], missing: float) -> Vector:
        known = [values[axis] * factor for axis, factor in zip(space, factors, strict=True)]
        z, y, x = [missing, *known][-3:]
        return z, y, x

    return axes, Meta(
        spacing=along(grid.spacing, 1.0),
        translation=along(grid.translation, 0.0),
        unit=unit,
        kind="classes" if is_labels else "image",
        source=SourceInfo("n5", str(own["dataType"])),
    )


def one_unit(units: Sequence[str | None]) -> tuple[str | None, list[float]]:
    """Return the unit of the last axis, and what turns lengths along each axis into it.

    Raises
    ------
    InvalidInput
        If they are not all lengths, nor the same.

    Examples
    --------
    >>> one_unit(["um", "nm", "nm"])
    ('nanometer', [1000.0, 1.0, 1.0])
    """
    names = [unit_name(unit) for unit in units]
    if len(set(names)) == 1:
        return names[-1], [1.0] * len(names)
    lengths = [metres(name) for name in names]
    last = lengths[-1]
    factors = [float(f"{length / last:.12g}") for length in lengths if length and last]
    if len(factors) != len(names):
        raise InvalidInput(
            f"its axes have the units {', '.join(map(str, names))}, which are not all lengths;"
            " correct them"
        )
    return names[-1], factors


def _transformed(own: Attributes, group: Attributes, level: int) -> _Grid | None:
    """Return the grid where COSEM's software says it: for each level, the slowest axis first."""
    said = own.get("transform")
    if said is None and "multiscales" in group:
        said = group["multiscales"][0]["datasets"][level].get("transform")
    if said is None:
        return None
    turn = 1 if said.get("ordering") == "F" else -1
    axes = [str(axis) for axis in said["axes"]][::turn]
    return _Grid(
        [float(size) for size in said["scale"]][::turn],
        [float(place) for place in said.get("translate", [0.0] * len(axes))][::turn],
        [str(unit) for unit in said.get("units", [""] * len(axes))][::turn],
        axes,
    )


def _scaled(own: Attributes, group: Attributes, level: int, count: int) -> _Grid:
    """Return the grid of a resolution, times the factors of the level."""
    base, unit = [1.0] * count, None
    for said in (group, own):  # the dataset's own counts
        given = said.get("pixelResolution", said.get("resolution"))
        unit = said.get("units", said.get("unit", unit))
        if isinstance(given, Mapping):
            given, unit = given["dimensions"], given.get("unit", unit)
        base = base if given is None else _filled(given, count)
    steps = own.get("downsamplingFactors")
    for name in ("downsamplingFactors", "scales"):
        if steps is None and name in group:
            steps = group[name][level]
    factors = _filled(() if steps is None else steps, count)
    units = [str(one) for one in unit] if isinstance(unit, list) else [unit] * count
    default = list(_AXES.get(count, "?" * count))
    return _Grid(
        [size * factor for size, factor in zip(base, factors, strict=True)],
        # A voxel of a coarser level covers its finer ones, the first of which begins at 0.
        [size * (factor - 1) / 2 for size, factor in zip(base, factors, strict=True)],
        units,
        [str(axis) for axis in own.get("axes", group.get("axes", default))],
    )


def _filled(numbers: Any, count: int) -> list[float]:
    """Return a number for each axis: 1 for those, beyond space, of which nothing is said."""
    given = [float(number) for number in numbers]
    return [*given, *[1.0] * (count - len(given))]
