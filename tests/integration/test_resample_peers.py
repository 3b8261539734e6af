"""Real scans resampled as SimpleITK resamples them: anisotropic, flipped, onto turned grids."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from tests.resample_oracle import corners, world
from volflow.geometry.affine import orientation_of, spacing_of
from volflow.store.meta import Meta

pytestmark = pytest.mark.peers

SCANS = {
    "mni152": "mni152/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "nrrd": "nrrd_pyradiomics/brain1_image.nrrd",
    "dicom": "mr_dicom_vsseg",
}
ORDERS = {0: "sitkNearestNeighbor", 1: "sitkLinear", 3: "sitkBSpline3"}


@pytest.fixture(scope="module")
def itk():
    return pytest.importorskip("SimpleITK")


@pytest.fixture(scope="module", params=SCANS)
def pair(request, itk, shared_data, tmp_path_factory):
    """A scan as volflow has it, and as SimpleITK reads it."""
    folder, _, name = SCANS[request.param].partition("/")
    path = shared_data(folder) / name
    if request.param == "dicom":
        names = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path))
        image = itk.ReadImage(names)
    else:
        image = itk.ReadImage(str(path))
    out = tmp_path_factory.mktemp("scan") / "a.zarr"
    return vf.convert(path, out, progress=False), itk.Cast(image, itk.sitkFloat64)


def on_grid(itk, image, meta, shape, order, fill):
    """What SimpleITK makes of an image on a grid of ours."""
    affine = np.diag([-1, -1, 1, 1]) @ world(meta)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    ask = itk.ResampleImageFilter()
    ask.SetSize([int(n) for n in reversed(shape)])
    ask.SetOutputSpacing(sizes.tolist())
    ask.SetOutputOrigin(affine[:3, 3].tolist())
    ask.SetOutputDirection((affine[:3, :3] / sizes).ravel().tolist())
    ask.SetInterpolator(getattr(itk, ORDERS[order]))
    ask.SetDefaultPixelValue(fill)
    ask.SetOutputPixelType(itk.sitkFloat64)
    return itk.GetArrayFromImage(ask.Execute(image))


def compare(found, want, order):
    scale = np.ptp(want)
    apart = abs(found - want) / scale
    if order == 0:  # of two nearest either takes one
        assert (apart > 1e-6).mean() < 1e-3
    elif order == 1:
        assert apart.max() < 1e-4
    else:  # ITK ends its prefilter elsewhere
        inner = (slice(8, -8),) * 3
        assert apart[inner].max() < 1e-4


@pytest.mark.parametrize("order", ORDERS)
def test_to_another_voxel_size(pair, itk, tmp_path, order):
    volume, image = pair
    sizes = tuple(size * ratio for size, ratio in zip(volume.spacing, (0.7, 1.6, 1.3), strict=True))
    made = vf.resample(
        volume, tmp_path / "o.zarr", spacing=sizes, order=order, dtype="float32", progress=False
    )
    compare(made[:], on_grid(itk, image, made.meta, made.shape, order, 0), order)
    low = corners(volume.meta, volume.shape)[0]
    np.testing.assert_allclose(corners(made.meta, made.shape)[0], low, atol=1e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_onto_a_grid_of_other_axes(pair, itk, tmp_path, order):
    """Axes swapped and reversed, voxels of other sizes, reaching beyond the scan on one side."""
    volume, image = pair
    own = world(volume.meta)
    shape = tuple(int(0.6 * volume.shape[n]) for n in (1, 2, 0))
    # x of the target runs along z of the scan, y against its x, z along its y.
    ratios = np.array([1.3, 0.9, 1.1])
    target = np.eye(4)
    target[:3, :3] = own[:3, [2, 0, 1]] * ratios * [1, -1, 1]
    # No centre lies in the middle of two voxels, where either is nearest.
    begin = np.array([int(volume.shape[2] * 0.8) + 0.3337, -7.2163, 5.4139, 1])
    target[:3, 3] = (own @ begin)[:3]
    meta = Meta(
        spacing=spacing_of(target), unit="millimeter", orientation=orientation_of(target),
        affine=target,
    )  # fmt: skip
    like = vf.write(np.zeros(shape, "u1"), tmp_path / "like.zarr", meta=meta, progress=False)
    made = vf.resample(
        volume, tmp_path / "o.zarr", like=like, order=order, fill=-50, dtype="float32",
        progress=False,
    )  # fmt: skip
    want = on_grid(itk, image, meta, shape, order, -50)
    assert 0 < (want == -50).mean() < 0.5
    apart = (made[:] == -50) != (want == -50)
    assert not apart.any()
    if order == 3:  # near the border of the scan, too, each mirrors in its own way
        inside = np.abs(made[:] - want) / np.ptp(want)
        assert np.quantile(inside, 0.9) < 1e-4
    else:
        compare(made[:], want, order)
