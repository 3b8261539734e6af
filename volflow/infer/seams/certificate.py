"""The effect of patch seams on a result, as plain data and as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy.typing as npt

__all__ = ["Certificate", "Plane", "Region", "Seams", "percent"]

Array = npt.NDArray[Any]

TABLE = "{:<10} {:>8} {:>11} {:>11} {:>12} {:>9} {:>8}"


@dataclass(frozen=True)
class Seams:
    """A region run in pieces, compared with the same region run whole.

    Parameters
    ----------
    blend, overlap
        As `predict` takes them; the exact blend has no overlap.
    forwards
        Patches, or blocks of the exact blend.
    largest, mean
        Absolute difference of scores, over all voxels and channels.
    changed
        Share of voxels whose class is another.
    cpu_seconds
        Of the run, with its planning, reading and writing.
    """

    blend: str
    overlap: Any
    forwards: int
    largest: float
    mean: float
    changed: float
    cpu_seconds: float

    @property
    def name(self) -> str:
        """Blend and overlap."""
        if self.overlap is None:
            return self.blend
        by_axis = isinstance(self.overlap, Sequence)
        overlap = ",".join(map(str, self.overlap)) if by_axis else self.overlap
        return f"{self.blend} {overlap}"


@dataclass(frozen=True)
class Region:
    """A part of the volume, treated as a volume of its own.

    Parameters
    ----------
    start, stop
        Voxels of the volume, z, y, x.
    padded
        What the network was run on as a whole: its axes, with zeros at the far end.
    scores
        Lowest and highest of that run, behind the activation.
    cpu_seconds
        Of that run.
    exact
        None where the network has no exact rule.
    blends
        One for each blend at each overlap.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]
    padded: tuple[int, ...]
    scores: tuple[float, float]
    cpu_seconds: float
    exact: Seams | None
    blends: tuple[Seams, ...]


@dataclass(frozen=True, eq=False)
class Plane:
    """The slice in which blends differ most from the whole run, seams along it aside; stored axes.

    Parameters
    ----------
    region
        Number of the region.
    axis, index
        Across the plane; voxels of the volume.
    image
        As the network sees it: normalised, first channel.
    whole
        Classes of the whole run, or the score of its only channel.
    differences
        Per blend, the largest absolute difference of a voxel's scores.
    borders
        Per blend and axis z, y, x, where patches begin and end, from the region's low edge.
    """

    region: int
    axis: int
    index: int
    image: Array
    whole: Array
    differences: tuple[Array, ...]
    borders: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Certificate:
    """Differences of blended patches from the network run on the whole, on regions of a volume.

    Parameters
    ----------
    volume, model
        Their names.
    shape, spacing, unit, orientation
        Of the volume, z, y, x.
    frame, patch, activation, device, dtype
        Of the network.
    classes
        Names, where the model brings them.
    margin
        Voxels that the network reads before and behind a block, per axis of its own; None where
        it has no exact rule.
    statistics
        Layers that need statistics of the whole volume.
    no_rule
        Why there is no exact blend; "" where there is one.
    regions
        What was measured, in the order of most structure.
    plane
        What a picture of it shows.
    """

    volume: str
    model: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    unit: str | None
    orientation: str | None
    frame: str | None
    patch: tuple[int, ...]
    activation: str | None
    device: str
    dtype: str
    classes: tuple[str, ...]
    margin: tuple[tuple[int, int], ...] | None
    statistics: int
    no_rule: str
    regions: tuple[Region, ...]
    plane: Plane = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for machines; the plane of the picture is left out."""
        values = {name: value for name, value in vars(self).items() if name != "plane"}
        return {**values, "regions": [asdict(region) for region in self.regions]}

    def describe(self) -> str:
        """Return the same as text for people: a table for each region, and remarks."""
        lines = [
            f"volume      {self.volume}, {_by(self.shape)} voxels",
            f"model       {self.model}, patch {_by(self.patch)}"
            + (f", frame {self.frame}" if self.frame else ""),
            f"scores      {self.activation or 'as the network makes them'},"
            f" {self.dtype} on {self.device}",
            "compared    with the network run whole on each region, which is a volume of its own;",
            "            the exact blend in small blocks on purpose: large ones cost less",
        ]
        for number, region in enumerate(self.regions, 1):
            lines += ["", *_table(number, region)]
        return "\n".join([*lines, "", *self.notes()])

    def notes(self) -> list[str]:
        """Return remarks that the figures cannot be read without."""
        notes = []
        if self.margin is not None:
            reach = max(max(sides) for sides in self.margin)
            notes.append(f"the network reads up to {reach} voxels beyond a block on each side")
        if self.no_rule:
            notes.append(f"no exact blend: {self.no_rule}")
        if self.statistics:
            notes.append(
                f"statistics of the whole volume are needed by {self.statistics} of its layers: the"
                " exact blend equals the whole run; a network trained on patches saw other"
                " statistics"
            )
        if not any(any(axes) for axes in self.plane.borders):
            notes.append("one patch covers a region, so that there are no seams to measure")
        return notes


def _table(number: int, region: Region) -> list[str]:
    spans = ", ".join(
        f"{axis} {a}–{b}" for axis, a, b in zip("zyx", region.start, region.stop, strict=True)
    )
    base = region.exact.cpu_seconds if region.exact else region.cpu_seconds
    low, high = region.scores
    lines = [
        f"region {number}    {spans}; scores {low:.4g} … {high:.4g}".replace("-", "−"),
        TABLE.format("", "overlap", "largest", "mean", "other class", "forwards", "CPU"),
    ]
    rows = [region.exact] if region.exact else []
    for row in (*rows, *region.blends):
        overlap = row.name.partition(" ")[2]
        cells = (f"{row.largest:.2e}", f"{row.mean:.2e}", percent(row.changed), row.forwards)
        lines.append(TABLE.format(row.blend, overlap, *cells, _times(row.cpu_seconds, base)))
    whole = _times(region.cpu_seconds, base)
    return [*lines, TABLE.format("whole", "", "", "", "", 1, whole)]


def _times(seconds: float, base: float) -> str:
    return f"{seconds / base:.2f}×" if base > 0 and math.isfinite(seconds) else ""


def percent(share: float) -> str:
    """Return a share of voxels as text.

    Examples
    --------
    >>> percent(0), percent(0.00123), percent(2e-7)
    ('0', '0.123 %', '2e-05 %')
    """
    return f"{100 * share:.3g} %" if share else "0"


def _by(sides: Sequence[int]) -> str:
    return " × ".join(map(str, sides))
