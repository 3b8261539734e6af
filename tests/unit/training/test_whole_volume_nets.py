"""`vf.WholeVolume` takes the steps of plain autograd with networks of every kind."""

from __future__ import annotations

from functools import partial

import pytest
from partition_oracle import Apply, enlarged, image
from torch import nn
from training_oracle import DiceEntropy, assert_same_step, plain_step, target_of, whole_step

import volflow as vf
from volflow.errors import NoExactRule
from volflow.training import planned

SIZE = (8, 10, 12)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(planned, "SIDES", (6,))


NORMS = {
    "batch": nn.BatchNorm3d, "instance": partial(nn.InstanceNorm3d, affine=True),
    "group": partial(nn.GroupNorm, 2),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_a_norm_right_before_a_convolution(norm, training):
    """Torch's gradient of a norm depends on how the tensors lie that were read from disk."""
    layers = nn.Conv3d(1, 4, 3, padding=1), NORMS[norm](4), nn.Conv3d(4, 2, 3, padding=1)
    net, x = enlarged(nn.Sequential(*layers), 1.5).train(training), image(SIZE, 1)
    loss = DiceEntropy(target_of(SIZE))
    assert_same_step(plain_step(net, x, SIZE, loss), whole_step(net, x, loss))


@pytest.mark.parametrize(
    "function",
    [lambda x: x.transpose(2, 4), lambda x: x.movedim(1, -1), lambda x: x.mean((2, 3, 4))],
)
def test_outputs_that_are_no_images_are_refused(function):
    net = Apply(lambda m, x: function(m.layer(x)), layer=nn.Conv3d(1, 2, 1)).double()
    x = image((8, 8, 8), 1)
    with pytest.raises(NoExactRule, match=r"^the output of the model has shape .* whose dims are"):
        vf.WholeVolume(net, "1GiB", device="cpu")(x)
