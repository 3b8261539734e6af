"""Colours of classes."""

from __future__ import annotations

from volflow.store.colors import PALETTE, class_color


def test_35_classes_have_colours_of_their_own():
    assert len({class_color(value) for value in range(1, 36)}) == 35


def test_colours_of_the_metadata_come_first():
    colors = ["000000", "FF0000"]
    assert class_color(1, colors) == "#FF0000"
    assert class_color(2, colors) == PALETTE[1]
    assert class_color(3, ["", "", "", ""]) == PALETTE[2]


def test_any_whole_number_has_a_colour():
    for value in (-5, -1, 0, 10**18):
        assert len(class_color(value)) == 7
    assert class_color(-1, ["000000", "FF0000"]) != "#FF0000"
