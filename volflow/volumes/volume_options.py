"""The options of work on whole volumes; what each means stands in the function of its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from volflow.engine.run_options import OutputOptions, RunOptions
from volflow.errors import InvalidInput
from volflow.option import numbers, option
from volflow.store.formats.choice import ImageChoice

if TYPE_CHECKING:
    from volflow.geometry.histogram import Foreground
    from volflow.store.meta import Meta
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = [
    "ChunkOptions",
    "ConvertOptions",
    "ExportOptions",
    "LayoutOptions",
    "PyramidOptions",
    "StatisticsOptions",
    "WriteOptions",
]


@dataclass(frozen=True)
class ChunkOptions(OutputOptions):
    """The options that all that write voxels share."""

    chunk: int | Sequence[int] | None = option(
        None, "Voxels of a compressed piece: 64, or 16,128,128 (z,y,x).", read=numbers
    )
    shard: int | Sequence[int] | None = option(
        None, "Voxels of a stored object, a multiple of the chunk.", read=numbers
    )


@dataclass(frozen=True)
class LayoutOptions(ChunkOptions):
    """The options that `convert` and `write` share."""

    spacing: float | Sequence[float] | None = option(
        None,
        "Voxel size along z,y,x, where the source does not say it: 2, or 5,0.7,0.7.",
        read=numbers,
    )
    unit: str | None = option(None, "Its unit: mm, um, nm, … Default: what the source says.")
    # No command line names a Dask array, which this is about.
    resume: bool = False


@dataclass(frozen=True)
class ConvertOptions(LayoutOptions, ImageChoice):
    """The options of `convert`."""

    dtype: str | None = option(
        None, "Data type to store, such as uint16; a voxel that it does not hold is refused."
    )
    labels: bool | None = option(
        None,
        "Take the source for a label map, whose voxels are classes, or for an image. Of what is"
        " converted already only the metadata change. Default: what the file says.",
        names=("--labels/--image",),
    )


@dataclass(frozen=True)
class WriteOptions(LayoutOptions):
    """The options of `write`."""

    like: VolumeLike | None = None
    meta: Meta | None = None
    orientation: str | None = option(
        None, "Direction in which z, y and x grow, in letters such as SAR."
    )


@dataclass(frozen=True)
class PyramidOptions(OutputOptions):
    """The options of `pyramid`."""

    levels: int | None = option(
        None, "How many coarser levels. Default: until no side exceeds 64 voxels."
    )


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`."""

    overwrite: bool = option(False, "Replace the output if it exists.")
    memory: str | int = option("1GiB", "What the planes in memory may take.")
    like: str | os.PathLike[str] | None = option(
        None,
        "Of a .dcm: the DICOM series on whose grid the volume lies. Default: the one that it was"
        " made from.",
    )
    ngff: str | None = option(
        None, "0.4: write a .zarr, with all levels, that older software reads, too."
    )


def as_foreground(name: str, text: str) -> bool | float:
    """Which voxels count, as typed: ``nonzero``, or a number.

    Examples
    --------
    >>> as_foreground("foreground", "nonzero"), as_foreground("foreground", "-500")
    (True, -500.0)
    """
    try:
        return text == "nonzero" or float(text)
    except ValueError:
        raise InvalidInput(
            f"{name} must be nonzero or a number, given {text!r}; leave it out for all voxels"
        ) from None


@dataclass(frozen=True)
class StatisticsOptions(RunOptions):
    """The options of `statistics`."""

    foreground: Foreground = option(
        False,
        "nonzero, or a number: only voxels above it count. Default: all.",
        read=as_foreground,
    )
