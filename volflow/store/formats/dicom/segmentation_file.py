"""DICOM segmentations that are written: their headers by highdicom, their voxels bit by bit.

highdicom takes all voxels at once. Here it makes the header for slices of a single voxel; the size,
the entries of all slices and their bits are put in while the volume is read, twice: first to see
which classes lie in which slice, as slices without a class are left out.
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
from volflow.store.formats.dicom.image_file import import_pydicom
from volflow.store.formats.dicom.series import open_dicom
from volflow.store.formats.dicom.slice_stack import StackSource
from volflow.store.meta import SourceInfo, VolumeSpec
from volflow.store.slabs import Array, Source

__all__ = ["segmentation_pieces", "series_of"]

MOST_SEGMENTS, MOST_SERIES = 4096, 10**7
MOST_BYTES = 2**32 - 2  # of the voxels of a file
OF_VOXEL = 0.01  # by which two grids may differ
SHORT_TEXT = 64  # letters that a field holds
# What highdicom asks a source image for; empty where the image lacks it.
PATIENT = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
    "StudyDate", "StudyTime",
)  # fmt: skip
NEEDED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "Modality", "Rows", "Columns", "ImageType",
    "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceThickness", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "LossyImageCompression",
    "ReferringPhysicianName", "SpecificCharacterSet",
)  # fmt: skip


class _Frame(NamedTuple):
    """The mask of a class in a slice."""

    z: int
    segment: int


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
    data = _header(volume, series, max(segment for _, segment in frames))
    templates = data.PerFrameFunctionalGroupsSequence
    data.NumberOfFrames = len(frames)
    del data.PerFrameFunctionalGroupsSequence, data.PixelData
    yield _encoded(data, whole=True)
    # These two come last, in this order.
    yield _element(0x52009230, b"SQ", 0xFFFFFFFF)
    for frame in frames:
        item = _encoded(_entry(templates[frame.z], frame.segment))
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


def _entry(template: Any, segment: int) -> Any:
    """Return the entry of a slice for a segment; the template is used again."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence as Items

    identity = Dataset()
    identity.ReferencedSegmentNumber = segment
    template.SegmentIdentificationSequence = Items([identity])
    content = template.FrameContentSequence[0]
    content.DimensionIndexValues = [segment, content.DimensionIndexValues[-1]]
    return template


def _encoded(data: Any, *, whole: bool = False) -> bytes:
    file = BytesIO()
    options = {} if whole else {"implicit_vr": False, "little_endian": True}
    import_pydicom().dcmwrite(file, data, enforce_file_format=whole, **options)
    return file.getvalue()


def _header(volume: Source, series: StackSource, classes: int) -> Any:
    """Return the header, with an entry for each slice in the order of z."""
    try:
        import highdicom
    except ImportError:
        raise InvalidInput(
            "DICOM segmentations need highdicom, which is not installed; pip install"
            ' "volflow[dicom]"'
        ) from None
    images, spacing = _images(series), series.meta.spacing
    number = int(images[0].get("SeriesNumber") or 0)
    made = json.loads(volume.meta.made or "{}")
    model = f", {made['model'][-30:]} {made['weights'][:16]}" if made else ""
    segments = _segments(highdicom, volume, max(classes, len(volume.meta.channels) - 1), made)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names in the image that are spelt carelessly
            data = highdicom.seg.Segmentation(
                images,
                np.ones((series.shape[-3], 1, 1), np.uint8),
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
                specific_character_set="ISO_IR 192",  # UTF-8, for names of classes
                pixel_measures=highdicom.PixelMeasuresSequence(
                    spacing[1:], series.slices[0].thickness or spacing[0], spacing[0]
                ),
            )
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"no segmentation can refer to {series.path}: {first_line(error)}; repair its header"
        ) from error
    data.SegmentSequence.extend(segments[1:])
    data.Rows, data.Columns = series.shape[-2:]
    data.SegmentsOverlap = "NO"
    shared = data.SharedFunctionalGroupsSequence[0]
    # Of slices of one segment, all of which are there.
    for holder, name in (
        (shared, "SegmentIdentificationSequence"),
        (data, "DimensionOrganizationType"),
    ):
        if name in holder:
            delattr(holder, name)
    # A single slice would be taken to be 1 mm from the next.
    step = import_pydicom().valuerep.format_number_as_ds(float(spacing[0]))
    shared.PixelMeasuresSequence[0].SpacingBetweenSlices = step
    normal = np.cross(*np.reshape(series.slices[0].orientation, (2, 3)))

    def height(entry: Any) -> float:
        at = entry.PlanePositionSequence[0].ImagePositionPatient
        return float(np.dot(np.array(at, float), normal))

    data.PerFrameFunctionalGroupsSequence = sorted(
        data.PerFrameFunctionalGroupsSequence, key=height
    )
    return data


def _images(series: StackSource) -> list[Any]:
    """Return the headers of the images of a series, as if their slices had a single voxel."""
    pydicom = import_pydicom()
    images: list[Any] = []
    for path in dict.fromkeys(one.path for one in series.slices):
        tags = [*NEEDED, *(PATIENT if not images else ())]
        data = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        for name in PATIENT if not images else ():
            if name not in data:
                setattr(data, name, "")
        data.Rows = data.Columns = 1
        images.append(data)
    if len(images) > 1 and len(images) != len(series.slices):
        raise InvalidInput(
            f"{series.path} has its slices in {len(images)} files of several, and a segmentation"
            " refers to one; export another format"
        )
    return images


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
