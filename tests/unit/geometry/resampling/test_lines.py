"""Values along one axis: as scipy has them at the same points, from any part of the line."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from volflow.geometry.resampling.lines import GridAxis, Taps, resampled

AXES = [
    GridAxis.spaced(40, 1.7),
    GridAxis.spaced(40, 0.6),
    GridAxis(40, 30, 1.0, 3.0),
    GridAxis(40, 30, 1.0, 3.5),
    GridAxis(40, 90, 0.71, -8.3),  # beyond both ends
    GridAxis(1, 5, 0.2, -0.4),
    GridAxis(2, 9, 0.3, -0.6),
    GridAxis(40, 1, 97.0, 48.0),
]


def line(n, seed=0):
    return np.random.default_rng(seed).normal(0, 10, (n, 3))


def at_points(voxels, x, order):
    """scipy along the first axis."""
    x = np.clip(x, 0, len(voxels) - 1)
    found = [ndimage.map_coordinates(v, [x], order=order, mode="mirror") for v in voxels.T]
    return np.stack(found, axis=1)


class TestEqualsScipy:
    @pytest.mark.parametrize("axis", AXES)
    @pytest.mark.parametrize("order", [1, 3])
    def test_in_float64(self, axis, order):
        voxels, taps = line(axis.source), Taps(axis, order, dtype="f8")
        low, high = taps.range(0, axis.target)
        found = resampled(voxels[low:high], 0, taps, 0, axis.target)
        want = at_points(voxels, axis.at(0, axis.target), order)
        np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-11)

    @pytest.mark.parametrize("axis", AXES)
    def test_in_float32(self, axis):
        voxels, taps = line(axis.source), Taps(axis, 3)
        low, high = taps.range(0, axis.target)
        found = resampled(voxels[low:high].astype("f4"), 0, taps, 0, axis.target)
        want = at_points(voxels, axis.at(0, axis.target), 3)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, want, atol=2e-5)

    @pytest.mark.parametrize("axis", AXES)
    def test_nearest(self, axis):
        voxels, taps = line(axis.source), Taps(axis, 0)
        low, high = taps.range(0, axis.target)
        found = resampled(voxels[low:high], 0, taps, 0, axis.target)
        x = np.clip(axis.at(0, axis.target), 0, axis.source - 1)
        want = voxels[np.minimum(np.floor(x + 0.5).astype(int), axis.source - 1)]
        assert np.array_equal(found, want)

    @pytest.mark.parametrize("step", [1.5, 3.0, 20.0])
    @pytest.mark.parametrize("order", [0, 1, 3])
    def test_antialias_is_a_gaussian_before(self, step, order):
        axis = GridAxis.spaced(40, step)
        voxels, taps = line(40), Taps(axis, order, antialias=True, dtype="f8")
        smooth = ndimage.gaussian_filter1d(
            voxels, (step - 1) / 2, axis=0, mode="mirror", truncate=4
        )
        low, high = taps.range(0, axis.target)
        found = resampled(voxels[low:high], 0, taps, 0, axis.target)
        if order == 0:
            x = np.floor(axis.at(0, axis.target) + 0.5).astype(int)
            want = smooth[np.clip(x, 0, 39)]
        else:
            want = at_points(smooth, axis.at(0, axis.target), order)
        np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-11)


class TestTaps:
    def test_a_shift_by_whole_voxels_leaves_them_as_they_are(self):
        taps = Taps(GridAxis(9, 5, 1.0, 2.0), 3)
        assert taps.is_plain
        voxels = np.arange(9, dtype="u1")[:, None]
        assert taps.range(0, 5) == (2, 7)
        assert resampled(voxels[2:7], 0, taps, 0, 5)[:, 0].tolist() == [2, 3, 4, 5, 6]

    def test_how_far_a_value_reaches(self):
        linear = Taps(GridAxis.spaced(100, 0.5), 1)
        assert linear.range(40, 60) == (19, 31)
        spline = Taps(GridAxis.spaced(100, 0.5), 3)
        assert spline.range(40, 60) == (18 - 13, 32 + 13)
        exact = Taps(GridAxis.spaced(100, 0.5), 3, dtype="f8")
        assert exact.range(80, 100) == (38 - 22, 52 + 22)

    def test_nothing_needs_nothing(self):
        assert Taps(GridAxis.spaced(9, 2), 1).range(3, 3) == (0, 0)

    def test_of_two_nearest_the_upper(self):
        taps = Taps(GridAxis(4, 3, 1.0, 0.5), 0)
        assert taps.weighted(0, 3)[0].tolist() == [[1, 2, 3]]
        # Also where rounding puts a point a little below the middle.
        below = Taps(GridAxis(4, 3, 1.0 + 1e-12, 0.5 - 1e-9), 0)
        assert below.weighted(0, 3)[0].tolist() == [[1, 2, 3]]

    def test_weights_add_up(self):
        for order in (0, 1, 3):
            _, weights = Taps(GridAxis.spaced(50, 0.37), order).weighted(0, 135)
            np.testing.assert_allclose(weights.sum(axis=0), 1)

    def test_voxels_longer_than_the_volume_smooth_no_more_than_all_of_it(self):
        taps = Taps(GridAxis.spaced(10, 1e9), 1, antialias=True)
        assert taps.reach == 18


class TestInside:
    def test_up_to_the_outer_edges(self):
        axis = GridAxis(4, 20, 0.5, -2.0)
        low, high = axis.inside(0, 20)
        assert axis.at(low, high)[[0, -1]].tolist() == [-0.5, 3.5]
        assert axis.inside(0, 2) == (0, 0)

    def test_a_rounding_is_not_outside(self):
        assert GridAxis(4, 5, 1.0, -0.5 - 1e-7).inside(0, 5) == (0, 5)


@pytest.mark.parametrize("axis", AXES)
def test_there_and_back_is_the_same_map(axis):
    back = axis.inverse
    where = back.at(0, back.target)
    np.testing.assert_allclose(axis.offset + where * axis.step, np.arange(axis.source), atol=1e-9)
    assert back.inverse.step == pytest.approx(axis.step)
    assert back.inverse.offset == pytest.approx(axis.offset)
