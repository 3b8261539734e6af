"""NIfTI-1 and NIfTI-2 files as sources: what their headers say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.affine import orientation_of, spacing_of
from volflow.store.formats.raw import RawSource, check_room, damage_of, unpacked
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Array

__all__ = ["LABEL_INTENT", "UNITS", "import_nibabel", "open_nifti", "parse_header", "unit_of"]

MOST_HEADER = 2**30  # bytes before the voxels; extensions of tens of MiB exist
MOST_SCALED = 1e30  # largest slope or intercept; scaled values stay finite

UNITS = {1: "meter", 2: "millimeter", 3: "micrometer"}
LABEL_INTENT = 1002  # NIFTI_INTENT_LABEL: each voxel is the number of a class


def open_nifti(path: str) -> RawSource:
    """Read the header of a ``.nii`` or ``.nii.gz`` file.

    In a NIfTI file x varies fastest, so its bytes are ``czyx`` in C order, without a transpose.

    Raises
    ------
    InvalidInput
        If it is not a NIfTI file, or a volume cannot hold it (colours, complex numbers, more than
        one axis beyond x, y, z).
    Damaged
        If it is cut short, or its header is invalid.
    """
    packing = "gzip" if path.lower().endswith(".gz") else ""
    with damage_of(path), unpacked(path, packing) as stream:
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
        orientation = None if affine is None else orientation_of(affine)
        if max(abs(slope or 1), abs(inter or 0)) > MOST_SCALED:
            raise ValueError(f"voxels are scaled by {slope:g} and {inter:g}")
    except InvalidInput:
        raise
    except Exception as error:  # nibabel raises errors of any class
        raise Damaged(f"{path}: damaged NIfTI header ({error}); repair the file") from error
    if (slope, inter) == (1, 0):
        slope = None
    check_room(path, offset, shape, stored, packing)
    kind = "nifti2" if len(header.binaryblock) == 540 else "nifti1"
    meta = Meta(
        axes=("c", "z", "y", "x")[-len(shape) :],
        spacing=spacing,
        unit=unit_of(header, affine),
        orientation=orientation,
        affine=None if affine is None else tuple(tuple(row) for row in affine.tolist()),
        kind="classes" if int(header["intent_code"]) == LABEL_INTENT else "image",
        source=SourceInfo(kind, str(stored.newbyteorder("=")), header.binaryblock),
    )
    return RawSource(
        path=path,
        shape=shape,
        meta=meta,
        stored_dtype=stored,
        skip=offset,
        packing=packing,
        slope=slope,
        inter=float(inter or 0),
    )


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


def unit_of(header: Any, affine: Array | None) -> str | None:
    """Return the unit of a header with or without an affine."""
    # Scanner and template spaces are in millimetres, although many files do not state it.
    return UNITS.get(int(header["xyzt_units"]) & 7, None if affine is None else "millimeter")


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
        lengths = spacing_of(affine)[::-1]
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
