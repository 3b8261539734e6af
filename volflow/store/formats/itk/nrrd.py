"""NRRD files as sources: ``.nrrd`` with their voxels, ``.nhdr`` that name another file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput, first_line
from volflow.geometry.affine import orientation_of
from volflow.geometry.units import unit_sign
from volflow.store.formats.itk.nrrd_header import (
    SPACES,
    Grid,
    NrrdHeader,
    grid_of,
    needed,
    parse_nrrd,
)
from volflow.store.formats.itk.text_header import NOTE, data_file, note_of, read_lines, read_note
from volflow.store.formats.placement import affine_of, in_millimeters
from volflow.store.formats.raw import RawSource, check_room
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Array

__all__ = ["nrrd_bytes", "open_nrrd"]

_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("unsigned char", "uchar", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("unsigned short", "ushort", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("unsigned int", "uint", "uint32", "uint32_t"),
    "i8": (
        "long long", "longlong", "long long int", "signed long long", "signed long long int",
        "int64", "int64_t",
    ),
    "u8": ("unsigned long long", "ulonglong", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}  # fmt: skip
_PACKINGS = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}


def open_nrrd(path: str) -> RawSource:
    """Read the header of a ``.nrrd`` or ``.nhdr`` file.

    Raises
    ------
    InvalidInput
        If it is not a NRRD file, a volume cannot hold it, or its voxels are stored in a way that
        is not read (as text, in several files, outside its folder).
    Damaged
        If it is cut short, or its header is invalid.
    """
    lines, end = read_lines(path, lambda line: not line)
    if not re.fullmatch(r"NRRD\d{4}", lines[0] if lines else ""):
        raise InvalidInput(f"{path} is not a NRRD file; its first line is not NRRD0001 to NRRD0005")
    text = "\n".join(lines)
    try:
        header = parse_nrrd(text)
        with np.errstate(all="ignore"):  # overflows are refused below, as infinite values
            grid = grid_of(header)
            meta = _meta(header, grid)
        dtype = _dtype(header)
        packing, name = _packing(header), _data_name(header)
        skips = int(header.fields.get("lineskip", 0)), int(header.fields.get("byteskip", 0))
        if skips[0] < 0 or skips[1] < (0 if packing else -1):
            raise ValueError(f"line skip {skips[0]} and byte skip {skips[1]} go backwards")
    except InvalidInput as error:
        raise type(error)(f"{path}: {error}") from None
    except (ValueError, OverflowError) as error:
        raise Damaged(
            f"{path}: damaged NRRD header ({first_line(error):.200}); write the file again"
        ) from error
    data = data_file(path, name) if name else ""
    begin = _after_lines(data or path, 0 if data else end, skips[0])
    if skips[1] == -1:
        size = math.prod(grid.shape) * dtype.itemsize
        begin, skips = max(begin, Path(data or path).stat().st_size - size), (0, 0)
    check_room(data or path, begin + skips[1], grid.shape, dtype, packing)
    return RawSource(
        path=path,
        shape=grid.shape,
        meta=replace(meta, source=SourceInfo("nrrd", dtype.newbyteorder("=").name, text.encode())),
        stored_dtype=dtype,
        begin=begin,
        skip=skips[1],
        packing=packing,
        interleaved=grid.interleaved,
        data=data,
    )


def _meta(header: NrrdHeader, grid: Grid) -> Meta:
    """Return the metadata; segmentations of 3D Slicer are known by their pairs."""
    kind, channels = read_note(header.pairs.get(NOTE, ""))
    affine = grid.affine
    meta = Meta(
        axes=("c", "z", "y", "x")[-len(grid.shape) :],
        spacing=grid.spacing,
        unit=grid.unit,
        translation=grid.translation,
        affine=None if affine is None else affine.tolist(),
        channels=channels if (len(channels), 4) == (grid.shape[0], len(grid.shape)) else (),
        kind="classes" if "Segment0_ID" in header.pairs else kind,
    )
    return meta if affine is None else replace(meta, orientation=orientation_of(affine))


def _dtype(header: NrrdHeader) -> np.dtype[Any]:
    given = " ".join(needed(header, "type").lower().split())
    code = next((code for code, names in _TYPES.items() if given in names), None)
    if code is None:
        raise InvalidInput(
            f"its voxels are of type {given!r:.40}; a volume holds integers or floats; save its"
            " parts one by one"
        )
    order = header.fields.get("endian", "").lower()
    if np.dtype(code).itemsize > 1 and order not in ("little", "big"):
        raise ValueError(f"endian {order!r} is neither little nor big")
    return np.dtype(code).newbyteorder(">" if order == "big" else "<")


def _packing(header: NrrdHeader) -> str:
    encoding = needed(header, "encoding").lower()
    if encoding not in _PACKINGS:
        raise InvalidInput(
            f"its voxels are stored as {encoding!r:.40}; raw, gzip and bzip2 can be read; write it"
            " with one of these"
        )
    return _PACKINGS[encoding]


def _data_name(header: NrrdHeader) -> str:
    """Return the name of the file of voxels, ``""`` if they follow the header."""
    name = header.fields.get("datafile", "")
    first, *numbers = name.split() or [""]
    if first == "LIST" or ("%" in first and len(numbers) in (3, 4)):
        raise InvalidInput(
            f"its voxels are spread over several files, {name!r:.60}; write it as one, e.g. with"
            " unu save"
        )
    return name


def _after_lines(path: str, begin: int, count: int) -> int:
    """Return where a file goes on after some lines."""
    with Path(path).open("rb") as file:
        file.seek(begin)
        while count and (piece := file.read(2**20)):
            ends = [found.end() for found in re.finditer(b"\n", piece)][:count]
            count -= len(ends)
            begin += len(piece) if count else ends[-1]
    if count:
        raise Damaged(f"{path} is cut short, or has less lines than are to be skipped")
    return begin


def nrrd_bytes(meta: Meta, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """Return all bytes before the gzip stream of a ``.nrrd`` file.

    A volume from NRRD goes back into the space and the unit of its source, any other into left,
    posterior, superior and millimetres. What the source's header says beside its grid is kept where
    the voxels can still mean it: for the same shape and kind.

    Parameters
    ----------
    meta, shape, dtype
        As in `nifti_header.header_bytes`.
    """
    source, grid, own = _source(meta)
    if grid is None or grid.unit is None or grid.unit != meta.unit:
        meta = in_millimeters(meta)
    lines = [
        "NRRD0005",
        "# https://teem.sourceforge.net/nrrd/format.html",
        f"type: {_TYPES[dtype.str[1:]][0]}",
        f"dimension: {len(shape)}",
        *_space_lines(meta, grid, len(shape) - 3),
        f"sizes: {' '.join(str(n) for n in reversed(shape))}",
        f"kinds: domain domain domain{' list' * (len(shape) - 3)}",
        "endian: little",
        "encoding: gzip",
    ]
    if note := note_of(meta):
        lines.append(f"{NOTE}:={note}")
    if grid is not None and own is not None:
        alike = grid.shape == tuple(shape) and own.kind == meta.kind
        lines += list(_kept(source)) if alike else []
    return "\n".join([*lines, "", ""]).encode()


def _source(meta: Meta) -> tuple[NrrdHeader, Grid | None, Meta | None]:
    """Return the header of the source, what it says of its axes, and its metadata."""
    if meta.source is None or meta.source.format != "nrrd":
        return NrrdHeader({}, {}), None, None
    try:
        header = parse_nrrd(meta.source.header.decode())
        grid = grid_of(header)
        return header, grid, _meta(header, grid)
    except ValueError as error:
        raise Damaged(
            f"the stored NRRD header cannot be read ({first_line(error):.200}); convert the file"
            " again"
        ) from error


def _space_lines(meta: Meta, grid: Grid | None, channels: int) -> Iterator[str]:
    """Yield the lines on the place of the volume."""
    affine = affine_of(meta)
    unit = "um" if meta.unit == "micrometer" else unit_sign(meta.unit)
    if affine is not None:
        space = grid.space if grid is not None and grid.space in SPACES else next(iter(SPACES))
        signs = np.array(SPACES[space]) * (-1, -1, 1)
        rows, place = affine[:3, :3].T * signs, affine[:3, 3] * signs
        yield f"space: {space}"
    elif grid is not None and grid.steps is not None and grid.spacing == meta.spacing:
        rows, place = grid.steps, grid.place
        yield f"space: {grid.space}" if grid.space else "space dimension: 3"
    else:
        rows, place = np.diag(meta.spacing[::-1]), np.array(meta.translation[::-1])
        yield "space dimension: 3"
    directions = [*map(_written, rows), *["none"] * channels]
    yield f"space directions: {' '.join(directions)}"
    yield f"space origin: {_written(place)}"
    if unit:
        yield f"space units: {' '.join([_quoted(unit)] * 3)}"


def _quoted(text: str) -> str:
    return f'"{text}"'


def _written(vector: Array) -> str:
    return f"({','.join(repr(number) for number in (vector + 0.0).tolist())})"


def _kept(source: NrrdHeader) -> Iterator[str]:
    """Yield what else the header of the source says, but for what holds for its stored numbers."""
    names = {"content": "content", "measurementframe": "measurement frame"}
    for name, text in source.fields.items():
        if name in names:
            yield f"{names[name]}: {text}"
    for key, value in source.pairs.items():
        if key != NOTE:
            yield f"{key}:={value}"
