"""Exact runs on a GPU: equal to the CPU's, busy, and within both budgets."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests import nets
from tests.exact_oracle import EXACT, error, lively, whole
from volflow.engine.cluster import connect
from volflow.errors import MemoryRefused, RunFailed
from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi
from volflow.infer.exact import method
from volflow.infer.predict import plan_predict
from volflow.model.unet import UNet
from volflow.passes import keeping, peaks
from volflow.passes.cost import Cost
from volflow.passes.network import Blockwise
from volflow.passes.pipeline import Pipeline
from volflow.passes.profile import OpProfile
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec

SHAPE = (18, 13, 21)
SCAN = np.random.default_rng(0).random(SHAPE) + 0.1
MIB = 2**20


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.gate = nn.Conv3d(1, channels, 3, padding=1), nn.Linear(channels, channels)
        self.last = nn.Conv3d(channels, 2, 3, padding=1)

    def forward(self, image):
        x = self.first(image)
        weights = self.gate(x.mean((2, 3, 4))).sigmoid()
        return self.last(x * weights[..., None, None, None])


class Weightless(nn.Module):
    """Neither weights nor buffers, and constants of its own."""

    def forward(self, image):
        coarse = nn.functional.avg_pool3d(image, 3, 2, 1, count_include_pad=False)
        fine = nn.functional.interpolate(coarse, scale_factor=2.0, mode="trilinear")
        fine = nn.functional.pad(fine, (1, 1, 1, 1, 1, 1), "replicate")[..., 1:-1, 1:-1, 1:-1]
        return torch.cat([image, fine - fine.amax((2, 3, 4), keepdim=True)], 1)


class Sliced(nn.Module):
    """A network of slices on each slice across the first axis."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, volume):
        return torch.stack([self.net(one) for one in volume.unbind(2)], 2)


def unet(levels=3, norm="none", up="transposed", **options):
    torch.manual_seed(0)
    return lively(UNet(1, 2, tuple(3 * 2**n for n in range(levels)), norm=norm, up=up, **options))


def layers(*between):
    torch.manual_seed(0)
    ends = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1)
    return lively(nn.Sequential(ends[0], *between, nn.GELU(), ends[1]))


# A network, its alignment, and the budget on the device with which it takes several passes or
# blocks.
NETS = {
    "convolutions": (layers(), 1),
    "dilated": (layers(nn.Conv3d(4, 4, 3, padding=2, dilation=2)), 1),
    "strided": (layers(nn.Conv3d(4, 4, 2, 2)), 2),
    "max": (layers(nn.MaxPool3d(2), nn.Upsample(scale_factor=2)), 2),
    "average": (layers(nn.AvgPool3d(3, 1, 1, count_include_pad=False)), 1),
    "linear": (unet(2, "instance", "linear"), 2),
    "transposed": (unet(3, "batch"), 4),
    "instance": (unet(3, "instance"), 4),
    "group": (layers(nn.GroupNorm(2, 4)), 1),
    "gate": (lively(Gate(4)), 1),
    "weightless": (Weightless().eval(), 2),
}
# Without weights a network computes in float32.
CLOSE = dict.fromkeys(NETS, EXACT) | {"weightless": 1e-6}


@pytest.fixture
def client(device):
    """One embedded Dask whose threads see the device."""
    with connect("threads") as client:
        yield client


@pytest.fixture
def budget(monkeypatch):
    """Profiles nothing: convolutions are slow, and a device has ``budget["mib"]``."""
    given = {"mib": 1024.0}

    def profile_ops(network, model, client, threads, memory_bytes, device_bytes=None):
        nodes = network.graph(model.module).nodes
        costs = {
            n: Cost(node.flops * node.depth / 1e9, 8.0 * node.value_bytes)
            for n, node in enumerate(nodes)
            if node.flops
        }
        on_gpu = network.device != "cpu"
        return OpProfile(network.resolved(), costs, int(given["mib"] * MIB) if on_gpu else 0)

    monkeypatch.setattr(method, "profile_ops", profile_ops)
    return given


@pytest.fixture
def exact(client, budget, tmp_path):
    """Predicts on a device in small shards, within a budget there in MiB."""

    def run(volume, net, out="out.zarr", device="cuda", mib=1024.0, **options):
        budget["mib"] = mib
        options = {"chunk": 8, "shard": 8, "cluster": client, "progress": False} | options
        return vf.predict(volume, net, tmp_path / out, blend="exact", device=device, **options)

    return run


@pytest.fixture
def plan(client, budget, tmp_path):
    def made(volume, net, mib=1024.0, device="cuda", **options):
        budget["mib"] = mib
        options = {"chunk": 8, "shard": 8, "cluster": client} | options
        return plan_predict(
            volume, net, tmp_path / "plan.zarr", blend="exact", device=device, **options
        )

    return made


@pytest.fixture
def least(plan):
    """The least MiB on the device with which a plan is made: what its refusal names."""

    def found(volume, net, **options):
        with pytest.raises(MemoryRefused, match="device_memory=") as refused:
            plan(volume, net, mib=0.001, **options)
        return int(str(refused.value).split('device_memory="')[1].split("MiB")[0])

    return found


@pytest.fixture
def like_the_cpu(monkeypatch):
    """Runs on the device take the passes and blocks that the CPU would."""
    decide = method.decide

    def decided(request, client, memory_bytes):
        asked = replace(request.options, device="cpu")
        found = decide(replace(request, options=asked), client, memory_bytes)
        return replace(found, device=request.options.device)

    monkeypatch.setattr(method, "decide", decided)


def count(facts):
    return int(facts["passes"].split(",")[0])


@pytest.mark.slow
class TestEqual:
    @pytest.mark.parametrize("name", NETS)
    def test_to_the_whole_run_in_one_block_and_in_many(self, exact, plan, least, name):
        net, alignment = NETS[name]
        expected = whole(SCAN, net, alignment)
        assert error(exact(SCAN, net, "a.zarr")[:], expected) < CLOSE[name]
        mib = least(SCAN, net)
        tight = plan(SCAN, net, mib)
        assert tight.device_peak_bytes <= tight.device_memory_bytes == mib * MIB
        result = exact(SCAN, net, "b.zarr", mib=mib)
        assert error(result[:], expected) < CLOSE[name]
        assert vf.verify(result.path).ok

    @pytest.mark.usefixtures("like_the_cpu")
    def test_through_passes_that_keep_activations(self, exact, plan):
        net = NETS["instance"][0]
        assert count(plan(SCAN, net, memory="49MiB").to_dict()) > 3
        expected = whole(SCAN, net, 4)
        assert error(exact(SCAN, net, memory="49MiB")[:], expected) < EXACT
        single = exact(SCAN.astype("f4"), copy.deepcopy(net).float(), "f4.zarr", memory="114MiB")
        assert error(single[:], expected) < 1e-4

    def test_of_several_outputs(self, exact, least):
        net = nets.Named(NETS["instance"][0], NETS["convolutions"][0])
        found = exact(SCAN, net, mib=least(SCAN, net))
        assert error(found["seg"][:], whole(SCAN, NETS["instance"][0], 4)) < EXACT
        assert error(found["edge"][:], whole(SCAN, NETS["convolutions"][0], 4)) < EXACT

    @pytest.mark.nightly
    @pytest.mark.parametrize("activation", ["softmax", torch.sigmoid_])
    @pytest.mark.parametrize("output", ["scores", "classes"])
    @pytest.mark.usefixtures("like_the_cpu")
    def test_of_all_that_is_stored(self, exact, activation, output):
        net, options = NETS["convolutions"][0], {"activation": activation, "output": output}
        dtypes = (None, "uint16") if output == "classes" else (None, "float16", "uint8")
        for dtype in dtypes:
            results = [
                exact(50 * SCAN, net, f"{device}.zarr", device, dtype=dtype, memory="49MiB",
                      overwrite=True, **options)[:]
                for device in ("cpu", "cuda")
            ]  # fmt: skip
            assert results[0].dtype == results[1].dtype
            # From float64 torch casts to float16 in two steps, each of which rounds.
            assert np.allclose(*results, rtol=1e-12 if dtype != "float16" else 1e-3, atol=0)

    def test_in_a_frame(self, exact, least, tmp_path):
        net, frame = unet(2), Frame.between("SPL", "RAS")
        spec = VolumeSpec.of(SHAPE, SCAN.dtype, Meta(orientation="SPL"), chunk=8, shard=8)
        volume = create(tmp_path / "scan.zarr", spec)
        volume.write(Roi.full(SHAPE), SCAN)
        shown = np.ascontiguousarray(frame.show(SCAN[None]))
        result = exact(volume, net, frame="RAS", mib=least(volume, net, frame="RAS"))
        assert error(result[:], frame.store(whole(shown, net, 2))) < EXACT

    @pytest.mark.parametrize("norm", ["none", "instance"])
    def test_of_slices(self, exact, norm):
        net = unet(2, norm, dims=2)
        result = exact(SCAN, net, patch=(1, 8, 8), output="scores", mib=0.4)
        assert error(result[:], whole(SCAN, Sliced(net), (1, 2, 2))) < EXACT

    @pytest.mark.parametrize("name", ["convolutions", "instance", "weightless"])
    def test_of_map_model(self, client, tmp_path, budget, name):
        net, alignment = NETS[name]
        volume = vf.convert(SCAN, tmp_path / "scan.zarr", chunk=8, shard=8, progress=False)
        lazy = vf.map_model(volume, net, blend="exact", block=8, device="cuda")
        assert error(lazy.compute(scheduler=client), whole(SCAN, net, alignment)) < CLOSE[name]

    def test_profiled(self, client, device, tmp_path):
        net, alignment = NETS["instance"]
        result = vf.predict(
            SCAN, net, tmp_path / "out.zarr", blend="exact", device=device, cluster=client,
            device_memory="1MiB", chunk=8, shard=8, progress=False,
        )  # fmt: skip
        assert error(result[:], whole(SCAN, net, alignment)) < EXACT


@pytest.mark.slow
class TestArithmetic:
    @pytest.fixture
    def device(self, gpu):
        """The stand-in alone."""
        return "cuda"

    @pytest.mark.parametrize("name", ["convolutions", "strided", "max", "transposed"])
    @pytest.mark.usefixtures("like_the_cpu")
    def test_to_the_cpu_up_to_rounding_in_the_same_blocks(self, exact, name):
        net, scan = NETS[name][0], SCAN.astype("f4")
        net = copy.deepcopy(net).float()
        here, there = (
            exact(scan, net, f"{device}.zarr", device, memory="114MiB")[:]
            for device in ("cpu", "cuda")
        )
        # The CPU's own library, which no GPU has, adds up in another order.
        assert np.abs(here - there).max() <= 1e-6 * np.ptp(here)

    @pytest.mark.parametrize("precision", ["auto", "float32", "tf32"])
    def test_float32_is_rounded_only_where_it_is_asked_for(self, gpu, client, tmp_path, precision):
        net, alignment = NETS["instance"]
        before = gpu.counts()
        result = vf.predict(
            SCAN.astype("f4"), copy.deepcopy(net).float(), tmp_path / "out.zarr", blend="exact",
            precision=precision, device="cuda", cluster=client, device_memory="1MiB", chunk=8,
            shard=8, progress=False,
        )  # fmt: skip
        assert error(result[:], whole(SCAN, net, alignment)) < 1e-5
        loose = (gpu.counts() - before).by_kind("loose")
        assert set(loose) == ({"tf32"} if precision == "tf32" else set())


class TestBusy:
    @pytest.fixture
    def device(self, gpu):
        """The stand-in alone."""
        return "cuda"

    @pytest.fixture
    def counted(self, gpu, exact, monkeypatch):
        """What a second run of a network counts, and how many blocks it computes in all passes."""
        blocks, run = [], Pipeline.run

        def counting(pipeline, numbers, *rest):
            blocks.extend(numbers)
            return run(pipeline, numbers, *rest)

        monkeypatch.setattr(Pipeline, "run", counting)

        def found(scan, net, **options):
            exact(scan, net, "first.zarr", overwrite=True, **options)
            blocks.clear()
            before = gpu.counts()
            exact(scan, net, "again.zarr", overwrite=True, **options)
            return gpu.counts() - before, len(blocks)

        return found

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "name", ["group", "average", pytest.param("linear", marks=pytest.mark.nightly)]
    )
    def test_one_wait_a_block_and_nothing_pageable(self, counted, least, name):
        net = copy.deepcopy(NETS[name][0]).float()
        scans = [np.ones(shape, "f4") for shape in ((12, 16, 16), (36, 16, 16))]
        mib = least(scans[1], net)
        (less, few), (more, many) = (counted(scan, net, mib=mib) for scan in scans)
        assert few < many
        found = more - less
        assert found.pageable == 0
        assert found.syncs <= many - few

    @pytest.mark.slow
    def test_the_image_comes_once_and_voxels_leave_once(self, counted):
        net, scan = copy.deepcopy(NETS["convolutions"][0]).float(), np.ones((48, 48, 48), "f4")
        found, blocks = counted(scan, net, mib=8.0, output="classes", chunk=16, shard=16)
        assert blocks > 1
        assert found.d2h_bytes <= scan.size + 32 * blocks
        weights = sum(p.numel() * p.element_size() for p in net.parameters())
        assert found.h2d_bytes - weights <= 1.6 * scan.nbytes  # with margins

    @pytest.mark.slow
    def test_the_next_block_is_copied_on_a_stream_of_its_own(self, gpu, exact, least):
        net = NETS["instance"][0]
        before = gpu.counts()
        exact(SCAN, net, mib=least(SCAN, net))
        found = gpu.counts() - before
        others = [stream for stream in found.streams if stream != "cuda:0 stream 0"]
        assert sum(found.on(stream).h2d for stream in others) > 4
        assert sum(found.on(stream).kernels for stream in others) == 0


class TestBudgets:
    @pytest.fixture
    def device(self, gpu):
        """The stand-in alone."""
        return "cuda"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "factor"),
        [
            ("convolutions", 1),
            ("transposed", 1.5),
            pytest.param("instance", 1, marks=pytest.mark.nightly),
            ("instance", 4),
            ("gate", 2),
            ("strided", 1),
        ],
    )
    def test_a_run_keeps_to_what_its_plan_takes_of_the_device(
        self, gpu, exact, plan, least, name, factor
    ):
        net, scan = NETS[name][0], np.random.default_rng(0).random((24, 21, 30))
        mib = factor * least(scan, net)
        peak = plan(scan, net, mib).device_peak_bytes
        pool = gpu.pool()
        before = pool.allocated + sum(p.numel() * p.element_size() for p in net.parameters())
        pool.reset_peak()
        exact(scan, net, mib=mib)
        assert gpu.pool().peak - before <= peak <= mib * MIB

    @pytest.mark.slow
    def test_a_device_that_is_too_small_with_a_remedy_that_works(self, exact, tmp_path):
        net = NETS["transposed"][0]
        with pytest.raises(MemoryRefused, match="of the device but device_memory is 1 KiB") as no:
            exact(SCAN, net, mib=1 / 1024)
        assert "per worker" not in str(no.value)
        assert not list(tmp_path.glob("out*"))
        mib = int(str(no.value).split('device_memory="')[1].split("MiB")[0])
        assert error(exact(SCAN, net, mib=mib)[:], whole(SCAN, net, 4)) < EXACT

    def test_memory_is_not_replaced_by_that_of_the_device(self, exact, plan):
        net, scan = NETS["convolutions"][0], np.zeros((256, 256, 256))
        large = plan(scan, net, 2**14, memory="4GiB")
        small = plan(scan, net, 2**14, memory="200MiB")
        assert small.peak_bytes <= 200 * MIB < large.peak_bytes
        assert small.blocks > large.blocks
        with pytest.raises(MemoryRefused, match=r"per worker but memory is") as refused:
            plan(scan, net, 2**14, memory="48MiB")
        assert "device_memory" not in str(refused.value)
        memory = str(refused.value).split('memory="')[1].split('"')[0]
        assert plan(scan, net, 2**14, memory=memory).blocks > small.blocks

    @pytest.mark.slow
    def test_both_are_named_where_both_are_too_small(self, plan):
        with pytest.raises(MemoryRefused, match=r"per worker but .*, and .* of the device") as no:
            plan(SCAN, NETS["instance"][0], 0.001, memory="48MiB")
        text = str(no.value)
        memory = text.split('use memory="')[1].split('"')[0]
        mib = int(text.split('device_memory="')[1].split("MiB")[0])
        assert plan(SCAN, NETS["instance"][0], mib, memory=memory).blocks

    def test_both_are_printed(self, plan):
        text = plan(SCAN, NETS["instance"][0]).describe()
        assert "peak memory" in text
        assert "on the device  " in text
        assert "MiB on the device, about" in text

    def test_no_tensor_has_more_values_than_kernels_count(self, plan, monkeypatch):
        net = NETS["convolutions"][0]
        assert plan(SCAN, net).blocks == 1
        monkeypatch.setattr(peaks, "MOST_ELEMENTS", 12_000)
        assert plan(SCAN, net).blocks > 1
        assert plan(SCAN, net, device="cpu").blocks == 1
        monkeypatch.setattr(peaks, "MOST_ELEMENTS", 1000)
        with pytest.raises(MemoryRefused, match=r"cannot count; use device='cpu'"):
            plan(SCAN, net)


@pytest.mark.slow
class TestOutOfMemory:
    @pytest.fixture
    def device(self, gpu):
        """The stand-in alone."""
        return "cuda"

    @pytest.mark.parametrize(
        ("name", "times", "message"),
        [
            ("transposed", 1, "CUDA out of memory."),
            ("gate", 2, "CUDNN_STATUS_ALLOC_FAILED"),
            ("instance", 5, "unable to find an engine to execute"),
            ("weightless", 5, "CUDA out of memory."),
        ],
    )
    def test_a_block_is_tried_again_and_then_halved(self, gpu, exact, name, times, message):
        net, alignment = NETS[name]
        gpu.fail_allocations(times, 40_000 if name != "weightless" else 10_000, message)
        result = exact(SCAN, net)
        assert not any(failure.left for pool in gpu.pools for failure in pool.failures)
        assert error(result[:], whole(SCAN, net, alignment)) < CLOSE[name]

    @pytest.mark.usefixtures("like_the_cpu")
    def test_so_are_the_passes_before_the_last(self, gpu, exact):
        net = NETS["instance"][0]
        gpu.fail_allocations(9, 50_000)
        assert error(exact(SCAN, net, memory="52MiB")[:], whole(SCAN, net, 4)) < EXACT
        assert not any(failure.left for pool in gpu.pools for failure in pool.failures)

    def test_what_never_fits_is_told(self, exact, monkeypatch):
        def never(*given):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.99 GiB.")

        monkeypatch.setattr(Blockwise, "compute", never)
        with pytest.raises(MemoryRefused, match=r"1×1×1 voxels do not fit in the memory of cuda:0"):
            exact(SCAN, NETS["convolutions"][0])


@pytest.mark.slow
class TestInterrupted:
    @pytest.fixture
    def device(self, gpu):
        """The stand-in alone."""
        return "cuda"

    def test_a_run_goes_on_where_it_stopped(self, exact, least, monkeypatch, tmp_path):
        net = NETS["instance"][0]
        mib, done, most = least(SCAN, net), [], [float("inf")]
        wanted = exact(SCAN, net, "whole.zarr", mib=mib)[:]

        def counted(owner, name):
            inner = getattr(owner, name)

            def counting(*given):
                if len(done) >= most[0]:
                    raise ConnectionError("too tired")
                done.append(name)
                return inner(*given)

            monkeypatch.setattr(owner, name, counting)

        counted(keeping, "pass_block")
        counted(method.ExactWindow, "begun")
        exact(SCAN, net, "counted.zarr", mib=mib)
        total = len(done)
        done.clear()
        most[0] = total // 2
        with pytest.raises(RunFailed, match="too tired"):
            exact(SCAN, net, mib=mib)
        begun, most[0] = len(done), float("inf")
        done.clear()
        result = exact(SCAN, net, mib=mib)
        # The block before the one that failed had been computed, and was not written.
        assert total - begun <= len(done) <= total - begun + 1
        assert np.array_equal(result[:], wanted)
        assert vf.verify(result.path).ok
