"""What the header of a NRRD file says: its fields, and the grid of its voxels."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.affine import from_lps
from volflow.geometry.units import unit_name
from volflow.store.meta import Vector
from volflow.store.slabs import Array

__all__ = ["SPACES", "Grid", "NrrdHeader", "grid_of", "needed", "parse_nrrd"]

# Which way the axes of a space point, compared with left, posterior, superior.
SPACES = {
    "left-posterior-superior": (1, 1, 1),
    "left-anterior-superior": (1, -1, 1),
    "right-anterior-superior": (-1, -1, 1),
}
_SHORT = {"lps": "left-posterior-superior", "las": "left-anterior-superior"}
_SHORT["ras"] = "right-anterior-superior"

MOST_AXES = 16
_IN_SPACE = {"domain", "space", "none", "???"}  # kinds of axes


@dataclass(frozen=True)
class NrrdHeader:
    """A header: its fields, by names without spaces, and the pairs of key and value below them."""

    fields: dict[str, str]
    pairs: dict[str, str]


@dataclass(frozen=True, eq=False)
class Grid:
    """What a header says of its axes.

    Parameters
    ----------
    shape
        Voxels per axis, ``zyx`` or ``czyx``.
    interleaved
        Whether the channels are its first axis.
    spacing, unit
        Of the voxels along z, y, x.
    space
        The space in which they lie, spelled out; ``""`` if it has no name.
    steps, origin
        From a voxel to the next along x, y, z in that space, and its first voxel; None if unknown.
    """

    shape: tuple[int, ...]
    interleaved: bool
    spacing: Vector
    unit: str | None
    space: str = ""
    steps: Array | None = None
    origin: Array | None = None

    @property
    def affine(self) -> Array | None:
        """4 x 4, voxel (x, y, z) to right, anterior, superior; None if unknown."""
        if self.steps is None or self.space not in SPACES:
            return None
        signs = np.array(SPACES[self.space])
        return from_lps(self.steps * signs, self.place * signs)

    @property
    def place(self) -> Array:
        """The first voxel in space, its origin where nothing is said."""
        return np.zeros(3) if self.origin is None else self.origin

    @property
    def translation(self) -> Vector:
        """The first voxel along z, y, x of a space that is not that of a body."""
        if self.steps is None or self.space in SPACES:
            return 0.0, 0.0, 0.0
        along = np.diag(self.steps)
        x, y, z = (self.place * np.sign(along)).tolist()
        return (z, y, x) if (np.diag(along) == self.steps).all() else (0.0, 0.0, 0.0)


def parse_nrrd(text: str) -> NrrdHeader:
    r"""Return the fields of a header.

    Raises
    ------
    ValueError
        If a line is none, or a field is there twice.

    Examples
    --------
    >>> parse_nrrd("NRRD0004\nByte Skip: 7\n# a remark\nkey:=value").fields
    {'byteskip': '7'}
    """
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    for line in text.split("\n")[1:]:
        if line.startswith("#") or not line:
            continue
        found = re.match(r"([^:]*):(=?)", line)
        if found is None:
            raise ValueError(f"the line {line!r:.60} has no colon")
        value = line[found.end() :].strip()
        if found[2]:
            pairs[found[1]] = value
            continue
        name = found[1].lower().replace(" ", "")
        if name in fields:
            raise ValueError(f"it has the field {found[1]!r} twice")
        fields[name] = value
        if name == "datafile" and value.split()[:1] == ["LIST"]:  # of names, to the end
            break
    return NrrdHeader(fields, pairs)


def grid_of(header: NrrdHeader) -> Grid:
    """Return what a header says of its axes."""
    sizes = [int(size) for size in needed(header, "sizes").split()]
    if not 1 <= len(sizes) <= MOST_AXES or int(needed(header, "dimension")) != len(sizes):
        raise ValueError(f"dimension and sizes do not fit, given {len(sizes)} sizes")
    if min(sizes) < 1:
        raise ValueError(f"sizes {sizes} are not all positive")
    vectors = _vectors(header, len(sizes))
    lengths = [float(word) for word in _per_axis(header, "spacings", len(sizes))]
    kinds = _per_axis(header, "kinds", len(sizes))
    if vectors:
        beyond = [vector is None for vector in vectors]
        lengths = [math.hypot(*(vector or ())) for vector in vectors]
    elif kinds:
        beyond = [kind.lower() not in _IN_SPACE for kind in kinds]
    else:
        beyond = [math.isnan(length) for length in lengths] or [False] * len(sizes)
    space, channels = _axes(sizes, beyond)
    shape = [sizes[axis] for axis in (*space, *channels)]
    shape[len(space) : len(space)] = [1] * (3 - len(space))
    z, y, x = reversed([*(lengths[axis] if lengths else 1.0 for axis in space), 1.0][:3])
    rows = [vectors[axis] for axis in space] if vectors else []
    known = len(rows) == 3 and all(row is not None and len(row) == 3 for row in rows)
    name = header.fields.get("space", "").lower().removesuffix("-time")
    name = _SHORT.get(name[:3] if len(name) < 5 else name, name)
    unit = _unit(header, len(sizes), space)
    return Grid(
        shape=tuple(reversed(shape)),
        interleaved=bool(channels) and channels[0] < space[0],
        spacing=(z, y, x),
        unit="millimeter" if unit is None and known and name in SPACES else unit,
        space=name,
        steps=np.array(rows) if known else None,
        origin=_origin(header) if known else None,
    )


def _axes(sizes: list[int], beyond: list[bool]) -> tuple[list[int], list[int]]:
    """Return the axes of space, and that of channels, given which lie beyond space."""
    space = [axis for axis, is_beyond in enumerate(beyond) if not is_beyond]
    for axis in reversed(space):
        if len(space) > 3 and sizes[axis] == 1:
            space.remove(axis)
    further = [axis for axis, is_beyond in enumerate(beyond) if is_beyond or axis in space[3:]]
    space, channels = space[:3], [axis for axis in further if sizes[axis] > 1]
    if len(space) < 2 or len(channels) > 1:
        raise InvalidInput(
            f"of sizes {sizes} {len(space)} lie in space; a volume has x, y, z and at most one"
            " further axis, for channels; split it"
        )
    if channels and space[0] < channels[0] < space[-1]:
        raise InvalidInput(
            f"of sizes {sizes} that of the channels lies between those of space; write it as the"
            " first or the last"
        )
    return space, channels


def _vectors(header: NrrdHeader, count: int) -> list[tuple[float, ...] | None] | None:
    """Return the step along each axis in space, None for one beyond it; None if there are none."""
    text = header.fields.get("spacedirections")
    if text is None:
        return None
    words = re.findall(r"\([^()]*\)|[^\s()]+", text)
    if len(words) != count:
        raise ValueError(f"space directions {text!r:.60} are not one for each of {count} axes")
    return [None if word.lower() == "none" else _vector(word) for word in words]


def _vector(text: str) -> tuple[float, ...] | None:
    """Return the numbers of a vector, without a fourth one, for time; None along time."""
    found = re.fullmatch(r"\(([^()]*)\)", text.strip())
    if found is None:
        raise ValueError(f"{text!r:.60} is not a vector")
    numbers = tuple(float(number) for number in found[1].split(","))
    return numbers[:3] if len(numbers) < 4 or any(numbers[:3]) else None


def _origin(header: NrrdHeader) -> Array | None:
    text = header.fields.get("spaceorigin")
    place = _vector(text) if text else None
    if place is not None and len(place) != 3:
        raise ValueError(f"space origin {text!r:.60} has not three numbers")
    return None if place is None else np.array(place)


def _per_axis(header: NrrdHeader, name: str, count: int) -> list[str]:
    words = header.fields.get(name, "").split()
    if len(words) not in (0, count):
        raise ValueError(f"{name} {header.fields[name]!r:.60} are not one for each of {count} axes")
    return words


def _unit(header: NrrdHeader, count: int, space: list[int]) -> str | None:
    """Return the unit of the spacing, the same for all axes of space."""
    words = re.findall(r'"([^"]*)"', header.fields.get("spaceunits", ""))[:3]
    if not words:
        words = re.findall(r'"([^"]*)"', header.fields.get("units", ""))
        words = [words[axis] for axis in space] if len(words) == count else []
    units = {unit_name(word) for word in words} or {None}
    if len(units) > 1:
        raise InvalidInput(
            f"its axes have different units, {', '.join(words)}; write them in one in the header"
        )
    return units.pop()


def needed(header: NrrdHeader, name: str) -> str:
    """Return a field that every header must have."""
    if name not in header.fields:
        raise ValueError(f"it has no field {name}")
    return header.fields[name]
