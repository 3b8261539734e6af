"""``map_overlap`` over stored arrays equals Dask's own over the same arrays in memory."""

from __future__ import annotations

import threading

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

import volflow as vf
from volflow.errors import InvalidInput
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec
from volflow.volumes.arrays.inputs import stored_in

BOUNDARIES = ["reflect", "periodic", "nearest", "none", 7.0]


def voxels(shape, dtype="f4"):
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def stored(data, chunks):
    array = zarr.create_array({}, shape=data.shape, chunks=chunks, dtype=data.dtype)
    array[:] = data
    return array


def smooth(block):
    """Of radius 2; what lies beyond the block is taken as its edge, for every boundary alike."""
    return ndimage.uniform_filter(block.astype("f8"), 5, mode="nearest")


def weighing(*reach):
    """Weighs every voxel within reach, each differently: a difference anywhere in a halo shows.

    What lies beyond the block counts as its edge, so that the result is the same for every cut.
    """
    weights = np.random.default_rng(1).integers(1, 9, [2 * r + 1 for r in reach]).astype("f8")
    return lambda block: ndimage.correlate(block.astype("f8"), weights, mode="nearest")


total = weighing(2, 2, 2)


def graph_size(array):
    return len(dask.optimize(array)[0].__dask_graph__())


class TestEqualToDask:
    @pytest.mark.slow
    @pytest.mark.parametrize("boundary", BOUNDARIES)
    @pytest.mark.parametrize("shape", [(30, 25, 19), (33, 17, 40), (16, 16, 1)])
    def test_ragged_shapes_and_every_boundary(self, shape, boundary):
        data = voxels(shape)
        depth = tuple(min(2, n) for n in shape)
        options = {"depth": depth, "boundary": boundary, "dtype": "f8"}
        weigh = weighing(*depth)
        ours = vf.map_overlap(weigh, stored(data, (4, 4, 4)), block=16, **options)
        theirs = da.map_overlap(weigh, da.from_array(data, chunks=16), **options)
        np.testing.assert_array_equal(ours.compute(), theirs.compute())

    @pytest.mark.parametrize("boundary", BOUNDARIES)
    def test_thin_trailing_chunks_stay_regular(self, boundary):
        data = voxels((257, 20, 20))
        depth = {0: 16, 1: 2, 2: 2}
        ours = vf.map_overlap(
            smooth, stored(data, (32, 20, 20)), depth=depth, boundary=boundary, dtype="f8",
            block=(128, 20, 20),
        )  # fmt: skip
        x = da.from_array(data, chunks=(128, 20, 20))
        theirs = da.map_overlap(smooth, x, depth=depth, boundary=boundary, dtype="f8")
        assert ours.chunks[0] == (128, 128, 1)
        assert theirs.chunks[0] != (128, 128, 1), "Dask splits thin chunks anew"
        np.testing.assert_allclose(ours.compute(), theirs.compute(), rtol=1e-12)

    @pytest.mark.parametrize("boundary", BOUNDARIES)
    @pytest.mark.layered
    def test_depth_beyond_the_block(self, boundary):
        data = voxels((40, 9, 9))
        ours = vf.map_overlap(
            lambda b: b.cumsum(0), stored(data, (4, 9, 9)), depth={0: 23}, boundary=boundary,
            dtype="f4", block=(8, 9, 9), trim=False, chunks=((8,) * 5, (9,), (9,)),
        )  # fmt: skip
        kind = {"reflect": "symmetric", "periodic": "wrap", "nearest": "edge", 7.0: "constant"}
        if boundary == "none":
            padded, low = data, [max(0, 8 * n - 23) for n in range(5)]
            high = [min(40, 8 * n + 31) for n in range(5)]
        else:
            more = {"constant_values": 7} if boundary == 7.0 else {}
            padded = np.pad(data, ((23, 23), (0, 0), (0, 0)), mode=kind[boundary], **more)
            low, high = [8 * n for n in range(5)], [8 * n + 54 for n in range(5)]
        for n, block in enumerate(ours.to_delayed().ravel()):
            np.testing.assert_array_equal(block.compute(), padded[low[n] : high[n]].cumsum(0))

    def test_boundaries_and_depths_differ_by_axis(self):
        data = voxels((20, 22, 24))
        options = {"depth": (2, 0, 3), "boundary": {0: 5.0, 2: "periodic"}, "dtype": "f4"}
        weigh = weighing(2, 0, 3)
        ours = vf.map_overlap(weigh, stored(data, (8, 8, 8)), block=8, **options)
        theirs = da.map_overlap(weigh, da.from_array(data, chunks=8), **options)
        np.testing.assert_array_equal(ours.compute(), theirs.compute())

    def test_corners_between_two_constants(self):
        data = voxels((9, 9, 9))
        options = {"depth": 2, "boundary": (1.0, 2.0, 3.0), "dtype": "f4"}
        ours = vf.map_overlap(total, stored(data, (5, 5, 5)), block=5, **options)
        theirs = da.map_overlap(total, da.from_array(data, chunks=5), **options)
        np.testing.assert_array_equal(ours.compute(), theirs.compute())

    def test_asymmetric_depth(self):
        data = voxels((20, 10, 10))
        options = {"depth": {0: (3, 1), 1: 0, 2: 0}, "boundary": "none", "dtype": "f4"}

        def behind(block):
            return ndimage.correlate1d(block, [1.0, 2, 3, 4, 5, 0, 0], axis=0, mode="nearest")

        ours = vf.map_overlap(behind, stored(data, (6, 10, 10)), block=6, **options)
        theirs = da.map_overlap(behind, da.from_array(data, chunks=(6, 6, 6)), **options)
        np.testing.assert_array_equal(ours.compute(), theirs.compute())

    @pytest.mark.slow
    @pytest.mark.layered
    def test_several_inputs_of_which_one_is_broadcast(self):
        a, b = voxels((2, 20, 21, 22)), voxels((20, 21, 22), "u1")
        options = {
            "depth": [{1: 2, 2: 2, 3: 2}, {0: 1, 1: 0, 2: 3}],
            "boundary": ["reflect", "nearest"],
            "dtype": "f8",
        }

        def both(x, y):
            return x.astype("f8") * y[1:-1, :, 3:-3].mean() + y.max()

        ours = vf.map_overlap(
            both, stored(a, (1, 5, 5, 5)), stored(b, (4, 4, 4)), block=8, **options
        )
        theirs = da.map_overlap(
            both, da.from_array(a, chunks=(1, 8, 8, 8)), da.from_array(b, chunks=8), **options
        )
        np.testing.assert_allclose(ours.compute(), theirs.compute(), rtol=1e-12)

    def test_dropped_axes(self):
        data = voxels((2, 20, 21, 22))
        options = {"depth": {1: 2, 2: 1}, "boundary": "reflect", "dtype": "f4", "drop_axis": 0}
        x = da.from_array(data, chunks=(2, 8, 8, 8))
        ours = vf.map_overlap(
            lambda b: b.sum(0), stored(data, (1, 5, 5, 5)), block=(2, 8, 8, 8), **options
        )
        theirs = da.map_overlap(lambda b: b.sum(0), x, **options)
        assert ours.chunks == theirs.chunks
        np.testing.assert_array_equal(ours.compute(), theirs.compute())

    @pytest.mark.parametrize(
        "more", [{"drop_axis": np.int64(0)}, {"drop_axis": [-4], "new_axis": 3}]
    )
    def test_axes_that_change_where_the_function_trims(self, more):
        data = voxels((2, 20, 21, 22))
        last = (..., None) if "new_axis" in more else ...
        lazy = vf.map_overlap(
            lambda b: b[:, 1:-1, 1:-1, 1:-1].sum(0)[last], stored(data, (1, 5, 5, 5)), depth=1,
            boundary="reflect", dtype="f4", block=(2, 8, 8, 8), trim=False, **more,
        )  # fmt: skip
        assert lazy.shape == data.sum(0)[last].shape
        np.testing.assert_array_equal(lazy.compute(), data.sum(0)[last])

    @pytest.mark.parametrize("new", [0, 3])
    def test_a_new_axis(self, new):  # where Dask 2026.8 trims the wrong axes
        data = voxels((20, 21, 22))
        padded = [(10, 12, 6), (8, 8, 5), (9, 10, 7)]
        padded.insert(new, (2,))
        lazy = vf.map_overlap(
            lambda b: np.stack([b, -b], axis=new), stored(data, (5, 5, 5)), block=8,
            depth={0: 2, 2: 1}, boundary="none", dtype="f4", new_axis=new, chunks=tuple(padded),
        )  # fmt: skip
        np.testing.assert_array_equal(lazy.compute(), np.stack([data, -data], axis=new))

    def test_the_function_may_ask_for_its_block(self):
        data = voxels((20, 10, 10))

        def numbered(block, block_id=None):
            return block * 0 + block_id[0]

        ours = vf.map_overlap(
            numbered, stored(data, (5, 10, 10)), depth=1, boundary="reflect", dtype="f4", block=10
        ).compute()
        assert ours[:10].max() == 0
        assert ours[10:].min() == 1

    @pytest.mark.slow
    @given(
        shape=st.tuples(*[st.integers(1, 14)] * 3),
        block=st.tuples(*[st.integers(1, 9)] * 3),
        boundary=st.sampled_from(BOUNDARIES),
        data=st.data(),
    )
    def test_any_cut_gives_the_same(self, shape, block, boundary, data):
        depth = tuple(data.draw(st.integers(0, min(3, n))) for n in shape)
        x = voxels(shape)

        def mean(b):
            return ndimage.uniform_filter(b, [2 * d + 1 for d in depth], mode="constant")

        whole = np.pad(x, [(d, d) for d in depth], mode="wrap") if boundary == "periodic" else x
        options = {"depth": depth, "boundary": boundary, "dtype": "f4"}
        ours = vf.map_overlap(mean, stored(x, (4, 4, 4)), block=block, **options)
        once = vf.map_overlap(mean, stored(x, (4, 4, 4)), block=shape, **options)
        assert ours.chunks == da.core.normalize_chunks(block, shape)
        np.testing.assert_allclose(ours.compute(), once.compute(), atol=1e-3)
        if boundary == "periodic":
            inner = tuple(slice(d, d + n) for d, n in zip(depth, shape, strict=True))
            np.testing.assert_allclose(once.compute(), mean(whole)[inner], atol=1e-3)


class TestGraph:
    @pytest.mark.layered
    def test_one_task_per_block(self, tmp_path):
        volume = create(
            tmp_path / "a.zarr", VolumeSpec.of((300, 257, 190), "u2", Meta(), chunk=32, shard=128)
        )
        ours = vf.map_overlap(smooth, volume, depth=16, boundary="reflect", dtype="f8")
        theirs = da.map_overlap(smooth, volume.dask(), depth=16, boundary="reflect", dtype="f8")
        assert ours.npartitions == 18
        assert graph_size(ours) == 18
        assert graph_size(theirs) > 500
        assert ours.chunks == ((128, 128, 44), (128, 128, 1), (128, 62))

    @pytest.mark.layered
    def test_two_steps_still_take_one_task(self, tmp_path):
        volume = create(
            tmp_path / "a.zarr", VolumeSpec.of((64, 64, 64), "u2", Meta(), chunk=16, shard=32)
        )
        ours = vf.map_overlap(smooth, volume, depth=2, boundary="reflect", dtype="f8") > 3
        assert graph_size(ours) == 8

    def test_nothing_is_called_or_read_before_it_is_computed(self, monkeypatch):
        calls = []

        def counted(block):
            calls.append(block.shape)
            return block

        array = stored(voxels((20, 20, 20)), (5, 5, 5))
        monkeypatch.setattr(
            zarr.Array, "get_basic_selection", lambda *a, **k: pytest.fail("a voxel was read")
        )
        lazy = vf.map_overlap(counted, array, depth=1, boundary="reflect", dtype="f4", block=10)
        vf.map_overlap(counted, da.ones((20, 20, 20), chunks=10), depth=1, dtype="f4")
        assert calls == []
        assert lazy.dtype == np.float32

    def test_a_region_computes_its_blocks_only(self):
        seen = []
        array = stored(voxels((40, 40, 40)), (5, 5, 5))

        def counted(block, block_id=None):
            seen.append(block_id)
            return block

        lazy = vf.map_overlap(counted, array, depth=1, boundary="reflect", dtype="f4", block=10)
        lazy[5:12, :3, 38:].compute(scheduler="synchronous")
        assert sorted(seen) == [(0, 0, 3), (1, 0, 3)]

    @pytest.mark.layered
    def test_dask_arrays_straight_from_a_store_count_as_stored(self, tmp_path):
        volume = create(
            tmp_path / "a.zarr", VolumeSpec.of((64, 64, 64), "u2", Meta(), chunk=16, shard=32)
        )
        for x in (volume.dask(), da.from_zarr(str(tmp_path / "a.zarr" / "0"), chunks=32)):
            assert stored_in(x) is not None
            ours = vf.map_overlap(smooth, x, depth=2, boundary="reflect", dtype="f8")
            assert ours.chunks == x.chunks
            assert graph_size(ours) == 8
        assert stored_in(volume.dask() + 1) is None
        assert stored_in(volume.dask()[1:]) is None
        assert stored_in(da.from_array(np.ones((4, 4, 4)))) is None

    def test_an_array_with_a_getter_of_its_own_counts_as_computed(self):
        array = stored(voxels((8, 8, 8)), (4, 4, 4))
        x = da.from_array(array, chunks=4, getitem=lambda a, index: np.asarray(a[index]) * 2)
        lazy = vf.map_overlap(lambda b: b, x, depth=1, boundary="reflect", dtype="f4")
        np.testing.assert_array_equal(lazy.compute(), array[:] * 2)

    def test_new_voxels_get_a_new_name(self, tmp_path):
        volume = create(tmp_path / "a.zarr", VolumeSpec.of((8, 8, 8), "u2", Meta()))
        before = vf.map_overlap(smooth, volume, depth=2, boundary="reflect", dtype="f8")
        again = vf.map_overlap(smooth, volume, depth=2, boundary="reflect", dtype="f8")
        volume.write(vf.Roi.full(volume.shape), voxels((8, 8, 8), "u2"))
        after = vf.map_overlap(smooth, volume, depth=2, boundary="reflect", dtype="f8")
        assert before.name == again.name != after.name

    @pytest.mark.slow
    def test_on_worker_processes(self, tmp_path):
        data = voxels((40, 40, 40), "u2")
        volume = vf.write(data, tmp_path / "a.zarr", chunk=8, shard=16, progress=False)
        lazy = vf.map_overlap(smooth, volume, depth=3, boundary="reflect", dtype="f8")
        from volflow.engine.cluster import connect

        with connect(2) as client:
            assert isinstance(client, Client)
            there = client.compute(lazy).result()
        np.testing.assert_array_equal(there, lazy.compute())

    def test_derived_arrays_go_to_dask(self):
        data = voxels((20, 20, 20))
        x = da.from_array(data, chunks=10) + 1
        ours = vf.map_overlap(total, x, depth=2, boundary="reflect", dtype="f4")
        theirs = da.map_overlap(total, x, depth=2, boundary="reflect", dtype="f4")
        np.testing.assert_array_equal(ours.compute(), theirs.compute())

    def test_a_stored_and_a_derived_array_together(self):
        data = voxels((20, 20, 20))
        options = {"depth": 2, "boundary": "reflect", "dtype": "f4"}
        x = da.from_array(data, chunks=10)
        ours = vf.map_overlap(lambda a, b: a + total(b), stored(data, (4, 4, 4)), x + 1, **options)
        theirs = da.map_overlap(lambda a, b: a + total(b), x, x + 1, **options)
        assert ours.chunks == x.chunks
        np.testing.assert_array_equal(ours.compute(), theirs.compute())

    def test_numpy_integers_are_integers(self):
        array, one = stored(voxels((12, 12, 12)), (4, 4, 4)), np.int64(1)
        ours = vf.map_overlap(total, array, depth=2 * one, dtype="f8", block=6 * one)
        assert ours.name == vf.map_overlap(total, array, depth=2, dtype="f8", block=6).name

    def test_an_integer_depth_means_the_spatial_axes(self):
        data = voxels((3, 12, 12, 12))
        for x in (stored(data, (1, 4, 4, 4)), da.from_array(data, chunks=(1, 6, 6, 6)) + 0):
            lazy = vf.map_overlap(
                lambda b: b[:1] * 0 + len(b), x, depth=2, boundary="reflect", dtype="f4"
            )
            assert lazy.max().compute() == 1, "no halo of channels"

    @pytest.mark.slow
    @pytest.mark.layered
    def test_readers_of_one_process_work_side_by_side(self):
        barrier = threading.Barrier(2, timeout=20)
        array = stored(voxels((20, 20, 20)), (5, 5, 5))

        def together(block):
            barrier.wait()
            return block

        lazy = vf.map_overlap(
            together, array, depth=1, boundary="reflect", dtype="f4", block=(10, 20, 20)
        )
        lazy.compute(scheduler="threads", num_workers=2)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"depth": 21}, "depth 21 is larger than axis z of 20 voxels; use a depth of at most"),
            ({"depth": {0: 30}}, "depth 30 is larger than axis z of 20"),
            ({"depth": -1}, "depth on axis z must be a whole number from 0"),
            ({"depth": 1.5}, "depth on axis z must be a whole number from 0"),
            ({"depth": (1, 2)}, "depth must be one value, a tuple of 3 or a dictionary"),
            ({"depth": {3: 1}}, "depth must be one value, a tuple of 3 or a dictionary"),
            ({"depth": [1, 2]}, "depth lists 2 entries for 1 arrays"),
            ({"depth": 1, "boundary": "mirror"}, "must be one of reflect, periodic, nearest, none"),
            ({"depth": {0: (1, 2)}, "boundary": "reflect"}, "differs by side, which needs"),
            ({"depth": 1, "block": 0}, "block must be a positive integer or one per axis"),
            ({"depth": 1, "block": (4, 4)}, "block must be a positive integer or one per axis"),
            ({"depth": 1, "block": 4.5}, "block must be a positive integer or one per axis"),
            ({"depth": 1, "block": "4"}, "block must be a positive integer or one per axis"),
        ],
    )
    def test_one_line_says_what_is_wrong(self, options, message):
        array = stored(voxels((20, 22, 24)), (5, 5, 5))
        with pytest.raises(InvalidInput, match=message):
            vf.map_overlap(total, array, **{"boundary": "none", "dtype": "f4", **options})

    def test_thin_chunks_of_a_derived_array(self):
        x = da.ones((257, 20, 20), chunks=(128, 20, 20)) + 1
        with pytest.raises(
            InvalidInput, match=r"as thin as 1 .* depth is 16; use x.rechunk\("
        ) as e:
            vf.map_overlap(total, x, depth={0: 16}, boundary="none", dtype="f4")
        assert "{0: (128, 129)}" in str(e.value)
        allowed = vf.map_overlap(
            smooth, x, depth={0: 16}, boundary="none", dtype="f8", allow_rechunk=True
        )
        assert allowed.chunks[0] == (128, 113, 16)

    @pytest.mark.parametrize("constant", [-1, 256, np.nan])
    @pytest.mark.layered
    def test_a_constant_that_the_voxels_cannot_hold(self, constant):
        array = stored(voxels((8, 8, 8), "u1"), (4, 4, 4))
        for x in (array, da.from_zarr(array) + 0):
            with pytest.raises(InvalidInput, match=r"does not fit uint8 \(0 to 255\)"):
                vf.map_overlap(total, x, depth=1, boundary={0: constant}, dtype="f4")

    @pytest.mark.layered
    def test_new_axes_that_dask_would_get_wrong(self):
        array = stored(voxels((8, 8, 8)), (4, 4, 4))
        options = {"depth": 1, "boundary": "reflect", "dtype": "f4"}
        x = da.from_zarr(array) + 0
        for wrong in ({"new_axis": 3}, {"new_axis": 0, "depth": {0: 1, 1: 2}}):
            with pytest.raises(InvalidInput, match="trims the wrong axes of a computed array"):
                vf.map_overlap(lambda b: b[None], x, **{**options, **wrong})
        lazy = vf.map_overlap(lambda b: b[None], x, new_axis=0, **options)
        np.testing.assert_array_equal(lazy.compute()[0], array[:])
        with pytest.raises(InvalidInput, match="new_axis counts from 0, given -1"):
            vf.map_overlap(lambda b: b[..., None], array, new_axis=-1, **options)

    @pytest.mark.layered
    def test_unknown_sizes(self):
        x = da.ones((8, 8, 8), chunks=4)
        with pytest.raises(InvalidInput, match=r"unknown sizes, .*compute_chunk_sizes\(\) first"):
            vf.map_overlap(total, x[x[:, 0, 0] > 0], depth=1, dtype="f4")

    def test_shapes_that_differ(self):
        a, b = stored(voxels((20, 20, 20)), (5, 5, 5)), stored(voxels((20, 20, 21)), (5, 5, 5))
        with pytest.raises(InvalidInput, match="equal shapes along their last axes"):
            vf.map_overlap(lambda x, y: x, a, b, depth=1, boundary="none", dtype="f4")

    def test_what_is_no_array(self):
        with pytest.raises(InvalidInput, match="given list"):
            vf.map_overlap(total, [1, 2], depth=1)
        with pytest.raises(InvalidInput, match="at least one array"):
            vf.map_overlap(total, depth=1)

    def test_the_result_cannot_replace_a_volume_by_accident(self, tmp_path):
        volume = create(
            tmp_path / "a.zarr", VolumeSpec.of((32, 32, 32), "f4", Meta(), chunk=8, shard=16)
        )
        lazy = vf.map_overlap(total, volume, depth=2, boundary="reflect", dtype="f8")
        create(tmp_path / "b.zarr", VolumeSpec.of((32, 32, 32), "f4", Meta()))
        with pytest.raises(InvalidInput, match=r"b.zarr exists; .*overwrite=True"):
            vf.write(lazy, tmp_path / "b.zarr", like=volume, progress=False)
        done = vf.write(lazy, tmp_path / "b.zarr", like=volume, overwrite=True, progress=False)
        np.testing.assert_array_equal(done[:], lazy.compute())
