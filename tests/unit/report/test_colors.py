"""Colours of classes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from volflow.report.colors import PALETTE, _oklab, class_color


def test_256_classes_have_colours_of_their_own():
    colors = [class_color(value) for value in range(1, 257)]
    assert len(set(colors)) == 256
    assert colors[: len(PALETTE)] == list(PALETTE)
    assert class_color(257) == colors[0]
    # The same on every machine and in every version.
    digest = hashlib.sha256("".join(colors).encode()).hexdigest()
    assert digest.startswith("a7dd0c9e48d6")


@pytest.mark.parametrize(("count", "apart"), [(35, 0.09), (104, 0.06), (256, 0.04)])
def test_colours_can_be_with_distinct_names(count, apart):
    """By their distance in Oklab, where 0.02 is just noticed side by side."""
    rgb = [list(bytes.fromhex(class_color(value)[1:])) for value in range(1, count + 1)]
    lab = _oklab(np.array(rgb))
    distance = np.linalg.norm(lab[:, None] - lab, axis=-1) + np.eye(count)
    assert distance.min() > apart


def test_colours_of_the_metadata_come_first():
    colors = ["000000", "FF0000"]
    assert class_color(1, colors) == "#FF0000"
    assert class_color(2, colors) == PALETTE[1]
    assert class_color(3, ["", "", "", ""]) == PALETTE[2]


def test_any_whole_number_has_a_colour():
    for value in (-5, -1, 0, 10**18):
        assert len(class_color(value)) == 7
    assert class_color(-1, ["000000", "FF0000"]) != "#FF0000"
