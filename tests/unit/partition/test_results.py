"""Results known without torch's own inference equal it: shape, dtype and memory order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from volflow.partition import trace as trace_module
from volflow.partition.trace import trace

CHANNELS = 4
WEIGHT = torch.ones(CHANNELS)
OPS = {
    "activations": lambda x: F.hardswish(F.elu(F.gelu(F.leaky_relu(x)))) + F.softplus(F.mish(x)),
    "adaptive pool": lambda x: F.adaptive_avg_pool3d(x, 1),
    "arithmetic": lambda x: 1 - (x * 2 + x.clamp(0, 1)).lerp(x, 0.5) / x.exp(),
    "batch norm": lambda x: F.batch_norm(x, WEIGHT, WEIGHT, WEIGHT, WEIGHT),
    "broadcast": lambda x: x * torch.sigmoid(x.mean((2, 3, 4), keepdim=True)),
    "cat": lambda x: torch.cat([x, torch.cat((x, x), dim=-4)], 1),
    "comparison": lambda x: torch.where(x > 0, x, -x),
    "double": lambda x: x * torch.ones(1, CHANNELS, 1, 1, 1, dtype=torch.float64),
    "group norm": lambda x: F.group_norm(x, 2, WEIGHT, WEIGHT),
    "instance norm": lambda x: F.instance_norm(x, weight=WEIGHT, bias=WEIGHT),
    "integers": lambda x: (x > 0) + 1,
    "log softmax": lambda x: x.log_softmax(1),
    "mean": lambda x: x.mean(1, True) + x.sum(dim=1, keepdim=True) + x.amax(1).unsqueeze(1),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "permuted": lambda x: x.permute(0, 2, 3, 4, 1).relu() * 2,
    "prelu": lambda x: F.prelu(x, WEIGHT),
    "trilinear": lambda x: F.interpolate(x, (7, 9, 12), mode="trilinear"),
}


class Op(nn.Module):
    """A module of one function."""

    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return self.op(x)


@pytest.mark.parametrize("name", OPS)
def test_results_are_those_of_torch(name, monkeypatch):
    known = []
    result_of = trace_module.result_of

    def compared(call):
        found = result_of(call)
        if found is not None:
            known.append(call.name)
            wanted = call.tracer.infer(call)
            assert found.shape == wanted.shape, call.name
            assert found.dtype == wanted.dtype, call.name
            assert found.stride() == wanted.stride(), call.name
            assert found.device == wanted.device, call.name
        return found

    monkeypatch.setattr(trace_module, "result_of", compared)
    trace(Op(OPS[name]), CHANNELS, (6, 8, 10), torch.float32)
    assert known


def test_a_wrong_call_raises_in_torchs_own_words():
    with pytest.raises(RuntimeError, match="broadcast a dimension of length 3"):
        trace(Op(lambda x: x + torch.ones(1, 3, 1, 1, 1)), CHANNELS, (6, 8, 10))
