"""DICOM segmentations that are written: their headers by highdicom, their voxels bit by bit.

highdicom takes all slices and their voxels at once. Here it makes the header for the first slice,
as if it were a single voxel; what is said of each mask, and its bits, follow one by one. The volume
is read twice: first to see which classes lie in which slice, as masks of none are left out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import volflow
from volflow.errors import InvalidInput, first_line
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.dicom.image_file import DicomSlice, import_pydicom
from volflow.store.formats.dicom.series import open_dicom
from volflow.store.formats.dicom.slice_stack import StackSource
from volflow.store.meta import SourceInfo, VolumeSpec
from volflow.store.slabs import Array, Source

__all__ = ["segmentation_pieces", "series_of"]

MOST_SEGMENTS, MOST_SERIES = 4096, 10**7
MOST_BYTES = 2**32 - 2  # of the voxels of a file
OF_VOXEL = 0.01  # by which two grids may differ
SHORT_TEXT = 64  # letters that a field holds
# What highdicom asks an image for; the first are empty where it lacks them.
PATIENT = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime",
)  # fmt: skip
NEEDED = (
    *PATIENT, "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "SeriesNumber", "FrameOfReferenceUID", "PositionReferenceIndicator", "Modality", "Rows",
    "Columns", "ImageType", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence", "DimensionOrganizationSequence", "DimensionIndexSequence",
    "LossyImageCompression", "ReferringPhysicianName", "SpecificCharacterSet",
)  # fmt: skip


class _Frame(NamedTuple):
    """The mask of a class in a slice."""

    z: int
    segment: int


class _Referred(NamedTuple):
    """The image that a slice refers to, and the frame in it; 0 if it has one."""

    sop_class: str
    instance: str
    frame: int


def segmentation_pieces(volume: Source, depth: int) -> Iterable[Any]:
    """Return the bytes of a DICOM segmentation, one after the other.

    The first and the last slice are always there, so that whoever reads the file knows its grid.

    Parameters
    ----------
    volume
        A label map on the grid of the DICOM series that it was made from.
    depth
        How many slices are held.

    Raises
    ------
    InvalidInput
        As `series_of`.
    """
    return _pieces(volume, depth, series_of(volume.spec, volume.path or "the volume"))


def series_of(spec: VolumeSpec, name: str) -> StackSource:
    """Open the DICOM series to which a segmentation refers.

    Raises
    ------
    InvalidInput
        If the volume does not hold classes, was not made from a DICOM series that is at hand, or
        does not lie on its grid.
    """
    info = spec.meta.source
    if len(spec.shape) != 3 or spec.dtype.kind == "f" or spec.meta.kind != "classes":
        raise InvalidInput(
            f"a DICOM segmentation holds classes along zyx, and {name} has {spec.dtype} voxels of"
            f" kind {spec.meta.kind} along {''.join(spec.meta.axes)}; predict with"
            ' output="classes" (--output classes), or mark it (volflow info --labels)'
        )
    noted = _noted(info)
    if "path" not in noted:
        origin = "no file" if info is None else f"a file of format {info.format}"
        raise InvalidInput(
            f"a DICOM segmentation lies on the grid of a DICOM series, and {name} was made from"
            f" {origin}; name the series (like=, --like), or export another format"
        )
    if not Path(noted["path"]).exists():
        raise InvalidInput(
            f"{noted['path']}, the DICOM series that {name} was made from, does not exist; name"
            " where it is now (like=, --like)"
        )
    series = open_dicom(noted["path"], ImageChoice(series=noted.get("series")))
    if not isinstance(series, StackSource) or series.meta.affine is None:
        raise InvalidInput(f"{noted['path']} has no positions in the patient to refer to")
    _compare(spec, name, series)
    return series


def _noted(info: SourceInfo | None) -> dict[str, str]:
    """Return path and UID of a series, as they are noted of a volume that was made from it."""
    with suppress(ValueError):
        noted = json.loads(info.header) if info is not None and info.format == "dicom" else {}
        if isinstance(noted, dict) and all(isinstance(value, str) for value in noted.values()):
            return noted
    return {}


def _compare(spec: VolumeSpec, name: str, series: StackSource) -> None:
    """Refuse a volume on another grid than the series."""
    shape, meta = spec.spatial_shape, spec.meta
    if shape == series.shape[-3:] and meta.affine is not None:
        ends = np.stack([*np.ndindex(2, 2, 2)]) * (np.array(shape[::-1]) - 1)
        apart = np.c_[ends, np.ones(8)] @ (np.array(meta.affine) - np.array(series.meta.affine)).T
        if np.linalg.norm(apart, axis=1).max() <= OF_VOXEL * min(series.meta.spacing):
            return
    raise InvalidInput(
        f"{name} of {shape} voxels of {meta.spacing} does not lie on the grid of {series.path},"
        f" {series.shape[-3:]} of {series.meta.spacing}; export it to NIfTI, or predict on the"
        " series as it is"
    )


def _pieces(volume: Source, depth: int, series: StackSource) -> Iterator[Any]:
    frames = list(_frames(volume, depth))
    size = series.shape[-2] * series.shape[-1]
    length = -(-len(frames) * size // 8)
    length += length % 2
    if length > MOST_BYTES:
        raise InvalidInput(
            f"{len(frames)} masks of {size} voxels take {length} bytes, and a DICOM file holds"
            f" {MOST_BYTES}; export another format, or fewer classes"
        )
    referred = _referred(series)
    data = _header(volume, series, max(segment for _, segment in frames))
    data.NumberOfFrames = len(frames)
    data.ReferencedSeriesSequence[0].ReferencedInstanceSequence = _instances(referred)
    (template,) = data.PerFrameFunctionalGroupsSequence
    del data.PerFrameFunctionalGroupsSequence, data.PixelData
    yield _encoded(data, whole=True)
    # These two come last, in this order.
    yield _element(0x52009230, b"SQ", 0xFFFFFFFF)
    for frame in frames:
        item = _encoded(_entry(template, frame, series.slices[frame.z], referred[frame.z]))
        yield b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item
    yield b"\xfe\xff\xdd\xe0\0\0\0\0"
    yield _element(0x7FE00010, b"OB", length)
    yield from _bits(volume, depth, frames, length)


def _element(tag: int, kind: bytes, length: int) -> bytes:
    group, element = (tag >> 16).to_bytes(2, "little"), (tag & 0xFFFF).to_bytes(2, "little")
    return group + element + kind + b"\0\0" + length.to_bytes(4, "little")


def _planes(volume: Source, depth: int) -> Iterator[tuple[int, Array]]:
    for roi, slab in volume.slabs(depth):
        yield from enumerate(slab, roi.start[-3])


def _frames(volume: Source, depth: int) -> Iterator[_Frame]:
    """Yield which class lies in which slice."""
    ends = (0, volume.shape[-3] - 1)
    for z, plane in _planes(volume, depth):
        classes = [int(number) for number in np.unique(plane)]
        if classes[0] < 0 or classes[-1] > MOST_SEGMENTS:
            raise InvalidInput(
                f"{volume.path or 'the volume'} holds classes {classes[0]} to {classes[-1]} in"
                f" slice {z}; a DICOM segmentation of up to {MOST_SEGMENTS} can be written: number"
                " them from 1, or export another format"
            )
        found = [number for number in classes if number]
        yield from (_Frame(z, number) for number in found or ([1] if z in ends else []))


def _bits(volume: Source, depth: int, frames: Sequence[_Frame], length: int) -> Iterator[bytes]:
    """Yield the masks bit to bit, padded to a length; a slice need not end at a whole byte."""
    left, written = np.empty(0, np.uint8), 0
    ahead = iter(frames)
    frame = next(ahead, None)
    for z, plane in _planes(volume, depth):
        while frame is not None and frame.z == z:
            bits = np.concatenate([left, (plane == frame.segment).ravel()])
            whole = len(bits) // 8 * 8
            left = bits[whole:]
            yield np.packbits(bits[:whole], bitorder="little").tobytes()
            written, frame = written + whole // 8, next(ahead, None)
    rest = np.packbits(left, bitorder="little").tobytes()
    yield rest + bytes(length - written - len(rest))


def _referred(series: StackSource) -> list[_Referred]:
    """Return to which image each slice of a segmentation refers, in the order of z."""
    pydicom = import_pydicom()
    begins: dict[str, list[int]] = {}
    for one in series.slices:
        begins.setdefault(one.path, []).append(one.begin)
    images = {}
    for path in begins:
        tags = ["SOPClassUID", "SOPInstanceUID"]
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        images[path] = str(data.SOPClassUID), str(data.SOPInstanceUID)
        begins[path].sort()
    return [
        _Referred(
            *images[one.path],
            begins[one.path].index(one.begin) + 1 if len(begins[one.path]) > 1 else 0,
        )
        for one in series.slices
    ]


def _instances(referred: Sequence[_Referred]) -> Any:
    """Return the list of the images that a segmentation refers to."""
    from pydicom.dataset import Dataset

    items = []
    for sop_class, instance in dict.fromkeys(one[:2] for one in referred):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        items.append(item)
    return items


def _entry(template: Any, frame: _Frame, place: DicomSlice, image: _Referred) -> Any:
    """Return what the header says of a mask; the template is used again."""
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    identity = Dataset()
    identity.ReferencedSegmentNumber = frame.segment
    template.SegmentIdentificationSequence = [identity]
    template.FrameContentSequence[0].DimensionIndexValues = [frame.segment, frame.z + 1]
    position = [format_number_as_ds(value) for value in place.position]
    template.PlanePositionSequence[0].ImagePositionPatient = position
    source = template.DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = image.instance
    if image.frame:
        source.ReferencedFrameNumber = image.frame
    return template


def _encoded(data: Any, *, whole: bool = False) -> bytes:
    file = BytesIO()
    options = {} if whole else {"implicit_vr": False, "little_endian": True}
    import_pydicom().dcmwrite(file, data, enforce_file_format=whole, **options)
    return file.getvalue()


def _header(volume: Source, series: StackSource, classes: int) -> Any:
    """Return the header of a segmentation of the first slice, as if that were a single voxel."""
    try:
        import highdicom
    except ImportError:
        raise InvalidInput(
            "DICOM segmentations need highdicom, which is not installed; pip install"
            ' "volflow[dicom]"'
        ) from None
    image, spacing = _first_image(series), series.meta.spacing
    number = int(image.get("SeriesNumber") or 0)
    made = json.loads(volume.meta.made or "{}")
    model = f", {made['model'][-30:]} {made['weights'][:16]}" if made else ""
    segments = _segments(highdicom, volume, max(classes, len(volume.meta.channels) - 1), made)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names in the image that are spelt carelessly
            data = highdicom.seg.Segmentation(
                [image],
                np.ones((1, 1, 1), np.uint8),
                "BINARY",
                segments[:1],
                highdicom.UID(),
                100 * number + 1 if number < MOST_SERIES else 1,
                highdicom.UID(),
                1,
                "volflow",
                "volflow",
                volflow.__version__,
                "none",
                content_description=f"volflow{model}",
                pixel_measures=highdicom.PixelMeasuresSequence(
                    spacing[1:], series.slices[0].thickness or spacing[0], spacing[0]
                ),
            )
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"no segmentation can refer to {series.path}: {first_line(error)}; repair its header"
        ) from error
    data.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, for names of classes
    data.SegmentSequence.extend(segments[1:])
    data.Rows, data.Columns = series.shape[-2:]
    data.SegmentsOverlap = "NO"
    shared = data.SharedFunctionalGroupsSequence[0]
    shared.pop("SegmentIdentificationSequence", None)  # each mask has its own
    step = import_pydicom().valuerep.format_number_as_ds(float(spacing[0]))
    shared.PixelMeasuresSequence[0].SpacingBetweenSlices = step  # not of the first slice alone
    return data


def _first_image(series: StackSource) -> Any:
    """Return the header of the first slice, with what highdicom asks it for."""
    first = series.slices[0].path
    data = import_pydicom().dcmread(first, stop_before_pixels=True, specific_tags=list(NEEDED))
    for name in PATIENT:
        if name not in data:
            setattr(data, name, "")
    data.Rows = data.Columns = 1
    if "PerFrameFunctionalGroupsSequence" in data:
        data.NumberOfFrames = 1
        data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:1]
    return data


def _segments(highdicom: Any, volume: Source, count: int, made: Mapping[str, str]) -> list[Any]:
    """Return the descriptions of segments 1, 2, …, by the names of classes."""
    from pydicom.sr.codedict import codes

    names = volume.meta.channels
    algorithm = highdicom.AlgorithmIdentificationSequence(
        made.get("model", "unknown")[-SHORT_TEXT:],
        codes.DCM.ArtificialIntelligence,
        made.get("weights", "unknown")[:SHORT_TEXT],
    )
    return [
        highdicom.seg.SegmentDescription(
            number,
            _label("".join(names[number : number + 1]) or f"class {number}"),
            codes.SCT.Tissue,
            codes.SCT.Tissue,
            "AUTOMATIC" if made else "SEMIAUTOMATIC",
            algorithm,
        )
        for number in range(1, count + 1)
    ]


def _label(name: str) -> str:
    """Return a name as a field holds it, in which a backslash parts two values."""
    return name.replace("\\", "/")[:SHORT_TEXT]
