"""Layers: the colours of voxels."""

from __future__ import annotations

import numpy as np
import pytest

from volflow.report.colors import class_color
from volflow.report.pictures.layers import DIVERGING, HEAT, Layer, grey_window, heat_window, painted
from volflow.report.pictures.slices import Cut


def cut(values, dtype=None):
    values = np.atleast_2d(np.asarray(values, dtype))
    return Cut(values, (0, values.shape[1], values.shape[0], 0))


def rgb(text):
    return tuple(bytes.fromhex(text[1:]))


def test_one_grey_window_holds_for_all_planes():
    cuts = [cut([0, 10]), cut([10, 20])]
    window = grey_window(cuts, (0, 100))
    assert window == (0, 20)
    layer = Layer.grey(cuts, window)
    assert [picture.values[..., 0].tolist() for picture in layer.pictures] == [
        [[0, 127]],
        [[127, 255]],
    ]
    dim = Layer.grey(cuts, window, "difference").pictures[1].values
    assert dim.tolist() == [[[63, 63, 63, 255], [127, 127, 127, 255]]]


def test_outliers_do_not_set_the_window():
    low, high = grey_window([cut([*range(1000), 10**6])], (1, 99))
    assert (low, high) == pytest.approx((10, 990))


@pytest.mark.parametrize("odd", [[np.nan] * 4, [np.inf, -np.inf, 1, 1], [3, 3, 3, 3]])
def test_planes_without_contrast_have_a_window(odd):
    low, high = grey_window([cut(odd, "f4")], (1, 99))
    assert high > low
    assert Layer.grey([cut(odd, "f4")], (low, high)).pictures[0].values.dtype == np.uint8
    low, high = heat_window([cut(odd, "f4")])
    assert high > low


def test_heat_grows_brighter_and_less_transparent():
    layer = Layer.heat([cut(np.linspace(0, 1, 50))], "lesion", (0, 1))
    pixels = layer.pictures[0].values[0].astype(int)
    brightness = pixels[:, :3] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(brightness) > 0).all()
    assert (np.diff(pixels[:, 3]) >= 0).all()
    assert pixels[0, 3] == 0
    assert (layer.key.name, layer.key.low, layer.key.high) == ("lesion", 0, 1)
    assert tuple(pixels[-1, :3]) == rgb(HEAT[-1])


def test_classes_keep_their_colour_whatever_else_is_shown():
    both = Layer.classes([cut([0, 1, 2]), cut([2, 2, 0])], {1: "liver"}, over_scan=True)
    alone = Layer.classes([cut([0, 2, 2])], {}, over_scan=True)
    first, second = (picture.values[0].tolist() for picture in both.pictures)
    assert first == [[0, 0, 0, 0], [*rgb(class_color(1)), 92], [*rgb(class_color(2)), 92]]
    assert second[0] == second[1] == first[2] == alone.pictures[0].values[0, 1].tolist()
    assert both.key == (("liver", class_color(1)), ("class 2", class_color(2)))
    assert not both.smooth
    np.testing.assert_array_equal(both.labels[0], [[0, 1, 2]])


def test_classes_take_the_colours_of_the_metadata():
    layer = Layer.classes([cut([1, 2])], {}, ("000000", "123456"))
    assert layer.pictures[0].values[0].tolist() == [
        [*rgb("#123456"), 191],
        [*rgb(class_color(2)), 191],
    ]


@pytest.mark.parametrize(
    "values",
    [[-3, 0, 7], [2**62, 1, 0], [0.0, 1.0, 2.0], [np.nan, np.inf, 1], [False, True, True]],
)
def test_any_numbers_can_be_classes(values):
    pixels = Layer.classes([cut(values)], {}).pictures[0].values
    shown = np.nan_to_num(np.asarray(values, "f8"), posinf=0).astype(np.int64)
    assert (pixels[0, :, 3] > 0).tolist() == (shown != 0).tolist()
    for value, pixel in zip(shown, pixels[0], strict=True):
        assert value == 0 or tuple(pixel[:3]) == rgb(class_color(int(value)))


def test_of_many_classes_those_of_which_most_is_shown_are_named():
    values = np.repeat(np.arange(1, 121), np.where(np.arange(1, 121) % 4 == 0, 5, 1))
    layer = Layer.classes([cut(values), cut(np.full(9, 7))], {8: "liver"})
    names = [name for name, _ in layer.key]
    # Of 120 classes 30 fill more than a voxel, and 7 does in another plane.
    assert names[:3] == ["class 1", "class 4", "class 7"]
    assert "liver" in names
    assert {f"class {n}" for n in range(12, 121, 4)} <= set(names)
    assert (names[-1], len(names)) == ("and 88 more", 33)
    assert not layer.labels
    assert len(np.unique(layer.pictures[0].values[0, :, :3], axis=0)) == 120


def test_nothing_but_background():
    layer = Layer.classes([cut([0, 0])], {0: "background"})
    assert not layer.pictures[0].values.any()
    assert layer.key == ()


def test_differences_are_blue_below_and_orange_above():
    layer = Layer.differences([cut([-2, -1, 0, 1, 2, np.nan])], "A − B", 2)
    pixels = layer.pictures[0].values[0].astype(int)
    assert tuple(pixels[0, :3]) == rgb(DIVERGING[0])
    assert tuple(pixels[4, :3]) == rgb(DIVERGING[-1])
    assert pixels[1, 2] > pixels[1, 0]  # blue
    assert pixels[3, 0] > pixels[3, 2]  # orange
    assert pixels[2, 3] == pixels[5, 3] == 0
    assert (layer.key.low, layer.key.high) == (-2, 2)
    assert not Layer.differences([cut([0.0, 0])], "", 0).pictures[0].values[..., 3].any()


def test_beyond_the_ends_colours_saturate():
    pixels = painted(np.array([[-1.0, 2.0]]), ("#102030", "#405060"), 0.5)
    assert pixels.tolist() == [[[16, 32, 48, 127], [64, 80, 96, 127]]]
