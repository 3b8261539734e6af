"""Patches follow the law of their sampler: chi-square, exact numbers, huge volumes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import zarr

import volflow as vf
from volflow.errors import RunFailed


def starts_in(stream):
    """Starts of an epoch, without their voxels."""
    return np.array([sample["location"][:3] for sample in stream.take(0, 0, stream.share)])


def check(counts, expected):
    """Chi-square at p > 0.001; systematic quotas make counts rather more even than chance."""
    keep = expected > 0
    assert not counts[~keep].any()
    result = scipy.stats.chisquare(counts[keep], expected[keep] * counts.sum() / expected.sum())
    assert result.pvalue > 0.001


class TestChiSquare:
    """Volumes of 16³ to 20³ voxels, alone and in 27 superchunks."""

    @pytest.fixture(params=[16**3, 10**6], ids=["superchunks", "whole"], autouse=True)
    def held(self, request, small_superchunks):
        small_superchunks(request.param)

    @pytest.fixture
    def array(self):
        def make(values):
            made = zarr.create_array({}, shape=values.shape, chunks=(8, 8, 8), dtype=values.dtype)
            made[...] = values
            return made

        return make

    @pytest.mark.slow
    @pytest.mark.parametrize(("border", "count"), [("inside", 13), ("pad", 20)])
    def test_of_uniform_starts(self, array, border, count):
        sampler = vf.UniformSampler((8, 8, 20), border=border)
        volume = array(np.zeros((20, 20, 20), "u1"))
        stream = vf.PatchStream(volume, sampler, 20000, lanes=4)
        starts = starts_in(stream)
        lowest = 0 if border == "inside" else -4
        places = np.ravel_multi_index((starts[:, :2] - lowest).T, (count, count))
        check(np.bincount(places, minlength=count**2), np.ones(count**2))

    @pytest.mark.slow
    def test_of_weights(self, array):
        rng = np.random.default_rng(0)
        weights = rng.random((16, 16, 16)).astype("f4") * (rng.random((16, 16, 16)) > 0.3)
        case = {"image": array(np.zeros((16, 16, 16), "u1")), "prob": array(weights)}
        starts = starts_in(vf.PatchStream(case, vf.WeightedSampler(5), 40000, lanes=4))
        reach = weights[2:14, 2:14, 2:14].astype(float)
        places = np.ravel_multi_index(starts.T, (12, 12, 12))
        check(np.bincount(places, minlength=12**3), reach.ravel())

    @pytest.mark.slow
    def test_of_classes(self, array):
        rng = np.random.default_rng(0)
        labels = rng.choice(4, (16, 16, 16), p=[0.9, 0.05, 0.04, 0.01]).astype("u1")
        case = {"image": array(labels), "label": array(labels)}
        sampler = vf.LabelSampler(4, probabilities={0: 2, 1: 1, 3: 1}, border="pad")
        centres = starts_in(vf.PatchStream(case, sampler, 40000, lanes=4)) + 2
        found = labels[tuple(centres.T)]
        np.testing.assert_allclose(np.bincount(found) / 40000, [0.5, 0.25, 0, 0.25], atol=0.005)
        for value in (0, 1, 3):
            places = np.ravel_multi_index(centres[found == value].T, labels.shape)
            check(np.bincount(places, minlength=16**3), (labels == value).ravel())


class TestQuotas:
    def test_of_tiny_volumes_are_exact(self, small_superchunks):
        """Each superchunk gives its share of an epoch, to less than one patch."""
        small_superchunks(1)
        volume = zarr.create_array({}, shape=(5, 6, 7), chunks=(2, 2, 2), dtype="u1")
        stream = vf.PatchStream(volume, vf.UniformSampler(2), 1000, reuse=1)
        (tiles,) = stream.catalog.tilings
        visits = stream.visits(0)
        counts = np.bincount(visits.superchunk, visits.quota, len(tiles))
        assert np.abs(counts - tiles.sizes()[0] / (4 * 5 * 6) * 1000).max() < 1

    def test_balance_a_class_of_one_voxel_in_a_million(self):
        labels = zarr.create_array({}, shape=(100, 100, 100), chunks=(50, 50, 50), dtype="u1")
        labels[61, 20, 33] = 1
        case = {"image": labels, "label": labels}
        sampler = vf.LabelSampler((3, 3, 3), probabilities={0: 1, 1: 1})
        stream = vf.PatchStream(case, sampler, 4000)
        rare = (starts_in(stream) + 1 == (61, 20, 33)).all(axis=1)
        assert abs(rare.mean() - 0.5) < 0.005


class TestHugeVolumes:
    """Lazily made: only what is written is stored."""

    def test_of_more_than_2_to_the_24_voxels(self):
        shape = (300, 300, 300)
        labels = zarr.create_array({}, shape=shape, chunks=(64, 64, 64), dtype="u1")
        labels[299, 299, 299], labels[0, 0, 0] = 1, 2
        case = {"image": labels, "label": labels}
        sampler = vf.LabelSampler(9, probabilities={1: 1, 2: 1}, border="pad")
        stream = vf.PatchStream(case, sampler, 100)
        found = {tuple(s["location"][:3].tolist()) for s in stream}
        assert found == {(295, 295, 295), (-4, -4, -4)}

    @pytest.mark.slow
    def test_of_sides_beyond_65535(self):
        shape = (70_000, 64, 64)
        weights = zarr.create_array({}, shape=shape, chunks=(1000, 64, 64), dtype="u1")
        weights[69_998, 63, 63] = 7
        case = {"image": weights, "prob": weights}
        stream = vf.PatchStream(case, vf.WeightedSampler((2, 1, 1)), 10)
        for sample in stream:
            assert sample["location"].tolist() == [69_997, 63, 63, 69_999, 64, 64]
            assert sample["prob"].flatten().tolist() == [0, 7]

    def test_uniform_starts_reach_all_of_a_long_axis(self):
        volume = zarr.create_array({}, shape=(1, 1, 3_000_000), chunks=(1, 1, 60_000), dtype="u1")
        starts = starts_in(vf.PatchStream(volume, vf.UniformSampler((1, 1, 64)), 3000, reuse=0.01))
        assert starts[:, 2].max() > 2_990_000
        assert scipy.stats.kstest(starts[:, 2] / 2_999_937, "uniform").pvalue > 0.001


def test_labels_that_changed_since_they_were_counted_are_noticed(small_superchunks):
    labels = zarr.create_array({}, shape=(20, 20, 20), chunks=(8, 8, 8), dtype="u1")
    labels[...] = 1
    stream = vf.PatchStream({"image": labels, "label": labels}, vf.LabelSampler(4), 100)
    labels[10] = 0
    with pytest.raises(RunFailed, match="had been counted: the labels changed; make the stream"):
        list(stream)
