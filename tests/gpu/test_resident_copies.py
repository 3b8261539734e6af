"""A model on a device is a copy: the caller's stays where it is, as it is, and can be trained."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests import nets
from volflow.errors import InvalidInput
from volflow.model.device import numbered
from volflow.model.forward import Forward
from volflow.model.resident import ModelPlugin, drop_copy, held, resident

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def scan():
    return np.random.default_rng(0).random((12, 20, 24), "float32")


def train(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    loss = net.train()(torch.ones(1, 1, 8, 8, 8)).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


class Locked(nn.Identity):
    """What can be neither copied nor pickled."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.lock = threading.Lock()


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["gaussian", "exact"])
def test_a_model_is_trained_on_after_a_prediction(device, scan, tmp_path, blend):
    net = nets.random_net()
    losses, before = [train(net)], list(net.parameters())
    options = {"patch": 8, "blend": blend, "device": device, "precision": "float32"}
    found = vf.predict(scan, net, tmp_path / "a.zarr", progress=False, **options)[:]
    losses.append(train(net))
    assert losses[1] < losses[0]
    for one, other in zip(net.parameters(), before, strict=True):
        assert one is other
        assert one.device == CPU
        assert not one.is_inference()
        assert one.requires_grad
    again = vf.predict(scan, net, tmp_path / "b.zarr", progress=False, **options)[:]
    assert not np.array_equal(found, again)


def test_there_is_one_on_each_device(device):
    net = nets.random_net()
    with held(ModelPlugin(net, "each")):
        moved = resident("each", CUDA)
        assert resident("each", CPU) is net
        assert resident("each", CUDA) is moved is not net
        assert {one.device for one in moved.parameters()} == {numbered(CUDA)}
        assert not any(one.is_inference() for one in moved.parameters())


def test_what_lies_on_the_device_is_used_as_it_is(device):
    net = nets.random_net()
    with held(ModelPlugin(net, "there")):
        moved = resident("there", CUDA)
    with held(ModelPlugin(moved, "moved")):
        assert resident("moved", CUDA) is moved
        back = resident("moved", CPU)
        assert back is not moved
        for one, other in zip(back.parameters(), net.parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_layout_is_that_of_the_copy_alone(device):
    net = nets.random_net()
    kernel = net[0].weight
    strides = kernel.stride()
    with held(ModelPlugin(net, "layout")):
        last = resident("layout", CUDA, "channels_last")
        plain = resident("layout", CUDA)
        assert last[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert plain[0].weight.is_contiguous()
        assert kernel.stride() == strides
        assert resident("layout", CPU, "channels_last") is net
        image = torch.rand(2, 1, 8, 8, 8)
        for layout in ("contiguous", "channels_last"):
            forward = Forward("layout", (8, 8, 8), 1, "cuda", layout=layout)
            found = forward(image.to(numbered(CUDA)))[""].cpu()
            torch.testing.assert_close(found, net(image).detach(), rtol=1e-4, atol=1e-5)


def test_slices_have_a_layout_too(device):
    net = nn.Conv2d(1, 2, 3, padding=1)
    with held(ModelPlugin(net, "slices")):
        forward = Forward("slices", (1, 8, 8), 1, "cuda", layout="channels_last")
        image = torch.rand(2, 1, 1, 8, 8)
        found = forward(image.to(numbered(CUDA)))[""].cpu()
        torch.testing.assert_close(found[:, :, 0], net(image[:, :, 0]).detach())
        weight = forward.module().weight
        assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_trained_weight_norm_is_copied_by_pickle(device):
    net = nn.Sequential(nn.utils.weight_norm(nn.Conv3d(1, 1, 3, padding=1)))
    train(net)
    with held(ModelPlugin(net, "normed")):
        image = torch.rand(1, 1, 8, 8, 8)
        found = Forward("normed", (8, 8, 8), 1, "cuda")(image.to(numbered(CUDA)))[""].cpu()
        torch.testing.assert_close(found, net(image).detach(), rtol=1e-4, atol=1e-5)
    train(net)


def test_what_cannot_be_copied_is_refused_with_the_remedy(device):
    with (
        held(ModelPlugin(Locked(), "locked")),
        pytest.raises(InvalidInput, match=r"cannot be copied to cuda:0: .*; move it there yourse"),
    ):
        resident("locked", CUDA)


def test_a_loop_over_cases_moves_the_weights_once(gpu):
    net, image = nets.random_net(), torch.rand(1, 1, 8, 8, 8).to("cuda")
    weights = sum(one.numel() * one.element_size() for one in net.parameters())
    moved = []
    for _ in range(3):
        before = gpu.counts()
        with held(ModelPlugin(net, "cases")):
            Forward("cases", (8, 8, 8), 1, "cuda")(image)
        moved.append((gpu.counts() - before).h2d_bytes)
    assert moved == [weights, 0, 0]
    before = gpu.counts()
    with held(ModelPlugin(nets.random_net(seed=1), "another")), held(ModelPlugin(net, "cases")):
        Forward("cases", (8, 8, 8), 1, "cuda")(image)
    assert (gpu.counts() - before).h2d_bytes == weights


def test_a_copy_that_is_not_wanted_is_dropped(gpu):
    with held(ModelPlugin(nets.random_net(), "dropped")):
        first = resident("dropped", CUDA)
        drop_copy("dropped", CUDA, "contiguous")
        assert resident("dropped", CUDA) is not first


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["gaussian", "exact"])
def test_all_of_a_run_is_on_its_device(gpu, scan, tmp_path, blend):
    net, options = nets.random_net(), {"progress": False, "blend": blend, "precision": "float32"}
    options |= {"patch": 8} if blend != "exact" else {}
    expected = vf.predict(scan, net, tmp_path / "a.zarr", device="cpu", **options)[:]
    before = gpu.counts()
    found = vf.predict(scan, net, tmp_path / "b.zarr", device="cuda:1", **options)[:]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    used = (gpu.counts() - before).streams
    assert used
    assert all(stream.startswith("cuda:1") for stream in used)
