"""The OME-XML of a TIFF file: what it says of each image, and of how many planes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from volflow.errors import Damaged, first_line
from volflow.geometry.units import metres, unit_name
from volflow.store.meta import Vector

__all__ = ["KIND", "OmeImage", "OmeXml", "own_xml", "read_ome"]

RELATIVE = ("pixel", "reference frame")  # units of lengths that have none
KIND = "volflow:kind"  # key of an annotation that `export` writes


@dataclass(frozen=True)
class OmeImage:
    """An image in OME-XML.

    Parameters
    ----------
    name
        Its name, or "".
    spacing
        Voxel size along z, y, x; 1 along z where it is not said.
    unit
        Unit of the spacing as NGFF spells it, that of x; None if no size is said.
    channels
        One name per channel, or () if one lacks a name.
    stacks
        How many stacks of planes along z it has: one for each channel and timepoint.
    kind
        ``"classes"`` if `export` wrote classes.
    """

    name: str
    spacing: Vector
    unit: str | None
    channels: tuple[str, ...]
    stacks: int
    kind: str


@dataclass(frozen=True)
class OmeXml:
    """What OME-XML describes: images, of how many planes together, and in how many files."""

    images: tuple[OmeImage, ...]
    planes: int
    files: int


def read_ome(text: str, path: str) -> OmeXml:
    """Read OME-XML.

    Raises
    ------
    Damaged
        If it is no XML, or lacks sizes.
    """
    root = _parsed(text, path)
    images = list(_images(root))
    kind = next((found.text for found in _all(root, "M") if found.get("K") == KIND), None)
    return OmeXml(
        tuple(_image(image, pixels, path, kind or "image") for image, pixels in images),
        sum(_planes(pixels, path) for _, pixels in images),
        len(_files(root)),
    )


def own_xml(text: str, path: str) -> str:
    """Return OME-XML without names of files, so that no other file is opened.

    A file that was renamed is found by this, too.

    Raises
    ------
    Damaged
        If it is nested too deeply to be written.
    """
    root = _parsed(text, path)
    for data in _all(root, "TiffData"):
        for child in list(data):
            if _is(child, "UUID"):
                data.remove(child)
    try:
        return ElementTree.tostring(root, encoding="unicode")
    except RecursionError:
        raise Damaged(f"{path} holds OME-XML that is nested too deeply; export it again") from None


def _parsed(text: str, path: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise Damaged(f"{path} holds damaged OME-XML ({first_line(error)}); export it again") from (
            error
        )


def _is(element: ElementTree.Element, name: str) -> bool:
    return str(element.tag).rpartition("}")[2] == name


def _all(element: ElementTree.Element, name: str) -> Iterator[ElementTree.Element]:
    return (child for child in element.iter() if _is(child, name))


def _images(root: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, Any]]:
    for image in root:
        if _is(image, "Image"):
            yield from ((image, pixels) for pixels in image if _is(pixels, "Pixels"))


def _planes(pixels: ElementTree.Element, path: str) -> int:
    """Return of how many planes an image is, as it says itself or by its parts."""
    parts = [
        _count(data, name, path, 0)
        for data in _all(pixels, "TiffData")
        for name in ("PlaneCount", "NumPlanes")
    ]
    return max(_stacks(pixels, path) * _count(pixels, "SizeZ", path), *parts, 0)


def _stacks(pixels: ElementTree.Element, path: str) -> int:
    channel = next(_all(pixels, "Channel"), None)
    samples = 1 if channel is None else _count(channel, "SamplesPerPixel", path, 1)
    channels = _count(pixels, "SizeC", path) // max(1, samples)
    return channels * _count(pixels, "SizeT", path)


def _count(element: ElementTree.Element, name: str, path: str, default: int | None = None) -> int:
    text = element.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or len(text) > 9:
        raise Damaged(f"{path} has OME-XML whose {name} is {text}; export it again")
    return int(text)


def _files(root: ElementTree.Element) -> set[str]:
    """Return the names of all files in which planes lie."""
    return {
        uuid.get("FileName") or uuid.text or ""
        for data in _all(root, "TiffData")
        for uuid in data
        if _is(uuid, "UUID")
    }


def _image(
    image: ElementTree.Element, pixels: ElementTree.Element, path: str, kind: str
) -> OmeImage:
    sizes = {axis: _size(pixels, axis) for axis in "ZYX"}
    sizes |= {"Y": sizes["Y"] or sizes["X"], "X": sizes["X"] or sizes["Y"]}  # square pixels
    unit = next((found[1] for axis in "XYZ" if (found := sizes[axis]) is not None), None)
    spacing = tuple(
        1.0 if found is None else found[0] * _ratio(found[1], unit) for found in sizes.values()
    )
    names = [channel.get("Name") or "" for channel in _all(pixels, "Channel")]
    return OmeImage(
        image.get("Name") or "",
        (spacing[0], spacing[1], spacing[2]),
        unit or None,
        tuple(names) if all(names) else (),
        _stacks(pixels, path),
        kind,
    )


def _size(pixels: ElementTree.Element, axis: str) -> tuple[float, str] | None:
    """Return a voxel size and its unit, "" for none; None if no length is said."""
    unit = unit_name(pixels.get(f"PhysicalSize{axis}Unit", "µm")) or ""
    unit = "" if unit in RELATIVE else unit
    try:
        size = float(pixels.get(f"PhysicalSize{axis}", ""))
    except ValueError:
        return None
    return (size, unit) if 0 < size < math.inf and (not unit or metres(unit)) else None


def _ratio(unit: str, other: str | None) -> float:
    return 1.0 if unit == other else (metres(unit) or 1.0) / (metres(other) or 1.0)
