"""The header of a NIfTI file to write: the source's own if the volume came from NIfTI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput
from volflow.store.formats.nifti import LABEL_INTENT, UNITS, import_nibabel, parse_header, unit_of
from volflow.store.formats.placement import affine_of, in_millimeters
from volflow.store.meta import Meta
from volflow.store.slabs import Array

__all__ = ["header_bytes", "stored_dtype"]

SCANNER, LONGEST = 1, 32767


def stored_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the little-endian dtype in which NIfTI, NRRD and TIFF store these voxels without loss.

    Examples
    --------
    >>> stored_dtype(np.dtype("float16")).name, stored_dtype(np.dtype("bool")).name
    ('float32', 'uint8')
    """
    wider = {"float16": "float32", "bool": "uint8"}
    return np.dtype(wider.get(dtype.name, dtype)).newbyteorder("<")


def header_bytes(meta: Meta, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    """Return all bytes before the voxels of a ``.nii`` file.

    A volume on its source's own grid gets the source's header: orientation codes, units and both
    affines are unchanged. Scaling is reset, as the voxels are scaled already. NIfTI-2 is written
    if the source was NIfTI-2 or a side is too long for NIfTI-1.

    Parameters
    ----------
    meta
        Metadata of the volume.
    shape
        Voxels per axis, ``zyx`` or ``czyx``.
    dtype
        Dtype of the voxels, from `stored_dtype`.

    Raises
    ------
    Damaged
        If NIfTI cannot describe the grid.
    """
    try:
        return _header_bytes(meta, shape, dtype)
    except InvalidInput:
        raise
    except Exception as error:  # nibabel raises errors of any class
        raise Damaged(
            f"the volume's grid does not fit into a NIfTI header ({error}); correct its affine,"
            " or the stored header of its source"
        ) from error


def _header_bytes(meta: Meta, shape: Sequence[int], dtype: np.dtype[Any]) -> bytes:
    nibabel = import_nibabel()
    source = _source_header(meta)
    large = max(shape) > LONGEST or (source is not None and len(source.binaryblock) == 540)
    header = (nibabel.Nifti2Header if large else nibabel.Nifti1Header)()
    header.set_data_shape(_dims(source, shape))  # first, as it resets the sizes of further axes
    if source is not None:
        own = {"sizeof_hdr", "magic", "eol_check", "vox_offset", "bitpix", "datatype", "dim"}
        for key in set(header.keys()) & set(source.keys()) - own:
            header[key] = source[key]
    beyond_space = header["pixdim"][4:]
    beyond_space[beyond_space == 0] = 1
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    if meta.kind == "classes":
        header.set_intent(LABEL_INTENT)
    elif int(header["intent_code"]) == LABEL_INTENT:  # of labels from which an image was made
        header.set_intent("none")
    if source is None or not _same_grid(source, meta):
        _set_grid(header, meta)
    if meta.made:
        _note(header, meta.made)
    offset = header.single_vox_offset + int(header.extensions.get_sizeondisk())
    header.set_data_offset(offset)
    file = BytesIO()
    header.write_to(file)
    return file.getvalue().ljust(offset, b"\0")


def _note(header: Any, made: str) -> None:
    """Note what made the voxels: in a few words in the description, whole in an extension."""
    nibabel = import_nibabel()
    known = json.loads(made)
    header["descrip"] = f"volflow: {known['model']} {known['weights'][:16]}".encode()[:79]
    header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"volflow: {made}".encode()))


def _source_header(meta: Meta) -> Any:
    if meta.source is None or not meta.source.format.startswith("nifti"):
        return None
    return parse_header(meta.source.header, "the stored NIfTI header").as_byteswapped("<")


def _dims(source: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Return sizes in file order, keeping the source's axes of one voxel."""
    sizes = tuple(reversed(shape))
    if source is not None:
        given = tuple(int(n) for n in source["dim"][1 : int(source["dim"][0]) + 1])
        kept = given[:3] + tuple(n for n in given[3:] if n != 1)
        if kept + (1,) * (3 - len(kept)) == sizes:
            return given
    return sizes


def _same_grid(source: Any, meta: Meta) -> bool:
    """Return True if the volume's grid equals its source's."""
    sizes = np.abs(source["pixdim"][1:4]).astype(float)
    affine: Array | None = None
    if source["sform_code"] > 0:
        affine = source.get_sform()
    elif source["qform_code"] > 0:
        affine = source.get_qform()
    if meta.unit != unit_of(source, affine):
        return False
    if meta.affine is None:
        return meta.orientation is None and bool(np.allclose(sizes, meta.spacing[::-1], rtol=1e-6))
    return affine is not None and bool(np.allclose(affine, meta.affine, rtol=1e-6, atol=1e-6))


def _set_grid(header: Any, meta: Meta) -> None:
    """Set spacing, unit and affine; an unknown orientation is left unset."""
    codes = {name: code for code, name in UNITS.items()}
    meta = meta if meta.unit in codes else in_millimeters(meta)
    time = int(header["xyzt_units"]) & ~7
    header["xyzt_units"] = codes.get(meta.unit or "", 0) | time
    header["pixdim"][1:4] = meta.spacing[::-1]
    affine = affine_of(meta)
    if affine is None:
        header["sform_code"] = header["qform_code"] = 0
        return
    code = int(header["sform_code"]) or int(header["qform_code"]) or SCANNER
    header.set_sform(affine, code)
    header.set_qform(affine, code)
