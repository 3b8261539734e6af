"""Two label maps on one grid: what is taken, turned, and refused in one line."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import volflow as vf
from volflow.engine.run_options import RunOptions
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.volumes.evaluate import label_pair as module
from volflow.volumes.evaluate.label_pair import open_pair, readable

ZEROS = np.zeros((4, 5, 6), "uint8")


def nifti(path, array, affine=None):
    """Write an array zyx as NIfTI."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array.T), affine), path)
    return path


def whole(pair, which):
    with readable(pair.sources, RunOptions(progress=False)) as sources:
        return pair.carried(sources).read(which, Roi.full(pair.shape))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float32", "float64"])
def test_whole_numbers_of_any_dtype(dtype):
    voxels = whole(open_pair(np.ones((2, 3, 4), dtype), ZEROS[:2, :3, :4]), 0)
    assert voxels.dtype.kind in "iu"
    assert (voxels == 1).all()


@pytest.mark.parametrize(
    ("value", "said"), [(0.5, "is 0.5"), (np.nan, "is nan"), (np.inf, "is inf"), (1e12, "is 1e+12")]
)
def test_other_numbers_are_refused_by_name_and_place(value, said):
    voxels = ZEROS.astype("float32")
    voxels[1, 2, 3] = value
    with pytest.raises(InvalidInput, match=r"^truth: voxel \(1, 2, 3\) ") as refused:
        whole(open_pair(ZEROS, voxels), 1)
    assert said in str(refused.value).replace("999999995904.0", "1e+12")
    assert "classes are whole numbers" in str(refused.value)


def test_several_channels_are_refused():
    with pytest.raises(InvalidInput, match=r'pred has 2 channels.*output="classes"'):
        open_pair(np.zeros((2, 4, 5, 6), "uint8"), ZEROS)
    assert open_pair(ZEROS[None], ZEROS).shape == (4, 5, 6)


def test_other_grids_are_refused(tmp_path):
    one, other = (
        vf.write(_lazy(ZEROS), tmp_path / name, unit="mm", spacing=(z, 1, 1), progress=False)
        for name, z in (("a.zarr", 2), ("b.zarr", 1))
    )
    with pytest.raises(InvalidInput, match=r"a\.zarr and b\.zarr lie on different grids") as told:
        open_pair(one, other)
    assert "pred has spacing 2×1×1 mm, truth 1×1×1 mm" in str(told.value)
    assert 'vf.resample(pred, "resampled.zarr", like=truth, order=0)' in str(told.value)


def _lazy(array):
    import dask.array as da

    return da.from_array(array, chunks=-1)


def test_another_orientation_is_turned(tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 3, (4, 5, 6)).astype("uint8")
    truth = nifti(tmp_path / "truth.nii", voxels)
    image = nib.load(truth)
    turned = image.as_reoriented(nib.orientations.axcodes2ornt("ASL"))
    nib.save(turned, tmp_path / "pred.nii")
    pair = open_pair(tmp_path / "pred.nii", truth)
    assert pair.shape == (4, 5, 6)
    np.testing.assert_array_equal(whole(pair, 0), voxels)


def test_a_box_elsewhere_is_refused(tmp_path):
    there = np.diag([1.0, 1.0, 2.0, 1.0])
    there[:3, 3] = 0, 0, 7
    truth = nifti(tmp_path / "truth.nii", ZEROS)
    pred = nifti(tmp_path / "pred.nii", ZEROS, there)
    with pytest.raises(InvalidInput, match=r"corners of one are up to 7 millimeter from"):
        open_pair(pred, truth)
    open_pair(ZEROS, truth)  # the voxels alone lie where the truth does


def test_one_place_in_two_units(tmp_path):
    there = np.diag([1.0, 1.0, 2.0, 1.0])
    there[:3, 3] = 5, -60, 7
    truth = nifti(tmp_path / "truth.nii", ZEROS, there)
    image = nib.Nifti1Image(ZEROS.T, np.diag([1e3, 1e3, 1e3, 1]) @ there)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "pred.nii")
    assert open_pair(tmp_path / "pred.nii", truth).shape == ZEROS.shape


@pytest.mark.parametrize(
    ("axis", "moved", "same"),
    [(0, 0.4, True), (0, 0.6, False), (1, 3, False), (2, 3, True), (2, 4, False)],
)
def test_half_a_voxel_along_its_axis_is_the_same_place(tmp_path, axis, moved, same):
    here, there = (np.diag([1.0, 1.0, 7.0, 1.0]) for _ in range(2))
    there[axis, 3] = moved  # 3 mm are three voxels of a slice, and less than half of its thickness
    turned = there @ np.array([[0, 0, -1, 5], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    truth = nifti(tmp_path / "truth.nii", ZEROS, here)
    preds = (
        nifti(tmp_path / "a.nii", ZEROS, there),
        nifti(tmp_path / "b.nii", ZEROS.transpose(2, 0, 1), turned),
    )
    for pred in preds:
        if same:
            assert open_pair(pred, truth).shape == ZEROS.shape
        else:
            with pytest.raises(InvalidInput, match=rf"up to {moved} millimeter from"):
                open_pair(pred, truth)


@pytest.mark.parametrize("held", [2**26, 0])
def test_a_packed_file_is_held_or_unpacked(tmp_path, monkeypatch, held):
    monkeypatch.setattr(module, "HELD_BYTES", held)
    voxels = np.arange(120, dtype="uint8").reshape(4, 5, 6)
    pair = open_pair(nifti(tmp_path / "p.nii.gz", voxels), nifti(tmp_path / "t.nii.gz", voxels))
    np.testing.assert_array_equal(whole(pair, 0), voxels)
    np.testing.assert_array_equal(whole(pair, 1), voxels)
