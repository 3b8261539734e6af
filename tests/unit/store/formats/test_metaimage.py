"""MetaImage: what its headers can say, and the lies that they tell."""

import gzip
import zlib

import numpy as np
import pytest

from tests.unit.store.formats.test_sources import (
    SourceContract,
    assert_refused_in_one_line,
    random_zyx,
)
from tests.unit.volumes.test_export import stored, to_store
from volflow.errors import Damaged, InvalidInput, MemoryRefused
from volflow.geometry.roi import Roi
from volflow.store.formats.sources import open_source
from volflow.store.meta import Meta
from volflow.volumes.export import export


def write(path, voxels=None, **fields):
    """Write voxels, or bytes, behind a header; fields that are None are left out."""
    known = {
        "ObjectType": "Image",
        "NDims": 3,
        "BinaryData": True,
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "10 20 30",
        "ElementSpacing": "2 3 4",
        "DimSize": "7 6 11",
        "ElementType": "MET_SHORT",
    }
    known |= {"ElementDataFile": "LOCAL"} | fields
    known["ElementDataFile"] = known.pop("ElementDataFile")  # the last line
    head = "".join(f"{name} = {value}\n" for name, value in known.items() if value is not None)
    data = random_zyx() if voxels is None else voxels
    path.write_bytes(head.encode() + (data if isinstance(data, bytes) else data.tobytes()))
    return path


class TestMetaImage(SourceContract):
    def make(self, folder, voxels):
        return write(folder / "a.mha", voxels)


class TestMetaImageOfOtherByteOrder(SourceContract):
    def make(self, folder, voxels):
        return write(folder / "a.mha", voxels.astype(">i2"), ElementByteOrderMSB="True")


class TestCompressedMetaImage(SourceContract):
    sequential = True

    def make(self, folder, voxels):
        return write(folder / "a.mha", zlib.compress(voxels.tobytes()), CompressedData=True)


class TestDetachedMetaImage(SourceContract):
    def make(self, folder, voxels):
        (folder / "a 1.raw").write_bytes(b"skipped" + voxels.tobytes())
        return write(folder / "a.mhd", b"", HeaderSize=7, ElementDataFile="a 1.raw")


class TestMetaImageWhoseVoxelsEndTheFile(SourceContract):
    def make(self, folder, voxels):
        (folder / "a.raw").write_bytes(b"who knows how long" + voxels.tobytes())
        return write(folder / "a.mhd", b"", HeaderSize=-1, ElementDataFile="a.raw")


class TestDetachedCompressedMetaImage(SourceContract):
    sequential = True

    def make(self, folder, voxels):
        (folder / "a.zraw").write_bytes(gzip.compress(voxels.tobytes()))
        return write(folder / "a.mhd", b"", CompressedData="True", ElementDataFile="a.zraw")


class TestMetaImageOfColours(SourceContract):
    def voxels(self):
        return random_zyx((3, 11, 6, 7), "uint8")

    def make(self, folder, voxels):
        colours = {"ElementNumberOfChannels": 3, "ElementType": "MET_UCHAR"}
        return write(folder / "a.mha", np.moveaxis(voxels, 0, -1), **colours)


class TestMetaImageOfFourAxes(SourceContract):
    def voxels(self):
        return random_zyx((3, 11, 6, 7), "float64")

    def make(self, folder, voxels):
        more = {"NDims": 4, "DimSize": "7 6 11 3", "ElementType": "MET_DOUBLE", "Offset": "1 2 3 4"}
        more |= {"TransformMatrix": " ".join(map(str, np.eye(4).ravel()))}
        return write(folder / "a.mha", voxels, ElementSpacing="2 3 4 1", **more)


@pytest.mark.parametrize("name", ["TransformMatrix", "Rotation", "Orientation"])
@pytest.mark.parametrize("place", ["Offset", "Position", "Origin"])
def test_its_place_by_each_of_its_names(tmp_path, name, place):
    fields = {"TransformMatrix": None, "Offset": None, "CenterOfRotation": "9 9 9"}
    fields |= {name: "0 1 0 -1 0 0 0 0 -1", place: "10 20 30", "AnatomicalOrientation": "LPI"}
    meta = open_source(write(tmp_path / "a.mha", **fields)).meta
    wanted = [[0, 3, 0, -10], [-2, 0, 0, -20], [0, 0, -4, 30], [0, 0, 0, 1]]
    np.testing.assert_array_equal(meta.affine, wanted)
    assert (meta.spacing, meta.orientation, meta.unit) == ((4, 3, 2), "IRP", "millimeter")


@pytest.mark.parametrize(
    ("fields", "spacing", "unit", "orientation"),
    [
        ({}, (4, 3, 2), "millimeter", "SPL"),
        ({"TransformMatrix": None}, (4, 3, 2), "millimeter", "SPL"),
        ({"ElementSpacing": None, "ElementSize": "2 3 5"}, (5, 3, 2), "millimeter", "SPL"),
        ({"ElementSpacing": "-2 3 5"}, (5, 3, 2), "millimeter", "SPR"),
        ({"DistanceUnits": "um"}, (4, 3, 2), "micrometer", "SPL"),
        ({"TransformMatrix": None, "Offset": None, "AnatomicalOrientation": "RAI"}, (4, 3, 2), None,
         None),
        ({"TransformMatrix": None, "Offset": None, "DistanceUnits": "?", "ElementSpacing": None},
         (1, 1, 1), None, None),
    ],
)  # fmt: skip
def test_spacing_and_unit(tmp_path, fields, spacing, unit, orientation):
    meta = open_source(write(tmp_path / "a.mha", **fields)).meta
    assert (meta.spacing, meta.unit, meta.orientation) == (spacing, unit, orientation)


def test_two_axes_are_one_slice(tmp_path):
    flat = {"NDims": 2, "DimSize": "7 66", "ElementSpacing": "2 3", "Offset": "1 2"}
    source = open_source(write(tmp_path / "a.mha", **flat, TransformMatrix="1 0 0 1"))
    assert (source.meta.spacing, source.meta.affine) == ((1, 3, 2), None)
    voxels = source.read(Roi.full((1, 66, 7)))
    np.testing.assert_array_equal(voxels.ravel(), random_zyx().ravel())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"NDims": None}, InvalidInput, "is not a MetaImage file; its header has no NDims"),
        ({"ElementType": "MET_STRING"}, InvalidInput, "voxels are of type 'MET_STRING'"),
        ({"ElementType": None}, InvalidInput, "its voxels are of type ''"),
        ({"BinaryData": False}, InvalidInput, "stored as text; write it with BinaryData = True"),
        ({"ElementDataFile": "LIST 2"}, InvalidInput, "spread over several files, 'LIST 2'"),
        ({"ElementDataFile": "a%03d.raw 1 9 1"}, InvalidInput, "spread over several files"),
        ({"ElementDataFile": "../a.raw"}, InvalidInput, r"are in \.\./a\.raw, outside its own"),
        ({"ElementDataFile": "/etc/passwd"}, InvalidInput, "are in /etc/passwd, outside its own"),
        ({"ElementDataFile": "a.raw"}, InvalidInput, r"are in a\.raw, which does not exist"),
        ({"ElementDataFile": ""}, Damaged, "ElementDataFile names no file"),
        ({"ElementNumberOfChannels": 2, "NDims": 4, "DimSize": "7 3 2 11", "ElementSpacing": None,
          "TransformMatrix": None, "Offset": None}, InvalidInput, "and 2 channels; a volume has x"),
        ({"ElementNumberOfChannels": 0}, InvalidInput, "and 0 channels"),
        ({"NDims": 1}, InvalidInput, "a volume has x, y, z"),
        ({"NDims": 99}, Damaged, "NDims 99 and DimSize 7 6 11 do not fit"),
        ({"NDims": 4}, Damaged, "do not fit"),
        ({"DimSize": "7 0 11"}, Damaged, "do not fit"),
        ({"DimSize": "7 6 12"}, Damaged, "is cut short"),
        ({"DimSize": f"7 6 {2**70}"}, Damaged, "is cut short"),
        ({"DimSize": f"7 6 {2**70}", "CompressedData": True}, Damaged, "is cut short"),
        ({"ElementNumberOfChannels": 2**70}, Damaged, "is cut short"),
        ({"HeaderSize": 2**70}, Damaged, "is cut short"),
        ({"HeaderSize": 2**70, "CompressedData": True, "DimSize": f"7 6 {2**70}"}, Damaged,
         "is cut short"),
        ({"HeaderSize": -2}, Damaged, "HeaderSize -2 is negative"),
        ({"HeaderSize": -1, "CompressedData": True}, Damaged, "HeaderSize -1 is negative"),
        ({"ElementSpacing": "1 2"}, Damaged, "elementspacing '1 2' is not 3 numbers"),
        ({"ElementSpacing": "1 2 x"}, Damaged, "could not convert"),
        ({"ElementSpacing": "1 2 0"}, InvalidInput, "spacing must be positive"),
        ({"ElementSpacing": "1 2 nan"}, InvalidInput, "spacing must be positive"),
        ({"TransformMatrix": "1 0 0 0 1 0"}, Damaged, "is not 9 numbers"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 1 0"}, InvalidInput, "affine must map voxels"),
        ({"Offset": "0 0 inf"}, InvalidInput, "affine must be a finite"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, fields, error, message):
    assert_refused_in_one_line(write(tmp_path / "a.mha", **fields), error, message)


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"P6\n7 6\n255\n", b"ElementDataFile ="])
def test_other_bytes_are_refused(tmp_path, content):
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(InvalidInput, match=r"a\.mha is not a MetaImage file"):
        open_source(tmp_path / "a.mha")


def test_a_file_comes_back(tmp_path):
    turned = "0 0.6 0.8 -1 0 0 0 -0.8 0.6"
    path = write(tmp_path / "a.mha", TransformMatrix=turned, DistanceUnits="um")
    before = open_source(path)
    after = open_source(export(to_store(before, tmp_path / "a.zarr"), tmp_path / "b.mha"))
    box = Roi.full(before.shape)
    np.testing.assert_array_equal(after.read(box), before.read(box))
    np.testing.assert_allclose(after.meta.affine, before.meta.affine, atol=1e-12)
    assert (after.meta.spacing, after.meta.unit) == (before.meta.spacing, before.meta.unit)


@pytest.mark.parametrize("memory", ["1GiB", "3KiB"])
def test_others_are_written_in_millimetres_with_channels_side_by_side(tmp_path, memory):
    meta = Meta(("c", "z", "y", "x"), (4, 3, 2), "micrometer", (10, 20, 30), "SAR",
                channels=("t1", "flaír", "a"), kind="classes")  # fmt: skip
    voxels = random_zyx((3, 5, 6, 7), "float16")
    volume = stored(tmp_path / "a.zarr", voxels, meta)
    path = export(volume, tmp_path / "a.mha", memory=memory)
    after = open_source(path)
    np.testing.assert_array_equal(after.read(Roi.full(voxels.shape)), voxels)
    assert (after.dtype, after.interleaved) == ("float32", True)
    assert (after.meta.kind, after.meta.channels) == ("classes", ("t1", "flaír", "a"))
    np.testing.assert_allclose(after.meta.spacing, (0.004, 0.003, 0.002))
    np.testing.assert_allclose(np.array(after.meta.affine)[:3, 3], (0.03, 0.02, 0.01))
    assert after.meta.orientation == "SAR"
    with pytest.raises(MemoryRefused, match="6 × 7 voxels in 3 channels needs memory of"):
        export(volume, tmp_path / "b.mha", memory=999)


def test_names_of_many_channels_are_left_out(tmp_path):
    """Old readers know no lines of more than 500 characters."""
    names = tuple(f"channel {n:050}" for n in range(8))
    meta = Meta(("c", "z", "y", "x"), channels=names, kind="classes")
    path = export(stored(tmp_path / "a.zarr", random_zyx((8, 2, 3, 4)), meta), tmp_path / "a.mha")
    assert (open_source(path).meta.kind, open_source(path).meta.channels) == ("classes", ())


def test_packed_channels_cannot_be_written_side_by_side(tmp_path):
    colours = {"type": "uchar", "dimension": 4, "sizes": "2 3 4 2", "encoding": "gzip"}
    head = "".join(f"{name}: {value}\n" for name, value in colours.items())
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\n" + head.encode() + b"\n" + gzip.compress(bytes(48))
    )
    with pytest.raises(InvalidInput, match="its channels cannot be read side by side; convert it"):
        export(tmp_path / "a.nrrd", tmp_path / "a.mha")
    assert not (tmp_path / "a.mha").exists()
