from __future__ import annotations

import pickle

import numpy as np
import pytest

from volflow.geometry.roi import Roi


def test_counts_its_voxels():
    roi = Roi((1, 2, 3), (4, 4, 10))
    assert (roi.shape, roi.size, roi.ndim) == ((3, 2, 7), 42, 3)
    assert np.zeros((5, 5, 12))[roi.slices()].shape == roi.shape


def test_an_empty_axis_makes_an_empty_box():
    assert Roi((1, 2), (1, 9)).size == 0


@pytest.mark.parametrize(("start", "stop"), [((3,), (2,)), ((0, 0), (1,)), ((0, 5), (9, 4))])
def test_refuses_what_is_no_box(start, stop):
    with pytest.raises(ValueError, match="roi"):
        Roi(start, stop)


def test_holds_plain_integers_whatever_it_is_made_of():
    roi = Roi(np.array([1, 2]), (np.int64(3), 4.0))  # type: ignore[arg-type]
    assert roi == Roi((1, 2), (3, 4))
    assert {type(v) for v in (*roi.start, *roi.stop)} == {int}
    assert len({roi, Roi((1, 2), (3, 4))}) == 1


def test_moves_there_and_back():
    roi = Roi((1, 2, 3), (4, 5, 6))
    assert roi.shift((10, -2, 0)) == Roi((11, 0, 3), (14, 3, 6))
    assert roi.shift((7, 8, 9)).relative_to((7, 8, 9)) == roi
    assert roi.relative_to(roi.start) == Roi.full(roi.shape)


def test_grows_by_one_or_by_two_margins():
    roi = Roi((4, 4), (6, 6))
    assert roi.grow((1, 2)) == Roi((3, 2), (7, 8))
    assert roi.grow((1, 2), (0, 3)) == Roi((3, 2), (6, 9))


def test_reaches_outside_until_it_is_clipped():
    roi = Roi((0, 0), (4, 4)).grow((2, 2))
    assert roi.start == (-2, -2)
    assert roi.clip((5, 9)) == Roi((0, 0), (5, 6))


def test_boxes_apart_share_nothing():
    a, b = Roi((0, 0), (4, 4)), Roi((4, 0), (8, 4))
    assert a.intersect(b).size == 0
    assert Roi((0, 0), (2, 9)).intersect(Roi((5, 3), (6, 4))).size == 0


def test_is_made_of_a_shape():
    assert Roi.full((3, 4)) == Roi((0, 0), (3, 4))
    assert list(Roi((1, 2), (3, 4))) == [(1, 3), (2, 4)]


def test_pickles():
    roi = Roi((1, 2), (3, 4))
    assert pickle.loads(pickle.dumps(roi)) == roi
