"""Pages of one TIFF file: boxes of them, mapped where they are raw, else decoded in pieces."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from volflow.errors import Damaged, InvalidInput, Unreadable, first_line
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.store.formats.tiff.tiff_file import damage_in_tiff, import_tifffile, opened_tiff
from volflow.store.slabs import Array, file_identity

__all__ = ["Pages", "Target", "pages_of"]

JPEG, DEFLATE = (6, 7, 33007, 34892), (8, 32946, 50013)
# The most bytes that each compression makes from one; others are taken for `MOST`.
_EXPANDS = {1: 1, 5: 4096, 8: 1032, 32946: 1032, 50013: 1032, 32773: 64}
MOST, SLACK = 2**17, 2**16
MOST_MAPPED = 2**24  # bytes of raw rows at a time
PLAIN_BITS = (1, 8, 16, 32, 64)  # of a number that tifffile reads by itself

Target = tuple[int, Array]
Cut = tuple[int, tuple[slice, ...], Roi]  # a piece, where it goes, and what of it


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Pages:
    """Where pages of one shape and one compression lie in a file.

    A page is an array of five axes, as tifffile has it: samples that are stored one by one, depth,
    y, x, and samples that lie side by side.

    Parameters
    ----------
    path
        The file.
    shape
        Of each page.
    dtype
        Of its numbers, with their byte order where they are mapped.
    offsets
        Where the strips or tiles of each page begin: page × segment. Of raw pages the first only.
    counts
        How many bytes each has; None for raw pages.
    segment
        Depth, rows and columns of a strip or tile.
    keyframe
        Where a page with all tags begins, and its index, which says how to decode every page.
    tables
        What JPEG needs beside the data, by page; () for other compressions.
    """

    path: str
    shape: tuple[int, int, int, int, int]
    dtype: np.dtype[Any]
    offsets: Array
    counts: Array | None = None
    segment: tuple[int, int, int] = (1, 1, 1)
    keyframe: tuple[int, Sequence[int]] = (0, ())
    tables: tuple[bytes | None, ...] = ()

    def identity(self) -> str:
        """Return a hash that changes when the file does."""
        return file_identity(self.path)

    def fill(self, targets: Iterable[Target], box: Roi) -> None:
        """Read one box of several pages.

        Parameters
        ----------
        targets
            Numbers of pages, each with the array to fill.
        box
            Of the five axes of a page.

        Raises
        ------
        Unreadable
            If a strip or tile cannot be decoded.
        """
        if self.counts is None:
            self._map(targets, box)
            return
        tifffile = import_tifffile()
        with opened_tiff(self.path) as file, Path(self.path).open("rb") as data:
            with damage_in_tiff(self.path):
                file.filehandle.seek(self.keyframe[0])
                page = tifffile.TiffPage(file, self.keyframe[1])
            cuts = tuple(self._cuts(box))
            for number, target in targets:
                self._decode(page, data, number, target, cuts)

    def _map(self, targets: Iterable[Target], box: Roi) -> None:
        """Copy a box of raw pages, some rows at a time: mapped pages count as memory."""
        _, depth, size_y, size_x, beside = self.shape
        row_bytes = size_x * beside * self.dtype.itemsize
        rows = max(1, MOST_MAPPED // row_bytes)
        samples, planes, (first, last), columns, colors = box
        cut = (slice(None), slice(*columns), slice(*colors))
        with damage_in_tiff(self.path), Path(self.path).open("rb") as file:
            for number, target in targets:
                for s, d in itertools.product(range(*samples), range(*planes)):
                    begin = int(self.offsets[number, 0]) + (s * depth + d) * size_y * row_bytes
                    part = target[s - samples[0], d - planes[0]]
                    for y in range(first, last, rows):
                        shape = (min(rows, last - y), size_x, beside)
                        at = begin + y * row_bytes
                        found = np.memmap(file, self.dtype, "r", at, shape)
                        part[y - first : y - first + rows] = found[cut]

    def _cuts(self, box: Roi) -> Iterator[Cut]:
        """Yield the strips or tiles that a box cuts, which lie alike in every page."""
        grid = BlockGrid(self.shape, (1, *self.segment, self.shape[4]))
        for number in grid.touching(box):
            whole = grid[number]
            common = whole.intersect(box)
            inside = common.relative_to(whole.start)
            yield number, common.relative_to(box.start).slices(), inside

    def _decode(
        self, page: Any, data: IO[bytes], number: int, target: Array, cuts: Sequence[Cut]
    ) -> None:
        for index, where, inside in cuts:
            voxels = self._segment(page, data, number, index)
            if voxels is None:
                target[where] = page.nodata
                continue
            found = voxels[inside.slices()[1:]]
            if found.shape != inside.shape[1:]:
                raise self._unreadable(number, f"its piece {index} has the shape {voxels.shape}")
            target[where] = found

    def _segment(self, page: Any, data: IO[bytes], number: int, index: int) -> Array | None:
        """Return the voxels of a strip or tile; None if it was never written."""
        assert self.counts is not None
        offset, count = int(self.offsets[number, index]), int(self.counts[number, index])
        if not offset or not count:
            return None
        bits = page.bitspersample if isinstance(page.bitspersample, int) else 8
        made = math.prod(self.segment) * self.shape[4] * bits // 8
        most = count * _EXPANDS.get(page.compression, MOST) + SLACK
        if made > most or count > 2 * made + SLACK:
            raise self._unreadable(number, f"{count} bytes stand for {made}")
        data.seek(offset)
        packed = data.read(count)
        if page.compression in DEFLATE and count > SLACK and _inflates_beyond(packed, 2 * made):
            raise self._unreadable(number, f"{count} bytes stand for more than {made}")
        tables = {"jpegtables": self.tables[number]} if self.tables else {}
        if page.jpegheader is not None:
            tables["jpegheader"] = page.jpegheader
        try:
            voxels: Array | None = page.decode(packed, index, **tables)[0]
        except Exception as error:  # codecs raise errors of any class
            raise self._unreadable(number, first_line(error)) from error
        return voxels

    def _unreadable(self, number: int, reason: str) -> Unreadable:
        return Unreadable(
            f"{self.path} cannot be decoded in its page {number} ({reason}); copy it again"
        )


def pages_of(path: str, series: Any, numbers: Sequence[int]) -> Pages:
    """Return where some pages of a series of tifffile lie.

    Parameters
    ----------
    path
        The file.
    series
        A `tifffile.TiffPageSeries`.
    numbers
        Of its pages, counted in the order of its axes.

    Raises
    ------
    InvalidInput
        If they are compressed in a way that nothing here decodes.
    Damaged
        If the file cannot hold them.
    """
    key = series.keyframe
    _check_codec(path, key)
    raw = _raw_offsets(series, numbers)
    if raw is not None:
        dtype = np.dtype(series.dtype).newbyteorder(key.parent.byteorder)
        room = math.prod(key.shaped) * dtype.itemsize
        _check_ends(path, raw, np.array([room]))
        return Pages(path=path, shape=key.shaped, dtype=dtype, offsets=raw)
    pages = [series[number] for number in numbers]
    if None in pages:
        raise Damaged(f"{path} lacks pages of its image; copy it again")
    segment = (
        (key.tiledepth, key.tilelength, key.tilewidth)
        if key.is_tiled
        else (1, max(1, key.rowsperstrip), key.imagewidth)
    )
    pieces = len(BlockGrid(key.shaped, (1, *segment, key.shaped[4])))
    offsets = _table(path, [page.dataoffsets for page in pages], pieces)
    counts = _table(path, [page.databytecounts for page in pages], pieces)
    _check_ends(path, offsets, counts)
    return Pages(
        path=path,
        shape=key.shaped,
        dtype=np.dtype(series.dtype),
        offsets=offsets,
        counts=counts,
        segment=segment,
        keyframe=(key.offset, key.treeindex),
        tables=tuple(page.jpegtables for page in pages) if key.compression in JPEG else (),
    )


def _raw_offsets(series: Any, numbers: Sequence[int]) -> Array | None:
    """Return where pages begin, if they are raw and lie in one piece each; else None."""
    key = series.keyframe
    if not key.is_final or series.dtype.kind not in "iuf":
        return None
    if series.dataoffset is not None:  # perhaps without a page for each
        each = math.prod(key.shaped) * series.dtype.itemsize
        begins: Array = series.dataoffset + each * np.asarray(numbers, np.int64)
        return begins[:, None]
    pages = [series[number] for number in numbers]
    if not all(page is not None and _in_one_piece(page) for page in pages):
        return None
    return np.array([[page.dataoffsets[0]] for page in pages], np.int64)


def _in_one_piece(page: Any) -> bool:
    """Return True if strips follow on each other; tifffile looks at the first page alone."""
    begins, counts = page.dataoffsets, page.databytecounts
    ends = (begin + count for begin, count in zip(begins, counts, strict=False))
    return len(begins) > 0 and all(a == b for a, b in zip(ends, begins[1:], strict=False))


def _table(path: str, rows: list[Sequence[int]], pieces: int) -> Array:
    if any(len(row) != pieces for row in rows):
        raise Damaged(f"{path} lacks strips or tiles of its pages; copy it again")
    return np.array(rows, np.int64).reshape(len(rows), pieces)


def _check_ends(path: str, offsets: Array, counts: Array) -> None:
    if (offsets + counts).max() > Path(path).stat().st_size:
        raise Damaged(f"{path} is cut short; copy it again")


def _check_codec(path: str, page: Any) -> None:
    """Refuse a compression that cannot be decoded here.

    Parameters
    ----------
    path
        The file.
    page
        A `tifffile.TiffPage`.

    Raises
    ------
    InvalidInput
        Naming the compression, and what is missing.
    """
    codecs = import_tifffile().TIFF
    known = page.compression in codecs.DECOMPRESSORS and page.predictor in codecs.UNPREDICTORS
    if find_spec("imagecodecs") is None and not (known and page.bitspersample in PLAIN_BITS):
        name = f"{page.bitspersample}-bit numbers" if known else _name(page.compression)
        raise InvalidInput(
            f"{path} holds {name}, which needs imagecodecs, which is not installed; pip install"
            " imagecodecs"
        )
    if not known:
        raise InvalidInput(
            f"{path} holds {_name(page.compression)}, which cannot be decoded; save it uncompressed"
        )


def _inflates_beyond(packed: bytes, most: int) -> bool:
    """Return True if tifffile, without imagecodecs, would make more bytes than expected of some."""
    if find_spec("imagecodecs") is not None:  # which stops by itself
        return False
    inflating = zlib.decompressobj()
    with suppress(zlib.error):  # told when it is decoded
        inflating.decompress(packed, most + SLACK)
    return bool(inflating.unconsumed_tail)


def _name(compression: Any) -> str:
    return str(getattr(compression, "name", compression))
