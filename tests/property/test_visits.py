"""The order of an epoch: exact numbers, each draw once, the same for all shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.sampling.epoch.visits import count_out, deal, plan_visits, weave
from volflow.sampling.epoch.window import schedule

masses = st.lists(st.floats(0, 100, width=16), min_size=1, max_size=40).filter(any)
seeds = st.integers(0, 2**32)


class TestQuotas:
    @given(masses, st.integers(1, 5000), st.floats(1, 300), seeds, st.booleans())
    def test_add_up_and_keep_to_their_shares(self, mass, total, per_visit, seed, split):
        mass = np.array(mass)
        rng = np.random.default_rng(seed)
        visits = plan_visits(mass, total, per_visit, rng, split=split)
        assert visits.quota.sum() == total
        assert (visits.quota > 0).all()
        assert (mass[visits.superchunk] > 0).all()
        got = np.bincount(visits.superchunk, visits.quota, len(mass))
        share = mass / mass.sum() * total
        large = share >= per_visit
        assert (np.abs(got - share)[large] < 1 + 1e-6).all()
        # Those too small for a visit give what one visit gives, or nothing; the rest is rounding.
        small = mass[~large].sum() / mass.sum() * total
        visits_there = max(1, round(small / per_visit))
        assert (got[~large] <= 2 * small / visits_there + 1).all()

    @given(st.lists(st.floats(0.01, 5), min_size=1), st.integers(0, 1000), st.floats(0, 0.999))
    def test_counting_out_is_off_by_less_than_one(self, shares, total, offset):
        shares = np.array(shares)
        counts = count_out(shares, total, offset)
        assert counts.sum() == total
        assert (np.abs(counts - shares / shares.sum() * total) < 1 + 1e-6).all()

    def test_expected_numbers_are_the_shares(self):
        """Also of superchunks that are too small to be visited in each epoch."""
        mass = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
        got = np.zeros(6)
        epochs = 4000
        for seed in range(epochs):
            visits = plan_visits(mass, 20, 5, np.random.default_rng(seed))
            got += np.bincount(visits.superchunk, visits.quota, 6)
        error = got / epochs - mass * 20
        assert np.abs(error).max() < 5 * 5 / np.sqrt(epochs)  # five standard deviations of 5

    def test_one_superchunk_is_visited_as_often_as_it_is_worth(self):
        visits = plan_visits(np.array([1.0]), 100, 30, np.random.default_rng(0))
        assert visits.superchunk.tolist() == [0, 0, 0]
        assert sorted(visits.quota.tolist()) == [33, 33, 34]
        once = plan_visits(np.array([1.0]), 100, 30, np.random.default_rng(0), split=False)
        assert once.quota.tolist() == [100]


class TestLanes:
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.sampled_from([1, 2, 5, 8, 32]))
    def test_hold_every_draw_once(self, quota, lanes):
        woven = weave(quota, lanes)
        seen = [np.zeros(n, int) for n in quota]
        for lane in woven:
            for visit, low, high in zip(lane.visit, lane.low, lane.high, strict=True):
                assert low < high
                seen[visit][low:high] += 1
        assert all((n == 1).all() for n in seen)
        lengths = [int((lane.high - lane.low).sum()) for lane in woven]
        assert lengths == np.diff(deal(sum(quota), lanes)).tolist()

    def test_come_to_their_next_superchunk_one_after_the_other(self):
        firsts = [int(lane.ends[0]) for lane in weave([100] * 80, 8)]
        assert sorted(firsts) == [12, 25, 38, 50, 62, 75, 88, 100]

    @given(
        st.lists(st.integers(1, 30), min_size=1, max_size=30),
        st.sampled_from([1, 2, 4, 8]),
        st.data(),
    )
    def test_a_schedule_is_the_rest_of_the_epoch(self, quota, lanes, data):
        """In the order of first need, whatever was given already."""
        woven, total = weave(quota, lanes), sum(quota)
        begin = data.draw(st.integers(0, total))
        line = schedule(woven, range(lanes), begin)
        assert (np.diff(line.first) >= 0).all()
        assert (line.first >= begin).all()
        left = 0
        for lane, low, high, begins, first in zip(
            line.lane, line.low, line.high, line.begins, line.first, strict=True
        ):
            position = first // lanes
            assert first % lanes == lane
            assert begins <= position < begins + high - low
            left += begins + high - low - position
        assert left == total - begin


@pytest.mark.parametrize("total", [0, 1, 7, 8, 1000])
def test_dealing_is_fair(total):
    lengths = np.diff(deal(total, 8))
    assert lengths.sum() == total
    assert lengths.tolist() == [len(range(lane, total, 8)) for lane in range(8)]
