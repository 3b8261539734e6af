"""Slices: where there is most to see, which voxels, and where the picture lies in its box."""

from __future__ import annotations

import numpy as np
import pytest

from volflow.geometry.views import views
from volflow.report.pictures import slices
from volflow.report.pictures.slices import (
    Cut,
    Slice,
    busiest,
    class_maps,
    cut,
    on_one_grid,
    scan,
)
from volflow.store.formats.sources import ArraySource
from volflow.store.meta import Meta


def held(array, **meta):
    return ArraySource(array, Meta(**meta))


def sliced(view, index, spacing=1.0):
    return Slice(view, index, (index + 0.5) * spacing)


def test_a_slice_and_its_place_in_the_box():
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    volume = held(array, spacing=(2, 1, 1))
    xy, xz, _ = views(None)
    first, second = cut(volume, [sliced(xy, 3, 2.0), sliced(xz, 1)], (8, 5, 6), pixels=99)
    np.testing.assert_array_equal(first.values, array[3])
    assert first.extent == (0, 6, 5, 0)
    np.testing.assert_array_equal(second.values, array[:, 1])
    assert second.extent == (0, 6, 8, 0)


def test_a_coarse_level_reaches_over_the_box_instead_of_being_squeezed():
    """7 voxels of 1 mm are 4 of 2 mm: the last pixel lies half outside, on either side."""
    coarse = held(np.arange(4 * 4 * 4).reshape(4, 4, 4), spacing=(2, 2, 2))
    (plain,) = cut(coarse, [sliced(views(None)[0], 6)], (7, 7, 7), pixels=99)
    assert plain.extent == (0, 8, 8, 0)
    np.testing.assert_array_equal(plain.values, coarse.array[3])
    axial = views("SAR")[0]  # down is posterior, right is left: both run against the index
    (turned,) = cut(coarse, [sliced(axial, 6)], (7, 7, 7), pixels=99)
    assert turned.extent == (-1, 7, 7, -1)
    np.testing.assert_array_equal(turned.values, coarse.array[3, ::-1, ::-1])


def test_the_plane_of_a_level_is_the_one_in_which_the_voxel_lies():
    fine, coarse = np.zeros((197, 2, 2)), np.zeros((50, 2, 2))
    coarse[...] = np.arange(50)[:, None, None]
    volume = held(coarse, spacing=(4, 1, 1))
    xy = views(None)[0]
    for index in range(len(fine)):
        (got,) = cut(volume, [sliced(xy, index)], (197, 2, 2), pixels=99)
        assert got.values[0, 0] == index // 4


def test_a_level_that_begins_elsewhere_is_shifted():
    level = held(np.arange(3.0)[:, None, None] * np.ones((3, 3, 3)), spacing=(2, 2, 2))
    xy, xz, _ = views(None)
    got = cut(level, [sliced(xy, 2), sliced(xz, 0)], (6, 6, 6), pixels=99, shift=(-1, -1, -1))
    assert got[0].values[0, 0] == 1  # at 2.5, in a voxel from 1 to 3
    assert got[1].extent == (-1, 5, 5, -1)


def test_thinned_pixels_keep_their_size():
    array = np.arange(3 * 70 * 40).reshape(3, 70, 40)
    (got,) = cut(held(array), [sliced(views(None)[0], 1)], (3, 70, 40), pixels=16)
    np.testing.assert_array_equal(got.values, array[1, 2::5][:, [*range(1, 40, 3), 39]])
    assert got.extent == (0, 42, 70, 0)  # the last pixel holds one voxel of three


def test_two_grids_are_compared_on_the_finer():
    fine = Cut(np.arange(12).reshape(3, 4), (0, 4, 3, 0))
    coarse = Cut(np.array([[1, 2], [3, 4]]), (0, 4, 4, 0))
    for mine, theirs in ((fine, coarse), (coarse, fine)):
        a, b, extent = on_one_grid(mine, theirs)
        assert extent == fine.extent
        sampled = b if mine is fine else a
        np.testing.assert_array_equal(sampled, [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]])
        np.testing.assert_array_equal(a if mine is fine else b, fine.values)


@pytest.mark.parametrize("extent", [(-1, 3, 4, 0), (0, 4, 3, -1)])
def test_sampling_follows_the_extent(extent):
    coarse = Cut(np.array([[1, 2], [3, 4]]), extent)
    fine = Cut(np.zeros((4, 4)), (0, 4, 4, 0))
    _, got, _ = on_one_grid(fine, coarse)
    rows = [0, 0, 1, 1] if extent[3] == 0 else [0, 1, 1, 1]
    columns = [0, 1, 1, 1] if extent[0] == -1 else [0, 0, 1, 1]
    np.testing.assert_array_equal(got, coarse.values[np.ix_(rows, columns)])


class Chunked(ArraySource):
    """An array stored in chunks, that counts what is read of it."""

    chunks = (16, 16, 16)
    read_voxels = 0

    def read(self, roi):
        Chunked.read_voxels += roi.size
        return super().read(roi)


def found(array):
    return busiest([class_maps(plane) for plane in scan(ArraySource(array, Meta()), 0)])


def test_the_content_is_found():
    labels = np.zeros((40, 50, 60), "u1")
    labels[28:31, 8:12, 40:50] = 1
    labels[29, 20:24, 41:44] = 2
    z, y, x = found(labels)
    assert 28 <= z * 40 < 31
    assert 8 <= y * 50 < 24
    assert 40 <= x * 60 < 50


def test_nothing_is_found_in_the_middle():
    assert found(np.zeros((4, 5, 6))) == (0.5, 0.5, 0.5)
    assert busiest([]) == (0.5, 0.5, 0.5)


def test_a_bounded_number_of_voxels_is_decoded(monkeypatch):
    volume = Chunked(np.ones((64, 64, 64), "u1"), Meta())
    monkeypatch.setattr(slices, "SCAN_VOXELS", 3 * 16 * 64 * 64)
    assert len(scan(volume, 0)) == 3
    monkeypatch.setattr(slices, "SCAN_VOXELS", 64 * 64)
    Chunked.read_voxels = 0
    assert scan(volume, 0) == []
    assert Chunked.read_voxels == 0


def test_long_planes_are_searched_in_small():
    (plane, *_) = scan(ArraySource(np.ones((2, 3000, 40), "u1"), Meta()), 0)
    assert max(plane.shape) <= slices.SCAN_PIXELS


def test_many_labels_share_a_few_maps():
    maps = class_maps(np.arange(10_000).reshape(100, 100))
    assert len(maps) == slices.FOLD
    assert maps.sum() == 9_999


def test_scores_weigh_by_their_value():
    np.testing.assert_array_equal(class_maps(np.array([[np.nan, -1, 2]], "f4")), [[[0, 0, 2]]])
