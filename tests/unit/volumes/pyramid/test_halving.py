import numpy as np
import pytest

import volflow.volumes.pyramid.halving as halving
from volflow.errors import InvalidInput
from volflow.volumes.pyramid.halving import halved, halvings, mean, mode

INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]
FLOATS = ["f2", "f4", "f8"]


def reduce(kernel, voxels, factors=(2, 2, 2)):
    out = np.empty(halved(voxels.shape, factors), voxels.dtype)
    kernel(voxels, factors, out)
    return out


class TestMean:
    @pytest.mark.parametrize("dtype", INTEGERS)
    def test_of_the_largest_and_smallest_is_themselves(self, dtype):
        for value in (np.iinfo(dtype).min, np.iinfo(dtype).max):
            voxels = np.full((3, 4, 5), value, dtype)
            assert (reduce(mean, voxels) == value).all()

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_of_huge_floats_stays_finite(self, dtype):
        for value in (np.finfo(dtype).min, np.finfo(dtype).max):
            assert (reduce(mean, np.full((2, 3, 4), value, dtype)) == value).all()

    def test_half_goes_to_the_even_neighbour(self):
        pairs = np.array([[[0, 1, 1, 2, 2, 3, -1, 0, -2, -1]]], "i2")
        assert reduce(mean, pairs, (1, 1, 2)).tolist() == [[[0, 2, 2, 0, -2]]]

    def test_what_is_not_a_number_stays_so_without_a_warning(self):
        voxels = np.array([[[1, np.nan, np.inf, np.inf, np.inf, -np.inf, 2, 4]]], "f4")
        got = reduce(mean, voxels, (1, 1, 2))[0, 0]
        np.testing.assert_array_equal(got, [np.nan, np.inf, np.nan, 3])


@pytest.mark.parametrize("kernel", [mean, mode])
class TestAnyMemory:
    @pytest.mark.parametrize("rows_bytes", [1, 3000, 2**30])
    def test_rows_at_a_time_do_not_matter(self, kernel, monkeypatch, rows_bytes):
        voxels = np.random.default_rng(0).integers(0, 9, (9, 10, 11), "u2")
        usual = reduce(kernel, voxels)
        monkeypatch.setattr(halving, "ROWS_BYTES", rows_bytes)
        assert np.array_equal(reduce(kernel, voxels), usual)

    @pytest.mark.parametrize("dtype", ["u1", "?", "i8", "f4"])
    def test_views_are_read_and_filled_and_the_input_stays(self, kernel, dtype):
        base = np.random.default_rng(0).integers(0, 2, (6, 20, 24)).astype(dtype)
        view, before = base[:, 1:18, ::2], base.copy()
        around = np.ones((3, 20, 24), dtype)
        inside = around[:, 2:11, 3:15:2]
        kernel(view, (2, 2, 2), inside)
        assert np.array_equal(inside, reduce(kernel, view.copy()))
        assert np.array_equal(base, before)
        inside[...] = 1
        assert around.all()


class TestWhichAxes:
    @pytest.mark.parametrize(
        ("spacing", "steps"),
        [
            ((1, 1, 1), [(2, 2, 2)] * 3),
            ((5, 0.8, 0.8), [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]),
            ((1.2, 1, 1), [(2, 2, 2)] * 3),
            ((1.5, 1, 1), [(1, 2, 2), (2, 2, 2), (2, 2, 2)]),
            ((1, 4, 4), [(2, 1, 1), (2, 1, 1), (2, 2, 2), (2, 2, 2)]),
        ],
    )
    def test_those_whose_voxels_are_finest(self, spacing, steps):
        assert list(halvings((512, 512, 512), spacing, levels=len(steps))) == steps

    def test_until_no_side_exceeds_64(self):
        assert len(halvings((64, 64, 64), (1, 1, 1))) == 0
        assert len(halvings((65, 64, 64), (1, 1, 1))) == 1
        assert len(halvings((10, 10, 4096), (1, 1, 1))) == 6

    def test_an_axis_of_one_voxel_is_left_alone_and_does_not_count(self):
        assert halvings((1, 256, 256), (0.1, 1, 1)) == ((1, 2, 2), (1, 2, 2))
        assert halvings((2, 1, 1), (9, 1, 1), levels=1) == ((2, 1, 1),)

    def test_odd_sides_are_rounded_up(self):
        shape = (129, 65, 33)
        for factors in halvings(shape, (1, 1, 1), levels=8):
            shape = halved(shape, factors)
        assert shape == (1, 1, 1)

    @pytest.mark.parametrize("levels", [0, -1, 8, True, "2", 1.5])
    def test_too_many_or_nonsense_is_refused(self, levels):
        with pytest.raises(InvalidInput, match=r"levels must be a whole number from 1 to 7 for"):
            halvings((70, 80, 90), (1, 1, 1), levels)
