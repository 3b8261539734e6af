"""The order of an epoch: exact numbers, each draw once, the same for all shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.sampling.epoch.order import (
    deal,
    interleave,
    plan_visits,
    remaining,
    systematic_round,
)

probabilities = st.lists(st.floats(0, 100, width=16), min_size=1, max_size=40).filter(any)
seeds = st.integers(0, 2**32)


class TestQuotas:
    @given(probabilities, st.integers(1, 5000), st.floats(1, 300), seeds, st.booleans())
    def test_add_up_and_keep_to_their_shares(self, probability, total, per_visit, seed, split):
        probability = np.array(probability)
        rng = np.random.default_rng(seed)
        visits = plan_visits(probability, total, per_visit, rng, split=split)
        assert visits.quota.sum() == total
        assert (visits.quota > 0).all()
        assert (probability[visits.superchunk] > 0).all()
        got = np.bincount(visits.superchunk, visits.quota, len(probability))
        share = probability / probability.sum() * total
        large = share >= per_visit
        assert (np.abs(got - share)[large] < 1 + 1e-6).all()
        # Those too small for a visit give what one visit gives, or nothing; the rest is rounding.
        small = probability[~large].sum() / probability.sum() * total
        visits_there = max(1, round(small / per_visit))
        assert (got[~large] <= 2 * small / visits_there + 1).all()

    @given(st.lists(st.floats(0.01, 5), min_size=1), st.integers(0, 1000), st.floats(0, 0.999))
    def test_counting_out_is_off_by_less_than_one(self, shares, total, offset):
        shares = np.array(shares)
        counts = systematic_round(shares, total, offset)
        assert counts.sum() == total
        assert (np.abs(counts - shares / shares.sum() * total) < 1 + 1e-6).all()

    @pytest.mark.slow
    def test_expected_numbers_are_the_shares(self):
        """Also of superchunks that are too small to be visited in each epoch."""
        probability = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
        got = np.zeros(6)
        epochs = 4000
        for seed in range(epochs):
            visits = plan_visits(probability, 20, 5, np.random.default_rng(seed))
            got += np.bincount(visits.superchunk, visits.quota, 6)
        error = got / epochs - probability * 20
        assert np.abs(error).max() < 5 * 5 / np.sqrt(epochs)  # five standard deviations of 5

    def test_one_superchunk_is_visited_as_often_as_it_is_worth(self):
        visits = plan_visits(np.array([1.0]), 100, 30, np.random.default_rng(0))
        assert visits.superchunk.tolist() == [0, 0, 0]
        assert sorted(visits.quota.tolist()) == [33, 33, 34]
        once = plan_visits(np.array([1.0]), 100, 30, np.random.default_rng(0), split=False)
        assert once.quota.tolist() == [100]


def of(segments, lane):
    """Visit, low and high of a lane's segments."""
    return segments[segments[:, 0] == lane, 1:]


class TestLanes:
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.sampled_from([1, 2, 5, 8, 32]))
    def test_hold_every_draw_once(self, quota, lanes):
        segments = interleave(quota, lanes)
        seen = [np.zeros(n, int) for n in quota]
        lengths = np.zeros(lanes, int)
        for lane in range(lanes):
            for visit, low, high in of(segments, lane):
                assert low < high
                seen[visit][low:high] += 1
                lengths[lane] += high - low
        assert all((n == 1).all() for n in seen)
        assert lengths.tolist() == np.diff(deal(sum(quota), lanes)).tolist()

    def test_come_to_their_next_superchunk_one_after_the_other(self):
        segments = interleave([100] * 80, 8)
        firsts = [int(np.ptp(of(segments, lane)[0, 1:])) for lane in range(8)]
        assert sorted(firsts) == [12, 25, 38, 50, 62, 75, 88, 100]

    @given(
        st.lists(st.integers(1, 30), min_size=1, max_size=30),
        st.sampled_from([1, 2, 4, 8]),
        st.data(),
    )
    def test_what_remains_is_the_rest_of_the_epoch(self, quota, lanes, data):
        """Lane by lane the last patches, and all of them in the order of first need."""
        segments, total = interleave(quota, lanes), sum(quota)
        begin = data.draw(st.integers(0, total))
        rest = remaining(segments, lanes, range(lanes), begin)
        first, lengths = {}, np.diff(deal(total, lanes))
        for lane in range(lanes):
            whole = [(v, n) for v, low, high in of(segments, lane) for n in range(low, high)]
            left = [(v, n) for v, low, high in of(rest, lane) for n in range(low, high)]
            assert len(left) == len(range(begin + (lane - begin) % lanes, total, lanes))
            assert left == whole[len(whole) - len(left) :]
            first[lane] = lengths[lane] - len(left)
        needed = []
        for lane, _, low, high in rest.tolist():
            needed.append(first[lane] * lanes + lane)
            first[lane] += high - low
        assert needed == sorted(needed)
        some = remaining(segments, lanes, range(0, lanes, 2), begin)
        assert some.tolist() == rest[rest[:, 0] % 2 == 0].tolist()


@pytest.mark.parametrize("total", [0, 1, 7, 8, 1000])
def test_dealing_is_fair(total):
    lengths = np.diff(deal(total, 8))
    assert lengths.sum() == total
    assert lengths.tolist() == [len(range(lane, total, 8)) for lane in range(8)]
