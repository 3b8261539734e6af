"""Planes turned for the eye: the same anatomy from every stored orientation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from volflow.geometry.views import views

LETTERS = ("RL", "AP", "SI")
ORIENTATIONS = [
    "".join(letters)
    for pairs in itertools.permutations(LETTERS)
    for letters in itertools.product(*pairs)
]


def anatomy():
    """Stored right-anterior-superior: each voxel tells where it lies."""
    r, a, s = np.ogrid[:5, :6, :7]
    return 100 * r + 10 * a + s


def shown(array, view, index):
    return view.turn(array.take(index, axis=view.normal))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_48_orientations_show_the_same_anatomy(orientation):
    stored = anatomy()
    # Axis order and directions of this orientation, from RAS.
    stored = stored.transpose([next(i for i in range(3) if x in LETTERS[i]) for x in orientation])
    stored = stored[tuple(slice(None, None, 1 if x in "RAS" else -1) for x in orientation)]
    axial, coronal, sagittal = views(orientation)
    top = shown(stored, axial, 0)
    assert axial.edges == ("R", "L", "A", "P")
    assert top.shape == (6, 5)
    assert top[0, 0] - top[1, 0] == 10  # down is posterior
    assert top[0, 0] - top[0, 1] == 100  # to the right is the patient's left
    front = shown(stored, coronal, 3)
    assert front.shape == (7, 5)
    assert (front[0, 0] - front[1, 0], front[0, 0] - front[0, 1]) == (1, 100)
    side = shown(stored, sagittal, 2)
    assert side.shape == (7, 6)
    assert (side[0, 0] - side[1, 0], side[0, 0] - side[0, 1]) == (1, 10)


def test_without_orientation_planes_are_shown_as_stored():
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    xy, xz, yz = views(None)
    np.testing.assert_array_equal(shown(array, xy, 1), array[1])
    np.testing.assert_array_equal(shown(array, xz, 0), array[:, 0])
    np.testing.assert_array_equal(shown(array, yz, 2), array[:, :, 2])
    assert [view.axis for view in (xy, xz, yz)] == ["z", "y", "x"]


def test_a_single_slice_has_one_view_worth_showing():
    assert [view.is_area((1, 30, 40)) for view in views(None)] == [True, False, False]
