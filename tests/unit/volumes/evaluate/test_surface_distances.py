"""Surfaces and their distances at borders, over corners of cells and far apart."""

from __future__ import annotations

import math

import numpy as np
import pytest

import volflow as vf
from tests.surface_oracle import surface, whole_scores
from volflow.errors import MemoryRefused
from volflow.volumes.evaluate.distance_counts import DistanceCounts
from volflow.volumes.evaluate.label_pair import open_pair
from volflow.volumes.evaluate.surface_distances import plan_surface_distances
from volflow.volumes.evaluate.surfaces import surface_mask
from volflow.volumes.evaluate.voxel_counts import VoxelCounts, plan_voxel_counts


def check(pred, truth, label=1, **options):
    scores = vf.evaluate(pred, truth, **options)
    for name, value in whole_scores(pred, truth, label).items():
        assert getattr(scores, name)[label] == pytest.approx(value, rel=1e-12), name
    return scores


def test_surfaces_are_those_of_an_erosion():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (9, 8, 7)).astype("uint8")
    labels[2:7, 1:6, 2:6] = 2
    found = surface_mask(labels, [(True, True)] * 3)
    for value in (0, 1, 2):
        np.testing.assert_array_equal(found & (labels == value), surface(labels == value))


@pytest.mark.parametrize("corner", [(60, 61, 62), (0, 61, 66), (66, 0, 64), (66, 66, 66)])
def test_objects_over_corners_of_cells_and_at_borders(corner):
    """Cells end at 64, the volume at 72."""
    pred, truth = np.zeros((2, 72, 72, 72), "uint8")
    truth[tuple(slice(c, c + 6) for c in corner)] = 1
    pred[tuple(slice(max(0, c - 2), c + 3) for c in corner)] = 1
    check(pred, truth)


@pytest.mark.slow
def test_objects_far_apart_are_found_in_far_cells():
    pred, truth = np.zeros((2, 60, 70, 400), "uint8")
    pred[5:9, 60:64, 3:8] = 1
    truth[50:58, 2:5, 390:396] = 1
    truth[30, 30, 200] = 1
    scores = check(pred, truth)
    assert scores.table[0]["worst_place"] == (57, 2, 395)
    assert check(pred, truth, max_distance=1000).hd95 == scores.hd95


def test_single_voxels():
    pred, truth = np.zeros((2, 7, 70, 3), "uint8")
    pred[0, 0, 0] = truth[6, 69, 2] = 1
    assert check(pred, truth).hd95[1] == math.sqrt(36 + 69**2 + 4)
    assert check(pred, pred).hd95[1] == 0.0


@pytest.mark.parametrize("percent", [0, 5, 50, 90, 95, 99.9, 100])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 400])
def test_percentiles_are_those_of_numpy(percent, count):
    values = np.sort(np.random.default_rng(count).integers(0, 9, count).astype("float64"))
    found = DistanceCounts.of(values).percentile(percent)
    assert found.value == pytest.approx(np.percentile(values, percent), rel=1e-15)


def test_percentiles_below_what_lies_beyond_the_bound_are_known():
    counts = DistanceCounts.of(np.arange(101.0), bound=96.0)
    assert counts.percentile(95).value == 95.0
    assert counts.percentile(96.5).above == 96.0
    assert counts.percentile(99).above == 96.0
    assert math.isnan(counts.percentile(99).value)


def test_cells_of_vast_volumes_are_larger():
    vast = open_pair(*[np.broadcast_to(np.uint8(0), (20_000,) * 3)] * 2)
    blocks = plan_voxel_counts(vast, None, 2**40).job.blocks
    assert (blocks.cell, blocks.block) == (256, (256, 256, 256))


def test_what_does_not_fit_is_refused():
    pair = open_pair(*np.zeros((2, 100, 100, 100), "uint8"))
    with pytest.raises(MemoryRefused, match=r"count classes needs .* give it at least"):
        plan_voxel_counts(pair, None, 2**20)
    counts = VoxelCounts(cells=({1: [0]}, {1: [3]}))
    with pytest.raises(MemoryRefused, match=r"measure surfaces needs .* give it at least"):
        plan_surface_distances(pair, counts, math.inf, 2**20)
    assert plan_surface_distances(pair, counts, math.inf, 2**30).blocks == 1
