"""Cores tile the starts; a superchunk reads the chunks that its patches cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.geometry.roi import Roi
from volflow.sampling.epoch import superchunks
from volflow.sampling.epoch.superchunks import (
    HELD_VOXELS,
    GridGroups,
    Superchunks,
    centres_of,
    starts_of,
)
from volflow.sampling.samplers import GridSampler

sizes = st.tuples(*[st.integers(1, 12)] * 3)


@st.composite
def tilings(draw):
    shape, chunk = draw(st.tuples(*[st.integers(1, 40)] * 3)), draw(sizes)
    border = draw(st.sampled_from(["inside", "pad"]))
    patch = tuple(draw(st.integers(1, n + 5)) for n in shape)
    anchor = draw(st.sampled_from(["start", "centre"]))
    return Superchunks(shape, patch, chunk, border, anchor)


def chunks_of(box, chunk, shape):
    """The voxels of all chunks that a box touches, counted one by one along each axis."""
    touched = []
    for (low, high), c, n in zip(box.clip(shape), chunk, shape, strict=True):
        begins = [begin for begin in range(0, n, c) if begin < high and begin + c > low]
        touched.append(sum(min(c, n - begin) for begin in begins))
    return math.prod(touched)


class TestCores:
    @given(tilings(), st.sampled_from([1, 1000, 10**5]))
    def test_own_each_start_once(self, tiles, held):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(superchunks, "HELD_VOXELS", held)
            seen = np.zeros(tiles.reach.shape, int)
            for number in range(len(tiles)):
                box = tiles.starts(number)
                assert box.size
                seen[box.relative_to(tiles.reach.start).slices()] += 1
                reads = tiles.reads(number)
                assert all(a <= b for a, b in zip(reads.shape, tiles.held, strict=True))
            assert (seen == 1).all()

    @given(tilings())
    def test_sizes_are_those_of_the_boxes(self, tiles):
        owned, decoded = tiles.sizes()
        for number in range(len(tiles)):
            assert owned[number] == tiles.starts(number).size
            assert decoded[number] == chunks_of(tiles.reads(number), tiles.chunk, tiles.shape)

    @given(sizes, sizes, sizes, st.integers(1, 5000))
    def test_groups_of_a_grid_hold_each_patch_once(self, shape, patch, chunk, held):
        grid = GridSampler(patch, overlap=0.5).grid(shape)
        groups = GridGroups(shape, patch, chunk, grid.starts)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(superchunks, "HELD_VOXELS", held)
            sizes, decoded = groups.sizes()
            seen = []
            for number in range(len(groups)):
                starts = groups.patches(number)
                seen += map(tuple, starts.tolist())
                hull = Roi(tuple(starts.min(axis=0)), tuple(starts.max(axis=0) + patch))
                assert groups.reads(number) == hull
                assert len(starts) == sizes[number]
                assert decoded[number] == chunks_of(hull, chunk, shape)
                assert all(a <= b for a, b in zip(hull.shape, groups.held, strict=True))
        assert sorted(seen) == [box.start for box in grid]

    @given(tilings())
    def test_centred_cores_tile_whole_cells(self, tiles):
        if tiles.anchor != "centre":
            return
        for number in range(len(tiles)):
            centres = centres_of(tiles.starts(number), tiles.patch)
            for axis, (low, high) in enumerate(centres):
                reach = centres_of(tiles.reach, tiles.patch)
                assert low % tiles.core[axis] == 0 or low == reach.start[axis]
                assert high % tiles.core[axis] == 0 or high == reach.stop[axis]

    @given(tilings())
    def test_inner_picks_the_boxes_of_superchunks(self, tiles):
        if tiles.anchor != "centre":
            return
        counts = tuple(-(-n // c) for n, c in zip(tiles.shape, tiles.core, strict=True))
        numbers = tiles.inner(np.arange(math.prod(counts)))
        assert len(numbers) == len(tiles)
        for number, box in enumerate(numbers):
            index = np.unravel_index(box, counts)
            centre = centres_of(tiles.starts(number), tiles.patch).start
            assert tuple(c // k for c, k in zip(centre, tiles.core, strict=True)) == index

    def test_grow_where_the_halo_costs_most_until_they_are_full(self):
        tiles = Superchunks((5000,) * 3, (64,) * 3, (64,) * 3)
        assert tiles.chunks_per_core == (4, 4, 4)
        flat = Superchunks((5000,) * 3, (64,) * 3, (16, 128, 128))
        assert flat.core == (256, 256, 256)
        for chunk in (8, 32, 100, 128):
            tiles = Superchunks((5000,) * 3, (64,) * 3, (chunk,) * 3)
            assert HELD_VOXELS / 3 < math.prod(tiles.held) <= HELD_VOXELS

    def test_a_chunk_larger_than_that_is_a_core_alone(self):
        assert Superchunks((5000,) * 3, (64,) * 3, (512,) * 3).chunks_per_core == (1, 1, 1)

    def test_do_not_outgrow_the_volume(self):
        assert Superchunks((50, 60, 70), (8, 8, 8), (16, 16, 16)).counts == (1, 1, 1)

    def test_count_in_64_bits(self):
        tiles = Superchunks((10**6,) * 3, (64,) * 3, (64,) * 3)
        owned, _ = tiles.sizes() if len(tiles) < 10**6 else (None, None)
        assert owned is None
        last = tiles.starts(len(tiles) - 1)
        assert last.stop == (10**6 - 63,) * 3


class TestStarts:
    @given(tilings())
    def test_inside_a_patch_lacks_no_more_than_it_must(self, tiles):
        if tiles.border == "pad":
            return
        box = tiles.reach
        drawn = np.stack(np.meshgrid(*(np.arange(*side) for side in box), indexing="ij"), -1)
        starts = tiles.settle(drawn.reshape(-1, 3))
        for axis, (n, p) in enumerate(zip(tiles.shape, tiles.patch, strict=True)):
            expected = [-((p - n) // 2)] if n < p else range(n - p + 1)
            assert set(starts[:, axis].tolist()) == set(expected)

    @given(sizes, sizes)
    def test_pad_makes_every_voxel_a_centre(self, shape, patch):
        assert centres_of(starts_of(shape, patch, "pad"), patch) == Roi.full(shape)
