"""In float32 the gradients of a step out of core are as near to float64 as those of plain autograd.

Compared are the worst tensor of each, and all together.

The networks are smooth, so that what is compared is how sums are rounded. A ReLU whose input
float32 rounds to the other side of zero, or a maximum that it finds in another voxel, moves a
gradient by all that a voxel gives, up to a thousand times as much as sums do. About one voxel in
ten million does so, in blocks as well as in plain autograd: whether it is this step's is chance.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from partition_oracle import image
from torch import Tensor
from training_oracle import DiceEntropy, plain_step, target_of, whole_step

from tests.nets import smooth
from volflow.model.unet import UNet
from volflow.training import planned

SIZE = (32, 32, 32)
ALLOWED = 2  # times the error of plain autograd


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(planned, "SIDES", (16,))


def errors(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> tuple[float, float]:
    """Errors of gradients: of the worst tensor by its own norm, and of all by that of all."""
    off = {n: float((found[n].double() - g).norm()) for n, g in truth.items()}
    sizes = {n: float(g.norm()) for n, g in truth.items()}
    every = sum(size**2 for size in sizes.values()) ** 0.5
    # A bias in front of a norm has a true gradient of zero, which has no size of its own.
    worst = max(off[n] / size for n, size in sizes.items() if size > 1e-9 * every)
    return worst, sum(one**2 for one in off.values()) ** 0.5 / every


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
def test_the_worst_tensor_is_as_near_to_float64_as_that_of_plain_autograd(norm, seed):
    torch.manual_seed(seed)
    net = smooth(UNet(1, 2, features=(4, 8, 16), norm=norm)).train()
    x, loss = image(SIZE, 1, seed).float(), DiceEntropy(target_of(SIZE, seed=seed))
    truth = plain_step(copy.deepcopy(net).double(), x.double(), SIZE, loss)
    plain = errors(plain_step(net, x, SIZE, loss).weights, truth.weights)
    ours = errors(whole_step(net, x, loss).weights, truth.weights)
    assert 0 < plain[0] < 1e-3
    assert ours[0] <= ALLOWED * plain[0]
    assert ours[1] <= ALLOWED * plain[1]
