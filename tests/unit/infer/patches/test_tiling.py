"""Tiles: what they cost, which one wins, which runs they make."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.errors import MemoryRefused
from volflow.geometry.budget import parse_bytes
from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid, PatchGrid
from volflow.infer.patches.demand import Demand
from volflow.infer.patches.runs import last_end, runs_of
from volflow.infer.patches.tiling import choose_tiling, limit_depth, patch_count, place_sums
from volflow.infer.patches.writer import tile_of

MIB = 2**20


def demand_of(shape=(256, 256, 256), patch=32, stride=24, **changes) -> Demand:
    base = {
        "grid": PatchGrid(shape, (patch,) * 3, (stride,) * 3), "scale": (1, 1, 1), "frame": Frame(),
        "crop": False, "skipping": False, "input_bytes": 4, "raw_bytes": 2, "segment_rows": 32,
        "output_channels": 2, "output_bytes": 8, "score_bytes": 4, "forward_bytes": 10 * MIB,
    }  # fmt: skip
    return Demand(**{**base, **changes})


frames = st.builds(
    Frame,
    st.sampled_from([(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)


class TestPeak:
    def test_grows_with_the_tile_not_with_the_volume(self):
        small = demand_of((256, 256, 256))
        deep = demand_of((10_000, 256, 256))
        block = (64, 256, 256)
        assert small.peak_bytes(block, (64, 64, 64)) == deep.peak_bytes(block, (64, 64, 64))
        assert small.peak_bytes((64, 128, 128), (64, 64, 64)) < small.peak_bytes(block, (64,) * 3)

    @pytest.mark.parametrize(
        "more",
        [{"input_bytes": 8}, {"raw_bytes": 4}, {"output_channels": 3}, {"output_bytes": 16},
         {"score_bytes": 8}, {"forward_bytes": 20 * MIB}, {"segment_rows": 64}],
    )  # fmt: skip
    def test_everything_counts(self, more):
        block, shard = (64, 128, 128), (64, 64, 64)
        assert demand_of(**more).peak_bytes(block, shard) > demand_of().peak_bytes(block, shard)

    def test_crop_keeps_no_weights_but_where_patches_are_left_out(self):
        block, shard = (64, 128, 128), (64, 64, 64)
        weighted = demand_of().peak_bytes(block, shard)
        assert demand_of(crop=True).peak_bytes(block, shard) < weighted
        assert demand_of(crop=True, skipping=True).peak_bytes(block, shard) == weighted

    def test_on_a_gpu_the_blend_is_not_in_the_hosts_memory(self):
        block, shard = (64, 128, 128), (64, 64, 64)
        classes = {"output_channels": 20, "output_bytes": 1}
        host = demand_of(on_device=True, **classes).peak_bytes(block, shard)
        assert host < demand_of(**classes).peak_bytes(block, shard) - 10 * MIB
        more = demand_of(on_device=True, **classes, forward_bytes=999 * MIB)
        assert more.peak_bytes(block, shard) == host
        summed = demand_of(on_device=True, host_sums=True, **classes).peak_bytes(block, shard)
        assert summed > host + 20 * 32 * 128**2 * 4

    def test_without_a_gpu_nothing_is_in_its_memory(self):
        assert demand_of().device_peak_bytes((64, 128, 128)) == 0

    @pytest.mark.parametrize("host_sums", [False, True])
    @pytest.mark.parametrize(
        "more",
        [{"input_bytes": 8}, {"output_channels": 9}, {"score_bytes": 8}, {"segment_rows": 64},
         {"forward_bytes": 20 * MIB}, {"input_channels": 3}],
    )  # fmt: skip
    def test_everything_counts_on_a_gpu(self, more, host_sums):
        block, plain = (64, 128, 128), {"on_device": True, "host_sums": host_sums}
        less = demand_of(**plain).device_peak_bytes(block)
        assert demand_of(**{**plain, **more}).device_peak_bytes(block) > less

    def test_sums_of_the_host_leave_a_gpus_memory(self):
        block = (64, 256, 256)
        there = demand_of(on_device=True, output_channels=50).device_peak_bytes(block)
        here = demand_of(on_device=True, output_channels=50, host_sums=True)
        assert there - here.device_peak_bytes(block) > 50 * 32 * 256**2 * 4


class TestChoice:
    def test_a_whole_slab_where_it_fits(self):
        found = choose_tiling(demand_of(), (64, 64, 64), (64, 64, 64), 4096 * MIB)
        assert found.block == (64, 256, 256)
        assert found.peak_bytes <= 4096 * MIB

    @pytest.mark.parametrize("memory", [400, 250, 180, 140, 110])
    def test_what_it_chooses_fits_and_is_of_whole_shards(self, memory):
        found = choose_tiling(demand_of(), (64, 64, 64), (32, 32, 32), memory * MIB)
        assert found.peak_bytes <= memory * MIB
        assert all(b % s == 0 for b, s in zip(found.block, found.shard, strict=True))
        assert all(s % 32 == 0 for s in found.shard)

    def test_less_memory_never_means_fewer_forwards(self):
        grid, calls = demand_of().grid, []
        for memory in (4000, 400, 200, 140, 110):
            found = choose_tiling(demand_of(), (64, 64, 64), (32, 32, 32), memory * MIB)
            cuts = [
                [(a, min(n, a + b)) for a in range(0, n, b)]
                for n, b in zip(grid.shape, found.block, strict=True)
            ]
            calls.append(patch_count(grid, [[(0, 256)], *cuts[1:]], crop=False))
            assert found.forwards == calls[-1]
        assert calls == sorted(calls)
        assert calls[0] == len(grid)
        assert calls[-1] > calls[0]

    def test_the_carry_axis_is_that_of_the_frame(self):
        frame = Frame((2, 1, 0), (False, False, False))
        found = choose_tiling(demand_of(frame=frame), (64, 64, 64), (64,) * 3, 4096 * MIB)
        assert found.block == (256, 256, 64)

    def test_shards_shrink_before_it_gives_up(self):
        found = choose_tiling(demand_of(), (256, 256, 256), (64, 64, 64), 160 * MIB)
        assert np.prod(found.shard) < 256**3
        assert all(s % 64 == 0 for s in found.shard)

    def test_shards_of_the_users_stay(self):
        with pytest.raises(MemoryRefused):
            choose_tiling(demand_of(), (256, 256, 256), (256, 256, 256), 160 * MIB)

    @given(
        st.sampled_from([(64, 64, 64), (256, 256, 256), (96, 32, 64)]),
        frames,
        st.integers(1, 200),
        st.booleans(),
    )
    def test_a_refusal_names_memory_that_does(self, shard, frame, forward, crop):
        demand = demand_of(frame=frame, forward_bytes=forward * MIB, crop=crop)
        with pytest.raises(MemoryRefused, match="needs at least") as refused:
            choose_tiling(demand, shard, (32, 32, 32), 20 * MIB)
        named = re.search(r'use memory="(\w+)" or more', str(refused.value))
        assert named
        enough = parse_bytes(named[1])
        assert choose_tiling(demand, shard, (32, 32, 32), enough).peak_bytes <= enough
        with pytest.raises(MemoryRefused):
            choose_tiling(demand, shard, (32, 32, 32), int(enough * 0.9))

    def test_reduced_outputs_are_tiled_in_their_own_voxels(self):
        grid = PatchGrid((256, 256, 256), (32,) * 3, (16,) * 3, (True,) * 3)
        demand = dataclasses.replace(demand_of(), grid=grid, scale=(2, 2, 2))
        found = choose_tiling(demand, (64, 64, 64), (64, 64, 64), 4096 * MIB)
        assert found.block == (64, 128, 128)


def cut(demand, workers, shard=(64,) * 3, chunk=(64,) * 3):
    """The tiling of a volume for many workers, its runs, and the patches of each."""
    grid, frame = demand.grid, demand.frame
    found = choose_tiling(demand, shard, chunk, 4096 * MIB, None, workers)
    blocks = BlockGrid(frame.restore(grid.shape), found.block)

    def patches(run):
        return patch_count(grid, [[side] for side in tile_of(blocks, frame, run)], demand.crop)

    runs = runs_of(blocks, frame, frozenset(), workers, patches)
    return found, runs, list(map(patches, runs))


class TestManyWorkers:
    @given(st.tuples(*[st.integers(40, 200)] * 3), frames, st.integers(1, 9), st.booleans())
    def test_forwards_are_counted_as_the_runs_need_them(self, shape, frame, workers, crop):
        grid = PatchGrid(frame.reorder(shape), (32,) * 3, (24,) * 3)
        demand = demand_of(grid=grid, frame=frame, crop=crop)
        found, _, each = cut(demand, workers, (32,) * 3, (32,) * 3)
        assert sum(each) == found.forwards

    @pytest.mark.parametrize("side", [512, 1024])
    @pytest.mark.parametrize("workers", [4, 16, 64])
    def test_their_last_ends_sooner_than_along_the_first_axis_alone(self, side, workers):
        grid = PatchGrid((side,) * 3, (96,) * 3, (72,) * 3)
        _, _, each = cut(demand_of(grid=grid), workers)
        thick = side // min(workers, side // 64)
        slabs = [(low, min(side, low + thick)) for low in range(0, side, thick)]
        alone = [
            patch_count(grid, [[slab], [(0, side)], [(0, side)]], crop=False) for slab in slabs
        ]
        assert last_end(each, workers) < last_end(alone, workers)

    @pytest.mark.parametrize(("side", "busy"), [(2048, 0.88), (4096, 0.92)])
    def test_sixty_four_of_them_wait_little_for_the_last(self, side, busy):
        grid = PatchGrid((side,) * 3, (96,) * 3, (72,) * 3)
        _, _, each = cut(demand_of(grid=grid), 64, (256,) * 3)
        assert sum(each) >= busy * 64 * last_end(each, 64)

    def test_one_worker_has_one_tile(self):
        one = choose_tiling(demand_of(), (64, 64, 64), (64, 64, 64), 4096 * MIB, None, 1)
        assert one.block == (64, 256, 256)


class TestOnAGpu:
    LAYOUT = (64, 64, 64), (32, 32, 32)

    def tiled(self, device, memory=4096, **changes):
        demand = demand_of(on_device=True, output_channels=50, output_bytes=1, **changes)
        return place_sums(demand, *self.LAYOUT, memory * MIB, device * MIB)

    def test_where_it_has_room_the_sums_are_there(self):
        found = self.tiled(4096)
        assert not found.host_sums
        assert found.block == (64, 256, 256)
        assert found.device_peak_bytes <= 4096 * MIB

    @pytest.mark.parametrize("device", [2000, 1500, 1000, 700, 500, 300, 200, 150])
    def test_both_budgets_are_kept(self, device):
        found = self.tiled(device)
        assert found.device_peak_bytes <= device * MIB
        assert found.peak_bytes <= 4096 * MIB

    def test_somewhat_smaller_tiles_are_better_than_sums_of_the_host(self):
        whole = self.tiled(4096)
        found = self.tiled(whole.device_peak_bytes // MIB - 100)
        assert not found.host_sums
        assert whole.forwards < found.forwards < 2 * whole.forwards

    def test_much_smaller_tiles_are_not(self):
        found = self.tiled(200)
        assert found.host_sums
        assert found.block == (64, 256, 256)

    def test_a_host_without_room_for_sums_leaves_them_there(self):
        found = self.tiled(700, memory=200)
        assert not found.host_sums
        assert found.peak_bytes <= 200 * MIB

    def test_a_refusal_names_device_memory_that_does(self):
        with pytest.raises(MemoryRefused, match="on the device but device_memory is 40") as refused:
            self.tiled(40)
        named = re.search(r'use device_memory="(\w+)" or more \(--device-', str(refused.value))
        assert named
        enough = parse_bytes(named[1]) // MIB
        assert self.tiled(enough).host_sums
        with pytest.raises(MemoryRefused):
            self.tiled(int(enough * 0.9))

    def test_a_refusal_names_both_where_both_are_too_tight(self):
        with pytest.raises(MemoryRefused, match="per worker but memory is 40") as refused:
            self.tiled(40, memory=40)
        named = re.findall(r'emory="(\w+)MiB" or more', str(refused.value))
        self.tiled(int(named[1]), memory=int(named[0]))


@given(st.data(), st.booleans())
def test_patches_are_counted_as_they_would_be_run(data, crop):
    shape = data.draw(st.tuples(*[st.integers(1, 30)] * 3))
    patch = data.draw(st.integers(1, 9))
    grid = PatchGrid(shape, (patch,) * 3, (data.draw(st.integers(1, patch)),) * 3)
    cuts = []
    for n in shape:
        ends = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
        cuts.append(list(itertools.pairwise(ends)))
    expected = 1
    for axis, intervals in enumerate(cuts):
        spans = grid.owned[axis] if crop else [(s, s + patch) for s in grid.starts[axis]]
        expected *= sum(
            max(low, a) < min(high, b) for low, high in intervals for a, b in spans
        )  # fmt: skip
    assert patch_count(grid, cuts, crop) == expected


def test_shards_are_no_deeper_than_a_quarter():
    assert limit_depth((256, 256, 256), (64, 64, 64), (1000, 512, 512), carry=0) == (256, 256, 256)
    assert limit_depth((256, 256, 256), (64, 64, 64), (1000, 512, 512), carry=2) == (256, 256, 128)
    assert limit_depth((16, 16, 16), (16, 16, 16), (10, 10, 10), carry=1) == (16, 16, 16)
