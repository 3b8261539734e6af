"""How far results differ: counts against plain loops, differences against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from volflow.report.pictures.compare import (
    AGREED,
    ONLY_A,
    ONLY_B,
    UNLIKE,
    agreement,
    deviation,
    disagreement,
    signed,
    unlike,
)

PLANE = arrays.arrays(np.int16, (5, 6), elements=st.integers(-2, 4))


@given(st.lists(st.tuples(PLANE, PLANE), min_size=1, max_size=3))
def test_classes_are_counted(pairs):
    a, b = (np.concatenate([pair[n].ravel() for pair in pairs]) for n in (0, 1))
    found = agreement(pairs, {1: "one"})
    assert [one["class"] for one in found["classes"]] == sorted((set(a) | set(b)) - {0})
    for one in found["classes"]:
        mine, theirs = a == one["class"], b == one["class"]
        assert (one["a"], one["b"]) == (mine.sum(), theirs.sum())
        assert one["dice"] == pytest.approx(2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()))
        assert one["name"] == ("one" if one["class"] == 1 else None)
    assert (found["equal"], found["total"]) == ((a == b).sum(), a.size)
    kinds = np.concatenate([disagreement(*pair).ravel() for pair in pairs])
    for x, y, kind in zip(a, b, kinds, strict=True):
        want = (0 if x == 0 else AGREED) if x == y else UNLIKE
        assert kind == (ONLY_A if x != y == 0 else ONLY_B if y != x == 0 else want)


def test_signed_differences_do_not_wrap():
    a, b = np.array([3, 250], "u1"), np.array([5, 1], "u1")
    assert signed(a, b).tolist() == [-2, 249]
    assert np.isnan(signed(np.array([np.inf]), np.array([np.inf]))).all()


def test_deviation_is_of_what_can_be_compared():
    found, _ = deviation([np.array([[-0.5, 0.25]]), np.array([np.nan, np.inf])])
    assert found == {"mean_abs": 0.375, "max_abs": 0.5, "compared": 2}
    assert deviation([np.array([np.nan])])[0]["compared"] == 0


def test_colours_saturate_at_what_is_common():
    """A single outlier must not darken all other differences."""
    plane = np.full(100_000, 0.01)
    plane[0] = 1e6
    assert deviation([plane])[1] == pytest.approx(0.01)
    plane[:] = 0
    plane[0] = 7
    assert deviation([plane])[1] == 7


def test_how_much_two_planes_differ():
    a = np.array([[0, 1], [2, 2]], "u1")
    assert unlike(a, np.array([[1]], "u1")).tolist() == [[[1, 0], [1, 1]]]
    assert unlike(a, a.repeat(2, 0).repeat(2, 1)).sum() == 0
    assert unlike(a, np.array([[0.5, np.nan], [2, 4]])).tolist() == [[[0.5, 0], [0, 2]]]
