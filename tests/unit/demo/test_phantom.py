"""The synthetic CT: the same voxels in any cut, of the named spacing, with honest noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.demo.phantom import LOWEST, NOISE, Ellipsoid, Rod, paint
from volflow.demo.scan import write_scan
from volflow.demo.torso import SHAPE, spacing_of, torso
from volflow.geometry.roi import Roi
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.volume import open_volume

COARSE = (40, 48, 52)


@pytest.fixture(scope="module")
def whole():
    return paint(torso(), Roi.full(COARSE), spacing_of(COARSE))


def boxes():
    def ordered(n):
        sides = st.integers(0, n)
        return st.tuples(sides, sides).map(sorted)

    return st.tuples(*map(ordered, COARSE)).map(lambda s: Roi(*zip(*s, strict=True)))


@pytest.mark.slow
@given(roi=boxes())
def test_any_box_is_cut_from_the_same_volume(whole, roi):
    part = paint(torso(), roi, spacing_of(COARSE))
    np.testing.assert_array_equal(part, whole[roi.slices()])


def test_a_box_at_full_size_is_cut_from_the_same_volume():
    outer, inner = Roi((600, 200, 100), (604, 330, 400)), Roi((601, 233, 151), (603, 300, 399))
    apart = paint(torso(), inner, spacing_of(SHAPE))
    together = paint(torso(), outer, spacing_of(SHAPE))
    np.testing.assert_array_equal(apart, together[inner.relative_to(outer.start).slices()])


def test_values_are_whole_hu_of_all_tissues(whole):
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, np.rint(whole))
    assert whole.min() == LOWEST
    for hu in (-1000, -850, -100, 50, 600):
        assert (abs(whole - hu) < 2 * NOISE).mean() > 0.001, hu


@pytest.mark.slow
def test_the_seed_decides_noise_and_vessels(whole):
    other = paint(torso(1), Roi.full(COARSE), spacing_of(COARSE), seed=1)
    assert (other != whole).mean() > 0.8
    assert torso(1) != torso(0)
    assert torso(1)[:3] == torso(0)[:3]


def test_noise_is_normal_and_of_each_voxel_alone():
    water = Ellipsoid((50.0, 50.0, 50.0), (1000.0, 1000.0, 1000.0), 0.0)
    noise = paint([water], Roi.full((64, 64, 64)), (1, 1, 1)).astype(float)
    assert abs(noise.mean()) < 0.2
    assert noise.std() == pytest.approx(NOISE, rel=0.01)
    assert (abs(noise) > 2 * NOISE).mean() == pytest.approx(0.0455, rel=0.15)
    for axis in range(3):
        shifted = np.corrcoef(noise.ravel(), np.roll(noise, 1, axis).ravel())[0, 1]
        assert abs(shifted) < 0.01


def test_shapes_have_their_size():
    """Volumes of an ellipsoid and of a rod with round ends, in voxels of different sides."""
    spacing = (0.5, 0.4, 0.6)
    shapes = [
        Ellipsoid((12.0, 12.0, 12.0), (6.0, 9.0, 4.0), 500.0),
        Rod((32.0, 8.0, 8.0), (32.0, 30.0, 8.0), (4.0, 4.0), 500.0),
    ]
    bone = paint(shapes, Roi.full((90, 90, 40)), spacing) > -250
    voxel = np.prod(spacing)
    ball = 4 / 3 * np.pi
    assert bone[:44].sum() * voxel == pytest.approx(ball * 6 * 9 * 4, rel=0.02)
    assert bone[44:].sum() * voxel == pytest.approx(np.pi * 16 * 22 + ball * 64, rel=0.02)


def test_the_torso_fits_its_field_of_view():
    assert spacing_of(SHAPE) == (0.3, 0.66, 0.66)
    y, x = (paint(torso(), roi, spacing_of(SHAPE)) for roi in faces())
    assert (y < -900).all()
    assert (x < -900).all()


def faces():
    depth, height, width = SHAPE
    return Roi((0, 0, 0), (depth, 1, width)), Roi((0, 0, width - 1), (depth, height, width))


class TestWritten:
    @pytest.mark.slow
    def test_volume_is_the_whole_with_its_spacing(self, tmp_path, whole):
        volume = write_scan(tmp_path / "ct.zarr", COARSE)
        np.testing.assert_array_equal(volume[:], whole)
        assert volume.spacing == spacing_of(COARSE)
        assert (volume.unit, volume.meta.orientation) == ("millimeter", "SPL")

    @pytest.mark.slow
    def test_begun_before_it_goes_on(self, tmp_path, whole):
        path = tmp_path / "ct.zarr"
        write_scan(path, COARSE)
        journal = Journal(journal_dir(path))
        record = journal.directory / "done"
        before = {p.name: p.stat().st_mtime_ns for p in record.glob("*.json")}
        assert len(before) == 2
        journal.forget([1])
        write_scan(path, COARSE)
        after = {p.name: p.stat().st_mtime_ns for p in record.glob("*.json")}
        assert {name for name in after if after[name] != before[name]} == {"00000001.json"}
        np.testing.assert_array_equal(open_volume(path)[:], whole)
