"""Files that hold their voxels as raw numbers behind a header, as they are or packed as a whole."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source, file_identity, slab_rois

__all__ = ["RawSource", "check_room", "damage_of", "put_scaled", "unpacked"]

MOST_SCALED = 2**18  # voxels at a time

# The most bytes that each makes from one.
_EXPANDS = {"": 1, "gzip": 1032, "zlib": 1032, "bzip2": 2**17}


@dataclass(frozen=True, repr=False, kw_only=True)
class RawSource(Source):
    """Voxels as raw numbers in a file, read anywhere; if packed, once from front to back.

    Parameters
    ----------
    path
        The file that was named, which holds the header.
    shape, meta
        Voxels per axis, ``zyx`` or ``czyx``, and their metadata.
    stored_dtype
        Of the numbers in the file.
    begin
        Where they begin in the file; if packed, where the packed stream does.
    skip
        Bytes of the unpacked stream before the voxels.
    packing
        ``""``, ``"gzip"``, ``"zlib"`` or ``"bzip2"``.
    slope, inter
        The values are numbers × slope + inter; no slope, no scaling.
    interleaved
        Whether the channels of a voxel lie side by side, as in colour images.
    data
        The file that holds the numbers, if it is another.
    """

    path: str
    shape: tuple[int, ...]
    meta: Meta
    stored_dtype: np.dtype[Any]
    begin: int = 0
    skip: int = 0
    packing: str = ""
    slope: float | None = None
    inter: float = 0.0
    interleaved: bool = False
    data: str = ""

    @property
    def sequential(self) -> bool:
        """Whether the voxels are packed."""
        return bool(self.packing)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the scaled values."""
        stored = self.stored_dtype.newbyteorder("=")
        if self.slope is None:
            return stored
        small = stored.itemsize <= (4 if stored.kind == "f" else 2)
        return np.dtype(np.float32 if small else np.float64)

    @property
    def _file(self) -> str:
        return self.data or self.path

    def identity(self) -> str:
        """Return a hash that changes when a file does."""
        own = file_identity(self.path)
        return f"{own}-{file_identity(self.data)}" if self.data else own

    def read(self, roi: Roi) -> Array:
        """Return the scaled voxels of a box, ``zyx`` or ``czyx``; only of an unpacked file."""
        if self.sequential:
            raise InvalidInput(
                f"{self.path} is compressed as a whole, so parts of it cannot be read; use slabs()"
            )
        values = np.empty(roi.shape, self.dtype)
        with Path(self._file).open("rb") as file:
            for place in np.ndindex(roi.shape[:-2]):
                index = tuple(a + n for a, n in zip(roi.start, place, strict=False))
                self._scale(self._rows(file, index, roi), values[place])
        return values

    def _rows(self, file: Any, index: tuple[int, ...], roi: Roi) -> Array:
        """Return the stored part of a plane that lies in a box.

        It is mapped for this moment only: mapped pages count as this process's memory.
        """
        (first, last), (left, right) = tuple(roi)[-2:]
        size_y, size_x = self.shape[-2:]
        side_by_side = self.shape[0] if self.interleaved else 1
        inner = index[1:] if self.interleaved else index
        plane = int(np.ravel_multi_index(inner, self.shape[-3 - len(inner) + 1 : -2]))
        before = (plane * size_y + first) * size_x * side_by_side * self.stored_dtype.itemsize
        shape = (last - first, size_x, side_by_side)
        found = np.memmap(file, self.stored_dtype, "r", self.begin + self.skip + before, shape)
        rows: Array = found[:, left:right, index[0] if self.interleaved else 0]
        return rows

    def slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels of ``depth`` z-planes at a time, in file order.

        Raises
        ------
        InvalidInput
            If the file is cut short or damaged.
        """
        if self.interleaved:
            yield from self._interleaved_slabs(depth)
            return
        with self._stream() as stream:
            for roi in slab_rois(self.shape, depth):
                voxels = np.empty(roi.shape, self.stored_dtype)
                _fill(stream, voxels)
                if roi.stop == self.shape:
                    self._read_on(stream)
                yield roi, self._scaled(voxels)

    def _interleaved_slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield the slabs of each channel; the file is read once for each."""
        for channel in range(self.shape[0]):
            with self._stream() as stream:
                for roi in slab_rois(self.shape[1:], depth):
                    voxels = np.empty((1, *roi.shape), self.stored_dtype)
                    _fill_one(stream, voxels.reshape(-1), self.shape[0], channel)
                    if roi.stop == self.shape[1:]:
                        self._read_on(stream)
                    box = Roi((channel, *roi.start), (channel + 1, *roi.stop))
                    yield box, self._scaled(voxels)

    @property
    def together(self) -> int:
        """Number of channels that are packed side by side."""
        return self.shape[0] if self.packing and self.interleaved else 1

    def once(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels of ``depth`` z-planes of all channels that are packed together."""
        if self.together == 1:
            yield from self.slabs(depth)
            return
        count, *shape = self.shape
        with self._stream() as stream:
            for roi in slab_rois(shape, depth):
                values = np.empty((count, *roi.shape), self.dtype)
                for z in range(roi.shape[0]):
                    plane = np.empty((*roi.shape[1:], count), self.stored_dtype)
                    _fill(stream, plane)
                    self._scale(np.moveaxis(plane, -1, 0), values[:, z])
                if roi.stop == tuple(shape):
                    self._read_on(stream)
                yield Roi((0, *roi.start), (count, *roi.stop)), values

    @contextmanager
    def _stream(self) -> Iterator[Any]:
        """Open the unpacked bytes at the first voxel."""
        with damage_of(self._file), unpacked(self._file, self.packing, self.begin) as stream:
            if self.packing:
                _pass_over(stream, self.skip)
            else:
                stream.seek(self.begin + self.skip)
            yield stream

    def _read_on(self, stream: Any) -> None:
        """Read a packed stream to its end, where its checksum is compared.

        The last slab is yielded after that, so that a complete read is a verified one.
        """
        while self.sequential and stream.read(2**20):
            continue

    def _scaled(self, voxels: Array) -> Array:
        """Return the scaled values in the machine's byte order, as a new array."""
        values = np.empty(voxels.shape, self.dtype)
        for place in np.ndindex(voxels.shape[:-2]):  # plane by plane, to save memory
            self._scale(voxels[place], values[place])
        return values

    def _scale(self, plane: Array, values: Array) -> None:
        """Put the scaled values of a plane into an array."""
        if self.slope is None:
            values[...] = plane
        else:
            put_scaled(values, plane, self.slope, self.inter)


def put_scaled(values: Array, numbers: Array, slope: float, inter: float) -> None:
    """Put numbers × slope + inter into an array of their shape, a few rows at a time.

    They are computed in float64, which takes several times the memory of what is stored.
    """
    rows = max(1, MOST_SCALED // max(1, numbers[..., :1, :].size))
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes ±inf
        for start in range(0, numbers.shape[-2], rows):
            part = (..., slice(start, start + rows), slice(None))
            values[part] = numbers[part] * np.float64(slope) + inter


def check_room(path: str, begin: int, shape: Sequence[int], dtype: Any, packing: str = "") -> None:
    """Refuse a header that claims more voxels than its file can hold, before any is made.

    Raises
    ------
    Damaged
        If it is cut short, or the header lies.
    """
    voxels = math.prod(int(n) for n in shape) * np.dtype(dtype).itemsize
    size = Path(path).stat().st_size
    room = size * _EXPANDS[packing] if packing else size - begin
    if room < voxels:
        raise Damaged(f"{path} is cut short; copy it again")


@contextmanager
def unpacked(path: str, packing: str, begin: int = 0) -> Iterator[Any]:
    """Open the unpacked bytes of a file.

    Parameters
    ----------
    path
        The file.
    packing
        As in `RawSource`.
    begin
        Where the packed stream begins in the file.

    Raises
    ------
    InvalidInput
        If it cannot be opened.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; check the path") from error
    with file:
        file.seek(begin if packing else 0)
        if packing == "gzip":
            yield gzip.GzipFile(fileobj=file)
        elif packing == "bzip2":
            yield bz2.BZ2File(file)
        elif packing == "zlib":
            yield io.BufferedReader(_Inflated(file), 2**18)
        else:
            yield file


class _Inflated(io.RawIOBase):
    """The bytes of a zlib stream, whose end must be there."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._inflate, self._left = file, zlib.decompressobj(), b""

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill a buffer as far as there are bytes."""
        view = memoryview(target).cast("B")
        while not self._inflate.eof:
            packed = self._left or self._file.read(2**18)
            if not packed:
                raise EOFError
            made = self._inflate.decompress(packed, len(view))
            self._left = self._inflate.unconsumed_tail
            if made:
                view[: len(made)] = made
                return len(made)
        return 0


@contextmanager
def damage_of(path: str) -> Iterator[None]:
    """Turn errors of decoders into Damaged with the path of the file."""
    try:
        yield
    except EOFError as error:
        raise Damaged(f"{path} is cut short; copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Damaged(f"{path} is damaged ({error}); copy it again") from error
    except OSError as error:
        if error.errno is None:  # as bz2 says it
            raise Damaged(f"{path} is damaged ({error}); copy it again") from error
        raise


def _pass_over(stream: Any, count: int) -> None:
    while count:
        got = len(stream.read(min(count, 2**20)))
        if not got:
            raise EOFError
        count -= got


def _fill_one(stream: Any, voxels: Array, channels: int, channel: int) -> None:
    """Read exactly the voxels of one of some interleaved channels."""
    step = max(1, 2**18 // channels)
    for start in range(0, voxels.size, step):
        part = voxels[start : start + step]
        together = np.empty((part.size, channels), voxels.dtype)
        _fill(stream, together)
        part[:] = together[:, channel]


def _fill(stream: Any, voxels: Array) -> None:
    """Read exactly the bytes of an array."""
    target = voxels.reshape(-1).view(np.uint8).data
    while len(target):
        got = stream.readinto(target)
        if not got:
            raise EOFError
        target = target[got:]
