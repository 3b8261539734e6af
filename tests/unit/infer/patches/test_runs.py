"""Runs: what they hold, how they are cut, and when the last of many workers ends."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid
from volflow.infer.patches.runs import last_end, runs_of, shares_of

frames = st.builds(
    Frame,
    st.sampled_from([(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
counts = st.tuples(*[st.integers(1, 5)] * 3)
blocks_done = st.frozensets(st.integers(0, 124))


def with_seams(run):
    """A run computes the patches of two seams beside its own."""
    return 3 * len(run) + 2


@given(counts, frames, blocks_done, st.integers(1, 9))
def test_they_hold_each_block_that_is_left_once(counts, frame, done, workers):
    grid = BlockGrid(counts, (1, 1, 1))
    runs = runs_of(grid, frame, done, workers, with_seams)
    flat = [block for run in runs for block in run]
    assert sorted(flat) == [n for n in range(len(grid)) if n not in done]


@given(counts, frames, blocks_done, st.integers(1, 9))
def test_they_go_along_the_first_axis_of_the_frame(counts, frame, done, workers):
    grid = BlockGrid(counts, (1, 1, 1))
    for run in runs_of(grid, frame, done, workers, with_seams):
        boxes = [frame.roi(grid[n], counts) for n in run]
        for a, b in itertools.pairwise(boxes):
            assert b.start[0] == a.stop[0]
            assert b.start[1:] == a.start[1:]


@given(counts, frames, blocks_done, st.integers(2, 9))
def test_the_largest_come_first(counts, frame, done, workers):
    sizes = [
        len(r) for r in runs_of(BlockGrid(counts, (1, 1, 1)), frame, done, workers, with_seams)
    ]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 16])
def test_no_worker_has_more_than_its_share(workers):
    runs = runs_of(BlockGrid((16, 1, 1), (1, 1, 1)), Frame(), frozenset(), workers, len)
    assert len(runs) <= workers
    assert max(map(len, runs)) == -(-16 // workers)


def test_they_are_not_cut_without_need():
    grid = BlockGrid((4, 2, 2), (1, 1, 1))
    assert {len(run) for run in runs_of(grid, Frame(), frozenset(), 4, len)} == {4}


def test_they_are_cut_where_workers_would_wait():
    """Three columns of eight for two workers: one has two columns, or each has one and a half."""
    grid = BlockGrid((8, 3, 1), (1, 1, 1))
    runs = runs_of(grid, Frame(), frozenset(), 2, with_seams)
    assert [len(run) for run in runs] == [4] * 6


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(1, 5))
def test_the_last_ends_as_in_a_race_for_what_is_left(sizes, workers):
    """In steps of one patch: whoever is free takes the largest."""
    left, busy, clock = sorted(sizes), [], 0
    while left or busy:
        while left and len(busy) < workers:
            busy.append(clock + left.pop())
        clock = min(busy)
        busy = [end for end in busy if end > clock]
    assert last_end(sizes, workers) == clock


@given(st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 7))
def test_no_other_length_with_few_runs_ends_sooner(depth, columns, workers):
    def sizes(length):
        parts = [min(length, depth - at) for at in range(0, depth, length)]
        return [(part + 1) * column for part in parts for column in columns]

    found = shares_of(depth, len(columns), workers, sizes)
    assert found.last == last_end(sizes(found.length), workers)
    assert found.total == sum(sizes(found.length))
    if workers == 1:
        assert found.length == depth
        return
    for pieces in range(1, 4 * workers // len(columns) + 1):
        other = sizes(-(-depth // pieces))
        assert (found.last, found.total) <= (last_end(other, workers), sum(other))
