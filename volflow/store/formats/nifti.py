"""NIfTI-1 and NIfTI-2 files as sources: their geometry, and their voxels slab by slab."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Array, Source, file_identity, slab_rois

__all__ = ["LABEL_INTENT", "UNITS", "NiftiSource", "import_nibabel", "open_nifti", "parse_header"]

Stream = gzip.GzipFile | io.BufferedReader

INFLATES = 1032  # the most bytes that deflate produces from one
MOST_HEADER = 2**30  # bytes before the voxels; extensions of tens of MiB exist
MOST_SCALED = 1e30  # largest slope or intercept; scaled values stay finite

UNITS = {1: "meter", 2: "millimeter", 3: "micrometer"}
LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL: each voxel is the number of a class


@dataclass(frozen=True, repr=False)
class NiftiSource(Source):
    """A ``.nii`` file, read anywhere, or a ``.nii.gz`` file, read once from front to back.

    In a NIfTI file x varies fastest, so its bytes are ``czyx`` in C order, without a transpose.
    Made by `open_nifti`.
    """

    path: str
    shape: tuple[int, ...]
    meta: Meta
    stored_dtype: np.dtype[Any]
    offset: int
    slope: float | None
    inter: float

    @property
    def sequential(self) -> bool:
        """Whether the file is compressed."""
        return _is_packed(self.path)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the scaled values."""
        stored = self.stored_dtype.newbyteorder("=")
        if self.slope is None:
            return stored
        small = stored.itemsize <= (4 if stored.kind == "f" else 2)
        return np.dtype(np.float32 if small else np.float64)

    def identity(self) -> str:
        """Return a hash that changes when the file does."""
        return file_identity(self.path)

    def read(self, roi: Roi) -> Array:
        """Return the scaled voxels of a box, ``zyx`` or ``czyx``; only of an uncompressed file."""
        if self.sequential:
            raise InvalidInput(
                f"{self.path} is compressed as a whole, so parts of it cannot be read; use slabs()"
            )
        # Mapped for this read only: pages of an open mapping count as this process's memory.
        voxels = np.memmap(self.path, self.stored_dtype, "r", self.offset, self.shape)
        return self._scaled(np.asarray(voxels[roi.slices()]))

    def slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels of ``depth`` z-planes at a time, in file order.

        Raises
        ------
        InvalidInput
            If the file is cut short or damaged.
        """
        with _stream(self.path, self.sequential) as stream, _damage(self.path):
            stream.seek(self.offset)
            for roi in slab_rois(self.shape, depth):
                voxels = np.empty(roi.shape, self.stored_dtype)
                _fill(stream, voxels)
                if self.sequential and roi.stop == self.shape:
                    # Reading to the end makes gzip compare its checksum. The last slab is yielded
                    # after that, so that a complete read is a verified one.
                    while stream.read(2**20):
                        continue
                yield roi, self._scaled(voxels)

    def _scaled(self, voxels: Array) -> Array:
        """Return the scaled values in the machine's byte order, as a new array."""
        if self.slope is None:
            return voxels.astype(self.dtype)
        values = np.empty(voxels.shape, self.dtype)
        for plane, target in zip(
            voxels.reshape(-1, *voxels.shape[-2:]),
            values.reshape(-1, *voxels.shape[-2:]),
            strict=True,
        ):
            with np.errstate(over="ignore", invalid="ignore"):  # overflows of float32 become ±inf
                target[...] = plane * np.float64(self.slope) + self.inter
        return values


def open_nifti(path: str) -> NiftiSource:
    """Read the header of a ``.nii`` or ``.nii.gz`` file.

    Raises
    ------
    InvalidInput
        If it is not a NIfTI file, or a volume cannot hold it (colours, complex numbers, more than
        one axis beyond x, y, z).
    Damaged
        If it is cut short, or its header is invalid.
    """
    nibabel = import_nibabel()
    compressed = _is_packed(path)
    with _stream(path, compressed) as stream, _damage(path):
        start = stream.read(540)
    header = parse_header(start, path)
    try:
        shape = _shape(header["dim"], path)
        stored = check_dtype(header.get_data_dtype(), path)
        slope, inter = header.get_slope_inter()
        offset = _offset(header, path)
        with np.errstate(all="ignore"):  # overflows are refused below, as infinite values
            affine = _affine(header)
            spacing = _spacing(header["pixdim"][1:4], affine, path)
        orientation = None if affine is None else "".join(reversed(nibabel.aff2axcodes(affine)))
        if max(abs(slope or 1), abs(inter or 0)) > MOST_SCALED:
            raise ValueError(f"voxels are scaled by {slope:g} and {inter:g}")
    except InvalidInput:
        raise
    except Exception as error:  # nibabel raises errors of any class
        raise Damaged(f"{path}: damaged NIfTI header ({error}); repair the file") from error
    if (slope, inter) == (1, 0):
        slope = None
    room = Path(path).stat().st_size * (INFLATES if compressed else 1)
    if room < offset + math.prod(shape) * stored.itemsize:
        raise Damaged(f"{path} is cut short; copy it again")
    kind = "nifti2" if len(header.binaryblock) == 540 else "nifti1"
    meta = Meta(
        axes=("c", "z", "y", "x")[-len(shape) :],
        spacing=spacing,
        # Scanner and template spaces are in millimetres, although many files do not state it.
        unit=UNITS.get(int(header["xyzt_units"]) & 7, None if affine is None else "millimeter"),
        orientation=orientation,
        affine=None if affine is None else tuple(tuple(row) for row in affine.tolist()),
        kind="classes" if int(header["intent_code"]) == LABEL_INTENT else "image",
        source=SourceInfo(kind, str(stored.newbyteorder("=")), header.binaryblock),
    )
    return NiftiSource(path, shape, meta, stored, offset, slope, float(inter or 0))


def _is_packed(path: str) -> bool:
    return path.lower().endswith(".gz")


def parse_header(start: bytes, path: str) -> Any:
    """Return the nibabel header from the first bytes of a file."""
    nibabel = import_nibabel()
    size = {int.from_bytes(start[:4], order) for order in ("little", "big")} & {348, 540}
    magic = start[4:8] if 540 in size else start[344:348]
    if not size or magic[:3] not in (b"n+1", b"n+2", b"ni1", b"ni2") or len(start) < min(size):
        raise InvalidInput(f"{path} is not a NIfTI file; its first bytes are not a NIfTI header")
    if magic[:2] == b"ni":
        raise InvalidInput(f"{path} is half of a .hdr/.img pair; save it as one .nii file")
    make = nibabel.Nifti2Header if 540 in size else nibabel.Nifti1Header
    return make(start[: min(size)], check=False)


def import_nibabel() -> Any:
    """Return the module nibabel; InvalidInput with the remedy if it is not installed."""
    try:
        import nibabel
    except ImportError:
        raise InvalidInput(
            'NIfTI files need nibabel, which is not installed; pip install "volflow[io]"'
        ) from None
    return nibabel


def _shape(dim: Sequence[int], path: str) -> tuple[int, ...]:
    count = int(dim[0])
    sizes = [int(n) for n in dim[1 : count + 1]]
    if not 2 <= count <= 7 or min(sizes) < 1:
        raise InvalidInput(f"{path} has sizes {sizes}; a volume has x, y, z and channels")
    channels = [n for n in sizes[3:] if n != 1]
    if len(channels) > 1:
        raise InvalidInput(f"{path} has sizes {sizes}: more than one axis beyond x, y, z; split it")
    space = [*sizes[:3], 1][:3]
    return (*channels, *reversed(space))


def _offset(header: Any, path: str) -> int:
    """Return the offset of the voxels; 0 in the file means right after the header."""
    stated = float(header["vox_offset"])
    offset = int(stated) or int(header.single_vox_offset)
    if not len(header.binaryblock) <= offset <= MOST_HEADER:
        raise Damaged(
            f"{path} has a header with vox_offset {stated:g}, inside the header or far beyond it;"
            " repair the file"
        )
    return offset


def _affine(header: Any) -> Array | None:
    """Return the 4 x 4 voxel-to-world matrix: the sform, else the qform, else None."""
    if header["sform_code"] > 0:
        return np.asarray(header.get_sform(), dtype=float)
    if header["qform_code"] > 0:
        return np.asarray(header.get_qform(), dtype=float)
    return None


def _spacing(pixdim: Array, affine: Array | None, path: str) -> tuple[float, float, float]:
    """Return the voxel size along z, y, x: the affine's, in the header's decimals if they agree."""
    # The shortest decimals of the stored float32: 0.78, not 0.7799999713897705.
    sizes = [abs(float(str(value))) for value in pixdim]
    if affine is not None:
        lengths = [math.hypot(*column) for column in affine[:3, :3].T.tolist()]
        near = np.isclose(sizes, lengths, rtol=1e-4, atol=0)
        sizes = [a if ok else b for a, b, ok in zip(sizes, lengths, near, strict=True)]
    spacing = (sizes[2], sizes[1], sizes[0])
    try:
        Meta(spacing=spacing, affine=None if affine is None else affine.tolist())
    except InvalidInput as error:
        raise Damaged(
            f"{path} has voxels of size {sizes} or a singular affine: {error}; repair its header,"
            " e.g. with nibabel"
        ) from error
    return spacing


def _stream(path: str, compressed: bool) -> Stream:
    try:
        return gzip.open(path, "rb") if compressed else Path(path).open("rb")
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; check the path") from error


@contextmanager
def _damage(path: str) -> Iterator[None]:
    """Turn errors of the decoder into Damaged with the path of the file."""
    try:
        yield
    except EOFError as error:
        raise Damaged(f"{path} is cut short; copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Damaged(f"{path} is damaged ({error}); copy it again") from error


def _fill(stream: Stream, voxels: Array) -> None:
    """Read exactly the bytes of an array."""
    target = voxels.reshape(-1).view(np.uint8).data
    while len(target):
        got = stream.readinto(target)
        if not got:
            raise EOFError
        target = target[got:]
