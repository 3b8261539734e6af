"""How a forward is found that is fast on a device and fits: its layout, its batch, its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests import nets
from volflow.errors import InvalidInput, MemoryRefused
from volflow.model import search
from volflow.model.forward import Forward
from volflow.model.resident import ModelPlugin, held
from volflow.model.trial import probe

SPELLINGS = [
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "CUDA error: out of memory",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation",
]


@pytest.fixture
def probed():
    """Returns what the probe of a network finds, which stays resident with its trials."""
    plugins = []

    def found(net, *, patch=(8, 8, 8), batch=None, most=64, memory=None, precision="float32"):
        digest = f"probed {id(net)}"
        plugins.append(ModelPlugin(net, digest))
        plugins[-1].setup()
        forward = Forward(digest, patch, 1, "cuda", precision)
        return probe(forward, batch, 2**32, 1, most, memory)

    yield found
    for plugin in plugins:
        plugin.teardown()


@pytest.fixture
def seconds(monkeypatch):
    """Decides how long a forward takes, given its layout and its batch."""

    def decide(takes):
        def timed(device, run, most):
            run()
            (batch,) = run.args
            return takes(run.func.layout, len(batch))

        monkeypatch.setattr(search, "timed", timed)

    return decide


def test_a_real_device_finds_something(device, probed):
    found = probed(nets.random_net(), most=5)
    assert found.device == "cuda"
    assert found.layout in ("contiguous", "channels_last")
    assert 1 <= found.batch_size <= 5
    assert 0 == found.peak_bytes < found.device_peak_bytes < found.device_memory_bytes


class TestBatch:
    @pytest.mark.parametrize(("most", "size"), [(1, 1), (5, 5), (8, 8), (200, 50)])
    def test_it_is_no_larger_than_the_row_and_divides_it_evenly(self, gpu, probed, most, size):
        assert probed(nets.random_net(), most=most).batch_size == size

    @pytest.mark.parametrize(
        ("gains", "size"), [((1, 1.06, 1.2, 1.21), 4), ((1, 1.04, 9), 1), ((1, 0.5), 1)]
    )
    def test_it_grows_while_a_patch_gets_faster(self, gpu, probed, seconds, gains, size):
        rates = {2**n: gain for n, gain in enumerate(gains)}
        seconds(lambda layout, batch: batch / rates[batch])
        assert probed(nets.random_net()).batch_size == size

    def test_it_fits_in_its_share(self, gpu, probed):
        one = probed(nets.random_net(), most=1).device_peak_bytes
        found = probed(nets.random_net(), memory=10 * one)
        assert found.batch_size == 4
        assert one < found.device_peak_bytes <= 5 * one
        assert found.device_memory_bytes == 10 * one

    def test_what_is_asked_for_is_tried_as_it_is(self, gpu, probed):
        assert probed(nets.random_net(), batch=7, most=3).batch_size == 7
        greedy = nets.Greedy(nn.Conv3d(1, 1, 1), 2, always=True)
        assert probed(greedy, batch=7).batch_size == 7

    def test_what_does_not_fit_is_not_taken(self, gpu, probed):
        greedy = nets.Greedy(nn.Conv3d(1, 1, 1), 5, always=True)
        assert probed(greedy).batch_size == 4

    def test_other_errors_come_through(self, gpu, probed):
        class Picky(nn.Module):
            def forward(self, image):
                if len(image) > 2:
                    raise KeyError("four")
                return image

        with pytest.raises(KeyError, match="four"):
            probed(Picky())

    def test_more_memory_than_there_is_is_refused(self, gpu, probed):
        with pytest.raises(MemoryRefused, match=r"device_memory is 9 TiB, and cuda:0 has .* free;"):
            probed(nets.random_net(), memory=9 * 2**40)

    def test_a_loop_over_cases_tries_once(self, gpu):
        net, sizes = nets.random_net(), []
        net.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
        found = []
        for _ in range(3):
            with held(ModelPlugin(net, "case after case")):
                forward = Forward("case after case", (8, 8, 8), 1, "cuda")
                found.append(probe(forward, None, 2**32, 1, 5))
                tried = len(sizes)
                sizes.clear()
        assert tried == 0
        assert found[0] == found[1] == found[2]

    def test_nothing_is_copied_but_the_weights(self, gpu, probed):
        net, before = nn.Conv3d(1, 2, 3, padding=1), gpu.counts()
        probed(net)
        assert (gpu.counts() - before).h2d_bytes == 2 * 4 * (54 + 2)  # in both layouts
        assert (gpu.counts() - before).d2h_bytes == 0


class TestLayout:
    @pytest.mark.parametrize(
        ("share", "layout"), [(0.9, "channels_last"), (0.98, "contiguous"), (2, "contiguous")]
    )
    def test_the_clearly_faster_one_is_taken(self, gpu, probed, seconds, share, layout):
        seconds(lambda given, batch: 1.0 if given == "contiguous" else share)
        assert probed(nets.random_net(), most=1).layout == layout
        assert probed(nets.slice_net(), patch=(1, 8, 8), most=1).layout == layout

    def test_without_convolutions_there_is_only_one(self, gpu, probed, seconds):
        seconds(lambda layout, batch: 1.0 if layout == "contiguous" else 0.1)
        assert probed(nn.BatchNorm3d(1).eval(), most=1).layout == "contiguous"
        assert probed(nets.slice_net(), patch=(1, 8, 8), most=1).layout == "channels_last"

    def test_a_model_may_refuse_the_other(self, gpu, probed, seconds):
        class Viewed(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nets.random_net()

            def forward(self, image):
                if not self.layer[2].weight.is_contiguous():
                    raise RuntimeError("view size is not compatible with input tensor's size")
                return self.layer(image)

        seconds(lambda layout, batch: 1.0 if layout == "contiguous" else 0.1)
        assert probed(Viewed(), most=1).layout == "contiguous"

    def test_it_is_recorded_and_kept_by_a_resumed_run(self, gpu, seconds, tmp_path):
        scan, net = np.zeros((16, 16, 16), "float32"), nets.random_net()
        options = {"patch": 8, "device": "cuda", "progress": False, "precision": "float32"}
        seconds(lambda layout, batch: 1.0 if layout == "contiguous" else 0.1)
        vf.predict(scan, net, tmp_path / "out.zarr", **options)
        seconds(lambda layout, batch: 1 / 0)
        plan = vf.plan_predict(scan, net, tmp_path / "out.zarr", **options)
        assert plan.job.window.forward.layout == "channels_last"
        assert ("device", "cuda float32, batches of 3, channels_last") in plan.facts
        assert plan.device_peak_bytes > 0


class TestElements:
    def test_a_batch_stays_below_what_kernels_count(self, gpu, probed, monkeypatch):
        monkeypatch.setattr(search, "MOST_ELEMENTS", 3 * 4 * 8**3 + 1)
        assert probed(nets.random_net(), most=12).batch_size == 3

    @pytest.mark.parametrize(
        ("batch", "remedy"), [(None, "a smaller patch"), (2, r"batch_size=1 \(--batch-size\)")]
    )
    def test_more_is_refused(self, gpu, probed, monkeypatch, batch, remedy):
        # The widest layer has four channels.
        monkeypatch.setattr(search, "MOST_ELEMENTS", 4 * 8**3 - (batch is None))
        message = (
            rf"a batch of {batch or 1} patches of \(8, 8, 8\) makes a tensor of [\d,]+ elements in"
            rf" the network, and a GPU takes [\d,]+; use {remedy}$"
        )
        with pytest.raises(InvalidInput, match=message):
            probed(nets.random_net(), batch=batch)


class TestExhausted:
    @pytest.mark.parametrize("words", SPELLINGS)
    def test_a_batch_is_halved_however_it_is_said(self, gpu, words):
        net = nets.random_net()
        image = torch.rand(6, 1, 8, 8, 8)
        with held(ModelPlugin(net, "exhausted")):
            forward = Forward("exhausted", (8, 8, 8), 1, "cuda")
            forward.module()
            batch = image.to("cuda")
            gpu.fail_allocations(2, above_bytes=20_000, message=words)  # what the first layer makes
            outputs, size = forward.run_with_oom_retry(batch, 6)
        assert size == 1
        torch.testing.assert_close(outputs[""].cpu(), net(image).detach())

    @pytest.mark.parametrize("words", SPELLINGS)
    def test_a_patch_that_does_not_fit_is_refused_in_its_words(self, gpu, probed, words):
        gpu.fail_allocations(99, above_bytes=4000, message=f"{words}\nand a trace")
        with pytest.raises(InvalidInput) as refused:
            probed(nets.random_net(), batch=2)
        assert str(refused.value) == (
            "one patch of (8, 8, 8) does not fit in the memory of cuda; use a smaller patch;"
            f" PyTorch says: {words.removesuffix('.')}"
        )

    def test_what_the_failed_forward_made_is_given_back(self, gpu):
        class Hungry(nn.Module):
            def forward(self, image):
                kept = image + 1
                if len(image) > 1:
                    raise torch.OutOfMemoryError("out of memory")
                left.append(torch.cuda.memory_reserved())
                return kept

        left = []
        with held(ModelPlugin(Hungry(), "hungry")):
            batch = torch.rand(2, 1, 128, 64, 64).to("cuda")
            reserved = torch.cuda.memory_reserved()
            Forward("hungry", (128, 64, 64), 1, "cuda").run_with_oom_retry(batch, 2)
        assert left[0] <= reserved + 2 * 2**20 + batch.numel() * 2
