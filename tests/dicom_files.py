"""DICOM files as scanners write them, and as they should not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

PACKED = (JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless)
AXIAL = (1, 0, 0, 0, 1, 0)
SPACING = (2.5, 0.75, 0.5)  # z, y, x


def image(sop_class=CTImageStorage, **fields):
    """The header of an image, with the fields given; one that is None is left out."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, generate_uid()
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3.1", "1.2.3.2"
    data.FrameOfReferenceUID = "1.2.3.3"
    data.PatientName, data.PatientID, data.PatientBirthDate = "Doe^Jane", "P01", "19700101"
    data.PatientSex, data.StudyID, data.AccessionNumber = "F", "S1", "A1"
    data.StudyDate, data.StudyTime, data.ReferringPhysicianName = "20260101", "120000", ""
    data.Modality, data.SeriesNumber, data.SeriesDescription = "CT", 2, "thorax"
    data.Manufacturer, data.SamplesPerPixel = "nobody", 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelSpacing, data.SliceThickness = list(SPACING[1:]), 5  # which is not the step
    for name, value in fields.items():
        if value is None and name in data:
            delattr(data, name)
        elif value is not None:
            setattr(data, name, value)
    return data


def encoded(plane, syntax, used):
    """The bytes of a slice in a packed transfer syntax."""
    import imagecodecs

    if syntax == JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(plane, level=0, reversible=True, codecformat="J2K")
    unsigned = plane.view(f"u{plane.itemsize}")
    if syntax == JPEGLSLossless:
        return imagecodecs.jpegls_encode(unsigned)
    return imagecodecs.jpeg8_encode(unsigned, lossless=True, bitspersample=used)


def put_voxels(data, frames, syntax=ExplicitVRLittleEndian, *, used=None, table="basic"):
    """Add frames, (n, y, x) or (n, y, x, 3), to a header, and how they are stored."""
    frames = np.ascontiguousarray(frames)
    bits = 8 * frames.itemsize
    data.Rows, data.Columns = frames.shape[1:3]
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, used or bits, (used or bits) - 1
    data.PixelRepresentation = int(frames.dtype.kind == "i")
    if frames.ndim == 4:
        data.SamplesPerPixel, data.PlanarConfiguration = 3, 0
        data.PhotometricInterpretation = "RGB"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.PixelData = frames.astype(frames.dtype.newbyteorder("<")).tobytes()
    if len(data.PixelData) % 2:
        data.PixelData += b"\0"
    if syntax == RLELossless:
        data.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    elif syntax in PACKED:
        parts = [encoded(frame, syntax, used or bits) for frame in frames]
        if table == "extended":
            data.PixelData, *tables = encapsulate_extended(parts)
            data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths = tables
        else:
            data.PixelData = encapsulate(parts, has_bot=table == "basic")
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax
    else:
        data.file_meta.TransferSyntaxUID = syntax
    return data


def save(data, path):
    """Write a file; big endian and implicit, where its transfer syntax says so."""
    syntax = data.file_meta.TransferSyntaxUID
    if not syntax.is_little_endian:
        numbers = np.frombuffer(data.PixelData, f"<u{data.BitsAllocated // 8}")
        data.PixelData = numbers.byteswap().tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def positions(count, step=SPACING[0], orientation=AXIAL, start=(-10.0, 20.0, -30.5)):
    """The positions of evenly spaced slices along their normal."""
    normal = np.cross(orientation[:3], orientation[3:])
    return [(np.array(start) + n * step * normal).tolist() for n in range(count)]


def save_series(folder, voxels, syntax=ExplicitVRLittleEndian, *, used=None, change=None, **fields):
    """Write zyx voxels as one file for each slice, named and numbered in an order of its own.

    ``change(n, data)`` changes the header of slice n.
    """
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(3).permutation(len(voxels))
    for name, n in enumerate(order):
        data = image(**fields)
        data.ImageOrientationPatient = list(AXIAL)
        data.ImagePositionPatient = positions(len(voxels))[n]
        data.InstanceNumber = name
        put_voxels(data, voxels[n : n + 1], syntax, used=used)
        if change is not None:
            change(n, data)
        save(data, folder / f"IM{name:03}")
    return folder


def group(**fields):
    """A functional group of one item."""
    item = Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return Sequence([item])


def enhanced(voxels, syntax=ExplicitVRLittleEndian, *, table="basic", order=None, **fields):
    """A multi-frame image whose frames lie in any order."""
    data = image(EnhancedCTImageStorage, PixelSpacing=None, SliceThickness=None, **fields)
    order = range(len(voxels)) if order is None else order
    shared = Dataset()
    shared.PlaneOrientationSequence = group(ImageOrientationPatient=list(AXIAL))
    shared.PixelMeasuresSequence = group(PixelSpacing=list(SPACING[1:]), SliceThickness=5)
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for n in order:
        frame = Dataset()
        position = positions(len(voxels))[n]
        frame.PlanePositionSequence = group(ImagePositionPatient=position)
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)
    data.NumberOfFrames = len(voxels)
    return put_voxels(data, voxels[list(order)], syntax, table=table)


def segmentation(series, masks, kind="BINARY", names=("lung", "heart")):
    """A segmentation that highdicom writes: of labels (z, y, x), or masks (z, y, x, segment).

    Of the images given, or of a series that is written into a folder.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    if isinstance(series, Path):
        save_series(series, np.zeros(masks.shape[:3], "u2"))
        series = [pydicom.dcmread(path) for path in series.iterdir()]
        series.sort(key=lambda data: data.ImagePositionPatient[2])
    segments = [
        highdicom.seg.SegmentDescription(number, name, codes.SCT.Organ, codes.SCT.Lung, "MANUAL")
        for number, name in enumerate(names, 1)
    ]
    return highdicom.seg.Segmentation(
        series, masks, kind, segments, "1.2.3.7", 9, generate_uid(), 1, "nobody", "none", "1", "0",
        max_fractional_value=200,
    )  # fmt: skip
