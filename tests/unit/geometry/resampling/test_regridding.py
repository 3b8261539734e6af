"""Grids and the voxels between them: parallel axes of any order, classes, what lies outside."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from tests.resample_oracle import coordinates, likeliest_whole, resampled_whole
from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.resampling.likeliest import likeliest
from volflow.geometry.resampling.lines import GridAxis, Taps
from volflow.geometry.resampling.regridding import GridMap, Regridding, computed_in, rounded
from volflow.geometry.roi import Roi


def turned(angle, sizes=(1, 1, 1)):
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return turn @ np.diag([*sizes, 1])


class TestBetween:
    def test_parallel_in_any_order_and_direction(self):
        source = np.diag([1.0, 2, 3, 1])
        target = np.array([[0, 0, -2, 30], [1, 0, 0, 4], [0, -1.5, 0, 50], [0, 0, 0, 1.0]])
        grid = GridMap.between(source, (20, 30, 40), target, (12, 11, 10))
        # z of the target runs against x of the source, y against z, x along y.
        assert grid.frame == Frame((2, 0, 1), (True, True, False))
        points = coordinates(source, target, (12, 11, 10))
        for axis, (stored, flip) in enumerate(zip(grid.frame.axes, grid.frame.flips, strict=True)):
            at = np.moveaxis(points[stored], axis, 0)[:, 0, 0]
            n = (20, 30, 40)[stored]
            found = grid.axes[axis].at(0, grid.shape[axis])
            np.testing.assert_allclose(n - 1 - found if flip else found, at, atol=1e-12)

    @pytest.mark.parametrize("angle", [0.01, 0.3, np.pi / 4])
    def test_oblique_grids_are_refused_with_the_angle(self, angle):
        shown = f"turned by {np.degrees(angle):.3g} degrees"
        for sizes in ((1, 1, 1), (0.2, 5, 1)):  # lengths, not voxels, make the angle
            with pytest.raises(InvalidInput, match=shown):
                GridMap.between(turned(0, sizes), (9, 9, 9), turned(angle, sizes), (9, 9, 9))

    def test_what_files_round_is_parallel_unless_it_adds_up(self):
        near = turned(2e-4)
        assert GridMap.between(np.eye(4), (99,) * 3, near, (99,) * 3).shape == (99,) * 3
        with pytest.raises(InvalidInput, match=r"turned by 0\.0115 degrees"):
            GridMap.between(np.eye(4), (999,) * 3, near, (999,) * 3)

    def test_grids_that_differ_by_rounding_are_one(self):
        affine = turned(0.4, (0.7, 0.7, 3))
        noisy = affine.astype("f4").astype(float)
        grid = GridMap.between(affine, (40, 300, 300), noisy, (40, 300, 300))
        assert all(axis.is_shift and axis.offset == 0 for axis in grid.axes)


class TestSpaced:
    def test_the_numbers_of_voxels(self):
        assert GridMap.spaced((10, 100, 7), (5, 1, 2), (2, 3, 100)).shape == (25, 33, 1)

    def test_absurdly_many_are_only_numbers(self):
        assert GridMap.spaced((10, 10, 10), (1, 1, 1), (1e-15, 1, 1)).shape[0] == 10**16

    def test_lower_edges_meet(self):
        for axis in GridMap.spaced((10, 100, 7), (5, 1, 2), (2, 3, 100)).axes:
            assert axis.offset - axis.step / 2 == -0.5


class TestLikeliest:
    @pytest.mark.parametrize("orders", [(1, 1, 1), (0, 1, 1), (1, 0, 0), (0, 0, 0)])
    def test_equals_argmax_of_one_hot(self, orders):
        labels = np.random.default_rng(0).integers(0, 4, (7, 8, 9)).astype("u1")
        axes = [
            GridAxis.spaced(n, step) for n, step in zip(labels.shape, (0.6, 1.3, 0.45), strict=True)
        ]
        taps = [Taps(axis, order) for axis, order in zip(axes, orders, strict=True)]
        shape = tuple(axis.target for axis in axes)
        points = np.stack(np.meshgrid(*(a.at(0, a.target) for a in axes), indexing="ij"))
        for n, order in enumerate(orders):
            if order == 0:
                points[n] = np.floor(np.clip(points[n], 0, labels.shape[n] - 1) + 0.5)
        found = likeliest(labels, taps, (0, 0, 0), shape)
        assert np.array_equal(found, likeliest_whole(labels, points))

    def test_the_smaller_of_two_also_mirrored(self):
        line = np.array([[[4, 2, 9, 9, 1]]])
        axis = GridAxis(5, 4, 1.0, 0.5)
        taps = [Taps(GridAxis(1, 1, 1.0, 0.0), 1)] * 2 + [Taps(axis, 1)]
        found = likeliest(line, taps, (0, 0, 0), (1, 1, 4))[0, 0]
        assert found.tolist() == [2, 2, 9, 1]
        mirrored = likeliest(line[..., ::-1], taps, (0, 0, 0), (1, 1, 4))[0, 0]
        assert mirrored.tolist() == found[::-1].tolist()

    @pytest.mark.parametrize("dtype", ["?", "u1", "i4", "i8", "u8"])
    def test_keeps_numbers_that_no_float_holds(self, dtype):
        most = True if dtype == "?" else np.iinfo(dtype).max
        labels = np.full((2, 2, 2), most, dtype)
        labels[0] = 0
        taps = [Taps(GridAxis.spaced(2, 0.25), 1)] * 3
        found = likeliest(labels, taps, (0, 0, 0), (8, 8, 8))
        assert found.dtype == labels.dtype
        assert set(np.unique(found)) == {0, most}


class TestMake:
    SOURCE = np.diag([1.0, 2, 3, 1])
    TARGET = np.array([[0, 0, -1.1, 24], [1.3, 0, 0, -4], [0, -1.5, 0, 30], [0, 0, 0, 1.0]])

    @pytest.mark.parametrize("order", [0, 1, 3])
    @pytest.mark.parametrize("fill", [None, 7])
    def test_turned_and_cut_off(self, order, fill):
        voxels = np.random.default_rng(0).normal(0, 9, (9, 14, 21))
        shape = (24, 26, 25)
        grid = GridMap.between(self.SOURCE, voxels.shape, self.TARGET, shape)
        how = Regridding(grid, (order,) * 3, voxels.dtype, fill=fill)
        full = Roi.full(shape)
        found = how.make(voxels[how.source(full).slices()], full)
        points = coordinates(self.SOURCE, self.TARGET, shape)
        want = resampled_whole(voxels, points, order, fill)
        np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-11)
        if fill is not None:
            assert 0.1 < (found == 7).mean() < 0.9

    def test_a_box_outside_needs_nothing(self):
        grid = GridMap.between(np.eye(4), (9, 9, 9), np.eye(4), (20, 9, 9))
        how = Regridding(grid, (1, 1, 1), np.dtype("u1"), fill=3)
        box = Roi((12, 0, 0), (20, 9, 9))
        assert how.source(box).size == how.span(0, 12, 20) == 0
        assert (how.make(np.empty((0, 0, 0), "u1"), box) == 3).all()
        assert (how.make(np.empty((2, 0, 0, 0), "u1"), box, "f4") == np.float32(3)).all()

    def test_classes_are_neither_smoothed_nor_splines(self):
        grid = GridMap.spaced((9, 9, 9), (1, 1, 1), (2, 2, 2))
        for more in ({"order": (3, 1, 1)}, {"order": (1, 1, 1), "antialias": True}):
            with pytest.raises(InvalidInput, match="classes are resampled with order 0"):
                Regridding(grid, dtype=np.dtype("u1"), classes=True, **more)

    @pytest.mark.parametrize(
        ("dtype", "order", "classes"),
        [(dtype, order, False) for dtype in ("u1", "i2", "f2", "f4", "i4", "u8", "f8")
         for order in (0, 1, 3)] + [(dtype, order, True) for dtype in "?BHq" for order in (0, 1)],
    )  # fmt: skip
    def test_memory_is_what_it_says(self, dtype, order, classes):
        grid = GridMap.between(self.SOURCE, (60, 70, 80), self.TARGET @ np.diag([0.3, 0.3, 0.3, 1]),
                               (80, 90, 100))  # fmt: skip
        how = Regridding(grid, (order,) * 3, np.dtype(dtype), classes=classes, fill=None)
        box = Roi((0, 0, 0), (64, 80, 80))
        # Noise: every voxel of classes lies between several.
        voxels = np.random.default_rng(0).integers(0, 2, how.source(box).shape).astype(dtype)
        tracemalloc.start()
        how.make(voxels, box)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak + voxels.nbytes <= how.bytes(box)


class TestRounded:
    def test_half_to_even_and_clipped(self):
        values = np.array([-300, -0.5, 0.5, 1.5, 2.5, 254.6, 1e9, np.nan, np.inf, -np.inf])
        assert rounded(values, np.dtype("u1")).tolist() == [0, 0, 0, 2, 2, 255, 255, 0, 255, 0]

    @pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8"])
    @pytest.mark.filterwarnings("ignore:overflow")  # of a float16 that is made here
    @pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
    def test_never_wraps(self, dtype, kind):
        info = np.iinfo(dtype)
        found = rounded(np.array([info.max, info.min, 2.0**70, -(2.0**70)], kind), np.dtype(dtype))
        assert found[0] >= info.max * 0.999
        assert found[1] == info.min
        assert found[2] == found[0]
        assert found[3] == info.min

    def test_floats_hold_what_they_compute(self):
        assert computed_in(np.dtype("i2")) == computed_in(np.dtype("f4")) == "f4"
        assert computed_in(np.dtype("i4")) == computed_in(np.dtype("f8")) == "f8"
