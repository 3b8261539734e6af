"""The lazy twin equals the batch run, and both the plain sliding window."""

from __future__ import annotations

import pickle
import threading
import time

import cloudpickle
import dask
import dask.array as da
import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests.nets import Named, Paired, random_net, slice_net
from tests.oracle import sliding_window
from volflow.engine.cluster import connect
from volflow.errors import InvalidInput
from volflow.infer.patches.sliding import Batches
from volflow.model import unet as vf_unet
from volflow.store.meta import Meta


def voxels(shape, dtype="f4"):
    return np.random.default_rng(0).normal(100, 30, shape).astype(dtype)


@pytest.fixture
def stored(client, tmp_path):
    def make(data, name="scan.zarr", **options):
        meta = options.pop("meta", None)
        layout = {"chunk": 8, "shard": 16, **options}
        return vf.write(data, tmp_path / name, meta=meta, cluster=client, progress=False, **layout)

    return make


class Halving(nn.Module):
    """Returns scores of half the resolution."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, 2, 3, stride=2, padding=1)

    def forward(self, x):
        return self.conv(x)


class Curious(nn.Module):
    """Looks at the values of its input, which tensors without values cannot show."""

    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x


class Keeps(nn.Module):
    """Keeps a tensor of its first call for the next."""

    ramp = None

    def forward(self, x):
        if self.ramp is None:
            self.ramp = torch.arange(x.shape[-1], dtype=x.dtype)
        return x + self.ramp


class Remembers(nn.Module):
    """Keeps what it makes for images of a shape in a dict, as of masks, and in one within it."""

    def __init__(self):
        super().__init__()
        self.made = {"by shape": {}}

    def forward(self, x):
        made = self.made["by shape"]
        if tuple(x.shape) not in made:
            self.made[tuple(x.shape)] = made[tuple(x.shape)] = torch.ones_like(x)
        return x + made[tuple(x.shape)] + self.made[tuple(x.shape)]


class Watched(nn.Module):
    """Notes how many forwards run at once."""

    most = running = 0
    guard = threading.Lock()

    def forward(self, x):
        with self.guard:
            Watched.running += 1
            Watched.most = max(Watched.most, Watched.running)
        time.sleep(0.003)
        with self.guard:
            Watched.running -= 1
        return x


@pytest.fixture
def both(client, tmp_path):
    """The lazy array, and what `predict` stores."""

    def made(volume, net, block=16, **options):
        lazy = vf.map_model(volume, net, block=block, **options)
        batch = vf.predict(
            volume, net, tmp_path / "out.zarr", cluster=client, progress=False,
            **{"batch_size": 1, **options},
        )  # fmt: skip
        return lazy, batch[:]

    return made


class TestEqualToPredict:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("blend", "overlap"),
        [("gaussian", 0.25), ("gaussian", 0), ("hann", (2, 5, 3)), ("average", 0.25),
         ("crop", (2, 5, 3))],
    )  # fmt: skip
    def test_stored_volumes_bit_for_bit(self, stored, both, blend, overlap):
        data = voxels((37, 30, 41))
        options = {"patch": (12, 10, 14), "overlap": overlap, "blend": blend}
        lazy, batch = both(stored(data), random_net(), **options)
        assert lazy.chunks == ((2,), (16, 16, 5), (16, 14), (16, 16, 9))
        assert lazy.dtype == batch.dtype
        np.testing.assert_array_equal(lazy.compute(), batch)
        truth = sliding_window(data[None], random_net(), **options)
        np.testing.assert_allclose(batch, truth, atol=1e-3)

    @pytest.mark.slow
    def test_a_wider_gaussian(self, stored, both, tmp_path):
        data, net = voxels((27, 30, 21)), random_net()
        options = {"patch": (12, 10, 14), "overlap": 0.5, "sigma_scale": 0.3}
        lazy, batch = both(stored(data), net, **options)
        np.testing.assert_array_equal(lazy.compute(), batch)
        truth = sliding_window(data[None], net, **options)
        np.testing.assert_allclose(batch, truth, atol=1e-3)
        usual = sliding_window(data[None], net, **{**options, "sigma_scale": 0.125})
        assert not np.allclose(batch, usual, atol=1e-3)
        found = vf.verify(tmp_path / "out.zarr", recompute=4, model=net)
        assert found.ok
        stream = vf.PatchStream(data, vf.GridSampler((12, 10, 14), overlap=0.5))
        with (
            torch.inference_mode(),
            vf.GridAggregator(tmp_path / "own.zarr", stream, sigma_scale=0.3) as aggregator,
        ):
            for patches in stream.loader(batch_size=4):
                aggregator.add_batch(net(patches["image"]), patches)
        (own,) = aggregator.close().values()
        np.testing.assert_allclose(own[:], batch, atol=1e-3)

    @pytest.mark.slow
    @pytest.mark.parametrize("blend", ["gaussian", "crop"])
    @pytest.mark.parametrize("chunks", [(20, 16, 23), (7, 30, 5), -1])
    def test_computed_arrays_bit_for_bit(self, stored, both, blend, chunks):
        data = voxels((37, 30, 41))
        options = {"patch": (12, 10, 14), "overlap": 0.5, "blend": blend}
        batch = both(stored(data), random_net(), **options)[1]
        lazy = vf.map_model(da.from_array(data, chunks=chunks) + 0, random_net(), **options)
        np.testing.assert_array_equal(lazy.compute(), batch)

    @pytest.mark.slow
    @pytest.mark.parametrize("batch_size", [1, 2, 3])
    def test_batches_lie_at_the_same_places(self, stored, both, batch_size):
        data = voxels((20, 22, 50))
        options = {"patch": 10, "overlap": 0.5, "batch_size": batch_size}
        lazy, batch = both(stored(data), random_net(), **options)
        np.testing.assert_array_equal(lazy.compute(), batch)
        computed = vf.map_model(da.from_array(data, chunks=10) + 0, random_net(), **options)
        np.testing.assert_array_equal(computed.compute(), batch)

    @pytest.mark.slow
    @pytest.mark.parametrize("frame", ["RAS", "LPI", "SRA"])
    def test_frames(self, stored, both, frame):
        data = voxels((21, 30, 26))
        volume = stored(data, meta=Meta(orientation="SAL", spacing=(2, 1, 1)))
        options = {"patch": (9, 8, 12), "overlap": 0.25, "frame": frame}
        lazy, batch = both(volume, random_net(), **options)
        np.testing.assert_array_equal(lazy.compute(), batch)
        derived = volume.dask(chunks=(10, 15, 13)) * 1
        computed = vf.map_model(derived, random_net(), like=volume.path, **options)
        np.testing.assert_array_equal(computed.compute(), batch)

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(37, 30, 41), (16, 16, 16), (33, 9, 17)])
    def test_scores_of_half_the_resolution(self, stored, both, shape):
        data = voxels(shape)
        options = {"patch": 12, "overlap": 0.5}
        lazy, batch = both(stored(data), Halving(), block=7, **options)
        np.testing.assert_array_equal(lazy.compute(), batch)
        computed = vf.map_model(da.from_array(data, chunks=(9, 15, 1)) + 0, Halving(), **options)
        np.testing.assert_array_equal(computed.compute(), batch)

    @pytest.mark.slow
    @pytest.mark.layered
    def test_classes_of_several_channels_with_activation_and_normalisation(self, stored, both):
        data = voxels((2, 20, 22, 24))
        net = random_net(2, 3)
        options = {"patch": 10, "output": "classes", "activation": "softmax"}
        lazy, batch = both(stored(data), net, normalize="zscore", **options)
        assert lazy.dtype == np.uint8
        assert lazy.shape == (20, 22, 24)
        np.testing.assert_array_equal(lazy.compute(), batch)
        mean, std = data.mean((1, 2, 3)), data.std((1, 2, 3))
        scaled = (da.from_array(data, chunks=(1, 12, 22, 11)) - mean[:, None, None, None]) / std[
            :, None, None, None
        ]
        computed = vf.map_model(scaled.astype("f4"), net, **options)
        assert np.mean(computed.compute() == batch) > 0.999

    @pytest.mark.slow
    @pytest.mark.parametrize("normalize", [None, lambda block: (block - 200) / 9])
    def test_several_volumes_mask_and_threshold(self, stored, both, normalize):
        a, b = stored(voxels((20, 22, 24)), "a.zarr"), stored(voxels((20, 22, 24)), "b.zarr")
        mask = np.zeros((20, 22, 24), "u1")
        mask[:9, :8] = 1
        mask = stored(mask, "m.zarr")
        options = {"patch": 8, "mask": mask, "skip_below": 60, "fill": -7.0}
        options["normalize"] = normalize
        pair = {"a": a, "b": b}
        lazy, batch = both(pair, random_net(2), **options)
        assert 0 < (batch == -7).mean() < 1
        np.testing.assert_array_equal(lazy.compute(), batch)
        computed = {"a": a.dask() + 0, "b": b}
        np.testing.assert_array_equal(
            vf.map_model(computed, random_net(2), **options).compute(), batch
        )

    @pytest.mark.parametrize("shape", [(3, 4, 5), (1, 30, 30), (8, 8, 8)])
    def test_volumes_no_larger_than_the_patch(self, stored, both, shape):
        lazy, batch = both(stored(voxels(shape)), random_net(), patch=8)
        np.testing.assert_array_equal(lazy.compute(), batch)

    @pytest.mark.slow
    def test_slices_and_flips(self, stored, both):
        options = {"patch": (1, 16, 16), "flips": "yx"}
        lazy, batch = both(stored(voxels((5, 30, 41))), slice_net(), **options)
        np.testing.assert_array_equal(lazy.compute(), batch)

    @pytest.mark.slow
    def test_the_usual_batch_is_that_of_predict(self, stored, both):
        options = {"patch": 16, "batch_size": "auto"}
        lazy, batch = both(stored(voxels((20, 20, 60))), random_net(), **options)
        np.testing.assert_array_equal(lazy.compute(), batch)

    @pytest.mark.slow
    def test_a_bundle_says_its_own(self, stored, tmp_path, both):
        torch.manual_seed(0)
        net = vf_unet.UNet(1, 2, features=(2, 4)).eval()
        vf.save_model(net, tmp_path / "bundle", patch=8, normalize="minmax", output="classes")
        data = stored(voxels((20, 22, 24)))
        lazy, batch = both(data, tmp_path / "bundle")
        assert batch.any()
        np.testing.assert_array_equal(lazy.compute(), batch)


@pytest.fixture
def counted(monkeypatch):
    """The starts of patches that were computed since it was emptied."""
    seen = []
    run = Batches.run
    monkeypatch.setattr(
        Batches, "run", lambda self, indices: seen.extend(indices) or run(self, indices)
    )
    return seen


SLICES = [
    np.s_[:, 12:18, 4:9, 20:31],
    np.s_[1, 12:18, ..., 3],
    np.s_[:, 2:14:5, -9:, 7],
    np.s_[..., 18],
    np.s_[:, 12:3:-2, 4],
    np.s_[:, 5:5],
    np.s_[:, [1, 30], 4],
    np.s_[:, None, 3],
    np.s_[:, 1:],
]


class TestSlices:
    @pytest.mark.slow
    @pytest.mark.layered
    @pytest.mark.parametrize("computed", [False, True])
    def test_a_slice_is_that_of_the_whole(self, stored, computed):
        data = voxels((37, 30, 41))
        volume = stored(data, meta=Meta(orientation="SAL", spacing=(2, 1, 1)))
        options = {"patch": (12, 10, 14), "overlap": 0.25, "frame": "LPI", "batch_size": 2}
        if computed:
            array = da.from_array(data, chunks=(20, 30, 11)) + 0
            lazy = vf.map_model(array, random_net(), like=volume, **options)
        else:
            lazy = vf.map_model(volume, random_net(), block=16, **options)
        whole = lazy.compute()
        for index in SLICES:
            part = lazy[index]
            assert part.shape == whole[index].shape
            np.testing.assert_array_equal(part.compute(), whole[index])
        twice = lazy[:, 12:18, 4:9, 20:31][:, 2:3, ..., 4:8]
        np.testing.assert_array_equal(twice.compute(), whole[:, 14:15, 4:9, 24:28])

    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(37, 30, 41), (33, 9, 17)])
    def test_slices_of_half_the_resolution(self, stored, shape):
        data = voxels(shape)
        array = da.from_array(data, chunks=(9, 15, 1)) + 0
        for x in (stored(data), array):
            lazy = vf.map_model(x, Halving(), patch=12, overlap=0.5)
            np.testing.assert_array_equal(
                lazy[:, 3:5, 1:4, 2:7].compute(), lazy.compute()[:, 3:5, 1:4, 2:7]
            )

    @pytest.mark.slow
    def test_exact_slices(self, stored):
        lazy = vf.map_model(stored(voxels((24, 20, 22))), random_net(), blend="exact", block=16)
        np.testing.assert_allclose(
            lazy[:, 14:18, 3:6, 15:17].compute(), lazy.compute()[:, 14:18, 3:6, 15:17], rtol=1e-5
        )

    def test_a_piece_computes_the_patches_that_reach_into_it(self, stored, counted):
        volume = stored(voxels((40, 40, 40)))
        lazy = vf.map_model(volume, nn.Identity(), patch=8, overlap=0, block=16)
        lazy[:, 15:17, :4, 9:12].compute(scheduler="synchronous")
        assert sorted(counted) == [(1, 0, 1), (2, 0, 1)]
        counted.clear()
        lazy[0, 15:17, :4][..., 9:12].compute(scheduler="synchronous")
        assert {index[:2] for index in counted} == {(1, 0), (2, 0)}

    def test_what_cuts_little_off_shares_the_blocks_of_the_whole(self, stored, counted):
        lazy = vf.map_model(stored(voxels((32, 32, 32))), nn.Identity(), patch=8, overlap=0)
        (lazy[:, 1:] - lazy[:, :-1]).compute(scheduler="synchronous")
        assert len(counted) == 4**3

    def test_what_is_no_index_is_refused_as_by_dask(self, stored):
        lazy = vf.map_model(stored(voxels((8, 8, 8))), nn.Identity(), patch=8)
        with pytest.raises(IndexError, match="out of bounds"):
            lazy[:, 9]
        with pytest.raises(IndexError, match="Too many"):
            lazy[0, 0, 0, 0, 0]

    def test_a_region_reads_its_chunks_only(self, stored, monkeypatch):
        volume = stored(voxels((64, 32, 32)))
        lazy = vf.map_model(volume, nn.Identity(), patch=8, overlap=0, block=16)
        seen = []
        read = vf.Volume.read
        monkeypatch.setattr(vf.Volume, "read", lambda v, roi: seen.append(roi) or read(v, roi))
        lazy[:, 17:20, :4, :4].compute(scheduler="synchronous")
        assert {(roi.start[0], roi.stop[0]) for roi in seen} == {(16, 24)}

    @pytest.mark.slow
    def test_a_slice_travels_and_is_stored(self, stored, tmp_path):
        lazy = vf.map_model(stored(voxels((32, 32, 32))), random_net(), patch=8)
        again = pickle.loads(cloudpickle.dumps(lazy))
        np.testing.assert_array_equal(again[:, 3].compute(), lazy[:, 3].compute())
        part = lazy[:, 5:20, 5:20, 5:20]
        result = vf.write(part, tmp_path / "part.zarr", shard=8, chunk=8, progress=False)
        np.testing.assert_array_equal(result[:], lazy.compute()[:, 5:20, 5:20, 5:20])


class Halves(Named):
    """Two outputs of half the resolution."""

    def forward(self, batch):
        return {name: one[..., ::2, ::2, ::2] for name, one in super().forward(batch).items()}


class TestOutputsByName:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", [Named, Paired, Halves])
    @pytest.mark.parametrize("output", ["scores", "classes"])
    @pytest.mark.parametrize("computed", [False, True])
    def test_each_is_what_predict_stores(self, client, stored, tmp_path, kind, output, computed):
        data, net = voxels((27, 20, 31)), kind(random_net(), random_net(channels_out=3))
        options = {"patch": (12, 10, 14), "output": output, "batch_size": 2}
        volume = stored(data)
        batch = vf.predict(
            volume, net, tmp_path / "out.zarr", cluster=client, progress=False, **options
        )
        x = da.from_array(data, chunks=(20, 20, 11)) + 0 if computed else volume
        lazy = vf.map_model(x, net, **options)
        assert list(lazy) == list(batch)
        for name, array in lazy.items():
            assert array.shape == batch[name].shape
            assert array.dtype == batch[name].dtype
            np.testing.assert_array_equal(array.compute(), batch[name][:])
            part = np.s_[..., 3:5, 2:7, 4:9]
            np.testing.assert_array_equal(array[part].compute(), batch[name][:][part])

    @pytest.mark.slow
    def test_exactly(self, stored):
        volume = stored(voxels((16, 16, 16)))
        net = Named(random_net(), random_net(channels_out=3))
        lazy = vf.map_model(volume, net, blend="exact")
        for name, part in (("seg", net.first), ("edge", net.second)):
            alone = vf.map_model(volume, part, blend="exact")
            np.testing.assert_allclose(lazy[name].compute(), alone.compute(), rtol=1e-5)

    def test_computed_together_they_share_the_forwards(self, stored, counted):
        net = Named(nn.Identity(), nn.Identity())
        lazy = vf.map_model(stored(voxels((16, 16, 16))), net, patch=8, overlap=0)
        dask.compute(*lazy.values(), scheduler="synchronous")
        assert len(counted) == 2**3
        counted.clear()
        dask.compute(*(one[:, 3:5, 3, 3] for one in lazy.values()), scheduler="synchronous")
        assert len(counted) == 1


class TestGraph:
    @pytest.mark.layered
    def test_one_task_per_block_and_the_model_once(self, stored):
        lazy = vf.map_model(stored(voxels((32, 32, 32))), random_net(), patch=8, block=16)
        graph = dask.optimize(lazy)[0].__dask_graph__()
        assert len(graph) == 8 + 1

    def test_no_forward_before_it_is_computed(self, stored):
        class Refuses(nn.Module):
            def forward(self, x):
                if type(x) is torch.Tensor:
                    pytest.fail("a forward ran")
                return x

        lazy = vf.map_model(stored(voxels((32, 32, 32))), Refuses(), patch=8)
        assert lazy.shape == (1, 32, 32, 32)

    def test_a_module_that_looks_at_values_is_tried_once(self, stored):
        data = voxels((16, 16, 16))
        lazy = vf.map_model(stored(data), Curious(), patch=8, overlap=0)
        np.testing.assert_allclose(lazy[0].compute(), data + 1, rtol=1e-5)

    def test_a_module_may_keep_tensors_of_its_first_call(self, stored):
        data = voxels((8, 8, 8))
        lazy = vf.map_model(stored(data), Keeps(), patch=8, overlap=0)
        np.testing.assert_allclose(lazy[0].compute(), data + np.arange(8), rtol=1e-6)

    @pytest.mark.parametrize("blend", ["average", "exact"])
    def test_a_module_may_keep_tensors_of_each_shape(self, stored, blend):
        data, net = voxels((8, 8, 8)), Remembers()
        patch = {"patch": 8, "overlap": 0} if blend == "average" else {}
        for _ in range(2):
            lazy = vf.map_model(stored(data), net, blend=blend, **patch)
            np.testing.assert_allclose(lazy[0].compute(), data + 2, rtol=1e-6)

    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
    def test_a_module_that_only_pickle_copies(self, stored):
        net = nn.utils.weight_norm(nn.Conv3d(1, 1, 3, padding=1))
        data = voxels((8, 8, 8))
        whole = net(torch.from_numpy(data)[None, None])  # its weight now belongs to a gradient
        lazy = vf.map_model(stored(data), net, patch=8, overlap=0)
        np.testing.assert_allclose(lazy.compute(), whole.detach().numpy()[0], rtol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("threads", [2, 16])
    def test_a_network_over_a_network(self, stored, threads):
        data = voxels((24, 20, 16))
        options = {"patch": (8, 8, 8), "overlap": 0.5}
        net = nn.Conv3d(1, 1, 3, padding=1)
        first = sliding_window(data[None], net, **options)
        truth = sliding_window(first.astype("f4"), net, **options)
        between = {"depth": 1, "boundary": "reflect", "dtype": "f4"}
        for x, more in ((stored(data), {"block": 8}), (da.from_array(data, chunks=8) + 0, {})):
            scores = vf.map_model(x, net, **options, **more)
            scores = vf.map_overlap(lambda b: b, scores, **between)
            lazy = vf.map_model(scores, net, **options)
            there = lazy.compute(scheduler="threads", num_workers=threads)
            np.testing.assert_allclose(there, truth, rtol=1e-4, atol=1e-3)

    def test_one_forward_at_a_time_on_sixteen_threads(self, stored):
        lazy = vf.map_model(stored(voxels((32, 32, 32))), Watched(), patch=8, overlap=0, block=8)
        Watched.most = 0
        lazy.compute(scheduler="threads", num_workers=16)
        assert Watched.most == 1

    def test_training_on_changes_no_result(self, stored):
        net = random_net()
        lazy = vf.map_model(stored(voxels((16, 16, 16))), net, patch=8)
        before = lazy.compute()
        with torch.no_grad():
            net[0].weight += 1
        net.train()
        np.testing.assert_array_equal(lazy.compute(), before)
        assert net.training

    @pytest.mark.layered
    def test_equal_calls_have_equal_names(self, stored):
        volume = stored(voxels((16, 16, 16)))
        first, second = (vf.map_model(volume, random_net(), patch=8) for _ in range(2))
        other = vf.map_model(volume, random_net(), patch=8, overlap=0)
        assert first.name == second.name != other.name

    def test_the_orientation_of_a_computed_array_is_part_of_its_name(self, stored):
        data = voxels((16, 16, 16))
        options = {"patch": 8, "overlap": 0.25, "frame": "RAS"}
        likes = [
            stored(data, f"{o}.zarr", meta=Meta(orientation=o, spacing=(1, 1, 1)))
            for o in ("RAS", "LPI")
        ]
        x = da.from_array(data, chunks=8)
        first, second = (vf.map_model(x, random_net(), like=like, **options) for like in likes)
        assert first.name != second.name
        assert not np.allclose(*dask.compute(first, second))

    @pytest.mark.slow
    def test_before_a_threshold_into_a_store(self, stored, tmp_path):
        volume = stored(voxels((40, 30, 20)))
        lazy = vf.map_model(volume, random_net(), patch=12, block=24)[1] > 0
        result = vf.write(lazy, tmp_path / "mask.zarr", like=volume, progress=False)
        np.testing.assert_array_equal(result[:], lazy.compute())

    @pytest.mark.slow
    def test_on_worker_processes(self, stored):
        data = voxels((30, 30, 30))
        volume = stored(data)
        lazy = vf.map_model(volume, random_net(), patch=10, block=16)
        computed = vf.map_model(volume.dask() + 0, random_net(), patch=10)
        here = lazy.compute(scheduler="threads")
        with connect(2) as client:
            for array in (lazy, computed):
                there = client.compute(array).result()
                np.testing.assert_allclose(there, here, atol=1e-4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"patch": 8, "block": 0}, "block must be a positive integer or one for z, y, x"),
            ({"patch": 8, "block": 8.5}, "block must be a positive integer or one for z, y, x"),
            ({"patch": 8, "blend": "median"}, "median"),
            ({}, "patch is needed"),
            ({"patch": 8, "output": "labels"}, "unknown output 'labels'"),
        ],
    )
    def test_options(self, stored, options, message):
        with pytest.raises(InvalidInput, match=message):
            vf.map_model(stored(voxels((16, 16, 16))), random_net(), **options)

    def test_a_computed_array_has_no_statistics(self):
        x = da.ones((16, 16, 16), chunks=8)
        with pytest.raises(InvalidInput, match=r"'zscore' needs statistics .* normalize=\"none\""):
            vf.map_model(x, random_net(), patch=8, normalize="zscore")
        assert vf.map_model(x, random_net(), patch=8, normalize="none").shape == (2, 16, 16, 16)

    def test_outputs_of_several_resolutions(self, stored):
        net = Named(random_net(), Halving())
        with pytest.raises(InvalidInput, match="outputs differ in resolution"):
            vf.map_model(stored(voxels((16, 16, 16))), net, patch=8)

    def test_like_of_another_shape(self, stored):
        x = da.ones((16, 16, 16), chunks=8)
        with pytest.raises(InvalidInput, match=r"like= has shape \(8, 8, 8\) but the array"):
            vf.map_model(x, random_net(), patch=8, like=stored(voxels((8, 8, 8))))

    def test_arrays_of_other_dimensions(self):
        with pytest.raises(InvalidInput, match="a volume is zyx or czyx"):
            vf.map_model(da.ones((8,), chunks=4), random_net(), patch=8)

    def test_a_wrong_number_of_channels(self, stored):
        with pytest.raises(InvalidInput, match="does not take a batch"):
            vf.map_model(stored(voxels((2, 16, 16, 16))), random_net(), patch=8)
