"""How the slices of a DICOM file are stored, and where the bytes of each lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import IO, Any, NamedTuple

from volflow.store.formats.dicom.header_values import longs_of, text_of, whole_of

__all__ = ["PixelFormat", "places_of", "stored_in"]

BIG_ENDIAN, UNDEFINED = "1.2.840.10008.1.2.2", 0xFFFFFFFF
VOXELS = {b"\x10\0": False, b"\x08\0": True, b"\x09\0": True}  # elements: are they floats?
MOST_SLICES = 2**18
# What one byte of a packed slice may become: of blank slices very little is left.
MOST_EXPANDED, ALWAYS_FITS = 2**14, 2**28


class PixelFormat(NamedTuple):
    """How the numbers of a slice are stored.

    Of each number ``bits`` are allocated; the ``used`` ones from ``high`` downwards count. Three
    samples of a voxel lie side by side or ``by_plane``; ``packed`` as ``syntax`` says.
    """

    rows: int
    columns: int
    samples: int = 1
    bits: int = 16
    used: int = 16
    high: int = 15
    signed: bool = False
    floats: bool = False
    photometric: str = "MONOCHROME2"
    by_plane: bool = False
    syntax: str = ""
    packed: bool = False

    @property
    def big(self) -> bool:
        """Whether the first byte of a number counts most."""
        return self.syntax == BIG_ENDIAN

    @property
    def frame_bits(self) -> int:
        """Bits of one slice, unpacked."""
        halved = self.photometric == "YBR_FULL_422" and not self.packed
        return self.rows * self.columns * (2 if halved else self.samples) * self.bits


def stored_in(data: Any, file: IO[bytes]) -> tuple[PixelFormat, int] | None:
    """Return how a file stores its voxels, and how many bytes it says that they take.

    The file stands at the element that holds them, and at their first byte afterwards. None if it
    has no voxels.
    """
    syntax = text_of(data.file_meta, "TransferSyntaxUID")
    order = "big" if syntax == BIG_ENDIAN else "little"
    head = file.read(8)
    group, element = head[:2], head[2:4]
    if order == "big":
        group, element = group[::-1], element[::-1]
    if len(head) < 8 or group != b"\xe0\x7f" or element not in VOXELS or "Rows" not in data:
        return None
    # Where no kind of value is named here stands the length, which none of these letters could be:
    # it would be odd.
    if head[4:6] in (b"OB", b"OW", b"OF", b"OD", b"UN"):
        head = file.read(4)
    length = int.from_bytes(head[-4:], "big" if order == "big" else "little")
    bits = whole_of(data, "BitsAllocated")
    used = whole_of(data, "BitsStored", bits)
    stored = PixelFormat(
        rows=whole_of(data, "Rows"),
        columns=whole_of(data, "Columns"),
        samples=whole_of(data, "SamplesPerPixel", 1),
        bits=bits,
        used=used,
        high=whole_of(data, "HighBit", used - 1),
        signed=whole_of(data, "PixelRepresentation", 0) == 1,
        floats=VOXELS[element],
        photometric=text_of(data, "PhotometricInterpretation"),
        by_plane=whole_of(data, "PlanarConfiguration", 0) == 1,
        syntax=syntax,
        packed=length == UNDEFINED,
    )
    return stored, length


def places_of(
    data: Any, file: IO[bytes], stored: PixelFormat, length: int, size: int
) -> list[tuple[int, int]]:
    """Return begin and length of each slice in bytes; in bits, where a number is a bit.

    Parameters
    ----------
    data, file, stored, length
        The header; the file, at the first byte of its voxels; what `stored_in` returned.
    size
        Of the file.

    Raises
    ------
    EOFError
        If the file has no room for them.
    ValueError
        If its slices cannot be told apart.
    """
    count, bits, begin = int(text_of(data, "NumberOfFrames") or 1), stored.frame_bits, file.tell()
    if not (bits and 1 <= count <= MOST_SLICES):
        raise ValueError(f"it has {count} slices of {stored.rows} × {stored.columns} voxels")
    if not stored.packed:
        if math.ceil(bits * count / 8) > min(length, size - begin):
            raise EOFError
        if stored.bits == 1:  # slices lie bit to bit, not at whole bytes
            return [(8 * begin + n * bits, bits) for n in range(count)]
        return [(begin + n * bits // 8, bits // 8) for n in range(count)]
    places = _packed_places(data, file, count)
    for at, room in places:
        if at + room > size or bits / 8 > max(ALWAYS_FITS, room * MOST_EXPANDED):
            raise EOFError
    return places


def _packed_places(data: Any, file: IO[bytes], count: int) -> list[tuple[int, int]]:
    """Return where the fragments of each packed slice lie: by a table, else one each."""
    from pydicom.encaps import parse_basic_offsets, parse_fragments

    if int.from_bytes(file.read(8)[4:], "little") > 4 * count:
        raise ValueError("it has a table of more slices than it holds")
    file.seek(-8, 1)
    offsets, base = parse_basic_offsets(file), file.tell()
    far, lengths = (
        longs_of(data, "ExtendedOffsetTable"),
        longs_of(data, "ExtendedOffsetTableLengths"),
    )
    if len(far) == len(lengths) == count:  # each is one fragment; its own head is not counted
        return [(base + at, 8 + length) for at, length in zip(far, lengths, strict=True)]
    if offsets:
        if len(offsets) != count or offsets != sorted(set(offsets)):
            raise ValueError("its table of offsets does not lead to its slices")
        begins = [base + offset for offset in offsets]
        file.seek(begins[-1])
        return _between([*begins, _end(file, parse_fragments(file)[1])])
    fragments = parse_fragments(file)[1]
    begins = fragments[:1] if count == 1 else fragments
    if len(begins) != count:
        raise ValueError(
            f"its {count} slices lie in {len(fragments)} fragments without a table of offsets"
        )
    return _between([*begins, _end(file, fragments)])


def _end(file: IO[bytes], fragments: Sequence[int]) -> int:
    """Return where the last fragment ends."""
    if not fragments:
        raise EOFError
    file.seek(fragments[-1] + 4)
    return fragments[-1] + 8 + int.from_bytes(file.read(4), "little")


def _between(begins: Sequence[int]) -> list[tuple[int, int]]:
    return [(begin, end - begin) for begin, end in pairwise(begins)]
