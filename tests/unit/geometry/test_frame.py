from __future__ import annotations

import itertools

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi

ALL = [
    "".join(letters)
    for order in itertools.permutations(["RL", "AP", "SI"])
    for letters in itertools.product(*order)
]


def anatomy(orientation: str, shape_RAS=(3, 4, 5)) -> np.ndarray:
    """Voxels stored with an orientation, each holding its number on the (R, A, S) grid."""
    values = np.arange(60).reshape(shape_RAS)
    axes = [next(n for n, pair in enumerate(("RL", "AP", "SI")) if c in pair) for c in orientation]
    copy = values.transpose(axes)
    return copy[tuple(slice(None, None, -1 if c in "LPI" else 1) for c in orientation)]


@pytest.mark.parametrize("stored", ALL)
def test_every_pair_of_orientations_shows_the_same_anatomy(stored):
    for wanted in ALL:
        frame = Frame.between(stored, wanted)
        shown = frame.show(anatomy(stored))
        assert np.array_equal(shown, anatomy(wanted)), wanted
        assert np.array_equal(frame.store(shown), anatomy(stored)), wanted


@pytest.mark.parametrize("stored", ALL)
def test_boxes_shapes_and_views_agree(stored):
    frame = Frame.between(stored, "RAS")
    array = anatomy(stored)
    shown = frame.show(array)
    assert frame.reorder(array.shape) == shown.shape
    assert frame.restore(shown.shape) == array.shape
    box = Roi((0, 1, 1), tuple(n - 1 if n > 2 else n for n in array.shape))
    there = frame.roi(box, array.shape)
    assert np.array_equal(frame.show(array[box.slices()]), shown[there.slices()])
    assert frame.stored_roi(there, array.shape) == box


@pytest.mark.parametrize("stored", ALL)
def test_the_inverse_undoes_it(stored):
    frame = Frame.between(stored, "RAS")
    assert frame.inverse.inverse == frame
    assert frame.inverse == Frame.between("RAS", stored)


def test_leading_axes_are_left_alone():
    channels = np.stack([anatomy("SAR"), 100 + anatomy("SAR")])
    shown = Frame.between("SAR", "LPI").show(channels)
    assert np.array_equal(shown[0], anatomy("LPI"))
    assert np.array_equal(shown[1], 100 + anatomy("LPI"))


def test_without_a_wish_the_stored_order_stays():
    assert Frame.between("LIP", None) == Frame()
    assert Frame.between(None, None) == Frame()
    array = np.arange(24).reshape(2, 3, 4)
    assert np.array_equal(Frame().show(array), array)


def test_small_letters_do():
    assert Frame.between("sar", "ras") == Frame.between("SAR", "RAS")


@pytest.mark.parametrize("letters", ["", "RA", "RAR", "RLS", "RAX", "RASS", "xyz"])
def test_wrong_letters_are_refused(letters):
    with pytest.raises(InvalidInput, match="frame must be three letters, one of each pair"):
        Frame.between("SAR", letters)
    with pytest.raises(InvalidInput, match="orientation must be three letters"):
        Frame.between(letters, "RAS")


def test_a_frame_needs_a_volume_with_orientation():
    with pytest.raises(InvalidInput, match="frame 'RAS' needs a volume with orientation"):
        Frame.between(None, "RAS")
