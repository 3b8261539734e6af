"""Affines: letters and lengths are those that nibabel reads, and ITK's coordinates are turned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.geometry.affine import affine_between, from_lps, orientation_of, spacing_of

nib = pytest.importorskip("nibabel")
ANGLE = st.floats(-0.5, 0.5)  # less than a half of a right angle in all


def rotation(angles):
    turn = np.eye(3)
    for (a, b), angle in zip(((0, 1), (0, 2), (1, 2)), angles, strict=True):
        one = np.eye(3)
        one[[a, b], [a, b]], one[a, b], one[b, a] = np.cos(angle), -np.sin(angle), np.sin(angle)
        turn = turn @ one
    return turn


@given(
    st.permutations(range(3)),
    st.tuples(*[st.sampled_from((-1, 1))] * 3),
    st.tuples(*[st.floats(0.1, 20)] * 3),
    st.tuples(ANGLE, ANGLE, ANGLE),
)
def test_letters_and_lengths_of_oblique_grids_are_nibabels(order, signs, sizes, angles):
    affine = np.eye(4)
    affine[:3, :3] = rotation([angle / 3 for angle in angles]) @ np.eye(3)[list(order)]
    affine[:3, :3] *= np.multiply(signs, sizes)
    assert orientation_of(affine) == "".join(reversed(nib.aff2axcodes(affine)))
    np.testing.assert_allclose(spacing_of(affine), sizes[::-1])


@pytest.mark.parametrize("letters", ["SAR", "IPL", "RSA", "AIL"])
def test_a_grid_along_the_body_is_read_back(letters):
    affine = affine_between((3, 2, 1), letters, (30, 20, 10))
    assert orientation_of(affine) == letters
    assert spacing_of(affine) == (3, 2, 1)
    # The first voxel lies where its axes say.
    places = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    for letter, offset in zip(letters, (30, 20, 10), strict=True):
        assert affine[places[letter], 3] == (offset if letter in "RAS" else -offset)


def test_coordinates_of_itk_are_turned():
    steps = rotation((0.1, 0.2, 0.3)) * 2
    affine = from_lps(steps.T, (5, 6, 7))
    index = np.array([3, 4, 5])
    lps = np.array([5, 6, 7]) + steps @ index
    np.testing.assert_allclose((affine @ [*index, 1])[:3], lps * [-1, -1, 1])
