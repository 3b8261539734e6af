"""The values of one slice: its bytes, read or decoded, as numbers of a volume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput, first_line
from volflow.store.formats.dicom.frame_places import PixelFormat
from volflow.store.formats.dicom.image_file import DicomSlice, import_pydicom
from volflow.store.formats.raw import put_scaled
from volflow.store.slabs import Array

__all__ = ["dtype_of", "numbers_in", "values_in"]

# Decoders of one grey value in a voxel. Colours are pydicom's, which knows how they are meant.
GREY_CODECS = {
    **dict.fromkeys(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"), "jpeg8"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"), "jpeg8"),  # lossless
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "jpegls"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), "jpeg2k"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.20{n}" for n in (1, 2, 3)), "jpeg2k"),  # high throughput
}
JPEG_END = b"\xff\xd9"
ITEMS = b"\xfe\xff\x00\xe0\0\0\0\0"  # an empty table of offsets, before the fragments of a slice


def dtype_of(slices: Sequence[DicomSlice]) -> np.dtype[Any]:
    """Return the dtype that holds the values of all slices.

    That of the numbers where they are the values; else the smallest integers that hold all that
    can be stored, where values are whole, as in CT; else floats, as in PET, where slices differ.

    Examples
    --------
    >>> from volflow.store.formats.dicom.frame_places import PixelFormat
    >>> dtype_of([DicomSlice("a", 0, 0, PixelFormat(9, 9, used=12, high=11), inter=-1024.0)])
    dtype('int16')
    """
    found = {_dtype_in(one.stored) for one in slices}
    if all((one.slope, one.inter) == (1, 0) for one in slices) and len(found) == 1:
        return found.pop()
    if any(one.stored.floats or one.slope % 1 or one.inter % 1 for one in slices):
        wide = any(one.stored.bits > 16 for one in slices)
        return np.dtype(np.float64 if wide else np.float32)
    least, most = zip(*map(_range, slices), strict=True)
    for size in ("i2", "u2", "i4", "u4", "i8"):
        if np.iinfo(size).min <= min(least) and max(most) <= np.iinfo(size).max:
            return np.dtype(size)
    return np.dtype(np.float64)


def _dtype_in(stored: PixelFormat) -> np.dtype[Any]:
    kind = "f" if stored.floats else "i" if stored.signed else "u"
    return np.dtype(f"{kind}{max(8, stored.bits) // 8}")


def _range(one: DicomSlice) -> tuple[float, float]:
    """Return the least and the largest value that its bits can hold."""
    used, signed = one.stored.used, one.stored.signed
    ends = (-(2 ** (used - 1)), 2 ** (used - 1) - 1) if signed else (0, 2**used - 1)
    low, high = sorted(end * one.slope + one.inter for end in ends)
    return low, high


def values_in(one: DicomSlice, rows: slice, columns: slice, dtype: np.dtype[Any]) -> Array:
    """Return the values of a part of a slice, (channels, y, x).

    Values of MONOCHROME1 are what was measured, too: it says only that small ones are to be shown
    white, and so they are left as they are.
    """
    numbers = numbers_in(one, rows)[..., columns]
    if (one.slope, one.inter) == (1, 0):
        return numbers.astype(dtype)
    values = np.empty(numbers.shape, dtype)
    put_scaled(values, numbers, one.slope, one.inter)
    return values


def numbers_in(one: DicomSlice, rows: slice) -> Array:
    """Return the numbers of whole rows of a slice, (samples, y, x).

    Raises
    ------
    Damaged
        If they cannot be decoded, or the file is cut short.
    InvalidInput
        If there is no decoder for them.
    """
    stored = one.stored
    if stored.bits == 1 and not stored.packed:
        return _bits(one)[:, rows]
    if stored.packed or stored.photometric.startswith("YBR"):
        return _decoded(one)[:, rows]
    dtype = _dtype_in(one.stored).newbyteorder(">" if stored.big else "<")
    if stored.samples > 1:
        whole = _read(one, dtype, 0, one.length)
        if stored.by_plane:
            return whole.reshape(stored.samples, stored.rows, stored.columns)[:, rows]
        whole = whole.reshape(stored.rows, stored.columns, stored.samples)
        return np.moveaxis(whole, -1, 0)[:, rows]
    row_bytes = stored.columns * dtype.itemsize
    count = rows.stop - rows.start
    part = _read(one, dtype, rows.start * row_bytes, count * row_bytes)
    return _used(part.reshape(1, count, stored.columns), one)


def _read(one: DicomSlice, dtype: np.dtype[Any], skip: int, length: int) -> Array:
    values = np.fromfile(one.path, dtype, length // dtype.itemsize, offset=one.begin + skip)
    if values.nbytes < length:
        raise Damaged(f"{one.path} is cut short; copy it again")
    return values.astype(dtype.newbyteorder("="), copy=False)


def _bits(one: DicomSlice) -> Array:
    """Return a slice whose numbers are bits, the first of which need not begin a byte."""
    first, stop = one.begin // 8, -(-(one.begin + one.length) // 8)
    whole = _read(one._replace(begin=first), np.dtype("u1"), 0, stop - first)
    bits = np.unpackbits(whole, bitorder="little")[one.begin - 8 * first :][: one.length]
    return bits.reshape(1, one.stored.rows, one.stored.columns)


def _used(numbers: Array, one: DicomSlice) -> Array:
    """Return numbers without bits that are none of theirs, such as overlays of old scanners."""
    stored = one.stored
    if stored.floats or stored.used == stored.bits:
        return numbers
    up, down = stored.bits - 1 - stored.high, stored.bits - stored.used
    shifted: Array = (numbers << up) >> down  # with the sign, of signed ones
    return shifted


def _decoded(one: DicomSlice) -> Array:
    """Return a whole slice, unpacked, and colours as RGB."""
    stored = one.stored
    data = _read(one, np.dtype("u1"), 0, one.length).tobytes()
    try:
        if stored.samples == 1 and stored.syntax in GREY_CODECS:
            return _used(_grey(data, stored)[None], one)
        values = _colors(data, stored)
    except InvalidInput:
        raise
    except Exception as error:  # decoders raise errors of any class
        raise Damaged(
            f"{one.path} cannot be decoded ({first_line(error).rstrip(':')}); copy it again"
        ) from error
    return np.moveaxis(values, -1, 0) if stored.samples > 1 else values[None]


def _grey(data: bytes, stored: PixelFormat) -> Array:
    try:
        import imagecodecs
    except ImportError:
        raise InvalidInput(
            f"files packed in {_syntax_name(stored)} need imagecodecs, which is not installed; pip"
            ' install "volflow[dicom]"'
        ) from None
    codec = GREY_CODECS[stored.syntax]
    stream = b"".join(import_pydicom().encaps.generate_fragments(data))
    if codec == "jpeg8" and JPEG_END not in stream[-16:]:  # which this decoder does not ask for
        raise ValueError("it ends too early")
    found = getattr(imagecodecs, f"{codec}_decode")(stream)
    dtype = _dtype_in(stored)
    if found.shape != (stored.rows, stored.columns) or found.itemsize > dtype.itemsize:
        raise ValueError(f"it holds {found.shape} {found.dtype}")
    values: Array = found.astype(dtype)
    return values


def _colors(data: bytes, stored: PixelFormat) -> Array:
    decoder = import_pydicom().pixels.get_decoder(stored.syntax)
    if not decoder.is_available:
        raise InvalidInput(
            f"no decoder is installed for {_syntax_name(stored)} with {stored.samples} values in a"
            " voxel; save it unpacked, e.g. with gdcmconv --raw"
        )
    values: Array = decoder.as_array(
        ITEMS + data if stored.packed else data,
        index=0,
        number_of_frames=1,
        rows=stored.rows,
        columns=stored.columns,
        samples_per_pixel=stored.samples,
        bits_allocated=stored.bits,
        bits_stored=stored.used,
        pixel_representation=int(stored.signed),
        photometric_interpretation=stored.photometric,
        planar_configuration=int(stored.by_plane),
        pixel_keyword="PixelData",
    )[0]
    return values


def _syntax_name(stored: PixelFormat) -> str:
    return str(import_pydicom().uid.UID(stored.syntax).name)
