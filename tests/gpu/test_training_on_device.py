"""Steps of training on a GPU: the gradients of plain autograd on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import volflow as vf
from tests.partition_oracle import enlarged, image
from tests.training_oracle import Step, assert_same_step, padded, target_of
from volflow.training import planned

SIZE, SIZES = (11, 12, 18), (12, 12, 20)
LOSS = vf.losses.DiceCE(batch=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(planned, "SIDES", (12,))


def unet(norm):
    torch.manual_seed(0)
    return enlarged(vf.UNet(1, 2, (2, 4, 4), norm=norm), 1.5).train()


def plain(net, x, target):
    net = copy.deepcopy(net)
    scores = net(padded(x, SIZES))[(..., *(slice(0, n) for n in SIZE))]
    value = LOSS(scores, target)
    value.backward()
    gradients = {name: p.grad for name, p in net.named_parameters()}
    return Step(value.detach(), gradients, x, dict(net.named_buffers()))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_step_is_that_of_the_cpu(device, norm):
    net, x, target = unet(norm), image(SIZE, 1), target_of(SIZE)
    expected = plain(net, x, target)
    whole = vf.WholeVolume(net, "1GiB", device=device)
    value = whole.step(x, target, LOSS)
    gradients = {name: p.grad for name, p in net.named_parameters()}
    assert_same_step(expected, Step(value, gradients, x, dict(net.named_buffers())))
    assert all(p.device.type == "cpu" for p in net.parameters())
    net.zero_grad()
    LOSS(whole(x), target).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.slow
def test_pools_and_dropout_run_on_a_device(device):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.Dropout(0.3), nn.MaxPool3d(2), nn.GroupNorm(2, 4),
        nn.Conv3d(4, 4, 3, padding=1), nn.ConvTranspose3d(4, 2, 2, stride=2),
    )  # fmt: skip
    net = enlarged(net).train()
    x, target = image(SIZES, 1), target_of(SIZES)
    there, here = copy.deepcopy(net), copy.deepcopy(net)
    one = vf.WholeVolume(there, "1GiB", device=device).step(x, target, LOSS)
    two = vf.WholeVolume(here, "1GiB", device="cpu").step(x, target, LOSS)
    assert abs(float(one - two)) < 1e-12
    for a, b in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
