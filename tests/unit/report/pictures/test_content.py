"""Where there is most to see."""

from __future__ import annotations

import numpy as np

from volflow.report.pictures import slices
from volflow.report.pictures.slices import busiest, class_maps, scan
from volflow.store.formats.sources import ArraySource
from volflow.store.meta import Meta


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
