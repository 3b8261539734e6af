"""TIFF files to write: ImageJ's hyperstacks where those can hold the volume, else OME-TIFF."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.geometry.units import metres, unit_sign
from volflow.store.formats.nifti_header import stored_dtype
from volflow.store.formats.tiff.ome_xml import KIND
from volflow.store.formats.tiff.tiff_file import import_tifffile
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.slabs import Array, Source

__all__ = ["refuse_tiff", "tiff_dtype", "write_ome_tiff", "write_tiff"]

CLASSIC_BYTES = 2**32 - 2**25  # of a file with offsets of 32 bits, and room for its pages
PAGE_BYTES = 300  # of the tags of a page
IMAGEJ = ("uint8", "uint16", "int16", "float32")
DOTS = (1e-6, 1e9)  # pixels per unit that a fraction of two numbers of 32 bits holds well
SIGNS = ("angstrom", "nanometer", "micrometer", "millimeter", "centimeter", "meter")

Dtype = np.dtype[Any]


def tiff_dtype(dtype: Dtype) -> Dtype:
    """Return the little-endian dtype in which these voxels are stored without loss.

    Raises
    ------
    InvalidInput
        If there is none: neither ImageJ nor OME-TIFF has integers of 64 bits.

    Examples
    --------
    >>> tiff_dtype(np.dtype("bool")).name, tiff_dtype(np.dtype("float16")).name
    ('uint8', 'float32')
    """
    if dtype.kind in "iu" and dtype.itemsize == 8:
        raise InvalidInput(
            f"the volume holds {dtype}, which TIFF files that others read cannot; convert it with"
            " --dtype int32 first, or export .h5 or .npy"
        )
    return stored_dtype(dtype)


def refuse_tiff(spec: VolumeSpec, _: str) -> None:
    """Refuse what TIFF cannot hold, and to write it without tifffile, before it is computed."""
    import_tifffile()
    tiff_dtype(spec.dtype)


def write_tiff(volume: Source, depth: int, file: IO[bytes]) -> None:
    """Write a TIFF file that Fiji opens with its spacing, ``depth`` planes at a time."""
    meta, dtype = volume.meta, tiff_dtype(volume.dtype)
    dots = [1 / size for size in meta.spacing[:0:-1]]
    channels = volume.channels_count
    small = _bytes(volume, dtype) < CLASSIC_BYTES and all(DOTS[0] < n < DOTS[1] for n in dots)
    in_order = channels == 1 or not volume.sequential  # ImageJ has all channels of a plane together
    if dtype.name not in IMAGEJ or not small or not in_order or volume.shape[-1] == 1:
        write_ome_tiff(volume, depth, file)
        return
    said: dict[str, Any] = {"axes": "ZCYX", "spacing": meta.spacing[0], "kind": meta.kind}
    if meta.unit is not None:
        said["unit"] = _ascii(meta.unit)
    if channels > 1:
        said["mode"] = "composite"
    if names := _names(meta, channels):
        said["Labels"] = names * volume.shape[-3]
    with import_tifffile().TiffWriter(file, imagej=True, byteorder="<") as writer:
        writer.write(
            (_one_by_one if channels == 1 else _side_by_side)(volume, depth, dtype),
            shape=(volume.shape[-3], channels, *volume.shape[-2:]),
            dtype=dtype,
            photometric="minisblack",
            resolution=tuple(dots),
            resolutionunit="NONE",
            metadata=said,
            **_packing(meta),
        )


def write_ome_tiff(volume: Source, depth: int, file: IO[bytes]) -> None:
    """Write an OME-TIFF, a BigTIFF if it is large, ``depth`` planes at a time."""
    meta, dtype = volume.meta, tiff_dtype(volume.dtype)
    spacing, sign = _ome_lengths(meta)
    said: dict[str, Any] = {"axes": "CZYX"[4 - volume.ndim :]}
    if meta.knows_spacing:
        for axis, size in zip("ZYX", spacing, strict=True):
            said |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": sign}
    if names := _names(meta, volume.channels_count):
        said["Channel"] = {"Name": names}
    if meta.kind == "classes":
        said["MapAnnotation"] = {KIND: meta.kind}
    # By default a number that is new each time; the same volume gives the same bytes.
    said["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{volume.path} {volume.shape} {said}"))
    big = _bytes(volume, dtype) >= CLASSIC_BYTES
    with import_tifffile().TiffWriter(file, ome=True, bigtiff=big, byteorder="<") as writer:
        writer.write(
            _one_by_one(volume, depth, dtype),
            shape=volume.shape,
            dtype=dtype,
            photometric="minisblack",
            metadata=said,
            **_packing(meta),
        )


def _packing(meta: Meta) -> dict[str, Any]:
    """Return how pages are packed: classes by deflate, which shrinks them most and all read.

    Images stay as they are, so that any part of them is read without unpacking.
    """
    # One at a time: else many strips would be held.
    return {"compression": "zlib", "maxworkers": 1} if meta.kind == "classes" else {}


def _bytes(volume: Source, dtype: Dtype) -> int:
    planes = math.prod(volume.shape[:-2])
    return math.prod(volume.shape) * dtype.itemsize + planes * PAGE_BYTES


def _one_by_one(volume: Source, depth: int, dtype: Dtype) -> Iterator[Array]:
    """Yield all planes of a channel, then those of the next, each a copy: its slab is let go."""
    for _, slab in volume.slabs(depth):
        for plane in slab.reshape(-1, *slab.shape[-2:]):
            yield plane.astype(dtype)
        del slab, plane


def _side_by_side(volume: Source, depth: int, dtype: Dtype) -> Iterator[Array]:
    """Yield the planes of all channels at a z, then at the next, as ImageJ has them."""
    channels, size_z, *sides = volume.shape
    wide, deep = (channels, depth // channels) if depth >= channels else (1, 1)
    for z in range(0, size_z, deep):
        for channel in range(0, channels, wide):
            box = Roi((channel, z, 0, 0), (channel + wide, z + deep, *sides))
            slab = volume.read(box.clip(volume.shape))
            for k, c in np.ndindex(slab.shape[1], slab.shape[0]):
                yield slab[c, k].astype(dtype)
            del slab


def _names(meta: Meta, channels: int) -> list[str]:
    """Return the names of channels, if they have any."""
    named = meta.kind == "image" and channels > 1 and len(meta.channels) == channels
    return list(meta.channels) if named else []


def _ascii(unit: str) -> str:
    sign = unit_sign(unit).replace("µ", "u")
    return sign if sign.isascii() else unit


def _ome_lengths(meta: Meta) -> tuple[tuple[float, ...], str]:
    """Return the spacing in a unit that OME has a sign for, and that."""
    if meta.unit is None or meta.unit in SIGNS:
        return meta.spacing, unit_sign(meta.unit) or "pixel"
    length = metres(meta.unit)
    if length is None:
        return meta.spacing, "pixel"
    return tuple(size * length * 1e6 for size in meta.spacing), "µm"
