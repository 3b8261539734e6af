"""MetaImage files as sources: ``.mha`` with their voxels, ``.mhd`` that name another file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput, first_line
from volflow.geometry.affine import from_lps, orientation_of, spacing_of
from volflow.geometry.units import metres, unit_name, unit_sign
from volflow.store.formats.itk.text_header import NOTE, data_file, note_of, read_lines, read_note
from volflow.store.formats.placement import affine_of, in_millimeters
from volflow.store.formats.raw import RawSource, check_room
from volflow.store.meta import Meta, SourceInfo

__all__ = ["metaimage_bytes", "open_metaimage"]

MOST_AXES = 10
LONGEST_NOTE = 400  # characters: ITK before 5 reads lines of 500
_LAST = "elementdatafile"
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
# Fields of one meaning, the first that is there counts, as in ITK.
_MATRIX = "transformmatrix", "rotation", "orientation"
_PLACE = "offset", "position", "origin"
_SPACING = "elementspacing", "elementsize"
_ORDER = "binarydatabyteordermsb", "elementbyteordermsb"

Fields = Mapping[str, str]


def open_metaimage(path: str) -> RawSource:
    """Read the header of a ``.mha`` or ``.mhd`` file.

    A place in the body is known where the file says one, in the coordinates of ITK: left,
    posterior, superior. ``AnatomicalOrientation`` is ignored, as ITK does: by its letters some mean
    where an axis begins, others where it ends.

    Raises
    ------
    InvalidInput
        If it is not a MetaImage file, a volume cannot hold it, or its voxels are stored in a way
        that is not read (as text, in several files, outside its folder).
    Damaged
        If it is cut short, or its header is invalid.
    """
    lines, end = read_lines(path, lambda line: _field(line)[0] == _LAST)
    fields = dict(_field(line) for line in lines)
    if not {"ndims", "dimsize", _LAST} <= fields.keys():
        raise InvalidInput(
            f"{path} is not a MetaImage file; its header has no NDims, DimSize or ElementDataFile"
        )
    try:
        shape, interleaved = _shape(fields)
        dtype = _dtype(fields)
        with np.errstate(all="ignore"):  # overflows are refused below, as infinite values
            meta = _meta(fields, shape, dtype)
        name = _data_name(fields)
        begin = int(fields.get("headersize", 0))
        is_packed = _is_true(fields, "compresseddata")
        if begin < (0 if is_packed else -1):
            raise ValueError(f"HeaderSize {begin} is negative")
    except InvalidInput as error:
        raise type(error)(f"{path}: {error}") from None
    except (ValueError, OverflowError) as error:
        raise Damaged(
            f"{path}: damaged MetaImage header ({first_line(error):.200}); write the file again"
        ) from error
    data = data_file(path, name) if name else ""
    if begin < 0:
        size = Path(data or path).stat().st_size - math.prod(shape) * dtype.itemsize
        begin = max(0 if data else end, size)
    begin = min(begin or (0 if data else end), Path(data or path).stat().st_size)
    packing = _packing(data or path, begin) if is_packed else ""
    check_room(data or path, begin, shape, dtype, packing)
    return RawSource(
        path=path,
        shape=shape,
        meta=meta,
        stored_dtype=dtype,
        begin=begin,
        packing=packing,
        interleaved=interleaved,
        data=data,
    )


def _field(line: str) -> tuple[str, str]:
    """Return name, in lower case, and value of a line; ``("", …)`` of one that is none."""
    name, equals, value = line.partition("=")
    return (name.strip().lower() if equals else "", value.strip())


def _first(fields: Fields, names: Sequence[str]) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _is_true(fields: Fields, *names: str) -> bool:
    return (_first(fields, names) or "").lower() in ("true", "t", "1")


def _shape(fields: Fields) -> tuple[tuple[int, ...], bool]:
    """Return the shape, ``zyx`` or ``czyx``, and whether channels are interleaved."""
    count = int(fields["ndims"])
    sizes = [int(size) for size in fields["dimsize"].split()[: MOST_AXES + 1]]
    if not 1 <= count <= MOST_AXES or len(sizes) < count or min(sizes[:count]) < 1:
        raise ValueError(f"NDims {count} and DimSize {fields['dimsize']:.60} do not fit")
    own = int(fields.get("elementnumberofchannels", 1))
    further = [size for size in sizes[3:count] if size > 1]
    if own < 1 or count < 2 or len(further) + (own > 1) > 1:
        raise InvalidInput(
            f"it has sizes {sizes[:count]} and {own} channels; a volume has x, y, z and at most one"
            " further axis, for channels; split it"
        )
    channels = [own] if own > 1 else further
    return (*channels, *reversed([*sizes[: min(count, 3)], 1][:3])), own > 1


def _dtype(fields: Fields) -> np.dtype[Any]:
    given = fields.get("elementtype", "").upper().removesuffix("_ARRAY")
    if given not in _TYPES:
        raise InvalidInput(
            f"its voxels are of type {given!r:.40}; a volume holds integers or floats; save its"
            " parts one by one"
        )
    if not _is_true({"binarydata": "true", **fields}, "binarydata"):
        raise InvalidInput("its voxels are stored as text; write it with BinaryData = True")
    return np.dtype(_TYPES[given]).newbyteorder(">" if _is_true(fields, *_ORDER) else "<")


def _meta(fields: Fields, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Meta:
    count = int(fields["ndims"])
    steps = _numbers(fields, _SPACING, count)
    lengths = [1.0] * count if steps is None else steps
    rows, origin = _numbers(fields, _MATRIX, count * count), _numbers(fields, _PLACE, count)
    affine = None
    if count > 2 and (rows is not None or origin is not None):
        turn = np.eye(count) if rows is None else np.reshape(rows, (count, count))
        place = [0.0] * 3 if origin is None else origin[:3]
        affine = from_lps(turn[:3, :3] * np.array(lengths[:3])[:, None], place)
    x, y, z = [*(abs(length) for length in lengths), 1.0][:3]
    kind, channels = read_note(fields.get(NOTE, ""))
    header = "\n".join(f"{name} = {value}" for name, value in fields.items()).encode()
    meta = Meta(
        axes=("c", "z", "y", "x")[-len(shape) :],
        spacing=(z, y, x) if affine is None else spacing_of(affine),
        unit=unit_name(_given_unit(fields)) or (None if affine is None else "millimeter"),
        affine=None if affine is None else affine.tolist(),
        channels=channels if (len(channels), 4) == (shape[0], len(shape)) else (),
        kind=kind,
        source=SourceInfo("metaimage", dtype.newbyteorder("=").name, header),
    )
    return meta if affine is None else replace(meta, orientation=orientation_of(affine))


def _given_unit(fields: Fields) -> str:
    given = fields.get("distanceunits", "")
    return "" if given == "?" else given


def _numbers(fields: Fields, names: Sequence[str], count: int) -> list[float] | None:
    """Return the numbers of a field by the first of its names that is there; None without one."""
    text = _first(fields, names)
    if text is None:
        return None
    words = text.split()
    if len(words) != count:
        raise ValueError(f"{names[0]} {text!r:.60} is not {count} numbers")
    return [float(word) for word in words]


def _data_name(fields: Fields) -> str:
    """Return the name of the file of voxels, ``""`` if they follow the header."""
    name = fields[_LAST]
    first, *numbers = name.split() or [""]
    if first.upper() == "LOCAL":
        return ""
    if first.upper() == "LIST" or ("%" in first and len(numbers) in (2, 3)):
        raise InvalidInput(
            f"its voxels are spread over several files, {name!r:.60}; write it as one, e.g. as .mha"
            " with SimpleITK"
        )
    if not first:
        raise ValueError("ElementDataFile names no file")
    return name


def _packing(path: str, begin: int) -> str:
    """Return how voxels are packed: by zlib, or as a whole gzip file."""
    with Path(path).open("rb") as file:
        file.seek(begin)
        return "gzip" if file.read(2) == b"\x1f\x8b" else "zlib"


def metaimage_bytes(meta: Meta, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """Return all bytes before the voxels of a ``.mha`` file, whose channels are interleaved.

    Lengths are in millimetres, but for a volume from a MetaImage file that said another unit.

    Parameters
    ----------
    meta, shape, dtype
        As in `nifti_header.header_bytes`.
    """
    code = next(name for name, code in _TYPES.items() if code == dtype.str[1:])
    channels = shape[0] if len(shape) == 4 else 1
    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = False",
        *_place_lines(meta if _says_unit(meta) else in_millimeters(meta)),
        f"DimSize = {_words(reversed(shape[-3:]))}",
    ]
    if channels > 1:
        lines.append(f"ElementNumberOfChannels = {channels}")
    note = note_of(meta, LONGEST_NOTE)
    lines += [f"{NOTE} = {note}"] if note else []
    lines += [f"ElementType = {code}", "ElementDataFile = LOCAL", ""]
    return "\n".join(lines).encode()


def _says_unit(meta: Meta) -> bool:
    """Return True if the file of which a volume was made says the volume's unit."""
    if meta.source is None or meta.source.format != "metaimage":
        return False
    lines = meta.source.header.decode(errors="replace").split("\n")
    given = _given_unit(dict(_field(line) for line in lines))
    return bool(given) and unit_name(given) == meta.unit


def _place_lines(meta: Meta) -> Iterator[str]:
    """Yield the lines on the place of the volume."""
    affine = affine_of(meta)
    lengths: Any = meta.spacing[::-1]
    if affine is not None:
        steps = affine[:3, :3].T * (-1, -1, 1)
        lengths = np.linalg.norm(steps, axis=1)
        yield f"TransformMatrix = {_words((steps / lengths[:, None]).ravel())}"
        yield f"Offset = {_words(affine[:3, 3] * (-1, -1, 1))}"
    yield f"ElementSpacing = {_words(lengths)}"
    if metres(meta.unit) is not None:
        sign = "um" if meta.unit == "micrometer" else unit_sign(meta.unit)
        yield f"DistanceUnits = {sign}"


def _words(numbers: Any) -> str:
    return " ".join(repr(number) for number in (np.array(list(numbers)) + 0).tolist())
