"""One DICOM file: what its header says of the image in it, and of each of its slices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

from volflow.errors import Damaged, InvalidInput, first_line
from volflow.store.formats.dicom.frame_places import PixelFormat, places_of, stored_in
from volflow.store.formats.dicom.header_values import first_item, numbers_of, text_of, whole_of

__all__ = ["DicomSlice", "ImageFile", "Segmentation", "import_pydicom", "read_image_file"]

MAGIC_AT, MAGIC = 128, b"DICM"
HEAD_BYTES = 2**11  # of a file, where its transfer syntax stands
DEFLATED = b"1.2.840.10008.1.2.1.99"
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
GREY = ("MONOCHROME1", "MONOCHROME2")
COLORS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
KEYWORDS = (
    "ImageType", "SOPClassUID", "Modality", "SeriesDescription", "SeriesInstanceUID",
    "SeriesNumber", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel",
    "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "SegmentationType", "SegmentSequence", "SegmentsOverlap", "MaximumFractionalValue",
    "DoseGridScaling", "PixelPaddingValue", "ReferencedSeriesSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)  # fmt: skip


class DicomSlice(NamedTuple):
    """One slice, of which a file holds one or many.

    Parameters
    ----------
    path, begin, length
        Its file, and its bytes there; its bits, where a number is a bit.
    stored
        How its numbers are stored.
    position, orientation, spacing
        Of its first voxel; cosines along x and y; between voxels along y and x. () if unknown.
    between, thickness
        The distance to the next slice and the thickness as they are stated; 0 if they are not.
    slope, inter
        Its values are numbers × slope + inter.
    segment
        The one that it is a mask of, in a segmentation.
    """

    path: str
    begin: int
    length: int
    stored: PixelFormat
    position: tuple[float, ...] = ()
    orientation: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    between: float = 0.0
    thickness: float = 0.0
    slope: float = 1.0
    inter: float = 0.0
    segment: int = 0


class Segmentation(NamedTuple):
    """What a segmentation says of its segments.

    Parameters
    ----------
    kind
        ``"BINARY"``, ``"FRACTIONAL"`` or ``"LABELMAP"``.
    segments
        Numbers and names.
    overlap
        Whether it says that they do.
    most
        The number that means 1 in a fractional one.
    background
        The number of no segment, in a label map.
    of_series
        UID of the series that was segmented.
    """

    kind: str
    segments: tuple[tuple[int, str], ...]
    overlap: bool
    most: int
    background: int
    of_series: str


class ImageFile(NamedTuple):
    """A file with an image: its series, its slices, and why they are no volume, if so."""

    path: str
    series: str
    number: str
    description: str
    modality: str
    slices: tuple[DicomSlice, ...]
    segmentation: Segmentation | None = None
    unfit: str = ""


def import_pydicom() -> Any:
    """Return the module pydicom; InvalidInput with the remedy if it is not installed."""
    try:
        import pydicom
    except ImportError:
        raise InvalidInput(
            'DICOM files need pydicom, which is not installed; pip install "volflow[dicom]"'
        ) from None
    return pydicom


def read_image_file(path: str) -> ImageFile | None:
    """Return what the header of a file says; None if it is no DICOM file, or one without an image.

    Raises
    ------
    Damaged
        If the header breaks the format, or the file is too short for its voxels.
    InvalidInput
        If it cannot be read.
    """
    try:
        stat = Path(path).stat()
        return _read(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; check the path") from error


@lru_cache(maxsize=2**13)  # the driver and each task ask for all headers of a series
def _read(path: str, size: int, _time_ns: int) -> ImageFile | None:
    with Path(path).open("rb") as file:
        start = file.read(HEAD_BYTES)
        if start[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
            return None
        if DEFLATED in start:
            raise InvalidInput(
                f"{path} is deflated as a whole, so that parts of it cannot be read; save it in"
                " another transfer syntax, e.g. with gdcmconv --raw"
            )
        file.seek(0)
        pydicom = import_pydicom()
        try:
            data = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(KEYWORDS))
            return _described(data, file, path, size)
        except EOFError as error:
            raise Damaged(f"{path} is cut short; copy it again") from error
        except OSError:
            raise
        except Exception as error:  # pydicom raises errors of any class
            raise Damaged(
                f"{path} has a damaged DICOM header: {first_line(error)}; copy it again"
            ) from error


def _described(data: Any, file: IO[bytes], path: str, size: int) -> ImageFile | None:
    """Return the image whose header was read up to its voxels."""
    found = stored_in(data, file)
    if found is None:
        return None
    stored, length = found
    places = places_of(data, file, stored, length, size)
    return ImageFile(
        path,
        text_of(data, "SeriesInstanceUID"),
        text_of(data, "SeriesNumber"),
        str(data.get("SeriesDescription") or "").strip(),
        text_of(data, "Modality"),
        tuple(_slices(data, path, stored, places)),
        _segmentation(data),
        _unfit(data, stored),
    )


def _slices(
    data: Any, path: str, stored: PixelFormat, places: Sequence[tuple[int, int]]
) -> Iterator[DicomSlice]:
    """Yield the slices of a file with what its header says of each, of all, or of the only one."""
    groups = data.get("PerFrameFunctionalGroupsSequence") or (None,) * len(places)
    shared = first_item(data, "SharedFunctionalGroupsSequence")
    if len(groups) != len(places):
        raise ValueError(f"it describes {len(groups)} slices and holds {len(places)}")
    for own, place in zip(groups, places, strict=True):

        def said(group: str, keyword: str, count: int = 1, own: Any = own) -> tuple[float, ...]:
            for holder in (first_item(own, group), first_item(shared, group), data):
                values = () if holder is None else numbers_of(holder, keyword)
                if len(values) == count:
                    return values
            return ()

        def number(group: str, keyword: str, default: float, said: Any = said) -> float:
            return (said(group, keyword) or (default,))[0]

        position = said("PlanePositionSequence", "ImagePositionPatient", 3)
        if len(places) > 1 and first_item(own, "PlanePositionSequence") is None:
            position = ()  # that of the first of them
        measures, transform = "PixelMeasuresSequence", "PixelValueTransformationSequence"
        segment = first_item(own, "SegmentIdentificationSequence") or first_item(
            shared, "SegmentIdentificationSequence"
        )
        yield DicomSlice(
            path,
            *place,
            stored,
            position,
            said("PlaneOrientationSequence", "ImageOrientationPatient", 6),
            said(measures, "PixelSpacing", 2),
            number(measures, "SpacingBetweenSlices", 0.0),
            number(measures, "SliceThickness", 0.0),
            number(transform, "RescaleSlope", 1.0),
            number(transform, "RescaleIntercept", 0.0),
            0 if segment is None else whole_of(segment, "ReferencedSegmentNumber"),
        )


def _segmentation(data: Any) -> Segmentation | None:
    if text_of(data, "SOPClassUID") not in SEGMENTATIONS:
        return None
    series = first_item(data, "ReferencedSeriesSequence")
    return Segmentation(
        text_of(data, "SegmentationType"),
        tuple(
            (whole_of(one, "SegmentNumber"), str(one.get("SegmentLabel") or "").strip())
            for one in data.get("SegmentSequence") or ()
        ),
        text_of(data, "SegmentsOverlap") == "YES",
        whole_of(data, "MaximumFractionalValue", 1),
        whole_of(data, "PixelPaddingValue", 0),
        "" if series is None else text_of(series, "SeriesInstanceUID"),
    )


def _unfit(data: Any, stored: PixelFormat) -> str:
    """Return why the numbers of a file are not the values of a volume; ``""`` if they are."""
    labels = text_of(data, "SOPClassUID") in SEGMENTATIONS
    sizes = {32, 64} if stored.floats else {1, 8, 16} if labels else {8, 16, 32}
    if "MOSAIC" in text_of(data, "ImageType").split("\\"):
        return "is a mosaic, with all slices of a volume side by side in one; use dcm2niix"
    if first_item(data, "ModalityLUTSequence") is not None:
        return "gives its values by a table (Modality LUT Sequence), which is not applied"
    if data.get_item("DoseGridScaling") is not None:
        return "is a dose (RTDOSE), whose grid and scaling are not read; save it as NIfTI or NRRD"
    if stored.big and stored.bits == 8:  # perhaps swapped in pairs
        return "stores bytes as big endian, which nothing does any more; save it as little endian"
    if stored.photometric == "PALETTE COLOR" and not labels:
        return "holds numbers of colours of a palette (PALETTE COLOR); save it as RGB"
    if stored.samples == 3 and stored.photometric in COLORS and stored.bits == 8:
        return ""
    if stored.samples != 1 or stored.photometric not in (*GREY, "PALETTE COLOR"):
        kind = f"{stored.samples} × {stored.bits} bits {stored.photometric or 'of no known kind'}"
        return f"holds {kind} in a voxel; one grey value, or three of 8 bits (RGB, YBR), can be"
    if stored.bits not in sizes or not 1 <= stored.used <= stored.high + 1 <= stored.bits:
        return (
            f"stores numbers in {stored.used} bits up to bit {stored.high} of {stored.bits}, which"
            " cannot be read"
        )
    return ""
