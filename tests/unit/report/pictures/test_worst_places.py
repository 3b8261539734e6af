"""Pictures of worst places: which planes, what they say, and what lies outside of a volume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import volflow as vf
from volflow.engine.run_options import RunOptions
from volflow.report.pictures.worst_places import WorstPlace, open_scan, worst_places
from volflow.store.meta import Meta
from volflow.volumes.evaluate.label_pair import open_pair

OPTIONS = RunOptions(progress=False)


@pytest.fixture
def pair(stored):
    truth = np.zeros((10, 30, 40), "uint8")
    truth[3:7, 10:20, 10:30] = 1
    pred = truth.copy()
    pred[5, 2, 36] = 1
    meta = Meta(spacing=(3, 1, 1), unit="millimeter", orientation="SAR", kind="classes")
    return [stored(x, meta, f"{name}.zarr") for name, x in (("pred", pred), ("truth", truth))]


def test_planes_through_the_worst_voxel(pair):
    scores = vf.evaluate(*pair, progress=False)
    (row,) = scores.worst()
    figure = worst_places([WorstPlace(row, open_pair(*pair))], OPTIONS, "worst")
    (place,) = figure.facts["places"]
    assert place["place"] == [5, 2, 36]
    assert place["distance"] == "10.6"  # to (5, 10, 29)
    words = [text.get_text() for text in figure.texts]
    for word in ("class 1", "Dice 0.999", "10.6 mm apart", "axial   z = 5", "sagittal   x = 36"):
        assert word in words
    assert "planes of 40 mm through each place" in words


@pytest.mark.parametrize("orientation", ["SAR", "SPL", "IAL"])
def test_fine_lines_cross_in_the_middle_of_the_worst_voxel(pair, stored, orientation):
    """Also where a side is no whole number of thick slices, and is seen from its far end."""
    volumes = [vf.open(path) for path in pair]
    pair = [
        stored(volume[:], replace(volume.meta, orientation=orientation), f"{n}.zarr")
        for n, volume in enumerate(volumes)
    ]
    (row,) = vf.evaluate(*pair, progress=False).worst()
    figure = worst_places([WorstPlace(row, open_pair(*pair))], OPTIONS)
    for axes in figure.axes:
        if axes.get_label() in ("axial", "coronal", "sagittal"):
            (x, _), (_, y) = (line.get_xydata()[0] for line in axes.lines)
            left, right, bottom, top = axes.images[0].get_extent()
            values = np.asarray(axes.images[0].get_array())
            across = (x - left) / (right - left) * values.shape[1]
            along = (y - top) / (bottom - top) * values.shape[0]
            assert (across % 1, along % 1) == pytest.approx((0.5, 0.5))
            assert values[int(along), int(across)].any()


def test_more_than_three_places_stand_in_two_columns(pair):
    row = vf.evaluate(*pair, progress=False).worst()[0]
    over = np.random.default_rng(0).normal(size=(10, 30, 40)).astype("float32")
    both = open_pair(*pair)
    scan = open_scan(over, both)
    places = [WorstPlace(row, both, one) for one in (scan, None, scan, scan)]
    figure = worst_places(places, OPTIONS)
    planes = [axes for axes in figure.axes if axes.get_label() in ("axial", "coronal", "sagittal")]
    assert len(planes) == 12
    assert len({round(axes.get_position().x0, 3) for axes in planes}) == 6
