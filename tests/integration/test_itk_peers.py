"""What ITK, and with it 3D Slicer, reads where volflow reads and writes NRRD and MetaImage."""

import numpy as np
import pytest

from tests.unit.store.formats.test_sources import read_in_slabs
from tests.unit.volumes.test_export import stored
from volflow.geometry.roi import Roi
from volflow.store.formats.sources import open_source
from volflow.store.meta import Meta
from volflow.volumes.export import export

pytestmark = pytest.mark.peers

OBLIQUE = np.array([[-0.7, 0.4, 0, 90], [0.4, 0.7, 0, -126], [0, 0, 2.5, 72], [0, 0, 0, 1]])


@pytest.fixture
def itk():
    return pytest.importorskip("SimpleITK")


def affine_of(image):
    """The affine of an image in right, anterior, superior."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ affine


def image_of(itk, *, colours):
    shape = (5, 6, 7, 3) if colours else (5, 6, 7)
    voxels = np.random.default_rng(0).integers(0, 99, shape).astype("int16")
    image = itk.GetImageFromArray(voxels, isVector=colours)
    image.SetSpacing((0.78, 0.5, 6.5))
    image.SetOrigin((90.5, -126, 72.25))
    image.SetDirection((0.6, 0.8, 0, 0.8, -0.6, 0, 0, 0, -1))
    return image, np.moveaxis(voxels, -1, 0) if colours else voxels


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("colours", [False, True])
def test_what_itk_writes_is_read(tmp_path, itk, name, packed, colours):
    image, voxels = image_of(itk, colours=colours)
    itk.WriteImage(image, str(tmp_path / name), useCompression=packed)
    np.testing.assert_array_equal(read_in_slabs(tmp_path / name), voxels)
    meta = open_source(tmp_path / name).meta
    np.testing.assert_allclose(meta.affine, affine_of(image), atol=1e-6)
    np.testing.assert_allclose(meta.spacing, (6.5, 0.5, 0.78))


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64", "bool"])
def test_itk_reads_what_is_written(tmp_path, itk, name, count, dtype):
    voxels = np.random.default_rng(0).integers(0, 2, (count, 5, 6, 7)).astype(dtype)
    voxels = voxels if count > 1 else voxels[0]
    axes = ("c", "z", "y", "x")[-voxels.ndim :]
    meta = Meta(axes, (2500, 806, 806), "micrometer", affine=OBLIQUE * 1000, kind="classes")
    path = export(stored(tmp_path / "a.zarr", voxels, meta), tmp_path / name)
    image = itk.ReadImage(str(path))
    found = itk.GetArrayFromImage(image)
    np.testing.assert_array_equal(np.moveaxis(found, -1, 0) if count > 1 else found, voxels)
    np.testing.assert_allclose(affine_of(image), OBLIQUE, atol=1e-6)


@pytest.mark.parametrize("name", ["brain1_image.nrrd", "brain1_label.nrrd"])
def test_real_files_lie_where_itk_says(itk, name, shared_data):
    path = shared_data("nrrd_pyradiomics") / name
    image = itk.ReadImage(str(path))
    np.testing.assert_array_equal(read_in_slabs(path), itk.GetArrayFromImage(image))
    np.testing.assert_allclose(open_source(path).meta.affine, affine_of(image), atol=1e-6)


@pytest.mark.parametrize("space", ["RAS", "LAS", "LPS", "left-posterior-superior"])
def test_spaces_mean_what_they_mean_to_itk(tmp_path, itk, space):
    vectors = "space directions: (0,2,0) (-3,0,0) (0,0,4)\nspace origin: (1,2,3)"
    head = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\nspace: {space}\n"
    (tmp_path / "a.nrrd").write_bytes(f"{head}{vectors}\n\n".encode() + bytes(range(8)))
    image = itk.ReadImage(str(tmp_path / "a.nrrd"))
    source = open_source(tmp_path / "a.nrrd")
    np.testing.assert_allclose(source.meta.affine, affine_of(image), atol=1e-6)
    box = Roi.full(source.shape)
    np.testing.assert_array_equal(source.read(box), itk.GetArrayFromImage(image))
