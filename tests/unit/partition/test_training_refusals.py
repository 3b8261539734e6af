"""What has no exact gradient is refused by name, and the module is left as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.partition_oracle import Apply
from tests.pulled import DRAWS, check_gradients
from volflow.errors import NoExactRule
from volflow.partition.trace import trace

SIZES = (4, 5, 6)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Held(nn.Module):
    """Holds a buffer, and does something with it."""

    def __init__(self, function):
        super().__init__()
        self.register_buffer("seen", torch.ones(1, 2, 1, 1, 1))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


def replaced(m, x):
    m.seen = m.seen * 0.9 + x.mean((2, 3, 4), keepdim=True) * 0.1
    return x - m.seen


def counted(m, x):
    m.seen = m.seen + 1
    return x


def held_back(x):
    with torch.no_grad():
        return x * 2


def another_autocast(x):
    with torch.autocast("cpu", torch.bfloat16):
        return x * 2


REFUSED = {
    "under no_grad": (Apply(held_back), "mul in 1", "under no_grad (leave that out and detach()"),
    "own function": (Apply(Doubled.apply), "mul in 1", "autograd function"),
    "reentrant": (Apply(lambda x: checkpoint(torch.relu, x, use_reentrant=True)), "in 1", ""),
    "hook of a tensor": (
        Apply(lambda x: x.register_hook(print) and x), "register_hook in 1", "gradients are"),
    "kept gradient": (Apply(lambda x: x.retain_grad() or x), "retain_grad in 1", "gradients are"),
    "asks": (Apply(lambda x: x if x.requires_grad else -x), "requires_grad in 1", "gradients are"),
    "gradient inside": (
        Apply(lambda x: torch.autograd.grad(x.sum(), x)[0]), "grad in 1", "gradients are"),
    "buffer in place": (Held(lambda m, x: x * m.seen.mul_(0.9)), "mul_ in 1", "own state"),
    "part of a buffer": (Held(lambda m, x: x * m.seen[0].mul_(0.9)), "mul_ in 1", "own state"),
    "data of a buffer": (Held(lambda m, x: x * m.seen.data.mul_(0.9)), "mul_ in 1", "own state"),
    "written to a buffer": (
        Held(lambda m, x: x * torch.mul(m.seen, 2, out=m.seen)), "mul in 1", "own state"),
    "image in a buffer": (Held(replaced), "the buffer seen in 1", "in its place"),
    "buffer replaced": (Held(counted), "the buffer seen in 1", "in its place"),
    "spectral norm": (
        nn.utils.parametrizations.spectral_norm(nn.Conv3d(2, 2, 1)),
        "normalize in 1.parametrizations.weight.0", "own state"),
    "spectral norm, old": (nn.utils.spectral_norm(nn.Conv3d(2, 2, 1)), "in 1", "own state"),
    "tracked instance norm": (
        nn.InstanceNorm3d(2, track_running_stats=True), "instance_norm in 1", "updates"),
    "alpha dropout": (nn.AlphaDropout(), "alpha_dropout in 1", "only dropout"),
    "feature alpha dropout": (nn.FeatureAlphaDropout(), "feature_alpha_dropout in 1", "only"),
    "rrelu": (nn.RReLU(), "rrelu in 1", "random"),
    "noise": (Apply(lambda x: x + torch.randn_like(x)), "randn_like in 1", "random"),
    "drawn apart": (Apply(lambda x: x * torch.rand(1)), "rand in 1", "use nn.Dropout"),
    "drawn in place": (
        Apply(lambda x: x * torch.empty(1).bernoulli_(0.5)), "bernoulli_ in 1", "use nn.Dropout"),
    "dropped weights": (
        Apply(lambda x: x * F.dropout(torch.ones(1), 0.5, True)), "dropout in 1", "use nn.Dropout"),
    "autocast": (Apply(another_autocast), "mul in 1", "autocast region"),
    "values": (Apply(lambda x: x / x.max().item()), "item in 1", "values"),
    "data": (Apply(lambda x: x.data * 2), "data in 1", "table"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_no_rule_no_gradient(case):
    module, place, why = REFUSED[case]
    net = nn.Sequential(nn.Conv3d(1, 2, 1), module).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(NoExactRule) as caught:
        trace(net, 1, SIZES, training=DRAWS)
    message = str(caught.value)
    assert f"{place} has no exact rule in training: " in message
    assert why in message
    assert message.endswith("; train on patches instead (vf.PatchStream)")
    assert before.keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert type(value) is torch.Tensor, name
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_hooks_that_see_gradients(kind):
    net = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Sequential(nn.ReLU()))
    getattr(net[1][0], kind)(lambda *_: None)
    with pytest.raises(NoExactRule, match=r"a backward hook in 1\.0 has no exact rule in training"):
        trace(net, 1, SIZES, training=DRAWS)
    trace(net.eval(), 1, SIZES)


def test_what_is_detached_has_no_gradient_as_torch_has_it():
    check_gradients(Apply(lambda x: x * x.detach().mean((2, 3, 4), keepdim=True)), SIZES)
    check_gradients(Apply(lambda x: x * x.mean((2, 3, 4), keepdim=True).detach()), SIZES)
    check_gradients(Apply(lambda x: x * (2 * x.sigmoid()).detach()), SIZES)  # as under no_grad
    check_gradients(Apply(lambda x: checkpoint(torch.sigmoid, x, use_reentrant=False) * 2), SIZES)
