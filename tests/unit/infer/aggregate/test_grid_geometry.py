"""An aggregated case lies where its scan lies, also one whose arrays Dask computes."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from volflow.errors import InvalidInput

nibabel = pytest.importorskip("nibabel")

# Towards the left, turned by 30° about z, thick slices.
TURN = np.array([[-0.8660254, 0.5, 0.0], [0.5, 0.8660254, 0.0], [0.0, 0.0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN * (0.5, 0.5, 2.0)
AFFINE[:3, 3] = (31.0, -12.0, 7.5)


@pytest.fixture(params=["synthetic", "real"])
def scan(request, tmp_path):
    """A NIfTI file that is no plain RAS one, and the volume made of it."""
    if request.param == "real":
        folder = request.getfixturevalue("shared_data")("mni152")
        whole = nibabel.load(next(folder.glob("*_t1_*")))
        image = whole.slicer[20:40, 60:77, 30:44]
        flipped = image.as_reoriented(np.array([[0, -1], [2, 1], [1, -1]]))
        nibabel.save(flipped, tmp_path / "scan.nii")
    else:
        voxels = np.random.default_rng(0).integers(0, 99, (14, 12, 9)).astype("int16")
        nibabel.Nifti1Image(voxels, AFFINE).to_filename(tmp_path / "scan.nii")
    return vf.convert(tmp_path / "scan.nii", tmp_path / "scan.zarr", progress=False)


def aggregated(case, out, **options):
    """The images of a case, as a network that changes nothing gives them back."""
    stream = vf.PatchStream({"case": case}, vf.GridSampler(8), memory="1GiB")
    with vf.GridAggregator(out, stream, blend="crop", **options) as aggregator:
        for batch in stream.loader(batch_size=4):
            aggregator.add_batch(batch["image"], batch)
    return aggregator.close()["case"]


def halved(scan):
    return scan.dask().astype("f4") / 2


WAYS = {
    "like=": lambda scan: ({"image": halved(scan)}, {"like": scan}),
    "like= path": lambda scan: ({"image": halved(scan)}, {"like": scan.path}),
    "like= by case": lambda scan: ({"image": halved(scan)}, {"like": {"case": scan.path}}),
    "a stored array beside it": lambda scan: ({"image": halved(scan), "label": scan}, {}),
    "coordinates": lambda scan: ({"image": scan.xarray().astype("f4") / 2}, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_exported_file_lies_on_its_scan(scan, way, tmp_path):
    if way == "coordinates":
        pytest.importorskip("xarray")
    case, options = WAYS[way](scan)
    result = aggregated(case, tmp_path / "out.zarr", **options)
    found = nibabel.load(vf.export(result, tmp_path / "out.nii.gz"))
    expected = nibabel.load(tmp_path / "scan.nii")
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(found.get_fdata()[..., 0], expected.get_fdata() / 2, rtol=1e-6)
    assert (result.unit, result.orientation) == (scan.unit, scan.orientation)


class TestRefused:
    @pytest.fixture
    def scan(self, tmp_path):
        return vf.convert(np.ones((9, 12, 14), "i2"), tmp_path / "scan.zarr", progress=False)

    def test_a_file_of_what_lies_nowhere(self, scan, tmp_path):
        result = aggregated({"image": halved(scan)}, tmp_path / "out.zarr")
        with pytest.raises(InvalidInput, match=r"lie mirrored .* GridAggregator\(…, like="):
            vf.export(result, tmp_path / "out.nii.gz")
        assert not (tmp_path / "out.nii.gz").exists()
        assert np.load(vf.export(result, tmp_path / "out.npy")).mean() == 0.5

    @pytest.mark.parametrize(
        ("like", "message"),
        [
            (np.zeros((9, 12, 13)), r"like= has shape \(9, 12, 13\) but the array \(9, 12, 14\)"),
            ({"casw": np.zeros((9, 12, 14))}, "like= names casw, but the cases are case0, case1"),
            (
                np.zeros((9, 12, 14)),
                r"for each of 2 cases by its name, as in like=\{\"case0",
            ),
        ],
    )
    def test_a_like_of_another_case(self, scan, tmp_path, like, message):
        cases = [{"image": halved(scan)}] * (1 if "shape" in message else 2)
        stream = vf.PatchStream(cases, vf.GridSampler(8), memory="1GiB")
        with pytest.raises(InvalidInput, match=message):
            vf.GridAggregator(tmp_path / "{case}.zarr", stream, like=like)
