"""What a TIFF file says of its voxels: their size and unit, channels and kind."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

from volflow.errors import InvalidInput
from volflow.geometry.units import metres, unit_name
from volflow.store.formats.tiff.ome_xml import OmeImage
from volflow.store.meta import Meta, SourceInfo, Vector, check_spacing

__all__ = ["grid_of"]

RGB, YCBCR = 2, 6  # photometric interpretation
CENTIMETER, NO_UNIT = 3, 1
DECIMALS = 7  # digits to which a resolution, a fraction of whole numbers, gives a size
COLORS = ("red", "green", "blue", "alpha")


def grid_of(file: Any, series: Any, whole: Any, ome: OmeImage | None, channels: int) -> Meta:
    """Return the metadata of an image, as far as its file says them itself.

    Voxel sizes are those of OME-XML, of ImageJ's description with the resolution in its unit, or
    of Aperio's slides. The resolution alone counts only for tiled pages in pixels per centimetre,
    as OpenSlide has it: in all other files it is what a program writes that prints or scans, such
    as 72 dots per inch. A size along z that is not said is 1.

    Parameters
    ----------
    file, series, whole
        The `tifffile.TiffFile`; the image at the level that is read, and at its finest.
    ome
        What OME-XML says of it.
    channels
        How many there are.
    """
    page = whole.keyframe
    spacing: Vector
    names: tuple[str, ...] = ()
    kind = "image"
    if ome is not None:
        spacing, unit, names, kind = ome.spacing, ome.unit, ome.channels, ome.kind
    elif file.is_imagej:
        said = file.imagej_metadata or {}
        spacing, unit = _of_imagej(page, said)
        names, kind = _labels(said, channels), str(said.get("kind", kind))
    else:
        spacing, unit = _of_slide(page)
    if page.photometric in (RGB, YCBCR) and channels in (3, 4):
        names = COLORS[:channels]
    try:
        check_spacing(spacing)
    except InvalidInput:  # such as a depth of 1e300
        spacing, unit = Meta.spacing, None
    meta = Meta(
        axes=("c", "z", "y", "x")[channels == 1 :],
        spacing=spacing,
        unit=unit,
        channels=names if len(names) == channels and channels > 1 else (),
        kind=kind if kind == "classes" else "image",
        source=SourceInfo("tiff", str(series.dtype)),
    )
    if series is whole:
        return meta
    return replace(meta.regrid(_factors(series, whole)), source=meta.source)


def _of_imagej(page: Any, said: dict[str, Any]) -> tuple[Vector, str | None]:
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), str(said.get("unit", "")))
    unit = unit_name(text)
    unit = unit if metres(unit) else None
    trusted = unit is not None or page.resolutionunit == NO_UNIT
    size_x, size_y = _sizes(page) if trusted else (1.0, 1.0)
    return (_positive(said.get("spacing")) or 1.0, size_y, size_x), unit


def _of_slide(page: Any) -> tuple[Vector, str | None]:
    said = re.search(r"\bMPP *= *([0-9.]+)", page.description) if page.is_svs else None
    if said is not None and (size := _positive(said[1])) is not None:
        return (1.0, size, size), "micrometer"
    if page.is_tiled and page.resolutionunit == CENTIMETER:
        size_x, size_y = _sizes(page)
        return (1.0, round(size_y * 1e4, DECIMALS), round(size_x * 1e4, DECIMALS)), "micrometer"
    return Meta.spacing, None


def _sizes(page: Any) -> tuple[float, float]:
    """Return the size of a pixel along x and y, from how many there are in a unit."""
    sizes = [float(f"{1 / dots:.{DECIMALS}g}") if dots > 0 else 1.0 for dots in page.resolution]
    return sizes[0], sizes[1]


def _positive(value: Any) -> float | None:
    """Return a size, None where it is none."""
    try:
        size = abs(float(value))
    except (TypeError, ValueError):
        return None
    return size if 0 < size < math.inf else None


def _labels(said: dict[str, Any], channels: int) -> tuple[str, ...]:
    """Return names of channels, where ImageJ labels all planes of one alike."""
    labels = said.get("Labels")
    if not isinstance(labels, list) or len(labels) % channels:
        return ()
    names = [set(labels[channel::channels]) for channel in range(channels)]
    found = tuple(next(iter(own)) for own in names if len(own) == 1)
    return found if len(set(found)) == channels else ()


def _factors(series: Any, whole: Any) -> tuple[float, float, float]:
    """Return how many voxels of the finest level a voxel is long: a whole number, if it is near."""
    sides = [
        dict(zip(one.get_axes(False), one.get_shape(False), strict=True)) for one in (whole, series)
    ]
    ratios = [sides[0].get(axis, 1) / max(1, sides[1].get(axis, 1)) for axis in "ZYX"]
    z, y, x = (round(r) if round(r) and abs(r - round(r)) < 0.05 * r else r for r in ratios)
    return z, y, x
