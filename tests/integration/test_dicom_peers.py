"""DICOM as SimpleITK reads it: the real series, and the segmentation that is written of it."""

from dataclasses import replace

import numpy as np
import pytest

import volflow as vf
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.formats.sources import open_source
from volflow.store.meta import VolumeSpec

pytestmark = pytest.mark.peers


def affine_of(image):
    """The affine of an image of ITK, from voxel (x, y, z) to right, anterior, superior."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


@pytest.fixture(scope="module")
def itk():
    return pytest.importorskip("SimpleITK")


@pytest.fixture(scope="module")
def series(itk, shared_data):
    folder = shared_data("mr_dicom_vsseg")
    reader = itk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return folder, reader.Execute()


def test_the_series_has_the_same_voxels_in_the_same_place(itk, series):
    folder, image = series
    source = open_source(folder)
    np.testing.assert_array_equal(source[:], itk.GetArrayViewFromImage(image))
    np.testing.assert_allclose(source.meta.affine, affine_of(image), atol=1e-6)
    assert source.meta.spacing == image.GetSpacing()[::-1]


def test_a_segmentation_has_the_same_masks_in_the_same_place(itk, series, tmp_path):
    folder, image = series
    scan = open_source(folder)
    bright = (scan[:] > 300).astype("u1")
    meta = replace(scan.meta, kind="classes", channels=("background", "bright"))
    volume = create(tmp_path / "seg.zarr", VolumeSpec.of(bright.shape, bright.dtype, meta))
    volume.write(Roi.full(bright.shape), bright)
    vf.export(volume, tmp_path / "seg.dcm")
    found = itk.ReadImage(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(itk.GetArrayViewFromImage(found) > 0, bright)
    assert found.GetOrigin() == pytest.approx(image.GetOrigin())
    assert found.GetDirection() == pytest.approx(image.GetDirection())
