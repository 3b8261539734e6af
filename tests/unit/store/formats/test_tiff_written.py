"""TIFF files that `export` writes: as Fiji and Bio-Formats read them, and as we read them back."""

import nibabel
import numpy as np
import pytest

from tests.unit.store.formats.test_sources import random_zyx
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.formats.sources import open_source
from volflow.store.formats.tiff import tiff_written
from volflow.store.meta import Meta, VolumeSpec
from volflow.volumes.convert import convert
from volflow.volumes.export import export

tifffile = pytest.importorskip("tifffile", reason="extra tiff")

SPACING = (0.3, 0.0915, 0.1)
NAMES = ("dapi", "gfp", "<b> & µ")


def stored(folder, voxels, **more):
    axes = ("c", "z", "y", "x")[-voxels.ndim :]
    meta = Meta(axes, **{"spacing": SPACING, "unit": "micrometer", **more})
    volume = create(folder / "a.zarr", VolumeSpec.of(voxels.shape, voxels.dtype, meta, chunk=4))
    volume.write(Roi.full(voxels.shape), voxels)
    return volume


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.TIFF"])
@pytest.mark.parametrize(
    ("dtype", "written", "imagej"),
    [
        ("uint8", "uint8", True),
        ("int16", "int16", True),
        ("float32", "float32", True),
        ("bool", "uint8", True),
        ("float16", "float32", True),
        ("int32", "int32", False),
        ("float64", "float64", False),
    ],
)
def test_voxels_and_grid_come_back(tmp_path, name, dtype, written, imagej):
    voxels = random_zyx(dtype=dtype)
    path = export(stored(tmp_path, voxels), tmp_path / name)
    with tifffile.TiffFile(path) as file:
        assert file.is_imagej == (imagej and "ome" not in name)
        assert file.is_ome != file.is_imagej
        assert file.series[0].axes == "ZYX"
        np.testing.assert_array_equal(file.asarray(), voxels)
    source = open_source(path)
    assert (source.dtype, source.meta.unit) == (written, "micrometer")
    assert source.meta.spacing == pytest.approx(SPACING, rel=1e-7)


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
@pytest.mark.parametrize("memory", ["1GiB", 1400])  # all channels of a plane, or one at a time
def test_channels_come_back(tmp_path, name, memory):
    voxels = random_zyx((3, 11, 6, 7), "uint16")
    volume = stored(tmp_path, voxels, channels=NAMES)
    path = export(volume, tmp_path / name, memory=memory)
    source = open_source(path)
    np.testing.assert_array_equal(source[:], voxels)
    assert source.meta.channels == NAMES
    np.testing.assert_array_equal(convert(path, tmp_path / "b.zarr", progress=False)[:], voxels)


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_classes_come_back(tmp_path, name):
    voxels = random_zyx(dtype="uint8")
    path = export(stored(tmp_path, voxels, kind="classes"), tmp_path / name)
    source = open_source(path)
    assert source.meta.kind == "classes"
    np.testing.assert_array_equal(source[:], voxels)


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_classes_are_packed_page_by_page(tmp_path, name):
    voxels = np.zeros((2, 11, 60, 70), "uint16")
    voxels[1, 3:5] = 7
    path = export(stored(tmp_path, voxels, kind="classes"), tmp_path / name)
    assert path.stat().st_size < voxels.nbytes / 5
    with tifffile.TiffFile(path) as file:
        assert (len(file.pages), file.pages[0].compression) == (22, 8)
        np.testing.assert_array_equal(file.asarray().swapaxes(0, file.is_imagej), voxels)
    np.testing.assert_array_equal(open_source(path)[:], voxels)


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "a.h5"])
def test_a_packed_file_goes_into_another(tmp_path, name):
    voxels = random_zyx((3, 11, 6, 7))
    image = nibabel.Nifti1Image(voxels.transpose(), np.diag([0.5, 0.5, 2, 1]))
    nibabel.save(image, tmp_path / "a.nii.gz")
    source = open_source(export(tmp_path / "a.nii.gz", tmp_path / name))
    np.testing.assert_array_equal(source[:], voxels)
    assert (source.meta.spacing, source.meta.unit) == ((2, 0.5, 0.5), "millimeter")


def test_what_fiji_reads(tmp_path):
    """ImageJ's own description: sizes are the inverse of the resolution, in the unit."""
    voxels = random_zyx((2, 11, 6, 7), "uint8")
    path = export(stored(tmp_path, voxels, channels=NAMES[:2]), tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        said = file.imagej_metadata
        tags = file.pages[0].tags
        assert file.series[0].axes == "ZCYX"
    assert (said["unit"], said["spacing"], said["mode"]) == ("um", 0.3, "composite")
    assert (said["images"], said["slices"], said["channels"]) == (22, 11, 2)
    dots = [tags[name].value for name in ("XResolution", "YResolution")]
    assert [b / a for a, b in dots] == pytest.approx([0.1, 0.0915])
    assert tags["ResolutionUnit"].value == 1


def test_what_bio_formats_reads(tmp_path):
    volume = stored(tmp_path, random_zyx(dtype="int32"), unit="angstrom")
    with tifffile.TiffFile(export(volume, tmp_path / "a.ome.tif")) as file:
        xml = file.ome_metadata
    assert 'PhysicalSizeZ="0.3" PhysicalSizeZUnit="Å"' in xml
    assert 'Type="int32"' in xml


@pytest.mark.parametrize(
    ("unit", "spacing"), [(None, (3, 2, 1)), ("millimeter", (3, 2, 1)), ("inch", (3, 2, 1))]
)
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_other_units(tmp_path, unit, spacing, name):
    path = export(stored(tmp_path, random_zyx(), unit=unit, spacing=spacing), tmp_path / name)
    meta = open_source(path).meta
    inch = unit == "inch" and name == "a.ome.tif"
    assert meta.unit == ("micrometer" if inch else unit)
    assert meta.spacing == pytest.approx([size * (25400 if inch else 1) for size in spacing])


def test_a_large_file_is_a_big_one(tmp_path, monkeypatch):
    volume = stored(tmp_path, random_zyx())
    monkeypatch.setattr(tiff_written, "CLASSIC_BYTES", volume.dtype.itemsize * 11 * 6 * 7)
    with tifffile.TiffFile(export(volume, tmp_path / "a.tif")) as file:
        assert file.is_bigtiff
        assert file.is_ome


@pytest.mark.parametrize("shape", [(1, 6, 7), (11, 6, 1), (11, 1, 7), (1, 1, 1), (2, 11, 6, 3)])
@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif"])
def test_shapes_come_back(tmp_path, shape, name):
    voxels = random_zyx(shape, "uint8")
    source = open_source(export(stored(tmp_path, voxels), tmp_path / name))
    np.testing.assert_array_equal(source[:], voxels)


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    volume = stored(tmp_path, random_zyx())
    for name in ("a.tif", "a.ome.tif"):
        first = export(volume, tmp_path / name).read_bytes()
        assert export(volume, tmp_path / name, overwrite=True).read_bytes() == first


def test_integers_of_64_bits_are_refused(tmp_path):
    volume = stored(tmp_path, random_zyx(dtype="int64"))
    with pytest.raises(InvalidInput, match=r"holds int64, which TIFF files .*; convert it with"):
        export(volume, tmp_path / "a.tif")
    assert not (tmp_path / "a.tif").exists()
