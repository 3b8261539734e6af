"""In float32 a step in blocks is as near to the truth, in float64, as that of plain autograd."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from partition_oracle import Apply, enlarged, image
from torch import nn
from training_oracle import DiceEntropy, Step, blocked_step, plain_step, target_of

from volflow.model.unet import UNet
from volflow.partition.rules.norming.normalized import normalized

SIZE = (16, 16, 20)
ALLOWED = 2  # times the error of plain autograd


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2)


def error(found: Step, truth: Step) -> float:
    """The worst over the parameters, relative to the largest gradient of each."""
    worst = 0.0
    largest = max(float(g.abs().max()) for g in truth.weights.values() if g is not None)
    for name, expected in truth.weights.items():
        gradient = found.weights[name]
        assert expected is not None
        assert gradient is not None
        scale = float(expected.abs().max())
        if scale > 1e-6 * largest:  # a bias in front of a norm has a true gradient of 0
            worst = max(worst, float((gradient.double() - expected).abs().max()) / scale)
    return worst


def gated(self, x):
    x = F.gelu(self.norm(self.first(x)))
    gate = self.gate(x.mean((2, 3, 4), keepdim=True)).sigmoid() * x.amax((2, 3, 4), keepdim=True)
    return self.last(x * gate)


NETS = {
    "batch": lambda: UNet(1, 2, features=(4, 8), norm="batch"),
    "instance": lambda: UNet(1, 2, features=(4, 8), norm="instance", up="linear"),
    "group": lambda: UNet(1, 2, features=(4, 8), norm="group"),
    "none": lambda: UNet(1, 2, features=(4, 8), norm="none"),
    "gated": lambda: Apply(
        gated, first=conv(1), norm=nn.InstanceNorm3d(4, affine=True), gate=conv(kernel=1),
        last=conv(outputs=2),
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_it_is_as_near_to_the_truth_as_plain_autograd(name):
    torch.manual_seed(3)
    net = enlarged(NETS[name](), 1.5).float().train()
    x, loss = image(SIZE, 1).float(), DiceEntropy(target_of(SIZE))
    truth = plain_step(copy.deepcopy(net).double(), x.double(), SIZE, loss)
    plain = error(plain_step(net, x, SIZE, loss), truth)
    assert 0 < plain < 1e-2
    blocked = blocked_step(net, x, SIZE, loss)
    assert all(g is None or g.dtype == torch.float32 for g in blocked.weights.values())
    assert error(blocked, truth) <= ALLOWED * plain


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_a_norm_sums_voxels_that_are_alike(layout):
    """Torch's own sums lose up to three digits: all additions round one way."""
    x, g = torch.full((1, 4, 48, 48, 48), 1.3), torch.full((1, 4, 48, 48, 48), 0.7)
    given = torch.tensor([0.1, -0.2, 0.3, 1.2]), *torch.tensor([[0.9], [1.1], [0.2]]).expand(3, 4)

    def gradients(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        tensors = [t.to(dtype).requires_grad_() for t in (x.to(memory_format=layout), *given)]
        return torch.autograd.grad(normalized(*tensors, 1e-5), tensors, g.to(dtype))

    for found, truth in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=1e-6, atol=0)
